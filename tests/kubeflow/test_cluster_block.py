"""The block of a cluster, and the script that saves a set of blocks for one."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
from pydantic import ValidationError

from dvkf_prefect.blocks import DvcRemote, DvcRepository, KubeflowCredentials, KubeflowPipelines
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.compile.pod_settings import Range

ROOT = Path(__file__).parents[2]


def test_a_block_runs_stages_on_a_cluster(project, kfp, tmp_path):
    kfp.tokens = {"s3cr3t"}
    block = KubeflowPipelines(
        backend="kubeflow",
        credentials=KubeflowCredentials(host=kfp.host, token="s3cr3t"),
        ask_kubernetes=False,
        image="registry.example.org/stages:1",
        defaults={"cpu": 1, "volumes": [{"claim": "data", "mount": str(tmp_path / "remote")}]},
    )
    events = []
    with block.runner(project.repo, run_key="flow-run", on_event=events.append) as runner:
        assert runner.name == "kubeflow"
        assert not runner.start(project.step("a", "echo 1 > a", outs=["a"])).wait(60).failed
    assert [event.state for event in events if event.state not in ("LOG", "STARTED")][-1] == "SUCCEEDED"
    assert block.settings().defaults.cpu == Range("1", "1")
    shown = repr(block) + block.model_dump_json() + json.dumps(block.model_dump(), default=str)
    assert "s3cr3t" not in shown


def test_every_field_reaches_the_cluster():
    """A field that is set changes the settings of the cluster, and no two change the same one."""
    set_ = {
        "host": "http://there",
        "ui_host": "http://ui",
        "token": "one",
        "token_file": "/token",
        "username": "ada",
        "password": "three",
        "cookie": "two",
        "cookie_name": "session",
        "ca_file": "/ca.pem",
        "verify_ssl": False,
        "connect_timeout": 1.5,
        "read_timeout": 2.5,
        "namespace": "team",
        "experiment": "trial",
        "image": "image:1",
        "service_account": "robot",
        "pipeline_root": "s3://artifacts",
        "defaults": {"gpu": 1},
        "workspace": {"size": "1Gi", "access_mode": "ReadWriteMany"},
        "remote_secret": "lake",
        "remote_secret_keys": {"id": "access_key_id"},
        "remote_url": "s3://inside",
        "remote_options": {"region": "x"},
        "outage": 3.5,
        "run_timeout": 4.5,
        "start_timeout": 5.5,
        "schedule_timeout": 6.5,
        "ask_kubernetes": False,
        "allow_dirty": True,
        "send_as": "version",
        "failed_run": "retry",
    }
    steer = {"backend", "credentials", "fetch", "hermetic", "jobs"}
    own = set(KubeflowCredentials.model_fields)
    assert own | set(KubeflowPipelines.model_fields) - steer == set(set_)

    def flat(settings):
        values = {
            field.name: getattr(settings, field.name)
            for field in dataclasses.fields(settings)
            if field.name not in ("login", "remote", "patience")
        }
        for part in ("login", "remote", "patience"):
            values |= {f"{part}.{k}": v for k, v in dataclasses.asdict(getattr(settings, part)).items()}
        return values

    def settings(values):
        credentials = KubeflowCredentials(
            **{"host": "http://here", **{k: v for k, v in values.items() if k in own}}
        )
        rest = {k: v for k, v in values.items() if k not in own}
        return flat(KubeflowPipelines(credentials=credentials, **rest).settings())

    plain = settings({})
    assert plain == flat(ClusterSettings("http://here"))
    changed = {name: settings({name: value}) for name, value in set_.items()}
    places = {name: [key for key in plain if found[key] != plain[key]] for name, found in changed.items()}
    assert all(len(keys) == 1 for keys in places.values()), places
    assert len({keys[0] for keys in places.values()}) == len(set_)
    for name, (key,) in places.items():
        if name not in ("defaults", "workspace"):
            assert changed[name][key] == set_[name]


def test_settings_from_options_that_are_unknown():
    with pytest.raises(TypeError, match="cookies"):
        ClusterSettings.from_options({"host": "http://here", "cookies": "x"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend": "kubeflow"}, "without credentials. .* host"),
        ({"defaults": {"cpus": 1}}, "did you mean 'cpu'"),
        ({"run_timeout": 0}, "greater than 0"),
        ({"workspace": {"size": "1Gi"}}, "the workspace of runs, 'workspace': 'access_mode' is missing"),
    ],
)
def test_what_a_block_refuses(values, message):
    with pytest.raises(ValidationError, match=message):
        KubeflowPipelines(**values)


def test_blocks_for_a_cluster(monkeypatch):
    saved = {}
    for kind in (DvcRemote, DvcRepository, KubeflowCredentials, KubeflowPipelines):
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
    assert names == [
        "dvc-remote/cluster",
        "kubeflow-credentials/cluster",
        "dvc-repository/cluster",
        "kubeflow-pipelines/cluster",
    ]
    settings = saved["KubeflowPipelines"].settings()
    assert (settings.host, settings.image, settings.remote.secret) == (
        "https://kf.example.org/pipeline",
        "registry.example.org/stages:1",
        "lake",
    )
    assert saved["DvcRepository"].remote.as_config()['remote "prefect"']["access_key_id"] == "key"
