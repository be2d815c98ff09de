"""Lookup of the outputs and stages that a `.dvc` file or a dvc.yaml describes."""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath

from dvkf_prefect.formats.dvcfile import parse_dvc_file
from dvkf_prefect.formats.files import PIPELINE_FILE, RepoFiles
from dvkf_prefect.formats.outputs import Output


def read_outputs(files: RepoFiles, path: str) -> list[Output]:
    """Read the outputs that one file describes.

    Args:
        files: The revision to read from.
        path: A `.dvc` file or a dvc.yaml, relative to the root.

    Raises:
        ParseError: The file violates its format.
        UnsafePathError: An output lies outside the repository.
    """
    if PurePosixPath(path).name == PIPELINE_FILE:
        from dvkf_prefect.formats import dvcyaml  # slow to import

        return dvcyaml.read_outputs(files, path)
    return parse_dvc_file(files.read(path), path)


def names_stage(files: RepoFiles, target: str) -> bool:
    """Return True if a target refers to a stage, or to a dvc.yaml, even without outputs.

    Args:
        files: The revision to look in.
        target: A stage of the dvc.yaml at the root, ``dvc.yaml:stage``, or a dvc.yaml.

    Raises:
        ParseError: The dvc.yaml violates its format.
    """
    plain = posixpath.normpath(target)
    if posixpath.basename(plain) == PIPELINE_FILE:
        return files.exists(plain)
    file, colon, name = plain.rpartition(":")
    file = file if colon and file else PIPELINE_FILE
    if posixpath.basename(file) != PIPELINE_FILE or not files.exists(file):
        return False
    from dvkf_prefect.formats.dvcyaml import load_stages  # slow to import

    stages = load_stages(files, file)
    return any(stage.name == name or stage.name.startswith(name + "@") for stage in stages)
