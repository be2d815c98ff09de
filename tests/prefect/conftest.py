"""One Prefect server for all tests here, and small repositories with real git."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from dvkf_prefect.data.repo import Repo


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server with a home and a database of its own."""
    home = tmp_path_factory.mktemp("prefect-home")
    with temporary_settings({PREFECT_HOME: home}), prefect_test_harness(server_startup_timeout=120):
        yield


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
    root.mkdir()
    git(root, "init", "--quiet")
    made = Repo.init(root)
    with made.config.edit() as sections:
        sections["core"]["remote"] = "store"
        sections["remote"]["store"] = {"url": str(tmp_path / "store")}
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

TRAIN = """\
import csv
import json

import joblib
from sklearn.tree import DecisionTreeClassifier

depth = int(open("params.yaml").read().split(":")[1])
rows = [[float(cell) for cell in row] for row in csv.reader(open("rows.csv"))]
features, labels = [row[:-1] for row in rows], [int(row[-1]) for row in rows]
model = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(features, labels)
joblib.dump(model, "model.joblib")
json.dump({"accuracy": model.score(features, labels), "rows": len(rows)}, open("metrics.json", "w"))
"""


def write_rows(folder: Path, name: str, *, shift: float) -> None:
    """Points left and right of ``shift``, told apart by their sign."""
    lines = [f"{shift + step},{step % 3},{int(step > 0)}" for step in (-3, -2, -1, 1, 2, 3)]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def make_project(root: Path, store: Path) -> Repo:
    """A repository with a tracked directory, a pipeline that trains on it, and a folder as its remote."""
    root.mkdir(parents=True)
    git(root, "init", "--quiet")
    made = Repo.init(root)
    with made.config.edit() as sections:
        sections["core"]["remote"] = "store"
        sections["remote"]["store"] = {"url": str(store)}
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
