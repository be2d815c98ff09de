"""Attempts of a stage: a command that fails is run again in the same pod.

Since KFP 2.17 Argo retries only lost pods, not failed commands (``templateDefaults`` of its configuration). Earlier
versions retry a pod whose command failed. So the pod counts failed attempts in ``attempts.json`` beside the stage's
result, and a pod that starts after the last attempt ends at once.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.errors import MissingObjectError, StageCancelledError, StageError
from dvkf_prefect.kubeflow.exchange.runs import ATTEMPTS, PodRun
from dvkf_prefect.pipeline.step.spec import StepResult


class Attempts:
    """Attempts of the stage of one task.

    Args:
        storage: The remote's storage.
        about: Parameters of the pod.

    Raises:
        RemoteError: The remote cannot be used.
    """

    def __init__(self, storage: Storage, about: PodRun) -> None:
        self._storage = storage
        self._place = about.place(ATTEMPTS)
        self._policy = about.attempts
        self.failed = 0
        self._began = time.time()
        if self._policy.count > 1:
            with suppress(MissingObjectError, ValueError, KeyError, TypeError):
                values = json.loads(storage.read(self._place, limit=4096))
                self.failed, self._began = int(values["failed"]), float(values["began"])

    @property
    def exhausted(self) -> bool:
        """True if no attempt is left."""
        return self.failed >= self._policy.count

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Raise `StageError` in the main thread if an attempt takes longer than its timeout."""
        limits = [self._policy.timeout, self._left()]
        limit = min((each for each in limits if each), default=0.0)
        if not limit or self._policy.count == 1:
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            raise StageError(f"the attempt did not end in {limit:.0f} s")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def wait_after(self, result: StepResult) -> float | None:
        """Record a failed attempt; return the seconds until the next one, or None if there is none.

        Args:
            result: Result of the attempt.

        Raises:
            RemoteError: The remote cannot be used.
        """
        self.failed += 1
        if self._policy.count == 1 or result.error == StageCancelledError.__name__:
            return None
        values = {"failed": self.failed, "began": self._began}
        self._storage.write(self._place, json.dumps(values).encode())
        wait = self._policy.wait * self._policy.factor ** (self.failed - 1)
        left = self._left()
        return None if self.exhausted or (left and wait >= left) else wait

    def _left(self) -> float:
        """Return the seconds until no attempt may run; 0 without a limit."""
        return max(1.0, self._began + self._policy.window - time.time()) if self._policy.window else 0.0
