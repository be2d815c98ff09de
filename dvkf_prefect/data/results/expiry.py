"""Removal of old results from a remote.

A result is removed once its expiration has passed, or once it is older than a given age. Then objects are removed that
no entry names. Objects of this day and the last one are kept: a running writer may be about to name them.

An entry is read again right before its removal. A result that is written in the instant between may be lost; its task
runs again then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.results.store import FOLDER, KEYS, LOCKS, OBJECTS, ResultEntry, ResultStorage, day_of
from dvkf_prefect.errors import ConfigError, MissingObjectError

_DAY = 86_400.0
_JOBS = 16


@dataclass(frozen=True, slots=True)
class ExpiredResults:
    """Outcome of a removal of results, or of its dry run; falsy if there was nothing to remove.

    Attributes:
        results: Number of results removed.
        objects: Number of objects removed.
        size: Bytes of the removed objects.
        kept: Number of results kept.
        dry: True for a dry run.
        keys: Keys of the results that would be removed, in a dry run.
    """

    results: int
    objects: int
    size: int
    kept: int
    dry: bool = False
    keys: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.results > 0 or self.objects > 0

    def __str__(self) -> str:
        verb = "would be removed" if self.dry else "removed"
        return f"{self.results} results and {self.objects} of their objects {verb}, {self.kept} results kept"


def expire_results(
    storage: Storage, *, older_than: float | None = None, dry_run: bool = False
) -> ExpiredResults:
    """Remove results whose expiration has passed, and those older than an age, from a remote.

    Args:
        storage: The remote's storage.
        older_than: Age in seconds; None to remove by expiration only.
        dry_run: Return what would be removed without removing it.

    Returns:
        The number of results and objects removed.

    Raises:
        ConfigError: The age is negative.
        CorruptObjectError: An entry is damaged, or a later version of dvkf wrote it; nothing was removed.
        RemoteError: The remote cannot be used.

    Example:
        >>> from dvkf_prefect.data.remotes import open_storage
        >>> print(expire_results(open_storage("memory://example"), older_than=30 * 86400))
        0 results and 0 of their objects removed, 0 results kept
    """
    if older_than is not None and older_than < 0:
        raise ConfigError(f"the age of results is {older_than:g} seconds. Give 0 or more.")
    now = time.time()
    newest = day_of(now - 2 * _DAY)
    results = ResultStorage(storage)
    # Objects are listed before entries are read: a later object is no candidate.
    unused = {
        place: size for place, size in storage.list(OBJECTS) if place[len(OBJECTS) + 1 :][:10] <= newest
    }
    entries = _entries(results, storage.keys(KEYS))
    old = {place: entry for place, entry in entries.items() if entry.expired(now, older_than)}
    if not dry_run:
        again = _entries(results, old)
        old = {place: entry for place, entry in again.items() if entry.expired(now, older_than)}
        storage.delete(sorted(old))
        storage.delete(sorted(_dead_locks(storage, now)))
    for place, entry in entries.items():
        if place not in old:
            unused.pop(entry.place, None)
    if not dry_run:
        storage.delete(sorted(unused))
        _remove_empty(storage.local_path(FOLDER), now)
    return ExpiredResults(
        len(old),
        len(unused),
        sum(unused.values()),
        len(entries) - len(old),
        dry_run,
        tuple(sorted(entry.key for entry in old.values())) if dry_run else (),
    )


def _entries(results: ResultStorage, places: Iterable[str]) -> dict[str, ResultEntry]:
    """Read entries; those that are gone are left out."""

    def read(place: str) -> tuple[str, ResultEntry | None]:
        try:
            return place, results.entry(place)
        except MissingObjectError:
            return place, None

    with ThreadPoolExecutor(_JOBS, thread_name_prefix="dvkf-results") as pool:
        return {place: entry for place, entry in pool.map(read, places) if entry is not None}


def _dead_locks(storage: Storage, now: float) -> Iterable[str]:
    """Return the files of locks without a renewal for a day."""
    return [
        place for place, _, changed in storage.dated(LOCKS) if changed is not None and changed < now - _DAY
    ]


def _remove_empty(folder: Path | None, now: float) -> None:
    """Remove the empty folders of a remote on a disk in which nothing changed for two days."""
    if folder is None:
        return
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            if os.stat(path).st_mtime < now - 2 * _DAY:
                os.rmdir(path)
