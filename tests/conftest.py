"""Every test says what it needs; the header says what is here."""

from __future__ import annotations

import os

import pytest

from tests import features
from tests.lab import registry


def pytest_configure(config: pytest.Config) -> None:
    """Register our marker."""
    config.addinivalue_line(
        "markers", "requires(*features): needs these features; see tests/features.py."
    )


def pytest_report_header() -> str:
    """Say what is here."""
    return features.report()


def pytest_sessionstart() -> None:
    """Sweep up after test runs and demos that were killed."""
    if os.geteuid() == 0:
        registry.sweep()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that cannot run here, or fail it if it must."""
    features.check(item)
