"""Gates of canaries: a canary that one of them refuses is ended, and the version before it has all traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from dvkf_prefect.errors import GateError, ModelNotFoundError, ServingError
from dvkf_prefect.models.gates import AnyGate, Candidate, Finding, Gate, Served, judge_all, parse_gate
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.promotion.places import ServingState

#: Called with the endpoint of a canary and the version that has the rest of the traffic; an error ends the canary.
Check = Callable[[Served | None, str], None]


class GateCheck:
    """Check of a canary by gates.

    Args:
        registry: Registry of the model.
        version: Version of the canary.
        gates: The gates.

    Attributes:
        findings: Findings of the last call.
    """

    def __init__(self, registry: ModelRegistry, version: ModelVersion, gates: Iterable[Gate]) -> None:
        self.findings: tuple[Finding, ...] = ()
        self._registry = registry
        self._version = version
        self._gates = tuple(gates)

    def __call__(self, endpoint: Served | None, stable: str) -> None:
        """Judge a canary.

        Args:
            endpoint: Endpoint that the canary alone answers; None if there is none.
            stable: Version that has the rest of the traffic.

        Raises:
            GateError: A gate refused it.
        """
        version = self._version
        champion = None
        if stable:
            try:
                champion = self._registry.show(version.name, stable)
            except ModelNotFoundError:  # withdrawn, or of another repository
                champion = None
        candidate = Candidate(self._registry, version.name, version, champion, endpoint)
        self.findings = judge_all(self._gates, candidate)
        refused = [str(finding) for finding in self.findings if finding.blocks]
        if refused:
            raise GateError(
                f"the canary of {version.name} {version.version} was ended, and {stable or 'the version before it'} "
                f"has all traffic. {'; '.join(refused)}",
                [finding.as_dict() for finding in self.findings],
            )


class CanaryServer(Protocol):
    """A model server with canaries, on this machine or on a cluster."""

    def candidate(self, model: str, version: str) -> Served | None:
        """Return an endpoint that a version alone answers."""

    def state(self, model: str) -> ServingState | None:
        """Return the versions that are served; None if there is none."""

    def abort_canary(self, model: str) -> object:
        """End the canary."""


def judge_canary(
    server: CanaryServer,
    registry: ModelRegistry,
    model: str,
    gates: Iterable[str | Mapping[str, Any] | AnyGate],
) -> tuple[Finding, ...]:
    """Judge the running canary of a model; end it if a gate refuses it.

    Args:
        server: The model server.
        registry: Registry of the model.
        model: Name of the model.
        gates: Gates, or their texts or fields, see `dvkf_prefect.models.gates`.

    Returns:
        The findings.

    Raises:
        GateError: A gate refused it, and it was ended.
        ConfigError: A text is not a gate.
        ServingError: There is no canary, or it could not be ended.
        ModelNotFoundError: The registry does not have its version.
    """
    parsed = [parse_gate(gate) for gate in gates]
    state = server.state(model)
    if state is None or not state.canary:
        raise ServingError(f"'{model}' has no canary to judge. Start one first.")
    check = GateCheck(registry, registry.show(model, state.canary), parsed)
    try:
        check(server.candidate(model, state.canary), state.version)
    except BaseException:
        server.abort_canary(model)
        raise
    return check.findings
