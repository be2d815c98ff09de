"""Outputs described by the DVC files of a workspace, including files that git ignores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dvkf_prefect.data.git.gitignore import GitIgnored
from dvkf_prefect.data.git.history import Described, describe, lock_of
from dvkf_prefect.data.repository.files import WorkspaceFiles
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.files import read_description
from dvkf_prefect.formats.objects import LEGACY, MD5, Content
from dvkf_prefect.formats.outputs import Output

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository

_DIGESTS = re.compile(rb"\b[0-9a-f]{32}(?:\.dir)?(?![0-9A-Za-z])")


def workspace_described(repo: Repository) -> list[Described]:
    """Return the outputs of each DVC file of the workspace; an unreadable file yields its error instead."""
    return list(_find_described(repo, repo.git_ignored, {}).values())


def left_out_described(repo: Repository, known: Iterable[Described]) -> list[Described]:
    """Return the outputs of the workspace's DVC files that git, and so every verb, ignores.

    Such a file may be the only record of its data. So every digest in its text counts, even if it does not parse.

    Args:
        repo: The repository.
        known: Result of `workspace_described`.
    """
    before = {item.path: item for item in known}
    found = _find_described(repo, GitIgnored(repo.root, None), before)
    return [
        replace(item, outputs=(*item.outputs, *_spelled(repo, path)))
        for path, item in found.items()
        if path not in before
    ]


def _find_described(
    repo: Repository, git_ignored: GitIgnored, known: Mapping[str, Described]
) -> dict[str, Described]:
    def paths_of(path: str) -> set[str]:
        item = found[path] = known.get(path) or describe(files, path)
        return {output.path for output in item.outputs}

    found: dict[str, Described] = {}
    files = WorkspaceFiles(repo.root, repo.ignore.matches, paths_of, git_ignored)
    files.find()
    return found


def _spelled(repo: Repository, path: str) -> tuple[Output, ...]:
    """Return an output for every digest in the text of a file or of its lock."""
    texts: list[bytes] = []
    for place in (path, lock_of(path)):
        with suppress(OSError, DvkfError):
            texts.append(read_description(repo.root / place))
    digests = {match[0].decode() for text in texts for match in _DIGESTS.finditer(text)}
    return tuple(
        Output(path, Content(digest, hash_name=hash_name))
        for digest in digests
        for hash_name in (MD5, LEGACY)
    )
