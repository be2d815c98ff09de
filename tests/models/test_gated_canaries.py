"""Canaries behind gates: on a real server of this machine, and on a cluster in simulated time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kserve_world import World, patch_waits, world
from processes import wait_until
from prometheus_world import prometheus

from dvkf_prefect.blocks import KServeModelServer, ModelServer
from dvkf_prefect.cli import main
from dvkf_prefect.errors import ConfigError, GateError, PromotionError, ServingError
from dvkf_prefect.kube.objects import KubeError
from dvkf_prefect.models.gates import parse_gate
from dvkf_prefect.models.observed import PrometheusApi
from dvkf_prefect.promotion.act import Acting
from dvkf_prefect.promotion.promote import Promotion, promote
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.gating import GateCheck, judge_canary
from dvkf_prefect.serving.kserve import deployment

from .conftest import IDENTITY, Project

MODEL = """
class Model:
    n_features_in_ = 1
    def load(self, folder):
        self.value = int((folder / "value").read_text())
    def predict(self, rows):
        if rows[0][0] < 0:
            raise RuntimeError("negative")
        return [self.value] * len(rows)
"""
DVC = "artifacts:\n  number: {path: number, type: model, meta: {smoke: smoke.json}}\n"


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three versions that predict 1, 2 and 3; the third was recorded as 2, and fails for one of its requests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IDENTITY.items():
            patch.setenv(name, value)
        project = Project(tmp_path_factory.mktemp("numbers") / "project")
        (project.root / "dvc.yaml").write_text(DVC)
        (project.root / "number").mkdir()
        (project.root / "number" / "model.py").write_text(MODEL)
        for value in (1, 2, 3):
            (project.root / "number" / "value").write_text(str(value))
            project.repo.add([project.root / "number"])
            cases = [{"instances": [[0.5]], "predictions": [min(value, 2)]}]
            cases += [{"instances": [[-0.5]], "predictions": [3]}] * (value == 3)
            (project.root / "smoke.json").write_text(json.dumps({"format": 1, "cases": cases}))
            project.commit()
            version = project.registry.register("number")
            facts = {"where": f"s3://models/number/{version.version}/", "format": "sklearn"}
            project.registry.note(version, "published", facts)
        return project


@pytest.fixture
def server(tmp_path: Path, numbers: Project) -> Iterator[ModelServer]:
    block = ModelServer(state_dir=str(tmp_path / "serving"))
    block.deploy(numbers.registry, numbers.registry.show("number", "v0.0.1"))
    yield block
    block.undeploy("number")


def canary_of(server: ModelServer | KServeModelServer) -> tuple[str, str] | None:
    state = server.state("number")
    return (state.canary, state.version) if state and state.canary else None


def start(server: ModelServer, numbers: Project, version: str, *gates: str) -> GateCheck:
    found = numbers.registry.show("number", version)
    check = GateCheck(numbers.registry, found, [parse_gate(gate) for gate in gates])
    server.start_canary(numbers.registry, found, 20, check=check)
    return check


def test_a_canary_that_passes_stays(server: ModelServer, numbers: Project) -> None:
    check = start(server, numbers, "v0.0.2", "smoke")
    assert [finding.passed for finding in check.findings] == [True]
    assert canary_of(server) == ("v0.0.2", "v0.0.1")
    # The canary's own metrics have its smoke request, and none of the stable version's.
    for _ in range(3):
        server.endpoint("number").of_version("v0.0.1").predict([[1.0]])
    (finding,) = judge_canary(
        server, numbers.registry, "number", ["prometheus:errors<1%,p99<10000ms,requests>=1,within=0s"]
    )
    assert finding.passed and finding.detail.startswith("1 requests, 0.00% failed, p99 is ")
    assert server.promote_canary("number").predict([[0.0]]) == [2]


def test_a_canary_that_answers_wrong_is_ended(server: ModelServer, numbers: Project) -> None:
    with pytest.raises(
        GateError, match=r"v0\.0\.1 has all traffic\. smoke failed: case 0 .* is 3, not 2"
    ) as error:
        start(server, numbers, "v0.0.3", "smoke")
    assert [each["passed"] for each in error.value.findings] == [False]
    assert canary_of(server) is None
    assert server.endpoint("number").predict([[0.0]] * 20) == [1] * 20


def test_failed_requests_of_the_canary_end_it(server: ModelServer, numbers: Project) -> None:
    start(server, numbers, "v0.0.2")
    alone = server.candidate("number", "v0.0.2")
    assert alone is not None
    with pytest.raises(ServingError, match="negative"):
        alone.predict([[-1.0]])
    with pytest.raises(GateError, match=r"1 requests, 100\.00% failed"):
        judge_canary(server, numbers.registry, "number", ["prometheus:errors<50%,requests>=1,within=0s"])
    assert canary_of(server) is None
    with pytest.raises(ServingError, match="has no canary to judge"):
        judge_canary(server, numbers.registry, "number", ["smoke"])


@pytest.mark.long
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus is not installed")
def test_the_real_prometheus_judges_canaries(server: ModelServer, numbers: Project, tmp_path: Path) -> None:
    """It scrapes the server of this machine. The canary's requests are over when it is asked first."""
    with prometheus(tmp_path / "prometheus", server.endpoint("number").url) as url:
        api = PrometheusApi(url)

        def send(version: str, good: int, bad: int) -> None:
            alone = server.candidate("number", version)
            assert alone is not None
            for _ in range(good):
                alone.predict([[0.5]])
            for _ in range(bad):
                with pytest.raises(ServingError, match="negative"):
                    alone.predict([[-1.0]])
            query = f'sum(dvkf_requests_total{{version="{version}"}})'
            wait_until(lambda: api.value(query) >= good + bad)

        def judge(limits: str) -> str:
            gate = f"prometheus:{limits},requests>=5,within=0s,url={url}"
            return str(judge_canary(server, numbers.registry, "number", [gate])[0])

        start(server, numbers, "v0.0.2")
        with pytest.raises(GateError, match="it has 0 requests, and 5 are needed"):
            judge("errors<1%")
        start(server, numbers, "v0.0.2")
        send("v0.0.1", 1, 9)  # the stable version's own failures do not count
        send("v0.0.2", 8, 0)
        # Prometheus extrapolates what it scraped between two requests, so counts are near the true ones.
        assert re.search(r"passed: \d+ requests, 0\.00% failed, p99 is ", judge("errors<1%,p99<30000ms"))
        with pytest.raises(GateError, match=r"\d+ requests, p50 is \d+ ms"):
            judge("p50<0.0001ms")
        assert canary_of(server) is None
        start(server, numbers, "v0.0.3")
        send("v0.0.3", 6, 4)
        with pytest.raises(
            GateError, match=r"v0\.0\.1 has all traffic\. .* \d+ requests, [34]\d\.\d\d% failed"
        ):
            judge("errors<10%")
        assert canary_of(server) is None
        assert server.endpoint("number").predict([[0.0]]) == [1]
        start(server, numbers, "v0.0.3")
    with pytest.raises(
        GateError, match=r"not judged: Prometheus at .*: no answer .*Correct its URL, or start it\."
    ):
        judge("errors<10%")
    assert canary_of(server) is None


def test_an_interrupted_check_ends_the_canary(server: ModelServer, numbers: Project) -> None:
    def interrupt(endpoint: object, stable: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.start_canary(numbers.registry, numbers.registry.show("number", "v0.0.2"), 20, check=interrupt)
    assert canary_of(server) is None


@pytest.mark.parametrize(
    ("version", "gates", "said"),
    [
        ("v0.0.3", ["smoke"], "smoke failed: case 0"),
        ("v0.0.3", ["prometheus:errors<1%,requests>=20"], "failed: 20 recorded requests, 50.00% failed"),
        pytest.param(
            "v0.0.3", ["prometheus:p50<1ms,requests>=4"], "failed: 4 recorded", marks=pytest.mark.long
        ),
        pytest.param(
            "v0.0.2",
            ["smoke", "prometheus:errors<1%,p99<20s,requests>=20"],
            "without traffic: smoke passed: 1 recorded requests got their answers; prometheus:errors<1%,p99<20000ms,"
            "requests>=20 passed: 20 recorded requests, 0.00% failed, p99 is",
            marks=pytest.mark.long,
        ),
    ],
    ids=["answers", "errors", "latency", "passed"],
)
def test_a_first_version_is_judged_before_it_serves(
    tmp_path: Path,
    numbers: Project,
    version: str,
    gates: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A preview answers its recorded requests on a port of its own, and then ends."""
    place = ModelServer(state_dir=str(tmp_path / "serving"))
    settings = Promotion(Acting(place), gates=[parse_gate(gate) for gate in gates])
    seen: list[int] = []
    start_preview = ModelServer.start_preview

    def looked_at(self: ModelServer, *arguments: Any) -> Endpoint:
        preview = start_preview(self, *arguments)
        assert self.state("number") is None and preview.predict([[0.0]]) == [int(version[-1])]
        seen.append(preview.pid)
        return preview

    def deployed(self: ModelServer, *arguments: Any) -> Endpoint:
        raise AssertionError("it served")

    monkeypatch.setattr(ModelServer, "start_preview", looked_at)
    try:
        if version != "v0.0.2":
            monkeypatch.setattr(ModelServer, "deploy", deployed)
            with pytest.raises(PromotionError, match=rf"no version is first again. .*{said}"):
                promote(numbers.registry, "number", version, "first", settings)
            assert place.state("number") is None
        else:
            done = promote(numbers.registry, "number", version, "first", settings)
            assert done.steps[4].said.startswith(said)
            assert place.endpoint("number").predict([[0.0]]) == [2]
        assert not Path("/proc", str(seen.pop())).exists() and not seen
    finally:
        place.undeploy("number")


def test_a_wrong_gate_changes_nothing(server: ModelServer, numbers: Project) -> None:
    start(server, numbers, "v0.0.2")
    with pytest.raises(ConfigError, match="is not a gate"):
        judge_canary(server, numbers.registry, "number", ["smoky"])
    assert canary_of(server) == ("v0.0.2", "v0.0.1")


def test_answers_of_the_present_model_are_recorded(
    numbers: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "clone"
    shutil.copytree(numbers.root, root)
    monkeypatch.chdir(root)
    tensor = {"name": "input-0", "shape": [2, 1], "datatype": "FP64", "data": [0.0, 1.0]}
    requests = [{"instances": [[0.0], [1.0]]}, {"inputs": [tensor]}]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    record = ["model", "record-smoke", "number"]
    assert main([*record, "--requests", str(tmp_path / "requests.json"), "--rtol", "0.1"]) == 0
    assert capfd.readouterr().out == "smoke.json has 2 requests. Commit it with the model.\n"
    document = json.loads((root / "smoke.json").read_text())
    rows, tensors = document["cases"]
    assert (rows["predictions"], rows["rtol"], rows["atol"]) == ([3, 3], 0.1, 1e-8)
    assert tensors["outputs"][0]["data"] == [3, 3]
    digest = numbers.registry.show("number", "v0.0.3").digest
    assert document["model_digest"] == digest
    # Recorded again without requests: the same ones, with their tolerances.
    before = (root / "smoke.json").read_bytes()
    assert main(record) == 0
    assert (root / "smoke.json").read_bytes() == before

    (root / "number" / "value").unlink()
    (root / "number" / "value").write_text("7")
    assert main(record) != 0  # not the model that DVC recorded
    assert "It was not loaded" in capfd.readouterr().err
    (tmp_path / "requests.json").write_text('[{"rows": 1}]')
    assert main([*record, "--requests", str(tmp_path / "requests.json")]) != 0
    assert 'each is {"instances": [row, …]}' in capfd.readouterr().err
    (root / "smoke.json").unlink()
    assert main(record) != 0
    assert "has no recorded requests of 'number'" in capfd.readouterr().err
    (root / "dvc.yaml").write_text("artifacts:\n  number: {path: number}\n")
    assert main(record) != 0
    assert "Add `meta: {smoke: smoke.json}` to it" in capfd.readouterr().err


KSERVE = ("--to", "kserve", "-n", "ml", "--service-account", "lake", "--format", "sklearn")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: Project) -> Iterator[World]:
    with world("0.21", mode="Knative") as w:
        patch_waits(monkeypatch, w)
        monkeypatch.setenv("KUBECONFIG", w.api.kubeconfig(tmp_path / "kubeconfig", namespace="ml"))
        monkeypatch.setattr(deployment, "_manifest", lambda place, version: None)
        monkeypatch.chdir(numbers.root)
        yield w


def test_a_refused_canary_of_a_cluster_is_ended(cluster: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "deploy", "number@v0.0.1", *KSERVE]) == 0
    wrong = ["model", "deploy", "number@v0.0.2", *KSERVE, "--gate", "smoke"]
    assert main(wrong) != 0
    assert "--gate judges a canary. Add --canary" in capfd.readouterr().err
    assert main([*wrong[:-2], "--canary", "10", "--gate", "metric:accuracy>=0.9"]) != 0
    said = capfd.readouterr().err
    assert "v0.0.1 has all traffic. metric:accuracy>=0.9 not judged: number v0.0.2 has no metric" in said
    assert main(["model", "canary", "number", "-n", "ml"]) == 0
    assert capfd.readouterr().out == "number has no canary\n"
    gate = "metric:accuracy>=0.9,optional"
    assert main([*wrong[:-2], "--canary", "10", "--gate", gate, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["version"], document["stable"]) == ("v0.0.2", "v0.0.1")
    (finding,) = document["findings"]
    assert (finding["gate"], finding["passed"], finding["blocks"]) == (gate, None, False)
    assert main(["model", "canary", "number", "-n", "ml", "--gate", gate, "--promote"]) == 0
    out = capfd.readouterr().out
    assert out.startswith(f"{gate} not judged: ") and "number v0.0.2 at http://" in out
    assert main(["model", "canary", "number", "-n", "ml", "--gate", gate, "--abort"]) != 0


def test_a_version_of_a_cluster_that_answers_alone(cluster: World) -> None:
    server = KServeModelServer(namespace="ml")
    assert main(["model", "deploy", "number@v0.0.1", *KSERVE]) == 0
    assert (canary_of(server), server.candidate("number", "v0.0.2")) == (None, None)
    stable = server.candidate("number", "v0.0.1")
    assert stable is not None and stable.revision == "number-predictor-00001"
    assert main(["model", "deploy", "number@v0.0.2", *KSERVE, "--canary", "10"]) == 0
    assert canary_of(server) == ("v0.0.2", "v0.0.1")
    canary = server.candidate("number", "v0.0.2")
    assert canary is not None and canary.url == "http://latest-number-predictor.ml.example.com"
    assert server.candidate("number", "v0.0.1") is None


def test_a_preview_on_a_cluster_is_a_service_of_its_own(cluster: World, numbers: Project) -> None:
    server = KServeModelServer(namespace="ml", format="sklearn", service_account="lake")
    version = numbers.registry.show("number", "v0.0.1")
    server.end_preview("number")
    preview = server.start_preview(numbers.registry, version)
    assert preview is not None and preview.url == "http://number-preview.ml.example.com"
    assert server.state("number") is None
    path = "/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices/number-preview"
    assert cluster.kube.get(path)["metadata"]["name"] == "number-preview"
    # After a kill it is there already.
    assert server.start_preview(numbers.registry, version) == preview
    server.end_preview("number")
    with pytest.raises(KubeError, match="not found"):
        cluster.kube.get(path)
    # The service of another model with that name is neither used nor removed.
    other = replace(version, name="number-preview")
    server.deployment().deploy(numbers.registry, other, uri="s3://models/other/v0.0.1/")
    assert server.start_preview(numbers.registry, version) is None
    server.end_preview("number")
    assert cluster.kube.get(path)["metadata"]["name"] == "number-preview"


def test_lineage_names_the_services_of_a_cluster(
    cluster: World, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A canary is found, too, though nothing noted it; a cluster that is gone is left out."""
    assert main(["model", "deploy", "number@v0.0.1", *KSERVE]) == 0
    assert main(["model", "deploy", "number@v0.0.2", *KSERVE, "--canary", "10"]) == 0
    capfd.readouterr()

    def found(*arguments: str) -> list[tuple[str, list[dict[str, str]]]]:
        assert main(["lineage", *arguments, "--json"]) == 0
        document = json.loads(capfd.readouterr().out)
        return [(each["version"]["version"], each["services"]) for each in document]

    service = {"name": "number", "url": "http://number.ml.example.com", "where": "kserve:/ml"}
    assert found("--service", "number") == [("v0.0.2", [service]), ("v0.0.1", [service])]
    assert found("number@v0.0.1") == [("v0.0.1", [service])]
    assert found("number@v0.0.2", "-n", "ml") == [("v0.0.2", [service])]
    assert main(["model", "canary", "number", "-n", "ml", "--promote"]) == 0
    capfd.readouterr()
    assert found("--service", "number") == [("v0.0.2", [service])]
    cluster.api.rules.clear()
    assert found("--service", "number") == []
    assert main(["lineage", "number@v0.0.1"]) == 0
    assert "the services of kserve:/ml cannot be looked up" in caplog.text
