"""Checks of a namespace that is to serve models by KServe, each with what to do; nothing is started or changed.

Sources: SelfSubjectAccessReview of ``authorization.k8s.io/v1``; kserve 0.20 ``config/runtimes`` and
``pkg/credentials/service_account_credentials.go:211``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dvkf_prefect.data.upkeep.doctor import Check
from dvkf_prefect.errors import ConfigError, ServingError
from dvkf_prefect.kube.objects import KubeError, KubeObjects
from dvkf_prefect.models.layouts import FORMATS
from dvkf_prefect.serving.kserve.access import s3_secret
from dvkf_prefect.serving.kserve.installed import Installed, probe
from dvkf_prefect.serving.kserve.spec import ServiceSettings

_KSERVE = "serving.kserve.io"
# Verb, API group and resource of each right that a deployment needs, see `dvkf_prefect.serving.kserve.services`.
_RIGHTS = (
    *((verb, _KSERVE, "inferenceservices") for verb in ("get", "list", "create", "patch", "delete")),
    *((verb, "", resource) for resource in ("pods", "events") for verb in ("get", "list")),
    ("get", "", "pods/log"),
    ("get", "apps", "deployments"),
)
_OF_KNATIVE = (("get", "serving.knative.dev", "revisions"),)
_OF_ROUTES = (("get", "gateway.networking.k8s.io", "httproutes"),)
_OF_ACCOUNTS = tuple(
    (verb, "", resource) for resource in ("secrets", "serviceaccounts") for verb in ("create", "patch")
)
_KEY = "AWS_ACCESS_KEY_ID"


def check_kserve(
    kube: KubeObjects,
    namespace: str,
    *,
    account: str = "",
    remote: Mapping[str, Any] | None = None,
) -> Iterator[Check]:
    """Yield the checks of a namespace.

    Args:
        kube: Kubernetes.
        namespace: Namespace of the services.
        account: Service account of the pods; empty for one that a deployment makes.
        remote: Options of an S3 remote by DVC's names, of which that account is made; None without one.

    Example:
        ``for check in check_kserve(KubeObjects(), "team-a"): print(check)``
    """
    try:
        installed = probe(kube)
    except ServingError as error:
        found, _, step = str(error).partition(". ")
        yield Check(
            "KServe", "fail", found, step[:1].lower() + step[1:].rstrip(".") or "correct the kubeconfig"
        )
        return
    yield Check("KServe", "ok", f"{installed}{_image(kube)}")
    yield _namespace(kube, namespace)
    yield _runtimes(kube, namespace)
    mode = installed.default_mode
    rights = (
        *_RIGHTS,
        *(_OF_KNATIVE if mode == "Knative" else ()),
        *(_OF_ROUTES if installed.routes else ()),
    )
    yield _rights(kube, namespace, rights)
    yield _canaries(kube, installed)
    yield from _access(kube, namespace, account, remote)


def _image(kube: KubeObjects) -> str:
    """Return the tag of the controller's image; empty if this login may not read it."""
    try:
        found = kube.get("/apis/apps/v1/namespaces/kserve/deployments/kserve-controller-manager")
        containers = found["spec"]["template"]["spec"]["containers"]
    except (KubeError, KeyError):
        return ""
    tags = [str(each.get("image", "")).rpartition("/")[2].partition(":")[2] for each in containers]
    return f", controller {tags[0]}" if tags and tags[0] else ""


def _namespace(kube: KubeObjects, namespace: str) -> Check:
    try:
        kube.get(f"/api/v1/namespaces/{namespace}")
    except KubeError as error:
        if error.status == 404:
            return Check(
                "namespace", "fail", f"'{namespace}' does not exist", "name another with --namespace"
            )
        return Check(
            "namespace", "warn", f"'{namespace}' cannot be read ({error.said})", "ask an admin if it exists"
        )
    return Check("namespace", "ok", f"'{namespace}' exists")


def _runtimes(kube: KubeObjects, namespace: str) -> Check:
    """Return the check of the runtimes that formats use unless another is named."""
    ready: set[str] = set()
    off: set[str] = set()
    try:
        for path in ("clusterservingruntimes", f"namespaces/{namespace}/servingruntimes"):
            for each in kube.get(f"/apis/{_KSERVE}/v1alpha1/{path}").get("items") or ():
                (off if each.get("spec", {}).get("disabled") else ready).add(each["metadata"]["name"])
    except KubeError as error:
        step = "ask for `list` of servingruntimes and clusterservingruntimes, or name the runtimes that exist"
        return Check("runtimes", "warn", f"cannot be listed ({error.said})", step)
    wanted = {
        name: ServiceSettings(name).used_runtime for name in FORMATS if ServiceSettings(name).used_runtime
    }
    lost = {name: runtime for name, runtime in wanted.items() if runtime not in ready}
    shown = ", ".join(
        f"{name} ({runtime}{', which is disabled' if runtime in off else ''})"
        for name, runtime in lost.items()
    )
    if not lost:
        return Check("runtimes", "ok", f"those of all {len(wanted)} formats are installed")
    state: Any = "fail" if len(lost) == len(wanted) else "warn"
    step = "install the cluster runtimes of KServe, or name others with --runtime"
    return Check("runtimes", state, f"absent for {shown}", step)


def _lacks(kube: KubeObjects, namespace: str, rights: tuple[tuple[str, str, str], ...]) -> list[str]:
    lost = []
    for verb, group, resource in rights:
        name, _, part = resource.partition("/")
        asked = {"namespace": namespace, "verb": verb, "group": group, "resource": name, "subresource": part}
        review = kube.create(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            },
        )
        if not (review.get("status") or {}).get("allowed"):
            lost.append(f"{verb} {resource}")
    return lost


def _rights(kube: KubeObjects, namespace: str, rights: tuple[tuple[str, str, str], ...]) -> Check:
    try:
        lost = _lacks(kube, namespace, rights)
    except KubeError as error:
        return Check(
            "rights", "warn", f"cannot be checked ({error.said})", "ask an admin for the role kubeflow-edit"
        )
    if lost:
        step = f"ask the owner of '{namespace}' for the role kubeflow-edit"
        return Check("rights", "fail", f"this login lacks in '{namespace}': {', '.join(lost)}", step)
    return Check("rights", "ok", f"this login may deploy, watch and remove services of '{namespace}'")


def _canaries(kube: KubeObjects, installed: Installed) -> Check:
    mode = installed.default_mode or "Standard"
    if mode == "Knative":
        try:
            groups = [group.get("name") for group in kube.get("/apis").get("groups", ())]
        except KubeError as error:
            return Check(
                "canaries", "warn", f"cannot be checked ({error.said})", "ask an admin for Knative Serving"
            )
        if "serving.knative.dev" not in groups:
            step = "install Knative Serving, or deploy with --mode Standard"
            return Check(
                "canaries", "fail", "the default mode is Knative, and Knative is not installed", step
            )
        return Check("canaries", "ok", "Knative splits the traffic")
    if not installed.canaries:
        return Check(
            "canaries",
            "warn",
            f"mode Standard of KServe before 0.20 has none{_or_graph(kube)}",
            "upgrade KServe to 0.21, or deploy with --mode Knative",
        )
    if not installed.routes:
        said = f"mode Standard without the Gateway API gives them no traffic{_or_graph(kube)}"
        return Check("canaries", "warn", said, "install the Gateway API, or start canaries with 0 %")
    return Check("canaries", "ok", "mode Standard splits the traffic by the Gateway API, since 0.21")


def _or_graph(kube: KubeObjects) -> str:
    """Return the way by a graph; empty if the cluster has none."""
    try:
        kinds = kube.get(f"/apis/{_KSERVE}/v1alpha1").get("resources", ())
    except KubeError:
        return ""
    found = any(kind.get("name") == "inferencegraphs" for kind in kinds)
    return ", except with --split graph" if found else ""


def _access(
    kube: KubeObjects, namespace: str, account: str, remote: Mapping[str, Any] | None
) -> Iterator[Check]:
    title, core = "service account", f"/api/v1/namespaces/{namespace}"
    if not account:
        if remote is None:
            step = "name one with access to the models: --service-account"
            yield Check(
                title, "warn", "none is named, and the repository has no S3 remote to make one of", step
            )
            return
        try:
            s3_secret("dvkf", namespace, remote)
            lost = _lacks(kube, namespace, _OF_ACCOUNTS)
        except ConfigError as error:
            found, _, step = str(error).partition(". ")
            yield Check(title, "fail", found, step[:1].lower() + step[1:].rstrip("."))
            return
        except KubeError as error:
            yield Check(title, "warn", f"cannot be checked ({error.said})", "name one with --service-account")
            return
        if lost:
            step = "name an account with access to the models (--service-account), or ask for these rights"
            yield Check(title, "fail", f"none is named, and this login lacks: {', '.join(lost)}", step)
        else:
            yield Check(title, "ok", "made at the first deployment, with the keys of the remote")
        return
    try:
        found_account = kube.get(f"{core}/serviceaccounts/{account}")
    except KubeError as error:
        if error.status == 404:
            step = f"`kubectl create serviceaccount {account} -n {namespace}`, or name another"
            yield Check(title, "fail", f"'{account}' does not exist in namespace '{namespace}'", step)
        else:
            yield Check(
                title, "warn", f"'{account}' cannot be read ({error.said})", "ask an admin if it exists"
            )
        return
    names = [str(each.get("name")) for each in found_account.get("secrets") or ()]
    if not names:
        annotations = found_account["metadata"].get("annotations") or {}
        role = next((key for key in annotations if key.endswith(("role-arn", "gcp-service-account"))), "")
        if role:
            yield Check(title, "ok", f"'{account}' has a role of the cloud ({role})")
            return
        step = "list the Secret with the keys under its `secrets`: a Secret that is not listed is not read"
        yield Check(title, "fail", f"'{account}' lists no Secret", step)
        return
    yield Check(title, "ok", f"'{account}' lists {', '.join(names)}")
    yield _secrets(kube, core, names)


def _secrets(kube: KubeObjects, core: str, names: list[str]) -> Check:
    absent, keyless = [], []
    for name in names:
        try:
            secret = kube.get(f"{core}/secrets/{name}")
        except KubeError as error:
            if error.status != 404:
                return Check(
                    "secret", "warn", f"'{name}' cannot be read ({error.said})", "ask an admin if it exists"
                )
            absent.append(name)
            continue
        if _KEY not in (secret.get("data") or {}):
            keyless.append(name)
    if absent:
        return Check("secret", "fail", f"absent: {', '.join(absent)}", "create it, or no pod is made")
    if len(keyless) == len(names):
        return Check("secret", "warn", f"no {_KEY} in {', '.join(keyless)}", f"add {_KEY} for models on S3")
    return Check("secret", "ok", f"{_KEY} in {', '.join(each for each in names if each not in keyless)}")
