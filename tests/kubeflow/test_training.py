"""A distributed training on a cluster: a stage's pod starts the nodes, watches them and ends them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest
from kube_api import KubeApi, Rule, TrainerController, access, install_trainer
from kubernetes import client

from dvkf_prefect.errors import ConfigError, RunnerError, StageCancelledError
from dvkf_prefect.kube.objects import KubeObjects
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.compile.pod_settings import parse_defaults, parse_meta
from dvkf_prefect.kubeflow.doctor.kubernetes import Cluster as Asked
from dvkf_prefect.kubeflow.doctor.training import check_training
from dvkf_prefect.kubeflow.trainer.launch import Training
from dvkf_prefect.kubeflow.trainer.manifests import MARK, job_name
from dvkf_prefect.kubeflow.trainer.plan import TrainingPlan, plan_training
from dvkf_prefect.kubeflow.trainer.verdict import Verdict, judge
from dvkf_prefect.pipeline.step.spec import StepMeta

GROUP = "trainer.kubeflow.org"
FULL = {
    "image": "registry.example.org/train:1",
    "cpu": 1,
    "env": {"EPOCHS": 3},
    "secrets": [{"name": "lake", "env": {"key": "DVKF_KEY_NAME"}}, {"name": "tls", "mount": "/etc/tls"}],
    "config_maps": [{"name": "conf", "env": {"a": "A"}}],
    "volumes": [{"claim": "scratch", "mount": "/scratch", "sub_path": "me"}],
    "ephemeral_volumes": [{"name": "tmp", "mount": "/big", "size": "10Gi"}],
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "labels": {"team": "vision"},
    "annotations": {"example.org/a": "b"},
    "service_account": "trainer",
    "timeout": "1h",
    "trainer": {
        "nodes": 2,
        "processes": 4,
        "resources": {"cpu": {"request": 2, "limit": 4}, "memory": "8Gi", "gpu": 1, "shared_memory": "1Gi"},
    },
}


def plan_of(*, runtime: str = "", **changes) -> TrainingPlan:
    values = {**FULL, **changes, "trainer": {**FULL["trainer"], **({"runtime": runtime} if runtime else {})}}
    values["secrets"] = [{"name": "lake", "env": {"key": "LAKE_KEY"}}, {"name": "tls", "mount": "/etc/tls"}]
    placement = parse_meta(StepMeta({"kubeflow": values}), "train", [], lambda f: b"")
    plan = plan_training("train", placement, image="", namespace="kubeflow", start=300, schedule=1800)
    assert plan is not None
    # As it travels in the pipeline.
    return TrainingPlan.from_values(json.loads(json.dumps(plan.to_values())))


@pytest.fixture
def version() -> str:
    return "2.3"


@pytest.fixture
def api(version):
    with KubeApi() as api:
        install_trainer(api, version)
        yield api


@pytest.fixture
def owner(api, monkeypatch) -> dict:
    """The pod of the stage."""
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stage-pod", "namespace": "kubeflow"},
        "spec": {"containers": [{"name": "main", "image": "x"}]},
    }  # fmt: skip
    made = api.put(pod)
    monkeypatch.setenv("KFP_POD_NAME", "stage-pod")
    monkeypatch.setenv("KFP_POD_UID", made["metadata"]["uid"])
    return made


class Cluster:
    """The cluster's side: a script whose next step runs at each look, in simulated time."""

    def __init__(self, api: KubeApi) -> None:
        self.api = api
        self.now = 0.0
        self.steps: Iterator[object] = iter(())
        self.trainer: TrainerController | None = None

    def kube(self, user: str = "admin") -> KubeObjects:
        settings = client.Configuration(host=self.api.url)
        settings.retries = False
        settings.api_key["authorization"] = f"Bearer {self.api.token(user)}"
        return KubeObjects(client.ApiClient(settings))

    def pause(self, seconds: float) -> None:
        self.now += seconds
        next(self.steps, None)
        assert self.now < 100_000, "the training is not given up"

    def training(self, plan: TrainingPlan, *, user: str = "admin", attempt: int = 0) -> Training:
        name = job_name("train", "key", attempt)
        return Training(
            self.kube(user), plan, name, f"key/train/{attempt}", pause=self.pause, clock=lambda: self.now
        )

    @property
    def job(self) -> dict | None:
        return next(iter(self.api.all("trainjobs", GROUP)), None)

    def started(self) -> TrainerController:
        if self.trainer is None:
            assert self.job is not None
            self.trainer = TrainerController(self.api, self.job)
            self.trainer.start()
        return self.trainer

    def set_pod(self, rank: int, **status) -> None:
        pod = next(p for p in self.api.all("pods") if f"-node-0-{rank}-" in p["metadata"]["name"])
        self.api.set_status("", "pods", "kubeflow", pod["metadata"]["name"], status)


@pytest.fixture
def cluster(api) -> Cluster:
    return Cluster(api)


def healthy(cluster: Cluster) -> Iterator[None]:
    """serving.md J13: no status, one active, ready, complete."""
    yield
    trainer = cluster.started()
    yield
    for rank in range(trainer.nodes):
        cluster.set_pod(rank, phase="Running")
    trainer.report(active=1, ready=1)
    yield
    trainer.complete()


VERSIONS = ["2.0", "2.1", "2.2", "2.3"]


# -- a training that succeeds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stage_has_a_runtime_of_its_own_that_repeats_nothing(api, owner, cluster):
    cluster.steps = healthy(cluster)
    assert cluster.training(plan_of()).run({"DVKF_NODE": "{}"}, lambda: False) == Verdict("succeeded")
    assert cluster.job is not None and cluster.trainer is not None
    name = cluster.job["metadata"]["name"]
    assert name == job_name("train", "key", 0) and len(name) <= 45
    assert cluster.job["spec"]["runtimeRef"] == {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": name}
    assert cluster.trainer.backoff_limit == 0
    replicated = cluster.trainer.replicated["template"]["spec"]
    assert replicated["activeDeadlineSeconds"] == 3600
    assert cluster.trainer.runtime["template"]["spec"]["ttlSecondsAfterFinished"] > 0
    pods = [p for p in api.all("pods") if p["metadata"]["name"] != "stage-pod"]
    assert len(pods) == 2 and all(p["spec"]["restartPolicy"] == "Never" for p in pods)
    (container,) = pods[1]["spec"]["containers"]
    assert (
        container["image"] == FULL["image"] and container["command"][-1] == "dvkf_prefect.kubeflow.pod.node"
    )
    environment = {e["name"]: e for e in container["env"]}
    assert environment["PET_NPROC_PER_NODE"]["value"] == "4" and environment["PET_NODE_RANK"]["value"] == "1"
    assert environment["LAKE_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "lake", "key": "key"}}
    assert environment["EPOCHS"]["value"] == "3" and environment["DVKF_NODE"]["value"] == "{}"
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "1"}
    }  # fmt: skip
    assert [m["mountPath"] for m in container["volumeMounts"]] == ["/scratch", "/etc/tls", "/big", "/dev/shm"]
    spec = pods[0]["spec"]
    assert spec["nodeSelector"] == {"pool": "gpu"} and spec["serviceAccountName"] == "trainer"
    assert [v["name"] for v in spec["volumes"]] == ["scratch", "tls", "tmp", "dvkf-shm"]
    assert replicated["template"]["metadata"]["labels"] == {
        "sidecar.istio.io/inject": "false",
        "team": "vision",
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_a_runtime_of_the_cluster_gets_the_overrides_of_its_version(api, owner, cluster, version):
    cluster.steps = healthy(cluster)
    training = cluster.training(plan_of(runtime="torch-distributed"))
    assert training.run({"DVKF_NODE": "{}"}, lambda: False).phase == "succeeded"
    assert cluster.job is not None and api.all("trainingruntimes", GROUP) == []
    spec = cluster.job["spec"]
    assert spec["runtimeRef"]["kind"] == "ClusterTrainingRuntime" and spec["trainer"]["numProcPerNode"] == 4
    field = {"2.0": "podSpecOverrides", "2.1": "podTemplateOverrides"}.get(version, "runtimePatches")
    assert field in spec
    assert spec.get("activeDeadlineSeconds") == (3600 if version >= "2.2" else None)
    (pod, _) = [p for p in api.all("pods") if p["metadata"]["name"] != "stage-pod"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == FULL["image"] and len(container["volumeMounts"]) == 4
    environment = {e["name"]: e for e in container["env"]}
    assert environment["LAKE_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "lake"
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"} and len(pod["spec"]["volumes"]) == 4
    assert pod["spec"]["serviceAccountName"] == "trainer" and pod["spec"]["tolerations"][0]["key"] == "gpu"


@pytest.mark.parametrize("version", ["2.0"])
def test_an_old_version_names_what_it_cannot_override(api, owner, cluster):
    plan = plan_of(runtime="torch-distributed", image_pull_secrets=["regcred"])
    with pytest.raises(
        ConfigError, match=r"Trainer 2\.0 cannot set 'image_pull_secrets' on the runtime 'torch-dist"
    ):
        cluster.training(plan).run({}, lambda: False)
    assert cluster.job is None


def test_what_no_version_overrides_is_refused_before_the_run():
    with pytest.raises(ConfigError, match="'image_pull_policy' cannot be set on a runtime of the cluster"):
        plan_of(runtime="torch-distributed", image_pull_policy="Always")


def test_packages_are_installed_on_each_node():
    plan = plan_of(packages=["dvkf-prefect==0.4.0", "a b"])
    command = plan.container["command"]
    assert "python3 -m pip install --quiet dvkf-prefect==0.4.0 'a b' && exec python3 -m" in command[-1]
    # The whole command really runs, in an environment of its own.
    fake = [
        *command[:-1],
        command[-1].partition(" && exec ")[0].replace("-m pip install", "-c 'import sys' "),
    ]
    assert (
        subprocess.run(fake, env={"PATH": os.environ["PATH"], "HOME": "/nowhere"}, timeout=60).returncode == 0
    )


def test_a_stage_without_trainer_has_no_plan():
    assert plan_training("a", parse_defaults({"cpu": 1}), image="x", namespace="n") is None


# -- states ------------------------------------------------------------------------------------------------------------


def waiting(reason: str) -> dict:
    state = {"waiting": {"reason": reason, "message": "Back-off pulling image"}}
    each = {"name": "node", "image": "x:1", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"phase": "Pending", "containerStatuses": [each]}


def ended(reason: str, code: int) -> dict:
    state = {"terminated": {"reason": reason, "exitCode": code}}
    each = {"name": "node", "image": "x:1", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"phase": "Failed", "containerStatuses": [each]}


def unschedulable() -> dict:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    return {"phase": "Pending", "conditions": [condition]}


def failing(cluster: Cluster) -> Iterator[None]:
    trainer = cluster.started()
    yield
    cluster.set_pod(1, **ended("OOMKilled", 137))
    trainer.fail()


def stuck(status: dict) -> Callable[[Cluster], Iterator[None]]:
    def steps(cluster: Cluster) -> Iterator[None]:
        cluster.started()
        cluster.set_pod(0, **status)
        yield

    return steps


def quota(cluster: Cluster) -> Iterator[None]:
    cluster.api.event(cluster.job, "TrainJobResourcesCreationFailed", "exceeded quota: gpus", kind="Warning")
    yield


def late(cluster: Cluster) -> Iterator[None]:
    """Suspended by a queue, then short of an image for a while, then well."""
    trainer = cluster.started()
    trainer.report(("Suspended", "Suspended", "TrainJob is suspended"), suspended=1)
    yield
    cluster.set_pod(0, **waiting("ImagePullBackOff"))
    trainer.report(active=1)
    yield
    cluster.set_pod(0, phase="Running")
    yield
    trainer.complete()


def deadline(cluster: Cluster) -> Iterator[None]:
    cluster.started().report(("Failed", "DeadlineExceeded", "TrainJob exceeded its deadline"))
    yield


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("steps", "phase", "said", "seconds"),
    [
        (healthy, "succeeded", "", (0, 60)),
        (late, "succeeded", "", (0, 60)),
        (
            failing,
            "failed",
            "FailedJobs: jobset failed .*; node .*-node-0-1-.*: OOMKilled, exit code 137",
            (0, 60),
        ),
        (deadline, "failed", "DeadlineExceeded", (0, 60)),
        (stuck(waiting("ImagePullBackOff")), "failed", "ImagePullBackOff: Back-off .*image x:1", (300, 330)),
        (stuck(unschedulable()), "failed", "Unschedulable: 0/3 nodes", (1800, 1830)),
        (quota, "failed", "TrainJobResourcesCreationFailed: exceeded quota: gpus", (120, 150)),
    ],
)
def test_each_sequence_of_states_has_its_verdict(api, owner, cluster, steps, phase, said, seconds):
    cluster.steps = steps(cluster)
    verdict = cluster.training(plan_of()).run({}, lambda: False)
    assert verdict.phase == phase and re.search(said, verdict.message)
    assert seconds[0] <= cluster.now <= seconds[1]
    # A training that failed is not left behind.
    assert (cluster.job is None) == (phase == "failed")


def test_a_node_that_failed_ends_the_others_at_once(api, owner, cluster):
    cluster.steps = stuck({"phase": "Running"})(cluster)
    verdict = cluster.training(plan_of()).run({}, lambda: cluster.now > 5)
    assert verdict == Verdict("failed", "a node failed") and cluster.now < 20
    assert cluster.job is None and len(api.all("pods")) == 1


def test_the_state_of_running_nodes_is_said():
    pods = [
        {"metadata": {"name": n}, "status": {"phase": p}} for n, p in (("a", "Running"), ("b", "Pending"))
    ]
    assert judge({}, pods, [], plan=plan_of(), waited=0).message == "1 running, 1 pending"
    assert judge({}, [], [], plan=plan_of(), waited=0).message == "waiting for its nodes"


# -- one training a name -----------------------------------------------------------------------------------------------


def test_a_restarted_pod_follows_the_training_of_the_one_before(api, owner, cluster, monkeypatch):
    cluster.steps = iter(())
    earlier = cluster.training(plan_of())
    earlier._start({})
    # The pod is lost, another one starts: the job and its runtime must not go with the first.
    second = api.put({**owner, "metadata": {"name": "second", "namespace": "kubeflow"}})
    monkeypatch.setenv("KFP_POD_NAME", "second")
    monkeypatch.setenv("KFP_POD_UID", second["metadata"]["uid"])

    def steps() -> Iterator[None]:
        client.CoreV1Api(cluster.kube()._client).delete_namespaced_pod("stage-pod", "kubeflow")
        yield
        cluster.started().complete()

    cluster.steps = steps()
    assert cluster.training(plan_of()).run({}, lambda: False).phase == "succeeded"
    assert len(api.all("trainjobs", GROUP)) == len(api.all("trainingruntimes", GROUP)) == 1
    client.CoreV1Api(cluster.kube()._client).delete_namespaced_pod("second", "kubeflow")
    assert cluster.job is None and api.all("trainingruntimes", GROUP) == []


def test_a_name_of_another_is_left_alone(api, owner, cluster):
    training = cluster.training(plan_of())
    name = job_name("train", "key", 0)
    body = {
        "metadata": {"name": name, "annotations": {MARK: "other"}},
        "spec": {"runtimeRef": {"name": "torch-distributed"}},
    }
    cluster.kube().create(f"/apis/{GROUP}/v1alpha1/namespaces/kubeflow/trainjobs", body)
    with pytest.raises(
        RunnerError, match=f"TrainJob '{name}' in Kubernetes belongs to something else. Delete it"
    ):
        training.run({}, lambda: False)
    assert cluster.job is not None


def test_each_attempt_is_a_training_of_its_own():
    assert len({job_name("train", "key", n) for n in range(3)}) == 3
    assert len(job_name("x" * 47, "k", 0)) <= 45 and job_name("a" * 29 + "-b", "k", 0)[29:30] == "-"


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StageCancelledError("stopped"), KeyboardInterrupt()])
def test_a_stopped_stage_deletes_its_nodes(api, owner, cluster, error):
    def steps() -> Iterator[None]:
        cluster.started()
        yield
        raise error

    cluster.steps = steps()
    with pytest.raises(type(error)):
        cluster.training(plan_of()).run({}, lambda: False)
    assert cluster.job is None and api.all("trainingruntimes", GROUP) == [] and len(api.all("pods")) == 1


def test_a_deleted_training_is_a_cancelled_stage(api, owner, cluster):
    def steps() -> Iterator[None]:
        cluster.started()
        yield
        cluster.kube().delete(
            f"/apis/{GROUP}/v1alpha1/namespaces/kubeflow/trainjobs/{job_name('train', 'key', 0)}"
        )
        yield

    cluster.steps = steps()
    with pytest.raises(StageCancelledError, match="was deleted before its end"):
        cluster.training(plan_of()).run({}, lambda: False)


# -- rights and refusals -----------------------------------------------------------------------------------------------

NEEDED = (
    Rule(GROUP, ("trainjobs", "trainingruntimes"), ("create", "get", "patch", "delete")),
    Rule("", ("pods", "events"), ("list",)),
)


def test_the_documented_rights_are_enough(api, owner, cluster):
    api.rules["runner"] = NEEDED
    cluster.steps = failing(cluster)
    verdict = cluster.training(plan_of(), user="runner").run({}, lambda: False)
    assert "OOMKilled" in verdict.message and cluster.job is None


@pytest.mark.parametrize(
    ("rules", "runtime", "said"),
    [
        (
            access.PIPELINE_RUNNER,
            "",
            'cannot create resource "trainingruntimes".*Give the service account',
        ),
        (access.TRAINER_EDIT, "", 'cannot create resource "trainingruntimes".*Give the service account'),
        (
            access.PIPELINE_RUNNER,
            "torch-distributed",
            'cannot create resource "trainjobs".*Give the service account',
        ),
    ],
)
def test_a_missing_right_is_named(api, owner, cluster, rules, runtime, said):
    api.rules["runner"] = rules
    with pytest.raises(RunnerError, match=said):
        cluster.training(plan_of(runtime=runtime), user="runner").run({}, lambda: False)


def test_kubeflows_own_role_is_enough_for_a_runtime_of_the_cluster(api, owner, cluster):
    api.rules["editor"] = access.TRAINER_EDIT
    cluster.steps = healthy(cluster)
    assert (
        cluster.training(plan_of(runtime="torch-distributed"), user="editor").run({}, lambda: False).phase
        == "succeeded"
    )


def test_refusals_of_webhooks_are_no_rights(api, owner, cluster):
    with pytest.raises(RunnerError, match="must be created before the TrainJob is created") as caught:
        cluster.training(plan_of(runtime="none")).run({}, lambda: False)
    assert "service account" not in str(caught.value)


def test_without_trainer_it_is_said(owner, cluster):
    with KubeApi() as bare:
        for runtime in ("", "torch-distributed"):
            with pytest.raises(RunnerError, match="Kubeflow Trainer is not installed on this cluster"):
                Cluster(bare).training(plan_of(runtime=runtime)).run({}, lambda: False)


def test_outages_pass(api, owner, cluster):
    """A webhook that is down, and an API server that does not answer, are no failure of the stage."""

    def steps() -> Iterator[None]:
        yield
        api.webhooks[GROUP, "trainjobs"].down = False
        yield
        yield from healthy(cluster)

    api.webhooks[GROUP, "trainjobs"].down = True
    cluster.steps = steps()
    assert cluster.training(plan_of()).run({}, lambda: False).phase == "succeeded"


def test_an_outage_without_end_is_a_failure(api, owner, cluster):
    api.webhooks[GROUP, "trainingruntimes"].down = True
    with pytest.raises(RunnerError, match="failed calling webhook"):
        cluster.training(plan_of()).run({}, lambda: False)
    assert 600 <= cluster.now <= 700


# -- the doctor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "installed", "runtime", "said"),
    [
        (NEEDED, True, "", "ok Kubeflow Trainer is installed, and 'runner' may start nodes"),
        (NEEDED, False, "", "fail Kubeflow Trainer is not installed on the cluster"),
        (
            access.PIPELINE_RUNNER,
            True,
            "",
            "fail 'runner' lacks: create trainjobs, get trainjobs, patch",
        ),
        (
            access.TRAINER_EDIT,
            True,
            "",
            "lacks: create trainingruntimes, patch trainingruntimes, delete tr.*s$",
        ),
        (access.TRAINER_EDIT, True, "torch-distributed", "ok Kubeflow Trainer is installed"),
    ],
)
def test_the_doctor_names_what_a_training_lacks(tmp_path, rules, installed, runtime, said):
    with KubeApi() as api:
        if installed:
            install_trainer(api)
        api.rules["system:serviceaccount:kubeflow:runner"] = rules
        settings = ClusterSettings("http://none", kube_config=api.kubeconfig(tmp_path / "kubeconfig"))
        trainer = {"nodes": 2, **({"runtime": runtime} if runtime else {})}
        stage = parse_meta(StepMeta({"kubeflow": {"trainer": trainer}}), "train", [], lambda f: b"")
        check = check_training(Asked(settings), {"train": stage, "other": parse_defaults({})}, "runner")
        assert check is not None and re.search(said, f"{check.state} {check.found}")
        assert check_training(Asked(settings), {"other": parse_defaults({})}, "runner") is None
