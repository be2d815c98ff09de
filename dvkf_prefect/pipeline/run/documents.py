"""Files that describe results, as git sees them: what a run changed and a commit records."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import GitError
from dvkf_prefect.formats.dvclock import lock_file
from dvkf_prefect.formats.files import PIPELINE_FILE

_DOCUMENTS = ("*.dvc", "dvc.lock", "dvc.yaml", ".gitignore", ".dvcignore")


def need_git(repo: Repository) -> Git:
    """Return the repository's git.

    Raises:
        GitError: The repository is not in a git repository.
    """
    if repo.git is None:
        raise GitError(f"{repo.root} is not in a git repository. Run `git init` to commit and compare.")
    return repo.git


def changed_documents(repo: Repository) -> list[str]:
    """Return files that describe results and differ from git's last commit, relative to git's top.

    These are ``.dvc`` files, dvc.yaml, dvc.lock, the ignore files, and outputs kept in git, such as metrics. Other
    changes of the user are left out.
    """
    git = need_git(repo)
    prefix = prefix_of(repo)
    specs = [f":(top,glob){_glob(prefix)}**/{name}" for name in _DOCUMENTS]
    specs += [f":(top,literal){prefix}{output.path}" for output in repo.outputs() if not output.cached]
    return git.changed(specs)


def describing_files(repo: Repository, targets: Sequence[str], changed: Sequence[str]) -> list[str]:
    """Return the changed files that describe some outputs, with the ignore files beside them, from git's top.

    Args:
        repo: The repository.
        targets: The outputs.
        changed: Changed files, see `changed_documents`.
    """
    sources = {output.source for output in repo.outputs(targets)}
    sources |= {lock_file(source) for source in sources if posixpath.basename(source) == PIPELINE_FILE}
    ignores = {posixpath.join(posixpath.dirname(source), ".gitignore") for source in sources}
    wanted = set(paths_from_top(repo, sources | ignores))
    return [path for path in changed if path in wanted]


def paths_from_top(repo: Repository, paths: Iterable[str]) -> list[str]:
    """Convert paths from the repository's root to git's top."""
    prefix = prefix_of(repo)
    return [posixpath.normpath(prefix + path) for path in paths]


def paths_inside(repo: Repository, paths: Iterable[str]) -> list[str]:
    """Convert paths from git's top to the repository's root; paths outside of it are left out."""
    prefix = prefix_of(repo)
    return [path[len(prefix) :] for path in paths if path.startswith(prefix)]


def prefix_of(repo: Repository) -> str:
    """Return the repository's folder relative to git's top with a slash; "" for the top itself."""
    return need_git(repo).prefix(repo.root)


def _glob(prefix: str) -> str:
    for letter in "\\*?[":
        prefix = prefix.replace(letter, "\\" + letter)
    return prefix
