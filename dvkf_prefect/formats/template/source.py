"""A file with its line numbers, for errors, and limits on its expansion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dvkf_prefect.errors import ParseError, UnsafePathError
from dvkf_prefect.formats import documents

# Limits on the expansion of one file; public dvc.yaml files have some hundreds of stages.
MAX_STAGES = 20_000
MAX_TEXT = 1 << 20
MAX_TEXTS = 64 << 20

Place = tuple["str | int", ...]
"""Keys and indexes that lead to a part of a document."""


class SourceFile:
    """One file of a repository.

    Args:
        data: The file's bytes.
        path: The file's path, relative to the root.
    """

    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self.path = path
        self._stages = self._texts = 0

    def line(self, place: Place) -> int:
        """Return the line of a part, counted from 1; computed only to report an error."""
        return documents.line_of(self._data, place) or 1

    def wrong(self, place: Place, expected: str) -> ParseError:
        """Return the error for an invalid part.

        Args:
            place: Place of the part in the document.
            expected: Text that names the value found and the value expected.
        """
        return ParseError(self.path, expected, line=self.line(place))

    def count_stages(self, count: int, place: Place) -> None:
        """Count the stages that a definition expands to, before they are built.

        Raises:
            ParseError: There are more than `MAX_STAGES`.
        """
        self._stages += count
        if self._stages > MAX_STAGES:
            expected = f"makes more than {MAX_STAGES:,} stages, the limit for a file. Write shorter lists."
            raise self.wrong(place, f"'{place[-1]}' {expected}")

    def count_text(self, size: int, place: Place) -> None:
        """Count the characters of a filled-in text.

        Raises:
            ParseError: The text, or all texts of the file together, are too long.
        """
        self._texts += size
        if size > MAX_TEXT or self._texts > MAX_TEXTS:
            raise self.wrong(
                place,
                f"the resolved values are longer than {MAX_TEXT >> 20} MB, the limit. Use shorter values.",
            )

    def outside(self, place: Place, name: str) -> UnsafePathError:
        """Return the error for a path that leads out of the repository."""
        return UnsafePathError(
            f"{self.path}, line {self.line(place)}: '{name}' leads outside the repository. Give a path "
            "inside it."
        )


def one_of(names: Iterable[Any], *, most: int = 20) -> str:
    """Return names as a text: ``a, b or c``; at most ``most`` of them."""
    words = [str(name) for name in names]
    if len(words) > most:
        return f"{', '.join(words[:most])}, … ({len(words)} in all)"
    *first, last = words or ["nothing"]
    return f"{', '.join(first)} or {last}" if first else last
