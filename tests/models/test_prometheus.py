"""Gates that ask Prometheus: answers of its API in a strict fake, and the real server that scrapes ours."""

from __future__ import annotations

import datetime
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from processes import wait_until
from prometheus_world import Exporter, exporter, fake_api, prometheus

from dvkf_prefect.errors import ServingError
from dvkf_prefect.models.gates import Candidate, Finding, parse_gate
from dvkf_prefect.models.observed import Observed, PrometheusApi, Series
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.serving.kserve.endpoint import ServiceEndpoint

SERIES = Series("requests_total", 'version="2"', 'code="500"', "seconds")


def observed(url: str, **settings: float) -> Observed:
    return PrometheusApi(url, **settings).observe([SERIES], [0.99], 60)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({'code="500"': "3", "quantile": "0.25", "requests_total": "120.4"}, (120.4, 3.0, "0.25")),
        # No failure was counted so far, so the counter of failures has no series.
        ({'code="500"': "NaN", "quantile": "NaN", "requests_total": "1"}, (1.0, 0.0, "nan")),
        ({"quantile": "+Inf", "requests_total": "0"}, (0.0, 0.0, "inf")),
        ({}, (0.0, None, "")),
    ],
)
def test_values_of_a_version(values: dict[str, str], found: tuple[float, float | None, str]) -> None:
    with fake_api(values=values) as api:
        got = observed(api.url)
    assert (got.requests, got.failed, str(got.seconds.get(0.99, ""))) == found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"error": (400, "bad_data", "parse error")}, r"a query failed \(bad_data: parse error\)\. Correct its URL"),
        ({"error": (503, "timeout", "query timed out")}, r"\(timeout: query timed out\)\. Try again later"),
        ({"error": (422, "execution", "too many samples.")}, r"too many samples\)\. Look at its limits of samples"),
        ({"token": "secret"}, r"asks for a login \(status 401\)\. Set the token DVKF_PROMETHEUS_TOKEN"),
        ({"page": (302, "")}, r"asks for a login \(status 302\)"),
        ({"page": (200, "<html>Login</html>")}, r"not one of Prometheus \(status 200\)\. .* before a login page"),
        ({"page": (502, "<html>Bad gateway</html>")}, r"not one of Prometheus \(status 502\)"),
        ({"page": (200, "[]")}, r"not one of Prometheus \(status 200\)"),
        ({"page": (200, '{"status": "success", "data": {"resultType": "string", "result": "x"}}')}, "not a number"),
        ({"delay": 0.3}, r"no answer in 0\.05 s\. Correct its URL, or look at its load\.$"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_value_says_what_to_do(settings: dict[str, object], said: str) -> None:
    timeout = 0.05 if "delay" in settings else 30.0
    with fake_api(**settings) as api, pytest.raises(ServingError, match=said) as error:
        observed(api.url.replace("://", "://me:hunter22@"), timeout=timeout)
    assert str(error.value).startswith(f"Prometheus at {api.url}: ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "ftp://x", "http://127.0.0.1:port"])
def test_an_address_without_a_server_says_what_to_do(url: str) -> None:
    with pytest.raises(ServingError, match=r": no answer \(.+\)\. Correct its URL, or start it\.$"):
        observed(url)


def test_warnings_are_logged_and_the_path_of_a_prefix_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with fake_api(values={"requests_total": "1"}, warnings=("a store is down",), token="secret") as api:
        asked = PrometheusApi(f"{api.url}/", {"Authorization": "Bearer secret"})
        assert asked.value("sum(requests_total)") == 1.0
        assert f"Prometheus at {api.url}: a store is down" in caplog.text
        with pytest.raises(ServingError, match=r"not one of Prometheus \(status 404\)"):
            PrometheusApi(f"{api.url}/prefix", {"Authorization": "Bearer secret"}).value("up")
        assert api.queries == ["sum(requests_total)"]


def judged(url: str, endpoint: ServiceEndpoint, gate: str) -> Finding:
    now = datetime.datetime.now(datetime.timezone.utc)
    version = ModelVersion("iris", "v2.0.0", "0" * 40, None, None, None, None, (), now, "Ada", "")
    parsed = parse_gate(f"prometheus:{gate},url={url}")
    return parsed.judge(Candidate(None, "iris", version, None, endpoint))  # type: ignore[arg-type]


def test_the_gate_cannot_judge_without_data_or_without_a_server() -> None:
    endpoint = ServiceEndpoint("", "iris", "v2.0.0", "", revision="iris-00002", namespace="ml")
    with fake_api() as api:
        finding = judged(api.url, endpoint, "errors<1%,within=0s")
        assert (finding.passed, finding.blocks) == (None, True)
        assert "it has 0 requests, and 100 are needed" in finding.detail
        api.page = (200, "<html>Login</html>")
        assert "not one of Prometheus" in judged(api.url, endpoint, "errors<1%,within=0s").detail
    finding = judged(api.url, endpoint, "errors<1%,within=0s,optional")
    assert (finding.passed, finding.blocks) == (None, False)
    assert "Correct its URL, or start it." in finding.detail


def test_a_short_outage_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that restarts does not end a canary; one that stays away does, a minute after its last answer."""
    now = [0.0]
    endpoint = ServiceEndpoint("", "iris", "v2.0.0", "", revision="iris-00002", namespace="ml")
    with fake_api(values={"revision_app_request_count": "3"}) as api:

        def sleep(seconds: float) -> None:
            now[0] += seconds
            if now[0] == 10.0:
                api.error = (503, "unavailable", "the server starts")
            elif now[0] == 40.0:
                api.error = None
            elif now[0] == 45.0:
                api.page = (502, "<html>Bad gateway</html>")

        clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
        monkeypatch.setattr("dvkf_prefect.models.gates.time", clock)
        finding = judged(api.url, endpoint, "errors<1%,requests>=5,within=10m")
        assert (finding.passed, now) == (None, [100.0])
        assert "not one of Prometheus (status 502)" in finding.detail
        api.page, now[0] = None, 45.5
        assert (
            "it has 3 requests, and 5 are needed"
            in judged(api.url, endpoint, "errors<1%,requests>=5,within=1s").detail
        )
        api.page, at = (200, "<html>Login</html>"), now[0]
        assert judged(api.url, endpoint, "errors<1%,within=10m").passed is None
        assert now == [at]  # more waiting cannot help


CANARY = ServiceEndpoint("", "iris", "v2.0.0", "", revision="iris-00002", namespace="ml")
WORKLOAD = ServiceEndpoint("", "iris", "v2.0.0", "", deployment="iris-predictor", namespace="ml")
OLD = 'namespace_name="ml",revision_name="iris-{revision}"'
NEW = 'k8s_namespace_name="ml",kn_revision_name="iris-{revision}"'
MESH = 'reporter="destination",destination_workload="iris-predictor",destination_workload_namespace="ml"'
PODS = 'namespace="ml",pod="iris-predictor-7d9f-x2"'


def buckets(name: str, labels: str, bounds: tuple[float, ...], fast: int, slow: int) -> str:
    """Return a histogram of whose observations some are in its second bucket, and some in its last one but one."""
    counts = [0, *[fast] * (len(bounds) - 3), fast + slow, fast + slow]
    lines = [
        f'{name}_bucket{{{labels},le="{bound:g}"}} {count}'
        for bound, count in zip((*bounds[:-1], float("inf")), counts, strict=True)
    ]
    lines.append(f"{name}_count{{{labels}}} {fast + slow}")
    return "\n".join(lines).replace('le="inf"', 'le="+Inf"') + "\n"


def knative(revision: str, good: int, bad: int, slow: int = 0) -> str:
    """Return the metrics of Knative's queue proxy before 1.19: milliseconds, and a class of status."""
    labels, name = OLD.format(revision=revision), "revision_app_request_count"
    lines = f'{name}{{{labels},response_code_class="2xx"}} {good}\n'
    lines += f'{name}{{{labels},response_code_class="5xx"}} {bad}\n' if bad else ""
    times = buckets(
        "revision_app_request_latencies", labels, (5, 10, 100, 1000, 10000, 0), good + bad - slow, slow
    )
    return lines + times


def knative_new(good: int, bad: int) -> str:
    """Return the metrics of Knative's queue proxy since 1.19: one histogram of seconds."""
    lines, bounds = "", (0.005, 0.01, 0.1, 1.0, 0.0)
    for status, count in ((200, good), (503, bad)):
        labels = f'{NEW.format(revision="00002")},http_response_status_code="{status}"'
        lines += buckets("kn_serving_invocation_duration_seconds", labels, bounds, count, 0)
    return lines


def mesh(good: int, bad: int) -> str:
    """Return the metrics of an Istio mesh: milliseconds."""
    lines = f'istio_requests_total{{{MESH},response_code="200"}} {good}\n'
    lines += f'istio_requests_total{{{MESH},response_code="503"}} {bad}\n'
    return lines + buckets("istio_request_duration_milliseconds", MESH, (1, 5, 10, 25, 0), good + bad, 0)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Exporter, str]]:
    if shutil.which("prometheus") is None:
        pytest.skip("Debian's package prometheus is not installed")
    with exporter() as made, prometheus(tmp_path_factory.mktemp("prometheus"), made.url) as url:
        yield made, url


@pytest.mark.long
@pytest.mark.parametrize(
    ("lines", "endpoint", "gate", "passed", "said"),
    [
        ([knative("00001", 5000, 0)], CANARY, "errors<1%", None, "it has 0 requests, and 100 are needed"),
        (
            [knative("00001", 5000, 900), knative("00002", 150, 0)], CANARY, "errors<1%,p99<200ms", True,
            "150 requests, 0.00% failed, p99 is 10 ms",
        ),
        # The failures were there before the first scrape, so nothing grew while Prometheus looked.
        ([knative("00002", 150, 50)], CANARY, "errors<1%", False, "200 requests, 25.00% failed"),
        ([knative("00002", 150, 0, slow=75)], CANARY, "p90<200ms", False, "150 requests, p90 is "),
        ([knative_new(150, 50)], CANARY, "errors<30%,p50<100ms", True, "200 requests, 25.00% failed, p50 is "),
        ([knative_new(150, 50)], CANARY, "errors<1%", False, "200 requests, 25.00% failed"),
        ([mesh(180, 20)], WORKLOAD, "errors<5%,p99<200ms", False, "200 requests, 10.00% failed, p99 is 5 ms"),
        (
            [buckets("request_predict_seconds", PODS, (0.005, 0.01, 0.1, 1, 0), 200, 0)], WORKLOAD, "errors<5%",
            None, "200 requests, failures are not counted",
        ),
        (
            [buckets("request_predict_seconds", PODS, (0.005, 0.01, 0.1, 1, 0), 200, 0)], WORKLOAD, "p99<200ms",
            True, "200 requests, p99 is 10 ms",
        ),
    ],
)  # fmt: skip
def test_metrics_of_a_cluster_by_the_real_prometheus(
    scraped: tuple[Exporter, str],
    lines: list[str],
    endpoint: ServiceEndpoint,
    gate: str,
    passed: bool | None,
    said: str,
) -> None:
    made, url = scraped
    own = f"ns{uuid.uuid4().hex}"  # Prometheus remembers the cases before
    made.lines = "".join(lines).replace('"ml"', f'"{own}"') + f"{own} 1\n"
    wait_until(lambda: PrometheusApi(url).value(f"count_over_time({own}[1m])") >= 2.0)
    finding = judged(url, replace(endpoint, namespace=own), f"{gate},within=0s,window=30s")
    assert finding.passed is passed, finding
    assert said in finding.detail


@pytest.mark.long
def test_requests_that_come_while_prometheus_looks(scraped: tuple[Exporter, str]) -> None:
    """A counter that stands before the time does not count; what it grows by does."""
    made, url = scraped
    asked = Series("growing_total", 'job="models"', 'code="500"', "growing_seconds")
    made.lines = 'growing_total{code="200"} 9000\ngrowing_total{code="500"} 900\n'
    wait_until(lambda: PrometheusApi(url).value("min(count_over_time(growing_total[1m]))") >= 5.0)
    made.lines = 'growing_total{code="200"} 9100\ngrowing_total{code="500"} 900\n'
    wait_until(lambda: PrometheusApi(url).value("max(growing_total)") == 9100.0)
    found = PrometheusApi(url).observe([asked], [], 3)
    assert found.failed == 0.0 and 50 <= found.requests <= 200


@pytest.mark.long
def test_a_query_that_the_real_prometheus_refuses(scraped: tuple[Exporter, str]) -> None:
    with pytest.raises(ServingError, match=r"a query failed \(bad_data: invalid parameter .*Correct its URL"):
        PrometheusApi(scraped[1]).value("sum(")
