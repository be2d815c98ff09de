"""The repository that several of these tests hurt copies of."""

from __future__ import annotations

import pytest
from faults_world import World


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A template that nobody writes to, since to make it takes longer than many a test."""
    return World(tmp_path_factory.mktemp("world"))
