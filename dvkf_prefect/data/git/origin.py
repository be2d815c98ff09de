"""Origin of a clone: what all clones of a project have in common, whatever folder each one is in."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from dvkf_prefect.errors import GitError
from dvkf_prefect.urls import public_url

if TYPE_CHECKING:
    from dvkf_prefect.data.git.command import Git

_ADDRESS = re.compile(r"(?:[a-z+]+://)?(?:[^/@]*@)?([^/:]+)[/:](.+?)/*(?:\.git)?/*")


def origin_url(git: Git | None) -> str:
    """Return the url of git's remote ``origin``, without credentials; "" if there is none.

    Args:
        git: The repository; None without git.
    """
    if git is not None:
        with suppress(GitError):
            return public_url(git.run("config", "--get", "remote.origin.url"))
    return ""


def origin_address(url: str) -> str:
    """Return a canonical form of a git url for comparisons; an empty string for a folder.

    Example:
        >>> origin_address("git@host:team/data.git") == origin_address("https://host/team/data")
        True
    """
    if not url or url[0] in "./~" or url.startswith("file:"):
        return ""
    found = _ADDRESS.fullmatch(url)
    return f"{found[1].lower()}/{found[2]}" if found else ""
