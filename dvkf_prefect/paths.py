"""Validation of untrusted paths: from a manifest, a `.dvc` file, dvc.yaml, an archive or an argument."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from dvkf_prefect.errors import UnsafePathError
from dvkf_prefect.text import did_you_mean

# Folders whose content git and DVC run or read: an output in one of them is code that runs later.
_RESERVED = frozenset({".git", ".dvc", ".hg", ".svn", "git~1"})
# Characters that HFS+ ignores in name comparisons. Source: git, utf8.c, next_hfs_char.
_IGNORED = dict.fromkeys(
    (*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF),
)
MAX_NAME = 255
MAX_PATH = 4095


def is_reserved(path: str) -> bool:
    """Return True if a component of ``path`` names a folder of git or DVC, in any spelling a file system accepts.

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


def find_reserved(relpaths: Sequence[str]) -> str | None:
    """Return the first path with a reserved component, see `is_reserved`, or None.

    A search of the joined text comes first, to avoid a check of each of many paths.
    """
    joined = "\0".join(relpaths)
    lowered = joined.lower()
    if joined.isascii() and not any(name in lowered for name in _RESERVED):
        return None
    return next((path for path in relpaths if is_reserved(path)), None)


def file_meant(root: Path, path: str) -> str:
    """Return a hint at the file of the same folder that is closest to a misspelt one; "" without one.

    Args:
        root: The folder that the path starts from.
        path: The misspelt path.
    """
    folder = os.path.dirname(path)
    with suppress(OSError):
        return did_you_mean(path, [os.path.join(folder, name) for name in os.listdir(root / folder)])
    return ""


def is_within(path: str, folder: str) -> bool:
    """Return True if ``path`` equals ``folder`` or lies in it; ``""`` is the root, which contains all.

    Args:
        path: A posix path.
        folder: Another posix path, relative to the same root.

    Example:
        >>> is_within("data/a.csv", "data"), is_within("data", "data"), is_within("database", "data")
        (True, True, False)
    """
    return not folder or path == folder or path.startswith(folder + "/")


def overlaps(one: str, other: str) -> bool:
    """Return True if two paths are equal, or one lies in the other.

    Example:
        >>> overlaps("data", "data/a.csv"), overlaps("data", "database")
        (True, False)
    """
    return is_within(one, other) or is_within(other, one)


def check_relative(path: str, source: str) -> None:
    """Refuse a path that is not a plain relative one.

    Args:
        path: Posix path.
        source: The file with the path, for the message.

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
    """Refuse a path that is never valid for an output.

    Args:
        path: Posix path, relative to the repository's root.
        source: The file with the path, for the message.

    Raises:
        UnsafePathError: The path leaves the repository or lies in a folder of git or DVC.
    """
    check_relative(path, source)
    if is_reserved(path):
        raise UnsafePathError(
            f"unsafe output: '{path}' in {source} lies in a folder of git or DVC. Choose another path."
        )


def check_parents(root: Path, path: str) -> None:
    """Refuse a path with a parent folder that is a link out of ``root``.

    Args:
        root: The repository's root.
        path: Posix path, relative to ``root``; its last component is not followed.

    Raises:
        UnsafePathError: A parent folder is a link to a place outside ``root`` or inside a folder of git or DVC.
    """
    place = str(root)
    for part in path.split("/")[:-1]:
        place = f"{place}/{part}"
        try:
            mode = os.lstat(place).st_mode
        except OSError:
            return
        if stat.S_ISLNK(mode):
            _check_link(root, place, path)


def check_target(root: Path, path: str) -> None:
    """Refuse a path if a command would write or delete through a link.

    Args:
        root: The repository's root.
        path: Posix path of an output, relative to ``root``.

    Raises:
        UnsafePathError: The path is reserved, a parent folder leads out of ``root``, or the path itself is a link to
            a folder.
    """
    check_output(path, "the repository")
    check_parents(root, path)
    place = root / path
    if place.is_symlink() and place.is_dir():
        raise UnsafePathError(
            f"unsafe output: '{path}' is a link to the folder {os.readlink(place)}. Replace the link by a "
            f"folder."
        )


def check_look(root: Path, path: str) -> None:
    """Refuse to list a folder through a link out of ``root``, which might cover a whole disk.

    Args:
        root: The repository's root.
        path: Posix path of a folder, relative to ``root``.

    Raises:
        UnsafePathError: The path, or a parent folder, is a link to a place outside ``root``.
    """
    check_parents(root, f"{path}/")


@cache
def unreal_devices() -> frozenset[int]:
    """Return the devices of the kernel's virtual files, which may be endless to read."""
    found = set()
    for place in ("/proc", "/sys"):
        with suppress(OSError):
            found.add(os.stat(place).st_dev)
    return frozenset(found)


def find_link(folder: Path) -> Path | None:
    """Return the first link among the object folders of a cache and their parents, or None."""
    store = folder / "files" / "md5"
    for place in (folder, folder / "files", store, folder / "runs", folder / "tmp-dvkf"):
        if place.is_symlink():
            return place
    try:
        with os.scandir(store) as entries:
            return next((Path(entry.path) for entry in entries if entry.is_symlink()), None)
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_own_folder(*folders: Path) -> None:
    """Refuse dvkf's state folders if they are links or contain links, since a clone's git tree may bring them.

    Args:
        folders: Folders that commands write to without asking; they need not exist.

    Raises:
        UnsafePathError: A write to a folder would land elsewhere.
    """
    for folder in folders:
        try:
            if not stat.S_ISLNK(os.lstat(folder).st_mode):
                with os.scandir(folder) as entries:
                    link = next((entry.path for entry in entries if entry.is_symlink()), None)
            else:
                link = str(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if link is not None:
            raise UnsafePathError(f"unsafe state: {link} is a link to {os.readlink(link)}. Remove the link.")


def make_folders(base: str, relpaths: Iterable[str]) -> None:
    """Create a folder, and the parent folders of files below it; refuse a link in place of one of them.

    Args:
        base: The folder; links above it are followed.
        relpaths: Files to be written below it.

    Raises:
        UnsafePathError: A link is in place of a folder; its target is not touched.
        OSError: A folder cannot be created.
    """
    os.makedirs(base, exist_ok=True)
    made: set[str] = {""}
    for relpath in relpaths:
        folder = relpath.rpartition("/")[0]
        if folder in made:
            continue
        start = 0
        while start >= 0:
            start = folder.find("/", start + 1)
            part = folder if start < 0 else folder[:start]
            if part not in made:
                _make_folder(f"{base}/{part}")
                made.add(part)


def _make_folder(place: str) -> None:
    try:
        os.mkdir(place)
    except FileExistsError:
        mode = os.lstat(place).st_mode
        if stat.S_ISLNK(mode):
            raise UnsafePathError(f"unsafe path: {place} is a link. Replace it by a folder.") from None
        if not stat.S_ISDIR(mode):
            raise


def _check_link(root: Path, place: str, path: str) -> None:
    real, base = os.path.realpath(place), os.path.realpath(root)
    if real != base and not real.startswith(base.rstrip("/") + "/"):
        raise UnsafePathError(
            f"unsafe path: '{path}' leaves {root} through the link '{os.path.relpath(place, root)}'. "
            "Replace the link by a folder."
        )
    if is_reserved(os.path.relpath(real, base)):
        raise UnsafePathError(f"unsafe path: '{path}' leads into a folder of git or DVC. Remove the link.")
