"""An ssh connection that is made once and used for all that follows, as a careful operator does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import Host

SOCKET = Path("/srv/bench/ssh")


@contextmanager
def logged_in(source: Host, target: Host) -> Iterator[tuple[str, str]]:
    """Log in; yield the option by which ssh and scp on the source use that while the block runs."""
    option = ("-o", f"ControlPath={SOCKET}")
    words = f"ssh {' '.join(option)}"
    # What it says goes to a file, for it would keep a pipe open that is read to its end.
    source.sh(
        f"""\
mkdir -p {SOCKET.parent}
{words} -f -N -M {target.ssh_destination} < /dev/null > {SOCKET}.log 2>&1 || {{
  cat {SOCKET}.log >&2
  exit 1
}}
"""
    )
    try:
        yield option
    finally:
        source.run(["ssh", *option, "-O", "exit", target.ssh_destination], check=False)
