"""Tasks: one verb each on a repository, a pipeline or a model, with a log line and a card in Prefect's UI.

A task logs, calls the engine once, and publishes a card. Tasks may import blocks, cards, Kubeflow and the engine.
"""

from dvkf_prefect.tasks.data import (
    add_data,
    checkout_data,
    commit_results,
    diff_data,
    pull_data,
    push_commits,
    push_data,
    write_data,
)
from dvkf_prefect.tasks.models import (
    deploy_model,
    promote_model,
    register_model,
    request_predictions,
    rollback_model,
)
from dvkf_prefect.tasks.pipeline import compare_metrics, repro_pipeline
from dvkf_prefect.tasks.stages.runner import StageTasks, stage_tasks
from dvkf_prefect.tasks.stages.task_run import StageSignature

__all__ = [
    "StageSignature",
    "StageTasks",
    "add_data",
    "checkout_data",
    "commit_results",
    "compare_metrics",
    "deploy_model",
    "diff_data",
    "promote_model",
    "pull_data",
    "push_commits",
    "push_data",
    "register_model",
    "repro_pipeline",
    "request_predictions",
    "rollback_model",
    "stage_tasks",
    "write_data",
]
