"""Pipelines on the server: one a repository, with a version for each content.

A version is named after the digest of its pipeline's spec, so equal content is uploaded once and found by its name.
Runs refer to the version. Its spec names no run: Kubeflow passes the id of the run to each pod, as the key of its
results.

Sources: KFP 2.5 to 2.17. ``POST /apis/v2beta1/pipelines`` takes the name as ``display_name`` in every version. A
version is a file for ``/apis/v2beta1/pipelines/upload_version`` (``pipeline_upload_server.go``), because the other
route fetches a URL. With a store in Kubernetes (2.14 and later) names are those of objects: lower-case letters, digits
and dashes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dvkf_prefect.kubeflow.cluster.api import KfpAnswerError, KfpApi, equals, in_namespace
from dvkf_prefect.kubeflow.cluster.names import fit
from dvkf_prefect.text import slug

_PIPELINES = "/apis/v2beta1/pipelines"
# Answers of a server without this store or of a user without its rights; uploads refuse rights with 400.
_REFUSED = frozenset({400, 403, 404, 405, 501})


_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Upload:
    """A version of a pipeline on the server.

    Attributes:
        pipeline_id: Id of the pipeline.
        version_id: Id of the version.
    """

    pipeline_id: str
    version_id: str

    def as_reference(self) -> dict[str, str]:
        """Return it as ``pipeline_version_reference`` of a run or recurring run."""
        return {"pipeline_id": self.pipeline_id, "pipeline_version_id": self.version_id}


def version_name(spec: Mapping[str, Any]) -> str:
    """Return the name of the version with a pipeline: a digest of its spec.

    Example:
        >>> version_name({"pipelineInfo": {"name": "demo"}})
        'sha256-3c6752180f2ccf7667d829cadf42bc67'
    """
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return f"sha256-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def pipeline_name(project: str) -> str:
    """Return the name of a repository's pipeline, which a store in Kubernetes takes, too.

    Example:
        >>> pipeline_name("Digits/nlp")
        'digits-nlp'
    """
    return slug(project)[:63].strip("-") or "pipeline"


def results_key(run: Mapping[str, Any], key: str) -> str:
    """Return the key of a run's results: its own id if it refers to a version, which names no key.

    Args:
        run: The run as the server returns it.
        key: Key of a run that brings its pipeline.
    """
    return str(run["run_id"]) if "pipeline_version_reference" in run else key


def try_upload(
    api: KfpApi, spec: Mapping[str, Any], *, project: str, namespace: str | None, about: str
) -> dict[str, str] | None:
    """Return the reference of `find_or_upload`'s version; None, with a warning, if the server does not allow uploads.

    Args:
        api: Connection to the server.
        spec: ``pipeline_spec`` and perhaps ``platform_spec``, or the pipeline's spec alone.
        project: Name of the repository.
        namespace: Namespace of the pipeline.
        about: Description of a new version.

    Raises:
        KfpAnswerError: The server fails, or refuses the login.
        KfpUnreachableError: The server cannot be reached.
    """
    whole = spec if "pipeline_spec" in spec else {"pipeline_spec": spec}
    try:
        return find_or_upload(api, whole, project=project, namespace=namespace, about=about).as_reference()
    except KfpAnswerError as error:
        if error.status not in _REFUSED:
            raise
        _logger.warning("the pipeline is sent with its run, because it cannot be uploaded: %s", error)
        return None


def find_or_upload(
    api: KfpApi, spec: Mapping[str, Any], *, project: str, namespace: str | None, about: str
) -> Upload:
    """Return the version with a pipeline; upload it if the server does not have it.

    Args:
        api: Connection to the server.
        spec: The pipeline, ``pipeline_spec`` and perhaps ``platform_spec``.
        project: Name of the repository.
        namespace: Namespace of the pipeline.
        about: Description of a new version.

    Raises:
        KfpAnswerError: The server refuses it.
        KfpUnreachableError: The server cannot be reached.
    """
    pipeline_id = _pipeline(api, pipeline_name(project), namespace, f"Stages of {project}")
    name = version_name(spec)
    path = f"{_PIPELINES}/{quote(pipeline_id, safe='')}/versions"
    if found := _named(api, path, "pipeline_versions", name, {}):
        return Upload(pipeline_id, str(found["pipeline_version_id"]))
    # The description of pipelines has no limit, but it is part of the query.
    query = {"name": name, "pipelineid": pipeline_id, "description": fit(about)}
    try:
        made = api.call(
            "POST", f"{_PIPELINES}/upload_version", query=query, file=(f"{name}.yaml", _file(spec))
        )
    except KfpAnswerError as error:
        # Another client uploaded it meanwhile, or an earlier attempt did.
        if error.status != 409 or not (
            made := _named(api, path, "pipeline_versions", name, {}, every=True) or {}
        ):
            raise
    return Upload(pipeline_id, str(made["pipeline_version_id"]))


def _pipeline(api: KfpApi, name: str, namespace: str | None, about: str) -> str:
    """Return the id of a pipeline; create it without a version if it does not exist."""
    query = in_namespace(namespace)
    if found := _named(api, _PIPELINES, "pipelines", name, query):
        return str(found["pipeline_id"])
    try:
        made = api.call("POST", _PIPELINES, body={"display_name": name, "description": fit(about), **query})
    except KfpAnswerError as error:
        if error.status != 409 or not (
            made := _named(api, _PIPELINES, "pipelines", name, query, every=True) or {}
        ):
            raise
    return str(made["pipeline_id"])


def _named(
    api: KfpApi, path: str, key: str, name: str, query: Mapping[str, str], *, every: bool = False
) -> dict[str, Any] | None:
    """Return the resource with a name; the server's database ignores case, so an exact match goes first.

    Args:
        api: Connection to the server.
        path: Path of the list.
        key: Key of the resources in an answer.
        name: The name.
        query: Further parameters of the list.
        every: List without a filter, which servers and proxies decode differently.
    """
    select = {} if every else {"filter": equals(name=name)}
    similar = None
    for found in api.listed(path, key, {**query, **select}):
        # KFP 2.5 knows only `display_name`.
        own = str(found.get("name") or found.get("display_name", ""))
        if own == name:
            return found
        if own.casefold() == name.casefold():
            similar = similar or found
    return similar


def _file(spec: Mapping[str, Any]) -> bytes:
    """Return a pipeline as a file: YAML documents, here in JSON, of the pipeline and of its platform's part."""
    return "\n---\n".join(
        json.dumps(spec[part]) for part in ("pipeline_spec", "platform_spec") if part in spec
    ).encode()
