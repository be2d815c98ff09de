"""A repository to work on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dvkf_prefect.data.repo import Repo


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """An empty repository in the current folder, with a folder as its remote."""
    root = tmp_path / "repo"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.chdir(root)
    made = Repo.init(root)
    with made.config.edit() as sections:
        sections["remote"]["store"] = {"url": str(tmp_path / "store")}
        sections["core"]["remote"] = "store"
    return made
