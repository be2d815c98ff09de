"""Sizes of the generated and the kill suites, by what runs: ``make test``, ``make test-all`` or ``make long``."""

from __future__ import annotations

import os

# Set by `make test-all` and `make long`.
ALL = bool(os.environ.get("DVKF_TEST_ALL"))


def size(name: str, short: str, full: str) -> str:
    """Return a suite's size.

    Args:
        name: Environment variable that names another one.
        short: Size in `make test`.
        full: Size in `make test-all`.
    """
    return os.environ.get(name) or (full if ALL else short)
