"""What git knows of a DVC repository's results: versions committed before, and what is to be committed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from prefect.runtime import flow_run

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import DvkfError, GitError
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.formats.tracked import read_outputs

_DOCUMENTS = ("*.dvc", "dvc.lock", "dvc.yaml", ".gitignore", ".dvcignore")


def need_git(repo: Repo) -> Git:
    """Return the repository's git.

    Raises:
        GitError: It has none.
    """
    if repo.git is None:
        raise GitError(
            f"{repo.root} is not in a git repository, so nothing can be committed or compared there"
        )
    return repo.git


def committed_versions(repo: Repo, path: str, *, limit: int) -> list[DataVersion]:
    """Return the versions of an output that were committed, the newest first, each with the commit that brought it.

    Args:
        repo: The repository.
        path: The output, relative to the root.
        limit: How many are returned at most.
    """
    if repo.git is None or repo.git.head() is None:
        return []
    source = next((output.source for output in repo.outputs((path,)) if output.path == path), "")
    if not source:
        return []
    # A stage's digests stand in the lock file beside its dvc.yaml.
    lock = PurePosixPath(source)
    if lock.name == "dvc.yaml":
        lock = lock.with_name("dvc.lock")
    # A lock file also changes for other outputs, so more of its commits are read than there will be versions.
    listed = repo.git.run(
        "log", f"-{2 * limit}", "--format=%H", "--", f":(top,literal){_prefix(repo, repo.git)}{lock}"
    )
    versions: list[DataVersion] = []
    for commit in listed.split():
        try:
            found = [o for o in read_outputs(repo.files(commit), source) if o.path == path]
        except (DvkfError, FileNotFoundError):
            # The commit deletes the file, or what it holds cannot be read.
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
    """Return the files that describe results and differ from git's last commit, relative to git's top.

    These are ``.dvc`` files, dvc.yaml, dvc.lock, the ignore files, and outputs that stay out of the cache, such as
    metrics. What else a person changed is not among them.
    """
    git = need_git(repo)
    prefix = _prefix(repo, git)
    specs = [f":(top,glob){_glob(prefix)}**/{name}" for name in _DOCUMENTS]
    specs += [f":(top,literal){prefix}{output.path}" for output in repo.outputs() if not output.cached]
    shown = git.run_bytes(
        "ls-files",
        "-z",
        "--full-name",
        "--modified",
        "--deleted",
        "--others",
        "--exclude-standard",
        "--",
        *specs,
    )
    staged = b""
    if git.head() is not None:
        staged = git.run_bytes("diff", "--cached", "--name-only", "-z", "--", *specs)
    else:
        staged = git.run_bytes("ls-files", "-z", "--full-name", "--cached", "--", *specs)
    return sorted({path.decode(errors="surrogateescape") for path in (shown + staged).split(b"\0") if path})


def _prefix(repo: Repo, git: Git) -> str:
    inside = repo.root.resolve().relative_to(git.root.resolve()).as_posix()
    return "" if inside == "." else f"{inside}/"


def _glob(prefix: str) -> str:
    for letter in "\\*?[":
        prefix = prefix.replace(letter, "\\" + letter)
    return prefix


def run_trailers() -> dict[str, str]:
    """Return the trailers that name the Prefect run this is called in; none outside of a run."""
    run = flow_run.get_id()
    return {"Prefect-Flow-Run": run} if run else {}


def with_trailers(message: str, trailers: Mapping[str, str]) -> str:
    r"""Return a commit message with trailers at its end, as ``git interpret-trailers`` writes them.

    Example:
        >>> with_trailers("Train", {"Prefect-Flow-Run": "8a2f"})
        'Train\n\nPrefect-Flow-Run: 8a2f\n'
    """
    lines = [f"{name}: {' '.join(value.split())}" for name, value in trailers.items()]
    return message.rstrip() + "\n" + ("\n" + "\n".join(lines) + "\n" if lines else "")
