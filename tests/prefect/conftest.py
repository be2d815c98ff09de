"""One Prefect server for all tests here, and small repositories with real git."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings
from repos import make_repo

from dvkf_prefect.repo import Repo

from ..kubeflow.fake import FakeKfp  # noqa: TID252 (tests are no package that could be named)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server with a home and a database of its own."""
    # Only the process that runs these tests imports the server, for 3 s.
    from prefect.testing.utilities import prefect_test_harness

    home = tmp_path_factory.mktemp("prefect-home")
    with temporary_settings({PREFECT_HOME: home}), prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def kfp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfp]:
    # What pods find this package by; nothing else of the environment gets to them.
    package = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]).rstrip(":"))
    with FakeKfp(tmp_path / "cluster") as server:
        yield server


@pytest.fixture
def artifacts(prefect_server: None) -> Callable[[str], list[Any]]:
    """All artifacts of a key, the oldest first, as the server has them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    def read(key: str) -> list[Any]:
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
        return sorted(found, key=lambda artifact: artifact.created)

    return read


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A repository with one tracked directory, committed, and a folder as its default remote."""
    root = tmp_path / "digits"
    made = make_repo(root, remote=tmp_path / "store")
    train = root / "data" / "train"
    train.mkdir(parents=True)
    for number in range(3):
        (train / f"{number}.txt").write_text(f"image {number}\n")
    made.add([train])
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "Version 1")
    return Repo.open(root)


PIPELINE = """\
stages:
  prepare:
    cmd: python prepare.py
    deps:
      - data/train
      - prepare.py
    outs:
      - rows.csv
  train:
    cmd: python train.py
    deps:
      - rows.csv
      - train.py
    params:
      - depth
    outs:
      - model.joblib
    metrics:
      - metrics.json:
          cache: false
artifacts:
  signs:
    path: model.joblib
    type: model
"""

PREPARE = """\
from pathlib import Path

rows = "".join(path.read_text() for path in sorted(Path("data/train").iterdir()))
Path("rows.csv").write_text(rows)
print(f"prepared {rows.count(chr(10))} rows")
"""

TRAIN = '''\
import csv
import json

import cloudpickle


class Signs:
    """A model with its code in the file: scikit-learn takes 2 s to import, here and in each server."""

    n_features_in_ = 2

    def __init__(self, depth, rows):
        self.depth = depth
        self.edge = (min(row[0] for row in rows if row[-1]) + max(row[0] for row in rows if not row[-1])) / 2

    def predict(self, batch):
        return (batch[:, 0] > self.edge).astype(int)


depth = int(open("params.yaml").read().split(":")[1])
rows = [[float(cell) for cell in row] for row in csv.reader(open("rows.csv"))]
model = Signs(depth, rows)
cloudpickle.dump(model, open("model.joblib", "wb"))
right = [(row[0] > model.edge) == (row[-1] == 1) for row in rows]
json.dump({"accuracy": sum(right) / len(rows), "rows": len(rows)}, open("metrics.json", "w"))
'''


def write_rows(folder: Path, name: str, *, shift: float) -> None:
    """Points left and right of ``shift``, told apart by their sign."""
    lines = [f"{shift + step},{step % 3},{int(step > 0)}" for step in (-3, -2, -1, 1, 2, 3)]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def make_project(root: Path, store: Path) -> Repo:
    """A repository with a tracked directory, a pipeline that trains on it, and a folder as its remote."""
    made = make_repo(root, remote=store)
    train = root / "data" / "train"
    train.mkdir(parents=True)
    write_rows(train, "a", shift=0)
    made.add([train])
    for name, text in {
        "dvc.yaml": PIPELINE,
        "prepare.py": PREPARE,
        "train.py": TRAIN,
        "params.yaml": "depth: 2\n",
    }.items():
        (root / name).write_text(text)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "Data and pipeline")
    made.push()
    return Repo.open(root)


@pytest.fixture
def project(tmp_path: Path) -> Repo:
    """A repository with a pipeline whose stages have not run yet."""
    return make_project(tmp_path / "signs", tmp_path / "store")
