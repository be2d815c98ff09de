"""Plots that dvc.yaml files declare apart from stages, for the stages that write their files."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.dvcyaml import read_sections
from dvkf_prefect.kubeflow.compile.artifacts import plot_sources
from dvkf_prefect.paths import is_within
from dvkf_prefect.pipeline.step.spec import PLOT_OPTIONS, StepSpec


def with_plots(repo: Repository, specs: Sequence[StepSpec]) -> list[StepSpec]:
    """Return stages with the plots of the ``plots:`` sections of their dvc.yaml files.

    A plot belongs to the stage that writes all its files. Plots of files of several stages are omitted: no task has
    them all.

    Args:
        repo: The repository.
        specs: The stages.
    """
    sections: dict[str, dict[str, Mapping[str, Any]]] = {}
    for file in {spec.meta.file for spec in specs}:
        try:
            sections[file] = _declared(file, read_sections(repo.files(), file).plots)
        except (DvkfError, FileNotFoundError):
            # Stages that were made by code have no dvc.yaml; errors in one were raised when its stages were read.
            continue
    return [_with_own(spec, sections.get(spec.meta.file, {})) for spec in specs]


def _with_own(spec: StepSpec, declared: Mapping[str, Mapping[str, Any]]) -> StepSpec:
    outs = [out.path for out in spec.outs]
    own = {
        name: definition
        for name, definition in declared.items()
        if all(any(is_within(path, out) for out in outs) for path in plot_sources(name, definition))
    }
    return dataclasses.replace(spec, plots={**spec.plots, **own}) if own else spec


def _declared(file: str, plots: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the plots with all files relative to the root."""
    folder = posixpath.dirname(file)

    def place(name: str) -> str:
        return posixpath.normpath(posixpath.join(folder, name))

    found: dict[str, Mapping[str, Any]] = {}
    for name, options in plots.items():
        definition = {key: options[key] for key in PLOT_OPTIONS if key in options}
        named = isinstance(definition.get("y"), Mapping)
        for axis in ("x", "y"):
            if named and isinstance(definition.get(axis), Mapping):
                definition[axis] = {place(source): fields for source, fields in definition[axis].items()}
        found[name if named else place(name)] = definition
    return found
