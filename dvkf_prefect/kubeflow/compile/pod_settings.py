"""Settings of a stage's pod: the stage's ``meta: kubeflow:``, on top of the defaults of a block.

DVC keeps ``meta`` and does not interpret it. ::

    stages:
      train:
        cmd: python train.py
        meta:
          kubeflow:
            image: registry.example.org/train:3
            cpu: 4                          # or {request: 2, limit: 4}
            memory: 16Gi                    # or {request: 8Gi, limit: 16Gi}
            gpu: 1                          # or {count: 1, type: amd.com/gpu}
            timeout: 6h
            retries: 2                      # or {count: 2, backoff: 30s, factor: 2, max: 2d}
            node_selector: {pool: gpu}
            node_affinity:
              - labels: [{key: gpu.memory, operator: Gt, values: [39]}]
            tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
            env: {EPOCHS: "10"}
            secrets:
              - {name: hub, env: {token: HF_TOKEN}}
              - {name: tls, mount: /etc/tls}
            pod_fields: {NODE: spec.nodeName}
            volumes: [{claim: scratch, mount: /scratch}]
            ephemeral_volumes: [{name: work, mount: /work, size: 200Gi}]
            shared_memory: 2Gi
            security_context: {user: 1000, non_root: true}
            service_account: trainer
            models: [model.bin]             # outputs that KFP shows as models
            trainer: {nodes: 2, processes: 4, resources: {cpu: 8, memory: 32Gi, gpu: 4}}

A secret is only referenced by name: Kubernetes passes its values to the pod. With ``trainer`` the command runs on nodes
of Kubeflow Trainer, and the stage's pod only starts them: see `dvkf_prefect.kubeflow.trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Generic, Literal

from pydantic import AfterValidator, BeforeValidator, StrictBool, TypeAdapter

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.compile.pod_details import (
    REFUSE_WITHOUT_EFFECT,
    Affinities,
    EphemeralVolumes,
    FieldPath,
    Security,
    apply_details,
)
from dvkf_prefect.kubeflow.compile.pod_values import (
    LONGEST,
    VOLUME_NAME,
    Cpu,
    Duration,
    Factor,
    Items,
    Label,
    LabelKey,
    Memory,
    Mount,
    Name,
    Pairs,
    Seconds,
    Size,
    Text,
    V,
    Value,
    Variable,
    Whole,
    seconds_of,
)
from dvkf_prefect.pipeline.step.meta import Place, SettingError, parse, read_meta, record
from dvkf_prefect.pipeline.step.spec import StepMeta

_GPU = "nvidia.com/gpu"
# Retries: seconds a pod may wait for a node and its image, and the bounds of the retry window.
_START = 86400
# Seconds between two attempts in one pod, besides their wait.
_BETWEEN = 60
_LONG = 30 * 86400
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 (of the pod, not of this machine)
_SHARED_VOLUME = "dvkf-shm"


@dataclass(frozen=True, slots=True)
class Range(Generic[V]):
    """Request and limit of a container, as Kubernetes quantities; None if not set."""

    request: V | None = None
    limit: V | None = None


def _range(quantity: Any) -> BeforeValidator:
    of = TypeAdapter(quantity).validate_python
    return record(Range, short=lambda value: Range(of(value), of(value)))


_whole_number: TypeAdapter[int] = TypeAdapter(Whole)


@dataclass(frozen=True, slots=True)
class Gpu:
    """Number and type of accelerators."""

    count: Whole
    type: LabelKey = _GPU


@dataclass(frozen=True, slots=True)
class Retry:
    """Further attempts of a stage that fails, in its pod, and restarts of a pod that is lost.

    Attributes:
        count: Maximum number of further attempts.
        backoff: Wait before the first of them, a duration such as ``30s``; none by default.
        factor: Multiplier of each further wait; a whole number, 2 by default.
        max: Time since the first start after which no attempt is started or continued. None for a window that fits
            all attempts.
    """

    count: Whole
    backoff: Duration | None = None
    factor: Factor | None = None
    max: Duration | None = None

    def window(self, timeout: int | None) -> int:
        """Return the seconds that all attempts and waits may take; KFP's default, an hour, would cut them off.

        Args:
            timeout: Maximum seconds of an attempt after its pod has started; None or 0 for no limit.
        """
        tries = (self.count + 1) * (timeout + _START) if timeout else LONGEST
        return min(max(_LONG, tries + self._waits), LONGEST)

    def deadline(self, timeout: int) -> int:
        """Return the maximum seconds of a pod that runs all attempts itself.

        Args:
            timeout: Maximum seconds of an attempt.
        """
        return min((self.count + 1) * (timeout + _BETWEEN) + self._waits, LONGEST)

    @property
    def _waits(self) -> int:
        """Seconds of all waits."""
        wait = seconds_of(self.backoff) if self.backoff else 0
        factor = 2 if self.factor is None else self.factor
        # Beyond the longest window a larger exponent has no effect.
        waits = (min(wait * factor ** min(n, 64), LONGEST) for n in range(min(self.count, 1000)))
        return sum(waits)


@dataclass(frozen=True, slots=True)
class Toleration:
    """A taint that the pod tolerates."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: Label | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] | None = None
    seconds: Whole | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A secret or configuration map, as variables ``{its key: variable}`` or as files below ``mount``."""

    name: Name
    env: Pairs[Text, Variable] = field(default_factory=dict)
    mount: Mount | None = None
    optional: StrictBool = False


@dataclass(frozen=True, slots=True)
class Volume:
    """A persistent volume claim and its mount path."""

    claim: Name
    mount: Mount
    sub_path: Text = ""


@dataclass(frozen=True, slots=True)
class NodeResources:
    """Resources of each node of a distributed training; unset ones are left to the cluster."""

    cpu: Annotated[Range[Cpu], _range(Cpu)] | None = None
    memory: Annotated[Range[Memory], _range(Memory)] | None = None
    gpu: Annotated[Gpu, record(Gpu, short=lambda value: Gpu(_whole_number.validate_python(value)))] | None = (
        None
    )
    shared_memory: Size | None = None


@dataclass(frozen=True, slots=True)
class Trainer:
    """A distributed training by Kubeflow Trainer.

    Attributes:
        nodes: Number of nodes.
        processes: Number of processes on each node.
        runtime: Name of a runtime of the cluster, such as ``torch-distributed``; None for one of the stage's own.
        resources: Resources of each node.
    """

    nodes: Factor = 1
    processes: Factor = 1
    runtime: Name | None = None
    resources: Annotated[NodeResources, record(NodeResources)] = NodeResources()


def _check_toleration(toleration: Toleration) -> Toleration:
    if toleration.key is None and toleration.operator != "Exists":
        raise SettingError((), "'key' is missing; it is optional only with `operator: Exists`")
    if toleration.seconds is not None and toleration.effect != "NoExecute":
        raise SettingError(
            ("seconds",), "only a taint that evicts pods is tolerated for a time. Add `effect: NoExecute`."
        )
    return toleration


def _check_reference(reference: Reference) -> Reference:
    if not reference.env and not reference.mount:
        raise SettingError((), "expected `env: {its key: VARIABLE}`, or `mount: /path`")
    return reference


_References = Items[Annotated[Reference, record(Reference), AfterValidator(_check_reference)]]


@dataclass(frozen=True, slots=True)
class Placement:
    """All settings of a stage's pod; unset ones are left to the cluster.

    Attributes:
        image: Container image; contains this package and KFP, or lists them in ``packages``.
        packages: Packages that pip installs when the pod starts, for images that lack them.
        cpu: CPU cores.
        memory: Memory in bytes.
        gpu: Accelerators.
        shared_memory: Size of ``/dev/shm``.
        timeout: Seconds until an attempt is ended; 0 for no limit.
        retries: Further attempts after a failure.
        node_selector: Labels of the nodes it may run on.
        node_affinity: Conditions on the nodes it may run on, or should.
        tolerations: Taints it tolerates.
        env: Environment variables; no secrets, because the pipeline shows them.
        pod_fields: Environment variables with fields of the pod, such as ``{NODE: spec.nodeName}``.
        secrets: Secrets by name.
        config_maps: Configuration maps by name.
        volumes: Persistent volumes.
        ephemeral_volumes: Volumes that live as long as the pod.
        security_context: User of the container.
        image_pull_secrets: Names of secrets to pull the image with.
        image_pull_policy: ``Always``, ``IfNotPresent`` or ``Never``.
        service_account: Kubernetes service account of the whole run.
        labels: Labels of the pod.
        annotations: Annotations of the pod.
        models: Outputs of the stage that are models.
        trainer: Distributed training of the stage; None for a command in its pod.
    """

    image: Text | None = None
    packages: Items[Text] = ()
    cpu: Annotated[Range[Cpu], _range(Cpu)] | None = None
    memory: Annotated[Range[Memory], _range(Memory)] | None = None
    gpu: Annotated[Gpu, record(Gpu, short=lambda value: Gpu(_whole_number.validate_python(value)))] | None = (
        None
    )
    shared_memory: Size | None = None
    timeout: Seconds | None = None
    retries: (
        Annotated[Retry, record(Retry, short=lambda value: Retry(_whole_number.validate_python(value)))]
        | None
    ) = None
    node_selector: Pairs[LabelKey, Label] = field(default_factory=dict)
    node_affinity: Affinities = ()
    tolerations: Items[Annotated[Toleration, record(Toleration), AfterValidator(_check_toleration)]] = ()
    env: Pairs[Variable, Value] = field(default_factory=dict)
    pod_fields: Pairs[Variable, FieldPath] = field(default_factory=dict)
    secrets: _References = ()
    config_maps: _References = ()
    volumes: Items[Annotated[Volume, record(Volume)]] = ()
    ephemeral_volumes: EphemeralVolumes = ()
    security_context: Security | None = None
    image_pull_secrets: Items[Name] = ()
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    service_account: Name | None = None
    labels: Pairs[LabelKey, Label] = field(default_factory=dict)
    annotations: Pairs[LabelKey, Value] = field(default_factory=dict)
    models: Items[Text] = ()
    trainer: Annotated[Trainer, record(Trainer)] | None = None

    def over(self, defaults: Placement) -> Placement:
        """Return these settings with unset ones taken from defaults; mappings are merged by key."""
        values: dict[str, Any] = {}
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(defaults, each.name)
            if isinstance(mine, Mapping):
                values[each.name] = {**theirs, **mine}
            elif mine is None or mine == ():
                values[each.name] = theirs
        return replace(self, **values)

    def mounts(self) -> Iterator[tuple[Place, str, str]]:
        """Yield the place of each mounted volume in these settings, its name in the pod and its path."""
        for index, volume in enumerate(self.volumes):
            yield ("volumes", index), volume.claim, volume.mount
        for key in ("secrets", "config_maps"):
            for index, reference in enumerate(getattr(self, key)):
                if reference.mount:
                    yield (key, index), reference.name, reference.mount
        for index, each in enumerate(self.ephemeral_volumes):
            yield ("ephemeral_volumes", index), each.name, each.mount
        if self.shared_memory:
            yield ("shared_memory",), _SHARED_VOLUME, _SHARED_MEMORY

    def apply(self, task: Any) -> None:
        """Apply these settings to a KFP task.

        Args:
            task: A ``kfp.dsl.PipelineTask``.
        """
        from kfp import kubernetes

        if self.cpu and self.cpu.request:
            task.set_cpu_request(self.cpu.request)
        if self.cpu and self.cpu.limit:
            task.set_cpu_limit(self.cpu.limit)
        if self.memory and self.memory.request:
            task.set_memory_request(self.memory.request)
        if self.memory and self.memory.limit:
            task.set_memory_limit(self.memory.limit)
        if self.gpu and self.gpu.count and self.trainer is None:
            task.set_accelerator_type(self.gpu.type)
            task.set_accelerator_limit(self.gpu.count)
        if self.retries and self.retries.count:
            task.set_retry(
                self.retries.count,
                backoff_duration=self.retries.backoff,
                backoff_factor=self.retries.factor,
                backoff_max_duration=self.retries.max or f"{self.retries.window(self.timeout)}s",
            )
        if self.env:
            # `set_env_variable` inspects the whole call stack for each variable.
            task.container_spec.env = {**(task.container_spec.env or {}), **self.env}
        if self.timeout:
            whole = (
                self.retries.deadline(self.timeout) if self.retries and self.retries.count else self.timeout
            )
            kubernetes.set_timeout(task, whole)
        for key, value in self.node_selector.items():
            kubernetes.add_node_selector(task, key, value)
        for toleration in self.tolerations:
            kubernetes.add_toleration(
                task,
                key=toleration.key,
                operator=toleration.operator,
                value=toleration.value,
                effect=toleration.effect,
                toleration_seconds=toleration.seconds,
            )
        for secret in self.secrets:
            if secret.env:
                kubernetes.use_secret_as_env(task, secret.name, dict(secret.env), optional=secret.optional)
            if secret.mount:
                kubernetes.use_secret_as_volume(task, secret.name, secret.mount, optional=secret.optional)
        for held in self.config_maps:
            if held.env:
                kubernetes.use_config_map_as_env(task, held.name, dict(held.env), optional=held.optional)
            if held.mount:
                kubernetes.use_config_map_as_volume(task, held.name, held.mount, optional=held.optional)
        for volume in self.volumes:
            kubernetes.mount_pvc(task, volume.claim, volume.mount, volume.sub_path)
        apply_details(
            task,
            affinities=self.node_affinity,
            security=self.security_context,
            fields=self.pod_fields,
            volumes=self.ephemeral_volumes,
        )
        if self.shared_memory:
            kubernetes.empty_dir_mount(
                task, _SHARED_VOLUME, _SHARED_MEMORY, medium="Memory", size_limit=self.shared_memory
            )
        if self.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(self.image_pull_secrets))
        if self.image_pull_policy:
            kubernetes.set_image_pull_policy(task, self.image_pull_policy)
        _leave_out_defaults(task)
        for key, value in self.labels.items():
            kubernetes.add_pod_label(task, key, value)
        for key, value in self.annotations.items():
            kubernetes.add_pod_annotation(task, key, value)


def _leave_out_defaults(task: Any) -> None:
    """Remove ``optional: false`` of variables, which the SDK always writes.

    Servers before 2.15 do not know the field there. 2.14 refuses the pipeline, 2.5 drops the labels of its pods.
    """
    config = task.platform_config.get("kubernetes", {})
    for item in (*config.get("secretAsEnv", ()), *config.get("configMapAsEnv", ())):
        if not item.get("optional"):
            item.pop("optional", None)


def _check_mounts(placement: Placement) -> Placement:
    """Refuse volumes that Kubernetes would refuse, with the whole pod.

    KFP names the volume of a claim, a secret or a configuration map after it.
    """
    names: set[str] = set()
    paths: set[str] = set()
    for place, name, mount in placement.mounts():
        path = mount.rstrip("/") or "/"
        if not VOLUME_NAME.fullmatch(name):
            raise SettingError(
                place,
                f"'{name}' cannot be mounted: KFP names the volume after it, and the name of a volume has at "
                "most 63 lower-case letters, digits and '-', and no dot. Rename it in Kubernetes.",
            )
        if name in names:
            raise SettingError(
                place,
                f"'{name}' is mounted twice, and KFP would give both volumes this name. Mount each claim, "
                "secret and configuration map once, in a folder that serves all uses, and give each a "
                "different name.",
            )
        if path in paths:
            raise SettingError(
                place, f"'{path}' is the mount path of another volume. Mount it at another path."
            )
        names.add(name)
        paths.add(path)
    return placement


_PLACEMENT: TypeAdapter[Placement] = TypeAdapter(
    Annotated[Placement, record(Placement), REFUSE_WITHOUT_EFFECT, AfterValidator(_check_mounts)]
)


def parse_meta(
    meta: StepMeta,
    stage: str,
    outs: Collection[str],
    read: Callable[[str], bytes],
    defaults: Placement | None = None,
) -> Placement:
    """Parse the settings in a stage's ``meta``.

    Args:
        meta: The ``meta`` of the stage.
        stage: Address of the stage.
        outs: Paths of its outputs.
        read: Returns the bytes of a file of the repository; called to find the line of a mistake.
        defaults: Settings that the stage does not set.

    Raises:
        ParseError: A key is unknown or a value wrong; names file, line and key.

    Example:
        >>> parse_meta(StepMeta({"kubeflow": {"cpu": 2}}), "train", [], lambda file: b"").cpu
        Range(request='2', limit='2')
    """
    defaults = Placement() if defaults is None else defaults

    def finish(placement: Placement) -> Placement:
        for key in ("gpu", "shared_memory") if placement.trainer else ():
            if getattr(placement, key):
                raise SettingError(
                    (key,),
                    f"with `trainer` the command runs on its nodes. Move it to `trainer: resources: {key}`.",
                )
        for index, path in enumerate(placement.models):
            if path not in outs:
                raise SettingError(("models", index), f"'{path}' is not one of its outputs")
        return _check_mounts(placement.over(defaults))

    return read_meta(_PLACEMENT, "kubeflow", meta, stage, read, finish=finish) or defaults


def parse_defaults(values: Mapping[str, Any]) -> Placement:
    """Parse defaults, in the form of a stage's ``meta: kubeflow:``.

    Raises:
        ConfigError: A key is unknown or a value wrong.

    Example:
        >>> parse_defaults({"gpu": 1}).gpu
        Gpu(count=1, type='nvidia.com/gpu')
    """
    try:
        placement = parse(_PLACEMENT, values)
        if placement.trainer is not None:
            raise SettingError(
                ("trainer",), "only a stage has nodes. Set it in the stage's `meta: kubeflow:`."
            )
        return placement
    except SettingError as error:
        key = ".".join(map(str, error.place)) or "defaults"
        raise ConfigError(f"the defaults of pods, '{key}': {error.problem}") from None
