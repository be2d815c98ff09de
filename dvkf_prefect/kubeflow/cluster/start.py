"""Start of a pipeline run, which happens once: by one dispatcher, and with one request.

The server makes a run's workflow before it stores the run. So a second request with the same id is refused, but its
workflow runs on. A claim on the remote keeps all but one dispatcher from sending the request, and a record there keeps
later ones from sending it again. After an answer that leaves it open, the same dispatcher does not send it again
either: it waits as a later one does, for the run or for the proof that there is none, and then takes the next id.

The proof is Kubernetes' list of workflows, if it can be queried: no workflow, and no run in a later look. Otherwise it
is the time in which the server deletes a workflow without a run.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kubeflow.cluster.api import KfpAnswerError, KfpApi, KfpUnreachableError
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.exchange.claims import Claim

# The server's message after it made a workflow whose run it could not store, and those of failures that pass.
_NOT_STORED = "Failed to store run"
_PASSING = re.compile(
    r"(?i)connection refused|too many connections|deadlock|database is locked|lock wait timeout"
)
CLAIM_PATIENCE = 180.0
"""Seconds until another's claim is removed: longer than a start takes."""
# Seconds from a request until the server has deleted its workflow, if it has no run: 120 in its settings
# (WORKFLOW_GC_GRACE_PERIOD_SECONDS), and the interval of its looks.
_DELETED_AFTER = 180.0
# Seconds from a request until its workflow is in Kubernetes, if it ever is.
_ARRIVES = 30.0
_CREATE_TRIES = 5
# Labels and annotations of a workflow (apiserver/template/v2_template.go).
_RUN_ID, _RUN_NAME = "pipeline/runid", "pipelines.kubeflow.org/run_name"
_SUPPRESS = 30.0  # seconds until Kubernetes is queried again after a failed query
_KNOWN_RUNS = 3  # runs that are looked up to learn whether the workflows are this server's
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """Result of `RunStart.once`.

    Attributes:
        run: The run as the server returns it; None if there is none, and its id must not be used again.
        is_new: True if it was started here.
        problem: Failure of the request that was sent here; None if none was sent, or it was answered.
    """

    run: dict[str, Any] | None
    is_new: bool = False
    problem: RunnerError | None = None


class RunStart:
    """Start of one run.

    Args:
        api: Connection to the server.
        claim: Claim on the run.
        key: Key of the run, which is its id if the server takes it.
        name: Name of the run.
        find: Returns the run as the server returns it; None if it has none.
        workflows: Workflows in Kubernetes; None if they are not queried.
    """

    def __init__(
        self,
        api: KfpApi,
        claim: Claim,
        key: str,
        name: str,
        find: Callable[[], dict[str, Any] | None],
        workflows: KubeWorkflows | None,
    ) -> None:
        self._api = api
        self._claim = claim
        self._key = key
        self._name = name
        self._find = find
        self._workflows = workflows
        self._found: list[dict[str, Any]] = []

    def once(
        self,
        body: Callable[[], Mapping[str, Any]],
        *,
        announce: Callable[[], None],
        withdraw: Callable[[], None],
    ) -> Started:
        """Start the run, unless another dispatcher does or did.

        Limits, without Kubernetes: a server whose grace for workflows without a run was raised above `_DELETED_AFTER`
        may still run one. So may a server that handles a request that long after its client has ended.

        Args:
            body: Returns the body of the request.
            announce: Called before the request, so that other dispatchers know of the run.
            withdraw: Called if the request surely started nothing.

        Raises:
            RunnerError: The server refused the run, or a workflow without a run goes on.
            RemoteError: The remote cannot be used.
        """
        holder = self._claim.take(CLAIM_PATIENCE, self._look)
        if holder is not None:
            _logger.info("run %s was started by %s", self._key, holder)
            return Started(self._found[0])
        problem = None
        try:
            if self._look():
                return Started(self._found[0])
            sent = self._claim.sent_at()
            if sent is None:
                made = body()
                if not self._claim.held:
                    raise RunnerError(
                        f"the start of run {self._key} took longer than {CLAIM_PATIENCE:.0f} s, and another "
                        "dispatcher took it over. Run the command again to follow it."
                    )
                announce()
                try:
                    return Started(self._create(made), is_new=True)
                except _OpenError as error:
                    problem, sent = error.problem, error.sent
                except LeftOverError:
                    raise
                except RunnerError:
                    withdraw()
                    raise
        finally:
            self._claim.release()
        self._settle(sent)
        return Started(self._found[0] if self._found else None, problem=problem)

    def adopt(self) -> dict[str, Any] | None:
        """Return the run that another dispatcher announced, as the server returns it; None if it was never started.

        Waits for a request that was sent or is about to be.

        Raises:
            RunnerError: A workflow without a run goes on.
            RemoteError: The remote cannot be used.
        """
        if self._claim.take(CLAIM_PATIENCE, self._look) is None:
            try:
                sent = None if self._look() else self._claim.sent_at()
            finally:
                self._claim.release()
            if sent is not None:
                self._settle(sent)
        return self._found[0] if self._found else None

    def _look(self) -> bool:
        """Look for the run; return True once it is found."""
        if not self._found and (run := self._find()) is not None:
            self._found.append(run)
        return bool(self._found)

    def _create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send the request; repeat it only while it surely started nothing.

        The server answers 500 for nearly every refusal, so that status alone says nothing.

        Raises:
            _OpenError: It is not known if the run was started.
            RunnerError: It was not started.
        """
        wait = 0.5
        for attempt in range(_CREATE_TRIES):
            self._claim.sending()
            sent = time.time()
            try:
                return self._api.create_run(body)
            except KfpAnswerError as error:
                if _NOT_STORED in str(error):
                    if self._look():
                        return self._found[0]
                    raise LeftOverError(
                        f"{error}. The server may have started the stages without keeping their run; it deletes such "
                        "a workflow within minutes. Start them again: the next run begins after that"
                    ) from error
                refused = error.status < 500 and error.status not in (408, 409, 429)
                if not refused and error.status not in (429, 500) and error.sent:
                    raise _OpenError(error, sent) from error
                problem: RunnerError = error
                again = not refused and (error.status != 500 or bool(_PASSING.search(str(error))))
            except KfpUnreachableError as error:
                if error.sent:
                    raise _OpenError(error, sent) from error
                problem, refused, again = error, False, True
            self._claim.refused()
            if again and attempt < _CREATE_TRIES - 1:
                time.sleep(wait)
                wait = min(wait * 2, 4.0)
            if not refused and self._look():
                return self._found[0]
            if not again:
                raise problem
        raise problem

    def _settle(self, sent: float) -> None:
        """Wait until the run of a request is found, or it is certain that there is none.

        Args:
            sent: Time of the request, in seconds since 1970.

        Raises:
            RunnerError: A workflow without a run goes on.
        """
        now, begun = time.monotonic(), time.time()
        end = now + min(_DELETED_AFTER, max(0.0, sent + _DELETED_AFTER - begun))
        arrived = now + min(_ARRIVES, max(0.0, sent + _ARRIVES - begun))
        wait, told = 0.5, False
        while True:
            workflow = self._workflows.find(self._key, self._name) if self._workflows is not None else None
            if self._look():
                return
            now = time.monotonic()
            if now >= end and workflow:
                raise RunnerError(
                    f"workflow '{workflow}' of run {self._key} goes on, but the server has no such run. Delete it: "
                    f"`kubectl delete workflow {workflow}`, and start the stages again"
                )
            if now >= end or (workflow == "" and now >= arrived):
                return
            if not told:
                told = True
                _logger.warning(
                    "run %s was requested, but the server lacks it. Waiting up to %.0f s for the run, or for the "
                    "deletion of its workflow",
                    self._key,
                    end - now,
                )
            time.sleep(min(wait, max(0.0, end - now) + 0.01))
            wait = min(wait * 2, 8.0)


class KubeWorkflows:
    """Workflows of a server's runs in Kubernetes.

    Args:
        settings: Settings of the cluster.
        api: Connection to the server, which tells if the workflows are those of its runs.
    """

    def __init__(self, settings: ClusterSettings, api: KfpApi) -> None:
        self._settings = settings
        self._api = api
        self._objects: Any = None
        self._not_before = 0.0
        self._are_of_server = False

    def find(self, key: str, name: str) -> str | None:
        """Return the name of the workflow of a run; "" if there is none, None if that cannot be known.

        A namespace without any workflow of the server's runs may be another one than theirs.

        Args:
            key: Id that the run was requested with.
            name: Name of the run, for a server that gave it an id of its own.
        """
        listed = self._listed() if time.monotonic() >= self._not_before else None
        if listed is None:
            return None
        runs: dict[str, None] = {}
        for each in listed:
            labels, annotations = each.get("labels") or {}, each.get("annotations") or {}
            if labels.get(_RUN_ID) == key or annotations.get(_RUN_NAME) == name:
                return str(each["name"])
            runs[str(labels.get(_RUN_ID))] = None
        if not self._are_of_server:
            known = (self._api.run(run_id) for run_id in islice(runs, _KNOWN_RUNS))
            self._are_of_server = any(run is not None for run in known)
        return "" if self._are_of_server else None

    def _listed(self) -> list[dict[str, Any]] | None:
        """Return the metadata of all workflows of runs; None on failure, after which queries pause for a while."""
        from dvkf_prefect.kube.client import kube_client
        from dvkf_prefect.kube.objects import KubeObjects

        settings = self._settings
        path = f"/apis/argoproj.io/v1alpha1/namespaces/{settings.namespace}/workflows"
        try:
            if self._objects is None:
                self._objects = KubeObjects(kube_client(settings.kube_config, settings.kube_context))
            found: list[dict[str, Any]] = self._objects.metadata(path, labelSelector=_RUN_ID)
        except Exception as error:  # noqa: BLE001 (whatever the client raises, there is no answer)
            _logger.debug("cannot query Kubernetes about workflows: %s", type(error).__name__)
            self._not_before = time.monotonic() + _SUPPRESS
            return None
        return found


class LeftOverError(RunnerError):
    """The server did not store a run after it made the workflow."""


class _OpenError(Exception):
    """A request for a run had no answer that says whether it was started.

    Attributes:
        problem: Failure of the request.
        sent: Time of the request, in seconds since 1970.
    """

    def __init__(self, problem: RunnerError, sent: float) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.sent = sent
