"""Connections of the model server, with times and bounds that uvicorn has not.

A request's headers must be whole in `HEADER_SECONDS`, its body must come at `BODY_RATE` or faster, and there are
`MAX_CONNECTIONS` at most; past them the longest idle one is closed. A connection that is closed before its request was
read whole is drained for a while, so that the client gets to read the answer rather than a reset.
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
    """A transport that half-closes and reads on for a while when it is closed."""

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
    """One connection."""

    _lingering: _Lingering
    _deadline: asyncio.TimerHandle | None = None
    # What is waited for: "headers", "body" or nothing of the client's.
    _phase = ""
    _since = 0.0
    _received = 0
    _used = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers; make room when there are too many connections."""
        self._lingering = _Lingering(transport, self.loop)
        super().connection_made(self._lingering)  # type: ignore[arg-type]
        self._used = time.monotonic()
        self._enter("headers")
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._enter("")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and look what is waited for next."""
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
        """Keep the connection for the answer, when the request is whole; half a one never becomes so."""
        if self.cycle is None or self.cycle.response_complete or self._lingering.lingers:
            return False
        if self._phase == "body":
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            return False
        self.cycle.keep_alive = False
        return True

    def on_response_complete(self) -> None:
        """Wait for the rest of a body that was not needed, or for the next request."""
        super().on_response_complete()
        self._used = time.monotonic()
        if not self._lingering.is_closing():
            self._look(idle="")

    def shutdown(self) -> None:
        """End; at once when nothing is being answered."""
        idle = self.cycle is None or self.cycle.response_complete
        super().shutdown()
        if idle:
            self._lingering.close_now()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
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
                408, f"the {self._phase} of the request did not come in time; send the request again"
            )

    def _refuse(self, status: int, text: str) -> None:
        """Answer by itself, and close; the application, if it was asked, is told that the client has gone."""
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
                # An answer has been given to this request already.
                pass
        self.transport.close()

    def _make_room(self) -> None:
        """Close the connection that waits longest for its client; this one, when the others are all at work."""
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
            self._refuse(503, "the server has as many connections as it can hold; ask again later")
