"""A bucket that the tests of remotes share, and a web server that keeps blobs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import S3Server, SshServer, WebServer, ssh_server, sshd_command, web_server, webdav_server


@pytest.fixture(scope="session")
def bucket(s3: S3Server) -> str:
    return s3.make_bucket("contract")


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    pytest.importorskip("sshfs")
    if sshd_command() is None:
        pytest.skip("no sshd: install openssh-server")
    with ssh_server(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def ssh(sshd: SshServer) -> SshServer:
    """An ssh server whose key this test's home knows."""
    sshd.trust()
    return sshd


@pytest.fixture(scope="session")
def webdav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for package in ("webdav4", "wsgidav"):
        pytest.importorskip(package)
    with webdav_server(tmp_path_factory.mktemp("webdav")) as url:
        yield url


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"nothing may be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: a server may still have the folder open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
