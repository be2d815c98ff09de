"""Fetch paths of other repositories, and the content of imports, into a cache."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.imports import pending
from dvkf_prefect.data.imports.external import ExternalRepo
from dvkf_prefect.data.imports.lookup import check_inside, outputs_at, plain_path, repository_of
from dvkf_prefect.data.imports.origins import aware, from_source, open_origin
from dvkf_prefect.data.imports.pending import is_complete, known_content, remember
from dvkf_prefect.data.imports.sources import Source, open_source
from dvkf_prefect.data.progress import NO_PROGRESS, Progress, counting
from dvkf_prefect.data.transfer import versioned
from dvkf_prefect.data.transfer.manifests import read_manifest
from dvkf_prefect.data.transfer.transfer import Remote, Transfer, fetch
from dvkf_prefect.errors import (
    ConfigError,
    CorruptObjectError,
    DvkfError,
    GitError,
    MissingObjectError,
    NotARepositoryError,
    OutputNotFoundError,
    RemoteError,
    TransferError,
)
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.dvcignore import NAME as IGNORE_FILE
from dvkf_prefect.formats.files import describes_outputs
from dvkf_prefect.formats.objects import LEGACY, MD5, Content
from dvkf_prefect.formats.outputs import Origin, Output
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.paths import is_within
from dvkf_prefect.urls import public_url

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Fetched:
    """Content that was fetched into a cache.

    Attributes:
        content: The content.
        tree: Manifest of a directory.
        transfer: Objects that were downloaded for it.
    """

    content: Content
    tree: Tree | None = None
    transfer: Transfer | None = None


def bring(
    source: ExternalRepo,
    path: str,
    cache: Cache,
) -> Fetched:
    """Fetch a file or a directory of another repository into a cache.

    Args:
        source: The repository.
        path: Output, path inside one, or file or directory that git tracks; posix, relative to the root.
        cache: Destination.

    Raises:
        OutputNotFoundError: The path does not exist.
        TransferError: Some objects could not be downloaded; all others are in the cache.
        UnsafePathError: The path leads outside the repository.
    """
    source, path = repository_of(source, plain_path(path))
    around, inside = outputs_at(source, path)
    if around is not None:
        return _bring_tracked(source, around, path, cache)
    place = source.root / path
    if place.is_file():
        return Fetched(Content(cache.add_file(place), place.stat().st_size))
    return _bring_mixed(source, path, inside, cache)


def find_tracked(source: ExternalRepo, path: str, cache: Cache) -> tuple[ExternalRepo, Output, str]:
    """Find a tracked path without fetching its content; for a directory, only the manifest is read.

    Args:
        source: The repository.
        path: Path of an output, or inside one.
        cache: Cache for manifests that must be fetched.

    Returns:
        The repository that tracks the path (``source`` or one nested in it), the output, and the path's digest.

    Raises:
        OutputNotFoundError: The path is not tracked.
    """
    source, path = repository_of(source, plain_path(path))
    around = next((o for o in source.outputs() if (path + "/").startswith(o.path + "/")), None)
    if around is None or around.digest is None:
        raise OutputNotFoundError(f"'{path}' is not tracked in {source.url}")
    if around.path == path:
        return source, around, around.digest
    return source, around, _part(source, around, path, cache)[0]


def digest_of(source: ExternalRepo, path: str, cache: Cache) -> tuple[str, str]:
    """Return the digest that `bring` would give a path, and its hash name, without fetching data.

    Manifests are read if the digest depends on them. A folder with outputs of DVC 2.x gets a digest for comparisons
    only; no object has that name.

    Args:
        source: The repository.
        path: As for `bring`.
        cache: Cache for manifests that must be fetched.

    Raises:
        OutputNotFoundError: The path does not exist, or has no recorded content.
        MissingObjectError: A manifest is missing everywhere.
        UnsafePathError: The path leads outside the repository.
    """
    source, path = repository_of(source, plain_path(path))
    around, inside = outputs_at(source, path)
    if around is not None:
        if around.digest is None:
            raise OutputNotFoundError(f"'{around.path}' has no recorded content in {source.url}")
        if around.path == path:
            return around.digest, around.hash_name
        return _part(source, around, path, cache)[0], around.hash_name
    place = source.root / path
    if place.is_file():
        return digest_file(place), MD5
    rows: list[tuple[str, str]] = []
    for output in inside:
        prefix = output.path[len(path) + 1 :] if path else output.path
        if output.is_dir:
            tree = _manifest(source, output, cache)
            rows += [(f"{prefix}/{relpath}", digest) for relpath, digest in tree.items()]
        else:
            rows.append((prefix, output.digest or ""))
    found = _plain_files(source, path, {output.path for output in inside})
    rows += [(relpath, digest_file(source.root / path / relpath)) for relpath in found]
    legacy = any(output.hash_name == LEGACY for output in inside)
    return Tree.from_pairs(rows).digest, LEGACY if legacy else MD5


def _part(source: ExternalRepo, output: Output, path: str, cache: Cache) -> tuple[str, Tree | None]:
    """Return the digest of a path inside an output, and its manifest for a directory."""
    inner = path[len(output.path) + 1 :]
    if not output.is_dir:
        raise OutputNotFoundError(f"'{path}' does not exist in {source.url}: '{output.path}' is a file")
    tree = _manifest(source, output, cache).subtree(inner)
    if not tree:
        raise OutputNotFoundError(f"'{path}' is not in the tracked directory '{output.path}' of {source.url}")
    if tree.relpaths == [""]:
        return tree.digests[0], None
    return tree.digest, tree


def _bring_tracked(source: ExternalRepo, output: Output, path: str, cache: Cache) -> Fetched:
    if output.digest is None:
        raise OutputNotFoundError(
            f"'{output.path}' has no recorded content in {source.url} ({output.source})"
        )
    wanted = output
    if path != output.path:
        digest, tree = _part(source, output, path, cache)
        if tree is not None:
            cache.add_tree(tree, output.hash_name)
        inner = path[len(output.path) + 1 :]
        files = tuple(f for f in output.versions if is_within(f.relpath, inner))
        wanted = replace(output, content=Content(digest, hash_name=output.hash_name), versions=files)
    moved = fetch_from(source, wanted, cache)
    digest = wanted.digest or ""
    tree = cache.read_tree(digest, wanted.hash_name) if wanted.is_dir else None
    size = wanted.size
    if size is None:
        digests = tree.digests if tree else [digest]
        size = sum(cache.path(d, wanted.hash_name).stat().st_size for d in digests)
    nfiles = len(tree) if tree else None
    return Fetched(Content(digest, size, nfiles, wanted.isexec, wanted.hash_name), tree, moved)


def _bring_mixed(
    source: ExternalRepo,
    path: str,
    inside: list[Output],
    cache: Cache,
) -> Fetched:
    """Fetch a directory that contains outputs and git's files; as in DVC, without the files that describe outputs."""
    rows: list[tuple[str, str]] = []
    size = 0
    moved: Transfer | None = None
    for output in inside:
        fetched = modern(_bring_tracked(source, output, output.path, cache), cache)
        if fetched.transfer:
            moved = moved + fetched.transfer if moved else fetched.transfer
        size += fetched.content.size or 0
        prefix = output.path[len(path) + 1 :] if path else output.path
        if fetched.tree is None:
            rows.append((prefix, fetched.content.digest))
        else:
            rows += [(f"{prefix}/{relpath}", digest) for relpath, digest in fetched.tree.items()]
    found = list(_plain_files(source, path, {output.path for output in inside}))
    sizes = [os.stat(source.root / path / relpath).st_size for relpath in found]
    for number, digest in cache.add_files([str(source.root / path / relpath) for relpath in found], sizes):
        rows.append((found[number], digest))
        size += sizes[number]
    tree = Tree.from_pairs(rows)
    digest = cache.add_tree(tree)
    return Fetched(Content(digest, size, len(tree)), tree, moved)


def _plain_files(source: ExternalRepo, path: str, outputs: set[str]) -> Iterator[str]:
    """Yield the files below a folder that neither are nor describe outputs, relative to the folder."""
    top = source.root / path
    for folder, folders, names in os.walk(top):
        here = os.path.relpath(folder, source.root).replace(os.sep, "/")
        here = "" if here == "." else here + "/"
        folders[:] = [
            name
            for name in folders
            if name not in (".git", ".hg", ".dvc")
            and here + name not in outputs
            and not source.ignore.matches(f"{here}{name}/")
            and not os.path.islink(os.path.join(folder, name))
        ]
        for name in names:
            place = Path(folder, name)
            if (
                here + name in outputs
                or describes_outputs(name)
                or name == IGNORE_FILE
                or source.ignore.matches(here + name)
                or not place.is_file()
            ):
                continue
            check_inside(source, place)
            yield place.relative_to(top).as_posix()


def fetch_from(
    source: ExternalRepo,
    output: Output,
    cache: Cache,
) -> Transfer:
    """Fetch an output of another repository into a cache, from the nearest store that has it.

    Raises:
        TransferError: Some objects could not be downloaded; all others are in the cache.
        RemoteError: The remote cannot be used.
    """
    kept = source.config.is_versioned(output.remote)
    places = source.caches() if kept or _imported(output) else source.places(output.remote)
    failure: TransferError | None = None
    for place in places:
        try:
            return fetch([output], cache, place, progress=source.progress)
        except TransferError as error:
            failure = error
    if _imported(output):
        return fetch_imports(source, [output], cache=cache)
    if kept:
        return versioned.fetch_versions(source, [output], output.remote, cache=cache)
    if failure is not None:
        raise failure
    if is_complete(cache, output):
        return Transfer(source.url)
    raise RemoteError(
        f"{source.url} has no default remote to fetch '{output.path}' from. Set one in that repository, or "
        "name one with --remote."
    )


def _imported(output: Output) -> bool:
    return output.origin is not None and (output.origin.repo is not None or output.origin.versioned)


def _manifest(source: ExternalRepo, output: Output, cache: Cache) -> Tree:
    """Return a directory's manifest from its `.dvc` file, the cache, or the nearest store."""
    digest = output.digest or ""
    if (listed := output.listed_tree()) is not None:
        return listed
    with suppress(MissingObjectError, CorruptObjectError):
        return read_manifest(
            digest, output.hash_name, caches=[cache], remotes=_stores(source, output), mend=True
        )
    fetch_from(source, output, cache)
    return cache.read_tree(digest, output.hash_name)


def _stores(source: ExternalRepo, output: Output) -> Iterator[Remote]:
    """Yield the stores that may have an output's objects by digest, the nearest first."""
    if not _imported(output) and not source.config.is_versioned(output.remote):
        yield from source.places(output.remote)


def modern(fetched: Fetched, cache: Cache) -> Fetched:
    """Store content of DVC 2.x under the names of DVC 3.x, the md5 of the unchanged bytes."""
    old = fetched.content
    if old.hash_name != LEGACY:
        return fetched
    if fetched.tree is None:
        digest = cache.add_file(cache.path(old.digest, LEGACY))
        return replace(fetched, content=replace(old, digest=digest, hash_name=MD5))
    files = [str(cache.path(digest, LEGACY)) for digest in fetched.tree.digests]
    digests = [""] * len(files)
    for number, digest in cache.add_files(files, [os.stat(file).st_size for file in files]):
        digests[number] = digest
    tree = Tree(fetched.tree.relpaths, digests)
    digest = cache.add_tree(tree)
    return replace(fetched, content=replace(old, digest=digest, hash_name=MD5), tree=tree)


def bring_source(
    found: Source, cache: Cache, *, jobs: int | None = None, progress: Progress = NO_PROGRESS
) -> Content:
    """Read a source into a cache, with progress."""
    expected = sum(size or 0 for size in found.sizes)
    with counting(progress, f"import {public_url(found.url)}", len(found.relpaths), expected) as advance:
        return found.bring(cache, jobs=jobs, advance=advance)


def fetch_imports(
    repo: Repository,
    outputs: Sequence[Output],
    *,
    cache: Cache | None = None,
) -> Transfer:
    """Fetch imports from their sources into the cache; imports that are in the cache are skipped.

    The digest of content without a record (`--no-download`) is kept for `place_imports`.

    Args:
        repo: Repository that records the imports.
        outputs: Outputs to fetch; those that remotes store are skipped, see `from_source`.
        cache: Destination; None for the repository's cache.

    Raises:
        TransferError: Some imports could not be downloaded, or their source has changed; all others arrived.
    """
    cache = cache or repo.cache
    groups: dict[str, list[tuple[Output, Origin]]] = {}
    counts = [0, 0, 0]
    for output in outputs:
        origin = output.origin
        if origin is None or not from_source(output):
            continue
        if pending.is_complete(cache, known_content(repo, output)):
            counts[2] += 1
            continue
        key = json.dumps(origin.repo, sort_keys=True, default=str) if origin.repo else output.source
        groups.setdefault(key, []).append((output, origin))
    failed = _Failures()

    def arrived(output: Output, origin: Origin, content: Content) -> None:
        if output.digest is None:
            remember(repo, output, origin, content)
        elif content.digest != output.digest:
            failed.add(
                output.path,
                f"{origin} holds {content.digest} now, not the imported {output.digest}. Run "
                f"`dvkf update {output.source}` to import the new content.",
                missing=True,
            )
            return
        counts[0] += content.nfiles or 1
        counts[1] += content.size or 0

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
                    arrived(
                        output, origin, bring_source(found, cache, jobs=repo.jobs, progress=repo.progress)
                    )
                continue
            _fetch_group(repo, group, cache, arrived, failed)
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
        raise TransferError("the sources of the imports", failed.reasons, missing=failed.missing)
    files, size, present = counts
    return Transfer("imports", files, size, present)


@dataclass(slots=True)
class _Failures:
    """Failures by path; ``missing`` has the paths whose content does not exist at the source."""

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
    repo: Repository,
    group: Sequence[tuple[Output, Origin]],
    cache: Cache,
    arrived: Callable[[Output, Origin, Content], None],
    failed: _Failures,
) -> None:
    """Fetch imports from one revision of one repository."""
    values = group[0][1].repo or {}
    with open_origin(repo, values, values.get("rev_lock")) as source:
        for output, origin in group:
            try:
                fetched = bring(source, origin.path, cache)
                if output.hash_name == MD5:
                    fetched = modern(fetched, cache)
            except TransferError as error:
                for name, why in error.failures.items():
                    failed.add(posixpath.join(output.path, name), why, missing=name in error.missing)
            except (OutputNotFoundError, ConfigError) as error:
                failed.add_error(output.path, error)
            else:
                arrived(output, origin, fetched.content)


def fetch_all(
    repo: Repository,
    outputs: Sequence[Output],
    remote: str | None,
    rest: Callable[[Sequence[Output]], Transfer],
) -> Transfer:
    """Fetch outputs into the cache: imports from their source, all others from remotes.

    Args:
        repo: The repository.
        outputs: Outputs to fetch.
        remote: Name of the remote; None for the output's own remote, else the default one.
        rest: Function that fetches the outputs stored by digest on remotes.

    Raises:
        TransferError: Some outputs could not be downloaded; all others arrived.
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
            is_kept[name] = repo.config.is_versioned(name)
        (kept.setdefault(name, []) if is_kept[name] else others).append(output)
    actions: list[Callable[[], Transfer]] = []
    if imported:
        actions.append(lambda: fetch_imports(repo, imported))
    for name, group in kept.items():
        actions.append(partial(versioned.fetch_versions, repo, group, name))
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
