"""The run cache: what each signature's run wrote, in ``.dvc/cache/runs``, byte for byte as DVC keeps it."""

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
    """The runs a cache remembers.

    Args:
        root: The cache's root.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "runs"

    def path(self, key: str, value: str) -> Path:
        """Return where the run of an input key and a result key is kept."""
        return self._folder / key[:2] / key / value

    def find(self, key: str) -> Entry | None:
        """Return the newest run with these inputs, or None; one that cannot be read is passed over.

        Args:
            key: A stage's signature.
        """
        folder = self._folder / key[:2] / key
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return None
        found: list[tuple[int, str]] = []
        for entry in entries:
            # A collection may remove it meanwhile.
            with suppress(FileNotFoundError):
                if not entry.name.startswith("."):
                    found.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(found, reverse=True):
            run = _read(Path(path))
            if run is not None:
                return run
        return None

    def save(self, entry: Entry) -> None:
        """Remember a run; one that is known already is left as it is.

        Args:
            entry: The stage's entry of dvc.lock.

        Raises:
            DiskFullError: There is no room.
        """
        path = self.path(input_key(entry), result_key(entry))
        if _read(path) is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, dump(entry))


def can_restore(stage: Stage, entry: Entry) -> bool:
    """Tell whether equal inputs may be answered from the run cache, as DVC decides it.

    Args:
        stage: The stage.
        entry: Its inputs: dependencies with digests, and parameters.
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
    """Tell whether a run is remembered: DVC leaves out those with a plain output that is not cached."""
    return can_restore(stage, entry) and all(out.cached or out.kind != "out" for out in stage.outs)


def _read(path: Path) -> Entry | None:
    try:
        entry: Any = documents.load(read_description(path), path.name)
    except (OSError, ParseError):
        return None
    # Entries come from remotes, too: a digest of another form would be a path out of the cache.
    if find_wrong(entry) or not all("md5" in out for out in entry.get("outs", [])):
        return None
    return cast(Entry, entry)
