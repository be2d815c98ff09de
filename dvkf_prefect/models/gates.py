"""Gates before a version of a model gets traffic or a stage: its metrics, smoke predictions, and requests as observed.

A gate judges a candidate and returns a finding. As text, gates are written ``kind:part,part``:

| text | passes if |
|---|---|
| ``metric:accuracy>=champion-0.01`` | the metric is at most 0.01 below that of the version that serves |
| ``metric:loss<=champion+2%`` | the metric is at most 2 % above that of the version that serves |
| ``metric:metrics.json:accuracy>=0.9`` | the metric of that file is at least 0.9 |
| ``smoke`` | the recorded requests get the recorded answers, see `dvkf_prefect.models.smoke` |
| ``prometheus:errors<1%,p99<200ms`` | of the requests in 5 minutes few failed, and few took long |

The part ``optional`` lets a candidate pass that cannot be judged. ``prometheus`` takes ``requests>=100``, the number
to judge by; ``within=10m``, the time to wait for them; ``window=5m``; and ``url=http://…``, by default
``DVKF_PROMETHEUS_URL``, or the metrics of the local server.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

from dvkf_prefect.errors import ConfigError, DvkfError, ModelError, ServingError
from dvkf_prefect.models.observed import MetricsUnavailableError, Observed, PrometheusApi, Series
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.smoke import Answering, Smoke, read_smoke, replay
from dvkf_prefect.models.trace import trace_version
from dvkf_prefect.models.version import ModelVersion

URL_VARIABLE = "DVKF_PROMETHEUS_URL"
TOKEN_VARIABLE = "DVKF_PROMETHEUS_TOKEN"  # noqa: S105 - the name of a variable
_POLL = 5.0
_OUTAGE = 60.0
_NUMBER = r"(\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
_METRIC = re.compile(rf"(.+?)(>=|<=)(?:champion(?:([-+]){_NUMBER}(%?))?|([-+]?){_NUMBER}(%?))")
_ERRORS = re.compile(rf"errors<{_NUMBER}(%?)")
_QUANTILE = re.compile(rf"p(\d{{1,2}}(?:\.\d+)?)<{_NUMBER}(ms|s)")
_SECONDS = re.compile(rf"{_NUMBER}(s|m|h)?")
_FORMS = "metric:NAME>=champion-0.01, metric:NAME<=0.2, smoke, or prometheus:errors<1%,p99<200ms,within=10m"


@dataclass(frozen=True)
class Finding:
    """Judgement of a gate about a candidate.

    Attributes:
        gate: The gate as text.
        passed: True or False; None if the gate could not judge.
        detail: Values compared, or the reason why it could not judge.
        required: False if a candidate passes that could not be judged.
    """

    gate: str
    passed: bool | None
    detail: str
    required: bool = True

    @property
    def blocks(self) -> bool:
        """True if the candidate must not go on."""
        return self.passed is False or (self.passed is None and self.required)

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain values for JSON."""
        return {**asdict(self), "blocks": self.blocks}

    def __str__(self) -> str:
        word = {True: "passed", False: "failed", None: "not judged"}[self.passed]
        return f"{self.gate} {word}: {self.detail}"


class Served(Answering, Protocol):
    """An endpoint of a candidate, see `dvkf_prefect.serving.endpoint.Endpoint`."""

    def series(self) -> Sequence[Series]:
        """Return the metrics that may describe its requests."""

    def observe(self, quantiles: Sequence[float]) -> Observed | None:
        """Return its requests by its own metrics; None if it has none."""


@dataclass(frozen=True)
class Candidate:
    """A version to judge.

    Attributes:
        registry: Registry of the model; it has the repository.
        model: Name of the model.
        version: The candidate.
        champion: Version that serves now, or holds the stage; None for the first one.
        endpoint: Endpoint that the candidate alone answers; None if it is not served.
        preview: True if the endpoint gets no requests but those of gates.
    """

    registry: ModelRegistry
    model: str
    version: ModelVersion
    champion: ModelVersion | None = None
    endpoint: Served | None = None
    preview: bool = False


class Gate(Protocol):
    """A check of a candidate."""

    def judge(self, candidate: Candidate) -> Finding:
        """Return the judgement; an error of a server or file is a finding that could not judge."""


@dataclass(frozen=True)
class MetricGate:
    """Compares a metric of a version with a bound, or with that of the version that serves.

    Attributes:
        metric: Name of the metric, or ``file:name`` if several files have it.
        better: ``higher`` if more is better.
        bound: Smallest value, or the largest if lower is better; None to compare with the champion.
        change: Change from the champion's value, such as -0.01.
        relative: True for a change as a fraction of the champion's value.
        optional: Let a candidate pass that cannot be judged.
    """

    metric: str
    better: Literal["higher", "lower"] = "higher"
    bound: float | None = None
    change: float = 0.0
    relative: bool = False
    optional: bool = False
    kind: Literal["metric"] = "metric"

    def __post_init__(self) -> None:
        if not self.metric or self.better not in ("higher", "lower"):
            raise ConfigError(
                f"gate 'metric': {self.metric!r}, {self.better!r}. Name a metric, and higher or lower."
            )

    def judge(self, candidate: Candidate) -> Finding:
        """Return the judgement about a candidate's metric."""
        try:
            value = self._value(candidate.registry, candidate.version)
            if self.bound is not None:
                return self._finding(self._passes(value, self.bound), f"it is {value:g}")
            champion = candidate.champion
            if champion is None:
                return self._finding(True, f"it is {value:g}, and no version before it is known")
            before = self._value(candidate.registry, champion)
        except DvkfError as error:
            return self._finding(None, str(error))
        bound = before + self.change * (abs(before) if self.relative else 1.0)
        return self._finding(
            self._passes(value, bound), f"it is {value:g}, and {before:g} of {champion.version}"
        )

    def _passes(self, value: float, bound: float) -> bool:
        # Values are decimal: 0.9 - 0.01 must not refuse 0.89.
        near = math.isclose(value, bound, rel_tol=1e-12)
        return near or (value > bound if self.better == "higher" else value < bound)

    def _value(self, registry: ModelRegistry, version: ModelVersion) -> float:
        metrics = trace_version(registry, version).metrics
        named = {key: value for key, value in metrics.items() if key == self.metric} or {
            key: value for key, value in metrics.items() if key.partition(":")[2] == self.metric
        }
        if len(named) > 1:
            raise ModelError(
                f"metric '{self.metric}' of {version.name} {version.version} is in several files. Use one of "
                f"{', '.join(named)}."
            )
        if not named:
            raise ModelError(
                f"{version.name} {version.version} has no metric '{self.metric}'. Use one of "
                f"{', '.join(metrics) or 'its metrics, after its pipeline declares one'}."
            )
        value = next(iter(named.values()))
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ModelError(
                f"metric '{self.metric}' of {version.name} {version.version} is {value!r}. Use a metric that is a "
                "number."
            )
        return float(value)

    def _finding(self, passed: bool | None, detail: str) -> Finding:
        return Finding(str(self), passed, detail, not self.optional)

    def __str__(self) -> str:
        sign = ">=" if self.better == "higher" else "<="
        if self.bound is not None:
            bound = f"{self.bound:g}"
        else:
            change = f"{self.change * 100:+g}%" if self.relative else f"{self.change:+g}"
            bound = f"champion{change if self.change else ''}"
        return f"metric:{self.metric}{sign}{bound}{',optional' * self.optional}"


@dataclass(frozen=True)
class SmokeGate:
    """Sends the recorded requests of a version to its endpoint, and compares the answers.

    Attributes:
        timeout: Seconds to wait for each answer.
        optional: Let a candidate pass that cannot be judged.
    """

    timeout: float = 30.0
    optional: bool = False
    kind: Literal["smoke"] = "smoke"

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ConfigError(f"gate 'smoke': timeout {self.timeout:g}. Use more than 0 s.")

    def judge(self, candidate: Candidate) -> Finding:
        """Return the judgement about a candidate's answers."""
        try:
            smoke, endpoint = _recorded(candidate)
            for number, case in enumerate(smoke.cases):
                if said := case.difference(endpoint, timeout=self.timeout):
                    return self._finding(False, f"case {number} of {smoke.path}: {said}")
        except ServingError as error:
            return self._finding(False, str(error))
        except DvkfError as error:
            return self._finding(None, str(error))
        return self._finding(True, f"{len(smoke.cases)} recorded requests got their answers")

    def _finding(self, passed: bool | None, detail: str) -> Finding:
        return Finding(str(self), passed, detail, not self.optional)

    def __str__(self) -> str:
        parts = [f"timeout={self.timeout:g}s"] * (self.timeout != 30.0) + ["optional"] * self.optional
        return ":".join(["smoke", *([",".join(parts)] if parts else [])])


def _recorded(candidate: Candidate) -> tuple[Smoke, Served]:
    """Return the recorded requests of a version, and the endpoint to send them to.

    Raises:
        ModelError: The version has none, they were recorded from another model, or nothing reaches it alone.
        ParseError: Their file does not follow its format.
    """
    version, registry, endpoint = candidate.version, candidate.registry, candidate.endpoint
    what = f"{version.name} {version.version}"
    smoke = read_smoke(registry.repo, registry.git, version.name, version.rev)
    if smoke is None:
        raise ModelError(
            f"{what} declares no smoke predictions. Record them with `dvkf model record-smoke {version.name}`, and "
            "register a version with them."
        )
    if smoke.digest and smoke.digest != version.digest:
        raise ModelError(
            f"{smoke.path} was recorded from another model ({smoke.digest[:8]}). Record it again with `dvkf model "
            f"record-smoke {version.name}`."
        )
    if endpoint is None and candidate.preview:
        raise ModelError(f"{what} has no preview: another service has its name. Rename that service.")
    if endpoint is None:
        raise ModelError(f"{what} is not served. Start a canary of it.")
    if not endpoint.url:
        raise ModelError(f"no address here reaches {what} alone. Judge it in a pod.")
    return smoke, endpoint


@dataclass(frozen=True)
class PrometheusGate:
    """Looks at the error rate and the latency of a candidate's requests.

    A preview gets none, so its recorded requests are sent to it, and their answers are looked at.

    Attributes:
        errors: Largest fraction of failed requests, 0 to 1; None for no limit.
        seconds: By quantile as a percentage, such as 99: its largest value in seconds.
        requests: Smallest number of requests to judge by.
        within: Seconds to wait for that number.
        window: Seconds before now that are looked at.
        url: Address of Prometheus; empty for `URL_VARIABLE`, or for the metrics of the server itself.
        optional: Let a candidate pass that cannot be judged.
    """

    errors: float | None = None
    seconds: Mapping[float, float] | None = None
    requests: int = 100
    within: float = 300.0
    window: float = 300.0
    url: str = ""
    optional: bool = False
    kind: Literal["prometheus"] = "prometheus"

    def __post_init__(self) -> None:
        limits = {
            float(key): float(value) for key, value in (self.seconds or {}).items()
        }  # JSON has texts as keys
        object.__setattr__(self, "seconds", limits)
        if self.errors is None and not limits:
            raise ConfigError("gate 'prometheus': no limit. Give errors<1%, p99<200ms, or both.")
        if any(not 0 < quantile < 100 for quantile in limits):
            raise ConfigError(
                f"gate 'prometheus': quantiles {sorted(limits)}. Use more than 0 and less than 100."
            )
        if self.requests < 1 or self.within < 0 or self.window <= 0:
            raise ConfigError(
                "gate 'prometheus': requests, within or window is too small. Use at least 1, 0 and 1."
            )

    def judge(self, candidate: Candidate) -> Finding:
        """Return the judgement about a candidate's requests; wait for enough of them."""
        if candidate.preview:
            return self._judge_replay(candidate)
        endpoint, version = candidate.endpoint, candidate.version
        if endpoint is None:
            return self._finding(
                None, f"{version.name} {version.version} is not served. Start a canary of it."
            )
        limits = self.seconds or {}
        end = time.monotonic() + self.within
        answered = time.monotonic()
        while True:
            try:
                found = self._observe(endpoint, [quantile / 100 for quantile in limits])
            except MetricsUnavailableError as error:
                problem, last = str(error), min(end, answered + _OUTAGE)
            except DvkfError as error:
                return self._finding(None, str(error))
            else:
                # Prometheus extrapolates: 100 requests may be 99.7.
                if round(found.requests) >= self.requests:
                    return self._judged(found, limits)
                answered, last = time.monotonic(), end
                problem = (
                    f"it has {found.requests:.0f} requests, and {self.requests} are needed. Wait longer (within=), or "
                    "give the canary more traffic."
                )
            left = last - time.monotonic()
            if left <= 0:
                return self._finding(None, problem)
            time.sleep(min(_POLL, left))

    def _judge_replay(self, candidate: Candidate) -> Finding:
        limits = self.seconds or {}
        try:
            smoke, endpoint = _recorded(candidate)
        except DvkfError as error:
            return self._finding(None, f"a first version is judged by recorded requests, and {error}")
        quantiles = [quantile / 100 for quantile in limits]
        found = replay(smoke.cases, endpoint, quantiles, requests=self.requests, seconds=self.within)
        if found.requests < self.requests:
            return self._finding(
                None,
                f"{found.requests:.0f} recorded requests were answered in {self.within:g} s, and {self.requests} are "
                "needed. Wait longer (within=), or judge by less (requests>=).",
            )
        return self._judged(found, limits, "recorded requests")

    def _observe(self, endpoint: Served, quantiles: Sequence[float]) -> Observed:
        url = self.url or os.environ.get(URL_VARIABLE, "")
        if not url:
            found = endpoint.observe(quantiles)
            if found is None:
                raise ConfigError(
                    f"no address of Prometheus for this service. Give url=, or set {URL_VARIABLE}."
                )
            return found
        token = os.environ.get(TOKEN_VARIABLE)
        api = PrometheusApi(url, {"Authorization": f"Bearer {token}"} if token else None)
        return api.observe(endpoint.series(), quantiles, self.window)

    def _judged(self, found: Observed, limits: Mapping[float, float], what: str = "requests") -> Finding:
        verdicts: list[bool | None] = []
        said = [f"{found.requests:.0f} {what}"]
        if self.errors is not None:
            rate = None if found.failed is None else found.failed / found.requests
            verdicts.append(None if rate is None else rate < self.errors or (not rate and not self.errors))
            said.append("failures are not counted" if rate is None else f"{rate:.2%} failed")
        for percent, limit in limits.items():
            value = found.seconds[percent / 100]
            verdicts.append(None if math.isnan(value) else value < limit)
            said.append(f"p{percent:g} is {'not known' if math.isnan(value) else f'{value * 1000:.0f} ms'}")
        passed = False if False in verdicts else None if None in verdicts else True
        return self._finding(passed, ", ".join(said))

    def _finding(self, passed: bool | None, detail: str) -> Finding:
        return Finding(str(self), passed, detail, not self.optional)

    def __str__(self) -> str:
        parts = [] if self.errors is None else [f"errors<{self.errors * 100:g}%"]
        parts += [f"p{percent:g}<{limit * 1000:g}ms" for percent, limit in (self.seconds or {}).items()]
        usual = {field.name: field.default for field in fields(self)}
        if self.requests != usual["requests"]:
            parts.append(f"requests>={self.requests}")
        parts += [
            f"{name}={getattr(self, name):g}s"
            for name in ("within", "window")
            if getattr(self, name) != usual[name]
        ]
        parts += [f"url={self.url}"] * bool(self.url) + ["optional"] * self.optional
        return f"prometheus:{','.join(parts)}"


#: Any gate, as a parameter of a flow: Prefect shows its fields as a form.
AnyGate = MetricGate | SmokeGate | PrometheusGate


def judge_all(gates: Iterable[Gate], candidate: Candidate) -> tuple[Finding, ...]:
    """Return the findings of all gates about a candidate, in their order.

    Args:
        gates: The gates.
        candidate: The candidate.

    Example:
        >>> judge_all([parse_gate("metric:accuracy>=champion")], Candidate(registry, "digits", version, champion))
    """
    return tuple(gate.judge(candidate) for gate in gates)


def parse_gate(value: str | Mapping[str, Any] | AnyGate) -> AnyGate:
    """Return a gate from its text, or from its fields with ``kind``; a gate is returned unchanged.

    Args:
        value: The gate.

    Raises:
        ConfigError: It is not one.

    Example:
        >>> parse_gate("metric:accuracy>=champion-0.01").change
        -0.01
    """
    if isinstance(value, MetricGate | SmokeGate | PrometheusGate):
        return value
    if isinstance(value, str):
        kind, _, body = value.strip().partition(":")
        parts = [part.strip() for part in body.split(",") if part.strip()]
        optional = "optional" in parts
        parts = [part for part in parts if part != "optional"]
        if kind in _PARSERS:
            return _PARSERS[kind](value, parts, optional)
        raise _bad(value)
    known = {"metric": MetricGate, "smoke": SmokeGate, "prometheus": PrometheusGate}
    chosen: Any = known.get(str(value.get("kind")))
    if chosen is None:
        raise ConfigError(f"gate {dict(value)}: no such kind. Use kind metric, smoke or prometheus.")
    odd = sorted(set(value) - {field.name for field in fields(chosen)})
    if odd:
        allowed = ", ".join(field.name for field in fields(chosen))
        raise ConfigError(f"gate '{value['kind']}': no such field {', '.join(odd)}. Use {allowed}.")
    try:
        gate: AnyGate = chosen(**value)
    except TypeError as error:
        raise ConfigError(
            f"gate '{value['kind']}': a field is missing or wrong ({error}). Correct it."
        ) from error
    except ValueError as error:
        raise (
            error
            if isinstance(error, ConfigError)
            else ConfigError(f"gate '{value['kind']}': a field has a wrong value ({error}). Correct it.")
        ) from error
    return gate


def _parse_metric(text: str, parts: Sequence[str], optional: bool) -> MetricGate:
    found = _METRIC.fullmatch(parts[0]) if len(parts) == 1 else None
    if found is None:
        raise _bad(text)
    metric, sign, direction, change, percent, minus, bound, bound_percent = found.groups()
    better: Literal["higher", "lower"] = "higher" if sign == ">=" else "lower"
    if bound is not None:
        value = float(f"{minus}{bound}") / (100 if bound_percent else 1)
        return MetricGate(metric.strip(), better, value, optional=optional)
    difference = float(f"{direction or ''}{change or 0}") / (100 if percent else 1)
    return MetricGate(metric.strip(), better, None, difference, bool(percent), optional)


def _parse_smoke(text: str, parts: Sequence[str], optional: bool) -> SmokeGate:
    seconds = SmokeGate.timeout
    for part in parts:
        key, _, given = part.partition("=")
        if key != "timeout":
            raise _bad(text)
        seconds = _seconds(given, text)
    return SmokeGate(seconds, optional)


def _parse_prometheus(text: str, parts: Sequence[str], optional: bool) -> PrometheusGate:
    values: dict[str, Any] = {"optional": optional, "seconds": {}}
    for part in parts:
        key, _, given = part.partition("=")
        if found := _ERRORS.fullmatch(part):
            values["errors"] = float(found[1]) / (100 if found[2] else 1)
        elif found := _QUANTILE.fullmatch(part):
            values["seconds"][float(found[1])] = float(found[2]) / (1000 if found[3] == "ms" else 1)
        elif found := re.fullmatch(r"requests>=(\d+)", part):
            values["requests"] = int(found[1])
        elif key in ("within", "window"):
            values[key] = _seconds(given, text)
        elif key == "url" and given:
            values["url"] = given
        else:
            raise _bad(text)
    return PrometheusGate(**values)


_PARSERS: Mapping[str, Callable[[str, Sequence[str], bool], AnyGate]] = {
    "metric": _parse_metric,
    "smoke": _parse_smoke,
    "prometheus": _parse_prometheus,
}


def _seconds(text: str, gate: str) -> float:
    found = _SECONDS.fullmatch(text)
    if found is None:
        raise _bad(gate)
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[found[2]]


def _bad(text: str) -> ConfigError:
    return ConfigError(f"'{text}' is not a gate. Use one like {_FORMS}.")
