"""The webhooks of KServe and of Kubeflow Trainer, as far as clients meet them.

Sources: serving.md B2 to B6, C7, C8, E3, J2, J3 (KServe pkg/apis/serving/v1beta1/inference_service_defaults.go and
inference_service_validation.go), I1 to I6, J13 (Trainer pkg/webhooks and pkg/runtime/framework/plugins).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from .store import Refused, Store

_MODE = "serving.kserve.io/deploymentMode"
_OLD_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
_FORMATS = (
    "sklearn",
    "xgboost",
    "lightgbm",
    "pytorch",
    "tensorflow",
    "onnx",
    "triton",
    "pmml",
    "paddle",
    "huggingface",
)
_RESERVED = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}


@dataclass
class Webhook:
    """A webhook of a resource: ``default`` changes an object, ``check`` returns why it is refused, or ""."""

    name: str
    check: Callable[[Store, dict, dict | None], str]
    default: Callable[[dict], None] = lambda obj: None
    defaulter: str = ""
    down: bool = False

    def mutate(self, obj: dict) -> None:
        if self.down:
            raise self._unreachable(self.defaulter or self.name)
        self.default(obj)

    def validate(self, store: Store, obj: dict, old: dict | None) -> None:
        if self.down:
            raise self._unreachable(self.name)
        if said := self.check(store, obj, old):
            # controller-runtime pkg/webhook/admission/response.go; apiserver pkg/admission/plugin/webhook/errors.
            raise Refused(403, "Forbidden", f'admission webhook "{self.name}" denied the request: {said}')

    @staticmethod
    def _unreachable(name: str) -> Refused:
        said = f'Internal error occurred: failed calling webhook "{name}": connect: connection refused'
        return Refused(500, "InternalError", said)


# -- KServe ------------------------------------------------------------------------------------------------------------


def inference_services(version: str = "0.20", default_mode: str = "Knative") -> Webhook:
    """Return the webhook of InferenceService.

    Args:
        version: Version of KServe.
        default_mode: The installation's default, by the names of 0.16 and later.
    """
    minor = int(version.partition(".")[2])

    def default(obj: dict) -> None:
        annotations = obj["metadata"].setdefault("annotations", {})
        mode = annotations.get(_MODE)
        if minor >= 16 and mode in _OLD_MODES:
            annotations[_MODE] = _OLD_MODES[mode]  # B1
        if default_mode == "Standard" and mode is None:
            annotations[_MODE] = "Standard" if minor >= 16 else "RawDeployment"  # B2
        predictor = obj["spec"].get("predictor", {})
        for name in _FORMATS:
            if name in predictor:  # A1: the old style becomes a model
                old = predictor.pop(name)
                predictor["model"] = {"modelFormat": {"name": name}, **(old or {})}
        model = predictor.get("model")
        if model is not None:
            model.setdefault("name", "")  # B6
            model.setdefault("resources", {})
            if model.get("modelFormat", {}).get("name") in ("triton", "vLLM"):
                model.setdefault("protocolVersion", "v2")  # A3
            if minor >= 17 and "modelFormat" in model:
                annotations["modelFormat"] = model["modelFormat"].get("name", "")
        if not annotations:
            del obj["metadata"]["annotations"]

    return Webhook(
        "inferenceservice.kserve-webhook-server.validator",
        lambda store, obj, old: _refuse_service(obj, old, minor),
        default,
        "inferenceservice.kserve-webhook-server.defaulter",
    )


def _refuse_service(obj: dict, old: dict | None, minor: int) -> str:
    name = obj["metadata"]["name"]
    invalid = f'the InferenceService "{name}" is invalid'
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):  # B4: no length is checked
        return (
            f"{invalid}: a InferenceService name must consist of lower case alphanumeric characters or '-', and must "
            'start with alphabetical character. (e.g. "my-name" or "abc-123", regex used for validation is '
            "'[a-z]([-a-z0-9]*[a-z0-9])?')"
        )
    mode = obj["metadata"].get("annotations", {}).get(_MODE)
    if old is not None:
        before = (old.get("status") or {}).get("deploymentMode") or (
            "Standard" if minor == 19 and mode == "Knative" else None  # B3: 0.19 compares with the Go default
        )
        if before and mode and before != mode:
            return f"update rejected: deploymentMode cannot be changed from '{before}' to '{mode}'"
    predictor = obj["spec"]["predictor"]
    implementations = [p for p in ("model", "pmml", *_FORMATS) if p in predictor] or predictor.get(
        "containers", []
    )
    if len(implementations) != 1:
        return "exactly one of [custom, sklearn, xgboost, tensorflow, pytorch, ...] must be specified in the predictor"
    if predictor.get("model", {}).get("name"):
        return f"{invalid}: the name of the model must be empty"
    least, most = predictor.get("minReplicas"), predictor.get("maxReplicas")
    if least is not None and least < 0:
        return "MinReplicas cannot be less than 0."
    if least and most and least > most:
        return "MinReplicas cannot be greater than MaxReplicas."
    model = predictor.get("model", {})
    if "storageUri" in model and "storageUris" in predictor:
        return "storageUri and storageUris cannot be specified at the same time"
    if "deploymentStrategy" in predictor and mode not in ("Standard", "RawDeployment"):
        return "customizing deploymentStrategy is only supported for raw deployment mode"
    for container in [model, *predictor.get("containers", [])]:
        for env in container.get("env", ()) if minor >= 18 else ():  # A9
            if env["name"] == "PYTHONPATH":
                shown = container.get("name", "")
                return f'{invalid}: setting PYTHONPATH in container "{shown}" is not allowed for security reasons'
    canaries = obj["spec"].get("canary") or []
    if canaries and mode != "Standard":
        return "canary is only supported in Standard deployment mode"
    names = [c.get("predictor", {}).get("name", "") for c in canaries]
    if "" in names or len(set(names)) < len(names) or predictor.get("name") in names:
        return (
            "canary predictor names must be set, unique and different from predictor.name" if canaries else ""
        )
    total = sum(c.get("trafficPercent", 0) for c in canaries)
    if total > 100:
        return f"sum of canary trafficPercent values ({total}) must be <= 100"
    if old is not None and old["spec"]["predictor"].get("name", "") != predictor.get("name", ""):
        uri = model.get("storageUri", "")
        if old["spec"]["predictor"].get("model", {}).get("storageUri", "") == uri:  # C8
            return "predictor.name change requires a model change (e.g. storageUri)"
    return ""


# -- Trainer -----------------------------------------------------------------------------------------------------------


def train_jobs(version: str) -> Webhook:
    """Return the webhook of TrainJob of Trainer 2.0 to 2.3."""
    return Webhook(
        "validator.trainjob.trainer.kubeflow.org",
        lambda store, obj, old: _refuse_job(store, obj, old, version),
    )


def training_runtimes(kind: str) -> Webhook:
    return Webhook(
        f"validator.{kind.lower()}.trainer.kubeflow.org", lambda store, obj, old: _refuse_runtime(obj)
    )


def runtime_of(store: Store, job: dict) -> dict | None:
    """Return the runtime that a TrainJob names."""
    ref = job["spec"]["runtimeRef"]
    if ref["kind"] == "TrainingRuntime":
        return store.objects.get(
            ("trainer.kubeflow.org", "trainingruntimes", job["metadata"]["namespace"], ref["name"])
        )
    return store.objects.get(("trainer.kubeflow.org", "clustertrainingruntimes", "", ref["name"]))


def patched(job: dict) -> dict[str, list[dict]]:
    """Return the pod specifications of a TrainJob's overrides for each replicated job, by any version's field."""
    spec, found = job["spec"], {}
    for override in spec.get("podSpecOverrides", ()):
        for target in override["targetJobs"]:
            found.setdefault(target["name"], []).append(
                {k: v for k, v in override.items() if k != "targetJobs"}
            )
    for override in spec.get("podTemplateOverrides", ()):
        for target in override["targetJobs"]:
            found.setdefault(target["name"], []).append(override.get("spec", {}))
    for patch in spec.get("runtimePatches", ()):
        template = patch.get("trainingRuntimeSpec", {}).get("template", {}).get("spec", {})
        for replicated in template.get("replicatedJobs", ()):
            pod = replicated.get("template", {}).get("spec", {}).get("template", {}).get("spec", {})
            found.setdefault(replicated["name"], []).append(pod)
    return found


def _refuse_job(store: Store, job: dict, old: dict | None, version: str) -> str:
    ref, field = job["spec"]["runtimeRef"], "runtimePatches"
    if version < "2.2":
        field = "podTemplateOverrides" if version == "2.1" else "podSpecOverrides"
    runtime = runtime_of(store, job)
    if runtime is None:
        plural = "trainingruntimes" if ref["kind"] == "TrainingRuntime" else "clustertrainingruntimes"
        known = "trainingRuntime" if ref["kind"] == "TrainingRuntime" else "clusterTrainingRuntime"
        return (
            f"spec.runtimeRef: Invalid value: {json.dumps(ref)}: {plural}.trainer.kubeflow.org "
            f'"{ref["name"]}" not found: specified {known} must be created before the TrainJob is created'
        )
    jobs = {
        replicated["name"]: {
            c["name"] for c in replicated["template"]["spec"]["template"]["spec"]["containers"]
        }
        for replicated in runtime["spec"]["template"]["spec"]["replicatedJobs"]
    }
    trainer = job["spec"].get("trainer", {})
    reserved = sorted({env["name"] for env in trainer.get("env", ())} & _RESERVED)
    if reserved and "torch" in runtime["spec"].get("mlPolicy", {}):
        shown = json.dumps(trainer["env"])
        return (
            f"spec.trainer.env: Invalid value: {shown}: must not have reserved envs, invalid envs configured: "
            f"[{' '.join(reserved)}]"
        )
    if "initializer" in job["spec"] and "dataset-initializer" not in jobs:  # I10
        return (
            f"spec.runtimeRef: Invalid value: {json.dumps(ref)}: must have dataset-initializer job when trainJob is "
            "configured with input datasetConfig"
        )
    for name, pods in patched(job).items():
        if name not in jobs:
            kind = "replicated job" if field == "runtimePatches" else "targetJob"
            return f"spec.{field}: Invalid value: must not have {kind} that doesn't exist in the runtime job template"
        for pod in pods:
            for container in pod.get("containers", ()):
                if container["name"] not in jobs[name]:
                    return (
                        f"spec.{field}: Invalid value: must not have container that doesn't exist in the runtime job "
                        f"{name}"
                    )
                if container.get("env") and container["name"] == "node":  # I3
                    return (
                        f"spec.{field}: Invalid value: must not have envs for the dataset-initializer, "
                        "model-initializer, node containers"
                    )
    for patch in job["spec"].get("runtimePatches", ()):
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/.+", patch["manager"]):
            return f'spec.runtimePatches.manager: Invalid value: "{patch["manager"]}": must be a domain-prefixed path'
    changed = old is not None and old["spec"].get(field) != job["spec"].get(field)
    if changed and not (old["spec"].get("suspend") or job["spec"].get("suspend")):
        named = field[0].upper() + field[1:]
        return f"spec.{field}: Forbidden: {named} can only be modified when the TrainJob is suspended"
    return ""


def _refuse_runtime(runtime: dict) -> str:
    """pkg/webhooks/trainingruntime_webhook.go, ``validateReplicatedJobs``."""
    expected = {
        "trainer": "node",
        "dataset-initializer": "dataset-initializer",
        "model-initializer": "model-initializer",
    }
    for index, job in enumerate(runtime["spec"]["template"]["spec"]["replicatedJobs"]):
        ancestor = (
            job["template"]
            .get("metadata", {})
            .get("labels", {})
            .get("trainer.kubeflow.org/trainjob-ancestor-step")
        )
        if ancestor not in expected:
            continue
        at = f"spec.template.spec.replicatedJobs[{index}]"
        if job.get("replicas", 1) != 1:
            return f"{at}.replicas: Invalid value: {job['replicas']}: always must be 1"
        containers = job["template"]["spec"]["template"]["spec"].get("containers", ())
        if expected[ancestor] not in {c["name"] for c in containers}:
            return (
                f"{at}.template.spec.template.spec.containers: Invalid value: must have container with name - "
                f"{expected[ancestor]} in the {job['name']} job"
            )
    return ""
