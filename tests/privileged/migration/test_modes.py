"""Every way to move memory: nothing of it is lost, nobody notices, and a cut costs only time."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

from pymigrate.migrate.agent import MEMORY_NAME
from pymigrate.migrate.cli_agent import AGENT_NAME
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.wanted_sender import PROCESS_NAME as LANE_NAME
from tests.lab import Client, Host, Lab, images
from tests.privileged.migration.conftest import ADDRESS, IMPATIENT, PORT, Counter

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.criu,
    pytest.mark.requires("userfaultfd"),
]

MODES = ("stop", "pre", "post", "hybrid")
AGENTS = f"{AGENT_NAME}|{MEMORY_NAME}"  # for pgrep -x
LAZY = ("pre", "hybrid")
CELLS = 100_000
DYING = Path(__file__).with_name("dying.py")
MOMENTS = [
    (phase, event)
    for phase in Phase
    if phase >= Phase.PRECOPIED
    for event in ("began", "reached")
    if (phase, event) != (Phase.DONE, "reached")
]
# Holds some tens of MiB; for each line that it is sent, it looks at all of them.
REMEMBER = (
    "mkfifo /ask; exec awk 'BEGIN {"
    f" for (i = 0; i < {CELLS}; i++) a[i] = i * 7;"
    ' print "ready"; fflush();'
    ' while ((getline line < "/ask") >= 0) {'
    "  s = 0; for (i in a) s += (a[i] == i * 7); print line, s; fflush()"
    ' ; close("/ask") } }\''
)

# tail holds 24 MiB that do not compress, until there is no more to come.
NOISE = (
    "exec 3>&1; head -c 24m /dev/urandom > /in; sha256sum < /in > /sum; { cat /in; rm /in;"
    " sh -c 'echo $$ > /pid; echo ready >&3; exec sleep 10000'; } | tail -c 24m | sha256sum > /out"
)


def others_long(cases: Iterable[tuple[Any, ...]]) -> Iterator[ParameterSet]:
    """Leave to the long run all but one mode of each case; which one, changes from case to case."""
    for number, (*case, mode) in enumerate(cases):
        case_number, mode_number = divmod(number, len(LAZY))
        # Not in step with what changes fastest among the cases.
        taken = (case_number + case_number // 2) % len(LAZY)
        marks = () if mode_number == taken else (pytest.mark.long,)
        yield pytest.param(*case, mode, marks=marks)


@pytest.fixture
def memory(lab: Lab, counter: Counter) -> None:
    """Run a container that holds memory it can check; `counter` cleans up after it."""
    alpha = lab["alpha"]
    alpha.pymigrate("run", "-d", "--name", "memory", "small", "sh", "-c", REMEMBER)
    alpha.sh("until pymigrate logs memory | grep -q ready; do sleep 0.1; done", timeout=60)


def intact(host: Host, word: str) -> bool:
    """Have the container look at all of its memory."""
    host.pymigrate("exec", "memory", "sh", "-c", f"echo {word} > /ask")
    host.sh(f"until pymigrate logs memory | grep -q {word}; do sleep 0.1; done", timeout=60)
    return f"{word} {CELLS}" in host.pymigrate("logs", "memory").stdout


def processors(host: Host) -> list[str]:
    """Say which processors the container's program, and what its supervisor starts, may use."""
    look = ["grep", "-h", "Cpus_allowed_list", "/proc/1/status", "/proc/self/status"]
    return host.pymigrate("exec", "memory", *look).stdout.splitlines()


def test_memory_whose_line_is_cut_in_a_round_goes_on_from_what_the_target_holds(
    lab: Lab, counter: Counter
) -> None:
    """24 MiB at 4 MB/s: the round is far from over when the agent that takes it is killed."""
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate("run", "-d", "--name", "noise", "small", "sh", "-c", NOISE)
    alpha.sh("until pymigrate logs noise | grep -q ready; do sleep 0.1; done", timeout=60)
    words = ("--json", "migrate", "noise", "root@beta", "--mode", "hybrid")
    with alpha.popen(["pymigrate", *words, "--bandwidth", "32mbit"]) as move:
        assert move.stderr is not None
        seen = {"pages_sent": 0}
        while seen.get("pages_sent", 0) < 9 * 256:  # so that some pieces were taken
            seen = json.loads(move.stderr.readline())
        beta.run(["pkill", "-KILL", "-x", MEMORY_NAME])
        said, text = move.communicate(timeout=120)

    assert 0 == move.returncode, text
    report = json.loads(said)
    assert 1 == report["memory_cuts"]
    all_of_it = report["bytes"]["memory"] + report["bytes"]["memory unchanged"]
    assert report["memory_rounds"][0]["pages"] * 4096 <= all_of_it - 256 * 4096
    beta.pymigrate("exec", "noise", "sh", "-c", "kill $(cat /pid)")
    beta.pymigrate("wait", "noise")
    upper = beta.outside("/srv/pymigrate/containers/noise/upper")
    assert (upper / "sum").read_text() == (upper / "out").read_text()


@pytest.mark.parametrize("data", ["tls", "ssh"])
@pytest.mark.parametrize("mode", MODES)
def test_a_container_moves_in_every_mode_with_all_its_memory(
    lab: Lab, memory: None, mode: str, data: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    usable = processors(alpha)

    there = alpha.pymigrate_json("migrate", "memory", "root@beta", "--mode", mode, "--data", data)

    assert processors(beta) == usable
    assert (mode, data) == (there["mode"], there["data"])
    if mode != "stop":
        assert there["bytes"]["memory"] + there["bytes"]["memory unchanged"] > 4 << 20
        assert (there["bytes"]["memory early"] > 0) == (mode in ("pre", "hybrid"))
    assert intact(beta, "there")
    back = beta.pymigrate_json("migrate", "memory", "root@alpha", "--mode", mode, "--data", data)
    assert "moved" == back["result"]
    assert intact(alpha, "back")


def test_more_memory_than_descriptors_are_allowed_by_default(lab: Lab, counter: Counter) -> None:
    """A lazy dump holds a container's memory in pipes of 1 MiB, two descriptors for each."""
    alpha, beta = lab["alpha"], lab["beta"]
    size = 100_000_000
    hold = f"mkfifo /ask; x=$(yes | tr -d '\\n' | head -c {size})"
    loop = "while true; do read -r line < /ask && echo ${#x}; done"
    command = ["sh", "-c", f"{hold}; {loop}"]
    run = shlex.join(["pymigrate", "run", "-d", "--name", "large", "small", *command])
    alpha.sh(f"ulimit -Sn 64; {run}")
    alpha.pymigrate("exec", "large", "sh", "-c", "echo > /ask")
    alpha.sh("until pymigrate logs large | grep -q .; do sleep 0.1; done", timeout=60)

    alpha.pymigrate("migrate", "large", "root@beta", "--mode", "post")

    beta.pymigrate("exec", "large", "sh", "-c", "echo > /ask")
    beta.sh(f"until pymigrate logs large | grep -q {size}; do sleep 0.1; done", timeout=60)


@pytest.mark.parametrize("mode", MODES)
def test_clients_stay_connected_in_every_mode(lab: Lab, counter: Counter, mode: str) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    before = counter.count(alpha)
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        alpha.pymigrate("migrate", "counter", "root@beta", "--mode", mode)
        echo.ask("moved")
        echo.finish()

    assert [beta] == counter.running()
    assert counter.count(beta) >= before


@pytest.mark.parametrize(
    ("phase", "event", "mode"),
    [*others_long((*moment, mode) for moment in MOMENTS for mode in LAZY)],
)
def test_a_source_that_is_killed_in_any_phase_is_settled_by_recover_with_all_memory(
    lab: Lab, memory: None, phase: Phase, event: str, mode: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    killed = alpha.run(
        [sys.executable, DYING, "memory", "root@beta", phase.label, event, mode], check=False
    )
    assert killed.returncode in (-9, 137), killed
    assert not lanes(alpha)

    alpha.pymigrate("recover")

    committed = phase > Phase.COMMITTED or (phase, event) == (Phase.COMMITTED, "reached")
    home, other = (beta, alpha) if committed else (alpha, beta)
    assert intact(home, "recovered")
    assert "memory" not in other.pymigrate("ps", "-a").stdout


@pytest.mark.parametrize(
    ("line", "agents", "mode"),
    [
        *others_long(
            (line, agents, mode)
            for line in ("precopied", "frozen", "shipped", "restored", "committed", "handed-over")
            for agents in ("that for memory", "all")
            for mode in LAZY
        )
    ],
)
def test_an_agent_that_is_killed_costs_no_memory_and_nobody_waits_for_it(
    lab: Lab, memory: None, line: str, mode: str, agents: str
) -> None:
    """One of them fills memory; CRIU's tasks may be waiting for it."""
    alpha, beta = lab["alpha"], lab["beta"]
    with alpha.popen(["pymigrate", "migrate", "memory", "root@beta", "--mode", mode]) as move:
        assert move.stderr is not None
        while line not in move.stderr.readline():
            assert move.poll() is None
        which = MEMORY_NAME if agents == "that for memory" else AGENTS
        # It may have ended by itself by now: that is one of the moments.
        beta.run(["pkill", "-KILL", "-x", which], check=False)
        _, text = move.communicate(timeout=60)

    assert move.returncode in (0, 51, 52), text
    alpha.pymigrate("recover")
    rows = {
        host.name: [row["status"] for row in host.pymigrate_json("ps") if row["name"] == "memory"]
        for host in (alpha, beta)
    }
    home = alpha if move.returncode == 52 else beta
    assert {home.name: ["running"], (beta if home is alpha else alpha).name: []} == rows, text
    assert intact(home, "recovered")


def lanes(host: Host) -> bool:
    """Wait until no process sends what is waited for; return whether one still does."""
    gone = f"while pgrep -x {LANE_NAME}; do sleep 0.05; done"
    return host.run(["timeout", "20", "sh", "-c", gone], check=False).returncode != 0


@pytest.mark.parametrize(
    ("line", "signal", "mode"),
    [
        *others_long(
            (line, signal, mode)
            for line in ("precopied", "shipped", "restored", "committed", "handed-over")
            for signal in ("KILL", "STOP")
            for mode in LAZY
        ),
        ("handed-over", "KILL", "post"),
        ("handed-over", "STOP", "post"),
    ],
)
def test_a_lane_whose_process_is_killed_or_stopped_costs_no_memory(
    lab: Lab, memory: None, line: str, signal: str, mode: str
) -> None:
    """A part of the conversation, it ends all of it; who is stopped is missed by the other end."""
    alpha, beta = lab["alpha"], lab["beta"]
    if mode == "post":
        lab.shape(rate="40mbit")  # so that much is still missing
    command = [sys.executable, IMPATIENT, "migrate", "memory", "root@beta", "--mode", mode]
    with alpha.popen(command) as move:
        assert move.stderr is not None
        while line not in move.stderr.readline():
            assert move.poll() is None
        # It may have ended by itself by now: that is one of the moments.
        alpha.run(["pkill", f"-{signal}", "-x", LANE_NAME], check=False)
        _, text = move.communicate(timeout=90)
    lab.shape()

    assert move.returncode in (0, 51, 52), text
    assert not lanes(alpha)
    alpha.pymigrate("recover")
    home, other = (alpha, beta) if move.returncode == 52 else (beta, alpha)
    assert "memory" not in other.pymigrate("ps", "-a").stdout, text
    assert intact(home, "recovered")


def test_a_pager_that_is_stopped_after_the_hand_over_is_replaced_and_ended(
    lab: Lab, memory: None
) -> None:
    """Were it let go on, it would hear of changes that the one after it must know of."""
    alpha, beta = lab["alpha"], lab["beta"]
    command = [sys.executable, IMPATIENT, "migrate", "memory", "root@beta", "--mode", "post"]
    with alpha.popen(command) as move:
        assert move.stderr is not None
        for line in ("precopied", "handed-over"):
            while line not in move.stderr.readline():
                assert move.poll() is None
            lab.shape(rate="8mbit")  # so that much is still missing
        beta.run(["pkill", "-STOP", "-x", MEMORY_NAME])
        unfinished = move.poll() is None
        lab.shape()
        _, text = move.communicate(timeout=90)

    assert unfinished, "the link was too fast for this test"
    assert move.returncode in (0, 51), text
    alpha.pymigrate("recover")
    beta.sh(f"while pgrep -x '{AGENTS}'; do sleep 0.05; done", timeout=20)
    assert intact(beta, "recovered")


def moved_to_a_pager_that_is_stopped(lab: Lab, name: str, mode: str) -> str:
    """Stop the pager before it is needed; return what was said."""
    alpha, beta = lab["alpha"], lab["beta"]
    command = [sys.executable, IMPATIENT, "migrate", name, "root@beta", "--mode", mode]
    with alpha.popen(command) as move:
        assert move.stderr is not None
        while "frozen" not in move.stderr.readline():
            assert move.poll() is None
        move.send_signal(signal.SIGSTOP)  # or the pager may have been needed by then
        beta.run(["pkill", "-STOP", "-x", MEMORY_NAME])
        move.send_signal(signal.SIGCONT)
        os.kill(move.pid, signal.SIGCONT)  # nsenter, which has stopped with the command
        _, text = move.communicate(timeout=90)
    beta.run(["pkill", "-KILL", "-x", AGENTS], check=False)

    assert 52 == move.returncode, text
    alpha.pymigrate("recover")
    assert name not in beta.pymigrate("ps", "-a").stdout
    return text


@pytest.mark.parametrize("mode", ["pre", "hybrid"])
def test_a_pager_that_hears_nothing_any_more_is_noticed_before_the_commit(
    lab: Lab, memory: None, mode: str
) -> None:
    """It is stopped, not killed: CRIU can connect to it, and nobody else holds the memory."""
    text = moved_to_a_pager_that_is_stopped(lab, "memory", mode)

    assert "runs on here as before" in text
    assert intact(lab["alpha"], "rolled-back")


@pytest.mark.parametrize("mode", ["pre", "hybrid"])
def test_a_restore_that_waits_for_memory_is_broken_off_with_its_pager(mode: str) -> None:
    """Threads want memory already while CRIU restores them, and CRIU waits for the threads."""
    image = images.bootstrap("demo-redis", ["redis-server"])
    with Lab(("alpha", "beta")) as lab:
        alpha = lab["alpha"]
        images.lend(image, alpha)
        alpha.pymigrate("run", "-d", "--name", "redis", image.name, "redis-server", "--save", "")
        ping = "pymigrate exec redis redis-cli ping"
        alpha.sh(f"until {ping} | grep -q PONG; do sleep 0.1; done", timeout=60)

        text = moved_to_a_pager_that_is_stopped(lab, "redis", mode)

        assert "runs on here as before" in text
        assert "PONG" in alpha.sh(ping)


def test_what_has_not_all_its_memory_is_neither_written_down_nor_moved_on(
    lab: Lab, memory: None
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    lab.shape(rate="20mbit")
    with alpha.popen(["pymigrate", "migrate", "memory", "root@beta", "--mode", "post"]) as move:
        assert move.stderr is not None
        while "handed-over" not in move.stderr.readline():
            assert move.poll() is None
        refused = [
            beta.pymigrate("checkpoint", "memory", "-o", "/tmp/no.tar", check=False),
            beta.pymigrate("migrate", "memory", "root@alpha", check=False),
        ]
        unfinished = move.poll() is None
        lab.shape()
        _, text = move.communicate(timeout=60)

    assert 0 == move.returncode, text
    assert unfinished, "the link was too fast for this test"
    assert [13, 13] == [each.returncode for each in refused]
    assert all("not all of its memory is here yet" in each.stderr for each in refused)
    assert intact(beta, "arrived")
    beta.pymigrate("checkpoint", "memory", "--leave-running", "-o", "/tmp/yes.tar")
    beta.sh("rm /tmp/yes.tar")


@pytest.mark.parametrize("end", ["kill -s KILL", "rm -f"])
def test_a_container_that_ends_before_its_memory_is_there_needs_no_more_of_it(
    lab: Lab, memory: None, end: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    lab.shape(rate="8mbit")
    with alpha.popen(["pymigrate", "migrate", "memory", "root@beta", "--mode", "post"]) as move:
        assert move.stderr is not None
        while "handed-over" not in move.stderr.readline():
            assert move.poll() is None
        beta.sh(f"pymigrate {end} memory")
        lab.shape()
        _, text = move.communicate(timeout=60)
    assert 0 == move.returncode, text
    assert "memory" not in alpha.pymigrate("ps", "-a").stdout


@pytest.mark.parametrize("end", ["kill -s KILL", "rm -f"])
def test_a_container_that_ended_while_the_source_was_away_is_settled(
    lab: Lab, memory: None, end: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    moment = (Phase.HANDED_OVER.label, "reached", "post")
    killed = alpha.run([sys.executable, DYING, "memory", "root@beta", *moment], check=False)
    assert killed.returncode in (-9, 137), killed
    beta.sh(f"pymigrate {end} memory")

    alpha.pymigrate("recover")

    assert "memory" not in alpha.pymigrate("ps", "-a").stdout
