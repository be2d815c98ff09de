"""Checks of the namespace in Kubernetes: rights of this machine and of the service account, and named objects.

Sources: SelfSubjectAccessReview and SubjectAccessReview of ``authorization.k8s.io/v1``; the Role of KFP's
``pipeline-runner``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dvkf_prefect.data.upkeep.doctor import Check
from dvkf_prefect.kube.client import kube_client
from dvkf_prefect.kube.objects import KubeObjects
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.compile.pod_settings import Placement

# Rights of the person or worker who runs stages: verb, API group, resource.
_OURS = (
    ("list", "", "pods"),
    ("get", "", "pods/log"),
    ("list", "", "events"),
    ("list", "argoproj.io", "workflows"),
)
# Rights that KFP's driver and launcher and Argo's executor use in a stage's pod.
_OF_PODS = (
    ("get", "", "configmaps"),
    ("get", "", "secrets"),
    ("get", "", "pods"),
    ("get", "argoproj.io", "workflows"),
    ("create", "argoproj.io", "workflowtaskresults"),
    ("patch", "argoproj.io", "workflowtaskresults"),
)
# Rights on a multi-user server, which has Kubernetes review each call (resource_manager.go, IsAuthorized).
_KFP = "pipelines.kubeflow.org"
_OF_RUNS = (
    ("list", _KFP, "experiments"),
    ("create", _KFP, "experiments"),
    ("list", _KFP, "runs"),
    ("get", _KFP, "runs"),
    ("create", _KFP, "runs"),
    ("terminate", _KFP, "runs"),
)
_SINGLE_USER, _MULTI_USER = "pipeline-runner", "default-editor"
_READERS = {
    "secret": "read_namespaced_secret",
    "config map": "read_namespaced_config_map",
    "volume claim": "read_namespaced_persistent_volume_claim",
}


class Cluster:
    """Questions to Kubernetes about one namespace.

    Args:
        settings: Settings of the cluster.

    Attributes:
        objects: Kinds that the client library has no classes for.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        from kubernetes import client  # type: ignore[import-untyped]

        self.namespace = settings.namespace
        self._timeout = (settings.connect_timeout, settings.connect_timeout)
        api = kube_client(settings.kube_config, settings.kube_context)
        self.host = str(api.configuration.host)
        self.objects = KubeObjects(api)
        self._core, self._authorization = client.CoreV1Api(api), client.AuthorizationV1Api(api)

    def read(self, call: str, *arguments: str) -> Any:
        """Return an object; raise the client's ``ApiException``."""
        return getattr(self._core, call)(*arguments, _request_timeout=self._timeout)

    def user(self, account: str) -> str:
        """Return the user of a service account of the namespace."""
        return f"system:serviceaccount:{self.namespace}:{account}"

    def lacks(self, rights: Iterable[tuple[str, str, str]], user: str = "") -> list[str]:
        """Return the rights that a user lacks, as ``get secrets``.

        Args:
            rights: Verb, API group and resource of each.
            user: User of a service account; this machine's own login if empty.
        """
        return [
            f"{verb} {resource}"
            for verb, group, resource in rights
            if not self._may(verb, group, resource, user)
        ]

    def _may(self, verb: str, group: str, resource: str, user: str) -> bool:
        resource, _, part = resource.partition("/")
        asked: dict[str, Any] = {
            "resourceAttributes": {
                "namespace": self.namespace,
                "verb": verb,
                "group": group,
                "resource": resource,
                "subresource": part,
            }
        }
        kind, call = "SelfSubjectAccessReview", self._authorization.create_self_subject_access_review
        if user:
            kind, call = "SubjectAccessReview", self._authorization.create_subject_access_review
            asked["user"] = user
            asked["groups"] = [
                "system:serviceaccounts",
                f"system:serviceaccounts:{user.split(':')[2]}",
                "system:authenticated",
            ]
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": asked}
        return bool(call(body, _request_timeout=self._timeout).status.allowed)


def check_kubernetes(
    settings: ClusterSettings, placements: Mapping[str, Placement], *, multi_user: bool | None
) -> Iterator[Check | Cluster]:
    """Yield the checks in Kubernetes, and the connection once it answers.

    Args:
        settings: Settings of the cluster.
        placements: Settings of the pods by stage.
        multi_user: True if Kubeflow Pipelines separates users by namespace; None if unknown.
    """
    try:
        cluster = Cluster(settings)
        lost = cluster.lacks(_OURS)
    except Exception as error:  # noqa: BLE001 (whatever the client raises, Kubernetes cannot be asked)
        step = "give this machine a kubeconfig (kube_config), or set ask_kubernetes to false"
        yield Check("Kubernetes", "warn", f"cannot be queried from this machine ({_why(error)})", step)
        return
    yield cluster
    if lost:
        step = (
            "without them the reason of a pod that does not start is not shown, and a start without an answer takes "
            "three minutes: bind the role `view`"
        )
        yield Check(
            "Kubernetes", "warn", f"{cluster.host} answers; this login lacks: {', '.join(lost)}", step
        )
    else:
        yield Check(
            "Kubernetes", "ok", f"{cluster.host} answers; pods, logs, events and workflows can be read"
        )
    if _exists(cluster, "read_namespace", settings.namespace) is False:
        step = "name another (namespace, DVKF_KUBEFLOW_NAMESPACE)"
        yield Check("namespace", "fail", f"'{settings.namespace}' does not exist in Kubernetes", step)
        return
    if multi_user and (user := settings.login.service_account()):
        yield _runs(cluster, user)
    for account in accounts_of(settings, placements, multi_user=multi_user):
        yield _account(cluster, account)
    yield from _objects(cluster, placements)


def accounts_of(
    settings: ClusterSettings, placements: Mapping[str, Placement], *, multi_user: bool | None
) -> list[str]:
    """Return the service accounts of runs.

    Args:
        settings: Settings of the cluster.
        placements: Settings of the pods by stage.
        multi_user: True if Kubeflow Pipelines separates users by namespace; None if unknown.
    """
    usual = _MULTI_USER if multi_user else _SINGLE_USER
    named = {p.service_account for p in placements.values() if p.service_account}
    return sorted(named or {settings.service_account or usual})


def _runs(cluster: Cluster, user: str) -> Check:
    """Return the check of a login's rights to start and end runs; only Kubernetes is asked, and nothing is started."""
    title, namespace = "rights on runs", cluster.namespace
    try:
        lost = cluster.lacks(_OF_RUNS, user)
    except Exception as error:  # noqa: BLE001 (whatever the client raises, the rights stay unknown)
        step = f"an admin can: `kubectl auth can-i create runs.{_KFP} -n {namespace} --as {user}`"
        return Check(title, "warn", f"those of {user} cannot be checked ({_why(error)})", step)
    if lost:
        step = f"ask the owner of '{namespace}' for the role kubeflow-edit"
        return Check(title, "fail", f"{user} lacks in '{namespace}': {', '.join(lost)}", step)
    return Check(title, "ok", f"{user} may start and terminate runs of '{namespace}'")


def _account(cluster: Cluster, name: str) -> Check:
    title = "service account"
    if _exists(cluster, "read_namespaced_service_account", name, cluster.namespace) is False:
        return Check(
            title,
            "fail",
            f"'{name}' does not exist in namespace '{cluster.namespace}'",
            f"`kubectl create serviceaccount {name} -n {cluster.namespace}` and bind KFP's role to it, or name another",
        )
    try:
        lost = cluster.lacks(_OF_PODS, cluster.user(name))
    except Exception as error:  # noqa: BLE001 (whatever the client raises, the rights stay unknown)
        step = f"`kubectl auth can-i get secrets -n {cluster.namespace} --as {cluster.user(name)}`"
        return Check(
            title,
            "warn",
            f"'{name}': its rights cannot be checked ({_why(error)})",
            f"an admin can: {step}",
        )
    if lost:
        step = f"bind it to the role of `{_SINGLE_USER}`, or to kubeflow-edit in a profile"
        return Check(title, "fail", f"'{name}' lacks: {', '.join(lost)}", step)
    return Check(title, "ok", f"'{name}' has the rights of KFP's pods")


def _objects(cluster: Cluster, placements: Mapping[str, Placement]) -> Iterator[Check]:
    """Yield one check of all objects that stages name."""
    wanted: dict[tuple[str, str], tuple[str, set[str]]] = {}
    for stage, placement in placements.items():
        named = [("secret", r.name, set(r.env)) for r in placement.secrets if not r.optional]
        named += [("secret", name, set()) for name in placement.image_pull_secrets]
        named += [("config map", r.name, set(r.env)) for r in placement.config_maps if not r.optional]
        named += [("volume claim", v.claim, set()) for v in placement.volumes]
        for kind, name, keys in named:
            wanted.setdefault((kind, name), (stage, set()))[1].update(keys)
    if not wanted:
        return
    missing, unknown = [], 0
    for (kind, name), (stage, keys) in sorted(wanted.items()):
        try:
            found = cluster.read(_READERS[kind], name, cluster.namespace)
        except Exception as error:  # noqa: BLE001 (whatever the client raises)
            if getattr(error, "status", None) == 404:
                missing.append(f"{kind} '{name}' of stage '{stage}'")
            else:
                unknown += 1
            continue
        if lost := sorted(keys - set(getattr(found, "data", None) or ())):
            missing.append(f"key {', '.join(lost)} of {kind} '{name}' of stage '{stage}'")
    title = "objects of stages"
    if missing:
        step = f"create them in namespace '{cluster.namespace}', or correct `meta: kubeflow:` or the defaults"
        yield Check(title, "fail", f"missing: {'; '.join(missing)}", step)
    elif unknown:
        yield Check(
            title, "warn", f"{unknown} of {len(wanted)} cannot be checked", "ask an admin if they exist"
        )
    else:
        yield Check(title, "ok", ", ".join(f"{kind} '{name}'" for kind, name in sorted(wanted)))


def secret_values(cluster: Cluster, name: str) -> Mapping[str, str] | str:
    """Return the values of a secret by key, or the reason why they are not known; "" if it does not exist.

    Args:
        cluster: Connection to Kubernetes.
        name: Name of the secret.
    """
    try:
        data: Mapping[str, str] = cluster.read("read_namespaced_secret", name, cluster.namespace).data or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}
    except Exception as error:  # noqa: BLE001 (whatever the client raises)
        return "" if getattr(error, "status", None) == 404 else _why(error)


def _exists(cluster: Cluster, call: str, *arguments: str) -> bool | None:
    """Return True or False, or None if this login may not know."""
    try:
        cluster.read(call, *arguments)
    except Exception as error:  # noqa: BLE001 (whatever the client raises)
        return False if getattr(error, "status", None) == 404 else None
    return True


def _why(error: Exception) -> str:
    """Return the reason of a failure in one line, without values."""
    status = getattr(error, "status", None)
    if status:
        return f"{status} {getattr(error, 'reason', '') or ''}".strip()
    text = " ".join(str(error).split())
    return text[:160] or type(error).__name__
