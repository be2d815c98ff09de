"""Files at any url, read by version if the service keeps versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dvkf_prefect.data.remotes.base import steady
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.filesystems import FilesystemStorage, changed_at
from dvkf_prefect.data.remotes.options import parse_options, secrets_of
from dvkf_prefect.data.remotes.protocols import Protocol, protocol_of
from dvkf_prefect.data.remotes.urls import join_url, split_url
from dvkf_prefect.errors import ConfigError, MissingObjectError
from dvkf_prefect.formats.tree import check_relpath
from dvkf_prefect.urls import public_url

_VERSIONED = ("s3", "gs", "azure")

# Names of a content's mark in the infos of filesystems.
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "generation")

JOBS = 16


class UrlFiles(FilesystemStorage):
    """Files at a url, with the service's metadata.

    Args:
        protocol: Filesystem with the url as its root.
        place: Name of the url in messages.
        versioned: True to read versions.
    """

    def __init__(self, protocol: Protocol, place: Place, *, versioned: bool) -> None:
        super().__init__(protocol, place, jobs=JOBS)
        self.versioned = versioned

    def info(self, relpath: str) -> dict[str, Any] | None:
        """Return the service's metadata of a file or a directory; None if there is neither."""
        try:
            found: dict[str, Any] = self._ask(
                f"look up '{relpath}'" if relpath else "look it up",
                relpath,
                lambda: self._fs.info(self._full(relpath)),
            )
        except MissingObjectError:
            return None
        return found

    def look(self, relpath: str) -> tuple[int, float | None, str] | None:
        """Return size, time of the last change and mark of a file; None if there is none.

        The time is in seconds since 1970, None if the service does not tell. The mark, such as an etag, differs for
        other content; it is empty if the service has none.
        """
        info = self.info(relpath)
        if info is None or info.get("type", "file") != "file":
            return None
        marks = (str(info[name]) for name in _MARKS if info.get(name))
        return int(info["size"]), changed_at(info), next(marks, "")

    def checksum(self, relpath: str) -> str:
        """Return fsspec's checksum of a file, computed from the service's metadata."""
        with self._translated(f"look up '{relpath}'" if relpath else "look it up", relpath):
            return str(self._fs.checksum(self._full(relpath)))

    def find(self) -> dict[str, dict[str, Any]]:
        """Return the service's metadata of each file below the root, by relative path."""
        found: dict[str, dict[str, Any]]
        if self._protocol.pages and not self.versioned:
            found = dict(self._paged(self._protocol.pages, self._root, "list it"))
        else:
            found = self._ask("list it", "", lambda: self._fs.find(self._root, detail=True))
        root = self._root.strip("/")
        files: dict[str, dict[str, Any]] = {}
        for path, info in found.items():
            key = path.strip("/").removeprefix(root).strip("/")
            if key and not path.endswith("/") and info.get("type", "file") == "file":
                check_relpath(key, self.url)
                files[key] = info
        return files

    def read_version(self, relpath: str, version: str | None, *, limit: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a file, or of one version if given; at most ``limit``."""
        tried = f"read '{relpath}'" if relpath else "read it"
        named = version if self.versioned else None
        chunks = self._resumed(self._full(relpath), 0, tried, relpath, named)
        yield from steady(chunks, self._place, relpath or self.url, limit=limit)

    def _full(self, relpath: str) -> str:
        return self._path(relpath) if relpath else self._root


def open_files(url: str, options: Mapping[str, str], name: str, *, versioned: bool) -> UrlFiles:
    """Open the service of a url.

    Args:
        url: The url.
        options: Options, named as those of remotes.
        name: Name of the url in messages.
        versioned: True to read versions.

    Raises:
        ConfigError: The url or the options are not supported.
    """
    parts = split_url(url)
    scheme, url = parts.scheme, join_url(parts)
    if versioned and scheme not in _VERSIONED:
        raise ConfigError(f"{public_url(url)}: only {', '.join(_VERSIONED)} urls keep versions")
    parsed = parse_options(scheme, options, name)
    place = Place(name, public_url(url), secrets_of(parsed))
    protocol = protocol_of(url, parsed, place)
    if scheme in ("http", "https") and parts.query:
        protocol = replace(protocol, root=f"{protocol.root}?{parts.query}")
    if versioned:
        protocol = replace(protocol, arguments={**protocol.arguments, "version_aware": True})
    place = replace(place, secrets=(*place.secrets, *protocol.secrets))
    return UrlFiles(protocol, place, versioned=versioned)
