"""ssh: who is let in, who is trusted, and what becomes of a connection that ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from servers import SshServer

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.errors import RemoteDeniedError, RemoteUnreachableError


def test_a_host_that_is_not_known_is_not_trusted(sshd: SshServer, tmp_path: Path) -> None:
    with pytest.raises(RemoteDeniedError, match=r"remote 'store' .*[Hh]ost key is not trusted.*known_hosts"):
        open_storage(f"ssh://127.0.0.1{tmp_path}", sshd.options(), name="store")


def test_a_key_that_is_not_let_in(ssh: SshServer, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    with pytest.raises(RemoteDeniedError, match=r"remote 'store' .*keys of user"):
        open_storage(
            f"ssh://127.0.0.1{tmp_path}", {**ssh.options(), "keyfile": str(tmp_path / "other")}, name="store"
        )


def test_a_port_where_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(RemoteUnreachableError, match=r"remote 'store' .*does not answer"):
        open_storage(f"ssh://127.0.0.1:1{tmp_path}", {"user": "me", "timeout": "1"}, name="store")


def test_a_connection_that_is_cut(ssh: SshServer, tmp_path: Path) -> None:
    storage = open_storage(f"ssh://127.0.0.1{tmp_path}/store", ssh.options(), name="store")
    storage.write("a/b", b"1")
    connection = storage._fs.client  # type: ignore[attr-defined]
    storage._fs.loop.call_soon_threadsafe(connection.abort)  # type: ignore[attr-defined]
    with pytest.raises(RemoteUnreachableError, match=r"remote 'store' .*does not answer"):
        storage.read("a/b")
    # The next one connects anew.
    assert storage.read("a/b") == b"1"
