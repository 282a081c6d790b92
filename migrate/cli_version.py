"""The verb ``version``."""

from __future__ import annotations

import argparse
import platform

from pymigrate.migrate import output
from pymigrate.runtime.version import VERSION


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``version``."""
    parser = verbs.add_parser(
        "version",
        help="print the versions of pymigrate and of the kernel",
        epilog="example: pymigrate version --json",
    )
    parser.set_defaults(run=version)


def version(arguments: argparse.Namespace) -> int:
    """Print which pymigrate and kernel these are."""
    document = {"pymigrate": VERSION, "kernel": platform.release()}
    if arguments.json:
        output.emit(document)
    else:
        output.say(f"pymigrate {document['pymigrate']}, kernel {document['kernel']}")
    return 0
