"""What makes two runs of a stage the same: the run cache's keys.

Source: DVC 3.x (``dvc/stage/cache.py``): sha256 of the entry's JSON, keys sorted, sizes left out.
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
    """Return the key of a whole entry, the outputs' content included."""
    return _sha256(entry)


def _sha256(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(_without_sizes(entry), sort_keys=True).encode()).hexdigest()


def _without_sizes(value: Any) -> Any:
    # DVC leaves these keys out wherever they stand, in parameters too.
    if isinstance(value, dict):
        return {k: _without_sizes(v) for k, v in value.items() if k not in _LEFT_OUT}
    if isinstance(value, list):
        return [_without_sizes(v) for v in value]
    return value
