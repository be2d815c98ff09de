"""Databases that Prefect servers of tests use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dvkf_prefect.processes.leash import LeashedProcess, end


def _postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs, which Debian keeps out of the path."""
    own = shutil.which("pg_isready")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_isready")) or ([Path(own)] if own else [])
    return found[-1].parent if found else None


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a PostgreSQL of its own, and give its URL for Prefect."""
    programs = _postgres()
    if programs is None:
        pytest.skip("there is no PostgreSQL (Debian: postgresql)")
    if os.getuid() == 0 and not Path("/etc/passwd").read_text().count("\npostgres:"):
        pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres'")
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="dvkf-postgres-") as folder, ExitStack() as started:
        if user:
            shutil.chown(folder, user, user)
        subprocess.run(
            [programs / "initdb", "--no-sync", "--auth=trust", "--username=prefect", "--pgdata", f"{folder}/data"],
            check=True, capture_output=True, user=user, group=user, cwd=folder,
        )  # fmt: skip
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        arguments = [
            "-D",
            f"{folder}/data",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            folder,
            "-c",
            "fsync=off",
        ]
        run = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        process = LeashedProcess(
            [*run, str(programs / "postgres"), *arguments],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        started.callback(end, process, grace=20)
        ready = [programs / "pg_isready", "--host=127.0.0.1", f"--port={port}", "--timeout=60", "--quiet"]
        while subprocess.run(ready).returncode:
            assert process.poll() is None
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
