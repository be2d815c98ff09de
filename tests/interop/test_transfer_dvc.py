"""Push, fetch and pull next to the real `dvc`: the same options move the same objects."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect import cli

PIPELINE = """\
stages:
  prepare:
    cmd: mkdir -p out && cp one out/x && cp data/train/1 out/y
    deps: [one, data]
    outs: [out]
  train:
    cmd: cp out/x model && echo off > off && echo 0.5 > m.json && cp out/y plot.csv
    deps: [out]
    outs:
    - model
    - off:
        push: false
    metrics: [m.json]
    plots: [plot.csv]
"""


def run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def objects(place: Path) -> set[str]:
    """What a cache or a remote holds, the run cache included."""
    return {
        p.relative_to(place).as_posix()
        for p in place.rglob("*")
        if p.is_file() and p.relative_to(place).parts[0] in ("files", "runs")
    }


@dataclass(frozen=True)
class World:
    """A repository with a history, all of it pushed by `dvc`, and clones of it."""

    root: Path

    def clone(self, name: str) -> Path:
        folder = self.root.with_name(name)
        if folder.exists():
            shutil.rmtree(folder)
        run(self.root.parent, "git", "clone", "-q", str(self.root), str(folder))
        run(folder, "git", "branch", "-q", "other", "origin/other")
        return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        for name, value in {
            "HOME": str(home),
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "init.defaultBranch",
            "GIT_CONFIG_VALUE_0": "main",
            "GIT_AUTHOR_NAME": "Test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "Test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }.items():
            patch.setenv(name, value)
        root = tmp_path_factory.mktemp("world") / "repo"
        repo = make_repo(root)
        # Absolute: of other branches, dvc takes a relative one for one from the root of the disk.
        with repo.config.edit() as sections:
            sections["remote"]["store"] = {"url": str(root.parent / "store")}
            sections["core"]["remote"] = "store"

        def lay(name: str, text: str) -> None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

        def commit(message: str) -> None:
            run(root, "git", "add", "-A")
            run(root, "git", "commit", "-q", "-m", message)

        for i in range(3):
            lay(f"data/train/{i}", f"train {i}")
            lay(f"data/test/{i}", f"test {i}")
        lay("one", "one\n")
        lay("folder/deep/file", "in a folder")
        lay("folder/large", "large" * 100)
        repo.add(["data", "one", "folder/deep/file", "folder/large"])
        (root / "dvc.yaml").write_text(PIPELINE)
        run(root, "dvc", "repro", "-q")
        commit("first")
        for name in ("other", "tagged"):
            run(root, "git", "checkout", "-q", "-b", name, "main")
            lay("data/train/0", f"of {name}")
            repo.add(["data"])
            commit(name)
        run(root, "git", "tag", "v1")
        run(root, "git", "checkout", "-q", "main")
        lay("data/train/0", "before the last")
        repo.add(["data"])
        commit("second")
        lay("data/train/0", "last")
        repo.add(["data"])
        commit("third")
        run(root, "dvc", "push", "-q", "-A")
        run(root, "dvc", "push", "-q", "--run-cache")
        yield World(root)


def ours(root: Path, *args: str, code: int = 0) -> None:
    assert cli.main(["--cd", str(root), *args]) == code


def same_fetch(world: World, *args: str) -> set[str]:
    """Fetch into two clones, by `dvc` and by us; return what either cache has then."""
    theirs, mine = world.clone("theirs"), world.clone("mine")
    run(theirs, "dvc", *args)
    ours(mine, *args)
    found = objects(mine / ".dvc/cache")
    assert found == objects(theirs / ".dvc/cache")
    return found


@pytest.mark.parametrize(
    ("args", "count"),
    [
        (["fetch"], 12),
        (["fetch", "-a"], 14),
        (["fetch", "-T"], 14),
        (["fetch", "-A"], 20),
        (["fetch", "-a", "-T", "data.dvc"], 11),
        (["fetch", "data/train"], 4),
        (["fetch", "data/train/0", "one"], 3),
        (["fetch", "-d", "train"], 10),
        (["fetch", "-R", "folder"], 2),
        (["fetch", "--max-size", "30"], 5),
        (["fetch", "--type", "metrics", "--type", "plots"], 2),
        (["fetch", "--run-cache", "one"], 3),
        (["pull", "--glob", "folder/*.dvc"], 1),
    ],
)
def test_the_same_objects_come(world: World, args: list[str], count: int) -> None:
    assert len(same_fetch(world, *args)) == count


def test_a_part_is_the_same_in_the_workspace(world: World) -> None:
    theirs, mine = world.clone("theirs"), world.clone("mine")
    run(theirs, "dvc", "pull", "data/train/0", "data/test")
    ours(mine, "pull", "data/train/0", "data/test")
    for clone in (theirs, mine):
        there = {p.relative_to(clone).as_posix() for p in (clone / "data").rglob("*") if p.is_file()}
        assert there == {"data/train/0", "data/test/0", "data/test/1", "data/test/2"}
    # The rest by the other one.
    run(mine, "dvc", "pull", "data")
    ours(theirs, "pull", "data")
    for clone in (theirs, mine):
        assert run(clone, "dvc", "status", "data.dvc").strip() == "Data and pipelines are up to date."
        ours(clone, "status", "-q", "data.dvc")


def test_dvc_has_nothing_to_do_after_us(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = world.clone("mine")
    ours(clone, "fetch", "-A", "--run-cache")
    assert "Everything is up to date." in run(clone, "dvc", "fetch", "-A")
    second = tmp_path / "second"
    run(clone, "dvc", "remote", "modify", "--local", "store", "url", str(second))
    ours(clone, "push", "-A", "--run-cache")
    assert "Everything is up to date." in run(clone, "dvc", "push", "-A")
    assert objects(second) == objects(world.root.with_name("store"))
    run(clone, "dvc", "status", "-c", "-q", "-A")
    capsys.readouterr()
    ours(clone, "push", "-A", "--deep")
    ours(clone, "fetch", "-A")
    assert capsys.readouterr().out == "Everything is up to date.\n" * 2


def test_what_we_push_of_the_run_cache_dvc_runs_from(world: World, tmp_path: Path) -> None:
    """The entries and the outputs they name are enough for a clone to restore a stage without running it."""
    clone = world.clone("mine")
    run(clone, "git", "checkout", "-q", "main~2")
    ours(clone, "fetch", "--run-cache")
    (clone / "dvc.lock").unlink()
    second = tmp_path / "second"
    run(clone, "dvc", "remote", "modify", "--local", "store", "url", str(second))
    ours(clone, "push", "--run-cache")
    shutil.rmtree(clone / ".dvc/cache")
    run(clone, "dvc", "fetch", "--run-cache")
    assert "is cached - skipping run" in run(clone, "dvc", "repro", "--pull", "prepare")


def test_a_part_that_dvc_pushed_wrongly_is_repaired(world: World, tmp_path: Path) -> None:
    """DVC sends a directory's manifest with one file of it, and takes the others for pushed from then on."""
    clone = world.clone("mine")
    ours(clone, "fetch", "data")
    second = tmp_path / "second"
    run(clone, "dvc", "remote", "modify", "--local", "store", "url", str(second))
    run(clone, "dvc", "push", "data/train/0")
    assert "Everything is up to date." in run(clone, "dvc", "push", "data")
    assert len(objects(second)) == 2
    ours(clone, "push", "--deep", "data")
    assert len(objects(second)) == 7
    shutil.rmtree(second)
    ours(clone, "push", "data/train/0")
    assert "6 files pushed" in run(clone, "dvc", "push", "data")


def test_dvc_says_the_same_of_the_remote(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    clone = world.clone("mine")
    ours(clone, "fetch", "one", "folder/large")
    second = tmp_path / "second"
    run(clone, "dvc", "remote", "modify", "--local", "store", "url", str(second))
    ours(clone, "push", "folder/large.dvc")
    shutil.rmtree(clone / ".dvc/cache/files/md5")
    ours(clone, "add", "-q", "--no-commit", "one", code=1)
    for args in (["one"], ["folder/large"], ["-R", "folder"]):
        capsys.readouterr()
        ours(clone, "status", "-c", "--json", *args)
        mine = json.loads(capsys.readouterr().out)
        assert mine == json.loads(run(clone, "dvc", "status", "-c", "--json", *args))


@pytest.mark.parametrize("verb", ["push", "fetch", "pull"])
def test_what_is_in_neither_place_ends_as_with_dvc(tmp_path: Path, verb: str) -> None:
    """All else arrives; push and fetch warn, pull fails; what is missing is named."""
    codes, arrived = [], []
    for tool in ("dvc", "dvkf"):
        root = tmp_path / tool / "repo"
        repo = make_repo(root, remote=root.parent / "store")
        for name in ("a", "b"):
            (root / name).write_text(name)
        lost, kept = (version.digest for version in repo.add(["a", "b"]))
        if verb != "push":
            repo.push(["b"])
            repo.cache.path(kept).unlink()
        repo.cache.path(lost).unlink()
        (root / "a").unlink()
        (root / "b").unlink()
        command = ["dvc"] if tool == "dvc" else [sys.executable, "-m", "dvkf_prefect.cli"]
        done = subprocess.run([*command, verb], cwd=root, capture_output=True, text=True, check=False)
        codes.append(done.returncode)
        if tool == "dvkf":
            assert "a: " in done.stderr
        place = root.parent / "store" if verb == "push" else root / ".dvc" / "cache"
        arrived.append(sorted(p.name for p in (place / "files").rglob("*") if p.is_file()))
    assert codes[0] == codes[1]
    assert arrived[0] == arrived[1] == [kept[2:]]
