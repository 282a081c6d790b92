"""The verb ``evacuate``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from pymigrate.migrate import output
from pymigrate.migrate.amounts import bandwidth
from pymigrate.migrate.cli_migrate import add_options, wanted_streams
from pymigrate.migrate.evacuation import Evacuation, Outcome, command
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import MigrationError, UsageError
from pymigrate.runtime.host import Host

_PASSED_ON = (
    *("mode", "max_downtime", "max_rounds", "on_no_converge", "tcp", "data", "streams", "skip"),
    *("identity", "known_hosts", "ssh_config", "remote_root", "remote_command"),
)


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    evacuate = verbs.add_parser(
        "evacuate",
        help="move every container off this host",
        epilog="example: pymigrate evacuate root@beta root@gamma --parallel 2",
    )
    evacuate.add_argument(
        "destination",
        metavar="[USER@]HOST[:PORT]",
        nargs="+",
        help="where they go: in turn, and to the next one if that refuses",
    )
    evacuate.add_argument(
        "--parallel", metavar="N", type=int, default=1, help="move so many at once (default: 1)"
    )
    add_options(evacuate)
    evacuate.set_defaults(run=evacuate_verb)


def evacuate_verb(arguments: argparse.Namespace) -> int:
    """Move all; one that stays does not keep the others."""
    if arguments.parallel < 1:
        raise UsageError(f"--parallel {arguments.parallel}: one is the least")
    wanted_streams(arguments)
    host = Host.open(arguments.root)
    containers, damaged = Container.look(host)
    evacuation = Evacuation(
        command(str(host.root), passed_on(arguments)),
        arguments.destination,
        lambda outcome: output.progress(_told(outcome), arguments),
    )
    names = [container.name for container in containers]
    outcomes = evacuation.run(names, arguments.parallel)
    if arguments.json:
        output.emit([{**asdict(each), "moved": each.gone} for each in outcomes])
    elif outcomes:
        output.table(
            ("NAME", "TARGET", "STATE", "TIME", "BLACKOUT"), [_row(each) for each in outcomes]
        )
    else:
        output.say("there is no container on this host")
    stayed = [each.name for each in outcomes if not each.gone]
    if not stayed and not damaged:
        return 0
    raise MigrationError(
        f"not off this host: {', '.join([*stayed, *(each.message for each in damaged)])}",
        hint="pymigrate migrations ls says what became of them; only running containers can move",
    )


def passed_on(arguments: argparse.Namespace) -> Sequence[str]:
    """Return the options of ``migrate`` that were given, as words; of a limit, each has a share."""
    words: list[str] = []
    for name in _PASSED_ON:
        value = getattr(arguments, name)
        if value not in (None, ""):
            words.append(f"--{name.replace('_', '-')}={value}")
    if arguments.bandwidth is not None:
        share = bandwidth(arguments.bandwidth) / arguments.parallel
        words.append(f"--bandwidth={share / 1000:.3f}kbit")
    return words


def _told(outcome: Outcome) -> str:
    if outcome.gone:
        return f"{outcome.name}: runs on {outcome.target}"
    return f"{outcome.name}: {outcome.said}"


def _row(outcome: Outcome) -> Sequence[str]:
    return (
        outcome.name,
        outcome.target or "-",
        "moved" if outcome.gone else f"not moved ({outcome.code})",
        "-" if outcome.seconds is None else output.duration(outcome.seconds),
        "-" if outcome.blackout is None else output.duration(outcome.blackout),
    )
