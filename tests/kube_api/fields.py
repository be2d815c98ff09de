"""Server-side apply: the fields of each manager, merging, and conflicts.

Source: sigs.k8s.io/structured-merge-diff (fieldpath, merge), apimachinery pkg/util/managedfields (messages).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

# ("f", name) a field, ("k", keys as JSON) an item of a map-like list, ("v", value as JSON) one of a set.
Path = tuple[tuple[str, str], ...]
_IDENTITY = {("f", "apiVersion"), ("f", "kind")}
_ROOT = (("f", "metadata"),)
# Fields of metadata that only the server writes.
_SYSTEM = (
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink",
    "deletionTimestamp", "deletionGracePeriodSeconds", "generateName",
)  # fmt: skip
METADATA = {
    "type": "object",
    "properties": {
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "finalizers": {"type": "array", "x-kubernetes-list-type": "set"},
        "ownerReferences": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "items": {"type": "object", "x-kubernetes-map-type": "atomic"},
        },
    },
}


def with_metadata(schema: dict) -> dict:
    return {**schema, "properties": {**schema.get("properties", {}), "metadata": METADATA}}


def _part(schema: dict, key: str) -> dict:
    others = schema.get("additionalProperties")
    return schema.get("properties", {}).get(key) or (others if isinstance(others, dict) else {})


def _item(value: Any, schema: dict) -> tuple[str, str] | None:
    """Return the path element of an item of a list that is merged item by item."""
    kind = schema.get("x-kubernetes-list-type")
    if kind == "set":
        return ("v", json.dumps(value))
    if kind == "map":
        parts = schema.get("items", {})
        keys = {k: value.get(k, _part(parts, k).get("default")) for k in schema["x-kubernetes-list-map-keys"]}
        return ("k", json.dumps({k: v for k, v in keys.items() if v is not None}, sort_keys=True))
    return None


def paths(value: Any, schema: dict, at: Path = ()) -> Iterator[Path]:
    """Yield the fields that a configuration sets."""
    if isinstance(value, dict) and value and schema.get("x-kubernetes-map-type") != "atomic":
        for key, item in value.items():
            here = (*at, ("f", key))
            if here[0] in _IDENTITY or (at == _ROOT and key in _SYSTEM):
                continue
            yield from paths(item, _part(schema, key), here)
    elif isinstance(value, list) and schema.get("x-kubernetes-list-type") in ("set", "map"):
        for item in value:
            here = (*at, _item(item, schema))  # type: ignore[arg-type]
            yield here
            if here[-1][0] == "k":
                yield from paths(item, schema.get("items", {}), here)
    elif at and at != _ROOT:
        yield at


def get(value: Any, path: Path, schema: dict) -> Any:
    """Return the value at a path; None if there is none."""
    for kind, key in path:
        if kind == "f":
            value, schema = (value.get(key) if isinstance(value, dict) else None), _part(schema, key)
        else:
            found = [item for item in value or () if _item(item, schema) == (kind, key)]
            value, schema = (found[0] if found else None), schema.get("items", {})
        if value is None:
            return None
    return value


def remove(value: Any, path: Path, schema: dict) -> None:
    (kind, key), rest = path[0], path[1:]
    if kind == "f":
        if not isinstance(value, dict) or key not in value:
            return
        if rest:
            remove(value[key], rest, _part(schema, key))
            if value[key] in ({}, []):
                del value[key]
        else:
            del value[key]
        return
    for item in [i for i in value or () if _item(i, schema) == (kind, key)]:
        if rest:
            remove(item, rest, schema.get("items", {}))
        else:
            value.remove(item)


def merge(live: Any, config: Any, schema: dict) -> Any:
    """Return the live value with a configuration applied on it."""
    if (
        isinstance(config, dict)
        and isinstance(live, dict)
        and schema.get("x-kubernetes-map-type") != "atomic"
    ):
        merged = dict(live)
        for key, item in config.items():
            merged[key] = merge(live[key], item, _part(schema, key)) if key in live else copy.deepcopy(item)
        return merged
    if (
        isinstance(config, list)
        and isinstance(live, list)
        and schema.get("x-kubernetes-list-type") in ("set", "map")
    ):
        merged_list = list(live)
        for item in config:
            here = _item(item, schema)
            index = next((n for n, old in enumerate(merged_list) if _item(old, schema) == here), None)
            if index is None:
                merged_list.append(copy.deepcopy(item))
            elif here[0] == "k":  # type: ignore[index]
                merged_list[index] = merge(merged_list[index], item, schema.get("items", {}))
        return merged_list
    return copy.deepcopy(config)


def text(path: Path) -> str:
    """Return a path as messages show it."""
    shown = ""
    for kind, key in path:
        if kind == "f":
            shown += f".{key}"
        elif kind == "k":
            shown += "[" + ",".join(f"{k}={json.dumps(v)}" for k, v in json.loads(key).items()) + "]"
        else:
            shown += f"[={key}]"
    return shown


def as_v1(found: set[Path]) -> dict:
    """Return a set of fields in the form of ``managedFields[].fieldsV1``."""
    root: dict[str, Any] = {}
    for path in sorted(found):
        at = root
        for kind, key in path:
            at = at.setdefault(f"{kind}:{key}", {})
        if path[-1][0] == "k":
            at.setdefault(".", {})
    return root
