"""A repository to work on."""

from __future__ import annotations

from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.repo import Repo


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """An empty repository in the current folder, with a folder as its remote."""
    root = tmp_path / "repo"
    made = make_repo(root, remote=tmp_path / "store")
    monkeypatch.chdir(root)
    return made
