"""A commit of results has the code and the parameters that its dvc.lock names, or says that it has not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from dvkf_prefect.blocks import DvcRepository
from dvkf_prefect.errors import GitError, ModelError, ModelNotFoundError
from dvkf_prefect.pipeline.plan.why import stage_status
from dvkf_prefect.pipeline.report.uncommitted import UncommittedInput, uncommitted_inputs
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks import check_commit, commit_results

from .conftest import git

PIPELINE = """\
vars:
  - settings.yaml
stages:
  prepare:
    cmd: cat code/read.py data.csv > rows.csv && echo ${rows} >> rows.csv
    deps: [code, data.csv]
    outs: [rows.csv]
  train:
    cmd: cat rows.csv params.yaml > model.txt
    deps: [rows.csv]
    params: [train.depth]
    outs: [model.txt]
"""


@pytest.fixture(params=["", "inner"], ids=["at git's top", "below it"])
def repo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Repo]:
    """A pipeline whose stages have run and whose results are committed."""
    top = tmp_path / "top"
    root = top / request.param if request.param else top
    root.mkdir(parents=True)
    git(top, "init", "--quiet")
    made = Repo.init(root, subdir=bool(request.param))
    (root / "code").mkdir()
    for name, text in {
        "dvc.yaml": PIPELINE,
        "settings.yaml": "rows: 3\n",
        "params.yaml": "train:\n  depth: 2\n",
        "code/read.py": "1\n",
        "data.csv": "1,2\n",
        "notes.md": "mine\n",
    }.items():
        (root / name).write_text(text)
    made.add([root / "data.csv"])
    repo = Repo.open(root)
    repo.repro()
    git(root, "add", "--all", str(top))
    git(root, "commit", "--quiet", "--message", "First")
    with disable_run_logger():
        yield repo


def edit(repo: Repo, **texts: str) -> None:
    for name, text in texts.items():
        path = repo.root / name.replace("__", "/").replace("_", ".")
        path.write_text(text)


def commit(repo: Repo, uncommitted: str = "commit") -> list[str]:
    done = commit_results.fn(DvcRepository(path=str(repo.root)), "Train", uncommitted=uncommitted)  # type: ignore[arg-type]
    assert done
    return git(repo.root, "show", "--name-only", "--relative", "--format=", done).splitlines()


def test_code_and_parameters_of_what_ran_are_committed(repo: Repo) -> None:
    edit(repo, code__read_py="2\n", code__new_py="3\n", notes_md="other\n")
    edit(repo, params_yaml="train:\n  depth: 4\n", settings_yaml="rows: 5\n", data_csv="3,4\n")
    repo.repro()
    assert uncommitted_inputs(repo) == (
        UncommittedInput("code/new.py", ("prepare",), False),
        UncommittedInput("code/read.py", ("prepare",), False),
        UncommittedInput("params.yaml", ("train",), False),
        UncommittedInput("settings.yaml", ("prepare",), False),
    )
    names = ["code/new.py", "code/read.py", "data.csv.dvc", "dvc.lock", "params.yaml", "settings.yaml"]
    assert commit(repo) == names
    assert uncommitted_inputs(repo) == ()
    # What is in the commit gives what its dvc.lock says.
    clone = repo.root.parent / "clone"
    top = git(repo.root, "rev-parse", "--show-toplevel")
    git(repo.root, "clone", "--quiet", top, str(clone))
    status = stage_status(Repo.open(clone / os.path.relpath(repo.root, top)))
    assert {name: {reason.kind for reason in reasons} for name, reasons in status.items()} == {
        "prepare": {"output"},
        "train": {"output"},
    }


def test_edits_of_what_did_not_run_stay(repo: Repo) -> None:
    edit(repo, code__read_py="2\n")
    repo.repro(["prepare"])
    edit(repo, params_yaml="train:\n  depth: 4\n")
    assert [each.path for each in uncommitted_inputs(repo)] == ["code/read.py"]
    assert [each.path for each in uncommitted_inputs(repo, unrecorded=True)] == [
        "code/read.py",
        "params.yaml",
    ]
    assert "params.yaml" not in commit(repo)
    assert git(repo.root, "diff", "--name-only", "--relative") == "params.yaml"


def test_a_file_edited_after_its_stage_ran_is_not_committed_as_its_input(repo: Repo) -> None:
    edit(repo, code__read_py="2\n")
    repo.repro()
    edit(repo, code__read_py="3\n")
    with pytest.raises(GitError, match=r"changed after its stage ran: code/read.py \(read by prepare\)"):
        commit(repo)
    assert "code/read.py" not in commit(repo, "mark")
    assert "Dvkf-Uncommitted: code/read.py" in git(repo.root, "log", "-1", "--format=%B")


def test_refused_before_and_after(repo: Repo) -> None:
    block = DvcRepository(path=str(repo.root))
    check_commit.fn(block, uncommitted="refuse")
    edit(repo, params_yaml="train:\n  depth: 4\n", notes_md="other\n")
    check_commit.fn(block)
    with pytest.raises(GitError, match=r"uncommitted inputs of stages: params.yaml \(read by train\)"):
        check_commit.fn(block, uncommitted="refuse")
    repo.repro()
    with pytest.raises(GitError, match=r"uncommitted inputs of stages: params.yaml \(read by train\)"):
        commit(repo, "refuse")
    git(repo.root, "commit", "--quiet", "--message", "Depth", "params.yaml")
    assert commit(repo, "refuse") == ["dvc.lock"]


def test_no_identity_is_found_before_the_run(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{name}_NAME")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    with pytest.raises(GitError, match="ident"):
        check_commit.fn(DvcRepository(path=str(repo.root)))


ELSEWHERE = """\
stages:
  train:
    cmd: cat ../lib/base.py linked.py 'a[1].py' local/own.py hidden.py > model.txt
    deps: [../lib/base.py, linked.py, "a[1].py", local, hidden.py]
    outs: [model.txt]
"""


def test_inputs_that_git_lists_elsewhere_or_nowhere(tmp_path: Path) -> None:
    """Only changed files inside the repository were found: not those beside it, behind links, ignored or hidden.

    A name with brackets was read as a pattern, and other files came into the commit.
    """
    top, root = tmp_path / "top", tmp_path / "top" / "ml"
    (top / "lib").mkdir(parents=True)
    git(top, "init", "--quiet")
    Repo.init(root, subdir=True)
    (root / "dvc.yaml").write_text(ELSEWHERE)
    (root / "local").mkdir()
    sources = [top / "lib" / "base.py", top / "lib" / "target.py", root / "a[1].py", root / "a1.py"]
    own, hidden = root / "local" / "own.py", root / "hidden.py"
    for path in (*sources, own, hidden):
        path.write_text("1\n")
    (root / "linked.py").symlink_to("../lib/target.py")
    (root / "local" / ".gitignore").write_text("own.py\n*.pyc\n")
    repo = Repo.open(root)
    repo.repro()
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--message", "First")
    git(top, "update-index", "--assume-unchanged", "ml/hidden.py")
    for path in (*sources, own, hidden, root / "local" / ".tool", root / "local" / "own.pyc"):
        path.write_text("2\n")
    git(top, "config", "core.excludesFile", str(tmp_path / "excludes"))
    (tmp_path / "excludes").write_text(".tool\n")
    repo.repro()
    found = {each.path: each.obstacle for each in uncommitted_inputs(repo)}
    assert found == {
        "../lib/base.py": "",
        "../lib/target.py": "",
        "a[1].py": "",
        "hidden.py": "hidden from git by assume-unchanged or skip-worktree",
        "local/own.py": "ignored by git",
    }
    block = DvcRepository(path=str(root))
    with disable_run_logger():
        with pytest.raises(GitError, match=r"own.py \(read by train; ignored by git\).* in .dvcignore"):
            check_commit.fn(block, uncommitted="refuse")
        done = commit_results.fn(block, "Train")
    assert done
    changed = git(top, "show", "--name-only", "--format=", done).splitlines()
    assert changed == ["lib/base.py", "lib/target.py", "ml/a[1].py", "ml/dvc.lock"]
    assert "Dvkf-Uncommitted: hidden.py, local/own.py" in git(top, "log", "-1", "--format=%B")


def test_code_of_a_submodule(tmp_path: Path) -> None:
    """A changed file of a submodule was not found, for git lists the submodule alone."""
    lib, root = tmp_path / "lib", tmp_path / "top"
    for folder in (lib, root):
        folder.mkdir()
        git(folder, "init", "--quiet")
    (lib / "code.py").write_text("1\n")
    git(lib, "add", "code.py")
    git(lib, "commit", "--quiet", "--message", "First")
    git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(lib), "sub")
    Repo.init(root)
    (root / "dvc.yaml").write_text(
        "stages:\n  train:\n    cmd: cat sub/code.py > model.txt\n    deps: [sub/code.py]\n    outs: [model.txt]\n"
    )
    repo = Repo.open(root)
    repo.repro()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "First")
    assert uncommitted_inputs(repo, unrecorded=True) == ()
    (root / "sub" / "code.py").write_text("2\n")
    repo.repro()
    assert uncommitted_inputs(repo) == (
        UncommittedInput("sub/code.py", ("train",), False, "in the submodule sub"),
    )
    git(root / "sub", "commit", "--quiet", "--all", "--message", "Second")
    assert uncommitted_inputs(repo) == (UncommittedInput("sub", ("train",), False),)
    with disable_run_logger():
        commit_results.fn(DvcRepository(path=str(root)), "Train")
    assert git(root, "status", "--porcelain") == ""


def test_an_input_declared_after_the_run(repo: Repo) -> None:
    """A dvc.yaml with one more dependency than the run had was committed with the run's dvc.lock."""
    edit(repo, code__read_py="2\n", more_py="1\n")
    repo.repro()
    edit(repo, dvc_yaml=PIPELINE.replace("[code, data.csv]", "[code, data.csv, more.py]"))
    with pytest.raises(GitError, match=r"changed after its stage ran: dvc.yaml \(read by prepare"):
        commit(repo)


def test_targets_of_a_stage_bring_its_record(repo: Repo) -> None:
    """The file of a stage's output was taken to be dvc.yaml, and its dvc.lock stayed uncommitted."""
    edit(repo, params_yaml="train:\n  depth: 4\n", notes_md="other\n")
    repo.repro()
    block = DvcRepository(path=str(repo.root))
    done = commit_results.fn(block, "Train", targets="model.txt")
    assert done
    names = git(repo.root, "show", "--name-only", "--relative", "--format=", done).splitlines()
    assert names == ["dvc.lock", "params.yaml"]


def test_a_model_that_could_not_be_registered_is_refused_before_the_run(tmp_path: Path) -> None:
    """A misspelt model or stage, and an ignored input, were found after the training."""
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "--quiet")
    Repo.init(root)
    model = "artifacts:\n  m: {path: model.txt, type: model}\n  gone: {path: gone.txt, type: model}\n"
    (root / "dvc.yaml").write_text(PIPELINE.replace("vars:\n  - settings.yaml\n", "") + model)
    pipeline = (root / "dvc.yaml").read_text().replace("${rows}", "3")
    (root / "dvc.yaml").write_text(pipeline)
    (root / "code").mkdir()
    for name in ("code/read.py", "data.csv", "params.yaml", ".gto"):
        (root / name).write_text(
            {"params.yaml": "train: {depth: 2}\n", ".gto": "stages: [prod]\n"}.get(name, "1\n")
        )
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "First")
    block = DvcRepository(path=str(root))

    def check(model: str, stage: str | None = "prod", uncommitted: Any = "commit") -> None:
        check_commit.fn(block, model=model, stage=stage, uncommitted=uncommitted)

    with disable_run_logger():
        check("m")
        with pytest.raises(ModelNotFoundError, match=r"declares no model 'n' under .*declared: gone, m"):
            check("n")
        with pytest.raises(ModelError, match=r"stage 'production' is not allowed by the file .gto"):
            check("m", "production")
        with pytest.raises(ModelError, match=r"'gone.txt', the path of model 'gone', is not an output"):
            check("gone")
        (root / "params.yaml").write_text("train: {depth: 3}\n")
        check("m")
        with pytest.raises(ModelError, match=r"the commit would not have params.yaml \(read by train\)"):
            check("m", uncommitted="mark")
        (root / ".gitignore").write_text("/code\n")
        git(root, "rm", "--quiet", "-r", "--cached", "code")
        git(root, "commit", "--quiet", "--message", "Forget the code")
        with pytest.raises(
            ModelError, match=r"would not have code/read.py \(read by prepare; ignored by git\)"
        ):
            check("m")
        # A frozen stage reads nothing.
        (root / "dvc.yaml").write_text(pipeline.replace("  prepare:\n", "  prepare:\n    frozen: true\n"))
        check("m")
