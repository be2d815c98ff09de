"""Reports of checked tables, stored by content: each is named by the digests of file and schema, and the format.

The reports are files of a directory that DVC tracks beside the data, so each revision has those of its own data. Equal
bytes under one schema have one report, in every clone, and need no second check.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.tables.frames import format_of
from dvkf_prefect.data.views.listing import Entry
from dvkf_prefect.data.views.reader import View
from dvkf_prefect.errors import MissingObjectError, OutputError, OutputNotFoundError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.formats.digest import digest_file

FOLDER = "quality-reports"
"""Default directory of the reports, relative to the repository's root."""

_FORMAT = 1
_NAME = re.compile(r"([0-9a-f]{32})\.[0-9a-f]{32}\.[a-z-]+\.json")


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check of a schema that a table fails.

    Attributes:
        column: Name of the column; empty for a check of the whole table.
        check: The check, such as ``greater_than(0)``.
        count: Number of failures: of values, or of missing and unknown columns.
        rows: First rows that fail, counted from 0; empty for a failure of the whole column or table.
        values: First values that fail, as text.
    """

    column: str
    check: str
    count: int
    rows: tuple[int, ...] = ()
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = f": {', '.join(self.values)}" if self.values else ""
        more = ", …" if self.values and self.count > len(self.values) else ""
        at = f"column '{self.column}' " if self.column else ""
        return f"{at}{self.check}, {self.count} failed{shown}{more}"


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Result of a check of a table. It follows from the file's bytes, its format and the schema.

    Attributes:
        digest: md5 of the file.
        schema: The schema, as it was named at the first check.
        schema_digest: md5 of the schema.
        form: Format of the table, such as ``csv`` or ``csv-gzip``; empty if the file's name has none.
        checker: Library and version of the first check.
        rows: Number of rows; None if the file is no table.
        columns: Names of its columns.
        failed: The failed checks.
        failed_rows: Number of rows that fail a check.
        sample: First rows that fail, each with its number and then its values as text.
    """

    digest: str
    schema: str
    schema_digest: str
    form: str
    checker: str
    rows: int | None
    columns: tuple[str, ...] = ()
    failed: tuple[FailedCheck, ...] = ()
    failed_rows: int = 0
    sample: tuple[tuple[str, ...], ...] = ()

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return not self.failed

    @property
    def name(self) -> str:
        """Name of the report's file."""
        return file_name(self.digest, self.schema_digest, self.form)

    def __str__(self) -> str:
        rows = "no table" if self.rows is None else f"{self.rows} rows"
        if self.passed:
            return f"{rows}, passed {self.schema}"
        more = f"; and {len(self.failed) - 3} more" if len(self.failed) > 3 else ""
        return f"{rows}, failed {self.schema}: {'; '.join(map(str, self.failed[:3]))}{more}"

    def to_bytes(self) -> bytes:
        """Return the report as JSON. Equal reports have equal bytes."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, ensure_ascii=False, indent=1, sort_keys=True)
        return f"{text}\n".encode(errors="backslashreplace")

    @classmethod
    def from_bytes(cls, data: bytes) -> QualityReport | None:
        """Return the report of `to_bytes`; None for another format."""
        try:
            values: Any = json.loads(data)
            if values.pop("format") != _FORMAT:
                return None
            failed = tuple(_failed(each) for each in values.pop("failed"))
            sample = tuple(tuple(map(str, row)) for row in values.pop("sample"))
            columns = tuple(values.pop("columns"))
            return cls(**values, columns=columns, failed=failed, sample=sample)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def _failed(values: Mapping[str, Any]) -> FailedCheck:
    return FailedCheck(**{**values, "rows": tuple(values["rows"]), "values": tuple(values["values"])})


def form_of(name: str) -> str:
    """Return the format of a table for its report; empty if its name has none.

    Example:
        >>> form_of("users.csv.gz")
        'csv-gzip'
    """
    try:
        return "-".join(filter(None, format_of(name)))
    except OutputError:
        return ""


def file_name(digest: str, schema_digest: str, form: str) -> str:
    """Return the name of a report's file.

    Args:
        digest: md5 of the checked file.
        schema_digest: md5 of the schema.
        form: Format of the table.
    """
    return f"{digest}.{schema_digest}.{form}.json"


class QualityReports:
    """Reports of one revision, or of the workspace.

    Args:
        repo: The repository.
        folder: Directory of the reports, relative to the root.
        commit: Commit to read; None for the workspace.
    """

    def __init__(self, repo: Repository, folder: str = FOLDER, commit: str | None = None) -> None:
        self.folder = folder
        self._root = Path(repo.root)
        self._view = View(repo, commit)

    def find(self, digest: str, schema_digest: str, form: str) -> QualityReport | None:
        """Return the report of a file under a schema; None if there is none, or its content is lost.

        Raises:
            RemoteError: The remote cannot be used.
        """
        wanted = (digest, schema_digest, form)
        try:
            report = self._read(self._view.entry(f"{self.folder}/{file_name(*wanted)}"))
        except (OutputNotFoundError, MissingObjectError):
            return None
        if report is None or (report.digest, report.schema_digest, report.form) != wanted:
            return None
        return report

    def _by_digest(self) -> dict[str, list[Entry]]:
        """Return the files of the reports by the digest of the checked file."""
        found: dict[str, list[Entry]] = {}
        try:
            children = self._view.children(self.folder)
        except OutputNotFoundError:
            return found
        for name, entry in children.items():
            if match := _NAME.fullmatch(name):
                found.setdefault(match[1], []).append(entry)
        return found

    def of_data(self, path: str) -> dict[str, tuple[QualityReport, ...]]:
        """Return the reports of each file at or below a path; see `quality_reports`."""
        known = self._by_digest()
        found: dict[str, tuple[QualityReport, ...]] = {}
        for entry in self._view.find(path):
            digest = entry.digest or (digest_file(entry.place) if entry.place else "")
            reports = [self._read(each) for each in known.get(digest, ())]
            form = form_of(entry.path)
            found[entry.path] = tuple(each for each in reports if each is not None and each.form == form)
        return found

    def write(self, report: QualityReport) -> None:
        """Write a report into the workspace.

        Raises:
            DiskFullError: The disk is full.
        """
        folder = self._root / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / report.name, report.to_bytes())

    def _read(self, entry: Entry) -> QualityReport | None:
        try:
            with self._view.open(entry) as file:
                return QualityReport.from_bytes(file.read())
        except MissingObjectError:
            return None


def quality_reports(
    repo: Repository, path: str, *, rev: str | None = None, reports: str = FOLDER
) -> dict[str, tuple[QualityReport, ...]]:
    """Return the reports that a version of data has, by the paths of its files.

    Args:
        repo: The repository.
        path: File or directory of the data, relative to the root.
        rev: Git revision; None for the workspace.
        reports: Directory of the reports.

    Returns:
        Reports by path, one for each schema. A file that was not checked has none.

    Raises:
        GitError: The revision does not exist.
        OutputNotFoundError: The path does not exist in it.
        MissingObjectError: A manifest is neither in the cache nor on the remote.

    Example:
        >>> quality_reports(Repo.open(), "data/train", rev="v1")["data/train/may.csv"][0].passed
    """
    commit = repo.files(rev).rev if rev is not None else None
    return QualityReports(repo, reports, commit).of_data(path)


def check_folder(repo: Repository, folder: str) -> str:
    """Return a path of the repository, relative to its root and plain.

    Raises:
        OutputError: It is the root itself, or lies outside of the repository.
    """
    path = repo.relpath(folder)
    if not path:
        raise OutputError(f"'{folder}' is the repository itself. Name a directory in it.")
    return path
