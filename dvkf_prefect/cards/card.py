"""A card, and the key of its timeline."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dvkf_prefect.text import slug

_KEY = 120
_MARK = 10
_WORD = re.compile(r"[a-z0-9]+")
_WORDS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# Keys that end like a key with a digest.
_MARKED = re.compile(rf"-[0-9a-f]{{{_MARK}}}$")

PUSHED = "dvkf.dataset.pushed"
"""Event of a version that arrived on the remote."""


def dataset_id(repository: str, path: str) -> str:
    """Return the resource id of an output in events.

    Args:
        repository: Short name of the repository, as `DvcRepository.name`.
        path: Path of the output, relative to the repository's root.
    """
    return f"dvkf.dataset.{repository}/{path}"


@dataclass(frozen=True)
class Card:
    """Content of a Prefect artifact.

    Attributes:
        key: Key of the timeline, of ``[a-z0-9-]``.
        description: Markdown for the list and the head of the page.
        markdown: Body in markdown.
    """

    key: str
    description: str
    markdown: str


def artifact_key(kind: str, *names: str) -> str:
    """Return the key of a timeline. Different names never share a key.

    Plain names stay readable. A plain name has words of lower-case letters and digits with single dashes; for data, it
    is a path of such words below ``data/``. A label before it ends with two dashes, or with the word ``data`` of such a
    path. All other names are normalised and get a short digest of the original.

    Args:
        kind: Kind of the card, one word: ``data``, ``model``, ``metrics``, ... Other kinds get a digest.
        names: Names from the outermost to the innermost, such as label and path; empty ones are ignored.

    Example:
        >>> artifact_key("data", "", "data/digits/train")
        'data-digits-train'
        >>> artifact_key("model", "shop", "price-of-oil")
        'model-shop--price-of-oil'
        >>> artifact_key("data", "", "data/Train.csv")
        'data-train-csv-992c8fd0ac'
    """
    given = [name for name in names if name]
    plain = _plain_key(kind, given)
    if plain is not None and len(plain) <= _KEY and not _MARKED.search(plain):
        return plain
    words, first = "-".join(word for name in given if (word := slug(name))), slug(kind)
    start = words if f"{words}-".startswith(f"{first}-") else f"{first}-{words}"
    digest = hashlib.sha256("\0".join((kind, *given)).encode(errors="surrogateescape")).hexdigest()[:_MARK]
    return f"{start[: _KEY - _MARK - 1].strip('-')}-{digest}"


def _plain_key(kind: str, names: Sequence[str]) -> str | None:
    """Return a readable key that only these names have; None if they need a digest."""
    if not _WORD.fullmatch(kind):  # kind "a-b" of "c" would have the key of kind "a" of "b-c"
        return None
    *labels, name = names or ("",)
    if len(labels) > 1 or not all(_WORDS.fullmatch(label) for label in labels):
        return None
    if kind != "data":
        if not _WORDS.fullmatch(name) or f"{'--'.join(names)}-".startswith(f"{kind}-"):
            return None
        return f"{kind}-{'--'.join(names)}"
    words = name.split("/")
    # The second "data" of a key begins the path, so neither a label nor a path without a label may contain one.
    if words[0] != "data" or not all(_WORD.fullmatch(word) for word in words):
        return None
    if any("data" in label.split("-") for label in labels) or (not labels and "data" in words[1:]):
        return None
    return "-".join(("data", *labels, *words) if labels else words)
