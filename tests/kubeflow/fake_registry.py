"""A registry of images by the OCI Distribution Specification 1.1, and the token service that it names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from servers import serving

# distribution-spec, spec.md, "Pulling manifests": the grammar of names and tags.
_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
_REFERENCE = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}|sha256:[0-9a-f]{64}"
_PATH = re.compile(rf"/v2/(?P<name>{_NAME})/manifests/(?P<reference>{_REFERENCE})")
INDEX, MANIFEST = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
SERVICE = "registry.test"


class FakeRegistry:
    """The registry; a context manager.

    Attributes:
        images: Media type of each image's manifest, by ``name:tag``.
        login: ``none``, ``basic`` or ``bearer``.
        accounts: Passwords by name.
        refresh: Identity tokens that the token service takes.
        realm: Address of the token service, in place of its own.
        requests: Method and path of each request.
        problems: Requests that no client may send.
    """

    def __init__(self, login: str = "none") -> None:
        self.images: dict[str, str] = {}
        self.login = login
        self.accounts = {"robot": "s3cret"}
        self.refresh = {"identity"}
        self.realm = ""
        self.requests: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self._tokens: dict[str, str] = {}

    def __enter__(self) -> FakeRegistry:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                registry._serve(self)

            do_GET = do_POST = do_HEAD

        self._running = serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        self.port = self._running.__enter__()
        self.host = f"localhost:{self.port}"
        return self

    def __exit__(self, *error: object) -> None:
        self._running.__exit__(None, None, None)
        if error[0] is None:
            assert not self.problems, self.problems

    def digest(self, image: str) -> str:
        return "sha256:" + hashlib.sha256(image.encode()).hexdigest()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests.append((handler.command, parts.path))
        if parts.path == "/token":
            values = {k: v[0] for k, v in parse_qs(parts.query + "&" + body.decode()).items()}
            status, headers, answer = self._token(handler.command, values, handler.headers)
        elif handler.command == "HEAD":
            status, headers, answer = self._manifest(parts.path, handler.headers)
        else:
            self.problems.append(f"{handler.command} {handler.path}")
            status, headers, answer = 405, {}, {}
        data = json.dumps(answer).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command != "HEAD":  # RFC 9110: no content, but its length
            handler.wfile.write(data)

    def _manifest(self, path: str, headers: Any) -> tuple[int, dict[str, str], Any]:
        match = _PATH.fullmatch(path)
        if match is None:
            self.problems.append(f"no name or reference of the specification: {path}")
            return 400, {}, {"errors": [{"code": "NAME_INVALID"}]}
        name, reference = match["name"], match["reference"]
        if (challenge := self._challenge(name, headers.get("Authorization", ""))) is not None:
            return 401, {"WWW-Authenticate": challenge}, {"errors": [{"code": "UNAUTHORIZED"}]}
        known = {self.digest(image): image for image in self.images}
        image = known.get(reference, f"{name}:{reference}")
        kind = self.images.get(image)
        accepted = {each.strip() for each in headers.get("Accept", "").split(",")}
        # distribution, registry/handlers/manifests.go: a kind that the client does not name is not found.
        if kind is None or kind not in accepted:
            return 404, {}, {"errors": [{"code": "MANIFEST_UNKNOWN"}]}
        return 200, {"Content-Type": kind, "Docker-Content-Digest": self.digest(image)}, {}

    def _challenge(self, name: str, authorization: str) -> str | None:
        kind, _, value = authorization.partition(" ")
        if self.login == "basic":
            return None if kind == "Basic" and self._account(value) else 'Basic realm="registry"'
        if self.login == "bearer":
            scope = f"repository:{name}:pull"
            if kind == "Bearer" and self._tokens.get(value) == scope:
                return None
            realm = self.realm or f"http://{self.host}/token"
            return f'Bearer realm="{realm}",service="{SERVICE}",scope="{scope}"'
        return None

    def _account(self, value: str) -> bool:
        name, _, password = base64.b64decode(value).decode().partition(":")
        return self.accounts.get(name) == password

    def _token(self, method: str, values: dict[str, str], headers: Any) -> tuple[int, dict[str, str], Any]:
        """Give a token (docs/content/spec/auth/token.md, oauth.md); one without a login is for public images alone."""
        kind, _, value = headers.get("Authorization", "").partition(" ")
        scope = values.get("scope", "")
        if values.get("service") != SERVICE or not re.fullmatch(rf"repository:{_NAME}:pull", scope):
            self.problems.append(f"a token for {values}")
        if method == "POST":
            right = values.get("grant_type") == "refresh_token" and values.get("client_id")
            allowed = bool(right) and values.get("refresh_token") in self.refresh
        else:
            public = scope.split(":")[1].startswith("public/")
            allowed = self._account(value) if kind == "Basic" else public
        if not allowed:
            return 401, {}, {"errors": [{"code": "UNAUTHORIZED"}]}
        token = secrets.token_urlsafe()
        self._tokens[token] = scope
        return 200, {}, {"access_token" if method == "POST" else "token": token}
