"""A version is registered only from a commit that holds all that made the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dvkf_prefect.cli import main
from dvkf_prefect.errors import ModelError
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.repo import Repo

from .conftest import Project

PIPELINE = """\
stages:
  prepare:
    cmd: sort raw.txt > clean.txt
    deps: [raw.txt, lib]
    outs: [clean.txt]
  train:
    cmd: cat train.sh clean.txt params.yaml > model.bin
    deps: [train.sh, clean.txt]
    params: [lr]
    outs: [model.bin]
artifacts:
  classifier: {path: model.bin, type: model}
"""


@pytest.fixture
def trained(tmp_path: Path) -> Project:
    project = Project(tmp_path / "project")
    root = project.root
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "raw.txt").write_text("b\na\n")
    project.repo.add([root / "raw.txt"])
    (root / "lib").mkdir()
    (root / "lib" / "clean.py").write_text("one\n")
    (root / "train.sh").write_text("one\n")
    (root / "params.yaml").write_text("lr: 0.1\nother: 1\n")
    repro(project)
    project.commit()
    return project


def repro(project: Project) -> None:
    Repo.open(project.root).repro()


def edit(name: str, text: str) -> Callable[[Project], None]:
    return lambda project: (project.root / name).write_text(text) and None


# What was edited, and what the message has of it when the pipeline ran, or did not run, before the registration.
EDITS = {
    "params": (edit("params.yaml", "lr: 0.2\nother: 1\n"), "params.yaml"),
    "code": (edit("train.sh", "two\n"), "train.sh"),
    "code of a stage before": (edit("lib/clean.py", "two\n"), "lib/clean.py"),
    "a new file of a folder": (edit("lib/more.py", "two\n"), "lib/more.py"),
    "the command": (edit("dvc.yaml", PIPELINE.replace("train.sh clean.txt", "clean.txt")), "the command"),
}


@pytest.mark.parametrize("what", EDITS)
def test_uncommitted_edits_are_refused(trained: Project, what: str) -> None:
    change, said = EDITS[what]
    change(trained)
    with pytest.raises(
        ModelError, match=r"has changes that are not in commit [0-9a-f]{7}: .*Commit them"
    ) as got:
        trained.registry.register("classifier")
    assert said in str(got.value)
    # The commit's own model is what its files say, so it can be registered by its name.
    assert trained.registry.register("classifier", rev=trained.git("rev-parse", "HEAD")).version == "v0.0.1"


@pytest.mark.parametrize("what", EDITS)
def test_results_without_their_sources_are_refused(trained: Project, what: str) -> None:
    """The lock file alone was committed after a run with edited files: the commit's files did not make its model."""
    EDITS[what][0](trained)
    repro(trained)
    with pytest.raises(ModelError, match=r"dvc.lock records another run of stage '"):
        trained.registry.register("classifier")
    with pytest.raises(ModelError, match="another run"):
        trained.registry.find_same("classifier")
    trained.git("add", "dvc.lock")
    trained.git("commit", "-q", "-m", "Results alone")
    for rev in ("HEAD", trained.git("rev-parse", "HEAD")):
        with pytest.raises(
            ModelError, match=r"was not made by the files of commit [0-9a-f]{7}: .*Commit the"
        ):
            trained.registry.register("classifier", rev=rev)
    trained.commit()
    assert trained.registry.register("classifier").version == "v0.0.1"


def test_what_made_other_things_may_differ(trained: Project) -> None:
    (trained.root / "params.yaml").write_text("lr: 0.1\nother: 2\n")
    (trained.root / "notes.txt").write_text("not read by any stage\n")
    (trained.root / "lib" / "__pycache__").mkdir()
    assert trained.registry.register("classifier").version == "v0.0.1"


def test_a_dependency_that_nothing_keeps(trained: Project) -> None:
    trained.git("rm", "-q", "--cached", "train.sh")
    trained.git("commit", "-q", "-m", "Forget the code")
    rev = trained.git("rev-parse", "HEAD")
    with pytest.raises(
        ModelError, match=r"'train.sh', read by stage 'train', is neither in git nor tracked by DVC"
    ):
        trained.registry.register("classifier", rev=rev)


def test_data_of_another_version(trained: Project) -> None:
    (trained.root / "raw.txt").write_text("c\n")
    trained.repo.add([trained.root / "raw.txt"])
    trained.git("commit", "-qam", "New data, nothing trained")
    with pytest.raises(ModelError, match=r"'raw.txt' differs from the data that stage 'prepare' read"):
        trained.registry.register("classifier")


def test_a_model_added_and_not_committed(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.train("one")
    (project.root / "model.bin").write_text("two")
    project.repo.add([project.root / "model.bin"])
    monkeypatch.chdir(project.root)
    assert main(["model", "register", "classifier"]) == 255
    assert "model.bin.dvc records another 'model.bin'. Commit them" in capsys.readouterr().err
    project.commit()
    assert main(["model", "register", "classifier"]) == 0


def test_other_line_ends_links_and_frozen_stages(trained: Project) -> None:
    """What git checks out in another form is not compared, nor what a frozen stage would read."""
    crlf = b"one\r\n"
    (trained.root / "train.sh").write_bytes(crlf)
    repro(trained)
    (trained.root / ".gitattributes").write_text("train.sh text eol=crlf\n")
    trained.commit()
    assert trained.git("cat-file", "blob", "HEAD:train.sh") == "one"
    assert trained.registry.register("classifier").version == "v0.0.1"
    frozen = PIPELINE.replace("  train:\n", "  train:\n    frozen: true\n")
    (trained.root / "dvc.yaml").write_text(frozen)
    (trained.root / "params.yaml").write_text("lr: 0.3\n")
    trained.commit()
    assert trained.registry.register("classifier", rev=trained.git("rev-parse", "HEAD")).version == "v0.0.2"


def test_a_repository_below_the_top_of_git(tmp_path: Path) -> None:
    project = Project(tmp_path / "mono", subdir="ml")
    (project.root / "dvc.yaml").write_text(
        "stages:\n  train:\n    cmd: cp code model.bin\n    deps: [code]\n    outs: [model.bin]\n"
        "artifacts:\n  m: {path: model.bin}\n"
    )
    (project.root / "code").write_text("1")
    repro(project)
    project.commit()
    assert ModelRegistry(Repo.open(project.root)).register("ml:m").version == "v0.0.1"
    (project.root / "code").write_text("2")
    with pytest.raises(ModelError, match="ml/code, read by stage 'train'"):
        project.registry.register("ml:m")


def test_code_beside_the_repository_and_ignored_code(tmp_path: Path) -> None:
    """Code outside of the repository, but in the same git repository, was not compared; nor what git ignores."""
    top = tmp_path / "mono"
    project = Project(top, subdir="ml")
    (top / "lib").mkdir()
    (top / "lib" / "code.py").write_text("1")
    (project.root / "local").mkdir()
    (project.root / "local" / "a.py").write_text("1")
    here = project.root / "here.py"
    here.write_text("1")
    (project.root / "dvc.yaml").write_text(
        f"stages:\n  train:\n    cmd: cat ../lib/code.py > model.bin\n    deps: [../lib, local, {here}]\n"
        "    outs: [model.bin]\nartifacts:\n  m: {path: model.bin}\n"
    )
    repro(project)
    project.commit()
    assert project.registry.register("ml:m").version == "v0.0.1"
    (top / "lib" / "code.py").write_text("2")
    with pytest.raises(ModelError, match=r"lib/code.py, read by stage 'train'"):
        project.registry.register("ml:m")
    repro(project)
    project.git("commit", "-q", "-m", "Results alone", "ml/dvc.lock")
    with pytest.raises(ModelError, match=r"'../lib' differs from the file that stage 'train' read"):
        project.registry.register("ml:m")
    (project.root / "local" / ".gitignore").write_text("own.py\n")
    (project.root / "local" / "own.py").write_text("1")
    repro(project)
    project.git("add", "--all", str(top))
    project.git("commit", "-q", "-m", "All")
    with pytest.raises(ModelError, match=r"ml/local/own.py, read by stage 'train', ignored by git"):
        project.registry.register("ml:m")


def test_data_in_parts(trained: Project) -> None:
    """Data below a dependency, or above it, was not compared with what the stage read."""
    root = trained.root
    for name in ("data/a", "data/b", "lib/weights"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("1")
    trained.repo.add([root / "data", root / "lib" / "weights"])
    (root / "dvc.yaml").write_text(PIPELINE.replace("[raw.txt, lib]", "[raw.txt, lib, data/a]"))
    repro(trained)
    trained.commit()
    assert trained.registry.register("classifier").version == "v0.0.1"
    (root / "data" / "b").write_text("2")
    trained.repo.add([root / "data"])
    trained.git("commit", "-qam", "Other data than the stage reads")
    assert trained.registry.register("classifier", version="v0.0.2")
    (root / "data" / "a").write_text("2")
    trained.repo.add([root / "data"])
    trained.git("commit", "-qam", "New data, nothing trained")
    with pytest.raises(ModelError, match=r"'data/a' differs from the data that stage 'prepare' read"):
        trained.registry.register("classifier")
    repro(trained)
    (root / "lib" / "weights").write_text("2")
    trained.repo.add([root / "lib" / "weights"])
    trained.commit()
    with pytest.raises(ModelError, match=r"'lib' differs from the file that stage 'prepare' read"):
        trained.registry.register("classifier")


def test_a_dependency_declared_after_the_run(trained: Project) -> None:
    (trained.root / "dvc.yaml").write_text(PIPELINE.replace("[raw.txt, lib]", "[raw.txt, lib, train.sh]"))
    trained.commit()
    with pytest.raises(ModelError, match=r"'train.sh', .* was no dependency of its run"):
        trained.registry.register("classifier")
