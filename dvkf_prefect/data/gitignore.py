"""The `.gitignore` beside each output, which keeps data out of git."""

from __future__ import annotations

from pathlib import Path

from dvkf_prefect.data.digest import write_atomic


def pattern_for(name: str) -> str:
    """Return the line that ignores just ``name`` beside the file, as DVC writes it."""
    escaped = "".join("\\" + c if c in "\\*?[]!#" else c for c in name)
    return "/" + (escaped[:-1] + "\\ " if escaped.endswith(" ") else escaped)


def ignore(path: Path) -> bool:
    """Keep a path out of git; return whether its `.gitignore` changed.

    Raises:
        DiskFullError: There is no room.
    """
    file = path.parent / ".gitignore"
    line = pattern_for(path.name)
    text = file.read_text() if file.exists() else ""
    if line in text.splitlines():
        return False
    if text and not text.endswith("\n"):
        text += "\n"
    write_atomic(file, f"{text}{line}\n".encode())
    return True
