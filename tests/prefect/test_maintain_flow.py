"""The flow `maintain`: what is damaged, what is unused, and what it leaves alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kserve_world import world

from dvkf_prefect.blocks import DvcRepository, KServeModelServer
from dvkf_prefect.cards import artifact_key
from dvkf_prefect.data.upkeep.verify import VerifyOptions
from dvkf_prefect.flows import maintain
from dvkf_prefect.models.publishing import publish_version
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.repo import Repo

from .conftest import git

Artifacts = Callable[[str], list[Any]]


@pytest.fixture
def signs(repo: Repo, tmp_path: Path, prefect_server: None) -> Repo:
    """A registered version, a withdrawn one, both published, and an object that nothing names."""
    (repo.root / "dvc.yaml").write_text("artifacts:\n  signs: {path: signs.joblib}\n")
    registry = ModelRegistry(repo)
    for content in (b"one", b"two", b"three"):
        (repo.root / "signs.joblib").write_bytes(content)
        repo.add([repo.root / "signs.joblib"])
        repo.push()
        if content == b"three":
            break  # not committed, and replaced below
        git(repo.root, "add", "-A")
        git(repo.root, "commit", "-qm", "Train")
        publish_version(registry, registry.register("signs"), str(tmp_path / "models"))
    git(repo.root, "checkout", "-q", "--", "signs.joblib.dvc")
    repo.checkout(force=True)
    registry.deregister("signs", "v0.0.1")
    DvcRepository(path=str(repo.root), label="kept", models_url=str(tmp_path / "models")).save(
        "kept", overwrite=True
    )
    return repo


def objects(folder: Path) -> set[str]:
    return {path.parent.name + path.name for path in (folder / "files" / "md5").rglob("*") if path.is_file()}


def published(tmp_path: Path) -> list[str]:
    return sorted(path.parent.name for path in (tmp_path / "models").rglob("*.joblib"))


def remote_of(repo: Repo) -> Path:
    return Path(repo.remote().url)


def test_it_reports_first_and_removes_by_choice(signs: Repo, tmp_path: Path, artifacts: Artifacts) -> None:
    before = (objects(signs.cache.root), objects(remote_of(signs)), published(tmp_path))
    report = maintain("kept", sample=0.5, grace_hours=0)
    assert report["damaged"] == 0 and report["dry_run"] is True
    assert (report["unused_objects"], report["unused_models"]) == (2, 1)
    assert (objects(signs.cache.root), objects(remote_of(signs)), published(tmp_path)) == before
    done = maintain("kept", sample=1, grace_hours=0, dry_run=False)
    assert (done["unused_objects"], done["unused_models"]) == (2, 1)
    gone = before[0] - objects(signs.cache.root)
    assert len(gone) == 1 and before[1] - objects(remote_of(signs)) == gone
    assert published(tmp_path) == ["v0.0.2"]
    again = maintain("kept", sample=1, grace_hours=0, dry_run=False)
    assert (again["unused_objects"], again["unused_models"]) == (0, 0)
    for key in (
        ("verified", "kept", "cache"),
        ("verified", "kept", "remote"),
        ("collected", "kept"),
        ("unpublished", "kept"),
    ):
        assert len(artifacts(artifact_key(*key))) == 3
    # What the withdrawn version names stays: its tag is there.
    assert signs.verify(options=VerifyOptions(cloud=True, all_tags=True))


def test_nothing_is_removed_while_an_object_is_damaged(signs: Repo, tmp_path: Path) -> None:
    version = ModelRegistry(signs).show("signs", "v0.0.2")
    damaged = signs.cache.path(str(version.digest), "md5")
    os.chmod(damaged, 0o644)
    damaged.write_bytes(b"2wo")
    before = (objects(signs.cache.root), objects(remote_of(signs)), published(tmp_path))
    state = maintain("kept", sample=1, grace_hours=0, dry_run=False, return_state=True)
    assert state.is_failed()
    assert "1 object damaged or missing, so nothing was removed: damaged in the cache: signs.joblib" in str(
        state.message
    )
    assert (objects(signs.cache.root), objects(remote_of(signs)), published(tmp_path)) == before


def test_services_that_do_not_answer_keep_the_published_models(signs: Repo, tmp_path: Path) -> None:
    with world("0.21") as cluster:
        config = cluster.api.kubeconfig(tmp_path / "kubeconfig", namespace="ml")
        KServeModelServer(namespace="ml", config_file=config).save("team")
        registry = ModelRegistry(signs)
        where = {"where": "kserve:/ml", "url": "http://signs"}
        registry.note(registry.show("signs", "v0.0.2"), "service", where)
        options = {"sample": 1, "cloud": False, "grace_hours": 0, "dry_run": False}
        state = maintain("kept", return_state=True, **options)
        assert (state.name, published(tmp_path)) == ("Undecided", ["v0.0.1", "v0.0.2"])
        assert "all published models are kept: services of kserve:/ml were noted" in str(state.message)
        done = maintain("kept", servers=["team"], **options)
        assert (done["unused_models"], published(tmp_path)) == (1, ["v0.0.2"])
