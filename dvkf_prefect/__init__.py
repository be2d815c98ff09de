"""Prefect tasks, blocks and flows for DVC data versions, on Kubeflow or on one machine."""

from __future__ import annotations

import sys

# `python -m dvkf_prefect.cli` puts the current folder, a repository of somebody else perhaps, first on the search path:
# its json.py would be imported and run. `-m` of any other package keeps it.
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
    from dvkf_prefect.blocks import (
        DvcRemote,
        DvcRepository,
        KubeflowCredentials,
        KubeflowPipelines,
        ModelServer,
    )
    from dvkf_prefect.data.repo import Repo
    from dvkf_prefect.data.tables.frame_diff import FrameDiff, diff_frames
    from dvkf_prefect.data.tables.frames import read_frame, write_frame
    from dvkf_prefect.data.views.filesystem import DvkfFileSystem
    from dvkf_prefect.errors import DvkfError
    from dvkf_prefect.formats.outputs import DataVersion
    from dvkf_prefect.models.registry import ModelRegistry, ModelVersion
    from dvkf_prefect.tasks import (
        add_data,
        checkout_data,
        commit_results,
        compare_metrics,
        deploy_model,
        diff_data,
        promote_model,
        pull_data,
        push_commits,
        push_data,
        register_model,
        repro_pipeline,
        request_predictions,
        rollback_model,
        stage_tasks,
        write_data,
    )

__version__ = "0.4.0"

__all__ = [
    "DataVersion",
    "DvcRemote",
    "DvcRepository",
    "DvkfError",
    "DvkfFileSystem",
    "FrameDiff",
    "KubeflowCredentials",
    "KubeflowPipelines",
    "ModelRegistry",
    "ModelServer",
    "ModelVersion",
    "Repo",
    "__version__",
    "add_data",
    "checkout_data",
    "commit_results",
    "compare_metrics",
    "deploy_model",
    "diff_data",
    "diff_frames",
    "promote_model",
    "pull_data",
    "push_commits",
    "push_data",
    "read_frame",
    "register_model",
    "repro_pipeline",
    "request_predictions",
    "rollback_model",
    "stage_tasks",
    "write_data",
    "write_frame",
]

# Prefect takes a second to import; whoever needs only the data, the command line for one, does not wait for it.
_HOMES = {
    "DvcRemote": "blocks",
    "DvcRepository": "blocks",
    "DataVersion": "formats.outputs",
    "DvkfError": "errors",
    "DvkfFileSystem": "data.views.filesystem",
    "FrameDiff": "data.tables.frame_diff",
    "KubeflowCredentials": "blocks",
    "KubeflowPipelines": "blocks",
    "ModelRegistry": "models.registry",
    "ModelServer": "blocks",
    "ModelVersion": "models.registry",
    "Repo": "data.repo",
    "diff_frames": "data.tables.frame_diff",
    "read_frame": "data.tables.frames",
    "write_frame": "data.tables.frames",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'tasks')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
