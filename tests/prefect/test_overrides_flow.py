"""The flow `repro` with other values of parameters: recorded on a branch, and the worker's checkout is as it was."""

from __future__ import annotations

from dvkf_prefect import DvcRepository, KubeflowPipelines, Repo
from dvkf_prefect.flows import repro

from .conftest import git

STAGE = "stages:\n  train:\n    cmd: cat params.yaml > model\n    params: [depth]\n    outs: [model]\n"


def test_values_of_the_form_are_in_the_commit_of_the_run(prefect_server: None, repo: Repo) -> None:
    (repo.root / "dvc.yaml").write_text(STAGE)
    (repo.root / "params.yaml").write_text("depth: 2\n")
    git(repo.root, "add", "--all")
    git(repo.root, "commit", "--quiet", "--message", "Pipeline")
    head = git(repo.root, "rev-parse", "HEAD")
    done = repro(DvcRepository(path=str(repo.root)), KubeflowPipelines(), overrides=["depth=3"])
    assert done["ran"] == ["train"]
    assert git(repo.root, "show", f"{done['commit']}:params.yaml") == "depth: 3"
    assert "depth: 3" in git(repo.root, "show", f"{done['commit']}:dvc.lock")
    (branch,) = git(repo.root, "for-each-ref", "--format=%(refname:short)", "refs/heads/set").split()
    assert git(repo.root, "rev-parse", branch) == done["commit"]
    assert git(repo.root, "rev-parse", "HEAD") == head
    assert git(repo.root, "status", "--porcelain") == ""
