"""The verb ``oci``: runc's command line, for podman, containerd and whoever runs OCI runtimes.

Global options and verbs are those of runc 1.1 (github.com/opencontainers/runc, man/), as far as its
callers use them. What we do not have is refused by name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NoReturn

from pymigrate.migrate import oci_others, oci_running, output
from pymigrate.runtime import errors, state
from pymigrate.runtime.oci_container import DEFAULT_ROOT
from pymigrate.runtime.settings import OCI_VERSION
from pymigrate.runtime.version import VERSION

# What podman looks for in the words of an OCI runtime, to choose the exit codes 127 and 126.
_SAID: dict[type[errors.PymigrateError], str] = {
    errors.CommandNotFound: "executable file not found in $PATH",
    errors.CannotRun: "permission denied",
}


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``oci``; what follows it goes to ``run`` as it is, for it is runc's command line."""
    parser = verbs.add_parser(
        "oci",
        add_help=False,
        help="speak runc's command line, for podman --runtime and containerd",
        epilog="example: pymigrate oci run --bundle DIR NAME",
    )
    parser.set_defaults(run=run)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(message, hint=f"{self.prog} --help")


def run(arguments: argparse.Namespace) -> int:
    """Do as runc would; errors go to stderr and, in the form asked for, to the log."""
    parser = _build_parser()
    given = argparse.Namespace(log=None, log_format="text")
    try:
        parser.parse_args(arguments.words, namespace=given)
        if given.systemd_cgroup:
            raise errors.UsageError(
                "--systemd-cgroup: cgroups are made by us, not by systemd",
                hint="podman --cgroup-manager=cgroupfs; containerd: SystemdCgroup = false",
            )
        return int(given.act(given))
    except (errors.PymigrateError, OSError) as error:
        if arguments.debug:
            raise
        translated = error
        if isinstance(error, OSError):
            where = f" ({error.filename})" if error.filename else ""
            translated = errors.HostError(f"{error.strerror or error}{where}")
        assert isinstance(translated, errors.PymigrateError)  # noqa: S101 - of the two one
        wanted = _SAID.get(type(translated), "")
        if wanted.casefold() not in translated.message.casefold():
            translated.message += f": {wanted}"
        output.complain(translated)
        _log(given, translated.message)
        return translated.exit_code


def _log(given: argparse.Namespace, text: str) -> None:
    if not given.log:
        return
    line = f'time="{state.now()}" level=error msg={json.dumps(text)}'
    if given.log_format == "json":
        line = json.dumps({"level": "error", "msg": text, "time": state.now()})
    with Path(given.log).open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def _build_parser() -> _Parser:
    parser = _Parser(prog="pymigrate oci", description="Run OCI bundles as runc does.")
    add = parser.add_argument
    add("--root", type=Path, default=DEFAULT_ROOT, metavar="DIR", help="where states are kept")
    add("--log", metavar="FILE", help="append errors to this file")
    add("--log-format", choices=("text", "json"), default="text", help="how they are written")
    add("--debug", action="store_true", help="for runc's callers; changes nothing")
    add("--systemd-cgroup", action="store_true", help="refused: cgroups are made by us")
    add("--rootless", choices=("true", "false", "auto"), help="for runc's callers; only root can")
    add("--criu", metavar="PATH", help="for runc's callers; ours is found by `pymigrate check`")
    add("-v", "--version", action=_Version, nargs=0, help="print versions")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    for name, help_, act, options in (*oci_running.VERBS, *oci_others.VERBS):
        verb = verbs.add_parser(name, help=help_)
        for flags, settings in options:
            verb.add_argument(*flags, **settings)
        verb.set_defaults(act=act)
    return parser


class _Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        output.say(f"pymigrate version {VERSION}\nspec: {OCI_VERSION}")
        raise SystemExit(0)
