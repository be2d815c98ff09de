"""Rules for paths that come from outside: a manifest, a `.dvc` file, dvc.yaml, an archive or an argument."""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path

from dvkf_prefect.errors import UnsafePathError

# Folders that hold what git and DVC run or read; an output in one of them is code that runs later.
_RESERVED = frozenset({".git", ".dvc", ".hg", ".svn", "git~1"})
# Characters that HFS+ drops when it compares names. Source: git, utf8.c, next_hfs_char.
_IGNORED = dict.fromkeys(
    (*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF),
)
MAX_NAME = 255
MAX_PATH = 4095


def is_reserved(path: str) -> bool:
    """Return whether a component of ``path`` names a folder of git or DVC, in any spelling a file system accepts.

    Args:
        path: Posix path, relative to the repository's root.

    Source of the spellings: git, path.c, ``is_ntfs_dotgit`` and utf8.c, ``is_hfs_dotgit``.

    Example:
        >>> is_reserved("data/.GIT/hooks"), is_reserved("data/.github")
        (True, False)
    """
    for part in path.replace("\\", "/").split("/"):
        if part in _RESERVED:
            return True
        if part[:1] not in (".", "g", "G", "\u200c", "\u200d", "\u200e", "\u200f") and part.isascii():
            continue
        plain = (
            unicodedata.normalize("NFKC", part).translate(_IGNORED).partition(":")[0].rstrip(". ").casefold()
        )
        if plain in _RESERVED:
            return True
    return False


def check_relative(path: str, source: str) -> None:
    """Refuse a path that is not a plain relative one.

    Args:
        path: Posix path.
        source: The file that names it, for the message.

    Raises:
        UnsafePathError: The path is empty, absolute, too long, or has ``.``, ``..``, an empty part or a NUL.
    """
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise UnsafePathError(f"unsafe path: {path!r} in {source}. Use a plain path below its folder.")
    try:
        size = len(os.fsencode(path))
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError:
        raise UnsafePathError(f"unsafe path: {path!r} in {source} is not valid text. Rename it.") from None
    if size > MAX_PATH or longest > MAX_NAME:
        raise UnsafePathError(
            f"path too long: '{path[:60]}...' in {source}. Use names of at most {MAX_NAME} bytes."
        )


def check_output(path: str, source: str) -> None:
    """Refuse a path that no output may have, whatever lies on disk.

    Args:
        path: Posix path, relative to the repository's root.
        source: The file that names it, for the message.

    Raises:
        UnsafePathError: The path leaves the repository or lies in a folder of git or DVC.
    """
    check_relative(path, source)
    if is_reserved(path):
        raise UnsafePathError(
            f"unsafe output: '{path}' in {source} lies in a folder of git or DVC. Choose another path."
        )


def check_parents(root: Path, path: str) -> None:
    """Refuse a path that a link in one of its parent folders leads out of ``root``.

    Args:
        root: The repository's root.
        path: Posix path, relative to ``root``; its last component is not followed.

    Raises:
        UnsafePathError: A parent folder is a link to a place outside ``root`` or inside a folder of git or DVC.
    """
    parent = os.path.dirname(path)
    if not parent:
        return
    place = str(root)
    for part in parent.split("/"):
        place = f"{place}/{part}"
        try:
            mode = os.lstat(place).st_mode
        except OSError:
            return
        if not stat.S_ISLNK(mode):
            continue
        real, base = os.path.realpath(place), os.path.realpath(root)
        if real != base and not real.startswith(base.rstrip("/") + "/"):
            raise UnsafePathError(
                f"unsafe path: '{path}' leaves {root} through the link '{os.path.relpath(place, root)}'. "
                "Replace the link by a folder."
            )
        if is_reserved(os.path.relpath(real, base)):
            raise UnsafePathError(
                f"unsafe path: '{path}' leads into a folder of git or DVC. Remove the link."
            )
