"""What `migrate` begins before it has looked at anything but its own words."""

from __future__ import annotations

import pytest

from pymigrate.migrate import cli, cli_migrate


@pytest.mark.parametrize(
    ("words", "containers", "agents"),
    [
        ((), 1, 2),
        (("--mode", "hybrid", "--data", "tls"), 1, 2),
        (("--mode", "stop"), 1, 1),  # memory goes with the files
        (("--data", "ssh"), 1, 1),  # memory has a connection of its own
        (("--dry-run",), 1, 1),
        ((), 2, 1),  # the second would wait too long for a word
    ],
)
def test_an_agent_for_memory_is_started_early_where_it_will_be_used(
    words: tuple[str, ...], containers: int, agents: int
) -> None:
    parser = cli.build_parser("migrate")
    arguments = parser.parse_args(["migrate", "web", "root@beta", *words])

    assert agents == cli_migrate._logins(arguments, containers)
