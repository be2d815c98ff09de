"""Services of models in one namespace of a cluster: deployed, found, changed by canaries, and removed.

A deployment applies one specification and waits for pods that have its mark. If they do not serve, the specification
before it is applied again, so the old version stays in service. Nothing is kept on this machine: the version, its mark
and the specification before a canary are in the service itself.
"""

from __future__ import annotations

import builtins
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dvkf_prefect.errors import ServingError
from dvkf_prefect.kube.objects import KubeError, KubeObjects
from dvkf_prefect.serving.kserve.access import MANAGER
from dvkf_prefect.serving.kserve.endpoint import ServiceEndpoint
from dvkf_prefect.serving.kserve.fields import other_owner, owned
from dvkf_prefect.serving.kserve.installed import Installed, mode_name, mode_of, probe
from dvkf_prefect.serving.kserve.spec import (
    API,
    CANARY_OF,
    DIGEST,
    MARK,
    MODEL,
    SERVED_AS,
    VERSION,
    ServiceSettings,
    annotated,
    check_name,
    service,
    service_name,
)
from dvkf_prefect.serving.kserve.verdict import Target, Verdict, View, Waits, judge

_POLL_FROM, _POLL_TO = 2.0, 10.0
_OUTAGE = 300.0
_LOG_LINES = "20"
_RIGHTS = (
    "The account needs `get`, `list`, `create`, `patch` and `delete` of inferenceservices.serving.kserve.io, `get` and "
    "`list` of pods, pods/log and events, and `get` of deployments.apps, and of revisions.serving.knative.dev in mode "
    "Knative; for graphs also `get`, `create`, `patch` and `delete` of inferencegraphs.serving.kserve.io"
)
_logger = logging.getLogger(__name__)


class KServeServices:
    """Services of models in a namespace.

    Args:
        kube: Kubernetes.
        namespace: The namespace.
        waits: Seconds to wait for a version, and for problems that may pass.
        take_over: True to take over a service, or fields of it, that something else manages.
        url: Address of the cluster's gateway, for requests from outside. Empty for the service's own address.
        pause: Waits some seconds between two looks.
        clock: Returns the seconds of a clock.
    """

    def __init__(
        self,
        kube: KubeObjects,
        namespace: str,
        *,
        waits: Waits | None = None,
        take_over: bool = False,
        url: str = "",
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.namespace = namespace
        self.waits = waits or Waits()
        self.kube = kube
        self.take_over = take_over
        self._url = url
        self.pause = pause
        self.clock = clock
        self._installed: Installed | None = None
        self._core = f"/api/v1/namespaces/{namespace}"
        self._services = f"/apis/{API}/namespaces/{namespace}/inferenceservices"

    # -- services ----------------------------------------------------------------------------------------------------

    def deploy(
        self, model: str, version: str, digest: str, uri: str, settings: ServiceSettings, *, account: str = ""
    ) -> ServiceEndpoint:
        """Serve a version of a model in place of the one that is served now.

        On failure the version before it serves. A running canary is ended.

        Args:
            model: Name of the model.
            version: Version to serve.
            digest: Digest of its content.
            uri: Address of its published folder.
            settings: Settings of the service.
            account: Service account for the folder, unless the settings name one.

        Returns:
            The endpoint, which serves the version alone.

        Raises:
            ConfigError: The settings or the names do not fit.
            ServingError: KServe refused the service, or the version did not serve in time; with the container's words.
        """
        name = service_name(model, self.namespace)
        predictor = self.annotated(model, version, digest, uri, settings, account)
        live = self.find(name)
        self._check_owner(name, live)
        spec: dict[str, Any] = {"predictor": predictor}
        if live and (kept := live["spec"]["predictor"].get("name")):
            # Another name would delete the Deployment that serves before the new one runs.
            predictor["name"] = kept
        mark, mode = predictor["annotations"][MARK], self.installed.asked_mode(settings.mode)
        target = Target(mark, deployment_name(name, predictor), replicas=predictor.get("minReplicas", 0))
        if live and _applied(live).get("spec") == spec and self._judge(live, target).serves:
            return self.endpoint_of(live)
        self.roll_out(name, spec, target, live, f"{model} {version}", mode=mode)
        return self.get_service(name)

    def annotated(
        self, model: str, version: str, digest: str, uri: str, settings: ServiceSettings, account: str
    ) -> dict[str, Any]:
        """Return the predictor of a version, with its mark."""
        return annotated(
            settings.predictor(uri, account),
            model=model,
            version=version,
            digest=digest,
            start_timeout=settings.start_timeout,
            served_as=settings.served_as,
        )

    def get(self, model: str) -> ServiceEndpoint | None:
        """Return the endpoint of a model that serves; None if there is none.

        Args:
            model: Name of the model.

        Raises:
            ServingError: The API server refused or does not answer.
        """
        live = self.find(service_name(model, self.namespace))
        return self.endpoint_of(live) if live and (live.get("status") or {}).get("url") else None

    def list(self) -> builtins.list[ServiceEndpoint]:
        """Return the services of the namespace that were deployed from here, by name.

        Raises:
            ServingError: The API server refused or does not answer.
        """
        noted = ((each, annotations_of(each)) for each in self.all())
        ours = [each for each, annotations in noted if MODEL in annotations and CANARY_OF not in annotations]
        return [self.endpoint_of(each) for each in ours if (each.get("status") or {}).get("url")]

    def undeploy(self, model: str) -> bool:
        """Remove a model's service, and wait until it is gone.

        Args:
            model: Name of the model.

        Returns:
            True if there was one.

        Raises:
            ServingError: The service belongs to something else, or does not go.
        """
        name = service_name(model, self.namespace)
        live = self.find(name)
        if live is None:
            return False
        self._check_owner(name, live)
        self.remove(name)
        return True

    # -- parts for canaries ------------------------------------------------------------------------------------------

    def all(self) -> builtins.list[Mapping[str, Any]]:
        """Return all InferenceServices of the namespace.

        Raises:
            ServingError: The API server refused or does not answer.
        """
        return builtins.list(self.ask(lambda: self.kube.get(self._services)).get("items") or ())

    def remove(self, name: str) -> None:
        """Remove a service, and wait until it is gone.

        Raises:
            ServingError: It does not go.
        """
        self.ask(lambda: self.kube.delete(self._path(name)))
        end = self.clock() + self.waits.refused
        while (live := self.find(name)) is not None:
            if self.clock() >= end:
                held = ", ".join(live["metadata"].get("finalizers") or ()) or "no finalizer"
                raise ServingError(
                    f"service '{name}' of namespace '{self.namespace}' is not gone after {self.waits.refused:.0f} s "
                    f"({held}). Look at the controller that holds it."
                )
            self.pause(_POLL_FROM)

    @property
    def installed(self) -> Installed:
        """Features of the installed KServe, examined once."""
        if self._installed is None:
            self._installed = probe(self.kube)
        return self._installed

    def find(self, name: str) -> dict[str, Any] | None:
        """Return an InferenceService; None if there is none.

        Raises:
            ServingError: The API server refused or does not answer.
        """
        return self._found(self._path(name))

    def read(self, path: str) -> dict[str, Any] | None:
        """Return an object of the namespace by its API and name; None if it or its kind is absent."""
        api, _, name = path.rpartition(" ")
        group, _, plural = api.rpartition("/")
        return self._found(f"/apis/{group}/namespaces/{self.namespace}/{plural}/{name}")

    def pods(self, selector: str) -> builtins.list[Mapping[str, Any]]:
        """Return the pods of the namespace by their labels."""
        return self._listed("pods", labelSelector=selector)

    def log(self, pod: str, container: str) -> str:
        """Return the end of a container's log before its last restart, or of its present one; empty if refused."""
        for previous in ("true", "false"):
            with suppress(KubeError):
                return self.kube.log(
                    f"{self._core}/pods/{pod}", container=container, previous=previous, tailLines=_LOG_LINES
                )
        return ""

    def get_service(self, name: str) -> ServiceEndpoint:
        """Return the endpoint of a service that exists."""
        live = self.find(name)
        if live is None:
            raise ServingError(f"service '{name}' of namespace '{self.namespace}' was deleted meanwhile.")
        return self.endpoint_of(live)

    def endpoint_of(self, live: Mapping[str, Any]) -> ServiceEndpoint:
        """Return the endpoint of an InferenceService."""
        status, predictor = live.get("status") or {}, live["spec"]["predictor"]
        annotations = annotations_of(live)
        public = str(status.get("url") or "")
        inside = str((status.get("address") or {}).get("url") or "")
        url, host = public, ""
        if self._url:
            url, host = self._url.rstrip("/"), public.partition("://")[2].partition("/")[0]
        elif os.environ.get("KUBERNETES_SERVICE_HOST") and inside:
            url = inside
        model = predictor.get("model") or {}
        return ServiceEndpoint(
            url=url,
            model=annotations.get(MODEL, live["metadata"]["name"]),
            version=annotations.get(VERSION, ""),
            digest=annotations.get(DIGEST, ""),
            service=live["metadata"]["name"],
            namespace=self.namespace,
            protocol=str(model.get("protocolVersion") or "v1"),
            host=host,
            served_as=annotations.get(SERVED_AS, ""),
            revision=_rolled_out(status),
            deployment="" if _rolled_out(status) else deployment_name(live["metadata"]["name"], predictor),
        )

    def roll_out(
        self,
        name: str,
        spec: Mapping[str, Any],
        target: Target,
        live: Mapping[str, Any] | None,
        what: str,
        *,
        mode: str = "",
    ) -> None:
        """Apply a specification and wait until it serves; on failure apply the one before it.

        Args:
            name: Name of the service.
            spec: The specification.
            target: Rollout to wait for.
            live: The service before; None for a new one.
            what: Model and version, for messages.
            mode: Mode to ask for.

        Raises:
            ServingError: It was refused, or does not serve; the message says what serves.
        """
        before = self._events(name)
        try:
            self.apply(name, spec, mode=mode, live=live)
            self.wait(name, target, what, seen=before)
        except BaseException as error:
            serves = bool(live and (live.get("status") or {}).get("url"))
            restored = live is not None and self._restore(name, live)
            if not isinstance(error, ServingError):
                raise
            after = ""
            if restored and serves and live:
                after = f"{annotations_of(live).get(VERSION, 'The version before it')} serves."
            elif live is None and self._exists(name):
                after = (
                    f"The service '{name}' is left for a look at its pods; `dvkf model undeploy` removes it."
                )
            raise ServingError(f"{str(error).rstrip()} {after}".rstrip()) from error

    def apply(
        self, name: str, spec: Mapping[str, Any], *, mode: str = "", live: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Apply a specification by server-side apply.

        Raises:
            ServingError: It was refused, or a removed field stays because something else manages it, too.
        """
        if live is not None and not mode:
            # What was applied once stays applied: a removed annotation would have no owner.
            asked = (_applied(live).get("metadata") or {}).get("annotations") or {}
            mode = mode_name(next(iter(asked.values()), ""))
        made: dict[str, Any] = self.ask(
            lambda: self.kube.apply(
                self._path(name),
                service(name, self.namespace, spec, mode=mode, old_names=not self.installed.new_modes),
                MANAGER,
                force=self.take_over,
            )
        )
        for path in (("predictor", "canaryTrafficPercent"), ("canary",)):
            wanted, stays = _at(spec, *path), _at(made["spec"], *path)
            if wanted is None and stays is not None:
                owner = other_owner(made, MANAGER, "spec", *path) or "something else"
                raise ServingError(
                    f"service '{name}': spec.{'.'.join(path)} stays, because {owner} manages it, too. Remove it with "
                    "that tool."
                )
        return made

    def wait(self, name: str, target: Target, what: str, *, seen: Mapping[str, int] | None = None) -> None:
        """Wait until a rollout serves.

        Args:
            name: Name of the service.
            target: The rollout.
            what: Model and version, for messages.
            seen: Events before the change, with their counts.

        Raises:
            ServingError: It does not serve in time, or never will; with the container's own words.
        """
        began, poll, said = self.clock(), _POLL_FROM, ""
        since: dict[str, float] = {}
        while True:
            live = self.find(name)
            if live is None:
                raise ServingError(f"service '{name}' of namespace '{self.namespace}' was deleted meanwhile.")
            verdict = self._judge(live, target, seen or {})
            if verdict.serves:
                return
            now = self.clock()
            if (problem := verdict.problem) is not None:
                first = since.setdefault(problem.kind, now)
                if problem.final or now - first >= getattr(self.waits, problem.kind, 0.0):
                    raise ServingError(f"{what} does not serve as '{name}': {problem.message.rstrip('.')}.")
            if now - began >= self.waits.total:
                raise ServingError(
                    f"{what} does not serve as '{name}' after {now - began:.0f} s: {verdict.message.rstrip('.')}."
                )
            if verdict.message != said:
                _logger.info("service '%s': %s", name, verdict.message)
                said, poll = verdict.message, _POLL_FROM
            self.pause(poll)
            poll = min(poll * 1.5, _POLL_TO)

    def ask(self, call: Callable[[], Any]) -> Any:
        """Return the answer to a call that may be repeated, through short outages of the API server.

        Raises:
            ServingError: The API server refused it, or does not answer for long.
        """
        end, wait = self.clock() + _OUTAGE, 1.0
        while True:
            try:
                return call()
            except KubeError as error:
                if not (error.passing and "typed patch" not in error.said) or self.clock() >= end:
                    raise self._explained(error) from error
            self.pause(wait)
            wait = min(wait * 2, 30.0)

    def canary_endpoint(self, live: Mapping[str, Any]) -> ServiceEndpoint | None:
        """Return an endpoint that only the canary of a service answers; None if this process reaches none.

        In mode Knative the tag ``latest`` has an address (kserve, `ksvc_reconciler.go:130`). In mode Standard a canary
        has a Kubernetes Service, which only pods reach.

        Args:
            live: The InferenceService.
        """
        stable = self.endpoint_of(live)
        inside = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
        if stable.revision:
            part = live["status"]["components"]["predictor"]
            target = next((each for each in part.get("traffic") or () if each.get("tag") == "latest"), None)
            if target is None or not target.get("url"):
                return None
            url, host = str(target["url"]), ""
            if self._url:
                url, host = self._url.rstrip("/"), url.partition("://")[2].partition("/")[0]
            elif inside:
                url = f"http://latest-{stable.service}-predictor.{self.namespace}.svc.cluster.local"
            return replace(stable, url=url, host=host, revision=str(target.get("revisionName", "")))
        for entry in live["spec"].get("canary") or ():
            predictor = entry["predictor"]
            annotations = predictor.get("annotations") or {}
            deployment = deployment_name(stable.service, predictor)
            return replace(
                stable,
                url=f"http://{deployment}.{self.namespace}.svc.cluster.local" if inside else "",
                host="",
                version=annotations.get(VERSION, ""),
                digest=annotations.get(DIGEST, ""),
                protocol=str((predictor.get("model") or {}).get("protocolVersion") or "v1"),
                served_as=annotations.get(SERVED_AS, ""),
                deployment=deployment,
            )
        return None

    # -- inside ------------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        check_name(name, self.namespace, canary=True)
        return f"{self._services}/{name}"

    def _found(self, path: str) -> dict[str, Any] | None:
        def call() -> Any:
            try:
                return self.kube.get(path)
            except KubeError as error:
                if error.status == 404:
                    return None
                raise

        found: dict[str, Any] | None = self.ask(call)
        return found

    def _exists(self, name: str) -> bool:
        with suppress(ServingError):
            return self.find(name) is not None
        return False

    def _check_owner(self, name: str, live: Mapping[str, Any] | None) -> None:
        if live is not None and MODEL not in annotations_of(live) and not self.take_over:
            raise ServingError(
                f"service '{name}' of namespace '{self.namespace}' was not deployed by dvkf. Use another name or "
                "namespace, or take it over with --force."
            )

    def _explained(self, error: KubeError) -> ServingError:
        if error.lacks_right:
            return ServingError(f"{error.said.rstrip('.')}. {_RIGHTS}.")
        if error.conflicts:
            fields = ", ".join(f"{field} by {owner}" for owner, field in error.conflicts)
            return ServingError(
                f"the service has fields that something else set: {fields}. Remove them with that tool, or "
                "take them over with --force."
            )
        if "admission webhook" in error.said:
            said = error.said.partition("denied the request: ")[2] or error.said
            return ServingError(f"KServe refuses the service: {said.rstrip('.')}.")
        return ServingError(f"{error}.")

    def _judge(
        self, live: Mapping[str, Any], target: Target, seen: Mapping[str, int] | None = None
    ) -> Verdict:
        name, mode = live["metadata"]["name"], mode_of(live)
        deployment, revisions = None, {}
        if mode == "Knative":
            part = ((live.get("status") or {}).get("components") or {}).get("predictor") or {}
            if created := part.get("latestCreatedRevision"):
                found = self.read(f"serving.knative.dev/v1/revisions {created}")
                revisions = {created: found} if found else {}
                # Knative names it so (knative serving, `pkg/reconciler/revision/resources/names`).
                with suppress(ServingError):
                    deployment = self.read(f"apps/v1/deployments {created}-deployment")
        elif mode:
            deployment = self.read(f"apps/v1/deployments {target.deployment}")
        events = []
        for event in self._listed("events", fieldSelector=f"involvedObject.name={name},type=Warning"):
            if int(event.get("count") or 1) > (seen or {}).get(event["metadata"]["uid"], 0):
                events.append(event)
        pods = self.pods(f"serving.kserve.io/inferenceservice={name},component=predictor")
        view = View(live, mode, deployment, revisions, pods, events)
        return judge(view, target, self.log)

    def _events(self, name: str) -> dict[str, int]:
        listed = self._listed("events", fieldSelector=f"involvedObject.name={name},type=Warning")
        return {each["metadata"]["uid"]: int(each.get("count") or 1) for each in listed}

    def _listed(self, plural: str, **query: str) -> builtins.list[Mapping[str, Any]]:
        found = self.ask(lambda: self.kube.get(f"{self._core}/{plural}", limit="500", **query))
        return builtins.list(found.get("items") or ())

    def _restore(self, name: str, live: Mapping[str, Any]) -> bool:
        """Apply the specification before; return True if that worked. It is not waited for: its pods still run."""
        spec = _applied(live).get("spec") or live["spec"]
        try:
            self.apply(name, spec, live=live)
        except ServingError as error:
            _logger.warning(
                "service '%s': its specification before could not be applied again: %s", name, error
            )
            return False
        return True


def _rolled_out(status: Mapping[str, Any]) -> str:
    part = (status.get("components") or {}).get("predictor") or {}
    return str(part.get("latestRolledoutRevision") or "")


def annotations_of(live: Mapping[str, Any]) -> dict[str, str]:
    """Return the annotations of a service's stable predictor."""
    return dict(live["spec"]["predictor"].get("annotations") or {})


def deployment_name(name: str, predictor: Mapping[str, Any]) -> str:
    """Return the name of a predictor's Deployment in mode Standard."""
    return f"{name}-{predictor['name']}-predictor" if predictor.get("name") else f"{name}-predictor"


def _applied(live: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(owned(live, MANAGER)))  # type: ignore[no-any-return]


def applied_spec(live: Mapping[str, Any]) -> dict[str, Any]:
    """Return the specification that was applied from here; all of it if something else applied it."""
    found: dict[str, Any] = _applied(live).get("spec") or dict(live["spec"])
    return found


def _at(value: Mapping[str, Any], *path: str) -> Any:
    at: Any = value
    for name in path:
        at = at.get(name) if isinstance(at, Mapping) else None
    return at
