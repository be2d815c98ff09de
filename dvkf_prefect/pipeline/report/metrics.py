"""Metrics and parameters: values in files, of one version or compared between versions.

Source of the selection and the layout: DVC 3.x (``dvc/repo/metrics``, ``dvc/repo/params``).
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from dvkf_prefect.data.git.command import revisions_of
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.views.reader import View
from dvkf_prefect.errors import ConfigError, DvkfError, OutputNotFoundError, ParseError
from dvkf_prefect.files import DESCRIPTION_LIMIT
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcyaml import load_stages, read_sections
from dvkf_prefect.formats.files import PIPELINE_FILE, RepoFiles
from dvkf_prefect.formats.params import DEFAULT_FILE, flatten, parse_params, select

WORKSPACE = "workspace"


@dataclass(frozen=True, slots=True)
class MetricChange:
    """One metric or parameter in two versions.

    Attributes:
        path: File with the value, relative to the root.
        name: Dotted name of the value.
        old: Value in the older version, None if absent.
        new: Value in the newer version, None if absent.
        change: Difference, if both are numbers.
    """

    path: str
    name: str
    old: Any
    new: Any
    change: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the change in the shape of ``dvc metrics diff --json``."""
        values = {"old": self.old, "new": self.new}
        if isinstance(self.old, (int, float)) and isinstance(self.new, (int, float)):
            values["diff"] = self.new - self.old
        return values


@dataclass(frozen=True, slots=True)
class FileValues:
    """Content of one file in one version.

    Attributes:
        values: Values, nested as in the file.
        error: Error of reading it; None on success.
    """

    values: Any = None
    error: Exception | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the content in the shape of ``dvc metrics show --json``."""
        return {"data": self.values} if self.error is None else {"error": _error_values(self.error)}


@dataclass(frozen=True, slots=True)
class Reading:
    """Content of all files of one version.

    Attributes:
        files: Content by path relative to the root.
        error: Error of finding the files; None on success.
    """

    files: Mapping[str, FileValues] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def failed(self) -> bool:
        """True if something could not be read."""
        return self.error is not None or any(file.error is not None for file in self.files.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the content in the shape of ``dvc metrics show --json``."""
        if self.error is not None:
            return {"error": _error_values(self.error)}
        return {"data": {path: file.as_dict() for path, file in self.files.items()}}


def _error_values(error: Exception) -> dict[str, str]:
    return {"type": type(error).__name__, "msg": str(error)}


def show(repo: Repository, rev: str | None = None) -> dict[str, dict[str, Any]]:
    """Return every metric.

    Args:
        repo: The repository.
        rev: A git revision; None for the workspace.

    Returns:
        Values by dotted name by file. Missing files are omitted.

    Raises:
        ParseError: A file does not parse.
        GitError: There is no such revision.
    """
    reading = _read(repo, rev, lambda files: _metric_files(files, ()), _metrics_of)
    if reading.error is not None:
        raise reading.error
    found: dict[str, dict[str, Any]] = {}
    for path, file in reading.files.items():
        if isinstance(file.error, ParseError):
            raise file.error
        if isinstance(file.values, dict):
            found[path] = flatten(file.values)
    return dict(sorted(found.items()))


def read_metrics(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    all_branches: bool = False,
    all_tags: bool = False,
    all_commits: bool = False,
) -> dict[str, Reading]:
    """Return the metrics of the workspace, optionally with those of many commits.

    Args:
        repo: The repository.
        targets: Files or folders, relative to the root; all that dvc.yaml files declare if empty.
        all_branches: Include the tips of all branches.
        all_tags: Include all tags.
        all_commits: Include all commits.

    Returns:
        Readings by ``workspace`` and the names of revisions; by "" if only the workspace was requested. The workspace
        is omitted if it equals the current branch.

    Raises:
        ConfigError: Commits are requested, but there is no git.
    """

    def read(rev: str | None) -> Reading:
        return _read(repo, rev, lambda files: _metric_files(files, targets), _metrics_of)

    if not (all_branches or all_tags or all_commits):
        return {"": read(None)}
    if repo.git is None:
        raise ConfigError(f"{repo.root} has no git history, so there are no other versions")
    found = {WORKSPACE: read(None)}
    for commit, names in _named_revisions(repo, all_branches, all_tags, all_commits).items():
        found[",".join(names)] = read(commit)
    try:
        branch = repo.git.run("symbolic-ref", "--short", "--quiet", "HEAD")
    except DvkfError:
        return found
    if found.get(branch) == found[WORKSPACE]:
        del found[WORKSPACE]
    return found


def diff(repo: Repository, a: str = "HEAD", b: str | None = None) -> list[MetricChange]:
    """Compare the metrics of two versions.

    Args:
        repo: The repository.
        a: The older git revision.
        b: The newer git revision; None for the workspace.

    Returns:
        A row for each metric of either version, sorted by file and name, unchanged ones included.

    Raises:
        ParseError: A file does not parse.
        GitError: There is no such revision.
    """
    before = {} if repo.git is None or repo.git.head() is None else show(repo, a)
    after = show(repo, b)
    rows = []
    for path in sorted({*before, *after}):
        old, new = before.get(path, {}), after.get(path, {})
        for name in sorted({*old, *new}):
            pair = old.get(name), new.get(name)
            rows.append(MetricChange(path, name, *pair, change=_difference(*pair)))
    return rows


def metrics_history(
    repo: Repository, rev: str | None = None, *, limit: int = 8
) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Return the metrics of the last commits that changed them, oldest first, with those of a version at the end.

    Args:
        repo: The repository.
        rev: The newest revision; None for the workspace.
        limit: Maximum number of versions.

    Returns:
        Label and metrics of each version: values by dotted name by file. Labels are starts of commits.

    Raises:
        GitError: There is no such revision.
    """
    found: list[tuple[str, dict[str, dict[str, Any]]]] = []
    if rev is None:
        found.append((WORKSPACE, show(repo)))
    if repo.git is not None and repo.git.head() is not None:
        newest = repo.git.resolve(rev or "HEAD")
        files = repo.files(newest)
        # Metrics in DVC's cache change with the lock file that records them.
        paths = [*_metric_files(files, ()), *(f"{path[: -len('yaml')]}lock" for path in _pipelines(files))]
        specs = [f":(top,literal){repo.git_prefix}{path}" for path in sorted(paths)]
        listed = repo.git.run("log", f"-{4 * limit}", "--format=%H", newest, "--", *specs) if specs else ""
        for commit in listed.split():
            if len(found) > limit:
                break
            try:
                values = show(repo, commit)
            except DvkfError:
                continue  # a file that this commit cannot read is no point of the course
            if found and found[-1][1] == values:
                # The label is the first commit with these values; the workspace keeps its own.
                found[-1] = (found[-1][0] if found[-1][0] == WORKSPACE else commit[:7], values)
            elif values:
                found.append((commit[:7], values))
    return found[:limit][::-1]


def diff_metrics(
    repo: Repository,
    a: str = "HEAD",
    b: str | None = None,
    targets: Sequence[str] = (),
    *,
    unchanged: bool = False,
) -> tuple[list[MetricChange], dict[str, Reading]]:
    """Compare metrics as ``dvc metrics diff`` does: read errors are returned, not raised.

    Args:
        repo: The repository.
        a: The older git revision, or ``workspace``.
        b: The newer git revision; None for the workspace.
        targets: Files or folders, relative to the root, declared or not; all declared ones if empty.
        unchanged: Include unchanged metrics.

    Returns:
        Rows sorted by file and name, and the reading of each version. Both are empty before the first commit.

    Raises:
        GitError: There is no such revision.
    """
    return _compare(repo, a, b, lambda files: _metric_files(files, targets), _metrics_of, unchanged)


def diff_params(
    repo: Repository,
    a: str = "HEAD",
    b: str | None = None,
    targets: Sequence[str] = (),
    *,
    unchanged: bool = False,
    deps_only: bool = False,
) -> tuple[list[MetricChange], dict[str, Reading]]:
    """Compare parameters as ``dvc params diff`` does.

    Args:
        repo: The repository.
        a: The older git revision, or ``workspace``.
        b: The newer git revision; None for the workspace.
        targets: Files, relative to the root, declared or not; all declared ones and params.yaml if empty.
        unchanged: Include unchanged parameters.
        deps_only: Include only parameters that stages depend on.

    Returns:
        Rows sorted by file and name, and the reading of each version. Both are empty before the first commit.

    Raises:
        GitError: There is no such revision.
    """
    return _compare(
        repo,
        a,
        b,
        lambda files: _param_files(files, targets, deps_only),
        lambda values: values,
        unchanged,
        None if targets else _used,
    )


def _compare(
    repo: Repository,
    a: str,
    b: str | None,
    declared: Callable[[RepoFiles], Mapping[str, Sequence[str]]],
    keep: Callable[[Any], Any],
    unchanged: bool,
    more: Callable[[RepoFiles], Mapping[str, Any]] | None = None,
) -> tuple[list[MetricChange], dict[str, Reading]]:
    if repo.git is None or repo.git.head() is None:
        return [], {}
    sides = [None if rev in (None, WORKSPACE) else repo.git.resolve(rev or "") for rev in (a, b)]
    before, after = (_read(repo, rev, declared, keep, more) for rev in sides)
    rows = []
    for path in sorted({*before.files, *after.files}):
        old, new = (_flat(reading.files.get(path)) for reading in (before, after))
        for name in sorted({*old, *new}):
            pair = old.get(name), new.get(name)
            if unchanged or pair[0] != pair[1]:
                rows.append(MetricChange(path, name, *pair, change=_difference(*pair)))
    return rows, {a: before, b or WORKSPACE: after}


def _flat(file: FileValues | None) -> dict[str, Any]:
    values = file.values if file is not None else None
    if isinstance(values, dict):
        return {name: str(v) if isinstance(v, list) else v for name, v in flatten(values).items() if v != {}}
    return {} if values is None else {"": values}


def _difference(old: Any, new: Any) -> float | None:
    for value in (old, new):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
    return float(new - old)


def _named_revisions(
    repo: Repository, all_branches: bool, all_tags: bool, all_commits: bool
) -> dict[str, list[str]]:
    """Return commits with their names; as in DVC, named by their ids if all commits are requested."""
    assert repo.git is not None
    if all_commits:
        return {commit: [commit] for commit in revisions_of(repo.git, all_commits=True)}
    found: dict[str, list[str]] = {}
    for kind, wanted in (("refs/heads/", all_branches), ("refs/tags/", all_tags)):
        if not wanted:
            continue
        form = "%(objecttype) %(objectname) %(*objecttype) %(*objectname) %(refname)"
        for line in repo.git.run("for-each-ref", f"--format={form}", kind).splitlines():
            kind_, commit, *rest = line.split(" ")
            of_tag, target, name = rest[0], rest[1], " ".join(rest[2:])
            if kind_ == "tag":
                kind_, commit = of_tag, target
            if kind_ == "commit":
                found.setdefault(commit, []).append(name.removeprefix(kind))
    return found


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(
    repo: Repository,
    rev: str | None,
    declared: Callable[[RepoFiles], Mapping[str, Sequence[str]]],
    keep: Callable[[Any], Any],
    more: Callable[[RepoFiles], Mapping[str, Any]] | None = None,
) -> Reading:
    """Read the declared values of a version: from its files, else from the cache or the remote.

    Args:
        repo: The repository.
        rev: A git revision; None for the workspace.
        declared: Returns the files to read and the keys of each; no keys mean all.
        keep: Selects the relevant part of a file's values.
        more: Returns values of other files.
    """
    files = repo.files(rev)
    try:
        wanted = declared(files)
        view = View(repo, files.rev)
        found: dict[str, FileValues] = {}
        for path, keys in wanted.items():
            for name in _expand(view, path):
                if name not in found:
                    found[name] = _read_file(view, name, keys, keep)
        for path, values in (more(files) if more else {}).items():
            found.setdefault(path, FileValues(values))
    except DvkfError as error:
        return Reading(error=error)
    return Reading(found)


def _expand(view: View, path: str) -> Iterator[str]:
    try:
        if view.entry(path).is_dir:
            yield from sorted(entry.path for entry in view.find(path))
            return
    except (DvkfError, OSError):
        pass  # _read_file meets the same error and reports it
    yield path


def _read_file(view: View, path: str, keys: Sequence[str], keep: Callable[[Any], Any]) -> FileValues:
    try:
        with view.open(view.entry(path)) as file:
            values = load_values(read_bounded(file, path), path)
        if keys:
            values = select(values, keys) if isinstance(values, dict) else {}
        return FileValues(keep(values))
    except OutputNotFoundError:
        return FileValues(error=FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path))
    except (DvkfError, OSError) as error:
        return FileValues(error=error)


def read_bounded(file: IO[bytes], name: str) -> bytes:
    """Read a file of values whole.

    Raises:
        ParseError: The file is larger than a description file may be.
    """
    data = file.read(DESCRIPTION_LIMIT + 1)
    if len(data) > DESCRIPTION_LIMIT:
        raise ParseError(name, f"more than {DESCRIPTION_LIMIT} bytes, the limit. Shorten it.")
    return data


def load_values(data: bytes, name: str) -> Any:
    """Parse a file of values by its suffix; unknown suffixes are read as YAML.

    Args:
        data: Bytes of the file.
        name: Name of the file.

    Raises:
        ParseError: The file does not parse.
    """
    suffix = posixpath.splitext(name)[1].lower()
    if suffix == ".json":
        return documents.load_json(data, name)
    return parse_params(data, name) if suffix in (".toml", ".py") else documents.load(data, name)


def _metrics_of(values: Any) -> Any:
    """Keep the metrics among values: numbers, texts and booleans; lists and nulls are omitted."""
    kept = _metric(values)
    return kept if kept not in (None, 0, "") else {}


def _metric(value: Any) -> Any:
    if isinstance(value, (int, float, str)):
        return value
    if not isinstance(value, dict):
        return None
    kept = {key: _metric(item) for key, item in value.items()}
    return {key: item for key, item in kept.items() if item is not None and item != {}}


def _pipelines(files: RepoFiles) -> Iterable[str]:
    return [path for path in files.find() if posixpath.basename(path) == PIPELINE_FILE]


def _top_level(source: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        if not path.startswith(("/", "..")):
            yield path


def _metric_files(files: RepoFiles, targets: Sequence[str]) -> dict[str, Sequence[str]]:
    if targets:
        return dict.fromkeys(targets, ())
    pipelines = _pipelines(files)
    found = [
        out.path
        for source in pipelines
        for stage in load_stages(files, source)
        for out in stage.outs
        if out.kind == "metric"
    ]
    for source in pipelines:
        found += _top_level(source, read_sections(files, source).metrics)
    return dict.fromkeys(found, ())


def _param_files(files: RepoFiles, targets: Sequence[str], deps_only: bool) -> dict[str, Sequence[str]]:
    """Return the keys to read by file; no keys mean the whole file."""
    if targets:
        return dict.fromkeys(targets, ())
    pipelines = _pipelines(files)
    found: dict[str, list[str] | None] = {}
    for source in pipelines:
        for stage in load_stages(files, source):
            for file, keys in stage.params.items():
                known = found.setdefault(stage.params_path(file), [])
                if not keys:
                    found[stage.params_path(file)] = None
                elif known is not None:
                    known.extend(key for key in keys if key not in known)
    if not deps_only:
        for source in pipelines:
            found.update(dict.fromkeys(_top_level(source, read_sections(files, source).params)))
        if files.exists(DEFAULT_FILE):
            found[DEFAULT_FILE] = None
    return {file: keys or () for file, keys in found.items()}


def _used(files: RepoFiles) -> dict[str, dict[str, Any]]:
    """Return the values that templates took from files."""
    found: dict[str, dict[str, Any]] = {}
    for source in _pipelines(files):
        for stage in load_stages(files, source):
            for path, values in stage.used.items():
                found.setdefault(path, {}).update(values)
    return found
