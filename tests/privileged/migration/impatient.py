"""The command, which counts a line as cut sooner: `impatient.py migrate NAME DEST …`.

What is tested by it is what a cut leads to, not how long it takes to be seen. The rest is the
product's; whoever calls its parts may choose these times.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType

from pymigrate.migrate import cli, driver
from pymigrate.transport import rpc, ssh, tls
from pymigrate.transport.ssh_settings import Timeouts

SILENCE = 3.0
"""Seconds without a sign of life, not 8; for a connection, not 10; for what was sent to be
acknowledged, not 30; for a target to confirm what is committed, not 30."""


def hurry() -> None:
    """Have this process wait no longer than that for a host that is cut off."""
    _replace(rpc, "Client", functools.partial(rpc.Client, silence=SILENCE))
    _replace(ssh, "connect", functools.partial(ssh.connect, timeouts=Timeouts(connect=SILENCE)))
    _replace(tls, "USER_TIMEOUT_MS", int(SILENCE * 1000))
    _replace(driver, "drive", functools.partial(driver.drive, patience=SILENCE))


def _replace(module: ModuleType, name: str, new: object) -> None:
    assert name in vars(module), f"{module.__name__} has no {name} any more"
    vars(module)[name] = new


if __name__ == "__main__":
    hurry()
    sys.exit(cli.main())
