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
from dvkf_prefect.pipeline.step.spec import StepMeta, StepOutput, StepSpec

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
    "node_affinity": [
        {"labels": [{"key": "gpu.memory", "operator": "Gt", "values": [39]}]},
        {"node": "node-1.example.org", "weight": 5},
    ],
    "tolerations": [
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute", "seconds": 60}
    ],
    "env": {"EPOCHS": 3, "DEBUG": True},
    "pod_fields": {"NODE": "spec.nodeName", "TEAM": "metadata.labels['team']"},
    "secrets": [
        {"name": "hub", "env": {"token": "HF_TOKEN"}},
        {"name": "tls", "mount": "/etc/tls", "optional": True},
    ],
    "config_maps": [{"name": "conf", "env": {"a": "A"}}, {"name": "conf", "mount": "/etc/conf"}],
    "volumes": [{"claim": "scratch", "mount": "/scratch", "sub_path": "me"}],
    "ephemeral_volumes": [
        {
            "name": "work",
            "mount": "/work",
            "size": "1.5Ti",
            "storage_class": "fast",
            "labels": {"a": "b"},
            "access_modes": ["ReadWriteOnce"],
            "annotations": {"c": 1},
        }
    ],
    "security_context": {"user": 1000, "group": 100, "non_root": True},
    "image_pull_secrets": ["regcred"],
    "image_pull_policy": "Always",
    "service_account": "trainer",
    "labels": {"team": "vision"},
    "annotations": {"example.org/why": "because it is so"},
    "models": ["m"],
}


def test_all_of_it_gets_to_kfp():
    placement = parse_defaults(FULL)
    plan = PodPlan(lambda task: "{}", {"a": placement}, {}, {"dvkf-run": "x"}, lambda task, text: "")
    step = StepSpec("a", ("true",), "", outs=(StepOutput("m"),), models=("m",))
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
    # The pod runs all attempts itself.
    assert int(pod["activeDeadlineSeconds"]) == 3 * (6 * 3600 + 60) + 30 + 60
    assert pod["nodeSelector"]["labels"] == {"topology.kubernetes.io/zone": "a"}
    assert pod["tolerations"][0]["tolerationSeconds"] == "60"
    assert pod["podMetadata"]["labels"] == {"team": "vision", "dvkf-run": "x", "dvkf-task": "a"}
    assert pod["podMetadata"]["annotations"] == {"example.org/why": "because it is so"}
    assert pod["imagePullPolicy"] == "Always"
    assert pod["nodeAffinity"] == [
        {"matchExpressions": [{"key": "gpu.memory", "operator": "Gt", "values": ["39"]}]},
        {
            "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1.example.org"]}],
            "weight": 5,
        },
    ]
    assert pod["fieldPathAsEnv"] == [
        {"name": "NODE", "fieldPath": "spec.nodeName"},
        {"name": "TEAM", "fieldPath": "metadata.labels['team']"},
    ]
    assert pod["securityContext"] == {"runAsUser": "1000", "runAsGroup": "100", "runAsNonRoot": True}
    assert pod["genericEphemeralVolume"] == [
        {
            "volumeName": "work", "mountPath": "/work", "size": "1.5Ti", "storageClassName": "fast",
            "accessModes": ["ReadWriteOnce"], "metadata": {"labels": {"a": "b"}, "annotations": {"c": "1"}},
        }
    ]  # fmt: skip
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
    plan = PodPlan(lambda task: "{}", {"a": placement}, {}, {}, lambda task, text: "")
    spec = compile_for_cluster([StepSpec("a", ("true",), "")], plan, name="demo", image="other")
    policy = spec.get("pipeline_spec", spec)["root"]["dag"]["tasks"]["a"]["retryPolicy"]
    assert least <= int(policy["backoffMaxDuration"].rstrip("s")) <= 3650 * 86400


@pytest.mark.parametrize("factor", [1.5, 0, 0.5, -2, True, "2", float("nan"), float("inf")])
def test_a_factor_that_argo_cannot_read_is_refused(factor):
    with pytest.raises(ConfigError, match="factor': expected a whole number, at least 1"):
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


def test_quantities_that_kfp_and_kubernetes_take_are_accepted():
    values = {"cpu": {"request": "0.5", "limit": 1.5}, "memory": {"request": "512Ki", "limit": 2**30}}
    placement = parse_defaults({**values, "shared_memory": "1.5Gi"})
    assert placement.cpu == Range("0.5", "1.5") and placement.memory == Range("512Ki", "1073741824")
    plan = PodPlan(lambda task: "{}", {"a": placement}, {}, {}, lambda task, text: "")
    assert compile_for_cluster([StepSpec("a", ("true",), "")], plan, name="demo", image="other")


def test_variables_of_one_secret_may_be_named_twice_and_beside_a_name_with_dots():
    twice = [{"name": "a.b", "env": {"k": "K"}}, {"name": "a.b", "env": {"l": "L"}}]
    assert len(parse_defaults({"secrets": twice}).secrets) == 2


def test_volumes_of_a_stage_may_not_clash_with_the_defaults():
    meta = StepMeta({"kubeflow": {"secrets": [{"name": "data", "mount": "/secret"}]}})
    defaults = parse_defaults({"volumes": [{"claim": "data", "mount": "/data"}]})
    with pytest.raises(
        ParseError, match=r"stage 'a', key 'meta\.kubeflow\.secrets\.0': 'data' is mounted twice"
    ):
        parse_meta(meta, "a", [], lambda file: b"", defaults)
    # What the stage sets takes the place of the defaults.
    meta = StepMeta({"kubeflow": {"volumes": [{"claim": "data", "mount": "/other"}]}})
    assert [v.mount for v in parse_meta(meta, "a", [], unread, defaults).volumes] == ["/other"]
    assert parse_meta(StepMeta(), "a", [], unread, defaults) == defaults


def test_a_model_that_is_no_output_is_refused():
    meta = StepMeta({"kubeflow": {"models": ["m", "n"]}})
    with pytest.raises(ParseError, match=r"key 'meta\.kubeflow\.models\.1': 'n' is not one of its outputs"):
        parse_meta(meta, "a", ["m"], lambda file: b"")
    assert parse_meta(meta, "a", ["m", "n"], unread).models == ("m", "n")


def unread(file: str) -> bytes:
    raise AssertionError(f"{file} is read, and nothing is wrong")


def test_other_tools_meta_is_left_alone():
    for meta in (None, "text", {"owner": "me"}, {"kubeflow": None}):
        assert parse_meta(StepMeta(meta), "a", [], unread) == Placement()


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
        ({"env": {"DVKF_X": 1}}, "env.DVKF_X", "reserved"),
        ({"secrets": [{"name": "a"}]}, "secrets.0", "mount"),
        ({"secrets": [{"name": "A B", "env": {}}]}, "secrets.0.name", "Kubernetes object"),
        ({"secrets": {"name": "a"}}, "secrets", "list"),
        ({"volumes": [{"claim": "a", "mount": "../x"}]}, "volumes.0.mount", "absolute path"),
        ({"tolerations": [{"effect": "NoSchedule"}]}, "tolerations.0", "'key' is missing"),
        ({"tolerations": [{"key": "a", "effect": "Never"}]}, "tolerations.0.effect", "NoSchedule"),
        ({"labels": {"a": "x" * 64}}, "labels.a", "63"),
        ({"image": "{{inputs}}"}, "image", "string"),
        ({"image_pull_policy": "Sometimes"}, "image_pull_policy", "IfNotPresent"),
        ([], "kubeflow", "mapping"),
        ({"memory": "1.5Gi"}, "memory", "without a fraction"),
        ({"memory": "500m"}, "memory", "quantity of bytes"),
        ({"memory": {"limit": "4K"}}, "memory.limit", "quantity of bytes"),
        ({"shared_memory": "4K"}, "shared_memory", "quantity of bytes"),
        ({"cpu": "2Gi"}, "cpu", "quantity of cores"),
        ({"cpu": {"request": "1k"}}, "cpu.request", "quantity of cores"),
        (
            {"tolerations": [{"key": "a", "effect": "NoSchedule", "seconds": 5}]},
            "tolerations.0.seconds",
            "NoExecute",
        ),
        ({"tolerations": [{"key": "a", "seconds": 5}]}, "tolerations.0.seconds", "NoExecute"),
        (
            {"volumes": [{"claim": "a", "mount": "/x"}, {"claim": "a", "mount": "/y", "sub_path": "b"}]},
            "volumes.1",
            "'a' is mounted twice",
        ),
        (
            {"secrets": [{"name": "a", "mount": "/x"}, {"name": "a", "mount": "/y"}]},
            "secrets.1",
            "'a' is mounted twice",
        ),
        (
            {"secrets": [{"name": "a", "mount": "/x"}], "config_maps": [{"name": "a", "mount": "/y"}]},
            "config_maps.0",
            "'a' is mounted twice",
        ),
        ({"secrets": [{"name": "a.b", "mount": "/x"}]}, "secrets.0", "'a.b' cannot be mounted"),
        ({"config_maps": [{"name": "a" * 64, "mount": "/x"}]}, "config_maps.0", "at most 63"),
        (
            {"volumes": [{"claim": "a", "mount": "/x"}, {"claim": "b", "mount": "/x/"}]},
            "volumes.1",
            "'/x' is the mount path of another volume",
        ),
        (
            {"shared_memory": "1Gi", "volumes": [{"claim": "a", "mount": "/dev/shm"}]},
            "shared_memory",
            "'/dev/shm' is the mount path",
        ),
        ({"env": {5: "a"}}, "env", "names as keys"),
        ({"secrets": [{"name": "a", "env": {"k": "DVKF_K"}}]}, "secrets.0.env.k", "reserved"),
        ({"retries": {"count": 1, "factor": 1.5}}, "retries.factor", "whole number, at least 1"),
        ({"node_affinity": [{}]}, "node_affinity.0", "labels"),
        ({"node_affinity": [{"node": "a", "weight": 101}]}, "node_affinity.0.weight", "from 1 to 100"),
        ({"node_affinity": [{"labels": [{"key": "a", "operator": "in"}]}]}, "labels.0.operator", "NotIn"),
        (
            {"node_affinity": [{"labels": [{"key": "a", "operator": "In"}]}]},
            "labels.0.values",
            "at least one",
        ),
        (
            {"node_affinity": [{"labels": [{"key": "a", "operator": "Exists", "values": ["b"]}]}]},
            "labels.0.values",
            "no value",
        ),
        (
            {"node_affinity": [{"labels": [{"key": "a", "operator": "Lt", "values": ["1.5"]}]}]},
            "labels.0.values",
            "one whole number",
        ),
        ({"pod_affinity": []}, "pod_affinity", "ignore it. Use `node_affinity`"),
        ({"pod_anti_affinity": []}, "pod_anti_affinity", "ignore it"),
        ({"priority_class": "high"}, "priority_class", "no setting for the priority"),
        ({"init_containers": []}, "init_containers", "Prepare the image"),
        ({"security_context": {}}, "security_context", "expected `user`"),
        ({"security_context": {"user": 0, "non_root": True}}, "security_context.user", "0 is root"),
        ({"security_context": {"user": 2**31}}, "security_context.user", "whole number from 0"),
        ({"security_context": {"privileged": True}}, "security_context.privileged", "unknown setting"),
        ({"pod_fields": {"A": "spec.hostname"}}, "pod_fields.A", "spec.nodeName"),
        ({"pod_fields": {"DVKF_A": "metadata.name"}}, "pod_fields.DVKF_A", "reserved"),
        ({"ephemeral_volumes": [{"name": "a.b", "mount": "/a", "size": 1}]}, "0.name", "without a dot"),
        ({"ephemeral_volumes": [{"name": "a", "mount": "/a", "size": "4K"}]}, "0.size", "quantity"),
        ({"ephemeral_volumes": [{"name": "a", "mount": "/a"}]}, "ephemeral_volumes.0", "'size' is missing"),
        (
            {"ephemeral_volumes": [{"name": "a", "mount": "/a", "size": 1, "access_modes": []}]},
            "access_modes",
            "access mode is missing",
        ),
        (
            {
                "ephemeral_volumes": [
                    {
                        "name": "a",
                        "mount": "/a",
                        "size": 1,
                        "access_modes": ["ReadWriteOncePod", "ReadWriteMany"],
                    }
                ]
            },
            "access_modes",
            "Name it alone",
        ),
        (
            {
                "volumes": [{"claim": "a", "mount": "/a"}],
                "ephemeral_volumes": [{"name": "a", "mount": "/b", "size": 1}],
            },
            "ephemeral_volumes.0",
            "'a' is mounted twice",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_key(values, key, message):
    with pytest.raises(ParseError, match=f"stage 'a', key 'meta.*{key}': .*{message}"):
        parse_meta(StepMeta({"kubeflow": values}), "a", [], lambda file: b"")
    if values:
        with pytest.raises(ConfigError, match=message):
            parse_defaults(values)


def test_the_line_is_told():
    text = b"stages:\n  a:\n    cmd: 'true'\n    meta:\n      kubeflow:\n        secrets:\n          - {name: a}\n"
    meta = {"kubeflow": {"secrets": [{"name": "a"}]}}
    with pytest.raises(ParseError, match=r"dvc\.yaml, line 7: stage 'a', key 'meta\.kubeflow\.secrets\.0'"):
        parse_meta(
            StepMeta(meta, "dvc.yaml", ("stages", "a", "meta")), "a", [], {"dvc.yaml": text}.__getitem__
        )


def test_a_training_is_read():
    values = {"nodes": 2, "processes": 4, "runtime": "torch-distributed", "resources": {"cpu": 4, "gpu": 1}}
    trainer = parse_meta(StepMeta({"kubeflow": {"trainer": values}}), "a", [], lambda f: b"").trainer
    assert trainer is not None and (trainer.nodes, trainer.processes) == (2, 4)
    assert trainer.resources.cpu == Range("4", "4") and trainer.resources.gpu == Gpu(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainer": {"nodes": 0}}, "'meta.kubeflow.trainer.nodes': expected a whole number, at least 1"),
        ({"trainer": {"node": 2}}, "unknown setting; did you mean 'nodes'"),
        ({"trainer": {"resources": {"memory": "1.5Gi"}}}, "trainer.resources.memory': expected"),
        ({"trainer": {}, "gpu": 1}, r"'meta.kubeflow.gpu'.*Move it to `trainer: resources: gpu`"),
        ({"trainer": {}, "shared_memory": "1Gi"}, "Move it to `trainer: resources: shared_memory`"),
    ],
)
def test_wrong_trainings_are_refused(values, message):
    with pytest.raises(ParseError, match=message):
        parse_meta(StepMeta({"kubeflow": values}), "a", [], lambda f: b"")


def test_a_training_is_of_a_stage():
    with pytest.raises(ConfigError, match="'trainer': only a stage has nodes"):
        parse_defaults({"trainer": {"nodes": 2}})
