"""Source bundle: the files of a commit as one archive, stored on the remote by its digest.

A stage's code is in git, its data on the remote. A pod has no clone and no rights to fetch one. So the git-tracked
files are packed into a tar archive. Entries are in order, without times or owners, so equal files give equal bytes on
every machine. The archive is stored beside the objects at ``dvkf/bundles/<sha256 of the tar>``, compressed by gzip.
Files that change with each run and are not sources (``.dvc/``, dvc.lock) are left out.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import (
    ConfigError,
    CorruptObjectError,
    GitError,
    MissingObjectError,
    StageError,
    UnsafePathError,
)
from dvkf_prefect.files import raise_disk_full
from dvkf_prefect.formats.tree import check_relpath
from dvkf_prefect.scratch import scratch_folder

_FOLDER = "dvkf/bundles"
RENEW_AFTER = 12 * 3600.0
"""Age in seconds at which a run's files beside the objects are written again; a collection removes old ones."""
_CHUNK = 1 << 20
_EXECUTABLE, _LINK, _SUBMODULE = "100755", "120000", "160000"


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Bundle:
    """Sources of a run.

    Attributes:
        digest: sha256 of the uncompressed archive, in hex.
        size: Size of the uncompressed archive, in bytes.
        commit: Commit of the sources.
        dirty: Files that differ from that commit, relative to the repository's root.
        paths: Files in the archive.
    """

    digest: str
    size: int
    commit: str
    dirty: tuple[str, ...] = ()
    paths: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def key(self) -> str:
        """Key of the bundle below the root of a remote."""
        return bundle_key(self.digest)

    def __str__(self) -> str:
        changed = f" with {len(self.dirty)} uncommitted file(s)" if self.dirty else ""
        return f"commit {self.commit[:12]}{changed}"


def bundle_key(digest: str) -> str:
    """Return the key of a bundle below the root of a remote.

    Raises:
        UnsafePathError: ``digest`` is not a digest.
    """
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise UnsafePathError(f"{digest!r} is not a sha256 digest")
    return f"{_FOLDER}/{digest}"


def uncommitted(repo: Repository, *, written: Container[str] = ()) -> tuple[str, ...]:
    """Return uncommitted files that a stage could read.

    Args:
        repo: The repository; must be in git.
        written: Paths of stages' outputs; they are results, not sources. Nor are dvc.lock, ``.dvc`` files,
            ``.gitignore`` and the ``.dvc`` folder sources: adding data and running stages change them.

    Returns:
        Paths relative to the root, sorted; untracked files are not included.

    Raises:
        GitError: Git refused.
    """
    return tuple(sorted(path for path in _changed(repo) if not _is_result(path, written)))


def make_bundle(
    repo: Repository, storage: Storage, *, allow_dirty: bool = False, written: Container[str] = ()
) -> Bundle:
    """Upload the sources of the checked-out commit to a remote, unless it has them.

    Args:
        repo: The repository; must be in git and have a commit.
        storage: Storage of the remote.
        allow_dirty: Bundle the work tree's current files, including untracked ones that are not ignored, instead of
            refusing uncommitted files.
        written: Paths of stages' outputs.

    Returns:
        The bundle.

    Raises:
        StageError: Files are not committed.
        ConfigError: The repository is not in git.
        GitError: There is no commit, or git refused.
        RemoteError: The remote cannot be used.

    Example:
        ``make_bundle(repo, repo.remote().storage).commit``
    """
    if repo.git is None:
        raise ConfigError(
            f"{repo.root} is not in git, but the sources of a run come from a commit. Run `git init` and "
            "commit."
        )
    commit = repo.git.head()
    if commit is None:
        raise GitError(
            f"{repo.git.root} has no commit yet, but the sources of a run come from one. Run `git commit`."
        )
    dirty = uncommitted(repo, written=written)
    if dirty and not allow_dirty:
        shown = ", ".join(f"'{path}'" for path in dirty[:10]) + (", …" if len(dirty) > 10 else "")
        raise StageError(
            f"{len(dirty)} file(s) are not committed, so no commit would record the sources of the run: "
            f"{shown}. Commit them, or allow uncommitted files (allow_dirty)"
        )
    entries = _entries(repo, commit)
    if allow_dirty:
        dirty = tuple(sorted({*dirty, *(p for p in _untracked(repo) if not _is_result(p, written))}))
    with tempfile.TemporaryFile() as raw:
        names = sorted({*entries, *dirty})
        paths = _write_tar(repo, entries, set(dirty), names, raw)
        size = raw.tell()
        if not allow_dirty and (changed := uncommitted(repo, written=written)):
            raise StageError(f"'{changed[0]}' changed while the sources were bundled. Start the run again.")
        digest = _digest_of(raw)
        bundle = Bundle(digest, size, commit, dirty, paths)
        if not _is_fresh(storage, bundle.key):
            _upload(raw, storage, bundle.key)
    return bundle


def unpack_bundle(storage: Storage, digest: str, dest: Path) -> None:
    """Download a bundle, verify its digest and unpack it.

    Nothing is written outside ``dest``: paths that lead out and links that point out are refused.

    Args:
        storage: Storage of the remote.
        digest: Digest of the bundle.
        dest: Folder to create.

    Raises:
        MissingObjectError: The bundle is not on the remote.
        CorruptObjectError: Its bytes do not match its digest; nothing is unpacked.
        UnsafePathError: An entry would leave the folder; nothing is kept.
        DiskFullError: The disk is full.
    """
    key = bundle_key(digest)
    with scratch_folder("dvkf-bundle-", dest.parent) as folder:
        packed, raw = Path(folder) / "tar.gz", Path(folder) / "tar"
        try:
            with packed.open("wb") as stream:
                for chunk in storage.stream(key):
                    stream.write(chunk)
            found = _unzip(packed, raw)
        except MissingObjectError:
            raise MissingObjectError(
                f"the source bundle {digest} is not on {storage.url}. Start the run again to upload it."
            ) from None
        except (gzip.BadGzipFile, EOFError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise_disk_full(error, packed)
                raise
            found = f"nothing ({error})"
        packed.unlink(missing_ok=True)
        if found != digest:
            raise CorruptObjectError(
                f"the source bundle {digest} on {storage.url} hashes to {found}, not to its name. Remove "
                f"{key} from the remote, and start the run again."
            )
        dest.mkdir()
        try:
            with tarfile.open(raw, "r:") as archive:
                _extract(archive, dest)
        except BaseException as error:
            shutil.rmtree(dest, ignore_errors=True)
            if isinstance(error, OSError):
                raise_disk_full(error, dest)
            raise


# -- content
# -----------------------------------------------------------------------------------------------------------


def _is_result(path: str, written: Container[str]) -> bool:
    name = posixpath.basename(path)
    if _is_left_out(path) or name == ".gitignore" or name.endswith(".dvc"):
        return True
    while path:
        if path in written:
            return True
        path = posixpath.dirname(path)
    return False


def _is_left_out(path: str) -> bool:
    return path.startswith(".dvc/") or posixpath.basename(path) == "dvc.lock"


def _paths(repo: Repository, listed: bytes) -> Iterator[str]:
    """Yield those of git's paths that are inside the repository, relative to its root."""
    prefix = repo.git_prefix
    for raw in listed.split(b"\0"):
        path = os.fsdecode(raw)
        if path and path.startswith(prefix):
            yield path[len(prefix) :]


def _changed(repo: Repository) -> Iterator[str]:
    assert repo.git is not None
    return _paths(repo, repo.git.run_bytes("diff", "--name-only", "--no-renames", "-z", "HEAD", "--"))


def _untracked(repo: Repository) -> Iterator[str]:
    assert repo.git is not None
    listed = repo.git.run_bytes("ls-files", "--others", "--exclude-standard", "--full-name", "-z", ":/")
    return _paths(repo, listed)


@dataclass(frozen=True, slots=True)
class _Entry:
    mode: str
    blob: str


def _entries(repo: Repository, commit: str) -> dict[str, _Entry]:
    """Return the files of a commit inside the repository, by path."""
    assert repo.git is not None
    prefix = repo.git_prefix
    found = {}
    for line in repo.git.run_bytes("ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0"):
        about, tab, raw = line.partition(b"\t")
        path = os.fsdecode(raw)
        if not tab or not path.startswith(prefix):
            continue
        mode, _, blob = about.decode().split()
        path = path[len(prefix) :]
        if mode != _SUBMODULE and not _is_left_out(path):
            found[path] = _Entry(mode, blob)
    return found


def _write_tar(
    repo: Repository, entries: dict[str, _Entry], dirty: Container[str], names: list[str], stream: IO[bytes]
) -> tuple[str, ...]:
    """Write the archive; return the paths of its files."""
    differing = set(_changed(repo))
    paths = []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for name in names:
            content = None
            # Unchanged files are read from disk, as the checkout wrote them: with line ends, LFS and other filters
            # applied.
            if name in dirty or name not in differing:
                content = _in_work_tree(repo, name)
            entry = entries.get(name)
            if content is None and entry is not None and name not in dirty:
                content = entry.mode, _blob(repo, entry)
            if content is None:
                continue  # removed, but not committed
            mode, data = content
            if name not in dirty and entry is not None:
                mode = entry.mode
            info = tarfile.TarInfo(name)
            if mode == _LINK:
                target = os.fsdecode(data)
                if not _stays(name, target):
                    continue  # unpacking would refuse it
                info.type, info.linkname, data = tarfile.SYMTYPE, target, b""
            info.mode = 0o755 if mode == _EXECUTABLE else 0o644
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            paths.append(name)
    return tuple(paths)


def _in_work_tree(repo: Repository, name: str) -> tuple[str, bytes] | None:
    """Return git's mode and the content of a file on disk; None if there is none."""
    path = repo.root / name
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            return _LINK, os.fsencode(os.readlink(path))
        if stat.S_ISREG(info.st_mode):
            return _EXECUTABLE if info.st_mode & 0o100 else "100644", path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None


def _blob(repo: Repository, entry: _Entry) -> bytes:
    assert repo.git is not None
    return repo.git.run_bytes("cat-file", "blob", entry.blob)


# -- transfer
# ----------------------------------------------------------------------------------------------------------


def _digest_of(raw: IO[bytes]) -> str:
    raw.seek(0)
    sha = hashlib.sha256()
    while chunk := raw.read(_CHUNK):
        sha.update(chunk)
    return sha.hexdigest()


def _is_fresh(storage: Storage, key: str) -> bool:
    """Return True if the remote has a bundle that is young enough to survive a collection during this run."""
    if storage.size(key) is None:
        return False
    changed = next((changed for name, _, changed in storage.dated(_FOLDER) if name == key), None)
    return changed is None or changed > time.time() - RENEW_AFTER


def _upload(raw: IO[bytes], storage: Storage, key: str) -> None:
    raw.seek(0)
    with scratch_folder("dvkf-bundle-") as folder:
        packed = Path(folder) / "tar.gz"
        with packed.open("wb") as stream, gzip.GzipFile("", "wb", 6, stream, mtime=0) as zipped:
            shutil.copyfileobj(raw, zipped, _CHUNK)
        storage.upload(key, packed)


def _unzip(packed: Path, raw: Path) -> str:
    """Decompress a file; return the sha256 of its content."""
    sha: _Hash = hashlib.sha256()
    with gzip.open(packed, "rb") as source, raw.open("wb") as target:
        while chunk := source.read(_CHUNK):
            sha.update(chunk)
            target.write(chunk)
    return sha.hexdigest()


def _stays(name: str, target: str) -> bool:
    """Return True if a link stays in the folder that its own path is relative to."""
    if not target or target.startswith("/") or "\0" in target:
        return False
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return path != ".." and not path.startswith("../")


def _extract(archive: tarfile.TarFile, dest: Path) -> None:
    """Extract plain files and links, and nothing outside ``dest``.

    Links are created last, so that no file is written through one. Each link is then resolved in place: its target,
    through other links too, must be inside.
    """
    links: list[tuple[str, str]] = []
    refuse: Callable[[str], UnsafePathError] = lambda name: UnsafePathError(  # noqa: E731
        f"the source bundle holds {name!r}, which would leave its folder; nothing was extracted"
    )
    for member in archive:
        check_relpath(member.name, "the source bundle")
        if member.issym():
            links.append((member.name, member.linkname))
            continue
        if not member.isreg():
            raise refuse(member.name)
        target = dest / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = archive.extractfile(member)
        assert source is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        mode = 0o777 if member.mode & 0o100 else 0o666
        with open(os.open(target, flags, mode), "wb") as stream:
            shutil.copyfileobj(source, stream, _CHUNK)
    root = dest.resolve()
    names = {name for name, _ in links}
    for name, link in links:
        target = dest / name
        if not _stays(name, link) or not names.isdisjoint(map(str, PurePosixPath(name).parents)):
            raise refuse(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(link)
    for name in names:
        if not Path(os.path.realpath(dest / name)).is_relative_to(root):
            raise refuse(name)
