"""Rows of the API server's database and their limits, and the answers to what it refuses."""

from __future__ import annotations

import json
import time
from typing import Any

# apiserver/model/run.go:207-211 and client_manager/client_manager.go:342-347 (DefaultStringSize).
RUN_ID, TEXT, EXPERIMENT = 191, 255, 128
# apiserver/config/config.json: GROUP_CONCAT_MAX_LEN; a task's row takes about 1.34 KB.
JOINED, TASK_ROW = 4 << 20, 1340


class Refused(Exception):
    """An answer other than 200.

    Args:
        status: HTTP status.
        message: Message of the answer.
        code: gRPC's code; that of the status by default.
        by: ``api`` for the API server, whose errors carry the message for users in ``details``
            (common/util/error.go, GRPCStatus); ``gateway`` for its gateway; ``upload`` for its upload routes
            (pipeline_upload_server.go, writeErrorToResponse); ``proxy`` for plain text.
    """

    def __init__(self, status: int, message: str, code: int | None = None, *, by: str = "api") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.by = by
        # grpc-gateway, runtime.HTTPStatusFromCode, the other way round.
        self.code = code or {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 501: 12}.get(status, 13)

    @property
    def answer(self) -> str | dict[str, Any]:
        """Body of the answer."""
        if self.by == "proxy":
            return self.message
        if self.by == "upload":
            return {"error_message": self.message, "error_details": self.message}
        # InternalServerError says nothing to users; other errors say what follows their kind.
        said = (
            "Internal Server Error"
            if self.code == 13
            else self.message.partition("error: ")[2] or self.message
        )
        details = [{"@type": "type.googleapis.com/google.rpc.Status", "code": self.code, "message": said}]
        return {"code": self.code, "message": self.message, "details": details if self.by == "api" else []}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def check_row(body: dict, run_id: str) -> None:
    """Refuse a run's row as MySQL does in strict mode: too long (1406), or a character that utf8mb3 lacks (1366).

    Source: apiserver/client/sql.go:28 (charset utf8), storage/run_store.go:569 (the message).
    """
    problem = ""
    for column, value, most in (
        ("UUID", run_id, RUN_ID),
        ("DisplayName", body.get("display_name", ""), TEXT),
        ("Description", body.get("description", ""), TEXT),
        ("PipelineSpecManifest", json.dumps(body.get("pipeline_spec"), ensure_ascii=False), 4 << 30),
    ):
        if len(value) > most:
            problem = f"Error 1406 (22001): Data too long for column '{column}' at row 1"
        elif any(ord(character) > 0xFFFF for character in value):
            problem = f"Error 1366 (HY000): Incorrect string value for column '{column}' at row 1"
        if problem:
            raise not_stored(run_id, problem)


def check_text(column: str, value: str, most: int) -> None:
    """Refuse a text of another row, as `check_row` does."""
    if len(value) > most:
        raise Refused(
            500, f"InternalServerError: Error 1406 (22001): Data too long for column '{column}' at row 1"
        )
    if any(ord(character) > 0xFFFF for character in value):
        raise Refused(
            500, f"InternalServerError: Error 1366 (HY000): Incorrect string value for column '{column}'"
        )


def upload_error(status: int, message: str = "Failed to create a pipeline version") -> Refused:
    """Return an error of the upload routes, whose body differs from the gateway's."""
    return Refused(status, message, by="upload")


def not_stored(run_id: str, problem: str) -> Refused:
    return Refused(
        500, f"Failed to create a new run: InternalServerError: Failed to store run {run_id}: {problem}"
    )
