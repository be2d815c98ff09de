"""Settings of the pods of all stages of a repository."""

from __future__ import annotations

import posixpath

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.formats.dvcyaml import Stage, load_stages
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, parse_meta
from dvkf_prefect.pipeline.step.spec import StepMeta


def load_placements(repo: Repository, defaults: Placement) -> list[tuple[Stage, Placement]]:
    """Return the stages of the workspace with the settings of their pods, in the order of the files.

    Args:
        repo: The repository.
        defaults: Settings that stages do not set themselves.

    Raises:
        ParseError: A dvc.yaml or a stage's ``meta: kubeflow:`` is wrong.
    """
    files = repo.files()
    found = []
    for file in files.find():
        if posixpath.basename(file) != PIPELINE_FILE:
            continue
        for stage in load_stages(files, file):
            meta = StepMeta(stage.meta, file, (*stage.place, "meta"))
            placement = parse_meta(meta, stage.address, [out.path for out in stage.outs], files.read)
            found.append((stage, placement.over(defaults)))
    return found
