"""Volumes: those that travel arrive with their content, those that are local stay."""

from __future__ import annotations

import pytest

from tests.lab import Lab

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

APPEND = "i=0; while true; do i=$((i+1)); echo $i >> /data/log; usleep 5000; done"


def test_a_volume_travels_and_a_local_one_stays(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.sh("mkdir -p /srv/data /srv/own; echo alpha > /srv/own/name; echo before > /srv/data/old")
    beta.sh("mkdir -p /srv/own; echo beta > /srv/own/name")
    alpha.pymigrate(
        "run", "-d", "--name", "writer", "--net", "none",
        "-v", "/srv/data:/data", "-v", "/srv/own:/own:ro,local", "-v", "db:/db",
        "small", "sh", "-c", APPEND,
    )  # fmt: skip
    alpha.pymigrate("exec", "writer", "sh", "-c", "echo named > /db/file")
    alpha.pymigrate("migrate", "writer", "root@beta")

    lines = [int(line) for line in beta.sh("cat /srv/data/log").split()]
    assert lines == list(range(1, len(lines) + 1))
    assert "before\n" == beta.sh("cat /srv/data/old")
    assert "beta\n" == beta.pymigrate("exec", "writer", "cat", "/own/name").stdout
    assert "named\n" == beta.pymigrate("exec", "writer", "cat", "/db/file").stdout
    grown = beta.sh(f"until [ $(wc -l < /srv/data/log) -gt {len(lines)} ]; do :; done; echo yes")
    assert "yes\n" == grown
    beta.pymigrate("rm", "-f", "writer")
    for host in (alpha, beta):  # a move leaves the source's volumes where they are
        assert "db\n" == host.pymigrate("volume", "prune").stdout
    for host in (alpha, beta):
        host.sh("rm -rf /srv/data /srv/own /srv/pymigrate/migrations/*")


def test_a_volume_that_would_be_mixed_with_files_of_the_target_is_refused(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    for host in (alpha, beta):
        host.sh("mkdir -p /srv/data; echo mine > /srv/data/mine")
    alpha.pymigrate(
        "run", "-d", "--name", "writer", "--net", "none", "-v", "/srv/data:/data", "small",
        "sh", "-c", APPEND,
    )  # fmt: skip
    said = alpha.pymigrate("migrate", "writer", "root@beta", check=False)

    assert 52 == said.returncode
    assert "/srv/data" in said.stderr
    assert "mine\n" == beta.sh("cat /srv/data/mine")
    alpha.pymigrate("rm", "-f", "writer")
    for host in (alpha, beta):
        host.sh("rm -rf /srv/data /srv/pymigrate/migrations/*")
