"""A request of a user."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .store import Refused


class Request:
    """A parsed request of one user."""

    def __init__(self, method: str, target: str, headers: Any, body: bytes) -> None:
        parts = urlsplit(target)
        self.method, self.path = method, unquote(parts.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.headers, self.body = headers, body
        self.user = ""

    @property
    def writer(self) -> str:
        """Name of the field manager: the parameter, or the client's name in its User-Agent."""
        return self.query.get("fieldManager") or (self.headers.get("User-Agent") or "unknown").split("/")[0]

    def flag(self, name: str) -> bool:
        """Return a truth value. Source: apimachinery pkg/runtime/conversion.go, ``Convert_Slice_string_To_bool``."""
        return self.query.get(name, "false").lower() not in ("false", "0", "")

    @property
    def dry(self) -> bool:
        return self.query.get("dryRun") == "All"

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refused(400, "BadRequest", f"the object provided is unrecognized: {error}") from None
