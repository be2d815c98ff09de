"""Gates: as text and as fields, and their findings about versions of a real repository."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest

from dvkf_prefect.errors import ConfigError, ParseError, PredictionError
from dvkf_prefect.models.gates import (
    Candidate,
    MetricGate,
    PrometheusGate,
    SmokeGate,
    judge_all,
    parse_gate,
)
from dvkf_prefect.models.observed import Observed, Series
from dvkf_prefect.models.smoke import parse_smoke
from dvkf_prefect.repo import Repo

from .conftest import IDENTITY, Project

PIPELINE = """\
stages:
  train:
    cmd: cp train.txt model.bin && cp train.json metrics.json && cp train.json other.json
    deps: [train.txt, train.json]
    outs: [model.bin]
    metrics: [{metrics.json: {cache: false}}, {other.json: {cache: false}}]
artifacts:
  classifier: {path: model.bin, type: model, meta: {smoke: smoke.json}}
"""
METRICS = (
    {"accuracy": 0.90, "loss": 0.20, "name": "a", "zero": float("nan")},
    {"accuracy": 0.89, "loss": 0.21, "name": "b", "zero": 1},
)


@dataclass
class Fake:
    """An endpoint with fixed answers."""

    rows: list[Any] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    observed: Observed | None = None
    refuses: bool = False
    url: str = "http://127.0.0.1:9"

    def predict(self, instances: Sequence[object], *, timeout: float = 30.0) -> list[Any]:
        if self.refuses:
            raise PredictionError("rows of 3 features are needed")
        return self.rows

    def infer(
        self, inputs: Sequence[Mapping[str, Any]], *, outputs: Sequence[str] = (), timeout: float = 30.0
    ) -> dict[str, Any]:
        return {"outputs": self.outputs}

    def series(self) -> Sequence[Series]:
        return []

    def observe(self, quantiles: Sequence[float]) -> Observed | None:
        return self.observed


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two versions with metrics; the second has smoke predictions of its own model."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IDENTITY.items():
            patch.setenv(name, value)
        project = Project(tmp_path_factory.mktemp("gates") / "project")
        (project.root / "dvc.yaml").write_text(PIPELINE)
        for number, metrics in enumerate(METRICS):
            (project.root / "train.txt").write_text(f"{number}\n")
            (project.root / "train.json").write_text(json.dumps(metrics))
            Repo.open(project.root).repro()
            if number:
                digest = project.repo.version("model.bin").digest
                cases = [{"instances": [[1.0, 2.0]], "predictions": [3.0]}]
                smoke = {"format": 1, "model_digest": digest, "rtol": 0.01, "cases": cases}
                (project.root / "smoke.json").write_text(json.dumps(smoke))
            project.commit()
            project.registry.register("classifier")
        return project


@pytest.fixture
def candidate(project: Project) -> Candidate:
    registry = project.registry
    return Candidate(
        registry,
        "classifier",
        registry.show("classifier", "v0.0.2"),
        registry.show("classifier", "v0.0.1"),
        Fake(rows=[3.01]),
    )


def test_a_preview_is_judged_by_its_recorded_requests(candidate: Candidate) -> None:
    gate = PrometheusGate(errors=0.5, seconds={99: 10}, requests=20)
    asked = replace(candidate, preview=True)
    assert gate.judge(asked).detail == "20 recorded requests, 0.00% failed, p99 is 0 ms"
    failed = gate.judge(replace(asked, endpoint=Fake(refuses=True)))
    assert (failed.passed, failed.detail[:38]) == (False, "20 recorded requests, 100.00% failed, ")
    few = replace(gate, within=0).judge(asked)
    assert few.passed is None and few.detail.startswith(
        "1 recorded requests were answered in 0 s, and 20 are"
    )
    none = gate.judge(replace(asked, version=candidate.champion))
    assert (
        none.blocks
        and "judged by recorded requests, and 'smoke.json', the smoke predictions of" in none.detail
    )
    assert "another service has its name" in gate.judge(replace(asked, endpoint=None)).detail
    assert "Judge it in a pod" in gate.judge(replace(asked, endpoint=Fake(url=""))).detail


GATES = {
    "metric:accuracy>=champion": MetricGate("accuracy"),
    "metric:accuracy>=champion-0.01": MetricGate("accuracy", change=-0.01),
    "metric:loss<=champion+2%": MetricGate("loss", "lower", change=0.02, relative=True),
    "metric:metrics.json:accuracy>=0.9": MetricGate("metrics.json:accuracy", bound=0.9),
    "metric:score>=-1.5,optional": MetricGate("score", bound=-1.5, optional=True),
    "smoke": SmokeGate(),
    "smoke:timeout=5s,optional": SmokeGate(5, True),
    "prometheus:errors<1%,p99<200ms": PrometheusGate(0.01, {99: 0.2}),
    "prometheus:p99.9<1500ms,requests>=10,within=60s,window=600s,url=http://prom:9090,optional": PrometheusGate(
        None, {99.9: 1.5}, 10, 60, 600, "http://prom:9090", True
    ),
}


@pytest.mark.parametrize("text", GATES)
def test_a_gate_reads_and_writes_its_text_and_its_fields(text: str) -> None:
    gate = GATES[text]
    assert parse_gate(text) == gate
    assert str(gate) == text
    assert parse_gate(json.loads(json.dumps(asdict(gate)))) == gate
    assert parse_gate(gate) is gate


@pytest.mark.parametrize(
    "wrong",
    [
        "", "metric", "metric:accuracy", "metric:accuracy>0.9", "metric:accuracy>=high", "metric:a>=1,b>=2",
        "smoke:now", "smoke:timeout=soon", "prometheus", "prometheus:errors>1%", "prometheus:p200<1s",
        "prometheus:p99<1",
        "prometheus:errors<1%,requests>=0", "prometheus:errors<1%,within=x", "other:x",
        {"kind": "other"}, {"kind": "metric"}, {"kind": "metric", "metric": "a", "odd": 1}, {"metric": "a"},
        {"kind": "metric", "metric": "a", "better": "most"}, {"kind": "smoke", "timeout": 0},
        {"kind": "prometheus", "seconds": {"0": 1}}, {"kind": "prometheus", "seconds": {"x": 1}},
    ],
)  # fmt: skip
def test_a_bad_gate_is_an_error_that_says_what_to_write(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"(Use|Give|Name|Correct) "):
        parse_gate(wrong)


@pytest.mark.parametrize(
    ("gate", "passed", "said"),
    [
        ("metric:metrics.json:accuracy>=champion", False, "it is 0.89, and 0.9 of v0.0.1"),
        ("metric:metrics.json:accuracy>=champion-0.01", True, "it is 0.89, and 0.9 of v0.0.1"),
        ("metric:metrics.json:loss<=champion+4%", False, "it is 0.21"),
        ("metric:metrics.json:loss<=champion+5%", True, "it is 0.21"),
        ("metric:metrics.json:accuracy>=0.9", False, "it is 0.89"),
        ("metric:metrics.json:accuracy<=0.9", True, "it is 0.89"),
        ("metric:accuracy>=0.9", None, "is in several files. Use one of metrics.json:accuracy, other.json:accuracy"),
        ("metric:f1>=0.9", None, "has no metric 'f1'"),
        ("metric:metrics.json:name>=1", None, "is 'b'"),
        ("metric:metrics.json:zero>=champion", None, "v0.0.1 is nan"),
    ],
)  # fmt: skip
def test_metrics_are_compared_with_those_of_the_version_that_serves(
    candidate: Candidate, gate: str, passed: bool | None, said: str
) -> None:
    (finding,) = judge_all([parse_gate(gate)], candidate)
    assert (finding.passed, finding.gate) == (passed, gate)
    assert said in finding.detail
    assert finding.blocks is (passed is not True)


def test_a_first_version_has_nothing_to_be_worse_than(candidate: Candidate) -> None:
    first = Candidate(candidate.registry, "classifier", candidate.version)
    finding = parse_gate("metric:metrics.json:accuracy>=champion").judge(first)
    assert (finding.passed, finding.detail) == (True, "it is 0.89, and no version before it is known")


def test_a_gate_that_cannot_judge_blocks_unless_it_is_optional(candidate: Candidate) -> None:
    required, optional = judge_all(
        [parse_gate("metric:f1>=1"), parse_gate("metric:f1>=1,optional")], candidate
    )
    assert (required.blocks, optional.blocks) == (True, False)
    assert str(optional).startswith("metric:f1>=1,optional not judged: ")


@pytest.mark.parametrize(
    ("endpoint", "passed", "said"),
    [
        (Fake(rows=[3.02]), True, "1 recorded requests got their answers"),
        (Fake(rows=[3.5]), False, "predictions[0] is 3.5, not 3.0"),
        (Fake(rows=["3"]), False, "predictions[0] is '3', not 3.0"),
        (Fake(rows=[]), False, "predictions has 0 values, not 1"),
        (Fake(refuses=True), False, "rows of 3 features are needed"),
        (None, None, "is not served"),
    ],
)
def test_recorded_requests_of_the_version_are_sent_to_its_endpoint(
    candidate: Candidate, endpoint: Fake | None, passed: bool | None, said: str
) -> None:
    asked = Candidate(candidate.registry, "classifier", candidate.version, candidate.champion, endpoint)
    finding = SmokeGate().judge(asked)
    assert finding.passed is passed
    assert said in finding.detail


def test_a_version_without_recorded_requests_is_not_judged(candidate: Candidate) -> None:
    assert candidate.champion is not None
    before = Candidate(candidate.registry, "classifier", candidate.champion, None, Fake())
    finding = SmokeGate().judge(before)
    assert finding.passed is None
    assert "'smoke.json', the smoke predictions of model 'classifier', is not in git" in finding.detail


def test_requests_recorded_from_another_model_are_not_sent(project: Project) -> None:
    """A new model with the file of the one before would fail for no fault of its own, or pass by luck."""
    (project.root / "train.txt").write_text("other\n")
    Repo.open(project.root).repro()
    project.commit()
    version = project.registry.register("classifier")
    finding = SmokeGate().judge(Candidate(project.registry, "classifier", version, None, Fake(rows=[3.0])))
    assert finding.passed is None
    assert "was recorded from another model" in finding.detail


def test_tensors_are_compared_by_name_and_shape() -> None:
    tensor = {"name": "predict", "shape": [2], "datatype": "FP64", "data": [1.0, float("nan")]}
    document = {"format": 1, "cases": [{"inputs": [tensor], "outputs": [tensor]}]}
    (case,) = parse_smoke(json.dumps(document).encode(), "smoke.json").cases
    assert case.difference(Fake(outputs=[{**tensor, "name": "other"}, tensor]), timeout=1) == ""
    assert case.difference(Fake(outputs=[{**tensor, "shape": [2, 1]}]), timeout=1) == (
        "predict.shape has 2 values, not 1"
    )
    assert case.difference(Fake(outputs=[{**tensor, "name": "other"}]), timeout=1) == (
        "no output 'predict', but other"
    )


@pytest.mark.parametrize(
    "document",
    [
        "text", {}, {"format": 2, "cases": []}, {"format": 1, "cases": []}, {"format": 1, "cases": [{}]},
        {"format": 1, "cases": [{"instances": [], "predictions": []}], "rtol": -1},
        {"format": 1, "cases": [{"inputs": [1], "outputs": [1]}]},
    ],
)  # fmt: skip
def test_a_file_of_requests_that_does_not_follow_its_format_is_named(document: Any) -> None:
    with pytest.raises(ParseError, match=r"^smoke.json: "):
        parse_smoke(json.dumps(document).encode(), "smoke.json")


@pytest.mark.parametrize(
    ("observed", "passed", "said"),
    [
        (Observed(1000, 5, {0.99: 0.15}), True, "1000 requests, 0.50% failed, p99 is 150 ms"),
        (Observed(1000, 10, {0.99: 0.15}), False, "1.00% failed"),
        (Observed(1000, 0, {0.99: 0.25}), False, "p99 is 250 ms"),
        (Observed(1000, None, {0.99: 0.15}), None, "failures are not counted"),
        (Observed(1000, None, {0.99: 0.25}), False, "failures are not counted, p99 is 250 ms"),
        (Observed(99, 0, {0.99: 0.1}), None, "it has 99 requests, and 100 are needed"),
        (None, None, "no address of Prometheus"),
    ],
)
def test_requests_are_judged_by_error_rate_and_latency(
    candidate: Candidate, observed: Observed | None, passed: bool | None, said: str
) -> None:
    gate = parse_gate("prometheus:errors<1%,p99<200ms,within=0s")
    asked = Candidate(candidate.registry, "classifier", candidate.version, None, Fake(observed=observed))
    finding = gate.judge(asked)
    assert finding.passed is passed
    assert said in finding.detail
