"""YAML 1.2 documents: fast reading, errors with line numbers, and rewriting that keeps comments."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dvkf_prefect.errors import ParseError

# Limits of a document from any source. They let every walk through a value below be a plain recursion.
MAX_DEPTH = 100
MAX_VALUES = 1_000_000
# Values that aliases may add. Each alias counts in full: nine lines of aliases can stand for a billion values.
MAX_COPIES = 200_000
# Python itself refuses to write more digits.
MAX_DIGITS = 4000
_MAX_BITS = MAX_DIGITS * 3
_WEIGHT = 64  # characters of a text that count as one more value
_TRACED = 1 << 20  # the largest document, in bytes, in which lines are looked up
_DEEP = re.compile(rb"(?:[-?:][ \t]+){%d}|^[ \t]{%d}" % (MAX_DEPTH // 4, MAX_DEPTH // 2), re.MULTILINE)
_NUL = re.compile(rb"\0|\\(?:0|x00|u0000|U00000000)", re.IGNORECASE)
_ALIAS = re.compile(rb"(?:^|[\s\[{,])\*[^\s*]", re.MULTILINE)
_ANCHOR = re.compile(rb"(?:^|[\s\[{,])&[^\s&]", re.MULTILINE)


def load(data: bytes, name: str) -> Any:
    """Read a document into plain dicts, lists and scalars.

    Args:
        data: The file's bytes.
        name: The file's name for messages.

    Raises:
        ParseError: It is not YAML, a key is repeated, or it exceeds `MAX_DEPTH`, `MAX_VALUES` or another limit; the
            error names the line.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        _check_shape(data, name)
        value = _reader().load(data)
        check_nul(value, data, name)
        return value
    except ParseError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context or error).splitlines()[0]
        raise ParseError(name, f"not valid YAML: {problem}", line=mark.line + 1 if mark else None) from error
    except (YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ParseError(name, f"not valid YAML: {_first_line(error)}") from error
    except Exception as error:
        raise ParseError(name, f"not valid YAML: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _check_shape(data: bytes, name: str) -> None:
    """Refuse a document that is too deep or too large, also by its aliases, before values are built."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        data = data.decode("utf-16", errors="replace").encode()
    check_count(data, name, b"\n", b",")
    brackets = data.count(b"[") + data.count(b"{")
    if brackets > MAX_DEPTH // 2 or _DEEP.search(data) or (_ANCHOR.search(data) and _ALIAS.search(data)):
        _check_events(data, name)


def check_count(data: bytes, name: str, *marks: bytes) -> None:
    """Refuse data with too many values, counted by their separators.

    Raises:
        ParseError: There are more than `MAX_VALUES`.
    """
    if sum(map(data.count, marks)) > MAX_VALUES:
        raise ParseError(name, f"more than {MAX_VALUES:,} values, the limit. Split it.")


def _check_events(data: bytes, name: str) -> None:
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int, int]] = []
    copies = count = 0
    for event in _reader().parse(data):
        if isinstance(event, ScalarEvent):
            size = 1 + len(event.value) // _WEIGHT
            count += size
            if event.anchor:
                sizes[event.anchor] = size
        elif isinstance(event, CollectionStartEvent):
            open_.append((event.anchor, count, copies))
            count += 1
            if len(open_) > MAX_DEPTH:
                raise ParseError(
                    name,
                    f"nested more than {MAX_DEPTH} levels deep. Write it flatter.",
                    line=event.start_mark.line + 1,
                )
        elif isinstance(event, CollectionEndEvent):
            anchor, first, before = open_.pop()
            if anchor:
                sizes[anchor] = count - first + copies - before
        elif isinstance(event, AliasEvent):
            line = event.start_mark.line + 1
            if any(anchor == event.anchor for anchor, _, _ in open_):
                raise ParseError(
                    name, f"`*{event.anchor}` is used inside its own anchor. Write the value out.", line=line
                )
            copies += sizes.get(event.anchor, 0)
            if copies > MAX_COPIES:
                raise ParseError(
                    name,
                    f"its aliases expand to more than {MAX_COPIES:,} values. Use fewer aliases.",
                    line=line,
                )


def load_json(data: bytes, name: str, *, limit: int | None = None) -> Any:
    """Read a JSON document.

    Args:
        data: The file's bytes.
        name: The file's name for messages.
        limit: Maximum number of values; about `MAX_VALUES` if None.

    Raises:
        ParseError: It is not JSON, holds an unpaired surrogate, or is too deep or too large.
    """
    try:
        if limit is None:
            check_count(data, name, b",", b"[")
        value = json.loads(data)
    except ParseError:
        raise
    except json.JSONDecodeError as error:
        said = f"{error.msg} at column {error.colno}" if data.strip() else "the file is empty"
        raise ParseError(name, f"not valid JSON: {said}", line=error.lineno) from error
    except UnicodeDecodeError as error:
        raise ParseError(name, f"not UTF-8 at byte {error.start}. Write it as UTF-8.") from error
    except RecursionError as error:
        raise ParseError(name, f"nested more than {MAX_DEPTH} levels deep. Write it flatter.") from error
    except ValueError as error:
        raise ParseError(name, f"not valid JSON: {_first_line(error)}") from error
    check_value(value, name)
    return value


def check_value(value: Any, name: str) -> None:
    """Refuse a value that other code cannot traverse or serialize.

    Args:
        value: Nested mappings, lists and scalars.
        name: The file's name for messages.

    Raises:
        ParseError: It is nested too deep, or holds a number of too many digits or an unpaired surrogate.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                below += item
                below += item.values()
            elif kind in (list, tuple, set, frozenset):
                below += item
            elif kind is int:
                if item.bit_length() > _MAX_BITS:
                    raise ParseError(
                        name, f"a number of more than {MAX_DIGITS} digits. Write it as a string."
                    )
            elif kind is str and not item.isascii():
                _check_text(item, name)
        if not below:
            return
        level = below
    raise ParseError(name, f"nested more than {MAX_DEPTH} levels deep. Write it flatter.")


def check_nul(value: Any, data: bytes, name: str) -> None:
    """Refuse texts with a NUL: no path, command or option can hold one.

    Args:
        value: The parsed value.
        data: The bytes that it was parsed from, searched first: hardly any can spell a NUL.
        name: The file's name for messages.

    Raises:
        ParseError: A text holds a NUL.
    """
    if not _NUL.search(data):
        return
    level = [value]
    while level:
        if any(isinstance(item, str) and "\0" in item for item in level):
            raise ParseError(name, "a string has a NUL character. Remove it.")
        level = [
            below
            for item in level
            if isinstance(item, (dict, list, tuple, set))
            for below in ([*item, *item.values()] if isinstance(item, dict) else item)
        ]


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ParseError(
            name, f"{text[:60]!r} is not valid Unicode (a lone surrogate). Write it as UTF-8."
        ) from None


def _reader() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.Resolver = _resolver()
    yaml.Constructor = _constructor()
    return yaml


@lru_cache(maxsize=1)
def _constructor() -> Any:
    """Return ruamel's constructor of values, changed to refuse numbers that cannot be written again."""
    from ruamel.yaml.constructor import ConstructorError, SafeConstructor

    class Constructor(SafeConstructor):
        def construct_yaml_int(self, node: Any) -> int:
            value: int = super().construct_yaml_int(node)
            if value.bit_length() > _MAX_BITS:
                problem = f"a number of more than {MAX_DIGITS} digits"
                raise ConstructorError(None, None, problem, node.start_mark)
            return value

        def construct_yaml_omap(self, node: Any) -> Any:
            made: dict[Any, Any] = {}
            yield made
            for pair in super().construct_yaml_omap(node):
                found = pair
            made.update(found)

    Constructor.add_constructor("tag:yaml.org,2002:int", Constructor.construct_yaml_int)
    Constructor.add_constructor("tag:yaml.org,2002:omap", Constructor.construct_yaml_omap)
    return Constructor


@lru_cache(maxsize=1)
def _resolver() -> Any:
    """Return ruamel's resolver of scalar types, fixed to YAML 1.2 to avoid a version lookup for each scalar."""
    from ruamel.yaml.resolver import VersionedResolver

    class Resolver(VersionedResolver):
        processing_version = (1, 2)

    return Resolver


def load_editable(data: bytes, name: str) -> Any:
    """Read a document for rewriting: comments and order are kept, and every node knows its line.

    Raises:
        ParseError: It is not YAML; the error names the line.
    """
    _check_shape(data, name)
    try:
        return _editor().load(data)
    except Exception as error:
        load(data, name)  # raises with the line
        raise ParseError(name, f"not valid YAML: {_first_line(error)}") from error


def dump(document: Any) -> bytes:
    """Serialize a document as DVC does: block style, long texts folded, keys in the order given."""
    stream = io.BytesIO()
    _editor().dump(document, stream)
    return stream.getvalue()


def line_of(data: bytes, path: Sequence[str | int]) -> int | None:
    """Return the line, counted from 1, of the key or item at ``path``, or of its nearest existing ancestor.

    Returns None if the document is not YAML, or too large for a quick lookup.
    """
    if len(data) > _TRACED:
        return None
    try:
        node: Any = _editor().load(data)
    except Exception:  # noqa: BLE001 (another error is being reported already; only its line is missing)
        return None
    line: int | None = None
    for step in path:
        try:
            marks: Any = node.lc
            place = marks.item(step) if isinstance(node, list) else marks.key(step)
            node = node[step]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            break
        if place is None:  # a mapping under a tag
            break
        line = place[0] + 1
    return line


@lru_cache(maxsize=1)
def _editor() -> Any:
    from ruamel.yaml import YAML

    # DVC's settings; long texts are folded at 80 columns.
    yaml = YAML()
    yaml.default_flow_style = False
    return yaml
