"""A checkpoint killed at any line: the container goes on by itself, with its connections."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pymigrate.checkpoint import save
from tests.lab import Client, Host, Lab
from tests.privileged.migration.conftest import ADDRESS, PORT, Counter, counting, small_lab
from tests.privileged.tool import until

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

DYING = Path(__file__).with_name("dying.py")
FILE = Path("/srv/checkpoint.tar.zst")
SOME = pytest.mark.parametrize("every", [24, pytest.param(1, marks=pytest.mark.long)])
"""Die at each so many-eth line; all of them take minutes."""

HELD = f"save:{inspect.getsourcelines(save._copy_files)[1] + 1}"
"""A line that is reached while CRIU holds the container."""

# With so many processes CRIU is still at it when it is struck.
HEAVY = "for i in $(seq 30); do sleep 1000 & done; x=$(yes | head -c 60000000);"
HEAVY += "while true; do echo tick >> /count; usleep 5000; done"

# One that was seen may have ended since.
ALL_CRIUS = (
    "for d in /proc/[0-9]*; do if grep -qsx criu $d/comm; then kill -{} ${{d##*/}} || :; fi; done"
)

STUCK = """
import os, signal, sys
from pymigrate.checkpoint import criu
from pymigrate.migrate import cli

vote, left = criu.Session.vote, int(sys.argv[1])

def stopped(session, *, yes):
    global left
    left -= 1
    if left == 0:
        os.kill(session.pid, signal.SIGSTOP)
    vote(session, yes=yes)

criu.Session.vote = stopped
criu.REST = 1.0
sys.exit(cli.main(sys.argv[2:]))
"""
"""A command whose CRIU is stopped before its n-th vote; it may rest for a second."""

FENCED = """
import os, signal, sys
from pathlib import Path
from pymigrate.checkpoint import dump, save
from pymigrate.runtime import lock, state
from pymigrate.checkpoint.requests import DumpOptions
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host

container = Container.open(Host.open(Path(os.environ["PYMIGRATE_ROOT"])), "counter")
images = Path("/srv/images")
images.mkdir()
with lock.locked(container.directory) as held, dump.prepare(container) as prepared:
    supervision = container.supervision()  # kept: without its name it would hang up at once,
    supervision.guard(held, [prepared.pid])
    container.freeze()
    container.unplug()
    held_dump = dump.hold(container, images, DumpOptions(), prepared)  # and CRIU likewise
    state.write_document(container.directory / "migration", {"migration": "m1"})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with small_lab() as lab:
        yield lab


@pytest.fixture
def counter(lab: Lab) -> Iterator[Counter]:
    yield counting(lab)
    alpha = lab["alpha"]
    alpha.pymigrate("rm", "-f", "counter")
    alpha.sh(f"rm -rf {FILE} /srv/images /srv/pymigrate/snapshots")


def checkpoint(host: Host, what: str, *line: str) -> subprocess.CompletedProcess[str]:
    return host.run([sys.executable, DYING, "counter", FILE, what, *line], check=False)


def killed(host: Host, what: str, line: str) -> None:
    """Die there; a line that was not reached this time, as after a lost race, is let pass."""
    done = checkpoint(host, what, line)
    if done.returncode == 0:
        assert line not in done.stdout.split()
    else:
        assert done.returncode in (-signal.SIGKILL, 137), (line, done)


def answers(echo: Client, what: str) -> None:
    while not echo.ask(what)["answers"]:
        pass  # the client itself gives up, with an error, when nothing comes


def supervisor_log(host: Host) -> str:
    return host.outside("/srv/pymigrate/containers/counter/supervisor.log").read_text()


def nothing_left(host: Host) -> bool:
    """Say whether no CRIU is left, and nothing that the next checkpoint does not remove."""
    names = set()
    for path in host.outside("/proc").glob("[0-9]*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):
            names.add(path.read_text().strip())
    staged = list(host.outside("/srv/pymigrate").glob("staging-*"))
    return "criu" not in names and not staged


def test_clients_wait_about_as_long_as_the_container_stands_still(
    lab: Lab, counter: Counter
) -> None:
    """A lost packet, or a neighbour asked for in vain, would cost them a second each time."""
    alpha = lab["alpha"]
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        for number in range(4):
            answers(echo, "before")
            made = alpha.pymigrate_json("snapshot", "create", "counter")
            gap = echo.ask("after")["longest_gap"]
            assert gap < made["frozen_seconds"] + 0.7, (number, gap, made)
        echo.finish()


@SOME
def test_killed_at_any_line_it_goes_on_with_its_connections(
    lab: Lab, counter: Counter, every: int
) -> None:
    alpha = lab["alpha"]
    lines = checkpoint(alpha, "runs-on").stdout.split()
    assert any(line.startswith("dump:") for line in lines), lines
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        for line in lines[::every]:
            killed(alpha, "runs-on", line)
            answers(echo, line)
        echo.finish()
    assert "running" == counter.status(alpha)
    alpha.pymigrate("checkpoint", "counter", "-R", "-o", FILE)
    alpha.pymigrate("archive", "verify", FILE)
    until(lambda: nothing_left(alpha))


@SOME
def test_killed_while_it_ends_it_goes_on_or_its_file_is_complete(
    lab: Lab, counter: Counter, every: int
) -> None:
    """Until CRIU has its yes the container goes on; after it, all of it is in the file."""
    alpha = lab["alpha"]
    lines = checkpoint(alpha, "ends").stdout.split()
    ended = went_on = 0
    for line in [*lines[::every], lines[-1]]:
        if counter.status(alpha) != "running":
            alpha.pymigrate("restore", FILE)
        alpha.sh(f"rm -f {FILE}")
        with Client(lab.client, "echo", ADDRESS, PORT) as echo:
            killed(alpha, "ends", line)
            until(lambda: counter.status(alpha) != "paused")
            if counter.status(alpha) == "running":
                went_on += 1
                answers(echo, line)
                echo.finish()
            else:
                ended += 1
                alpha.pymigrate("archive", "verify", FILE)
    assert ended
    assert went_on


def test_what_was_paused_before_stays_paused(lab: Lab, counter: Counter) -> None:
    alpha = lab["alpha"]
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        alpha.pymigrate("pause", "counter")
        killed(alpha, "runs-on", HELD)
        until(lambda: "it goes on as before" in supervisor_log(alpha))

        assert "paused" == counter.status(alpha)
        alpha.pymigrate("resume", "counter")
        answers(echo, "resumed")
        echo.finish()


def test_what_a_migration_holds_is_not_thawed(lab: Lab, counter: Counter) -> None:
    alpha = lab["alpha"]
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        alpha.run([sys.executable, "-c", FENCED], check=False)
        until(lambda: "a migration holds the container" in supervisor_log(alpha))

        assert "paused" == counter.status(alpha)
        alpha.sh("rm /srv/pymigrate/containers/counter/migration")
        alpha.pymigrate("resume", "counter")
        answers(echo, "resumed")
        echo.finish()


def test_who_comes_next_finds_it_settled(lab: Lab, counter: Counter) -> None:
    """What is asked after the death is not undone by the guard: it waits for the lock."""
    alpha = lab["alpha"]
    for line in checkpoint(alpha, "runs-on").stdout.split()[10::40]:
        checkpoint(alpha, "runs-on", line)
        alpha.pymigrate("pause", "counter")
        assert "paused" == counter.status(alpha), line
        checkpoint(alpha, "runs-on", line)
        alpha.pymigrate("resume", "counter")
        assert "running" == counter.status(alpha), line


def test_a_busy_supervisor_lets_it_go_on_when_it_can(lab: Lab, counter: Counter) -> None:
    alpha = lab["alpha"]
    supervisor = str(alpha.pymigrate_json("inspect", "counter")["state"]["supervisor_pid"])
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        checkpoint(alpha, "runs-on", HELD, supervisor)  # stops it, too
        assert "paused" == counter.status(alpha)
        alpha.sh(f"kill -CONT {supervisor}")
        answers(echo, "awake")
        echo.finish()


def struck(host: Host, strike: Callable[[Host, int], bool], moments: Iterable[int]) -> int:
    """Strike while a container with memory is written down; it counts on each time.

    Return how often it came to that.
    """
    host.pymigrate("rm", "-f", "counter")
    host.pymigrate("run", "-d", "--name", "counter", "small", "sh", "-c", HEAVY)
    count = host.outside("/srv/pymigrate/containers/counter/upper/count")
    until(count.exists)
    times = 0
    for moment in moments:
        times += strike(host, moment)
        size = count.stat().st_size
        until(lambda least=size: count.stat().st_size > least)  # type: ignore[misc]
        (listed,) = host.pymigrate_json("ps")
        assert "running" == listed["status"]
    return times


def test_snapshots_killed_from_outside_at_many_moments(lab: Lab, counter: Counter) -> None:
    """The command itself, with memory enough for CRIU to be at work when the signal comes."""
    alpha = lab["alpha"]
    assert struck(alpha, killed_in_the_dump, range(0, 36, 3))  # how often, the machine decides
    alpha.pymigrate("snapshot", "create", "counter")
    alpha.pymigrate("snapshot", "verify", "--data")
    until(lambda: nothing_left(alpha))


def begun(host: Host, files: int, before: set[Path]) -> bool:
    """Say whether CRIU has begun so many files, in a directory that was not there before."""
    stages = set(host.outside("/srv/pymigrate").glob("staging-*/checkpoint"))
    fresh = [stage for stage in stages if stage.parent not in before]
    return any(len(list(stage.iterdir())) >= files for stage in fresh)


def killed_in_the_dump(host: Host, files: int) -> bool:
    """Kill a snapshot when CRIU has begun so many files; say whether it came to that."""
    null = subprocess.DEVNULL
    before = set(host.outside("/srv/pymigrate").glob("staging-*"))
    with host.popen(
        ["pymigrate", "snapshot", "create", "counter"], stdout=null, stderr=null
    ) as one:
        until(lambda: one.poll() is not None or begun(host, files, before))
        alive = one.poll() is None
        one.send_signal(signal.SIGKILL)
    return alive


@pytest.mark.parametrize("verb", ["snapshot create", "checkpoint -R", "checkpoint"])
def test_stuck_criu_is_ended_and_the_container_goes_on(
    lab: Lab, counter: Counter, verb: str
) -> None:
    """It is stopped at each of its notifications; the last of a dump is the one that holds it."""
    alpha = lab["alpha"]
    words = [*verb.split(), "counter", *([] if "snapshot" in verb else ["-o", str(FILE)])]
    failed = 0
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        for number in range(1, 20):
            stuck = [sys.executable, "-c", STUCK, str(number), *words]
            done = alpha.run(stuck, check=False)
            if counter.status(alpha) != "running":
                break
            answers(echo, str(number))
            until(lambda: nothing_left(alpha))
            if done.returncode:
                failed += 1
                assert "criu did nothing for 1 s and was ended" in done.stderr, done
                assert "it goes on as before" in done.stderr, done
            elif number > failed + 2:
                break
        if counter.status(alpha) == "running":
            echo.finish()
    assert failed >= 2


def test_criu_that_gets_stuck_amid_the_dump_is_ended(lab: Lab, counter: Counter) -> None:
    alpha = lab["alpha"]
    assert struck(alpha, stopped_in_the_dump, range(1, 30, 3))  # how often, the machine decides
    alpha.pymigrate("snapshot", "create", "counter")
    until(lambda: nothing_left(alpha))


def stopped_in_the_dump(host: Host, files: int) -> bool:
    """Stop CRIU when it has begun so many files; say whether it was ended for that."""
    before = set(host.outside("/srv/pymigrate").glob("staging-*"))
    command = [sys.executable, "-c", STUCK, "0", "snapshot", "create", "counter"]
    with host.popen(command, stderr=subprocess.PIPE) as one:
        until(lambda: one.poll() is not None or begun(host, files, before))
        host.sh(ALL_CRIUS.format("STOP"))
        _, said = one.communicate()
    host.sh(ALL_CRIUS.format("CONT"))  # one that had told all, and only had to end
    assert one.returncode == 0 or "criu did nothing for 1 s and was ended" in said, said
    return one.returncode != 0
