"""One loaded version of a model, with the threads that compute its answers, alone or in batches."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from dvkf_prefect.serving.answering import Answer, Request, answer_request, answer_requests, failure_of
from dvkf_prefect.serving.intake import Share
from dvkf_prefect.serving.served import Served


@dataclass(frozen=True)
class Batching:
    """Bounds of a batch of requests, which one computation answers.

    A lane computes one batch at a time. Requests that arrive meanwhile make the next batch.

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
        model: The loaded model.
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
        model: Served,
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
        self._waiting: list[_Waiting] = []
        self._full = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def answer(self, request: Request, limit: int, share: Share) -> Answer:
        """Compute the answer to a request, in a thread.

        Args:
            request: The request.
            limit: Maximum size of a decompressed body, in bytes.
            share: Memory of the request.
        """
        self.running += 1
        try:
            if self._batching.size > 1:
                return await self._answer_in_batch(request, limit, share)
            self.batches += 1
            # Parsing, predicting and rendering are all slow for many rows.
            return await run_in_threadpool(answer_request, self._model, request, limit, share)
        finally:
            self.running -= 1

    async def close(self) -> None:
        """Wait until every request in progress has its answer, and free the model's files."""
        while self.running:
            await asyncio.sleep(0.02)
        self._keep.close()

    async def _answer_in_batch(self, request: Request, limit: int, share: Share) -> Answer:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, limit, share, loop.create_future())
        self._waiting.append(waiting)
        if len(self._waiting) >= self._batching.size:
            self._full.set()
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        return await waiting.answer

    async def _run(self) -> None:
        """Compute batches until no request waits."""
        size, wait = self._batching.size, self._batching.wait
        while self._waiting:
            if wait and len(self._waiting) < size:
                with suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._full.wait(), wait)
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            if len(self._waiting) < size:
                self._full.clear()
            self.batches += 1
            try:
                answers = await run_in_threadpool(
                    answer_requests,
                    self._model,
                    [each.request for each in batch],
                    batch[0].limit,
                    [each.share for each in batch],
                )
            except Exception as error:  # noqa: BLE001 - a request must not wait for ever
                answers = [failure_of(error)] * len(batch)
            for each, answer in zip(batch, answers, strict=True):
                if not each.answer.done():
                    each.answer.set_result(answer)
        self._runner = None
