"""Tasks: one verb each on a repository, a pipeline or a model, with a log line and a card in Prefect's UI."""

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
from dvkf_prefect.tasks.models import assign_model, deploy_model, predict, register_model, rollback_model
from dvkf_prefect.tasks.pipeline import compare_metrics, repro_pipeline, run_stages
from dvkf_prefect.tasks.stages.runner import StageTasks, stage_tasks
from dvkf_prefect.tasks.stages.task_run import StageSignature

__all__ = [
    "StageSignature",
    "StageTasks",
    "add_data",
    "assign_model",
    "checkout_data",
    "commit_results",
    "compare_metrics",
    "deploy_model",
    "diff_data",
    "predict",
    "pull_data",
    "push_commits",
    "push_data",
    "register_model",
    "repro_pipeline",
    "rollback_model",
    "run_stages",
    "stage_tasks",
    "write_data",
]
