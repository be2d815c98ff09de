"""The registry on real git repositories."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest

from dvkf_prefect.errors import (
    ConfigError,
    GitError,
    MissingObjectError,
    ModelDigestError,
    ModelError,
    ModelNotFoundError,
    OutputChangedError,
)
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.repo import Repo

from .conftest import Project


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def test_versions_carry_what_their_commit_holds(project: Project) -> None:
    first = project.train("one")
    version = project.registry.register(
        "classifier", message="The first", trailers={"Prefect-Flow-Run": "abc"}
    )
    assert (version.version, version.rev, version.path) == ("v0.0.1", first, "model.bin")
    assert (version.digest, version.size, version.nfiles) == (_md5("one"), 3, 1)
    assert (version.author, version.message) == ("Test", "The first")
    assert version.trailers == {"Prefect-Flow-Run": "abc"}
    assert version.stages == () and version.active
    assert str(version) == f"classifier v0.0.1 ({first[:7]}, {_md5('one')[:8]})"
    assert json.loads(json.dumps(version.as_dict()))["created"] == version.created.isoformat()

    project.train("two")
    assert project.registry.register("classifier").version == "v0.0.2"
    assert project.registry.show("classifier").digest == _md5("two")
    assert project.registry.show("classifier", "v0.0.1").digest == _md5("one")
    assert [v.version for v in project.registry.list()] == ["v0.0.2", "v0.0.1"]


def test_bumps(project: Project) -> None:
    project.train("0")
    with pytest.raises(ModelError, match="no version to count up from"):
        project.registry.register("classifier", bump="major")
    project.registry.register("classifier")
    for content, part, expected in [
        ("1", "patch", "v0.0.2"),
        ("2", "minor", "v0.1.0"),
        ("3", "major", "v1.0.0"),
        ("4", None, "v1.0.1"),
    ]:
        project.train(content)
        assert project.registry.register("classifier", bump=part).version == expected  # type: ignore[arg-type]
    project.train("5")
    with pytest.raises(ModelError, match="exclude each other"):
        project.registry.register("classifier", version="v9.0.0", bump="major")
    assert project.registry.register("classifier", version="v2.0.0-rc.1").version == "v2.0.0-rc.1"
    assert project.registry.show("classifier", "latest").version == "v2.0.0-rc.1"


def test_a_withdrawn_number_is_not_used_again(project: Project) -> None:
    project.train("1")
    project.registry.register("classifier")
    project.train("2")
    project.registry.register("classifier")
    withdrawn = project.registry.deregister("classifier", "v0.0.2")
    assert not withdrawn.active
    assert project.registry.show("classifier").version == "v0.0.1"
    with pytest.raises(ModelError, match="registered and withdrawn"):
        project.registry.register("classifier")
    project.train("3")
    assert project.registry.register("classifier").version == "v0.0.3"
    with pytest.raises(ModelError, match="deregistered already"):
        project.registry.deregister("classifier", "v0.0.2")
    with pytest.raises(ModelNotFoundError, match="was deregistered"):
        project.registry.show("classifier", "v0.0.2")
    everything = project.registry.list("classifier", include_inactive=True)
    assert [(v.version, v.active) for v in everything] == [
        ("v0.0.3", True),
        ("v0.0.2", False),
        ("v0.0.1", True),
    ]


def test_what_cannot_be_registered(project: Project) -> None:
    project.train("1")
    project.registry.register("classifier", version="v1.0.0")
    with pytest.raises(ModelError, match=r"v1\.0\.0 already"):
        project.registry.register("classifier")
    project.train("2")
    with pytest.raises(ModelError, match="registered already, at commit"):
        project.registry.register("classifier", version="v1.0.0")
    with pytest.raises(ModelError, match="is not a version"):
        project.registry.register("classifier", version="1.0.0")
    with pytest.raises(ModelNotFoundError, match=r"declares no model 'other'.*declared: classifier"):
        project.registry.register("other")
    with pytest.raises(GitError, match="unknown git revision"):
        project.registry.register("classifier", rev="nowhere")
    with pytest.raises(ModelError, match="cannot be a trailer"):
        project.registry.register("classifier", trailers={"two words": "x"})
    with pytest.raises(ModelError, match="cannot be a trailer"):
        project.registry.register("classifier", trailers={"Key": "two\nlines"})
    (project.root / "dvc.yaml").write_text("artifacts:\n  classifier:\n    path: elsewhere.bin\n")
    project.commit()
    with pytest.raises(ModelError, match=r"'elsewhere.bin'.*is not an output"):
        project.registry.register("classifier")
    (project.root / "dvc.yaml").write_text(
        "stages:\n  train:\n    cmd: touch out.bin\n    outs: [out.bin]\nartifacts:\n  classifier:\n    path: out.bin\n"
    )
    project.commit()
    with pytest.raises(ModelError, match=r"'out.bin' has no digest in dvc.lock"):
        project.registry.register("classifier")


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a@b", "a#b", "a:b:c", "a.b", "ä"])
def test_names_that_gto_refuses(project: Project, name: str) -> None:
    with pytest.raises(ModelError, match="is not a model name"):
        project.registry.register(name)


def test_an_output_of_a_stage(project: Project) -> None:
    (project.root / "dvc.yaml").write_text(
        "stages:\n  train:\n    cmd: printf m > out.bin\n    outs: [out.bin]\n"
        "artifacts:\n  classifier:\n    path: out.bin\n"
    )
    (project.root / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  train:\n    cmd: printf m > out.bin\n    outs:\n    - path: out.bin\n"
        f"      hash: md5\n      md5: {_md5('m')}\n      size: 1\n"
    )
    project.commit()
    assert project.registry.register("classifier").digest == _md5("m")


def test_a_model_in_a_folder_and_inside_an_output(project: Project, tmp_path: Path) -> None:
    folder = project.root / "vision"
    (folder / "models" / "deep").mkdir(parents=True)
    (folder / "models" / "a.bin").write_text("a")
    (folder / "models" / "deep" / "b.bin").write_text("b")
    project.repo.add([folder / "models"])
    (folder / "dvc.yaml").write_text(
        "artifacts:\n  whole:\n    path: models\n  file:\n    path: models/a.bin\n  part:\n    path: models/deep\n"
    )
    project.commit()
    whole = project.registry.register("vision:whole")
    assert whole.path == "vision/models" and whole.digest.endswith(".dir") and whole.nfiles == 2
    assert project.git("tag") == "vision=whole@v0.0.1"
    file = project.registry.register("vision:file")
    part = project.registry.register("vision:part")
    assert (file.path, file.digest) == ("vision/models/a.bin", _md5("a"))
    assert project.registry.materialise(file, tmp_path / "f").read_text() == "a"
    assert (project.registry.materialise(part, tmp_path / "p") / "b.bin").read_text() == "b"
    assert (project.registry.materialise(whole, tmp_path / "w") / "deep" / "b.bin").read_text() == "b"


def test_a_repository_below_the_top_of_git(tmp_path: Path) -> None:
    project = Project(tmp_path / "mono", subdir="ml")
    project.train("1")
    version = project.registry.register("ml:classifier")
    assert (version.path, version.digest) == ("model.bin", _md5("1"))
    with pytest.raises(ModelNotFoundError, match="declares no model"):
        project.registry.register("classifier")


def test_stages_and_rollback(project: Project) -> None:
    registry = project.registry
    for content in "123":
        project.train(content)
        registry.register("classifier")
    with pytest.raises(
        ModelNotFoundError, match=r"no version of 'classifier' is in stage 'prod'.*v0.0.3, v0.0.2"
    ):
        registry.rollback("classifier", "prod")
    assert registry.assign("classifier", "v0.0.1", "prod").stages == ("prod",)
    with pytest.raises(ModelNotFoundError, match=r"held stage 'prod' before v0.0.1.*v0.0.3, v0.0.2, v0.0.1"):
        registry.rollback("classifier", "prod")
    with pytest.raises(ModelError, match="in stage 'prod' already"):
        registry.assign("classifier", "v0.0.1", "prod")
    registry.assign("classifier", "v0.0.2", "prod")
    registry.assign("classifier", "latest", "prod", trailers={"Prefect-Flow-Run": "x"})
    registry.assign("classifier", "v0.0.3", "staging")
    assert registry.show("classifier", "#prod").stages == ("prod", "staging")

    back = registry.rollback("classifier", "prod", reason="accuracy fell")
    assert back.version == "v0.0.2"
    newest = registry.history("classifier")[0]
    assert newest.tag == "classifier#prod#5"
    assert newest.message.endswith("from version v0.0.3 to v0.0.2\n\naccuracy fell")
    assert newest.trailers == {"Rolled-Back-From": "v0.0.3"}
    # A second one goes further back, not to the version that was left.
    assert registry.rollback("classifier", "prod").version == "v0.0.1"
    with pytest.raises(ModelNotFoundError):
        registry.rollback("classifier", "prod")
    assert registry.assign("classifier", "v0.0.3", "prod").stages == ("prod", "staging")
    assert registry.rollback("classifier", "prod").version == "v0.0.1"

    left = registry.unassign("classifier", "v0.0.3", "staging")
    assert left.stages == ()
    with pytest.raises(ModelNotFoundError, match="is not in stage"):
        registry.unassign("classifier", "v0.0.3", "staging")


def test_rollback_passes_over_withdrawn_versions(project: Project) -> None:
    registry = project.registry
    for content in "123":
        project.train(content)
        registry.assign("classifier", registry.register("classifier").version, "prod")
    registry.deregister("classifier", "v0.0.2")
    assert registry.rollback("classifier", "prod").version == "v0.0.1"


def test_stage_names(project: Project) -> None:
    project.train("1")
    project.registry.register("classifier")
    with pytest.raises(ModelError, match="is not a stage name"):
        project.registry.assign("classifier", "v0.0.1", "prod!")
    (project.root / ".gto").write_text("stages: [dev, prod]\n")
    with pytest.raises(ModelError, match="dev, prod"):
        project.registry.assign("classifier", "v0.0.1", "staging")
    assert project.registry.assign("classifier", "v0.0.1", "dev").stages == ("dev",)


def test_deprecation(project: Project) -> None:
    project.train("1")
    project.registry.register("classifier")
    project.registry.deprecate("classifier")
    assert project.registry.list() == []
    assert not project.registry.list(include_inactive=True)[0].active
    with pytest.raises(ModelError, match="deprecated already"):
        project.registry.deprecate("classifier")
    project.train("2")
    project.registry.register("classifier")
    assert [v.version for v in project.registry.list()] == ["v0.0.2", "v0.0.1"]
    project.registry.deprecate("classifier")
    assert project.registry.list() == []


def test_what_is_not_registered(project: Project) -> None:
    project.train("1")
    with pytest.raises(ModelNotFoundError, match=r"no model 'classifier' is registered.*registered: none"):
        project.registry.show("classifier")
    project.registry.register("classifier")
    with pytest.raises(ModelNotFoundError, match=r"Did you mean 'classifier'\?"):
        project.registry.show("clasifier")
    with pytest.raises(ModelNotFoundError, match=r"no version 'v9.9.9' \(versions: v0.0.1"):
        project.registry.show("classifier", "v9.9.9")
    with pytest.raises(ModelNotFoundError, match=r"no version of 'classifier' is in stage 'prod'"):
        project.registry.show("classifier", "#prod")
    with pytest.raises(ModelNotFoundError, match="registered: classifier"):
        project.registry.list("other")


def test_the_same_content_is_found(project: Project) -> None:
    project.train("1")
    assert project.registry.find_same("classifier") is None
    project.registry.register("classifier")
    project.commit()
    same = project.registry.find_same("classifier")
    assert same is not None and same.version == "v0.0.1"
    project.train("2")
    assert project.registry.find_same("classifier") is None


def test_materialise_from_cache_and_remote(project: Project, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    project.train("weights")
    version = project.registry.register("classifier")
    repo = Repo.open(
        project.root, config={"core": {"remote": "store"}, 'remote "store"': {"url": str(remote)}}
    )
    repo.push()
    registry = ModelRegistry(repo)

    dest = tmp_path / "out" / "model.bin"
    assert registry.materialise(version, dest) == dest and dest.read_text() == "weights"
    assert registry.materialise(version, dest) == dest
    dest.write_text("mine")
    with pytest.raises(OutputChangedError):
        registry.materialise(version, dest)
    assert dest.read_text() == "mine"

    # A damaged cache is mended from the remote, an empty one filled.
    cached = repo.cache.path(version.digest)
    cached.chmod(0o644)
    cached.write_text("damaged")
    assert registry.materialise(version, tmp_path / "a").read_text() == "weights"
    shutil.rmtree(repo.cache.root)
    assert registry.materialise(version, tmp_path / "b").read_text() == "weights"

    # A damaged remote gives nothing.
    shutil.rmtree(repo.cache.root)
    (stored,) = [p for p in (remote / "files").rglob("*") if p.is_file()]
    stored.chmod(0o644)
    stored.write_text("damaged")
    with pytest.raises(ModelDigestError, match="no intact copy of"):
        registry.materialise(version, tmp_path / "c")
    assert not (tmp_path / "c").exists() and not list(tmp_path.glob(".c*"))


def test_content_that_is_nowhere(project: Project, tmp_path: Path) -> None:
    project.train("weights")
    version = project.registry.register("classifier")
    shutil.rmtree(project.repo.cache.root)
    with pytest.raises((MissingObjectError, ConfigError)):
        project.registry.materialise(version, tmp_path / "m")


def test_writers_at_the_same_time(project: Project) -> None:
    """Each gets a number of its own, and one commit one version."""
    revs = [project.train(str(i)) for i in range(6)]
    done: list[str] = []
    refused: list[ModelError] = []

    def register(rev: str) -> None:
        registry = ModelRegistry(Repo.open(project.root))
        try:
            done.append(registry.register("classifier", rev=rev).version)
        except ModelError as error:
            refused.append(error)

    threads = [threading.Thread(target=register, args=(rev,)) for rev in revs + revs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == [f"v0.0.{i}" for i in range(1, 7)]
    assert len(refused) == 6


def test_a_number_taken_by_another_tool_is_passed_over(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.train("1")
    project.registry.register("classifier")
    from dvkf_prefect.models import tags

    real = tags.create_tag
    clashes = ["classifier#prod#1", "classifier#prod#2"]

    def racing(git, name, rev, message, **options):  # type: ignore[no-untyped-def]
        if clashes and name == clashes[0]:
            project.git("tag", "-a", "-m", "theirs", clashes.pop(0), rev)
        return real(git, name, rev, message, **options)

    monkeypatch.setattr(tags, "create_tag", racing)
    project.registry.assign("classifier", "v0.0.1", "prod")
    assert not clashes
    assert project.registry.history()[0].tag == "classifier#prod#3"


def test_without_git(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not in git"):
        ModelRegistry(Repo.init(tmp_path, no_scm=True))


def test_a_message_that_looks_like_comments_or_trailers(project: Project) -> None:
    project.train("1")
    text = "Fix: a subject like a trailer\n\n# not a comment\n\nplain words"
    version = project.registry.register("classifier", message=text, trailers={"Run": "1: 2"})
    assert version.message == text
    assert version.trailers == {"Run": "1: 2"}
