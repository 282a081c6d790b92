"""Records and states: what is written is what is read, and damage is named."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pymigrate.runtime import state
from pymigrate.runtime.errors import ContainerError
from pymigrate.runtime.state import (
    Identity,
    Names,
    NetworkSettings,
    Port,
    Record,
    State,
    Status,
    Volume,
)

RECORD = Record(
    id="a" * 64,
    name="web",
    image="nginx:latest",
    image_digest="b" * 64,
    layers=("c" * 64, "d" * 64),
    created="2026-01-02T03:04:05Z",
    network=NetworkSettings(
        address="10.88.0.5/16",
        gateway="10.88.0.1",
        mac="02:70:0a:58:00:05",
        ports=(Port(8080, 80), Port(53, 53, "udp", "127.0.0.1")),
        bandwidth=1_000_000,
        names=Names(("1.1.1.1",), ("a.org",), ("ndots:1",), ("10.0.0.1 db",)),
    ),
    stdin_open=True,
    remove_on_exit=True,
    volumes=(Volume("/srv", "/data", readonly=True, local=True), Volume("/v/db", "/x", name="db")),
)
STATE = State(
    status=Status.RUNNING,
    pid=12,
    pid_started=345,
    supervisor_pid=11,
    supervisor_started=340,
    started="2026-01-02T03:04:05Z",
    boot_id="x",
    cgroup={"name": "h/web", "members": []},
)


def test_a_record_survives_being_written(tmp_path: Path) -> None:
    path = tmp_path / "container.json"
    state.write_document(path, state.record_to_document(RECORD))

    assert RECORD == state.record_from_document(state.read_document(path))


@pytest.mark.parametrize("name", ["../containers", "", ".", "a/b"])
def test_a_name_that_leads_out_of_the_volumes_is_refused(name: str) -> None:
    document = json.loads(json.dumps(state.record_to_document(RECORD)))
    document["volumes"][1]["name"] = name

    with pytest.raises(ContainerError, match="is no name"):
        state.record_from_document(document)


def test_a_record_of_before_there_were_ports_is_read() -> None:
    document = json.loads(json.dumps(state.record_to_document(RECORD)))
    for name in ("ports", "bandwidth", "names"):
        del document["network"][name]

    network = state.record_from_document(document).network
    assert (network.ports, network.bandwidth, network.names) == ((), None, Names())


@pytest.mark.parametrize(
    "bad",
    [
        {"host": 0, "container": 80, "protocol": "tcp"},
        {"host": 80, "container": 80, "protocol": "tcp; flush ruleset"},
        {"host": 80, "container": 80, "protocol": "tcp", "host_ip": "1.1.1.1 accept"},
    ],
)
def test_a_record_from_elsewhere_cannot_write_rules(bad: dict[str, object]) -> None:
    document = json.loads(json.dumps(state.record_to_document(RECORD)))
    document["network"]["ports"] = [bad]

    with pytest.raises(ContainerError, match="ports"):
        state.record_from_document(document)


def test_a_state_survives_being_written(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state.write_document(path, state.state_to_document(STATE))

    assert STATE == state.state_from_document(state.read_document(path))


@pytest.mark.parametrize("field", ["id", "name", "layers", "created", "network"])
def test_a_record_with_a_bad_field_is_refused_by_name(field: str) -> None:
    document = {**state.record_to_document(RECORD), field: 5}

    with pytest.raises(ContainerError, match=field):
        state.record_from_document(document)


@pytest.mark.parametrize("document", [None, [], 5, "x", {"status": "flying"}, {"status": 1}])
def test_what_is_no_state_is_refused(document: object) -> None:
    with pytest.raises(ContainerError):
        state.state_from_document(document)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text('{"status": "runn')

    with pytest.raises(ContainerError, match=r"state\.json is damaged"):
        state.read_document(path)


def test_replacing_a_document_leaves_no_other_file(tmp_path: Path) -> None:
    for number in range(2):
        state.write_document(tmp_path / "state.json", {"number": number})

    assert ["state.json"] == [path.name for path in tmp_path.iterdir()]
    assert {"number": 1} == state.read_document(tmp_path / "state.json")


def test_a_process_is_told_from_a_later_one_with_its_pid() -> None:
    me = Identity.of(os.getpid())

    assert me is not None
    assert me.is_alive
    assert not Identity(me.pid, me.started + 1).is_alive


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        assert Identity.of(child.pid) is None


@pytest.mark.parametrize(
    ("status", "start", "alive"),
    [
        (Status.CREATED, True, False),
        (Status.PREPARED, False, False),
        (Status.RUNNING, False, True),
        (Status.PAUSED, False, True),
        (Status.STOPPED, True, False),
    ],
)
def test_a_status_answers_questions(status: Status, start: bool, alive: bool) -> None:
    assert start == status.may_start == status.may_remove
    assert alive == status.is_alive == status.may_checkpoint
