"""Publication of registered versions: one folder a version, in the layout that KServe's runtimes load.

Objects are copied from the remote by its own service if that can, else uploaded from this machine. Then the folder is
listed as KServe's storage initializer lists it, compared with the expected files, and checked by the rules of the
runtimes. The manifest is written last. A publication that was interrupted is completed by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dvkf_prefect.data.progress import NO_PROGRESS, Advance, Progress, counting
from dvkf_prefect.data.remotes.copying import ServerCopies
from dvkf_prefect.data.remotes.remote import Remote, not_there
from dvkf_prefect.data.transfer import transfer
from dvkf_prefect.errors import (
    CorruptObjectError,
    MissingObjectError,
    ModelError,
    RemoteError,
    RemoteNotFoundError,
)
from dvkf_prefect.formats.digest import digest_bytes, digest_file, digest_stream
from dvkf_prefect.formats.objects import MD5, Content, object_key
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.models.content import ModelContent, ModelContents
from dvkf_prefect.models.layouts import EMPTY, Format, Layout, ModelFiles, format_of, lay_out
from dvkf_prefect.models.places import Manifest, Place, PublishedFile, folder_of, repository_id
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.runtimes import Loaded, download, loaded_by
from dvkf_prefect.models.tags import is_version
from dvkf_prefect.models.version import ModelVersion

# An etag of this form is the md5, unless the service encrypts.
_ETAG = 32


@dataclass(frozen=True)
class Publication:
    """Result of a publication.

    Attributes:
        manifest: Record of the published version.
        loaded: Files that each runtime loads, by the rules of `dvkf_prefect.models.runtimes`.
        copied: Number of files that the service copied itself.
        sent: Number of files that were sent from this machine.
        kept: Number of files that were there already.
        new: False if the version was published there before, completely.
    """

    manifest: Manifest
    loaded: tuple[Loaded, ...]
    copied: int = 0
    sent: int = 0
    kept: int = 0
    new: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return the publication as plain values for JSON."""
        manifest = self.manifest
        return {
            "model": manifest.model,
            "version": manifest.version,
            "uri": manifest.uri,
            "format": manifest.format,
            "model_format": manifest.kind,
            "runtimes": {name: list(protocols) for name, protocols in manifest.runtimes.items()},
            "served_as": manifest.served_as,
            "digest": manifest.digest,
            "files": {file.path: file.size for file in manifest.files},
            "copied": self.copied,
            "sent": self.sent,
            "kept": self.kept,
            "new": self.new,
        }

    def __str__(self) -> str:
        manifest = self.manifest
        what = f"{manifest.model} {manifest.version} is published at {manifest.uri}"
        ways = [f"{self.copied} copied by the service"] if self.copied else []
        ways += [f"{self.sent} sent through this machine"] if self.sent else []
        ways += [f"{self.kept} unchanged"] if self.kept else []
        return f"{what} as {manifest.format} ({', '.join(ways)})"


def publish_version(
    registry: ModelRegistry,
    version: ModelVersion,
    to: str,
    *,
    as_format: str | None = None,
    allow_empty: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Publication:
    """Publish a registered version to a place, for services to load.

    Args:
        registry: The registry of the version.
        version: The version.
        to: The place: a folder, a url, or ``remote://NAME/FOLDER``.
        as_format: Name of the format, see `dvkf_prefect.models.layouts.FORMATS`; None for the declared or detected one.
        allow_empty: Publish files of zero bytes, which KServe 0.17 and later do not download.
        progress: Called as files and bytes complete.

    Returns:
        The publication; an unchanged one if the version is there already.

    Raises:
        ModelError: The format is ambiguous, or a runtime would not load the files; the message gives the reason. Also
            if the version is not registered or has no content, or if the place holds other files in its folder.
        ConfigError: The place cannot be used.
        MissingObjectError: Neither the cache nor the remote has the content.
        CorruptObjectError: A copy differs from its digest.
        RemoteError: The place or the remote refused, or did not answer.

    Example:
        >>> registry = ModelRegistry(Repo.open("path/to/repository"))
        >>> publish_version(registry, registry.show("digits"), "remote://store/models").manifest.uri
        's3://bucket/models/digits/v1.0.0/'
    """
    if not is_version(version.version):
        raise ModelError(
            f"'{version.name}' at commit {version.rev[:7]} is not registered. Register a version of it."
        )
    if version.path is None or version.digest is None:
        raise ModelError(
            f"{version} has no content to publish. Register a version of a model that DVC tracks."
        )
    place = Place(registry.repo, to)
    place.check(version.name)
    work = _Publishing(registry, version, place)
    publication = work.run(as_format, allow_empty=allow_empty, progress=progress)
    manifest = publication.manifest
    registry.note(
        version,
        "published",
        {"where": manifest.uri, "format": manifest.format, "digest": manifest.digest},
    )
    return publication


@dataclass(frozen=True)
class _Wanted:
    """A file to publish: its content, and its bytes if it was made here."""

    content: Content
    data: bytes | None = None
    source: str | None = None


class _Publishing:
    """One publication."""

    def __init__(self, registry: ModelRegistry, version: ModelVersion, place: Place) -> None:
        self._repo = registry.repo
        self._git = registry.git
        self._version = version
        self._place = place
        contents = ModelContents(registry.repo, registry.git)
        self._model: ModelContent = contents.read(version.name, version.rev)
        self._digests = contents.digests(self._model)
        self._declared = contents.declared(version.name, version.rev)
        self._hash_name = self._model.content.hash_name
        self._remote = self._open_remote()
        self._sizes = self._find_sizes()
        self._folder = folder_of(version.name, version.version)

    def _open_remote(self) -> Remote | None:
        try:
            return self._repo.remote(self._model.output.remote)
        except RemoteNotFoundError:
            return None  # the cache alone may have the content

    def _find_sizes(self) -> dict[str, int]:
        """Return the sizes of the objects by digest, from the remote or else from the cache."""
        wanted = set(self._digests.values())
        found = self._remote.sizes(wanted, self._hash_name) if self._remote else {}
        self._on_remote = frozenset(found)
        for digest in wanted - found.keys():
            with suppress(FileNotFoundError):
                found[digest] = os.stat(self._repo.cache.path(digest, self._hash_name)).st_size
        missing = sorted(wanted - found.keys())
        if missing:
            if self._remote is not None:
                raise MissingObjectError(not_there(missing[0], self._remote))
            raise MissingObjectError(
                f"{missing[0]}, content of {self._version.path}, is not in the cache, and there is no default remote. "
                "Add a remote."
            )
        return found

    def _head(self, path: str, limit: int) -> bytes:
        """Return the first bytes of a file of the model."""
        digest = self._digests[path]
        local = self._local(digest)
        if local is not None:
            with open(local, "rb") as file:
                return file.read(limit)
        assert self._remote is not None
        head = b""
        for chunk in self._remote.storage.stream(object_key(digest, self._hash_name)):
            head += chunk
            if len(head) >= limit:
                break
        return head[:limit]

    def _local(self, digest: str) -> Path | None:
        """Return the file of an object on this machine."""
        places = [self._repo.cache.path(digest, self._hash_name)]
        if self._remote is not None:
            remote = self._remote.storage.local_path(object_key(digest, self._hash_name))
            places += [remote] if remote is not None else []
        return next((path for path in places if path.is_file()), None)

    def run(self, wanted: str | None, *, allow_empty: bool, progress: Progress) -> Publication:
        """Publish, verify, and write the manifest."""
        version, place = self._version, self._place
        model = ModelFiles(version.name, version.path or "", self._digests, self._head, self._declared)
        layout = lay_out(model, format_of(model, wanted))
        files = self._files(layout, allow_empty=allow_empty)
        # Refuse before the first copy what a runtime would refuse after the last.
        sizes = {path: file.content.size or 0 for path, file in files.items()}
        loaded = accepted(
            layout.format, [(f"{self._folder}/{path}", n) for path, n in sizes.items()], self._folder
        )
        manifest = self._manifest(layout, files)
        before = place.manifest(version.name, version.version)
        if before is not None:
            self._check_same(before, manifest)
            manifest = replace(manifest, created=before.created)
        there = self._listed(files)
        right = {
            path
            for path, found in there.items()
            if path in files and self._is_right(path, found, files[path], known=before is not None)
        }
        todo = {path: file for path, file in files.items() if path not in right}
        copied, sent = self._copy_all(todo, progress)
        self._verify(files)
        place.drop_uploads(version.name, version.version)
        if before != manifest:
            place.write(manifest)
        new = before is None or bool(todo)
        return Publication(manifest, loaded, copied, sent, len(right), new)

    # -- files -----------------------------------------------------------------------------------------------------

    def _files(self, layout: Layout, *, allow_empty: bool) -> dict[str, _Wanted]:
        """Return the files of the folder; empty ones of Python get a line end, others are refused."""
        files: dict[str, _Wanted] = {}
        empty = []
        for path, source in layout.sources.items():
            digest = self._digests[source]
            if digest != EMPTY:
                files[path] = _Wanted(
                    Content(digest, self._sizes[digest], hash_name=self._hash_name), source=source
                )
            elif path.endswith(".py"):
                # A package without its __init__.py would be no package after the download.
                files[path] = _made(b"\n", source)
            else:
                files[path] = _made(b"", source)
                empty.append(path)
        if empty and not allow_empty:
            raise ModelError(
                f"{self._version.name} {self._version.version} has empty files, which KServe 0.17 and later do not "
                f"download: {', '.join(sorted(empty)[:5])}. Give them content, or allow empty files."
            )
        return {**files, **{path: _made(data) for path, data in layout.made.items()}}

    def _manifest(self, layout: Layout, files: Mapping[str, _Wanted]) -> Manifest:
        version, chosen = self._version, layout.format
        rows = [
            PublishedFile(path, file.content.size or 0, file.content.digest, file.source)
            for path, file in sorted(files.items())
        ]
        return Manifest(
            model=version.name,
            version=version.version,
            uri=self._place.uri(version.name, version.version),
            format=chosen.name,
            kind=chosen.kind,
            runtimes=chosen.runtimes,
            served_as=layout.model,
            digest=version.digest or "",
            path=version.path or "",
            commit=version.rev,
            repository=repository_id(self._git),
            files=tuple(rows),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _check_same(self, before: Manifest, manifest: Manifest) -> None:
        differs = [
            f"{name} {getattr(before, name)}"
            for name in ("digest", "format", "files")
            if getattr(before, name) != getattr(manifest, name)
        ]
        if differs:
            what = differs[0] if not differs[0].startswith("files") else "other files"
            raise ModelError(
                f"{manifest.model} {manifest.version} is published at {manifest.uri} with {what}, and a service may "
                "use it. Publish to another place, or register a new version."
            )

    def _listed(self, files: Mapping[str, _Wanted]) -> dict[str, tuple[int, str | None]]:
        """Return size and etag of what the folder holds, and refuse files that are not the version's."""
        start = f"{self._folder}/"
        found = {key[len(start) :]: (size, etag) for key, size, etag in self._place.storage.starting(start)}
        strange = sorted(path for path in found if path not in files and not path.endswith("/"))
        if strange:
            uri = self._place.uri(self._version.name, self._version.version)
            raise ModelError(
                f"{uri} holds other files, which a runtime could load: {', '.join(strange[:5])}. Remove them."
            )
        return found

    def _is_right(self, path: str, found: tuple[int, str | None], file: _Wanted, *, known: bool) -> bool:
        """Return True if a file of the folder needs no copy.

        Args:
            path: Path in the folder.
            found: Its size and etag.
            file: The expected file.
            known: True if a manifest says that it was stored; then a service without digests is trusted.
        """
        size, etag = found
        content = file.content
        if size != content.size:
            return False
        if content.hash_name != MD5:
            return known
        local = self._place.storage.local_path(f"{self._folder}/{path}")
        if local is not None:
            return digest_file(local) == content.digest
        if etag is not None and len(etag) == _ETAG:
            return etag == content.digest
        return known

    # -- copies ----------------------------------------------------------------------------------------------------

    def _copy_all(self, files: Mapping[str, _Wanted], progress: Progress) -> tuple[int, int]:
        """Copy files; return the number of those copied by the service, and of those sent from here."""
        storage = self._place.storage
        copies = None
        if self._remote is not None:
            source = self._repo.config.remote(self._model.output.remote)[1]
            copies = ServerCopies(source, self._place.options, storage)
        total = sum(file.content.size or 0 for file in files.values())
        with counting(progress, "Publishing", len(files), total) as advance:

            def one(item: tuple[str, _Wanted]) -> bool:
                return self._copy(*item, copies, advance)

            if storage.jobs == 1 or len(files) < 2:
                done = list(map(one, files.items()))
            else:
                with ThreadPoolExecutor(min(storage.jobs, len(files)), thread_name_prefix="publish") as pool:
                    done = list(pool.map(one, files.items()))
        return sum(done), len(done) - sum(done)

    def _copy(self, path: str, file: _Wanted, copies: ServerCopies | None, advance: Advance) -> bool:
        """Copy one file; return True if the service did."""
        storage, content = self._place.storage, file.content
        key = f"{self._folder}/{path}"
        by_service = False
        if file.data is not None:
            storage.write(key, file.data)
        else:
            if copies is not None and content.digest in self._on_remote:
                source = object_key(content.digest, content.hash_name)
                by_service = copies.copy(source, key, content.size or 0)
            if not by_service:
                self._send(key, content)
        advance(1, content.size or 0)
        return by_service

    def _send(self, key: str, content: Content) -> None:
        """Upload a file from this machine, fetched into the cache first if it is not here."""
        local = self._local(content.digest)
        if local is None or not self._is_intact(local, content):
            if self._remote is None:
                raise CorruptObjectError(
                    f"{local} is not {content.digest}, and there is no remote. Run `dvkf verify`."
                )
            transfer.fetch([Output(self._version.path or "", content)], self._repo.cache, self._remote)
            local = self._repo.cache.path(content.digest, content.hash_name)
        self._place.storage.upload(key, local)

    def _is_intact(self, path: Path, content: Content) -> bool:
        return content.hash_name != MD5 or digest_file(path) == content.digest

    # -- verification ------------------------------------------------------------------------------------------------

    def _verify(self, files: Mapping[str, _Wanted]) -> None:
        """Compare the folder's listing with the expected files.

        Raises:
            RemoteError: The place does not list what was stored.
            CorruptObjectError: A file has another content.
        """
        there = self._listed(files)
        uri = self._place.uri(self._version.name, self._version.version)
        wrong = [path for path, file in files.items() if there.get(path, (-1,))[0] != file.content.size]
        if wrong:
            raise RemoteError(f"{uri} does not list {', '.join(sorted(wrong)[:5])} as stored. Publish again.")
        unequal = [
            path
            for path, file in files.items()
            if (etag := there[path][1]) is not None
            and len(etag) == _ETAG
            and file.content.hash_name == MD5
            and etag != file.content.digest
        ]
        if not unequal:
            return
        # Under encryption, etags are no digests. The smallest file shows which of the two it is.
        path = min(unequal, key=lambda path: files[path].content.size or 0)
        found = digest_stream(self._place.storage.stream(f"{self._folder}/{path}"))
        if found != files[path].content.digest:
            raise CorruptObjectError(
                f"{uri}{path} is {found}, not {files[path].content.digest}: the object is damaged on the remote. Run "
                "`dvkf verify --cloud` and publish again."
            )


def _made(data: bytes, source: str | None = None) -> _Wanted:
    return _Wanted(Content(digest_bytes(data), len(data)), data, source)


def accepted(chosen: Format, objects: Iterable[tuple[str, int]], folder: str) -> tuple[Loaded, ...]:
    """Return what each runtime of a format loads from a listing, with and without files of zero bytes.

    Args:
        chosen: The format.
        objects: Key and size in bytes of the objects.
        folder: Folder of the version, without the ``/`` at its end.

    Raises:
        ModelError: A runtime finds no model, or more than one.
    """
    listed = list(objects)
    loaded: dict[str, Loaded] = {}
    for skip_empty in (False, True):
        downloaded = download(listed, f"{folder}/", skip_empty=skip_empty)
        for runtime in chosen.runtimes:
            loaded[runtime] = loaded_by(runtime, downloaded, kind=chosen.kind)
    return tuple(loaded.values())
