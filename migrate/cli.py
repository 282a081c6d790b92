"""The command ``pymigrate``: its verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pymigrate.migrate import output
from pymigrate.runtime.errors import NoSpace, PymigrateError, UsageError
from pymigrate.runtime.priority import ONE_THREAD

DEFAULT_ROOT = Path("/var/lib/pymigrate")

FAMILIES = {
    "pymigrate.migrate.cli_run": "run create",
    "pymigrate.migrate.cli_lifecycle": "start stop kill pause resume restart rm wait",
    "pymigrate.migrate.cli_exec": "exec attach logs",
    "pymigrate.migrate.cli_look": "ps inspect top path",
    "pymigrate.migrate.cli_files": "cp diff",
    "pymigrate.migrate.cli_events": "events",
    "pymigrate.migrate.cli_resources": "stats update",
    "pymigrate.migrate.cli_images": "image",
    "pymigrate.migrate.cli_volumes": "volume",
    "pymigrate.migrate.cli_oci": "oci",
    "pymigrate.migrate.cli_checkpoint": "checkpoint restore archive",
    "pymigrate.migrate.cli_check": "check report-bug",
    "pymigrate.migrate.cli_migrate": "migrate",
    "pymigrate.migrate.cli_migrations": "migrations recover abandon",
    "pymigrate.migrate.cli_agent": "agent",
    "pymigrate.migrate.cli_evacuate": "evacuate",
    "pymigrate.migrate.cli_snapshot": "snapshot",
    "pymigrate.migrate.cli_schedule": "schedule",
    "pymigrate.migrate.cli_version": "version",
    "pymigrate.migrate.cli_completion": "completion",
}
"""Which module adds which verbs. Only the module of the verb at hand is imported, since every
import is paid for at each start of a container."""


class _HelpFormatter(argparse.HelpFormatter):
    """A formatter that asks for the terminal's width once, and not for each option of a parser."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_width())


@functools.cache
def _width() -> int:
    with contextlib.suppress(KeyError, ValueError):
        return int(os.environ["COLUMNS"]) - 2
    with contextlib.suppress(OSError):
        return max(os.get_terminal_size().columns, 20) - 2
    return 78


class Parser(argparse.ArgumentParser):
    """A parser that knows the global options and whose complaints look like all our errors.

    The parsers of the verbs are of this class too, so the global options may stand before or after
    the verb; where a verb has its own meaning for a short one (``run -v``), that meaning wins.
    """

    def __init__(self, **settings: Any) -> None:
        """Take argparse's own settings."""
        super().__init__(conflict_handler="resolve", formatter_class=_HelpFormatter, **settings)
        options = self.add_argument_group("global options")
        options.add_argument(
            "--root",
            type=_root,
            default=argparse.SUPPRESS,
            metavar="DIR",
            help="where everything is kept (default: $PYMIGRATE_ROOT or /var/lib/pymigrate)",
        )
        for flags, text in (
            (("--json",), "print JSON"),
            (("-q", "--quiet"), "print no progress"),
            (("-v", "--verbose"), "say more"),
            (
                ("--debug",),
                "show tracebacks and what CRIU is asked for; keep that, and CRIU's logs, in the "
                "container's directory",
            ),
        ):
            options.add_argument(*flags, action="store_true", default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into ours (exit code 2)."""
        raise UsageError(message, hint=f"{self.prog} --help")


def build_parser(verb: str | None) -> Parser:
    """Build the parser for `verb`; for None, or a word that is no verb, with all verbs."""
    parser = Parser(
        prog="pymigrate",
        description="Run Linux containers, checkpoint them, and move them live between hosts.",
        epilog="example: pymigrate migrate web root@beta",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    chosen = [module for module, names in FAMILIES.items() if verb in names.split()]
    for module in chosen or FAMILIES:
        import_module(module).add_verbs(verbs)
    return parser


def program() -> NoReturn:
    """Be the program: run one command and end with its exit code."""
    # Most that is made is needed until the end: the collector would look at it a dozen times.
    gc.set_threshold(50_000)
    # So long a thread that has a word for the other host waits while others look at memory: of the
    # usual 5 ms there would be a dozen in each blackout.
    sys.setswitchinterval(0.0005)
    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)
    exit_code = main()
    gc.freeze()  # likewise at the end of the interpreter, 8 ms
    sys.exit(exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of the table in the README."""
    words = list(sys.argv[1:] if argv is None else argv)
    _fill_standard_descriptors()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    debug = "--debug" in words
    try:
        arguments = _parse(words)
        if arguments.debug:
            _show_debugging()
        exit_code = int(arguments.run(arguments))
        sys.stdout.flush()  # here, where a full disk or a reader that went away can still be told
        return exit_code
    except PymigrateError as error:
        if debug:
            raise
        output.complain(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away (`pymigrate ps | head`): not an error of ours.
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if debug:
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        translated = _translated(error)
        output.complain(translated)
        return translated.exit_code
    except RecursionError:  # a document of many thousand brackets, from whoever wrote it
        if debug:
            raise
        output.complain(UsageError("a JSON document is nested too deeply"))
        return UsageError.exit_code
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        output.complain(PymigrateError("interrupted; nothing is left half-done"))
        return 128 + int(number)


def _show_debugging() -> None:
    """Show on stderr what our own modules note for maintainers; nothing of libraries."""
    import logging

    ours = logging.getLogger("pymigrate")
    ours.setLevel(logging.DEBUG)
    if not ours.handlers:
        ours.addHandler(logging.StreamHandler())


def _fill_standard_descriptors() -> None:
    """Open /dev/null for what our caller closed, or our own first files would take its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, which is this one; and a container may inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has no object for a stream that was closed when it started.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _drop_output() -> None:
    """Have what could not be printed go nowhere, or Python complains of it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(words: Sequence[str]) -> argparse.Namespace:
    verb = _verb(words)
    parser = build_parser(verb)
    if verb == "oci":  # somebody else's command line, whose --root and --debug are its own
        end = words.index(verb) + 1
        arguments = parser.parse_args(words[:end])
        arguments.words = words[end:]
    else:
        arguments = parser.parse_args(words)
    for name in ("json", "quiet", "verbose", "debug"):
        setattr(arguments, name, getattr(arguments, name, False))
    root = getattr(arguments, "root", None) or os.environ.get("PYMIGRATE_ROOT") or DEFAULT_ROOT
    arguments.root = Path(root).absolute()
    return arguments


def _root(text: str) -> Path:
    if not text:  # a script's variable; Path would make it the current directory
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def _verb(words: Sequence[str]) -> str | None:
    """Find the verb: the first word that is no global option."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word == "--root":
            skip = True
        elif not word.startswith("-"):
            return word
    return None


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    """End a command at SIGTERM as Ctrl-C does: what has begun is put back.

    A second one would end that half-way, and leave a container frozen: it is not heard.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _tell_to_wait)
    raise KeyboardInterrupt(number)


def _tell_to_wait(_number: int, _: FrameType | None) -> None:
    os.write(2, b"pymigrate: already stopping: what was begun is being put back\n")


def _translated(error: OSError) -> PymigrateError:
    """Make ours an operating system error that nobody gave a better sentence to."""
    where = f" ({error.filename})" if error.filename else ""
    text = f"{error.strerror or error}{where}"
    if error.errno == errno.ENOSPC:
        return NoSpace(text, hint="free some space, or give another --root")
    return PymigrateError(text, hint="run again with --debug for the details")
