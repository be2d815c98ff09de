"""Values of parameters by ``--set-param``: the grammar is DVC's, and a run with them leaves the workspace alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from repos import make_repo
from ruamel.yaml import YAML

from dvkf_prefect.cli import main
from dvkf_prefect.errors import ConfigError, GitError
from dvkf_prefect.formats.overrides import apply_overrides, parse_overrides
from dvkf_prefect.pipeline.run.apart import apart
from dvkf_prefect.repo import Repo

PARAMS = """\
# How to train
train:
  lr: 0.1  # slow
  layers: [64, 32]
  deep: {a: 1, b: {c: 2}}
  none: null
seed: 7
1: one
"""
ACCEPTED = [
    "train.lr=0.2",
    "train.lr=1e-3",
    "train.lr=.5",
    "train.lr=-3",
    "train.lr=1_000",
    "train.lr=inf",
    "train.lr=",
    "train.lr=null",
    "train.lr=TRUE",
    "train.lr=yes",
    "train.lr=a b",
    "train.lr=a:b/c",
    "train.lr='a, b'",
    'train.lr="1"',
    "train.lr='it\\'s'",
    "train.lr=007",
    "train.lr=[1, 2.5, x, 'y, z', [null]]",
    "train.lr={a: 1, b: [x]}",
    "train.lr={}",
    "train.lr=[]",
    "train.layers=[1]",
    "train.layers.1=16",
    "train.deep={b: {c: 3}}",
    "train.deep.b.c=x",
    "train.none=1",
    "+train.new=1",
    "+train.more.deep=1",
    "+train.deep={e: 1}",
    "++seed=8",
    "++other=[1]",
    "~seed",
    "~train.deep.b",
]
REFUSED = [
    "train.lr=a=b",
    "train.deep={b: {d: 3}}",
    "train.new=1",
    "nope.lr=1",
    "seed.x=1",
    "+seed=8",
    "~nope",
    "train.lr=1,2",
    "train.lr=[1",
    "train.lr={a",
    "train.lr='x",
    "=1",
    "train.lr",
    "+train.lr",
]


def ours(text: str) -> Any:
    done = apply_overrides(PARAMS.encode(), "params.yaml", parse_overrides([text]))
    return YAML(typ="safe").load(done)


def dvcs(text: str, folder: Path) -> Any:
    from dvc.utils.hydra import apply_overrides as apply_dvcs

    path = folder / "params.yaml"
    path.write_text(PARAMS)
    apply_dvcs(path, [text])
    return YAML(typ="safe").load(path.read_text())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", ACCEPTED)
def test_a_value_is_what_dvc_reads(text: str, tmp_path: Path) -> None:
    assert repr(ours(text)) == repr(dvcs(text, tmp_path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", REFUSED)
def test_what_dvc_refuses_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="override"):
        ours(text)
    # Here DVC takes a value for each of several experiments, or removes.
    if text not in ("train.lr=1,2",):
        with pytest.raises(Exception):  # noqa: B017 - of hydra, omegaconf or DVC
            dvcs(text, tmp_path)


@pytest.mark.parametrize("text", ["train.lr=${seed}", "train.lr=int(3)", "~seed=7"])
def test_what_only_hydra_computes_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        ours(text)


def test_comments_stay_and_json_is_written() -> None:
    done = apply_overrides(PARAMS.encode(), "params.yaml", parse_overrides(["train.lr=0.2"])).decode()
    assert done == PARAMS.replace("0.1", "0.2").replace("none: null", "none:")  # as DVC writes it
    (override,) = parse_overrides(["conf/p.json:+a.b=[1]"])
    assert override.file == "conf/p.json"
    assert json.loads(apply_overrides(b'{"x": 1}', "conf/p.json", [override])) == {"x": 1, "a": {"b": [1]}}
    with pytest.raises(ConfigError, match="neither YAML nor JSON"):
        apply_overrides(b"x = 1\n", "p.toml", parse_overrides(["p.toml:x=2"]))


STAGES = """\
stages:
  train:
    cmd: cat data/rows params.yaml > model && echo '{"n":1}' > metrics.json
    deps: [data]
    params: [depth]
    outs: [model]
    metrics:
      - metrics.json: {cache: false}
"""


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    made = make_repo(tmp_path / "repo", remote=tmp_path / "store")
    (made.root / "data").mkdir()
    (made.root / "data/rows").write_text("1\n")
    made.add(["data"])
    (made.root / "dvc.yaml").write_text(STAGES)
    (made.root / "params.yaml").write_text("depth: 2  # levels\n")
    monkeypatch.chdir(made.root)
    assert main(["repro", "--quiet"]) == 0
    git(made.root, "add", "--all")
    git(made.root, "commit", "--quiet", "--message", "Two levels")
    return Repo.open(made.root)


def branches(root: Path) -> list[str]:
    return git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads/set").split()


def state(root: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not {".git", "tmp", "cache"} & set(path.relative_to(root).parts)
    }


def test_values_and_results_are_in_a_commit_and_the_workspace_is_as_it_was(
    repo: Repo, capsys: pytest.CaptureFixture[str]
) -> None:
    (repo.root / "draft").write_text("mine\n")
    before, head = state(repo.root), git(repo.root, "rev-parse", "HEAD")
    assert main(["repro", "-S", "depth=3"]) == 0
    said = capsys.readouterr().out
    (branch,) = branches(repo.root)
    assert f"Recorded on the branch {branch}" in said
    assert "parameter 'params.yaml:depth': 2 → 3" in said
    assert "dvkf-overrides" not in said
    assert state(repo.root) == before
    assert git(repo.root, "rev-parse", "HEAD") == head
    assert git(repo.root, "worktree", "list").count("\n") == 0
    assert git(repo.root, "show", f"{branch}:params.yaml") == "depth: 3  # levels"
    assert "depth: 3" in git(repo.root, "show", f"{branch}:dvc.lock")
    assert git(repo.root, "show", f"{branch}:metrics.json") == '{"n":1}'
    assert "Overrides: depth=3" in git(repo.root, "log", "-1", "--format=%B", branch)
    # Taken over, nothing has to run.
    git(repo.root, "merge", "--quiet", branch)
    assert main(["checkout", "--quiet"]) == 0
    assert "depth: 3" in (repo.root / "model").read_text()
    assert main(["repro"]) == 0
    assert "didn't change, skipping" in capsys.readouterr().out


def test_an_equal_run_repeats_nothing_and_another_one_is_apart(
    repo: Repo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repro", "-q", "-S", "depth=3"]) == 0
    tip = git(repo.root, "rev-parse", branches(repo.root)[0])
    assert main(["repro", "-S", "depth=3"]) == 0
    assert "Stage 'train' didn't change, skipping" in capsys.readouterr().out
    assert git(repo.root, "rev-parse", *branches(repo.root)) == tip
    assert main(["repro", "-q", "-S", "depth=4"]) == 0
    assert len(branches(repo.root)) == 2
    # Work trees of ended runs are no other users of the cache.
    assert main(["gc", "--workspace", "--all-branches", "--dry"]) == 0


def test_a_rehearsal_leaves_nothing(repo: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repro", "--dry", "-S", "depth=3"]) == 0
    assert "2 → 3" in capsys.readouterr().out
    assert branches(repo.root) == []
    assert git(repo.root, "worktree", "list").count("\n") == 0


def test_a_failed_run_keeps_the_branch_with_its_values(repo: Repo) -> None:
    (repo.root / "dvc.yaml").write_text(STAGES.replace("cat data", "exit 3; cat data"))
    git(repo.root, "commit", "--quiet", "--all", "--message", "Broken")
    assert main(["repro", "-q", "-S", "depth=3"]) != 0
    (branch,) = branches(repo.root)
    assert git(repo.root, "log", "-1", "--format=%s", branch) == "Set depth=3"
    assert not list((repo.root / ".dvc/tmp/dvkf-overrides").glob("*/"))


def test_a_killed_run_is_continued(repo: Repo) -> None:
    (repo.root / "dvc.yaml").write_text(
        STAGES.replace("cat data", "test -e ../../../../go || sleep 300; cat data")
    )
    git(repo.root, "commit", "--quiet", "--all", "--message", "Slow")
    command = [sys.executable, "-m", "dvkf_prefect.cli", "repro", "-q", "-S", "depth=3"]
    process = subprocess.Popen(command, cwd=repo.root, start_new_session=True)
    end = time.monotonic() + 60
    while not list((repo.root / ".dvc/tmp/dvkf-overrides").glob("*/.dvc/config.local")):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list((repo.root / ".dvc/tmp/dvkf-overrides").glob("*/"))
    (repo.root / "go").touch()
    # Another run removes what the killed one left, unless their locks are one; an equal one continues it.
    assert main(["repro", "-q", "-S", "depth=4"]) == 0
    assert main(["repro", "-q", "-S", "depth=3"]) == 0
    assert not list((repo.root / ".dvc/tmp/dvkf-overrides").glob("*/"))
    assert len(branches(repo.root)) == 2
    assert main(["gc", "--workspace", "--dry"]) == 0


def test_relative_remotes_and_secrets_of_the_local_level_reach_the_run(repo: Repo, tmp_path: Path) -> None:
    with repo.config.edit("local") as sections:
        sections["remote"]["store"] = {"url": "../store"}
    repo.push()
    shutil.rmtree(repo.root / ".dvc/cache")
    with apart(Repo.open(repo.root), ["depth=3"]) as place:
        inner = Repo.open(place.root)
        assert inner.remote().url == str(tmp_path / "store")
        inner.pull()
        assert (place.root / "data/rows").read_text() == "1\n"
        assert (place.root / ".dvc/config.local").stat().st_mode & 0o077 == 0
        assert inner.cache.root == repo.cache.root


def test_wrong_overrides_are_refused_before_anything_runs(
    repo: Repo, capsys: pytest.CaptureFixture[str]
) -> None:
    for texts, message in (
        (
            ["depths=3"],
            "params.yaml has no parameter 'depths'. Write +depths=VALUE to add it. Did you mean 'depth'?",
        ),
        (["other.yaml:x=1"], "has no file 'other.yaml'"),
        (["../params.yaml:x=1"], "has no file '../params.yaml'"),
        (["depth=1,2"], "it has several values"),
    ):
        assert main(["repro", *(word for text in texts for word in ("-S", text))]) != 0
        assert message in capsys.readouterr().err
    assert main(["repro", "--no-commit", "-S", "depth=3"]) != 0
    assert "Leave out `--no-commit`" in capsys.readouterr().err
    assert git(repo.root, "worktree", "list").count("\n") == 0


def test_a_repository_without_a_commit_is_refused(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "new")], check=True)
    with pytest.raises(GitError, match="has no commit"), apart(Repo.init(tmp_path / "new"), ["depth=3"]):
        pass
