"""Containers of ours made of OCI bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.oci import bundle
from tests.privileged.tool import Tool

pytestmark = pytest.mark.privileged


def writable(config: Any) -> None:
    config["root"]["readonly"] = False
    config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    )


def test_a_bundle_runs_and_stays_as_it_is(tool: Tool, tmp_path: Path) -> None:
    path = bundle(tmp_path / "b", tool.rootfs, "sh", "-c", "hostname; touch /new; ls /new; exit 4",
                  change=writable)  # fmt: skip

    said = tool("run", "--net", "none", "--bundle", str(path), code=4)

    assert "bundled\n/new\n" == said.stdout
    assert not (tool.rootfs / "new").exists()


def test_its_container_is_one_as_all_others(tool: Tool, tmp_path: Path) -> None:
    path = bundle(
        tmp_path / "b", tool.rootfs, "sh", "-c", "echo $0; exec sleep 100", change=writable
    )

    tool("run", "-d", "--net", "none", "--name", "one", "--bundle", str(path))

    limits = "cat /sys/fs/cgroup/pids/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null; true"
    assert "1\n" == tool("exec", "one", "sh", "-c", limits).stdout[:2]
    assert "sh\n" == tool("logs", "one").stdout
    tool("pause", "one")
    tool("resume", "one")
    tool("stop", "-t", "0", "one")
    tool("start", "one")
    assert "running" == tool.state("one")["status"]
    tool("rm", "-f", "one")


def test_another_command_can_be_given(tool: Tool, tmp_path: Path) -> None:
    path = str(bundle(tmp_path / "b", tool.rootfs, "false"))

    assert "x\n" == tool("run", "--rm", "--net", "none", "--bundle", path, "echo", "x").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--memory", "64m"), "--memory: does not go with --bundle"),
        (("-e", "A=b"), "--env: does not go with --bundle"),
        (("--net", "host"), "network of its own"),
    ],
)
def test_options_that_config_json_decides_are_refused(
    tool: Tool, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    path = str(bundle(tmp_path / "b", tool.rootfs, "true"))

    assert said in tool("run", "--bundle", path, *words, code=2).stderr
    assert "[]" == json.dumps(json.loads(tool("ps", "-a", "--json").stdout))


def test_a_bundle_with_hooks_is_sent_to_oci_run(tool: Tool, tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config["hooks"] = {"prestart": [{"path": "/bin/true"}]}

    path = str(bundle(tmp_path / "b", tool.rootfs, "true", change=change))

    assert "pymigrate oci run" in tool("run", "--bundle", path, code=2).stderr
    assert "config.json" in tool("run", "--bundle", str(tmp_path), code=2).stderr
