"""Standard output and error of the command line, made safe for a terminal.

Names, descriptions, metrics and messages come from repositories that others wrote. On a terminal every character that
it would act on, or not show, is written as an escape, as ``git`` and ``ls`` do. What goes into a file or a pipe stays
as it is, byte by byte, so that names can be read by programs; standard error is for people and is always escaped.
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
    """A text stream that escapes what is written to it.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = stream

    def write(self, text: str) -> int:
        """Write text; returns the number of its characters."""
        self.unescaped.write(printable(text, lines=True))
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:  # type: ignore[override]
        """Write several texts."""
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        """Pass on what is held back."""
        self.unescaped.flush()

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self.unescaped.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the stream behind it."""
        return self.unescaped.fileno()

    def writable(self) -> bool:
        """Tell that it can be written to."""
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


def unescaped(stream: TextIO) -> TextIO:
    """Return the stream behind a safe one, for the colours and bars of our own."""
    return stream.unescaped if isinstance(stream, SafeStream) else stream


def say(*texts: object, stream: TextIO | None = None, flush: bool = False) -> None:
    """Print one line; a line end inside a text is shown as an escape where a person reads it.

    Args:
        texts: What is printed, with blanks between.
        stream: Where to; standard output by default.
        flush: Whether it is seen at once.
    """
    out = sys.stdout if stream is None else stream
    line = " ".join(map(str, texts))
    if isinstance(out, SafeStream):
        line = "\t".join(map(printable, line.split("\t")))
    print(line, file=out, flush=flush)


def shown(text: str) -> str:
    """Return a text that is a part of a line: with its line ends escaped where a person reads it."""
    return printable(text) if isinstance(sys.stdout, SafeStream) else text


def own_lines(text: str) -> str:
    """Return a message without secrets whose further lines are indented, so that none looks like one of its own."""
    return without_secrets(text).replace("\n", "\n  ")


@contextmanager
def safe_output() -> Iterator[None]:
    """Escape what is printed within, and print names that are not valid text instead of failing."""
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
    """Encode the bytes of a file name as they are, and anything else as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    made = b"".join(
        bytes([ord(c) - 0xDC00]) if 0xDC80 <= ord(c) <= 0xDCFF else c.encode("ascii", "backslashreplace")
        for c in found
    )
    return made, error.end
