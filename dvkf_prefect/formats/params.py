"""Parameter files in YAML, JSON, TOML and Python: parsing, selection by key, and writing."""

from __future__ import annotations

import ast
import json
import posixpath
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from dvkf_prefect.errors import ParseError
from dvkf_prefect.formats import documents

DEFAULT_FILE = "params.yaml"
_LONGEST_INDEX = 6


def parse_params(data: bytes, name: str) -> dict[str, Any]:
    """Read a parameter file in the format of its suffix, YAML by default.

    Args:
        data: The file's bytes.
        name: The file's name.

    Returns:
        The file's values. Tuples of a Python file become lists, as in dvc.lock. Dates, sets and other types are kept:
        only tracked values have to fit into dvc.lock, see `check_params`.

    Raises:
        ParseError: It does not parse, or is not a mapping.
    """
    values = load_values(data, name)
    return {str(key): _listed(value) for key, value in values.items()}


def check_params(values: Mapping[str, Any], name: str) -> None:
    """Refuse values that dvc.lock cannot hold.

    Args:
        values: Values by key.
        name: The file's name.

    Raises:
        ParseError: A value is not text, number, boolean or null, nor a list or mapping of these.
    """
    for key, value in values.items():
        _check(value, name, str(key))


@lru_cache(maxsize=64)
def load_values(data: bytes, name: str) -> dict[Any, Any]:
    """Read a parameter file's values without conversion; do not modify the shared result.

    Args:
        data: The file's bytes.
        name: The file's name.

    Raises:
        ParseError: It does not parse, or is not a mapping.
    """
    suffix = posixpath.splitext(name)[1].lower()
    values: Any
    if suffix == ".json":
        values = documents.load_json(data, name)
    elif suffix == ".toml":
        values = _parse_toml(data, name)
    elif suffix == ".py":
        try:
            values = _read_body(ast.parse(data, filename=name).body)
        except SyntaxError as error:
            raise ParseError(name, f"not valid Python: {error.msg}", line=error.lineno) from error
        except (ValueError, RecursionError, MemoryError) as error:  # a NUL, or too deep for Python's parser
            raise ParseError(name, f"not valid Python: {str(error) or 'nested too deep'}") from error
        documents.check_value(values, name)
    else:
        values = documents.load(data, name)
    documents.check_nul(values, data, name)
    if not values:
        return {}
    if not isinstance(values, dict):
        raise ParseError(name, "a parameter file is a mapping of names to values")
    return values


def _parse_toml(data: bytes, name: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(data.decode())
    except ValueError as error:
        raise ParseError(name, f"not valid TOML: {error}") from error
    except RecursionError as error:
        raise ParseError(name, "not valid TOML: nested too deeply. Write it flatter.") from error
    documents.check_value(values, name)
    return values


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_listed(item) for item in value]
    return value


def _check(value: Any, name: str, key: str) -> None:
    if isinstance(value, (dict, list)):
        for inner, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check(item, name, f"{key}.{inner}")
        return
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    raise ParseError(
        name,
        f"the parameter '{key}' is a {type(value).__name__}, which dvc.lock cannot store. Write it as a "
        "string, number, list or mapping.",
    )


# Parameters of a Python file, as in DVC: literals assigned at the top, in classes, and to `self` in `__init__`.


def _read_body(body: list[ast.stmt], *, of_self: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _read_body(node.body)
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            found.update(_read_body(node.body, of_self=True))
        elif isinstance(node, ast.AnnAssign) or (isinstance(node, ast.Assign) and len(node.targets) == 1):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            key = _target(target, of_self=of_self)
            if key is not None and node.value is not None:
                try:
                    found[key] = ast.literal_eval(node.value)
                except (
                    ValueError,
                    TypeError,
                    RecursionError,
                    MemoryError,
                ):  # not a literal, or a set of unhashable values
                    continue
    return found


def _target(node: ast.expr, *, of_self: bool) -> str | None:
    if isinstance(node, ast.Name) and not of_self:
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def select(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Select values by dotted keys; the whole file if there are no keys.

    Args:
        values: Values of a file.
        keys: Dotted keys such as ``train.lr`` or ``layers.0``.

    Returns:
        Values by key; missing keys are left out.

    Example:
        >>> select({"train": {"lr": 0.1, "layers": [64, 32]}}, ["train.layers.1", "seed"])
        {'train.layers.1': 32}
    """
    wanted = list(keys)
    if not wanted:
        return dict(values)
    found: dict[str, Any] = {}
    for key in wanted:
        node: Any = values
        for part in key.split("."):
            if isinstance(node, Mapping):
                match = next((k for k in node if str(k) == part), _ABSENT)
                node = _ABSENT if match is _ABSENT else node[match]
            elif isinstance(node, list) and (index := _index(part)) is not None and index < len(node):
                node = node[index]
            else:
                node = _ABSENT
            if node is _ABSENT:
                break
        if node is not _ABSENT:
            found[key] = node
    return found


_ABSENT: Any = object()


def _index(text: str) -> int | None:
    """Return the list index that a part of a key names; None if it is not an index."""
    # `isdigit` accepts ², and `int` refuses very long numbers.
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _LONGEST_INDEX else None


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one mapping of dotted keys.

    Example:
        >>> flatten({"train": {"loss": 0.5, "acc": [1, 2]}})
        {'train.loss': 0.5, 'train.acc': [1, 2]}
    """
    if isinstance(values, Mapping) and values:
        flat: dict[str, Any] = {}
        for key, value in values.items():
            flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {prefix: values} if prefix else {}


def render_params(name: str, values: Mapping[str, Any]) -> bytes:
    """Serialize a parameter file with only the given values, in the format of its suffix.

    Args:
        name: The file's name.
        values: Values by dotted key; the key "" stands for a whole file.

    Returns:
        The file's bytes. In a Python file, code may use a mapping as a dict, as a class, or as a callable that
        returns it.
    """
    document: Any = {}
    for key, value in values.items():
        document = dict(value) if key == "" else _insert(document, key.split("."), value)
    suffix = posixpath.splitext(name)[1].lower()
    if suffix == ".json":
        return (json.dumps(document, indent=2) + "\n").encode()
    if suffix == ".toml":
        return "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in document.items()).encode()
    if suffix == ".py":
        return (_PYTHON + "".join(f"{key} = {_python(value)}\n" for key, value in document.items())).encode()
    return documents.dump(document)


_PYTHON = """class _Values(dict):
    __getattr__ = dict.__getitem__

    def __call__(self):
        return self


"""


def _insert(node: Any, parts: list[str], value: Any) -> Any:
    head, rest = parts[0], parts[1:]
    index = _index(head)
    if index is not None and (isinstance(node, list) or not node):
        items = list(node)
        items += [None] * (index + 1 - len(items))
        items[index] = _insert(items[index] or {}, rest, value) if rest else value
        return items
    return {**node, head: _insert(node.get(head) or {}, rest, value) if rest else value}


def _toml(value: Any) -> str:
    if value is None:  # TOML has no null; this fills list items before a declared one
        return '""'
    if isinstance(value, dict):
        inner = ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items())
        return "{" + inner + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _python(value: Any) -> str:
    if isinstance(value, dict):
        return "_Values({" + ", ".join(f"{k!r}: {_python(v)}" for k, v in value.items()) + "})"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f"float({str(value)!r})"
    return repr(value)
