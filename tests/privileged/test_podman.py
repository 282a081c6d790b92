"""podman with pymigrate as its OCI runtime, on an image that pymigrate built."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime.cgroups import current_layout
from tests.features import requires
from tests.privileged.tool import Result, Terminal, Tool, until

pytestmark = [pytest.mark.privileged, requires("podman")]

# The host may give root less than podman takes for granted.
LIMITS = ("--network=none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
CONTAINERFILE = """
FROM base
ENV COLOUR=blue
WORKDIR /srv
RUN echo built >/built
STOPSIGNAL USR1
CMD ["sh", "-c", "echo $COLOUR $(pwd) $(cat /built)"]
"""


class Podman:
    """podman with a store of its own in a place with a short name, and our runtime."""

    def __init__(self, place: Path) -> None:
        runtime = place / "pymigrate-oci"
        program = f"{sys.executable} -I -m pymigrate.migrate oci --root {place}/oci"
        runtime.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        runtime.chmod(0o755)
        self.place = place
        self.words = (
            "podman", f"--root={place}/root", f"--runroot={place}/run", f"--tmpdir={place}/tmp",
            "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file",
            f"--runtime={runtime}",
        )  # fmt: skip

    def __call__(self, *words: str, code: int | None = 0, data: str | None = None) -> Result:
        found = subprocess.run(
            [*self.words, *words],
            input=data or "",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert code is None or code == found.returncode, found
        return found

    def run(self, *words: str, code: int = 0, data: str | None = None) -> str:
        return self("run", "--rm", *LIMITS, *words, code=code, data=data).stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an image and export it."""
    place = tmp_path_factory.mktemp("image")
    tool = Tool(place)
    tool("image", "import", str(tool.rootfs), "base")
    (place / "context").mkdir()
    (place / "context/Containerfile").write_text(CONTAINERFILE)
    tool("image", "build", "--net", "none", "-t", "built:1", str(place / "context"))
    tool("image", "export", "built:1", "-o", str(place / "image.tar"))
    return place / "image.tar"


@pytest.fixture
def podman(image: Path) -> Iterator[Podman]:
    place = Path(tempfile.mkdtemp(prefix="pm-"))
    made = Podman(place)
    try:
        made("load", "-q", "-i", str(image))
        yield made
        made("rm", "-af", "-t", "0")
        assert [] == list((place / "oci").iterdir()) if (place / "oci").exists() else True
    finally:
        _remove_cgroups()
        shutil.rmtree(place)


def _remove_cgroups() -> None:
    """Remove podman's own cgroups, once its monitors have ended."""

    def gone() -> bool:
        left = False
        for hierarchy in [*(each.mount_point for each in current_layout().hierarchies),
                          "/sys/fs/cgroup/systemd"]:  # fmt: skip
            parent = Path(hierarchy) / "libpod_parent"
            for directory in sorted(parent.glob("**/"), reverse=True):
                with contextlib.suppress(OSError):
                    directory.rmdir()
            left = left or parent.exists()
        return not left

    until(gone)


def test_an_image_runs_as_it_was_built_and_the_exit_code_comes_back(podman: Podman) -> None:
    assert "blue /srv built\n" == podman.run("built:1")
    assert "out\n" == podman.run("built:1", "sh", "-c", "echo out; exit 5", code=5)
    assert "typed" == podman.run("-i", "built:1", "cat", data="typed")


def test_a_container_is_entered_stopped_started_again_and_removed(podman: Podman) -> None:
    script = "trap 'exit 9' USR1; echo up; while :; do sleep 0.1; done"
    podman("run", "-d", "--name", "one", *LIMITS, "built:1", "sh", "-c", script)
    until(lambda: "up\n" == podman("logs", "one").stdout)

    assert (
        "1 blue\n"
        == podman("exec", "one", "sh", "-c", "echo $(echo /proc/1 | wc -l) $COLOUR").stdout
    )
    assert 4 == podman("exec", "one", "sh", "-c", "exit 4", code=None).returncode
    assert "web\n" == podman("exec", "--user", "web", "one", "sh", "-c", "id -un").stdout
    assert 127 == podman("exec", "one", "nothing", code=None).returncode
    podman("stop", "-t", "30", "one")
    assert ["exited", "9"] == _told(podman, "{{.State.Status}} {{.State.ExitCode}}")
    podman("start", "one")
    until(lambda: "up\nup\n" == podman("logs", "one").stdout)
    podman("kill", "one")
    podman("wait", "one")
    assert ["exited", "137"] == _told(podman, "{{.State.Status}} {{.State.ExitCode}}")
    podman("rm", "one")


def _told(podman: Podman, form: str) -> list[str]:
    return podman("inspect", "one", "--format", form).stdout.split()


def test_pause_and_top_and_limits_reach_the_runtime(podman: Podman) -> None:
    podman("run", "-d", "--name", "one", *LIMITS, "--memory=64m", "--pids-limit=33", "built:1",
           "sleep", "60")  # fmt: skip

    assert "sleep 60" in podman("top", "one").stdout
    inside = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true"
    assert "33\n" == podman("exec", "one", "sh", "-c", inside).stdout
    podman("pause", "one")
    assert ["paused"] == _told(podman, "{{.State.Status}}")
    podman("unpause", "one")
    assert ["running"] == _told(podman, "{{.State.Status}}")
    podman("rm", "-f", "-t", "0", "one")


def test_a_terminal_works(podman: Podman) -> None:
    terminal = Terminal(
        ["/usr/bin/env", *podman.words, "run", "-it", "--rm", *LIMITS, "built:1", "sh"]
    )
    terminal.expect(b"# ")
    terminal.type(b"tty; exit 3\n")

    terminal.expect(b"/dev/pts/0")
    assert 3 == terminal.end()


@pytest.mark.parametrize(("command", "code"), [("nothing", 127), ("/etc/passwd", 126)])
def test_what_cannot_be_run_gives_podmans_exit_codes(
    podman: Podman, command: str, code: int
) -> None:
    podman.run("built:1", command, code=code)


def test_a_hardened_container_is_as_asked_for(podman: Podman) -> None:
    script = (
        "id -u; id -g; hostname; pwd; umask; wc -l </etc/passwd; "
        "grep -E 'Cap(Eff|Bnd)|NoNew|Seccomp:' /proc/self/status | busybox cut -f2; "
        "touch /x 2>/dev/null || echo denied; touch /tmp/x && echo made"
    )
    said = podman.run(
        "--read-only", "--user=33:6", "--cap-drop=all", "--security-opt=no-new-privileges",
        "--hostname=hard", "--workdir=/etc", "--umask=077", "--tmpfs=/etc:rw", "built:1",
        "sh", "-c", script,
    )  # fmt: skip

    none = "0" * 16
    expected = ["33", "6", "hard", "/etc", "0077", "2", none, none, "1", "2", "denied", "made"]
    assert expected == said.split()


def test_the_versions_and_the_name_of_the_runtime_are_shown(podman: Podman) -> None:
    found = json.loads(podman("info", "--format", "json").stdout)["host"]["ociRuntime"]

    assert "pymigrate version" in found["version"]
    assert os.fspath(podman.place / "pymigrate-oci") == found["path"]
