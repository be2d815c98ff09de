"""Files on their way into a dataset: checked in an inbox, then added, or put aside in quarantine.

A file leaves the inbox by its last step only, so after a kill the next run continues with it. Its report is written
before it moves.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from dvkf_prefect.data.quality.reports import FOLDER, QualityReport, QualityReports, check_folder, form_of
from dvkf_prefect.data.quality.schemas import QualitySchema, check_table, load_schema
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.transfer.manifests import opened, read_manifest
from dvkf_prefect.data.verbs.add import add
from dvkf_prefect.errors import (
    OutputChangedError,
    OutputError,
    OutputNotFoundError,
    OutputOverlapError,
    UnsafePathError,
)
from dvkf_prefect.files import raise_disk_full, temporary_beside, walk_files, write_atomic
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import DataVersion, Output
from dvkf_prefect.paths import check_output, check_target, make_folders, overlaps

Verdict = Literal["passed", "failed", "known", "taken"]
"""A file passes or fails its check; it is known in the dataset, or its path is taken there by other content."""

Existing = Literal["quarantine", "replace"]
"""Handling of a file whose path in the dataset has other content."""


@dataclass(frozen=True, slots=True)
class IncomingFile:
    """A file of an inbox.

    Attributes:
        path: The file, relative to the inbox; the same in the dataset.
        content: Its content.
        mtime_ns: Time of its last change, in nanoseconds since 1970.
        verdict: Result of the check.
        report: Report of the check; None for a known file.
        checked: True if the file was checked now; False if an earlier report was found.
        place: Its path in quarantine; empty without one.
    """

    path: str
    content: Content
    mtime_ns: int
    verdict: Verdict
    report: QualityReport | None = None
    checked: bool = False
    place: str = ""

    @property
    def digest(self) -> str:
        """The md5 of its content, in hex."""
        return self.content.digest

    @property
    def reason(self) -> str:
        """Reason for the verdict, for messages."""
        if self.verdict == "taken":
            return "the dataset has other content at this path"
        return "the dataset has it" if self.report is None else str(self.report)

    def __str__(self) -> str:
        return f"{self.path} ({self.digest[:8]}) {self.verdict}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Incoming:
    """Files of an inbox after their check.

    Attributes:
        inbox: Absolute path of the inbox.
        dataset: Directory of the dataset, relative to the repository's root.
        reports: Directory of the reports, relative to the root.
        schema: Name of the schema.
        quarantine: Absolute path of the quarantine.
        files: The checked files, sorted by path.
        waiting: Files that changed lately, which a later run takes.
        skipped: Links and other entries that are no regular files, and names that DVC cannot track.
        dry_run: True if nothing was written or moved.
    """

    inbox: str
    dataset: str
    reports: str
    schema: str
    quarantine: str
    files: tuple[IncomingFile, ...]
    waiting: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def accepted(self) -> tuple[IncomingFile, ...]:
        """Files that belong in the dataset: those that passed, and those that it has."""
        return tuple(file for file in self.files if file.verdict in ("passed", "known"))

    @property
    def refused(self) -> tuple[IncomingFile, ...]:
        """Files that belong in quarantine."""
        return tuple(file for file in self.files if file.verdict in ("failed", "taken"))

    def __str__(self) -> str:
        count = dict.fromkeys(("passed", "known", "failed", "taken"), 0)
        for file in self.files:
            count[file.verdict] += 1
        parts = [f"{number} {verdict}" for verdict, number in count.items() if number]
        parts += [f"{len(self.waiting)} changed lately"] if self.waiting else []
        parts += [f"{len(self.skipped)} not a file"] if self.skipped else []
        return f"{self.inbox}: {', '.join(parts) or 'empty'}"


def check_incoming(
    repo: Repository,
    inbox: str | os.PathLike[str],
    dataset: str,
    schema: str,
    *,
    reports: str = FOLDER,
    quarantine: str | os.PathLike[str] | None = None,
    existing: Existing = "quarantine",
    settle: float = 10.0,
    dry_run: bool = False,
) -> Incoming:
    """Check the files of an inbox, and move those that fail into quarantine with their reports.

    Bytes that have a report under the schema are not checked again. The reports are written into the workspace;
    `add_incoming` tracks them.

    Args:
        repo: The repository.
        inbox: Folder with the files; a relative path starts at the root. Names that begin with ``.`` or ``_`` stay.
        dataset: Directory of the dataset, relative to the root. It may be new.
        schema: Schema of the files, see `load_schema`.
        reports: Directory of the reports, relative to the root.
        quarantine: Folder for files that fail; by default one beside the inbox, whose name ends in ``-quarantine``.
        existing: Handling of a file whose path in the dataset has other content.
        settle: Seconds since the last change of a file, before which it is left for a later run.
        dry_run: Write and move nothing.

    Returns:
        The files with their verdicts, and with their places in quarantine.

    Raises:
        ConfigError: The schema is wrong, or pandera is not installed.
        OutputError: The dataset cannot take files, or folders overlap.
        OutputNotFoundError: The inbox does not exist.
        RemoteError: The remote cannot be used, and reports or the dataset's manifest are only there.
        DiskFullError: The disk is full.

    Example:
        >>> check_incoming(Repo.open(), "incoming", "data/users", "schemas/users.yaml", dry_run=True).refused
    """
    box = _absolute(repo, inbox)
    aside = box.with_name(f"{box.name}-quarantine") if quarantine is None else _absolute(repo, quarantine)
    places = {"dataset": check_folder(repo, dataset), "reports": check_folder(repo, reports)}
    _check_places(repo, box, aside, places)
    if not box.is_dir():
        raise OutputNotFoundError(f"the inbox {box} is no directory. Create it, or correct the path.")
    known = dict(_rows(repo, _dataset(repo, places["dataset"])))
    loaded = load_schema(repo, schema)
    store = QualityReports(repo, places["reports"])
    files: list[IncomingFile] = []
    waiting: list[str] = []
    skipped: list[str] = []
    for path, entry in _scan(box):
        if not entry.is_file(follow_symlinks=False) or not _is_trackable(repo, f"{places['dataset']}/{path}"):
            skipped.append(path)
            continue
        file = _check(Path(entry.path), path, loaded, store, known.get(path), existing, settle)
        if file is None:
            waiting.append(path)
            continue
        if file.checked and file.report is not None and file.report.form and not dry_run:
            store.write(file.report)
        if file.verdict in ("failed", "taken"):
            file = replace(file, place=str(_place(aside, file)))
            if not dry_run:
                _set_aside(box, file)
        files.append(file)
    return Incoming(
        str(box),
        places["dataset"],
        places["reports"],
        schema,
        str(aside),
        tuple(files),
        tuple(waiting),
        tuple(skipped),
        dry_run,
    )


def add_incoming(repo: Repository, incoming: Incoming) -> tuple[DataVersion, ...]:
    """Add the accepted files to the dataset, and the new reports to theirs. The files stay in the inbox.

    Args:
        repo: The repository.
        incoming: Result of `check_incoming`.

    Returns:
        The versions of the dataset and of the reports, except those without anything to push or commit.

    Raises:
        OutputError: The dataset cannot take files, or a file of the inbox changed after its check.
        OutputChangedError: The workspace has other content at a file's path, and it is in no cache.
        DiskFullError: The disk is full.
        LockedError: Another process used the repository for too long.
    """
    if incoming.dry_run:
        raise OutputError(f"{incoming.inbox} was checked by a dry run. Check it without dry_run.")
    versions: dict[str, DataVersion] = {}
    passed = [file for file in incoming.files if file.verdict == "passed"]
    with repo.lock(write=[incoming.dataset, incoming.reports]):
        for folder, paths in (
            (incoming.dataset, [file.path for file in passed]),
            (incoming.reports, _new_files(repo, incoming.reports)),
        ):
            output = _dataset(repo, folder)
            if folder == incoming.dataset:
                _put(repo, incoming, passed, output)
            if output is None and paths:
                _check_new(repo, folder, paths)
            targets = [folder] if output is None and paths else [f"{folder}/{path}" for path in paths]
            if targets:
                # Each target has the version of the whole directory.
                versions[folder] = add(repo, targets)[-1]
            elif output is not None and _is_open(repo, output, incoming):
                versions[folder] = repo.version_of(output)
    return tuple(versions[path] for path in sorted(versions))


def clear_incoming(repo: Repository, incoming: Incoming) -> tuple[str, ...]:
    """Remove the files from the inbox that the dataset has.

    A file stays if it changed after its check, or if the recorded version of the dataset lacks it.

    Args:
        repo: The repository.
        incoming: Result of `check_incoming`, after `add_incoming`.

    Returns:
        Paths of the removed files, relative to the inbox.

    Raises:
        OSError: A file cannot be removed.
    """
    if incoming.dry_run:
        raise OutputError(f"{incoming.inbox} was checked by a dry run. Check it without dry_run.")
    rows = dict(_rows(repo, _dataset(repo, incoming.dataset)))
    removed: list[str] = []
    for file in incoming.accepted:
        source = Path(incoming.inbox, file.path)
        with suppress(FileNotFoundError):
            info = os.lstat(source)
            if rows.get(file.path) == file.digest and (info.st_size, info.st_mtime_ns) == (
                file.content.size,
                file.mtime_ns,
            ):
                source.unlink()
                removed.append(file.path)
    return tuple(removed)


def _absolute(repo: Repository, path: str | os.PathLike[str]) -> Path:
    return Path(os.path.normpath(repo.root / Path(path).expanduser()))


def _check_places(repo: Repository, box: Path, aside: Path, places: dict[str, str]) -> None:
    """Refuse folders that lie in each other: a move would check files again, or track them."""
    root = os.path.realpath(repo.root)
    named = {"inbox": os.path.realpath(box), "quarantine": os.path.realpath(aside)}
    named |= {name: os.path.join(root, path) for name, path in places.items()}
    names = list(named)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            if overlaps(named[one], named[other]):
                raise OutputOverlapError(
                    f"{one} {named[one]} and {other} {named[other]} overlap. Use separate directories."
                )


def _scan(box: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the entries of an inbox by path, folders followed; hidden names are left out."""
    stack = [""]
    found: list[tuple[str, os.DirEntry[str]]] = []
    while stack:
        prefix = stack.pop()
        with os.scandir(box / prefix) as entries:
            for entry in entries:
                if entry.name.startswith((".", "_")):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    stack.append(f"{prefix}{entry.name}/")
                else:
                    found.append((prefix + entry.name, entry))
    return iter(sorted(found, key=lambda pair: pair[0]))


def _is_trackable(repo: Repository, path: str) -> bool:
    """Return False for names that no output can have, and for what .dvcignore excludes."""
    try:
        path.encode()
        check_output(path, "the inbox")
    except (UnicodeEncodeError, UnsafePathError):
        return False
    return not repo.ignore.matches(path)


def _check(
    file: Path,
    path: str,
    schema: QualitySchema,
    store: QualityReports,
    recorded: str | None,
    existing: Existing,
    settle: float,
) -> IncomingFile | None:
    """Return the verdict on a file; None if it is still being written."""
    before = os.stat(file, follow_symlinks=False)
    if not stat.S_ISREG(before.st_mode) or abs(time.time() - before.st_mtime) < settle:
        return None
    digest = digest_file(file)
    report: QualityReport | None = None
    checked = False
    verdict: Verdict = "known"
    if recorded != digest:
        form = form_of(path)
        report = store.find(digest, schema.digest, form) if form else None
        if report is None:
            report = check_table(file, path, digest, schema)
            checked = True
        verdict = "passed" if report.passed else "failed"
        if report.passed and recorded is not None and existing == "quarantine":
            verdict = "taken"
    after = os.stat(file, follow_symlinks=False)
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (
        after.st_size,
        after.st_mtime_ns,
        after.st_ino,
    ):
        return None
    return IncomingFile(path, Content(digest, after.st_size), after.st_mtime_ns, verdict, report, checked)


def _place(aside: Path, file: IncomingFile) -> Path:
    """Return a file's path in quarantine, which has its digest: two contents of one name are both kept."""
    folder, name = posixpath.split(file.path)
    stem, dot, suffix = name.partition(".")
    return aside / folder / f"{stem}-{file.digest[:12]}{dot}{suffix}"


def _set_aside(box: Path, file: IncomingFile) -> None:
    """Move a file into quarantine, after its report."""
    source, dest = box / file.path, Path(file.place)
    dest.parent.mkdir(parents=True, exist_ok=True)
    report = {"path": file.path, "verdict": file.verdict, "reason": file.reason}
    content = {**report, "report": asdict(file.report) if file.report else None}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_atomic(dest.with_name(f"{dest.name}.report.json"), f"{text}\n".encode(errors="backslashreplace"))
    if dest.exists():
        if digest_file(dest) == file.digest == digest_file(source):
            source.unlink()
            return
        raise OutputError(f"{dest} has other content than {source}. Move one of them.")
    try:
        os.rename(source, dest)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, dest, file.digest)
        source.unlink()


def _copy(source: Path, dest: Path, digest: str) -> None:
    """Copy a file atomically.

    Raises:
        OutputError: The copy has another digest, so the file was changed. Nothing was copied.
    """
    temporary = temporary_beside(dest)
    try:
        shutil.copyfile(source, temporary, follow_symlinks=False)
        if digest_file(temporary) != digest:
            raise OutputError(f"{source} changed after its check. Run this again.")
        os.replace(temporary, dest)
    except OSError as error:
        raise_disk_full(error, dest)
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _dataset(repo: Repository, path: str) -> Output | None:
    """Return the output of a directory; None if it is not tracked yet.

    Raises:
        OutputError: It is a file, an import, or the output of a stage.
    """
    output = next((each for each in repo.outputs() if each.path == path), None)
    if output is None:
        return None
    what = (
        f"the output of stage '{output.stage}'"
        if output.stage
        else "an import"
        if output.origin
        else "a file"
        if output.digest is not None and not output.is_dir
        else ""
    )
    if what:
        raise OutputError(f"'{path}' is {what} ({output.source}). Name a directory that `dvkf add` tracks.")
    return output


def _is_open(repo: Repository, output: Output, incoming: Incoming) -> bool:
    """Return True if a killed run may have left an output unpushed, or its `.dvc` file uncommitted."""
    if output.digest is None:
        return False
    if incoming.accepted:
        return True
    return bool(repo.git and repo.git.changed([f":(top,literal){repo.git_prefix}{output.source}"]))


def _rows(repo: Repository, output: Output | None) -> Iterator[tuple[str, str]]:
    """Yield path and digest of each recorded file of a directory; its manifest is fetched if needed."""
    if output is None or output.digest is None:
        return iter(())
    remotes = opened(repo.remote, (output.remote, None))
    tree = read_manifest(output.digest, output.hash_name, caches=[repo.cache], remotes=remotes, mend=True)
    return iter(tree.items())


def _put(repo: Repository, incoming: Incoming, passed: Sequence[IncomingFile], output: Output | None) -> None:
    """Copy files into the dataset's directory in the workspace."""
    rows = dict(_rows(repo, output))
    for file in passed:
        path = f"{incoming.dataset}/{file.path}"
        check_target(repo.root, path)
        dest = repo.root / path
        if dest.exists():
            there = digest_file(dest)
            if there == file.digest:
                continue
            if there != rows.get(file.path) or not repo.cache.exists(there):
                raise OutputChangedError([path])
        make_folders(str(repo.root), [path])
        _copy(Path(incoming.inbox, file.path), dest, file.digest)


def _check_new(repo: Repository, folder: str, paths: Sequence[str]) -> None:
    """Refuse to track a new directory with files that were not checked."""
    # A writer that was killed leaves its temporary file, which no directory's version has.
    others = sorted({path for path, _ in walk_files(repo.root / folder)} - set(paths))
    if others:
        raise OutputError(
            f"'{folder}' is not tracked and has other files: {', '.join(others[:3])}. Track it by `dvkf add {folder}`."
        )


def _new_files(repo: Repository, folder: str) -> list[str]:
    """Return the files of a directory that its recorded version lacks; those of a killed run are among them."""
    top = repo.root / folder
    if not top.is_dir():
        return []
    recorded = {path for path, _ in _rows(repo, _dataset(repo, folder))}
    return sorted({entry.name for entry in os.scandir(top) if entry.name.endswith(".json")} - recorded)
