"""Retries for a busy or restarting service, after the delay it asks for; all threads of a remote share them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")

REFUSED = 40.0
"""Seconds to retry while a service that has answered before refuses connections, as in a restart."""
NEVER_ANSWERED = 5.0
"""Seconds to retry while a service that never answered refuses connections: its address is more likely wrong."""
LONGEST = 120.0
"""Maximum seconds for one wait that a service asks for; the next request follows in any case."""
BUSY = 600.0
"""Maximum seconds of all waits for a busy service."""
UNTIMED = (3.0, 6.0, 12.0, 24.0)
"""Seconds to wait for a busy service that gives no time."""
_QUICK = (0.1, 0.2, 0.4, 0.8, 1.6, 3.0)
_STALLS = 2

Kind = Literal["busy", "refused", "failed", "stalled"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Reason to retry a request.

    Attributes:
        kind: ``busy``: too many requests; ``refused``: no connection; ``failed``: an error of the service or a lost
            connection; ``stalled``: a timeout.
        after: Seconds to wait, None if the service does not say.
    """

    kind: Kind
    after: float | None = None


def retry_after(text: str | None) -> float | None:
    """Parse a ``Retry-After`` header, a number or a date, into seconds.

    Example:
        >>> retry_after("3"), retry_after("soon")
        (3.0, None)
    """
    if not text:
        return None
    with suppress(ValueError):
        return max(0.0, float(text)) if float(text) < 1e9 else LONGEST
    import email.utils

    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def seconds_refused(option: object = None) -> float | None:
    """Return the seconds to retry while a service refuses connections; None if not configured.

    Args:
        option: The remote's connect timeout in its options. Without one, the environment variable
            ``DVKF_CONNECT_SECONDS`` decides.
    """
    if isinstance(option, (int, float)) and option > 0:
        return float(option)
    with suppress(KeyError, ValueError):
        return float(os.environ["DVKF_CONNECT_SECONDS"])
    return None


class Gate:
    """Gate for all requests to a remote, closed for all of them while its service asks to wait.

    Args:
        refused: Seconds to retry while the service refuses connections. None stands for `REFUSED` if it has answered
            before, and for `NEVER_ANSWERED` if it has not.
    """

    def __init__(self, *, refused: float | None = None) -> None:
        self._refused = seconds_refused() if refused is None else refused
        self._answered = False
        self._until = 0.0
        self._lock = threading.Lock()
        self._asking = threading.Lock()

    def run(self, action: Callable[[], T], trouble: Callable[[Exception], Trouble | None]) -> T:
        """Run a request with retries.

        Args:
            action: The request.
            trouble: Classifies an error of the request; None for a permanent one.
        """
        patience = Patience(self)
        while True:
            self.wait()
            try:
                result = action()
            except Exception as error:
                met = trouble(error)
                self._answered |= met is None or met.kind in ("busy", "failed")
                if not patience.again(met):
                    raise
            else:
                self._answered = True
                return result

    @property
    def refused(self) -> float:
        """Seconds to retry now while the service refuses connections."""
        if self._refused is not None:
            return self._refused
        return REFUSED if self._answered else NEVER_ANSWERED

    def wait(self) -> None:
        """Wait until the gate is open, also while another thread asks the service for the delay."""
        with self._asking:
            pass
        while (left := self._until - time.monotonic()) > 0:
            time.sleep(left)

    def close(self, seconds: float) -> None:
        """Close the gate for some seconds."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)

    def ask(self, question: Callable[[], float | None]) -> float | None:
        """Return the seconds that the service asks to wait; one thread asks, and the others use its answer."""
        with self._asking:
            # Requests sent before the gate closed bring no news.
            left = self._until - time.monotonic()
            if left > 0:
                return left
            after = question()
            if after is not None:
                self.close(min(after, LONGEST))
            return after


class Patience:
    """Count of failed attempts of one request, and the decision to retry.

    Args:
        gate: Gate of the remote.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.reset()

    def reset(self) -> None:
        """Reset the counts after progress."""
        self._counts = {"busy": 0, "refused": 0, "failed": 0, "stalled": 0}
        self._waited = 0.0
        self._refused_since: float | None = None

    def again(self, trouble: Trouble | None) -> bool:
        """Wait, and return True if the request is to be sent again."""
        if trouble is None:
            return False
        count = self._counts[trouble.kind]
        self._counts[trouble.kind] += 1
        if trouble.kind == "busy":
            return self._wait_for_busy(count, trouble.after)
        if trouble.kind == "refused":
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            left = self._refused_since + self._gate.refused - now
            if left <= 0:
                return False
            time.sleep(min(_QUICK[min(count, len(_QUICK) - 1)], left))
            return True
        if count >= (len(_QUICK) if trouble.kind == "failed" else _STALLS):
            return False
        time.sleep(_QUICK[count])
        return True

    def _wait_for_busy(self, count: int, after: float | None) -> bool:
        if after is None:
            if count >= len(UNTIMED):
                return False
            after = UNTIMED[count]
        after = min(after, LONGEST)
        self._waited += max(after, 0.1)
        if self._waited > BUSY:
            return False
        self._gate.close(max(after, 0.1))
        return True
