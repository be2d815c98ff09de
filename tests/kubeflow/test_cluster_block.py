"""The block of a cluster, and the script that saves a set of blocks for one."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from pydantic import ValidationError

from dvkf_prefect.blocks import DataRemote, DataRepository, KubeflowPipelines
from dvkf_prefect.kubeflow.compile.pod_settings import Range

ROOT = Path(__file__).parents[2]


def test_a_block_runs_stages_on_a_cluster(project, kfp, tmp_path):
    kfp.tokens = {"s3cr3t"}
    block = KubeflowPipelines(
        backend="kubeflow",
        host=kfp.host,
        token="s3cr3t",
        ask_kubernetes=False,
        defaults={"cpu": 1, "volumes": [{"claim": "data", "mount": str(tmp_path / "remote")}]},
    )
    events = []
    with block.runner(project.repo, run_key="flow-run", on_event=events.append) as runner:
        assert runner.name == "kubeflow"
        assert not runner.start(project.step("a", "echo 1 > a", outs=["a"])).wait(60).failed
    assert events[-1].state == "SUCCEEDED"
    assert block.settings().defaults.cpu == Range("1", "1")
    shown = repr(block) + block.model_dump_json() + json.dumps(block.model_dump(), default=str)
    assert "s3cr3t" not in shown


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend": "kubeflow"}, "host"),
        ({"defaults": {"cpus": 1}}, "did you mean 'cpu'"),
        ({"run_timeout": 0}, "greater than 0"),
    ],
)
def test_what_a_block_refuses(values, message):
    with pytest.raises(ValidationError, match=message):
        KubeflowPipelines(**values)


def test_blocks_for_a_cluster(monkeypatch):
    saved = {}
    for kind in (DataRemote, DataRepository, KubeflowPipelines):
        monkeypatch.setattr(
            kind, "save", lambda self, name, overwrite: saved.update({type(self).__name__: self})
        )
    save = runpy.run_path(str(ROOT / "blocks" / "cluster.py"))["save"]
    names = save(
        "https://git.example.org/team/digits.git",
        remote="s3://lake/digits",
        host="https://kf.example.org/pipeline",
        image="registry.example.org/stages:1",
        remote_secret="lake",
        environment={"DVKF_ACCESS_KEY_ID": "key", "DVKF_SECRET_ACCESS_KEY": "s3cr3t"},
    )
    assert names == ["data-remote/cluster", "data-repository/cluster", "kubeflow-pipelines/cluster"]
    settings = saved["KubeflowPipelines"].settings()
    assert (settings.host, settings.image, settings.remote.secret) == (
        "https://kf.example.org/pipeline",
        "registry.example.org/stages:1",
        "lake",
    )
    assert saved["DataRepository"].remote.as_config()['remote "prefect"']["access_key_id"] == "key"
