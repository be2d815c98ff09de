"""Client of the Kubeflow Model Registry's API: the few calls of a mirror, each with a timeout.

Source: OpenAPI ``v1alpha3`` and kubeflow/model-registry bd07139, v0.3.8; clients from 0.3.15 use the base path ``v1``
with the same bodies. Properties of the server that shape the calls:

- A find by name is SQL ``LIKE``: ``_`` and ``%`` are wildcards, and several matches are a 404
  (``db/service/registered_model.go:47``). So names are compared here, in a listing; ids of the caller are exact.
- A page size of 0 is everything. So pages are asked for explicitly.
- Custom properties are replaced as a whole. So they are merged by the caller.
- Nothing can be deleted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import httpx

from dvkf_prefect.errors import ConfigError, RegistryError
from dvkf_prefect.kubeflow.cluster.connection import trust
from dvkf_prefect.urls import public_url

Kind = Literal["registered_models", "model_versions", "model_artifacts"]
Record = dict[str, Any]
BASES = ("v1", "v1alpha3")
_PAGE = 100
_PAGES = 10_000
# Temporary statuses: of proxies, or of a server that starts or is overloaded.
_PASSING = frozenset({408, 425, 429, 502, 503, 504})
_SLOWEST = 5.0  # seconds between two tries


class RegistryAnswerError(RegistryError):
    """The registry refused a request.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class RegistryApi:
    """A connection to a Kubeflow Model Registry.

    Args:
        host: Address of the registry, such as ``http://model-registry-service.kubeflow:8080``.
        base: Version of the API: ``v1``, ``v1alpha3``, or ``auto`` for the first that the server has.
        headers: Returns the headers with the credentials for a request; see `Login.headers`.
        ca_file: Certificates to trust instead of the default ones.
        verify_ssl: False trusts every server.
        timeout: Seconds to wait for a connection and for an answer.
        patience: Seconds to retry a call that may be repeated and gets no answer or a temporary error.
        transport: Sends the requests; None for the network.

    Raises:
        ConfigError: The address or the certificates are wrong.
    """

    def __init__(
        self,
        host: str,
        *,
        base: Literal["auto", "v1", "v1alpha3"] = "auto",
        headers: Callable[[], Mapping[str, str]] = dict,
        ca_file: str | None = None,
        verify_ssl: bool = True,
        timeout: float = 30.0,
        patience: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        url = httpx.URL(host)
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise ConfigError(
                f"the address of a model registry is http(s)://host[:port][/path] without a password, not "
                f"{public_url(host)!r}. Correct it."
            )
        self.host = host.rstrip("/")
        self._bases = BASES if base == "auto" else (base,)
        self._base = ""
        self._headers = headers
        self._patience = patience
        self._client = httpx.Client(
            verify=trust(ca_file, verify=verify_ssl), timeout=timeout, transport=transport
        )

    def __repr__(self) -> str:
        return f"RegistryApi({self.host!r})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # -- records -----------------------------------------------------------------------------------------------------

    def get(self, kind: Kind, id_: str) -> Record:
        """Return one record by its id."""
        return self._call("GET", f"{kind}/{id_}")

    def find_external(self, kind: Kind, external_id: str) -> Record | None:
        """Return the record with an external id, which is exact and unique among its kind; None if there is none."""
        try:
            found = self._call("GET", kind[:-1], query={"externalId": external_id})
        except RegistryAnswerError as error:
            if error.status != 404:
                raise
            return None
        return found if found.get("externalId") == external_id else None

    def list(self, kind: Kind, parent: tuple[str, str] | None = None) -> Iterator[Record]:
        """Yield the records of a kind, by id.

        Args:
            kind: The kind.
            parent: Kind and id of the record that they belong to, such as ``("registered_models", "1")``.
        """
        path = kind if parent is None else f"{parent[0]}/{parent[1]}/{_CHILDREN[kind]}"
        query = {"pageSize": str(_PAGE), "orderBy": "ID", "sortOrder": "ASC"}
        for _ in range(_PAGES):
            page = self._call("GET", path, query=query)
            yield from page.get("items") or ()
            if not page.get("nextPageToken"):
                return
            query = {**query, "nextPageToken": page["nextPageToken"]}
        raise RegistryError(f"{path} at {self.host} has no last page. Check the server.")

    def create(self, kind: Kind, body: Mapping[str, Any]) -> Record:
        """Create a record; not retried, because the first attempt may have succeeded."""
        return self._once("POST", kind, body=body)

    def upsert_artifact(self, version: str, body: Mapping[str, Any]) -> Record:
        """Create a version's artifact, or change it if the body has its id.

        Args:
            version: Id of the model version.
            body: The artifact, with its ``artifactType``.
        """
        return self._once("POST", f"model_versions/{version}/artifacts", body=body)

    def update(self, kind: Kind, id_: str, body: Mapping[str, Any]) -> Record:
        """Change fields of a record; custom properties are replaced as a whole if given."""
        return self._call("PATCH", f"{kind}/{id_}", body=body)

    # -- calls -------------------------------------------------------------------------------------------------------

    def _root(self) -> str:
        """Return the base path that the server has: the answer of a wrong one looks like an absent record."""
        if self._base:
            return self._base
        for base in self._bases:
            root = f"/api/model_registry/{base}"
            try:
                answer = self._retried("GET", f"{root}/registered_models", {"pageSize": "1"}, None)
            except RegistryAnswerError as error:
                if error.status != 404:
                    raise
                continue
            if "items" in answer or "size" in answer:
                self._base = root
                return root
        raise RegistryError(
            f"no model registry answers at {self.host} below /api/model_registry/ ({', '.join(self._bases)}). Check "
            "the address."
        )

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Record:
        return self._retried(method, f"{self._root()}/{path}", query, body)

    def _once(self, method: str, path: str, *, body: Mapping[str, Any]) -> Record:
        return self._ask(method, f"{self._root()}/{path}", None, body)

    def _retried(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Mapping[str, Any] | None
    ) -> Record:
        end = time.monotonic() + self._patience
        wait = 0.1
        while True:
            try:
                return self._ask(method, path, query, body)
            except RegistryError as error:
                final = isinstance(error, RegistryAnswerError) and error.status not in _PASSING
                if final or time.monotonic() + wait > end:
                    raise
            # Random, so that many waiting clients do not return at the same time.
            time.sleep(wait * random.uniform(0.7, 1.3))  # noqa: S311
            wait = min(wait * 2, _SLOWEST)

    def _ask(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Mapping[str, Any] | None
    ) -> Record:
        where = f"the model registry at {self.host}: {method} {path}"
        try:
            response = self._client.request(
                method, self.host + path, params=query, json=body, headers=dict(self._headers())
            )
        except httpx.HTTPError as error:
            raise RegistryError(
                f"{where} got no answer ({type(error).__name__}: {error}). Check that it is reachable from here."
            ) from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, dict):
            return answer
        said = answer.get("message", "") if isinstance(answer, dict) else ""
        status = response.status_code
        if status in (401, 403) or response.is_redirect:
            step = "Check the credentials"
        elif response.is_success:
            step = "It did not send JSON (a login page?): check the address and the credentials"
        else:
            step = "Check the registry"
        more = f": {said[:500]}" if said else ""
        raise RegistryAnswerError(status, f"{where} was answered {status}{more}. {step}.")


_CHILDREN = {"model_versions": "versions", "model_artifacts": "artifacts"}
