"""One sshd for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import sshd as fake_sshd


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fake_sshd.Sshd]:
    """Start a real sshd on 127.0.0.1."""
    if reason := fake_sshd.missing():
        pytest.skip(f"needs {reason}")
    with fake_sshd.running(tmp_path_factory.mktemp("sshd")) as server:
        yield server
