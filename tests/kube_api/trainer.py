"""Kubeflow Trainer 2.0 to 2.3: its kinds, and its controller as a sequence of states.

The schemas are reduced: written anew with the fields, defaults, bounds and rules that clients meet. Source:
kubeflow/trainer v2.0.0, v2.1.0, v2.2.0 and v2.3.0, manifests/base/crds; kubernetes-sigs/jobset for the part of JobSet.
"""

from __future__ import annotations

import copy
from typing import Any

from .admission import patched, runtime_of, train_jobs, training_runtimes
from .resources import Resource
from .schema import Schema
from .server import KubeApi
from .store import now

GROUP = "trainer.kubeflow.org"
VERSIONS = ("2.0", "2.1", "2.2", "2.3")
_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
_ANY = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_MAP = {"type": "object", "additionalProperties": _TEXT}
_FIXED = [{"rule": "self == oldSelf", "message": "field is immutable"}]
_QUANTITIES = {
    "type": "object",
    "additionalProperties": {"anyOf": [_NUMBER, _TEXT], "x-kubernetes-int-or-string": True},
}
_RESOURCES = {"type": "object", "properties": {"limits": _QUANTITIES, "requests": _QUANTITIES}}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _named(items: dict, **more: Any) -> dict:
    return {
        "type": "array", "items": items, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], **more
    }  # fmt: skip


def _list(items: dict, **more: Any) -> dict:
    return {"type": "array", "items": items, "x-kubernetes-list-type": "atomic", **more}


_ENV = _named(_object(("name",), name=_TEXT, value=_TEXT, valueFrom=_ANY), maxItems=128)
_CONTAINER = _object(
    ("name",), name=_TEXT, image=_TEXT, command=_list(_TEXT), args=_list(_TEXT), env=_ENV, envFrom=_list(_ANY),
    imagePullPolicy=_TEXT, resources=_RESOURCES, volumeMounts=_list(_ANY), ports=_list(_ANY), securityContext=_ANY,
    workingDir=_TEXT, terminationMessagePolicy=_TEXT,
)  # fmt: skip
_POD = _object(
    containers=_named(_CONTAINER), initContainers=_named(_CONTAINER), volumes=_named(_ANY), nodeSelector=_MAP,
    tolerations=_list(_ANY), serviceAccountName=_TEXT, imagePullSecrets=_named(_ANY), restartPolicy=_TEXT,
    affinity=_ANY, securityContext=_ANY, schedulingGates=_named(_ANY), terminationGracePeriodSeconds=_NUMBER,
    automountServiceAccountToken={"type": "boolean"},
)["properties"]  # fmt: skip
_META = _object(labels=_MAP, annotations=_MAP)
# Containers of overrides have no image and no command: only mounts, variables and, since 2.2, the security context.
_OVERRIDDEN = _named(_object(("name",), name=_TEXT, env=_ENV, volumeMounts=_list(_ANY), securityContext=_ANY))


def _replicated(pod: dict) -> dict:
    job = _object(
        backoffLimit=_NUMBER, activeDeadlineSeconds=_NUMBER, ttlSecondsAfterFinished=_NUMBER, parallelism=_NUMBER,
        completions=_NUMBER, completionMode=_TEXT, template=_object(metadata=_META, spec=pod),
    )  # fmt: skip
    return _named(
        _object(("name",), name=_TEXT, replicas={**_NUMBER, "default": 1}, dependsOn=_list(_ANY),
                template=_object(metadata=_META, spec=job)),
        maxItems=100,
    )  # fmt: skip


def _overrides(version: str) -> dict:
    pod = {
        k: v for k, v in _POD.items() if k in ("volumes", "nodeSelector", "tolerations", "serviceAccountName")
    }
    pod |= {"containers": _OVERRIDDEN, "initContainers": _OVERRIDDEN, "schedulingGates": _named(_ANY)}
    targets = _list(_object(("name",), name=_TEXT))
    if version == "2.0":
        return {"podSpecOverrides": _list(_object(("targetJobs",), targetJobs=targets, **pod))}
    pod |= {"imagePullSecrets": _named(_ANY), "affinity": _ANY}
    if version == "2.1":
        return {
            "podTemplateOverrides": _list(
                _object(("targetJobs",), targetJobs=targets, metadata=_META, spec=_object(**pod))
            )
        }
    runtime = _object(
        template=_object(
            metadata=_META, spec=_object(replicatedJobs=_replicated(_object(**pod, securityContext=_ANY)))
        )
    )
    del runtime["properties"]["template"]["properties"]["spec"]["properties"]["replicatedJobs"]["items"][
        "properties"
    ]["replicas"]
    manager = {**_TEXT, "minLength": 1, "maxLength": 253, "x-kubernetes-validations": _FIXED}
    patch = _object(("manager",), manager=manager, time=_TEXT, trainingRuntimeSpec=runtime)
    return {
        "runtimePatches": {
            "type": "array", "items": patch, "maxItems": 16, "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["manager"],
        }
    }  # fmt: skip


def _job_schema(version: str) -> Schema:
    new = version >= "2.2"
    processes = _NUMBER if new else {"anyOf": [_NUMBER, _TEXT], "x-kubernetes-int-or-string": True}
    trainer = _object(
        image=_TEXT, command=_list(_TEXT), args=_list(_TEXT), env=_ENV, numNodes=_NUMBER, numProcPerNode=processes,
        resourcesPerNode=_RESOURCES,
    )  # fmt: skip
    if version >= "2.3":
        trainer["properties"]["numProcPerNode"] = {
            **_NUMBER,
            "x-kubernetes-validations": [
                {"rule": "self >= 1", "message": "numProcPerNode must be greater than or equal to 1"}
            ],
        }
    source = _object(storageUri={**_TEXT, "maxLength": 2048}, env=_ENV, secretRef=_ANY)
    initializer = _object(dataset=source, model=source)
    if new:
        trainer["x-kubernetes-validations"] = initializer["x-kubernetes-validations"] = _FIXED
    reference = _object(
        ("name",),
        name={**_TEXT, "minLength": 1, "maxLength": 253},
        apiGroup={**_TEXT, "default": GROUP},
        kind={**_TEXT, "default": "ClusterTrainingRuntime"},
    )
    reference["x-kubernetes-validations"] = _FIXED
    managed = {
        **_TEXT, "default": "trainer.kubeflow.org/trainjob-controller",
        "x-kubernetes-validations": [
            {
                "rule": "self in ['trainer.kubeflow.org/trainjob-controller', 'kueue.x-k8s.io/multikueue']",
                "message": "ManagedBy must be trainer.kubeflow.org/trainjob-controller or kueue.x-k8s.io/multikueue",
            },
            *_FIXED,
        ],
    }  # fmt: skip
    spec = _object(
        ("runtimeRef",), runtimeRef=reference, trainer=trainer, initializer=initializer,
        suspend={"type": "boolean", "default": False}, managedBy=managed, **_overrides(version),
    )  # fmt: skip
    if new:
        deadline = {**_NUMBER, "minimum": 1, "x-kubernetes-validations": _FIXED}
        spec["properties"]["activeDeadlineSeconds"] = deadline
    else:
        spec["properties"] |= {"labels": _MAP, "annotations": _MAP}
    count = {**_NUMBER, "minimum": 0}
    condition = _object(
        ("type", "status", "reason", "message", "lastTransitionTime"), type=_TEXT, reason={**_TEXT, "minLength": 1},
        status={**_TEXT, "enum": ["True", "False", "Unknown"]}, message=_TEXT, lastTransitionTime=_TEXT,
        observedGeneration=count,
    )  # fmt: skip
    conditions = {**_named(condition), "x-kubernetes-list-map-keys": ["type"]}
    jobs = _named(
        _object(("name", "ready", "succeeded", "failed", "active", "suspended"), name=_TEXT, ready=count,
                succeeded=count, failed=count, active=count, suspended=count)
    )  # fmt: skip
    status = _object(conditions=conditions, jobsStatus=jobs)
    root = _object(apiVersion=_TEXT, kind=_TEXT, metadata={"type": "object"}, spec=spec, status=status)
    if version >= "2.1":
        root["x-kubernetes-validations"] = [
            {
                "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "message": "metadata.name must match RFC 1035 DNS label format",
            },
            {
                "rule": "size(self.metadata.name) <= 63",
                "message": "metadata.name must be no more than 63 characters",
            },
        ]
    return Schema(root)


def _runtime_schema() -> Schema:
    policy = _object(numNodes={**_NUMBER, "default": 1}, torch=_ANY, mpi=_ANY, jax=_ANY)
    jobs = _object(
        replicatedJobs=_replicated(_object(**_POD)), failurePolicy=_ANY, successPolicy=_ANY, network=_ANY,
        ttlSecondsAfterFinished={**_NUMBER, "minimum": 0}, suspend={"type": "boolean"},
    )  # fmt: skip
    spec = _object(
        ("template",), mlPolicy=policy, podGroupPolicy=_ANY, template=_object(metadata=_META, spec=jobs)
    )
    return Schema(_object(apiVersion=_TEXT, kind=_TEXT, metadata={"type": "object"}, spec=spec))


TORCH_DISTRIBUTED = {
    "apiVersion": f"{GROUP}/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {f"{GROUP}/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {f"{GROUP}/trainjob-ancestor-step": "trainer"}},
                            "spec": {
                                "template": {
                                    "spec": {
                                        "containers": [{"name": "node", "image": "pytorch/pytorch:2.13.0"}]
                                    }
                                }
                            },
                        },
                    }
                ]
            }
        },
    },
}


def install_trainer(api: KubeApi, version: str = "2.3") -> None:
    """Install the kinds and webhooks of a version, and its runtime ``torch-distributed``."""
    for resource, webhook in (
        (Resource(GROUP, "v1alpha1", "trainjobs", "TrainJob", schema=_job_schema(version)), train_jobs(version)),
        (
            Resource(GROUP, "v1alpha1", "trainingruntimes", "TrainingRuntime", status=False, schema=_runtime_schema()),
            training_runtimes("TrainingRuntime"),
        ),
        (
            Resource(
                GROUP, "v1alpha1", "clustertrainingruntimes", "ClusterTrainingRuntime", namespaced=False, status=False,
                schema=_runtime_schema(),
            ),
            training_runtimes("ClusterTrainingRuntime"),
        ),
    ):  # fmt: skip
        api.serve(resource, webhook)
    api.put(copy.deepcopy(TORCH_DISTRIBUTED))


class TrainerController:
    """The controllers of Trainer, JobSet and Job for one TrainJob, one step at a time.

    Source: serving.md I2 to I8, J13; torch.go:117-175 for the variables of a node.
    """

    def __init__(self, api: KubeApi, job: dict) -> None:
        self.api = api
        self.name, self.namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        runtime = runtime_of(api.store, job)
        assert runtime is not None
        # 2.3 works on a snapshot of the runtime; before, its edits changed running jobs.
        self.runtime = copy.deepcopy(runtime["spec"])
        self.trainer = job["spec"].get("trainer", {})
        self.nodes = self.trainer.get("numNodes", self.runtime.get("mlPolicy", {}).get("numNodes", 1))
        (self.replicated,) = self.runtime["template"]["spec"]["replicatedJobs"]
        self.job = job
        self.owner = {
            "apiVersion": f"{GROUP}/v1alpha1", "kind": "TrainJob", "name": self.name, "uid": job["metadata"]["uid"],
            "controller": True, "blockOwnerDeletion": True,
        }  # fmt: skip

    @property
    def backoff_limit(self) -> int:
        """Attempts of a failed pod after the first one: Job's default is 6 (I4)."""
        return self.replicated["template"]["spec"].get("backoffLimit", 6)

    def environment(self, rank: int) -> list[dict]:
        """Return the variables of a node: the trainer's, and torchrun's by the runtime's policy (I3)."""
        resources = self.trainer.get("resourcesPerNode", {})
        cores = resources.get("requests", {}).get("cpu") or resources.get("limits", {}).get("cpu") or 1
        processes = self.trainer.get("numProcPerNode", cores)
        container = self._pod()["containers"][0]
        found = {e["name"]: e for e in [*container.get("env", ()), *self.trainer.get("env", ())]}
        if "torch" in self.runtime.get("mlPolicy", {}):
            for name, value in (
                ("PET_NNODES", self.nodes), ("PET_NPROC_PER_NODE", processes), ("PET_NODE_RANK", rank),
                ("PET_MASTER_ADDR", f"{self.name}-node-0-0.{self.name}"), ("PET_MASTER_PORT", 29500),
            ):  # fmt: skip
                found[name] = {"name": name, "value": str(value)}
        found["JOB_COMPLETION_INDEX"] = {"name": "JOB_COMPLETION_INDEX", "value": str(rank)}
        return list(found.values())

    def _pod(self) -> dict:
        pod = copy.deepcopy(self.replicated["template"]["spec"]["template"]["spec"])
        for override in patched(self.job).get(self.replicated["name"], ()):
            for key, value in override.items():
                if key == "containers":
                    pod["containers"][0] |= {k: v for k, v in value[0].items() if k != "name"}
                else:
                    pod[key] = [*pod.get(key, []), *value] if isinstance(value, list) else value
        return pod

    def start(self) -> list[dict]:
        """Make the pods; a name that is too long leaves the status empty and only an event (I5, I6)."""
        longest = f"{self.name}-node-0-{self.nodes - 1}-xxxxx"
        if len(longest) > 63:
            said = 'TrainJob resources reconciliation failed: admission webhook "vjobset.kb.io" denied the request: '
            said += f"{longest} is too long"
            return self.fail_to_create(said)
        pods = []
        for rank in range(self.nodes):
            spec = self._pod()
            spec["containers"][0] |= {
                k: self.trainer[k] for k in ("image", "command", "args") if k in self.trainer
            }
            spec["containers"][0]["env"] = self.environment(rank)
            labels = {
                "jobset.sigs.k8s.io/jobset-name": self.name,
                "jobset.sigs.k8s.io/replicatedjob-name": self.replicated["name"],
                "batch.kubernetes.io/job-completion-index": str(rank),
            }
            metadata = {
                "generateName": f"{self.name}-node-0-{rank}-", "namespace": self.namespace, "labels": labels,
                "ownerReferences": [self.owner],
            }  # fmt: skip
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            pods.append(self.api.put(pod | {"status": {"phase": "Pending"}}))
        self.report(active=1)
        return pods

    def fail_to_create(self, message: str) -> list[dict]:
        self.api.event(self.job, "TrainJobResourcesCreationFailed", message, kind="Warning")
        return []

    def report(self, *conditions: tuple[str, str, str], **counts: int) -> None:
        """Write the status: of the one Job, and conditions as ``(type, reason, message)``."""
        job = {
            "name": self.replicated["name"],
            "ready": 0,
            "succeeded": 0,
            "failed": 0,
            "active": 0,
            "suspended": 0,
        }
        status: dict[str, Any] = {"jobsStatus": [job | counts]}
        if conditions:
            status["conditions"] = [
                {
                    "type": kind,
                    "status": "True",
                    "reason": reason,
                    "message": message,
                    "lastTransitionTime": now(),
                }
                for kind, reason, message in conditions
            ]
        self.api.set_status(GROUP, "trainjobs", self.namespace, self.name, status)

    def complete(self) -> None:
        self.report(("Complete", "AllJobsCompleted", "jobset completed successfully"), succeeded=1)

    def fail(self, message: str = "jobset failed due to one or more job failures") -> None:
        self.report(("Failed", "FailedJobs", message), failed=1)
