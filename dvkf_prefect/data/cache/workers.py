"""Worker processes for work on many small files, for which Python's threads would only wait for each other."""

from __future__ import annotations

import errno
import marshal
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dvkf_prefect.data.cache import _copier
from dvkf_prefect.data.cache._copier import Failure
from dvkf_prefect.data.progress import NAMED, Advance, Part, Steps
from dvkf_prefect.errors import DiskFullError, OutputError
from dvkf_prefect.files import raise_disk_full
from dvkf_prefect.leftovers import held

# Limits of one piece of work, in files and bytes. Another process is worth its start from a few pieces on.
_FILES = 256
_BYTES = 32 << 20
_ALONE = 4 * _FILES
_MOST = 4


def share(
    work: str,
    fixed: Sequence[Any],
    columns: Sequence[Sequence[Any]],
    sizes: Sequence[int] | None = None,
    *,
    workers: int | None = None,
) -> Iterator[tuple[int, list[Any]]]:
    """Run an operation of `_copier` on rows, in this process and in workers.

    Args:
        work: Name of the operation: ``store``, ``transfer`` or ``place``.
        fixed: Arguments that are the same for all rows.
        columns: Arguments by row, sequences of one length.
        sizes: Size of each row in bytes, to balance the pieces; None if unknown.
        workers: Number of processes, this one included; None for one per core, up to four.

    Yields:
        First row and results of each piece; pieces come in any order.
    """
    run = _copier.WORK[work]
    count = len(columns[0])
    pieces = _pieces(count, sizes)
    workers = min(workers or _cores(), len(pieces))
    if count < _ALONE or not sys.executable:
        workers = 1
    todo = deque(pieces)
    lock = threading.Lock()
    done: SimpleQueue[tuple[int, list[Any]]] = SimpleQueue()
    left: list[tuple[int, int]] = []
    stopped = threading.Event()

    def next_piece(*, last: bool = False) -> tuple[int, int] | None:
        # Taken from both ends: neighbouring rows go to one folder, where two processes would wait for each other.
        with lock:
            if stopped.is_set() or not todo:
                return None
            return todo.pop() if last else todo.popleft()

    def request(piece: tuple[int, int]) -> list[Sequence[Any]]:
        return [column[piece[0] : piece[1]] for column in columns]

    def attend(process: subprocess.Popen[bytes]) -> None:
        """Send pieces to one worker; a piece without an answer is left for this process."""
        assert process.stdin and process.stdout
        while piece := next_piece(last=True):
            try:
                message = marshal.dumps((work, tuple(fixed), [_plain(c) for c in request(piece)]))
                process.stdin.write(len(message).to_bytes(4, "little") + message)
                process.stdin.flush()
                head = process.stdout.read(4)
                answer = marshal.loads(  # noqa: S302 - from a process of our own
                    process.stdout.read(int.from_bytes(head, "little"))
                )
            except (OSError, EOFError, ValueError):
                with lock:
                    left.append(piece)
                return
            done.put((piece[0], answer))

    helpers = [_start() for _ in range(workers - 1)]
    threads = [threading.Thread(target=attend, args=(helper,), name="dvkf-crew") for helper in helpers]
    for thread in threads:
        thread.start()
    try:
        while piece := next_piece():
            results: list[Any] = run(*fixed, *request(piece))
            yield piece[0], results
            while not done.empty():
                yield done.get()
        for thread in threads:
            thread.join()
        while not done.empty():
            yield done.get()
        for piece in left:
            yield piece[0], run(*fixed, *request(piece))
    finally:
        # A caller that stops early waits for the pieces at work: their files must not appear after it went on.
        stopped.set()
        for thread in threads:
            thread.join()
        for helper in helpers:
            _end(helper)


@contextmanager
def stepping(
    advance: Advance, keys: Sequence[str], names: Iterable[str], sizes: Iterable[int | None] = repeat(0)
) -> Iterator[Steps]:
    """Report the bytes of large files while this thread copies or hashes them, inside the block.

    Worker processes report complete files only.

    Args:
        advance: Receiver of files and bytes.
        keys: Key of each file, see `_copier.Watch`.
        names: Path of each file for users; read only if the files are few.
        sizes: Size of each file in bytes, None or 0 if unknown.

    Yields:
        The steps; call `Steps.done` for each file.
    """
    few = len(keys) <= NAMED
    parts = (
        {key: Part(name, size or 0) for key, name, size in zip(keys, names, sizes, strict=False)}
        if few
        else {}
    )
    steps = Steps(advance, parts)
    with watched(steps.note):
        yield steps


@contextmanager
def watched(note: Callable[[str, int], None], key: str = "") -> Iterator[None]:
    """Call a function for the bytes of large files that this thread copies inside the block, see `_copier.Watch`.

    Args:
        note: The function.
        key: Key of the file, if there is only one.
    """
    watch = _copier.watch
    before = watch.note, watch.key
    watch.note, watch.key = note, key
    try:
        yield
    finally:
        watch.note, watch.key = before


def _pieces(count: int, sizes: Sequence[int] | None) -> list[tuple[int, int]]:
    if sizes is None:
        return [(i, min(i + _FILES, count)) for i in range(0, count, _FILES)]
    pieces = []
    start = weight = 0
    for i, size in enumerate(sizes):
        weight += size
        if weight >= _BYTES or i + 1 - start >= _FILES:
            pieces.append((start, i + 1))
            start, weight = i + 1, 0
    if start < count:
        pieces.append((start, count))
    return pieces


def _plain(column: Sequence[Any]) -> Sequence[Any]:
    return column if isinstance(column, list) else list(column)


def _cores() -> int:
    return min(
        _MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def _start() -> subprocess.Popen[bytes]:
    # Isolated and without site-packages: a worker needs neither, and starts in a tenth of the time.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _copier.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # The worker inherits the locks of our folders, so that no other process removes them while it works there.
        pass_fds=held(),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin and process.stdout
    with suppress(OSError):
        process.stdin.close()
    process.stdout.close()
    process.wait()


def meaning_of(failure: Failure, file: str, place: str | Path) -> Exception:
    """Return the exception for a failure of the copier.

    Args:
        failure: The failure.
        file: The file that was read.
        place: The store or folder that was written to.
    """
    _, number, detail = failure
    if number == errno.ESTALE:
        return OutputError(
            f"{file} changed while it was read. Stop the process that writes to it, and run the command "
            "again."
        )
    error = OSError(number, os.strerror(number), detail or file)
    try:
        raise_disk_full(error, place)
    except DiskFullError as full:
        return full
    return error


def digest_files(files: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Hash many files.

    Args:
        files: The files.
        sizes: Expected sizes in bytes.

    Yields:
        Each row's number and digest, in any order.

    Raises:
        OSError: A file cannot be read.
    """
    if not files:
        return
    for start, results in share("digest", (), (files,), sizes):
        for row, result in enumerate(results, start):
            if not isinstance(result, str):
                raise meaning_of(result, files[row], files[row])
            yield row, result
