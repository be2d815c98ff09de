"""Checks of distributed trainings: Kubeflow Trainer, and the rights that a stage's pod needs to start nodes."""

from __future__ import annotations

from collections.abc import Mapping

from dvkf_prefect.data.upkeep.doctor import Check
from dvkf_prefect.kube.objects import KubeError
from dvkf_prefect.kubeflow.compile.pod_settings import Placement
from dvkf_prefect.kubeflow.doctor.kubernetes import Cluster
from dvkf_prefect.kubeflow.trainer.manifests import API, GROUP

_TITLE = "distributed training"
_VERBS = ("create", "get", "patch", "delete")
_READS = (("list", "", "pods"), ("list", "", "events"))


def check_training(cluster: Cluster, placements: Mapping[str, Placement], account: str) -> Check | None:
    """Return the check of stages with nodes; None if there are none.

    Args:
        cluster: Connection to Kubernetes.
        placements: Settings of the pods by stage.
        account: Service account of the runs.
    """
    trainings = [p for p in placements.values() if p.trainer is not None]
    if not trainings:
        return None
    try:
        cluster.objects.get(f"/apis/{API}")
    except KubeError as error:
        if error.status == 404:
            step = "install it, version 2.0 or later, or remove `meta: kubeflow: trainer`"
            return Check(_TITLE, "fail", "Kubeflow Trainer is not installed on the cluster", step)
        return Check(_TITLE, "warn", f"Kubeflow Trainer cannot be looked for ({error.said})", "ask an admin")
    kinds = ["trainjobs"]
    if any(p.trainer is not None and not p.trainer.runtime for p in trainings):
        kinds.append("trainingruntimes")
    rights = [(verb, GROUP, kind) for kind in kinds for verb in _VERBS]
    try:
        lost = cluster.lacks([*rights, *_READS], cluster.user(account))
    except Exception as error:  # noqa: BLE001 (whatever the client raises, the rights stay unknown)
        step = f"`kubectl auth can-i create trainjobs.{GROUP} -n {cluster.namespace} --as {cluster.user(account)}`"
        why = getattr(error, "reason", "") or type(error).__name__
        return Check(
            _TITLE, "warn", f"the rights of '{account}' cannot be checked ({why})", f"an admin can: {step}"
        )
    if lost:
        step = "bind it to the role in the documentation, 'Distributed training', or name another service account"
        return Check(_TITLE, "fail", f"'{account}' lacks: {', '.join(lost)}", step)
    return Check(_TITLE, "ok", f"Kubeflow Trainer is installed, and '{account}' may start nodes")
