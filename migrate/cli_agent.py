"""The verb ``agent``. A move waits for two of them, so it loads nothing that it does not need."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.runtime import priority, syscalls
from pymigrate.runtime.host import Host
from pymigrate.transport import stream_count

if TYPE_CHECKING:
    from pymigrate.migrate.agent import Agent
    from pymigrate.migrate.repository_agent import RepositoryAgent

AGENT_NAME = "pymigrate-agent"  # of its process, until it is told that it is for memory


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``agent``."""
    agent = verbs.add_parser(
        "agent",
        help="serve a migration, or a repository, on stdin and stdout; started over SSH",
        epilog="example: ssh root@beta pymigrate agent (nothing a person would type)",
    )
    agent.add_argument(
        "--repository",
        type=Path,
        metavar="DIR",
        help="serve this repository of snapshots and nothing else; for a key that may do only "
        "this, put it behind command= in authorized_keys",
    )
    agent.set_defaults(run=agent_verb)


def agent_verb(arguments: argparse.Namespace) -> int:
    """Serve until the source hangs up."""
    from pymigrate.transport.channel import stdio_channel
    from pymigrate.transport.rpc import Server

    syscalls.set_name(AGENT_NAME)
    channel = stdio_channel(peer="the source" if arguments.repository is None else "the client")
    agent: Agent | RepositoryAgent
    streams_here = stream_count.usual(priority.processors())
    if arguments.repository is None:
        from pymigrate.migrate.agent import Agent

        priority.step_aside(os.sched_getaffinity(0))  # until somebody waits for us
        agent = Agent(Host.open(arguments.root))
    else:  # no container is touched, so this needs not be root
        from pymigrate.checkpoint.repository_directory import Directory
        from pymigrate.migrate.repository_agent import RepositoryAgent

        agent = RepositoryAgent(Directory(arguments.repository.absolute()))
    try:
        Server(channel, agent.handlers(), streams=streams_here).serve()
    finally:
        agent.close()
    return 0
