"""A worker process of the model server; `dvkf_prefect.serving.workers` starts it.

``python -m dvkf_prefect.serving.worker FD FIELDS``
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import DvkfError, ModelDigestError
from dvkf_prefect.serving.answering import Answer, Request, answer_request, answer_requests, failure_of
from dvkf_prefect.serving.intake import Budget
from dvkf_prefect.serving.loading import load_model
from dvkf_prefect.serving.served import Served
from dvkf_prefect.serving.workers import TAKEN, receive_frame, send_frame


def main(argv: list[str]) -> int:
    """Load the model, and answer requests until the server is gone; return the exit code."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # The server decides when to end, after its last answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fields = json.loads(argv[1])
    with socket.socket(fileno=int(argv[0])) as sock, ExitStack() as keep:
        try:
            model = load_model(
                Path(fields["path"]), fields["digest"], fields["name"], fields["version"],
                model_format=fields["format"], keep=keep,
            )  # fmt: skip
        except DvkfError as error:
            kind = "digest" if isinstance(error, ModelDigestError) else "serving"
            send_frame(sock, {"state": "failed", "kind": kind, "message": str(error)})
            return 1
        send_frame(sock, {"state": "loaded", "metadata": model.metadata()})
        budget = Budget()
        while True:
            try:
                head, bodies = receive_frame(sock)
            except (EOFError, OSError):
                return 0
            sock.sendall(TAKEN)
            answers = _answers(model, head, bodies, budget)
            heads = [{"status": answer.status, "headers": dict(answer.headers)} for answer in answers]
            send_frame(sock, heads, [answer.body for answer in answers])


def _answers(model: Served, head: dict[str, Any], bodies: list[bytes], budget: Budget) -> list[Answer]:
    requests = [
        Request(**{**each, "body": body}) for each, body in zip(head["requests"], bodies, strict=True)
    ]
    with ExitStack() as stack:
        try:
            shares = [stack.enter_context(budget.share()) for _ in requests]
        except DvkfError as error:
            return [failure_of(error)] * len(requests)
        if len(requests) == 1:
            return [answer_request(model, requests[0], head["limit"], shares[0])]
        return answer_requests(model, requests, head["limit"], shares)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
