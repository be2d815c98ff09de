"""S3 in a container: pushed to, gone in the middle, back again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from repos import make_repo
from servers import S3Server

from dvkf_prefect.errors import RemoteError, RemoteUnreachableError, TransferError

# tests/data/remotes/test_patience.py holds that a service that restarts is waited for.
pytestmark = [pytest.mark.docker, pytest.mark.long]


def container() -> str:
    """The one container of our own engine."""
    (found,) = subprocess.run(
        ["docker", "ps", "--all", "--quiet"], capture_output=True, text=True, check=True
    ).stdout.split()
    return found


def test_a_push_goes_on_when_the_service_is_back(
    server: S3Server, docker_services: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repo"
    repo = make_repo(root)
    url = server.make_bucket("lake")
    with repo.config.edit() as sections:
        sections["remote"]["lake"] = {"url": f"{url}/data", **server.options()}
        sections["core"]["remote"] = "lake"
    (root / "data").mkdir()
    for number in range(200):
        (root / "data" / f"{number:03}").write_bytes(os.urandom(10_000))
    repo.add(["data"])

    class Killer:
        """Ends the container when a part of the objects has arrived."""

        def __init__(self) -> None:
            self.done = 0

        def start(self, label: str, files: int, size: int) -> None:
            pass

        def expect(self, files: int, size: int) -> None:
            pass

        def advance(self, files: int, size: int, part: object = None) -> None:
            self.done += files
            if self.done == 50:
                subprocess.run(["docker", "kill", container()], check=True, capture_output=True)

        def finish(self) -> None:
            pass

    with pytest.raises((RemoteError, TransferError)):
        repo.using(progress=Killer(), jobs=4).push()
    with pytest.raises(RemoteUnreachableError, match="lake"):
        repo.push()
    subprocess.run(["docker", "start", container()], check=True, capture_output=True)
    back = S3Server(f"http://127.0.0.1:{_port()}")
    docker_services.wait_until_responsive(lambda: _answers(back), timeout=90, pause=0.5)
    with repo.config.edit() as sections:
        sections["remote"]["lake"]["endpointurl"] = back.endpoint
    sent = repo.push()
    assert 0 < sent.files <= 201
    shutil.rmtree(repo.cache.root)
    shutil.rmtree(root / "data")
    assert repo.pull().transfer.files == 201
    assert not repo.status()


def _port() -> str:
    """The published port: another one after a restart."""
    shown = subprocess.run(
        ["docker", "port", container(), "8333"], capture_output=True, text=True, check=True
    ).stdout
    return shown.splitlines()[0].rpartition(":")[2]


def _answers(server: S3Server) -> bool:
    try:
        server.make_bucket("ready-again")
    except Exception:
        return False
    return True
