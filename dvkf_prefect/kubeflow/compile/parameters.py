"""DVC's parameters as typed parameters of a KFP run and its tasks.

A stage's specification keeps the structure of its ``params``. Each value becomes a reference ``{"$kfp": [name, kind,
digest]}`` to the KFP parameter that has the value. So the value is passed once, and the pod reads it from there. The
digest guards it: a run that was cloned in KFP's UI with another value has sources and results of the old one, so its
pod refuses the value.

The run has a parameter for each value, and tasks take theirs from it: KFP's "compare runs" reads nothing but
``runtime_config.parameters`` (``frontend/src/lib/v2/CompareUtils.ts:88-125``, ``getParamsTableProps``, 2.17).

KFP passes numbers as doubles and drops the difference of 1 and 1.0. A value that would not survive this is passed as a
string of JSON. The same holds for characters outside Unicode's first plane, which the server's database cannot store,
and for double braces, which KFP and Argo replace.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import math
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dvkf_prefect.errors import StageError

REFERENCE = "$kfp"
# Python types of KFP's parameter types, by kind of a value.
TYPES: dict[str, type] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list": list,
    "dict": dict,
    "json": str,
}
_PARAMS_FILE = "params.yaml"
_EXACT = 2**53
_NAME = 48
_LONGEST = 1024
# Names in the function of a component, see `components`.
_RESERVED = re.compile(r"(spec|run|run_id|outputs|result|metrics|run_in_pod|(upstream|model)_\d+)")


class Leaf(NamedTuple):
    """One value of a stage's parameters.

    Attributes:
        file: Parameters file, relative to the root.
        keys: Dotted key in dvc.yaml, then the keys below it.
        kind: Kind of the value, a key of `TYPES`.
        value: Value of the KFP parameter.
    """

    file: str
    keys: tuple[str, ...]
    kind: str
    value: Any

    @property
    def text(self) -> str:
        """Value as JSON; with the other attributes it identifies the leaf."""
        return json.dumps(self.value)

    @property
    def identity(self) -> tuple[str, tuple[str, ...], str, str]:
        """Hashable form."""
        return self.file, self.keys, self.kind, self.text


def leaves_of(params: Mapping[str, Mapping[str, Any]]) -> list[Leaf]:
    """Return the values that can be KFP parameters, in order; long ones are left out.

    Args:
        params: Parameters of a stage, see `StepSpec.params`.

    Example:
        >>> [(leaf.keys, leaf.kind) for leaf in leaves_of({"params.yaml": {"train": {"lr": 0.1, "layers": [64, 8]}}})]
        [(('train', 'lr'), 'float'), (('train', 'layers'), 'list')]
    """
    return [leaf for file, values in params.items() for leaf in _walk(file, (), values)]


def _walk(file: str, keys: tuple[str, ...], values: Mapping[str, Any]) -> Iterator[Leaf]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value and REFERENCE not in value:
            yield from _walk(file, (*keys, key), value)
        elif (leaf := _leaf(file, (*keys, key), value)) is not None:
            yield leaf


def _leaf(file: str, keys: tuple[str, ...], value: Any) -> Leaf | None:
    kind = type(value).__name__
    if kind not in TYPES or not _is_exact(value):
        # json.dumps escapes everything outside ASCII.
        kind, value = "json", json.dumps(value).replace("{{", "{\\u007b")
    leaf = Leaf(file, keys, kind, value)
    return leaf if len(leaf.text) <= _LONGEST else None


def _is_exact(value: Any, *, inside: bool = False) -> bool:
    """Return True if a value passes KFP's JSON, protobuf and database unchanged."""
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return abs(value) < _EXACT
    if isinstance(value, float):
        # Inside a list nothing says that 1 was 1.0, and JSON's 0 has no sign.
        is_negative_zero = value == 0 and math.copysign(1, value) < 0
        return math.isfinite(value) and not is_negative_zero and not (inside and value.is_integer())
    if isinstance(value, str):
        return "{{" not in value and all(" " <= c < "\ud800" or "\ue000" <= c <= "\uffff" for c in value)
    if isinstance(value, Sequence):
        return all(_is_exact(each, inside=True) for each in value)
    if isinstance(value, Mapping):
        return all(
            isinstance(k, str) and _is_exact(k) and _is_exact(v, inside=True) for k, v in value.items()
        )
    return value is None and inside


def parameter_names(leaves: Collection[Leaf], avoid: Collection[str] = ()) -> dict[tuple[Any, ...], str]:
    """Return a unique KFP parameter name for each leaf, by its `Leaf.identity`.

    Args:
        leaves: Leaves of all stages of a run.
        avoid: Names of the components' artifacts.

    Returns:
        Python identifiers as close to the dotted keys as possible: ``train.lr`` is ``train_lr``. The name of another
        file than params.yaml is put in front. The names depend on the set of the leaves, not on their order.
    """
    every = sorted({leaf.identity: leaf for leaf in leaves}.items())
    slugs = {identity: _slug(leaf) for identity, leaf in every}
    counts: dict[str, int] = {}
    for slug in slugs.values():
        counts[slug] = counts.get(slug, 0) + 1
    names = {
        identity: slug
        for identity, slug in slugs.items()
        if counts[slug] == 1
        and not keyword.iskeyword(slug)
        and not _RESERVED.fullmatch(slug)
        and slug not in avoid
    }
    taken = {*names.values(), *avoid}
    for identity, slug in slugs.items():
        if identity not in names:
            mark = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
            name = next(n for size in range(4, 65) if (n := f"{slug}_{mark[:size]}") not in taken)
            names[identity] = name
            taken.add(name)
    return names


def _slug(leaf: Leaf) -> str:
    parts = [key for key in leaf.keys if key]
    if leaf.file != _PARAMS_FILE:
        parts.insert(0, posixpath.splitext(leaf.file)[0])
    return identifier(".".join(parts))


def identifier(text: str) -> str:
    """Return a text as an identifier of Python, of at most 48 characters.

    Example:
        >>> identifier("data/clean.csv")
        'data_clean_csv'
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:_NAME].strip("_")
    return slug if slug[:1].isalpha() else f"p_{slug}".rstrip("_")


def with_references(
    params: Mapping[str, Mapping[str, Any]], names: Mapping[tuple[Any, ...], str]
) -> dict[str, Any]:
    """Return a stage's parameters with a reference in place of each value that has a name.

    Args:
        params: Parameters of the stage.
        names: Names of KFP parameters by the identity of their leaf.
    """
    return {file: _referring(file, (), values, names) for file, values in params.items()}


def _referring(
    file: str, keys: tuple[str, ...], values: Mapping[str, Any], names: Mapping[tuple[Any, ...], str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value and REFERENCE not in value:
            found[key] = _referring(file, (*keys, key), value, names)
            continue
        leaf = _leaf(file, (*keys, key), value)
        if leaf is not None and (name := names.get(leaf.identity)):
            found[key] = {REFERENCE: [name, leaf.kind, _digest(value)]}
        elif isinstance(value, Mapping) and REFERENCE in value:
            found[key] = {REFERENCE: None, "value": value}
        else:
            found[key] = value
    return found


def resolved(
    params: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Any],
    stage: str,
    *,
    changed: set[str] | None = None,
) -> dict[str, Any]:
    """Return a stage's parameters with the values of the task's KFP parameters.

    Args:
        params: Result of `with_references`.
        given: Values of the task's KFP parameters by name.
        stage: Address of the stage, for messages.
        changed: None refuses other values than those of the compilation. Otherwise the files of such values are added:
            the stages of an exported pipeline look for results by their values, and record them so.

    Raises:
        StageError: A value is not the one that the run was compiled for, or not of its type.
    """
    return {file: _resolved(file, values, given, stage, changed) for file, values in params.items()}


def _resolved(
    where: str, values: Mapping[str, Any], given: Mapping[str, Any], stage: str, changed: set[str] | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        place = f"{where}:{key}" if ":" not in where else f"{where}.{key}"
        if not isinstance(value, Mapping):
            found[key] = value
        elif REFERENCE not in value:
            found[key] = _resolved(place, value, given, stage, changed)
        elif value[REFERENCE] is None:
            found[key] = value["value"]
        else:
            name, kind, digest = value[REFERENCE]
            try:
                found[key] = _restored(kind, given[name])
            except (KeyError, ValueError, TypeError) as error:
                raise StageError(
                    f"stage '{stage}': the KFP parameter '{name}' ({place}) is not a valid {kind}. "
                    "Run the pipeline with dvkf."
                ) from error
            if _digest(found[key]) == digest:
                continue
            if changed is None:
                raise StageError(
                    f"stage '{stage}': the KFP parameter '{name}' is {given[name]!r}, but the run was made for "
                    f"another value of {place}. Change {place.partition(':')[0]} and run the pipeline with dvkf: "
                    "the sources and results of this run belong to its own values."
                )
            changed.add(place.partition(":")[0])
    return found


def _restored(kind: str, value: Any) -> Any:
    if kind == "json":
        return json.loads(value)
    restored = TYPES[kind](value)
    return _whole(restored) if kind in ("list", "dict") else restored


def _whole(value: Any) -> Any:
    """Return a value with integers in place of whole doubles, see `_is_exact`."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def default_parameters(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run, as ``runtime_config.parameters`` takes them.

    Args:
        pipeline: Compiled pipeline, with or without a platform's part.
    """
    spec = pipeline.get("pipeline_spec", pipeline)
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    return {
        name: int(about["defaultValue"])
        if about["parameterType"] == "NUMBER_INTEGER"
        else about["defaultValue"]
        for name, about in declared.items()
    }
