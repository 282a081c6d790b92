"""A report for maintainers: what they need is in it, and no secret is."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from pymigrate.checkpoint import dump
from pymigrate.migrate.journal import Journal
from pymigrate.migrate.phases import Phase
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from tests.privileged.tool import Tool

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

SECRET = "s3cr3t"


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)


def plant(tool: Tool, directory: Path) -> Container:
    """Run a container, and put a secret wherever a person may have put one."""
    keys = directory / f"keys-{SECRET}"
    keys.mkdir()
    (keys / "id_ed25519").write_text(f"{SECRET}-key")
    tool.run(
        "-d",
        "--name",
        "web",
        "-e",
        f"DB_PASSWORD={SECRET}-env",
        "-v",
        f"{keys}:/keys:ro",
        "sh",
        "-c",
        f"sleep 1000; : --password={SECRET}-argv",
    )
    host = Host.open(tool.root)
    container = Container.open(host, "web")
    (container.directory / dump.KEPT_LOG).write_text(
        f"(0.1) Error (criu/files-reg.c:1): Can't open file /srv/token={SECRET}-log\n"
        "(0.2) Error (criu/cr-dump.c:2128): Dumping FAILED.\n"
    )
    with Journal.create(host.migrations / "20260102-web-1" / "journal") as journal:
        journal.begin(
            Phase.PLANNED,
            role="source",
            name="web",
            mode="stop",
            target={
                "destination": f"root@{SECRET}-host",
                "identity": f"/root/{SECRET}-identity",
                "remote_command": f"env TOKEN={SECRET}-command pymigrate",
            },
        )
        journal.roll_back(cause=f"criu: Can't fork for 7: File exists ({SECRET}-cause)")
    return container


def test_report_has_what_is_needed_and_no_secret(tool: Tool, tmp_path: Path) -> None:
    plant(tool, tmp_path)
    file = tmp_path / "bug.json"
    try:
        tool("report-bug", "web", "-o", str(file))
        again = tool("report-bug", "-o", str(file), code=2)
    finally:
        tool("rm", "-f", "web")
    text = file.read_text()
    assert SECRET not in text
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert "exists already; nothing was written" in again.stderr
    report = json.loads(text)
    assert report["versions"]["pymigrate"]
    assert report["host"]["kernel"]
    assert {"criu", "freezer"} <= {each["name"] for each in report["checks"]}
    container = report["container"]
    assert ("sh", 2) == (container["spec"]["program"], container["spec"]["arguments"])
    assert "DB_PASSWORD" in container["spec"]["environment"]
    assert ["/keys"] == container["volumes"]
    assert "Dumping FAILED" in container["criu_log"]
    assert [] == container["scan"]
    (migration,) = report["migrations"]
    assert ("rolled back", "pid") == (migration["state"], migration["cause"])
    assert {
        "event": "begin",
        "phase": "planned",
        "role": "source",
        "name": "web",
        "mode": "stop",
    } == (migration["lines"][0])


def test_report_without_a_container_tells_of_the_host(tool: Tool, tmp_path: Path) -> None:
    file = tmp_path / "bug.json"
    tool("report-bug", "-o", str(file))
    assert json.loads(file.read_text())["container"] is None
