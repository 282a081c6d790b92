"""Named volumes: made by who needs them first, kept until a person removes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pymigrate.runtime import volumes
from pymigrate.runtime.host import Host
from pymigrate.runtime.settings import Mount
from pymigrate.runtime.spec import default_spec
from pymigrate.runtime.state import NetworkSettings, Record, Volume
from tests.privileged.tool import Tool

pytestmark = pytest.mark.privileged


def listed(tool: Tool) -> dict[str, list[str]]:
    """Return who has which volume."""
    rows = json.loads(tool("--json", "volume", "ls").stdout)
    return {each["name"]: each["containers"] for each in rows}


def test_what_one_container_writes_the_next_one_reads(tool: Tool) -> None:
    tool.run("--rm", "-v", "db:/data", "sh", "-c", "echo kept > /data/file")
    tool.run("-d", "--name", "web", "-v", "db:/data:ro", "sleep", "1000")

    assert "kept\n" == tool("exec", "web", "cat", "/data/file").stdout
    assert "Read-only" in tool("exec", "web", "touch", "/data/x", code=1).stderr
    assert {"db": ["web"]} == listed(tool)
    assert "kept\n" == (tool.root / "volumes/db/file").read_text()


def test_what_a_container_has_stays_and_what_none_has_can_be_removed(tool: Tool) -> None:
    tool("volume", "create", "spare")
    tool.run("--name", "web", "-v", "db:/data", "true")
    said = tool("volume", "rm", "db", code=13).stderr
    assert "belongs to web" in said
    assert "spare\n" == tool("volume", "prune").stdout
    assert {"db": ["web"]} == listed(tool)

    tool("rm", "web")
    tool("volume", "rm", "db")
    assert {} == listed(tool)
    assert [] == list((tool.root / "volumes").iterdir())
    assert "there is no volume" in tool("volume", "rm", "db", code=11).stderr
    assert "there is no volume" in tool("volume", "inspect", "../containers", code=11).stderr


def test_an_empty_one_begins_with_what_the_image_has_there(tool: Tool) -> None:
    seeds = tool.rootfs / "srv/seeds"
    seeds.mkdir(parents=True)
    (seeds / "one").write_text("of the image\n")
    for path in (seeds, seeds / "one"):
        path.chmod(0o750)
    tool("image", "import", str(tool.rootfs), "seeded")
    run = ("run", "--rm", "--net", "none", "-v", "seeds:/srv/seeds")

    look = "cat one; busybox stat -c %a . one; rm one; echo mine > two"
    found = tool(*run, "-w", "/srv/seeds", "seeded", "sh", "-c", look).stdout
    assert ["of the image", "750", "750"] == found.splitlines()
    # It is not empty any more, so nothing of the image comes back.
    assert "two\n" == tool(*run, "seeded", "ls", "/srv/seeds").stdout


def test_it_belongs_to_the_root_of_containers_with_users_of_their_own(tool: Tool) -> None:
    run = ("--rm", "--userns", "300000:400000:1000", "-v", "db:/data")
    tool.run(*run, "sh", "-c", "echo x > /data/file")

    for path in (tool.root / "volumes/db", tool.root / "volumes/db/file"):
        assert (300000, 400000) == (path.stat().st_uid, path.stat().st_gid)


@pytest.mark.parametrize(
    ("given", "code"), [("db:/data", 2), ("db:data", 2), ("d/b:/data", 2), (".db:/data", 2)]
)
def test_nothing_is_left_of_a_container_that_could_not_be_made(
    tool: Tool, given: str, code: int
) -> None:
    tool.run("--net", "none", "--ip", "10.88.0.9", "-v", given, "true", code=code)

    assert {} == listed(tool)


def test_no_volume_is_left_when_the_name_of_the_container_is_in_use(tool: Tool) -> None:
    tool.run("--name", "web", "true")
    tool("run", "--net", "none", "--name", "other", "--rootfs", str(tool.rootfs), "true")
    (tool.root / "containers/half").mkdir()  # in the way
    tool.run("--name", "half", "-v", "db:/data", "true", code=12)
    (tool.root / "containers/half").rmdir()

    assert {} == listed(tool)


def test_a_removal_that_was_killed_is_ended_by_the_next_prune(tool: Tool) -> None:
    tool("volume", "create", "db")
    (tool.root / "volumes/db").rename(tool.root / "volumes/.rm.db.1")

    assert {} == listed(tool)
    tool("volume", "prune")
    assert [] == list((tool.root / "volumes").iterdir())


@pytest.mark.criu
def test_a_checkpoint_restored_elsewhere_has_it_where_that_host_has_its_volumes(
    tool: Tool, tmp_path: Path
) -> None:
    tool.run("-d", "--name", "web", "-v", "db:/data", "sh", "-c",
             "echo in > /data/file; while :; do sleep 1; done")  # fmt: skip
    while not (tool.root / "volumes/db/file").exists():
        pass
    tool("checkpoint", "web", "-o", str(tmp_path / "web.tar.zst"))

    elsewhere = ("--root", str(tmp_path / "elsewhere"))
    tool(*elsewhere, "restore", str(tmp_path / "web.tar.zst"))
    assert "in\n" == (tmp_path / "elsewhere/volumes/db/file").read_text()
    tool(*elsewhere, "exec", "web", "sh", "-c", "echo there > /data/file")
    assert "there\n" == (tmp_path / "elsewhere/volumes/db/file").read_text()
    assert "in\n" == (tool.root / "volumes/db/file").read_text()
    tool(*elsewhere, "rm", "-f", "web")


def test_only_named_volumes_are_placed_anew() -> None:
    host = Host(Path("/new"), "0" * 12)
    given = (Volume("/old/volumes/db", "/data", name="db"), Volume("/srv", "/srv"))
    record = Record("", "web", None, None, (), "", NetworkSettings(), volumes=given)
    mounts = (
        Mount("/data", "bind", "/old/volumes/db", ("rbind",)),
        Mount("/srv", "bind", "/srv", ("rbind",)),
    )
    settings = default_spec(["true"], mounts=mounts)

    placed, there = volumes.placed(host, record, settings)

    assert ["/new/volumes/db", "/srv"] == [each.source for each in placed.volumes]
    assert ["/new/volumes/db", "/srv"] == [each.source for each in there.mounts]
