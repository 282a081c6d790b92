"""Stands in for the agent: gives its standard input and output to the test that waits for them.

Run as a program, with the path of the test's socket; ends when the test closes that.
"""

from __future__ import annotations

import os
import socket
import sys

if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(sys.argv[1])
        socket.send_fds(line, [b"x"], [0, 1])
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        line.recv(1)
