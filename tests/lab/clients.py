"""Clients that sit in the lab's client namespace and report what they see of a moving server.

Run as a program, with Python's own library only: `clients.py redis-writer HOST PORT` and so on.
Each holds one TCP connection and never makes another. They speak JSON lines on standard output:
first {"event": "ready", …}, then an answer to each line of standard input, and at its end
{"event": "done", …}, or {"event": "error", "message": …} at any time. All numbers are measured
here, on the client's clock, so nothing in them is pymigrate's own word.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

PAGE = 4096
TIMEOUT = 60.0  # seconds without any answer that are taken for a lost server
AGAIN = 0.02  # seconds after which one that does not accept is tried again


class ServerError(Exception):
    """The server said something that it should not have said."""


def tell(event: str, **fields: object) -> None:
    """Print one line of JSON."""
    print(json.dumps({"event": event, **fields}), flush=True)


def connect(host: str, port: int) -> socket.socket:
    """Open the connection; what is small is sent at once."""
    connection = socket.create_connection((host, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Orders:
    """Lines that come on standard input, looked at without waiting for them."""

    def __init__(self) -> None:
        """Start with no line read."""
        self._pending = b""
        self.ended = False

    def next(self, wait: float = 0) -> str | None:
        """Return the next line if it is there within `wait` seconds; None if not, or at the end."""
        while b"\n" not in self._pending and not self.ended:
            readable, _, _ = select.select([0], [], [], wait)
            if not readable:
                return None
            data = os.read(0, 65536)
            self.ended = not data
            self._pending += data
        line, newline, self._pending = self._pending.partition(b"\n")
        return line.decode() if newline else None


class Gaps:
    """The times at which answers came, since the last report."""

    def __init__(self) -> None:
        """Begin now."""
        self.total = 0
        self._last = time.monotonic()
        self._begin()

    def _begin(self) -> None:
        self._started = time.monotonic()
        self._answers = 0
        self._longest = 0.0
        self._longest_at = time.time()
        self._over_10_ms = 0

    def answered(self) -> None:
        """Note that an answer came now."""
        now = time.monotonic()
        gap, self._last = now - self._last, now
        self.total += 1
        self._answers += 1
        self._over_10_ms += gap > 0.010
        if gap > self._longest:
            self._longest, self._longest_at = gap, time.time() - gap

    def report(self) -> dict[str, object]:
        """Return what was seen since the last report, and begin anew.

        `longest_gap` is in seconds between two answers one after the other; `longest_gap_began`
        is its start by the wall clock.
        """
        seen: dict[str, object] = {
            "answers": self._answers,
            "seconds": time.monotonic() - self._started,
            "longest_gap": self._longest,
            "longest_gap_began": self._longest_at,
            "gaps_over_10_ms": self._over_10_ms,
        }
        self._begin()
        return seen


class Pace:
    """At most so many a second, without catching up after a gap."""

    def __init__(self, rate: float) -> None:
        """Take the rate per second; 0 is without limit."""
        self._interval = 1 / rate if rate else 0.0
        self._next = time.monotonic()

    def wait(self) -> None:
        """Wait until the next may go."""
        self._next = max(self._next + self._interval, time.monotonic() - self._interval)
        if (rest := self._next - time.monotonic()) > 0:
            time.sleep(rest)


def work(act: Callable[[], None], pace: Pace, gaps: Gaps, orders: Orders) -> None:
    """Act and act again until the orders end; each line in them asks for a report."""
    while not orders.ended:
        act()
        gaps.answered()
        while (name := orders.next()) is not None:
            tell("window", name=name, **gaps.report())
        pace.wait()


# Redis: https://redis.io/docs/latest/develop/reference/protocol-spec/ (RESP2)


class Redis:
    """One connection to a Redis."""

    def __init__(self, host: str, port: int) -> None:
        """Connect."""
        self.socket = connect(host, port)
        self._buffer = b""

    def ask(self, *words: bytes | str | int) -> object:
        """Send a command and return its answer.

        Raises:
            ServerError: Redis answered with an error, or closed the connection.

        """
        encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        message = b"*%d\r\n" % len(encoded)
        message += b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        self.socket.sendall(message)
        return self._answer()

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ServerError("the server closed the connection")
        self._buffer += data

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _answer(self) -> object:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self._bulk(int(rest))
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        raise ServerError(line.decode(errors="replace"))

    def _bulk(self, length: int) -> bytes | None:
        if length < 0:
            return None
        while len(self._buffer) < length + 2:
            self._more()
        value, self._buffer = self._buffer[:length], self._buffer[length + 2 :]
        return value

    def identity(self) -> dict[str, object]:
        """Return what tells this connection and this server process from all others."""
        info = self.ask("INFO", "server")
        assert isinstance(info, bytes)
        lines = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        return {
            "local_port": self.socket.getsockname()[1],
            "client_id": self.ask("CLIENT", "ID"),
            "server_run_id": lines["run_id"],
            "server_pid": int(lines["process_id"]),
        }


def redis_writer(arguments: argparse.Namespace) -> None:
    """Write one key after the other, each after the one before was acknowledged; then read all."""
    redis = Redis(arguments.host, arguments.port)
    before = redis.identity()
    gaps = Gaps()

    def write() -> None:
        if redis.ask("SET", f"{arguments.keys}:{gaps.total}", f"value {gaps.total}") != b"OK":
            raise ServerError("SET was not acknowledged by OK")

    write()
    gaps.answered()
    tell("ready", **before)
    work(write, Pace(arguments.rate), gaps, Orders())
    after = redis.identity()
    found = read_back(redis, arguments.keys, gaps.total)
    lost = [number for number, value in found if value != number]
    tell(
        "done",
        acknowledged=gaps.total,
        lost=len(lost),
        first_lost=lost[:3],
        same_connection=before == after,
        connection=after,
    )


def read_back(redis: Redis, keys: str, total: int) -> Iterator[tuple[int, int | None]]:
    """Read every written key; yield its number and the number that it holds."""
    for start in range(0, total, 1000):
        numbers = range(start, min(start + 1000, total))
        values = redis.ask("MGET", *(f"{keys}:{number}" for number in numbers))
        assert isinstance(values, list)
        for number, value in zip(numbers, values, strict=True):
            yield number, int(value.split()[1]) if value else None


def redis_fill(arguments: argparse.Namespace) -> None:
    """Fill a Redis with so many MiB of random bytes, 64 KiB a value."""
    redis = Redis(arguments.host, arguments.port)
    for number in range(arguments.mib * 16):
        redis.ask("SET", f"filled:{number}", filling(number))
    tell("ready", keys=redis.ask("DBSIZE"))


def redis_check(arguments: argparse.Namespace) -> None:
    """Count the values of redis-fill that are not as they were written."""
    redis = Redis(arguments.host, arguments.port)
    numbers = range(arguments.mib * 16)
    damaged = sum(redis.ask("GET", f"filled:{number}") != filling(number) for number in numbers)
    tell("ready", damaged=damaged)


def filling(number: int) -> bytes:
    """Return the value of redis-fill: 64 KiB that do not compress, the same every time."""
    return random.Random(number).randbytes(1 << 16)


def redis_ping(arguments: argparse.Namespace) -> None:
    """Ask whether it is there, again and again; changes next to nothing."""
    redis = Redis(arguments.host, arguments.port)
    gaps = Gaps()

    def ping() -> None:
        if redis.ask("PING") != b"PONG":
            raise ServerError("PING was not answered by PONG")

    ping()
    gaps.answered()
    tell("ready", **redis.identity())
    work(ping, Pace(arguments.rate), gaps, Orders())
    tell("done", answers=gaps.total)


def redis_change(arguments: argparse.Namespace) -> None:
    """For each line, a number, write a page's worth into so many of the values of redis-fill.

    A value of 64 KiB has 16 pages of its own or 17, and each write changes one of them; they are
    spread over the memory, others each time.
    """
    redis = Redis(arguments.host, arguments.port)
    values = arguments.mib * 16
    tell("ready")
    orders = Orders()
    turn = 0
    while (line := orders.next(TIMEOUT * 10)) is not None:
        turn += 1
        chosen = random.Random(turn).sample(range(values * 15), int(line))
        for place in chosen:
            number, page = place // 15, place % 15
            text = random.Random(place * 1000 + turn).randbytes(PAGE // 4)
            redis.ask("SETRANGE", f"filled:{number}", page * PAGE, text)
        tell("answer", value=len(chosen))
    tell("done")


def redis_first(arguments: argparse.Namespace) -> None:
    """For each line, connect and ask whether it is there; tell when the answer came.

    By the clock that all processes share. It has started before there is anybody to ask.
    """
    tell("ready")
    orders = Orders()
    while orders.next(TIMEOUT * 10) is not None:
        Redis(arguments.host, arguments.port).ask("PING")
        tell("answer", at=time.monotonic())
    tell("done")


def redis_read(arguments: argparse.Namespace) -> None:
    """For each line, connect as soon as it is there, and read values of redis-fill one by one.

    Which ones, and in which order, was drawn once and is the same every time. Tells when the first
    answer and the last value came, by the clock that all processes share, and how long each read
    took, in seconds.
    """
    values = arguments.mib * 16
    chosen = random.Random(arguments.count).sample(range(values), arguments.count)
    tell("ready")
    orders = Orders()
    while orders.next(TIMEOUT * 10) is not None:
        redis = soon(arguments.host, arguments.port)
        redis.ask("PING")
        first, took = time.monotonic(), []
        for number in chosen:
            began = time.monotonic()
            value = redis.ask("GET", f"filled:{number}")
            took.append(time.monotonic() - began)
            if not isinstance(value, bytes) or len(value) != 1 << 16:
                raise ServerError(f"filled:{number} is not there")
        tell("answer", first=first, last=time.monotonic(), took=took)
        redis.socket.close()
    tell("done")


def soon(host: str, port: int) -> Redis:
    """Connect to a Redis that may not be there yet, within a few milliseconds of its being there.

    A segment that found nobody is sent again by the kernel after a second; a new one comes sooner.
    """
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            socket.create_connection((host, port), timeout=AGAIN).close()
            return Redis(host, port)
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(AGAIN / 4)


def redis_ask(arguments: argparse.Namespace) -> None:
    """Answer each line of words with what Redis says to this command."""
    redis = Redis(arguments.host, arguments.port)
    tell("ready", **redis.identity())
    orders = Orders()
    while (line := orders.next(TIMEOUT * 10)) is not None:
        tell("answer", value=plain(redis.ask(*line.split())))
    tell("done", **redis.identity())


def plain(value: object) -> object:
    """Turn an answer of Redis into what JSON can say."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return [plain(each) for each in value] if isinstance(value, list) else value


def echo(arguments: argparse.Namespace) -> None:
    """Send 8 bytes, wait for them to come back, and so on."""
    connection = connect(arguments.host, arguments.port)
    gaps = Gaps()

    def once() -> None:
        sent = struct.pack("!Q", gaps.total)
        connection.sendall(sent)
        received = b""
        while len(received) < len(sent):
            data = connection.recv(len(sent) - len(received))
            if not data:
                raise ServerError("the server closed the connection")
            received += data
        if received != sent:
            raise ServerError(f"sent {sent!r}, received {received!r}")

    once()
    gaps.answered()
    tell("ready", local_port=connection.getsockname()[1])
    work(once, Pace(arguments.rate), gaps, Orders())
    tell("done", answers=gaps.total, local_port=connection.getsockname()[1])


def ledger(arguments: argparse.Namespace) -> None:
    """Have one number after the other written down; each answer counts what was written so far.

    So a server that forgets a write, or does one twice, is found out by its next answer.
    """
    connection = connect(arguments.host, arguments.port)
    answers = connection.makefile("rb")
    gaps = Gaps()

    def once() -> None:
        number = gaps.total + 1
        connection.sendall(b"%d\n" % number)
        answer = answers.readline()
        if answer != b"%d %d\n" % (number, number):
            raise ServerError(f"wrote {number}, and was answered {answer!r}")

    once()
    gaps.answered()
    tell("ready", local_port=connection.getsockname()[1])
    orders = Orders()
    pace = Pace(arguments.rate)
    while not orders.ended:
        once()
        gaps.answered()
        while (name := orders.next()) is not None:
            tell("window", name=name, acknowledged=gaps.total, **gaps.report())
        pace.wait()
    tell("done", acknowledged=gaps.total)


def lines(arguments: argparse.Namespace) -> None:
    """Send each line, and give back the line of JSON with which the server answers."""
    connection = connect(arguments.host, arguments.port)
    answers = connection.makefile("rb")
    tell("ready", local_port=connection.getsockname()[1])
    orders = Orders()
    while (line := orders.next(TIMEOUT * 10)) is not None:
        connection.sendall(f"{line}\n".encode())
        answer = answers.readline()
        if not answer:
            raise ServerError("the server closed the connection")
        tell("answer", value=json.loads(answer))
    tell("done", local_port=connection.getsockname()[1])


def download(arguments: argparse.Namespace) -> None:
    """Get a file by HTTP/1.1 on one connection; report its size and SHA-256.

    It is read in pieces of 16 KiB, at most --rate a second until the line "faster" comes.
    """
    connection = connect(arguments.host, arguments.port)
    request = (
        f"GET {arguments.path} HTTP/1.1\r\nHost: {arguments.host}\r\nConnection: close\r\n\r\n"
    )
    connection.sendall(request.encode())
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(4096)
        if not data:
            raise ServerError("the server closed the connection")
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ServerError(head.decode(errors="replace"))
    digest, size, gaps = hashlib.sha256(body), len(body), Gaps()
    tell("ready", received=size)
    orders, pace = Orders(), Pace(arguments.rate)
    while data := connection.recv(1 << 14):
        gaps.answered()
        digest.update(data)
        size += len(data)
        while (name := orders.next()) is not None:
            tell("window", name=name, received=size, **gaps.report())
            pace = Pace(0) if name == "faster" else pace
        pace.wait()
    tell("done", received=size, sha256=digest.hexdigest())


# PostgreSQL: https://www.postgresql.org/docs/15/protocol.html (version 3.0, trust authentication)


class Postgres:
    """One connection to a PostgreSQL."""

    def __init__(self, host: str, port: int, user: str) -> None:
        """Connect and wait until it is ready for a query."""
        self.socket = connect(host, port)
        self._input = self.socket.makefile("rb")
        body = struct.pack("!i", 196608) + f"user\0{user}\0database\0postgres\0\0".encode()
        self.socket.sendall(struct.pack("!i", len(body) + 4) + body)
        self.backend_pid = 0
        self.status = ""
        self._until_ready()

    def query(self, text: str) -> list[list[str | None]]:
        """Run one query and return its rows as text.

        Raises:
            ServerError: it failed.

        """
        body = text.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(body) + 4) + body)
        return self._until_ready()

    def _until_ready(self) -> list[list[str | None]]:
        rows: list[list[str | None]] = []
        error = None
        while True:
            head = self._input.read(5)
            if len(head) < 5:
                raise ServerError(error or "the server closed the connection")
            kind, length = struct.unpack("!ci", head)
            body = self._input.read(length - 4)
            if kind == b"E":
                error = " ".join(
                    part[1:].decode() for part in body.split(b"\0") if part[:1] in b"CM"
                )
            elif kind == b"R" and struct.unpack_from("!i", body) != (0,):
                raise ServerError("the server wants a password")
            elif kind == b"K":
                (self.backend_pid,) = struct.unpack_from("!i", body)
            elif kind == b"D":
                rows.append(columns(body))
            elif kind == b"Z":
                self.status = body.decode()  # I idle, T in a transaction, E in a failed one
                if error:
                    raise ServerError(error)
                return rows


def columns(body: bytes) -> list[str | None]:
    """Decode a DataRow message."""
    (count,) = struct.unpack_from("!h", body)
    position, found = 2, []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, position)
        position += 4
        found.append(None if length < 0 else body[position : position + length].decode())
        position += max(length, 0)
    return found


def sql(arguments: argparse.Namespace) -> None:
    """Answer each line with the rows of this query; the connection and what it holds stay."""
    postgres = Postgres(arguments.host, arguments.port, arguments.user)
    tell("ready", backend_pid=postgres.backend_pid, local_port=postgres.socket.getsockname()[1])
    orders = Orders()
    while (line := orders.next(TIMEOUT * 10)) is not None:
        try:
            tell("answer", rows=postgres.query(line), status=postgres.status)
        except ServerError as error:
            if not postgres.status:
                raise
            tell("answer", error=str(error), status=postgres.status)
    tell("done", local_port=postgres.socket.getsockname()[1])


def sql_ping(arguments: argparse.Namespace) -> None:
    """Ask for a number, again and again; changes nothing."""
    postgres = Postgres(arguments.host, arguments.port, arguments.user)
    gaps = Gaps()

    def ping() -> None:
        if postgres.query("select 1") != [["1"]]:
            raise ServerError("select 1 was not answered by 1")

    ping()
    gaps.answered()
    tell("ready", backend_pid=postgres.backend_pid)
    work(ping, Pace(arguments.rate), gaps, Orders())
    tell("done", answers=gaps.total)


CLIENTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "redis-writer": redis_writer,
    "redis-fill": redis_fill,
    "redis-check": redis_check,
    "redis-ask": redis_ask,
    "redis-change": redis_change,
    "redis-ping": redis_ping,
    "redis-first": redis_first,
    "redis-read": redis_read,
    "echo": echo,
    "ledger": ledger,
    "lines": lines,
    "download": download,
    "sql": sql,
    "sql-ping": sql_ping,
}


def main() -> int:
    """Run the client that is asked for; return 1 if it saw an error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=2000, help="at most so many a second")
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--count", type=int, default=2000, help="of the values that are read")
    parser.add_argument("--path", default="/")
    parser.add_argument("--user", default="postgres")
    parser.add_argument("--keys", default="written", help="how they begin")
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    arguments = parser.parse_args()
    socket.setdefaulttimeout(arguments.timeout)
    try:
        CLIENTS[arguments.client](arguments)
    except (OSError, ServerError) as error:
        tell("error", message=str(error) or type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
