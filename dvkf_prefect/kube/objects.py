"""Calls of Kubernetes' API with plain values, for kinds that the client library has no classes for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kube.client import kube_client

_TIMEOUT = (10.0, 30.0)
_CHUNK = "500"
_ONLY_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json"
_PASSING = frozenset({0, 408, 429, 500, 502, 503, 504})


class KubeError(RunnerError):
    """Refusal of the API server, or no answer.

    Attributes:
        status: HTTP status; 0 without an answer.
        reason: Reason of a ``Status``, such as ``AlreadyExists``.
        said: Message of the API server.
        causes: Reason, field and message of each cause.
    """

    def __init__(
        self, status: int, reason: str, said: str, causes: Sequence[tuple[str, str, str]] = ()
    ) -> None:
        self.status = status
        self.reason = reason
        self.said = said
        self.causes = tuple(causes)
        super().__init__(f"Kubernetes: {said}" if status else f"Kubernetes does not answer: {said}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.reason, self.said, self.causes)

    @property
    def passing(self) -> bool:
        """True if a later request may succeed. A refusal by a webhook's absence is one, too."""
        return self.status in _PASSING

    @property
    def conflicts(self) -> tuple[tuple[str, str], ...]:
        """Fields of an apply that others manage: the manager's name, with its API in quotes, and the field."""
        return tuple(
            (said.removeprefix("conflict with "), field)
            for reason, field, said in self.causes
            if reason == "FieldManagerConflict"
        )

    @property
    def lacks_right(self) -> bool:
        """True for a missing right. A webhook refuses with the same status (apiserver ``statuserror.go``)."""
        return self.status == 403 and "admission webhook" not in self.said and " cannot " in self.said


class KubeObjects:
    """Objects of a cluster.

    Args:
        client: A ``kubernetes.client.ApiClient``; None for the pod's own account, or else the user's kubeconfig.

    Raises:
        RunnerError: There is no login.
    """

    def __init__(self, client: Any = None) -> None:
        from kubernetes.config import ConfigException  # type: ignore[import-untyped]

        try:
            self._client = client or kube_client()
        except ConfigException as error:
            raise RunnerError(
                f"there is no login to Kubernetes: {error}. Run in a pod with a service account, or set KUBECONFIG"
            ) from error

    def get(self, path: str, **query: str) -> Any:
        """Return an object or a list.

        Args:
            path: Path of the API.
            query: Parameters.

        Raises:
            KubeError: The API server refused it or does not answer.
        """
        return self._call("GET", path, list(query.items()))

    def metadata(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Return the metadata of a list's objects, which may be large.

        Source: Kubernetes' API concepts, "Metadata-only fetches", and its lists in chunks.

        Args:
            path: Path of the list.
            query: Parameters.

        Raises:
            KubeError: The API server refused it or does not answer.
        """
        found: list[dict[str, Any]] = []
        more: list[tuple[str, str]] = []
        while True:
            asked = [*query.items(), ("limit", _CHUNK), *more]
            answer = self._call("GET", path, asked, accept=_ONLY_METADATA)
            found += (each["metadata"] for each in answer.get("items") or ())
            token = (answer.get("metadata") or {}).get("continue")
            if not token:
                return found
            more = [("continue", str(token))]

    def create(self, path: str, obj: Mapping[str, Any]) -> Any:
        """Create an object; return it as stored.

        Args:
            path: Path of its kind.
            obj: The object.

        Raises:
            KubeError: The API server refused it or does not answer.
        """
        return self._call("POST", path, body=obj)

    def merge(self, path: str, change: Mapping[str, Any]) -> Any:
        """Change an object by a merge patch; return it.

        Raises:
            KubeError: The API server refused it or does not answer.
        """
        return self._call("PATCH", path, body=change, kind="application/merge-patch+json")

    def apply(self, path: str, obj: Mapping[str, Any], manager: str, *, force: bool = False) -> Any:
        """Create or change an object by server-side apply; return it.

        Args:
            path: Path of the object.
            obj: All fields that the manager sets. Its other fields are removed, unless others manage them, too.
            manager: Name of the field manager.
            force: Take over fields of other managers.

        Raises:
            KubeError: The API server refused it or does not answer. Fields of other managers are its `conflicts`.
        """
        query = [("fieldManager", manager), *([("force", "true")] if force else [])]
        return self._call("PATCH", path, query, obj, "application/apply-patch+yaml")

    def log(self, path: str, **query: str) -> str:
        """Return the log of a container.

        Args:
            path: Path of the pod.
            query: Parameters, such as ``container`` and ``tailLines``.

        Raises:
            KubeError: The API server refused it or does not answer, or there is no log.
        """
        return str(self._call("GET", f"{path}/log", list(query.items()), answer="str"))

    def delete(self, path: str) -> None:
        """Delete an object and what it owns; an absent one is ignored.

        Raises:
            KubeError: The API server refused it or does not answer.
        """
        try:
            self._call("DELETE", path, [("propagationPolicy", "Background")])
        except KubeError as error:
            if error.status != 404:
                raise

    def _call(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        kind: str = "application/json",
        answer: str = "object",
        accept: str = "application/json, */*",
    ) -> Any:
        from kubernetes.client.exceptions import ApiException  # type: ignore[import-untyped]

        try:
            return self._client.call_api(
                path,
                method,
                query_params=list(query),
                header_params={"Content-Type": kind, "Accept": accept},
                body=body,
                auth_settings=["BearerToken"],
                response_type=answer,
                _request_timeout=_TIMEOUT,
            )[0]
        except ApiException as error:
            raise _refusal(error) from error
        except Exception as error:
            # urllib3's errors of connections, which the client passes on.
            if isinstance(error, OSError) or type(error).__module__.startswith("urllib3."):
                raise KubeError(0, "", str(error)) from error
            raise


def _refusal(error: Any) -> KubeError:
    try:
        status = json.loads(error.body)
        causes = [
            (str(each.get("reason")), str(each.get("field")), str(each.get("message")))
            for each in (status.get("details") or {}).get("causes") or ()
        ]
        said = status.get("message") or error.reason
        return KubeError(error.status, status.get("reason") or "", said, causes)
    except (TypeError, ValueError, AttributeError):
        # An absent CRD is answered with plain text.
        return KubeError(error.status or 0, "", str(error.body or error.reason or "").strip())
