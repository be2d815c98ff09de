"""Prefect assets of data and models: materialised by what writes them, and upstream of what is made of them.

| asset | key |
|---|---|
| an output | ``REMOTE/REPOSITORY/PATH``, from the URL of its remote |
| a model | ``REMOTE/REPOSITORY/model:NAME`` |

A repository without a remote has ``dvkf://`` in place of the URL. Prefect passes the assets of a task on to tasks that
take its result; a stage's output also has the dependencies in dvc.lock upstream, and a model its file.
Source of the events: Prefect 3, ``prefect.context.AssetContext``.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from prefect.context import AssetContext, FlowRunContext

from dvkf_prefect.blocks import DvcRepository
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.dvclock import lock_file, read_lock
from dvkf_prefect.formats.outputs import DataVersion, Output
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.paths import overlaps
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.urls import public_url

if TYPE_CHECKING:
    from prefect.assets import Asset

# Prefect's limits of a key.
_LENGTH = 512
_REFUSED = str.maketrans(dict.fromkeys("\n\r\t\0 #?&%\"'<>[]{}|\\^`", "-"))


# An asset, its metadata, the assets that it was made of, and the task run that made it if that is not the current one.
_Made: TypeAlias = "tuple[Asset, Mapping[str, Any], set[Asset], UUID | None]"


class Assets:
    """Assets of one repository, for the current task run, or for the stages of the current flow run.

    Outside of a run, or with the setting off, nothing is done.

    Args:
        repository: The repository's block.
        repo: The repository.
    """

    def __init__(self, repository: DvcRepository, repo: Repository) -> None:
        self._name = repository.name
        self._repo = repo
        on = DvkfSettings().assets
        self._context = AssetContext.get() if on else None
        self._in_run = self._context is not None or (on and FlowRunContext.get() is not None)
        self._locks: dict[str, Mapping[str, Any]] = {}

    def read(self, versions: Iterable[DataVersion]) -> None:
        """Note versions that the task read, for the tasks that take its result."""
        if self._context is not None:
            outputs = self._outputs()
            self._note(self._asset(version.path, outputs) for version in versions)

    def read_model(self, version: ModelVersion) -> None:
        """Note a model that the task read, for the tasks that take its result."""
        if self._context is not None:
            self._note([self._model(version)])

    def written(self, versions: Iterable[DataVersion]) -> None:
        """Emit the materialisation of versions that the task wrote."""
        if self._context is not None:
            self._written(versions, {})

    def written_by_stages(
        self, versions: Iterable[DataVersion], task_runs: Mapping[str, UUID | None]
    ) -> None:
        """Emit the materialisation of outputs that stages wrote, with the dependencies of the stages upstream.

        Args:
            versions: The versions.
            task_runs: Task runs of the stages, by path of the output.
        """
        if self._in_run:
            self._written(versions, task_runs)

    def _written(self, versions: Iterable[DataVersion], task_runs: Mapping[str, UUID | None]) -> None:
        outputs = self._outputs()
        made: list[_Made] = []
        for version in versions:
            metadata: dict[str, Any] = {
                "digest": version.digest,
                "size": version.size,
                "nfiles": version.nfiles,
            }
            upstream = {self._asset(path, outputs) for path in self._dependencies(version.path, outputs)}
            metadata |= {"path": version.path, "commit": version.rev}
            output = outputs.get(version.path)
            metadata["stage"] = output.stage if output else None
            made.append((self._asset(version.path, outputs), metadata, upstream, task_runs.get(version.path)))
        self._emit(made)

    def registered(self, version: ModelVersion) -> None:
        """Emit the materialisation of a model by its registration."""
        if self._context is None:
            return
        metadata: dict[str, Any] = {
            "version": version.version,
            "commit": version.rev,
            "digest": version.digest,
        }
        metadata |= {"path": version.path, "size": version.size}
        upstream = {self._asset(version.path, self._outputs())} if version.path else set()
        self._emit([(self._model(version), metadata, upstream, None)])

    def _note(self, assets: Iterable[Asset]) -> None:
        if self._context is not None:
            self._context.direct_asset_dependencies.update(assets)
            self._context.update_tracked_assets()

    def _emit(self, made: Iterable[_Made]) -> None:
        """Emit events as Prefect does for a task with ``@materialize``; there, all assets are known beforehand."""
        from prefect.events import emit_event

        context = self._context
        given = context.upstream_assets | context.direct_asset_dependencies if context else set()
        assets: set[Asset] = set()
        for asset, metadata, upstream, task_run in made:
            above = sorted((given | upstream) - {asset}, key=lambda found: found.key)
            for each in above:
                emit_event("prefect.asset.referenced", AssetContext.asset_as_resource(each))
            related = [AssetContext.asset_as_related(each) for each in above]
            if task_run is not None:
                related.append(
                    {
                        "prefect.resource.id": f"prefect.task-run.{task_run}",
                        "prefect.resource.role": "task-run",
                    }
                )
            emit_event(
                "prefect.asset.materialization.succeeded",
                AssetContext.asset_as_resource(asset),
                related=[*related, AssetContext.related_materialized_by("dvkf")],
                payload={name: value for name, value in metadata.items() if value is not None},
            )
            assets.add(asset)
        run = FlowRunContext.get()
        if run is not None and context is not None and context.task_run_id is not None and assets:
            run.task_run_assets[context.task_run_id] = assets

    def _outputs(self) -> dict[str, Output]:
        return {output.path: output for output in self._repo.outputs(overlap="any")}

    def _dependencies(self, path: str, outputs: Mapping[str, Output]) -> list[str]:
        """Return the outputs that the last run of a stage read for its own."""
        output = outputs.get(path)
        if output is None or not output.stage:
            return []
        file = lock_file(output.source)
        if file not in self._locks:
            self._locks[file] = {}
            with suppress(DvkfError, OSError):
                self._locks[file] = read_lock(self._repo.files(), file)
        entry = self._locks[file].get(output.stage.rpartition(":")[2], {})
        folder = posixpath.dirname(output.source)
        read = [posixpath.normpath(posixpath.join(folder, str(dep["path"]))) for dep in entry.get("deps", ())]
        return [each for each in outputs if any(overlaps(each, dep) for dep in read)]

    def _asset(self, path: str, outputs: Mapping[str, Output]) -> Asset:
        output = outputs.get(path)
        return self._make(output.remote if output else None, path, path)

    def _model(self, version: ModelVersion) -> Asset:
        return self._make(None, f"model:{version.name}", version.name)

    def _make(self, remote: str | None, path: str, name: str) -> Asset:
        from prefect.assets import Asset, AssetProperties

        url = "dvkf:/"
        # The address suffices; to open the remote takes a while.
        with suppress(DvkfError, KeyError):
            url = public_url(self._repo.config.remote(remote)[1]["url"]).rstrip("/")
        place = (
            url
            if "://" in f"{url}/"
            else f"file://{posixpath.normpath(posixpath.join(self._repo.root, url))}"
        )
        return Asset(key=asset_key(f"{place}/{self._name}/{path}"), properties=AssetProperties(name=name))


def asset_key(text: str) -> str:
    """Return a key that Prefect accepts; other keys than ``text`` have a short digest of it.

    Args:
        text: The wanted key, a URL.

    Example:
        >>> asset_key("s3://bucket/digits/data/my train")
        's3://bucket/digits/data/my-train-1fd0ed9a'
    """
    scheme, _, rest = text.partition("://")
    plain = f"{''.join(each for each in scheme.lower() if each.isalnum())}://{rest.translate(_REFUSED)}"
    if plain == text and len(plain) <= _LENGTH:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{plain[: _LENGTH - 9]}-{digest}"
