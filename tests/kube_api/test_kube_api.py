"""The Kubernetes API of the tests answers the real client as the real one does."""

from __future__ import annotations

import json
import threading

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from kube_api import KubeApi, Rule, TrainerController, access, install_trainer
from kube_api.admission import inference_services
from kube_api.resources import kserve

TRAIN = ("trainer.kubeflow.org", "v1alpha1", "kubeflow", "trainjobs")
SERVE = ("serving.kserve.io", "v1beta1", "kubeflow", "inferenceservices")


@pytest.fixture
def api():
    with KubeApi() as api:
        yield api


class Login:
    """A user's client."""

    def __init__(self, api: KubeApi, user: str = "admin") -> None:
        settings = client.Configuration(host=api.url)
        settings.retries = False
        settings.api_key["authorization"] = f"Bearer {api.token(user)}"
        self.client = client.ApiClient(settings)
        self.core, self.custom = client.CoreV1Api(self.client), client.CustomObjectsApi(self.client)

    def apply(self, path: str, obj: dict, manager: str = "dvkf", force: bool = True):
        query = [("fieldManager", manager), *([("force", "true")] if force else [])]
        return self.patch(path, obj, "application/apply-patch+yaml", query)

    def patch(self, path: str, body, kind: str, query=()):
        return self.client.call_api(
            path, "PATCH", query_params=list(query), header_params={"Content-Type": kind}, body=body,
            auth_settings=["BearerToken"], response_type="object",
        )[0]  # fmt: skip


@pytest.fixture
def admin(api):
    return Login(api)


def refused(call, *arguments, **options) -> tuple[int, dict | str]:
    with pytest.raises(ApiException) as caught:
        call(*arguments, **options)
    try:
        return caught.value.status, json.loads(caught.value.body)
    except ValueError:
        return caught.value.status, caught.value.body


def service(**predictor) -> dict:
    predictor = predictor or {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/iris/1/"}}
    return {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": "kubeflow"}, "spec": {"predictor": predictor},
    }  # fmt: skip


def job(name: str = "train", **spec) -> dict:
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": "torch-distributed"}, **spec},
    }  # fmt: skip


def pod(name: str = "p", *containers: str, **status) -> dict:
    spec = {"containers": [{"name": c, "image": "x"} for c in containers or ("main",)]}
    metadata = {"name": name, "namespace": "kubeflow", "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


# -- objects -----------------------------------------------------------------------------------------------------------


def test_objects_are_made_once_read_and_found(api, admin):
    body = {"metadata": {"name": "s", "labels": {"a": "b"}}, "stringData": {"x": "1"}}
    made = admin.core.create_namespaced_secret("kubeflow", body)
    assert made.metadata.uid and int(made.metadata.resource_version) > 1000
    code, status = refused(admin.core.create_namespaced_secret, "kubeflow", body)
    assert (code, status["reason"], status["message"]) == (409, "AlreadyExists", 'secrets "s" already exists')
    code, status = refused(admin.core.read_namespaced_secret, "t", "kubeflow")
    assert (code, status["reason"], status["details"]["name"]) == (404, "NotFound", "t")
    code, status = refused(admin.core.create_namespaced_secret, "absent", body)
    assert (code, status["message"]) == (404, 'namespaces "absent" not found')
    code, status = refused(admin.core.create_namespaced_secret, "kubeflow", {"metadata": {"name": "A_b"}})
    assert code == 422 and "a lowercase RFC 1123 subdomain" in status["message"]
    listed = admin.core.list_namespaced_secret
    assert [s.metadata.name for s in listed("kubeflow", label_selector="a=b").items] == ["s"]
    assert listed("kubeflow", label_selector="a!=b").items == []
    assert [s.metadata.name for s in listed("kubeflow", label_selector="a in (b,c)").items] == ["s"]
    code, status = refused(listed, "kubeflow", field_selector="data.x=1")
    assert (code, status["message"]) == (400, "field label not supported: data.x")


def test_a_stale_version_is_refused_and_an_equal_object_keeps_its_own(api, admin):
    made = admin.core.create_namespaced_config_map(
        "kubeflow", {"metadata": {"name": "c"}, "data": {"a": "1"}}
    )
    same = admin.core.replace_namespaced_config_map("c", "kubeflow", made)
    assert same.metadata.resource_version == made.metadata.resource_version
    admin.core.patch_namespaced_config_map("c", "kubeflow", {"data": {"b": "2"}})
    code, status = refused(admin.core.replace_namespaced_config_map, "c", "kubeflow", made)
    assert (code, status["reason"]) == (409, "Conflict") and "the object has been modified" in status[
        "message"
    ]
    assert "causes" not in status["details"]


def test_a_list_is_read_in_pages_until_its_version_is_gone(api, admin):
    for name in "abc":
        api.put(pod(name))
    first = admin.core.list_namespaced_pod("kubeflow", limit=2)
    assert [p.metadata.name for p in first.items] == ["a", "b"] and first.metadata.remaining_item_count == 1
    token = first.metadata._continue
    assert [p.metadata.name for p in admin.core.list_namespaced_pod("kubeflow", _continue=token).items] == [
        "c"
    ]
    api.store.compact()
    assert refused(admin.core.list_namespaced_pod, "kubeflow", _continue=token)[0] == 410


def test_owned_objects_go_with_their_owner_and_never_stay_without_one(api, admin):
    owner = api.put(pod("owner"))
    reference = {"apiVersion": "v1", "kind": "Pod", "name": "owner", "uid": owner["metadata"]["uid"]}
    for name, uid in (("mine", reference["uid"]), ("stray", "no-such-uid")):
        meta = {"name": name, "ownerReferences": [{**reference, "uid": uid}]}
        admin.core.create_namespaced_config_map("kubeflow", {"metadata": meta})
    assert api.get("configmaps", "kubeflow", "stray") is None
    assert api.get("configmaps", "kubeflow", "mine") is not None
    admin.core.delete_namespaced_pod("owner", "kubeflow")
    assert api.get("configmaps", "kubeflow", "mine") is None


def test_finalizers_keep_an_object_until_they_are_removed(api, admin):
    meta = {"name": "c", "finalizers": ["example.org/held"]}
    admin.core.create_namespaced_config_map("kubeflow", {"metadata": meta})
    admin.core.delete_namespaced_config_map("c", "kubeflow")
    held = admin.core.read_namespaced_config_map("c", "kubeflow")
    assert held.metadata.deletion_timestamp
    admin.core.patch_namespaced_config_map("c", "kubeflow", {"metadata": {"finalizers": None}})
    assert refused(admin.core.read_namespaced_config_map, "c", "kubeflow")[0] == 404


def test_a_pod_keeps_its_specification(api, admin):
    api.put(pod())
    change = {"spec": {"containers": [{"name": "main", "command": ["x"]}]}}
    code, status = refused(admin.core.patch_namespaced_pod, "p", "kubeflow", change)
    assert code == 422 and "pod updates may not change fields" in status["message"]


# -- watches -----------------------------------------------------------------------------------------------------------


def test_a_watch_sees_changes_and_ends_with_a_bookmark(api, admin):
    def change() -> None:
        api.put(pod("b"))
        api.set_status("", "pods", "kubeflow", "b", {"phase": "Running"})
        admin.core.delete_namespaced_pod("b", "kubeflow")

    api.put(pod("a"))
    version = admin.core.list_namespaced_pod("kubeflow").metadata.resource_version
    worker = threading.Thread(target=change)
    worker.start()
    seen = [
        (event["type"], event["raw_object"]["metadata"].get("name"))
        for event in watch.Watch().stream(
            admin.core.list_namespaced_pod, "kubeflow", resource_version=version, timeout_seconds=1,
            allow_watch_bookmarks=True,
        )
    ]  # fmt: skip
    worker.join()
    wanted = [("ADDED", "b"), ("MODIFIED", "b"), ("MODIFIED", "b"), ("DELETED", "b")]
    assert [s for s in seen if s[0] != "BOOKMARK"] in (wanted, [wanted[0], *wanted[2:]])


def test_a_watch_of_a_forgotten_version_is_gone(api, admin):
    old = admin.core.list_namespaced_pod("kubeflow").metadata.resource_version
    api.put(pod("a"))
    api.store.compact()
    stream = watch.Watch().stream(
        admin.core.list_namespaced_pod, "kubeflow", resource_version=old, timeout_seconds=1
    )
    with pytest.raises(ApiException) as caught:
        list(stream)
    assert caught.value.status == 410 and "too old resource version" in caught.value.reason


# -- rights ------------------------------------------------------------------------------------------------------------


def test_rights_are_refused_by_name_and_by_kind(api):
    api.rules["system:serviceaccount:kubeflow:x"] = (Rule("", ("pods",), ("get",), ("mine",)),)
    api.put(pod("mine"))
    user = Login(api, "system:serviceaccount:kubeflow:x")
    user.core.read_namespaced_pod("mine", "kubeflow")
    code, status = refused(user.core.read_namespaced_pod, "yours", "kubeflow")
    assert code == 403 and status["reason"] == "Forbidden" and status["details"]["name"] == "yours"
    assert status["message"] == (
        'pods "yours" is forbidden: User "system:serviceaccount:kubeflow:x" cannot get resource "pods" in API group "" '
        'in the namespace "kubeflow"'
    )
    assert refused(user.core.list_namespaced_pod, "kubeflow")[1]["message"].startswith(
        "pods is forbidden: User"
    )
    assert refused(user.core.read_namespaced_pod_log, "mine", "kubeflow")[0] == 403
    assert refused(Login(api, "nobody").core.list_namespaced_pod, "kubeflow")[0] == 401


def test_trainers_role_has_neither_update_nor_own_runtimes(api):
    install_trainer(api)
    api.rules["editor"], api.rules["runner"] = access.TRAINER_EDIT, access.PIPELINE_RUNNER
    editor, runner = Login(api, "editor"), Login(api, "runner")
    editor.custom.create_namespaced_custom_object(*TRAIN, job())
    made = editor.custom.get_namespaced_custom_object(*TRAIN, "train")
    code, status = refused(editor.custom.replace_namespaced_custom_object, *TRAIN, "train", made)
    assert code == 403 and "cannot update resource" in status["message"]
    runtimes = (*TRAIN[:3], "trainingruntimes")
    assert (
        refused(editor.custom.create_namespaced_custom_object, *runtimes, {"metadata": {"name": "r"}})[0]
        == 403
    )
    code, status = refused(runner.custom.create_namespaced_custom_object, *TRAIN, job("other"))
    assert code == 403 and status["details"] == {"group": "trainer.kubeflow.org", "kind": "trainjobs"}


def test_a_login_asks_for_its_own_rights(api):
    api.rules["editor"] = access.TRAINER_EDIT
    review = client.AuthorizationV1Api(Login(api, "editor").client)
    for verb, allowed in (("create", True), ("update", False)):
        asked = {
            "namespace": "kubeflow",
            "verb": verb,
            "group": "trainer.kubeflow.org",
            "resource": "trainjobs",
        }
        body = {"spec": {"resourceAttributes": asked}}
        assert review.create_self_subject_access_review(body).status.allowed is allowed


# -- custom resources --------------------------------------------------------------------------------------------------


def test_an_absent_crd_is_a_plain_text_404(api, admin):
    code, body = refused(admin.custom.list_namespaced_custom_object, *TRAIN)
    assert (code, body) == (404, "404 page not found\n")


def test_schema_defaults_prunes_checks_and_runs_rules(api, admin):
    pytest.importorskip("cel")
    install_trainer(api)
    create = admin.custom.create_namespaced_custom_object
    made, code, headers = admin.custom.create_namespaced_custom_object_with_http_info(*TRAIN, job(unknown=1))
    assert made["spec"] == {
        "runtimeRef": {
            "name": "torch-distributed", "kind": "ClusterTrainingRuntime", "apiGroup": "trainer.kubeflow.org"
        },
        "suspend": False, "managedBy": "trainer.kubeflow.org/trainjob-controller",
    }  # fmt: skip
    assert (
        code == 201 and headers["Warning"] == '299 - "unknown field "spec.unknown""' and "status" not in made
    )
    code, status = refused(create, *TRAIN, job("b", runtimeRef={}))
    assert code == 422 and status["details"]["causes"][0] == {
        "reason": "FieldValueRequired", "message": "Required value", "field": "spec.runtimeRef.name"
    }  # fmt: skip
    code, status = refused(create, *TRAIN, job("b", trainer={"numNodes": "2"}))
    assert 'must be of type integer: "string"' in status["message"]
    code, status = refused(create, *TRAIN, job("b", trainer={"numProcPerNode": 0}))
    assert "numProcPerNode must be greater than or equal to 1" in status["message"]
    code, status = refused(create, *TRAIN, job("x" * 64))
    assert "metadata.name must be no more than 63 characters" in status["message"]
    change = {"spec": {"trainer": {"numNodes": 2}}}
    assert refused(admin.custom.patch_namespaced_custom_object, *TRAIN, "absent", change)[0] == 404
    create(*TRAIN, job("c", trainer={"numNodes": 1}))
    code, status = refused(admin.custom.patch_namespaced_custom_object, *TRAIN, "c", change)
    assert code == 422 and status["details"]["causes"][0]["field"] == "spec.trainer"
    assert "field is immutable" in status["message"]
    path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainjobs/c"
    assert refused(admin.patch, path, change, "application/strategic-merge-patch+json")[0] == 415
    assert refused(admin.patch, path, [], "application/merge-patch+json")[0] == 400
    suspend = [{"op": "replace", "path": "/spec/suspend", "value": True}]
    assert admin.patch(path, suspend, "application/json-patch+json")["spec"]["suspend"] is True


@pytest.mark.parametrize(
    ("version", "field"),
    [
        ("2.0", "podSpecOverrides"),
        ("2.1", "podTemplateOverrides"),
        ("2.2", "runtimePatches"),
        ("2.3", "runtimePatches"),
    ],
)
def test_overrides_have_another_name_in_each_version(api, admin, version, field):
    install_trainer(api, version)
    fields = ("podSpecOverrides", "podTemplateOverrides", "runtimePatches")
    spec = admin.client.call_api(
        "/openapi/v3/apis/trainer.kubeflow.org/v1alpha1",
        "GET",
        response_type="object",
        auth_settings=["BearerToken"],
    )[0]["components"]["schemas"]["org.kubeflow.trainer.v1alpha1.TrainJob"]["properties"]["spec"][
        "properties"
    ]
    assert [f for f in fields if f in spec] == [field]
    made = admin.custom.create_namespaced_custom_object(*TRAIN, job(**{f: [] for f in fields}))
    assert [f for f in fields if f in made["spec"]] == [field]


def test_the_whole_schema_of_kserve_is_there(api, admin):
    api.serve(kserve(), inference_services())
    model = {
        "modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/1/", "env": [{"name": "A", "value": "1"}],
        "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}, "typo": 1,
    }  # fmt: skip
    made = admin.custom.create_namespaced_custom_object(*SERVE, service(model=model))
    assert made["metadata"]["annotations"] == {"modelFormat": "sklearn"} and "status" not in made
    assert (
        made["spec"]["predictor"]["model"]["name"] == "" and "typo" not in made["spec"]["predictor"]["model"]
    )
    wrong = service(model={"modelFormat": {"name": 1}})
    assert refused(admin.custom.create_namespaced_custom_object, *SERVE, wrong)[0] == 422


# -- admission ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: o["metadata"].update(name="9x"), 'InferenceService "9x" is invalid: a InferenceS'),
        (lambda o: o["spec"].update(canary=[{"trafficPercent": 5, "predictor": {"name": "b"}}]), "only supported in"),
        (lambda o: o["spec"]["predictor"].update(minReplicas=-1), "MinReplicas cannot be less than 0."),
        (lambda o: o["spec"]["predictor"]["model"].update(env=[{"name": "PYTHONPATH"}]), "setting PYTHONPATH in"),
        (lambda o: o["spec"].update(predictor={}), "exactly one of"),
    ],
)  # fmt: skip
def test_kserves_webhook_refuses_as_a_403_that_is_no_right(api, admin, change, said):
    api.serve(kserve(), inference_services())
    body = service()
    change(body)
    code, status = refused(admin.custom.create_namespaced_custom_object, *SERVE, body)
    start = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '
    assert code == 403 and status["message"].startswith(start) and said in status["message"]
    assert "details" not in status


def test_the_mode_of_a_service_never_changes(api, admin):
    api.serve(kserve(), inference_services(default_mode="Standard"))
    made = admin.custom.create_namespaced_custom_object(*SERVE, service())
    assert made["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    api.set_status(SERVE[0], SERVE[3], "kubeflow", "iris", {"deploymentMode": "Standard"})
    body = service()
    body["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "Serverless"}
    path = "/apis/serving.kserve.io/v1beta1/namespaces/kubeflow/inferenceservices/iris"
    status = refused(admin.apply, path, body)[1]
    assert "deploymentMode cannot be changed from 'Standard' to 'Knative'" in status["message"]


def test_a_webhook_that_is_down_is_a_500(api, admin):
    api.serve(kserve(), inference_services())
    api.webhooks["serving.kserve.io", "inferenceservices"].down = True
    code, status = refused(admin.custom.create_namespaced_custom_object, *SERVE, service())
    assert (code, status["reason"]) == (500, "InternalError")
    assert 'failed calling webhook "inferenceservice.kserve-webhook-server.defaulter"' in status["message"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            {"runtimeRef": {"name": "none"}},
            "specified clusterTrainingRuntime must be created before the TrainJob",
        ),
        (
            {"trainer": {"env": [{"name": "PET_NNODES", "value": "2"}]}},
            "must not have reserved envs, invalid envs conf",
        ),
        ({"initializer": {"dataset": {"storageUri": "s3://b/d"}}}, "must have dataset-initializer job"),
    ],
)
def test_trainers_webhook_refuses(api, admin, spec, said):
    install_trainer(api)
    code, status = refused(admin.custom.create_namespaced_custom_object, *TRAIN, job(**spec))
    start = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '
    assert code == 403 and status["message"].startswith(start) and said in status["message"]


# -- server-side apply -------------------------------------------------------------------------------------------------


@pytest.fixture
def iris(api, admin):
    api.serve(kserve(), inference_services())
    path = "/apis/serving.kserve.io/v1beta1/namespaces/kubeflow/inferenceservices/iris"
    return lambda body, **options: admin.apply(path, body, **options)


def test_apply_creates_keeps_and_removes(api, iris):
    body = service()
    body["spec"]["predictor"]["minReplicas"] = 2
    made = iris(body)
    assert (made["metadata"]["generation"], made["spec"]["predictor"]["minReplicas"]) == (1, 2)
    again = iris(body)
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert [m["manager"] for m in made["metadata"]["managedFields"]] == ["dvkf"]
    after = iris(service())
    assert "minReplicas" not in after["spec"]["predictor"] and after["metadata"]["generation"] == 2
    # What the webhook added belongs to no one, and stays.
    assert after["spec"]["predictor"]["model"]["name"] == ""


def test_a_conflict_names_the_manager_and_the_field(api, admin, iris):
    iris(service())
    edit = {"spec": {"predictor": {"canaryTrafficPercent": 10}}}
    admin.custom.patch_namespaced_custom_object(*SERVE, "iris", edit, field_manager="kubectl-edit")
    body = service()
    body["spec"]["predictor"]["canaryTrafficPercent"] = 20
    code, status = refused(iris, body, force=False)
    assert code == 409 and status["reason"] == "Conflict"
    assert status["message"] == (
        'Apply failed with 1 conflict: conflict with "kubectl-edit" using serving.kserve.io/v1beta1: '
        ".spec.predictor.canaryTrafficPercent"
    )
    (cause,) = status["details"]["causes"]
    assert (cause["reason"], cause["field"]) == (
        "FieldManagerConflict",
        ".spec.predictor.canaryTrafficPercent",
    )
    assert iris(body)["spec"]["predictor"]["canaryTrafficPercent"] == 20  # by force
    assert "canaryTrafficPercent" not in iris(service())["spec"]["predictor"]


def test_a_field_with_another_owner_stays(api, admin, iris):
    body = service()
    body["spec"]["predictor"]["canaryTrafficPercent"] = 10
    iris(body)
    iris(body, manager="someone")
    assert iris(service())["spec"]["predictor"]["canaryTrafficPercent"] == 10


def test_items_of_named_lists_have_owners_and_other_lists_are_whole(api, admin, iris):
    def with_env(**env: str) -> dict:
        return service(
            model={
                "modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/1/", "args": [*env],
                "env": [{"name": name, "value": value} for name, value in env.items()],
            }
        )  # fmt: skip

    iris(with_env(A="1"))
    edit = [{"op": "add", "path": "/spec/predictor/model/env/-", "value": {"name": "B", "value": "2"}}]
    path = "/apis/serving.kserve.io/v1beta1/namespaces/kubeflow/inferenceservices/iris"
    admin.patch(path, edit, "application/json-patch+json", [("fieldManager", "other")])
    model = iris(with_env(C="3"))["spec"]["predictor"]["model"]
    assert model["env"] == [{"name": "B", "value": "2"}, {"name": "C", "value": "3"}] and model["args"] == [
        "C"
    ]


def test_apply_refuses_an_unknown_field_with_500(iris):
    body = service()
    body["spec"]["predictor"]["modell"] = {}
    code, status = refused(iris, body)
    assert code == 500 and ".spec.predictor.modell: field not declared in schema" in status["message"]


# -- pods --------------------------------------------------------------------------------------------------------------


def test_logs_of_pods(api, admin):
    waiting = {"name": "a", "ready": False, "restartCount": 0, "image": "x", "imageID": "",
               "state": {"waiting": {"reason": "ContainerCreating"}}}  # fmt: skip
    api.put(pod("p", "a", "b", phase="Pending", containerStatuses=[waiting]))
    read = admin.core.read_namespaced_pod_log
    assert (
        "a container name must be specified for pod p, choose one of: [a b]"
        in refused(read, "p", "kubeflow")[1]["message"]
    )
    assert (
        "is waiting to start: ContainerCreating"
        in refused(read, "p", "kubeflow", container="a")[1]["message"]
    )
    assert "container c is not valid for pod p" in refused(read, "p", "kubeflow", container="c")[1]["message"]
    running = {**waiting, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    api.set_status("", "pods", "kubeflow", "p", {"phase": "Running", "containerStatuses": [running]})
    log = api.log("kubeflow", "p", "a")
    log.add("one\ntwo")
    assert read("p", "kubeflow", container="a", tail_lines=1) == "two\n"
    assert read("p", "kubeflow", container="a", timestamps=True).splitlines()[0].endswith("Z one")
    assert read("p", "kubeflow", container="a", limit_bytes=5) == "one\nt"
    assert read("p", "kubeflow", container="a", since_seconds=3600) == "one\ntwo\n"
    threading.Timer(0.1, lambda: (log.add("three"), log.end())).start()
    assert list(watch.Watch().stream(read, "p", "kubeflow", container="a")) == ["one", "two", "three"]
    assert (
        "previous terminated container"
        in refused(read, "p", "kubeflow", container="a", previous=True)[1]["message"]
    )


def test_the_log_of_a_restarted_container(api, admin):
    log = api.log("kubeflow", "p", "main")
    log.add("first")
    log.restart()
    log.add("second")
    running = {"name": "main", "ready": True, "restartCount": 1, "image": "x", "imageID": "",
               "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}}  # fmt: skip
    # An object that is put up to date when it is asked for.
    api.before.append(lambda: api.get("pods", "kubeflow", "p") or api.put(pod(containerStatuses=[running])))
    read = admin.core.read_namespaced_pod_log
    assert read("p", "kubeflow") == "second\n" and read("p", "kubeflow", previous=True) == "first\n"
    path = "/api/v1/namespaces/kubeflow/pods/p/log"
    query = {"query_params": [("sinceTime", "2026-01-01T00:00:00Z"), ("sinceSeconds", "5")]}
    code, status = refused(admin.client.call_api, path, "GET", auth_settings=["BearerToken"], **query)
    assert code == 422 and "at most one of" in status["message"]


def test_events_are_found_by_their_object(api, admin):
    made = api.put(pod("p"))
    api.event(made, "FailedScheduling", "0/3 nodes are available", kind="Warning")
    find = admin.core.list_namespaced_event
    (event,) = find("kubeflow", field_selector="involvedObject.name=p,type=Warning").items
    assert (event.reason, event.involved_object.uid) == ("FailedScheduling", made["metadata"]["uid"])
    assert find("kubeflow", field_selector="involvedObject.name=q").items == []


# -- the controller of Trainer -----------------------------------------------------------------------------------------


def test_the_trainer_makes_pods_and_reports(api, admin):
    install_trainer(api)
    made = admin.custom.create_namespaced_custom_object(
        *TRAIN, job(trainer={"numNodes": 2, "resourcesPerNode": {"requests": {"cpu": 4}}})
    )
    trainer = TrainerController(api, made)
    assert "status" not in made and trainer.backoff_limit == 6
    pods = trainer.start()
    environment = {e["name"]: e["value"] for e in pods[1]["spec"]["containers"][0]["env"]}
    assert environment["PET_NNODES"] == "2" and environment["PET_NODE_RANK"] == "1"
    assert environment["PET_NPROC_PER_NODE"] == "4"  # of the cores, unless it is said
    assert environment["PET_MASTER_ADDR"] == "train-node-0-0.train"
    read = lambda: admin.custom.get_namespaced_custom_object(*TRAIN, "train")["status"]  # noqa: E731
    assert read()["jobsStatus"][0]["active"] == 1 and "conditions" not in read()
    trainer.complete()
    assert read()["conditions"][0]["reason"] == "AllJobsCompleted"
    admin.custom.delete_namespaced_custom_object(*TRAIN, "train")
    assert api.all("pods") == []


def test_a_job_with_a_long_name_is_silent_but_for_an_event(api, admin):
    install_trainer(api)
    made = admin.custom.create_namespaced_custom_object(*TRAIN, job("x" * 55))
    assert TrainerController(api, made).start() == []
    assert "status" not in admin.custom.get_namespaced_custom_object(*TRAIN, "x" * 55)
    (event,) = admin.core.list_namespaced_event(
        "kubeflow", field_selector=f"involvedObject.name={'x' * 55}"
    ).items
    assert event.reason == "TrainJobResourcesCreationFailed"
