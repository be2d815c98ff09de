"""``meta: kubeflow:`` of a stage: what it may say, and how KFP is told."""

from __future__ import annotations

import json

import pytest

from dvkf_prefect.errors import ConfigError, ParseError
from dvkf_prefect.kubeflow.compile.compile import PodPlan, compile_for_cluster
from dvkf_prefect.kubeflow.compile.pod_settings import (
    Gpu,
    Placement,
    Range,
    Retry,
    parse_defaults,
    parse_meta,
)
from dvkf_prefect.pipeline.step.spec import StepOutput, StepSpec

FULL = {
    "image": "example.org/a:1",
    "packages": ["dvkf-prefect"],
    "cpu": {"request": "500m", "limit": 2},
    "memory": "4Gi",
    "gpu": {"count": 2, "type": "amd.com/gpu"},
    "shared_memory": "1Gi",
    "timeout": "6h",
    "retries": {"count": 2, "backoff": "30s", "factor": 2, "max": "10m"},
    "node_selector": {"topology.kubernetes.io/zone": "a"},
    "tolerations": [
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute", "seconds": 60}
    ],
    "env": {"EPOCHS": 3, "DEBUG": True},
    "secrets": [
        {"name": "hub", "env": {"token": "HF_TOKEN"}},
        {"name": "tls", "mount": "/etc/tls", "optional": True},
    ],
    "config_maps": [{"name": "conf", "env": {"a": "A"}}, {"name": "conf", "mount": "/etc/conf"}],
    "volumes": [{"claim": "scratch", "mount": "/scratch", "sub_path": "me"}],
    "image_pull_secrets": ["regcred"],
    "image_pull_policy": "Always",
    "service_account": "trainer",
    "labels": {"team": "vision"},
    "annotations": {"example.org/why": "because it is so"},
    "models": ["m"],
}


def test_all_of_it_gets_to_kfp():
    placement = parse_defaults(FULL)
    plan = PodPlan("{}", {"a": placement}, {"a": ("m",)}, {}, {"dvkf-run": "x"}, lambda task, text: "")
    step = StepSpec("a", ("true",), "", outs=(StepOutput("m"),))
    spec = compile_for_cluster([step], plan, name="demo", image="other")
    executor = spec["pipeline_spec"]["deploymentSpec"]["executors"]["exec-a"]["container"]
    assert executor["image"] == "example.org/a:1"
    assert executor["env"] == [{"name": "EPOCHS", "value": "3"}, {"name": "DEBUG", "value": "true"}]
    resources = executor["resources"]
    assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == ("500m", "2")
    assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"] == "4Gi"
    assert resources["accelerator"]["resourceType"] == "amd.com/gpu"
    assert "dvkf-prefect" in json.dumps(executor["command"])
    task = spec["pipeline_spec"]["root"]["dag"]["tasks"]["a"]
    assert task["retryPolicy"] == {
        "maxRetryCount": 2, "backoffDuration": "30s", "backoffFactor": 2.0, "backoffMaxDuration": "600s"
    }  # fmt: skip
    pod = spec["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-a"]
    assert pod["activeDeadlineSeconds"] == str(6 * 3600)
    assert pod["nodeSelector"]["labels"] == {"topology.kubernetes.io/zone": "a"}
    assert pod["tolerations"][0]["tolerationSeconds"] == "60"
    assert pod["podMetadata"]["labels"] == {"team": "vision", "dvkf-run": "x", "dvkf-task": "a"}
    assert pod["podMetadata"]["annotations"] == {"example.org/why": "because it is so"}
    assert pod["imagePullPolicy"] == "Always"
    text = json.dumps(pod)
    for part in ("HF_TOKEN", "/etc/tls", "/etc/conf", "scratch", "/dev/shm", "regcred"):
        assert part in text


@pytest.mark.parametrize(
    ("retries", "timeout", "least"),
    [
        (2, "6h", 3 * 6 * 3600),
        (2, None, 365 * 86400),
        (2, 0, 365 * 86400),
        (9, "20d", 10 * 20 * 86400),
        ({"count": 3, "backoff": "10d", "factor": 3}, "1d", (4 + 10 + 30 + 90) * 86400),
        ({"count": 5, "backoff": "20d"}, "1h", (20 + 40 + 80 + 160 + 320) * 86400),
        ({"count": 900, "backoff": "1h", "factor": 1000}, "1h", 365 * 86400),
    ],
)
def test_the_window_of_retries_holds_every_try(retries, timeout, least):
    placement = parse_defaults({"retries": retries, **({} if timeout is None else {"timeout": timeout})})
    plan = PodPlan("{}", {"a": placement}, {}, {}, {}, lambda task, text: "")
    spec = compile_for_cluster([StepSpec("a", ("true",), "")], plan, name="demo", image="other")
    policy = spec.get("pipeline_spec", spec)["root"]["dag"]["tasks"]["a"]["retryPolicy"]
    assert least <= int(policy["backoffMaxDuration"].rstrip("s")) <= 3650 * 86400


@pytest.mark.parametrize("factor", [1.5, 0, 0.5, -2, True, "2", float("nan"), float("inf")])
def test_a_factor_that_argo_cannot_read_is_refused(factor):
    with pytest.raises(ConfigError, match="factor': expected a whole number from 1 on"):
        parse_defaults({"retries": {"count": 1, "backoff": "1s", "factor": factor}})


@pytest.mark.parametrize("count", ["²", "1" * 5000, -1, 1.5])
def test_a_count_that_is_no_whole_number_is_refused(count):
    with pytest.raises(ConfigError, match="expected a whole number"):
        parse_defaults({"retries": count})


def test_short_forms_and_defaults():
    stage = parse_defaults({"cpu": 4, "gpu": 0, "retries": 1, "env": {"A": "1"}, "timeout": 90})
    assert (stage.cpu, stage.gpu, stage.retries, stage.timeout) == (Range("4", "4"), Gpu(0), Retry(1), 90)
    defaults = parse_defaults({"cpu": 1, "gpu": 1, "memory": "1Gi", "env": {"A": "0", "B": "2"}})
    both = stage.over(defaults)
    assert (both.cpu, both.gpu, both.memory) == (Range("4", "4"), Gpu(0), Range("1Gi", "1Gi"))
    assert both.env == {"A": "1", "B": "2"}
    assert Placement().over(defaults) == defaults


def test_other_tools_meta_is_left_alone():
    for meta in (None, "text", {"owner": "me"}, {"kubeflow": None}):
        assert parse_meta(meta, stage="a", file="dvc.yaml", data=b"", place=()) == Placement()


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"cpus": 1}, "cpus", "did you mean 'cpu'"),
        ({"cpu": "four"}, "cpu", "quantity"),
        ({"cpu": True}, "cpu", "quantity"),
        ({"memory": {"requests": 1}}, "memory.requests", "did you mean 'request'"),
        ({"gpu": -1}, "gpu", "whole number"),
        ({"gpu": {"type": "x"}}, "gpu", "'count' is missing"),
        ({"timeout": "soon"}, "timeout", "duration"),
        ({"env": ["A=1"]}, "env", "mapping"),
        ({"env": {"A-B": 1}}, "env.A-B", "environment variable"),
        ({"env": {"DVKF_X": 1}}, "env.DVKF_X", "ours"),
        ({"secrets": [{"name": "a"}]}, "secrets.0", "mount"),
        ({"secrets": [{"name": "A B", "env": {}}]}, "secrets.0.name", "Kubernetes object"),
        ({"secrets": {"name": "a"}}, "secrets", "list"),
        ({"volumes": [{"claim": "a", "mount": "../x"}]}, "volumes.0.mount", "absolute path"),
        ({"tolerations": [{"effect": "NoSchedule"}]}, "tolerations.0", "'key' is missing"),
        ({"tolerations": [{"key": "a", "effect": "Never"}]}, "tolerations.0.effect", "NoSchedule"),
        ({"labels": {"a": "x" * 64}}, "labels.a", "63"),
        ({"image": "{{inputs}}"}, "image", "text"),
        ({"image_pull_policy": "Sometimes"}, "image_pull_policy", "IfNotPresent"),
        ([], "kubeflow", "mapping"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(values, key, message):
    with pytest.raises(ParseError, match=f"stage 'a', key 'meta.*{key}': .*{message}"):
        parse_meta({"kubeflow": values}, stage="a", file="dvc.yaml", data=b"", place=())
    if values:
        with pytest.raises(ConfigError, match=message):
            parse_defaults(values)


def test_the_line_is_told():
    text = b"stages:\n  a:\n    cmd: 'true'\n    meta:\n      kubeflow:\n        secrets:\n          - {name: a}\n"
    meta = {"kubeflow": {"secrets": [{"name": "a"}]}}
    with pytest.raises(ParseError, match=r"dvc\.yaml, line 7: stage 'a', key 'meta\.kubeflow\.secrets\.0'"):
        parse_meta(meta, stage="a", file="dvc.yaml", data=text, place=("stages", "a", "meta"))
