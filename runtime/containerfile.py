"""A Containerfile (Dockerfile) as frozen instructions; no file is touched and nothing is run here.

Lines, comments, continuations and the escape directive are dockerfile-parse's; what an instruction
means is decided here, after docs.docker.com/reference/dockerfile. What we do not do is refused,
with its line: an image that lacks half of what was asked for is worse than none.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pymigrate.runtime.errors import UsageError

MAX_BYTES = 1 << 20
INSTRUCTIONS = frozenset(
    ("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "MAINTAINER",
     "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")
)  # fmt: skip
_REFUSED = {
    "HEALTHCHECK": "give it to the container instead",
    "ONBUILD": "write the instruction where it is to run",
}
_FLAGS = {
    "FROM": frozenset({"platform"}),
    "COPY": frozenset({"from", "chown", "chmod"}),
    "ADD": frozenset({"chown", "chmod"}),
}
_FLAG = re.compile(r"--([a-z]+)=(\S+)\s*")
_ANY_FLAG = re.compile(r"--[a-z-]+")
_HEREDOC = re.compile(r"<<-?\s*[\"']?[A-Za-z_]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``words`` is its JSON form, None where it has the other."""

    name: str
    value: str
    line: int  # of the file, from 1
    flags: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] | None = None

    def wrong(self, why: str, hint: str = "") -> UsageError:
        """Return the error that points at it."""
        return UsageError(f"line {self.line}, {self.name}: {why}; no image was made", hint=hint)

    def __str__(self) -> str:
        """Return it as it was written, in one line."""
        flags = "".join(f"--{name}={value} " for name, value in self.flags.items())
        return f"{self.name} {flags}{self.value}"


@dataclass(frozen=True)
class Stage:
    """From one FROM to the next."""

    base: Instruction
    name: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Containerfile:
    """All of a file; ``arguments`` are the ARGs before its first FROM."""

    arguments: tuple[Instruction, ...]
    stages: tuple[Stage, ...]


def parse(text: str) -> Containerfile:
    """Read a Containerfile.

    Raises:
        UsageError: with the number of the line that is wrong, or that we cannot do.

    """
    arguments: list[Instruction] = []
    stages: list[Stage] = []
    for each in _instructions(text):
        if each.name == "FROM":
            stages.append(Stage(each, _stage_name(each), ()))
        elif stages:
            last = stages[-1]
            stages[-1] = Stage(last.base, last.name, (*last.instructions, each))
        elif each.name == "ARG":
            arguments.append(each)
        else:
            raise each.wrong("stands before the first FROM")
    if not stages:
        raise UsageError("there is no FROM in it; no image was made")
    return Containerfile(tuple(arguments), tuple(stages))


def _instructions(text: str) -> list[Instruction]:
    from dockerfile_parse import DockerfileParser  # costs 10 ms that only a build should pay

    if len(text) > MAX_BYTES or "\0" in text:
        raise UsageError("it is too long for a Containerfile, or none; no image was made")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:  # read from a stream in the locale C
        raise UsageError("it is not UTF-8; no image was made") from error
    parser = DockerfileParser(fileobj=io.BytesIO(encoded), env_replace=False)
    found = []
    seen: set[int] = set()
    for entry in parser.structure:
        seen.update(range(entry["startline"], entry["endline"] + 1))
        if entry["instruction"] != "COMMENT":
            found.append(
                _instruction(entry["instruction"], entry["value"].strip(), entry["startline"] + 1)
            )
    # The parser leaves out what has no argument.
    for number, line in enumerate(text.split("\n")):
        if number not in seen and line.strip():
            raise UsageError(f"line {number + 1}: {line.strip()[:60]!r} is no instruction")
    return found


def _instruction(name: str, value: str, line: int) -> Instruction:
    bare = Instruction(name, value, line)
    if name in _REFUSED:
        raise bare.wrong("is not supported", hint=_REFUSED[name])
    if name not in INSTRUCTIONS:
        raise bare.wrong("is no instruction")
    if name in ("RUN", "COPY", "ADD") and _HEREDOC.search(value):
        raise bare.wrong("a here-document is not supported", hint="use && and backslashes")
    flags: dict[str, str] = {}
    while match := _FLAG.match(value):
        if match[1] not in _FLAGS.get(name, ()):
            break
        flags[match[1]] = match[2]
        value = value[match.end() :]
    if match := _ANY_FLAG.match(value):
        raise bare.wrong(f"{match[0]} is not supported")
    words = None
    if value.startswith("[") and name in (
        "ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME"
    ):  # fmt: skip
        words = _json(value)
    if name == "SHELL" and not words:
        raise bare.wrong('must be a JSON list, such as ["/bin/bash", "-c"]')
    return Instruction(name, value, line, flags, words)


def _json(value: str) -> tuple[str, ...] | None:
    """Return the words of a JSON list; what is none is a shell's line, as everywhere."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        return None
    return tuple(found)


def _stage_name(base: Instruction) -> str:
    words = base.value.split()
    if len(words) == 1:
        return ""
    if len(words) != 3 or words[1].lower() != "as" or not _STAGE_NAME.fullmatch(words[2].lower()):
        raise base.wrong("must be IMAGE, or IMAGE AS NAME")
    return words[2].lower()


def words(text: str, variables: Mapping[str, str]) -> list[str]:
    """Split as a shell does, with quotes and backslashes, and put in the values of variables.

    Raises:
        UsageError: a quote or brace is not closed, or a ${…} is of a kind that we do not know.

    """
    return _Lexer(text, variables).split()


def word(text: str, variables: Mapping[str, str]) -> str:
    """Do as `words`, but do not split."""
    return _Lexer(text, variables).whole()


class _Lexer:
    def __init__(self, text: str, variables: Mapping[str, str]) -> None:
        self._text = text
        self._variables = variables
        self._position = 0

    def split(self) -> list[str]:
        found: list[str] = []
        while True:
            while self._text[self._position : self._position + 1].isspace():
                self._position += 1
            if self._position >= len(self._text):
                return found
            found.append(self._take(until_blank=True))

    def whole(self) -> str:
        return self._take(until_blank=False)

    def _take(self, *, until_blank: bool) -> str:
        pieces = []
        quote = ""
        while self._position < len(self._text):
            character = self._text[self._position]
            if until_blank and not quote and character.isspace():
                break
            self._position += 1
            if character == quote:
                quote = ""
            elif not quote and character in "'\"":
                quote = character
            elif character == "\\" and quote != "'":
                following = self._text[self._position : self._position + 1]
                self._position += 1
                # Between double quotes only what would mean something there.
                kept = "\\" if quote and following not in ('"', "$", "\\") else ""
                pieces.append(kept + following)
            elif character == "$" and quote != "'":
                pieces.append(self._variable())
            else:
                pieces.append(character)
        if quote:
            raise UsageError(f"{self._text[:60]!r}: a {quote} is not closed")
        return "".join(pieces)

    def _variable(self) -> str:
        if not self._text.startswith("{", self._position):
            match = _NAME.match(self._text, self._position)
            if match is None:
                return "$"
            self._position = match.end()
            return self._variables.get(match[0], "")
        match = _NAME.match(self._text, self._position + 1)
        end = self._closing_brace()
        if match is None or match.end() > end:
            raise UsageError(f"{self._text[:60]!r}: a variable without a name")
        rest = self._text[match.end() : end]
        self._position = end + 1
        value = self._variables.get(match[0])
        # With a colon, what is empty counts as not set.
        operator, operand = rest.removeprefix(":")[:1], rest.removeprefix(":")[1:]
        is_set = bool(value) if rest.startswith(":") else value is not None
        if operator not in ("", "-", "+") or rest == ":":
            raise UsageError(f"{self._text[:60]!r}: ${{{match[0]}{rest[:20]}}} is not supported")
        if operator and is_set == (operator == "+"):
            return word(operand, self._variables)
        return (value or "") if operator != "+" else ""

    def _closing_brace(self) -> int:
        depth = 0
        for index in range(self._position, len(self._text)):
            depth += {"{": 1, "}": -1}.get(self._text[index], 0)
            if depth == 0:
                return index
        raise UsageError(f"{self._text[:60]!r}: a brace is not closed")
