"""Marks of the projects that push to a remote, so that a garbage collection can see its other users.

Equal content is stored once. A project may thus rely on objects that another project uploaded and also uses. Every
push leaves a mark: a small file in ``users-dvkf`` of the remote. DVC ignores that folder, and leaves no marks itself.

Clones of one project share its mark. They have the same path in the git work tree, and an origin or a first commit in
common. A shallow clone is recognized by the commit checked out at its push. A project without git is recognized by
the identity in its ``.dvc/tmp``, or by its path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from dvkf_prefect.data.git.origin import origin_address, origin_url
from dvkf_prefect.data.repository import cache_users
from dvkf_prefect.errors import DvkfError, GitError, GitTimeoutError, RemoteError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.text import printable

if TYPE_CHECKING:
    from dvkf_prefect.data.remotes.remote import Remote
    from dvkf_prefect.data.repository.repository import Repository

FOLDER = cache_users.USERS
# Seconds until a mark is written again: a removed mark returns with the first push after a week.
_FRESH = 7 * 86_400.0
_LIMIT = 1 << 16
_MOST = 10_000
_SHOWN = 5
_KEY = re.compile("[0-9a-f]{32}")
_COMMIT = re.compile("[0-9a-f]{40,64}")


@dataclass(frozen=True, slots=True)
class Project:
    """A project that left a mark on a remote.

    Attributes:
        key: Path of the mark, relative to the remote's root.
        keys: Identifiers that all clones of the project share.
        name: Origin or folder name; empty if the mark cannot be read.
        host: Machine of the project, if the remote is a local folder.
        path: Folder of the project on that machine.
        prefix: Path of the project in its git work tree.
        commit: Commit that was checked out at the push.
    """

    key: str
    keys: frozenset[str] = frozenset()
    name: str = ""
    host: str = ""
    path: str = ""
    prefix: str = ""
    commit: str = ""

    def __str__(self) -> str:
        place = self.path or self.name or "unknown project"
        away = self.path and self.host != os.uname().nodename
        return f"{place} on {self.host or 'another machine'}" if away else place

    def is_of(self, repo: Repository, keys: frozenset[str]) -> bool:
        """Return True if a repository is a clone of this project.

        Args:
            repo: The repository.
            keys: Identifiers of the repository.
        """
        if self.keys & keys or self.key.rpartition("/")[2] in keys:
            return True
        if self.path == str(repo.root) and self.host == os.uname().nodename:
            return True
        if repo.git is None or repo.git_prefix != self.prefix or not _COMMIT.fullmatch(self.commit):
            return False
        try:
            repo.git.run("cat-file", "-e", f"{self.commit}^{{commit}}")
        except GitTimeoutError:
            raise
        except GitError:
            return False
        return True


def mark(repo: Repository, remote: Remote) -> None:
    """Write a repository's mark to a remote before a push.

    The mark is written once, and again after a week. Failures are ignored.
    """
    note = repo.tmp_dir / f"pushes-{digest_bytes(remote.url.encode())}"
    git = repo.git
    file = ""
    with suppress(OSError, DvkfError, ValueError):
        file, state = read_description(note, limit=_LIMIT).decode().split()
        fresh = 0 <= time.time() - note.stat().st_mtime < _FRESH
        # A mark from before the first commit does not identify the project's clones, so it is written again.
        if fresh and (state == "whole" or (git and not git.head())):
            return
    with suppress(OSError, DvkfError):
        head, origin = git.head() if git else None, origin_url(git)
        keys = _keys(repo, head, origin)
        file = file if _KEY.fullmatch(file) else keys[0]
        local = remote.storage.local_path("files") is not None
        data = {
            "host": os.uname().nodename if local else "",
            "paths": [str(repo.root)] if local else [],
            "name": origin or os.path.basename(repo.root),
            "keys": keys,
            "prefix": repo.git_prefix if git else "",
            "commit": head or "",
        }
        remote.storage.write(f"{FOLDER}/{file}", json.dumps(data).encode())
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, f"{file} {'whole' if head or not git else 'partial'}\n".encode(), durable=False)


def others(remote: Remote, repos: Iterable[Repository]) -> list[Project]:
    """Return the projects that left a mark on a remote, except those of the given repositories.

    Raises:
        RemoteError: The remote cannot be listed or read.
    """
    known = [
        (repo, frozenset(_keys(repo, repo.git.head() if repo.git else None, origin_url(repo.git))))
        for repo in repos
    ]
    storage = remote.storage
    found = sorted(islice(storage.keys(FOLDER), _MOST))
    marks = [key for key in found if _KEY.fullmatch(key.rpartition("/")[2])]
    projects = [_read(key, storage.read(key, limit=_LIMIT)) for key in marks]
    return [project for project in projects if not any(project.is_of(*each) for each in known)]


def shown(users: Sequence[Project]) -> str:
    """Return the names of projects for a message."""
    more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
    return ", ".join(printable(user) for user in users[:_SHOWN]) + more


def check(remote: Remote, repos: Sequence[Repository]) -> None:
    """Check that no project other than the given repositories uses a remote.

    Raises:
        RemoteError: Other projects left a mark.
    """
    users = others(remote, repos)
    if not users:
        return
    raise RemoteError(
        f"{remote} is used by {len(users)} other project{'s' if len(users) > 1 else ''} ({shown(users)}); "
        "nothing was removed from it. Name a clone of each with -p. If one no longer exists, remove its mark "
        f"('{users[0].key}'). If no other project uses the remote, pass --assume-unshared."
    )


def _read(key: str, data: bytes) -> Project:
    try:
        values = json.loads(data)
        keys = frozenset(str(item) for item in values.get("keys", ()))
        paths = [str(path) for path in values.get("paths", ())]
        texts = {name: str(values.get(name, "")) for name in ("name", "host", "prefix", "commit")}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return Project(key)
    return Project(key, keys, path=paths[-1] if paths else "", **texts)


def _keys(repo: Repository, head: str | None, origin: str) -> list[str]:
    """Return the identifiers that a repository shares with its clones, the most durable first.

    Args:
        repo: The repository.
        head: Its current commit, None before the first one.
        origin: Result of `origin_url`.
    """
    keys: list[str] = []
    git = repo.git
    if git is not None:
        texts = [f"origin {address}"] if (address := origin_address(origin)) else []
        if head and git.run("rev-parse", "--is-shallow-repository") == "false":
            texts += [f"first {commit}" for commit in git.run("rev-list", "--max-parents=0", "HEAD").split()]
        keys += [hashlib.sha256(f"{text}\0{repo.git_prefix}".encode()).hexdigest()[:32] for text in texts]
    return [*keys, cache_users.repository_id(repo)]
