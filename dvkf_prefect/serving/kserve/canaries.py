"""Canaries: a new version gets a part of the traffic, until it is promoted or aborted.

In mode Knative a field of the predictor splits the traffic between revisions, in all versions of KServe. In mode
Standard that field is ignored silently. There ``spec.canary`` starts pods of their own, since 0.20, and an HTTPRoute
splits the traffic, since 0.21 and with the Gateway API alone. The status repeats the wanted percentage in either case,
so the HTTPRoute is read (kserve ``httproute_reconciler.go:689``). By choice an InferenceGraph splits the requests, see
`dvkf_prefect.serving.kserve.graphs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dvkf_prefect.errors import ServingError
from dvkf_prefect.serving.gating import Check
from dvkf_prefect.serving.kserve.endpoint import ServiceEndpoint
from dvkf_prefect.serving.kserve.graphs import Graphs, Split
from dvkf_prefect.serving.kserve.installed import mode_of
from dvkf_prefect.serving.kserve.services import KServeServices, annotations_of, applied_spec, deployment_name
from dvkf_prefect.serving.kserve.spec import (
    MARK,
    PREVIOUS,
    VERSION,
    ServiceSettings,
    canary_name,
    service_name,
)
from dvkf_prefect.serving.kserve.verdict import Target

# Fields that KServe refuses in a canary's predictor (kserve 0.20, `inference_service_validation.go:183`).
_STABLE_ONLY = ("maxReplicas", "scaleMetric", "scaleTarget", "autoScaling", "name", "canaryTrafficPercent")
_SCALE = (*_STABLE_ONLY, "minReplicas", "annotations")
_ROUTE_POLL, _ROUTE_WAIT = 2.0, 60.0
# Gives the latest revision an address of its own (kserve 0.20, `ksvc_reconciler.go:130`).
_TAGS = "serving.kserve.io/enable-tag-routing"


@dataclass(frozen=True)
class Canary:
    """A running canary.

    Attributes:
        service: Name of the service.
        stable: Version that has the rest of the traffic.
        version: Version of the canary.
        percent: Its part of the traffic.
        mode: Mode of the service.
        url: Address of the InferenceGraph that splits the requests; empty if the service's own address does.
    """

    service: str
    stable: str
    version: str
    percent: int
    mode: str
    url: str = ""

    def __str__(self) -> str:
        at = f", at {self.url}" if self.url else ""
        return (
            f"{self.service}: {self.version} gets {self.percent} % of the traffic, {self.stable} the rest{at}"
        )


class Canaries:
    """Canaries of the services of a namespace.

    Args:
        services: The services.
    """

    def __init__(self, services: KServeServices) -> None:
        self._services = services
        self._graphs = Graphs(services)

    def get(self, model: str) -> Canary | None:
        """Return the running canary of a model; None if there is none.

        Raises:
            ServingError: The API server refused or does not answer.
        """
        name = service_name(model, self._services.namespace)
        live = self._services.find(name)
        return self._running(live) if live else None

    def start(
        self,
        model: str,
        version: str,
        digest: str,
        uri: str,
        settings: ServiceSettings,
        *,
        percent: int,
        account: str = "",
        check: Check | None = None,
    ) -> Canary:
        """Give a version of a model a part of the traffic; on failure the stable version has all of it.

        Args:
            model: Name of the model.
            version: Version to try.
            digest: Digest of its content.
            uri: Address of its published folder.
            settings: Settings of the service.
            percent: Part of the traffic, 0 to 99; 0 starts it without traffic.
            account: Service account for the folder, unless the settings name one.
            check: Called once the canary serves; an error ends the canary.

        Raises:
            ConfigError: The settings or the names do not fit.
            ServingError: The cluster cannot split traffic, or the canary does not serve; the message has the reason.
        """
        name = service_name(model, self._services.namespace)
        live = self._services.find(name)
        if live is None or not (live.get("status") or {}).get("url"):
            raise ServingError(
                f"service '{name}' serves nothing yet, so KServe would give its first version all traffic. Deploy a "
                "version without a canary first."
            )
        if not 0 <= percent < 100:
            raise ServingError(f"a canary gets 0 to 99 % of the traffic, not {percent} %.")
        if MARK not in annotations_of(live):
            raise ServingError(
                f"service '{name}' was not deployed by dvkf. Deploy a version without a canary first."
            )
        predictor = self._services.annotated(model, version, digest, uri, settings, account)
        what = f"canary {model} {version}"
        # Callers of a graph do not see another split.
        if settings.split == "graph" or self._graphs.get(live) is not None:
            return self._start_graph(model, live, predictor, percent, what, check)
        change = self._knative if mode_of(live) == "Knative" else self._standard
        spec, target = change(name, live, predictor, percent)
        self._services.roll_out(name, spec, target, live, what)
        before = running_canary(live)
        stable = before.stable if before else annotations_of(live).get(VERSION, "")
        canary = Canary(name, stable, version, percent, mode_of(live))
        try:
            if target.canary and percent:
                self._check_route(name, target, percent)
            if check is not None:
                check(self.endpoint(model), canary.stable)
        except BaseException:
            self.abort(model)
            raise
        return canary

    def endpoint(self, model: str) -> ServiceEndpoint | None:
        """Return an endpoint that only the canary of a model answers; None if there is none.

        Its address is empty if this process cannot reach the canary alone.

        Raises:
            ServingError: The API server refused or does not answer.
        """
        live = self._services.find(service_name(model, self._services.namespace))
        if live is None:
            return None
        split = self._graphs.get(live)
        if split is not None and split.canary is not None:
            return self._services.endpoint_of(split.canary)
        return self._services.canary_endpoint(live)

    def promote(self, model: str) -> ServiceEndpoint:
        """Give the canary of a model all traffic, by one change of the service.

        Raises:
            ServingError: There is no canary, or it does not serve.
        """
        name, live, canary = self._canary(model)
        if (split := self._split(live)) is not None:
            return replace(self._graphs.promote(split, f"{model} {canary.version}"), graph=split.url)
        spec = applied_spec(live)
        if canary.mode == "Knative":
            mark = annotations_of(live)[MARK]
            # Without the field a revision that is not ready yet would get all traffic as soon as it is.
            self._services.wait(name, Target(mark, "", canary.percent), f"canary {canary.version}")
            spec["predictor"].pop("canaryTrafficPercent")
            target = Target(mark, "")
        else:
            (entry,) = spec.pop("canary")
            predictor = entry["predictor"]
            mark = predictor["annotations"][MARK]
            kept = {key: spec["predictor"][key] for key in _STABLE_ONLY if key in spec["predictor"]}
            for key in ("name", "canaryTrafficPercent"):
                kept.pop(key, None)
            wanted = spec["predictor"].get("minReplicas")
            target = Target(mark, deployment_name(name, predictor), canary=predictor["name"])
            self._services.wait(name, target, f"canary {canary.version}")
            if (wanted or 1) > 1 and predictor.get("minReplicas") != wanted:
                # The stable Deployment is deleted by the promotion itself, so the canary has to carry the load before.
                predictor["minReplicas"] = wanted
                grown = {**spec, "canary": [{**entry, "predictor": predictor}]}
                target = replace(target, replicas=wanted)
                self._services.roll_out(name, grown, target, live, f"canary {canary.version}")
            spec["predictor"] = {**predictor, **kept}
            target = replace(target, canary="")
        self._services.roll_out(name, spec, target, live, f"{model} {canary.version}")
        return self._services.get_service(name)

    def abort(self, model: str) -> ServiceEndpoint:
        """End the canary of a model; the stable version has all traffic.

        In mode Knative the specification before the canary is applied again, and its new revision is waited for. A
        percentage of 0 would leave the service not ready, and give each later version no traffic.

        Raises:
            ServingError: There is no canary, or the stable version does not get all traffic in time.
        """
        name, live, canary = self._canary(model)
        if (split := self._split(live)) is not None:
            self._graphs.end(live)
            return replace(self._services.get_service(name), graph=split.url)
        spec = applied_spec(live)
        if canary.mode == "Knative":
            spec["predictor"] = json.loads(annotations_of(live)[PREVIOUS])
        else:
            spec.pop("canary")
        predictor = spec["predictor"]
        self._services.apply(name, spec, live=live)
        target = Target(predictor["annotations"][MARK], deployment_name(name, predictor))
        self._services.wait(name, target, f"{model} {canary.stable}")
        return self._services.get_service(name)

    def served(self, model: str) -> ServiceEndpoint | None:
        """Return the endpoint of a model that serves, with the address of its graph; None if there is none.

        Raises:
            ServingError: The API server refused or does not answer.
        """
        live = self._services.find(service_name(model, self._services.namespace))
        if live is None or not (live.get("status") or {}).get("url"):
            return None
        split = self._graphs.get(live)
        return replace(self._services.endpoint_of(live), graph=split.url if split else "")

    def end_graph(self, model: str) -> str:
        """Give the service of a model all requests of its graph, and remove its canary; nothing without a graph.

        Returns:
            The address of the graph; empty without one.

        Raises:
            ServingError: The router does not change, or the canary does not go.
        """
        live = self._services.find(service_name(model, self._services.namespace))
        if live is None or (split := self._graphs.get(live)) is None:
            return ""
        self._graphs.end(live)
        return split.url

    def remove_graph(self, model: str) -> None:
        """Remove the graph of a model and its canary; nothing without a graph.

        Raises:
            ServingError: They do not go.
        """
        self._graphs.remove(service_name(model, self._services.namespace))

    def _split(self, live: Mapping[str, Any]) -> Split | None:
        """Return the graph of a service that has a canary behind it."""
        split = self._graphs.get(live)
        return split if split is not None and split.canary is not None else None

    def _running(self, live: Mapping[str, Any]) -> Canary | None:
        if (canary := running_canary(live)) is not None:
            return canary
        split = self._split(live)
        if split is None or split.canary is None:
            return None
        stable, version = annotations_of(live).get(VERSION, ""), annotations_of(split.canary).get(VERSION, "")
        return Canary(live["metadata"]["name"], stable, version, split.percent, mode_of(live), split.url)

    def _start_graph(
        self,
        model: str,
        live: Mapping[str, Any],
        predictor: Mapping[str, Any],
        percent: int,
        what: str,
        check: Check | None,
    ) -> Canary:
        if (other := running_canary(live)) is not None:
            raise ServingError(
                f"service '{other.service}' has the canary {other.version}, which is not behind a graph. Promote or "
                "abort it first."
            )
        split = self._graphs.start(live, predictor, percent, what)
        canary = self._running(live)
        if canary is None or split.canary is None:
            raise ServingError(f"{what} was deleted meanwhile. Start it again.")
        try:
            if check is not None:
                check(self._services.endpoint_of(split.canary), canary.stable)
        except BaseException:
            self.abort(model)
            raise
        return canary

    def _canary(self, model: str) -> tuple[str, dict[str, Any], Canary]:
        name = service_name(model, self._services.namespace)
        live = self._services.find(name)
        canary = self._running(live) if live else None
        if live is None or canary is None:
            raise ServingError(
                f"service '{name}' of namespace '{self._services.namespace}' has no canary. Start one with --canary."
            )
        return name, live, canary

    def _knative(
        self, name: str, live: Mapping[str, Any], predictor: dict[str, Any], percent: int
    ) -> tuple[dict[str, Any], Target]:
        before = applied_spec(live)["predictor"]
        if "canaryTrafficPercent" in before:  # the base of a second canary is that of the first
            before = json.loads(before["annotations"][PREVIOUS])
        for key in (PREVIOUS, _TAGS):
            before.get("annotations", {}).pop(key, None)
        predictor["annotations"][PREVIOUS] = json.dumps(before, sort_keys=True)
        predictor["annotations"][_TAGS] = "true"
        spec = {"predictor": {**predictor, "canaryTrafficPercent": percent}}
        return spec, Target(predictor["annotations"][MARK], "", percent)

    def _standard(
        self, name: str, live: Mapping[str, Any], predictor: dict[str, Any], percent: int
    ) -> tuple[dict[str, Any], Target]:
        installed = self._services.installed
        if not installed.canaries:
            raise ServingError(
                f"service '{name}' runs in mode Standard, in which KServe before 0.20 ignores canaries. Deploy the "
                "version to all, split the requests by a graph, use mode Knative, or upgrade KServe to 0.21."
            )
        if percent and not installed.routes:
            raise ServingError(
                f"service '{name}' runs in mode Standard without the Gateway API, so no traffic would reach a canary. "
                "Start it with 0 %, split the requests by a graph, deploy it to all, or install the Gateway API."
            )
        spec = applied_spec(live)
        spec.pop("canary", None)
        inherited = _inherited(spec["predictor"], predictor)
        if inherited:
            raise ServingError(
                f"a canary of service '{name}' would inherit {', '.join(inherited)} from the stable version, which it "
                "does not set. Set them for the canary, too, or deploy the version to all."
            )
        canary = {key: value for key, value in predictor.items() if key not in _STABLE_ONLY}
        # More pods than the stable version are refused; the default is a part of them, by the percentage.
        if canary.get("minReplicas", 0) > spec["predictor"].get("minReplicas", 1):
            canary.pop("minReplicas")
        if "model" in canary:
            # The CRD requires the name, and the webhook sets that of the stable model alone; it must be empty.
            canary["model"] = {**canary["model"], "name": ""}
        mark = canary["annotations"][MARK]
        canary["name"] = canary_name(mark)
        if canary["name"] == spec["predictor"].get("name"):
            raise ServingError(f"service '{name}' serves this version already, with the same settings.")
        spec["canary"] = [{"trafficPercent": percent, "predictor": canary}]
        return spec, Target(mark, deployment_name(name, canary), canary=canary["name"])

    def _check_route(self, name: str, target: Target, percent: int) -> None:
        """Check that the route of a service gives a canary its traffic."""
        waited = 0.0
        while True:
            route = self._services.read(f"gateway.networking.k8s.io/v1/httproutes {name}")
            rules = ((route or {}).get("spec") or {}).get("rules") or ()
            weights = {
                backend.get("name"): backend.get("weight", 1)
                for rule in rules
                for backend in rule.get("backendRefs") or ()
            }
            if weights.get(target.deployment) == percent:
                return
            if waited >= _ROUTE_WAIT:
                shown = ", ".join(f"{each} {weight}" for each, weight in weights.items()) or "none"
                raise ServingError(
                    f"KServe started the canary of service '{name}', and its HTTPRoute sends it no traffic ({shown}). "
                    "KServe 0.20 does not split traffic in mode Standard: upgrade to 0.21, or start it with 0 %."
                )
            self._services.pause(_ROUTE_POLL)
            waited += _ROUTE_POLL


def running_canary(live: Mapping[str, Any]) -> Canary | None:
    """Return the running canary of a service; None if there is none.

    Args:
        live: The InferenceService.
    """
    name = live["metadata"]["name"]
    predictor, mode = live["spec"]["predictor"], mode_of(live)
    annotations = annotations_of(live)
    percent = predictor.get("canaryTrafficPercent")
    if percent is not None and mode == "Knative" and PREVIOUS in annotations:
        before = json.loads(annotations[PREVIOUS]).get("annotations", {})
        return Canary(name, before.get(VERSION, ""), annotations.get(VERSION, ""), int(percent), mode)
    for entry in live["spec"].get("canary") or ():
        version = (entry["predictor"].get("annotations") or {}).get(VERSION, "")
        return Canary(name, annotations.get(VERSION, ""), version, int(entry.get("trafficPercent", 0)), mode)
    return None


def _inherited(stable: Mapping[str, Any], canary: Mapping[str, Any], at: str = "") -> list[str]:
    """Return the fields of a stable predictor that a canary does not set, and would inherit."""
    found = []
    for key, value in stable.items():
        if not at and key in _SCALE:
            continue
        if key not in canary:
            found.append(f"{at}{key}")
        elif isinstance(value, Mapping) and isinstance(canary[key], Mapping):
            found += _inherited(value, canary[key], f"{at}{key}.")
    return found
