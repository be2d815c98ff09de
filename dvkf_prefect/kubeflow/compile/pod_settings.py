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
            tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
            env: {EPOCHS: "10"}
            secrets:
              - {name: hub, env: {token: HF_TOKEN}}
              - {name: tls, mount: /etc/tls}
            volumes: [{claim: scratch, mount: /scratch}]
            shared_memory: 2Gi
            service_account: trainer
            models: [model.bin]             # outputs that KFP shows as models

A secret is only referenced by name: Kubernetes passes its values to the pod.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dvkf_prefect.errors import ConfigError, ParseError
from dvkf_prefect.formats.documents import line_of

_GPU = "nvidia.com/gpu"
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[KMGTPE]i?|k)?")
# Names of Kubernetes objects and environment variables; keys (with an optional domain) and values of labels.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_DURATION = re.compile(r"([0-9]+)\s*([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
# Retries: seconds a pod may wait for a node and its image, and the bounds of the retry window.
_START = 86400
_LONG = 30 * 86400
_LONGEST = 3650 * 86400
_OPERATORS = ("Equal", "Exists")
_EFFECTS = ("NoSchedule", "NoExecute", "PreferNoSchedule")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 (of the pod, not of this machine)
_PULL = ("Always", "IfNotPresent", "Never")

Where = tuple[str | int, ...]


class _WrongError(Exception):
    def __init__(self, where: Where, text: str) -> None:
        self.where = where
        self.text = text
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Range:
    """Request and limit of a container, as Kubernetes quantities; None if not set."""

    request: str | None = None
    limit: str | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """Number and type of accelerators."""

    count: int
    type: str = _GPU


@dataclass(frozen=True, slots=True)
class Retry:
    """Restarts of a failed pod; the waits are durations such as ``30s``.

    Attributes:
        count: Maximum number of restarts.
        backoff: Wait before the first restart; none by default.
        factor: Multiplier of each further wait; a whole number, 2 by default.
        max: Time since the first start after which no attempt is started or continued. None for a window that fits
            all attempts.
    """

    count: int
    backoff: str | None = None
    factor: int | None = None
    max: str | None = None

    def window(self, timeout: int | None) -> int:
        """Return the seconds that all attempts and waits may take; KFP's default, an hour, would cut them off.

        Args:
            timeout: Maximum seconds of an attempt after its pod has started; None or 0 for no limit.
        """
        wait = _seconds(self.backoff, ()) if self.backoff else 0
        factor = 2 if self.factor is None else self.factor
        # Beyond the longest window a larger exponent has no effect.
        waits: int = sum(min(wait * factor ** min(n, 64), _LONGEST) for n in range(min(self.count, 1000)))
        tries = (self.count + 1) * (timeout + _START) if timeout else _LONGEST
        return min(max(_LONG, tries + waits), _LONGEST)


@dataclass(frozen=True, slots=True)
class Toleration:
    """A taint that the pod tolerates."""

    key: str | None = None
    operator: str | None = None
    value: str | None = None
    effect: str | None = None
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A secret or configuration map, as variables ``{its key: variable}`` or as files below ``mount``."""

    name: str
    env: Mapping[str, str] = field(default_factory=dict)
    mount: str | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Volume:
    """A persistent volume claim and its mount path."""

    claim: str
    mount: str
    sub_path: str = ""


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
        timeout: Seconds until the pod is ended; 0 for no limit.
        retries: Restarts after a failure.
        node_selector: Labels of the nodes it may run on.
        tolerations: Taints it tolerates.
        env: Environment variables; no secrets, because the pipeline shows them.
        secrets: Secrets by name.
        config_maps: Configuration maps by name.
        volumes: Persistent volumes.
        image_pull_secrets: Names of secrets to pull the image with.
        image_pull_policy: ``Always``, ``IfNotPresent`` or ``Never``.
        service_account: Kubernetes service account of the whole run.
        labels: Labels of the pod.
        annotations: Annotations of the pod.
        models: Outputs of the stage that are models.
    """

    image: str | None = None
    packages: tuple[str, ...] = ()
    cpu: Range | None = None
    memory: Range | None = None
    gpu: Gpu | None = None
    shared_memory: str | None = None
    timeout: int | None = None
    retries: Retry | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[Reference, ...] = ()
    config_maps: tuple[Reference, ...] = ()
    volumes: tuple[Volume, ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    image_pull_policy: str | None = None
    service_account: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()

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
        if self.gpu and self.gpu.count:
            task.set_accelerator_type(self.gpu.type)
            task.set_accelerator_limit(self.gpu.count)
        if self.retries and self.retries.count:
            task.set_retry(
                self.retries.count,
                backoff_duration=self.retries.backoff,
                backoff_factor=self.retries.factor,
                backoff_max_duration=self.retries.max or f"{self.retries.window(self.timeout)}s",
            )
        for name, value in self.env.items():
            task.set_env_variable(name, value)
        if self.timeout:
            kubernetes.set_timeout(task, self.timeout)
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
        if self.shared_memory:
            kubernetes.empty_dir_mount(
                task, "dvkf-shm", _SHARED_MEMORY, medium="Memory", size_limit=self.shared_memory
            )
        if self.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(self.image_pull_secrets))
        if self.image_pull_policy:
            kubernetes.set_image_pull_policy(task, self.image_pull_policy)
        for key, value in self.labels.items():
            kubernetes.add_pod_label(task, key, value)
        for key, value in self.annotations.items():
            kubernetes.add_pod_annotation(task, key, value)


def parse_meta(meta: Any, *, stage: str, file: str, data: bytes, place: Where) -> Placement:
    """Parse the settings in a stage's ``meta``.

    Args:
        meta: Value of ``meta``, of any type.
        stage: Address of the stage.
        file: Its dvc.yaml, for messages.
        data: Bytes of that file.
        place: Path of keys to ``meta`` in the file.

    Raises:
        ParseError: A key is unknown or a value wrong; names file, line and key.

    Example:
        >>> parse_meta({"kubeflow": {"cpu": 2}}, stage="train", file="dvc.yaml", data=b"", place=()).cpu
        Range(request='2', limit='2')
    """
    if not isinstance(meta, Mapping) or meta.get("kubeflow") is None:
        return Placement()
    try:
        return _parse(meta["kubeflow"])
    except _WrongError as error:
        where = (*place, "kubeflow", *error.where)
        key = ".".join(str(part) for part in ("meta", "kubeflow", *error.where))
        raise ParseError(
            file, f"stage '{stage}', key '{key}': {error.text}", line=line_of(data, where)
        ) from None


def parse_defaults(values: Mapping[str, Any]) -> Placement:
    """Parse defaults, in the form of a stage's ``meta: kubeflow:``.

    Raises:
        ConfigError: A key is unknown or a value wrong.

    Example:
        >>> parse_defaults({"gpu": 1}).gpu
        Gpu(count=1, type='nvidia.com/gpu')
    """
    try:
        return _parse(values)
    except _WrongError as error:
        key = ".".join(map(str, error.where)) or "defaults"
        raise ConfigError(f"the defaults of pods, '{key}': {error.text}") from None


# -- reading -----------------------------------------------------------------------------------------------------------


def _parse(values: Any) -> Placement:
    found = _mapping(values, (), _READERS)
    return Placement(**{key: _READERS[key](value, (key,)) for key, value in found.items()})


def _mapping(values: Any, where: Where, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a mapping without its null values."""
    if not isinstance(values, Mapping):
        raise _WrongError(where, f"expected a mapping, not {values!r}")
    for key in values:
        if not isinstance(key, str):
            raise _WrongError(where, f"expected names as keys, not {key!r}")
        if known is not None and key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(sorted(known))}"
            raise _WrongError((*where, key), f"there is no such setting; {hint}")
    return {key: value for key, value in values.items() if value is not None}


def _text(value: Any, where: Where) -> str:
    if not isinstance(value, str) or not value.strip() or "{{" in value:
        raise _WrongError(where, f"expected a text, not {value!r}")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[Any, Where], str]:
    def read(value: Any, where: Where) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise _WrongError(where, f"expected {what}, not {value!r}")
        if not pattern.fullmatch(str(value)):
            raise _WrongError(where, f"expected {what}, not {value!r}")
        return str(value)

    return read


_quantity = _matching(_QUANTITY, "a quantity such as 2, 500m or 4Gi")
_name = _matching(_NAME, "the name of a Kubernetes object")
_label_key = _matching(_LABEL_KEY, "a label's key")
_label = _matching(_LABEL, "a label's value of up to 63 letters, digits, '-', '_' or '.'")


def _one_of(*choices: str) -> Callable[[Any, Where], str]:
    def read(value: Any, where: Where) -> str:
        if value not in choices:
            raise _WrongError(where, f"expected one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return read


def _whole(value: Any, where: Where) -> int:
    if isinstance(value, bool) or not (text := str(value)).isdecimal() or len(text) > 18:
        raise _WrongError(where, f"expected a whole number from 0 on, not {value!r}")
    return int(value)


def _factor(value: Any, where: Where) -> int:
    # Argo accepts only whole numbers; with any other the node fails at its first failure.
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value < 1
        or not float(value).is_integer()
    ):
        raise _WrongError(where, f"expected a whole number from 1 on, not {value!r}")
    return int(value)


def _seconds(value: Any, where: Where) -> int:
    match = _DURATION.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise _WrongError(where, f"expected a duration such as 90, 90s, 15m, 6h or 2d, not {value!r}")
    return min(int(match[1][:18]) * _SECONDS[match[2]], _LONGEST)


def _duration(value: Any, where: Where) -> str:
    return f"{_seconds(value, where)}s"


def _flag(value: Any, where: Where) -> bool:
    if not isinstance(value, bool):
        raise _WrongError(where, f"expected true or false, not {value!r}")
    return value


def _mount(value: Any, where: Where) -> str:
    text = _text(value, where)
    if not text.startswith("/") or ".." in text.split("/"):
        raise _WrongError(where, f"expected an absolute path, not {value!r}")
    return text


def _items(read: Callable[[Any, Where], Any]) -> Callable[[Any, Where], tuple[Any, ...]]:
    def each(value: Any, where: Where) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise _WrongError(where, f"expected a list, not {value!r}")
        return tuple(read(item, (*where, i)) for i, item in enumerate(value))

    return each


def _pairs(
    key: Callable[[Any, Where], str], read: Callable[[Any, Where], str]
) -> Callable[[Any, Where], dict[str, str]]:
    def each(value: Any, where: Where) -> dict[str, str]:
        found = _mapping(value, where)
        return {key(name, (*where, name)): read(item, (*where, name)) for name, item in found.items()}

    return each


def _record(
    make: Callable[..., Any], readers: Mapping[str, Callable[[Any, Where], Any]], *required: str
) -> Callable[[Any, Where], Any]:
    def read(value: Any, where: Where) -> Any:
        found = _mapping(value, where, readers)
        for name in required:
            if name not in found:
                raise _WrongError(where, f"'{name}' is missing")
        return make(**{name: readers[name](item, (*where, name)) for name, item in found.items()})

    return read


def _range(value: Any, where: Where) -> Range:
    if isinstance(value, Mapping):
        found: Range = _record(Range, {"request": _quantity, "limit": _quantity})(value, where)
        return found
    # A single number sets both the request and the limit.
    return Range(_quantity(value, where), _quantity(value, where))


def _gpu(value: Any, where: Where) -> Gpu:
    if isinstance(value, Mapping):
        found: Gpu = _record(Gpu, {"count": _whole, "type": _label_key}, "count")(value, where)
        return found
    return Gpu(_whole(value, where))


def _retry(value: Any, where: Where) -> Retry:
    if isinstance(value, Mapping):
        readers = {"count": _whole, "backoff": _duration, "factor": _factor, "max": _duration}
        found: Retry = _record(Retry, readers, "count")(value, where)
        return found
    return Retry(_whole(value, where))


def _toleration(value: Any, where: Where) -> Toleration:
    readers = {
        "key": _label_key,
        "operator": _one_of(*_OPERATORS),
        "value": _label,
        "effect": _one_of(*_EFFECTS),
        "seconds": _whole,
    }
    found: Toleration = _record(Toleration, readers)(value, where)
    if found.key is None and found.operator != "Exists":
        raise _WrongError(where, "'key' is missing; only with `operator: Exists` may it be left out")
    return found


def _variable(value: Any, where: Where) -> str:
    text = _matching(_VARIABLE, "the name of an environment variable")(value, where)
    if text.startswith("DVKF_"):
        raise _WrongError(where, "variables that begin with DVKF_ are ours")
    return text


def _value(value: Any, where: Where) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        raise _WrongError(where, f"expected a text or a number, not {value!r}")
    return str(value)


def _reference(value: Any, where: Where) -> Reference:
    readers = {
        "name": _name,
        "env": _pairs(_text, _variable),
        "mount": _mount,
        "optional": _flag,
    }
    found: Reference = _record(Reference, readers, "name")(value, where)
    if not found.env and not found.mount:
        raise _WrongError(where, "expected `env: {its key: VARIABLE}`, or `mount: /path`")
    return found


_READERS: dict[str, Callable[[Any, Where], Any]] = {
    "image": _text,
    "packages": _items(_text),
    "cpu": _range,
    "memory": _range,
    "gpu": _gpu,
    "shared_memory": _quantity,
    "timeout": _seconds,
    "retries": _retry,
    "node_selector": _pairs(_label_key, _label),
    "tolerations": _items(_toleration),
    "env": _pairs(_variable, _value),
    "secrets": _items(_reference),
    "config_maps": _items(_reference),
    "volumes": _items(
        _record(Volume, {"claim": _name, "mount": _mount, "sub_path": _text}, "claim", "mount")
    ),
    "image_pull_secrets": _items(_name),
    "image_pull_policy": _one_of(*_PULL),
    "service_account": _name,
    "labels": _pairs(_label_key, _label),
    "annotations": _pairs(_label_key, _value),
    "models": _items(_text),
}
