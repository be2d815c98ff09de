"""A Docker engine of our own, and SeaweedFS in a container of it; skipped where Docker cannot run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import S3Server

_DOCKERFILE = """\
FROM scratch
COPY weed /weed
COPY identities.json /identities.json
WORKDIR /data
WORKDIR /tmp
ENTRYPOINT ["/weed", "server", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-s3", "-s3.port=8333", \
"-s3.config=/identities.json", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-volume.max=0", \
"-master.volumeSizeLimitMB=256"]
"""


def _why_not() -> str | None:
    if os.environ.get("DOCKER_HOST"):
        return None
    if os.getuid() != 0:
        return "a Docker engine needs root"
    for command in ("dockerd", "docker", "docker-compose"):
        if shutil.which(command) is None:
            return f"there is no {command} (Debian: docker.io, docker-compose)"
    return None


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run dockerd on a socket of its own, unless DOCKER_HOST names an engine."""
    if why := _why_not():
        pytest.skip(why)
    if os.environ.get("DOCKER_HOST"):
        yield
        return
    folder = tmp_path_factory.mktemp("docker")
    socket = folder / "s"
    command = ["dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    command += ["-H", f"unix://{socket}", "--pidfile", str(folder / "pid")]
    with (folder / "log").open("wb") as log:
        engine = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    os.environ["DOCKER_HOST"] = f"unix://{socket}"
    try:
        deadline = time.monotonic() + 240
        while subprocess.run(["docker", "info"], capture_output=True).returncode:
            if engine.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not run here: {(folder / 'log').read_text()[-300:]}")
            time.sleep(0.2)
        yield
    finally:
        del os.environ["DOCKER_HOST"]
        engine.terminate()
        engine.wait(120)
        # Images of hundreds of megabytes, which pytest would keep.
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def docker_compose_command() -> str:
    """Debian's docker-compose is version 1."""
    return "docker-compose" if shutil.which("docker-compose") else "docker compose"


@pytest.fixture(scope="session")
def docker_compose_file(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the image from scratch and the `weed` command that lies in the environment."""
    context = tmp_path_factory.mktemp("context")
    weed = shutil.which("weed")
    assert weed
    shutil.copy(Path(weed).resolve(), context / "weed")
    identity = S3Server("")
    credentials = [{"accessKey": identity.access_key, "secretKey": identity.secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    (context / "identities.json").write_text(
        json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]})
    )
    (context / "Dockerfile").write_text(_DOCKERFILE)
    os.environ["S3_IMAGE_CONTEXT"] = str(context)
    return str(Path(__file__).with_name("docker-compose.yml"))


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    """Start in the background: version 1 has no ``--wait``, and the tests ask the service themselves."""
    return ["up --build --detach"]


@pytest.fixture
def server(docker_services: Any) -> S3Server:
    running = S3Server(f"http://127.0.0.1:{docker_services.port_for('s3', 8333)}")

    def makes_buckets() -> bool:
        try:
            running.make_bucket(f"ready-{uuid.uuid4().hex}")
        except Exception:
            return False
        return True

    docker_services.wait_until_responsive(makes_buckets, timeout=90, pause=0.5)
    return running
