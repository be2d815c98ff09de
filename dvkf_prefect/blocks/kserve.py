"""Services of registered models on a cluster with KServe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, model_validator

from dvkf_prefect.blocks._common import documentation_url, drop_empty, logo_url, plain_fields
from dvkf_prefect.errors import RunnerError, ServingError
from dvkf_prefect.kube.client import kube_client
from dvkf_prefect.kube.objects import KubeObjects
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.promotion.places import ServingState
from dvkf_prefect.serving.gating import Check
from dvkf_prefect.serving.kserve.canaries import Canary
from dvkf_prefect.serving.kserve.deployment import KServeDeployment
from dvkf_prefect.serving.kserve.endpoint import ServiceEndpoint
from dvkf_prefect.serving.kserve.services import KServeServices
from dvkf_prefect.serving.kserve.spec import ServiceSettings
from dvkf_prefect.serving.kserve.uses import Uses, read_uses
from dvkf_prefect.serving.kserve.verdict import Waits


class KServeModelServer(Block):
    """Serves registered models on a cluster, one InferenceService per model.

    It has the calls of the block Model Server, and those of canaries. Versions are read from their published folders,
    so publish a version before it is deployed.

    Example:
        Load it and request a prediction:
        ```python
        from dvkf_prefect import KServeModelServer

        server = KServeModelServer.load("BLOCK_NAME")
        print(server.endpoint("digits").predict([[0.0] * 64]))
        ```
    """

    _block_type_name = "KServe Model Server"
    _block_type_slug = "kserve-model-server"
    _documentation_url: ClassVar[HttpUrl | None] = documentation_url("KServeModelServer")
    _logo_url: ClassVar[HttpUrl | None] = logo_url()

    model_config = ConfigDict(json_schema_extra=plain_fields)

    namespace: str = Field(min_length=1, description="Namespace of the services.")
    config_file: str | None = Field(
        default=None,
        title="Kubeconfig",
        description="Kubeconfig on the worker; the account of the worker's pod, or else the user's, if empty.",
    )
    context: str | None = Field(default=None, description="Context of the kubeconfig.")
    url: str | None = Field(
        default=None,
        title="Gateway URL",
        description="Address of the cluster's gateway, for requests from outside. Each service's own if empty.",
    )
    mode: Literal["Standard", "Knative"] | None = Field(
        default=None, description="Mode of new services; the default of the cluster if empty."
    )
    split: Literal["graph"] | None = Field(
        default=None,
        description="Way to split the requests of canaries: graph for an InferenceGraph; KServe's own way if empty.",
    )
    format: str | None = Field(
        default=None,
        description="Format of the models, such as sklearn or onnx, or custom; that of the publication if empty.",
    )
    runtime: str | None = Field(
        default=None, description="Runtime in place of the usual one of the format, such as kserve-mlserver."
    )
    protocol: Literal["v1", "v2"] | None = Field(
        default=None, description="Protocol of the runtime; the first one that it has if empty."
    )
    runtime_version: str | None = Field(
        default=None,
        description="Tag of the runtime's image. Without it, an upgrade of KServe restarts all services.",
    )
    image: str | None = Field(default=None, description="Image of a container of format custom.")
    port: int = Field(default=8080, ge=1, le=65535, description="Port of a container of format custom.")
    env: dict[str, str] = Field(
        default_factory=dict, description="Variables of the container. They are no place for secrets."
    )
    args: list[str] = Field(default_factory=list, description="Arguments of the container.")
    service_account: str | None = Field(
        default=None,
        description="Service account of the pods, with access to the published models. If empty, one is made with the "
        "keys of the repository's remote.",
    )
    cpu: str | None = Field(default=None, title="CPU", description="CPUs of a pod, such as 2 or 500m.")
    memory: str | None = Field(default=None, description="Memory of a pod, such as 4Gi.")
    gpu: int = Field(default=0, ge=0, title="GPU", description="Number of GPUs of a pod.")
    gpu_resource: str = Field(
        default="nvidia.com/gpu", title="GPU resource", description="Name of the GPU resource."
    )
    min_replicas: int | None = Field(
        default=None, ge=0, description="Smallest number of pods; 0 lets Knative stop all of them."
    )
    max_replicas: int | None = Field(default=None, ge=1, description="Largest number of pods.")
    scale_metric: Literal["cpu", "memory", "concurrency", "rps"] | None = Field(
        default=None,
        description="Metric by which pods are added: concurrency or rps of Knative, cpu or memory of mode Standard.",
    )
    scale_target: int | None = Field(default=None, ge=1, description="Value of the metric for each pod.")
    concurrency: int | None = Field(
        default=None, ge=0, description="Largest number of requests in one pod, of Knative; 0 for no limit."
    )
    request_timeout: int | None = Field(
        default=None, ge=1, description="Seconds for a request in the cluster."
    )
    start_timeout: int | None = Field(
        default=None, ge=1, description="Seconds for the start of a Knative revision; 600 if empty."
    )
    recreate: bool = Field(
        default=False,
        description="Stop old pods before new ones start, for a GPU that has no spare. Needs mode Standard.",
    )
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels of the nodes.")
    tolerations: list[dict[str, Any]] = Field(
        default_factory=list, description="Tolerations of the pods, as Kubernetes' values."
    )
    take_over: bool = Field(
        default=False, description="Take over services, and fields of them, that something else manages."
    )
    deploy_timeout: float = Field(
        default=900,
        gt=0,
        description="Seconds to wait until a version serves; Kubernetes gives up after 600.",
    )
    timeout: float = Field(default=60, gt=0, description="Seconds to wait for an answer of a service.")

    _drop_empty = model_validator(mode="before")(drop_empty)

    @property
    def where(self) -> str:
        """Place of the services, for the lineage of their versions."""
        return f"kserve:{self.context or ''}/{self.namespace}"

    def settings(self) -> ServiceSettings:
        """Return the settings of the services."""
        return ServiceSettings(
            format=self.format or "",
            runtime=self.runtime or "",
            protocol=self.protocol or "",
            runtime_version=self.runtime_version or "",
            image=self.image or "",
            port=self.port,
            env=self.env,
            args=tuple(self.args),
            service_account=self.service_account or "",
            cpu=self.cpu or "",
            memory=self.memory or "",
            gpu=self.gpu,
            gpu_resource=self.gpu_resource,
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            scale_metric=self.scale_metric or "",
            scale_target=self.scale_target,
            concurrency=self.concurrency,
            request_timeout=self.request_timeout,
            start_timeout=self.start_timeout,
            recreate=self.recreate,
            node_selector=self.node_selector,
            tolerations=tuple(self.tolerations),
            mode=self.mode or "",
            split=self.split or "",
        )

    def kubernetes(self) -> KubeObjects:
        """Return the connection to Kubernetes.

        Raises:
            ServingError: There is no login to Kubernetes.
        """
        from kubernetes.config import ConfigException  # type: ignore[import-untyped]

        try:
            return KubeObjects(kube_client(self.config_file, self.context))
        except (ConfigException, RunnerError) as error:
            raise ServingError(
                f"there is no login to Kubernetes: {error}. Set the kubeconfig of the block, or run in a pod with a "
                "service account."
            ) from error

    def deployment(self) -> KServeDeployment:
        """Return the services of the namespace, which are deployed, found and removed by it.

        Raises:
            ServingError: There is no login to Kubernetes.
        """
        kube = self.kubernetes()
        services = KServeServices(
            kube,
            self.namespace,
            waits=Waits(total=self.deploy_timeout),
            take_over=self.take_over,
            url=self.url or "",
        )
        return KServeDeployment(kube, services, self.settings())

    def uses(self, namespaces: Sequence[str] | None = None) -> Uses:
        """Return the objects of the cluster that may name published folders.

        Args:
            namespaces: Namespaces to ask, all of the cluster if empty; that of the block if None.

        Raises:
            ServingError: There is no login to Kubernetes, or the API server refused or does not answer.

        Example:
            ``server.uses().naming("digits", "v1.0.0", "digits/v1.0.0")``
        """
        asked = (self.namespace,) if namespaces is None else namespaces
        return read_uses(self.kubernetes(), asked, context=self.context or "")

    def deploy(self, registry: ModelRegistry, version: ModelVersion) -> ServiceEndpoint:
        """Serve a registered version in place of the one that is served now.

        On failure, the previous version is still served.

        Args:
            registry: Registry of the version.
            version: The version; it must be published.

        Returns:
            The endpoint.

        Raises:
            ModelError: The version is not published.
            ConfigError: The settings do not fit.
            ServingError: The version does not serve; with the words of its container.

        Example:
            ``server.deploy(registry, registry.show("digits", "#prod"))``
        """
        return self.deployment().deploy(registry, version)

    def state(self, model: str) -> ServingState | None:
        """Return the versions of a model that are served; None if there is none.

        Args:
            model: The model's name.

        Raises:
            ServingError: The API server refused or does not answer.

        Example:
            ``server.state("digits").version``
        """
        deployment = self.deployment()
        found = deployment.services.get(model)
        canary = deployment.canaries.get(model)
        if found is None:
            return None
        if canary is None:
            return ServingState(found.version, url=found.url)
        # In mode Knative the service's own version is that of the canary.
        return ServingState(canary.stable, canary.version, canary.percent, canary.url or found.url)

    def start_canary(
        self, registry: ModelRegistry, version: ModelVersion, percent: int, *, check: Check | None = None
    ) -> Canary:
        """Give a registered version a part of the traffic of its model.

        Args:
            registry: Registry of the version.
            version: The version; it must be published.
            percent: Part of the traffic, 0 to 99; 0 starts it without traffic.
            check: Called once the canary serves, such as `dvkf_prefect.serving.gating.GateCheck`; an error ends it.

        Raises:
            ModelError: The version is not published.
            ConfigError: The settings do not fit.
            ServingError: The cluster cannot split traffic, or the version does not serve.

        Example:
            ``server.start_canary(registry, registry.show("digits"), 10)``
        """
        return self.deployment().start_canary(registry, version, percent, check=check)

    def candidate(self, model: str, version: str) -> ServiceEndpoint | None:
        """Return an endpoint that one version alone answers; None if it is not served, or shares its address.

        The address is empty if this process cannot reach it, as that of a canary in mode Standard from outside.

        Args:
            model: Name of the model.
            version: The version that is served, or its canary.

        Raises:
            ServingError: The API server refused or does not answer.

        Example:
            ``server.candidate("digits", "v1.2.0").predict([[0.0] * 64])``
        """
        deployment = self.deployment()
        canary = deployment.canaries.get(model)
        if canary is not None and canary.version == version:
            return deployment.canaries.endpoint(model)
        if canary is not None and not canary.url:
            return None
        found = deployment.services.get(model)
        return found if found and found.version == version else None

    def start_preview(self, registry: ModelRegistry, version: ModelVersion) -> ServiceEndpoint | None:
        """Serve a registered version as a service of its own, beside that of the model.

        Args:
            registry: Registry of the version.
            version: The version; it must be published.

        Returns:
            Its endpoint; None if another model's service has that name.

        Raises:
            ModelError: The version is not published.
            ConfigError: The settings do not fit.
            ServingError: The version does not serve; with the words of its container.

        Example:
            ``server.start_preview(registry, registry.show("digits"))``
        """
        return self.deployment().start_preview(registry, version)

    def end_preview(self, model: str) -> None:
        """Remove the preview of a model; nothing if there is none.

        Args:
            model: Name of the model.

        Raises:
            ServingError: The API server refused or does not answer, or the service does not go.

        Example:
            ``server.end_preview("digits")``
        """
        self.deployment().end_preview(model)

    def promote_canary(self, model: str) -> ServiceEndpoint:
        """Give the canary of a model all traffic.

        Args:
            model: Name of the model.

        Raises:
            ServingError: There is no canary, or it does not serve.

        Example:
            ``server.promote_canary("digits")``
        """
        return self.deployment().canaries.promote(model)

    def abort_canary(self, model: str) -> ServiceEndpoint:
        """End the canary of a model; the version before it has all traffic.

        Args:
            model: Name of the model.

        Raises:
            ServingError: There is no canary, or the version before it does not serve.

        Example:
            ``server.abort_canary("digits")``
        """
        return self.deployment().canaries.abort(model)

    def undeploy(self, model: str) -> bool:
        """Remove the service of a model, and the graph of its canaries.

        Args:
            model: Name of the model.

        Returns:
            True if there was one.

        Raises:
            ServingError: The service belongs to something else, or does not go.

        Example:
            ``server.undeploy("digits")``
        """
        return self.deployment().undeploy(model)

    def endpoint(self, model: str) -> ServiceEndpoint:
        """Return the endpoint of a model that serves; its ``graph`` is the address that splits requests, if one does.

        Args:
            model: Name of the model.

        Raises:
            ServingError: The model is not served in the namespace.

        Example:
            ``server.endpoint("digits").predict([[0.0] * 64])``
        """
        deployment = self.deployment()
        found = deployment.canaries.served(model)
        if found is None:
            running = ", ".join(endpoint.model for endpoint in deployment.services.list()) or "none"
            raise ServingError(
                f"model '{model}' is not served in namespace '{self.namespace}' (running: {running}). Deploy a version "
                "of it first."
            )
        return found
