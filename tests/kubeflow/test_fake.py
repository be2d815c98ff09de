"""The fake server's own behaviours: each is what the real server's sources say (paths as in `tests.kubeflow.fake`)."""

from __future__ import annotations

import dataclasses
import json
import os
import time

import httpx
import pytest

from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner

from .fake import VERSIONS, FakeKfp, wait_for
from .fake.platform import ignored_fields
from .fake_gate import certificate

every_version = pytest.mark.parametrize("version", VERSIONS)
API = "/apis/v2beta1"


def pipeline(
    names=("a",), *, command="exit 0", needs=None, retry=None, platform=None, container=None
) -> dict:
    """Return a pipeline of shell commands as the API takes it."""
    tasks, components, executors = {}, {}, {}
    commands = command if isinstance(command, dict) else dict.fromkeys(names, command)
    for name in names:
        tasks[name] = {
            "componentRef": {"name": f"comp-{name}"},
            "taskInfo": {"name": name},
            "dependentTasks": (needs or {}).get(name, []),
            "inputs": {"parameters": {}},
            **({"retryPolicy": retry} if retry else {}),
        }
        components[f"comp-{name}"] = {"executorLabel": f"exec-{name}"}
        executors[f"exec-{name}"] = {
            "container": {
                "image": "example.org/a:1",
                "command": ["sh", "-c", commands[name]],
                **(container or {}),
            }
        }
    spec = {
        "schemaVersion": "2.1.0",
        "pipelineInfo": {"name": "demo"},
        "root": {"dag": {"tasks": tasks}},
        "components": components,
        "deploymentSpec": {"executors": executors},
    }
    if platform is None:
        return spec
    per = {f"exec-{name}": platform for name in names}
    return {
        "pipeline_spec": spec,
        "platform_spec": {"platforms": {"kubernetes": {"deploymentSpec": {"executors": per}}}},
    }


class Client:
    def __init__(self, kfp: FakeKfp, **headers: str) -> None:
        self.kfp = kfp
        self.http = httpx.Client(base_url=kfp.host, headers=headers, timeout=20)
        self.experiment = ""

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.http.post(API + path, json=body)

    def create(self, spec: dict, **more: object) -> httpx.Response:
        if not self.experiment:
            answer = self.post("/experiments", display_name="e", namespace="kubeflow")
            self.experiment = answer.json()["experiment_id"]
        body = {
            "display_name": "r",
            "pipeline_spec": spec,
            "runtime_config": {},
            "experiment_id": self.experiment,
        }
        return self.post("/runs", **{**body, **more})

    def run(self, spec: dict, **more: object) -> str:
        answer = self.create(spec, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["run_id"]

    def get(self, run_id: str) -> dict:
        return self.http.get(f"{API}/runs/{run_id}").json()

    def ended(self, run_id: str) -> dict:
        return wait_for(lambda: (run := self.get(run_id))["state"] in ("FAILED", "SUCCEEDED") and run)

    def tasks(self, run_id: str) -> dict[str, str | None]:
        details = self.get(run_id).get("run_details", {}).get("task_details", ())
        return {detail["display_name"]: detail.get("state") for detail in details}

    def nodes(self, run_id: str) -> dict[str, dict]:
        answer = self.http.get(f"/apis/v1beta1/runs/{run_id}").json()
        manifest = json.loads(answer["pipeline_runtime"]["workflow_manifest"])
        return {node["name"].partition(".")[2]: node for node in manifest["status"]["nodes"].values()}


@pytest.fixture
def client(kfp):
    client = Client(kfp)
    yield client
    client.http.close()


# -- rows: apiserver/model/run.go:207-211, client_manager.go:342-347, resource_manager.go:742-772 --------------------


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("description", "x" * 256, "1406"),
        ("display_name", "x" * 256, "1406"),
        ("description", "a 😀", "1366"),
        ("run_id", "x" * 192, "1406"),
    ],
)
def test_a_row_that_does_not_fit_is_500_after_its_workflow_started(client, kfp, field, value, error):
    answer = client.create(pipeline(), **{field: value})
    assert (answer.status_code, answer.json()["code"]) == (500, 13)
    assert "Failed to store run" in answer.json()["message"] and error in answer.json()["message"]
    assert len(kfp.workflows) == 1 and not kfp.runs


def test_a_pipeline_with_a_character_that_utf8mb3_lacks_is_not_stored(client):
    answer = client.create(pipeline(container={"env": [{"name": "A", "value": "😀"}]}))
    assert "1366" in answer.json()["message"]


def test_a_second_run_of_one_id_is_500_and_its_workflow_runs_on(client, kfp):
    run_id = client.run(pipeline(command="sleep 1"), run_id="one")
    answer = client.create(pipeline(command="sleep 1"), run_id=run_id)
    assert answer.status_code == 500 and "Duplicate entry" in answer.json()["message"]
    assert [w.run_id for w in kfp.workflows] == ["one", "one"]


def test_a_workflow_without_a_run_is_deleted_after_its_grace(client, kfp):
    kfp.gc_grace = 0.2
    client.create(pipeline(command="sleep 300"), description="x" * 256)
    wait_for(lambda: kfp.workflows[0].collected)


@pytest.mark.parametrize(
    "spec",
    [
        {**pipeline(), "schemaVersion": "2.0.0"},
        pipeline(platform={"unknownField": 1}),
        pipeline(("x", "x-driver")),
        pipeline(container={"args": ["x" * (4 << 20)]}),
    ],
)
def test_a_refused_pipeline_is_500_and_starts_nothing(client, kfp, spec):
    """apiserver/resource/resource_manager.go:638-675, 747"""
    answer = client.create(spec)
    assert (answer.status_code, answer.json()["code"]) == (500, 13) and not kfp.workflows


def test_the_name_of_an_experiment_ends_at_128_characters_and_ignores_case(client):
    assert client.post("/experiments", display_name="x" * 129).status_code == 400
    assert client.post("/experiments", display_name="One").status_code == 200
    assert client.post("/experiments", display_name="one").status_code == 409


def test_a_run_that_is_told_has_more_than_was_sent(client):
    run = client.ended(client.run(pipeline()))
    assert run["service_account"] == "pipeline-runner" and run["state_history"][0]["state"] == "PENDING"
    assert not {"runtime_config", "description", "recurring_run_id"} & set(run)
    assert run["scheduled_at"].startswith("1970") and not run["finished_at"].startswith("1970")


# -- filters and pages: apiserver/server/list_request_util.go:90, 143, 215 -------------------------------------------


def listed(client: Client, text: str, **query: str) -> httpx.Response:
    found = {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": text}]}
    return client.http.get(f"{API}/experiments", params={"filter": json.dumps(found), **query})


def test_a_filter_is_unescaped_twice_and_ignores_case(client):
    for name in ("a+b", "c%d", "Case"):
        client.post("/experiments", display_name=name)
    assert "experiments" not in listed(client, "a+b").json()
    assert len(listed(client, "a%2Bb").json()["experiments"]) == 1
    assert listed(client, "c%d").status_code == 400
    assert len(listed(client, "cASE").json()["experiments"]) == 1


def test_a_page_token_belongs_to_its_filter(client):
    for i in range(5):
        client.post("/experiments", display_name=f"e{i}")
    first = client.http.get(f"{API}/experiments").json()
    token = first["next_page_token"]
    assert client.http.get(f"{API}/experiments", params={"page_token": token}).status_code == 200
    assert listed(client, "e1", page_token=token).status_code == 400


# -- states: storage/run_store.go:823, common/util/workflow.go:314-318 -----------------------------------------------


@every_version
def test_a_terminated_run_is_canceling_and_then_failed(client, kfp):
    run_id = client.run(pipeline(command="sleep 300"))
    wait_for(lambda: kfp.run.tasks["a"].process)
    kfp.pausing = True
    assert client.post(f"/runs/{run_id}:terminate").status_code == 200
    run = client.ended(run_id)
    assert run["state"] == "FAILED"
    assert [each["state"] for each in run["state_history"]][-2:] == ["CANCELING", "FAILED"]
    assert client.post(f"/runs/{run_id}:terminate").status_code == 400
    node = next(n for n in client.nodes(run_id).values() if n["displayName"].startswith("executor"))
    assert node["phase"] == "Failed"


def test_a_stage_without_sigterm_is_killed_after_its_grace(client, kfp):
    kfp.term_reaches_python, kfp.grace = False, 0.3
    run_id = client.run(pipeline(command="trap 'echo got it' TERM; while true; do sleep 0.1; done"))
    task = wait_for(lambda: kfp.run.tasks["a"].process) and kfp.run.tasks["a"]
    client.post(f"/runs/{run_id}:terminate")
    assert wait_for(lambda: task.ended()) == -9 and "got it" not in task.log


def test_a_runs_state_is_stored_before_its_tasks(client, kfp):
    """apiserver/server/report_server.go"""
    kfp.agent_lag = 1.0
    run_id = client.run(pipeline())
    client.ended(run_id)
    assert client.tasks(run_id).get("a") != "SUCCEEDED"
    wait_for(lambda: client.tasks(run_id).get("a") == "SUCCEEDED")


# -- nodes: common/util/workflow.go:906-918, argo dag.go:199-224 -----------------------------------------------------


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("2.5", {"root-driver", "root", "a-driver", "a", "executor"}),
        ("2.14", {"root-driver", "root", "a-driver", "a", "executor"}),
        ("2.17", {"root-driver(0)", "root(0)", "a-driver(0)", "a", "a(0)", "executor", "executor(0)"}),
    ],
)
def test_names_of_nodes(client, version, names):
    run_id = client.run(pipeline())
    client.ended(run_id)
    wait_for(lambda: names <= set(client.tasks(run_id)))
    assert ("a(0)" in client.tasks(run_id)) == (version == "2.17")


@every_version
def test_stages_that_were_not_reached_are_absent_and_followers_have_no_state(client):
    command = {"bad": "exit 1", "first": "sleep 1", "later": "exit 0", "after": "exit 0"}
    spec = pipeline(tuple(command), command=command, needs={"later": ["first"], "after": ["bad"]})
    run_id = client.run(spec)
    assert client.ended(run_id)["state"] == "FAILED"
    wait_for(lambda: client.tasks(run_id).get("first") == "SUCCEEDED")
    tasks = client.tasks(run_id)
    assert tasks["bad"] == "FAILED" and "later" not in tasks and tasks["after"] is None


def test_tasks_have_ids_of_nodes_in_place_of_pods_and_no_error(client):
    run_id = client.run(pipeline(command="exit 2"))
    client.ended(run_id)

    def executors() -> list[dict]:
        # Tasks are stored after the run's state.
        details = client.get(run_id).get("run_details", {}).get("task_details", [])
        return [d for d in details if d["display_name"] == "executor"] and details

    details = wait_for(executors)
    executor = next(d for d in details if d["display_name"] == "executor")
    assert not any("pod_name" in d or "error" in d for d in details)
    node = next(n for n in client.nodes(run_id).values() if n["displayName"] == "executor(0)")
    assert executor["child_tasks"] == [{"pod_name": node["id"]}]
    assert node["message"] == "Error (exit code 2)"


@every_version
def test_labels_of_pods(client, kfp):
    """Up to 2.5 the first task's metadata is on every pod (2.5.0 v2/compiler/argocompiler/container.go:276-289,447)."""
    spec = pipeline(("a", "b"), command="sleep 5", platform={})
    executors = spec["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name in "ab":
        executors[f"exec-{name}"] = {"podMetadata": {"labels": {"of": name}}}
    run_id = client.run(spec)
    wait_for(lambda: kfp.run.tasks["b"].process)
    answer = client.http.get(
        "/api/v1/namespaces/kubeflow/pods", params={"labelSelector": f"pipeline/runid={run_id}"}
    )
    pods = answer.json()["items"]
    (pod,) = (p for p in pods if ".b" in p["metadata"]["annotations"]["workflows.argoproj.io/node-name"]
              and "driver" not in p["metadata"]["annotations"]["workflows.argoproj.io/node-name"])  # fmt: skip
    assert pod["metadata"]["labels"]["of"] == ("a" if kfp.version < (2, 14) else "b")
    assert sum("driver" in p["metadata"]["name"] for p in pods) == 3


def test_pods_go_with_their_workflow(client, kfp):
    """The workflow's TTL: 3600 s in 2.17."""
    kfp.ttl = 0.2
    run_id = client.run(pipeline())
    client.ended(run_id)
    wait_for(lambda: kfp.run.workflow.collected)
    answer = client.http.get(
        "/api/v1/namespaces/kubeflow/pods", params={"labelSelector": f"pipeline/runid={run_id}"}
    )
    assert answer.json()["items"] == []


# -- retries: argo operator.go:1028-1125, 2133; argo/util/intstr/parametrizable.go:12-45 -----------------------------


@pytest.mark.parametrize(("version", "tries"), [("2.5", 3), ("2.14", 3), ("2.17", 1)])
def test_a_command_that_fails_is_tried_again_until_the_policy_became_onerror(client, kfp, tries):
    client.ended(client.run(pipeline(command="exit 1", retry={"maxRetryCount": 2})))
    assert kfp.run.tasks["a"].tries == tries


@pytest.mark.parametrize(("version", "tries"), [("2.5", 1), ("2.14", 1), ("2.17", 3)])
def test_a_pod_that_is_lost_is_tried_again_unasked_since_2_17(client, kfp, tries):
    run_id = client.run(pipeline(command="sleep 300"))
    task = wait_for(lambda: kfp.run.tasks["a"].process) and kfp.run.tasks["a"]
    while client.get(run_id)["state"] not in ("FAILED", "SUCCEEDED"):
        task.lost = True
        time.sleep(0.05)
    assert task.tries == tries


@pytest.mark.parametrize("version", ["2.14"])
def test_the_longest_duration_and_the_factor_of_retries(client, kfp):
    retry = {"maxRetryCount": 2, "backoffDuration": "5s", "backoffMaxDuration": "1s"}
    run_id = client.run(pipeline(command="exit 1", retry=retry))
    client.ended(run_id)
    assert any(n.get("message") == "Max duration limit exceeded" for n in client.nodes(run_id).values())
    run_id = client.run(pipeline(command="exit 1", retry={"maxRetryCount": 2, "backoffFactor": 1.5}))
    client.ended(run_id)
    assert any("strconv.Atoi" in n.get("message", "") for n in client.nodes(run_id).values())


# -- drivers, pods and settings: v2/driver/k8s.go, kubernetes_platform/proto -----------------------------------------


@pytest.mark.parametrize(
    ("platform", "since"),
    [
        ({"secretAsEnv": [{"secretName": "s", "keyToEnv": []}]}, "2.5"),
        ({"secretAsEnv": [{"secretName": "s", "keyToEnv": [], "optional": False}]}, "2.15"),
        ({"pvcMount": [{"pvcName": "p", "mountPath": "/p", "subPath": "x"}]}, "2.17"),
        ({"securityContext": {"runAsUser": 1}}, "2.17"),
        ({"nodeAffinity": []}, "2.5"),
    ],
)
@every_version
def test_a_setting_is_known_since_a_version(client, kfp, platform, since):
    """argocompiler/container.go: 2.14 parses strictly; 2.5 (:445-447) drops the labels of the pod."""
    kfp.secrets["s"] = {}
    known = kfp.version >= tuple(map(int, since.split(".")))
    answer = client.create(pipeline(platform={**platform, "podMetadata": {"labels": {"a": "b"}}}))
    assert answer.status_code == (200 if known or kfp.version < (2, 14) else 500)
    if answer.status_code == 500:
        assert "unknown field" in answer.json()["message"]
    else:
        flow = kfp.workflows[0]
        assert flow.pod_labels(flow.tasks["a"]) == ({"a": "b"} if known else {})


@pytest.mark.parametrize(
    ("platform", "versions"),
    [
        ({"nodeAffinity": []}, ["2.5"]),
        ({"podAffinity": []}, ["2.5", "2.14", "2.17"]),
        ({"securityContext": {}}, ["2.5"]),
        ({"tolerations": []}, []),
    ],
)
def test_settings_that_a_server_takes_and_ignores(platform, versions):
    """v2/driver/k8s.go reads node affinity since 2.14, and no affinity of pods."""
    found = [v for v in ("2.5", "2.14", "2.17") if ignored_fields(platform, tuple(map(int, v.split("."))))]
    assert found == versions


@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ({"secretAsVolume": [{"secretName": "a.b", "mountPath": "/a"}]}, "DNS-1123"),
        ({"pvcMount": [{"pvcName": "p", "mountPath": f"/{n}"} for n in "ab"]}, "Duplicate value"),
        ({"tolerations": [{"effect": "NoSchedule", "tolerationSeconds": 5}]}, "must be 'NoExecute'"),
        (
            {"nodeAffinity": [{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["x"]}]}]},
            "an integer",
        ),
        ({"nodeAffinity": [{"matchExpressions": [{"key": "a", "operator": "In"}]}]}, "Required value"),
        ({"fieldPathAsEnv": [{"name": "A", "fieldPath": "spec.hostname"}]}, "Unsupported value"),
        ({"genericEphemeralVolume": [{"volumeName": "w", "mountPath": "/w", "size": "1Gi"}]}, "accessModes"),
    ],
)
@pytest.mark.parametrize("version", ["2.14"])
def test_a_pod_that_kubernetes_refuses_is_an_error_of_its_node(client, platform, message):
    run_id = client.run(pipeline(platform=platform))
    assert client.ended(run_id)["state"] == "FAILED"
    # Nodes are stored after the run's state.
    wait_for(lambda: any(message in n.get("message", "") for n in client.nodes(run_id).values()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"container": {"resources": {"resourceMemoryLimit": "4K"}}}, b"quantities must match"),
        (
            {"platform": {"genericEphemeralVolume": [{"volumeName": "w", "mountPath": "/w", "size": "4K"}]}},
            b"cannot parse '4K'",
        ),
    ],
)
def test_a_driver_fails_on_a_quantity_that_kubernetes_cannot_read(client, kfp, settings, said):
    run_id = client.run(pipeline(**settings))
    assert client.ended(run_id)["state"] == "FAILED"
    (driver,) = (n for n in kfp.run.workflow.nodes.values() if n.kind == "Pod" and n.phase == "Failed")
    assert said in driver.log and driver.message == "main: Error (exit code 1)"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"powerless": {"pipeline-runner"}}, 'configmaps "kfp-launcher" is forbidden'),
        ({"metadata": False}, "code = Unavailable"),
        ({}, "unsupported Cloud bucket: 'az://x/y'"),
    ],
)
def test_the_first_driver_fails_with_a_reason_that_only_its_log_has(client, kfp, broken, reason):
    """v2/driver/root_dag.go, argo operator.go (inferFailedReason)"""
    for name, value in broken.items():
        setattr(kfp, name, value)
    more = {} if broken else {"runtime_config": {"pipeline_root": "az://x/y"}}
    run_id = client.run(pipeline(), **more)
    assert client.ended(run_id)["state"] == "FAILED" and "a" not in client.tasks(run_id)
    (driver,) = (n for n in kfp.run.workflow.nodes.values() if n.kind == "Pod")
    assert (driver.phase, driver.message) == ("Failed", "main: Error (exit code 1)")
    assert reason in driver.log.decode()
    query = {"podname": driver.pod, "runid": run_id, "podnamespace": "kubeflow"}
    assert client.http.get("/k8s/pod/logs", params=query).content == driver.log


def test_a_driver_is_a_pod_that_takes_its_time(client, kfp):
    kfp.driver_seconds = 3600
    run_id = client.run(pipeline())
    wait_for(lambda: any(name.startswith("a-driver") for name in client.tasks(run_id)))
    assert "a" not in client.tasks(run_id) and kfp.run.tasks["a"].process is None
    kfp.driver_seconds = 0
    assert client.ended(run_id)["state"] == "SUCCEEDED"


def test_a_stage_ends_at_its_deadline(client):
    run_id = client.run(pipeline(command="sleep 300", platform={"activeDeadlineSeconds": "1"}))
    assert client.ended(run_id)["state"] == "FAILED"
    assert any(
        "longer than the specified deadline" in n.get("message", "") for n in client.nodes(run_id).values()
    )


@pytest.mark.parametrize("image", ["python:3.11-slim", "nowhere.org/x:1"])
def test_an_image_without_kfp_fails_and_one_that_is_not_there_waits(client, kfp, image):
    """sdk/python/kfp/dsl/component_factory.py:503-586"""
    run_id = client.run(pipeline(container={"image": image}, command="python3 -m kfp.dsl.executor_main"))
    if image.startswith("python"):
        client.ended(run_id)
        assert "No module named 'kfp'" in kfp.run.tasks["a"].log
    else:
        wait_for(
            lambda: any("ImagePullBackOff" in n.get("message", "") for n in client.nodes(run_id).values())
        )
        assert client.get(run_id)["state"] == "RUNNING"


def test_a_quota_leaves_a_run_without_a_pod_and_without_an_end(client, kfp):
    kfp.refused_pods["a"] = "exceeded quota"
    run_id = client.run(pipeline())
    wait_for(lambda: any("exceeded quota" in n.get("message", "") for n in client.nodes(run_id).values()))
    assert client.get(run_id)["state"] == "RUNNING"
    answer = client.http.get(
        "/api/v1/namespaces/kubeflow/pods", params={"labelSelector": f"pipeline/runid={run_id}"}
    )
    assert all("driver" in pod["metadata"]["name"] for pod in answer.json()["items"])


def test_a_service_account_that_is_not_there(client):
    run_id = client.run(pipeline(), service_account="nobody")
    assert client.ended(run_id)["state"] == "FAILED"
    assert any(
        'serviceaccount "nobody" not found' in n.get("message", "") for n in client.nodes(run_id).values()
    )


@pytest.mark.parametrize(
    ("uri", "state"),
    [
        ("s3://lake/m", "FAILED"),
        ("minio://mlpipeline/v2/artifacts/m", "SUCCEEDED"),
        ("ssh://x/m", "SUCCEEDED"),
    ],
)
def test_an_artifact_outside_the_pipeline_root_fails_a_stage_that_succeeded(client, kfp, uri, state):
    """v2/component/launcher_v2.go:805-822, v2/objectstore/config.go:101-104"""
    written = json.dumps({"artifacts": {"m": {"artifacts": [{"uri": uri}]}}})
    spec = pipeline(command=f"echo '{written}' > executor_output.json")
    # The launcher takes artifacts that the component declares, and no others.
    declared = {"artifacts": {"m": {"artifactType": {"schemaTitle": "system.Model"}}}}
    spec["components"]["comp-a"]["outputDefinitions"] = declared
    run_id = client.run(spec)
    assert client.ended(run_id)["state"] == state
    assert ("does not have expected bucket prefix" in kfp.run.tasks["a"].log) == (state == "FAILED")


# -- sizes: argo common.go:280, workflowpod.go:462-541, packer.go:15-20; apiserver/config/config.json ----------------


def test_a_long_template_needs_a_right_that_argo_does_not_have(client, kfp):
    run_id = client.run(pipeline(container={"args": ["\n" * 60_000]}))
    assert client.ended(run_id)["state"] == "FAILED"
    assert any("configmaps is forbidden" in n.message for n in kfp.run.workflow.nodes.values())


def test_a_workflow_of_more_than_a_mebibyte_fails_and_a_larger_one_is_refused(client):
    run_id = client.run(pipeline(container={"env": [{"name": "A", "value": "x" * (1 << 20)}]}))
    assert client.ended(run_id)["state"] == "FAILED"
    answer = client.create(pipeline(container={"env": [{"name": "A", "value": "x" * (2 << 20)}]}))
    assert answer.status_code == 500 and "etcdserver: request is too large" in answer.json()["message"]


def test_compressed_nodes_are_not_reported(client, kfp):
    run_id = client.run(
        pipeline(container={"env": [{"name": "A", "value": "x" * 1_040_000}]}, command="sleep 1")
    )
    wait_for(lambda: kfp.run.workflow.compressed)
    client.ended(run_id)
    answer = client.http.get(f"/apis/v1beta1/runs/{run_id}").json()
    status = json.loads(answer["pipeline_runtime"]["workflow_manifest"])["status"]
    assert "nodes" not in status and "compressedNodes" in status


def test_a_run_with_too_many_nodes_cannot_be_read(client, kfp):
    run_id = client.run(pipeline())
    client.ended(run_id)
    kfp.run.tasks_seen = [{}] * 3200
    assert client.http.get(f"{API}/runs/{run_id}").status_code == 500


# -- logs: server/run_log_server.go:61, frontend/server/app.ts -------------------------------------------------------


def test_the_api_servers_log_route_answers_200_with_an_error(client, kfp):
    kfp.ui_host, kfp.archived_logs = False, False
    run_id = client.run(pipeline(command="echo hello"))
    client.ended(run_id)
    pod = next(n for n in kfp.run.workflow.pods() if n.task)
    answer = client.http.get(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod.pod}/log")
    assert answer.status_code == 200 and "error_message" in answer.json()
    kfp.archived_logs = True
    assert client.http.get(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod.pod}/log").text == "hello\n"
    assert "error_message" in client.http.get(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod.id}/log").json()


def test_the_uis_host_has_another_route(client, kfp):
    run_id = client.run(pipeline(command="echo hello"))
    client.ended(run_id)
    pod = next(n for n in kfp.run.workflow.pods() if n.task)
    assert client.http.get(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod.pod}/log").status_code == 404
    query = {"podname": pod.pod, "runid": run_id, "podnamespace": "kubeflow"}
    assert client.http.get("/k8s/pod/logs", params=query).text == "hello\n"


# -- login and namespaces --------------------------------------------------------------------------------------------


def test_the_proxy_wants_all_parts_of_its_cookie_until_they_expire(kfp):
    """kubeflow/manifests, common/oauth2-proxy/base/oauth2_proxy.cfg"""
    kfp.cookies = {"oauth2_proxy_kubeflow_0": "a", "oauth2_proxy_kubeflow_1": "b"}
    kfp.tokens = {"t"}
    path = f"{API}/experiments"

    def status(**headers: str) -> int:
        return httpx.get(kfp.host + path, headers=headers).status_code

    assert status() == status(Cookie="oauth2_proxy_kubeflow_0=a") == 401
    assert status(Cookie="oauth2_proxy_kubeflow_0=a; oauth2_proxy_kubeflow_1=b") == 200
    assert status(Authorization="Bearer t") == 200
    assert httpx.get(kfp.host + "/").status_code == 302
    kfp.cookies_until = time.time() - 1
    assert status(Cookie="oauth2_proxy_kubeflow_0=a; oauth2_proxy_kubeflow_1=b") == 401


def test_multi_user_mode_wants_a_namespace_and_a_right(client, kfp):
    kfp.multi_user = True
    kfp.allowed = {kfp.user: {"mine"}}
    assert client.post("/experiments", display_name="e").status_code == 400
    answer = client.post("/experiments", display_name="e", namespace="theirs")
    assert (answer.status_code, answer.json()["code"]) == (403, 7)
    assert client.post("/experiments", display_name="e", namespace="mine").status_code == 200
    assert client.http.get(f"{API}/experiments").status_code == 400


def test_a_host_with_a_certificate_of_its_own_authority(tmp_path, settings, project, forks):
    tls, file = certificate(tmp_path, "127.0.0.1")
    kfp = FakeKfp(tmp_path / "secure")
    kfp.tls, kfp.popen = tls, forks.popen
    with kfp:
        settings = dataclasses.replace(settings, host=kfp.host, outage=0.2)
        with KfpClusterRunner(project.repo, settings) as runner:
            with pytest.raises(RunnerError, match="CERTIFICATE_VERIFY_FAILED"):
                runner.start(project.step("a", "echo 1 > a", outs=["a"]))
        trusting = dataclasses.replace(settings, ca_file=file)
        with KfpClusterRunner(project.repo, trusting) as runner:
            assert not runner.start(project.step("a", "echo 1 > a", outs=["a"])).wait(60).failed


@pytest.mark.parametrize("dropped", [True, False])
def test_a_stage_without_capabilities(kfp, project, settings, forks, dropped):
    """v2/driver/security_context.go, since 2.16: ``chown`` and what else needs a capability fail, and a stage runs."""
    kfp.popen, kfp.drops_capabilities = forks.popen, dropped
    show = "grep CapEff /proc/self/status > caps; mkdir d && echo 1 > d/x && chmod 600 d/x"
    with KfpClusterRunner(project.repo, settings) as runner:
        result = runner.start(project.step("a", show, outs=["caps", "d"])).wait(60)
        caps = next(out for out in result.outs if out.path == "caps")
        storage = project.repo.remote().storage
        text = storage.read(f"files/md5/{caps.digest[:2]}/{caps.digest[2:]}").decode()
        assert (int(text.split()[1], 16) == 0) == (dropped or os.geteuid() != 0)
