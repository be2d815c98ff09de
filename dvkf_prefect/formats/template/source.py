"""A file being read, and where in it something is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dvkf_prefect.errors import ParseError, UnsafePathError
from dvkf_prefect.formats import documents

# What one file may be expanded to; public dvc.yaml have some hundreds of stages.
MAX_STAGES = 20_000
MAX_TEXT = 1 << 20
MAX_TEXTS = 64 << 20

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
        self._stages = self._texts = 0

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

    def count_stages(self, count: int, place: Place) -> None:
        """Count stages that a definition is to be expanded to, before they are made.

        Raises:
            ParseError: They are more than `MAX_STAGES`.
        """
        self._stages += count
        if self._stages > MAX_STAGES:
            expected = (
                f"makes more than {MAX_STAGES:,} stages, the most allowed in a file. Write shorter lists."
            )
            raise self.wrong(place, f"'{place[-1]}' {expected}")

    def count_text(self, size: int, place: Place) -> None:
        """Count the characters of a text that is being filled in.

        Raises:
            ParseError: The text, or those of the file together, are too long.
        """
        self._texts += size
        if size > MAX_TEXT or self._texts > MAX_TEXTS:
            raise self.wrong(
                place,
                f"the values filled in are longer than {MAX_TEXT >> 20} MB, the most allowed. Write less.",
            )

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
