"""A deployment to KServe says in time if a version serves, and why not, by each version of KServe."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from kserve_world import GROUP, PLURAL, SETTINGS, World, uri, world
from kube_api import Model, Rule
from kubernetes import client

from dvkf_prefect.errors import ConfigError, ServingError
from dvkf_prefect.kube.objects import KubeObjects
from dvkf_prefect.serving.kserve.access import ensure_account
from dvkf_prefect.serving.kserve.services import KServeServices
from dvkf_prefect.serving.kserve.spec import MARK, VERSION, ServiceSettings, service_name
from dvkf_prefect.serving.kserve.verdict import Waits

VERSIONS = ("0.15", "0.17", "0.20", "0.21")
# Case of serving.md, mode, update, behaviour: seconds to the verdict, and words of its message.
CASES = {
    "J4 create": ("Standard", False, "healthy", 19, ""),
    "J5 update": ("Standard", True, "healthy", 19, ""),
    "J6 failed load, create": ("Standard", False, "missing", 49, "No model found in models/iris/1/"),
    "J6 failed load, update": ("Standard", True, "missing", 49, "No model found in models/iris/1/"),
    "B14 crash, create": ("Standard", False, "crash", 51, "ValueError: node array from the pickle"),
    "B14 crash, update": ("Standard", True, "crash", 51, "ValueError: node array from the pickle"),
    "J7 image, create": ("Standard", False, "image", 139, "ImagePullBackOff: Back-off pulling image"),
    "J7 image, update": ("Standard", True, "image", 139, "ImagePullBackOff: Back-off pulling image"),
    "J7 pending, update": ("Standard", True, "schedule", 309, "3 Insufficient nvidia.com/gpu"),
    "A16 quota, update": ("Standard", True, "quota", 69, "exceeded quota: team"),
    "A13 no secret, create": ("Standard", False, "denied", 49, "Unable to locate credentials"),
    "J7 image, Knative": ("Knative", True, "tag", 139, "ImagePullBackOff: Back-off pulling image"),
    "A16 quota, Knative": ("Knative", True, "quota", 69, "exceeded quota: team"),
    "B14 crash, Knative": ("Knative", True, "crash", 51, "ValueError: node array from the pickle"),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_verdicts_by_version(case, version, record_property):
    mode, update, kind, seconds, words = CASES[case]
    with world(version, mode=mode) as w:
        if update:
            w.deploy(1)
            serving: list[int] = []
            w.watch.append(lambda: serving.append(ready_pods(w)))
        number, start = (2, w.kserve.now) if update else (1, 0)
        w.kserve.models[uri(number)] = Model(kind)
        said = ""
        if words:
            with pytest.raises(ServingError) as caught:
                w.deploy(number)
            said = str(caught.value)
        else:
            endpoint = w.deploy(number)
            assert (endpoint.version, endpoint.service) == (f"v{number}.0.0", "iris")
        took = w.kserve.now - start
        print(f"{case} | {version} | {took:.0f} s | {said.splitlines()[-1] if said else 'serves'}")
        assert took == seconds and words in said
        if update:
            assert min(serving) >= 1  # one that serves, at each moment
        if update and words:
            assert said.endswith("v1.0.0 serves.")
            w.pause(30)
            assert w.service()["spec"]["predictor"]["annotations"][VERSION] == "v1.0.0"
            assert w.services.get("iris").version == "v1.0.0"
            assert w.deploy(1).version == "v1.0.0"


def ready_pods(w: World) -> int:
    found = 0
    for pod in w.api.all("pods"):
        conditions = (pod.get("status") or {}).get("conditions", ())
        found += any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return found


@pytest.mark.parametrize(("mode", "pods"), [("Knative", 0), ("Standard", 1)])
def test_a_service_that_may_stop_all_its_pods_serves(mode, pods):
    """F1: Knative stays ready without pods, and its modelStatus goes back to pending; Standard has one at least."""
    with world(mode=mode) as w:
        assert w.deploy(1, replace(SETTINGS, min_replicas=0)).version == "v1.0.0"
        w.pause(30)
        assert ready_pods(w) == pods
        assert w.deploy(1, replace(SETTINGS, min_replicas=0)).version == "v1.0.0"
        assert w.deploy(2, replace(SETTINGS, min_replicas=0)).version == "v2.0.0"


def test_a_deployed_version_is_not_applied_again():
    with world() as w:
        w.deploy(1)
        version = w.service()["metadata"]["resourceVersion"]
        w.deploy(1)
        assert w.service()["metadata"]["resourceVersion"] == version
        assert [e.version for e in w.services.list()] == ["v1.0.0"]


def test_other_settings_are_another_rollout_of_the_same_version():
    with world() as w:
        w.deploy(1)
        mark = w.service()["spec"]["predictor"]["annotations"][MARK]
        w.deploy(1, replace(SETTINGS, cpu="2"))
        predictor = w.service()["spec"]["predictor"]
        assert predictor["annotations"][MARK] != mark
        assert predictor["model"]["resources"] == {"limits": {"cpu": "2"}, "requests": {"cpu": "2"}}
        w.deploy(1, replace(SETTINGS, cpu="2", min_replicas=3))
        assert w.service()["spec"]["predictor"]["minReplicas"] == 3 and ready_pods(w) == 3


@pytest.mark.parametrize("version", ["0.15", "0.20"])
def test_a_mode_is_asked_for_by_the_versions_own_name(version):
    with world(version) as w:
        w.deploy(1, replace(SETTINGS, mode="Standard"))
        name = "RawDeployment" if version == "0.15" else "Standard"
        assert w.service()["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == name
        w.deploy(2)
        with pytest.raises(ServingError, match="deploymentMode cannot be changed from"):
            w.deploy(3, replace(SETTINGS, mode="Knative"))
        assert w.services.get("iris").version == "v2.0.0"


def test_the_default_mode_knative_is_left_unsaid_on_019():
    # 0.19 compares an empty status with Standard, and the service would never start.
    with world("0.19", mode="Knative") as w:
        assert w.deploy(1, replace(SETTINGS, mode="Knative")).version == "v1.0.0"
        assert "serving.kserve.io/deploymentMode" not in w.service()["metadata"].get("annotations", {})


def test_a_specification_that_kserve_accepts_and_cannot_serve():
    with world() as w:
        with pytest.raises(
            ServingError, match=r"RuntimeNotRecognized: Specified runtime mine does not exist\. The"
        ):
            w.deploy(1, replace(SETTINGS, runtime="mine"))
        assert w.kserve.now < 20
        assert w.services.undeploy("iris")
        at = w.kserve.now
        with pytest.raises(ServingError, match=r"StorageURI not supported, storageUri \[dvc://b/m/\]"):
            w.services.deploy("iris", "v1.0.0", "d", "dvc://b/m", SETTINGS)
        assert w.kserve.now - at < 10


def test_an_old_event_and_an_old_invalid_state_are_no_verdict():
    with world() as w:
        with pytest.raises(ServingError, match="StorageURI not supported"):
            w.services.deploy("iris", "v1.0.0", "d", "dvc://b/m", SETTINGS)
        assert w.deploy(2).version == "v2.0.0"


def test_a_service_of_something_else_is_left_alone():
    with world() as w:
        w.api.put({
            "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
            "metadata": {"name": "iris", "namespace": "ml"},
            "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/x/"}}},
        })  # fmt: skip
        with pytest.raises(ServingError, match="was not deployed by dvkf"):
            w.deploy(1)
        with pytest.raises(ServingError, match="was not deployed by dvkf"):
            w.services.undeploy("iris")
        assert w.service()["spec"]["predictor"]["model"]["storageUri"] == "s3://b/x/"
        assert w.services.list() == []
        mine = KServeServices(w.kube, "ml", take_over=True, pause=w.pause, clock=lambda: w.kserve.now)
        assert mine.deploy("iris", "v1.0.0", "d", uri(1), SETTINGS).version == "v1.0.0"


def test_a_conflict_names_the_other_manager_and_the_field():
    with world() as w:
        w.deploy(1, replace(SETTINGS, min_replicas=1))
        path = f"/apis/serving.kserve.io/v1beta1/namespaces/ml/{PLURAL}/iris"
        w.login("admin").call_api(
            path, "PATCH", query_params=[("fieldManager", "kubectl-edit")], auth_settings=["BearerToken"],
            header_params={"Content-Type": "application/merge-patch+json"}, response_type="object",
            body={"spec": {"predictor": {"minReplicas": 4}}},
        )  # fmt: skip
        with pytest.raises(ServingError) as caught:
            w.deploy(2, replace(SETTINGS, min_replicas=2))
        assert '.spec.predictor.minReplicas by "kubectl-edit"' in str(caught.value)
        assert w.service()["spec"]["predictor"]["minReplicas"] == 4
        # A field that is not set here stays with its owner.
        assert w.deploy(2).version == "v2.0.0"
        assert w.service()["spec"]["predictor"]["minReplicas"] == 4


def test_a_missing_right_is_named_and_is_no_refusal_of_kserve():
    with world() as w:
        w.api.rules["guest"] = (Rule(GROUP, (PLURAL,), ("get", "list")), Rule("", ("*",), ("get", "list")))
        guest = KServeServices(KubeObjects(w.login("guest")), "ml", pause=w.pause)
        with pytest.raises(ServingError, match=r'User "guest" cannot patch .* The account needs'):
            guest.deploy("iris", "v1.0.0", "d", uri(1), SETTINGS)


def test_an_absent_kserve_and_a_webhook_that_is_down():
    with world() as w:
        resource = w.api.store.resources.pop((GROUP, PLURAL))
        with pytest.raises(ServingError, match="KServe is not installed on this cluster"):
            w.deploy(1)
        w.api.store.resources[GROUP, PLURAL] = resource
        w.api.webhooks[GROUP, PLURAL].down = True
        with pytest.raises(ServingError, match="failed calling webhook"):
            w.deploy(1)
        assert 300 <= w.kserve.now < 400


def test_a_cancelled_deployment_leaves_the_version_that_serves():
    with world() as w:
        w.deploy(1)
        w.kserve.models[uri(2)] = Model("image")
        at = w.kserve.now

        def stop() -> None:
            if w.kserve.now > at + 20:
                raise KeyboardInterrupt

        w.watch.append(stop)
        with pytest.raises(KeyboardInterrupt):
            w.deploy(2)
        w.watch.clear()
        w.pause(30)
        assert w.services.get("iris").version == "v1.0.0" and ready_pods(w) == 1
        assert len(w.api.all("pods")) == 1


def test_waits_have_an_end_of_their_own():
    with world(waits=Waits(total=100, schedule=900)) as w:
        w.kserve.models[uri(1)] = Model("schedule")
        with pytest.raises(
            ServingError, match=r"does not serve as 'iris' after 1\d\d s: pod .* fits on no node"
        ):
            w.deploy(1)


def test_undeploy_removes_all_and_waits_for_finalizers():
    with world() as w:
        assert w.services.undeploy("iris") is False
        w.deploy(1)
        assert w.services.undeploy("iris") is True
        assert w.services.get("iris") is None and w.api.all("pods") == []
        w.deploy(1)
        w.service()["metadata"]["finalizers"] = ["modelregistry.kubeflow.org/finalizer"]
        with pytest.raises(
            ServingError, match=r"not gone after 60 s \(modelregistry.kubeflow.org/finalizer\)"
        ):
            w.services.undeploy("iris")


# -- access ------------------------------------------------------------------------------------------------------------


def test_a_remotes_keys_become_a_secret_that_the_account_lists():
    options = {
        "access_key_id": "AKIA", "secret_access_key": "hidden-secret", "endpointurl": "http://minio.ml:9000",
        "region": "eu-west-1",
    }  # fmt: skip
    with world() as w:
        name = ensure_account(w.kube, "ml", options)
        assert ensure_account(w.kube, "ml", options) == name
        secret = w.api.get("secrets", "ml", name)
        assert base64.b64decode(secret["data"]["AWS_SECRET_ACCESS_KEY"]) == b"hidden-secret"
        assert secret["metadata"]["annotations"] == {
            "serving.kserve.io/s3-endpoint": "minio.ml:9000", "serving.kserve.io/s3-usehttps": "0",
            "serving.kserve.io/s3-usevirtualbucket": "0", "serving.kserve.io/s3-region": "eu-west-1",
        }  # fmt: skip
        assert w.api.get("serviceaccounts", "ml", name)["secrets"] == [{"name": name}]
        endpoint = w.services.deploy(
            "iris", "v1.0.0", "d", uri(1), replace(SETTINGS, service_account=""), account=name
        )
        assert endpoint.version == "v1.0.0"
        assert w.service()["spec"]["predictor"]["serviceAccountName"] == name
        w.api.rules["guest"] = ()
        with pytest.raises(ServingError, match="Secret 'dvkf-") as caught:
            ensure_account(KubeObjects(w.login("guest")), "ml", options)
        assert "hidden-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "has no access_key_id"),
        ({"access_key_id": "a", "secret_access_key": "b", "ssl_verify": "/ca.pem"}, "a file of this machine"),
    ],
)
def test_a_remote_that_a_service_cannot_use(options, said):
    with pytest.raises(ConfigError, match=said):
        ensure_account(KubeObjects(client.ApiClient()), "ml", options)


# -- specifications ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "kind", "runtime", "protocol"),
    [
        ("sklearn", "sklearn", "kserve-sklearnserver", "v1"),
        ("xgboost", "xgboost", "kserve-xgbserver", "v1"),
        ("lightgbm", "lightgbm", "kserve-lgbserver", "v1"),
        ("pytorch", "pytorch", "kserve-tritonserver", "v2"),
        ("torchserve", "pytorch", "kserve-torchserve", "v1"),
        ("tensorflow", "tensorflow", "kserve-tensorflow-serving", "v1"),
        ("tensorflow-triton", "tensorflow", "kserve-tritonserver", "v2"),
        ("onnx", "onnx", "kserve-tritonserver", "v2"),
        ("triton", "triton", "kserve-tritonserver", "v2"),
        ("mlflow", "mlflow", "kserve-mlserver", "v2"),
        ("huggingface", "huggingface", "kserve-huggingfaceserver", "v2"),
    ],
)
def test_each_format_names_its_runtime_and_protocol_and_is_accepted(format, kind, runtime, protocol):
    settings = ServiceSettings(
        format, runtime_version="v1", env={"A": "1"}, args=("--x",), gpu=1, memory="4Gi", min_replicas=1,
        max_replicas=3, scale_metric="cpu", scale_target=70, request_timeout=30, service_account="lake",
        node_selector={"pool": "gpu"}, tolerations=({"key": "gpu", "operator": "Exists"},), recreate=True,
        mode="Standard",
    )  # fmt: skip
    with world() as w:
        endpoint = w.services.deploy("iris", "v1.0.0", "d", "s3://models/iris/v1.0.0", settings)
        assert endpoint.protocol == protocol
        predictor = w.service()["spec"]["predictor"]
    model = predictor["model"]
    assert (model["modelFormat"], model["runtime"], model["protocolVersion"]) == (
        {"name": kind},
        runtime,
        protocol,
    )
    assert model["storageUri"] == "s3://models/iris/v1.0.0/"
    assert model["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}
    assert predictor["deploymentStrategy"] == {"type": "Recreate"} and predictor["timeout"] == 30


def test_a_container_of_its_own():
    settings = ServiceSettings(
        "custom", image="registry.example.org/mine:1", port=9000, service_account="lake"
    )
    with world(mode="Knative") as w:
        w.services.deploy("iris", "v1.0.0", "d", uri(1), replace(settings, scale_metric="rps", concurrency=4))
        (container,) = w.service()["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container" and container["ports"][0]["containerPort"] == 9000
    assert container["env"] == [{"name": "STORAGE_URI", "value": uri(1)}]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ServiceSettings("keras"), "format 'keras' is not one"),
        (ServiceSettings("custom"), "Set the image"),
        (ServiceSettings("onnx", protocol="v1"), "kserve-tritonserver does not speak v1"),
        (ServiceSettings(env={"PYTHONPATH": "/x"}), "variable PYTHONPATH"),
        (ServiceSettings(recreate=True), "Set the mode to Standard"),
    ],
)
def test_settings_that_do_not_fit(settings, said):
    with pytest.raises(ConfigError, match=said):
        settings.predictor("s3://b/m")


@pytest.mark.parametrize(
    ("model", "namespace", "name"),
    [
        ("iris", "ml", "iris"),
        ("vision:Traffic_Signs", "ml", "vision-traffic-signs"),
        ("9x", "ml", "m-9x"),
        ("a" * 60, "ml", "a" * 31 + "-11ee39"),
        ("a" * 38, "n" * 20, "a" * 15 + "-365a9c"),
    ],
)
def test_names_fit_into_all_objects_of_a_service(model, namespace, name):
    found = service_name(model, namespace)
    assert found == name
    # With a canary: the label, and the host.
    assert (
        len(f"isvc.{found}-c1234567-predictor") <= 63 and len(f"{found}-c1234567-predictor-{namespace}") <= 63
    )


def test_a_namespace_that_leaves_no_room():
    with pytest.raises(ConfigError, match="too long for KServe"):
        service_name("iris", "n" * 40)
