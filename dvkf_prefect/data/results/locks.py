"""Locks on results, held by leases on a remote, so that workers on any machine compute a result once.

A lock is a file of its holder below ``results-dvkf/locks/`` of the remote. A worker looks for files of others, writes
its own, and looks again. It has the lock if there is no other file. Otherwise it removes its own file and waits a
random time. The second writer lists second, so two workers never both see only their own file. This needs listings
that show every earlier write, as all supported stores have.

The holder writes its file again every `RENEWAL` seconds. The file of an ended process of this machine does not count,
and one that was not renewed for `EXPIRY` seconds is removed. Only changes of the file are observed, so the clocks of
machines may differ.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.results.store import LOCKS, place_of
from dvkf_prefect.errors import CorruptObjectError, DvkfError, MissingObjectError
from dvkf_prefect.processes.holder import Holder

RENEWAL = 10.0
"""Seconds between two renewals of a lock."""
EXPIRY = 35.0
"""Seconds without a renewal after which a lock is free."""
_SLOWEST = 2.0  # seconds between two tries


@dataclass(slots=True)
class _Lease:
    """A lock that this process has."""

    holder: str
    place: str
    until: float | None
    given_up: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    renewals: int = 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """Another's file, as it was when it last changed."""

    size: int
    at: float


class ResultLocks:
    """Locks of results on a remote, in the form that Prefect asks of a lock manager.

    A holder is any text. The same holder may acquire a lock again. All methods may be called from several threads.

    Args:
        open_storage: Returns the remote's storage; it is called at first use.

    Example:
        >>> from dvkf_prefect.data.remotes import open_storage
        >>> locks = ResultLocks(lambda: open_storage("memory://example"))
        >>> locks.acquire_lock("key-1", "worker-1"), locks.is_lock_holder("key-1", "worker-1")
        (True, True)
        >>> locks.release_lock("key-1", "worker-1")
    """

    def __init__(self, open_storage: Callable[[], Storage]) -> None:
        self._open = open_storage
        self._held: dict[str, _Lease] = {}
        self._seen: dict[str, _Seen] = {}
        self._mutex = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> ResultLocks:
        # Copies of a cache policy share its locks.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return ResultLocks, (self._open,)

    def acquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        """Wait for the lock of a result, and take it.

        Args:
            key: Key of the result.
            holder: Name of the holder.
            acquire_timeout: Maximum seconds to wait, 0 for one try; None for no limit.
            hold_timeout: Seconds after which the lock is given up; None to hold it until it is released.

        Returns:
            True if the holder has the lock.

        Raises:
            RemoteError: The remote cannot be used.
        """
        return self._acquire(key, holder, acquire_timeout, hold_timeout, threading.Event())

    async def aacquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        """Do the same as `acquire_lock` in async code."""
        stop = threading.Event()
        try:
            return await asyncio.to_thread(self._acquire, key, holder, acquire_timeout, hold_timeout, stop)
        except asyncio.CancelledError:
            stop.set()
            raise

    def release_lock(self, key: str, holder: str) -> None:
        """Give a lock up.

        Args:
            key: Key of the result.
            holder: Name of its holder.

        Raises:
            ValueError: The holder does not have the lock.
            RemoteError: The remote cannot be used.
        """
        with self._mutex:
            lease = self._held.get(key)
            if lease is None or lease.holder != holder:
                raise ValueError(f"'{holder}' does not hold the lock of the result '{key}'")
            del self._held[key]
        lease.given_up.set()
        if lease.thread is not None:
            lease.thread.join()
        self._open().delete([lease.place])

    def is_locked(self, key: str) -> bool:
        """Return True if a holder here or elsewhere has the lock.

        Args:
            key: Key of the result.

        Raises:
            RemoteError: The remote cannot be used.
        """
        return key in self._held or self._is_taken(key, "")

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Return True if this process has the lock for the holder.

        Args:
            key: Key of the result.
            holder: Name of the holder.
        """
        lease = self._held.get(key)
        return lease is not None and lease.holder == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until a lock is free.

        Args:
            key: Key of the result.
            timeout: Maximum number of seconds; None for no limit.

        Returns:
            True if it is free.

        Raises:
            RemoteError: The remote cannot be used.
        """
        return self._wait(key, timeout, threading.Event())

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Do the same as `wait_for_lock` in async code."""
        stop = threading.Event()
        try:
            return await asyncio.to_thread(self._wait, key, timeout, stop)
        except asyncio.CancelledError:
            stop.set()
            raise

    def _acquire(
        self,
        key: str,
        holder: str,
        timeout: float | None,
        hold: float | None,
        stop: threading.Event,
    ) -> bool:
        if self.is_lock_holder(key, holder):
            return True
        storage = self._open()
        own = f"{place_of(key, LOCKS, '')}/{uuid.uuid4()}.json"
        end = None if timeout is None else time.monotonic() + timeout
        wait = 0.05
        while not stop.is_set():
            if not self._is_taken(key, own):
                storage.write(own, Holder.here(holder).to_json())
                try:
                    taken = self._is_taken(key, own)
                except BaseException:
                    with suppress(DvkfError):
                        storage.delete([own])
                    raise
                if not (taken or stop.is_set()):
                    self._hold(key, _Lease(holder, own, None if hold is None else time.monotonic() + hold))
                    return True
                storage.delete([own])
            if end is not None and time.monotonic() >= end:
                return False
            wait = _pause(wait, end, stop)
        return False

    def _wait(self, key: str, timeout: float | None, stop: threading.Event) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        wait = 0.05
        while self.is_locked(key):
            if stop.is_set() or (end is not None and time.monotonic() >= end):
                return False
            wait = _pause(wait, end, stop)
        return True

    def _hold(self, key: str, lease: _Lease) -> None:
        lease.thread = threading.Thread(
            target=self._renew, args=(key, lease), name=f"dvkf-lock-{lease.place[-13:-5]}", daemon=True
        )
        with self._mutex:
            self._held[key] = lease
        lease.thread.start()

    def _renew(self, key: str, lease: _Lease) -> None:
        """Write the file of a lock again until it is given up, its time is over, or another removed it."""
        storage = self._open()
        while True:
            left = RENEWAL if lease.until is None else min(RENEWAL, lease.until - time.monotonic())
            if lease.given_up.wait(max(left, 0)):
                return
            over = lease.until is not None and time.monotonic() >= lease.until
            with suppress(DvkfError, OSError):  # the next renewal may succeed
                if over:
                    storage.delete([lease.place])
                elif storage.size(lease.place) is None:
                    over = True
                else:
                    lease.renewals += 1
                    holder = Holder.here(lease.holder).to_json()
                    storage.write(lease.place, holder + b"\n" * (lease.renewals % 1000))
            if over:
                with self._mutex:
                    if self._held.get(key) is lease:
                        del self._held[key]
                return

    def _is_taken(self, key: str, own: str) -> bool:
        """Return True if another file of the lock lives; remove files of ended holders."""
        storage = self._open()
        now, taken, dead = time.monotonic(), False, []
        listed = {place: size for place, size in storage.list(place_of(key, LOCKS, "")) if place != own}
        for place, size in listed.items():
            seen = self._seen.get(place)
            if seen is None:
                with suppress(MissingObjectError, CorruptObjectError):
                    if Holder.from_json(storage.read(place, limit=8192)).gone:
                        dead.append(place)
                        continue
            if seen is None or seen.size != size:
                self._seen[place] = _Seen(size, now)
            elif now - seen.at > EXPIRY:
                dead.append(place)
                continue
            taken = True
        if dead:
            storage.delete(dead)
            for place in dead:
                self._seen.pop(place, None)
        folder = place_of(key, LOCKS, "")
        for place in [place for place in self._seen if place.startswith(folder) and place not in listed]:
            self._seen.pop(place, None)
        return taken


def _pause(wait: float, end: float | None, stop: threading.Event) -> float:
    """Wait a random time around ``wait`` seconds, at most until ``end``; return the next wait."""
    pause = wait * random.uniform(0.5, 1.5)  # noqa: S311
    stop.wait(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
    return min(wait * 2, _SLOWEST)
