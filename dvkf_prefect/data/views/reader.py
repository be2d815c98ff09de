"""Read access to the files of one revision, or of the workspace: from git, the cache or the remote.

Only files that are read are downloaded. They are stored in the cache if they match their digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from io import BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO, cast

from dvkf_prefect.data.cache._copier import LARGE
from dvkf_prefect.data.imports.fetch import fetch_imports
from dvkf_prefect.data.imports.origins import from_source
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.transfer import versioned
from dvkf_prefect.data.transfer.manifests import opened, read_manifest
from dvkf_prefect.data.transfer.transfer import Remote, fetch
from dvkf_prefect.data.views.listing import Entry, Key, Listing
from dvkf_prefect.data.views.streams import Reader, Whole, in_flight, open_checked, open_remote_object
from dvkf_prefect.errors import (
    CorruptObjectError,
    DvkfError,
    MissingObjectError,
    ObjectError,
    RemoteError,
    RemoteNotFoundError,
    TransferError,
)
from dvkf_prefect.files import temporary_beside
from dvkf_prefect.formats.objects import MD5, Content, object_key
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import Tree

# Up to this many sizes are queried one by one; for more, the remote is listed.
_ASK_EACH = 64


class View(Listing):
    """Readable files of one revision of a repository, or of its workspace; see `Listing`.

    Example:
        >>> repo = Repo.open(".")
        >>> view = View(repo, repo.git.resolve("v1"))
        >>> view.open(view.entry("data/train/a.csv")).read()
    """

    def __init__(self, repo: Repository, commit: str | None = None, *, label: str | None = None) -> None:
        super().__init__(repo, commit, label=label)
        self._sizes: dict[Key, int] = {}
        self._asked = 0
        self._remotes: dict[str | None, Remote | DvkfError] = {}
        self._silent: set[str | None] = set()
        self._pid = self._first_pid = os.getpid()

    def sizes(self, entries: Sequence[Entry], *, strict: bool = False) -> list[int | None]:
        """Return the sizes of files in bytes; unknown sizes are looked up in the cache, else on the remote.

        A few files are queried one by one; for many, the remote is listed once.

        Args:
            entries: The files. A directory has its recorded size, or None.
            strict: Raise if a size is unknown, instead of returning None.

        Raises:
            RemoteError: With ``strict``, the remote does not respond.
            MissingObjectError: With ``strict``, an object is neither in the cache nor on the remote.
        """
        self._learn([e for e in entries if e.size is None and e.digest and not e.is_dir], strict)
        found: list[int | None] = []
        for entry in entries:
            size = entry.size
            if size is None and entry.digest and not entry.is_dir:
                size = self._sizes.get(_key(entry))
                if size is None and strict:
                    raise self._missing(entry)
            found.append(size)
        return found

    def open(self, entry: Entry) -> BinaryIO:
        """Open a file for reading.

        A small object of the cache is verified first; a large one is opened in place and verified while it is read. A
        small object that is missing from the cache is downloaded first. A large one is downloaded piece by piece, on
        demand, and stored in the cache once it is complete.

        Raises:
            MissingObjectError: The content is neither in the cache nor on the remote.
            CorruptObjectError: The content does not match its digest; for a large file, raised while reading.
            RemoteError: The remote cannot be used.
            IsADirectoryError: The entry is a directory.
        """
        if entry.is_dir:
            raise IsADirectoryError(f"'{entry.path}' is a directory in {self.name}")
        if entry.place is not None:
            file = FileIO(entry.place, "rb")
            return Reader(file, os.fstat(file.fileno()).st_size)
        if entry.blob is not None:
            ((_, data),) = self._blobs([entry])
            return Whole(data)
        try:
            return self._open_cached(entry)
        except MissingObjectError:
            return self._open_missing(entry)
        except CorruptObjectError:
            # The damaged object was moved aside; the remote may have a good one.
            with suppress(DvkfError, OSError):
                return self._open_missing(entry)
            raise

    def bring(self, entries: Iterable[Entry]) -> None:
        """Download the content of files into the cache, in parallel.

        Args:
            entries: The files; those in git or in the workspace are skipped.

        Raises:
            TransferError: Some files could not be downloaded; all others are in the cache.
            MissingObjectError: The only requested file could not be downloaded, or there is no remote.
            RemoteError: The remote cannot be used.
        """
        wanted = {_key(e): e for e in entries if e.digest and e.output and not e.place and not e.blob}
        with in_flight(wanted):
            missing: dict[tuple[str | None, bool], list[Entry]] = {}
            for hash_name in {key[0] for key in wanted}:
                away = self.repo.cache.missing([d for h, d in wanted if h == hash_name], hash_name)
                for digest in sorted(away):
                    entry = wanted[hash_name, digest]
                    output = cast("Output", entry.output)
                    missing.setdefault((output.remote, self._is_special(output)), []).append(entry)
            failed: TransferError | None = None
            for (name, special), group in missing.items():
                try:
                    (self._bring_special if special else self._bring_group)(name, group)
                except TransferError as error:
                    failed = TransferError(
                        error.place, {**(failed.failures if failed else {}), **error.failures}
                    )
        if failed and len(wanted) == 1:
            (entry,) = wanted.values()
            raise self._why(entry, "; ".join(failed.failures.values())) from failed
        if failed:
            raise failed

    def export(self, pairs: Sequence[tuple[Entry, str]]) -> None:
        """Copy files to paths on this machine, atomically; objects of the cache are verified while they are copied.

        Args:
            pairs: Each file and its destination. Existing files are replaced; missing folders are created.

        Raises:
            TransferError: Some files could not be downloaded; nothing was copied.
            CorruptObjectError: An object of the cache does not match its digest.
            DiskFullError: The disk is full.
        """
        self.bring([entry for entry, _ in pairs])
        for folder in {os.path.dirname(dest) for _, dest in pairs} - {""}:
            os.makedirs(folder, exist_ok=True)
        kinds: dict[tuple[str, bool], list[tuple[Entry, str]]] = {}
        blobs: dict[str, list[tuple[Entry, str]]] = {}
        for entry, dest in pairs:
            if entry.place is not None:
                with open(entry.place, "rb") as source:
                    _write(source, dest, entry.isexec)
            elif entry.blob is not None:
                blobs.setdefault(entry.path, []).append((entry, dest))
            else:
                kinds.setdefault((entry.hash_name, entry.isexec), []).append((entry, dest))
        for (hash_name, isexec), rows in kinds.items():
            self._place(rows, hash_name, isexec)
        for entry, data in self._blobs([group[0][0] for group in blobs.values()]):
            for _, dest in blobs[entry.path]:
                _write(BytesIO(data), dest, entry.isexec)

    def remote(self, name: str | None) -> Remote:
        """Return a remote; it is opened on the first call.

        Raises:
            RemoteNotFoundError: No remote has that name, or there is no default one.
            RemoteError: The remote cannot be used.
        """
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._remotes.clear()
            if name not in self._remotes:
                try:
                    self._remotes[name] = self._open_remote(name)
                except DvkfError as error:
                    self._remotes[name] = error
            found = self._remotes[name]
        if isinstance(found, DvkfError):
            raise found
        return found

    def _open_remote(self, name: str | None) -> Remote:
        if self._pid == self._first_pid:
            return self.repo.remote(name)
        # A forked process, such as a data loader's worker, lacks obstore's threads, and obstore would wait forever.
        from dvkf_prefect.data.remotes.remote import open_remote

        name, options = self.repo.config.remote(name)
        return open_remote(
            name, options, backend="fsspec" if "://" in options["url"] else None, jobs=self.repo.jobs
        )

    # -- objects -----------------------------------------------------------------------------------------------------

    def _is_special(self, output: Output) -> bool:
        """Return True if no remote stores an output's content under its digest."""
        return from_source(output) or self.repo.config.is_versioned(output.remote)

    def _bring_group(self, name: str | None, entries: Sequence[Entry]) -> None:
        try:
            remote = self.remote(name)
        except RemoteNotFoundError as error:
            raise MissingObjectError(
                f"'{entries[0].path}' of {self.name} is not in the cache ({self.repo.cache.root}), and no "
                f"remote can be used: {error}"
            ) from error
        fetch([_part(entry) for entry in entries], self.repo.cache, remote)

    def _bring_special(self, name: str | None, entries: Sequence[Entry]) -> None:
        outputs = {output.path: output for output in (entry.output for entry in entries) if output}
        imports = [output for output in outputs.values() if from_source(output)]
        if imports:
            fetch_imports(self.repo, imports)
        rest = [_part(entry) for entry in entries if entry.output and not from_source(entry.output)]
        if rest:
            versioned.fetch_versions(self.repo, rest, name)

    def _place(self, rows: Sequence[tuple[Entry, str]], hash_name: str, isexec: bool) -> None:
        temporary = [str(temporary_beside(Path(dest))) for _, dest in rows]
        digests = [entry.digest or "" for entry, _ in rows]
        mode = 0o777 if isexec else 0o666
        try:
            for row, found in self.repo.cache.place(digests, "", temporary, mode=mode, hash_name=hash_name):
                if isinstance(found, ObjectError):
                    raise found
                os.replace(temporary[row], rows[row][1])
        except BaseException:
            for name in temporary:
                with suppress(OSError):
                    os.unlink(name)
            raise

    def _open_cached(self, entry: Entry) -> BinaryIO:
        cache, digest = self.repo.cache, entry.digest or ""
        try:
            if cache.path(digest, entry.hash_name).stat().st_size > LARGE:
                return open_checked(cache, digest, entry.hash_name, f"'{entry.path}' of {self.name}")
        except FileNotFoundError:
            raise self._missing(entry) from None
        return Whole(cache.read_bytes(digest, entry.hash_name))

    def _open_missing(self, entry: Entry) -> BinaryIO:
        output = cast("Output", entry.output)
        writable = _is_writable(self.repo.cache.root)
        if not self._is_special(output):
            (size,) = self.sizes([entry])
            if size is not None and (size > LARGE or not writable):
                return open_remote_object(
                    self.remote(output.remote).storage,
                    object_key(entry.digest or "", entry.hash_name),
                    size,
                    entry.digest or "",
                    entry.hash_name,
                    cache=self.repo.cache if writable else None,
                    name=f"'{entry.path}' of {self.name}",
                )
        self.bring([entry])
        return self._open_cached(entry)

    def _read_tree(self, output: Output) -> Tree:
        cache, digest, hash_name = self.repo.cache, output.digest or "", output.hash_name
        if (listed := output.listed_tree()) is not None:
            for file in output.versions:
                if file.size is not None:
                    self._sizes[hash_name, file.digest or ""] = file.size
            return listed
        remotes = opened(self.remote, (output.remote, None))
        mend = _is_writable(cache.root)
        try:
            return read_manifest(digest, hash_name, caches=[cache], remotes=remotes, mend=mend)
        except DvkfError as error:
            if self._is_special(output):
                self.bring([Entry(output.path, True, output.size, digest, output)])
                return cache.read_tree(digest, hash_name)
            if isinstance(error, RemoteError):
                raise
            raise MissingObjectError(
                f"the files of '{output.path}' in {self.name} are unknown. Run `dvkf push` in a clone "
                f"that has them. ({error})"
            ) from error

    def _why(self, entry: Entry, said: str) -> ObjectError:
        """Return the error for a single file that could not be downloaded."""
        output = cast("Output", entry.output)
        key = object_key(entry.digest or "", entry.hash_name)
        if not self._is_special(output) and self.remote(output.remote).storage.size(key) is not None:
            return CorruptObjectError(f"'{entry.path}' of {self.name}: {said} ({self.remote(output.remote)})")
        return self._missing(entry, said)

    def _missing(self, entry: Entry, detail: str = "") -> MissingObjectError:
        try:
            place = str(self.remote(entry.output.remote if entry.output else None))
        except DvkfError:
            place = "a remote (none is set)"
        return MissingObjectError(
            f"'{entry.path}' of {self.name}: {entry.digest} is neither in the cache ({self.repo.cache.root}) "
            f"nor on {place}. Run `dvkf push` in a clone that has it." + (f" ({detail})" if detail else "")
        )

    # -- sizes -------------------------------------------------------------------------------------------------------

    def _learn(self, entries: Iterable[Entry], strict: bool) -> None:
        cache, sizes = self.repo.cache, self._sizes
        away: dict[tuple[str | None, str], dict[str, None]] = {}
        for entry in entries:
            key = _key(entry)
            if key in sizes or entry.output is None:
                continue
            try:
                sizes[key] = os.stat(cache.path(key[1], key[0])).st_size
            except OSError:
                if not self._is_special(entry.output):
                    away.setdefault((entry.output.remote, key[0]), {})[key[1]] = None
        for (name, hash_name), digests in away.items():
            if name in self._silent and not strict:
                continue
            try:
                self._ask(self.remote(name), hash_name, list(digests))
            except DvkfError:
                if strict:
                    raise
                # A listing is useful without sizes, so failures count only with ``strict``.
                self._silent.add(name)

    def _ask(self, remote: Remote, hash_name: str, digests: Sequence[str]) -> None:
        """Read the sizes of objects from a remote."""
        storage, sizes = remote.storage, self._sizes
        if storage.local_path(object_key(digests[0], hash_name)) is None:
            self._asked += len(digests)
            if self._asked > _ASK_EACH:
                self._asked = 0
                with self._lock:
                    wanted = {digest for tree in self._trees.values() for digest in tree.digests}.union(
                        digests
                    )
                prefix = "files/md5" if hash_name == MD5 else ""
                skip = len(prefix) + 1 if prefix else 0
                # Some services cannot list.
                with suppress(RemoteError):
                    for key, size in storage.list(prefix):
                        digest = key[skip : skip + 2] + key[skip + 3 :]
                        if digest in wanted:
                            sizes[hash_name, digest] = size
                    return
        with ThreadPoolExecutor(max(1, min(remote.jobs, len(digests)))) as pool:
            keys = [object_key(digest, hash_name) for digest in digests]
            for digest, found in zip(digests, pool.map(storage.size, keys), strict=True):
                if found is not None:
                    sizes[hash_name, digest] = found


def _key(entry: Entry) -> Key:
    return entry.hash_name, entry.digest or ""


def _part(entry: Entry) -> Output:
    """Return a file as a separate output."""
    output = cast("Output", entry.output)
    if entry.digest == output.digest:
        return output
    # Match by content, because a link has another path.
    files = tuple(replace(file, relpath="") for file in output.versions if file.digest == entry.digest)[:1]
    content = Content(entry.digest or "", hash_name=output.hash_name)
    return replace(output, path=entry.path, content=content, versions=files)


def _write(source: BinaryIO, dest: str, isexec: bool) -> None:
    import shutil

    temporary = str(temporary_beside(Path(dest)))
    mode = 0o777 if isexec else 0o666
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, mode), "wb") as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
        os.replace(temporary, dest)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _is_writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
