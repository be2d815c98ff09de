"""Results of a DVC repository in git: versions committed before, and changed files to commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from prefect.runtime import flow_run

from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.formats.tracked import read_outputs
from dvkf_prefect.pipeline.run.documents import prefix_of
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks._artifacts import FLOW_RUN


def committed_versions(repo: Repo, path: str, *, limit: int) -> list[DataVersion]:
    """Return the committed versions of an output, newest first, each with its first commit.

    Args:
        repo: The repository.
        path: The output, relative to the root.
        limit: Maximum number of versions.
    """
    if repo.git is None or repo.git.head() is None:
        return []
    source = next((output.source for output in repo.outputs((path,)) if output.path == path), "")
    if not source:
        return []
    # A stage's digests are in the lock file beside its dvc.yaml.
    lock = PurePosixPath(source)
    if lock.name == "dvc.yaml":
        lock = lock.with_name("dvc.lock")
    # Some commits of a lock file change other outputs only, so more commits are read than versions are needed.
    listed = repo.git.run(
        "log", f"-{2 * limit}", "--format=%H", "--", f":(top,literal){prefix_of(repo)}{lock}"
    )
    versions: list[DataVersion] = []
    for commit in listed.split():
        try:
            found = [o for o in read_outputs(repo.files(commit), source) if o.path == path]
        except (DvkfError, FileNotFoundError):
            # The commit deletes the file, or its content is invalid.
            continue
        for output in found:
            if output.digest is None:
                continue
            version = DataVersion(
                str(repo.root), commit, path, output.digest, output.size or 0, output.nfiles or 1
            )
            if versions and versions[-1].digest == version.digest:
                versions[-1] = version
            else:
                versions.append(version)
    return versions[:limit]


# Runs on Kubeflow Pipelines by the flow run that started them, in this process.
_KUBEFLOW_RUNS: dict[str, list[str]] = {}


def note_kubeflow_run(run_id: str) -> None:
    """Remember a run on Kubeflow Pipelines for the trailers of the current flow run's commits and versions."""
    if run_id and (run := flow_run.get_id()):
        runs = _KUBEFLOW_RUNS.setdefault(run, [])
        if run_id not in runs:
            runs.append(run_id)


def parent_run() -> tuple[str, str] | None:
    """Return id and name of the current flow run, for events of lineage; None outside a run."""
    run = flow_run.get_id()
    return (run, flow_run.get_flow_name() or "flow") if run else None


def run_trailers() -> dict[str, str]:
    """Return git trailers with the IDs of the current Prefect run and its Kubeflow runs; none outside a run."""
    run = flow_run.get_id()
    if not run:
        return {}
    kubeflow = _KUBEFLOW_RUNS.get(run)
    return {FLOW_RUN: run} | ({"Kubeflow-Run": " ".join(kubeflow)} if kubeflow else {})


def with_trailers(message: str, trailers: Mapping[str, str]) -> str:
    r"""Append trailers to a commit message, as ``git interpret-trailers`` does.

    Example:
        >>> with_trailers("Train", {"Prefect-Flow-Run": "8a2f"})
        'Train\n\nPrefect-Flow-Run: 8a2f\n'
    """
    lines = [f"{name}: {' '.join(value.split())}" for name, value in trailers.items()]
    return message.rstrip() + "\n" + ("\n" + "\n".join(lines) + "\n" if lines else "")
