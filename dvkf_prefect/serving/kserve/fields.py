"""Fields of an object that a field manager owns, by ``metadata.managedFields``.

Source: Kubernetes' FieldsV1: ``f:`` a field, ``k:`` an item of a list by its keys, ``v:`` an item by its value, ``.``
the object itself (apimachinery, ``pkg/util/managedfields``).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any


def owned(obj: Mapping[str, Any], manager: str) -> dict[str, Any]:
    """Return the fields of an object that a manager applied; empty if it applied none.

    Args:
        obj: The object, with ``metadata.managedFields``.
        manager: Name of the field manager.

    Example:
        >>> entry = {"manager": "me", "operation": "Apply", "fieldsV1": {"f:spec": {"f:a": {}}}}
        >>> owned({"metadata": {"managedFields": [entry]}, "spec": {"a": 1, "b": 2}}, "me")
        {'spec': {'a': 1}}
    """
    for entry in obj["metadata"].get("managedFields") or ():
        if entry.get("manager") == manager and entry.get("operation") == "Apply":
            found = _part(obj, entry.get("fieldsV1") or {})
            return found if isinstance(found, dict) else {}
    return {}


def other_owner(obj: Mapping[str, Any], manager: str, *path: str) -> str:
    """Return another manager of a field; empty if there is none.

    Args:
        obj: The object, with ``metadata.managedFields``.
        manager: Name of the manager to leave out.
        path: Names of the fields down to it.
    """
    for entry in obj["metadata"].get("managedFields") or ():
        at: Any = entry.get("fieldsV1") or {}
        for name in path:
            at = at.get(f"f:{name}") if isinstance(at, dict) else None
        if at is not None and entry.get("manager") != manager:
            return str(entry.get("manager"))
    return ""


def _part(value: Any, fields: Mapping[str, Any]) -> Any:
    names = [name for name in fields if name != "."]
    if not names:
        return copy.deepcopy(value)
    if isinstance(value, Mapping):
        return {
            name[2:]: _part(value[name[2:]], fields[name])
            for name in names
            if name.startswith("f:") and name[2:] in value
        }
    if isinstance(value, list):
        return [item for each in value if (item := _item(each, names, fields)) is not None]
    return copy.deepcopy(value)


def _item(value: Any, names: list[str], fields: Mapping[str, Any]) -> Any:
    for name in names:
        kind, _, text = name.partition(":")
        wanted = json.loads(text)
        if kind == "v" and value == wanted:
            return copy.deepcopy(value)
        if kind == "k" and isinstance(value, Mapping) and all(value.get(k) == v for k, v in wanted.items()):
            return _part(value, fields[name])
    return None
