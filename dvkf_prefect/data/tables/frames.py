"""Tables as pandas frames: read from any revision, written and tracked.

The end of the name sets the format: csv, tsv, json (a list of records), jsonl, parquet or feather. Text may be
compressed (``.gz``, ``.bz2``, ``.xz``, ``.zst``, and ``.zip`` for reading). A directory of parts is one table, in the
order of the paths; names that begin with ``_`` or ``.`` are left out.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.tables.frame_check import (
    LossError,
    check_shape,
    columns_to_read,
    compare,
    expected,
    write_json,
)
from dvkf_prefect.data.verbs.add import add
from dvkf_prefect.data.views.listing import Entry, plain_path
from dvkf_prefect.data.views.reader import View
from dvkf_prefect.errors import ConfigError, DvkfError, OutputChangedError, OutputError, ParseError
from dvkf_prefect.files import raise_disk_full, temporary_beside
from dvkf_prefect.formats.digest import digest_file

if TYPE_CHECKING:
    import pandas as pd

    from dvkf_prefect.formats.outputs import DataVersion

_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".feather": "feather",
}
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "feather")
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
# Errors of readers and decompressors for bytes of another format. A fault of the system is an OSError with an errno.
_UNREADABLE = (ValueError, KeyError, EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
_BINARY = ("parquet", "feather")
# Errors of writers for values that a format cannot hold.
_UNWRITABLE = (ValueError, TypeError, OverflowError, NotImplementedError, AttributeError)


def read_frame(
    repo: Repository | str | os.PathLike[str],
    path: str,
    *,
    rev: str | None = None,
    columns: Sequence[str] | None = None,
    file_format: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Read a table of any revision; missing objects are downloaded into the cache and verified.

    Args:
        repo: Open repository, folder in a repository, or git url.
        path: File, or directory of parts of one table, relative to the root; tracked by DVC or by git.
        rev: Git revision; None for the workspace.
        columns: Columns to return, in this order; parquet and feather read no others.
        file_format: One of `FORMATS`; None to derive it from the name.
        options: Further arguments of pandas' reader: ``{"dtype": {"zip": str}}``.

    Returns:
        The table; the rows of all parts are numbered consecutively.

    Raises:
        OutputNotFoundError: The path does not exist.
        MissingObjectError: The content is neither in the cache nor on the remote.
        ParseError: The content is not of the expected format.
        OutputError: The path is not a table, or its parts have different formats.
        ConfigError: The format needs a package that is not installed.

    Example:
        >>> read_frame(".", "data/train", rev="v1", columns=["label"])["label"].value_counts()
    """
    table = Table.open(repo, path, rev=rev, file_format=file_format)
    return table.read(columns=columns, options=options)


def write_frame(
    repo: Repository | str | os.PathLike[str],
    frame: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    file_format: str | None = None,
    index: bool = False,
    options: Mapping[str, Any] | None = None,
    read_options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> DataVersion:
    """Write a table to a file of the workspace and track it; equal tables give equal bytes.

    The written file is read back before it is tracked, and a table that the format cannot hold is refused. This check
    is skipped with ``options`` but without ``read_options``.

    Args:
        repo: Open repository, or folder in a repository.
        frame: The table.
        path: File to write, relative to the root or absolute. Inside a tracked directory it becomes a part of it.
        file_format: One of `FORMATS`; None to derive it from the name.
        index: Write the frame's index too.
        options: Further arguments of pandas' writer: ``{"float_format": "%.6g"}``.
        read_options: Arguments for reading the table back, as `read_frame`'s ``options``:
            ``{"dtype": {"zip": "str"}}``.
        force: Replace a file whose content is stored nowhere else.

    Returns:
        The recorded version of the table.

    Raises:
        OutputChangedError: The file's content is not in the cache and would be lost; nothing was changed.
        OutputError: The path cannot be tracked, or the format cannot hold the table; the old file was kept.
        ConfigError: The format needs a package that is not installed.
        DiskFullError: The disk is full; the old file was kept.
        LockedError: Another process used the repository for too long.

    Example:
        >>> write_frame(".", frame, "data/train/2024-05.csv.gz")
    """
    opened = repo if isinstance(repo, Repository) else Repository.open(repo)
    relpath = opened.relpath(path)
    kind, compression = format_of(relpath, file_format)
    if compression == "zip":
        raise OutputError(
            f"'{relpath}': .zip files contain their time of creation, so they can be read but not written. "
            "Use .gz."
        )
    dest = opened.root / relpath
    if dest.is_dir():
        raise OutputError(f"'{relpath}' is a directory. Name a file in it.")
    # In one turn: to a checkout of another process, a file that is not tracked yet is an unsaved change.
    with opened.lock(write=[relpath]):
        old = digest_file(dest) if dest.exists() else None
        kept = old is not None and opened.cache.exists(old)
        if old is not None and not kept and not force:
            raise OutputChangedError([relpath])
        dest.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(dest)
        try:
            with open(temporary, "wb") as raw, _compressed(raw, compression) as stream:
                _write(frame, stream, kind, index, options or {}, compression)
            if not options or read_options is not None:
                _read_back(frame, temporary, kind, compression, index, read_options or {})
            os.replace(temporary, dest)
        except OSError as error:
            raise_disk_full(error, dest)
            raise
        except ImportError as error:
            raise _needs(relpath, kind, error) from error
        except (LossError, *_UNWRITABLE) as error:
            if options and not isinstance(error, LossError):
                # Probably an argument that the writer does not accept.
                raise
            raise OutputError(
                f"'{relpath}': {kind} cannot hold this table: {error}. Convert the column, write parquet, or "
                "give read_options for reading it back."
            ) from error
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        try:
            (version,) = add(opened, [relpath])
        except BaseException:
            if old is None:
                dest.unlink()
            elif kept:
                opened.cache.copy_out(old, temporary)
                os.replace(temporary, dest)
            raise
        return version


def format_of(path: str, given: str | None = None) -> tuple[str, str | None]:
    """Return a table's format and compression from its name.

    Args:
        path: Path of the file.
        given: Format that the user gave, None without one.

    Raises:
        OutputError: The name has no known suffix, or the format does not allow compression of the file.
        ConfigError: The given format is unknown.

    Example:
        >>> format_of("data/rows.csv.gz")
        ('csv', 'gzip')
    """
    name = posixpath.basename(path).lower()
    stem, last = posixpath.splitext(name)
    compression = _COMPRESSIONS.get(last)
    suffix = posixpath.splitext(stem)[1] if compression else last
    if given is not None and given not in FORMATS:
        raise ConfigError(f"'{given}' is not a format of tables; expected one of {', '.join(FORMATS)}")
    kind = given or _SUFFIXES.get(suffix)
    if kind is None:
        raise OutputError(
            f"'{path}' has no suffix of a table. Give its format, one of {', '.join(FORMATS)}, or use one of "
            f"{', '.join(_SUFFIXES)}."
        )
    if compression and kind in _BINARY:
        raise OutputError(f"'{path}': {kind} compresses its columns itself. Remove {last}.")
    return kind, compression


class Table:
    """A table of one revision; its files are read by `read`.

    Args:
        view: The revision.
        path: File, or directory of parts.
        file_format: One of `FORMATS`; None to derive it from the names.

    Raises:
        OutputNotFoundError: The path does not exist.
        OutputError: The path is not a table, or its parts have different formats.
    """

    def __init__(self, view: View, path: str, *, file_format: str | None = None) -> None:
        self.view = view
        self.path = plain_path(path)
        top = view.entry(self.path)
        self.parts: list[Entry] = [top]
        if top.is_dir:
            inside = len(self.path) + 1 if self.path else 0
            found = (e for e in view.find(self.path) if not _is_hidden(e.path[inside:]))
            self.parts = sorted(found, key=lambda entry: entry.path)
        if not self.parts:
            raise OutputError(f"'{self.path}' of {view.name} has no files that could be a table")
        self.formats = [format_of(part.path, file_format) for part in self.parts]
        if len(kinds := {kind for kind, _ in self.formats}) > 1:
            raise OutputError(
                f"'{self.path}' of {view.name} holds {' and '.join(sorted(kinds))}; all parts of a table "
                "must have the same format"
            )

    @classmethod
    def open(
        cls,
        repo: Repository | str | os.PathLike[str],
        path: str,
        *,
        rev: str | None = None,
        file_format: str | None = None,
    ) -> Table:
        """Find a table in a repository; see `read_frame`."""
        if isinstance(repo, Repository):
            # Raises if there is no git, or no such revision.
            commit = repo.files(rev).rev if rev is not None else None
            return cls(View(repo, commit, label=rev), path, file_format=file_format)
        from dvkf_prefect.data.views.filesystem import DvkfFileSystem

        return cls(DvkfFileSystem(repo, rev).view(), path, file_format=file_format)

    @property
    def identity(self) -> tuple[tuple[str, str], ...] | None:
        """Identifier of the content that needs no reading; None in the workspace."""
        if any(part.place for part in self.parts):
            return None
        return tuple((part.path, part.digest or part.blob or "") for part in self.parts)

    def read(
        self,
        *,
        columns: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Read the table; see `read_frame`."""
        import pandas as pd

        if len(self.parts) > 1:
            self.view.bring(self.parts)
        frames = [
            self._read_part(part, kind, compression, columns, options or {})
            for part, (kind, compression) in zip(self.parts, self.formats, strict=True)
        ]
        return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)

    def _read_part(
        self,
        part: Entry,
        kind: str,
        compression: str | None,
        columns: Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> pd.DataFrame:
        with self.view.open(part) as file:
            return read_stream(
                file, part.path, self.view.name, kind, compression, columns=columns, options=options
            )


def read_stream(
    file: BinaryIO,
    path: str,
    place: str,
    kind: str,
    compression: str | None,
    *,
    columns: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Read a table from an open file.

    Args:
        file: The file.
        path: Its path, for messages.
        place: Name of the place that holds it, for messages.
        kind: One of `FORMATS`.
        compression: Name of the compression for pandas; None without one.
        columns: Columns to return, in this order.
        options: Further arguments of pandas' reader.

    Raises:
        ParseError: The content is not of the expected format.
        ConfigError: The format needs a package that is not installed.
        OSError: The file cannot be read.
    """
    try:
        return _read(file, kind, compression, columns, options or {})
    except DvkfError:
        raise
    except ImportError as error:
        raise _needs(path, kind, error) from error
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ParseError(f"{path} of {place}", f"cannot be read as {kind}: {error}") from error


def _read(
    file: BinaryIO,
    kind: str,
    compression: str | None,
    columns: Sequence[str] | None,
    options: Mapping[str, Any],
) -> pd.DataFrame:
    import pandas as pd

    wanted = list(columns) if columns is not None else None
    given: dict[str, Any] = dict(options)
    if kind in _BINARY:
        read: Any = pd.read_parquet if kind == "parquet" else pd.read_feather
        return cast("pd.DataFrame", read(file, columns=wanted, **given))
    given.setdefault("compression", compression)
    if kind in ("json", "jsonl"):
        given.setdefault("precise_float", True)
        frame: pd.DataFrame = pd.read_json(file, lines=kind == "jsonl", **given)
    else:
        if kind == "tsv":
            given.setdefault("sep", "\t")
        # The default from pandas 3.1 on.
        if "engine" not in given and tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):
            given.setdefault("float_precision", "round_trip")
        frame = pd.read_csv(file, usecols=wanted, **given)
    return frame if wanted is None else frame[wanted]


def _write(
    frame: pd.DataFrame,
    stream: BinaryIO,
    kind: str,
    index: bool,
    options: Mapping[str, Any],
    compression: str | None,
) -> None:
    given: dict[str, Any] = dict(options)
    if not options:
        check_shape(frame, kind, index)
    if kind == "parquet":
        frame.to_parquet(stream, index=index, **given)
        return
    if kind == "feather":
        (frame.reset_index() if index else frame.reset_index(drop=True)).to_feather(stream, **given)
        return
    given["compression"] = "zstd" if compression == "zstd" else None
    if kind in ("json", "jsonl"):
        rows = frame.reset_index() if index else frame
        if not options:
            write_json(rows, stream, lines=kind == "jsonl")
            return
        rows.to_json(stream, orient="records", lines=kind == "jsonl", **given)
        return
    if kind == "tsv":
        given.setdefault("sep", "\t")
    frame.to_csv(stream, index=index, **given)


def _read_back(
    frame: pd.DataFrame,
    file: Path,
    kind: str,
    compression: str | None,
    index: bool,
    options: Mapping[str, Any],
) -> None:
    """Read a written table back and compare it with the frame.

    Raises:
        LossError: The tables differ.
    """
    wanted = expected(frame, kind, index)
    names = None if options else columns_to_read(wanted, kind)
    with open(file, "rb") as stream:
        try:
            if names is not None and len(names) < len(wanted.columns):
                if not names and not index:
                    return
                wanted = wanted[names]
                got = _read(stream, kind, compression, names, options)
            else:
                got = _read(stream, kind, compression, None, options)
        except _UNREADABLE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise LossError(f"it cannot be read back ({error})") from error
    compare(wanted, got)


@contextmanager
def _compressed(raw: BinaryIO, compression: str | None) -> Iterator[BinaryIO]:
    """Open a compressing stream that stores neither a name nor a time, so that equal tables give equal bytes."""
    made: AbstractContextManager[Any] = nullcontext(raw)
    if compression == "gzip":
        made = gzip.GzipFile("", "wb", 6, raw, mtime=0)
    elif compression == "bz2":
        made = bz2.BZ2File(raw, "wb")
    elif compression == "xz":
        made = lzma.LZMAFile(raw, "wb")  # noqa: SIM115 - entered below
    with made as stream:
        yield stream


def _is_hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _needs(path: str, kind: str, error: ImportError) -> ConfigError:
    package = "pyarrow" if kind in _BINARY else error.name or "zstandard"
    return ConfigError(f"'{path}': {kind} needs the package '{package}': pip install {package} ({error})")
