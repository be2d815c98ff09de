"""Hooks of flows that run pipelines."""

from __future__ import annotations

import logging
from typing import Any, cast

from dvkf_prefect.blocks import DvcRepository, KubeflowPipelines
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.kubeflow.cluster.ending import end_runs_of

_logger = logging.getLogger(__name__)


def end_pipeline_runs(flow: Any, flow_run: Any, state: Any) -> None:
    """End the runs on Kubeflow that a cancelled flow run could not end, because its process was killed.

    Prefect kills the process of a cancelled flow run after 30 seconds. It calls this hook in the process of the worker.
    A run that another flow run follows goes on.

    Args:
        flow: The flow; unused.
        flow_run: The flow run, whose parameters ``repository`` and ``pipelines`` are names of blocks.
        state: Its state; unused.

    Example:
        ``@flow(on_cancellation=[end_pipeline_runs])``
    """
    names = {"repository": "local", "pipelines": "local", **flow_run.parameters}
    try:
        pipelines = cast(KubeflowPipelines, KubeflowPipelines.load(names["pipelines"]))
        if pipelines.backend != "kubeflow":
            return
        repo = cast(DvcRepository, DvcRepository.load(names["repository"])).open()
        for run_id in end_runs_of(str(flow_run.id), pipelines.settings(), repo.remote()):
            _logger.info("terminated the run %s of the cancelled flow run", run_id)
    except (DvkfError, ValueError) as error:
        _logger.warning("the runs of the cancelled flow run cannot be ended: %s", error)
