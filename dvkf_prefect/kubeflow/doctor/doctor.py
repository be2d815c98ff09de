"""All checks of a cluster and of a repository's stages on it, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.remotes.remote import open_remote
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.upkeep.doctor import Check
from dvkf_prefect.errors import ConfigError, DvkfError, RemoteDeniedError, RemoteUnreachableError
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.compile.images import check_images, image_of
from dvkf_prefect.kubeflow.compile.placements import load_placements
from dvkf_prefect.kubeflow.compile.pod_settings import Placement
from dvkf_prefect.kubeflow.compile.versions import check_version
from dvkf_prefect.kubeflow.compile.workspace import check_workspace
from dvkf_prefect.kubeflow.doctor.kubernetes import Cluster, accounts_of, check_kubernetes, secret_values
from dvkf_prefect.kubeflow.doctor.registry import check_registry
from dvkf_prefect.kubeflow.doctor.server import Server, check_server
from dvkf_prefect.kubeflow.doctor.training import check_training
from dvkf_prefect.kubeflow.doctor.writes import check_writes
from dvkf_prefect.kubeflow.exchange.runs import OPTION_VARIABLE
from dvkf_prefect.urls import public_url

_SOME_KEY = "files/md5/00/" + "0" * 30


def check_cluster(
    settings: ClusterSettings, repo: Repository | None = None, *, write: bool = True
) -> Iterator[Check]:
    """Yield the checks of a cluster, and of a repository's stages on it; nothing is started.

    A small object is written to the remote, read back and deleted, see `dvkf_prefect.kubeflow.doctor.writes`.

    Args:
        settings: Settings of the cluster.
        repo: Repository whose stages are to run there.
        write: Try writing to the remote.

    Example:
        ``for check in check_cluster(ClusterSettings("http://localhost:8080")): print(check)``
    """
    server = Server()
    yield from check_server(settings, server)
    stages: list[tuple[Stage, Placement]] = []
    if repo is not None:
        try:
            stages = load_placements(repo, settings.defaults)
        except DvkfError as error:
            yield Check("stages", "fail", str(error), "correct the file")
    placements = {stage.address: placement for stage, placement in stages} or {"": settings.defaults}
    cluster: Cluster | None = None
    if settings.ask_kubernetes:
        for found in check_kubernetes(settings, placements, multi_user=server.multi_user):
            if isinstance(found, Cluster):
                cluster = found
            else:
                yield found
        if cluster is not None:
            accounts = accounts_of(settings, placements, multi_user=server.multi_user)
            yield from (c for a in accounts if (c := check_training(cluster, placements, a)) is not None)
    if stages and repo is not None:
        yield from _features(settings, placements, server)
        if write:
            yield from _writes_from_here(repo)
        check, storage = _remote_of_pods(settings, repo, placements, cluster)
        yield check
        if storage is not None and write:
            whose = f"the owner of secret '{settings.remote.secret}'"
            yield check_writes(storage, "remote writes in pods", public_url(storage.url), whose)
        yield _images(settings, placements)
        images = sorted({image for p in placements.values() if (image := image_of(p, settings.image))})
        yield from check_registry(images, connect_timeout=settings.connect_timeout)


def _features(
    settings: ClusterSettings, placements: Mapping[str, Placement], server: Server
) -> Iterator[Check]:
    """Yield the settings of pods, and of all pods, that the server does not know or ignores."""
    if len(server.version) < 2:
        return
    version = (server.version[0], server.version[1])
    try:
        check_version(placements, version)
        if settings.workspace:
            check_workspace(placements, version)
    except ConfigError as error:
        found, _, step = str(error).partition(". ")
        yield Check("settings of pods", "fail", found, step[:1].lower() + step[1:].rstrip("."))


def _writes_from_here(repo: Repository) -> Iterator[Check]:
    """Yield the check of writing to the remote by this machine, which uploads sources and claims runs there."""
    try:
        remote = repo.remote()
    except DvkfError:
        return  # the check of the remote in pods says why
    yield check_writes(remote.storage, "remote writes", public_url(remote.url), "this machine")


def _remote_of_pods(
    settings: ClusterSettings, repo: Repository, placements: Mapping[str, Placement], cluster: Cluster | None
) -> tuple[Check, Storage | None]:
    """Return the check of the remote as pods reach it, and its storage if their credentials are known here."""
    title = "remote in pods"
    try:
        remote = repo.remote()
        described = settings.remote.describe(repo, remote, placements)
    except DvkfError as error:
        return Check(title, "fail", str(error), "correct remote_secret, remote_url or remote_options"), None
    url = public_url(described.url)
    if described.secret is None:
        accounts = {p.service_account for p in placements.values() if p.service_account}
        account = ", ".join(sorted(accounts)) or settings.service_account
        if "://" not in url:
            return Check(title, "ok", f"{url}, on a volume"), None
        found = (
            f"{url}, with the rights of the service account {account}"
            if account
            else f"{url}, without secrets"
        )
        return Check(title, "ok", found), None
    name = described.secret.name
    options = {
        key: variable.removeprefix(OPTION_VARIABLE).lower() for key, variable in described.secret.env.items()
    }
    if cluster is None:
        step = (
            f"`kubectl get secret {name} -n {settings.namespace}` shows whether it has the keys "
            f"{', '.join(options)}"
        )
        return Check(title, "warn", f"{url} with secret '{name}', which cannot be checked", step), None
    values = secret_values(cluster, name)
    if values == "":
        step = f"`kubectl create secret generic {name} -n {settings.namespace} " + " ".join(
            f"--from-literal={key}=…" for key in options
        )
        return Check(
            title, "fail", f"secret '{name}' does not exist in '{settings.namespace}'", step + "`"
        ), None
    if isinstance(values, str):
        step = (
            f"`kubectl get secret {name} -n {settings.namespace}` shows whether it has the keys "
            f"{', '.join(options)}"
        )
        return Check(
            title, "warn", f"{url} with secret '{name}', which cannot be read ({values})", step
        ), None
    if lost := sorted(options.keys() - values.keys()):
        step = "add them, or name the keys that it has (remote_secret_keys)"
        return Check(title, "fail", f"secret '{name}' has no key {', '.join(lost)}", step), None
    secrets = {option: values[key] for key, option in options.items()}
    try:
        storage = open_remote(remote.name, {**described.options, **secrets, "url": described.url}).storage
        storage.size(_SOME_KEY)
    except RemoteUnreachableError:
        step = "if the name exists only inside the cluster, only a pod can check it"
        return Check(title, "warn", f"{url} cannot be reached from this machine", step), None
    except RemoteDeniedError:
        step = "correct the values of the secret, or the rights of their owner"
        return Check(title, "fail", f"{url} refuses the credentials of secret '{name}'", step), None
    except DvkfError as error:
        return Check(
            title, "fail", f"secret '{name}': {error}", "correct remote_url, remote_options or the secret"
        ), None
    return Check(title, "ok", f"{url} accepts the credentials of secret '{name}'"), storage


def _images(settings: ClusterSettings, placements: Mapping[str, Placement]) -> Check:
    try:
        check_images(placements, settings.image)
    except DvkfError as error:
        found, _, step = str(error).partition(". ")
        return Check("image", "fail", found, step)
    images = sorted({image_of(placement, settings.image) for placement in placements.values()})
    floating = [image for image in images if _floats(image)]
    if floating:
        step = "give it a unique tag: a node may keep an older image of that name"
        return Check("image", "warn", f"{', '.join(floating)} has no fixed tag", step)
    return Check("image", "ok", ", ".join(images))


def _floats(image: str) -> bool:
    """Return True if an image's name does not say which one it is."""
    name = image.rpartition("/")[2]
    return "@" not in name and (":" not in name or name.endswith(":latest"))


def _shown(stages: Sequence[str]) -> str:
    return ", ".join(f"'{stage}'" for stage in stages[:3]) + (", …" if len(stages) > 3 else "")
