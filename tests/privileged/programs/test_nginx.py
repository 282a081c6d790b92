"""nginx with a download in progress."""

from __future__ import annotations

import pytest

from tests.lab import Host, Lab
from tests.lab.services import DIGEST, NGINX, Download
from tests.privileged.programs.conftest import Relocate, by_mode, move_and_back, until_it_says

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

ADDRESS = "10.88.0.23"
MIB = 24
GIB = 1024


def start(host: Host, mib: int) -> str:
    """Start nginx with a file of so many MiB; return its SHA-256."""
    run = ("run", "-d", "--name", "nginx", "--ip", ADDRESS)
    host.pymigrate(*run, "programs", "sh", "-c", NGINX, str(mib))
    until_it_says(host, "nginx", "ready")
    return str(host.pymigrate("exec", "nginx", *DIGEST).stdout.split()[0])


def test_nginx_finishes_the_download_that_it_began(lab: Lab, relocate: Relocate) -> None:
    digest = start(lab["alpha"], MIB)
    # At 1.6 MiB a second: the move has 15 s.
    with Download(lab.client, ADDRESS, MIB, digest) as download:
        download.look()

        relocate("nginx")

        download.look()
        download.end()


@by_mode()
@pytest.mark.requires("userfaultfd")
@pytest.mark.usefixtures("containers")
def test_a_download_of_a_gibibyte_goes_on_while_nginx_moves_twice(lab: Lab, mode: str) -> None:
    digest = start(lab["alpha"], GIB)
    # It lasts longer than both moves.
    with Download(lab.client, ADDRESS, GIB, digest, patience=280) as download:
        download.look()

        move_and_back(lab, "nginx", mode, download.look)

        download.end()
