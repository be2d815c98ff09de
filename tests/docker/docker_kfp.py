"""A Kubeflow Pipelines API that runs a pipeline by KFP's DockerRunner, in a process of its own; see `docker_run`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from servers import serving


class DockerKfp:
    """The API, until the context ends.

    Args:
        folder: Folder for pipelines, outputs and logs.
        mounts: Folders that containers see, at the same paths.
        user: User of the containers; the image's own if empty.
    """

    def __init__(self, folder: Path, mounts: list[Path], user: str = "") -> None:
        self.folder = folder
        self.mounts = mounts
        self.user = user
        self.runs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> DockerKfp:
        self.folder.mkdir(parents=True)
        handler = type("Handler", (_Handler,), {"owner": self})
        self._running = serving(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        self.host = f"http://127.0.0.1:{self._running.__enter__()}"
        return self

    def __exit__(self, *args: object) -> None:
        for thread in self._threads:
            thread.join()
        self._running.__exit__(None, None, None)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path == "/apis/v2beta1/experiments":
            return 200, {"experiment_id": "e", "display_name": "dvkf"} if method == "POST" else {}
        if path == "/apis/v2beta1/runs" and method == "GET":
            return 200, {}
        if path == "/apis/v2beta1/runs":
            run_id = body.get("run_id") or str(uuid.uuid4())
            self.runs[run_id] = {**body, "run_id": run_id, "state": "RUNNING"}
            self._threads.append(threading.Thread(target=self._run, args=(run_id,)))
            self._threads[-1].start()
            return 200, self.runs[run_id]
        run = self.runs.get(path.rpartition("/")[2].partition(":")[0])
        return (404, {"code": 5, "message": "not found"}) if run is None else (200, run)

    def _run(self, run_id: str) -> None:
        spec = self.runs[run_id]["pipeline_spec"]
        root = self.folder / run_id
        root.mkdir()
        # On a cluster the launcher makes the folders of outputs, as the container's user.
        root.chmod(0o777)
        (self.folder / f"{run_id}.json").write_text(json.dumps(spec))
        program = str(Path(__file__).with_name("docker_run.py"))
        words = [sys.executable, program, str(self.folder / f"{run_id}.json"), str(root), self.user]
        done = subprocess.run([*words, *map(str, self.mounts)], capture_output=True, text=True)
        self.logs[run_id] = done.stdout + done.stderr
        self.runs[run_id]["state"] = "FAILED" if done.returncode else "SUCCEEDED"


class _Handler(BaseHTTPRequestHandler):
    owner: DockerKfp

    def do_GET(self) -> None:
        self._take(None)

    def do_POST(self) -> None:
        self._take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _take(self, body: Any) -> None:
        status, values = self.owner.answer(self.command, urlsplit(self.path).path, body)
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass
