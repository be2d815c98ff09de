"""Mirror of a run on a cluster: events of its tasks for the task runs of their stages, and links to it."""

from __future__ import annotations

import contextvars
import threading

from prefect.context import FlowRunContext, TaskRunContext

from dvkf_prefect.cards import artifact_key, count_text, escape
from dvkf_prefect.kubeflow.cluster.runner import StartedRun
from dvkf_prefect.kubeflow.cluster.watch import TaskEvent
from dvkf_prefect.tasks._artifacts import create_artifact
from dvkf_prefect.tasks._git import note_kubeflow_run
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks.stages.task_run import StageCall


class RunLinks:
    """Link artifact and log line of each pipeline run, published at its start.

    Args:
        repository: Short name of the repository.
    """

    def __init__(self, repository: str) -> None:
        self._repository = repository
        self._seen: set[str] = set()
        # Later runs of a chain start in a thread without the context of the flow run.
        self._context = contextvars.copy_context()
        self._shown = FlowRunContext.get() is not None or TaskRunContext.get() is not None

    def publish(self, run: StartedRun) -> None:
        """Publish a run, unless it was published before."""
        if self._shown and run.run_id not in self._seen:
            self._seen.add(run.run_id)
            self._context.copy().run(self._publish, run)

    def _publish(self, run: StartedRun) -> None:
        logger = run_logger()
        logger.info("%s", run)
        note_kubeflow_run(run.run_id)
        text = f"[Kubeflow pipeline run]({run.url})" if run.url else f"Kubeflow pipeline run `{run.run_id}`"
        if run.experiment_url:
            text += f" · [experiment]({run.experiment_url})"
        place = f": {run.url}" if run.url else f" (run {run.run_id})"
        try:
            create_artifact(
                "markdown",
                artifact_key("kubeflow", self._repository),
                f"Pipeline run of {count_text(len(run.stages), 'stage')} of {escape(self._repository)} on "
                f"Kubeflow{place}",
                text,
            )
        except Exception:  # the run itself must go on without its artifact
            logger.warning("the link to the Kubeflow run could not be published", exc_info=True)


class TaskMirror:
    """Forwards events of a cluster's tasks to the task runs of their stages."""

    def __init__(self) -> None:
        self._calls: dict[str, StageCall] = {}
        # Events of stages whose task runs are not submitted yet.
        self._early: dict[str, list[TaskEvent]] = {}
        self._lock = threading.Lock()
        self._logger = run_logger()

    def add(self, stage: str, call: StageCall) -> None:
        """Forward events of a stage to a task run from now on, those that came before too.

        Args:
            stage: Address of the stage.
            call: Its task run.
        """
        with self._lock:
            self._calls[stage] = call
            for event in self._early.pop(stage, ()):
                call.take(event)

    def take(self, event: TaskEvent) -> None:
        """Queue an event for its stage's log. Safe in any thread.

        Args:
            event: The event from the cluster.
        """
        if event.state == "WAITING":  # its task run is pending, and has no log yet
            self._logger.warning("%s", event)
        with self._lock:
            call = self._calls.get(event.stage)
            if call is not None:
                call.take(event)
            else:
                self._early.setdefault(event.stage, []).append(event)
