"""Canaries behind an InferenceGraph: the router really has the weights, and each end leaves one version that serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kserve_world import SETTINGS, World, uri, world
from kube_api import Model, Refused, Rule
from kube_api.kserve_graph import ROUTER

from dvkf_prefect.errors import GateError, ServingError
from dvkf_prefect.serving.kserve.canaries import Canary
from dvkf_prefect.serving.kserve.spec import CANARY_OF, MARK

GRAPH = replace(SETTINGS, split="graph")
CASES = [
    pytest.param("0.15", "Standard", marks=pytest.mark.long),
    ("0.15", "Knative"),
    ("0.21", "Standard"),
    pytest.param("0.21", "Knative", marks=pytest.mark.long),
]
MODES = ["Standard", pytest.param("Knative", marks=pytest.mark.long)]
URLS = {"Standard": "http://iris-split.ml.svc.cluster.local", "Knative": "http://iris-split.ml.example.com"}


def graph(w: World):
    return w.api.get("inferencegraphs", "ml", "iris-split", "serving.kserve.io")


def names(w: World) -> list[str]:
    return sorted(each["metadata"]["name"] for each in w.api.all("inferenceservices", "serving.kserve.io"))


def shares(w: World) -> dict[str, int]:
    """Return the weights of the routers that run, by the version that a step's service serves."""
    found: dict[str, int] = {}
    pods = [
        pod
        for pod in w.api.all("pods")
        if "serving.kserve.io/inferencegraph" in pod["metadata"].get("labels", {})
    ]
    for pod in pods:
        arguments = pod["spec"]["containers"][0]["args"]
        for step in json.loads(arguments[1])["nodes"]["root"]["steps"]:
            host = step["serviceUrl"].partition("://")[2].partition(".")[0]
            name = host.removesuffix("-predictor")
            assert step["serviceUrl"].endswith(f"/v1/models/{name}:predict")
            predictor = w.service(name)["spec"]["predictor"]
            version = predictor["model"]["storageUri"].split("/")[-2]
            found[version] = found.get(version, 0) + step["weight"]
    assert sum(found.values()) == 100 * len(pods)
    return {version: weight for version, weight in found.items() if weight}


@pytest.mark.parametrize(("version", "mode"), CASES)
def test_a_graph_splits_promotes_and_aborts(version: str, mode: str) -> None:
    with world(version, mode=mode) as w:
        w.deploy(1)
        canary = w.deploy_canary(2, 20, GRAPH)
        assert canary == Canary("iris", "v1.0.0", "v2.0.0", 20, mode, URLS[mode]) == w.canaries.get("iris")
        assert str(canary).endswith(f"v1.0.0 the rest, at {URLS[mode]}")
        assert shares(w) == {"v1.0.0": 80, "v2.0.0": 20}
        assert len(names(w)) == 2 and [each.service for each in w.services.list()] == ["iris"]
        alone = w.canaries.endpoint("iris")
        assert alone is not None and (alone.version, alone.service) == ("v2.0.0", names(w)[1])
        assert bool(alone.revision) == (mode == "Knative")
        w.deploy_canary(2, 60, GRAPH)
        assert shares(w) == {"v1.0.0": 40, "v2.0.0": 60}
        assert w.canaries.promote("iris").version == "v2.0.0"
        assert (names(w), shares(w), w.canaries.get("iris")) == (["iris"], {"v2.0.0": 100}, None)
        assert CANARY_OF not in w.service()["spec"]["predictor"]["annotations"]
        # The graph stays, so the next canary goes behind it without being asked.
        w.deploy_canary(3, 10)
        w.deploy_canary(4, 10)
        assert shares(w) == {"v2.0.0": 90, "v4.0.0": 10} and len(names(w)) == 2
        assert w.canaries.abort("iris").version == "v2.0.0"
        assert (names(w), shares(w), w.canaries.get("iris")) == (["iris"], {"v2.0.0": 100}, None)
        w.canaries.remove_graph("iris")
        w.pause(2)
        assert graph(w) is None and names(w) == ["iris"]
        assert not [pod for pod in w.api.all("pods") if "split" in pod["metadata"]["name"]]


@pytest.mark.parametrize("mode", MODES)
def test_a_request_finds_a_pod_at_every_moment(mode: str) -> None:
    """Of each router that is ready, each step with requests has a service with a pod that is ready."""

    def ready(pod: dict) -> bool:
        return {"type": "Ready", "status": "True"} in pod["status"]["conditions"]

    def look() -> None:
        pods = [pod for pod in w.api.all("pods") if "status" in pod and ready(pod)]
        labels = [pod["metadata"]["labels"] for pod in pods]
        serving = {each.get("serving.kserve.io/inferenceservice") for each in labels}
        assert "iris" in serving
        for pod in pods:
            if "serving.kserve.io/inferencegraph" not in pod["metadata"]["labels"]:
                continue
            seen.append(1)
            graph = json.loads(pod["spec"]["containers"][0]["args"][1])
            for step in graph["nodes"]["root"]["steps"]:
                name = step["serviceUrl"].partition("/v1/models/")[2].removesuffix(":predict")
                assert not step["weight"] or name in serving, (name, serving)

    seen: list[int] = []
    with world("0.21", mode=mode) as w:
        w.deploy(1)
        w.watch.append(look)
        w.deploy_canary(2, 20, GRAPH)
        w.deploy_canary(2, 90, GRAPH)
        w.canaries.promote("iris")
        w.deploy_canary(3, 50)
        w.canaries.abort("iris")
        w.deploy_canary(4, 0)
        w.deploy(5)
        w.canaries.end_graph("iris")
        assert len(seen) > 20 and shares(w) == {"v5.0.0": 100}


def test_a_promotion_keeps_the_pods_and_ends_with_the_mark_of_a_deployment() -> None:
    with world("0.17") as w:
        w.deploy(1, replace(SETTINGS, min_replicas=2, max_replicas=5))
        w.deploy_canary(2, 20, replace(GRAPH, min_replicas=1))
        w.canaries.promote("iris")
        predictor = w.service()["spec"]["predictor"]
        assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 5)
        w.deploy(2, replace(SETTINGS, min_replicas=2, max_replicas=5))
        assert w.service()["spec"]["predictor"]["annotations"][MARK] == predictor["annotations"][MARK]


def test_the_address_follows_the_protocol_of_the_service() -> None:
    with world("0.21") as w:
        settings = replace(GRAPH, protocol="v2", runtime="kserve-mlserver", served_as="flowers")
        w.deploy(1, settings)
        w.deploy_canary(2, 5, settings)
        for step in graph(w)["spec"]["nodes"]["root"]["steps"]:
            assert step["serviceUrl"].endswith(
                "-predictor.ml.svc.cluster.local/v2/models/flowers/infer"
            ) or step["serviceUrl"].endswith("/v2/models/flowers/infer")


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_a_canary_or_router_that_fails_leaves_nothing(mode: str) -> None:
    with world("0.21", mode=mode) as w:
        w.deploy(1)
        w.kserve.models[uri(2)] = Model("crash")
        with pytest.raises(
            ServingError, match=r"(?s)canary iris v2\.0\.0 does not serve .*v1\.0\.0 serves\.$"
        ):
            w.deploy_canary(2, 20, GRAPH)
        assert (names(w), graph(w), w.canaries.get("iris")) == (["iris"], None, None)
        w.pause(2)
        w.kserve.models[ROUTER] = Model("image")
        with pytest.raises(
            ServingError, match=r"the router of graph 'iris-split': .*ImagePullBackOff.*v1\.0\.0 serves\.$"
        ):
            w.deploy_canary(3, 20, GRAPH)
        assert (names(w), graph(w)) == (["iris"], None)
        del w.kserve.models[ROUTER]
        w.pause(2)
        w.deploy_canary(4, 20, GRAPH)
        w.kserve.models[uri(5)] = Model("missing")
        with pytest.raises(ServingError, match=r"v1\.0\.0 serves\.$"):
            w.deploy_canary(5, 20)
        assert (names(w), shares(w)) == (["iris"], {"v1.0.0": 100})


def test_a_promotion_that_fails_leaves_the_canary() -> None:
    with world("0.21") as w:
        w.deploy(1)
        w.deploy_canary(2, 20, GRAPH)
        w.kserve.models[uri(2)] = Model("crash")  # of pods that start from now on
        with pytest.raises(
            ServingError, match=r"(?s)iris v2\.0\.0 does not serve as 'iris': .*v1\.0\.0 serves\.$"
        ):
            w.canaries.promote("iris")
        w.pause(5)
        assert shares(w) == {"v1.0.0": 80, "v2.0.0": 20}
        found = w.canaries.get("iris")
        assert found is not None and (found.stable, found.version) == ("v1.0.0", "v2.0.0")
        w.kserve.models.clear()
        assert w.canaries.promote("iris").version == "v2.0.0"
        assert (names(w), shares(w)) == (["iris"], {"v2.0.0": 100})


def test_a_gate_that_refuses_ends_the_canary() -> None:
    def refuse(endpoint: object, stable: str) -> None:
        assert (endpoint.version, stable) == ("v2.0.0", "v1.0.0")  # type: ignore[attr-defined]
        raise GateError("no", [])

    with world("0.17") as w:
        w.deploy(1)
        with pytest.raises(GateError):
            w.deploy_canary(2, 20, GRAPH, check=refuse)
        assert (names(w), shares(w)) == (["iris"], {"v1.0.0": 100})


def test_the_longest_name_has_a_canary() -> None:
    """Names of KServe's objects leave room for the canary's part."""
    model = "a-model-with-a-name-that-is-much-too-long-for-kserve"
    with world("0.21") as w:
        w.services.deploy(model, "v1.0.0", "digest1", uri(1), GRAPH)
        canary = w.canaries.start(model, "v2.0.0", "digest2", uri(2), GRAPH, percent=20)
        assert len(canary.service) == 38 and max(map(len, names(w))) == 47
        assert w.canaries.promote(model).version == "v2.0.0"


def test_a_version_for_all_ends_the_canary() -> None:
    with world("0.20") as w:
        w.deploy(1)
        w.deploy_canary(2, 20, GRAPH)
        w.deploy(3)
        w.canaries.end_graph("iris")
        assert (names(w), shares(w), w.canaries.get("iris")) == (["iris"], {"v3.0.0": 100}, None)


def test_refusals_change_nothing() -> None:
    with world("0.21") as w:
        with pytest.raises(ServingError, match="serves nothing yet"):
            w.deploy_canary(1, 20, GRAPH)
        w.deploy(1)
        with pytest.raises(ServingError, match="serves this version already"):
            w.deploy_canary(1, 20, GRAPH)
        w.deploy_canary(2, 20)
        with pytest.raises(
            ServingError, match=r"has the canary v2\.0\.0, which is not behind a graph\. Promote"
        ):
            w.deploy_canary(3, 20, GRAPH)
        w.canaries.abort("iris")
        other = {"routerType": "Splitter", "steps": [{"serviceName": "iris", "weight": 100}]}
        w.api.put(
            {
                "apiVersion": "serving.kserve.io/v1alpha1",
                "kind": "InferenceGraph",
                "metadata": {"name": "iris-split", "namespace": "ml"},
                "spec": {"nodes": {"root": other}},
            }
        )
        with pytest.raises(ServingError, match="graph 'iris-split' of namespace 'ml' was not made by dvkf"):
            w.deploy_canary(2, 20, GRAPH)
        w.canaries.remove_graph("iris")
        assert graph(w)["spec"]["nodes"]["root"] == other
        w.services.take_over = True
        w.deploy_canary(2, 20, GRAPH)
        assert shares(w) == {"v1.0.0": 80, "v2.0.0": 20}


def test_a_cluster_without_graphs_is_named() -> None:
    with world("0.21", graphs=False) as w:
        w.deploy(1)
        with pytest.raises(ServingError, match=r"this KServe has no InferenceGraph\. Install its CRD"):
            w.deploy_canary(2, 20, GRAPH)
        assert names(w) == ["iris"]


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("act", ["start", "promote", "abort"])
def test_a_kill_anywhere_is_continued(act: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at each of its calls that change the cluster, without any of its own repairs."""

    def run(w: World) -> None:
        if act == "start":
            w.deploy_canary(2, 20, GRAPH)
        elif act == "promote":
            w.canaries.promote("iris")
        else:
            w.canaries.abort("iris")

    at, done = 0, False
    while not done:
        with world("0.21", mode=mode) as w:
            w.deploy(1)
            if act != "start":
                w.deploy_canary(2, 20, GRAPH)
            calls, dead = 0, False
            for verb in ("apply", "delete", "get"):
                real = getattr(w.kube, verb)

                def call(*arguments, verb=verb, real=real, at=at, **options):
                    nonlocal calls, dead
                    if dead:
                        raise _Killed  # a dead process repairs nothing
                    if verb != "get":
                        calls += 1
                        if calls == at + 1:
                            dead = True
                            real(*arguments, **options)
                            raise _Killed
                    return real(*arguments, **options)

                monkeypatch.setattr(w.kube, verb, call)
            try:
                run(w)
                done = True
            except _Killed:
                monkeypatch.undo()
                w.pause(30)
                serving = [each for each in names(w) if w.service(each)["status"].get("url")]
                assert "iris" in serving
                if act == "start" or w.canaries.get("iris") is not None:
                    run(w)
            monkeypatch.undo()
            w.pause(10)
            expected = {
                "start": {"v1.0.0": 80, "v2.0.0": 20}, "promote": {"v2.0.0": 100}, "abort": {"v1.0.0": 100},
            }[act]  # fmt: skip
            assert shares(w) == expected, at
            assert len(names(w)) == (2 if act == "start" else 1), at
        at += 1
    assert at >= 3


def _run_and_kill(w: World, config: str, act: str, change: int) -> bool:
    """Run an act in a process, and kill that after one of its changes; True if it ended before."""
    child = Path(__file__).with_name("canary_child.py")
    environment = {**os.environ, "PYTHONPATH": str(child.parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(child), config, act],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        for line in process.stdout:
            what, _, seconds = line.partition(" ")
            if what == "pause":
                w.pause(float(seconds))
            elif what.strip() == "change":
                change -= 1
                if change == 0:
                    process.send_signal(signal.SIGKILL)
                    assert process.wait(60) == -signal.SIGKILL
                    return False
            process.stdin.write(f"{w.kserve.now}\n")
            process.stdin.flush()
        assert process.wait(60) == 0
        return True
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.long
@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("act", ["start", "promote", "abort"])
def test_a_process_that_is_killed_is_continued(act: str, mode: str, tmp_path: Path) -> None:
    """SIGKILL after each change of the cluster: the stable version serves, and the same call again goes on."""
    expected = {
        "start": {"v1.0.0": 80, "v2.0.0": 20},
        "promote": {"v2.0.0": 100},
        "abort": {"v1.0.0": 100},
    }[act]
    change, ended = 0, False
    while not ended:
        change += 1
        with world("0.21", mode=mode) as w:
            config = w.api.kubeconfig(tmp_path / f"kubeconfig{change}", namespace="ml")
            w.deploy(1)
            if act != "start":
                w.deploy_canary(2, 20, GRAPH)
            ended = _run_and_kill(w, config, act, change)
            w.pause(30)
            assert w.service("iris")["status"].get("url")
            if not ended and act == "start":
                w.deploy_canary(2, 20, GRAPH)
            elif not ended and w.canaries.get("iris") is not None:
                getattr(w.canaries, act)("iris")
            w.pause(10)
            assert shares(w) == expected, change
            assert len(names(w)) == (2 if act == "start" else 1), change
    assert change >= 3


def test_an_account_without_rights_for_graphs_serves_as_before() -> None:
    with world("0.21") as w:
        everything = ("get", "list", "create", "patch", "delete")
        w.api.rules["small"] = [
            Rule("serving.kserve.io", ("inferenceservices",), everything),
            Rule("", ("pods", "events", "pods/log", "configmaps"), ("get", "list")),
            Rule("apps", ("deployments",), ("get",)),
        ]
        w.services.kube = type(w.kube)(w.login("small"))
        w.deploy(1)
        w.canaries.end_graph("iris")
        assert w.canaries.get("iris") is None
        with pytest.raises(ServingError, match=r"cannot get resource \"inferencegraphs\""):
            w.deploy_canary(2, 20, GRAPH)
        assert names(w) == ["iris"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"serviceUrl": "http://a"}], "missing the 'Weight'"),
        ([{"serviceUrl": "http://a", "weight": 90}], "the sum of traffic weights for all"),
        ([{"weight": 100}], "does not specify an inference target"),
        ([{"serviceUrl": "http://a", "serviceName": "a", "weight": 100}], "specifies more than one of"),
        ([{"name": "a", "serviceUrl": "http://a", "weight": 50}] * 2, "contains more than one step"),
    ],
)  # fmt: skip
def test_the_webhook_of_graphs(steps: list[dict], said: str) -> None:
    from kube_api.kserve_graph import inference_graphs

    obj = {
        "metadata": {"name": "iris-split"},
        "spec": {"nodes": {"root": {"routerType": "Splitter", "steps": steps}}},
    }
    with pytest.raises(Refused) as error:
        inference_graphs().validate(None, obj, None)  # type: ignore[arg-type]
    assert said in str(error.value)
