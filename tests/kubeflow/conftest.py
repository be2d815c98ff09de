"""A repository with a pipeline, and a cluster that runs it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.kubeflow.cluster.runner import ClusterSettings, KfpClusterRunner
from dvkf_prefect.kubeflow.cluster.watch import Patience
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, Volume
from dvkf_prefect.pipeline.step.runner import LocalRunner
from dvkf_prefect.pipeline.step.spec import StepDependency, StepOutput, StepResult, StepSpec

from .fake_kfp import FakeKfp

FAST = Patience(poll_from=0.05, poll_to=0.2, run=120, cancel=20, start=0.5, schedule=0.5)
DVC_YAML = """\
stages:
  prepare:
    cmd: python prepare.py
    deps: [prepare.py, data/raw]
    outs: [data/clean]
  train:
    cmd: python train.py
    deps: [train.py, data/clean/a.txt]
    params: [lr]
    outs: [model.bin]
    metrics:
      - metrics.json: {cache: false}
  report:
    cmd: cat metrics.json model.bin > report.txt
    deps: [metrics.json, model.bin]
    outs: [report.txt]
artifacts:
  classifier: {path: model.bin, type: model}
"""


class Project:
    """A DVC repository in git, its code committed, its data on a remote."""

    def __init__(self, root: Path, remote: str) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "-q")
        Repo.init(root)
        self.write(".dvc/config", f"[core]\n    remote = store\n['remote \"store\"']\n    url = {remote}\n")
        self.write("dvc.yaml", DVC_YAML)
        self.write("params.yaml", "lr: 0.5\n")
        self.write(
            "prepare.py",
            "import os\nos.makedirs('data/clean/sub')\n"
            "for n in 'ab': open(f'data/clean/{n}.txt', 'w').write(open(f'data/raw/{n}').read().upper())\n"
            "open('data/clean/sub/c', 'w').write('c')\n",
        )
        self.write(
            "train.py",
            "import json, yaml\nlr = 0.5\nassert 'lr: 0.5' in open('params.yaml').read()\n"
            "text = open('data/clean/a.txt').read()\nopen('model.bin', 'w').write(text * 2)\n"
            "json.dump({'acc': 0.9, 'n': {'files': 1}}, open('metrics.json', 'w'))\nprint('trained')\n".replace(
                "json, yaml", "json"
            ),
        )
        self.write("data/raw/a", "alpha\n")
        self.write("data/raw/b", "beta\n")
        self.repo.add(["data/raw"])
        self.git("add", ".")
        self.git("commit", "-qm", "Start")
        self.repo.push()

    @property
    def repo(self) -> Repo:
        return Repo.open(self.root)

    def git(self, *args: str) -> str:
        done = subprocess.run(["git", *args], cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "-qm", "Change")

    def code(self, path: str) -> StepDependency:
        return StepDependency(path, digest_file(self.root / path), (self.root / path).stat().st_size)

    def step(self, stage: str, *cmd: str, deps=(), outs=(), **more) -> StepSpec:
        """A stage; a dependency given by its path alone is written by another one, or is code in git."""

        def known(dep):
            if isinstance(dep, StepDependency):
                return dep
            return self.code(dep) if (self.root / dep).is_file() else StepDependency(dep, "")

        return StepSpec(
            stage,
            cmd,
            str(self.repo.cache.root),
            deps=tuple(map(known, deps)),
            outs=tuple(o if isinstance(o, StepOutput) else StepOutput(o) for o in outs),
            workspace=str(self.root),
            **more,
        )

    def steps(self) -> list[StepSpec]:
        """The stages of its dvc.yaml, before anything has run."""
        (raw,) = (o for o in self.repo.outputs() if o.path == "data/raw")
        python = sys.executable
        return [
            self.step(
                "report",
                "cat metrics.json model.bin > report.txt",
                deps=["metrics.json", "model.bin"],
                outs=["report.txt"],
            ),
            self.step(
                "train",
                f"{python} train.py",
                deps=["train.py", "data/clean/a.txt"],
                outs=["model.bin", StepOutput("metrics.json", cached=False, kind="metric")],
                params={"params.yaml": {"lr": 0.5}},
            ),
            self.step(
                "prepare",
                f"{python} prepare.py",
                deps=["prepare.py", StepDependency("data/raw", raw.digest, raw.size or 0)],
                outs=["data/clean"],
            ),
        ]

    def locally(self, specs: list[StepSpec]) -> dict[str, StepResult]:
        """Run them by the local runner, one after another, each with the digests of those before it."""
        cache = Cache(Path(specs[0].cache_dir))
        found: dict[str, StepDependency] = {}
        results = {}
        with LocalRunner(echo=False) as runner:
            for spec in reversed(specs):
                deps = []
                for dep in spec.deps:
                    top = next((p for p in found if dep.path.startswith(p + "/")), None)
                    if dep.path in found:
                        dep = found[dep.path]
                    elif top:
                        tree = dict(cache.read_tree(found[top].digest).items())
                        dep = StepDependency(dep.path, tree[dep.path[len(top) + 1 :]])
                    deps.append(dep)
                result = runner.start(dataclasses.replace(spec, deps=tuple(deps))).wait(60)
                for out in result.outs:
                    found[out.path] = StepDependency(out.path, out.digest, out.size, out.isexec)
                    if result.side_dir and not cache.exists(out.digest):
                        cache.add_bytes(Cache(Path(result.side_dir)).read_bytes(out.digest))
                results[spec.stage] = result
        return results


@pytest.fixture
def project(tmp_path) -> Project:
    (tmp_path / "remote").mkdir()
    return Project(tmp_path / "repo", str(tmp_path / "remote" / "store"))


@pytest.fixture
def kfp(tmp_path, monkeypatch):
    # What pods find this package by; nothing else of the environment gets to them.
    package = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]).rstrip(":"))
    with FakeKfp(tmp_path / "cluster") as server:
        yield server


@pytest.fixture
def settings(kfp, tmp_path) -> ClusterSettings:
    """Pods see the folder of the remote as if a volume with it were mounted."""
    return ClusterSettings(
        kfp.host,
        defaults=Placement(volumes=(Volume("data", str(tmp_path / "remote")),)),
        patience=FAST,
        ask_kubernetes=False,
        outage=20,
    )


@pytest.fixture
def runner(project, settings):
    with KfpClusterRunner(project.repo, settings) as runner:
        yield runner
