"""Client of Kubeflow Pipelines' API: the few calls to run a pipeline, each with a timeout.

Source: ``/apis/v2beta1`` of KFP 2.5 to 2.17. KFP's own client has no default timeout and writes a file in the user's
home. It does not recognise a cancelled run as ended. The calls themselves are plain HTTP.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kubeflow.cluster.connection import checked_address, trust
from dvkf_prefect.kubeflow.cluster.workflow import Workflow

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
# Temporary statuses: of proxies, or of a server that starts or is overloaded.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_SLOWEST = 15.0  # seconds between two tries
_PAGES = 20
_RUNS = "/apis/v2beta1/runs"
_EXPERIMENTS = "/apis/v2beta1/experiments"
_WORKFLOW_PATIENCE = 10.0  # seconds
# Bytes of a log: those of its beginning that are followed, those that are read for its end, and the end itself.
LOG_HEAD, LOG_LIMIT, LOG_END = 8 << 20, 64 << 20, 1 << 20
_PIECE = 64 * 1024
_VERSION = re.compile(r"v?(\d+)\.(\d+)")
# Answers of Envoy and of nginx's ingress to requests for which they have no server, or made no connection to it.
_UNSENT = re.compile(
    r"no healthy upstream|reset reason: (remote )?connection failure|503 Service Temporarily Unavailable"
)
Sleep = Callable[[float], object]


class KfpUnreachableError(RunnerError):
    """The API gave no usable answer within the time allowed.

    Attributes:
        sent: False if no connection was made, so that the server did not get the request.
    """

    sent = True


class KfpAnswerError(RunnerError):
    """The API refused a request.

    Attributes:
        status: HTTP status of the answer.
        sent: False if a proxy answered, and says that it did not pass the request on.
    """

    def __init__(self, status: int, message: str, *, sent: bool = True) -> None:
        self.status = status
        self.sent = sent
        super().__init__(message)


class KfpApi:
    """A connection to the API server.

    Args:
        host: Address of the server, such as ``https://kubeflow.example.org/pipeline``.
        headers: Returns the headers with the credentials for a request; see `Login.headers`.
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
        headers: Callable[[], Mapping[str, str]] = dict,
        ca_file: str | None = None,
        verify_ssl: bool = True,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
        patience: float = 300.0,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.host = checked_address(host)
        self._headers = headers
        self._patience = patience
        self._sleep = sleep
        self._client = httpx.Client(
            verify=trust(ca_file, verify=verify_ssl),
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
            return self.call("GET", f"{_RUNS}/{quote(run_id, safe='')}")
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
        query = {"experiment_id": experiment_id, "filter": equals(display_name=display_name)}
        for run in self.listed(_RUNS, "runs", query | in_namespace(namespace)):
            if marker in run.get("description", ""):
                return run
        return None

    def create_run(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run; not retried, because a second attempt might start another.

        Raises:
            KfpUnreachableError: It is unknown if the run was started.
            KfpAnswerError: The request was refused.
        """
        return self._once("POST", _RUNS, body=body)

    def terminate(self, run_id: str) -> None:
        """Request the end of a run; do nothing if it has ended."""
        try:
            self.call("POST", f"{_RUNS}/{quote(run_id, safe='')}:terminate")
        except KfpAnswerError as error:
            if error.status != 404 and (self.run(run_id) or {}).get("state") not in ENDED | {"CANCELING"}:
                raise

    def retry(self, run_id: str) -> None:
        """Run the failed tasks of a failed run again; those that succeeded keep their results.

        Not repeated after an answer that was lost: a second request would be refused, because the run is running.

        Raises:
            KfpAnswerError: The run cannot be retried; status 409 if it has not failed.
        """
        self._once("POST", f"{_RUNS}/{quote(run_id, safe='')}:retry")

    def archive(self, run_id: str) -> None:
        """Move a run to the archive, where the UI and lists hide it."""
        self.call("POST", f"{_RUNS}/{quote(run_id, safe='')}:archive")

    def unarchive(self, run_id: str) -> None:
        """Move a run back from the archive.

        Raises:
            KfpAnswerError: There is no such run, or its experiment is archived, too.
        """
        self.call("POST", f"{_RUNS}/{quote(run_id, safe='')}:unarchive")

    def delete_run(self, run_id: str) -> None:
        """Delete a run with its workflow; pods that still run end. Results on the remote stay.

        Raises:
            KfpAnswerError: There is no such run.
        """
        self.call("DELETE", f"{_RUNS}/{quote(run_id, safe='')}")

    def runs(
        self,
        *,
        experiment_id: str = "",
        namespace: str | None = None,
        archived: bool = False,
        recurring: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Yield runs, the newest first.

        Args:
            experiment_id: Experiment of the runs; "" for all.
            namespace: Namespace of the runs.
            archived: Runs of the archive instead.
            recurring: Id of the recurring run that started them; "" for all.
        """
        predicates = {"storage_state": "ARCHIVED" if archived else "AVAILABLE"}
        if recurring:
            predicates["recurring_run_id"] = recurring
        query = {"sort_by": "created_at desc", "filter": equals(**predicates)}
        if experiment_id:
            query["experiment_id"] = experiment_id
        yield from self.listed(_RUNS, "runs", query | in_namespace(namespace))

    def workflow(self, run_id: str) -> Workflow | None:
        """Return the workflow of a run; None if the server does not show it.

        Args:
            run_id: Id of the run.
        """
        try:
            brief = self.having(patience=min(self._patience, _WORKFLOW_PATIENCE))
            answer = brief.call("GET", f"/apis/v1beta1/runs/{quote(run_id, safe='')}")
            return Workflow.from_json((answer.get("pipeline_runtime") or {})["workflow_manifest"])
        except (RunnerError, KeyError, TypeError, ValueError, AttributeError):
            return None

    def version(self) -> tuple[int, int] | None:
        """Return the first two numbers of the server's version; None if it does not answer with one.

        The API server and KFP's UI call it ``tag_name`` and ``apiServerTagName``.
        """
        try:
            brief = self.having(patience=min(self._patience, _WORKFLOW_PATIENCE))
            answer = brief.call("GET", "/apis/v2beta1/healthz")
        except RunnerError:
            return None
        match = _VERSION.match(str(answer.get("apiServerTagName") or answer.get("tag_name") or ""))
        return (int(match[1]), int(match[2])) if match else None

    def pod_log(self, run_id: str, pod: str, namespace: str) -> str:
        """Return the end of the log of a run's pod, at most `LOG_END` bytes; "" if the server has none.

        The routes have no range, so a log is read from its beginning. Of a log of more than `LOG_LIMIT` bytes the rest
        is not read, which a last line says.

        Args:
            run_id: Id of the run.
            pod: Name of the pod.
            namespace: Namespace of the pod.
        """
        text, cut = self._log(run_id, pod, namespace, most=LOG_LIMIT, kept=LOG_END)
        if not cut:
            return text
        return f"{text}\n... the log is longer than {LOG_LIMIT >> 20} MiB, and its rest was not read"

    def log_head(self, run_id: str, pod: str, namespace: str) -> tuple[str, bool]:
        """Return the beginning of the log of a run's pod, at most `LOG_HEAD` bytes, and True if it is longer.

        Args:
            run_id: Id of the run.
            pod: Name of the pod.
            namespace: Namespace of the pod.
        """
        return self._log(run_id, pod, namespace, most=LOG_HEAD, kept=LOG_HEAD)

    def _log(self, run_id: str, pod: str, namespace: str, *, most: int, kept: int) -> tuple[str, bool]:
        """Read the log of a run's pod by the first route that has it.

        The host of KFP's UI and the API server have different routes. The API server answers 200 before it reads a
        log, so its failures are JSON with an ``error_message``.
        """
        query = {"podname": pod, "runid": run_id, "podnamespace": namespace}
        node = f"/apis/v1alpha1/runs/{quote(run_id, safe='')}/nodes/{quote(pod, safe='')}/log"
        for path, values in (("/k8s/pod/logs", query), (node, None)):
            text, cut = self._read_text(path, values, most=most, kept=kept)
            if text and not _is_error(text):
                return text, cut
        return "", False

    def _read_text(
        self, path: str, query: Mapping[str, str] | None, *, most: int, kept: int
    ) -> tuple[str, bool]:
        """Return the last ``kept`` of the first ``most`` bytes of an answer, and True if the answer is longer.

        No more than twice ``kept`` bytes are in memory at a time. A page or a failure is "".
        """
        found, size = bytearray(), 0
        headers = {**self._headers(), "Accept-Encoding": "identity"}
        try:
            with self._client.stream("GET", self.host + path, params=query, headers=headers) as response:
                if not response.is_success or "html" in response.headers.get("content-type", ""):
                    return "", False
                for piece in response.iter_bytes(_PIECE):
                    found += piece[: most - size]
                    size += len(piece)
                    if len(found) > 2 * kept:
                        del found[:-kept]
                    if size > most:
                        break
        except httpx.HTTPError:
            return "", False
        return found[-kept:].decode(errors="replace"), size > most

    def find_experiment(self, name: str, namespace: str | None) -> str:
        """Return the id of an experiment; "" if it does not exist."""
        for query in ({"filter": equals(display_name=name)}, {}):
            for found in self.listed(_EXPERIMENTS, "experiments", query | in_namespace(namespace)):
                if str(found.get("display_name", "")).casefold() == name.casefold():
                    return str(found["experiment_id"])
        return ""

    def experiment(self, name: str, namespace: str | None) -> str:
        """Return the id of an experiment; create the experiment if it does not exist."""
        for attempt in (1, 2):
            # The second time without a filter, which servers and proxies decode differently.
            query = {"filter": equals(display_name=name)} if attempt == 1 else {}
            for found in self.listed(_EXPERIMENTS, "experiments", query | in_namespace(namespace)):
                # The server's database ignores case.
                if str(found.get("display_name", "")).casefold() == name.casefold():
                    return str(found["experiment_id"])
            try:
                body = {"display_name": name, **in_namespace(namespace)}
                return str(self.call("POST", _EXPERIMENTS, body=body)["experiment_id"])
            except KfpAnswerError as error:
                # Another client created it meanwhile, or an earlier attempt did.
                if attempt == 2 or error.status not in (400, 409, 500):
                    raise
        raise AssertionError

    def serves_ui(self) -> bool:
        """Return True if this is the host of KFP's UI, rather than of the API server alone.

        Raises:
            KfpAnswerError: The credentials were refused.
        """
        try:
            health = self._once("GET", "/apis/v2beta1/healthz")
        except RunnerError as error:
            if isinstance(error, KfpAnswerError) and error.status == 401:
                raise  # further requests with them may lock the account
            return False
        return "frontendCommitHash" in health or "frontendTagName" in health

    # -- calls -------------------------------------------------------------------------------------------------------

    def listed(self, path: str, key: str, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield the resources of a list, page by page.

        Args:
            path: Path of the list, such as ``/apis/v2beta1/runs``.
            key: Key of the resources in an answer.
            query: Parameters that each page is requested with, because a page's token belongs to its filter and order.
        """
        token = ""
        for _ in range(_PAGES):
            more = {"page_token": token} if token else {}
            answer = self.call("GET", path, query={**query, **more, "page_size": "100"})
            yield from answer.get(key, ())
            token = answer.get("next_page_token", "")
            if not token:
                return

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        file: tuple[str, bytes] | None = None,
    ) -> dict[str, Any]:
        """Call until there is a final answer, or the patience ends.

        Args:
            method: HTTP method.
            path: Path of the resource.
            query: Parameters of the query.
            body: Body, as JSON values.
            file: File to send instead: name and content.

        Raises:
            KfpUnreachableError: There was no usable answer within the patience.
            KfpAnswerError: The request was refused.
        """
        end = time.monotonic() + self._patience
        wait = 0.2
        while True:
            sent = self._headers()
            try:
                return self._once(method, path, query=query, body=body, file=file)
            except RunnerError as error:
                if isinstance(error, KfpAnswerError) and error.status == 401 and self._headers() != sent:
                    continue  # the token was renewed meanwhile
                passing = not isinstance(error, KfpAnswerError) or error.status in _PASSING
                if not passing:
                    raise
                if time.monotonic() + wait > end:
                    raise KfpUnreachableError(f"{error} (retried for {self._patience:.0f} s)") from error
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
        file: tuple[str, bytes] | None = None,
    ) -> dict[str, Any]:
        response = self._ask(method, path, query=query, body=body, file=file)
        if not response.content:
            return {}
        try:
            values = response.json()
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise KfpAnswerError(
                response.status_code,
                f"Kubeflow Pipelines at {self.host}: {method} {path} was not answered with JSON (a login "
                "page?). Check the host and the credentials",
            )
        return values

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        file: tuple[str, bytes] | None = None,
    ) -> httpx.Response:
        try:
            response = self._client.request(
                method,
                self.host + path,
                params=query,
                headers=dict(self._headers()),
                json=body if body is not None or file else ({} if method == "POST" else None),
                files={"uploadfile": file} if file else None,
            )
        except httpx.HTTPError as error:
            unreachable = KfpUnreachableError(
                f"Kubeflow Pipelines at {self.host}: no answer to {method} {path} ({type(error).__name__}: "
                f"{error}). Check that the host is correct and reachable from this machine"
            )
            unreachable.sent = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
            raise unreachable from error
        if response.is_success:
            return response
        where = f"Kubeflow Pipelines at {self.host}: {method} {path}"
        if response.status_code in (401, 403) or response.is_redirect:
            problem = f"{where} was refused ({response.status_code}{_said(response)}). Check the credentials"
        else:
            problem = f"{where} was answered {response.status_code}{_said(response)}"
            if response.status_code == 404 and not _is_json(response) and not self.host.endswith("/pipeline"):
                # The API's own 404 is JSON; this is Kubeflow's gateway, which serves the API below a path.
                problem += f". The host may lack its path: try {self.host}/pipeline"
        unsent = response.status_code in (502, 503) and _UNSENT.search(response.text)
        raise KfpAnswerError(response.status_code, problem, sent=not unsent)


def equals(**values: str) -> str:
    """Return a filter by equal fields, escaped once more than a query needs: the server unescapes it twice."""
    predicates = [{"operation": "EQUALS", "key": key, "stringValue": value} for key, value in values.items()]
    return quote(json.dumps({"predicates": predicates}))


def _is_json(response: httpx.Response) -> bool:
    """Return True if a response is a JSON object."""
    try:
        return isinstance(response.json(), dict)
    except ValueError:
        return False


def _is_error(text: str) -> bool:
    """Return True if a log is the server's report of an error instead."""
    try:
        values = json.loads(text)
    except ValueError:
        return False
    return isinstance(values, dict) and "error_message" in values


def in_namespace(namespace: str | None) -> dict[str, str]:
    """Return the parameter of a query or body that selects a namespace."""
    return {"namespace": namespace} if namespace else {}


def _said(response: httpx.Response) -> str:
    """Return the error message of an answer, and nothing else of it."""
    if response.is_redirect:
        return f", redirected to {urlsplit(response.headers.get('location', '')).path or 'elsewhere'}"
    try:
        values = response.json()
        keys = ("error", "message", "error_message")  # the last one is of uploads
        text = next((values[key] for key in keys if values.get(key)), "") if isinstance(values, dict) else ""
    except ValueError:
        text = ""
    return f": {str(text)[:500]}" if text else ""
