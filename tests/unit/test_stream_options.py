"""``--streams``: what is refused, what is passed on, and what a journal gives back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from pymigrate.migrate import cli, cli_evacuate, cli_migrate, outgoing
from pymigrate.migrate.journal import Journal, read
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.report import Report
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.host import Host


def parsed(verb: str, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    cli_migrate.add_verbs(verbs)
    cli_evacuate.add_verbs(verbs)
    names = ("web", "beta") if verb == "migrate" else ("beta",)
    return parser.parse_args([verb, *names, *words])


@pytest.mark.parametrize(
    ("words", "streams"),
    [((), None), (("--streams", "1"), 1), (("--streams=8", "--data", "tls"), 8)],
)
@pytest.mark.parametrize("verb", ["migrate", "evacuate"])
def test_a_number_from_one_to_eight_is_taken(
    verb: str, words: Sequence[str], streams: int | None
) -> None:
    assert streams == cli_migrate.wanted_streams(parsed(verb, *words))


@pytest.mark.parametrize("text", ["0", "9", "-1", "", "two", "1.5", "1 ", "²", "9" * 5000])
def test_what_is_no_such_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a number from 1 to 8"):
        cli_migrate.wanted_streams(parsed("migrate", f"--streams={text}"))


def test_several_over_ssh_are_refused_and_one_is_what_it_has() -> None:
    with pytest.raises(UsageError, match="--data ssh makes none"):
        cli_migrate.wanted_streams(parsed("migrate", "--streams", "2", "--data", "ssh"))
    assert 1 == cli_migrate.wanted_streams(parsed("migrate", "--streams", "1", "--data", "ssh"))


@pytest.mark.parametrize("verb", ["migrate", "evacuate"])
def test_a_command_with_an_impossible_number_ends_before_it_does_anything(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("web", "beta") if verb == "migrate" else ("beta",)
    root = tmp_path / "root"
    assert 2 == cli.main(["--root", str(root), verb, *names, "--streams", "9"])
    assert "--streams 9: not a number from 1 to 8" in capsys.readouterr().err
    assert not root.exists()


@pytest.mark.parametrize(("words", "passed"), [((), []), (("--streams", "3"), ["--streams=3"])])
def test_each_move_off_a_host_gets_the_number(words: Sequence[str], passed: list[str]) -> None:
    given = cli_evacuate.passed_on(parsed("evacuate", *words))
    assert passed == [word for word in given if word.startswith("--streams")]


@pytest.mark.parametrize(
    ("facts", "streams"),
    [({}, None), ({"streams": 3}, 3), ({"streams": "3"}, None), ({"streams": None}, None)],
)
def test_recover_goes_on_by_as_many_as_were_asked_for(
    tmp_path: Path, facts: dict[str, object], streams: int | None
) -> None:
    with Journal.create(tmp_path / "m1" / "journal") as journal:
        target = {"destination": "root@beta"}
        journal.begin(Phase.PLANNED, role="source", name="web", tcp="close", target=target, **facts)
    host = Host.open(tmp_path / "root")

    attempt = outgoing.attempt_of(host, "m1", read(tmp_path / "m1" / "journal"))

    assert streams == attempt.streams


def test_a_report_says_by_how_many_memory_went() -> None:
    report = Report("m1", "web", "alpha", "beta", "hybrid")
    assert 1 == report.to_document()["streams"]
    report.streams = 3
    assert 3 == report.to_document()["streams"]
