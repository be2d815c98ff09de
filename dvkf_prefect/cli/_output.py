"""Standard output and error of the command line, safe for terminals.

Names, descriptions, metrics and messages may come from hostile repositories. On a terminal, control and invisible
characters are escaped, as ``git`` and ``ls`` do. Output to a file or a pipe stays unchanged byte by byte, for other
programs. Standard error is always escaped.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from dvkf_prefect.text import printable
from dvkf_prefect.urls import without_secrets

_BYTES = "dvkf-bytes"


class SafeStream(io.TextIOBase):
    """Text stream that escapes control and invisible characters.

    Args:
        stream: Stream that receives the escaped text.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = stream

    def write(self, text: str) -> int:
        """Write a text, and return the number of its characters."""
        self.unescaped.write(printable(text, lines=True))
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:  # type: ignore[override]
        """Write several texts."""
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        """Flush the stream behind it."""
        self.unescaped.flush()

    def close(self) -> None:
        """Leave the stream behind it open. Python 3.13 reports a flush of a closed one when this object is deleted."""

    def isatty(self) -> bool:
        """Return True if the stream behind it is a terminal."""
        return self.unescaped.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the stream behind it."""
        return self.unescaped.fileno()

    def writable(self) -> bool:
        """Return True: the stream is writable."""
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


def unescaped(stream: TextIO) -> TextIO:
    """Return the stream behind a safe stream, for the package's own colours and progress bars."""
    return stream.unescaped if isinstance(stream, SafeStream) else stream


def say(*texts: object, stream: TextIO | None = None, flush: bool = False) -> None:
    """Print one line. On a terminal, line ends inside a text are escaped.

    Args:
        texts: Values to print, separated by blanks.
        stream: Stream to print to; standard output by default.
        flush: Flush the stream after the line.
    """
    out = sys.stdout if stream is None else stream
    line = " ".join(map(str, texts))
    if isinstance(out, SafeStream):
        line = "\t".join(map(printable, line.split("\t")))
    print(line, file=out, flush=flush)


def shown(text: str) -> str:
    """Return a part of a line, with line ends escaped if standard output is a terminal."""
    return printable(text) if isinstance(sys.stdout, SafeStream) else text


def own_lines(text: str) -> str:
    """Remove secrets from a message and indent its further lines, so that none looks like another message."""
    return without_secrets(text).replace("\n", "\n  ")


@contextmanager
def safe_output() -> Iterator[None]:
    """Escape all output inside the context, and print names that are invalid text without failing."""
    codecs.register_error(_BYTES, _as_bytes)
    before = sys.stdout, sys.stderr
    errors = []
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            errors.append((stream, stream.errors))
            stream.reconfigure(errors=_BYTES)
    if sys.stdout is not None and sys.stdout.isatty():
        sys.stdout = SafeStream(sys.stdout)
    if sys.stderr is not None:
        sys.stderr = SafeStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for wrapper, handler in errors:
            with suppress(ValueError):  # it was closed
                wrapper.reconfigure(errors=handler)


def _as_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode the raw bytes of file names unchanged, and any other character as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    made = b"".join(
        bytes([ord(c) - 0xDC00]) if 0xDC80 <= ord(c) <= 0xDCFF else c.encode("ascii", "backslashreplace")
        for c in found
    )
    return made, error.end
