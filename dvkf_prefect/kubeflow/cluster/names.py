"""Names of a repository's resources on a Kubeflow Pipelines server: ASCII texts that fit into its database.

Sources: ``apiserver/model`` of KFP 2.17. An experiment's name has 128 characters and a pipeline's too. Display names
and the descriptions of runs and recurring runs have 255. MySQL's ``utf8`` stores no character outside Unicode's first
plane, and comparisons ignore case.
"""

from __future__ import annotations

import re

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import GitError
from dvkf_prefect.kubeflow.compile.compile import to_ascii

TEXT = 255
"""Maximum length of a display name or description."""
NAME = 128
"""Maximum length of the name of an experiment or pipeline."""


def fit(text: str, length: int = TEXT) -> str:
    r"""Return a text as ASCII of at most ``length`` characters.

    Example:
        >>> fit("größe of everything", 16)
        'gr\\xf6\\xdfe of...'
    """
    text = to_ascii(text)
    return text if len(text) <= length else text[: length - 3] + "..."


def project_name(repo: Repository) -> str:
    """Return the name of a repository, which is equal in all of its clones.

    It is the last part of the address of git's ``origin``, or the name of the folder without one. The path of a DVC
    repository inside its git repository follows.

    Args:
        repo: The repository.
    """
    git = repo.git
    if git is None:
        return fit(repo.root.name or "repository", NAME)
    try:
        origin = git.run("config", "--get", "remote.origin.url")
    except GitError:
        origin = ""
    last = re.split(r"[/:\\]", origin.strip().rstrip("/\\"))[-1].removesuffix(".git")
    inside = repo.root.resolve().relative_to(git.root.resolve()).as_posix()
    return fit(
        "/".join(part for part in (last or git.root.name, inside if inside != "." else "") if part), NAME
    )
