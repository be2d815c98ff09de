"""Records of the paths that running stages read and write: in DVC's format, plus a lock for each process.

Source of the format: DVC 3.x. While a stage's command runs, DVC writes
``{"read": {path: [{pid, cmd}]}, "write": {path: {pid, cmd}}}`` to ``.dvc/tmp/rwlock``, under the lock ``rwlock.lock``.

A pid is meaningless to other containers that share the disk: an ended process may seem to run, and a running one to
have ended. So each dvkf process also holds a locked folder in ``.dvc/tmp/dvkf-stages`` with the same records, see
`leftovers`. If a process has such a folder, its lock decides; the pid decides only for records of `dvc`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import LockedError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.leftovers import OWNER, OwnedFolder, claim

_MAX_PID = 1 << 31
_MARKS = "dvkf-stages"
_NOTES = "notes"
_own: dict[str, OwnedFolder] = {}


@dataclass(frozen=True, slots=True)
class Blocker:
    """One path that a running stage reads or writes.

    Attributes:
        path: Absolute path, or a url.
        mode: ``read`` or ``write``.
        pid: Process id.
        command: Command line of the process.
    """

    path: str
    mode: str
    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) {self.mode}s {self.path}"


def live_stages(file: Path) -> list[Blocker]:
    """Return the paths that running stages of other processes read and write.

    Args:
        file: DVC's ``rwlock`` file.

    Raises:
        LockedError: The file cannot be parsed.
    """
    noted = _noted(file)
    marked: set[tuple[int, str]] = set()
    live: dict[Blocker, None] = {}
    for mark in _marks(file):
        notes = _read_mark(mark)
        marked.update((note.pid, note.command) for note in notes)
        if str(mark) != _own_mark(file) and _is_held(mark):
            live.update(dict.fromkeys(notes))
    others = [note for note in noted if (note.pid, note.command) not in marked]
    alive = {pid: pid != os.getpid() and is_alive(pid) for pid in {note.pid for note in others}}
    live.update(dict.fromkeys(note for note in others if alive[note.pid]))
    return list(live)


def note_stages(file: Path, *, read: Iterable[str], write: Iterable[str], anew: bool) -> None:
    """Record the paths that this process's stages read and write, and drop the records of ended processes.

    Args:
        file: DVC's ``rwlock`` file; the caller holds its lock.
        read: Absolute paths.
        write: Absolute paths.
        anew: Replace this process's earlier records instead of adding to them.

    Raises:
        LockedError: The file cannot be parsed.
    """
    live = live_stages(file)
    command = " ".join(sys.argv)
    fresh = [
        Blocker(path, mode, os.getpid(), command)
        for mode in ("write", "read")
        for path in _of(mode, read, write)
    ]
    own = list(dict.fromkeys([*(() if anew else _own_notes(file)), *fresh]))
    if own or file.exists():
        if own:
            _mark(file, own)
        write_atomic(file, json.dumps(_document([*live, *own])).encode(), durable=False)
    if not own and (mark := _own.pop(_key(file), None)) is not None:
        mark.release()
    for _ in claim(_folder(file)):
        pass  # removes the folders of ended processes, whose records were just dropped from the file


def _of(mode: str, read: Iterable[str], write: Iterable[str]) -> Iterable[str]:
    return write if mode == "write" else read


def _document(notes: Iterable[Blocker]) -> dict[str, Any]:
    reads: dict[str, list[dict[str, Any]]] = {}
    writes: dict[str, dict[str, Any]] = {}
    for note in notes:
        info = {"pid": note.pid, "cmd": note.command}
        if note.mode == "write":
            writes[note.path] = info
        elif info not in reads.setdefault(note.path, []):
            reads[note.path].append(info)
    return {"read": reads, "write": writes}


def _noted(file: Path) -> list[Blocker]:
    try:
        if not (data := read_description(file)):
            return []
        return _parsed(data)
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise LockedError(
            f"{file} does not list the processes that run stages. Remove it if no dvc runs in this "
            "repository."
        ) from None


def _parsed(data: bytes) -> list[Blocker]:
    modes: dict[str, dict[str, Any]] = json.loads(data)
    notes = [
        Blocker(path, mode, info["pid"], info["cmd"])
        for mode in ("write", "read")
        for path, infos in modes.get(mode, {}).items()
        for info in (infos if isinstance(infos, list) else [infos])
    ]
    if not all(type(n.pid) is int and 0 < n.pid < _MAX_PID and isinstance(n.command, str) for n in notes):
        raise ValueError
    return notes


def _own_notes(file: Path) -> list[Blocker]:
    mark = _own_mark(file)
    return _read_mark(Path(mark)) if mark else []


# -- one locked folder for each running process ----------------------------------------------------------------------


def _key(file: Path) -> str:
    return f"{os.getpid()}:{os.path.abspath(file)}"


def _folder(file: Path) -> str:
    folder = os.path.abspath(file.with_name(_MARKS))
    if os.path.islink(folder):
        raise LockedError(f"{folder} is a link, which dvkf does not follow. Remove it.")
    return folder


def _own_mark(file: Path) -> str | None:
    mark = _own.get(_key(file))
    return None if mark is None else str(mark.path)


def _mark(file: Path, notes: Iterable[Blocker]) -> None:
    key = _key(file)
    if key not in _own:
        _own[key] = OwnedFolder(_folder(file))
    write_atomic(_own[key].path / _NOTES, json.dumps(_document(notes)).encode(), durable=False)


def _marks(file: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(_folder(file)) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _read_mark(mark: Path) -> list[Blocker]:
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _parsed(read_description(mark / _NOTES))
    return []  # not written yet, or just removed


def _is_held(mark: Path) -> bool:
    """Return True if the owner of a folder is running; a shared lock keeps concurrent checks from counting."""
    try:
        descriptor = os.open(mark / OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return True
        return any(is_alive(note.pid) for note in _read_mark(mark))  # this file system has no locks
    else:
        return False
    finally:
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Return True if a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
