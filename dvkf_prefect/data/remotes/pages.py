"""Listings that end: what comes round again, or is more than any remote holds, is an error."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, TypeVar

from dvkf_prefect.data.remotes.errors import Place

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

MOST_KEYS = 100_000_000
"""So many keys no remote has; a listing that goes on longer has no end."""
MOST_EMPTY = 100
"""So many pages without a key follow each other in no listing that has an end."""
LONGEST_PAGE = 120.0
"""Seconds in which the next keys of a listing must come."""


class Watch:
    """Looks at the pages of one listing.

    Args:
        place: How messages call the remote.
        prefix: The folder that is listed.
    """

    def __init__(self, place: Place, prefix: str) -> None:
        self._place = place
        self._prefix = prefix
        self._marker: tuple[str, str] | None = None
        self._pages = 0
        self._keys = 0
        self._empty = 0

    def restart(self) -> None:
        """Forget the place of pages: the listing begins again."""
        self._marker = None
        self._pages = 0

    def see(self, first: str | None, last: str | None, count: int) -> None:
        """Look at one page.

        Args:
            first: Its first key; None where it has none.
            last: Its last key.
            count: Its keys.

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
        # Pages that come round again meet the one kept here, whatever their number is.
        if not self._pages & (self._pages - 1):
            self._marker = ends

    def _fail(self) -> None:
        raise self._place.failed(f"list '{self._prefix}'", "the listing has no end")


class Clock:
    """Waits for the next page of a stream of obstore, which by itself goes on for ever while pages are empty.

    The stream is asked in an event loop of its own thread, where what takes too long is given up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Begin anew in a forked process, which has no such thread."""
        self._lock = threading.Lock()
        self._loop = None

    def next(self, stream: AsyncIterator[T], place: Place, tried: str) -> T | None:
        """Return the next page, or None at the end.

        Args:
            stream: The stream.
            place: How messages call the remote.
            tried: What was asked for.

        Raises:
            RemoteUnreachableError: None came in time.
        """
        import asyncio  # takes a while to import

        async def page() -> T | None:
            return await anext(stream, None)

        async def bounded() -> T | None:
            return await asyncio.wait_for(page(), LONGEST_PAGE)

        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="dvkf-pages", daemon=True).start()
            loop = self._loop
        try:
            return asyncio.run_coroutine_threadsafe(bounded(), loop).result()
        except (asyncio.TimeoutError, FutureTimeoutError):
            raise place.unreachable(tried, f"nothing came in {LONGEST_PAGE:.0f} s") from None


CLOCK = Clock()
"""The one of this process."""
