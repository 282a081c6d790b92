"""Images built from Containerfiles, with commands that really run."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.tool import Tool

pytestmark = pytest.mark.privileged


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Tool]:
    made = Tool(tmp_path)
    made("image", "import", str(made.rootfs), "base")
    yield made
    assert "" == made("ps", "-aq").stdout, "a build leaves no container"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    made = tmp_path / "context"
    made.mkdir()
    return made


def build(tool: Tool, context: Path, text: str, *words: str, code: int = 0) -> Any:
    (context / "Containerfile").write_text(text)
    found = tool(
        "image", "build", "--net", "none", "--json", "-t", "made", *words, str(context), code=code
    )
    return json.loads(found.stdout) if code == 0 else found.stderr


def steps(tool: Tool, context: Path, *words: str) -> list[str]:
    """Build again; return for each step that makes a layer whether it was done before."""
    said = tool("image", "build", "--net", "none", "-t", "made", *words, str(context)).stderr
    lines = said.splitlines()
    return [
        "cached" if lines[index + 1 : index + 2] == ["  as before"] else "done"
        for index, line in enumerate(lines)
        if line.startswith("STEP") and any(f": {name} " in line for name in ("RUN", "COPY", "ADD"))
    ]


def inside(tool: Tool, *command: str, image: str = "made") -> str:
    return tool("run", "--rm", "--net", "none", image, *command).stdout


def test_a_command_changes_files_and_the_next_one_sees_them(tool: Tool, context: Path) -> None:
    build(
        tool,
        context,
        "FROM base\nRUN echo one >/a && rm /bin/wc\nRUN cat /a >/b; echo two >>/b\n"
        "RUN mkdir /gone && touch /gone/x\nRUN rm -r /gone\n",
    )

    assert "one\ntwo\n" == inside(tool, "cat", "/b")
    assert "1" == inside(tool, "sh", "-c", "test -e /bin/wc || test -e /gone; echo -n $?")


def test_what_a_container_is_given_is_not_in_the_image(tool: Tool, context: Path) -> None:
    found = build(tool, context, "FROM base\nRUN true\nRUN echo x >/etc/mine\n")
    upper = tool.root / "images/layers" / found["layers"][-1]

    assert ["etc", "etc/mine"] == sorted(str(each.relative_to(upper)) for each in upper.rglob("*"))
    # A command that changes nothing makes no layer.
    assert 2 == len(found["layers"])


def test_environment_arguments_user_and_directory_hold_for_commands_and_containers(
    tool: Tool, context: Path
) -> None:
    build(
        tool,
        context,
        "ARG WHERE=/srv\nFROM base\nARG WHERE\nARG COLOUR=red\nENV SHADE=dark-$COLOUR\n"
        "WORKDIR $WHERE/app\nWORKDIR data\nUSER web\n"
        'RUN id -u >/tmp/id || true; echo "$SHADE $COLOUR $(pwd) $(id -u)" >&2\n'
        "USER root\nRUN echo $SHADE $COLOUR $(pwd) >/seen\nUSER web\n"
        'CMD echo "$SHADE [$COLOUR] $(pwd) $(id -u)"\n',
        "--build-arg",
        "COLOUR=blue",
    )

    assert "dark-blue [] /srv/app/data 33\n" == inside(tool)
    assert "dark-blue blue /srv/app/data\n" == inside(tool, "cat", "/seen")


def test_copy_puts_files_where_the_rules_say_and_to_whom(tool: Tool, context: Path) -> None:
    (context / "dir/sub").mkdir(parents=True)
    (context / "dir/sub/file").write_text("deep")
    (context / "one").write_text("1")
    (context / "two").write_text("2")
    (context / "one").chmod(0o640)
    build(
        tool,
        context,
        "FROM base\nWORKDIR /w\nCOPY one renamed\nCOPY one two into/\nCOPY dir .\n"
        'COPY --chown=web:disk --chmod=4755 one /owned\nCOPY ["two", "/a b"]\nCOPY o* /glob/\n',
    )

    contents = {
        "renamed": "1", "into/one": "1", "into/two": "2", "sub/file": "deep", "/a b": "2",
        "/glob/one": "1",
    }  # fmt: skip
    for path, content in contents.items():
        assert content == inside(tool, "cat", path)
    assert ["-rw-r-----", "0", "0"] == _listed(tool, "renamed")
    assert ["-rwsr-xr-x", "33", "6"] == _listed(tool, "/owned")


def _listed(tool: Tool, path: str) -> list[str]:
    """Return a file's mode, owner and group as they are seen inside."""
    mode, _, user, group, *_ = inside(tool, "ls", "-ln", path).split()
    return [mode, user, group]


def test_copy_goes_through_links_of_the_image_and_never_out_of_it(
    tool: Tool, context: Path, tmp_path: Path
) -> None:
    (context / "file").write_text("x")
    build(
        tool,
        context,
        f"FROM base\nRUN mkdir -p /run/here && ln -s run /var && ln -s {tmp_path} /out\n"
        "COPY file /var/here/\nCOPY file /out/file\n",
    )

    assert "x" == inside(tool, "cat", "/run/here/file")
    assert "x" == inside(tool, "cat", f"{tmp_path}/file")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("source", ["../secret", "link", "dir/link", "dir/../../secret"])
def test_copy_of_what_is_outside_is_refused(
    tool: Tool, context: Path, tmp_path: Path, source: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    (context / "dir").mkdir()
    (context / "link").symlink_to("../secret")
    (context / "dir/link").symlink_to("/etc/hostname")

    said = build(tool, context, f"FROM base\nCOPY {source} /x\n", code=2)

    assert "leads out" in said
    assert ["base:latest"] == references(tool)


def references(tool: Tool) -> list[Any]:
    return [each["reference"] for each in json.loads(tool("image", "ls", "--json").stdout)]


def test_a_link_in_a_copied_directory_stays_a_link(tool: Tool, context: Path) -> None:
    (context / "dir").mkdir()
    (context / "dir/link").symlink_to("/etc/hostname")

    build(tool, context, "FROM base\nCOPY dir /dir\n")

    assert "/etc/hostname\n" == inside(tool, "readlink", "/dir/link")


def test_what_is_ignored_is_not_copied(tool: Tool, context: Path) -> None:
    (context / ".dockerignore").write_text("*.secret\nContainerfile\n.dockerignore\n")
    for name in ("a.secret", "b"):
        (context / name).write_text(name)

    build(tool, context, "FROM base\nCOPY . /all\n")

    assert "b\n" == inside(tool, "ls", "-A", "/all")


def test_add_unpacks_archives_and_copies_all_else(tool: Tool, context: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as made:
        info = tarfile.TarInfo("in/side")
        info.size, info.uid = 3, 33
        made.addfile(info, io.BytesIO(b"tar"))
    (context / "archive.tgz").write_bytes(stream.getvalue())
    (context / "plain").write_text("plain")

    build(tool, context, "FROM base\nADD archive.tgz plain /x/\nCOPY archive.tgz /y/\n")

    assert "tar" == inside(tool, "cat", "/x/in/side")
    assert "plain" == inside(tool, "cat", "/x/plain")
    assert "archive.tgz\n" == inside(tool, "ls", "/y")


def test_an_added_archive_that_leads_out_is_refused(tool: Tool, context: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        made.addfile(tarfile.TarInfo("../../out"))
    (context / "archive.tar").write_bytes(stream.getvalue())

    assert "'..'" in build(tool, context, "FROM base\nADD archive.tar /x/\n", code=33)


def test_stages_and_other_images_give_their_files(tool: Tool, context: Path) -> None:
    found = build(
        tool,
        context,
        "FROM base AS tools\nRUN mkdir /out && echo built >/out/result\nRUN rm /bin/seq\n"
        "FROM scratch\nCOPY --from=tools /bin /bin\nCOPY --from=0 /out/result /\n"
        "COPY --from=base /etc/passwd /etc/\n",
    )

    assert "built\n" == inside(tool, "cat", "/result")
    assert "1" == inside(tool, "sh", "-c", "test -e /bin/seq; echo -n $?")
    assert 3 == len(found["layers"])


def test_one_stage_can_be_asked_for(tool: Tool, context: Path) -> None:
    build(
        tool, context, "FROM base AS one\nENV A=1\nFROM base AS two\nRUN false\n", "--target", "one"
    )

    assert "1\n" == inside(tool, "sh", "-c", "echo $A")


def test_the_configuration_is_kept_and_used(tool: Tool, context: Path) -> None:
    config = build(
        tool,
        context,
        'FROM base\nLABEL b="two words" a=1\nEXPOSE 80 53/udp\nVOLUME /data ["x"]\n'
        'STOPSIGNAL SIGINT\nSHELL ["/bin/sh", "-ec"]\nCMD ["lost"]\nENTRYPOINT ["echo", "said"]\n'
        'CMD ["this"]\nMAINTAINER somebody\n',
    )["config"]

    assert {"a": "1", "b": "two words", "maintainer": "somebody"} == config["labels"]
    assert ["53/udp", "80/tcp"] == config["exposed_ports"]
    assert "SIGINT" == config["stop_signal"]
    assert ["/bin/sh", "-ec"] == config["shell"]
    assert "said this\n" == inside(tool)
    assert "said that\n" == inside(tool, "that")


def test_a_new_entry_point_forgets_the_command_of_the_image_below(
    tool: Tool, context: Path
) -> None:
    build(tool, context, 'FROM base\nCMD ["below"]\n')
    tool("image", "build", "--net", "none", "-t", "upper", "-f", "-", str(context),
         data='FROM made\nENTRYPOINT ["echo", "alone"]\n')  # fmt: skip

    assert "alone\n" == inside(tool, image="upper")


def test_the_cache_is_used_until_something_that_matters_changes(tool: Tool, context: Path) -> None:
    (context / "file").write_text("1")
    (context / ".containerignore").write_text("ignored\n")
    text = (
        "FROM base\nARG V=1\nRUN echo a\nCOPY file /file\nRUN cat /file >/copy\nRUN echo $V >/v\n"
    )
    first = build(tool, context, text)

    assert ["cached"] * 4 == steps(tool, context)
    (context / "ignored").write_text("x")
    (context / "file").touch()
    assert ["cached"] * 4 == steps(tool, context)
    assert first["digest"] == build(tool, context, text)["digest"]
    (context / "file").write_text("2")
    assert ["cached", "done", "done", "done"] == steps(tool, context)
    assert "2" == inside(tool, "cat", "/copy")
    # The first command changes nothing, so what comes after it stands on the same as before.
    assert ["done", "cached", "done", "done"] == steps(tool, context, "--build-arg", "V=2")
    assert ["done"] * 4 == steps(tool, context, "--no-cache")


def test_a_layer_that_was_pruned_is_made_again(tool: Tool, context: Path) -> None:
    build(tool, context, "FROM base\nRUN echo a >/a\n")
    tool("image", "rm", "made")
    tool("image", "prune", "--older-than", "0s")

    assert ["done"] == steps(tool, context)
    assert "a\n" == inside(tool, "cat", "/a")


def test_a_command_that_fails_leaves_nothing(tool: Tool, context: Path) -> None:
    said = build(tool, context, "FROM base\nRUN echo trace >/x; exit 7\n", code=10)

    assert "line 2, RUN: the command failed with exit code 7; no image was made" in said
    assert ["base:latest"] == references(tool)
    assert 1 == len(list((tool.root / "images/layers").iterdir()))
    assert [] == list((tool.root / "images/tmp").iterdir())


def test_files_of_one_build_twice_are_the_same_bytes(
    tool: Tool, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    (context / "file").write_text("x")
    os.utime(context / "file", (1, 1))
    text = "FROM scratch\nCOPY file /deep/file\nWORKDIR /deep/er\nENV A=b\n"
    exported = []
    for name in ("one.tar", "two.tar"):
        build(tool, context, text, "--no-cache")
        tool("image", "export", "made", "-o", str(tmp_path / name))
        tool("image", "rm", "made")
        exported.append((tmp_path / name).read_bytes())

    assert exported[0] == exported[1]


def test_what_is_not_there_is_told(tool: Tool, context: Path) -> None:
    assert "nothing is downloaded" in build(tool, context, "FROM debian\n", code=11)
    assert "nothing is downloaded" in build(
        tool, context, "FROM base\nADD https://example.org/x /x\n", code=2
    )
    assert "empty" in build(tool, context, "FROM scratch\nENV A=b\n", code=15)
    (context / "Containerfile").unlink()
    tool("image", "build", str(context), code=2)
