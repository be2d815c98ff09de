"""One loaded version of a model, with the threads that compute its answers, alone or in batches."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from anyio import CapacityLimiter, to_thread

from dvkf_prefect.serving.answering import Answer, Request, answer_request, answer_requests, failure_of
from dvkf_prefect.serving.intake import MAX_REQUESTS, Share, busy
from dvkf_prefect.serving.served import Served
from dvkf_prefect.serving.workers import WorkerPool

# Seconds of a computation that must not block the event loop.
_SLOW = 0.02
# Requests to compute in threads after a slow computation, at most; quick computations in turn that halve their number.
_MOST_THREADED = 1000
_RECOVERY = 100
_THREADS = 40
# Requests of one version in progress; the rest of `MAX_REQUESTS` is for other versions and models.
MAX_RUNNING = MAX_REQUESTS - 64


@dataclass(frozen=True)
class Batching:
    """Bounds of a batch of requests, which one computation answers.

    A lane computes one batch at a time, or one for each of its worker processes. Requests that arrive meanwhile make
    the next batch.

    Attributes:
        size: Maximum number of requests in a batch; 1 for no batches.
        wait: Seconds that the first request waits for more, unless the batch is full.
    """

    size: int = 1
    wait: float = 0.0


@dataclass(frozen=True)
class _Waiting:
    request: Request
    limit: int
    share: Share
    answer: asyncio.Future[Answer]


class Lane:
    """A loaded version, and the requests that it computes.

    Args:
        model: The loaded model, or the processes that have loaded it.
        keep: Closed with the lane: it removes private copies of files.
        batching: Bounds of batches.

    Attributes:
        version: The version.
        metadata: The model's V2 metadata.
        running: Number of requests in progress.
        batches: Number of computations so far.
    """

    def __init__(
        self,
        model: Served | WorkerPool,
        keep: ExitStack | None = None,
        batching: Batching | None = None,
    ) -> None:
        self.version = model.version
        self.metadata = model.metadata()
        self.running = 0
        self.batches = 0
        self._model = model
        self._keep = keep or ExitStack()
        self._batching = batching or Batching()
        # Requests to compute in threads before one is computed on the event loop again.
        self._threaded = 0
        self._penalty = 1
        self._quick_ones = 0
        # Threads of its own: a model that hangs leaves those of others.
        self._threads = CapacityLimiter(model.count if isinstance(model, WorkerPool) else _THREADS)
        self._waiting: list[_Waiting] = []
        self._full = asyncio.Event()
        # A batch at a time, or one for each worker.
        self._runners: set[asyncio.Task[None]] = set()
        self._parallel = model.count if isinstance(model, WorkerPool) else 1

    async def answer(self, request: Request, limit: int, share: Share) -> Answer:
        """Compute the answer to a request, in a thread.

        Args:
            request: The request.
            limit: Maximum size of a decompressed body, in bytes.
            share: Memory of the request.

        Raises:
            HttpError: Too many requests of the version are in progress.
        """
        if self.running >= MAX_RUNNING:
            raise busy()
        self.running += 1
        self._threaded = max(0, self._threaded - 1)
        try:
            if self._batching.size > 1:
                return await self._answer_in_batch(request, limit, share)
            self.batches += 1
            # Parsing, predicting and rendering are all slow for many rows.
            (answer,) = await to_thread.run_sync(
                self._compute, [request], limit, [share], limiter=self._threads
            )
            return answer
        finally:
            self.running -= 1

    @property
    def ready(self) -> bool:
        """True if the version can compute now."""
        return not isinstance(self._model, WorkerPool) or self._model.alive > 0

    @property
    def workers(self) -> int | None:
        """Number of worker processes that run; None without any by choice."""
        return self._model.alive if isinstance(self._model, WorkerPool) else None

    def _compute(self, requests: list[Request], limit: int, shares: list[Share]) -> list[Answer]:
        if isinstance(self._model, WorkerPool):
            return self._model.answer(requests, limit)
        if len(requests) == 1:
            return [answer_request(self._model, requests[0], limit, shares[0])]
        return answer_requests(self._model, requests, limit, shares)

    @property
    def is_quick(self) -> bool:
        """True if a small request may be answered on the event loop: the model never waits, and was fast so far."""
        return self._threaded == 0 and self._batching.size == 1 and self._model.quick

    def answer_at_once(self, request: Request, limit: int, share: Share) -> Answer:
        """Compute the answer to a request on the event loop; only if `is_quick`.

        A slow computation sends the next ones to threads: twice as many each time, and more after a very slow one. So a
        slow model soon leaves the event loop. A collection of garbage or a page fault costs a few threads, and a run
        of quick computations halves the number.

        Args:
            request: The request.
            limit: Maximum size of a decompressed body, in bytes.
            share: Memory of the request.
        """
        self.batches += 1
        started = time.thread_time()  # a model that waits for nothing
        (answer,) = self._compute([request], limit, [share])
        spent = time.thread_time() - started
        if spent > _SLOW:
            self._penalty = min(self._penalty * max(2, int(spent / _SLOW)), _MOST_THREADED)
            self._threaded, self._quick_ones = self._penalty, 0
        else:
            self._quick_ones += 1
            if self._quick_ones == _RECOVERY:
                self._penalty, self._quick_ones = max(1, self._penalty // 2), 0
        return answer

    async def close(self) -> None:
        """Wait until every request in progress has its answer, and free the model's files."""
        while self.running:
            await asyncio.sleep(0.02)
        self.end()

    def end(self) -> None:
        """Free the model's files, and end its worker processes."""
        self._keep.close()

    async def _answer_in_batch(self, request: Request, limit: int, share: Share) -> Answer:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, limit, share, loop.create_future())
        self._waiting.append(waiting)
        if len(self._waiting) >= self._batching.size:
            self._full.set()
        if len(self._runners) < self._parallel:
            runner = loop.create_task(self._run())
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)
        return await waiting.answer

    async def _run(self) -> None:
        """Compute batches until no request waits."""
        size, wait = self._batching.size, self._batching.wait
        while self._waiting:
            if wait and len(self._waiting) < size:
                with suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._full.wait(), wait)
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            if not batch:
                return
            if len(self._waiting) < size:
                self._full.clear()
            self.batches += 1
            try:
                answers = await to_thread.run_sync(
                    self._compute,
                    [each.request for each in batch],
                    batch[0].limit,
                    [each.share for each in batch],
                    limiter=self._threads,
                )
            except Exception as error:  # noqa: BLE001 - a request must not wait for ever
                answers = [failure_of(error)] * len(batch)
            for each, answer in zip(batch, answers, strict=True):
                if not each.answer.done():
                    each.answer.set_result(answer)
