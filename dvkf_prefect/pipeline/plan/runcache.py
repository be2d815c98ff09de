"""Run cache: the result of each signature's run, in ``.dvc/cache/runs``, byte for byte as DVC stores it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from dvkf_prefect.errors import ParseError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.documents import dump
from dvkf_prefect.formats.dvclock import Entry, find_wrong
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.pipeline.plan.signature import input_key, result_key


class RunCache:
    """The recorded runs of a cache.

    Args:
        root: Root folder of the cache.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "runs"

    def path(self, key: str, value: str) -> Path:
        """Return the path of the run with an input key and a result key."""
        return self._folder / key[:2] / key / value

    def find(self, key: str) -> Entry | None:
        """Return the newest run with these inputs, or None; unreadable ones are skipped.

        Args:
            key: Input key of a stage.
        """
        folder = self._folder / key[:2] / key
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return None
        found: list[tuple[int, str]] = []
        for entry in entries:
            # A garbage collection may remove it meanwhile.
            with suppress(FileNotFoundError):
                if not entry.name.startswith("."):
                    found.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(found, reverse=True):
            run = _read(Path(path))
            if run is not None:
                return run
        return None

    def save(self, entry: Entry) -> None:
        """Record a run; an existing record is kept.

        Args:
            entry: The stage's entry of dvc.lock.

        Raises:
            DiskFullError: The disk is full.
        """
        path = self.path(input_key(entry), result_key(entry))
        if _read(path) is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, dump(entry))


def can_restore(stage: Stage, entry: Entry) -> bool:
    """Return True if a run with equal inputs may be restored from the run cache, by DVC's rules.

    Args:
        stage: The stage.
        entry: Inputs of the stage: dependencies with digests, and parameters.
    """
    return bool(
        not stage.runs_always
        and (stage.deps or stage.params)
        and stage.outs
        and not any("://" in dep.name for dep in stage.deps)
        and all(item.get("md5") for item in entry.get("deps", []))
        and all(entry.get("params", {}).values())
        and not any(out.persist for out in stage.outs)
    )


def can_save(stage: Stage, entry: Entry) -> bool:
    """Return True if a run is recorded; DVC omits stages with a plain output that is not cached."""
    return can_restore(stage, entry) and all(out.cached or out.kind != "out" for out in stage.outs)


def _read(path: Path) -> Entry | None:
    try:
        return parse_run(read_description(path), path.name)
    except OSError:
        return None


def parse_run(data: bytes, name: str) -> Entry | None:
    """Return a recorded run; None if the data is not one.

    Args:
        data: Content of the record.
        name: Name of the record, for messages.
    """
    try:
        entry: Any = documents.load(data, name)
    except ParseError:
        return None
    # Entries may come from a remote: a malformed digest could form a path outside the cache.
    if find_wrong(entry) or not all("md5" in out for out in entry.get("outs", [])):
        return None
    return cast(Entry, entry)
