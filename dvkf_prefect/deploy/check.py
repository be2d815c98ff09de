"""Checks of a Prefect server against the prefect.yaml of a folder: blocks, pools, workers, deployments, flows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from httpx import HTTPStatusError
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import get_current_settings
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from dvkf_prefect.blocks import DvcRepository, KubeflowPipelines, ModelServer, find_block
from dvkf_prefect.data.upkeep.doctor import Check, check_remote
from dvkf_prefect.errors import ConfigError, DvkfError, explained, reason

FILE = "prefect.yaml"
# Parameters of the flows that name a block.
_BLOCKS: Mapping[str, type[Block]] = {
    "repository": DvcRepository,
    "pipelines": KubeflowPipelines,
    "server": ModelServer,
}


def check_deployments(root: Path) -> Iterator[Check]:
    """Yield the checks of the deployments that prefect.yaml describes; nothing on the server is changed.

    Args:
        root: Folder with the prefect.yaml. The flows of its entrypoints are imported.

    Example:
        ``for check in check_deployments(Path(".")): print(check)``
    """
    try:
        deployments = _deployments(root / FILE)
    except (OSError, YAMLError, ValueError) as error:
        absent = isinstance(error, FileNotFoundError)
        found = f"not in {root}" if absent else _reason(error)
        yield Check(FILE, "fail", found, "`dvkf prefect init` writes it" if absent else "correct the file")
        return
    yield Check(FILE, "ok", f"{len(deployments)} deployments")
    flows = {}
    for entrypoint in _different(each["entrypoint"] for each in deployments):
        flows[entrypoint], check = _flow(root, entrypoint)
        yield check
    api = get_current_settings().api.url
    if not api:
        step = "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`, and `prefect server start` in a shell"
        yield Check("server", "fail", "no address is set, so workers refuse to run", step)
        return
    with get_client(sync_client=True) as client:
        failure = client.api_healthcheck()
        if failure is not None:
            why = str(failure).splitlines()[0] or type(failure).__name__
            yield Check("server", "fail", f"{api}: {why}", "start it, or correct PREFECT_API_URL")
            return
        try:
            version = client.api_version()
        except HTTPStatusError as error:  # the health check needs no rights
            refused = f"{api}: {error.response.status_code} {error.response.reason_phrase}".rstrip()
            yield Check("server", "fail", refused, "correct PREFECT_API_KEY or PREFECT_API_AUTH_STRING")
            return
        yield Check("server", "ok", f"{api}, version {version}")
        named = (
            (name, each["parameters"].get(name), bool(each["image"]))
            for each in deployments
            for name in _BLOCKS
        )
        # Other values than names are of the deployment itself: fields of a block, or a template.
        for name, block, in_image in _different(each for each in named if _is_name(each[1])):
            yield from _block(name, block, in_image=in_image)
        for pool in _different(each["pool"] for each in deployments):
            in_image = any(each["image"] for each in deployments if each["pool"] == pool)
            yield from _pool(client, pool, in_image=in_image)
        yield from (_deployment(client, flows[each["entrypoint"]], each) for each in deployments)


def _reason(error: Exception) -> str:
    """Return the cause of an error in one line, with the line of the file if it is known."""
    if isinstance(error, MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return reason(error).splitlines()[0]


def _deployments(path: Path) -> list[dict[str, Any]]:
    """Return name, entrypoint, parameters, pool, image and schedules of each deployment.

    Raises:
        ValueError: The file is not a prefect.yaml with complete deployments.
    """
    document = YAML(typ="safe").load(path.read_text())
    listed = document.get("deployments") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ValueError("no deployments are listed")
    found: list[dict[str, Any]] = []
    for each in listed:
        missing = [key for key in ("name", "entrypoint") if not each.get(key)]
        work_pool = each.get("work_pool") or {}
        pool = work_pool.get("name")
        if missing or not pool:
            missing += [] if pool else ["work_pool: name"]
            raise ValueError(f"deployment {each.get('name') or len(found) + 1} lacks {', '.join(missing)}")
        found.append(
            {
                "name": each["name"],
                "entrypoint": each["entrypoint"],
                "parameters": each.get("parameters") or {},
                "pool": pool,
                "image": (work_pool.get("job_variables") or {}).get("image"),
                "schedules": each.get("schedules") or ([each["schedule"]] if each.get("schedule") else []),
            }
        )
    return found


def _different(values: Iterable[Any]) -> list[Any]:
    """Return the values in order, each once."""
    return list(dict.fromkeys(values))


def _flow(root: Path, entrypoint: str) -> tuple[str, Check]:
    """Import a flow as a worker does, and return its name; without it, the name of the function."""
    path, _, name = entrypoint.rpartition(":")
    place = f"{root / path}:{name}" if path.endswith(".py") else entrypoint
    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(place, use_placeholder_flow=False)
    except Exception as error:  # noqa: BLE001 (the user's own code is imported)
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
        step = "correct the file, or install what it imports"
        return name.replace("_", "-"), Check(f"flow {entrypoint}", "fail", why, step)
    return flow.name, Check(f"flow {entrypoint}", "ok", f"flow '{flow.name}'")


def _is_name(value: Any) -> bool:
    """Return True for the name of a block."""
    return isinstance(value, str) and value != "" and "{{" not in value


def _block(parameter: str, name: str, *, in_image: bool) -> Iterator[Check]:
    """Load a block. A repository in a folder is opened, and its remote asked; a clone is left to the workers."""
    kind = _BLOCKS[parameter]
    title = f"block {kind.get_block_type_slug()}/{name}"
    try:
        block = find_block(kind, name, parameter)
    except ConfigError:
        yield Check(title, "fail", "not saved on the server", "`python blocks.py`")
        return
    except ValueError as error:
        step = "correct the block in the UI, or save it again"
        yield Check(title, "fail", str(error).splitlines()[0], step)
        return
    if isinstance(block, DvcRepository) and not block.is_cloned:
        yield from _folder(title, block, in_image=in_image)
    elif isinstance(block, DvcRepository):
        yield Check(title, "ok", f"{block.path}, cloned by each worker")
    elif isinstance(block, KubeflowPipelines):
        yield Check(title, "ok", f"stages run by {block.backend}")
    else:
        yield Check(title, "ok", "saved")


def _folder(title: str, block: DvcRepository, *, in_image: bool) -> Iterator[Check]:
    """Yield the checks of a repository in a folder, and of its remote with the credentials of the block."""
    if in_image:
        found = f"{block.path} is a folder, which containers do not have"
        yield Check(title, "fail", found, "give the block the git URL of the repository")
        return
    try:
        repo = block.open()
    except (DvkfError, OSError) as error:
        yield Check(
            title, "fail", explained(error), "correct its path; the workers' machine needs that folder"
        )
        return
    yield Check(title, "ok", str(repo.root))
    remote = check_remote(repo)
    yield Check(f"{remote.name} of {title}", remote.state, remote.found, remote.next_step)


def _pool(client: SyncPrefectClient, name: str, *, in_image: bool) -> Iterator[Check]:
    """Yield the checks of a work pool and of its workers. Deployments with an image need a pool of containers."""
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        kinds = ("docker", "kubernetes") if in_image else ("process",)
        step = " or ".join(f"`prefect work-pool create {name} --type {kind}`" for kind in kinds)
        yield Check(f"work pool {name}", "fail", "not on the server", step)
        return
    if pool.is_paused:
        step = f"`prefect work-pool resume {name}`"
        yield Check(f"work pool {name}", "fail", f"type {pool.type}, paused", step)
    else:
        yield Check(f"work pool {name}", "ok", f"type {pool.type}")
    workers = client.read_workers_for_work_pool(name)
    online = sorted(each.name for each in workers if each.status == WorkerStatus.ONLINE)
    if online:
        yield Check(f"workers of {name}", "ok", ", ".join(online))
    else:
        found = f"none is online{f' of {len(workers)}' if workers else ''}, so runs wait"
        yield Check(f"workers of {name}", "fail", found, f"`prefect worker start --pool {name}`")


def _deployment(client: SyncPrefectClient, flow: str, described: Mapping[str, Any]) -> Check:
    """Compare a deployment on the server with its description."""
    step = f"`prefect deploy --name {described['name']}`"
    title = f"deployment {flow}/{described['name']}"
    try:
        there = client.read_deployment_by_name(f"{flow}/{described['name']}")
    except ObjectNotFound:
        return Check(title, "fail", "not deployed", step)
    wanted = {"entrypoint": described["entrypoint"], "parameters": described["parameters"]}
    other = [key for key, value in wanted.items() if getattr(there, key) != value]
    if there.work_pool_name != described["pool"]:
        other.append("work_pool")
    if other:
        return Check(title, "warn", f"differs from {FILE} in {', '.join(other)}", step)
    if there.paused:
        return Check(title, "warn", "paused, so its schedules start no runs", "resume it in the UI")
    active = [each for each in there.schedules if each.active]
    if described["schedules"] and not active:
        return Check(title, "warn", f"its schedules of {FILE} are not active", step)
    times = "; ".join(_shown(each.schedule) for each in active) or "no schedule"
    return Check(title, "ok", times)


def _shown(schedule: Any) -> str:
    """Return a schedule for readers."""
    if cron := getattr(schedule, "cron", None):
        return f"cron {cron} {schedule.timezone or 'UTC'}"
    if isinstance(interval := getattr(schedule, "interval", None), timedelta):
        return f"every {interval}"
    return str(getattr(schedule, "rrule", schedule))
