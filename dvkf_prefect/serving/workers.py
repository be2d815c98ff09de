"""Worker processes of one version of a model: each loads it, and computes one batch of requests at a time.

A worker is a child of the server (`dvkf_prefect.serving.worker`) with a Unix socket between them. It ends with the
server, even if that is killed. One that ends before is replaced. A batch that it had taken is answered by 503, since
the batch may be what ended it; one that it had not taken is given to another.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import ModelDigestError, ServingError
from dvkf_prefect.processes import leash
from dvkf_prefect.scratch import scratch_folder
from dvkf_prefect.serving.answering import Answer, Request, failure

# Seconds that a request waits for a worker while all are being replaced.
_PATIENCE = 10.0
# Seconds before a worker that does not load is started again; they double up to the second.
_BACKOFF = (1.0, 30.0)
# A worker says so once it has read a batch.
TAKEN = b"t"

_log = logging.getLogger("dvkf.server")


def send_frame(sock: socket.socket, head: object, bodies: Sequence[bytes] = ()) -> None:
    """Send values and bytes over a socket between the server and a worker.

    Args:
        sock: The socket.
        head: Values for JSON.
        bodies: Bytes that follow them.
    """
    data = json.dumps({"head": head, "sizes": [len(body) for body in bodies]}).encode()
    sock.sendall(b"".join([struct.pack("!I", len(data)), data, *bodies]))


def receive_frame(sock: socket.socket) -> tuple[Any, list[bytes]]:
    """Receive what `send_frame` sent.

    Raises:
        EOFError: The other side is gone.
    """
    (size,) = struct.unpack("!I", _exactly(sock, 4))
    values = json.loads(_exactly(sock, size))
    return values["head"], [_exactly(sock, each) for each in values["sizes"]]


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, start = memoryview(data), 0
    while start < size:
        count = sock.recv_into(view[start:])
        if not count:
            raise EOFError
        start += count
    return bytes(data)


class _Worker:
    """One process."""

    def __init__(self, fields: Mapping[str, Any], count: int) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            # Each has its share of the cores; libraries would start a thread a core in each.
            cores = str(max(1, (os.cpu_count() or 1) // count))
            argv = leash.module_argv("dvkf_prefect.serving.worker", str(theirs.fileno()), json.dumps(fields))
            self.process = leash.LeashedProcess(
                argv, env={"OMP_NUM_THREADS": cores, **os.environ}, pass_fds=(theirs.fileno(),)
            )

    def loaded(self) -> dict[str, Any]:
        """Wait until the model is loaded; return its metadata.

        Raises:
            ModelDigestError: Its files have another digest.
            ServingError: It cannot be loaded.
        """
        try:
            said, _ = receive_frame(self.socket)
        except (EOFError, OSError) as error:
            raise ServingError("a worker process ended while it loaded the model. See the log.") from error
        if said["state"] != "loaded":
            raise (ModelDigestError if said["kind"] == "digest" else ServingError)(said["message"])
        metadata: dict[str, Any] = said["metadata"]
        return metadata

    def end(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()


class WorkerPool:
    """The worker processes of one version.

    Args:
        path: The model's file, or its folder.
        fields: Further fields of `load_model`: ``name``, ``version``, ``digest`` and ``format``.
        count: Number of processes.

    Attributes:
        version: The version.
        quick: False: no answer is computed in the server's process.

    Raises:
        ModelDigestError: The files have another digest; nothing was loaded.
        ServingError: They cannot be loaded.
    """

    quick = False

    def __init__(self, path: Path, fields: Mapping[str, Any], count: int) -> None:
        self.version = str(fields["version"])
        self.count = count
        self._keep = ExitStack()
        self._idle: queue.Queue[_Worker] = queue.Queue()
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        with ExitStack() as undo:
            undo.callback(self.close)
            copy = self._keep.enter_context(scratch_folder("dvkf-model-")) / path.name
            try:
                if path.is_dir():
                    shutil.copytree(path, copy)
                else:
                    shutil.copyfile(path, copy)
            except (OSError, shutil.Error) as error:
                raise ServingError(f"the model {path} cannot be read: {error}") from error
            self._fields = {**fields, "path": str(copy)}
            for _ in range(count):
                self._workers.append(_Worker(self._fields, count))
            loaded = [worker.loaded() for worker in self._workers]
            self._metadata = loaded[0]
            undo.pop_all()
        for worker in self._workers:
            self._idle.put(worker)
            threading.Thread(target=self._watch, args=(worker,), daemon=True).start()

    @property
    def alive(self) -> int:
        """Number of workers that have loaded the model, and run."""
        return len(self._workers)

    def metadata(self) -> dict[str, Any]:
        """Return the V2 model metadata."""
        return self._metadata

    def answer(self, requests: Sequence[Request], limit: int) -> list[Answer]:
        """Have a worker answer requests, by one computation if they are several.

        Args:
            requests: The requests.
            limit: Maximum size of a decompressed body, in bytes.
        """
        heads = [{**asdict(request), "body": None} for request in requests]
        bodies = [request.body for request in requests]
        while True:
            try:
                worker = self._idle.get(timeout=_PATIENCE)
            except queue.Empty:
                return [self._refused("has no worker process")] * len(requests)
            taken = False
            try:
                send_frame(worker.socket, {"limit": limit, "requests": heads}, bodies)
                taken = _exactly(worker.socket, 1) == TAKEN
                found, parts = receive_frame(worker.socket)
            except (EOFError, OSError):
                # It is gone; `_watch` replaces it.
                if taken:
                    return [self._refused("lost the worker process of the request")] * len(requests)
                continue
            self._idle.put(worker)
            return [
                Answer(each["status"], body, each["headers"]) for each, body in zip(found, parts, strict=True)
            ]

    def close(self) -> None:
        """End the workers, and remove the copy of the model's files."""
        with self._lock:
            self._closed.set()
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()
        self._keep.close()

    def _refused(self, what: str) -> Answer:
        text = f"model '{self._fields['name']}' {self.version} {what}. Try again later."
        return failure(503, text, {"retry-after": "1"})

    def _watch(self, worker: _Worker) -> None:
        """Replace a worker when it ends."""
        wait, longest = _BACKOFF
        while True:
            code = worker.process.wait()
            with self._lock:
                if self._closed.is_set():
                    return
                self._workers.remove(worker)
            worker.socket.close()
            _log.error("%s %s: a worker ended (%d)", self._fields["name"], self.version, code)
            while True:
                worker = _Worker(self._fields, self.count)
                try:
                    worker.loaded()
                    break
                except (ServingError, OSError) as error:
                    worker.end()
                    _log.error("%s %s: no new worker: %s", self._fields["name"], self.version, error)
                if self._closed.wait(wait):
                    return
                wait = min(2 * wait, longest)
            with self._lock:
                if self._closed.is_set():
                    worker.end()
                    return
                self._workers.append(worker)
            self._idle.put(worker)
