"""Login at a Kubeflow Pipelines server: the headers of a request, and the time until which they hold.

A token is sent as ``Authorization: Bearer``, a name and password as ``Authorization: Basic``, and a browser's session
as a ``Cookie`` header. Sources: the token of a service account is projected into pods by Kubernetes and renewed there;
``oauth2_proxy_kubeflow`` is the cookie of Kubeflow 1.9 and later, in parts ``_0``, ``_1``, … if it is long;
``authservice_session`` is that of earlier ones. KFP's variable ``KF_PIPELINES_SA_TOKEN_PATH`` names the file of the
mounted token.
"""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from dvkf_prefect.errors import ConfigError

# Cookies of Kubeflow's login proxies: of oauth2-proxy, and of the AuthService before it.
COOKIES = ("oauth2_proxy_kubeflow", "authservice_session")
TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105 (KFP's name for the file's path)
_TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105 (KFP's usual place for it)
_COOKIE = re.compile(r"\s*([\w!#$%&'*+.^`|~-]+)=([^\s;=|][^\s;]*)\s*")
_PART = re.compile(r"(.+)_(\d+)")

Way = Literal["bearer token", "token file", "in-cluster token", "name and password", "cookie", "none"]


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials for a server: the first one given of token, token file and name, with the cookies if there are any.

    Without any of them, the token that Kubernetes mounts for Kubeflow Pipelines is sent.

    Attributes:
        token: Bearer token.
        token_file: File with the token, read for each request.
        username: Name for basic authentication.
        password: Password for it.
        cookie: A whole ``Cookie`` header such as ``a=1; b=2``, or the value of one cookie.
        cookie_name: Name of that one cookie; None sends the value under both of Kubeflow's names.
    """

    token: str = field(default="", repr=False)
    token_file: str | None = None
    username: str | None = None
    password: str = field(default="", repr=False)
    cookie: str = field(default="", repr=False)
    cookie_name: str | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers for a request.

        Raises:
            ConfigError: The token file cannot be read, or a value cannot be sent as a header.

        Example:
            >>> Login(token="abc").headers()
            {'Authorization': 'Bearer abc'}
        """
        headers: dict[str, str] = {}
        if token := self.bearer():
            headers["Authorization"] = f"Bearer {token}"
        elif self.username:
            pair = f"{self.username}:{self.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        if self.cookie:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies().items())
        for name, value in headers.items():
            if not (value.isascii() and value.isprintable()):
                raise ConfigError(
                    f"the credentials for Kubeflow Pipelines ({self.way}) cannot be sent as the header {name}: they "
                    "contain a line break or a character outside ASCII"
                )
        return headers

    def bearer(self) -> str:
        """Return the token for a request; "" if there is none.

        Raises:
            ConfigError: The token file cannot be read.
        """
        if self.token:
            return self.token.strip()
        if (self.username or self.cookie) and not self.token_file:
            return ""
        try:
            return self._file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            if self.token_file:
                why = error.strerror if isinstance(error, OSError) else "it is not text"
                raise ConfigError(f"the token file {self.token_file} cannot be read: {why}") from error
            return ""

    def cookies(self) -> dict[str, str]:
        """Return the cookies to send, by name."""
        text = self.cookie.strip()
        if not text:
            return {}
        if self.cookie_name:
            return {self.cookie_name: text}
        if text.lower().startswith("cookie:"):
            text = text[len("cookie:") :].strip()
        parts = [_COOKIE.fullmatch(part) for part in text.rstrip("; ").split(";")]
        found = {part[1]: part[2] for part in parts if part}
        if len(found) == len(parts):
            return found
        return dict.fromkeys(COOKIES, text)

    def missing_part(self) -> str:
        """Return the name of a cookie that is missing between the parts of a split one; "" if none is.

        oauth2-proxy splits a long cookie into ``name_0``, ``name_1``, …, and accepts only all of them.
        """
        parts: dict[str, set[int]] = {}
        for name in self.cookies():
            if (match := _PART.fullmatch(name)) and match[1] in COOKIES:
                parts.setdefault(match[1], set()).add(int(match[2]))
        for name, numbers in parts.items():
            # One part alone is never sent: the proxy splits only what does not fit into one cookie.
            wanted = range(max(2, max(numbers) + 1))
            if lost := sorted(set(wanted) - numbers):
                return f"{name}_{lost[0]}"
        return ""

    @property
    def way(self) -> Way:
        """The kind of credentials that a request carries."""
        if self.token:
            return "bearer token"
        if self.token_file:
            return "token file"
        if self.username:
            return "name and password"
        if self.cookie:
            return "cookie"
        return "in-cluster token" if self._file.is_file() else "none"

    @property
    def place(self) -> str:
        """The file of the token; "" for other credentials."""
        return str(self._file) if self.way in ("token file", "in-cluster token") else ""

    def holds_until(self) -> datetime | None:
        """Return the end of the token's validity; None if the credentials do not say it.

        The claim ``exp`` of a JSON web token is read; its signature is not verified.

        Raises:
            ConfigError: The token file cannot be read.
        """
        try:
            return datetime.fromtimestamp(float(self._claims()["exp"]), timezone.utc)
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            return None

    def service_account(self) -> str:
        """Return the Kubernetes user of a service account's token, ``system:serviceaccount:NAMESPACE:NAME``.

        Returns:
            The user; "" for other credentials.

        Raises:
            ConfigError: The token file cannot be read.
        """
        subject = str(self._claims().get("sub", ""))
        return subject if subject.startswith("system:serviceaccount:") else ""

    def _claims(self) -> dict[str, Any]:
        """Return the claims of a JSON web token; empty if the credentials are none."""
        try:
            payload = self.bearer().split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (IndexError, ValueError):
            return {}
        return claims if isinstance(claims, dict) else {}

    @property
    def _file(self) -> Path:
        return Path(self.token_file or os.environ.get(TOKEN_VARIABLE) or _TOKEN_FILE).expanduser()
