"""``run --bundle``: a container of ours made of an OCI bundle, which stays as it is.

It gets what every container of ours has: an overlay over the bundle's root, a supervisor and a log.
Hooks are for containers that others look after: `oci run`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from pymigrate.migrate import run_options as options
from pymigrate.migrate.amounts import NOTHING
from pymigrate.migrate.network_options import names, network_asked
from pymigrate.runtime import errors, spec, state
from pymigrate.runtime.oci_container import device_rules

_ALLOWED = frozenset(
    ("add_host", "bandwidth", "bridge", "bundle", "debug", "detach", "dns", "dns_option",
     "dns_search", "health_cmd", "health_interval",
     "health_retries", "health_timeout", "interactive", "ip", "ip6", "json", "log_opt", "mac",
     "name", "net", "publish", "quiet", "restart", "rm", "root", "run", "tty", "verbose", "words")
)  # fmt: skip


def read(
    name: str, arguments: argparse.Namespace, defaults: argparse.Namespace
) -> tuple[state.Record, spec.Spec]:
    """Return what a container is to be of the bundle and the options that go with one.

    Raises:
        UsageError: an option or a setting of the bundle does not; nothing was made.

    """
    _refuse_others(arguments, defaults)
    bundle = Path(arguments.bundle).absolute()
    try:
        settings = spec.load(bundle / "config.json")
    except OSError as error:
        raise errors.UsageError(
            f"--bundle {arguments.bundle}: no config.json in it: {error.strerror}; {NOTHING}"
        ) from error
    if settings.hooks:
        raise errors.UsageError(
            f"hooks: are for containers that others look after; {NOTHING}",
            hint=f"pymigrate oci run --bundle {arguments.bundle} NAME",
        )
    own_root = settings.private("mount")
    rootfs = bundle / settings.root_path
    if own_root and not rootfs.is_dir():
        raise errors.UsageError(f"root.path: there is no directory {rootfs}; {NOTHING}")
    words = tuple(arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words)
    process = settings.process
    process = replace(
        process, args=words or process.args, terminal=process.terminal or arguments.tty
    )
    network, namespaces = _network(settings, arguments)
    made = replace(
        settings,
        process=process,
        root_path="rootfs" if own_root else "/",
        namespaces=namespaces,
        cgroups_path=None,  # our containers' cgroups are named by us
        resources=replace(settings.resources, devices=device_rules(settings.resources.devices)),
    )
    spec.check(made)
    record = state.Record(
        id=os.urandom(32).hex(),
        name=name,
        image=None,
        image_digest=None,
        layers=(),
        created=state.now(),
        network=network,
        stdin_open=arguments.interactive,
        remove_on_exit=arguments.rm,
        log_size=options.log_size(arguments.log_opt),
        restart=options.restart(arguments.restart, removed=arguments.rm),
        health=options.health(arguments),
        rootfs=os.fspath(rootfs),
        volumes=tuple(
            state.Volume(each.source, each.destination, readonly="ro" in each.options)
            for each in settings.mounts
            if each.type == "bind"
        ),
    )
    return record, made


def _refuse_others(arguments: argparse.Namespace, defaults: argparse.Namespace) -> None:
    for name, value in vars(arguments).items():
        if name not in _ALLOWED and value != getattr(defaults, name, None):
            raise errors.UsageError(
                f"--{name.replace('_', '-')}: does not go with --bundle; {NOTHING}",
                hint="write it into the bundle's config.json",
            )


def _network(
    settings: spec.Spec, arguments: argparse.Namespace
) -> tuple[state.NetworkSettings, tuple[spec.Namespace, ...]]:
    """Return how it is connected: as --net says where the bundle asks for a new network."""
    given = settings.namespace("network")
    if given is None:
        found_by = names(arguments)
        return state.NetworkSettings(mode="host", names=found_by), settings.namespaces
    mode = f"ns:{given.path}" if given.path is not None else arguments.net
    if mode == "host":
        raise errors.UsageError(
            f"--net host: the bundle has a network of its own; {NOTHING}",
            hint="take it out of linux.namespaces of config.json",
        )
    network = network_asked(arguments, mode)
    others = tuple(each for each in settings.namespaces if each is not given)
    return network, (*others, spec.Namespace("network"))
