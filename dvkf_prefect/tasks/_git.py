"""Results of a DVC repository in git: versions committed before, and changed files to commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from prefect.runtime import flow_run

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.errors import DvkfError, GitError
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.formats.tracked import read_outputs
from dvkf_prefect.repo import Repo

_DOCUMENTS = ("*.dvc", "dvc.lock", "dvc.yaml", ".gitignore", ".dvcignore")


def need_git(repo: Repo) -> Git:
    """Return the repository's git.

    Raises:
        GitError: The repository is not in a git repository.
    """
    if repo.git is None:
        raise GitError(f"{repo.root} is not in a git repository. Run `git init` to commit and compare.")
    return repo.git


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
        "log", f"-{2 * limit}", "--format=%H", "--", f":(top,literal){_prefix(repo, repo.git)}{lock}"
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


def changed_documents(repo: Repo) -> list[str]:
    """Return files that describe results and differ from git's last commit, relative to git's top.

    These are ``.dvc`` files, dvc.yaml, dvc.lock, the ignore files, and outputs kept in git, such as metrics. Other
    changes of the user are left out.
    """
    git = need_git(repo)
    prefix = _prefix(repo, git)
    specs = [f":(top,glob){_glob(prefix)}**/{name}" for name in _DOCUMENTS]
    specs += [f":(top,literal){prefix}{output.path}" for output in repo.outputs() if not output.cached]
    return git.changed(specs)


def paths_from_top(repo: Repo, paths: Iterable[str]) -> list[str]:
    """Convert paths from the repository's root to git's top."""
    prefix = _prefix(repo, need_git(repo))
    return [prefix + path for path in paths]


def paths_inside(repo: Repo, paths: Iterable[str]) -> list[str]:
    """Convert paths from git's top to the repository's root; paths outside of it are left out."""
    prefix = _prefix(repo, need_git(repo))
    return [path[len(prefix) :] for path in paths if path.startswith(prefix)]


def _prefix(repo: Repo, git: Git) -> str:
    inside = repo.root.resolve().relative_to(git.root.resolve()).as_posix()
    return "" if inside == "." else f"{inside}/"


def _glob(prefix: str) -> str:
    for letter in "\\*?[":
        prefix = prefix.replace(letter, "\\" + letter)
    return prefix


# Runs on Kubeflow Pipelines by the flow run that started them, in this process.
_KUBEFLOW_RUNS: dict[str, list[str]] = {}


def note_kubeflow_run(run_id: str) -> None:
    """Remember a run on Kubeflow Pipelines for the trailers of the current flow run's commits and versions."""
    if run_id and (run := flow_run.get_id()):
        runs = _KUBEFLOW_RUNS.setdefault(run, [])
        if run_id not in runs:
            runs.append(run_id)


def run_trailers() -> dict[str, str]:
    """Return git trailers with the IDs of the current Prefect run and its Kubeflow runs; none outside a run."""
    run = flow_run.get_id()
    if not run:
        return {}
    kubeflow = _KUBEFLOW_RUNS.get(run)
    return {"Prefect-Flow-Run": run} | ({"Kubeflow-Run": " ".join(kubeflow)} if kubeflow else {})


def with_trailers(message: str, trailers: Mapping[str, str]) -> str:
    r"""Append trailers to a commit message, as ``git interpret-trailers`` does.

    Example:
        >>> with_trailers("Train", {"Prefect-Flow-Run": "8a2f"})
        'Train\n\nPrefect-Flow-Run: 8a2f\n'
    """
    lines = [f"{name}: {' '.join(value.split())}" for name, value in trailers.items()]
    return message.rstrip() + "\n" + ("\n" + "\n".join(lines) + "\n" if lines else "")
