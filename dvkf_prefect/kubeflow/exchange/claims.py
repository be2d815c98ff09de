"""Claims on runs: of several dispatchers that want to start one run, one starts it.

A claim is a file of its holder below ``dvkf/runs/<key>/claims/`` on the remote. A dispatcher writes its own file, and
then lists the folder. It has the claim if the listing has no other file. Otherwise it removes its own file again, waits
a random time, and repeats. The second writer lists second, so two dispatchers never both see only their own file. This
needs listings that show every earlier write, as all supported stores have.

A claim ends with its process, but the request that it sent does not: the server makes a run's workflow first, and may
fail to store the run. So the holder writes ``dvkf/runs/<key>/sent.json`` before it sends the request, and removes the
file only after an answer which says that nothing was started. A key with that file is not sent again. A dispatcher
that finds the file, but no run of the key, waits for the run. After the time in which the server deletes a workflow
without a run, it takes the next key. The time is that of the sender's clock.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.errors import CorruptObjectError, MissingObjectError
from dvkf_prefect.kubeflow.exchange.runs import run_place
from dvkf_prefect.processes.holder import Holder

FOLDER, SENT = "claims", "sent.json"
_SLOWEST = 2.0  # seconds between two tries


class Claim:
    """A claim on one run.

    Args:
        storage: The remote's storage.
        key: Key of the run.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._folder = run_place(key, FOLDER)
        self._own = f"{self._folder}/{uuid.uuid4()}.json"
        self._sent = run_place(key, SENT)

    def take(self, patience: float, stop: Callable[[], bool]) -> Holder | None:
        """Wait until this process has the claim.

        A claim whose holder has ended on this machine is removed. One that is still there after ``patience`` seconds
        is removed too: a dispatcher holds it only while it starts the run.

        Args:
            patience: Maximum number of seconds.
            stop: Returns True to give up, because the run exists.

        Returns:
            None with the claim; the holder if ``stop`` ended the wait.

        Raises:
            RemoteError: The remote cannot be used.
        """
        end = time.monotonic() + patience
        wait = 0.1
        while True:
            self._storage.write(self._own, Holder.here().to_json())
            others = self._others()
            if not others:
                return None
            late = time.monotonic() > end
            if stale := [place for place, holder in others.items() if late or holder.gone]:
                self._storage.delete(stale)
                if len(stale) == len(others) and not self._others():
                    return None
            self.release()
            if stop():
                return next(iter(others.values()))
            time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311
            wait = min(wait * 2, _SLOWEST)

    @property
    def held(self) -> bool:
        """True if this process still has the claim: another may have removed it after its patience."""
        return self._storage.size(self._own) is not None

    @property
    def in_use(self) -> bool:
        """True if a request for the run was sent, or another process that may live is about to send one."""
        return self.sent_at() is not None or not all(holder.gone for holder in self._others().values())

    def sending(self) -> None:
        """Record that the request which starts the run is sent now.

        Raises:
            RemoteError: The remote cannot be used.
        """
        self._storage.write(self._sent, json.dumps({"at": time.time()}).encode())

    def refused(self) -> None:
        """Remove the record of `sending`, because the request started nothing.

        Raises:
            RemoteError: The remote cannot be used.
        """
        self._storage.delete([self._sent])

    def sent_at(self) -> float | None:
        """Return the time at which a request for the run was sent, in seconds since 1970; None without a request.

        An unreadable record counts as one of this moment.

        Raises:
            RemoteError: The remote cannot be used.
        """
        try:
            return float(json.loads(self._storage.read(self._sent, limit=4096))["at"])
        except MissingObjectError:
            return None
        except (CorruptObjectError, ValueError, TypeError, KeyError):
            return time.time()

    def release(self) -> None:
        """Give the claim up.

        Raises:
            RemoteError: The remote cannot be used.
        """
        self._storage.delete([self._own])

    def clear(self) -> None:
        """Remove all claims on a run that exists: it is not started again, so those of killed holders are left over.

        Raises:
            RemoteError: The remote cannot be used.
        """
        if left := list(self._storage.keys(self._folder)):
            self._storage.delete(left)

    def _others(self) -> dict[str, Holder]:
        """Return the holder of each other claim."""
        found = {}
        for place in self._storage.keys(self._folder):
            if place != self._own:
                with suppress(MissingObjectError, CorruptObjectError):
                    found[place] = Holder.from_json(self._storage.read(place, limit=4096))
        return found
