"""Copies of a remote's objects to another place of the same service, without a download."""

from __future__ import annotations

from collections.abc import Mapping

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.remotes.filesystems import FilesystemStorage
from dvkf_prefect.data.remotes.objects import ObjectStorage
from dvkf_prefect.data.remotes.urls import split_url
from dvkf_prefect.errors import RemoteDeniedError

# Services that copy inside one bucket through obstore.
_BY_BUCKET = ("gs", "azure")


def open_place(options: Mapping[str, str], name: str) -> Storage:
    """Open the storage of a place that objects are copied to.

    S3 is served by s3fs, for obstore has neither multipart copies nor copies between buckets.

    Args:
        options: Options of the place, with its ``url``.
        name: Name of the place in messages.

    Raises:
        ConfigError: An option or the url is not supported.
    """
    left = {key: value for key, value in options.items() if key not in ("url", "jobs")}
    is_s3 = split_url(options["url"]).scheme == "s3"
    return open_storage(options["url"], left, name=name, backend="fsspec" if is_s3 else None)


class ServerCopies:
    """Copies from a remote to a place by the service of both.

    Args:
        source: Options of the remote, with its ``url``.
        target: Options of the place, with its ``url``.
        storage: Storage of the place, see `open_place`.

    Attributes:
        possible: True if the service of the place can read the remote.
    """

    def __init__(self, source: Mapping[str, str], target: Mapping[str, str], storage: Storage) -> None:
        self._storage = storage
        self._root: ObjectStorage | None = None
        self._from, self._to = ("", "")
        self.possible = False
        if "://" not in source["url"] or "://" not in target["url"]:
            return
        origin, place = split_url(source["url"]), split_url(target["url"])
        self._from, self._to = origin.path.strip("/"), place.path.strip("/")
        if origin.scheme != place.scheme:
            return
        if origin.scheme == "s3" and isinstance(storage, FilesystemStorage):
            same = source.get("endpointurl") == target.get("endpointurl")
            # A key of the customer would be needed for both sides of a copy.
            self.possible = same and not (source.get("sse_customer_key") or target.get("sse_customer_key"))
            self._from = _joined(origin.netloc.rpartition("@")[2], self._from)
        elif origin.scheme in _BY_BUCKET and _account(source) == _account(target):
            root = open_storage(f"{place.scheme}://{place.netloc}", _account(target), name=storage.name)
            self._root = root if isinstance(root, ObjectStorage) else None
            self.possible = origin.netloc == place.netloc and self._root is not None

    def copy(self, source: str, key: str, size: int) -> bool:
        """Copy an object of the remote to a key of the place.

        Args:
            source: Key of the object on the remote.
            key: Key of the copy.
            size: Size of the object in bytes.

        Returns:
            False if the service cannot, or the place's credentials may not read the remote.

        Raises:
            MissingObjectError: The remote has no such object.
            RemoteError: The place cannot be used.
        """
        if not self.possible:
            return False
        try:
            if self._root is not None:
                self._root.copy(_joined(self._from, source), _joined(self._to, key))
            elif isinstance(self._storage, FilesystemStorage):
                self._storage.copy(_joined(self._from, source), key, size)
            return True
        except RemoteDeniedError:
            self.possible = False
            return False


def _account(options: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in options.items() if key not in ("url", "jobs")}


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
