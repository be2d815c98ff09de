"""Removal of published versions: kept for each reason by itself, removed without any, and continued after a stop."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kserve_world import World, world
from kube_api import Rule

from dvkf_prefect.cli import main
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.errors import ModelError, ModelNotFoundError, ServingError
from dvkf_prefect.kube.objects import KubeObjects
from dvkf_prefect.models.facts import read_facts
from dvkf_prefect.models.publishing import publish_version
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.unpublishing import Unpublished, collect_published, unpublish_version
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.kserve.spec import ServiceSettings
from dvkf_prefect.serving.kserve.uses import Uses, read_uses

from .conftest import Project

NAMED = "s3://models/classifier/{}/"
CUSTOM = ", meta: {format: custom}"


def published(project: Project, place: Path, count: int = 2) -> list[str]:
    """Register and publish versions of a model; return their names."""
    (project.root / "dvc.yaml").write_text(f"artifacts:\n  classifier: {{path: model.bin{CUSTOM}}}\n")
    names = []
    for number in range(count):
        project.train(f"model {number}")
        version = project.registry.register("classifier")
        publish_version(project.registry, version, str(place))
        names.append(version.version)
    return names


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "place"


@pytest.fixture
def versions(project: Project, place: Path) -> list[str]:
    """Two published versions, of which the first is withdrawn."""
    names = published(project, place)
    project.registry.deregister("classifier", names[0])
    return names


@pytest.fixture(scope="module")
def cluster():
    with world("0.21") as w:
        yield w


@pytest.fixture
def empty(cluster: World) -> World:
    for key in list(cluster.api.store.objects):
        if key[1] not in ("namespaces", "secrets", "serviceaccounts", "configmaps"):
            del cluster.api.store.objects[key]
    return cluster


def verdicts(found: Unpublished) -> dict[str, str]:
    return {each.version: each.reason for each in found.versions}


def collect(project: Project, place: Path, **options: Any) -> Unpublished:
    return collect_published(project.registry, str(place), **{"grace": 0, "dry_run": False, **options})


def left(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_only_a_withdrawn_version_is_removed(project: Project, place: Path, versions: list[str]) -> None:
    before = left(place)
    dry = collect_published(project.registry, str(place), grace=0)
    assert (dry.dry_run, [each.version for each in dry.unused], left(place)) == (True, ["v0.0.1"], before)
    assert str(dry) == f"published versions at file://{place}: 1 unused, 1 kept"
    found = collect(project, place)
    assert verdicts(found) == {"v0.0.1": "withdrawn", "v0.0.2": "it is registered"}
    assert [each.removed for each in found.versions] == [True, False]
    assert (found.size, found.unused[0].files) == (7, 1)
    assert left(place) == ["classifier/manifest-v0.0.2.json", "classifier/v0.0.2/model.bin"]
    # A later service does not find the note.
    assert [f["kind"] for f in read_facts(project.repo.git, "classifier@v0.0.1")] == []
    assert [f["kind"] for f in read_facts(project.repo.git, "classifier@v0.0.2")] == ["published"]
    assert collect(project, place).unused == ()


def test_a_version_whose_tag_was_deleted_is_removed(
    project: Project, place: Path, versions: list[str]
) -> None:
    project.git("tag", "-d", "classifier@v0.0.2")
    assert verdicts(collect(project, place)) == {"v0.0.1": "withdrawn", "v0.0.2": "unused"}
    assert left(place) == []


def test_the_grace_period(project: Project, place: Path, versions: list[str]) -> None:
    found = collect(project, place, grace=48)
    assert verdicts(found)["v0.0.1"] == "it was published or withdrawn less than 48 h ago"
    assert not found.unused


def test_a_stage_keeps_a_version(project: Project, place: Path, versions: list[str]) -> None:
    project.registry.assign("classifier", "v0.0.2", "prod")
    assert verdicts(collect(project, place))["v0.0.2"] == "it is in stage prod"
    with pytest.raises(ModelError, match=r"v0.0.2 stays published at .*: it is in stage prod"):
        unpublish_version(project.registry, "classifier", "v0.0.2", str(place))


def test_another_repository_s_versions_are_kept(
    project: Project, place: Path, versions: list[str], tmp_path: Path
) -> None:
    other = Project(tmp_path / "other")
    before = left(place)
    found = collect(other, place)
    assert set(verdicts(found)) == {"v0.0.1", "v0.0.2"}
    assert all("is not in this repository" in reason for reason in verdicts(found).values())
    assert left(place) == before


@pytest.mark.parametrize("text", ["", "{}", '{"manifest": 99}'])
def test_a_folder_without_a_manifest_is_kept(
    project: Project, place: Path, versions: list[str], text: str
) -> None:
    manifest = place / "classifier" / "manifest-v0.0.1.json"
    manifest.write_text(text) if text else manifest.unlink()
    assert "has no manifest" in verdicts(collect(project, place))["v0.0.1"]
    assert "classifier/v0.0.1/model.bin" in left(place)


def test_a_manifest_inside_a_version_is_one_of_its_files(
    project: Project, place: Path, versions: list[str]
) -> None:
    inside = place / "classifier" / "v0.0.2" / "a=b"
    inside.mkdir()
    shutil.copy(place / "classifier" / "manifest-v0.0.1.json", inside / "manifest-v0.0.1.json")
    (place / "notes.txt").write_text("of the user")
    found = collect(project, place)
    assert [(each.version, each.files) for each in found.versions] == [("v0.0.1", 1), ("v0.0.2", 2)]
    assert "classifier/v0.0.2/a=b/manifest-v0.0.1.json" in left(place)
    assert "notes.txt" in left(place)


def test_a_clone_that_lacks_tags_judges_nothing(
    project: Project, place: Path, versions: list[str], tmp_path: Path
) -> None:
    subprocess.run(
        ["git", "clone", "-q", "--bare", str(project.root), str(tmp_path / "origin.git")], check=True
    )
    subprocess.run(["git", "clone", "-q", str(tmp_path / "origin.git"), str(tmp_path / "clone")], check=True)
    other = ModelRegistry(Repo.open(tmp_path / "clone"))
    subprocess.run(["git", "tag", "-d", "classifier@v0.0.2"], cwd=tmp_path / "clone", check=True)
    found = collect_published(other, str(place), grace=0, dry_run=False)
    said = "git's origin has the tag classifier@v0.0.2, which this clone lacks"
    assert verdicts(found) == {"v0.0.1": said, "v0.0.2": said}
    shutil.rmtree(tmp_path / "origin.git")
    found = collect_published(other, str(place), grace=0, dry_run=False)
    assert "git's origin cannot be asked for its tags" in found.doubt
    assert not found.unused


# -- services ----------------------------------------------------------------------------------------------------------


def asking(cluster: World) -> Callable[[], Uses]:
    return lambda: read_uses(cluster.kube, ["ml"])


def service(uri: str) -> dict[str, Any]:
    model = {
        "modelFormat": {"name": "sklearn"},
        "runtime": "kserve-sklearnserver",
        "protocolVersion": "v1",
        "storageUri": uri,
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "someone", "namespace": "ml"},
        "spec": {"predictor": {"model": model, "serviceAccountName": "lake"}},
    }


def test_a_service_keeps_the_folder_it_names(
    project: Project, place: Path, versions: list[str], empty: World
) -> None:
    # Another address of the same place, and an address that only starts like it.
    empty.api.put(service(f"https://mirror.example.org{place}/classifier/v0.0.1"))
    found = collect(project, place, services=asking(empty))
    assert verdicts(found)["v0.0.1"] == "inferenceservices 'someone' of namespace 'ml' names it"
    empty.kube.delete("/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices/someone")
    empty.api.put(service(f"s3://{place}/classifier/v0.0.10/"))
    assert collect(project, place, services=asking(empty)).unused[0].removed


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_a_live_revision_keeps_the_folder_it_names(
    project: Project, place: Path, versions: list[str], mode: str
) -> None:
    """After a new version is served, pods or revisions of the one before it may still run."""
    with world("0.21", mode=mode) as cluster:
        settings = ServiceSettings("sklearn", service_account="lake")
        for version in versions:
            uri = f"s3:/{place}/classifier/{version}/"
            cluster.services.deploy("classifier", version, version, uri, settings)
        found = collect(project, place, services=asking(cluster))
        named = verdicts(found)["v0.0.1"]
        if mode == "Knative":
            assert named.startswith("revisions 'classifier-predictor-00001' of namespace 'ml'")
        else:
            assert named == "withdrawn"


def test_a_pod_that_still_ends_keeps_its_folder(
    project: Project, place: Path, versions: list[str], empty: World
) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "old",
            "namespace": "ml",
            "labels": {"serving.kserve.io/inferenceservice": "classifier"},
        },
        "spec": {
            "containers": [{"name": "kserve-container", "image": "sklearn"}],
            "initContainers": [
                {
                    "name": "storage-initializer",
                    "image": "i",
                    "args": ["s3://models/classifier/v0.0.1/", "/mnt/models"],
                }
            ],
        },
    }
    empty.api.put(pod)
    assert verdicts(collect(project, place, services=asking(empty)))["v0.0.1"].startswith("pods 'old'")
    empty.api.set_status("", "pods", "ml", "old", {"phase": "Succeeded"})
    assert collect(project, place, services=asking(empty)).unused


def test_a_service_is_found_by_the_version_in_its_annotations(empty: World) -> None:
    settings = ServiceSettings("sklearn", service_account="lake")
    empty.services.deploy("iris", "v1.0.0", "digest", "hf://org/model", settings)
    uses = read_uses(empty.kube, ["ml"])
    assert uses.naming("iris", "v1.0.0", "iris/v1.0.0") is not None
    assert uses.naming("iris", "v1.0.1", "iris/v1.0.1") is None
    # All namespaces, page by page.
    assert read_uses(empty.kube).objects == uses.objects


def test_services_that_were_noted_must_be_asked(
    project: Project, place: Path, versions: list[str], empty: World
) -> None:
    version = project.registry.show("classifier", "v0.0.2")
    project.registry.note(version, "service", {"where": "kserve:prod/ml", "url": "http://x"})
    found = collect(project, place)
    assert found.doubt == "services of kserve:prod/ml were noted, and no cluster is asked"
    assert verdicts(found)["v0.0.1"] == found.doubt
    with pytest.raises(ModelError, match="no cluster is asked"):
        unpublish_version(project.registry, "classifier", "v0.0.1", str(place))
    for namespaces, context in ((["other"], ""), (["ml"], "test")):
        found = collect(
            project, place, services=lambda n=namespaces, c=context: Uses((), tuple((c, each) for each in n))
        )
        assert found.doubt == "services of kserve:prod/ml were noted, and it is not asked"

    def silent() -> Uses:
        raise ServingError("Kubernetes does not answer: timed out.")

    found = collect(project, place, services=silent)
    assert found.doubt == "the services cannot be asked: Kubernetes does not answer: timed out"
    assert not found.unused
    assert collect(project, place, services=asking(empty), dry_run=True).unused
    assert collect(project, place, services=lambda: Uses((), (("prod", ""),)), dry_run=True).unused


@pytest.mark.parametrize("plural", ["inferenceservices", "deployments", "pods"])
def test_a_kind_that_may_not_be_listed_keeps_all(
    project: Project, place: Path, versions: list[str], empty: World, plural: str
) -> None:
    allowed = {"inferenceservices", "trainedmodels", "revisions", "deployments", "pods"} - {plural}
    empty.api.rules["reader"] = (Rule("*", tuple(allowed), ("list",)),)
    kube = KubeObjects(empty.login("reader"))
    found = collect(project, place, services=lambda: read_uses(kube, ["ml"]))
    assert f"{plural} of namespace 'ml' cannot be listed" in found.doubt
    assert not found.unused


def test_a_service_that_appears_before_the_removal_is_seen(
    project: Project, place: Path, versions: list[str]
) -> None:
    named = (("inferenceservices 'late' of namespace 'ml'", "s3://models/classifier/v0.0.1/", frozenset()),)
    answers = [Uses((), (("", "ml"),)), Uses(named, (("", "ml"),))]
    found = collect(project, place, services=lambda: answers.pop(0))
    assert (found.unused, verdicts(found)["v0.0.1"]) == (
        (),
        "inferenceservices 'late' of namespace 'ml' names it",
    )
    assert "classifier/v0.0.1/model.bin" in left(place)


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", range(4))
def test_a_removal_that_was_interrupted_is_completed(
    project: Project, place: Path, versions: list[str], stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop before or after each of the two deletions; a half removed version can also be published again."""
    delete, calls = FolderStorage.delete, [0]

    def stopping(self: FolderStorage, keys: Any) -> None:
        if calls[0] == stop:
            raise KeyboardInterrupt
        delete(self, keys)
        calls[0] += 2
        if calls[0] == stop + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(FolderStorage, "delete", stopping)
    with pytest.raises(KeyboardInterrupt):
        collect(project, place)
    monkeypatch.undo()
    assert ("classifier/manifest-v0.0.1.json" in left(place)) == (stop < 3)
    found = collect(project, place)
    assert len(found.unused) == (1 if stop < 3 else 0)
    assert left(place) == ["classifier/manifest-v0.0.2.json", "classifier/v0.0.2/model.bin"]


# -- one version -------------------------------------------------------------------------------------------------------


def test_one_registered_version_is_unpublished_and_published_again(project: Project, place: Path) -> None:
    published(project, place)
    before = left(place)
    checked = unpublish_version(project.registry, "classifier", "v0.0.1", str(place), dry_run=True)
    assert (checked.unused, checked.removed, left(place)) == (True, False, before)
    assert unpublish_version(project.registry, "classifier", "v0.0.1", str(place)).removed
    assert left(place) == ["classifier/manifest-v0.0.2.json", "classifier/v0.0.2/model.bin"]
    for version in ("v0.0.1", "v9.0.0", "nonsense"):
        with pytest.raises(ModelNotFoundError, match="is not published at"):
            unpublish_version(project.registry, "classifier", version, str(place))
    publish_version(project.registry, project.registry.show("classifier", "v0.0.1"), str(place))
    assert left(place) == before
    assert [f["kind"] for f in read_facts(project.repo.git, "classifier@v0.0.1")] == ["published"]


def test_the_command_line(
    project: Project,
    place: Path,
    versions: list[str],
    empty: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("KUBECONFIG", empty.api.kubeconfig(tmp_path / "kubeconfig", namespace="ml"))
    assert main(["model", "gc", "--from", str(place)]) == 0
    assert "kept classifier v0.0.1: it was published or withdrawn less than" in capsys.readouterr().out
    assert main(["model", "gc", "--from", str(place), "--grace", "0s"]) == 0
    assert "unused classifier v0.0.1: withdrawn\nkept classifier v0.0.2" in capsys.readouterr().out
    empty.api.put(service("s3://models/classifier/v0.0.1/"))
    for where in (["-n", "ml"], ["-A"]):
        assert main(["model", "gc", "--from", str(place), "--grace", "0s", "-f", "--json", *where]) == 0
        rows = json.loads(capsys.readouterr().out)["versions"]
        assert [row["removed"] for row in rows] == [False, False]
    assert main(["model", "unpublish", "classifier@v0.0.1", "--from", str(place), "-A"]) != 0
    assert "names it" in capsys.readouterr().err
    assert main(["model", "unpublish", "classifier@v0.0.1", "--from", str(place), "--dry"]) == 0
    assert "unused classifier v0.0.1: withdrawn" in capsys.readouterr().out
    monkeypatch.setenv("DVKF_MODELS_URL", str(place))
    assert main(["model", "unpublish", "classifier@v0.0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"]
    project.registry.note(
        project.registry.show("classifier", "v0.0.2"), "service", {"where": "kserve:/ml", "url": "x"}
    )
    assert main(["model", "gc"]) == 1
    monkeypatch.delenv("DVKF_MODELS_URL")
    assert main(["model", "gc"]) != 0
    assert "no place of published versions. Give its address" in capsys.readouterr().err
