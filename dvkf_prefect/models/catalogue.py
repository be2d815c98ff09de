"""Catalogue of a repository's artifacts: what its dvc.yaml files declare, and what is registered of it.

Source: DVC 3.x (``dvc/repo/artifacts.py``). A name is ``folder:name`` if declared in folder/dvc.yaml; the folder is
relative to the top of git.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dvkf_prefect.data.git.command import Git, check_url, run_git
from dvkf_prefect.data.progress import NO_PROGRESS, Progress
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.verbs import get as getting
from dvkf_prefect.errors import ModelNotFoundError
from dvkf_prefect.formats.artifacts import ArtifactDecl, read_artifacts
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.models.history import gather
from dvkf_prefect.models.tags import read_tags
from dvkf_prefect.scratch import scratch_folder
from dvkf_prefect.text import did_you_mean

_TIMEOUT = 600.0


@dataclass(frozen=True)
class Artifact:
    """An artifact of the catalogue.

    Attributes:
        declared: Its declaration.
        latest: Highest registered version; None if there is none.
        stages: Version that holds each stage.
    """

    declared: ArtifactDecl
    latest: str | None = None
    stages: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the artifact as plain values for JSON."""
        return {**asdict(self.declared), "latest": self.latest, "stages": dict(self.stages)}


def list_artifacts(repo: Repository, rev: str | None = None) -> dict[str, Artifact]:
    """Return the artifacts that the dvc.yaml files of a revision declare, by name.

    Args:
        repo: The repository.
        rev: Git revision; None for the workspace.

    Raises:
        ParseError: A dvc.yaml does not follow its format.
        GitError: There is no such revision.

    Example:
        >>> list_artifacts(Repo.open("path/to/repository"))["classifier"].declared.path
    """
    files = repo.files(rev if rev is None or repo.git is None else repo.git.resolve(rev))
    models = gather(read_tags(repo.git)) if repo.git is not None else {}
    found = {}
    for path in files.find():
        if posixpath.basename(path) != PIPELINE_FILE:
            continue
        folder = posixpath.normpath(posixpath.join(_prefix(repo), posixpath.dirname(path)))
        for name, declared in read_artifacts(files, path).items():
            full = name if folder == "." else f"{folder}:{name}"
            history = models.get(full)
            latest = next((v.name for v in history.standing if v.registrations), None) if history else None
            stages = {stage: by.name for stage, by in history.stages().items()} if history else {}
            found[full] = Artifact(declared, latest, stages)
    return dict(sorted(found.items()))


def get_artifact(
    url: str,
    name: str,
    which: str = "latest",
    *,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    remote: str | None = None,
    jobs: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Path:
    """Download the file or folder of an artifact's version from any repository.

    Args:
        url: The repository: a folder or a git url.
        name: Name of the artifact; ``folder:name`` if declared in folder/dvc.yaml.
        which: A version; ``latest``, the highest active one; or ``#stage``, the holder of a stage.
        out: Destination; None for the source's name in the current folder.
        force: Replace an existing file or directory.
        remote: Name of the repository's remote to download from.
        jobs: Number of parallel transfers.
        progress: Called as files and bytes complete.

    Returns:
        The absolute path of the download.

    Raises:
        ModelNotFoundError: There is no such version, or its commit does not declare the artifact.
        OutputError: The destination exists.
        TransferError: Some objects could not be downloaded; the destination was not changed.

    Example:
        >>> get_artifact("https://git.example.org/team/digits.git", "digits", "#prod")
    """
    root, path, rev = _find(url, name, which)
    return getting.get(root, path, out, rev=rev, force=force, remote=remote, jobs=jobs, progress=progress)


def artifact_url(url: str, name: str, which: str = "latest", *, remote: str | None = None) -> str:
    """Return the url of an artifact's version on the repository's remote; for a folder, that of its manifest.

    Args:
        url: The repository: a folder or a git url.
        name: Name of the artifact.
        which: A version, ``latest`` or ``#stage``.
        remote: Name of the repository's remote.

    Raises:
        ModelNotFoundError: There is no such version, or its commit does not declare the artifact.
        RemoteNotFoundError: The repository has no such remote, or no default one.
    """
    root, path, rev = _find(url, name, which)
    return getting.storage_url(root, path, rev=rev, remote=remote)


def _find(url: str, name: str, which: str) -> tuple[str, str, str]:
    """Return the repository, the artifact's path in it, and the commit of the version."""
    with _git_of(url) as git:
        models = gather(read_tags(git))
        history = models.get(name)
        found = None
        if history is not None and which.startswith("#"):
            found = history.holder(which[1:])
        elif history is not None and which == "latest":
            found = next((version for version in history.standing if version.registrations), None)
        elif history is not None:
            found = next((version for version in history.standing if version.name == which), None)
        if found is None:
            known = ", ".join(v.name for v in history.standing) if history else ""
            raise ModelNotFoundError(
                f"'{name}' has no version '{which}' in {url} (versions: {known or 'none'}). Register one with `dvkf "
                f"model register`, or use one of these.{'' if history else did_you_mean(name, models)}"
            )
        folder, _, plain = name.rpartition(":")
        file = posixpath.normpath(posixpath.join(folder or ".", PIPELINE_FILE))
        declared = read_artifacts(_Files(git, found.rev), file)
        if plain not in declared:
            raise ModelNotFoundError(
                f"{file} at commit {found.rev[:7]} of {url} declares no artifact '{plain}' (declared: "
                f"{', '.join(sorted(declared)) or 'none'}). Declare it under `artifacts` and register a version."
            )
        path = declared[plain].path
    root = Path(url)
    if root.is_dir():
        # A repository below the top of git counts paths from its own root.
        top = Git.find(root.resolve())
        inside = os.path.relpath(root.resolve(), top.root.resolve()) if top else "."
        return url, posixpath.relpath(path, inside), found.rev
    return url, path, found.rev


class _Files:
    """The files of a commit that `read_artifacts` reads."""

    def __init__(self, git: Git, rev: str) -> None:
        self.rev = rev
        self._git = git

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        if not self.exists(path):
            raise FileNotFoundError(path)
        return self._git.show(self.rev, path)

    def exists(self, path: str) -> bool:
        """Return True if the commit has the file."""
        return path in self._git.ls_tree(self.rev)

    def find(self) -> list[str]:
        """Return all dvc.yaml files."""
        return [path for path in self._git.ls_tree(self.rev) if posixpath.basename(path) == PIPELINE_FILE]


@contextmanager
def _git_of(url: str) -> Iterator[Git]:
    """Give the git repository of a folder, or a bare clone of a url without its files."""
    if Path(url).is_dir() and (found := Git.find(Path(url).resolve())):
        yield Git(found.root, foreign=True)
        return
    with scratch_folder("dvkf-artifacts-") as folder:
        bare = folder / "bare"
        options = ("--quiet", "--bare", "--filter=blob:none", "--")
        run_git(folder, "clone", *options, check_url(url), str(bare), timeout=_TIMEOUT)
        yield Git(bare, foreign=True)


def _prefix(repo: Repository) -> str:
    if repo.git is None:
        return ""
    return repo.root.resolve().relative_to(repo.git.root.resolve()).as_posix()
