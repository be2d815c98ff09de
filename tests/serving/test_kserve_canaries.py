"""Canaries on KServe: traffic really flows where it is said to, and each end leaves one version that serves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kserve_world import SETTINGS, uri, world
from kube_api import Model

from dvkf_prefect.errors import PredictionError, ServingError
from dvkf_prefect.serving.kserve.canaries import Canary
from dvkf_prefect.serving.kserve.spec import PREVIOUS

VERSIONS = ("0.15", "0.17", "0.20", "0.21")


def traffic(w) -> list[tuple[str, int]]:
    part = w.service()["status"]["components"]["predictor"]
    return [(each["revisionName"][-1], each["percent"]) for each in part["traffic"]]


def weights(w) -> dict[str, int]:
    route = w.api.get("httproutes", "ml", "iris", "gateway.networking.k8s.io")
    return {b["name"]: b["weight"] for b in route["spec"]["rules"][0]["backendRefs"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_knative_splits_promotes_and_aborts(version):
    """J8."""
    with world(version, mode="Knative") as w:
        w.deploy(1)
        canary = w.deploy_canary(2, 10)
        assert canary == Canary("iris", "v1.0.0", "v2.0.0", 10, "Knative") == w.canaries.get("iris")
        assert traffic(w) == [("2", 10), ("1", 90)]
        w.deploy_canary(2, 40)
        assert traffic(w) == [("2", 40), ("1", 60)]
        assert w.canaries.promote("iris").version == "v2.0.0"
        assert traffic(w) == [("2", 100)] and w.canaries.get("iris") is None
        w.deploy_canary(3, 20)
        w.deploy_canary(4, 20)  # a second one on the same base
        assert w.canaries.abort("iris").version == "v2.0.0"
        assert traffic(w) == [("5", 100)]
        assert PREVIOUS not in w.service()["spec"]["predictor"]["annotations"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_failing_canary_of_knative_is_ended(version):
    """J9: a percentage of 0 would leave the service not ready, so the old specification is applied again."""
    with world(version, mode="Knative") as w:
        w.deploy(1)
        w.kserve.models[uri(2)] = Model("crash")
        at = w.kserve.now
        with pytest.raises(
            ServingError, match=r"ValueError: node array from the pickle .* v1\.0\.0 serves\."
        ):
            w.deploy_canary(2, 10)
        assert w.kserve.now - at == 51
        w.pause(30)
        assert traffic(w) == [("3", 100)] and w.canaries.get("iris") is None
        assert w.services.get("iris").version == "v1.0.0"
        ready = [c for c in w.service()["status"]["conditions"] if c["type"] == "Ready"]
        assert ready[0]["status"] == "True"


def test_standard_021_splits_promotes_and_aborts():
    """J10."""
    with world("0.21") as w:
        w.deploy(1)
        canary = w.deploy_canary(2, 20)
        assert canary == Canary("iris", "v1.0.0", "v2.0.0", 20, "Standard") == w.canaries.get("iris")
        (name,) = set(weights(w)) - {"iris-predictor"}
        assert weights(w) == {"iris-predictor": 80, name: 20}
        pods = {pod["metadata"]["name"] for pod in w.api.all("pods") if name in pod["metadata"]["name"]}
        assert w.canaries.promote("iris").version == "v2.0.0"
        assert weights(w) == {name: 100} and w.canaries.get("iris") is None
        # The pods of the canary are those of the stable version now.
        assert {pod["metadata"]["name"] for pod in w.api.all("pods")} == pods
        w.deploy(3)
        assert weights(w) == {name: 100}  # under the same name: another would delete what serves
        w.deploy_canary(4, 50)
        assert w.canaries.abort("iris").version == "v3.0.0"
        assert weights(w) == {name: 100} and w.canaries.get("iris") is None


def test_a_promotion_keeps_the_number_of_pods():
    with world("0.21") as w:
        w.deploy(1, replace(SETTINGS, min_replicas=3, max_replicas=5))
        w.deploy_canary(2, 20)
        counts: list[int] = []

        def count() -> None:
            pods = w.api.all("pods")
            counts.append(
                sum(
                    any(c == {"type": "Ready", "status": "True"} for c in p["status"]["conditions"])
                    for p in pods
                )
            )

        w.watch.append(count)
        w.canaries.promote("iris")
        assert min(counts) >= 3
        assert w.service()["spec"]["predictor"]["maxReplicas"] == 5


def test_a_failing_canary_of_standard_is_ended():
    with world("0.21") as w:
        w.deploy(1)
        w.kserve.models[uri(2)] = Model("missing")
        with pytest.raises(ServingError, match=r"No model found in models/iris/1/\. v1\.0\.0 serves\."):
            w.deploy_canary(2, 20)
        w.pause(5)
        assert weights(w) == {"iris-predictor": 100} and "canaryStatuses" not in w.service()["status"]


def test_standard_020_starts_a_canary_without_traffic_alone():
    with world("0.20") as w:
        w.deploy(1)
        at = w.kserve.now
        with pytest.raises(ServingError, match=r"its HTTPRoute sends it no traffic \(iris-predictor 100\)"):
            w.deploy_canary(2, 20)
        assert w.kserve.now - at < 90 and w.canaries.get("iris") is None
        assert w.deploy_canary(2, 0).percent == 0
        assert w.canaries.promote("iris").version == "v2.0.0"


@pytest.mark.parametrize(
    ("version", "mode", "gateway", "percent", "said"),
    [
        ("0.17", "Standard", True, 10, "KServe before 0.20 ignores canaries"),
        ("0.15", "Standard", True, 10, "KServe before 0.20 ignores canaries"),
        ("0.21", "Standard", False, 10, "without the Gateway API, so no traffic would reach"),
        ("0.20", "Knative", True, 100, "a canary gets 0 to 99 %"),
    ],
)
def test_canaries_are_refused_before_a_change(version, mode, gateway, percent, said):
    with world(version, mode=mode, gateway=gateway) as w:
        w.deploy(1)
        before = w.service()["metadata"]["generation"]
        with pytest.raises(ServingError, match=said):
            w.deploy_canary(2, percent)
        assert w.service()["metadata"]["generation"] == before


def test_a_first_version_is_no_canary():
    with world(mode="Knative") as w:
        with pytest.raises(ServingError, match="serves nothing yet"):
            w.deploy_canary(1, 10)
        with pytest.raises(ServingError, match="has no canary"):
            w.canaries.promote("iris")


def test_a_canary_inherits_nothing_unseen():
    with world("0.21") as w:
        w.deploy(1, replace(SETTINGS, env={"PREDICT_PROBA": "true"}))
        with pytest.raises(ServingError, match=r"would inherit model\.env from the stable version"):
            w.deploy_canary(2, 10)


@pytest.mark.parametrize(("version", "mode"), [("0.20", "Knative"), ("0.21", "Standard")])
def test_a_failed_check_ends_a_canary(version, mode):
    asked = []

    def check(endpoint, stable) -> None:
        asked.append((endpoint.version, stable, endpoint.url))
        raise PredictionError("the canary predicts 3 for setosa")

    with world(version, mode=mode) as w:
        w.deploy(1)
        with pytest.raises(PredictionError, match="predicts 3 for setosa"):
            w.deploy_canary(2, 10, check=check)
        assert w.canaries.get("iris") is None and w.services.get("iris").version == "v1.0.0"
    # Of mode Standard, pods alone reach the Service of a canary.
    url = "http://latest-iris-predictor.ml.example.com" if mode == "Knative" else ""
    assert asked == [("v2.0.0", "v1.0.0", url)]


def test_the_canary_alone_is_asked_and_watched(monkeypatch):
    """C2: a tag has an address of its own, in the cluster and through its gateway."""
    with world("0.20", mode="Knative", url="https://gateway:8443/") as w:
        w.deploy(1)
        assert w.canaries.endpoint("iris") is None
        w.deploy_canary(2, 10)
        assert w.deploy_canary(3, 20).stable == "v1.0.0"
        found = w.canaries.endpoint("iris")
        assert (found.url, found.host) == ("https://gateway:8443", "latest-iris-predictor.ml.example.com")
        assert (found.version, found.revision) == ("v3.0.0", "iris-predictor-00003")
        assert w.services.get("iris").revision == "iris-predictor-00001"
        old, new = found.series()
        assert 'revision_name="iris-predictor-00003"' in old.labels and old.scale == 0.001
        assert 'kn_revision_name="iris-predictor-00003"' in new.labels and new.scale == 1
        assert w.canaries.promote("iris").version == "v3.0.0"
        assert traffic(w) == [("3", 100)]
    with world("0.21") as w:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        w.deploy(1)
        w.deploy_canary(2, 20)
        (deployment,) = set(weights(w)) - {"iris-predictor"}
        found = w.canaries.endpoint("iris")
        assert (found.url, found.version) == (f"http://{deployment}.ml.svc.cluster.local", "v2.0.0")
        mesh, pods = found.series()
        assert f'destination_workload="{deployment}"' in mesh.labels
        assert f'pod=~"{deployment}-.+"' in pods.labels and not pods.errors


@pytest.mark.parametrize(("version", "mode"), [("0.20", "Knative"), ("0.21", "Standard")])
def test_a_full_deployment_ends_a_canary(version, mode):
    with world(version, mode=mode) as w:
        w.deploy(1)
        w.deploy_canary(2, 10)
        assert w.deploy(3).version == "v3.0.0"
        assert w.canaries.get("iris") is None


def test_a_percentage_that_something_else_manages_too():
    with world(mode="Knative") as w:
        w.deploy(1)
        w.deploy_canary(2, 10)
        path = "/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices/iris"
        edit = {
            "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "iris"},
            "spec": {"predictor": {"canaryTrafficPercent": 10}},
        }  # fmt: skip
        w.kube.apply(path, edit, "ui", force=True)
        with pytest.raises(
            ServingError, match=r"spec\.predictor\.canaryTrafficPercent stays, because ui manages it"
        ):
            w.canaries.promote("iris")
