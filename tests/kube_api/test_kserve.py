"""The controllers of KServe in the tests' Kubernetes behave as serving.md says of each version."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kube_api import KServeController, KubeApi, Model, install_kserve

GROUP, PLURAL, SPACE = "serving.kserve.io", "inferenceservices", "kubeflow"
VERSIONS = ("0.15", "0.17", "0.20", "0.21")


class Run:
    """A service, and its status at each change."""

    def __init__(self, api: KubeApi, kserve: KServeController) -> None:
        self.api, self.kserve = api, kserve
        self.seen: list[tuple[int, dict]] = []
        for obj in (
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": SPACE}},
            {
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": SPACE},
                "secrets": [{"name": "s"}],
            },
        ):  # fmt: skip
            api.put(obj)

    @property
    def service(self) -> dict:
        found = self.api.get(PLURAL, SPACE, "iris", GROUP)
        assert found is not None
        return found

    @property
    def status(self) -> dict:
        return self.service.get("status") or {}

    def create(self, kind: str = "healthy", **predictor: Any) -> Run:
        self.kserve.models[_uri(1)] = Model(kind)
        model = {"modelFormat": {"name": "sklearn"}, "storageUri": _uri(1), "name": ""}
        self.api.put({
            "apiVersion": f"{GROUP}/v1beta1", "kind": "InferenceService",
            "metadata": {"name": "iris", "namespace": SPACE}, "spec": {"predictor": {"model": model, **predictor}},
        })  # fmt: skip
        return self

    def update(self, number: int, kind: str = "healthy", **predictor: Any) -> Run:
        self.kserve.models[_uri(number)] = Model(kind)
        return self.change(lambda spec: (
            spec["predictor"]["model"].update(storageUri=_uri(number)), spec["predictor"].update(predictor)
        ))  # fmt: skip

    def change(self, edit: Any) -> Run:
        old = self.service
        new = copy.deepcopy(old)
        edit(new["spec"])
        self.api.store.update(self.api.resource_of(old), old, new, ("test", "Update"))
        return self

    def until(self, second: int) -> list[tuple[int, dict]]:
        """Move the clock to a second; return the statuses on the way."""
        start = len(self.seen)
        while self.kserve.now < second:
            self.kserve.advance(1)
            if self.status and (not self.seen or self.seen[-1][1] != self.status):
                self.seen.append((int(self.kserve.now), copy.deepcopy(self.status)))
        return self.seen[start:]


def _uri(number: int) -> str:
    return f"s3://b/iris/{number}/"


def condition(status: dict, kind: str = "Ready") -> tuple[str, str]:
    found = next((c for c in status["conditions"] if c["type"] == kind), {})
    return found.get("status", ""), found.get("reason", "")


def model(status: dict) -> tuple[str, str, str]:
    states = status["modelStatus"]["states"]
    return (status["modelStatus"]["transitionStatus"], states["activeModelState"], states["targetModelState"])


def distinct(values: list) -> list:
    return [each for index, each in enumerate(values) if not index or values[index - 1] != each]


@pytest.fixture
def start(request):
    with KubeApi() as api:
        yield lambda version="0.20", **options: Run(api, install_kserve(api, version, **options))


@pytest.mark.parametrize("version", VERSIONS)
def test_j4_a_first_start_is_not_ready_before_it_is_loaded(start, version):
    run = start(version).create()
    seen = [status for _, status in run.until(30)]
    assert condition(seen[1], "PredictorReady") == ("False", "MinimumReplicasUnavailable")
    assert condition(seen[0], "Stopped") == ("False", "")  # B10
    first = next(status for status in seen if condition(status)[0] == "True")
    assert model(first)[0] == "InProgress" and first["observedGeneration"] == 1
    assert model(seen[-1]) == ("UpToDate", "Loaded", "Loaded")
    assert run.status["deploymentMode"] == ("RawDeployment" if version == "0.15" else "Standard")
    assert run.status["url"] == "http://iris-kubeflow.example.com"  # B16


@pytest.mark.parametrize(
    ("version", "states"),
    [
        ("0.15", ["True"]),
        ("0.17", ["True", "Unknown", "True"]),
        ("0.20", ["True"]),
        ("0.21", ["True"]),
    ],
)
def test_j5_an_update_by_version(start, version, states):
    run = start(version).create()
    run.until(30)
    run.update(2)
    seen = [status for _, status in run.until(70)]
    assert distinct([condition(status)[0] for status in seen]) == states
    # B8: the generation of the Deployment; first with the child's old one.
    assert distinct([status["observedGeneration"] for status in seen]) == [1, 2]
    assert run.status["modelStatus"]["transitionStatus"] == "UpToDate"


@pytest.mark.parametrize("version", ["0.17", "0.20"])
def test_j6_a_failed_load_flaps_and_is_never_cleared(start, version):
    run = start(version).create("missing")
    seen = run.until(650)
    blocked = [model(status)[0] for _, status in seen]
    assert distinct(blocked)[:4] == ["InProgress", "BlockedByFailedLoad", "InProgress", "BlockedByFailedLoad"]
    info = run.status["modelStatus"]["lastFailureInfo"]
    assert info["reason"] == "ModelLoadFailed" and "No model found in models/iris/1/" in info["message"]
    assert condition(run.status) == ("False", "ProgressDeadlineExceeded")
    assert min(second for second, status in seen if condition(status)[1] == "ProgressDeadlineExceeded") >= 600
    run.update(2).until(720)
    assert run.status["modelStatus"]["lastFailureInfo"] == info  # though it is loaded


@pytest.mark.parametrize("kind", ["missing", "crash", "image", "schedule"])
def test_j6_j7_ready_stays_true_while_a_new_version_fails(start, kind):
    run = start("0.20").create()
    run.until(30)
    run.update(2, kind)
    seen = run.until(629)
    assert {condition(status)[0] for _, status in seen} == {"True"}
    shown = {model(status)[0] for _, status in seen[3:]}
    assert ("BlockedByFailedLoad" in shown) == (kind == "missing")  # B13: a crash of the server is not shown
    run.until(640)
    assert condition(run.status) == ("False", "ProgressDeadlineExceeded")


@pytest.mark.parametrize("kind", ["image", "schedule", "config"])
def test_j7_a_pod_that_cannot_start_is_in_progress_for_ever(start, kind):
    run = start("0.20").create(kind)
    seen = run.until(700)
    assert {model(status)[0] for _, status in seen} == {"InProgress"}


def test_a16_a_quota_is_shown_from_016_on(start):
    run = start("0.20").create("quota")
    run.until(10)
    assert condition(run.status) == ("False", "FailedCreate") and run.api.all("pods") == []
    with KubeApi() as api:
        old = Run(api, install_kserve(api, "0.15")).create("quota")
        old.until(10)
        assert condition(old.status) == ("False", "MinimumReplicasUnavailable")


def test_b7_metadata_of_the_service_rolls_its_pods(start):
    run = start().create()
    run.until(30)
    before = {pod["metadata"]["name"] for pod in run.api.all("pods")}
    run.service["metadata"]["annotations"] = {"approved-by": "me"}
    run.until(60)
    assert before.isdisjoint(pod["metadata"]["name"] for pod in run.api.all("pods"))


def test_b15_an_invalid_specification_leaves_the_conditions(start):
    run = start().create()
    run.until(30)
    run.change(lambda spec: spec["predictor"]["model"].update(runtime="mine"))
    run.until(35)
    assert condition(run.status)[0] == "True" and model(run.status)[0] == "InvalidSpec"
    assert any(e["reason"] == "InternalError" for e in run.api.all("events"))


def test_a3_onnx_without_v2_finds_no_runtime(start):
    run = start().create()
    run.change(lambda spec: spec["predictor"]["model"].update(modelFormat={"name": "onnx"}))
    run.until(5)
    assert run.status["modelStatus"]["lastFailureInfo"]["reason"] == "NoSupportingRuntime"
    run.change(lambda spec: spec["predictor"]["model"].update(protocolVersion="v2"))
    run.until(40)
    assert run.status["clusterServingRuntimeName"] == "kserve-tritonserver"


def test_a11_an_unknown_scheme_has_only_an_event(start):
    run = start()
    run.create()
    run.change(lambda spec: spec["predictor"]["model"].update(storageUri="dvc://b"))
    run.until(20)
    assert run.status == {} and "StorageURI not supported" in run.api.all("events")[0]["message"]


def parts(run: Run) -> list[tuple[str, int]]:
    traffic = run.status["components"]["predictor"]["traffic"]
    return [(each["revisionName"][-1], each["percent"]) for each in traffic]


def test_j8_a_canary_of_knative(start):
    run = start("0.20", mode="Knative").create(canaryTrafficPercent=10)
    run.until(30)
    assert {revision for revision, _ in parts(run)} == {"1"}  # C1: the first has all
    run.update(2)
    seen = run.until(60)
    states = distinct([condition(status)[0] for _, status in seen])
    assert states == ["Unknown", "True"]  # B12
    assert parts(run) == [("2", 10), ("1", 90)]
    run.change(lambda spec: spec["predictor"].pop("canaryTrafficPercent"))
    run.until(65)
    assert parts(run) == [("2", 100)]
    assert run.status["components"]["predictor"]["previousRolledoutRevision"].endswith("1")
    run.change(lambda spec: spec["predictor"].update(canaryTrafficPercent=0))
    run.until(70)
    assert parts(run) == [("2", 0), ("1", 100)]  # C5: once


def test_j9_a_failing_canary_of_knative(start):
    run = start("0.20", mode="Knative").create()
    run.until(30)
    run.update(2, "crash", canaryTrafficPercent=10)
    run.until(70)
    assert parts(run) == [("1", 10), ("1", 90)] and condition(run.status) == ("False", "RevisionFailed")
    run.change(lambda spec: spec["predictor"].update(canaryTrafficPercent=0))
    run.until(80)
    assert condition(run.status)[0] == "False"  # though the old one has all traffic
    run.change(lambda spec: spec["predictor"].pop("canaryTrafficPercent"))
    run.update(1).until(110)
    assert parts(run) == [("3", 100)] and condition(run.status)[0] == "True"


@pytest.mark.parametrize("version", ["0.20", "0.21"])
def test_j10_a_canary_of_standard(start, version):
    run = start(version).create()
    run.until(30)
    entry = {"name": "v2", "model": {"modelFormat": {"name": "sklearn"}, "storageUri": _uri(2), "name": ""}}
    run.change(lambda spec: spec.update(canary=[{"trafficPercent": 20, "predictor": entry}]))
    run.until(33)
    assert run.status["canaryStatuses"] == [
        {"name": "v2", "ready": False, "trafficPercent": 20, "modelStatus": {"transitionStatus": ""}}
    ]
    assert condition(run.status, "CanaryPredictorReady") == ("False", "CanariesNotReady")
    run.until(60)
    assert condition(run.status, "CanaryPredictorReady") == ("True", "AllCanariesReady")
    route = run.api.get("httproutes", SPACE, "iris", "gateway.networking.k8s.io")
    weights = {b["name"]: b["weight"] for b in route["spec"]["rules"][0]["backendRefs"]}
    split = {"iris-predictor": 80, "iris-v2-predictor": 20}
    assert weights == (split if version == "0.21" else {"iris-predictor": 100})  # C9


def test_c12_a_swap_of_names_deletes_what_serves(start):
    run = start("0.21").create()
    run.until(30)
    run.change(lambda spec: spec["predictor"].update(name="other"))
    run.until(32)
    assert [d["metadata"]["name"] for d in run.api.all("deployments", "apps")] == ["iris-other-predictor"]
    assert not any(
        c == {"type": "Ready", "status": "True"}
        for pod in run.api.all("pods")
        for c in (pod.get("status") or {}).get("conditions", ())
    )


def test_old_crds_lack_the_later_fields():
    for version, canary, uris in (("0.15", False, False), ("0.17", False, True), ("0.20", True, True)):
        with KubeApi() as api:
            install_kserve(api, version)
            spec = api.store.resources[GROUP, PLURAL].schema.root["properties"]["spec"]["properties"]
            assert ("canary" in spec, "storageUris" in spec["predictor"]["properties"]) == (canary, uris)
