"""Tables as pandas frames: read from any revision, written and tracked.

The format is what the name ends with: csv, tsv, json (a list of records), jsonl, parquet, feather; text also compressed
(``.gz``, ``.bz2``, ``.xz``, ``.zst``, to read also ``.zip``). A directory of parts is one table, in the order of their
paths; names that begin with ``_`` or ``.`` are no parts.
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

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.tables.frame_check import (
    LossError,
    check_shape,
    columns_to_read,
    compare,
    expected,
    write_json,
)
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
# What readers and decompressors say of bytes that are something else; of the system's own faults OSError has a number.
_UNREADABLE = (ValueError, KeyError, EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
_BINARY = ("parquet", "feather")
# What writers say of values that a format cannot hold.
_UNWRITABLE = (ValueError, TypeError, OverflowError, NotImplementedError, AttributeError)


def read_frame(
    repo: Repository | str | os.PathLike[str],
    path: str,
    *,
    rev: str | None = None,
    columns: Sequence[str] | None = None,
    file_format: str | None = None,
    options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
) -> pd.DataFrame:
    """Read a table of any revision; what of it is not in the cache is brought there, verified.

    Args:
        repo: The repository: open, or a folder in it, or a git url.
        path: A file, or a directory of parts that is one table; relative to the root. Tracked by DVC or by git.
        rev: A git revision; None for the workspace.
        columns: Only these, in this order; of parquet and feather no others are read.
        file_format: One of `FORMATS`; None goes by the name.
        options: More arguments of pandas' reader: ``{"dtype": {"zip": str}}``.
        jobs: How many transfers at once.

    Returns:
        The table; the rows of parts are numbered through.

    Raises:
        OutputNotFoundError: There is no such path.
        MissingObjectError: The content is neither in the cache nor on the remote.
        ParseError: It is not what its name says.
        OutputError: It is no table, or the parts are not of one format.
        ConfigError: The format needs a package that is not installed.

    Example:
        >>> read_frame(".", "data/train", rev="v1", columns=["label"])["label"].value_counts()
    """
    table = Table.open(repo, path, rev=rev, file_format=file_format)
    return table.read(columns=columns, options=options, jobs=jobs)


def write_frame(
    repo: Repo | str | os.PathLike[str],
    frame: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    file_format: str | None = None,
    index: bool = False,
    options: Mapping[str, Any] | None = None,
    read_options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> DataVersion:
    """Write a table to a file of the workspace, and track it; the same table is the same bytes each time.

    What was written is read back before it is tracked: a table that the format cannot hold is refused. With ``options``
    of the writer and no ``read_options`` this check is left out.

    Args:
        repo: The repository: open, or a folder in it.
        frame: The table.
        path: The file, relative to the root or absolute. One in a tracked directory becomes a part of that.
        file_format: One of `FORMATS`; None goes by the name.
        index: Write the frame's index too.
        options: More arguments of pandas' writer: ``{"float_format": "%.6g"}``.
        read_options: How the table will be read, as `read_frame`'s ``options``: ``{"dtype": {"zip": "str"}}``.
        force: Replace a file whose content is nowhere else.

    Returns:
        The version recorded for it.

    Raises:
        OutputChangedError: The file's content is in no cache and would be lost; nothing was touched.
        OutputError: The path cannot be tracked, or the format cannot hold the table; what was there is there still.
        ConfigError: The format needs a package that is not installed.
        DiskFullError: There is no room; what was there is there still.

    Example:
        >>> write_frame(".", frame, "data/train/2024-05.csv.gz")
    """
    opened = repo if isinstance(repo, Repo) else Repo.open(repo)
    relpath = opened.relpath(path)
    kind, compression = format_of(relpath, file_format)
    if compression == "zip":
        raise OutputError(
            f"'{relpath}': .zip holds the time it was made; it can be read, not written: use .gz"
        )
    dest = opened.root / relpath
    if dest.is_dir():
        raise OutputError(f"'{relpath}' is a directory; name a file in it")
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
            # An argument that the writer does not know, for instance.
            raise
        raise OutputError(
            f"'{relpath}': {kind} cannot hold this table: {error}. Convert the column, write parquet, "
            "or say by read_options how it will be read."
        ) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    try:
        (version,) = opened.add([relpath])
    except BaseException:
        if old is None:
            dest.unlink()
        elif kept:
            opened.cache.copy_out(old, temporary)
            os.replace(temporary, dest)
        raise
    return version


def format_of(path: str, given: str | None = None) -> tuple[str, str | None]:
    """Return a table's format and compression by its name.

    Args:
        path: The file.
        given: Its format, where that is told.

    Raises:
        OutputError: The name ends with no format that is known, or the format cannot be compressed from outside.
        ConfigError: The format that is given is none.

    Example:
        >>> format_of("data/rows.csv.gz")
        ('csv', 'gzip')
    """
    name = posixpath.basename(path).lower()
    stem, last = posixpath.splitext(name)
    compression = _COMPRESSIONS.get(last)
    suffix = posixpath.splitext(stem)[1] if compression else last
    if given is not None and given not in FORMATS:
        raise ConfigError(f"'{given}' is no format of tables; choose of {', '.join(FORMATS)}")
    kind = given or _SUFFIXES.get(suffix)
    if kind is None:
        raise OutputError(
            f"'{path}' is no table by its name; name its format, one of {', '.join(FORMATS)}, or end it with "
            f"{', '.join(_SUFFIXES)}"
        )
    if compression and kind in _BINARY:
        raise OutputError(f"'{path}': {kind} compresses its columns itself; leave {last} off")
    return kind, compression


class Table:
    """A table of one revision: its files, not read yet.

    Args:
        view: The revision.
        path: The file, or the directory of parts.
        file_format: One of `FORMATS`; None goes by the names.

    Raises:
        OutputNotFoundError: There is no such path.
        OutputError: It is no table, or the parts are not of one format.
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
                f"'{self.path}' of {view.name} holds {' and '.join(sorted(kinds))}; "
                "parts of one table are of one format"
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
            # Says so where there is no git, or no such revision.
            commit = repo.files(rev).rev if rev is not None else None
            return cls(View(repo, commit, label=rev), path, file_format=file_format)
        from dvkf_prefect.data.views.filesystem import DvkfFileSystem

        return cls(DvkfFileSystem(repo, rev).view(), path, file_format=file_format)

    @property
    def identity(self) -> tuple[tuple[str, str], ...] | None:
        """What tells its content from another's without reading it; None in the workspace."""
        if any(part.place for part in self.parts):
            return None
        return tuple((part.path, part.digest or part.blob or "") for part in self.parts)

    def read(
        self,
        *,
        columns: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        jobs: int | None = None,
    ) -> pd.DataFrame:
        """Read it; see `read_frame`."""
        import pandas as pd

        if len(self.parts) > 1:
            self.view.bring(self.parts, jobs=jobs)
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
            try:
                return _read(file, kind, compression, columns, options)
            except DvkfError:
                raise
            except ImportError as error:
                raise _needs(part.path, kind, error) from error
            except _UNREADABLE as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise ParseError(
                    f"{part.path} of {self.view.name}", f"cannot be read as {kind}: {error}"
                ) from error


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
        # From pandas 3.1 on that is so by itself.
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
    """Read what was written, and compare.

    Raises:
        LossError: Another table is read.
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
    """Compress what is written, without a name or a time in it."""
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
