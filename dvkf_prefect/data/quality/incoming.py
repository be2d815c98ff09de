"""Files on their way into a dataset: checked in an inbox, then added, or put aside in quarantine.

A file leaves the inbox by its last step only, so after a kill the next run continues with it. Its report is written
before it moves.
"""

from __future__ import annotations

import json
import os
import posixpath
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dvkf_prefect.data.quality.inboxes import Arrived, Place, copy_file, place_of
from dvkf_prefect.data.quality.reports import FOLDER, QualityReport, QualityReports, check_folder, form_of
from dvkf_prefect.data.quality.schemas import QualitySchema, check_table, load_schema
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.transfer.manifests import opened, read_manifest
from dvkf_prefect.data.verbs.add import add
from dvkf_prefect.errors import (
    OutputChangedError,
    OutputError,
    OutputOverlapError,
    UnsafePathError,
)
from dvkf_prefect.files import walk_files
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import DataVersion, Output
from dvkf_prefect.paths import check_output, check_target, make_folders, overlaps
from dvkf_prefect.urls import public_url

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
        mtime_ns: Time of its last change, in nanoseconds since 1970; 0 if a service does not tell.
        verdict: Result of the check.
        report: Report of the check; None for a known file.
        checked: True if the file was checked now; False if an earlier report was found.
        place: Its path or url in quarantine; empty without one.
        mark: Mark of its content, see `Arrived`.
    """

    path: str
    content: Content
    mtime_ns: int
    verdict: Verdict
    report: QualityReport | None = None
    checked: bool = False
    place: str = ""
    mark: str = ""

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
        inbox: Absolute path or url of the inbox.
        dataset: Directory of the dataset, relative to the repository's root.
        reports: Directory of the reports, relative to the root.
        schema: Name of the schema.
        quarantine: Absolute path or url of the quarantine.
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

    @property
    def message(self) -> str:
        """Message for a commit: the number of files for the dataset, or of checks alone."""
        added = sum(file.verdict == "passed" for file in self.files)
        if added:
            return f"Ingest {added} file{'' if added == 1 else 's'} into {self.dataset}"
        return f"Record the checks of files for {self.dataset}"

    def as_dict(self) -> dict[str, Any]:
        """Return the files by verdict as plain values for JSON."""
        return {
            "inbox": public_url(self.inbox),
            "dataset": self.dataset,
            "schema": self.schema,
            "quarantine": self.quarantine,
            "passed": [file.path for file in self.files if file.verdict == "passed"],
            "known": [file.path for file in self.files if file.verdict == "known"],
            "refused": {file.path: {"place": file.place, "reason": file.reason} for file in self.refused},
            "waiting": list(self.waiting),
            "skipped": list(self.skipped),
            "dry_run": self.dry_run,
        }

    def __str__(self) -> str:
        count = dict.fromkeys(("passed", "known", "failed", "taken"), 0)
        for file in self.files:
            count[file.verdict] += 1
        parts = [f"{number} {verdict}" for verdict, number in count.items() if number]
        parts += [f"{len(self.waiting)} changed lately"] if self.waiting else []
        parts += [f"{len(self.skipped)} not a file"] if self.skipped else []
        return f"{public_url(self.inbox)}: {', '.join(parts) or 'empty'}"


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
        inbox: Folder with the files, or a url as of a remote; a relative path starts at the root. Names that begin with
            ``.`` or ``_`` stay.
        dataset: Directory of the dataset, relative to the root. It may be new.
        schema: Schema of the files, see `load_schema`.
        reports: Directory of the reports, relative to the root.
        quarantine: Folder or url for files that fail; by default one beside the inbox, whose name ends in
            ``-quarantine``.
        existing: Handling of a file whose path in the dataset has other content.
        settle: Seconds since the last change of a file, before which it is left for a later run.
        dry_run: Write and move nothing.

    Returns:
        The files with their verdicts, and with their places in quarantine.

    Raises:
        ConfigError: The schema is wrong, or pandera is not installed.
        OutputError: The dataset cannot take files, or folders overlap.
        OutputNotFoundError: The inbox does not exist.
        RemoteError: The remote cannot be used, and reports or the dataset's manifest are only there; or the inbox
            cannot be used.
        DiskFullError: The disk is full.

    Example:
        >>> check_incoming(Repo.open(), "incoming", "data/users", "schemas/users.yaml", dry_run=True).refused
    """
    box = place_of(repo, inbox)
    aside = place_of(repo, f"{box.address}-quarantine" if quarantine is None else quarantine)
    places = {"dataset": check_folder(repo, dataset), "reports": check_folder(repo, reports)}
    _check_places(repo, box, aside, places)
    there = box.files()
    known = dict(_rows(repo, _dataset(repo, places["dataset"])))
    loaded = load_schema(repo, schema)
    store = QualityReports(repo, places["reports"])
    files: list[IncomingFile] = []
    waiting: list[str] = []
    skipped: list[str] = []
    for path, is_regular in there:
        if not is_regular or not _is_trackable(repo, f"{places['dataset']}/{path}"):
            skipped.append(path)
            continue
        before = box.look(path)
        if before is None or abs(time.time() - before.mtime_ns / 10**9) < settle:
            waiting.append(path)
            continue
        with box.read(path) as (local, digest):
            file = _check(local, before, digest, loaded, store, known.get(path), existing)
            if box.look(path) != before:
                waiting.append(path)
                continue
            if file.verdict in ("failed", "taken"):
                file = replace(file, place=aside.full(_name_aside(file)))
            if not dry_run:
                _settle(repo, box, aside, before, file, local, store)
        files.append(file)
    return Incoming(
        box.address,
        places["dataset"],
        places["reports"],
        schema,
        public_url(aside.address),
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
        raise OutputError(f"{public_url(incoming.inbox)} was checked by a dry run. Check it without dry_run.")
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
        raise OutputError(f"{public_url(incoming.inbox)} was checked by a dry run. Check it without dry_run.")
    rows = dict(_rows(repo, _dataset(repo, incoming.dataset)))
    box = place_of(repo, incoming.inbox)
    return tuple(
        file.path
        for file in incoming.accepted
        if rows.get(file.path) == file.digest
        and box.remove(Arrived(file.path, file.content.size or 0, file.mtime_ns, file.mark))
    )


def _check_places(repo: Repository, box: Place, aside: Place, places: dict[str, str]) -> None:
    """Refuse places that lie in each other: a move would check files again, or track them."""
    root = os.path.realpath(repo.root)
    named = {"inbox": box.identity, "quarantine": aside.identity}
    named |= {name: os.path.join(root, path) for name, path in places.items()}
    names = list(named)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            if overlaps(named[one], named[other]):
                raise OutputOverlapError(
                    f"{one} {named[one]} and {other} {named[other]} overlap. Use separate directories."
                )
    for name in repo.config.values["remote"]:
        url = public_url(repo.config.remote(name)[1].get("url", "")).rstrip("/")
        for what, place in (("inbox", box), ("quarantine", aside)):
            if "://" in url and overlaps(place.identity, url):
                raise OutputOverlapError(
                    f"{what} {place.identity} and remote '{name}' {url} overlap. Use separate places."
                )


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
    seen: Arrived,
    digest: str,
    schema: QualitySchema,
    store: QualityReports,
    recorded: str | None,
    existing: Existing,
) -> IncomingFile:
    """Return the verdict on a file."""
    path = seen.path
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
    content = Content(digest, seen.size)
    return IncomingFile(path, content, seen.mtime_ns, verdict, report, checked, mark=seen.mark)


def _settle(
    repo: Repository,
    box: Place,
    aside: Place,
    seen: Arrived,
    file: IncomingFile,
    local: Path,
    store: QualityReports,
) -> None:
    """Store the report of a file, and move the file into quarantine or, from a url, into the cache."""
    if file.checked and file.report is not None and file.report.form:
        store.write(file.report)
    if not file.place:
        if not box.local and file.verdict == "passed":
            repo.cache.adopt(local, file.digest)
        return
    report = {"path": file.path, "verdict": file.verdict, "reason": file.reason}
    content = {**report, "report": asdict(file.report) if file.report else None}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    path = _name_aside(file)
    aside.write(f"{path}.report.json", f"{text}\n".encode(errors="backslashreplace"))
    aside.keep(path, local, file.digest, move=box.local)
    box.remove(seen)


def _name_aside(file: IncomingFile) -> str:
    """Return a file's path in quarantine, which has its digest: two contents of one name are both kept."""
    folder, name = posixpath.split(file.path)
    stem, dot, suffix = name.partition(".")
    return posixpath.join(folder, f"{stem}-{file.digest[:12]}{dot}{suffix}")


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
    box = place_of(repo, incoming.inbox)
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
        if not box.local and repo.cache.exists(file.digest):
            copy_file(repo.cache.path(file.digest), dest, file.digest)
            continue
        with box.read(file.path) as (source, _):
            copy_file(source, dest, file.digest)


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
