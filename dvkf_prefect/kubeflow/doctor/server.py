"""Checks of the way to Kubeflow Pipelines and of its API: name, port, TLS, login, version, namespace.

Sources: ``/apis/v2beta1/healthz`` of the API server and of KFP's UI, which answer with different keys; the answers of
Istio, Dex and oauth2-proxy to requests without a valid login.
"""

from __future__ import annotations

import html
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from dvkf_prefect.data.upkeep.doctor import Check
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.cluster.connection import checked_address, trust
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.urls import public_url

OLDEST = (2, 5)
_READ_SECONDS = 20.0
_LARGEST = 1 << 20  # bytes of an answer
_HEADERS = ("content-type", "location")
_HEALTH = "/apis/v2beta1/healthz"
_OLD_HEALTH = "/apis/v1beta1/healthz"
_LOGIN_WORDS = re.compile(
    r"\b(log ?in|sign ?in|dex|oauth2?|oidc|auth|sso|accounts?|authservice)\b", re.IGNORECASE
)
_DASHBOARD = re.compile(r"kubeflow (central dashboard|pipelines)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")
_SOON = 14 * 86400  # seconds before the end of a certificate
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(slots=True)
class Server:
    """Findings about a server that other checks need.

    Attributes:
        version: Version of the API, as numbers; empty if unknown.
        multi_user: True if it separates users by namespace; None if unknown.
    """

    version: tuple[int, ...] = ()
    multi_user: bool | None = None


class _StopError(Exception):
    """A check failed on which all further ones depend."""

    def __init__(self, check: Check) -> None:
        self.check = check
        super().__init__(check.found)


def check_server(settings: ClusterSettings, server: Server) -> Iterator[Check]:
    """Yield the checks of the server, up to the first failure that makes the others pointless.

    Args:
        settings: Settings of the cluster.
        server: Receives the findings.
    """
    try:
        yield from _check_server(settings, server)
    except _StopError as stop:
        yield stop.check


def _check_server(settings: ClusterSettings, server: Server) -> Iterator[Check]:
    try:
        host = checked_address(settings.host)
        verify = trust(settings.ca_file, verify=settings.verify_ssl)
    except ConfigError as error:
        step = "correct ca_file" if "certificates" in str(error) else "correct the host"
        raise _StopError(Check("address", "fail", str(error), step)) from error
    yield from _reach(host, settings)
    try:
        headers = settings.login.headers()
    except ConfigError as error:
        raise _StopError(Check("login", "fail", str(error), "correct the credentials")) from error
    client = httpx.Client(
        verify=verify,
        timeout=httpx.Timeout(min(settings.read_timeout, _READ_SECONDS), connect=settings.connect_timeout),
        headers=headers,
        follow_redirects=False,
    )
    with client:
        yield from _ask(client, host, settings, server)


# -- the way to it -----------------------------------------------------------------------------------------------------


def _reach(host: str, settings: ClusterSettings) -> Iterator[Check]:
    """Yield the checks of proxy, name and port."""
    parts = urlsplit(host)
    name = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(f"{name}:{port}"):
        yield Check("proxy", "ok", f"{public_url(proxy)} leads to {name} (no_proxy does not name it)")
        asked = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        name, port = asked.hostname or "", asked.port or (443 if asked.scheme == "https" else 80)
    try:
        found = sorted({str(each[4][0]) for each in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        step = "correct the host, or the name servers of this machine"
        if name.endswith((".svc", ".local")) or "." not in name:
            step = (
                "names of services exist only inside the cluster: use the address of its gateway, or "
                "`kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80` and http://localhost:8080"
            )
        raise _StopError(Check("DNS", "fail", f"no address for {name} ({why})", step)) from error
    yield Check("DNS", "ok", f"{name} is {', '.join(found[:3])}")
    try:
        socket.create_connection((name, port), timeout=settings.connect_timeout).close()
    except TimeoutError as error:
        step = "check if a VPN or a firewall rule is needed, or correct the port"
        found_ = f"{name}:{port} does not answer within {settings.connect_timeout:g} s"
        raise _StopError(Check("port", "fail", found_, step)) from error
    except OSError as error:
        step = "correct the port, or start the server or its port-forward"
        found_ = f"{name}:{port} does not accept connections ({error.strerror})"
        raise _StopError(Check("port", "fail", found_, step)) from error
    yield Check("port", "ok", f"{name}:{port} accepts connections")


def _ask(client: httpx.Client, host: str, settings: ClusterSettings, server: Server) -> Iterator[Check]:
    response, certificate = _get(client, host + _HEALTH)
    if host.startswith("https:"):
        yield _tls(certificate, settings)
    elif settings.login.way != "none" and not _is_near(urlsplit(host).hostname or ""):
        found = "the credentials cross the network unencrypted"
        yield Check("TLS", "warn", found, "use https://, if the server has it")
    values = _json(response)
    if response.status_code == 404:
        old, _ = _get(client, host + _OLD_HEALTH)
        if (values_of_old := _json(old)) is not None and old.is_success:
            values = values_of_old
        elif values is None or "code" not in values:
            raise _StopError(_refused(response, host, settings))
        else:
            raise _StopError(
                Check(
                    "API", "fail", f"{host} has no health endpoint of Kubeflow Pipelines", "correct the host"
                )
            )
    elif not response.is_success or values is None:
        raise _StopError(_refused(response, host, settings))
    listed, _ = _get(client, host + "/apis/v2beta1/experiments", namespace=settings.namespace, page_size="1")
    login = _login(listed, host, settings)
    if login.state == "fail":
        raise _StopError(login)
    yield login
    api = _api(values, settings, server)
    yield api
    if api.state != "fail":
        yield _namespace(listed, settings, server)


def _is_near(name: str) -> bool:
    """Return True for this machine and for services inside the cluster."""
    return name in _LOCAL or name.endswith((".svc", ".local"))


def _get(client: httpx.Client, url: str, **query: str) -> tuple[httpx.Response, Any]:
    """Return an answer, and the TLS connection that it came by."""
    try:
        with client.stream("GET", url, params=query or None) as response:
            stream = response.extensions.get("network_stream")
            tls = stream.get_extra_info("ssl_object") if stream is not None else None
            about = (tls.version(), tls.getpeercert()) if tls is not None else None
            body = b""
            for piece in response.iter_bytes():
                body += piece
                if len(body) > _LARGEST:
                    break
    except httpx.HTTPError as error:
        raise _StopError(_broken(error, url)) from error
    headers = {name: response.headers[name] for name in _HEADERS if name in response.headers}
    return httpx.Response(
        response.status_code, headers=headers, content=body, request=response.request
    ), about


def _broken(error: httpx.HTTPError, url: str) -> Check:
    """Return the check of a request without an answer."""
    host = urlsplit(url).netloc
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        message = cause.verify_message
        steps = {
            9: "the certificate is not valid yet: correct the clock of this machine or of the server",
            10: "the certificate has expired: ask its owner to renew it",
            62: "use the name that the certificate is for",
            64: "use the name that the certificate is for",
        }
        step = steps.get(
            cause.verify_code,
            "if the server is right, name the certificate of its authority (ca_file, DVKF_KUBEFLOW_CA_FILE)",
        )
        return Check("TLS", "fail", f"the certificate of {host} is refused: {message}", step)
    if cause is not None:
        reason = getattr(cause, "reason", "") or ""
        if reason in (
            "WRONG_VERSION_NUMBER",
            "HTTP_REQUEST",
            "RECORD_LAYER_FAILURE",
            "UNEXPECTED_EOF_WHILE_READING",
        ):
            return Check(
                "TLS", "fail", f"{host} does not speak TLS ({reason})", "use http://, or the port of https"
            )
        return Check("TLS", "fail", f"{host}: {cause}", "a proxy or the server ends the connection")
    if isinstance(error, httpx.ProxyError):
        return Check(
            "proxy", "fail", f"it does not connect to {host}: {error}", "correct HTTPS_PROXY, or no_proxy"
        )
    if isinstance(error, httpx.TimeoutException):
        return Check(
            "answer",
            "fail",
            f"{host} accepts connections but does not answer",
            "check if the server is overloaded",
        )
    step = "check if it is http instead of https, and the port of Kubeflow Pipelines"
    return Check(
        "answer", "fail", f"{host} does not answer with HTTP ({type(error).__name__}: {error})", step
    )


def _tls(certificate: Any, settings: ClusterSettings) -> Check:
    version, peer = certificate or ("TLS", None)
    if not settings.verify_ssl:
        step = "name the certificate of its authority (ca_file) and set verify_ssl to true"
        return Check("TLS", "warn", f"{version}, but the certificate is not verified (verify_ssl)", step)
    until = peer.get("notAfter") if peer else None
    if not until:
        return Check("TLS", "ok", str(version))
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(until), timezone.utc)
    found = f"{version}, certificate valid until {end:%Y-%m-%d}"
    if (end - datetime.now(timezone.utc)).total_seconds() < _SOON:
        return Check("TLS", "warn", found, "it expires soon: ask its owner to renew it")
    return Check("TLS", "ok", found)


# -- login -------------------------------------------------------------------------------------------------------------


def _login(response: httpx.Response, host: str, settings: ClusterSettings) -> Check:
    """Return the check of the login, by the answer to a question that needs one."""
    if (
        response.status_code == 401
        or response.is_redirect
        or (response.is_success and _json(response) is None)
    ):
        return _refused(response, host, settings)
    login = settings.login
    end = login.holds_until()
    found = _given(settings) if login.way != "none" else "the server requires none"
    if login.place:
        found += f" ({login.place}, read again for each request)"
    if end is None:
        return Check("login", "ok", found)
    found += f", valid until {end:%Y-%m-%d %H:%M} UTC"
    if end < datetime.now(timezone.utc):
        return Check(
            "login",
            "warn",
            f"{found}, which has passed",
            "the server still accepts it; renew it",
        )
    return Check("login", "ok", found)


def _refused(response: httpx.Response, host: str, settings: ClusterSettings) -> Check:
    """Return the check of an answer that is none of Kubeflow Pipelines."""
    status = response.status_code
    said = _said(response)
    if status == 401:
        return Check("login", "fail", f"refused (401{said}) {_given(settings)}", _renew(settings))
    if status == 403:
        step = "the login is valid but has no rights in the namespace: ask for the role kubeflow-edit"
        return Check("login", "fail", f"forbidden (403{said}) {_given(settings)}", step)
    if status == 407:
        return Check(
            "proxy", "fail", "the proxy asks for a login (407)", "put name and password into HTTPS_PROXY"
        )
    if response.is_redirect:
        return _redirected(response, host, settings)
    if status == 400 and "https" in response.text[:500].lower():
        return Check("TLS", "fail", f"{host} speaks TLS", "use https://")
    if response.is_success:
        return _page(response, host, settings)
    if status == 404:
        step = "the address of a Kubeflow installation mostly ends in /pipeline; that of the API server has no path"
        return Check("address", "fail", f"{host} is not Kubeflow Pipelines (404{said})", step)
    if status in (502, 503, 504):
        step = "is the pod ml-pipeline running? `kubectl get pods -n kubeflow -l app=ml-pipeline`"
        return Check("answer", "fail", f"a proxy answers in place of the server ({status}{said})", step)
    return Check("answer", "fail", f"answered {status}{said}", "see the log of the deployment ml-pipeline")


def _given(settings: ClusterSettings) -> str:
    way = settings.login.way
    if way == "none":
        return "without credentials"
    return f"with {'an' if way.startswith('in') else 'a'} {way}"


def _renew(settings: ClusterSettings) -> str:
    """Return the next step for credentials that were refused."""
    login = settings.login
    end = login.holds_until()
    if end is not None and end < datetime.now(timezone.utc):
        return (
            f"the token expired at {end:%Y-%m-%d %H:%M} UTC: renew it, or name a token file that is renewed"
        )
    if login.way == "none":
        return (
            "name a token file, a token, or the Cookie header of a browser's session "
            "(Kubeflow Credentials, DVKF_KUBEFLOW_TOKEN_FILE, …_TOKEN, …_COOKIE)"
        )
    if login.way == "cookie":
        if part := login.missing_part():
            return f"the session's cookie is in parts, and {part} is missing: copy the whole Cookie header"
        return (
            "sessions expire, mostly after 24 hours: log in with a browser again and copy the whole Cookie "
            f"header (sent were {', '.join(login.cookies())}); a token lasts longer"
        )
    if login.way == "name and password":
        return "correct them; Kubeflow's own login takes tokens and cookies only"
    return (
        "its issuer or audience is not the expected one: make a token with "
        f"`kubectl create token NAME -n {settings.namespace}`, and without Kubeflow's gateway in between with "
        "`--audience pipelines.kubeflow.org`"
    )


def _redirected(response: httpx.Response, host: str, settings: ClusterSettings) -> Check:
    target = urlsplit(urljoin(str(response.url), response.headers.get("location", "")))
    own = urlsplit(host)
    where = f"{target.scheme}://{target.netloc}{target.path}"
    if _LOGIN_WORDS.search(f"{target.netloc} {target.path}".replace("/", " ").replace("_", " ")):
        return Check("login", "fail", f"sent to the login page {where} {_given(settings)}", _renew(settings))
    if own.scheme == "http" and target.scheme == "https" and target.hostname == own.hostname:
        return Check("address", "fail", f"redirected to {where}", "use https://")
    return Check("address", "fail", f"redirected to {where}", "name that address as the host")


def _page(response: httpx.Response, host: str, settings: ClusterSettings) -> Check:
    """Return the check of a web page in place of an answer."""
    title = _TITLE.search(response.text[:100_000])
    shown = html.unescape(" ".join(title[1].split()))[:80] if title else ""
    what = f"a web page ('{shown}')" if shown else "content other than JSON"
    if _DASHBOARD.search(shown):
        step = "the host is that of the dashboard: add the path of Kubeflow Pipelines, mostly /pipeline"
        return Check("address", "fail", f"{host} answers with {what}", step)
    if _LOGIN_WORDS.search(shown) or re.search(
        r"<input[^>]+password", response.text[:100_000], re.IGNORECASE
    ):
        return Check(
            "login", "fail", f"answered with a login page ('{shown}') {_given(settings)}", _renew(settings)
        )
    step = "correct the host; behind a login, correct the credentials"
    return Check("address", "fail", f"{host} answers with {what}", step)


# -- API ---------------------------------------------------------------------------------------------------------------


def _api(values: dict[str, Any], settings: ClusterSettings, server: Server) -> Check:
    if values.get("apiServerReady") is False:
        step = "is the pod ml-pipeline running? `kubectl get pods -n kubeflow -l app=ml-pipeline`"
        return Check("API", "fail", "the UI answers, but its API server does not", step)
    tag = str(values.get("apiServerTagName") or values.get("tag_name") or "")
    multi_user = values.get("multi_user", values.get("apiServerMultiUser"))
    server.multi_user = multi_user if isinstance(multi_user, bool) else None
    mode = "of unknown mode" if server.multi_user is None else "multi-user" if multi_user else "single-user"
    match = _VERSION.match(tag)
    if match is None:
        oldest = ".".join(map(str, OLDEST))
        return Check("API", "warn", f"version {tag or 'unknown'}, {mode}", f"{oldest} or newer is needed")
    server.version = tuple(int(part or 0) for part in match.groups())
    if server.version < OLDEST:
        return Check(
            "API",
            "fail",
            f"Kubeflow Pipelines {tag} is too old",
            f"upgrade it to {OLDEST[0]}.{OLDEST[1]} or newer",
        )
    lacks = [
        f"{what} ({major}.{minor})"
        for (major, minor), what in FEATURES.items()
        if server.version < (major, minor)
    ]
    return Check("API", "ok", f"{tag}, {mode}" + (f"; lacks {', '.join(lacks)}" if lacks else ""))


# Features of pods by the version that brought them.
FEATURES = {
    (2, 14): "labels of each stage's own pod, `node_affinity`",
    (2, 15): "`workspace`, `optional` variables",
    (2, 16): "`sub_path` of volumes, `security_context`",
}


def _namespace(response: httpx.Response, settings: ClusterSettings, server: Server) -> Check:
    name = settings.namespace
    if response.is_success:
        found = f"runs of '{name}' can be listed"
        if server.multi_user is False:
            found = f"'{name}'; the server is single-user and keeps all runs together"
        return Check("namespace", "ok", found)
    said = _said(response)
    if response.status_code == 403:
        step = "name the namespace of your profile, or ask its owner for the role kubeflow-edit"
        return Check("namespace", "fail", f"'{name}' is forbidden for this login (403{said})", step)
    step = "name the namespace of your profile (namespace, DVKF_KUBEFLOW_NAMESPACE)"
    return Check("namespace", "fail", f"'{name}' was answered {response.status_code}{said}", step)


def _json(response: httpx.Response) -> dict[str, Any] | None:
    try:
        values = response.json()
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _said(response: httpx.Response) -> str:
    """Return the message of an answer, and nothing else of it."""
    values = _json(response)
    if values is not None:
        text = str(values.get("error") or values.get("message") or "")
    elif response.headers.get("content-type", "").startswith("text/plain"):
        text = response.text.strip()
    else:
        text = ""
    return f": {' '.join(text.split())[:200]}" if text else ""
