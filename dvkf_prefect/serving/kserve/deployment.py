"""Deployment of registered versions to KServe: the published folder, access to it, and the service.

The folder is the one that a publication noted on the version's tag, or it is given.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from dvkf_prefect.errors import ConfigError, ModelError, RemoteError, RemoteNotFoundError
from dvkf_prefect.kube.objects import KubeObjects
from dvkf_prefect.models.facts import read_facts
from dvkf_prefect.models.layouts import FORMATS
from dvkf_prefect.models.places import Manifest, Place
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.tags import tag_name
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.serving.gating import Check
from dvkf_prefect.serving.kserve.access import ensure_account
from dvkf_prefect.serving.kserve.canaries import Canaries, Canary
from dvkf_prefect.serving.kserve.endpoint import ServiceEndpoint
from dvkf_prefect.serving.kserve.services import KServeServices, annotations_of
from dvkf_prefect.serving.kserve.spec import MODEL, ServiceSettings, service_name

# Addresses that the initializer of KServe 0.15 to 0.20 reads (kserve 0.20, `utils.go:48`).
_SCHEMES = ("gs", "s3", "pvc", "file", "https", "http", "hdfs", "webhdfs", "oci", "hf")
_CLUSTER = tuple(each for each in _SCHEMES if each != "file")
_logger = logging.getLogger(__name__)


class KServeDeployment:
    """Deployments of registered versions to the services of a namespace.

    Args:
        kube: Kubernetes.
        services: The services.
        settings: Settings of each service. Without a format it is that of the publication.
    """

    def __init__(self, kube: KubeObjects, services: KServeServices, settings: ServiceSettings) -> None:
        self.services = services
        self.canaries = Canaries(services)
        self._kube = kube
        self._settings = settings

    def deploy(self, registry: ModelRegistry, version: ModelVersion, *, uri: str = "") -> ServiceEndpoint:
        """Serve a registered version in place of the one that is served now.

        On failure the version before it serves.

        Args:
            registry: Registry of the version.
            version: The version.
            uri: Address of its published folder; empty for the one that its publication noted.

        Raises:
            ModelError: The version is not published, or has no content.
            ConfigError: The settings do not fit, or the remote has no keys for a service.
            ServingError: It does not serve; with the container's own words.
        """
        found, settings, account = self._prepared(registry, version, uri)
        endpoint = self.services.deploy(
            version.name, version.version, version.digest or "", found, settings, account=account
        )
        return replace(endpoint, graph=self.canaries.end_graph(version.name))

    def undeploy(self, model: str) -> bool:
        """Remove a model's service, its graph and its canary.

        Args:
            model: Name of the model.

        Returns:
            True if there was a service.

        Raises:
            ServingError: The service belongs to something else, or does not go.
        """
        self.canaries.remove_graph(model)
        return self.services.undeploy(model)

    def start_preview(
        self, registry: ModelRegistry, version: ModelVersion, *, uri: str = ""
    ) -> ServiceEndpoint | None:
        """Serve a registered version as a service of its own, beside that of the model.

        Args:
            registry: Registry of the version.
            version: The version.
            uri: Address of its published folder; empty for the one that its publication noted.

        Returns:
            The endpoint; None if another model's service has the name.

        Raises:
            ModelError: The version is not published, or has no content.
            ConfigError: The settings do not fit, or the remote has no keys for a service.
            ServingError: It does not serve; with the container's own words.
        """
        if self._preview(version.name) is False:
            return None
        found, settings, account = self._prepared(registry, version, uri)
        name = preview_of(version.name)
        return self.services.deploy(
            name, version.version, version.digest or "", found, settings, account=account
        )

    def end_preview(self, model: str) -> None:
        """Remove the preview of a model; nothing if there is none.

        Args:
            model: Name of the model.

        Raises:
            ServingError: The API server refused or does not answer, or the service does not go.
        """
        if self._preview(model):
            self.services.undeploy(preview_of(model))

    def _preview(self, model: str) -> bool | None:
        """Return True if the preview of a model runs, False if another service has its name; None for none."""
        live = self.services.find(service_name(preview_of(model), self.services.namespace))
        return None if live is None else annotations_of(live).get(MODEL) == preview_of(model)

    def start_canary(
        self,
        registry: ModelRegistry,
        version: ModelVersion,
        percent: int,
        *,
        uri: str = "",
        check: Check | None = None,
    ) -> Canary:
        """Give a registered version a part of the traffic.

        Args:
            registry: Registry of the version.
            version: The version.
            percent: Part of the traffic, 0 to 99.
            uri: Address of its published folder; empty for the one that its publication noted.
            check: Called once the canary serves; an error ends the canary.

        Raises:
            ModelError: The version is not published, or has no content.
            ConfigError: The settings do not fit, or the remote has no keys for a service.
            ServingError: The cluster cannot split traffic, or the version does not serve.
        """
        found, settings, account = self._prepared(registry, version, uri)
        return self.canaries.start(
            version.name,
            version.version,
            version.digest or "",
            found,
            settings,
            percent=percent,
            account=account,
            check=check,
        )

    def _prepared(
        self, registry: ModelRegistry, version: ModelVersion, uri: str
    ) -> tuple[str, ServiceSettings, str]:
        settings = self._settings
        published = _publication(registry, version)
        found = uri or str(published.get("where", ""))
        what = f"{version.name} {version.version}"
        if not found and settings.format != "custom":
            raise ModelError(
                f"{what} is not published, so KServe cannot read it. Run `dvkf model publish "
                f"{version.name}@{version.version}`, or give the address of its folder."
            )
        if found and found.partition("://")[0].partition("+")[0] not in _SCHEMES:
            raise ConfigError(
                f"{found} cannot be read by KServe. Publish {what} to one of "
                f"{', '.join(f'{each}://' for each in _SCHEMES)}."
            )
        folder = _folder(registry, found)
        manifest = _manifest(folder, version)
        if uri and manifest is None:
            _logger.warning("%s: not checked, as no manifest beside it can be read here", uri)
        if not settings.format:
            known = manifest.format if manifest else str(published.get("format") or "")
            settings = replace(settings, format=known)
        if not settings.format:
            raise ConfigError(f"the format of {what} is not known. Set it to one of {', '.join(FORMATS)}.")
        if not settings.served_as and manifest and settings.used_runtime in manifest.runtimes:
            # Triton names a model by its folder.
            settings = replace(settings, served_as=manifest.served_as)
        account = ""
        if found.startswith("s3://") and not settings.service_account:
            options = folder.place.options if folder else _remote_options(registry)
            if options.get("access_key_id") and options.get("secret_access_key"):
                account = ensure_account(self._kube, self.services.namespace, options)
        return found, settings, account


def preview_of(model: str) -> str:
    """Return the name under which a preview of a model is served; no model can have it.

    Example:
        >>> preview_of("digits")
        'digits~preview'
    """
    return f"{model}~preview"


def _publication(registry: ModelRegistry, version: ModelVersion) -> Mapping[str, Any]:
    """Return the last noted publication of a version, of those that KServe can read if there are any."""
    tag = tag_name("register", version.name, version=version.version)
    facts = [fact for fact in read_facts(registry.git, tag) if fact["kind"] == "published"]
    readable = [fact for fact in facts if str(fact.get("where", "")).partition("://")[0] in _CLUSTER]
    return (readable or facts or [{}])[-1]


class _Folder(NamedTuple):
    """A folder that a version may be published in, by its address."""

    place: Place
    model: str
    version: str


def _folder(registry: ModelRegistry, uri: str) -> _Folder | None:
    """Return the folder of an address; None if it is not one of a place that this machine may read."""
    parts = uri.rstrip("/").rsplit("/", 2)
    if len(parts) < 3 or not parts[0].startswith(("s3://", "gs://")):
        return None
    return _Folder(Place(registry.repo, parts[0]), *parts[1:])


def _manifest(folder: _Folder | None, version: ModelVersion) -> Manifest | None:
    """Return the manifest beside the folder of a version; None if this machine cannot read one.

    Raises:
        ModelError: The folder is not whole, or is that of another content.
    """
    if folder is None:
        return None
    try:
        manifest = folder.place.manifest(folder.model, folder.version)
        if manifest is None:
            return None
        if manifest.digest != version.digest:
            raise ModelError(
                f"{manifest.uri} holds {manifest.model} {manifest.version} ({manifest.digest}), not {version.name} "
                f"{version.version} ({version.digest}). Give the address of its folder."
            )
        folder.place.check_whole(manifest)
    except RemoteError as error:
        _logger.warning("the manifest of %s %s cannot be read: %s", version.name, version.version, error)
        return None
    return manifest


def _remote_options(registry: ModelRegistry) -> Mapping[str, str]:
    """Return the options of the default remote if it is one of S3; empty otherwise."""
    try:
        _, options = registry.repo.config.remote(None)
    except RemoteNotFoundError:
        return {}
    return options if str(options.get("url", "")).startswith("s3://") else {}
