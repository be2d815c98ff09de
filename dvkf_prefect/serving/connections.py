"""Connections of the model server, with the timeouts and limits that uvicorn lacks.

A request's headers must be complete within `HEADER_SECONDS`, and its body must arrive at `BODY_RATE` or faster.
Headers have at most `HEADER_BYTES`, and an HTTP/1.1 request exactly one Host (RFC 9112, section 3.2). At most
`MAX_CONNECTIONS` are open; past them the longest idle one is closed. A connection closed before its request was
read completely is drained for a while. So the client can read the answer instead of getting a reset.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from dvkf_prefect.serving.answering import Answer
from dvkf_prefect.serving.intake import render

HEADER_SECONDS = 20.0
BODY_SECONDS = 20.0
BODY_RATE = 16 << 10
MAX_CONNECTIONS = 1024
HEADER_BYTES = 64 << 10
# A larger body is computed elsewhere than on the event loop.
QUICK_BYTES = 16 << 10
# Requests of one connection that wait for the answer to the first of them.
MAX_PIPELINED = 64
_LINGER_SECONDS = 5.0
_LINGER_BYTES = 256 << 20
_LONG = "the headers of the request are too long. Send shorter ones."


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


@runtime_checkable
class QuickApp(Protocol):
    """An application that answers some requests at once, without a task of their own."""

    def quick(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        """Return the answer to a POST request; None to have it called as usual."""


class _RefusedError(Exception):
    """A request that the parser takes, and the server does not."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection of the server."""

    _lingering: _Lingering
    _deadline: asyncio.TimerHandle | None = None
    # The part of a request awaited from the client: "headers", "body", or "" for none.
    _phase = ""
    _since = 0.0
    _received = 0
    _used = 0.0
    # The part of a request that the parser is in; True if it began in the last piece of data; bytes of its headers that
    # were parsed, and that may not be.
    _reading = ""
    _begun = False
    _head = 0
    _partial = 0
    # True from the headers of a request to upgrade until it is read without them.
    _upgrading = False
    # A small request that waits for its body, and may be answered at once then.
    _held: RequestResponseCycle | None = None

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
        self._begun = False
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self.send_400_response(str(cause if isinstance(cause, _RefusedError) else error))
            return
        self._look()
        if self._phase != before:
            self._received = len(data)
        if self._reading == "headers":
            # The parser keeps a header back until it is complete. Its request began in an earlier piece of data.
            self._partial += 0 if self._begun else len(data)
            if self._partial > HEADER_BYTES:
                self.send_400_response(_LONG)

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stopped:
                # The parser takes what follows for another protocol. RFC 9110, section 7.8, lets a server ignore the
                # upgrade, which clients of Java ask for with each first request. So the request is read without it.
                kept = [each for each in self.headers if each[0] not in (b"upgrade", b"connection")]
                head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
                head += [b"%s: %s\r\n" % each for each in kept]
                self.parser = httptools.HttpRequestParser(self)
                self._upgrading = False
                data = b"".join(head) + b"\r\n" + data[stopped.args[0] :]

    def on_message_begin(self) -> None:
        """Start to count the bytes of headers."""
        super().on_message_begin()
        self._reading, self._begun, self._head, self._partial = "headers", True, 0, 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._count(len(name) + len(value) + len(b": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request; refuse one without a Host or with several, or after too many."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise _RefusedError("the request has no Host, or several. Send one.")
        if self.parser.get_method() == b"CONNECT":
            raise _RefusedError("the server is no proxy. Send a request for a model.")
        self._upgrading = self.parser.should_upgrade()
        if self._upgrading:
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _RefusedError("too many requests wait on the connection. Read answers first.")
        self._reading = "body"
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request."""
        if self._upgrading:
            return
        self._reading = ""
        super().on_message_complete()
        cycle, self._held = self._held, None
        if cycle is not None and not self._answer_at_once(cycle):
            super()._start_asgi_task(cycle, self.app)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Hold a small request until its body is there; start any other one."""
        if (
            self._reading == "body"
            and cycle is self.cycle
            and self.scope["method"] == "POST"
            and not self.expect_100_continue
            and self._length() <= QUICK_BYTES
        ):
            self._held = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _length(self) -> int:
        for name, value in self.headers:
            if name == b"content-length":
                return int(value)
        return QUICK_BYTES + 1

    def _answer_at_once(self, cycle: RequestResponseCycle) -> bool:
        """Answer a request on the event loop; return False if the application would not."""
        app: object = self.app
        if not isinstance(app, QuickApp) or self.flow.write_paused or cycle.disconnected:
            return False
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        answer = app.quick(self.scope["path"], headers, bytes(cycle.body))
        if answer is None:
            return False
        head = [STATUS_LINE[answer.status]]
        for name, text in answer.headers.items():
            head.append(f"{name}: {text}\r\n".encode("latin-1"))
        head.append(b"" if cycle.keep_alive else b"connection: close\r\n")
        head.append(b"content-length: %d\r\n\r\n" % len(answer.body))
        self.transport.write(b"".join(head) + answer.body)
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > HEADER_BYTES:
            raise _RefusedError(_LONG)

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
        running = self.cycle is not None and not self.cycle.response_complete
        if self._lingering.is_closing() or (running and (self.pipeline or self._reading != "body")):
            self._enter("")
        else:
            self._enter(self._reading or idle)

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
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
                body
            )
            self.transport.write(STATUS_LINE[status] + head + body)
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
