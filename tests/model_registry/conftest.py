"""Two versions of a model in git, and a registry to mirror them to."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from dvkf_prefect.kubeflow.registry.client import RegistryApi
from dvkf_prefect.kubeflow.registry.mirror import Mirror, MirrorReport
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.repo import Repo

from .fake import FakeRegistry


class World:
    """A repository with registered models, and a registry.

    Args:
        root: A new folder for the repository.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.git("init", "-q")
        self.repo = Repo.init(root)
        (root / "dvc.yaml").write_text(
            "artifacts:\n  iris: {path: model.bin, type: model}\n  rose: {path: model.bin, type: model}\n"
        )
        self.registry = ModelRegistry(self.repo)
        self.fake = FakeRegistry()

    def git(self, *words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=self.root, check=True, capture_output=True, text=True
        ).stdout.strip()

    def release(self, content: str, name: str = "iris", **options: Any) -> str:
        """Commit another model and register it; return the version."""
        (self.root / "model.bin").write_text(content)
        self.repo.add([self.root / "model.bin"])
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", content)
        return self.registry.register(name, **options).version

    def mirror(self, *models: str, **options: Any) -> MirrorReport:
        api = RegistryApi("http://registry", transport=self.fake.transport(), patience=0)
        return Mirror(self.registry, api, **options).run(models)

    def state(self) -> dict[str, Any]:
        """What the registry holds, without times."""
        changing = ("createTimeSinceEpoch", "lastUpdateTimeSinceEpoch")
        return {
            f"{record['_kind']} {record['name']}": {k: v for k, v in record.items() if k not in changing}
            for table in (self.fake.contexts, self.fake.artifacts)
            for record in table.values()
        }

    def record(self, name: str) -> dict[str, Any]:
        return next(record for record in self.fake.contexts.values() if record["name"] == name)

    def properties(self, name: str) -> dict[str, Any]:
        return {
            key: next(value for field, value in entry.items() if field != "metadataType")
            for key, entry in self.record(name)["customProperties"].items()
        }


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "repo")
