"""Where imports come from: opened, fetched from, and asked whether there is something newer."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data import clones, contents, documents, versioned
from dvkf_prefect.data.digest import digest_bytes
from dvkf_prefect.data.external import BorrowedCache, ExternalRepo, local_folder, open_external
from dvkf_prefect.data.outputs import Origin, Output
from dvkf_prefect.data.remotes.errors import public_url
from dvkf_prefect.data.scratch import scratch_folder
from dvkf_prefect.data.sources import Facts, Source, open_source
from dvkf_prefect.data.store import MD5, Cache, Stored
from dvkf_prefect.data.transfer import Transfer
from dvkf_prefect.data.trust import check_options
from dvkf_prefect.data.workspace import Found, starting
from dvkf_prefect.errors import (
    ConfigError,
    DvkfError,
    GitError,
    NotARepositoryError,
    OutputChangedError,
    OutputNotFoundError,
    RemoteError,
    TransferError,
)
from dvkf_prefect.files import read_description, write_atomic

if TYPE_CHECKING:
    from dvkf_prefect.data.repo import Repo
    from dvkf_prefect.data.transfer import Progress

_TIMEOUT = 120.0


def repo_dep(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dependency of an import from a repository, in DVC's order."""
    order = ("url", "rev", "rev_lock", "config", "remote")
    return {"path": path, "repo": {key: values[key] for key in order if values.get(key)}}


def url_dep(path: str, facts: Facts | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dependency of an import from a url, in DVC's order; without facts it was never looked at."""
    dep: dict[str, Any] = {**(facts.values if facts else {}), "hash": MD5, "path": path}
    if options:
        dep["fs_config"] = dict(options)
    if facts and facts.files:
        names = ("relpath", "etag", "size", "version_id")
        dep["files"] = [
            {name: value for name in names if (value := getattr(file, name)) is not None}
            for file in facts.files
        ]
    return dep


def aware(repo: Repo, origin: Origin) -> dict[str, Any]:
    """Return the options by which a url is read.

    Raises:
        ConfigError: One of them would run a command, see `trust`.
    """
    if origin.fs_config:
        check_options(origin.fs_config, repo.root, f"the import of {origin}")
    return {**origin.fs_config, **({"version_aware": True} if origin.versioned else {})}


def dependency(repo: Repo, output: Output) -> Any:
    """Return the dependency of an import as its `.dvc` file says it."""
    return documents.load(read_description(repo.root / output.source), output.source)["deps"][0]


def put(repo: Repo, output: Output, found: Found, progress: Progress | None) -> None:
    """Make an output's path hold what it records; a person sees how it goes."""
    advance = starting(progress, f"checkout {output.path}")
    repo.workspace.put(output, found, advance=advance)
    if progress:
        progress.finish()


def bring_source(found: Source, cache: Cache, jobs: int | None, progress: Progress | None) -> Stored:
    """Bring what lies outside into a cache; a person sees how it goes."""
    if progress:
        progress.start(
            f"import {public_url(found.url)}", len(found.relpaths), sum(size or 0 for size in found.sizes)
        )
    stored = found.bring(cache, jobs=jobs, advance=progress.advance if progress else None)
    if progress:
        progress.finish()
    return stored


# -- fetching ----------------------------------------------------------------------------------------------------------


def from_source(output: Output) -> bool:
    """Tell whether an output's content is fetched from where it was imported rather than from a remote."""
    origin = output.origin
    return (
        origin is not None
        and output.cached
        and (origin.repo is not None or origin.versioned or output.digest is None)
    )


def fetch_imports(
    repo: Repo,
    outputs: Sequence[Output],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Transfer:
    """Bring imports into the cache from where they come from; those that are there are not asked for.

    Content that was never recorded (`--no-download`) is remembered for `place_imports`.

    Args:
        repo: The repository that records them.
        outputs: The outputs; those that are fetched from a remote are passed over, see `from_source`.
        jobs: How many transfers at once.
        progress: Told of files and bytes.
        cache: Where to; None for the repository's own cache.

    Raises:
        TransferError: Some could not be had, or are not there as they were recorded; all others arrived.
    """
    cache = cache or repo.cache
    groups: dict[str, list[tuple[Output, Origin]]] = {}
    counts = [0, 0, 0]
    for output in outputs:
        origin = output.origin
        if origin is None or not from_source(output):
            continue
        if contents.is_complete(cache, _known(repo, output)):
            counts[2] += 1
            continue
        key = json.dumps(origin.repo, sort_keys=True, default=str) if origin.repo else output.source
        groups.setdefault(key, []).append((output, origin))
    failed = _Failures()

    def arrived(output: Output, origin: Origin, stored: Stored) -> None:
        if output.digest is None:
            _remember(repo, output, origin, stored)
        elif stored.digest != output.digest:
            failed.add(
                output.path,
                f"{origin} holds {stored.digest} now, not {output.digest} as it was imported; "
                f"`dvkf update {output.source}` takes what is there",
                missing=True,
            )
            return
        counts[0] += stored.nfiles or 1
        counts[1] += stored.size

    for group in groups.values():
        try:
            if group[0][1].repo is None:
                for output, origin in group:
                    found = open_source(
                        repo.config,
                        origin.path,
                        folder=repo.root / origin.folder,
                        fs_config=aware(repo, origin),
                        versions=origin.versions or None,
                    )
                    arrived(output, origin, bring_source(found, cache, jobs, progress))
                continue
            _fetch_group(repo, group, cache, jobs, progress, arrived, failed)
        except (
            TransferError,
            OutputNotFoundError,
            GitError,
            NotARepositoryError,
            RemoteError,
            ConfigError,
        ) as error:
            for output, _ in group:
                failed.add_error(output.path, error)
    if failed.reasons:
        raise TransferError("where it was imported from", failed.reasons, missing=failed.missing)
    return Transfer("imports", *counts)


@dataclass(slots=True)
class _Failures:
    """What went wrong, by the output's path, and which of the content is just not there."""

    reasons: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    def add(self, path: str, reason: str, *, missing: bool) -> None:
        self.reasons[path] = reason
        if missing:
            self.missing.add(path)

    def add_error(self, path: str, error: DvkfError) -> None:
        if isinstance(error, TransferError):
            self.add(path, "; ".join(error.failures.values()), missing=error.only_missing)
        else:
            self.add(path, str(error), missing=isinstance(error, OutputNotFoundError))


def _fetch_group(
    repo: Repo,
    group: Sequence[tuple[Output, Origin]],
    cache: Cache,
    jobs: int | None,
    progress: Progress | None,
    arrived: Callable[[Output, Origin, Stored], None],
    failed: _Failures,
) -> None:
    """Bring imports from one revision of one repository."""
    values = group[0][1].repo or {}
    with open_origin(repo.root, values, values.get("rev_lock")) as source:
        for output, origin in group:
            try:
                content = contents.bring(source, origin.path, cache, jobs=jobs, progress=progress)
                if output.hash_name == MD5:
                    content = contents.modern(content, cache)
            except TransferError as error:
                for name, why in error.failures.items():
                    failed.add(posixpath.join(output.path, name), why, missing=name in error.missing)
            except (OutputNotFoundError, ConfigError) as error:
                failed.add_error(output.path, error)
            else:
                arrived(output, origin, content.stored)


def open_origin(
    root: Path, values: Mapping[str, Any], rev_lock: str | None, *, typed: bool = False
) -> AbstractContextManager[ExternalRepo]:
    """Open the repository that an import names, always at a commit.

    Args:
        root: The importing repository's root, from which a relative path is found.
        values: The keys of ``repo`` in the `.dvc` file.
        rev_lock: The commit; None for what ``rev`` is at now.
        typed: Whether the user gives the values now; else they are a file's, see `trust`.
    """
    url = str(values["url"])
    if local_folder(url) is None and "://" not in url and local_folder(str(root / url)) is not None:
        url = str(root / url)
    rev = rev_lock or values.get("rev") or ("HEAD" if local_folder(url) is not None else None)
    remote = values.get("remote")
    return open_external(
        url,
        rev,
        remote=remote if isinstance(remote, str) else None,
        remote_config=remote if isinstance(remote, Mapping) else None,
        config=values.get("config"),
        typed=typed,
    )


def _memory_file(repo: Repo) -> Path:
    return repo.tmp_dir / "imports.json"


def _remembered(repo: Repo) -> dict[str, Any]:
    try:
        known = json.loads(read_description(_memory_file(repo)))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _mark(origin: Origin) -> str:
    """Return what changes when an import is to have other content."""
    versions = [(file.relpath, file.etag, file.version_id) for file in origin.versions]
    values = [origin.path, origin.repo, origin.checksum, versions]
    return digest_bytes(json.dumps(values, sort_keys=True, default=str).encode())


def _remember(repo: Repo, output: Output, origin: Origin, stored: Stored) -> None:
    entry = {"of": _mark(origin), "digest": stored.digest, "size": stored.size, "nfiles": stored.nfiles}
    repo.tmp_dir.mkdir(parents=True, exist_ok=True)
    known = {**_remembered(repo), output.source: entry}
    write_atomic(_memory_file(repo), json.dumps(known, sort_keys=True).encode(), durable=False)


def _known(repo: Repo, output: Output) -> Output:
    """Return the output with the content that was fetched for it, where its `.dvc` file records none."""
    if output.digest is not None or output.origin is None:
        return output
    entry = _remembered(repo).get(output.source)
    if not entry or entry.get("of") != _mark(output.origin):
        return output
    return replace(
        output,
        digest=entry["digest"],
        size=entry["size"],
        nfiles=entry["nfiles"],
        isexec=False,
        hash_name=MD5,
    )


def place_imports(
    repo: Repo, outputs: Sequence[Output], *, force: bool = False, progress: Progress | None = None
) -> list[str]:
    """Put imports whose content no `.dvc` file records into the workspace, as they were fetched.

    The caller holds the lock.

    Args:
        repo: The repository.
        outputs: The outputs; all others are passed over.
        force: Overwrite files whose content is nowhere else.
        progress: Told of files and bytes.

    Returns:
        The paths that were put in place, with a slash behind a directory.

    Raises:
        OutputChangedError: Files would be lost; nothing was touched.
    """
    work: list[tuple[Output, Found]] = []
    for output in outputs:
        known = _known(repo, output) if output.digest is None and output.cached else output
        if known is output or not contents.is_complete(repo.cache, known):
            continue
        found = repo.workspace.look(known.path)
        if found.digest != known.digest:
            work.append((known, found))
    if not force and (
        lost := [path for known, found in work for path in repo.workspace.lost_by(known, found)]
    ):
        raise OutputChangedError(lost)
    for known, found in work:
        put(repo, known, found, progress)
    return [known.path + ("/" if known.is_dir else "") for known, _ in work]


# -- status ------------------------------------------------------------------------------------------------------------


def changed_sources(repo: Repo, outputs: Sequence[Output]) -> dict[str, dict[str, str]]:
    """Tell which imports have other content where they come from, asking each repository once.

    As DVC, only imports from repositories and by version are asked for; of the others, those that are not frozen.
    A repository is cloned only if its branch has moved on. An import whose path kept its content is up to date.
    A service that does not answer has its imports told as deleted.

    Args:
        repo: The repository.
        outputs: The outputs to ask for.

    Returns:
        For each `.dvc` file of one that changed: the source as a person reads it, and ``update available``,
        ``modified`` or ``deleted``, as DVC's "changed deps" say it.

    Raises:
        GitError: A repository does not answer.
    """
    changed: dict[str, dict[str, str]] = {}
    asked: dict[tuple[str, str | None], list[tuple[Output, Origin]]] = {}
    for output in outputs:
        origin = output.origin
        if origin is None:
            continue
        if origin.repo is not None:
            if origin.repo.get("rev_lock"):
                asked.setdefault((origin.repo["url"], origin.repo.get("rev")), []).append((output, origin))
        elif origin.versioned or not origin.frozen:
            state = _source_state(repo, output, origin)
            if state:
                changed[output.source] = {str(origin): state}
    from concurrent.futures import ThreadPoolExecutor  # takes a while to import

    moved: dict[str, list[tuple[Output, Origin]]] = {}
    with ThreadPoolExecutor(max(1, min(8, len(asked)))) as pool:
        tips = pool.map(lambda key: _tip(repo.root, *key), asked)
        for group, tip in zip(asked.values(), tips, strict=True):
            for output, origin in group:
                values = origin.repo or {}
                if tip is not None and tip != values.get("rev_lock"):
                    key = json.dumps({**values, "rev_lock": tip}, sort_keys=True, default=str)
                    moved.setdefault(key, []).append((output, origin))
        for group, others in zip(
            moved.values(), pool.map(partial(_others, repo), moved.values()), strict=True
        ):
            for output, origin in group:
                if output.path in others:
                    changed[output.source] = {str(origin): "update available"}
    return dict(sorted(changed.items()))


def _others(repo: Repo, group: Sequence[tuple[Output, Origin]]) -> set[str]:
    """Return the paths of those imports of one repository whose content is another one now, or not known."""
    try:
        with open_origin(repo.root, group[0][1].repo or {}, None) as source:
            return {output.path for output, origin in group if not is_same(repo, output, origin, source)}
    except DvkfError:
        return {output.path for output, _ in group}


def is_same(repo: Repo, output: Output, origin: Origin, source: ExternalRepo) -> bool:
    """Tell whether an import's path holds in an opened repository what it held when it was imported.

    Where the recorded digest cannot tell, the repository is opened at the import's commit too.
    """
    values = origin.repo or {}
    with scratch_folder("dvkf-look-") as folder:
        cache = BorrowedCache(folder, repo.cache.root)
        try:
            now = contents.digest_of(source, origin.path, cache)
            if output.digest is not None and now[1] == MD5 == output.hash_name:
                return now[0] == output.digest
            with open_origin(repo.root, values, values.get("rev_lock")) as old:
                return now == contents.digest_of(old, origin.path, cache)
        except DvkfError:
            return False


def _tip(root: Path, url: str, rev: str | None) -> str | None:
    folder = local_folder(url) or (local_folder(str(root / url)) if "://" not in url else None)
    return clones.tip(str(folder or url), rev, timeout=_TIMEOUT)


def _source_state(repo: Repo, output: Output, origin: Origin) -> str | None:
    try:
        found = open_source(
            repo.config, origin.path, folder=repo.root / origin.folder, fs_config=aware(repo, origin)
        )
    except OutputNotFoundError:
        return "deleted"
    except RemoteError as error:  # as in DVC, all else is told
        import logging

        logging.getLogger(__name__).warning("'%s' cannot be looked at: %s", output.source, error)
        return "deleted"
    old = dependency(repo, output)
    if url_dep(origin.path, found.facts(), origin.fs_config) == {**old, "hash": MD5}:
        return None
    return "update available" if origin.versioned and not found.is_dir else "modified"


def fetch_all(
    repo: Repo,
    outputs: Sequence[Output],
    remote: str | None,
    rest: Callable[[Sequence[Output]], Transfer],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Bring outputs into the cache from wherever they are: imports from their source, the others from remotes.

    Args:
        repo: The repository.
        outputs: The outputs.
        remote: The remote to use; None for the default one, or the one an output names.
        rest: Fetches those that remotes hold as objects named by digest.
        jobs: How many transfers at once.
        progress: Told of files and bytes.

    Raises:
        TransferError: Some could not be had; all others arrived.
        RemoteError: A remote cannot be used.
    """
    imported = [output for output in outputs if from_source(output)]
    kept: dict[str | None, list[Output]] = {}
    others: list[Output] = []
    is_kept: dict[str | None, bool] = {}
    for output in outputs:
        if from_source(output):
            continue
        name = remote or output.remote
        if name not in is_kept:
            is_kept[name] = versioned.is_versioned(repo.config, name)
        (kept.setdefault(name, []) if is_kept[name] else others).append(output)
    actions: list[Callable[[], Transfer]] = []
    if imported:
        actions.append(lambda: fetch_imports(repo, imported, jobs=jobs, progress=progress))
    for name, group in kept.items():
        actions.append(partial(versioned.fetch_versions, repo, group, name, jobs=jobs, progress=progress))
    failures: dict[str, str] = {}
    places: list[str] = []
    done: list[Transfer] = []
    with repo.lock():
        for action in actions:
            try:
                done.append(action())
            except TransferError as error:
                failures.update(error.failures)
                places.append(error.place)
    if others or not actions:
        try:
            done.append(rest(others))
        except TransferError as error:
            failures.update(error.failures)
            places.append(error.place)
    if failures:
        raise TransferError(", ".join(dict.fromkeys(places)), failures)
    return reduce(add, done)
