"""Repositories that share one cache: a mark of each, and no collection while another works.

A mark is a small file in ``users-dvkf`` of the cache, named by a random identity that the repository keeps in
``.dvc/tmp``, so that a repository that was moved is known again. Every verb that writes leaves one in a cache outside
its own `.dvc` folder. DVC leaves none.

A verb holds a shared ``flock`` on the cache's folder, a collection an exclusive one. The kernel gives both up when a
process ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dvkf_prefect.errors import DvkfError, LockedError, ObjectError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.text import printable

if TYPE_CHECKING:
    from dvkf_prefect.data.cache.cache import Cache

USERS = "users-dvkf"
_IDENTITY = "cache-user"
_NAME = re.compile("[0-9a-f]{32}")
_LIMIT = 1 << 16
_PAUSE = 0.02
_SHOWN = 5


class Project(Protocol):
    """A repository, as far as its neighbours know it."""

    root: Path
    dvc_dir: Path
    cache: Cache

    @property
    def tmp_dir(self) -> Path:
        """The folder of what can be lost at any time."""


@dataclass(slots=True)
class _Lease:
    """What this process holds of one cache.

    Attributes:
        descriptor: The open folder, whose lock it is.
        threads: How often each thread holds it.
        collector: The thread that holds it alone.
        refused: Whether the file system has no such locks.
    """

    descriptor: int
    threads: dict[int, int] = field(default_factory=dict)
    collector: int | None = None
    refused: bool = False

    def lock(self, kind: int) -> bool:
        """Take the lock if it is free."""
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # Network file systems without it; there the age of objects protects them.
            self.refused = True
        return True


_leases: dict[tuple[int, int], _Lease] = {}
_changed = threading.Condition()


def _forget_leases() -> None:
    """Start a forked process without leases; its parent's end with the parent."""
    global _changed
    _changed = threading.Condition()
    _leases.clear()


os.register_at_fork(after_in_child=_forget_leases)


@contextmanager
def working(root: Path, timeout: float) -> Iterator[None]:
    """Keep collections away from a cache for the length of a ``with`` block; one that is not there needs none.

    Args:
        root: The cache.
        timeout: How long to wait for a collection, in seconds.

    Raises:
        LockedError: A collection went on for the whole time.
    """
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    info = os.fstat(descriptor)
    key = info.st_dev, info.st_ino
    _enter(key, descriptor, root, timeout)
    try:
        yield
    finally:
        _leave(key)


def _enter(key: tuple[int, int], descriptor: int, root: Path, timeout: float) -> None:
    thread = threading.get_ident()
    deadline = time.monotonic() + timeout
    with _changed:
        while True:
            lease = _leases.get(key)
            if lease is None:
                lease = _Lease(descriptor)
                if lease.lock(fcntl.LOCK_SH):
                    _leases[key] = lease
                    break
            elif lease.collector in (None, thread):
                os.close(descriptor)
                break
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise LockedError(
                    f"a garbage collection is going on in the cache {root}; waited {timeout:.0f} s. "
                    "Let it finish, or end it, and run this again."
                )
            _changed.wait(_PAUSE)
        lease.threads[thread] = lease.threads.get(thread, 0) + 1


def _leave(key: tuple[int, int]) -> None:
    thread = threading.get_ident()
    with _changed:
        lease = _leases.get(key)
        if lease is None:
            return
        lease.threads[thread] = lease.threads.get(thread, 1) - 1
        if not lease.threads[thread]:
            del lease.threads[thread]
        if not lease.threads:
            del _leases[key]
            os.close(lease.descriptor)
        _changed.notify_all()


@contextmanager
def collecting(root: Path, timeout: float) -> Iterator[None]:
    """Hold a cache alone for the length of a ``with`` block, within `working` of this thread.

    Args:
        root: The cache.
        timeout: How long to wait for others, in seconds.

    Raises:
        LockedError: Others used it the whole time.
    """
    try:
        info = os.stat(root)
    except FileNotFoundError:
        yield
        return
    thread = threading.get_ident()
    deadline = time.monotonic() + timeout
    with _changed:
        lease = _leases.get((info.st_dev, info.st_ino))
        if lease is None:
            yield
            return
        while lease.collector not in (None, thread) or set(lease.threads) != {thread}:
            _wait_for_others(root, timeout, deadline)
        # A lock that cannot be made exclusive is lost at once, so that two collections do not wait for each other.
        lease.collector = thread
        try:
            while not lease.lock(fcntl.LOCK_EX):
                _wait_for_others(root, timeout, deadline)
        except BaseException:
            lease.collector = None
            lease.lock(fcntl.LOCK_SH)
            raise
    try:
        yield
    finally:
        with _changed:
            lease.lock(fcntl.LOCK_SH)
            lease.collector = None
            _changed.notify_all()


def _wait_for_others(root: Path, timeout: float, deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise LockedError(
            f"another command uses the cache {root}; waited {timeout:.0f} s and removed nothing. "
            "Let it finish, or end it, and run this again."
        )
    _changed.wait(_PAUSE)


# -- marks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class User:
    """A repository that left a mark in a cache.

    Attributes:
        identity: The name of its mark.
        host: The machine that it was on.
        paths: Where it was, the last place last.
        file: The mark.
    """

    identity: str
    host: str
    paths: tuple[str, ...]
    file: Path

    def __str__(self) -> str:
        place = self.paths[-1] if self.paths else "unknown place"
        if self.host != os.uname().nodename:
            return f"{place} on {self.host or 'another machine'}"
        return place if os.path.isdir(place) else f"{place} (not there any more: moved or removed)"


def is_own(repo: Project) -> bool:
    """Tell whether a repository's cache lies in its own `.dvc` folder, links followed."""
    return _inside(os.path.realpath(repo.cache.root), os.path.realpath(repo.dvc_dir))


def is_inside(repo: Project) -> bool:
    """Tell whether a repository's cache lies below its root, links followed."""
    return _inside(os.path.realpath(repo.cache.root), os.path.realpath(repo.root))


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def mark(repo: Project) -> bool:
    """Leave a repository's mark in a cache that is not its own; return whether nothing is left to do.

    A folder without objects is left alone: it may be no cache at all.
    """
    root = repo.cache.root
    if is_own(repo):
        return True
    if not os.path.isdir(root / "files" / "md5"):
        return False
    with suppress(OSError, DvkfError):
        file = root / USERS / identity(repo)
        if file.parent.is_symlink():
            return True
        known = _read(file)
        here = str(repo.root)
        host = os.uname().nodename
        if known and known.paths[-1:] == (here,) and known.host == host:
            return True
        paths = [path for path in (known.paths if known else ()) if path != here]
        if not file.parent.is_dir():
            file.parent.mkdir(exist_ok=True)
            # A group that shares the cache writes here too.
            os.chmod(file.parent, os.stat(root).st_mode & 0o7777)
        data = json.dumps({"host": host, "paths": [*paths[-7:], here]})
        write_atomic(file, data.encode())
    return True


def others(root: Path, repos: Iterable[Project]) -> list[User]:
    """Return who left a mark in a cache, beside some repositories.

    Args:
        root: The cache.
        repos: The repositories that are known.
    """
    roots = {str(repo.root) for repo in repos}
    identities = {known for repo in repos if (known := _identity(repo))}
    host = os.uname().nodename
    found: list[User] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(root / USERS)):
            if name.startswith("."):
                continue
            user = _read(root / USERS / name) or User(name, "", (), root / USERS / name)
            if name in identities:
                # It may have been moved, or copied: a copy has the same identity, and is there still.
                copies = [path for path in user.paths if path not in roots and _names(path, name)]
                if copies:
                    found.append(User(name, user.host, tuple(copies), user.file))
            elif user.host != host or user.paths[-1:] == () or user.paths[-1] not in roots:
                # Made anew at the same place, a repository has another identity.
                found.append(user)
    return found


def check(repo: Project, repos: Sequence[Project]) -> None:
    """Refuse a cache that repositories use which are not named.

    Raises:
        ObjectError: There are such, or there may be.
    """
    root = repo.cache.root
    users = others(root, repos)
    advice = "nothing was removed. Name the repositories with -p"
    if users:
        shown = ", ".join(printable(user) for user in users[:_SHOWN])
        more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
        raise ObjectError(
            f"the cache {root} is used by {len(users)} other repositor{'y' if len(users) == 1 else 'ies'} "
            f"({shown}{more}); {advice}. If one is gone for good, remove its mark in {root / USERS}; "
            "if nobody else uses the cache, pass --assume-unshared."
        )
    if len(repos) == 1 and not is_inside(repo):
        raise ObjectError(
            f"the cache {root} lies outside the repository, so other repositories may use it; {advice}, or, if "
            "nobody else uses it, pass --assume-unshared."
        )


def _names(path: str, identity: str) -> bool:
    with suppress(OSError, DvkfError):
        return read_description(Path(path, ".dvc", "tmp", "dvkf", _IDENTITY)).decode().strip() == identity
    return False


def identity(repo: Project) -> str:
    """Return the random name by which a repository is known, made on the first call."""
    return _identity(repo) or _make_identity(repo)


def _identity(repo: Project) -> str | None:
    with suppress(OSError, DvkfError):
        found = read_description(repo.tmp_dir / _IDENTITY, limit=_LIMIT).decode(errors="replace").strip()
        if _NAME.fullmatch(found):
            return found
    return None


def _make_identity(repo: Project) -> str:
    made = secrets.token_hex(16)
    repo.tmp_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(repo.tmp_dir / _IDENTITY, made.encode())
    return made


def _read(file: Path) -> User | None:
    try:
        data = json.loads(read_description(file, limit=_LIMIT))
        host, paths = data["host"], tuple(data["paths"])
    except (OSError, DvkfError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(host, str) or not all(isinstance(path, str) for path in paths):
        return None
    return User(file.name, host, paths, file)
