"""Pipelines that are made up, changed again and again, and run here and on a cluster: the same dvc.lock each time."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from repos import Project
from sizes import ALL

from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.pipeline.run.events import ReproResult
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner

_STEPS = 4 if ALL else 2


class Made:
    """A pipeline of a random shape, and a random change to it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.stages = [self._stage(0, [])]
        outs = list(self.stages[0][2])
        for n in range(1, self.random.randint(4, 7)):
            self.stages.append(self._stage(n, outs))
            outs += self.stages[-1][2]

    def _stage(self, n: int, outs: list[str]) -> tuple[str, str, list[str]]:
        """Return a command, the rest of what is said of the stage, and what others can read of it."""
        deps = [f"src{n}"] if not outs or self.random.random() < 0.6 else []
        deps += self.random.sample(outs, min(len(outs), self.random.randint(0 if deps else 1, 2)))
        reads = " ".join(f"$(find {dep} -type f | sort)" for dep in deps)
        # Some tell less than they read, so that what they write may come out as before.
        work = self.random.choice(["cat", "head -n 1", "wc -l", "md5sum"])
        command = f"cat {reads} | sort | {work}"
        kind = self.random.choice(["file", "folder", "metric"])
        if kind == "folder":
            out, written = f"outs: [o{n}]", [f"o{n}", f"o{n}/x", f"o{n}/sub"]
            command = f"mkdir -p o{n}/sub; {command} > o{n}/x; echo {n} > o{n}/sub/y"
        elif kind == "metric":
            out, written = f"metrics: [m{n}.json: {{cache: false}}]", [f"m{n}.json"]
            command = f"{command} > m{n}.json"
        else:
            out, written = f"outs: [o{n}.txt]", [f"o{n}.txt"]
            command = f"{command} > o{n}.txt"
        params = f"    params: [p{self.random.randint(0, 2)}]\n" if self.random.random() < 0.4 else ""
        return command, f"    deps: [{', '.join(deps)}]\n{params}    {out}\n", written

    def dvc_yaml(self) -> str:
        return "stages:\n" + "".join(
            f"  s{n}:\n    cmd: {command}\n{rest}" for n, (command, rest, _) in enumerate(self.stages)
        )

    def change(self, step: int) -> dict[str, str]:
        """Return files and what they hold from now on."""
        n = self.random.randrange(len(self.stages))
        kind = self.random.choice(["source", "source", "params", "command"])
        if kind == "source":
            return {f"src{n}": f"{step % 2}\n{n}\n"}
        if kind == "params":
            return {"params.yaml": f"p0: {step}\np1: 2\np2: {step % 2}\n"}
        command, rest, written = self.stages[n]
        self.stages[n] = (f"true; {command}", rest, written)
        return {"dvc.yaml": self.dvc_yaml()}


def run(project: Project, runner) -> ReproResult:
    with runner:
        return repro(project.repo, runner=runner, jobs=1)


def entries(project: Project) -> dict[Path, bytes]:
    root = project.root / ".dvc/cache/runs"
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("seed", "fetch"),
    [
        pytest.param(seed, fetch, marks=[] if (seed, fetch) in ((2, True), (11, False)) else pytest.mark.long)
        for seed in (2, 11, 23)
        for fetch in (True, False)
    ],
)
def test_a_made_up_pipeline(project: Project, kfp, settings, seed: int, fetch: bool) -> None:
    made = Made(seed)
    shutil.rmtree(project.root / "data")
    project.write("dvc.yaml", made.dvc_yaml())
    project.write("params.yaml", "p0: 1\np1: 2\np2: 3\n")
    for n in range(len(made.stages)):
        project.write(f"src{n}", f"{made.random.randint(0, 2)}\n{n}\n")
    project.commit()
    twin = Project(project.copy_to("twin"))
    for step in range(_STEPS):
        here = run(twin, LocalRunner(echo=False))
        there = run(project, KfpClusterRunner(project.repo, settings, fetch=fetch))
        assert (project.root / "dvc.lock").read_bytes() == (twin.root / "dvc.lock").read_bytes()
        # Of what is known in advance to none, a cluster knows the last run alone, not all of the run cache.
        assert set(there.ran) >= set(here.ran)
        for name, text in made.change(step).items():
            for each in (project, twin):
                each.write(name, text)
        for each in (project, twin):
            each.commit()
    assert entries(project) == entries(twin)
    run(project, KfpClusterRunner(project.repo, settings, fetch=fetch))
    project.repo.pull()
    done = subprocess.run(["dvc", "status"], cwd=project.root, check=True, capture_output=True, text=True)
    assert "up to date" in done.stdout
