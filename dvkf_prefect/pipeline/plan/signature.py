"""Signatures of runs: the run cache's keys.

Source: DVC 3.x (``dvc/stage/cache.py``): sha256 of the entry's JSON, with sorted keys and without sizes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dvkf_prefect.formats.dvclock import Entry

_LEFT_OUT = ("size", "nfiles")


def input_key(entry: Entry) -> str:
    """Return the key of an entry's inputs: the command, dependencies, parameters, and the outputs' paths."""
    return _sha256({**entry, "outs": [out["path"] for out in entry.get("outs", [])]})


def result_key(entry: Entry) -> str:
    """Return the key of a whole entry, including the outputs' content."""
    return _sha256(entry)


def _sha256(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(_without_sizes(entry), sort_keys=True).encode()).hexdigest()


def _without_sizes(value: Any) -> Any:
    # DVC omits these keys at every level, in parameters too.
    if isinstance(value, dict):
        return {k: _without_sizes(v) for k, v in value.items() if k not in _LEFT_OUT}
    if isinstance(value, list):
        return [_without_sizes(v) for v in value]
    return value
