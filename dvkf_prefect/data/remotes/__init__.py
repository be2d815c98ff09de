"""Remotes for sharing data: one interface to folders, object stores and every fsspec filesystem."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from urllib.parse import unquote

from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.options import parse_options, secrets_of
from dvkf_prefect.data.remotes.urls import WEB, join_url, split_url
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.urls import public_url

__all__ = ["Backend", "Storage", "open_storage"]

Backend = Literal["obstore", "fsspec"]

_OBJECT_STORES = ("s3", "gs", "azure", "memory")
_JOBS = {"file": 1, "s3": 32, "gs": 32, "azure": 32, "oss": 16, "http": 16, "https": 16, "ssh": 8}


def open_storage(
    url: str,
    options: Mapping[str, str] = MappingProxyType({}),
    *,
    name: str | None = None,
    backend: Backend | None = None,
) -> Storage:
    """Open the storage at a remote's url, without any request yet.

    A folder is served directly; ``s3://``, ``gs://``, ``azure://`` and ``memory://`` by obstore; any other url
    by fsspec, and S3 too when an option needs s3fs (``acl``, ``grant_*``, ``use_ssl = false``).

    Args:
        url: A folder's absolute path, or a url.
        options: The remote's options, named as in DVC; ``url`` among them is ignored.
        name: The remote's name in the configuration, for messages.
        backend: Library to use, ``fsspec`` or ``obstore``; None selects it as above.

    Raises:
        ConfigError: An option or the url is not supported.

    Example:
        >>> storage = open_storage("memory://docs", name="store")
        >>> storage.write("runs/a", b"1")
        >>> storage
        ObjectStorage(name='store', url='memory://docs')
    """
    if "://" not in url:
        if not os.path.isabs(url):
            raise ConfigError(f"remote '{name or url}': the folder {url} is not an absolute path")
        scheme, path = "file", url
    else:
        parts = split_url(url)
        scheme, path, url = parts.scheme, parts.path, join_url(parts)
        if scheme in WEB and (parts.query or parts.fragment):
            raise ConfigError(
                f"remote '{name or public_url(url)}': the url of a remote cannot contain ? or #. Write %3F "
                "or %23 if they are part of a name."
            )
        if scheme == "file" and parts.netloc not in ("", "localhost"):
            raise ConfigError(
                f"remote '{name or url}': {url} names the host '{parts.netloc}', and a folder has none. Mount its "
                "share and give the path of the mount, or give the url of a server, such as "
                f"ssh://{parts.netloc}{path}."
            )
    shown = public_url(url)
    parsed = parse_options(scheme, options, name or shown)
    password = split_url(url).password if scheme != "file" else None
    secrets = (*secrets_of(parsed), *((unquote(password), password) if password else ()))
    place = Place(name or shown, shown, secrets)
    jobs = int(parsed.get("jobs") or _JOBS.get(scheme, 8))
    if scheme == "file" and backend != "fsspec":
        if backend == "obstore":
            raise ConfigError(f"remote '{place.name}': a folder is served without obstore")
        from dvkf_prefect.data.remotes.folder import FolderStorage

        return FolderStorage(
            Path(os.path.normpath(path)), place, jobs=jobs, shared=parsed.get("shared") == "group"
        )
    if scheme in _OBJECT_STORES and backend != "fsspec":
        needs = None
        if scheme == "s3":
            from dvkf_prefect.data.remotes.aws import needs_s3fs

            needs = needs_s3fs(parsed)
        if needs is None:
            from dvkf_prefect.data.remotes.objects import open_objects

            return open_objects(url, parsed, place, jobs=jobs)
        if backend == "obstore":
            raise ConfigError(f"remote '{place.name}', option '{needs}': obstore cannot serve it, s3fs can")
    elif backend == "obstore":
        raise ConfigError(f"remote '{place.name}': obstore does not serve {scheme}:// urls")
    from dvkf_prefect.data.remotes.filesystems import FilesystemStorage
    from dvkf_prefect.data.remotes.protocols import protocol_of

    protocol = protocol_of(f"file://{path}" if scheme == "file" else url, parsed, place)
    place = replace(place, secrets=(*place.secrets, *protocol.secrets))
    return FilesystemStorage(protocol, place, jobs=jobs)
