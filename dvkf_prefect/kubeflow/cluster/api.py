"""Client of Kubeflow Pipelines' API: the few calls to run a pipeline, each with a timeout.

Source: ``/apis/v2beta1`` of KFP 2.5 to 2.17. KFP's own client has no default timeout and writes a file in the user's
home. It does not recognise a cancelled run as ended. The calls themselves are plain HTTP.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from dvkf_prefect.errors import ConfigError, RunnerError

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
# Temporary statuses: of proxies, or of a server that starts or is overloaded.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_SLOWEST = 15.0  # seconds between two tries
_PAGES = 20
Sleep = Callable[[float], object]


class KfpUnreachableError(RunnerError):
    """The API gave no usable answer within the time allowed."""


class KfpAnswerError(RunnerError):
    """The API refused a request.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class KfpApi:
    """A connection to the API server.

    Args:
        host: Address of the server, such as ``https://kubeflow.example.org/pipeline``.
        token: Returns the bearer token for a request, or "" for none.
        cookies: Cookies to send, for example of a session with Dex.
        ca_file: Certificates to trust instead of the default ones.
        verify_ssl: False trusts every server.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for an answer.
        patience: Seconds to retry a call that gets no answer or a temporary error.
        sleep: Waits between two attempts; may raise to end them.

    Raises:
        ConfigError: The address or the certificates are wrong.
    """

    def __init__(
        self,
        host: str,
        *,
        token: Callable[[], str] = lambda: "",
        cookies: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        verify_ssl: bool = True,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
        patience: float = 300.0,
        sleep: Sleep = time.sleep,
    ) -> None:
        parts = urlsplit(host)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.password:
            raise ConfigError(
                f"the address of Kubeflow Pipelines is http(s)://host[:port][/path] without a password, "
                f"not {parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()!r}"
            )
        verify: ssl.SSLContext | bool = verify_ssl
        if ca_file and verify_ssl:
            try:
                verify = ssl.create_default_context(cafile=str(Path(ca_file).expanduser()))
            except OSError as error:
                raise ConfigError(f"the certificates in {ca_file} cannot be used: {error}") from error
        self.host = host.rstrip("/")
        self._token = token
        self._patience = patience
        self._sleep = sleep
        self._client = httpx.Client(
            verify=verify,
            cookies=dict(cookies or {}),
            timeout=httpx.Timeout(read_timeout, connect=connect_timeout),
            follow_redirects=False,
        )

    def __repr__(self) -> str:
        return f"KfpApi({self.host!r})"

    def having(self, *, patience: float | None = None, sleep: Sleep | None = None) -> KfpApi:
        """Return the same connection with another patience or wait function; close only one of them."""
        other = copy(self)
        other._patience = self._patience if patience is None else patience
        other._sleep = sleep or self._sleep
        return other

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # -- runs --------------------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> dict[str, Any] | None:
        """Return a run, or None if there is none with that id."""
        try:
            return self._call("GET", f"/apis/v2beta1/runs/{quote(run_id, safe='')}")
        except KfpAnswerError as error:
            if error.status == 404:
                return None
            raise

    def find_run(
        self, display_name: str, marker: str, *, experiment_id: str, namespace: str | None
    ) -> dict[str, Any] | None:
        """Return the run with that name whose description contains a marker.

        Args:
            display_name: Name of the run.
            marker: Text that occurs in no other run's description.
            experiment_id: Experiment of the run.
            namespace: Namespace of the run.
        """
        query = {"experiment_id": experiment_id, "filter": _equals("display_name", display_name)}
        for run in self._listed("/apis/v2beta1/runs", "runs", query | _in(namespace)):
            if marker in run.get("description", ""):
                return run
        return None

    def create_run(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run; not retried, because a second attempt might start another.

        Raises:
            KfpUnreachableError: It is unknown if the run was started.
            KfpAnswerError: The request was refused.
        """
        return self._once("POST", "/apis/v2beta1/runs", body=body)

    def terminate(self, run_id: str) -> None:
        """Request the end of a run; do nothing if it has ended."""
        try:
            self._call("POST", f"/apis/v2beta1/runs/{quote(run_id, safe='')}:terminate")
        except KfpAnswerError as error:
            if error.status != 404 and (self.run(run_id) or {}).get("state") not in ENDED | {"CANCELING"}:
                raise

    def node_log(self, run_id: str, node: str) -> str:
        """Return the log of a node of the run's workflow; "" if the server has none.

        Args:
            run_id: Id of the run.
            node: Id of the node, which is its pod's name.
        """
        path = f"/apis/v1alpha1/runs/{quote(run_id, safe='')}/nodes/{quote(node, safe='')}/log"
        try:
            return self._ask("GET", path).text
        except RunnerError:
            return ""

    def experiment(self, name: str, namespace: str | None) -> str:
        """Return the id of an experiment; create the experiment if it does not exist."""
        for attempt in (1, 2):
            query = {"filter": _equals("display_name", name)}
            for found in self._listed("/apis/v2beta1/experiments", "experiments", query | _in(namespace)):
                if found.get("display_name") == name:
                    return str(found["experiment_id"])
            try:
                body = {"display_name": name, **_in(namespace)}
                return str(self._call("POST", "/apis/v2beta1/experiments", body=body)["experiment_id"])
            except KfpAnswerError as error:
                # Another client created it meanwhile, or an earlier attempt did.
                if attempt == 2 or error.status not in (400, 409, 500):
                    raise
        raise AssertionError

    # -- calls -------------------------------------------------------------------------------------------------------

    def _listed(self, path: str, key: str, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        token = ""
        for _ in range(_PAGES):
            more = {"page_token": token} if token else {}
            answer = self._call("GET", path, query={**query, **more, "page_size": "100"})
            yield from answer.get(key, ())
            token = answer.get("next_page_token", "")
            if not token:
                return

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Call until there is a final answer, or the patience ends."""
        end = time.monotonic() + self._patience
        wait = 0.2
        while True:
            token = self._token()
            try:
                return self._once(method, path, query=query, body=body)
            except RunnerError as error:
                if isinstance(error, KfpAnswerError) and error.status == 401 and self._token() != token:
                    continue  # the token was renewed meanwhile
                passing = not isinstance(error, KfpAnswerError) or error.status in _PASSING
                if not passing:
                    raise
                if time.monotonic() + wait > end:
                    raise KfpUnreachableError(f"{error}; it was tried for {self._patience:.0f} s") from error
            # Random, so that many waiting clients do not return at the same time.
            self._sleep(wait * random.uniform(0.7, 1.3))  # noqa: S311
            wait = min(wait * 2, _SLOWEST)

    def _once(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        response = self._ask(method, path, query=query, body=body)
        if not response.content:
            return {}
        try:
            values = response.json()
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise KfpAnswerError(
                response.status_code,
                f"Kubeflow Pipelines at {self.host}: {method} {path} was answered with something else than JSON "
                "(a login page?); check the host and the credentials",
            )
        return values

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            response = self._client.request(
                method,
                self.host + path,
                params=query,
                headers=headers,
                json=body if body is not None else ({} if method == "POST" else None),
            )
        except httpx.HTTPError as error:
            raise KfpUnreachableError(
                f"Kubeflow Pipelines at {self.host}: no answer to {method} {path} "
                f"({type(error).__name__}: {error}); is the host right, and reachable from here?"
            ) from error
        if response.is_success:
            return response
        where = f"Kubeflow Pipelines at {self.host}: {method} {path}"
        if response.status_code in (401, 403) or response.is_redirect:
            problem = f"{where} was refused ({response.status_code}{_said(response)}); check the credentials"
        else:
            problem = f"{where} was answered {response.status_code}{_said(response)}"
        raise KfpAnswerError(response.status_code, problem)


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def _in(namespace: str | None) -> dict[str, str]:
    return {"namespace": namespace} if namespace else {}


def _said(response: httpx.Response) -> str:
    """Return the error message of an answer, and nothing else of it."""
    if response.is_redirect:
        return f", sent on to {urlsplit(response.headers.get('location', '')).path or 'elsewhere'}"
    try:
        values = response.json()
        text = values.get("error") or values.get("message") or "" if isinstance(values, dict) else ""
    except ValueError:
        text = ""
    return f": {str(text)[:500]}" if text else ""
