"""Limits of the server on a whole pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dvkf_prefect.errors import RunnerError

# Bytes of a pipeline. Its workflow is a fifth larger and has it again in its compressed nodes; Argo takes 1 MiB.
_PIPELINE = 640 * 1024


def check_pipeline(spec: Mapping[str, Any], stages: int) -> None:
    """Refuse a pipeline that Argo or the server's database cannot store.

    Args:
        spec: The compiled pipeline.
        stages: Number of its stages.

    Raises:
        RunnerError: It is too large, or has characters outside Unicode's first plane.
    """
    if (size := len(json.dumps(spec))) > _PIPELINE:
        raise RunnerError(
            f"the pipeline of {stages} stages has {size} bytes, at most {_PIPELINE}: Argo stores it in one object. Run "
            "fewer stages at once, or move variables of their pods to configuration maps"
        )
    if wide := sorted({c for c in json.dumps(spec, ensure_ascii=False) if ord(c) > 0xFFFF}):
        raise RunnerError(
            "the settings of the stages' pods (variables, annotations, labels) contain "
            f"{', '.join(wide)}, which the database of Kubeflow Pipelines cannot store. Remove these characters."
        )
