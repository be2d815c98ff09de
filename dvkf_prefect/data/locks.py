"""The repository's lock, shared with DVC: a running `dvc` blocks us and we block it.

Source: DVC takes ``flock(LOCK_EX | LOCK_NB)`` on ``.dvc/tmp/lock`` and writes its pid into it.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvkf_prefect.errors import LockedError


class RepoLock:
    """A lock between processes and, within one, between threads; a thread that holds it may take it again.

    Args:
        path: The lock file; its folder is made when needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.RLock()
        self._depth = 0

    @contextmanager
    def hold(self, timeout: float) -> Iterator[None]:
        """Hold the lock for the length of a ``with`` block.

        Args:
            timeout: How long to wait for another holder, seconds.

        Raises:
            LockedError: Somebody else held it the whole time; names the process.
        """
        deadline = time.monotonic() + timeout
        if not self._threads.acquire(timeout=max(timeout, 0)):
            raise LockedError(f"another thread holds {self._path} for more than {timeout:.0f} s")
        try:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            descriptor = self._acquire(deadline, timeout)
            self._depth = 1
            try:
                yield
            finally:
                self._depth = 0
                os.close(descriptor)
        finally:
            self._threads.release()

    def _acquire(self, deadline: float, timeout: float) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        pause = 0.01
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                    os.close(descriptor)
                    raise LockedError(
                        f"process {holder} holds the repository ({self._path}); waited {timeout:.0f} s. "
                        "Let it finish, or end it, and run this again."
                    ) from None
                time.sleep(pause)
                pause = min(pause * 1.5, 0.5)
                continue
            except BaseException:
                os.close(descriptor)
                raise
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid():>6}\n".encode(), 0)
            return descriptor
