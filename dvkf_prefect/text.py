"""Escaping of untrusted text for terminals, logs and errors, and hints at misspelt names."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r"}
# Bidirectional marks reorder the text around them; zero-width characters hide differences.
_HIDDEN = frozenset("\u034f\u115f\u1160\u180e\u3164\uffa0") | {chr(c) for c in (*range(0xFE00, 0xFE0F),)}
_SUSPECT = re.compile(r"[^\x20-\x7e]")
_SUSPECT_IN_LINES = re.compile(r"[^\x20-\x7e\n\t]")

JOINER = "\u2060"
"""Word joiner: a character without width."""

# Between the parts of an address that pages link on their own: http:// and www. and mail.
_LINKED = r"(?i)(?<=http)(?=://)|(?<=https)(?=://)|(?<=ftp)(?=://)|(?<=\bwww)(?=\.)|(?<=[\w.+-])(?=@[\w-]+\.)"


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


def markdown(text: object, *, limit: int = 200) -> str:
    r"""Escape a value for markdown: one line of limited length, without markup, and without links where they work.

    A word joiner, which no page shows, parts an address that a page turns into a link: Prefect's V1 pages do not decode
    numeric entities, and its V2 pages link addresses after all escapes are gone.

    Args:
        text: The value.
        limit: Maximum number of characters.

    Example:
        >>> markdown("a|b <c>")
        'a\\|b &lt;c&gt;'
    """
    import html

    line = printable(" ".join(str(text).split()))
    if len(line) > limit:
        line = line[: limit - 1] + "…"
    line = re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(line, quote=False))
    return re.sub(_LINKED, JOINER, line)


def slug(text: str) -> str:
    """Return lower-case letters and digits of a text, with one dash for all else between them; may be empty.

    Example:
        >>> slug("Traffic_Signs 2")
        'traffic-signs-2'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that is closest to a misspelt one, as a sentence after a blank; "" without one.

    The last part of one path, address or dotted name is close, too.

    Example:
        >>> did_you_mean("trian", ["prepare", "train"])
        " Did you mean 'train'?"
    """
    names = dict.fromkeys(known)
    if name in names:
        return ""
    near = nearest(name, names, cutoff=0.65)
    if not near:
        ends = [each for each in names if re.split(r"[./:]", each)[-1] == name]
        near = ends[0] if len(ends) == 1 else ""
    return f" Did you mean '{near}'?" if near else ""


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the known name that is closest to a misspelt one; "" without a similar one.

    Case does not matter.

    Args:
        name: The misspelt name.
        known: The known names.
        cutoff: Least similarity, from 0 to 1.

    Example:
        >>> nearest("trian", ["prepare", "train"])
        'train'
    """
    import difflib  # takes a while to import

    names = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=cutoff)
    return names[near[0]] if near else ""


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
