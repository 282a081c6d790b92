"""Read apt's sources, in both of their forms, and turn them to another suite.

See sources.list(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

APT = Path("/etc/apt")
# From the oldest that mmdebstrap can still make; the names by age move from release to release.
DEBIAN_SUITES = (
    "buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
    "oldoldstable", "oldstable", "stable", "testing", "unstable",
)  # fmt: skip
_OPTIONS = ("signed-by", "trusted", "check-valid-until")
_ONE_LINE = re.compile(r"deb\s+(?:\[\s*([^\]]*?)\s*\]\s+)?(\S+)\s+(\S+)\s+(\S.*)")


@dataclass(frozen=True)
class AptSource:
    """One archive of binary packages; options as ``name=value``."""

    uri: str
    suite: str
    components: tuple[str, ...]
    options: tuple[str, ...] = ()

    def line(self) -> str:
        """Return it in the one-line form."""
        options = f"[{' '.join(self.options)}] " if self.options else ""
        return f"deb {options}{self.uri} {self.suite} {' '.join(self.components)}"


def read(directory: Path = APT) -> tuple[AptSource, ...]:
    """Return the enabled sources of a machine, in apt's order."""
    found: list[AptSource] = []
    files = [directory / "sources.list", *sorted((directory / "sources.list.d").glob("*"))]
    for path in files:
        if not path.is_file():
            continue
        text = path.read_text("utf-8", "replace")
        if path.suffix == ".list":
            found += parse_one_line(text)
        elif path.suffix == ".sources":
            found += parse_deb822(text)
    return tuple(found)


def parse_one_line(text: str) -> Iterator[AptSource]:
    """Yield the sources of a ``.list`` file."""
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match:
            options, uri, suite, components = match.groups()
            wanted = [each for each in (options or "").split() if each.split("=")[0] in _OPTIONS]
            yield AptSource(uri, suite, tuple(components.split()), tuple(wanted))


def parse_deb822(text: str) -> Iterator[AptSource]:
    """Yield the sources of a ``.sources`` file: stanzas of fields, each uri with each suite."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')}\n{line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0", "off"):
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        # A key written into the file itself cannot stand in a line; apt's own keyrings must do.
        options = tuple(
            f"{option}={fields[option]}"
            for option in _OPTIONS
            if option in fields and len(fields[option].split()) == 1
        )
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield AptSource(uri, suite, components, options)


def turned_to(suite: str, sources: Sequence[AptSource]) -> tuple[AptSource, ...]:
    """Return the sources of Debian's main archive, with its updates, turned to a suite.

    A machine's mirror serves all suites, so the machine's own is replaced in ``bookworm``,
    ``bookworm-updates`` and ``bookworm-security``; sid has but one. Empty if none is Debian's.
    """
    found: list[AptSource] = []
    for source in sources:
        base, _, kind = source.suite.partition("-")
        if source.suite.endswith("/updates") or "main" not in source.components:
            continue
        if base not in (*DEBIAN_SUITES, suite) or kind not in ("", "updates", "security"):
            continue
        if kind and suite in ("sid", "unstable"):
            continue
        turned = replace(source, suite=f"{suite}-{kind}" if kind else suite, components=("main",))
        if turned not in found:
            found.append(turned)
    return tuple(found) if any(source.suite == suite for source in found) else ()
