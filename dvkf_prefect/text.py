"""Text from outside, made safe to show: on a terminal, in a log, in an error."""

from __future__ import annotations

import re
import unicodedata

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r"}
# Bidirectional marks reorder what stands around them; zero-width characters hide differences.
_HIDDEN = frozenset("\u061c\u200b\u200e\u200f\u2028\u2029\ufeff") | {
    chr(c) for c in (*range(0x202A, 0x202F), *range(0x2060, 0x2070))
}
_SUSPECT = re.compile(r"[^\x20-\x7e]")


def printable(text: object, *, lines: bool = False) -> str:
    r"""Return ``text`` with what a terminal would act on, or not show, written as escapes.

    Args:
        text: Anything; its ``str()`` is taken.
        lines: Keep line ends and tabs, for text of several lines.

    Example:
        >>> printable("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    shown = str(text)
    if not _SUSPECT.search(shown):
        return shown
    return "".join(_escape(c, lines) for c in shown)


def _escape(char: str, lines: bool) -> str:
    code = ord(char)
    if 0x20 <= code <= 0x7E or (lines and char in "\n\t"):
        return char
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char not in _HIDDEN and unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
