"""Servers with much state, and clients that use them while they move.

Hosts of a lab and virtual machines run the same, and the same is asserted of them.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.lab.client import PATIENCE, Client, Standpoint
from tests.lab.images import CachedImage

HERE = Path(__file__).parent
IMAGES = {
    "programs": ("nginx-light", "postgresql", "python3", "redis-server"),
    "runtimes": ("default-jdk-headless", "nodejs"),
}
"""Images by name, and the Debian packages in each."""

POSTGRES = """
set -eu
cluster=$(echo /etc/postgresql/*/main)
version=$(basename "$(dirname "$cluster")")
echo "host all all all trust" > /tmp/hba
exec /usr/lib/postgresql/$version/bin/postgres -D /var/lib/postgresql/$version/main \
  -c config_file=$cluster/postgresql.conf -c hba_file=/tmp/hba -c ssl=off \
  -c listen_addresses='*' -c unix_socket_directories=/tmp
"""
"""To be run as the user postgres, by `sh -c`."""
NGINX = """
set -eu
dd if=/dev/urandom of=/var/www/html/big bs=1M count=$0 status=none
echo ready
echo small > /var/www/html/small
cat > /tmp/nginx.conf << .
daemon off;
worker_processes 2;
events {}
http {
  sendfile on;
  access_log off;
  server {
    listen 80;
    root /var/www/html;
    location /big { limit_rate 16m; }
  }
}
.
exec nginx -c /tmp/nginx.conf
"""
"""To be run by `sh -c`; $0 is how many MiB the file /big has."""
DIGEST = ("sha256sum", "/var/www/html/big")
"""What tells in its container what a Download is to be."""
JAVA = 'printf %s "$0" > /tmp/Load.java; exec java -Xmx256m -XX:+UseG1GC /tmp/Load.java $1'
RUNTIMES = {
    "java": ("sh", "-c", JAVA, (HERE / "Load.java").read_text()),
    "node": ("node", "-e", (HERE / "load.js").read_text()),
}
"""The commands of servers for a Heap, but for their argument: milliseconds between two changes."""

SUMS = (
    "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from"
    " pgbench_branches), (select sum(tbalance) from pgbench_tellers), coalesce(sum(delta), 0),"
    " count(*) from pgbench_history"
)
PGBENCH = "exec /usr/lib/postgresql/*/bin/pgbench -h $0 -U postgres $@ postgres"
SESSIONS = 4
CONNECTIONS = 4


class Load(Protocol):
    """Clients of a server, at work in the time of a with block."""

    def look(self) -> float:
        """See that they are served now, and were all the time; return the longest wait, in s."""
        ...

    def end(self) -> None:
        """Let them end, and see that nothing was lost."""
        ...

    def __enter__(self) -> Self:
        """Let them begin."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill those that have not ended."""
        ...


class Pgbench:
    """Transactions of pgbench, `rate` a second, and a connection that only asks.

    The program is the image's, with the image as its root, in the client's place.
    """

    def __init__(
        self,
        place: Standpoint,
        image: CachedImage,
        address: str,
        *,
        rate: int,
        patience: float = PATIENCE,
    ) -> None:
        (layer,) = image.layers
        root = image.root / "images" / "layers" / layer
        self._argv = ["chroot", str(root), "sh", "-c", PGBENCH, address]
        self._place, self._address, self._patience = place, address, patience
        self._rate = rate
        self._stack = ExitStack()

    def fill(self, scale: int) -> None:
        """Make the tables, 15 MiB for each of the scale, once the server answers."""
        with self._client("sql"):
            pass
        with self._popen("-i", "-q", "-s", str(scale)) as filling:
            said, complained = filling.communicate()
        assert 0 == filling.returncode, said + complained

    def __enter__(self) -> Self:
        """Begin; the tables may be of an earlier run."""
        with self._stack:
            self._before = self._sums()[-1]
            self._ping = self._stack.enter_context(self._client("sql-ping", "--rate", "50"))
            load = ("-n", "-c", str(SESSIONS), "-j", "2", "-T", "36000")
            rate = ("-P", "1", "-R", str(self._rate))
            self._bench = self._stack.enter_context(self._popen(*load, *rate))
            self._stack.callback(self._bench.kill)
            self._began = time.monotonic()
            self.look()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill it."""
        self._stack.close()

    def _client(self, kind: str, *options: str) -> Client:
        timeout = ("--timeout", str(self._patience))
        return Client(self._place, kind, self._address, 5432, *timeout, *options)

    def _popen(self, *options: str) -> subprocess.Popen[str]:
        argv = [*self._argv, *options]
        return self._place.popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def look(self) -> float:
        """Wait for transactions of a second that begins after now."""
        asked = time.monotonic()
        assert self._bench.stderr is not None
        while line := self._bench.stderr.readline():
            # pgbench counts from its own start, which was after ours.
            found = re.match(r"progress: ([\d.]+) s, ([\d.]+) tps", line)
            if found and float(found[1]) > asked - self._began + 1 and float(found[2]):
                window = self._ping.ask("looked", patience=self._patience)
                assert window["answers"] > 0
                return float(window["longest_gap"])
            assert time.monotonic() < asked + self._patience, f"no transactions, but {line}"
        raise AssertionError(f"pgbench ended: {self._bench.communicate()}")

    def end(self) -> None:
        """End pgbench as it ends itself; no transaction has failed, and every sum is right."""
        self._bench.send_signal(signal.SIGALRM)
        said, complained = self._bench.communicate(timeout=self._patience)
        assert 0 == self._bench.returncode, complained
        assert "number of failed transactions: 0 (0.000%)" in said
        (done,) = re.findall(r"number of transactions actually processed: (\d+)", said)
        self._ping.finish(patience=self._patience)
        *sums, count = self._sums()
        assert 1 == len(set(sums)), sums
        # Those that were under way when pgbench was ended may have been committed unheard.
        assert int(done) <= count - self._before <= int(done) + SESSIONS

    def _sums(self) -> list[int]:
        """Return four that are equal if nothing was lost, and the number of transactions."""
        with self._client("sql") as client:
            (row,) = client.ask(SUMS, patience=self._patience)["rows"]
        return [int(number) for number in row]


class Download:
    """A file of `mib` MiB that nginx sends, of which `rate` times 16 KiB a second are read.

    `digest` is the SHA-256 that it had before.
    """

    def __init__(
        self,
        place: Standpoint,
        address: str,
        mib: int,
        digest: str,
        *,
        rate: int = 100,
        patience: float = PATIENCE,
    ) -> None:
        self._size, self._digest, self._rate = mib << 20, digest, rate
        self._place, self._address, self._patience = place, address, patience
        self._received = -1

    def _get(self, path: str, *options: str) -> Client:
        options = ("--path", path, "--timeout", str(self._patience), *options)
        return Client(self._place, "download", self._address, 80, *options)

    def __enter__(self) -> Self:
        """Begin."""
        self._client = self._get("/big", "--rate", str(self._rate))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Break it off, unless it has ended."""
        self._client.close()

    def look(self) -> float:
        """See that it goes on, and is not at its end."""
        before = self._received
        window = self._client.ask("looked", patience=self._patience)
        self._received = int(window["received"])
        assert before < self._received < self._size
        return float(window["longest_gap"])

    def end(self) -> None:
        """Read the rest at once: all of it came, as it was; another client is served, too."""
        self._client.ask("faster", patience=self._patience)
        said = self._client.finish(patience=self._patience)
        assert self._size == said["received"]
        assert self._digest == said["sha256"]
        with self._get("/small") as another:
            assert another.finish(patience=self._patience)["received"] == len("small\n")


class Heap:
    """Connections to Load.java or load.js, each with `rate` questions a second."""

    def __init__(
        self, place: Standpoint, address: str, *, rate: int, patience: float = PATIENCE
    ) -> None:
        self._place, self._address, self._patience = place, address, patience
        self._rate = ("--rate", str(rate))
        self._stack = ExitStack()

    def _client(self, kind: str, port: int, *options: str) -> Client:
        timeout = ("--timeout", str(self._patience))
        return self._stack.enter_context(
            Client(self._place, kind, self._address, port, *timeout, *options)
        )

    def __enter__(self) -> Self:
        """Connect, and begin to ask."""
        with self._stack:
            self._asker = self._client("lines", 7001)
            self._began = self._state()
            self._echoes = [self._client("echo", 7000, *self._rate) for _ in range(CONNECTIONS)]
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the connections."""
        self._stack.close()

    def _state(self) -> dict[str, int]:
        answer = self._asker.ask("state", patience=self._patience)
        return {name: int(number) for name, number in answer["value"].items()}

    def look(self) -> float:
        """See that each connection is served, by the same program, and its heap is not damaged."""
        longest = 0.0
        for echo in self._echoes:
            answers = 0
            while not answers:  # the client itself gives up, with an error, when nothing comes
                window = echo.ask("looked", patience=self._patience)
                answers = int(window["answers"])
                longest = max(longest, float(window["longest_gap"]))
        state = self._state()
        assert 0 == state["damaged"]
        assert self._began["pid"] == state["pid"]
        assert self._began["entries"] == state["entries"]
        return longest

    def end(self) -> None:
        """See that each answer was given once, by the one program."""
        said = [echo.finish(patience=self._patience) for echo in self._echoes]
        served = self._state()["served"] - self._began["served"]
        asked = sum(int(each["answers"]) for each in said)
        assert served == asked
