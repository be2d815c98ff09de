"""Check of writing to a remote: a small object is stored below ``dvkf/doctor/``, read back and deleted.

A killed check leaves the object, which a collection removes with other files of runs (`dvkf_prefect.data.upkeep.gc`).
"""

from __future__ import annotations

import secrets
from contextlib import suppress

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.upkeep.doctor import Check
from dvkf_prefect.errors import DvkfError, RemoteDeniedError, RemoteUnreachableError

PROBES = "dvkf/doctor"
"""Folder of the objects, below the root of a remote."""


def check_writes(storage: Storage, title: str, url: str, whose: str) -> Check:
    """Return the check of writing to a remote.

    Args:
        storage: Its storage.
        title: Name of the check.
        url: Url of the remote, without credentials.
        whose: Owner of the credentials, such as ``this machine``.
    """
    key, data = f"{PROBES}/{secrets.token_hex(8)}", secrets.token_bytes(32)
    doing, found = "write", b""
    try:
        storage.write(key, data)
        doing = "read"
        found = storage.read(key, limit=len(data) + 1)
        doing = "delete"
        storage.delete([key])
    except RemoteUnreachableError as error:
        return Check(title, "fail", str(error).rstrip("."), "correct the url, or the network to it")
    except RemoteDeniedError:
        _forget(storage, key, doing)
        step = (
            f"allow {whose} to write, read and delete objects: it stores stages' sources, results and outputs"
        )
        return Check(title, "fail", f"{url} does not let {whose} {doing} objects", step)
    except DvkfError as error:
        _forget(storage, key, doing)
        return Check(title, "fail", str(error).rstrip("."), "name a remote that can be written")
    if found != data:
        step = "a proxy or a cache in front of it changes objects: lead requests past it"
        return Check(title, "fail", f"{url} gives other bytes than were written", step)
    return Check(title, "ok", f"{whose} may write, read and delete objects of {url}")


def _forget(storage: Storage, key: str, doing: str) -> None:
    """Remove the object that was written but could not be read."""
    if doing == "read":
        with suppress(DvkfError):
            storage.delete([key])
