"""Parameters files of a stage whose values were changed when an exported pipeline was started."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from pathlib import Path

from dvkf_prefect.errors import StageError
from dvkf_prefect.formats.params import parse_params, render_params
from dvkf_prefect.paths import is_within
from dvkf_prefect.pipeline.step.spec import StepSpec


def write_values(folder: Path, step: StepSpec, files: Collection[str]) -> None:
    """Write the values of a stage into its parameters files among the sources; other values of a file stay.

    Args:
        folder: Root of the sources.
        step: Specification of the stage, with the values.
        files: Files with changed values, relative to the root.

    Raises:
        StageError: A file is code, or a dependency whose content is fixed by its digest.
        ParseError: A file does not follow its format.
    """
    for file in sorted(files):
        place = folder / file
        if any(is_within(file, dep.path) for dep in step.deps):
            raise StageError(
                f"stage '{step.stage}': a value of '{file}' was changed, but the stage also depends on the file as a "
                "whole. Change the value in the repository, and export the pipeline again."
            )
        if not place.is_file():
            continue  # the stage gets a file with its own values only
        if posixpath.splitext(file)[1].lower() == ".py":
            raise StageError(
                f"stage '{step.stage}': a value of '{file}' was changed, which is code of the stage. Change it in the "
                "repository, and export the pipeline again."
            )
        known = parse_params(place.read_bytes(), file)
        place.write_bytes(render_params(file, {"": known, **step.params[file]}))
