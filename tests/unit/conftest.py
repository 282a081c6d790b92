"""How examples are looked for. Not for all tests: the guests of tests/cluster lack hypothesis."""

from __future__ import annotations

import hypothesis

# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile("pymigrate", deadline=None)
hypothesis.settings.load_profile("pymigrate")
