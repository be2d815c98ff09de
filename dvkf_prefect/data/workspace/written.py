"""Periods of checkout writes, to recognise a file that a power cut truncated.

A checkout does not flush its files, since their content is in the cache. After a power cut, a file may hold only a
part of its content. Such a file was last changed within a recorded period; a user's own truncation has a later time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dvkf_prefect.files import read_description, write_atomic

_KEPT = 16
# Assumed length of a period without an end, as a power cut or a kill leaves it; ns.
_LONGEST = 600 * 10**9
_BLOCK = 1 << 16
# Begin and end, ns since the epoch.
_Period = tuple[int, int | None]


class Written:
    """Last periods of checkout writes in one repository.

    Args:
        file: File that stores the periods; its folder is created on the first write.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Record a period; its begin is flushed to disk before the block starts."""
        periods = self._load()[1 - _KEPT :]
        # File systems round times to the tick of their clock, up to some milliseconds back.
        begun = time.time_ns() - 10**8
        self._save([*periods, (begun, None)], durable=True)
        try:
            yield
        finally:
            self._save([*periods, (begun, time.time_ns())], durable=False)

    def cut(self, files: Iterable[tuple[str, str | Path, str | Path]]) -> set[str]:
        """Return the names of files that hold only a part of their content and were last changed by a checkout.

        Args:
            files: For each file its name, its path in the workspace, and the path of its complete content.
        """
        periods = self._load()
        return (
            {name for name, file, content in files if _is_cut(file, content, periods)} if periods else set()
        )

    def _load(self) -> list[_Period]:
        try:
            periods = json.loads(read_description(self._file))
            return [(int(begun), ended if ended is None else int(ended)) for begun, ended in periods]
        except (OSError, ValueError, TypeError):
            return []

    def _save(self, periods: list[_Period], *, durable: bool) -> None:
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file, json.dumps(periods).encode(), durable=durable)


def _is_cut(file: str | Path, content: str | Path, periods: Sequence[_Period]) -> bool:
    with suppress(OSError), open(file, "rb") as left, open(content, "rb") as whole:
        changed = os.fstat(left.fileno()).st_mtime_ns
        if not any(begun <= changed <= (ended or begun + _LONGEST) for begun, ended in periods):
            return False
        while block := left.read(_BLOCK):
            if whole.read(len(block)) != block:
                return False
        return bool(whole.read(1))
    return False
