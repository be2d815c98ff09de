"""Marks of the repositories that share a cache, and a lock between their verbs and garbage collections.

A mark is a small file in ``users-dvkf`` of the cache. Its name is a random identity that the repository keeps in
``.dvc/tmp``, so that a moved repository is recognized. Every verb that writes leaves a mark in a cache outside the
repository's `.dvc` folder. DVC leaves none.

A verb holds a shared ``flock`` on the cache's folder, a garbage collection an exclusive one. The kernel releases both
when a process ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
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
    """The attributes of a repository that this module reads."""

    root: Path
    dvc_dir: Path
    cache: Cache

    @property
    def tmp_dir(self) -> Path:
        """Folder for state that may be deleted at any time."""


@dataclass(slots=True)
class _Lease:
    """This process's lock on one cache.

    Attributes:
        descriptor: Descriptor of the open folder, which carries the lock.
        threads: Number of times that each thread holds it.
        collector: Thread that holds it exclusively, None without one.
        refused: True if the file system does not support the lock.
    """

    descriptor: int
    threads: dict[int, int] = field(default_factory=dict)
    collector: int | None = None
    refused: bool = False

    def lock(self, kind: int) -> bool:
        """Take the lock; return False if another process holds it."""
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # Some network file systems have no flock; there, gc's minimum age protects new objects.
            self.refused = True
        return True


_leases: dict[tuple[int, int], _Lease] = {}
_changed = threading.Condition()


def _forget_leases() -> None:
    """Reset the leases in a forked process; its parent keeps the locks."""
    global _changed
    _changed = threading.Condition()
    _leases.clear()


os.register_at_fork(after_in_child=_forget_leases)


@contextmanager
def working(root: Path, timeout: float) -> Iterator[None]:
    """Block garbage collections in a cache for the length of a ``with`` block; a missing cache is not locked.

    Args:
        root: Root of the cache.
        timeout: Seconds to wait for a collection.

    Raises:
        LockedError: A collection ran the whole time.
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
                    f"the cache {root} is being garbage-collected; waited {timeout:.0f} s. Let that finish, "
                    "or stop it, and run the command again."
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
    """Hold a cache exclusively for the length of a ``with`` block, inside a `working` block of this thread.

    Args:
        root: Root of the cache.
        timeout: Seconds to wait for others.

    Raises:
        LockedError: Other processes or threads used the cache the whole time.
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
        # A failed upgrade also drops the shared lock, so that two collections do not wait for each other.
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
            f"the cache {root} is used by another command; waited {timeout:.0f} s and removed nothing. Let "
            "that finish, or stop it, and run the command again."
        )
    _changed.wait(_PAUSE)


# -- marks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class User:
    """A repository that left a mark in a cache.

    Attributes:
        identity: Name of its mark.
        host: Machine of the repository.
        paths: Known folders of the repository, the latest one last.
        file: Path of the mark.
    """

    identity: str
    host: str
    paths: tuple[str, ...]
    file: Path

    def __str__(self) -> str:
        place = self.paths[-1] if self.paths else "unknown place"
        if self.host != os.uname().nodename:
            return f"{place} on {self.host or 'another machine'}"
        return place if os.path.isdir(place) else f"{place} (no longer exists: moved or removed)"


def is_own(repo: Project) -> bool:
    """Return True if a repository's cache lies in its own `.dvc` folder, after resolving links."""
    return _inside(os.path.realpath(repo.cache.root), os.path.realpath(repo.dvc_dir))


def is_inside(repo: Project) -> bool:
    """Return True if a repository's cache lies below its root, after resolving links."""
    return _inside(os.path.realpath(repo.cache.root), os.path.realpath(repo.root))


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def mark(repo: Project) -> bool:
    """Write a repository's mark to a cache outside its `.dvc` folder.

    A folder without objects gets no mark, because it may not be a cache.

    Returns:
        True if no later attempt is needed.
    """
    root = repo.cache.root
    if is_own(repo):
        return True
    if not os.path.isdir(root / "files" / "md5"):
        return False
    with suppress(OSError, DvkfError):
        file = root / USERS / repository_id(repo)
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
            # A group that shares the cache must be able to write here.
            os.chmod(file.parent, os.stat(root).st_mode & 0o7777)
        data = json.dumps({"host": host, "paths": [*paths[-7:], here]})
        write_atomic(file, data.encode())
    return True


def others(root: Path, repos: Iterable[Project]) -> list[User]:
    """Return the repositories that left a mark in a cache, except the given ones.

    Args:
        root: Root of the cache.
        repos: Known repositories.
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
                # Moved or copied: a copy has the same identity, and its folder still exists.
                copies = [path for path in user.paths if path not in roots and _names(path, name)]
                if copies:
                    found.append(User(name, user.host, tuple(copies), user.file))
            elif user.host != host or user.paths[-1:] == () or user.paths[-1] not in roots:
                # A repository recreated in the same folder has a new identity; its old mark does not count.
                found.append(user)
    return found


def check(repo: Project, repos: Sequence[Project]) -> None:
    """Check that no repository other than the given ones uses a cache.

    Raises:
        ObjectError: Other repositories use the cache, or may use it.
    """
    root = repo.cache.root
    users = others(root, repos)
    advice = "nothing was removed. Name the repositories with -p"
    if users:
        shown = ", ".join(printable(user) for user in users[:_SHOWN])
        more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
        raise ObjectError(
            f"the cache {root} is used by {len(users)} other repositor{'y' if len(users) == 1 else 'ies'} "
            f"({shown}{more}); {advice}. If one no longer exists, remove its mark in {root / USERS}. If no "
            "other repository uses the cache, pass --assume-unshared."
        )
    if len(repos) == 1 and not is_inside(repo):
        raise ObjectError(
            f"the cache {root} lies outside the repository, so other repositories may use it; {advice}, or, "
            "if no other repository uses it, pass --assume-unshared."
        )


def _names(path: str, identity: str) -> bool:
    with suppress(OSError, DvkfError):
        return read_description(Path(path, ".dvc", "tmp", "dvkf", _IDENTITY)).decode().strip() == identity
    return False


def repository_id(repo: Project) -> str:
    """Return the repository's random identity; the first call creates it."""
    return _identity(repo) or _make_identity(repo)


def adopt_identity(repo: Project, owner: Project) -> None:
    """Give a work tree the identity of its repository, so that their marks are one."""
    repo.tmp_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(repo.tmp_dir / _IDENTITY, repository_id(owner).encode())


def _identity(repo: Project) -> str | None:
    with suppress(OSError, DvkfError):
        found = read_description(repo.tmp_dir / _IDENTITY, limit=_LIMIT).decode(errors="replace").strip()
        if _NAME.fullmatch(found):
            return found
    return None


def _make_identity(repo: Project) -> str:
    made = os.urandom(16).hex()
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
