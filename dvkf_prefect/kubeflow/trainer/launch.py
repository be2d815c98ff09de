"""Start, watch and end of a distributed training, from the pod of its stage.

The TrainJob has a name that depends only on the run, the task and the attempt. So a pod that was restarted finds the
training of the pod before it. The pod owns the training: Kubernetes deletes it with the pod. A stopped stage deletes it
at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import RunnerError, StageCancelledError, StageError
from dvkf_prefect.kube.objects import KubeError, KubeObjects
from dvkf_prefect.kubeflow.trainer.manifests import API, MARK, OVERRIDES, own_runtime, train_job
from dvkf_prefect.kubeflow.trainer.plan import TrainingPlan
from dvkf_prefect.kubeflow.trainer.verdict import Verdict, judge

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_POLL_FROM, _POLL_TO = 2.0, 15.0
# Seconds without an answer after which a training is given up; an API server restarts within minutes.
_OUTAGE = 600.0
_RIGHTS = (
    "Give the service account of the run `create`, `get`, `patch` and `delete` of trainjobs and "
    "trainingruntimes (trainer.kubeflow.org), and `list` of pods and events, or name another `service_account`"
)
_logger = logging.getLogger(__name__)


class Training:
    """A training on the cluster.

    Args:
        kube: Kubernetes.
        plan: Plan of the nodes.
        name: Name of the training.
        mark: Text that identifies it.
        pause: Waits some seconds between two looks.
        clock: Returns the seconds of a clock.
    """

    def __init__(
        self,
        kube: KubeObjects,
        plan: TrainingPlan,
        name: str,
        mark: str,
        *,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._plan = plan
        self._name = name
        self._mark = mark
        self._pause = pause
        self._clock = clock
        namespace = _ACCOUNT.read_text().strip() if _ACCOUNT.exists() else plan.namespace
        self._core = f"/api/v1/namespaces/{namespace}"
        self._jobs = f"/apis/{API}/namespaces/{namespace}/trainjobs"
        self._runtimes = f"/apis/{API}/namespaces/{namespace}/trainingruntimes"

    def run(self, environment: Mapping[str, str], failed: Callable[[], bool]) -> Verdict:
        """Start the training, or find it, and wait for its end; an error deletes it.

        Args:
            environment: Further variables of the nodes.
            failed: Returns True once a node has recorded a failure; then the others are ended.

        Raises:
            ConfigError: The version of Trainer cannot override a setting of the stage.
            RunnerError: Kubernetes refused it or does not answer, or the name is another training's.
            StageCancelledError: The training was deleted.
        """
        try:
            self._start(environment)
            verdict = self._wait(failed)
        except BaseException:
            self._end()
            raise
        if verdict.phase == "failed":
            self._end()
        return verdict

    # -- start -------------------------------------------------------------------------------------------------------

    def _start(self, environment: Mapping[str, str]) -> None:
        owner = _this_pod()
        overrides = self._overrides() if self._plan.runtime else OVERRIDES[0]
        job = train_job(self._plan, self._name, self._mark, owner, environment, overrides=overrides)
        if not self._plan.runtime:
            self._create(self._runtimes, own_runtime(self._plan, self._name, self._mark, owner), owner)
        self._create(self._jobs, job, owner)
        _logger.warning(
            "stage '%s': %d nodes of %d processes are started as TrainJob %s",
            self._plan.stage,
            self._plan.nodes,
            self._plan.processes,
            self._name,
        )

    def _create(self, path: str, obj: Mapping[str, Any], owner: Mapping[str, Any] | None) -> None:
        """Create an object, or take over the one of an earlier pod."""
        try:
            self._patiently(lambda: self._kube.create(path, obj))
        except KubeError as error:
            if error.reason == "AlreadyExists":
                self._adopt(f"{path}/{self._name}", owner)
                return
            raise self._explained(error) from error

    def _adopt(self, path: str, owner: Mapping[str, Any] | None) -> None:
        found = self._patiently(lambda: self._kube.get(path))
        metadata = found["metadata"]
        if (metadata.get("annotations") or {}).get(MARK) != self._mark:
            raise RunnerError(
                f"{found.get('kind', 'the object')} '{self._name}' in Kubernetes belongs to something else. Delete it"
            )
        owners = list(metadata.get("ownerReferences") or ())
        if owner is not None and owner["uid"] not in {each["uid"] for each in owners}:
            change = {"metadata": {"ownerReferences": [*owners, owner]}}
            self._patiently(lambda: self._kube.merge(path, change))

    def _overrides(self) -> str:
        """Return the field with overrides that the installed version has."""
        try:
            document = self._patiently(lambda: self._kube.get(f"/openapi/v3/apis/{API}"))
        except KubeError as error:
            if error.status == 404:
                raise self._explained(error) from error
            return OVERRIDES[0]
        schemas = document.get("components", {}).get("schemas", {})
        spec: Mapping[str, Any] = next(
            (s["properties"]["spec"]["properties"] for n, s in schemas.items() if n.endswith(".TrainJob")), {}
        )
        return next((field for field in OVERRIDES if field in spec), OVERRIDES[0])

    def _explained(self, error: KubeError) -> RunnerError:
        if error.lacks_right:
            return RunnerError(f"its nodes cannot be started: {error.said}. {_RIGHTS}")
        if error.status == 404 and not error.reason:
            return RunnerError(
                "Kubeflow Trainer is not installed on this cluster. Install version 2.0 or later, or remove "
                "`meta: kubeflow: trainer`"
            )
        return RunnerError(f"its nodes cannot be started: {error.said or error}")

    # -- watch -------------------------------------------------------------------------------------------------------

    def _wait(self, failed: Callable[[], bool]) -> Verdict:
        last, since, poll = Verdict(""), self._clock(), _POLL_FROM
        while True:
            try:
                job = self._patiently(lambda: self._kube.get(f"{self._jobs}/{self._name}"))
            except KubeError as error:
                if error.status == 404:
                    raise StageCancelledError(
                        f"its TrainJob {self._name} was deleted before its end"
                    ) from error
                raise self._explained(error) from error
            verdict = judge(job, self._pods(), self._events(), plan=self._plan, waited=self._clock() - since)
            if verdict.ended:
                return verdict
            if failed():
                return Verdict("failed", "a node failed")
            if verdict != last:
                _logger.warning("stage '%s': %s", self._plan.stage, verdict.message)
                last, since, poll = verdict, self._clock(), _POLL_FROM
            self._pause(poll)
            poll = min(poll * 1.5, _POLL_TO)

    def _pods(self) -> list[Mapping[str, Any]]:
        selector = f"jobset.sigs.k8s.io/jobset-name={self._name}"
        return self._listed(f"{self._core}/pods", labelSelector=selector)

    def _events(self) -> list[Mapping[str, Any]]:
        return self._listed(
            f"{self._core}/events", fieldSelector=f"involvedObject.name={self._name},type=Warning"
        )

    def _listed(self, path: str, **query: str) -> list[Mapping[str, Any]]:
        """Return objects that explain a state; empty if this account may not list them."""
        try:
            return list(self._kube.get(path, limit="500", **query).get("items") or ())
        except KubeError:
            return []

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Return the answer to a call that may be repeated, through outages of the API server."""
        began, wait = self._clock(), 1.0
        while True:
            try:
                return call()
            except KubeError as error:
                if not error.passing or self._clock() - began >= _OUTAGE:
                    raise
            self._pause(wait)
            wait = min(wait * 2, 30.0)

    # -- end ---------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Delete the training; the pod's end deletes what cannot be deleted now."""
        if not self._is_mine():
            return
        for path in (self._jobs, self._runtimes):
            if path == self._jobs or not self._plan.runtime:
                with contextlib.suppress(KubeError, StageError):
                    self._kube.delete(f"{path}/{self._name}")

    def _is_mine(self) -> bool:
        for path in (self._jobs, self._runtimes):
            with contextlib.suppress(KubeError):
                found = self._kube.get(f"{path}/{self._name}")
                return bool((found["metadata"].get("annotations") or {}).get(MARK) == self._mark)
        return False


def _this_pod() -> dict[str, Any] | None:
    """Return a reference to this pod, by the variables of KFP's containers (``argocompiler/common.go``)."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid} if name and uid else None
