"""What several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvkf_prefect.data.repo import Repo
    from dvkf_prefect.data.transfer import Progress


def open_repo() -> Repo:
    """Open the repository of the current folder."""
    from dvkf_prefect.data.repo import Repo

    return Repo.open()


def targets_of(repo: Repo, targets: Sequence[str]) -> list[str]:
    """Turn what was typed, relative to the current folder, into targets relative to the root; stage names stay."""
    typed = []
    for target in targets:
        file, colon, stage = target.rpartition(":")
        if colon:
            typed.append(f"{repo.relpath(os.path.abspath(file))}:{stage}")
        elif os.sep not in target and not os.path.lexists(target) and os.getcwd() == str(repo.root):
            typed.append(target)
        else:
            typed.append(repo.relpath(os.path.abspath(target)))
    return typed


def progress_bar(quiet: bool) -> Progress | None:
    """Return a progress bar where there is a person to see it."""
    if quiet or not sys.stderr.isatty():
        return None
    from dvkf_prefect.data.progress import Bar

    return Bar()
