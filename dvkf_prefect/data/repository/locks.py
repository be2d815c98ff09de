"""Locks of a repository, shared with DVC: `dvc` and `dvkf` exclude each other.

Source: DVC 3.x takes ``flock(LOCK_EX | LOCK_NB)`` on ``.dvc/tmp/lock`` and writes its pid into the file. With
core.hardlink_lock the lock is a hard link instead, see `_Link`. While a stage's command runs, DVC releases the lock.
It records the paths that the stage reads and writes instead, see `stage_notes`.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from dvkf_prefect.data.repository.stage_notes import Blocker, live_stages
from dvkf_prefect.errors import LockedError
from dvkf_prefect.files import read_description
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.leftovers import share_with_helpers, unshare
from dvkf_prefect.paths import overlaps

# O_NOFOLLOW: a link in place of a lock would point to one of the user's files. O_NONBLOCK: a fifo would block.
_LOCK_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

# Absolute paths, or a function that returns them; it is only called while stages are running.
Paths = Iterable[str] | Callable[[], Iterable[str]]


class _Held(Protocol):
    def release(self) -> None:
        """Release the lock."""


class RepoLock:
    """A lock between processes, and between threads of one process; a thread that holds it may take it again.

    Args:
        path: Lock file; its folder is created when needed.
        hardlink: Lock by a hard link instead of flock (core.hardlink_lock), for file systems without flock.
    """

    def __init__(self, path: Path, *, hardlink: bool = False) -> None:
        self._path = path
        self._hardlink = hardlink
        self._threads = threading.RLock()
        self._depth = 0

    @contextmanager
    def hold(self, timeout: float, *, read: Paths = (), write: Paths = ()) -> Iterator[None]:
        """Hold the lock for the length of a ``with`` block.

        Args:
            timeout: Seconds to wait for another holder.
            read: Paths to be read; no running stage may be writing them.
            write: Paths to be written; no running stage may be reading or writing them.

        Raises:
            LockedError: Another process or thread held the lock the whole time; the message names the process.
        """
        deadline = time.monotonic() + timeout
        if not self._threads.acquire(timeout=max(timeout, 0)):
            raise LockedError(f"{self._path} has been held by another thread for more than {timeout:.0f} s")
        try:
            if self._depth:
                if blockers := self._blockers(read, write):
                    raise self._busy(blockers, 0)
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            held = self._acquire(deadline, timeout, read, write)
            self._depth = 1
            try:
                yield
            finally:
                self._depth = 0
                held.release()
        finally:
            self._threads.release()

    def _acquire(self, deadline: float, timeout: float, read: Paths, write: Paths) -> _Held:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        pause = 0.01
        while True:
            held = _Link.take(self._path) if self._hardlink else _Flock.take(self._path)
            blockers: list[Blocker] = []
            if held is not None:
                try:
                    blockers = self._blockers(read, write)
                except BaseException:
                    held.release()
                    raise
                if not blockers:
                    return held
                # Release the lock while waiting: the process that runs the stage needs it when the command ends.
                held.release()
            if time.monotonic() >= deadline:
                if blockers:
                    raise self._busy(blockers, timeout)
                raise self._taken(timeout)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def _taken(self, timeout: float) -> LockedError:
        said = ""
        with suppress(OSError):
            said = read_description(self._path).decode(errors="replace").strip()
        who = f"the repository is locked by process {said or 'unknown'} ({self._path})"
        advice = "Let it finish, or stop it, and run the command again."
        if self._hardlink:
            who = (
                f"the repository is locked by an unknown process ({self._path}, a hard link to "
                f"{said or 'nothing'})"
            )
            advice = "If no dvc or dvkf runs on any machine that uses it, remove both files."
        return LockedError(f"{who}; waited {timeout:.0f} s. {advice}")

    def _busy(self, blockers: list[Blocker], timeout: float) -> LockedError:
        listed = "\n".join(f"  {blocker}" for blocker in blockers)
        waited = f"; waited {timeout:.0f} s" if timeout else ""
        return LockedError(
            f"a stage is being run on the same paths{waited}:\n{listed}\nLet it finish, or stop it, and run "
            "the command again."
        )

    def _blockers(self, read: Paths, write: Paths) -> list[Blocker]:
        """Return the running stages that use these paths; the caller holds the lock."""
        live = live_stages(self._path.with_name("rwlock"))
        if not live:
            return []
        reads, writes = (list(paths() if callable(paths) else paths) for paths in (read, write))
        return [
            blocker
            for blocker in live
            if any(overlaps(blocker.path.rstrip("/"), path.rstrip("/")) for path in writes)
            or (
                blocker.mode == "write"
                and any(overlaps(blocker.path.rstrip("/"), path.rstrip("/")) for path in reads)
            )
        ]


class _Flock:
    """DVC's default lock: a permanent file, locked by flock while a process has it open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> _Flock | None:
        descriptor = os.open(path, _LOCK_FLAGS | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid():>6}\n".encode(), 0)
        # A helper process that outlives this one keeps the lock, because it still writes.
        share_with_helpers(descriptor)
        return cls(descriptor)

    def release(self) -> None:
        unshare(self._descriptor)
        os.close(self._descriptor)


class _Link:
    """DVC's lock with core.hardlink_lock: a hard link to a private file of the process.

    Source: flufl.lock with the settings of dvc/lock.py. The private file contains its own path. Its modification time
    is the lock's expiry, one year ahead. The lock does not name its process, so a killed process leaves it locked.
    """

    _LIFETIME = 365 * 24 * 3600

    def __init__(self, path: Path, claim: Path) -> None:
        self._path = path
        self._claim = claim

    @classmethod
    def take(cls, path: Path) -> _Link | None:
        number = str(int.from_bytes(os.urandom(8), "big"))
        name = "|".join((str(path), os.uname().nodename, str(os.getpid()), number))
        claim = path.with_name(digest_bytes(name.encode()) + ".lock")
        claim.write_text(str(claim))
        until = time.time() + cls._LIFETIME
        os.utime(claim, (until, until))
        try:
            try:
                os.link(claim, path)
            except FileExistsError:
                if not cls._drop_leftover(path):
                    claim.unlink()
                    return None
                os.link(claim, path)
        except BaseException as error:
            claim.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                return None
            raise
        return cls(path, claim)

    @staticmethod
    def _drop_leftover(path: Path) -> bool:
        """Remove an unlocked lock file of the flock kind; DVC would wait for it forever."""
        try:
            descriptor = os.open(path, _LOCK_FLAGS)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left, now = os.fstat(descriptor), os.stat(path)
            if left.st_nlink > 1 or left.st_ino != now.st_ino:
                return False
            path.unlink()
        except (BlockingIOError, FileNotFoundError):
            return False
        finally:
            os.close(descriptor)
        return True

    def release(self) -> None:
        for file in (self._path, self._claim):
            file.unlink(missing_ok=True)
