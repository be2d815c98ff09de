"""YAML 1.2 documents: read fast, told of errors by line, rewritten with their comments kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dvkf_prefect.errors import ParseError


def load(data: bytes, name: str) -> Any:
    """Read a document into plain dicts, lists and scalars.

    Args:
        data: The file's bytes.
        name: The file's name for messages.

    Raises:
        ParseError: It is not YAML, or a key stands twice; names the line.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return _reader().load(data)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context or error).splitlines()[0]
        raise ParseError(name, f"not valid YAML: {problem}", line=mark.line + 1 if mark else None) from error
    except (YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ParseError(name, f"not valid YAML: {str(error).splitlines()[0]}") from error


def _reader() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.Resolver = _resolver()
    return yaml


@lru_cache(maxsize=1)
def _resolver() -> Any:
    """Return what tells the type of a scalar: by YAML 1.2, as ruamel's own, which looks that up for each anew."""
    from ruamel.yaml.resolver import VersionedResolver

    class Resolver(VersionedResolver):
        processing_version = (1, 2)

    return Resolver


def load_editable(data: bytes, name: str) -> Any:
    """Read a document for rewriting: comments and order are kept, and every node knows its line.

    Raises:
        ParseError: It is not YAML; names the line.
    """
    from ruamel.yaml.error import YAMLError

    try:
        return _editor().load(data)
    except YAMLError as error:
        load(data, name)  # says which line
        raise ParseError(name, f"not valid YAML: {str(error).splitlines()[0]}") from error


def dump(document: Any) -> bytes:
    """Write a document as DVC does: block style, long texts folded, keys in the order given."""
    stream = io.BytesIO()
    _editor().dump(document, stream)
    return stream.getvalue()


def line_of(data: bytes, path: Sequence[str | int]) -> int | None:
    """Return the line, counted from 1, of the key or item at ``path``; of the nearest one above it if there is none."""
    from ruamel.yaml.error import YAMLError

    try:
        node: Any = _editor().load(data)
    except YAMLError:
        return None
    line: int | None = None
    for step in path:
        try:
            marks: Any = node.lc
            place = marks.item(step) if isinstance(node, list) else marks.key(step)
            node = node[step]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
        line = place[0] + 1
    return line


@lru_cache(maxsize=1)
def _editor() -> Any:
    from ruamel.yaml import YAML

    # As DVC sets it up, long texts folded at 80 columns among the rest.
    yaml = YAML()
    yaml.default_flow_style = False
    return yaml
