"""A file being read, and where in it something is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dvkf_prefect.data import documents
from dvkf_prefect.errors import ParseError, UnsafePathError

Place = tuple["str | int", ...]
"""The keys and indexes that lead to a part of a document."""


class Source:
    """One file of a repository.

    Args:
        data: Its bytes.
        path: Where it lies, relative to the root.
    """

    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self.path = path

    def line(self, place: Place) -> int:
        """Return the line of a part, counted from 1; looked up only when an error has to be told."""
        return documents.line_of(self._data, place) or 1

    def wrong(self, place: Place, expected: str) -> ParseError:
        """Return the error of a part.

        Args:
            place: Where it stands.
            expected: What was found, and what should stand there.
        """
        return ParseError(self.path, expected, line=self.line(place))

    def outside(self, place: Place, name: str) -> UnsafePathError:
        """Return the error of a path that leads out of the repository."""
        return UnsafePathError(
            f"{self.path}, line {self.line(place)}: '{name}' leads out of the repository; give a path inside it"
        )


def one_of(names: Iterable[Any], *, most: int = 20) -> str:
    """Return names as a text: ``a, b or c``; no more than ``most`` of them."""
    words = [str(name) for name in names]
    if len(words) > most:
        return f"{', '.join(words[:most])}, … ({len(words)} in all)"
    *first, last = words or ["nothing"]
    return f"{', '.join(first)} or {last}" if first else last
