"""What lies at a path of another repository, tracked or plain file of git, brought into a cache."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.data import versioned
from dvkf_prefect.data.digest import digest_bytes, digest_file
from dvkf_prefect.data.external import ExternalRepo
from dvkf_prefect.data.ignore import NAME as IGNORE_FILE
from dvkf_prefect.data.outputs import Output
from dvkf_prefect.data.revisions import describes_outputs
from dvkf_prefect.data.store import LEGACY, MD5, Cache, Stored, object_key
from dvkf_prefect.data.transfer import Remote, Transfer, fetch
from dvkf_prefect.data.tree import SUFFIX, Tree
from dvkf_prefect.errors import (
    MissingObjectError,
    OutputNotFoundError,
    RemoteError,
    TransferError,
    UnsafePathError,
)

if TYPE_CHECKING:
    from dvkf_prefect.data.transfer import Progress


@dataclass(frozen=True, slots=True)
class Content:
    """Content that is in a cache now.

    Attributes:
        stored: Its digest and size.
        hash_name: ``md5``, or ``md5-dos2unix`` of an output of DVC 2.x.
        tree: The files of a directory.
        transfer: What was moved for it.
    """

    stored: Stored
    hash_name: str = MD5
    tree: Tree | None = None
    transfer: Transfer | None = None


def bring(
    source: ExternalRepo,
    path: str,
    cache: Cache,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Content:
    """Bring a file or a directory of another repository into a cache.

    Args:
        source: The repository.
        path: An output, a path inside one, or a file or a directory that git tracks; posix, relative to the root.
        cache: Where to.
        jobs: How many transfers at once.
        progress: Told of files and bytes.

    Raises:
        OutputNotFoundError: There is no such path.
        TransferError: Some objects could not be had; all others are in the cache.
        UnsafePathError: The path leaves the repository.
    """
    source, path = repository_of(source, _plain(path))
    around, inside = _outputs_at(source, path)
    if around is not None:
        return _bring_tracked(source, around, path, cache, jobs, progress)
    place = source.root / path
    if place.is_file():
        return Content(Stored(cache.add_file(place), place.stat().st_size))
    return _bring_mixed(source, path, inside, cache, jobs, progress)


def check_there(source: ExternalRepo, path: str) -> None:
    """Make sure that a repository has a path, as far as that can be told without reading manifests.

    Raises:
        OutputNotFoundError: It has not.
    """
    source, path = repository_of(source, _plain(path))
    if not (source.root / path).exists() and not any(
        (path + "/").startswith(o.path + "/") or o.path.startswith(path + "/") for o in source.outputs()
    ):
        raise OutputNotFoundError(f"'{path}' is neither a tracked path nor a file of {source.url}")


def find_tracked(source: ExternalRepo, path: str, cache: Cache) -> tuple[ExternalRepo, Output, str]:
    """Find a tracked path without bringing its content; of a directory only the manifest is read.

    Args:
        source: The repository.
        path: An output or a path inside one.
        cache: Where a manifest that must be read is kept.

    Returns:
        The repository that tracks it, which may be one inside ``source``, the output, and the path's own digest.

    Raises:
        OutputNotFoundError: It is not tracked.
    """
    source, path = repository_of(source, _plain(path))
    around = next((o for o in source.outputs() if (path + "/").startswith(o.path + "/")), None)
    if around is None or around.digest is None:
        raise OutputNotFoundError(f"'{path}' is not tracked in {source.url}")
    if around.path == path:
        return source, around, around.digest
    return source, around, _part(source, around, path, cache)[0]


def digest_of(source: ExternalRepo, path: str, cache: Cache) -> tuple[str, str]:
    """Return the digest that `bring` would give a path, and its hash name, without bringing data.

    Manifests are read where the digest rests on what they list. The digest of a folder that holds outputs of DVC 2.x
    is one of its own: it tells two contents apart, and is no object's name.

    Args:
        source: The repository.
        path: As for `bring`.
        cache: Where manifests that must be read are kept.

    Raises:
        OutputNotFoundError: There is no such path, or nothing is recorded of it.
        MissingObjectError: A manifest is nowhere.
        UnsafePathError: The path leaves the repository.
    """
    source, path = repository_of(source, _plain(path))
    around, inside = _outputs_at(source, path)
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


def _outputs_at(source: ExternalRepo, path: str) -> tuple[Output | None, list[Output]]:
    """Return the output that a path is or lies in, and those that lie below it.

    Raises:
        OutputNotFoundError: Nothing is at the path.
        UnsafePathError: It leaves the repository.
    """
    tracked = source.outputs()
    around = next((o for o in tracked if o.cached and (path + "/").startswith(o.path + "/")), None)
    if around is not None:
        return around, []
    inside = [o for o in tracked if o.cached and o.digest and (not path or o.path.startswith(path + "/"))]
    place = source.root / path
    if not place.exists() and not inside:
        raise OutputNotFoundError(f"'{path}' is neither a tracked path nor a file of {source.url}")
    if place.exists():
        _check_inside(source, place)
    return None, inside


def _plain(path: str) -> str:
    plain = posixpath.normpath(path.replace(os.sep, "/")) if path else ""
    if plain.startswith(("/", "../")) or plain == "..":
        raise UnsafePathError(f"'{path}' is not a path inside the repository")
    return "" if plain == "." else plain


def repository_of(source: ExternalRepo, path: str) -> tuple[ExternalRepo, str]:
    """Return the innermost repository that holds a path, and the path in it."""
    parts = path.split("/")
    for count in range(len(parts), 0, -1):
        prefix = "/".join(parts[:count])
        if (source.root / prefix / ".dvc").is_dir() and prefix:
            return source.below(prefix), "/".join(parts[count:])
    return source, path


def _part(source: ExternalRepo, output: Output, path: str, cache: Cache) -> tuple[str, Tree | None]:
    """Return the digest, and for a directory the manifest, of a path inside an output."""
    inner = path[len(output.path) + 1 :]
    if not output.is_dir:
        raise OutputNotFoundError(f"'{path}' is not there: '{output.path}' is a file, in {source.url}")
    rows = _manifest(source, output, cache).below(inner)
    if not len(rows):
        raise OutputNotFoundError(f"'{path}' is not in the tracked directory '{output.path}' of {source.url}")
    if rows.relpaths == [inner]:
        return rows.digests[0], None
    tree = Tree.from_pairs((relpath[len(inner) + 1 :], digest) for relpath, digest in rows.items())
    return tree.digest, tree


def _bring_tracked(
    source: ExternalRepo, output: Output, path: str, cache: Cache, jobs: int | None, progress: Progress | None
) -> Content:
    if output.digest is None:
        raise OutputNotFoundError(
            f"'{output.path}' has no recorded content in {source.url} ({output.source})"
        )
    wanted = output
    if path != output.path:
        digest, tree = _part(source, output, path, cache)
        if tree is not None:
            _keep_manifest(tree, cache, output.hash_name)
        inner = path[len(output.path) + 1 :]
        files = tuple(f for f in output.versions if f.relpath == inner or f.relpath.startswith(inner + "/"))
        wanted = replace(output, digest=digest, size=None, isexec=False, versions=files)
    moved = fetch_from(source, wanted, cache, jobs=jobs, progress=progress)
    digest = wanted.digest or ""
    tree = cache.read_tree(digest, wanted.hash_name) if wanted.is_dir else None
    size = wanted.size
    if size is None:
        digests = tree.digests if tree else [digest]
        size = sum(cache.path(d, wanted.hash_name).stat().st_size for d in digests)
    return Content(
        Stored(digest, size, len(tree) if tree else None, wanted.isexec), wanted.hash_name, tree, moved
    )


def _bring_mixed(
    source: ExternalRepo,
    path: str,
    inside: list[Output],
    cache: Cache,
    jobs: int | None,
    progress: Progress | None,
) -> Content:
    """Bring a directory that holds outputs and files of git, but, as DVC does, not those that describe the outputs."""
    rows: list[tuple[str, str]] = []
    size = 0
    moved: Transfer | None = None
    for output in inside:
        content = modern(_bring_tracked(source, output, output.path, cache, jobs, progress), cache)
        if content.transfer:
            moved = moved + content.transfer if moved else content.transfer
        size += content.stored.size
        prefix = output.path[len(path) + 1 :] if path else output.path
        if content.tree is None:
            rows.append((prefix, content.stored.digest))
        else:
            rows += [(f"{prefix}/{relpath}", digest) for relpath, digest in content.tree.items()]
    found = list(_plain_files(source, path, {output.path for output in inside}))
    sizes = [os.stat(source.root / path / relpath).st_size for relpath in found]
    for number, digest in cache.add_files([str(source.root / path / relpath) for relpath in found], sizes):
        rows.append((found[number], digest))
        size += sizes[number]
    tree = Tree.from_pairs(rows)
    digest = cache.add_bytes(tree.to_bytes(), tree=True)
    return Content(Stored(digest, size, len(tree)), MD5, tree, moved)


def _plain_files(source: ExternalRepo, path: str, outputs: set[str]) -> Iterator[str]:
    """Yield the files below a folder that are no output and describe none, relative to the folder."""
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
            _check_inside(source, place)
            yield place.relative_to(top).as_posix()


def _check_inside(source: ExternalRepo, place: Path) -> None:
    """Refuse a link by which a clone would hand out files of this machine.

    Raises:
        UnsafePathError: It leads out of the clone.
    """
    if source.at is not None and not place.resolve().is_relative_to(source.root.resolve()):
        raise UnsafePathError(
            f"'{place.relative_to(source.root)}' of {source.url} is a link that leads out of it"
        )


def fetch_from(
    source: ExternalRepo,
    output: Output,
    cache: Cache,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Bring an output of another repository into a cache, from the nearest place that has it.

    Raises:
        TransferError: Some objects could not be had; all others are in the cache.
        RemoteError: The remote cannot be used.
    """
    kept = versioned.is_versioned(source.config, output.remote)
    places = source.caches() if kept or _imported(output) else source.places(output.remote)
    failure: TransferError | None = None
    for place in places:
        try:
            return fetch([output], cache, place, jobs=jobs, progress=progress)
        except TransferError as error:
            failure = error
    if _imported(output):
        from dvkf_prefect.data.origins import fetch_imports

        return fetch_imports(source, [output], cache=cache, jobs=jobs, progress=progress)
    if kept:
        return versioned.fetch_versions(
            source, [output], output.remote, jobs=jobs, progress=progress, cache=cache
        )
    if failure is not None:
        raise failure
    if is_complete(cache, output):
        return Transfer(source.url)
    raise RemoteError(
        f"{source.url} has no default remote to take '{output.path}' from; push it there, or name one with --remote"
    )


def _imported(output: Output) -> bool:
    return output.origin is not None and (output.origin.repo is not None or output.origin.versioned)


def is_complete(cache: Cache, output: Output) -> bool:
    """Tell whether a cache holds all of an output's recorded content."""
    digest = output.digest
    if digest is None or not cache.exists(digest, output.hash_name):
        return False
    return not output.is_dir or not cache.missing(
        cache.read_tree(digest, output.hash_name).digests, output.hash_name
    )


def _manifest(source: ExternalRepo, output: Output, cache: Cache) -> Tree:
    """Return a directory's manifest, from wherever it is."""
    digest = output.digest or ""
    if output.versions:
        return versioned.tree_of(output)
    with suppress(MissingObjectError):
        return cache.read_tree(digest, output.hash_name)
    places: list[Remote] = []
    if not _imported(output) and not versioned.is_versioned(source.config, output.remote):
        places = source.places(output.remote)
    for place in places:
        try:
            data = place.storage.read(object_key(digest, output.hash_name))
        except MissingObjectError:
            continue
        if digest_bytes(data) == digest.removesuffix(SUFFIX):
            tree = Tree.from_bytes(data, digest)
            _keep_manifest(tree, cache, output.hash_name)
            return tree
    fetch_from(source, output, cache)
    return cache.read_tree(digest, output.hash_name)


def _keep_manifest(tree: Tree, cache: Cache, hash_name: str) -> None:
    if not cache.exists(tree.digest, hash_name):
        temporary = cache.temporary()
        temporary.write_bytes(tree.to_bytes())
        cache.adopt(temporary, tree.digest, hash_name)


def modern(content: Content, cache: Cache) -> Content:
    """Return content of DVC 2.x as DVC 3.x names it, by the md5 of the bytes as they are."""
    if content.hash_name != LEGACY:
        return content
    old = content.stored
    if content.tree is None:
        digest = cache.add_file(cache.path(old.digest, LEGACY))
        return replace(content, stored=replace(old, digest=digest), hash_name=MD5)
    files = [str(cache.path(digest, LEGACY)) for digest in content.tree.digests]
    digests = [""] * len(files)
    for number, digest in cache.add_files(files, [os.stat(file).st_size for file in files]):
        digests[number] = digest
    tree = Tree(content.tree.relpaths, digests)
    digest = cache.add_bytes(tree.to_bytes(), tree=True)
    return replace(content, stored=replace(old, digest=digest), hash_name=MD5, tree=tree)
