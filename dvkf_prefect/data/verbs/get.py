"""Download data from repositories and urls without tracking it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.cache.borrowed import BorrowedCache
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.imports import fetch
from dvkf_prefect.data.imports.external import open_external
from dvkf_prefect.data.imports.fetch import bring_source
from dvkf_prefect.data.imports.sources import open_source
from dvkf_prefect.data.progress import NO_PROGRESS, Progress
from dvkf_prefect.data.remotes.urls import without_query
from dvkf_prefect.data.repository.config import Config
from dvkf_prefect.errors import CorruptObjectError, ObjectError, OutputError, OutputNotFoundError
from dvkf_prefect.formats.files import describes_outputs
from dvkf_prefect.formats.objects import Content, object_key
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.paths import make_folders
from dvkf_prefect.scratch import put_in_place, scratch_beside, scratch_folder

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


def get(
    url: str,
    path: str,
    out: str | os.PathLike[str] | None = None,
    *,
    rev: str | None = None,
    force: bool = False,
    remote: str | None = None,
    remote_config: Mapping[str, str] | None = None,
    config: str | Mapping[str, Any] | None = None,
    jobs: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Path:
    """Download a file or a directory that a repository tracks by DVC or by git.

    Args:
        url: The repository: a folder or a git url.
        path: Path to download, relative to the repository's root; may lie inside a tracked directory.
        out: Destination; None for the source's name in the current folder. An existing folder receives it
            under its own name.
        rev: Git revision of the repository.
        force: Replace an existing file or directory.
        remote: Name of the repository's remote to download from.
        remote_config: Options that override those of that remote.
        config: Configuration file, or its sections, whose settings override the repository's.
        jobs: Number of parallel transfers.
        progress: Called as files and bytes complete.

    Returns:
        The absolute path of the download.

    Raises:
        OutputError: The destination exists, or its name is that of a DVC file.
        OutputNotFoundError: The repository has no such path.
        TransferError: Some objects could not be downloaded; the destination was not changed.

    Example:
        >>> get("https://git.example.org/team/data.git", "images/cats", rev="v1.2")
    """
    dest = Path(os.path.abspath(resolve_out(path, out)))
    check_free(dest, force)
    if describes_outputs(dest.name):
        raise OutputError(f"{path} is a DVC file. Name a data file or a directory.")
    with (
        scratch_beside(dest, ".dvkf-get-") as scratch,
        open_external(
            url,
            rev,
            remote=remote,
            remote_config=remote_config,
            config=config,
            cache_dir=scratch / "cache",
            jobs=jobs,
            progress=progress,
        ) as source,
    ):
        borrowed = source.cache if source.at else BorrowedCache(scratch / "cache", source.cache.root)

        def export(cache: Cache, out: Path) -> Path:
            fetched = fetch.bring(source, path, cache)
            _export(cache, fetched.content, fetched.tree, out)
            return out

        try:
            new = export(borrowed, scratch / "out")
        except CorruptObjectError:
            # Retry with a cache of its own: objects copied there are verified; a damaged one is read from elsewhere.
            new = export(Cache(scratch / "own"), scratch / "again")
        put_in_place(new, dest, scratch)
    return dest


def get_own(
    repo: Repository,
    path: str,
    out: str | os.PathLike[str] | None = None,
    *,
    rev: str | None = None,
    force: bool = False,
) -> Path:
    """Implement `Repo.get`.

    Raises:
        OutputError: The destination exists, or its name is that of a DVC file.
        OutputNotFoundError: The revision has no such path.
        TransferError: Some objects could not be downloaded; the destination was not changed.
    """
    return get(
        str(repo.root),
        path,
        out,
        rev=rev,
        force=force,
        config=repo.config.given,
        jobs=repo.jobs,
        progress=repo.progress,
    )


def storage_url(
    url: str,
    path: str,
    *,
    rev: str | None = None,
    remote: str | None = None,
    remote_config: Mapping[str, str] | None = None,
    config: str | None = None,
) -> str:
    """Return the url of a tracked path on its repository's remote; for a directory, that of its manifest.

    Args:
        url: The repository: a folder or a git url.
        path: Path of an output, or inside one.
        rev: Git revision of the repository.
        remote: Name of the repository's remote.
        remote_config: Options that override those of that remote.
        config: Configuration file whose settings override the repository's.

    Raises:
        OutputNotFoundError: The path is not tracked.
        RemoteNotFoundError: The repository has no such remote, or no default one.
    """
    with (
        scratch_folder("dvkf-get-") as folder,
        open_external(
            url, rev, remote=remote, remote_config=remote_config, config=config, cache_dir=folder
        ) as opened,
    ):
        cache = opened.cache if opened.at else BorrowedCache(folder, opened.cache.root)
        source, output, digest = fetch.find_tracked(opened, path, cache)
        _, options = source.config.remote(output.remote)
        base = options["url"].rstrip("/")
        if source.config.is_versioned(output.remote):
            return f"{base}/{path}"
        return f"{base}/{object_key(digest, output.hash_name)}"


def get_url(
    url: str,
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    fs_config: Mapping[str, str] | None = None,
    config: Config | None = None,
    jobs: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Path:
    """Download a file or a directory from a url.

    Args:
        url: Path, or url such as ``s3://bucket/images``.
        out: Destination; None for the source's name in the current folder. An existing folder receives it
            under its own name.
        force: Replace an existing file or directory.
        fs_config: Options for the url, under the names of remote options.
        config: Settings with the remotes for ``remote://name/path``.
        jobs: Number of parallel transfers.
        progress: Called as files and bytes complete.

    Returns:
        The absolute path of the download.

    Raises:
        OutputError: The destination exists.
        OutputNotFoundError: The url does not exist.
        TransferError: Some files could not be downloaded; the destination was not changed.
    """
    dest = Path(os.path.abspath(resolve_out(url, out)))
    check_free(dest, force)
    found = open_source(config or Config(None), url, folder=Path.cwd(), fs_config=fs_config)
    with scratch_beside(dest, ".dvkf-get-") as scratch:
        cache = Cache(scratch / "cache")
        content = bring_source(found, cache, jobs=jobs, progress=progress)
        tree = cache.read_tree(content.digest) if found.is_dir else None
        _export(cache, content, tree, scratch / "out")
        put_in_place(scratch / "out", dest, scratch)
    return dest


def list_url(
    url: str, *, fs_config: Mapping[str, str] | None = None, config: Config | None = None
) -> list[tuple[str, int | None]]:
    """Return the files at a url with their sizes in bytes; the path of a single file is its name.

    Raises:
        OutputNotFoundError: The url does not exist.
    """
    found = open_source(config or Config(None), url, folder=Path.cwd(), fs_config=fs_config)
    name = _name_of(url)
    return [(relpath or name, size) for relpath, size in zip(found.relpaths, found.sizes, strict=True)]


def resolve_out(given: str, out: str | os.PathLike[str] | None) -> str:
    """Return the destination of a download: ``out``, the source's name inside that folder, or its name alone."""
    if not out:
        return _name_of(given)
    return os.path.join(out, _name_of(given)) if os.path.isdir(out) else os.fspath(out)


def _name_of(given: str) -> str:
    name = os.path.basename(os.path.normpath(without_query(given) if "://" in given else given))
    if name in ("", ".", ".."):
        raise OutputError(f"'{given}' has no file name. Give a destination.")
    return name


def check_free(dest: Path, force: bool) -> None:
    """Check that a destination can be written.

    Raises:
        OutputError: It exists, and ``force`` is not set.
        OutputNotFoundError: Its folder does not exist.
    """
    if os.path.lexists(dest) and not force:
        raise OutputError(
            f"The file '{os.path.relpath(dest)}' already exists locally.\nTo override it, re-run with '--force'."
        )
    if not dest.parent.is_dir():
        raise OutputNotFoundError(f"the folder {dest.parent} does not exist. Create it, or name another.")


def _export(cache: Cache, content: Content, tree: Tree | None, out: Path) -> None:
    if tree is None:
        mode = 0o777 if content.isexec else 0o666
        cache.copy_out(content.digest, out, mode=mode, hash_name=content.hash_name)
        return
    make_folders(str(out), tree.relpaths)
    for _, result in cache.place(tree.digests, f"{out}/", tree.relpaths, hash_name=content.hash_name):
        if isinstance(result, ObjectError):
            raise result
