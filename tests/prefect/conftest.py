"""One Prefect server for all tests here, and small repositories with real git."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.testing.utilities import prefect_test_harness

from dvkf_prefect.data.repo import Repo


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """An in-process Prefect with a database of its own."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def artifacts(prefect_server: None) -> Callable[[str], list[Any]]:
    """All artifacts of a key, the oldest first, as the server has them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    def read(key: str) -> list[Any]:
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
        return sorted(found, key=lambda artifact: artifact.created)

    return read


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A repository with one tracked directory, committed, and a folder as its default remote."""
    root = tmp_path / "digits"
    root.mkdir()
    git(root, "init", "--quiet")
    made = Repo.init(root)
    with made.config.edit() as sections:
        sections["core"]["remote"] = "store"
        sections["remote"]["store"] = {"url": str(tmp_path / "store")}
    train = root / "data" / "train"
    train.mkdir(parents=True)
    for number in range(3):
        (train / f"{number}.txt").write_text(f"image {number}\n")
    made.add([train])
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "Version 1")
    return Repo.open(root)
