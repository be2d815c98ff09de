"""The `.gitignore` beside each output, which keeps data out of git."""

from __future__ import annotations

import os
from pathlib import Path

from dvkf_prefect.data.git import Git
from dvkf_prefect.files import read_description, write_atomic


def pattern_for(name: str) -> str:
    """Return the line that ignores just ``name`` beside the file, as DVC writes it."""
    escaped = "".join("\\" + c if c in "\\*?[]!#" else c for c in name)
    return "/" + (escaped[:-1] + "\\ " if escaped.endswith(" ") else escaped)


def ignore(path: Path) -> bool:
    """Keep a path out of git; return whether its `.gitignore` changed.

    As DVC, a path that other patterns keep out already is left to them.

    Raises:
        DiskFullError: There is no room.
    """
    file = path.parent / ".gitignore"
    line = os.fsencode(pattern_for(path.name))
    data = _read(file)
    if line in data.splitlines() or Git(path.parent).is_ignored(f"./{path.name}"):
        return False
    if data and not data.endswith(b"\n"):
        data += b"\n"
    write_atomic(file, data + line + b"\n")
    return True


def unignore(path: Path) -> bool:
    """Take back what `ignore` wrote; return whether the `.gitignore` changed. One that says nothing else is removed.

    Raises:
        DiskFullError: There is no room.
    """
    file = path.parent / ".gitignore"
    line = os.fsencode(pattern_for(path.name))
    data = _read(file)
    lines = data.splitlines(keepends=True)
    kept = [other for other in lines if other.strip() not in (line, line.strip())]
    if not data or len(kept) == len(lines):
        return False
    if kept:
        write_atomic(file, b"".join(kept))
    else:
        file.unlink()
    return True


def _read(file: Path) -> bytes:
    try:
        return read_description(file)
    except FileNotFoundError:
        return b""
