r"""Interpolation of ``${…}``: compiled once per definition, filled in once per stage.

Source: DVC 3.x (``dvc/parsing/interpolate.py``). ``${a.b[0].c}`` walks through mappings and lists; ``\${`` is a plain
``${``. A text that consists of one expression becomes the value itself, with its type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any, Protocol

from dvkf_prefect.formats.template.source import MAX_TEXT, Place, SourceFile

_WORD = r"[^.\[\]]+"
# White space belongs to one part only: otherwise a text could match in very many ways.
_SYNTAX = re.compile(rf"{_WORD}(?:\.{_WORD}|\[{_WORD}\]\s*)*")
_SHOWN = 200  # characters of an invalid expression in a message
_PLAIN = (int, float, str, bytes, bool)


@dataclass(frozen=True, slots=True)
class Reference:
    """One ``${…}``.

    Attributes:
        text: Original text.
        path: Keys and indexes to walk through.
        place: Place in the document.
    """

    text: str
    path: tuple[str, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Node:
    """A value from the context.

    Attributes:
        value: The value.
        path: Path in the context; None for a value from the definition itself.
    """

    value: Any
    path: tuple[str, ...] | None


class Values(Protocol):
    """Interface for the lookup of references."""

    source: SourceFile

    def select(self, reference: Reference) -> Node:
        """Return the value of a reference."""

    @property
    def arguments(self) -> Mapping[str, str]:
        """Settings that control how mappings become arguments: ``parsing.bool`` and ``parsing.list``."""


@dataclass(frozen=True, slots=True)
class _Text:
    parts: tuple[str | Reference, ...]

    def fill(self, values: Values, key: str | None) -> Any:
        if len(self.parts) == 1:
            reference = self.parts[0]
            assert isinstance(reference, Reference)
            value = values.select(reference).value
            if key is not None:
                _check(values.source, reference, value, key)
            return value
        texts: list[str] = []
        size = 0
        for part in self.parts:
            texts.append(part if isinstance(part, str) else _written(values, part, key))
            size += len(texts[-1])
            if size > MAX_TEXT:
                break
        place = next(part.place for part in self.parts if isinstance(part, Reference))
        values.source.count_text(size, place)
        return "".join(texts)

    def nodes(self, values: Values) -> Any:
        if len(self.parts) == 1:
            assert isinstance(self.parts[0], Reference)
            return values.select(self.parts[0])
        return self.fill(values, None)


@dataclass(frozen=True, slots=True)
class _Mapping:
    items: tuple[tuple[Any, Any, Place], ...]

    def fill(self, values: Values, key: str | None) -> Any:
        filled: dict[Any, Any] = {}
        for name, value, place in self.items:
            if isinstance(name, _Text):
                name = name.fill(values, key)
                if isinstance(name, (dict, list)):
                    raise values.source.wrong(place, f"a key is a string, not {_kind(name)}")
            filled[name] = fill(value, values, key)
        return filled

    def nodes(self, values: Values) -> Any:
        filled: dict[Any, Any] = {}
        for name, value, place in self.items:
            if isinstance(name, _Text):
                if len(name.parts) == 1:
                    raise values.source.wrong(place, "a key cannot be a single `${}` here")
                name = name.fill(values, None)
            filled[name] = fill_nodes(value, values)
        return filled


@dataclass(frozen=True, slots=True)
class _List:
    items: tuple[Any, ...]

    def fill(self, values: Values, key: str | None) -> Any:
        return [fill(item, values, key) for item in self.items]

    def nodes(self, values: Values) -> Any:
        return [fill_nodes(item, values) for item in self.items]


_COMPILED = (_Text, _Mapping, _List)


def compile_value(value: Any, source: SourceFile, place: Place) -> Any:
    r"""Find the references in a value.

    Args:
        value: Value from the document.
        source: The document.
        place: Place of the value in the document.

    Returns:
        A compiled value if there are references, else the value itself with ``\${`` made ``${``.

    Raises:
        ParseError: A ``${…}`` has invalid syntax.
    """
    if isinstance(value, str):
        return _compile_text(value, source, place) if "${" in value else value
    if isinstance(value, dict):
        items = tuple(
            (compile_value(k, source, (*place, k)), compile_value(v, source, (*place, k)), (*place, k))
            for k, v in value.items()
        )
        if any(isinstance(k, _COMPILED) or isinstance(v, _COMPILED) for k, v, _ in items):
            return _Mapping(items)
        return {k: v for k, v, _ in items}
    if isinstance(value, list):
        parts = tuple(compile_value(v, source, (*place, i)) for i, v in enumerate(value))
        return _List(parts) if any(isinstance(part, _COMPILED) for part in parts) else list(parts)
    return value


def _compile_text(text: str, source: SourceFile, place: Place) -> Any:
    parts: list[str | Reference] = []
    end = 0
    for start, after in _expressions(text):
        whole, inner = text[start:after], text[start + 2 : after - 1]
        if not _SYNTAX.fullmatch(inner):
            raise source.wrong(
                place,
                f"`{whole[:_SHOWN]}`: not an expression; expected a name and keys, such as "
                "`${train.layers[0].size}`. Write `\\${` for a `${` of the shell.",
            )
        if start > end:
            parts.append(text[end:start].replace("\\${", "${"))
        path = inner.replace("[", ".").replace("]", "").split(".")
        parts.append(Reference(whole, tuple(word.strip() for word in path), place))
        end = after
    if not parts:
        return text.replace("\\${", "${")
    if end < len(text):
        parts.append(text[end:].replace("\\${", "${"))
    return _Text(tuple(parts))


def _expressions(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each ``${…}``; none spans lines or follows a backslash."""
    place = brace = line = 0
    while (start := text.find("${", place)) >= 0:
        place = start + 2
        # Search results are reused, so the text is scanned once for any number of `${`.
        if brace < place and (brace := text.find("}", place)) < 0:
            return
        if line < place and (line := text.find("\n", place)) < 0:
            line = len(text)
        if brace < line and text[start - 1 : start] != "\\":
            yield start, brace + 1
            place = brace + 1


def is_interpolated(value: Any) -> bool:
    """Return True if a value contains a ``${…}`` anywhere."""
    if isinstance(value, str):
        return next(_expressions(value), None) is not None
    if isinstance(value, dict):
        return any(is_interpolated(k) or is_interpolated(v) for k, v in value.items())
    return isinstance(value, list) and any(map(is_interpolated, value))


def fill(value: Any, values: Values, key: str | None) -> Any:
    """Return a value of `compile_value` with every reference filled in.

    Args:
        value: The value; one without references is returned unchanged.
        values: Source of the referenced values.
        key: Key of the stage's definition, which restricts the types filled in; None for any type.

    Raises:
        ParseError: A value is missing, or cannot be used there.
    """
    return value.fill(values, key) if isinstance(value, _COMPILED) else value


def fill_nodes(value: Any, values: Values) -> Any:
    """Return a value of `compile_value` with each single reference replaced by a `Node`.

    Raises:
        ParseError: A value is missing.
    """
    return value.nodes(values) if isinstance(value, _COMPILED) else value


def _check(source: SourceFile, reference: Reference, value: Any, key: str) -> None:
    if value is None or isinstance(value, _PLAIN) or (key == "cmd" and isinstance(value, dict)):
        return
    hint = "a string, number or true/false; in `cmd` also a mapping, as arguments"
    raise source.wrong(
        reference.place, f"`{reference.text}` is {_kind(value)} and cannot be filled in here; expected {hint}"
    )


def _kind(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)


def _written(values: Values, reference: Reference, key: str | None) -> str:
    value = values.select(reference).value
    if isinstance(value, str):
        return value
    if key is not None:
        _check(values.source, reference, value, key)
    if isinstance(value, dict):
        settings = values.arguments if key == "cmd" else {}
        try:
            return arguments_of(value, settings)
        except ValueError as error:
            raise values.source.wrong(reference.place, f"`{reference.text}`: {error}") from None
    return written(value)


def written(value: Any) -> str:
    """Return a value as DVC interpolates it into a text.

    Example:
        >>> written(True), written(None), written(1e-5)
        ('true', 'None', '1e-05')
    """
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def arguments_of(values: Mapping[str, Any], settings: Mapping[str, str]) -> str:
    """Format a mapping as command line arguments.

    Args:
        values: The mapping; nested keys get dotted names.
        settings: ``bool``: ``store_true`` (default) or ``boolean_optional``; ``list``: ``nargs`` (default) or
            ``append``.

    Raises:
        ValueError: A list holds a list, or a name is repeated.

    Example:
        >>> arguments_of({"lr": 0.1, "net": {"layers": [1, 2]}, "fast": True, "slow": False, "name": "a b"}, {})
        "--lr 0.1 --net.layers 1 2 --fast --name 'a b'"
    """
    text = ""
    for name, value in _flatten(values, ""):
        if isinstance(value, bool):
            if value:
                text += f"--{name} "
            elif settings.get("bool") == "boolean_optional":
                text += f"--no-{name} "
        elif isinstance(value, str):
            text += f"--{name} {quote(value)} "
        elif isinstance(value, Iterable):
            for i, item in enumerate(value):
                if isinstance(item, str):
                    item = quote(item)
                elif isinstance(item, Iterable):
                    raise ValueError(f"'{name}' has a nested list or a mapping. Write it flat.")
                text += f"{item} " if i and settings.get("list") != "append" else f"--{name} {item} "
        else:
            text += f"--{name} {value} "
    return text.rstrip()


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    stack = [(prefix, iter(values.items()))]
    while stack:
        above, rest = stack[-1]
        for key, value in rest:
            name = f"{above}.{key}" if above else str(key)
            if isinstance(value, Mapping):
                stack.append((name, iter(value.items())))
                break
            if name in seen:
                raise ValueError(f"'{name}' is given twice")
            seen.add(name)
            yield name, value
        else:
            stack.pop()
