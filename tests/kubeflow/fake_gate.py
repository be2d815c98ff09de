"""Servers before and behind Kubeflow's login, for the checks of the doctor: stricter than the real ones.

`Gate` is a Kubeflow Pipelines API, alone or behind a login: oauth2-proxy, Dex with AuthService, Istio, a proxy without
a server. `Kubernetes` is the part of Kubernetes' API that the doctor asks. A request that a real server would not
take is kept in ``problems``, which every test looks at.
"""

from __future__ import annotations

import abc
import base64
import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from servers import serving

from .fake.spec import check_call

LOGIN_PAGE = "<!DOCTYPE html><html><head><title>dex</title></head><form><input type='password'></form></html>"
DASHBOARD = "<!doctype html><html><head><title>Kubeflow Central Dashboard</title></head></html>"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Any

    def do_GET(self) -> None:
        self._take(b"")

    def do_POST(self) -> None:
        self._take(self.rfile.read(int(self.headers["Content-Length"])))

    def _take(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        owner = self.owner
        owner.requests.append((self.command, parts.path, query))
        status, headers, data = owner.answer(self.command, parts.path, query, self.headers, body)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def _json(status: int, values: Any) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(values).encode()


def _page(
    status: int, text: str, kind: str = "text/html; charset=utf-8"
) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": kind}, text.encode()


class Served(abc.ABC):
    """A server on a free port of this machine, until the context ends."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.problems: list[str] = []
        self.tls: ssl.SSLContext | None = None

    def __enter__(self) -> Any:
        handler = type("Handler", (_Handler,), {"owner": self})
        # Failed handshakes of clients are expected.
        server = type("Server", (ThreadingHTTPServer,), {"handle_error": lambda *args: None})
        self._server = server(("127.0.0.1", 0), handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._running = serving(self._server)
        self.port = self._running.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._running.__exit__(None, None, None)

    @abc.abstractmethod
    def answer(
        self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""


class Gate(Served):
    """Kubeflow Pipelines behind a gate.

    Args:
        gate: None, or a function from path and headers to an answer in place of the API's; None lets through.
        version: Version of the API server.
        multi_user: Namespaces that its user may see, or None for a single-user server.
        ui: The answers come by KFP's UI, which has a health of its own.
        prefix: Path of the API below the root.
    """

    def __init__(
        self,
        gate: Callable[[str, Any], tuple[int, dict[str, str], bytes] | None] | None = None,
        *,
        version: str = "2.17.0",
        multi_user: tuple[str, ...] | None = None,
        ui: bool = False,
        ready: bool = True,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.gate = gate
        self.version = version
        self.multi_user = multi_user
        self.ui = ui
        self.ready = ready
        self.prefix = prefix

    def answer(
        self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if self.gate and (refused := self.gate(path, headers)):
            return refused
        if not path.startswith(self.prefix + "/apis/"):
            return _page(200, DASHBOARD) if self.prefix else _page(404, "404 page not found\n", "text/plain")
        if method != "GET":
            self.problems.append(f"{method} {path}: a doctor changes nothing")
        path = path.removeprefix(self.prefix)
        old = self.version.startswith("1.")
        if path.startswith("/apis/v2beta1/"):
            try:
                check_call(method, path, query, json.loads(body) if body else None, None)
            except (AssertionError, jsonschema.ValidationError) as error:
                self.problems.append(f"{method} {path}: {error}")
        if path in ("/apis/v1beta1/healthz", "/apis/v2beta1/healthz") and not (old and "v2" in path):
            if query:
                self.problems.append(f"{path}: {query}")
            if self.ui:
                about = {"apiServerReady": self.ready, "frontendTagName": self.version}
                more = {"apiServerTagName": self.version, "multi_user": self.multi_user is not None}
                return _json(200, about | (more if self.ready else {}))
            about = {"commit_sha": "abc", "tag_name": self.version, "multi_user": self.multi_user is not None}
            return _json(200, about)
        if path == "/apis/v2beta1/experiments" and not old:
            if set(query) - {"namespace", "page_size", "page_token", "sort_by", "filter"}:
                self.problems.append(f"{path}: {query}")
            if self.multi_user is not None and query.get("namespace") not in self.multi_user:
                reason = (
                    "User 'ada' is not authorized with reason:  (request: &ResourceAttributes{Namespace:"
                    f"{query.get('namespace')},Verb:list,Group:pipelines.kubeflow.org,Resource:experiments,}})"
                )
                return _json(
                    403, {"code": 7, "message": f"Failed to list experiments: {reason}", "details": []}
                )
            return _json(200, {"experiments": [], "total_size": 0})
        if path.startswith("/apis/"):
            return _json(404, {"code": 5, "message": "Not Found", "details": []})
        raise AssertionError(path)


def bearer(*tokens: str) -> Callable[[str, Any], tuple[int, dict[str, str], bytes] | None]:
    """Istio's check of a token: 401 with a plain text."""

    def gate(path: str, headers: Any) -> tuple[int, dict[str, str], bytes] | None:
        word, _, token = headers.get("Authorization", "").partition(" ")
        if word == "Bearer" and token in tokens and "Cookie" not in headers:
            return None
        return 401, {"Content-Type": "text/plain", "WWW-Authenticate": "Bearer"}, b"Jwt verification fails"

    return gate


def oauth2_proxy(
    value: str, *, parts: int = 1
) -> Callable[[str, Any], tuple[int, dict[str, str], bytes] | None]:
    """oauth2-proxy of Kubeflow 1.9: 401 below /apis/, elsewhere a redirect to the login; a long cookie is split."""

    def gate(path: str, headers: Any) -> tuple[int, dict[str, str], bytes] | None:
        sent = [part.strip().partition("=") for part in headers.get("Cookie", "").split(";")]
        cookies = {name: text for name, _, text in sent}
        names = (
            [f"oauth2_proxy_kubeflow_{n}" for n in range(parts)] if parts > 1 else ["oauth2_proxy_kubeflow"]
        )
        if "".join(cookies.get(name, "") for name in names) == value:
            return None
        if path.startswith(("/apis/", "/pipeline/apis/")):
            return _page(401, "Unauthorized", "text/plain; charset=utf-8")
        return 302, {"Location": "/oauth2/start?rd=%2F"}, b""

    return gate


def authservice(value: str) -> Callable[[str, Any], tuple[int, dict[str, str], bytes] | None]:
    """Dex with AuthService, before Kubeflow 1.9: every request without a session is sent to Dex."""

    def gate(path: str, headers: Any) -> tuple[int, dict[str, str], bytes] | None:
        sent = [part.strip() for part in headers.get("Cookie", "").split(";")]
        if f"authservice_session={value}" in sent:
            return None
        return 302, {"Location": "/dex/auth?client_id=kubeflow-oidc-authservice&scope=openid"}, b""

    return gate


def basic(name: str, password: str) -> Callable[[str, Any], tuple[int, dict[str, str], bytes] | None]:
    """A proxy with basic authentication."""
    wanted = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()

    def gate(path: str, headers: Any) -> tuple[int, dict[str, str], bytes] | None:
        if headers.get("Authorization") == wanted:
            return None
        return (
            401,
            {"WWW-Authenticate": 'Basic realm="kubeflow"', "Content-Type": "text/html"},
            b"<html></html>",
        )

    return gate


def always(status: int, text: str = "", kind: str = "text/html", **headers: str) -> Callable[[str, Any], Any]:
    """A gate that answers all requests alike."""
    return lambda path, sent: (status, {"Content-Type": kind, **headers}, text.encode())


class Kubernetes(Served):
    """The part of Kubernetes' API that concerns one namespace.

    Args:
        namespace: The only namespace.
        accounts: Rights of each service account, as ``get secrets``; ``*`` for all.
        own: Rights of the client.
        objects: Objects of the namespace by ``plural/name``.
        reads: The client may read objects and review rights.
    """

    def __init__(
        self,
        namespace: str = "kubeflow",
        *,
        accounts: dict[str, tuple[str, ...]] | None = None,
        own: tuple[str, ...] = ("list pods", "get pods/log", "list events", "list workflows"),
        objects: dict[str, dict[str, Any]] | None = None,
        reads: bool = True,
    ) -> None:
        super().__init__()
        self.namespace = namespace
        self.accounts = {"pipeline-runner": ("*",)} if accounts is None else accounts
        self.own = own
        self.objects = objects or {}
        self.reads = reads

    def kubeconfig(self, folder: Path) -> str:
        path = folder / f"kubeconfig-{self.port}"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{"name": "u", "user": {"token": "k8s"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        return str(path)

    def answer(
        self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Authorization", headers.get("authorization")) != "Bearer k8s":
            return self._status(401, "Unauthorized")
        if method == "POST":
            return self._review(path, json.loads(body))
        if not self.reads:
            return self._status(403, "Forbidden")
        parts = path.split("/")
        if path == f"/api/v1/namespaces/{self.namespace}":
            return _json(200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": self.namespace}})
        if parts[:4] == ["", "api", "v1", "namespaces"] and len(parts) == 7:
            _, _, _, _, namespace, plural, name = parts
            known = {"secrets", "configmaps", "persistentvolumeclaims", "serviceaccounts"}
            if plural not in known:
                self.problems.append(path)
            there = plural == "serviceaccounts" and name in self.accounts
            if namespace == self.namespace and (there or f"{plural}/{name}" in self.objects):
                found = self.objects.get(f"{plural}/{name}", {})
                return _json(200, {"apiVersion": "v1", "metadata": {"name": name}, **found})
            return self._status(404, "Not Found")
        if parts[:4] == ["", "api", "v1", "namespaces"] and len(parts) == 5:
            return self._status(404, "Not Found")
        self.problems.append(f"{method} {path}")
        return self._status(404, "Not Found")

    def _review(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        kind = {
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": "SelfSubjectAccessReview",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews": "SubjectAccessReview",
        }.get(path)
        spec = body.get("spec", {})
        asked = spec.get("resourceAttributes", {})
        allowed = {"resourceAttributes"} | ({"user", "groups"} if kind == "SubjectAccessReview" else set())
        if (
            body.get("kind") != kind
            or body.get("apiVersion") != "authorization.k8s.io/v1"
            or set(spec) != allowed
            or set(asked) != {"namespace", "verb", "group", "resource", "subresource"}
            or "/" in asked["resource"]
        ):
            self.problems.append(f"{path}: {body}")
        if kind == "SubjectAccessReview" and not self.reads:
            return self._status(403, "Forbidden")
        right = f"{asked['verb']} {asked['resource']}" + (
            f"/{asked['subresource']}" if asked["subresource"] else ""
        )
        rights = self.own
        if kind == "SubjectAccessReview":
            prefix, namespace, name = spec["user"].rsplit(":", 2)
            group = f"system:serviceaccounts:{namespace}"
            if prefix != "system:serviceaccount" or group not in spec["groups"]:
                self.problems.append(str(spec))
            rights = self.accounts.get(name if namespace == self.namespace else f"{namespace}:{name}", ())
        may = asked["namespace"] == self.namespace and ("*" in rights or right in rights)
        return _json(201, {**body, "status": {"allowed": may}})

    @staticmethod
    def _status(code: int, reason: str) -> tuple[int, dict[str, str], bytes]:
        return _json(
            code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
        )


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that accepts connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def certificate(
    folder: Path, *names: str, days: tuple[float, float] = (-1, 365)
) -> tuple[ssl.SSLContext, str]:
    """Return the TLS of a server with a certificate of its own, and the file with that certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{names[0]}.pem"
    public = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(public)
    both = folder / f"{names[0]}-both.pem"
    both.write_bytes(private + public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context, str(file)
