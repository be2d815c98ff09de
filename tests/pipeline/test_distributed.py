"""Distributed training on this machine: the processes that a stage asks for really run, and train together."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
import repos

from dvkf_prefect.cli import main
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import ParseError
from dvkf_prefect.pipeline.step import distributed
from dvkf_prefect.pipeline.step.distributed import launcher, read_distributed
from dvkf_prefect.pipeline.step.spec import Distributed, StepOutput, StepSpec
from dvkf_prefect.pipeline.step.step import run_step

# Each process sees half of the rows, so only gradients of all processes give the exact line.
TRAIN = """\
import json, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(rank)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
rows = [list(map(float, line.split(","))) for line in open("rows.csv")][rank::size]
x, y = (torch.tensor([[row[i]] for row in rows]) for i in (0, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(80):
    optimizer.zero_grad()
    ((model(x) - y) ** 2).mean().backward()
    optimizer.step()
seen = torch.tensor([len(rows)])
dist.all_reduce(seen)
# One write: unbuffered, the words of two processes would mix.
print(f"process {rank} of {size}\\n", end="")
if rank == 0:
    w, b = (round(p.item(), 4) for p in model.parameters())
    json.dump({"w": w, "b": b, "world": size, "rows": int(seen)}, open("model.json", "w"))
dist.destroy_process_group()
"""
DVC_YAML = """\
stages:
  train:
    cmd: python train.py
    deps: [train.py, rows.csv]
    outs: [model.json]
    meta: {kubeflow: {trainer: {nodes: 2, processes: 1}}}
  page:
    cmd: python page.py
    deps: [page.py]
    outs: [model.pt]
    meta: {kubeflow: {trainer: {nodes: 1, processes: 2}}}
"""
PAGE = Path(__file__).parents[2] / "docs/how-to/training.md"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="pip install torch==2.13.0")
def test_two_processes_train_one_model(tmp_path, monkeypatch, capfd):
    rows = "".join(f"{n / 8 - 1},{3 * (n / 8 - 1) + 1}\n" for n in range(17))
    (page,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    files = {"dvc.yaml": DVC_YAML, "train.py": TRAIN, "page.py": page, "rows.csv": rows}
    repos.make_repo(tmp_path, files, commit="Start")
    monkeypatch.chdir(tmp_path)
    assert main(["repro"]) == 0
    assert json.loads(Path("model.json").read_text()) == {"w": 3.0, "b": 1.0, "world": 2, "rows": 17}
    shown = capfd.readouterr().out
    assert "process 0 of 2" in shown and "process 1 of 2" in shown
    assert "model.json" in Path("dvc.lock").read_text() and Path("model.pt").stat().st_size


@pytest.fixture
def torchrun(tmp_path, monkeypatch) -> Path:
    """A ``torchrun`` that writes its arguments, runs the command twice and fails like it."""
    tool = tmp_path / "bin/torchrun"
    repos.write(
        tmp_path,
        {
            "bin/torchrun": '#!/bin/sh\necho "$@" > "$0.args"\n'
            'while [ "$1" != --no-python ]; do shift; done; shift\n'
            'RANK=0 "$@" || exit 1; RANK=1 "$@" || exit 1\n'
        },
    )
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    return tool


def step(tmp_path: Path, *cmd: str, nodes: int = 2, processes: int = 3, **more) -> StepSpec:
    return StepSpec(
        "train", cmd, str(tmp_path / "cache"), distributed=Distributed(nodes, processes), lenient=True, **more
    )


def test_every_command_runs_in_all_processes(tmp_path, torchrun):
    spec = step(tmp_path, "echo one $RANK >> x", "echo two $RANK >> x", outs=(StepOutput("x"),))
    result = run_step(StepSpec.from_json(spec.to_json()))
    result.check()
    assert Cache(tmp_path / "cache").read_bytes(result.outs[0].digest) == b"one 0\none 1\ntwo 0\ntwo 1\n"
    arguments = Path(f"{torchrun}.args").read_text()
    assert "--nnodes=1 --nproc-per-node=6 " in arguments and "127.0.0.1:0" in arguments
    assert result.warnings == ()


def test_a_failed_process_fails_the_stage_by_its_own_command(tmp_path, torchrun):
    result = run_step(step(tmp_path, "test $RANK = 0"))
    assert (result.error, result.command, result.exit_code) == ("StageFailedError", "test $RANK = 0", 1)


def test_a_node_takes_its_settings_from_the_cluster(tmp_path, torchrun, monkeypatch):
    monkeypatch.setenv("PET_NNODES", "2")
    run_step(step(tmp_path, "true")).check()
    assert Path(f"{torchrun}.args").read_text().startswith("--no-python ")


@pytest.mark.parametrize(("in_place", "on_a_node"), [(True, False), (False, False), (False, True)])
def test_without_torch_one_process_runs_and_it_is_said(tmp_path, monkeypatch, in_place, on_a_node):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda *arguments, **options: None)
    if on_a_node:
        monkeypatch.setenv("PET_NNODES", "2")
    repos.make_repo(tmp_path)
    result = run_step(
        step(tmp_path, "echo once >> x", outs=(StepOutput("x"),), in_place=in_place, workspace=str(tmp_path))
    )
    assert (
        Cache(tmp_path / ("cache" if not in_place else ".dvc/cache")).read_bytes(result.outs[0].digest)
        == b"once\n"
    )
    (warning,) = result.warnings
    where = "on this node" if on_a_node else "instead of 6"
    assert f"ran as one process {where}" in warning and "Install torch" in warning


def test_the_module_is_used_where_there_is_no_script(monkeypatch):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: object())
    assert launcher(Distributed(), {"PATH": "/nowhere"})[1:3] == ["-m", "torch.distributed.run"]


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (None, None),
        ({"kubeflow": {"cpu": 1}}, None),
        ({"kubeflow": {"trainer": None}}, None),
        ({"kubeflow": {"trainer": {}}}, Distributed(1, 1)),
        ({"kubeflow": {"trainer": {"processes": 4, "runtime": "x"}}}, Distributed(1, 4)),
    ],
)
def test_meta_is_read(meta, expected):
    assert read_distributed(meta, "dvc.yaml", "train") == expected


@pytest.mark.parametrize("wrong", [0, -1, True, "2", 1.5, [1]])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ParseError, match=r"'meta\.kubeflow\.trainer\.nodes': expected a whole number"):
        read_distributed({"kubeflow": {"trainer": {"nodes": wrong}}}, "dvc.yaml", "train")
