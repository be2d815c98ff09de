"""The tasks on published versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kserve_world import world
from prefect import flow

from dvkf_prefect.blocks import DvcRepository, KServeModelServer
from dvkf_prefect.cards import artifact_key
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks import (
    collect_models,
    deregister_model,
    publish_model,
    register_model,
    unpublish_model,
)

from .conftest import git

Artifacts = Callable[[str], list[Any]]


@pytest.fixture
def signs(repo: Repo) -> Repo:
    """A repository with a model that is tracked, committed and pushed."""
    (repo.root / "signs.joblib").write_bytes(b"weights")
    (repo.root / "dvc.yaml").write_text("artifacts:\n  signs: {path: signs.joblib}\n")
    repo.add([repo.root / "signs.joblib"])
    git(repo.root, "add", "-A")
    git(repo.root, "commit", "-qm", "Train")
    return repo


def test_a_version_is_published(signs: Repo, tmp_path: Path, artifacts: Artifacts) -> None:
    block = DvcRepository(path=str(signs.root), label="published", models_url=str(tmp_path / "models"))

    @flow
    def release(to: str | None) -> Any:
        register_model(block, "signs")
        return publish_model(block, "signs", to=to), publish_model(block, "signs", "v0.0.1", to=to)

    for to in (None, str(tmp_path / "others")):
        first, again = release(to)
        folder = tmp_path / ("models" if to is None else "others") / "signs" / "v0.0.1"
        assert (folder / "model.joblib").read_bytes() == b"weights"
        assert first.manifest.uri == f"file://{folder}/"
        assert (first.new, again.new, again.manifest) == (True, False, first.manifest)
    card = artifacts(artifact_key("published", "published", "signs"))[0]
    assert "1 sent through this machine" in card.description
    assert first.manifest.digest[:12] in card.data and "kserve-sklearnserver" in card.data


def test_publishing_needs_a_place(signs: Repo, prefect_server: None) -> None:
    with pytest.raises(ConfigError, match="Set models_url of the block, or pass `to`"):
        flow(lambda: publish_model(DvcRepository(path=str(signs.root)), "signs"), name="publish")()
    with pytest.raises(ValueError, match="holds a password, token or signature"):
        DvcRepository(path=str(signs.root), models_url="s3://key:secret@bucket/models")


def test_unused_versions_are_collected(signs: Repo, tmp_path: Path, artifacts: Artifacts) -> None:
    block = DvcRepository(path=str(signs.root), label="collected", models_url=str(tmp_path / "models"))
    folder = tmp_path / "models" / "signs" / "v0.0.1"
    with world("0.21") as cluster:
        server = KServeModelServer(
            namespace="ml", config_file=cluster.api.kubeconfig(tmp_path / "kubeconfig", namespace="ml")
        )

        @flow
        def maintain() -> Any:
            register_model(block, "signs")
            publish_model(block, "signs")
            deregister_model(block, "signs", "v0.0.1")
            listed = collect_models(block, servers=[server], grace=0)
            assert folder.is_dir()
            return listed, collect_models(
                block, servers=[server], all_namespaces=True, grace=0, dry_run=False
            )

        listed, removed = maintain()
    assert [each.removed for each in (*listed.unused, *removed.unused)] == [False, True]
    assert not (folder / "model.joblib").exists()
    said = [card.description for card in artifacts(artifact_key("unpublished", "collected"))]
    assert sorted(text.rpartition(": ")[2] for text in said) == ["1 removed, 0 kept.", "1 unused, 0 kept."]


def test_one_version_is_unpublished(signs: Repo, tmp_path: Path, prefect_server: None) -> None:
    block = DvcRepository(path=str(signs.root), label="unpublished", models_url=str(tmp_path / "models"))

    @flow
    def withdraw() -> Any:
        register_model(block, "signs")
        publish_model(block, "signs")
        return unpublish_model(block, "signs", "v0.0.1", dry_run=True), unpublish_model(
            block, "signs", "v0.0.1"
        )

    checked, done = withdraw()
    assert (checked.removed, done.removed) == (False, True)
