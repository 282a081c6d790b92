"""The verb ``image build``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pymigrate.migrate import output
from pymigrate.migrate.builder import Builder, Options, Step
from pymigrate.runtime import containerfile, image_record
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.host import Host
from pymigrate.runtime.image_record import Image

NAMES = ("Containerfile", "Dockerfile")


def build(arguments: argparse.Namespace) -> Image:
    """Build an image of a directory with a Containerfile."""
    host = Host.open(arguments.root)
    context = Path(arguments.directory)
    reference = image_record.parse_reference(arguments.tag) if arguments.tag else None
    options = Options(
        context=context,
        text=_read(context, arguments.file),
        reference=reference,
        arguments=_build_arguments(arguments.build_arg),
        target=arguments.target,
        use_cache=not arguments.no_cache,
    )

    def run(step: Step) -> tuple[int, Path, Callable[[], None]]:
        return _run(host, step, arguments)

    return Builder(host, options, run, lambda text: output.progress(text, arguments)).build()


def _read(context: Path, given: str | None) -> str:
    if given is not None:
        path = Path(given)
    else:
        path = next((context / name for name in NAMES if (context / name).exists()), context)
    if path == context:
        raise UsageError(
            f"there is neither a {NAMES[0]} nor a {NAMES[1]} in {context}; no image was made",
            hint="-f FILE names another",
        )
    try:
        if given == "-":
            return sys.stdin.read(containerfile.MAX_BYTES + 1)
        with path.open(encoding="utf-8") as stream:
            return stream.read(containerfile.MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; no image was made") from error


def _build_arguments(words: list[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise UsageError(f"--build-arg {word!r}: not NAME=VALUE; no image was made")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _run(
    host: Host, step: Step, arguments: argparse.Namespace
) -> tuple[int, Path, Callable[[], None]]:
    """Run a step in a container of its own, which is there until the caller removes it."""
    from pymigrate.migrate import cli, cli_run, new_container
    from pymigrate.runtime.launch import Launch

    name = f"build-{os.urandom(6).hex()}"
    source = new_container.Source(
        image=None,
        digest=None,
        layers=step.layers,
        rootfs=None,
        env=step.env,
        working_dir=step.working_dir,
        user=step.user,
    )
    # All other settings are those of a run that asks for nothing else.
    asked = cli.build_parser("run").parse_args(["run", "--net", arguments.net, "--name", name, "x"])
    container = new_container.make_from(host, name, asked, source, step.command)

    def remove() -> None:
        container.remove(force=True)

    try:
        with _output_to_stderr(quiet=arguments.quiet):
            exit_code = cli_run.run_here(container, Launch(container.directory))
    except BaseException:
        remove()
        raise
    return exit_code, container.upper, remove


@contextlib.contextmanager
def _output_to_stderr(*, quiet: bool) -> Iterator[None]:
    """Let what commands say go to stderr, as all that is not the result; with -q nowhere."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in (1, 2)]
    target = os.open(os.devnull, os.O_WRONLY) if quiet else os.dup(2)
    try:
        os.dup2(target, 1)
        if quiet:
            os.dup2(target, 2)
        yield
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)
