"""Interests in a run: of several dispatchers that follow it, the last one to cancel ends it.

An interest is a file of its dispatcher below ``dvkf/runs/<key>/interests/`` on the remote, written again every
`RENEWAL` seconds. A dispatcher that cancels leaves a mark below ``endings/``, removes its own file, and lists the
others. It ends the run if none of them lives. A dispatcher that finds a run writes its file first and then looks for
marks; it waits until a mark is gone or the run has ended. So either the one that cancels sees the new interest, or
the new one sees the mark.

The interest of an ended process of this machine does not count. That of another machine lives if it is renewed within
`EXPIRY` seconds. Only changes of the file are observed, so the clocks of machines may differ.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.errors import CorruptObjectError, DvkfError, MissingObjectError
from dvkf_prefect.kubeflow.exchange.runs import run_place
from dvkf_prefect.processes.holder import Holder

FOLDER, ENDINGS = "interests", "endings"
RENEWAL = 10.0
EXPIRY = 35.0
_LOOK = 1.0  # seconds between two looks at others' files


class Interest:
    """This dispatcher's interest in a run, renewed by a thread until it is given up.

    Args:
        storage: The remote's storage.
        key: Key of the run.
        owner: The work that this process does, such as the ID of a flow run.

    Raises:
        RemoteError: The remote cannot be used.
    """

    def __init__(self, storage: Storage, key: str, owner: str = "") -> None:
        self._owner = owner
        self._storage = storage
        self._folder = run_place(key, FOLDER)
        self._endings = run_place(key, ENDINGS)
        self._name = f"{uuid.uuid4()}.json"
        self._renewals = 0
        self._given_up = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._work, name=f"kfp-interest-{key[:8]}", daemon=True)
        self._thread.start()

    def is_late(self, ended: Callable[[], bool]) -> bool:
        """Return True if another dispatcher ends the run, which it decided before it could see this interest.

        Waits while the other decides, at most `EXPIRY` seconds.

        Args:
            ended: Returns True if the run is being terminated or was.

        Raises:
            RemoteError: The remote cannot be used.
        """
        end = time.monotonic() + EXPIRY
        while any(self._storage.keys(self._endings)) and time.monotonic() < end:
            if ended():
                return True
            time.sleep(_LOOK / 4)
        return False

    def give_up(self) -> bool:
        """Give the interest up as its run is cancelled; return True if another dispatcher follows the run.

        If the remote cannot be used, no other dispatcher is assumed.
        """
        mark = f"{self._endings}/{self._name}"
        try:
            self._storage.write(mark, Holder.here().to_json())
            self.release()
            if not _is_followed(self._storage, self._folder):
                return False  # the mark stays until the run has ended, see `clear`
            self._storage.delete([mark])
        except DvkfError:
            return False
        return True

    def release(self) -> None:
        """Give the interest up, as the run has ended or its results are not needed."""
        self._given_up.set()
        self._thread.join()
        with suppress(DvkfError):
            self._storage.delete([f"{self._folder}/{self._name}"])

    def clear(self) -> None:
        """Remove the mark of `give_up`, once the run has ended or is left to others."""
        with suppress(DvkfError):
            self._storage.delete([f"{self._endings}/{self._name}"])

    def _work(self) -> None:
        while not self._given_up.wait(RENEWAL):
            with suppress(DvkfError, OSError):  # the next renewal may succeed
                self._write()

    def _write(self) -> None:
        self._renewals += 1
        place = f"{self._folder}/{self._name}"
        self._storage.write(place, Holder.here(self._owner).to_json() + b"\n" * (self._renewals % 1000))


def give_up_for(storage: Storage, key: str, owner: str, *, is_starter: bool = False) -> bool:
    """Remove the interests of an owner whose process was killed; return True if no other lives.

    An owner that had no interest and did not start the run has no say in it.

    Args:
        storage: The remote's storage.
        key: Key of the run.
        owner: The owner.
        is_starter: True if the owner started the run; it may have been killed before it wrote its interest.

    Raises:
        RemoteError: The remote cannot be used.
    """
    folder = run_place(key, FOLDER)
    own = [place for place, (_, holder) in _holders(storage, folder).items() if holder.owner == owner]
    storage.delete(own)
    return (bool(own) or is_starter) and not _is_followed(storage, folder)


def _is_followed(storage: Storage, folder: str) -> bool:
    """Return True once an interest is known to live; False once none is left that may."""
    first = found = _holders(storage, folder, alive=True)
    end = time.monotonic() + EXPIRY
    while found and time.monotonic() < end:
        for place, (size, holder) in found.items():
            renewed = place not in first or size != first[place][0]
            if renewed or holder.alive:
                return True
        time.sleep(_LOOK)
        found = _holders(storage, folder, alive=True)
    return False


def _holders(storage: Storage, folder: str, *, alive: bool = False) -> Mapping[str, tuple[int, Holder]]:
    """Return size and holder of each interest, or of those whose process may live."""
    found = {}
    for place, size in storage.list(folder):
        with suppress(MissingObjectError, CorruptObjectError):
            holder = Holder.from_json(storage.read(place, limit=8192))
            if not (alive and holder.gone):
                found[place] = size, holder
    return found
