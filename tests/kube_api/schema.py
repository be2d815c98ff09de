"""Structural schemas of custom resources.

Source: apiextensions-apiserver pkg/apiserver/schema (pruning, defaulting), pkg/apiserver/schema/cel (rules),
pkg/apiserver/validation (messages).
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from typing import Any

import jsonschema

try:
    import cel
except ModuleNotFoundError:  # it needs Python 3.11; rules are then passed over
    cel = None

_REASONS = {
    "required": "FieldValueRequired",
    "enum": "FieldValueNotSupported",
    "type": "FieldValueTypeInvalid",
}
_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
Cause = dict[str, str]


def expand(document: dict) -> dict:
    """Return a schema whose ``$ref`` parts are replaced by their definitions, shared instead of copied."""
    made: dict[str, Any] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            name = value["$ref"]
            if name not in made:
                made[name] = walk(document["definitions"][name])
            return made[name]
        return {key: walk(item) for key, item in value.items()}

    return walk(document["schema"])


class Schema:
    """The schema of a whole object; ``metadata`` is the API server's own and is left alone."""

    def __init__(self, root: dict) -> None:
        self.root = root
        self.spec = {
            **root,
            "properties": {
                k: v for k, v in root.get("properties", {}).items() if k not in ("apiVersion", "kind")
            },
        }

    def prune(self, obj: dict) -> list[str]:
        """Remove undeclared fields in place; return their paths. Nulls without ``nullable`` go, too."""
        found: list[str] = []
        for key in [k for k in obj if k not in ("apiVersion", "kind", "metadata")]:
            part = self.root["properties"].get(key)
            if part is None:
                found.append(f".{key}")
                del obj[key]
            else:
                _prune(obj[key], part, f".{key}", found)
        return found

    def undeclared(self, obj: dict) -> str | None:
        """Return the path of a field that the schema does not declare."""
        return next(iter(self.prune(copy.deepcopy(obj))), None)

    def default(self, obj: dict) -> None:
        for key, part in self.root["properties"].items():
            if key not in ("apiVersion", "kind", "metadata"):
                if key in obj:
                    _default(obj[key], part)
                elif "default" in part:
                    obj[key] = copy.deepcopy(part["default"])

    def validate(self, obj: dict, old: dict | None) -> list[Cause]:
        """Return what is wrong with an object: values first, rules only for an object whose values are right."""
        found = [_cause(error) for error in self._checker.iter_errors(obj)]
        return found or list(_rules(obj, old, self.root, ""))

    @functools.cached_property
    def _checker(self) -> Any:
        properties = {k: v for k, v in self.spec["properties"].items() if k != "metadata"}
        return jsonschema.Draft4Validator({**self.spec, "properties": properties})


def _prune(value: Any, schema: dict, path: str, found: list[str]) -> None:
    if isinstance(value, list):
        for index, item in enumerate(value):
            _prune(item, schema.get("items") or {}, f"{path}[{index}]", found)
    if not isinstance(value, dict):
        return
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    keep = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    for key in list(value):
        part = properties.get(key, others if isinstance(others, dict) else None)
        if part is None and not keep and others is not True:
            found.append(f"{path}.{key}")
            del value[key]
        elif value[key] is None and part is not None and not part.get("nullable"):
            del value[key]
        elif part is not None:
            _prune(value[key], part, f"{path}.{key}", found)


def _default(value: Any, schema: dict) -> None:
    if isinstance(value, list):
        for item in value:
            _default(item, schema.get("items") or {})
    if not isinstance(value, dict):
        return
    for key, part in schema.get("properties", {}).items():
        if key not in value and "default" in part:
            value[key] = copy.deepcopy(part["default"])
        if key in value:
            _default(value[key], part)
    if isinstance(others := schema.get("additionalProperties"), dict):
        for key in value.keys() - schema.get("properties", {}).keys():
            _default(value[key], others)


def _cause(error: Any) -> Cause:
    place = ""
    for part in error.absolute_path:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    place, value = place.lstrip("."), error.instance
    kind, shown = error.validator, json.dumps(value)
    if kind == "required":
        missing = next(name for name in error.validator_value if name not in value)
        return cause(f"{place}.{missing}".lstrip("."), "Required value", "FieldValueRequired")
    if kind == "enum":
        supported = ", ".join(json.dumps(each) for each in error.validator_value)
        said = f"Unsupported value: {shown}: supported values: {supported}"
    elif kind == "type":
        found = _TYPES.get(type(value), "null")
        said = f'Invalid value: "{found}": {place} in body must be of type {error.validator_value}: "{found}"'
    elif kind == "pattern":
        said = f"Invalid value: {shown}: {place} in body should match '{error.validator_value}'"
    elif kind in ("maxLength", "maxItems"):
        said = f"Too long: may not be more than {error.validator_value} {'bytes' if kind == 'maxLength' else 'items'}"
    elif kind in ("minimum", "maximum"):
        sign = "greater" if kind == "minimum" else "less"
        said = f"Invalid value: {shown}: {place} in body should be {sign} than or equal to {error.validator_value}"
    else:
        said = f"Invalid value: {shown}: {place} in body {error.message}"
    return cause(place, said, _REASONS.get(kind, "FieldValueInvalid"))


def cause(field: str, message: str, reason: str = "FieldValueInvalid") -> Cause:
    return {"reason": reason, "message": message, "field": field}


def _rules(value: Any, old: Any, schema: dict, path: str) -> Iterator[Cause]:
    """Yield the failures of ``x-kubernetes-validations``; one on ``oldSelf`` is for updates of a kept value."""
    for rule in schema.get("x-kubernetes-validations", ()) if cel else ():
        if "oldSelf" in rule["rule"] and old is None:
            continue
        names = {"self": value} if old is None else {"self": value, "oldSelf": old}
        if cel.evaluate(rule["rule"], names) is not True:
            shown = (
                json.dumps(_TYPES.get(type(value), "object"))
                if isinstance(value, (dict, list))
                else json.dumps(value)
            )
            said = f"Invalid value: {shown}: {rule.get('message') or 'failed rule: ' + rule['rule']}"
            yield cause(path.lstrip("."), said)
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for key, item in value.items():
            part = schema.get("properties", {}).get(key, others if isinstance(others, dict) else None)
            if part and not (path == "" and key in ("apiVersion", "kind", "metadata")):
                before = old.get(key) if isinstance(old, dict) else None
                yield from _rules(item, before, part, f"{path}.{key}")
    elif isinstance(value, list) and (items := schema.get("items")):
        # Items of an atomic list have no old self; those of a map are found by their keys.
        keys = (
            schema.get("x-kubernetes-list-map-keys")
            if schema.get("x-kubernetes-list-type") == "map"
            else None
        )
        earlier = {tuple(o.get(k) for k in keys): o for o in old or ()} if keys else {}
        for index, item in enumerate(value):
            before = earlier.get(tuple(item.get(k) for k in keys)) if keys else None
            yield from _rules(item, before, items, f"{path}[{index}]")
