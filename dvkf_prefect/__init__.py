"""Prefect tasks, blocks and flows for DVC data versions, on Kubeflow or on one machine."""

from __future__ import annotations

import sys

# `python -m dvkf_prefect.cli` puts the current folder first on the search path. In a hostile repository, its json.py
# would be imported and run. `-m` of any other package keeps the folder.
if (
    sys.argv[:1] == ["-m"]
    and "-m" in sys.orig_argv
    and sys.orig_argv[sys.orig_argv.index("-m") + 1].partition(".")[0] == "dvkf_prefect"
    and not getattr(sys.flags, "safe_path", False)
):
    del sys.path[0]

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvkf_prefect.blocks import DvcRemote as DvcRemote
    from dvkf_prefect.blocks import DvcRepository as DvcRepository
    from dvkf_prefect.blocks import KServeModelServer as KServeModelServer
    from dvkf_prefect.blocks import KubeflowCredentials as KubeflowCredentials
    from dvkf_prefect.blocks import KubeflowModelRegistry as KubeflowModelRegistry
    from dvkf_prefect.blocks import KubeflowPipelines as KubeflowPipelines
    from dvkf_prefect.blocks import ModelServer as ModelServer
    from dvkf_prefect.blocks import find_block as find_block
    from dvkf_prefect.cards import artifact_key as artifact_key
    from dvkf_prefect.cards import comparison_card as comparison_card
    from dvkf_prefect.data.quality.incoming import Incoming as Incoming
    from dvkf_prefect.data.quality.incoming import IncomingFile as IncomingFile
    from dvkf_prefect.data.quality.reports import FailedCheck as FailedCheck
    from dvkf_prefect.data.quality.reports import QualityReport as QualityReport
    from dvkf_prefect.data.quality.reports import quality_reports as quality_reports
    from dvkf_prefect.data.results.expiry import ExpiredResults as ExpiredResults
    from dvkf_prefect.data.results.locks import ResultLocks as ResultLocks
    from dvkf_prefect.data.tables.frame_diff import FrameDiff as FrameDiff
    from dvkf_prefect.data.tables.frame_diff import diff_frames as diff_frames
    from dvkf_prefect.data.tables.frames import read_frame as read_frame
    from dvkf_prefect.data.tables.frames import write_frame as write_frame
    from dvkf_prefect.data.transfer.transfer import Transfer as Transfer
    from dvkf_prefect.data.upkeep.gc import GcOptions as GcOptions
    from dvkf_prefect.data.upkeep.gc import GcScope as GcScope
    from dvkf_prefect.data.upkeep.verify import VerifyOptions as VerifyOptions
    from dvkf_prefect.data.verbs.diff import Diff as Diff
    from dvkf_prefect.data.verbs.imports import ImportOptions as ImportOptions
    from dvkf_prefect.data.verbs.imports import ImportUrlOptions as ImportUrlOptions
    from dvkf_prefect.data.verbs.status import Status as Status
    from dvkf_prefect.data.views.filesystem import DvkfFileSystem as DvkfFileSystem
    from dvkf_prefect.errors import DvkfError as DvkfError
    from dvkf_prefect.formats.outputs import DataVersion as DataVersion
    from dvkf_prefect.models.gates import Finding as Finding
    from dvkf_prefect.models.gates import MetricGate as MetricGate
    from dvkf_prefect.models.gates import PrometheusGate as PrometheusGate
    from dvkf_prefect.models.gates import SmokeGate as SmokeGate
    from dvkf_prefect.models.registry import ModelRegistry as ModelRegistry
    from dvkf_prefect.models.version import ModelVersion as ModelVersion
    from dvkf_prefect.pipeline.report.metrics import MetricChange as MetricChange
    from dvkf_prefect.pipeline.run.dry_run import plan as plan
    from dvkf_prefect.pipeline.run.events import ReproResult as ReproResult
    from dvkf_prefect.pipeline.run.repro import repro as repro
    from dvkf_prefect.pipeline.step.runner import LocalRunner as LocalRunner
    from dvkf_prefect.processes.leash import LeashedProcess as LeashedProcess
    from dvkf_prefect.promotion.comparison import VersionComparison as VersionComparison
    from dvkf_prefect.promotion.promote import Approval as Approval
    from dvkf_prefect.repo import Repo as Repo
    from dvkf_prefect.serializers import ArrowSerializer as ArrowSerializer
    from dvkf_prefect.serializers import ParquetSerializer as ParquetSerializer
    from dvkf_prefect.serving.endpoint import Endpoint as Endpoint
    from dvkf_prefect.tasks import DataVersionPolicy as DataVersionPolicy
    from dvkf_prefect.tasks import abort_canary as abort_canary
    from dvkf_prefect.tasks import add_data as add_data
    from dvkf_prefect.tasks import add_incoming as add_incoming
    from dvkf_prefect.tasks import announce_data as announce_data
    from dvkf_prefect.tasks import archive_pipeline_run as archive_pipeline_run
    from dvkf_prefect.tasks import check_commit as check_commit
    from dvkf_prefect.tasks import check_incoming as check_incoming
    from dvkf_prefect.tasks import check_model_ref as check_model_ref
    from dvkf_prefect.tasks import checkout_data as checkout_data
    from dvkf_prefect.tasks import clear_incoming as clear_incoming
    from dvkf_prefect.tasks import collect_data as collect_data
    from dvkf_prefect.tasks import collect_models as collect_models
    from dvkf_prefect.tasks import commit_results as commit_results
    from dvkf_prefect.tasks import compare_metrics as compare_metrics
    from dvkf_prefect.tasks import compare_table as compare_table
    from dvkf_prefect.tasks import compare_versions as compare_versions
    from dvkf_prefect.tasks import data_trigger as data_trigger
    from dvkf_prefect.tasks import deploy_model as deploy_model
    from dvkf_prefect.tasks import deprecate_model as deprecate_model
    from dvkf_prefect.tasks import deregister_model as deregister_model
    from dvkf_prefect.tasks import diff_data as diff_data
    from dvkf_prefect.tasks import end_pipeline_runs as end_pipeline_runs
    from dvkf_prefect.tasks import judge_canary as judge_canary
    from dvkf_prefect.tasks import list_model_events as list_model_events
    from dvkf_prefect.tasks import mirror_models as mirror_models
    from dvkf_prefect.tasks import promote_canary as promote_canary
    from dvkf_prefect.tasks import promote_model as promote_model
    from dvkf_prefect.tasks import publish_model as publish_model
    from dvkf_prefect.tasks import pull_data as pull_data
    from dvkf_prefect.tasks import push_commits as push_commits
    from dvkf_prefect.tasks import push_data as push_data
    from dvkf_prefect.tasks import register_model as register_model
    from dvkf_prefect.tasks import repro_pipeline as repro_pipeline
    from dvkf_prefect.tasks import request_predictions as request_predictions
    from dvkf_prefect.tasks import retry_pipeline_run as retry_pipeline_run
    from dvkf_prefect.tasks import rollback_model as rollback_model
    from dvkf_prefect.tasks import schedule_pipeline as schedule_pipeline
    from dvkf_prefect.tasks import show_model as show_model
    from dvkf_prefect.tasks import show_overview as show_overview
    from dvkf_prefect.tasks import show_plots as show_plots
    from dvkf_prefect.tasks import stage_tasks as stage_tasks
    from dvkf_prefect.tasks import start_canary as start_canary
    from dvkf_prefect.tasks import terminate_pipeline_run as terminate_pipeline_run
    from dvkf_prefect.tasks import trace_data as trace_data
    from dvkf_prefect.tasks import trace_model as trace_model
    from dvkf_prefect.tasks import unarchive_pipeline_run as unarchive_pipeline_run
    from dvkf_prefect.tasks import unassign_model as unassign_model
    from dvkf_prefect.tasks import undeploy_model as undeploy_model
    from dvkf_prefect.tasks import unpublish_model as unpublish_model
    from dvkf_prefect.tasks import unschedule_pipeline as unschedule_pipeline
    from dvkf_prefect.tasks import verify_data as verify_data
    from dvkf_prefect.tasks import watch_data as watch_data
    from dvkf_prefect.tasks import write_data as write_data

__version__ = "0.4.0"

# Modules below this package and the names that each exports. Modules are imported at first use: Prefect takes a second
# to import, and neither the command line nor the data layer needs it.
_EXPORTS = {
    "blocks": (
        "DvcRemote",
        "DvcRepository",
        "KServeModelServer",
        "KubeflowCredentials",
        "KubeflowModelRegistry",
        "KubeflowPipelines",
        "ModelServer",
        "find_block",
    ),
    "cards": (
        "artifact_key",
        "comparison_card",
    ),
    "data.quality.incoming": (
        "Incoming",
        "IncomingFile",
    ),
    "data.quality.reports": (
        "FailedCheck",
        "QualityReport",
        "quality_reports",
    ),
    "data.results.expiry": ("ExpiredResults",),
    "data.results.locks": ("ResultLocks",),
    "data.tables.frame_diff": (
        "FrameDiff",
        "diff_frames",
    ),
    "data.tables.frames": (
        "read_frame",
        "write_frame",
    ),
    "data.transfer.transfer": ("Transfer",),
    "data.upkeep.gc": (
        "GcOptions",
        "GcScope",
    ),
    "data.upkeep.verify": ("VerifyOptions",),
    "data.verbs.diff": ("Diff",),
    "data.verbs.imports": (
        "ImportOptions",
        "ImportUrlOptions",
    ),
    "data.verbs.status": ("Status",),
    "data.views.filesystem": ("DvkfFileSystem",),
    "errors": ("DvkfError",),
    "formats.outputs": ("DataVersion",),
    "models.gates": (
        "Finding",
        "MetricGate",
        "PrometheusGate",
        "SmokeGate",
    ),
    "models.registry": ("ModelRegistry",),
    "models.version": ("ModelVersion",),
    "pipeline.report.metrics": ("MetricChange",),
    "pipeline.run.dry_run": ("plan",),
    "pipeline.run.events": ("ReproResult",),
    "pipeline.run.repro": ("repro",),
    "pipeline.step.runner": ("LocalRunner",),
    "processes.leash": ("LeashedProcess",),
    "promotion.comparison": ("VersionComparison",),
    "promotion.promote": ("Approval",),
    "repo": ("Repo",),
    "serializers": (
        "ArrowSerializer",
        "ParquetSerializer",
    ),
    "serving.endpoint": ("Endpoint",),
    "tasks": (
        "DataVersionPolicy",
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
        "collect_data",
        "collect_models",
        "verify_data",
        "publish_model",
        "unpublish_model",
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
        "unschedule_pipeline",
        "watch_data",
        "write_data",
    ),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(["__version__", *_HOMES])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
