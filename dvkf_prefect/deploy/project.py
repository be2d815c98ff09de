"""Files that deploy flows from a repository of the user's own: flows, blocks, prefect.yaml and a Dockerfile.

Source of prefect.yaml: Prefect 3's "Define deployments in prefect.yaml".
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

from ruamel.yaml import YAML

from dvkf_prefect.errors import ConfigError, GitError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.models.catalogue import list_artifacts
from dvkf_prefect.pipeline.plan.sources import sources_of
from dvkf_prefect.repo import Repo
from dvkf_prefect.text import slug
from dvkf_prefect.urls import holds_secret

PoolType = Literal["process", "docker", "kubernetes"]

DOCKERFILE = "Dockerfile.prefect"
IGNORED = f"{DOCKERFILE}.dockerignore"
# Folder of the flows in the image.
_IN_IMAGE = "/opt/flows"
_FLOWS = {
    "ingest": (
        "The flow that checks new files and brings them into a dataset, as prefect.yaml deploys it.",
        "ingestion",
        ("ingest",),
        "ingest()",
    ),
    "watch": (
        "The flow that announces data which others pushed, for a deployment that runs every few minutes.",
        "watching",
        ("watch",),
        "watch()",
    ),
    "repro": (
        "The flow that brings the stages of a dvc.yaml up to date, as prefect.yaml deploys it.",
        "pipelines",
        ("repro",),
        "repro(targets=sys.argv[1:])",
    ),
    "train": (
        "The flow that trains and registers a model, as prefect.yaml deploys it.",
        "pipelines",
        ("train",),
        "train(model=sys.argv[1] if len(sys.argv) > 1 else None)",
    ),
    "promote": (
        "The flow that promotes a registered model and serves it, as prefect.yaml deploys it.",
        "promotion",
        ("promote",),
        "promote(sys.argv[1])",
    ),
    "serve": (
        "The flows that serve a registered model and roll it back, as prefect.yaml deploys it.",
        "serving",
        ("rollback", "serve"),
        "serve(sys.argv[1])",
    ),
}


@dataclass(frozen=True, slots=True)
class Project:
    """Choices for the deployments of a repository.

    Attributes:
        name: Name of the blocks, and of the work pool.
        pool_type: Type of the work pool: ``process`` runs flows on the worker's machine, ``docker`` and ``kubernetes``
            each in a container.
        image: Container image of the flows, for ``docker`` and ``kubernetes``.
        cron: Times of the scheduled deployment, None for no schedule.
        timezone: Time zone of these times.
        on_push: Also start the deployment that ``cron`` would when data that the stages read is pushed, and deploy
            ``watch``, which finds what others push.
        inbox: Folder of new files, for a deployment of ``ingest`` that looks every five minutes; empty for none.
        dataset: Directory of the dataset for these files; needed with ``inbox``.
        table_schema: Schema of these files, see `check_incoming`; needed with ``inbox``.
    """

    name: str
    pool_type: PoolType = "process"
    image: str = ""
    cron: str | None = None
    timezone: str = "UTC"
    on_push: bool = False
    inbox: str = ""
    dataset: str = ""
    table_schema: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ConfigError(
                f"name: '{self.name}' is not a name of a block. Use lower case letters, digits and single dashes."
            )
        if self.pool_type not in get_args(PoolType):
            raise ConfigError(
                f"type: '{self.pool_type}' is not a work pool's. Use {', '.join(get_args(PoolType))}."
            )
        if (self.pool_type == "process") == bool(self.image):
            raise ConfigError(
                "image: a process work pool has no image. Remove --image."
                if self.image
                else f"image: a {self.pool_type} work pool needs one. Give its name with --image."
            )
        if len({bool(self.inbox), bool(self.dataset), bool(self.table_schema)}) > 1:
            raise ConfigError(
                "inbox: it goes with a dataset and a schema. Give --inbox, --dataset and --schema."
            )
        if self.cron is not None:
            check_cron(self.cron, self.timezone)


def check_cron(cron: str, timezone: str) -> None:
    """Refuse times that Prefect would refuse.

    Raises:
        ConfigError: The cron line or the time zone is not valid.
    """
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        reason = (
            str(error)
            .splitlines()[2 if "\n" in str(error) else 0]
            .strip()
            .split(" [type=")[0]
            .removeprefix("Value error, ")
        )
        raise ConfigError(
            f"schedule: '{cron}' in '{timezone}': {reason}. Correct --cron or --timezone."
        ) from None


def project_name(repo: Repo) -> str:
    """Return a name for the blocks of a repository: its folder's, with what blocks allow."""
    return slug(repo.root.name) or "repository"


def project_files(repo: Repo, project: Project, *, version: str) -> dict[str, str]:
    """Return the files that deploy the flows of a repository, as text by path relative to the repository's root.

    ``repro`` is always deployed. Each artifact of type ``model`` in dvc.yaml adds ``train``; in a process pool also
    ``serve``, ``promote`` and ``rollback``, since a server would end with its container.

    Args:
        repo: The repository.
        project: Choices for the deployments.
        version: Version of dvkf-prefect that an image gets.

    Raises:
        ConfigError: Containers need a git URL and a remote that they reach, and the repository has none.

    Example:
        ``project_files(Repo.open(), Project("digits"), version="0.4.0")["prefect.yaml"]``
    """
    local = project.pool_type == "process"
    models = [name for name, found in list_artifacts(repo).items() if found.declared.type == "model"]
    names = ["repro", *(["train"] if models else []), *(["promote", "serve"] if models and local else [])]
    if project.on_push:
        names.append("watch")
    if project.inbox:
        names.append("ingest")
    files = {f"flows/{name}.py": flow_file(name) for name in names}
    files["blocks.py"] = _blocks(repo, project)
    files["prefect.yaml"] = _prefect_yaml(
        project, models, _triggers(repo, project) if project.on_push else []
    )
    if not local:
        files[DOCKERFILE] = _dockerfile(repo, version)
        files[IGNORED] = f"*\n!{DOCKERFILE}\n!flows\n!requirements.txt\n!wheels\n"
    return files


def write_files(root: Path, files: Mapping[str, str], *, force: bool = False) -> list[str]:
    """Write files below a folder, all of them or none; equal ones stay.

    Args:
        root: The folder.
        files: Text by relative path.
        force: Replace files that differ.

    Returns:
        Paths of the written files, sorted.

    Raises:
        ConfigError: Files with other content exist, and ``force`` is not set.
    """
    there = {name: (root / name).read_text() for name in files if (root / name).exists()}
    changed = sorted(name for name, text in files.items() if there.get(name) != text)
    other = [name for name in changed if name in there]
    if other and not force:
        raise ConfigError(
            f"{', '.join(other)}: in {root}: has other content. Move it, or replace it with --force."
        )
    for name in changed:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(root / name, files[name].encode())
    return changed


def next_steps(project: Project, *, address: bool = False) -> tuple[str, ...]:
    """Return the commands that deploy the files, in order.

    Args:
        project: Choices for the deployments.
        address: Begin with the address of a server on this machine, without which workers refuse to run.
    """
    image = {
        "process": (),
        "docker": (f"docker build -f {DOCKERFILE} -t {project.image} .",),
        "kubernetes": (f"docker build -f {DOCKERFILE} -t {project.image} .", f"docker push {project.image}"),
    }[project.pool_type]
    return (
        *(("export PREFECT_API_URL=http://127.0.0.1:4200/api",) if address else ()),
        *image,
        f"prefect work-pool create {project.name} --type {project.pool_type}",
        "python blocks.py",
        "prefect deploy --all",
        f"prefect worker start --pool {project.name}",
    )


def flow_file(name: str) -> str:
    """Return the module that a deployment's entrypoint names.

    Args:
        name: Name of a flow, such as ``repro``, ``train`` or ``watch``.
    """
    title, module, flows, call = _FLOWS[name]
    names = ", ".join(flows)
    needs = "import sys\n\n" if "sys." in call else ""
    exported = ", ".join(f'"{each}"' for each in flows)
    return f'''"""{title}

The code is in dvkf_prefect/flows/{module}.py. To change the flow, copy that code here in place of the import.
"""

{needs}from dvkf_prefect.flows import {names}

__all__ = [{exported}]

if __name__ == "__main__":
    {call}
'''


def _blocks(repo: Repo, project: Project) -> str:
    """Return the program that saves the blocks."""
    blocks = ["DvcRepository", "KubeflowPipelines"]
    path = "str(Path(__file__).parent.resolve())"
    imports = "from pathlib import Path\n\n"
    saved = [f"DvcRepository(path={path})", "KubeflowPipelines()"]
    if project.pool_type == "process":
        blocks.append("ModelServer")
        saved.append("ModelServer()")
    else:
        imports = ""
        fields = ", ".join(f'{name}="{value}"' for name, value in _clone_fields(repo).items())
        saved[0] = f"DvcRepository({fields})"
    lines = "\n".join(f'{each}.save("{project.name}", overwrite=True)' for each in saved)
    return f'''"""Save the blocks that the flows of this repository load, on the Prefect server of PREFECT_API_URL."""

{imports}from dvkf_prefect import {", ".join(blocks)}

{lines}
'''


def _clone_fields(repo: Repo) -> dict[str, str]:
    """Return the fields of a block that clones the repository and reaches its data."""
    git = repo.git
    url = ""
    if git is not None:
        with suppress(GitError):
            url = git.run("config", "--get", "remote.origin.url")
    if ":" not in url or url.startswith("file:"):
        raise ConfigError(
            f"origin: git of {repo.root} has {url or 'none'}, which no container reaches. "
            "Add one with `git remote add origin URL`."
        )
    if holds_secret(url):
        raise ConfigError("origin: its URL holds a password. Give it to git by a credential helper.")
    try:
        remote = repo.remote().url
    except ConfigError:
        remote = ""
    if "://" not in remote or remote.startswith("file:"):
        raise ConfigError(
            f"remote: the default is {remote or 'not set'}, which no container reaches. "
            "Set one with `dvkf remote add -d NAME URL`."
        )
    folder = repo.root.relative_to(git.root).as_posix() if git is not None else "."
    return {"path": url} | ({} if folder == "." else {"folder": folder})


def _triggers(repo: Repo, project: Project) -> list[dict[str, Any]]:
    """Return the trigger that waits for the data that the stages read, as prefect.yaml has it."""
    from dvkf_prefect.blocks import DvcRepository
    from dvkf_prefect.cards import PUSHED, dataset_id

    sources = sources_of(repo)
    if not sources:
        raise ConfigError(
            f"stages: none in {repo.root} reads tracked data. Track it with `dvkf add`, or omit --on-push."
        )
    fields = {"path": str(repo.root)} if project.pool_type == "process" else _clone_fields(repo)
    block = DvcRepository(path=fields["path"], folder=fields.get("folder"))
    match = {"prefect.resource.id": [dataset_id(block.name, output.path) for output in sources]}
    return [{"type": "event", "expect": [PUSHED], "match": match, "threshold": 1, "within": 0}]


def _prefect_yaml(project: Project, models: Sequence[str], triggers: Sequence[Mapping[str, Any]]) -> str:
    """Return prefect.yaml. A pool's name, and where the flows lie, are the same for all deployments."""
    pool: dict[str, Any] = {"name": project.name}
    pull: dict[str, Any] = {"prefect.deployments.steps.set_working_directory": {"directory": _IN_IMAGE}}
    document: dict[str, Any] = {"name": project.name}
    if project.pool_type == "process":
        here = {"id": "here", "script": "pwd", "stream_output": False}
        document["build"] = [{"prefect.deployments.steps.run_shell_script": here}]
        pull = {"prefect.deployments.steps.set_working_directory": {"directory": "{{ here.stdout }}"}}
    else:
        pool["job_variables"] = {"image": project.image}
    document["pull"] = [pull]
    alone = {"limit": 1, "collision_strategy": "ENQUEUE"}
    with_blocks = {"repository": project.name, "pipelines": project.name}

    def deployment(name: str, entrypoint: str, parameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        base = {"name": name, "entrypoint": entrypoint, "tags": ["dvkf"]}
        return {**base, **more, "parameters": dict(parameters), "work_pool": dict(pool)}

    suffixes = _suffixes(models)
    found = [deployment("repro", "flows/repro.py:repro", with_blocks, concurrency_limit=dict(alone))]
    for model in models:
        trained = {**with_blocks, "model": model}
        found.append(
            deployment(
                f"train{suffixes[model]}", "flows/train.py:train", trained, concurrency_limit=dict(alone)
            )
        )
        if project.pool_type == "process":
            served = {"repository": project.name, "server": project.name, "model": model}
            found += [
                deployment(f"{flow}{suffixes[model]}", f"flows/{file}.py:{flow}", served)
                for file, flow in (("serve", "serve"), ("promote", "promote"), ("serve", "rollback"))
            ]
    if project.cron:
        # One deployment runs by the clock: that of the first model, or of all stages.
        found[min(1, len(models))]["schedules"] = [{"cron": project.cron, "timezone": project.timezone}]
    if triggers:
        found[min(1, len(models))]["triggers"] = list(triggers)
        found.append(
            deployment(
                "watch",
                "flows/watch.py:watch",
                {"repository": project.name},
                concurrency_limit=dict(alone),
                schedules=[{"interval": 300}],
            )
        )
    if project.inbox:
        parameters = {
            "repository": project.name,
            "inbox": project.inbox,
            "dataset": project.dataset,
            "table_schema": project.table_schema,
        }
        found.append(
            deployment(
                "ingest",
                "flows/ingest.py:ingest",
                parameters,
                concurrency_limit=dict(alone),
                schedules=[{"interval": 300}],
            )
        )
    document["deployments"] = found
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(document, text)
    return "# The flows as deployments. `dvkf prefect check` says what they lack.\n" + text.getvalue()


def _suffixes(models: Sequence[str]) -> dict[str, str]:
    """Return the end of each model's deployment names, which differ also for ``a.b`` and ``a-b``.

    A name that is its own slug keeps it. Of others with one slug, each has a digest of its name.
    """
    if len(models) == 1:
        return {models[0]: ""}
    slugs = {model: slug(model) for model in models}
    counts = Counter(slugs.values())
    return {
        model: f"-{short}"
        if short and (counts[short] == 1 or short == model)
        else "-".join(["", *([short] if short else []), hashlib.sha256(model.encode()).hexdigest()[:6]])
        for model, short in slugs.items()
    }


def _dockerfile(repo: Repo, version: str) -> str:
    """Return the recipe of the image of the flows."""
    listed = " -r /tmp/install/requirements.txt" if (repo.root / "requirements.txt").is_file() else ""
    return f"""FROM python:3.11-slim
RUN apt-get update \\
    && apt-get install --yes --no-install-recommends git openssh-client \\
    && rm -rf /var/lib/apt/lists/*
# The patterns match optional files: requirements, and wheels that no package index has.
COPY {DOCKERFILE} requirements.tx[t] wheel[s] /tmp/install/
RUN pip install --no-cache-dir --find-links /tmp/install dvkf-prefect=={version}{listed}
COPY flows {_IN_IMAGE}/flows
WORKDIR {_IN_IMAGE}
"""
