"""Containerfiles: what is read, what is refused and where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime import containerfile
from pymigrate.runtime.errors import UsageError


def test_stages_arguments_flags_and_both_forms_are_told_apart() -> None:
    read = containerfile.parse(
        "# a comment\n"
        "ARG SUITE=bookworm\n"
        "FROM debian:$SUITE AS build\n"
        "RUN apt-get update && \\\n"
        "    # between\n"
        "    apt-get install gcc\n"
        'CMD ["a", "b c"]\n'
        "FROM build\n"
        "COPY --from=build --chown=web:web /a /b\n"
    )

    assert ["SUITE=bookworm"] == [each.value for each in read.arguments]
    build, last = read.stages
    assert ("build", "") == (build.name, last.name)
    run, command = build.instructions
    assert ("RUN", 4) == (run.name, run.line)
    assert "apt-get update &&     apt-get install gcc" == run.value
    assert ("a", "b c") == command.words
    (copy,) = last.instructions
    assert {"from": "build", "chown": "web:web"} == copy.flags
    assert "/a /b" == copy.value


def test_another_escape_character_can_be_chosen() -> None:
    read = containerfile.parse("# escape=`\nFROM a\nRUN one `\n two\n")

    assert "one  two" == read.stages[0].instructions[0].value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no FROM"),
        ("RUN true\nFROM a\n", "line 1, RUN: stands before"),
        ("FROM a\nJUMP\n", "line 2"),
        ("FROM a\nJUMP high\n", "line 2, JUMP: is no instruction"),
        ("FROM a\nONBUILD RUN true\n", "line 2, ONBUILD"),
        ("FROM a\nRUN <<EOF\ntrue\nEOF\n", "line 2, RUN: a here-document"),
        ("FROM a\nRUN --mount=type=cache,target=/x true\n", "line 2, RUN: --mount"),
        ("FROM a\nCOPY --link a b\n", "line 2, COPY: --link"),
        ("FROM a AS\n", "line 1, FROM"),
        ("FROM a AS ../b\n", "line 1, FROM"),
        ("FROM a\nSHELL /bin/sh -c\n", "line 2, SHELL"),
        ("FROM a\0\n", "none"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        containerfile.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", ["a", "b"]),
        ("  a   'b  c' ", ["a", "b  c"]),
        ('K="v w" L=x\\ y', ["K=v w", "L=x y"]),
        ("$A ${A} '$A' \\$A \"$A\"", ["one", "one", "$A", "$A", "one"]),
        ("${B:-two} ${A:-two} ${E-no}x ${E:-yes}", ["two", "one", "x", "yes"]),
        ("${B:+set}x ${A:+set} ${E+set} ${E:+set}x", ["x", "set", "set", "x"]),
        ("${B:-${A}} $ $1 a$", ["one", "$", "$1", "a$"]),
        ('"a\\nb" "a\\"b"', ["a\\nb", 'a"b']),
    ],
)  # fmt: skip
def test_words_are_split_and_filled_in_as_a_shell_does(text: str, expected: list[str]) -> None:
    assert expected == containerfile.words(text, {"A": "one", "E": ""})


@pytest.mark.parametrize("text", ["'a", "${A", "${}", "${A:?must}"])
def test_what_is_not_closed_or_not_known_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        containerfile.words(text, {})


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        containerfile.parse(text)
        containerfile.words(text, {"A": "b"})
    except UsageError:
        pass
