"""A checkpoint that is killed at a chosen line: `dying.py NAME FILE runs-on|ends [LINE [PID]]`.

Without a line it is not killed, and prints every line of the product that it went through while
the container was guarded, in order, as `FILE:NUMBER`. With one, it dies as soon as it comes there,
and stops the process PID before that.
The moment is found by the interpreter's tracing: the product has no hooks for tests.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from pymigrate.checkpoint import archive_memory, archive_writer, criu, dump, memory_looks, save
from pymigrate.checkpoint.requests import DumpOptions
from pymigrate.runtime import container as runtime_container
from pymigrate.runtime import supervision
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host

WATCHED = {
    os.path.realpath(str(module.__file__)): module.__name__.rpartition(".")[2]
    for module in (
        archive_memory,
        archive_writer,
        criu,
        dump,
        memory_looks,
        save,
        runtime_container,
        supervision,
    )
}


class Watch:
    """Sees each line before it runs, once it has come to the guard."""

    def __init__(self, fatal: str | None, stopped: int | None) -> None:
        self.seen: dict[str, None] = {}
        self._fatal = fatal
        self._stopped = stopped
        self._guarded = False

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        name = WATCHED.get(os.path.realpath(frame.f_code.co_filename))
        if name is None:
            return None
        self._guarded |= frame.f_code.co_name == "guard"
        if event == "line" and self._guarded:
            where = f"{name}:{frame.f_lineno}"
            if where == self._fatal:
                if self._stopped is not None:
                    os.kill(self._stopped, signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen[where] = None
        return self


def main() -> None:
    name, path, what, *fatal = sys.argv[1:]
    container = Container.open(Host.open(Path(os.environ["PYMIGRATE_ROOT"])), name)
    options = DumpOptions(leave_running=what == "runs-on")
    watch = Watch(fatal[0] if fatal else None, int(fatal[1]) if fatal[1:] else None)
    sys.settrace(watch)
    save.save(container, Path(path), options, archive_writer.Compression.parse("zstd"))
    sys.settrace(None)
    print(*watch.seen, sep="\n")


if __name__ == "__main__":
    main()
