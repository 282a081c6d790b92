"""``events``: what happened to the containers of this host, and what happens."""

from __future__ import annotations

import argparse
import select
import time
from contextlib import closing

from pymigrate.migrate import moments, output
from pymigrate.runtime import errors, events, log
from pymigrate.runtime.host import Host

_FILTERS = ("action", "event", "container", "name")


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``events``."""
    parser = verbs.add_parser(
        "events",
        help="show what happens to containers, as it happens",
        epilog="example: pymigrate --json events --since 1h --filter action=died",
    )
    add = parser.add_argument
    add("--since", metavar="T", help="begin with what happened since then: a time, or 10m for ago")
    add("--until", metavar="T", help="end then; with a time that has passed, at once")
    add("--no-stream", action="store_true", help="end with what has happened up to now")
    add("--filter", action="append", default=[], metavar="KEY=VALUE",
        help="only with this action or container; of one key any, of several all")  # fmt: skip
    parser.set_defaults(run=show)


def show(arguments: argparse.Namespace) -> int:
    """Print events; one JSON object a line with ``--json``."""
    host = Host.open(arguments.root)
    since = moments.since(arguments.since)
    until = moments.since(arguments.until, option="--until") or None
    wanted = _filters(arguments.filter)
    whole = arguments.since is not None or arguments.no_stream
    with closing(events.Watcher(host.root / events.NAME, from_now=not whole)) as watcher:
        poll = select.poll()
        poll.register(watcher.fileno(), select.POLLIN)
        while True:
            now = log.timestamp(time.time_ns())
            for event in watcher.events():
                if until is not None and event.time >= until:
                    return 0
                if event.time >= since and _passes(event, wanted):
                    _print(event, as_json=arguments.json)
            if arguments.no_stream or (until is not None and now >= until):
                return 0
            if poll.poll(None if until is None else moments.milliseconds_until(until)):
                watcher.take_note()


def _filters(texts: list[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if key not in _FILTERS or not equals:
            raise errors.UsageError(
                f"--filter {text}: unknown", hint="action=died, or container=NAME"
            )
        found.setdefault("action" if key in ("action", "event") else "container", set()).add(value)
    return found


def _passes(event: events.Event, wanted: dict[str, set[str]]) -> bool:
    if event.action not in wanted.get("action", {event.action}):
        return False
    asked = wanted.get("container")
    return asked is None or any(
        each == event.name or (each != "" and event.id.startswith(each)) for each in asked
    )


def _print(event: events.Event, *, as_json: bool) -> None:
    if as_json:
        output.emit(event.to_document())
        return
    more = " ".join(f"{name}={value}" for name, value in event.attributes.items())
    output.say(f"{event.time} {event.action} {event.name} {more}".rstrip())
    output.flush()
