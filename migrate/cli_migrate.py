"""The verb ``migrate``: what is asked for, and the first words to the target.

To log in and have an agent started takes as long as to load what a move needs. So it is begun here,
as soon as it is known that there is something to move, and ``moving.py`` is loaded meanwhile.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from pymigrate.migrate import output
from pymigrate.migrate.amounts import bandwidth, stream_number
from pymigrate.migrate.budget import MAX_DOWNTIME, MAX_ROUNDS, Budget, NoConverge, duration
from pymigrate.migrate.modes import Mode
from pymigrate.migrate.movable import open_movable, step_aside
from pymigrate.migrate.target import Logins, Target
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.host import Host
from pymigrate.transport.limit import RateLimit


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    migrate = verbs.add_parser(
        "migrate",
        help="move a running container to another host, its connections alive",
        epilog="example: pymigrate migrate web root@beta",
    )
    migrate.add_argument(
        "name",
        metavar="NAME[,NAME...]",
        help="several move together: all stand still before one is written down, and all or none "
        "run at the target",
    )
    migrate.add_argument("destination", metavar="[USER@]HOST[:PORT]")
    add_options(migrate)
    migrate.add_argument(
        "--dry-run", action="store_true", help="compare the hosts, print the plan, touch nothing"
    )
    migrate.add_argument(
        "--report",
        metavar="FILE.json|FILE.html",
        type=Path,
        help="write the report there: as JSON, or as a page that needs no network",
    )
    migrate.set_defaults(run=migrate_verb)


def add_options(migrate: argparse.ArgumentParser) -> None:
    """Add what says how a container is moved; also for ``evacuate``."""
    migrate.add_argument(
        "--mode",
        choices=("auto", *(mode.value for mode in Mode)),
        default="auto",
        help="how memory moves: all of it while frozen (stop); in rounds while it runs, and what "
        "changed while frozen (pre); after it runs at the target, which asks for what it needs "
        "(post); rounds, and the rest after (hybrid). auto means hybrid where the target can fill "
        "memory in later, else stop",
    )
    migrate.add_argument(
        "--max-downtime",
        metavar="TIME",
        help="in modes with rounds: freeze as soon as clients are predicted to wait no longer, "
        "such as 200ms or 1.5s (default: 300ms)",
    )
    migrate.add_argument(
        "--max-rounds",
        metavar="N",
        type=int,
        default=MAX_ROUNDS,
        help=f"send memory at most so often while it runs (default: {MAX_ROUNDS})",
    )
    migrate.add_argument(
        "--on-no-converge",
        choices=[remedy.value for remedy in NoConverge],
        help="where rounds do not come below --max-downtime: slow the container down (throttle), "
        "send the rest after the target runs (post), send it frozen however long that takes "
        "(stop), or give up (abort). Default: stop in mode pre, post in hybrid",
    )
    migrate.add_argument(
        "--tcp",
        choices=("established", "close", "skip"),
        default="established",
        help="what becomes of TCP connections: kept; closed; or kept but for half-open ones",
    )
    migrate.add_argument(
        "--data",
        choices=("auto", "ssh", "tls"),
        default="auto",
        help="how memory and files go: by a TLS connection of their own where the target's ports "
        "can be reached, else by SSH (default: auto)",
    )
    migrate.add_argument(
        "--bandwidth",
        metavar="RATE",
        help="send no more than so many bits a second, such as 100mbit, by all connections "
        "together (default: as fast as it goes)",
    )
    migrate.add_argument(
        "--streams",
        metavar="N",
        help="send memory by so many TLS connections in turn, 1 to 8, so that encryption uses "
        "several processors (default: half of those of the host that has fewer, and 4 at most)",
    )
    output.add_skip(migrate)
    migrate.add_argument("--identity", metavar="FILE", help="the private key to log in with")
    migrate.add_argument("--known-hosts", metavar="FILE", help="the host keys to believe")
    migrate.add_argument("--ssh-config", metavar="FILE", help="instead of ~/.ssh/config")
    migrate.add_argument("--remote-root", metavar="DIR", help="the --root at the target")
    migrate.add_argument(
        "--remote-command",
        metavar="CMD",
        default="pymigrate",
        help="pymigrate at the target, if it is not on its PATH there",
    )


def migrate_verb(arguments: argparse.Namespace) -> int:
    """Move one container, or several together."""
    if arguments.report is not None and arguments.report.suffix not in (".json", ".html"):
        raise UsageError(
            f"{arguments.report} ends in neither .json nor .html, so it is not known what the "
            "report is to be; nothing was touched",
            hint="pymigrate migrate NAME HOST --report move.html",
        )
    if arguments.remote_root is not None and not arguments.remote_root.startswith("/"):
        raise UsageError(
            f"--remote-root {arguments.remote_root} is relative, and to what is not said: it would "
            "be another directory for each user that logs in; nothing was touched",
            hint="give it from / on, as in --remote-root /srv/pymigrate",
        )
    budget = _budget(arguments)
    limit = None if arguments.bandwidth is None else RateLimit(bandwidth(arguments.bandwidth) / 8)
    streams = wanted_streams(arguments)
    names = arguments.name.split(",")
    if len(set(names)) < len(names):
        raise UsageError(f"{arguments.name} names a container twice; nothing was touched")
    host = Host.open(arguments.root)
    containers = [open_movable(host, name) for name in names]
    for container in containers:
        step_aside(container)
    target = Target(
        destination=arguments.destination,
        identity=arguments.identity,
        known_hosts=arguments.known_hosts,
        ssh_config=arguments.ssh_config,
        remote_root=arguments.remote_root,
        remote_command=arguments.remote_command,
    )
    with closing(Logins(target, _logins(arguments, len(names)))) as logins:
        logins.await_library()  # which would take twice as long beside what is loaded now
        from pymigrate.migrate import moving

        return moving.move(host, containers, logins, budget, limit, streams, arguments)


def _logins(arguments: argparse.Namespace, containers: int) -> int:
    """Say how many agents are started already now: one more for memory, where it may be used.

    Over SSH memory needs a connection to itself. Of several containers each waits until all have
    been looked at, and an agent that nobody speaks to does not.
    """
    is_one_enough = arguments.dry_run or arguments.mode == Mode.STOP.value or containers > 1
    return 1 if is_one_enough or arguments.data == "ssh" else 2


def wanted_streams(arguments: argparse.Namespace) -> int | None:
    """Read by how many connections memory is to go; UsageError where that is impossible."""
    if arguments.streams is None:
        return None
    found = stream_number(arguments.streams)
    if arguments.data == "ssh" and found > 1:
        raise UsageError(
            f"--streams {found} is about TLS connections, and --data ssh makes none; "
            "nothing was touched",
            hint="leave one of the two out",
        )
    return found


def _budget(arguments: argparse.Namespace) -> Budget:
    """Read the budget; UsageError where it would be ignored."""
    asked = [
        option
        for option, given in (
            ("--max-downtime", arguments.max_downtime is not None),
            ("--max-rounds", arguments.max_rounds != MAX_ROUNDS),
            ("--on-no-converge", arguments.on_no_converge is not None),
        )
        if given
    ]
    if asked and arguments.mode in (Mode.STOP.value, Mode.POST.value):
        raise UsageError(
            f"{asked[0]} is about rounds, and --mode {arguments.mode} has none; "
            "nothing was touched",
            hint="use --mode pre or --mode hybrid",
        )
    if arguments.max_rounds < 1:
        raise UsageError(f"--max-rounds {arguments.max_rounds}: one is the least")
    text = arguments.max_downtime
    return Budget(
        MAX_DOWNTIME if text is None else duration(text, "--max-downtime"),
        arguments.max_rounds,
        NoConverge(arguments.on_no_converge) if arguments.on_no_converge else None,
    )
