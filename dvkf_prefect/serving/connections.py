"""Connections of the model server, with the timeouts and limits that uvicorn lacks.

A request's headers must be complete within `HEADER_SECONDS`, and its body must arrive at `BODY_RATE` or faster. At
most `MAX_CONNECTIONS` are open; past them the longest idle one is closed. A connection closed before its request was
read completely is drained for a while. So the client can read the answer instead of getting a reset.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from dvkf_prefect.serving.intake import render

HEADER_SECONDS = 20.0
BODY_SECONDS = 20.0
BODY_RATE = 16 << 10
MAX_CONNECTIONS = 1024
_LINGER_SECONDS = 5.0
_LINGER_BYTES = 256 << 20


class _Lingering:
    """Transport that half-closes on `close` and keeps reading for a while."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._left = _LINGER_BYTES
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self.lingers:
            self._transport.write(data)

    def close(self) -> None:
        if self.is_closing():
            return
        self.lingers = True
        try:
            self._transport.write_eof()
            self._transport.resume_reading()
        except (OSError, RuntimeError):
            self._transport.close()
        self._loop.call_later(_LINGER_SECONDS, self._transport.close)

    def close_now(self) -> None:
        self.lingers = True
        self._transport.close()

    def discard(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            self._transport.close()


class BoundedProtocol(H11Protocol):
    """One connection of the server."""

    _lingering: _Lingering
    _deadline: asyncio.TimerHandle | None = None
    # The part of a request awaited from the client: "headers", "body", or "" for none.
    _phase = ""
    _since = 0.0
    _received = 0
    _used = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout for headers; make room if there are too many connections."""
        self._lingering = _Lingering(transport, self.loop)
        super().connection_made(self._lingering)  # type: ignore[arg-type]
        self._used = time.monotonic()
        self._enter("headers")
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout."""
        self._enter("")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process received data, and set the timeout for the next part of the request."""
        if self._lingering.lingers:
            self._lingering.discard(len(data))
            return
        self._used = time.monotonic()
        before = self._phase
        self._received += len(data)
        super().data_received(data)
        self._look()
        if self._phase != before:
            self._received = len(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for the answer if the request is complete; an incomplete one is dropped."""
        if self.cycle is None or self.cycle.response_complete or self._lingering.lingers:
            return False
        if self._phase == "body":
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            return False
        self.cycle.keep_alive = False
        return True

    def on_response_complete(self) -> None:
        """Await the rest of an unneeded body, or the next request."""
        super().on_response_complete()
        self._used = time.monotonic()
        if not self._lingering.is_closing():
            self._look(idle="")

    def shutdown(self) -> None:
        """Close after the current answer; at once if there is none."""
        idle = self.cycle is None or self.cycle.response_complete
        super().shutdown()
        if idle:
            self._lingering.close_now()

    def send_400_response(self, msg: str) -> None:
        """Refuse data that is not HTTP."""
        self._refuse(400, msg)

    def _look(self, idle: str = "headers") -> None:
        state = self.conn.their_state
        if self._lingering.is_closing():
            self._enter("")
        elif state is h11.IDLE:
            self._enter(idle)
        else:
            self._enter("body" if state is h11.SEND_BODY else "")

    def _enter(self, phase: str) -> None:
        if phase == self._phase:
            return
        self._phase, self._since, self._received = phase, self.loop.time(), 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if phase:
            self._arm()

    def _arm(self) -> None:
        seconds = HEADER_SECONDS if self._phase == "headers" else BODY_SECONDS + self._received / BODY_RATE
        left = self._since + seconds - self.loop.time()
        if left <= 0:
            self._expire()
        else:
            self._deadline = self.loop.call_later(left, self._arm)

    def _expire(self) -> None:
        if self._phase == "headers" and not self._received:
            self._lingering.close_now()
        else:
            self._refuse(
                408, f"timeout while reading the {self._phase} of the request. Send the request again."
            )

    def _refuse(self, status: int, text: str) -> None:
        """Answer without the application and close; a running application sees a disconnected client."""
        self._enter("")
        answered = self.cycle is not None and self.cycle.response_started
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not answered or (self.cycle is not None and self.cycle.response_complete):
            body = render({"error": text})
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            try:
                for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:
                # This request already has an answer.
                pass
        self.transport.close()

    def _make_room(self) -> None:
        """Close the longest idle connection; refuse this one if all others are busy."""
        waiting = [
            each
            for each in self.connections
            if isinstance(each, BoundedProtocol)
            and each is not self
            and not each._lingering.is_closing()
            and (each.cycle is None or each.cycle.response_complete)
        ]
        if waiting:
            min(waiting, key=lambda each: each._used)._lingering.close_now()
        else:
            self._refuse(503, "too many open connections to the server. Try again later.")
