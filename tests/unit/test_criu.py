"""The conversation with CRIU, against one that follows a script."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from pymigrate.checkpoint import criu
from pymigrate.checkpoint.criu import Criu, Finished, HungUp, Notification, Session
from pymigrate.runtime.errors import CheckpointError
from tests.fakes.criu import ScriptedCriu, await_hang_up, expect, hang_up, notify, reply

pytest.importorskip("pycriu")


@pytest.fixture(autouse=True)
def some_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu, "find", lambda: Criu("/usr/sbin/criu", "4.2.1"))


def test_notifications_are_answered_one_by_one_until_the_answer() -> None:
    fake = ScriptedCriu(
        [
            expect("DUMP"),
            notify("pre-dump"),
            notify("post-dump", 17),
            reply("DUMP", success=True),
        ]
    )
    with Session.start(fake.spawn) as session:
        session.ask(
            "DUMP",
            {"images_dir_fd": 3, "pid": 17, "external": ["net[1]:network"], "leave_running": True},
        )
        assert Notification("pre-dump", 0) == session.next(5)
        session.vote(yes=True)
        assert Notification("post-dump", 17) == session.next(5)
        session.vote(yes=False)
        assert Finished(True, None, 0, "") == session.next(5)
    fake.finish()
    assert [True, False] == fake.votes
    asked = fake.requests[0].opts
    assert (17, ["net[1]:network"], True) == (
        asked.pid,
        list(asked.external),
        asked.leave_running,
    )


def test_what_is_asked_is_told_to_who_debugs_and_kept_for_root_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept, asked = tmp_path / "criu-dump.json", {"images_dir_fd": 3, "pid": 17}
    kept.write_text("of the last dump")
    with caplog.at_level("DEBUG", "pymigrate"):
        criu.keep_request(kept, "DUMP", asked)
    assert ['criu is asked: DUMP {"images_dir_fd": 3, "pid": 17}'] == caplog.messages
    assert (asked, 0o600) == (json.loads(kept.read_text()), kept.stat().st_mode & 0o777)


def test_descriptor_of_a_terminal_arrives() -> None:
    read, write = os.pipe()
    fake = ScriptedCriu([expect("RESTORE"), notify("orphan-pts-master", fds=[write])])
    with Session.start(fake.spawn) as session:
        session.ask("RESTORE", {})
        event = session.next(5)
        assert isinstance(event, Notification)
        assert event.fd is not None
        session.vote(yes=True)
        fake.finish()
        os.close(write)
        os.write(event.fd, b"x")
        os.close(event.fd)
    assert b"x" == os.read(read, 10)
    assert b"" == os.read(read, 10), "a copy of the descriptor was left open"
    os.close(read)


def test_nested_fields_and_lists_of_messages_are_filled() -> None:
    fake = ScriptedCriu([expect("RESTORE")])
    with Session.start(fake.spawn) as session:
        session.ask(
            "RESTORE",
            {"images_dir_fd": 3, "inherit_fd": [{"key": "network", "fd": 4}], "ps": {"port": 99}},
        )
        fake.finish()
    options = fake.requests[0].opts
    assert ("network", 4, 99) == (
        options.inherit_fd[0].key,
        options.inherit_fd[0].fd,
        options.ps.port,
    )


def test_death_of_criu_is_told() -> None:
    fake = ScriptedCriu([expect("DUMP"), hang_up])
    with Session.start(fake.spawn) as session:
        session.ask("DUMP", {})
        with pytest.raises(HungUp):
            session.next(5)
    fake.finish()


def test_hanging_up_is_a_no() -> None:
    fake = ScriptedCriu([expect("DUMP"), await_hang_up])
    with Session.start(fake.spawn) as session:
        session.ask("DUMP", {})
    fake.finish()


def test_a_criu_that_is_silent_for_too_long_is_killed() -> None:
    fake = ScriptedCriu([expect("DUMP"), await_hang_up])
    with Session.start(fake.spawn) as session:
        session.ask("DUMP", {})
        with pytest.raises(HungUp, match="said nothing"):
            session.next(0.05)
    assert fake.process is not None
    assert -signal.SIGKILL == fake.process.wait(10)
    fake.finish()


def test_end_of_a_session_is_the_end_of_criu() -> None:
    fake = ScriptedCriu([expect("DUMP"), await_hang_up])
    session = Session.start(fake.spawn)
    session.ask("DUMP", {})
    session.end(0.05)  # this one does not end by itself
    assert fake.process is not None
    assert -signal.SIGKILL == fake.process.wait(10)
    fake.finish()
    session.end()  # it is gone


def test_failed_answer_carries_criu_s_words() -> None:
    fake = ScriptedCriu([expect("RESTORE"), reply("RESTORE", success=False, message="Error: no")])
    with Session.start(fake.spawn) as session:
        session.ask("RESTORE", {})
        assert Finished(False, None, 0, "Error: no") == session.next(5)
    fake.finish()
    assert issubclass(HungUp, CheckpointError)


ORPHANED = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
BUSY = [sys.executable, "-c", ORPHANED]
BEHIND = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *BUSY]


@pytest.mark.parametrize("program", [BUSY, BEHIND], ids=["itself", "what it began"])
def test_a_criu_that_works_is_not_taken_for_stuck(program: list[str]) -> None:
    """It is silent for as long as it may be, which is more than it may rest."""
    fake = ScriptedCriu([expect("DUMP"), await_hang_up], program=program)
    with Session.start(fake.spawn) as session:
        session.ask("DUMP", {})
        with pytest.raises(HungUp, match="said nothing for 3 s"):
            session.next(3, rest=0.8)
    fake.finish()


def test_a_criu_that_does_nothing_is_killed_long_before_its_time_is_up() -> None:
    fake = ScriptedCriu([expect("DUMP"), await_hang_up])
    with Session.start(fake.spawn) as session:
        session.ask("DUMP", {})
        with pytest.raises(HungUp, match=r"did nothing for 0\.2 s and was ended"):
            session.next(criu.PATIENCE, rest=0.2)
    assert fake.process is not None
    assert -signal.SIGKILL == fake.process.wait(10)
    fake.finish()


def test_a_stopped_criu_does_not_keep_the_end_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu, "REST", 0.2)
    fake = ScriptedCriu([expect("DUMP"), await_hang_up], program=BUSY)
    session = Session.start(fake.spawn)
    session.ask("DUMP", {})
    os.kill(session.pid, signal.SIGSTOP)

    session.end()

    assert fake.process is not None
    assert -signal.SIGKILL == fake.process.wait(10)
    fake.finish()


def test_a_criu_that_was_only_stopped_may_undo_what_it_did(tmp_path: Path) -> None:
    undone = tmp_path / "undone"
    script = f"import os, signal; os.kill(os.getpid(), signal.SIGSTOP); open({str(undone)!r}, 'w')"
    fake = ScriptedCriu(
        [expect("DUMP"), await_hang_up], program=[sys.executable, "-I", "-S", "-c", script]
    )
    with Session.start(fake.spawn) as session:
        session.before_kill = lambda: pytest.fail("it is not killed")
        session.ask("DUMP", {})
        with pytest.raises(HungUp, match="and was ended"):
            session.next(criu.PATIENCE, rest=2)
    assert undone.exists()
    fake.finish()
