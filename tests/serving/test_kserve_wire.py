"""Answers of KServe's webhook and of the API server, as the client reads them (serving.md J2, J3, J14)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from kserve_world import GROUP, PLURAL, World, world
from kube_api import Rule

from dvkf_prefect.kube.objects import KubeError, KubeObjects

PATH = "/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices"
MODE = "serving.kserve.io/deploymentMode"


def service(name: str = "iris", **spec: Any) -> dict[str, Any]:
    model = {
        "modelFormat": {"name": "sklearn"},
        "protocolVersion": "v1",
        "storageUri": "s3://b/models/iris/1/",
    }
    predictor = {"serviceAccountName": "s3", "model": model}
    return {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "ml"}, "spec": {"predictor": predictor, **spec},
    }  # fmt: skip


def canary(name: str, percent: int) -> dict[str, Any]:
    model = {"name": "", "modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/2/"}
    return {"trafficPercent": percent, "predictor": {"name": name, "model": model}}


def refused(call: Callable[[], Any]) -> KubeError:
    with pytest.raises(KubeError) as caught:
        call()
    return caught.value


@pytest.fixture
def cluster(request):
    with world(*getattr(request, "param", ("0.20",))) as w:
        yield w


@pytest.mark.parametrize("version", ["0.15", "0.20"])
@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_j2_a_creation(version, mode):
    with world(version, mode=mode) as w:
        made = w.kube.apply(f"{PATH}/iris", service(), "dvkf")
    metadata = made["metadata"]
    named = {"0.15": "RawDeployment", "0.20": "Standard"}[version]
    expected = {**({"modelFormat": "sklearn"} if version == "0.20" else {})}
    expected |= {MODE: named} if mode == "Standard" else {}
    assert (metadata["generation"], metadata.get("annotations", {})) == (1, expected)
    model = {**service()["spec"]["predictor"]["model"], "name": "", "resources": {}}
    assert (
        made["spec"] == {"predictor": {"serviceAccountName": "s3", "model": model}} and "status" not in made
    )


def test_j3_refusals_of_the_webhook(cluster: World):
    kube = cluster.kube
    kube.apply(f"{PATH}/iris", service(), "dvkf")
    cluster.pause(1)

    def changed(edit: Callable[[dict[str, Any]], Any], name: str = "iris") -> KubeError:
        obj = copy.deepcopy(service(name))
        edit(obj)
        return refused(lambda: kube.apply(f"{PATH}/{name}", obj, "dvkf"))

    def env(obj: dict[str, Any]) -> None:
        obj["spec"]["predictor"]["model"]["env"] = [{"name": "PYTHONPATH", "value": "/x"}]

    def knative_canary(obj: dict[str, Any]) -> None:
        obj["metadata"]["annotations"] = {MODE: "Knative"}
        obj["spec"]["canary"] = [canary("b", 10)]

    cases = {
        'the InferenceService "9x" is invalid: a InferenceService name must consist of lower case': changed(
            lambda obj: None, "9x"
        ),
        "update rejected: deploymentMode cannot be changed from 'Standard' to 'Knative'": changed(
            lambda obj: obj["metadata"].update(annotations={MODE: "Knative"})
        ),
        "predictor.name change requires a model change (e.g. storageUri)": changed(
            lambda obj: obj["spec"]["predictor"].update(name="other")
        ),
        "canary is only supported in Standard deployment mode": changed(knative_canary, "new"),
        "sum of canary trafficPercent values (120) must be <= 100": changed(
            lambda obj: obj["spec"].update(canary=[canary("b", 60), canary("c", 60)])
        ),
        'the InferenceService "iris" is invalid: setting PYTHONPATH in container "" is not allowed': changed(
            env
        ),
    }
    start = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '
    for said, error in cases.items():
        assert (error.status, error.reason) == (403, "Forbidden")
        assert error.said.startswith(start + said)
        assert not error.lacks_right and not error.passing and error.causes == ()


def test_j14_refusals_of_the_api_server(cluster: World):
    kube, path = cluster.kube, f"{PATH}/iris"
    made = kube.apply(path, service(), "dvkf")
    edited = service()
    edited["spec"]["predictor"]["canaryTrafficPercent"] = 10
    kube.apply(path, edited, "kubectl-edit", force=True)
    edited["spec"]["predictor"]["canaryTrafficPercent"] = 20
    error = refused(lambda: kube.apply(path, edited, "dvkf"))
    assert (error.status, error.reason) == (409, "Conflict")
    assert error.conflicts == (('"kubectl-edit"', ".spec.predictor.canaryTrafficPercent"),)
    stale = refused(
        lambda: kube.merge(path, {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}})
    )
    assert (stale.status, stale.reason, stale.conflicts) == (409, "Conflict", ())
    assert "the object has been modified" in stale.said
    taken = refused(lambda: kube.create(PATH, service()))
    assert (taken.status, taken.reason) == (409, "AlreadyExists")
    absent = refused(lambda: kube.get(f"{PATH}/none"))
    assert (absent.status, absent.reason) == (404, "NotFound")
    wrong = service()
    wrong["spec"]["predictor"]["model"]["modelFormat"] = {}
    invalid = refused(lambda: kube.create(PATH, {**wrong, "metadata": {"name": "b", "namespace": "ml"}}))
    assert (invalid.status, invalid.reason) == (422, "Invalid") and invalid.causes
    unknown = service(canry=[])
    untyped = refused(lambda: kube.apply(path, unknown, "dvkf"))
    assert untyped.status == 500 and ".spec.canry: field not declared in schema" in untyped.said
    cluster.api.rules["guest"] = (Rule(GROUP, (PLURAL,), ("get",)),)
    guest = KubeObjects(cluster.login("guest"))
    forbidden = refused(lambda: guest.apply(path, service(), "dvkf"))
    assert forbidden.status == 403 and forbidden.lacks_right
    cluster.api.webhooks[GROUP, PLURAL].down = True
    down = refused(lambda: kube.apply(path, edited, "other", force=True))
    assert (down.status, down.reason, down.passing) == (500, "InternalError", True)
    assert 'failed calling webhook "inferenceservice.kserve-webhook-server.defaulter"' in down.said
    del cluster.api.store.resources[GROUP, PLURAL]
    gone = refused(lambda: kube.get(path))
    assert (gone.status, gone.reason, gone.said) == (404, "", "404 page not found")


def test_an_older_crd_refuses_a_later_field_of_an_apply():
    with world("0.17") as w:
        error = refused(lambda: w.kube.apply(f"{PATH}/iris", service(canary=[canary("b", 10)]), "dvkf"))
        assert error.status == 500 and ".spec.canary: field not declared in schema" in error.said


def test_a_log_is_text(cluster: World):
    made = cluster.api.put(
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ml"},
            "spec": {"containers": [{"name": "main", "image": "x"}]},
        }
    )  # fmt: skip
    cluster.api.log("ml", "p", "main").add('{"a": 1}\nsecond')
    path = f"/api/v1/namespaces/ml/pods/{made['metadata']['name']}"
    assert cluster.kube.log(path, container="main", tailLines="2") == '{"a": 1}\nsecond\n'
    assert refused(lambda: cluster.kube.log(path, container="none")).status == 400
