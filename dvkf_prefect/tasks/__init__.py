"""Tasks: one verb each on a repository, a pipeline or a model, with a log line and a card in Prefect's UI.

A task logs, calls the engine once, and publishes a card. Tasks may import blocks, cards, Kubeflow and the engine.
"""

from dvkf_prefect.tasks._hooks import end_pipeline_runs
from dvkf_prefect.tasks.caching import DataVersionPolicy
from dvkf_prefect.tasks.data import (
    add_data,
    check_commit,
    checkout_data,
    commit_results,
    compare_table,
    diff_data,
    pull_data,
    push_commits,
    push_data,
    write_data,
)
from dvkf_prefect.tasks.incoming import add_incoming, check_incoming, clear_incoming
from dvkf_prefect.tasks.kubeflow import (
    archive_pipeline_run,
    retry_pipeline_run,
    schedule_pipeline,
    terminate_pipeline_run,
    unarchive_pipeline_run,
    unschedule_pipeline,
)
from dvkf_prefect.tasks.models import (
    check_model_ref,
    deploy_model,
    deprecate_model,
    deregister_model,
    list_model_events,
    mirror_models,
    register_model,
    request_predictions,
    show_model,
    trace_data,
    trace_model,
    unassign_model,
)
from dvkf_prefect.tasks.overview import show_overview, show_plots
from dvkf_prefect.tasks.pipeline import compare_metrics, repro_pipeline
from dvkf_prefect.tasks.promotion import compare_versions, promote_model, rollback_model
from dvkf_prefect.tasks.publishing import collect_models, publish_model, unpublish_model
from dvkf_prefect.tasks.serving import (
    abort_canary,
    judge_canary,
    promote_canary,
    start_canary,
    undeploy_model,
)
from dvkf_prefect.tasks.stages.runner import StageTasks, stage_tasks
from dvkf_prefect.tasks.stages.task_run import StageSignature
from dvkf_prefect.tasks.triggers import data_trigger
from dvkf_prefect.tasks.upkeep import collect_data, verify_data
from dvkf_prefect.tasks.watching import announce_data, watch_data

__all__ = [
    "DataVersionPolicy",
    "StageSignature",
    "StageTasks",
    "abort_canary",
    "add_data",
    "add_incoming",
    "announce_data",
    "archive_pipeline_run",
    "check_commit",
    "check_incoming",
    "check_model_ref",
    "checkout_data",
    "clear_incoming",
    "collect_data",
    "collect_models",
    "commit_results",
    "compare_metrics",
    "compare_table",
    "compare_versions",
    "data_trigger",
    "deploy_model",
    "deprecate_model",
    "deregister_model",
    "diff_data",
    "end_pipeline_runs",
    "judge_canary",
    "list_model_events",
    "mirror_models",
    "promote_canary",
    "promote_model",
    "publish_model",
    "pull_data",
    "push_commits",
    "push_data",
    "register_model",
    "repro_pipeline",
    "request_predictions",
    "retry_pipeline_run",
    "rollback_model",
    "schedule_pipeline",
    "show_model",
    "show_overview",
    "show_plots",
    "stage_tasks",
    "start_canary",
    "terminate_pipeline_run",
    "trace_data",
    "trace_model",
    "unarchive_pipeline_run",
    "unassign_model",
    "undeploy_model",
    "unpublish_model",
    "unschedule_pipeline",
    "verify_data",
    "watch_data",
    "write_data",
]
