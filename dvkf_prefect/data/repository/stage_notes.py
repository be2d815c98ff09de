"""The paths that stages read and write while their commands run: noted as DVC does, and told by a lock.

Source of the format: while the command of a stage runs DVC notes in ``.dvc/tmp/rwlock``, under the lock
``rwlock.lock``, ``{"read": {path: [{pid, cmd}]}, "write": {path: {pid, cmd}}}``.

A number tells nothing of processes in other containers that share the disk: one that is gone may seem to run, and
block everybody, one that runs may seem to be gone. So each process of ours also holds a folder in
``.dvc/tmp/dvkf-stages`` with the same notes, see `leftovers`. Where there is such a folder, its lock decides; only the
notes of a `dvc` are told by their number.
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
    """A process that runs the command of a stage.

    Attributes:
        path: What it reads or writes, absolute, or a url.
        mode: ``read`` or ``write``.
        pid: Its number.
        command: Its command line.
    """

    path: str
    mode: str
    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) {self.mode}s {self.path}"


def live_stages(file: Path) -> list[Blocker]:
    """Return what commands of stages that run now read and write, those of this process left out.

    Args:
        file: DVC's ``rwlock`` file.

    Raises:
        LockedError: It does not say.
    """
    noted = _noted(file)
    told: set[tuple[int, str]] = set()
    live: dict[Blocker, None] = {}
    for mark in _marks(file):
        notes = _read_mark(mark)
        told.update((note.pid, note.command) for note in notes)
        if str(mark) != _own_mark(file) and _is_held(mark):
            live.update(dict.fromkeys(notes))
    others = [note for note in noted if (note.pid, note.command) not in told]
    alive = {pid: pid != os.getpid() and is_alive(pid) for pid in {note.pid for note in others}}
    live.update(dict.fromkeys(note for note in others if alive[note.pid]))
    return list(live)


def note_stages(file: Path, *, read: Iterable[str], write: Iterable[str], anew: bool) -> None:
    """Write what this process's stages read and write; notes of processes that are gone are dropped.

    Args:
        file: DVC's ``rwlock`` file; the caller holds the lock that goes with it.
        read: Absolute paths.
        write: Absolute paths.
        anew: Whether these take the place of what this process noted before.

    Raises:
        LockedError: The file does not say who runs stages.
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
        pass  # what they said is in the file no more


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
            f"{file} does not say who runs stages; remove it when no dvc runs in this repository"
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


# -- the folders whose locks tell who runs ---------------------------------------------------------------------------


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
    """Tell whether the process that made a mark is there; others that look at the same time do not count."""
    try:
        descriptor = os.open(mark / OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return True
        return any(is_alive(note.pid) for note in _read_mark(mark))  # locks do not work here
    else:
        return False
    finally:
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
