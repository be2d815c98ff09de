"""Values of parameters in the grammar of DVC's ``--set-param``, and their writing into a parameter file.

The grammar is the basic part of hydra's, without sweeps, functions and interpolations:
``[FILE:]NAME=VALUE`` changes a parameter, ``+NAME=VALUE`` adds one, ``++NAME=VALUE`` does either, and ``~NAME`` removes
one.

Sources: dvc/utils/cli_parse.py and dvc/utils/hydra.py of DVC 3,
https://hydra.cc/docs/advanced/override_grammar/basic/.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.formats.dvcfile_edit import write_document
from dvkf_prefect.formats.params import DEFAULT_FILE, flatten, load_values
from dvkf_prefect.text import did_you_mean

_NAME = re.compile(r"[^\s.=:~+\[\]{},'\"]+(?:\.[^\s.=:~+\[\]{},'\"]+)*")
_INT = re.compile(r"[+-]?(?:0|[1-9](?:_?[0-9])*)")
_FLOAT = re.compile(
    r"[+-]?(?:(?:[0-9](?:_?[0-9])*\.(?:[0-9](?:_?[0-9])*)?|\.[0-9](?:_?[0-9])*)(?:e[+-]?[0-9]+)?"
    r"|[0-9](?:_?[0-9])*e[+-]?[0-9]+|inf|nan)",
    re.IGNORECASE,
)
_FUNCTION = re.compile(r"[A-Za-z_]\w*\s*\(")
_CONSTANTS: Mapping[str, Any] = {"null": None, "true": True, "false": False}

Action = Literal["change", "add", "put", "remove"]


@dataclass(frozen=True, slots=True)
class Override:
    """A value for a parameter.

    Attributes:
        file: Parameter file, relative to the root.
        name: Dotted name of the parameter.
        value: Its value; None to remove a parameter of any value.
        action: ``change`` an existing parameter, ``add`` a new one, ``put`` either, ``remove`` it.
        text: The override as written.
    """

    file: str
    name: str
    value: Any
    action: Action
    text: str


def parse_overrides(texts: Iterable[str]) -> tuple[Override, ...]:
    """Read overrides.

    Args:
        texts: Overrides such as ``train.lr=0.2``, ``conf/eval.yaml:+seed=7`` or ``~train.layers``.

    Returns:
        The overrides, in their order.

    Raises:
        ConfigError: One does not follow the grammar.

    Example:
        >>> parse_overrides(["train.layers=[64, 32]"])[0].value
        [64, 32]
    """
    return tuple(map(_parse, texts))


def _parse(text: str) -> Override:
    head, equals, written = text.partition("=")
    file, colon, sign_and_name = head.rpartition(":")
    if not colon:
        file, sign_and_name = DEFAULT_FILE, head
    sign, name = re.fullmatch(r"(\+\+|\+|~)?(.*)", sign_and_name.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    action: Action = {None: "change", "+": "add", "++": "put", "~": "remove"}[sign]  # type: ignore[assignment]
    if not file or not _NAME.fullmatch(name) or not (equals or action == "remove"):
        raise _refused(text, "it is no [FILE:]NAME=VALUE", "Write it as train.lr=0.2.")
    if action == "remove" and equals:
        raise _refused(text, "a removal has no value", f"Write ~{name}.")
    value = _Value(written, text).read() if equals else None
    return Override(posixpath.normpath(file), name, value, action, text)


def apply_overrides(data: bytes, file: str, overrides: Iterable[Override]) -> bytes:
    """Write overrides into a parameter file. Comments and order of a YAML file are kept.

    Args:
        data: The file's bytes.
        file: The file's name.
        overrides: Overrides of this file.

    Returns:
        The file's new bytes.

    Raises:
        ConfigError: The file is neither YAML nor JSON, a changed parameter does not exist, or an added one does.
        ParseError: The file does not parse.
    """
    suffix = posixpath.splitext(file)[1].lower()
    if suffix not in (".yaml", ".yml", ".json", ""):
        raise ConfigError(
            f"'{file}' cannot be overridden: it is neither YAML nor JSON. Change the file and commit it."
        )
    values = (
        json.loads(json.dumps(load_values(data, file)))
        if suffix == ".json"
        else _copied(load_values(data, file))
    )
    for override in overrides:
        _apply(values, override)
    if suffix == ".json":
        return (json.dumps(values, indent=4, ensure_ascii=False) + "\n").encode()
    return write_document(data, file, values)


def _apply(values: dict[Any, Any], override: Override) -> None:
    *parents, last = override.name.split(".")
    node: Any = values
    for part in parents:
        key = _key(node, part)
        there = key is not None and node[key] is not None
        if not there and override.action in ("add", "put") and isinstance(node, dict):
            key = part if key is None else key
            node[key] = {}
        elif not there:
            raise _unknown(override, values)
        node = node[key]
    if not isinstance(node, (dict, list)):
        raise _unknown(override, values)
    key = _key(node, last)
    old = None if key is None else node[key]
    if override.action == "remove":
        if key is None:
            raise _unknown(override, values)
        del node[key]
        return
    if key is None:
        if override.action == "change" or isinstance(node, list):
            raise _unknown(override, values)
        key = last
    elif override.action == "add" and old is not None and not isinstance(override.value, (dict, list)):
        raise _refused(
            override.text,
            f"'{override.name}' exists in {override.file}",
            f"Write {override.name}=VALUE to change it.",
        )
    value = override.value
    # As in hydra, a mapping is merged into the old one.
    if isinstance(old, dict) and isinstance(value, dict):
        if override.action == "change" and not _is_part(value, old):
            raise _refused(
                override.text,
                f"{override.file} has no such key in '{override.name}'",
                f"Write +{override.text}.",
            )
        value = _merged(old, value)
    node[key] = value


def _key(node: Any, part: str) -> Any:
    """Return the key or index of a part of a name; None if it does not exist."""
    if isinstance(node, dict):
        return next((key for key in node if str(key) == part), None)
    if isinstance(node, list) and part.isascii() and part.isdecimal() and int(part) < len(node):
        return int(part)
    return None


def _is_part(new: dict[Any, Any], old: dict[Any, Any]) -> bool:
    """Return True if a mapping has no key that the old one lacks, at any depth."""
    return all(
        key in old
        and (_is_part(value, old[key]) if isinstance(value, dict) and isinstance(old[key], dict) else True)
        for key, value in new.items()
    )


def _merged(old: dict[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    made = dict(old)
    for key, value in new.items():
        before = made.get(key)
        made[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return made


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


class _Value:
    """Reader of one value."""

    def __init__(self, written: str, text: str) -> None:
        self.written = written
        self.text = text
        self.at = 0

    def read(self) -> Any:
        value = self._value("")
        if self.at < len(self.written):
            if self.written[self.at] == ",":
                raise _refused(
                    self.text, "it has several values", "Run once for each value, or write a [list]."
                )
            raise self._wrong()
        return value

    def _value(self, ends: str) -> Any:
        self._skip()
        first = self.written[self.at : self.at + 1]
        if first == "[":
            return self._list()
        if first == "{":
            return self._mapping()
        if first and first in "'\"":
            return self._quoted(first)
        return self._plain(ends)

    def _list(self) -> list[Any]:
        self.at += 1
        items: list[Any] = []
        self._skip()
        while not self._take("]"):
            items.append(self._value(",]"))
            self._skip()
            if not self._take(",") and self.written[self.at : self.at + 1] != "]":
                raise self._wrong()
            self._skip()
        self._skip()
        return items

    def _mapping(self) -> dict[Any, Any]:
        self.at += 1
        items: dict[Any, Any] = {}
        self._skip()
        while not self._take("}"):
            key = self._value(":,}")
            self._skip()
            if isinstance(key, (list, dict)) or not self._take(":"):
                raise self._wrong()
            items[key] = self._value(",}")
            self._skip()
            if not self._take(",") and self.written[self.at : self.at + 1] != "}":
                raise self._wrong()
            self._skip()
        self._skip()
        return items

    def _quoted(self, quote: str) -> str:
        start = self.at + 1
        found = re.compile(rf"(?:[^\\{quote}]|\\.)*{quote}", re.DOTALL).match(self.written, start)
        if found is None:
            raise self._wrong()
        self.at = found.end()
        self._skip()
        return re.sub(rf"\\([\\{quote}])", r"\1", self.written[start : self.at].rstrip()[:-1])

    def _plain(self, ends: str) -> Any:
        start = self.at
        stops = ends or ","
        while self.at < len(self.written) and self.written[self.at] not in stops:
            if self.written[self.at] in "[]{}'\"" and ends:
                raise self._wrong()
            self.at += 1
        text = self.written[start : self.at].strip()
        if "${" in text or _FUNCTION.match(text):
            raise _refused(
                self.text, "functions and interpolations are not computed", "Write the value, or quote it."
            )
        if (not text and ends) or "=" in text:
            raise self._wrong()
        if text.lower() in _CONSTANTS:
            return _CONSTANTS[text.lower()]
        if _INT.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def _take(self, letter: str) -> bool:
        if self.written[self.at : self.at + 1] == letter:
            self.at += 1
            return True
        if self.at >= len(self.written):
            raise self._wrong()
        return False

    def _skip(self) -> None:
        while self.written[self.at : self.at + 1].isspace():
            self.at += 1

    def _wrong(self) -> ConfigError:
        return _refused(
            self.text, f"its value is not valid at character {self.at + 1}", "Quote text: name='a, b'."
        )


def _refused(text: str, why: str, step: str) -> ConfigError:
    return ConfigError(f"override '{text}': {why}. {step}")


def _unknown(override: Override, values: Mapping[str, Any]) -> ConfigError:
    step = (
        "Name one that exists." if override.action == "remove" else f"Write +{override.name}=VALUE to add it."
    ) + did_you_mean(override.name, flatten(values))
    return _refused(override.text, f"{override.file} has no parameter '{override.name}'", step)
