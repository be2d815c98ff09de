"""Metrics: the numbers that stages write, of one version or of two side by side."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.data.revisions import PIPELINE_FILE, RepoFiles
from dvkf_prefect.data.tree import is_tree
from dvkf_prefect.errors import MissingObjectError
from dvkf_prefect.pipeline.params import flatten, parse_params
from dvkf_prefect.pipeline.stages import load_pipeline_file, load_stages, read_outputs

_SUFFIXES = (".json", ".yaml", ".yml", ".toml")


@dataclass(frozen=True, slots=True)
class MetricChange:
    """One metric in two versions.

    Attributes:
        path: The file that holds it, relative to the root.
        name: Its dotted name.
        old: Its value in the older version, None if it has none.
        new: Its value in the newer one.
        change: The difference of two numbers.
    """

    path: str
    name: str
    old: Any
    new: Any
    change: float | None = None


def show(repo: Repo, rev: str | None = None) -> dict[str, dict[str, Any]]:
    """Return every metric.

    Args:
        repo: The repository.
        rev: A git revision; None for the workspace.

    Returns:
        Values by dotted name by file. A file that is not to be had is left out.

    Raises:
        ParseError: A file does not parse.
        GitError: There is no such revision.
    """
    files = repo.files(rev)
    found: dict[str, dict[str, Any]] = {}
    for source in files.find():
        if posixpath.basename(source) == PIPELINE_FILE:
            for path, digest in _declared(files, source):
                for name, data in _contents(repo, files, path, digest):
                    found[name] = flatten(parse_params(data, name))
    return dict(sorted(found.items()))


def diff(repo: Repo, a: str = "HEAD", b: str | None = None) -> list[MetricChange]:
    """Compare the metrics of two versions.

    Args:
        repo: The repository.
        a: The older git revision.
        b: The newer one; None for the workspace.

    Returns:
        A row for each metric of either version, sorted by file and name, equal ones too.

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


def _difference(old: Any, new: Any) -> float | None:
    for value in (old, new):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
    return float(new - old)


def _declared(files: RepoFiles, source: str) -> Iterator[tuple[str, str | None]]:
    """Yield the metric files of one dvc.yaml, with the recorded digest of those that are in the cache."""
    recorded = {output.path: output for output in read_outputs(files, source)}
    for stage in load_stages(files, source):
        for out in stage.outs:
            if out.kind == "metric":
                yield out.path, recorded[out.path].digest if out.cached else None
    folder = posixpath.dirname(source)
    for name in load_pipeline_file(files.read(source), source).get("metrics", []):
        path = posixpath.normpath(posixpath.join(folder, name))
        if not path.startswith(("/", "..")):
            output = recorded.get(path)
            yield path, output.digest if output and output.cached else None


def _contents(repo: Repo, files: RepoFiles, path: str, digest: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield a metric's files and their bytes: as they lie in the version, else from the cache."""
    try:
        if files.rev is None or digest is None:
            if files.rev is None and (repo.root / path).is_dir():
                for file in sorted((repo.root / path).rglob("*")):
                    if file.suffix in _SUFFIXES and file.is_file():
                        yield file.relative_to(repo.root).as_posix(), file.read_bytes()
                return
            if files.exists(path):
                yield path, files.read(path)
                return
        if digest is None:
            return
        if not is_tree(digest):
            yield path, repo.cache.read_bytes(digest)
            return
        for relpath, file_digest in repo.cache.read_tree(digest).items():
            if posixpath.splitext(relpath)[1] in _SUFFIXES:
                yield f"{path}/{relpath}", repo.cache.read_bytes(file_digest)
    except MissingObjectError:
        return
