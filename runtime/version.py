"""Which pymigrate this is."""

VERSION = "0.1.0"
"""As in pyproject.toml, which a test compares. To ask importlib.metadata takes 20 ms, and each
start of an agent, and each checkpoint, wants to know."""
