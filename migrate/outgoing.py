"""A migration from this host: facts, plan, journal, drive; and how to go on after a crash."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pymigrate.checkpoint import scan
from pymigrate.checkpoint.requests import DumpOptions
from pymigrate.migrate import driver, facts, group_driver
from pymigrate.migrate.budget import REMEMBERED, Budget, NoConverge, usual_fixed
from pymigrate.migrate.journal import History, Journal, read
from pymigrate.migrate.memory_rounds import Throttle, unthrottled
from pymigrate.migrate.modes import Mode
from pymigrate.migrate.peer import Peer
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.plan import HostFacts, Plan, Refusal, make_plan
from pymigrate.migrate.report import Report
from pymigrate.migrate.steps import Move
from pymigrate.migrate.target import Logins, Target
from pymigrate.runtime.cgroups import CpuQuota
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import MigrationError, NotFound, WrongState
from pymigrate.runtime.host import Host
from pymigrate.runtime.images import Store
from pymigrate.transport import messages as m
from pymigrate.transport.limit import RateLimit

_LOOKED_AT = 10 * REMEMBERED  # migrations in which the last that were measured are looked for


@dataclass(frozen=True)
class Attempt:
    """One migration of this host, with all that was decided about it."""

    host: Host
    migration_id: str
    name: str
    target: Target
    tcp: str = "established"
    data: str = "auto"
    mode: Mode = Mode.STOP
    lazy: bool = False
    budget: Budget = field(default_factory=Budget)
    quota_before: CpuQuota | None = None  # what a crash left throttled
    debug: bool = False  # keep what CRIU is asked for, and its log
    limit: RateLimit | None = None  # for all of its connections, and for those of its group
    streams: int | None = None  # connections for memory, if somebody asked for a number
    logins: Logins | None = None  # that have begun already

    @property
    def directory(self) -> Path:
        """Where its journal and images are kept."""
        return self.host.migrations / self.migration_id

    @property
    def journal_path(self) -> Path:
        """The file that decides who may run."""
        return self.directory / "journal"

    def peer(self) -> Peer:
        """Return the target; nothing is connected yet."""
        return Peer(
            lambda undo: self.target.connect(undo, self.limit, self.logins), self.migration_id
        )

    def move(self, peer: Peer, container: Container | None) -> Move:
        """Return what the steps share."""
        return Move(
            container=container,
            store=Store(self.host),
            peer=peer,
            migration_id=self.migration_id,
            directory=self.directory,
            hostname=os.uname().nodename,
            options=DumpOptions(tcp=self.tcp, lazy=self.lazy, debug=self.debug),
            wanted_data=self.data,
            wanted_streams=self.streams,
            mode=self.mode,
            lazy=self.lazy,
            budget=self.budget,
            throttle=Throttle(self.quota_before),
        )


def new_id(name: str) -> str:
    """Make up an identifier that sorts by time and says which container it is about."""
    safe = "".join(letter if letter.isalnum() else "-" for letter in name)[:24].strip("-")
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{safe}-{secrets.token_hex(3)}"


def check_budget(container: Container, budget: Budget) -> None:
    """Raise MissingFeature if the container is to be slowed down and cannot be."""
    if budget.on_no_converge is NoConverge.THROTTLE and container.cgroup.cpu_quota() is None:
        raise unthrottled(container)


def plan(
    attempt: Attempt,
    peer: Peer,
    container: Container,
    skip: Sequence[str],
    mode: str = "auto",
    beside: Sequence[Plan] = (),
    *,
    scanned: bool = True,
) -> Plan | Refusal:
    """Compare both hosts, and look whether the container can be dumped; nothing is touched.

    The target must also have room for those that move ``beside`` it. ``scanned`` is False for a
    caller that has looked at the container itself.
    """
    peer.expect()  # while the container is looked at
    begun = time.monotonic()
    obstacles = scan.scan(container, attempt.tcp) if scanned else []
    spent = time.monotonic() - begun
    there = host_facts_of(peer.hello())
    memory, files = (sum(each.memory for each in beside), sum(each.files for each in beside))
    there = replace(
        there,
        memory_available=there.memory_available - memory,
        disk_available=there.disk_available - memory - files,
    )
    return make_plan(
        attempt.migration_id,
        facts.host_facts(attempt.host),
        there,
        facts.container_facts(container),
        mode=mode,
        skip=skip,
        obstacles=obstacles,
        scan_seconds=spent,
    )


@dataclass(frozen=True)
class Prepared:
    """A move that nothing speaks against, before it begins: what was decided, and who takes part.

    ``group`` is the migration id of the group whose commit is this one's too.
    """

    attempt: Attempt
    planned: Plan
    peer: Peer
    container: Container
    report: Report
    group: str | None = None

    def begin(self, journal: Journal) -> Move:
        """Write down what was decided; nothing else is touched."""
        attempt = replace(self.attempt, mode=self.planned.mode, lazy=self.planned.lazy)
        move = attempt.move(self.peer, self.container)
        move.options = replace(
            move.options, inside=self.planned.inside, carried=self.planned.carried
        )
        move.ahead = self.planned.ahead
        if self.planned.lazy:
            self.peer.expect_memory(tls=attempt.data != "ssh" and attempt.limit is None)
        move.memory, move.files = self.planned.memory, self.planned.files
        move.announce = self.report.announce
        self.report.counters = move.counters
        move.fixed = usual_fixed(_earlier_fixed(attempt.host))
        move.throttle.note = journal.note
        journal.begin(
            Phase.PLANNED,
            role="source",
            name=attempt.name,
            tcp=attempt.tcp,
            mode=attempt.mode.value,
            lazy=attempt.lazy,
            target=asdict(attempt.target),
            plan=self.planned.to_document(),
            **({} if attempt.limit is None else {"bytes_per_second": attempt.limit.rate}),
            **({} if attempt.streams is None else {"streams": attempt.streams}),
            **({} if self.group is None else {"group": self.group}),
        )
        return move

    def tell(self, move: Move, history: History) -> None:
        """Put into the report what the move did, as far as it came, and what became of it."""
        report = self.report
        report.result = "moved" if history.reached is Phase.DONE else describe(history)
        report.cause = str(history.facts().get("cause", ""))
        report.counts.update(move.counts)
        report.file_rounds = move.files_sent.rounds if move.files_sent is not None else ()
        report.wire_bytes = self.peer.bytes_sent
        report.data = move.data
        report.streams = self.peer.streams
        report.mode = move.mode.value
        report.frozen_memory_seconds = move.frozen_memory_seconds
        report.budget = self.attempt.budget
        report.memory_rounds = move.memory_rounds
        report.group = self.group


def execute(prepared: Prepared) -> None:
    """Move the container; on return it runs at the target. See driver.drive for the errors."""
    attempt, report = prepared.attempt, prepared.report
    with Journal.create(attempt.journal_path) as journal:
        move = prepared.begin(journal)
        try:
            driver.drive(attempt.name, attempt.migration_id, journal, move.steps(), report)
        finally:
            prepared.tell(move, journal.history)
        journal.note(report=report.to_document())


def recover(host: Host, migration_id: str, report: Report) -> bool:
    """Settle a migration that a crash or a lost line left; true if the container is at the target.

    Raises WrongState if this host was the target: only the source knows what was decided.
    """
    history = _history(host, migration_id)
    if history.facts().get("role") == "group":
        raise WrongState(
            f"migration {migration_id} is that of a group, which is settled member by member",
            hint="pymigrate recover (all that is open)",
        )
    if history.facts().get("role") == "target":
        source = history.facts().get("source")
        raise WrongState(
            f"migration {migration_id} came from {source}, which decides what becomes of it",
            hint=f"on {source}: pymigrate recover {migration_id}",
        )
    attempt = attempt_of(host, migration_id, history)
    with Journal.open_existing(attempt.journal_path) as journal, attempt.peer() as peer:
        if (group := history.facts().get("group")) is not None:
            # Read while we have the member's lock: nobody decides any more.
            group_driver.adopt(_history(host, str(group)), journal)
        move = attempt.move(peer, _container(attempt))
        return driver.recover(attempt.name, migration_id, journal, move.steps(), report)


def abandon(host: Host, migration_id: str) -> None:
    """Let the source run again although the move was committed: its target is dead for good.

    Raises WrongState if that is not the state it is in.
    """
    history = _history(host, migration_id)
    attempt = attempt_of(host, migration_id, history)
    if history.settled or history.reached.may_roll_back or history.reached >= Phase.HANDED_OVER:
        raise WrongState(
            f"migration {migration_id} is {describe(history)}: there is nothing to abandon",
            hint=f"pymigrate recover {migration_id}",
        )
    container = _container(attempt)
    if container is None:
        raise MigrationError(f"the frozen copy of {attempt.name} is not here any more")
    with Journal.open_existing(attempt.journal_path) as journal:
        journal.note(abandoned=True)
        container.plug()
        container.thaw()
        container.unfence(migration_id)
        attempt.move(attempt.peer(), container).discard_images()
        journal.roll_back(cause="abandoned: the target was declared dead")


def unsettled(host: Host) -> list[str]:
    """List the migrations from this host that need `recover`."""
    return [
        found
        for found in all_ids(host)
        if not (history := _history(host, found)).settled
        and history.facts().get("role") == "source"
    ]


def settle_groups(host: Host) -> None:
    """Note of groups whose members are all settled that nothing is left to do."""
    for group_id in all_ids(host):
        history = _history(host, group_id)
        members = history.facts().get("members")
        if history.settled or not isinstance(members, list):
            continue
        begun = [each for each in members if each in all_ids(host)]
        if all(_history(host, each).settled for each in begun):
            # Its driver, if it still lives, has it locked, and is about to write this itself.
            with Journal.open_existing(_journal(host, group_id), wait=True) as journal:
                if journal.history.settled:
                    continue
                if journal.history.reached >= Phase.COMMITTED:
                    journal.reach(Phase.DONE)
                else:
                    journal.roll_back(cause="recovered")


def all_ids(host: Host) -> list[str]:
    """List every migration that this host took part in, oldest first."""
    return sorted(path.parent.name for path in host.migrations.glob("*/journal"))


def describe(history: History) -> str:
    """Say in a word or two what became of a migration."""
    if history.facts().get("abandoned"):
        return "abandoned"
    if history.rolled_back:
        return "rolled back"
    if history.reached is Phase.DONE:
        return "done"
    if history.reached.may_roll_back:
        return f"broken off after {history.reached.label}"
    return "in doubt"


def attempt_of(host: Host, migration_id: str, history: History) -> Attempt:
    """Read back what was decided when the migration began."""
    known = history.facts()
    target, rate = known.get("target"), known.get("bytes_per_second")
    streams = known.get("streams")
    if known.get("role") != "source" or not isinstance(target, Mapping):
        raise MigrationError(f"the journal of {migration_id} does not say where it went")
    return Attempt(
        host,
        migration_id,
        str(known["name"]),
        Target(**target),
        str(known["tcp"]),
        data=str(known.get("data", "auto")),
        mode=Mode(str(known.get("mode", "stop"))),
        lazy=known.get("lazy") is True,
        quota_before=CpuQuota.from_document(known.get("cpu_quota")),
        limit=RateLimit(rate) if isinstance(rate, int | float) else None,
        streams=streams if isinstance(streams, int) else None,
    )


def host_facts_of(reply: m.HelloReply) -> HostFacts:
    """Read the target's facts out of its greeting."""
    there = reply.facts
    return HostFacts(
        host_id=reply.host_id,
        hostname=reply.hostname,
        kernel=there.kernel,
        machine=there.machine,
        criu_version=there.criu_version,
        cgroup=there.cgroup,
        cpu_features=frozenset(there.cpu_features),
        features=frozenset(there.features),
        memory_available=there.memory_available,
        disk_available=there.disk_available,
        page_size=there.page_size,
        clock_ahead=(there.realtime_ns - time.time_ns()) / 1e9 if there.realtime_ns else 0.0,
    )


def _earlier_fixed(host: Host) -> list[float]:
    """Return what the blackouts of the last moves were without memory, in seconds."""
    found = []
    for migration_id in reversed(all_ids(host)[-_LOOKED_AT:]):
        told = _history(host, migration_id).facts().get("report")
        seconds = told.get("fixed_seconds") if isinstance(told, Mapping) else None
        if isinstance(seconds, float):
            found.append(seconds)
        if len(found) == REMEMBERED:
            break
    return found


def _history(host: Host, migration_id: str) -> History:
    path = _journal(host, migration_id)
    if "/" in migration_id or not path.exists():
        raise NotFound(
            f"there is no migration {migration_id!r} on this host",
            hint="pymigrate migrations ls",
        )
    return read(path)


def _journal(host: Host, migration_id: str) -> Path:
    return host.migrations / migration_id / "journal"


def _container(attempt: Attempt) -> Container | None:
    """Open the container if it is still the one that this migration fenced."""
    try:
        container = Container.open(attempt.host, attempt.name)
    except NotFound:
        return None
    return container if container.fenced_by == attempt.migration_id else None
