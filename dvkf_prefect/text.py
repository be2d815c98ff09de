"""Escaping of untrusted text for terminals, logs and errors."""

from __future__ import annotations

import re

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r"}
# Bidirectional marks reorder the text around them; zero-width characters hide differences.
_HIDDEN = frozenset("\u034f\u115f\u1160\u180e\u3164\uffa0") | {chr(c) for c in (*range(0xFE00, 0xFE0F),)}
_SUSPECT = re.compile(r"[^\x20-\x7e]")
_SUSPECT_IN_LINES = re.compile(r"[^\x20-\x7e\n\t]")


def printable(text: object, *, lines: bool = False) -> str:
    r"""Return ``text`` with control and hidden characters escaped.

    A byte of a file name that is not valid UTF-8 becomes ``\xff``.

    Args:
        text: Any value; its ``str()`` is used.
        lines: Keep line ends and tabs, for multi-line text.

    Example:
        >>> printable("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    shown = str(text)
    # Fast path for plain text, which is the most common.
    if shown.isascii() and shown.isprintable():
        return shown
    return (_SUSPECT_IN_LINES if lines else _SUSPECT).sub(_escape, shown)


def _escape(match: re.Match[str]) -> str:
    import unicodedata

    char = match[0]
    code = ord(char)
    if char in _ESCAPES:
        return _ESCAPES[char]
    if 0xDC80 <= code <= 0xDCFF:  # `os.fsdecode` of an undecodable byte
        return f"\\x{code - 0xDC00:02x}"
    category = unicodedata.category(char)
    if char not in _HIDDEN and category not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
