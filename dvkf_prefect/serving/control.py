"""Control of a running model server: one JSON message and its answer on an abstract Unix socket.

The server accepts connections of its own user only. Each has one line of JSON with ``op``:

| op | fields | effect |
|---|---|---|
| ``listener`` | | sends the listening socket, for a successor |
| ``load`` | name, version, path, digest, format, percent, … | loads a version, then gives it its percentage |
| ``shift`` | name, percents | changes the split between loaded versions |
| ``unload`` | name | unloads all versions of a model, after their last answers |

A version that is loaded after its client has gone is dropped.

The answer is ``{"state": "done"}``, or ``{"state": "failed", "kind", "message"}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from dvkf_prefect.errors import DvkfError, ModelDigestError, ServingError

#: Called with a message, and an event that is set once the client is gone: killed, or tired of waiting.
Handler = Callable[[Mapping[str, Any], asyncio.Event], Awaitable[None]]
_LIMIT = 1 << 16
_READ_SECONDS = 5.0


class ControlSocket:
    """The server's end of the control socket.

    Args:
        name: Name of the abstract socket.
        listener: Socket to hand to a successor.
        handle: Carries out every other message.
    """

    def __init__(self, name: str, listener: socket.socket, handle: Handler) -> None:
        self._listener = listener
        self._handle = handle
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + name)
        self._socket.listen(8)
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Stop accepting; messages in progress are carried out."""
        self._accepting.cancel()
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            peer, _ = await loop.sock_accept(self._socket)
            _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid != os.getuid():
                peer.close()
                continue
            task = loop.create_task(self._serve(peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, peer: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with peer, suppress(OSError, TimeoutError, ValueError):
            line = b""
            while not line.endswith(b"\n") and len(line) < _LIMIT:
                line += await asyncio.wait_for(loop.sock_recv(peer, _LIMIT), _READ_SECONDS) or b"\n"
            message = json.loads(line)
            if message["op"] == "listener":
                socket.send_fds(peer, [b"l"], [self._listener.fileno()])
                return
            answer = {"state": "done"}
            gone = asyncio.Event()
            watch = loop.create_task(_until_closed(peer, gone))
            try:
                await self._handle(message, gone)
            except DvkfError as error:
                kind = "digest" if isinstance(error, ModelDigestError) else "serving"
                answer = {"state": "failed", "kind": kind, "message": str(error)}
            finally:
                watch.cancel()
            await loop.sock_sendall(peer, json.dumps(answer).encode() + b"\n")


async def _until_closed(peer: socket.socket, gone: asyncio.Event) -> None:
    with suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(peer, 1):
            pass
    gone.set()


def take_listener(name: str, *, timeout: float = 5.0) -> socket.socket | None:
    """Return the listening socket of a server; None if it does not answer.

    Args:
        name: Name of its control socket.
        timeout: Seconds to wait for it.
    """
    with suppress(OSError), _connected(name, timeout) as control:
        control.sendall(b'{"op": "listener"}\n')
        _, fds, _, _ = socket.recv_fds(control, 1, 1)
        if fds:
            return socket.socket(fileno=fds[0])
    return None


def send_message(name: str, message: Mapping[str, Any], *, timeout: float) -> None:
    """Send a message to a server, and wait until it is carried out.

    Args:
        name: Name of its control socket.
        message: The message, with ``op``.
        timeout: Seconds to wait for the answer.

    Raises:
        ModelDigestError: The server refused a model's files by their digest.
        ServingError: The server failed, or does not answer.
    """
    try:
        with _connected(name, timeout) as control:
            control.sendall(json.dumps(message).encode() + b"\n")
            with control.makefile("rb") as stream:
                line = stream.readline(_LIMIT)
    except OSError as error:
        raise ServingError(
            f"the server gave no answer to '{message['op']}' in {timeout:.0f} s ({error}). See its log; if it hangs, "
            "stop it, and deploy its models again."
        ) from error
    if not line:
        raise ServingError(f"the server ended during '{message['op']}'. See its log.")
    answer = json.loads(line)
    if answer["state"] != "done":
        raise (ModelDigestError if answer["kind"] == "digest" else ServingError)(answer["message"])


def _connected(name: str, timeout: float) -> socket.socket:
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.settimeout(timeout)
    try:
        control.connect("\0" + name)
    except OSError:
        control.close()
        raise
    return control
