"""Objects of Kubeflow Trainer: a TrainJob, and a runtime of the stage's own or overrides of the cluster's.

Jobs of a shipped runtime repeat a failed command up to seven times, because JobSet restarts containers and a Job has a
``backoffLimit`` of 6. A TrainJob cannot change that, so a stage has its own TrainingRuntime by default. The field with
overrides of a shipped runtime has another name in each version. Source: kubeflow/trainer v2.0.0 to v2.3.0, CRDs and
``pkg/runtime/framework/plugins``; ``jobset_webhook.go`` of kubernetes-sigs/jobset.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.trainer.plan import NODE, TrainingPlan

GROUP = "trainer.kubeflow.org"
API = f"{GROUP}/v1alpha1"
OVERRIDES = ("runtimePatches", "podTemplateOverrides", "podSpecOverrides")
"""Field of a TrainJob with overrides, by version: since 2.2, of 2.1, of 2.0."""
MARK = "dvkf-training"
"""Annotation with the training that an object belongs to."""
_ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
_MANAGER = "dvkf-prefect.readthedocs.io/stage"
# Pods of nodes have names of 63 characters, which end with `-node-0-<rank>-xxxxx`.
_SLUG = 30
# Seconds for which the pods of an ended training are kept.
_KEPT = 3600


def job_name(task: str, key: str, attempt: int) -> str:
    """Return the name of a training: the same for each start of one attempt, and at most 45 characters.

    Args:
        task: Name of the task.
        key: Key of the run.
        attempt: Number of failed attempts before.

    Example:
        >>> job_name("train", "0b1c", 0)
        'train-fd13e4041b8e'
    """
    mark = hashlib.sha256(training_mark(task, key, attempt).encode()).hexdigest()[:12]
    return f"{task[:_SLUG].rstrip('-')}-{mark}"


def training_mark(task: str, key: str, attempt: int) -> str:
    """Return the text that identifies a training."""
    return f"{key}/{task}/{attempt}"


def own_runtime(plan: TrainingPlan, name: str, mark: str, owner: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a TrainingRuntime for one training: a failed node ends it, and nothing is repeated.

    Args:
        plan: Plan of the nodes.
        name: Name of the training.
        mark: Text that identifies it.
        owner: Reference to the pod that starts it; None if unknown.
    """
    pod = copy.deepcopy(dict(plan.pod))
    pod["spec"]["restartPolicy"] = "Never"
    job: dict[str, Any] = {"backoffLimit": 0, "template": pod}
    if plan.timeout:
        job["activeDeadlineSeconds"] = plan.timeout
    node = {
        "name": NODE,
        "replicas": 1,
        "template": {"metadata": {"labels": {_ANCESTOR: "trainer"}}, "spec": job},
    }
    return {
        "apiVersion": API,
        "kind": "TrainingRuntime",
        "metadata": _metadata(name, mark, owner),
        "spec": {
            "mlPolicy": {"numNodes": plan.nodes, "torch": {}},
            "template": {"spec": {"replicatedJobs": [node], "ttlSecondsAfterFinished": _KEPT}},
        },
    }


def train_job(
    plan: TrainingPlan,
    name: str,
    mark: str,
    owner: Mapping[str, Any] | None,
    environment: Mapping[str, str],
    *,
    overrides: str = OVERRIDES[0],
) -> dict[str, Any]:
    """Return the TrainJob of a training.

    Args:
        plan: Plan of the nodes.
        name: Name of the training, and of its own runtime.
        mark: Text that identifies it.
        owner: Reference to the pod that starts it; None if unknown.
        environment: Further variables of the nodes.
        overrides: Field with overrides, one of `OVERRIDES`; only for a runtime of the cluster.

    Raises:
        ConfigError: The version of Trainer cannot override a setting of the stage.
    """
    variables = [{"name": key, "value": value} for key, value in environment.items()]
    # Trainer would start a process for each core.
    trainer: dict[str, Any] = {"numNodes": plan.nodes, "numProcPerNode": plan.processes, "env": variables}
    reference = {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": name}
    spec: dict[str, Any] = {"runtimeRef": reference, "trainer": trainer}
    if plan.runtime:
        container = plan.container
        trainer.update(image=container["image"], command=list(container["command"]))
        trainer["env"] = [*container.get("env", ()), *variables]
        if resources := container.get("resources"):
            trainer["resourcesPerNode"] = resources
        reference.update(kind="ClusterTrainingRuntime", name=plan.runtime)
        if plan.timeout and overrides == OVERRIDES[0]:
            spec["activeDeadlineSeconds"] = plan.timeout
        spec.update(_overrides(plan, overrides))
    return {"apiVersion": API, "kind": "TrainJob", "metadata": _metadata(name, mark, owner), "spec": spec}


def _metadata(name: str, mark: str, owner: Mapping[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "annotations": {MARK: mark}}
    if owner is not None:
        found["ownerReferences"] = [dict(owner)]
    return found


def _overrides(plan: TrainingPlan, field: str) -> dict[str, Any]:
    """Return the fields of a TrainJob that change the pods of a runtime."""
    spec = {key: value for key, value in plan.pod["spec"].items() if key != "containers"}
    metadata = dict(plan.pod["metadata"])
    if mounts := plan.container.get("volumeMounts"):
        spec["containers"] = [{"name": NODE, "volumeMounts": mounts}]
    if field == "runtimePatches":
        pod = {"metadata": metadata, **({"spec": spec} if spec else {})}
        job = {"name": NODE, "template": {"spec": {"template": pod}}}
        runtime = {"template": {"spec": {"replicatedJobs": [job]}}}
        return {field: [{"manager": _MANAGER, "trainingRuntimeSpec": runtime}]}
    targets = [{"name": NODE}]
    if field == "podTemplateOverrides":
        return {field: [{"targetJobs": targets, "metadata": metadata, **({"spec": spec} if spec else {})}]}
    for key, setting in (("affinity", "node_affinity"), ("imagePullSecrets", "image_pull_secrets")):
        if key in spec:
            raise ConfigError(
                f"Trainer 2.0 cannot set '{setting}' on the runtime '{plan.runtime}'. Remove it, "
                "leave out `trainer: runtime` for a runtime of the stage's own, or upgrade Trainer."
            )
    return {**metadata, **({field: [{"targetJobs": targets, **spec}]} if spec else {})}
