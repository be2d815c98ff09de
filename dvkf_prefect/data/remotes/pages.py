"""Detection of endless listings: a repeated page, or more keys than any remote holds, is an error."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, TypeVar

from dvkf_prefect.data.remotes.errors import Place

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

MOST_KEYS = 100_000_000
"""Maximum number of keys; a longer listing counts as endless."""
MOST_EMPTY = 100
"""Maximum number of successive empty pages; a listing with more counts as endless."""
LONGEST_PAGE = 120.0
"""Timeout for the next page of a listing, in seconds."""


class Watch:
    """Check of the pages of one listing.

    Args:
        place: Name of the remote in messages.
        prefix: The listed folder.
    """

    def __init__(self, place: Place, prefix: str) -> None:
        self._place = place
        self._prefix = prefix
        self._marker: tuple[str, str] | None = None
        self._pages = 0
        self._keys = 0
        self._empty = 0

    def restart(self) -> None:
        """Reset the page position, since the listing starts again."""
        self._marker = None
        self._pages = 0

    def see(self, first: str | None, last: str | None, count: int) -> None:
        """Check one page.

        Args:
            first: First key of the page; None if it has no keys.
            last: Last key of the page.
            count: Number of keys.

        Raises:
            RemoteError: The listing has no end.
        """
        self._keys += count
        if first is None or last is None:
            self._empty += 1
            if self._empty > MOST_EMPTY:
                self._fail()
            return
        self._empty = 0
        self._pages += 1
        ends = first, last
        if ends == self._marker or self._keys > MOST_KEYS:
            self._fail()
        # The marker moves at powers of two, so a cycle of any length returns to it.
        if not self._pages & (self._pages - 1):
            self._marker = ends

    def _fail(self) -> None:
        raise self._place.failed(f"list '{self._prefix}'", "the listing does not end")


class Clock:
    """Timeout for the next page of an obstore stream, which reads empty pages for ever by itself.

    The stream runs in an event loop of its own thread, and a page that takes too long is cancelled.

    obstore hands a page over from a native thread, which gives up the GIL to wake the event loop. A native thread that
    takes the GIL back while Python ends aborts the process. So `next` waits until each handover has returned.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handovers: set[object] = set()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Reset the state in a forked process, which does not have the thread."""
        self._lock = threading.Lock()
        self._loop = None
        self._handovers = set()

    def next(self, stream: AsyncIterator[T], place: Place, tried: str) -> T | None:
        """Return the next page, or None at the end.

        Args:
            stream: The stream.
            place: Name of the remote in messages.
            tried: The operation, for messages.

        Raises:
            RemoteUnreachableError: The timeout expired.
        """
        import asyncio  # slow to import

        async def page() -> T | None:
            return await anext(stream, None)

        async def bounded() -> T | None:
            return await asyncio.wait_for(page(), LONGEST_PAGE)

        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._count_handovers(self._loop)
                threading.Thread(target=self._loop.run_forever, name="dvkf-pages", daemon=True).start()
            loop = self._loop
        try:
            return asyncio.run_coroutine_threadsafe(bounded(), loop).result()
        except (asyncio.TimeoutError, FutureTimeoutError):
            raise place.unreachable(tried, f"nothing arrived in {LONGEST_PAGE:.0f} s") from None
        finally:
            while self._handovers:
                time.sleep(0)

    def _count_handovers(self, loop: asyncio.AbstractEventLoop) -> None:
        wake = loop.call_soon_threadsafe

        def call_soon_threadsafe(*args: Any, **options: Any) -> asyncio.Handle:
            handover = object()
            self._handovers.add(handover)
            try:
                return wake(*args, **options)
            finally:
                self._handovers.discard(handover)

        loop.call_soon_threadsafe = call_soon_threadsafe  # type: ignore[assignment, method-assign]


CLOCK = Clock()
"""Clock shared by this process."""
