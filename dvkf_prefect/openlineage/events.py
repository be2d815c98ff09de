"""OpenLineage events of stages, registrations and deployments, sent by OpenLineage's own client.

A receiver that fails, or does not answer in time, ends the events of this process with one warning.

| event | inputs | outputs |
|---|---|---|
| run of a stage | dependencies | outputs |
| registration of a model | file or folder of the model | ``models/NAME``, version such as ``v1.0.0`` |
| deployment of a version | ``models/NAME`` | ``services/NAME`` of the server |

The namespace of a file that DVC tracks is the url of its remote, that of another one git's origin. The name is the path
in the repository, and the facet ``version`` is the digest. Sources: https://openlineage.io/spec/2-0-2/OpenLineage.json,
and the documentation of openlineage-python 1.54.
"""

from __future__ import annotations

import csv
import logging
import posixpath
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.git.origin import origin_url
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.dvclock import lock_file, read_lock
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.openlineage.receiver import PRODUCER, is_configured, open_client
from dvkf_prefect.pipeline.run.events import StageEvent
from dvkf_prefect.urls import public_url

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import Job

# Seconds after which the answer to an event is not waited for any longer, however slowly it arrives.
_LIMIT = 10.0
_HEADER = 1 << 16
# Namespace, name and facets of a dataset.
_Item = tuple[str, str, dict[str, Any]]
_logger = logging.getLogger(__name__)
_ended = threading.Event()


class LineageEvents:
    """Sender of a repository's OpenLineage events. No method raises an error of the receiver.

    Args:
        repo: The repository.
        parent: Id (a UUID) and name of the run that the events belong to.
    """

    def __init__(self, repo: Repository, *, parent: tuple[str, str] | None = None) -> None:
        self._repo = repo
        self._parent = parent
        self._runs: dict[str, str] = {}
        self._client: OpenLineageClient | None = None

    # -- events --------------------------------------------------------------------------------------------------------

    def stage(self, event: StageEvent) -> None:
        """Send the start or the end of a stage's run; other events are ignored."""
        if event.kind in ("start", "done", "fail"):
            self._guarded(lambda: self._send_stage(event))

    def registered(self, version: ModelVersion) -> None:
        """Send the registration of a version."""

        def send() -> None:
            inputs = [(version.path, version.digest or "")] if version.path else []
            self._send_act("register", version, inputs, (self._origin, f"models/{version.name}"))

        self._guarded(send)

    def deployed(self, version: ModelVersion, where: str) -> None:
        """Send the deployment of a version.

        Args:
            version: The version.
            where: Place of the service, as noted on the version's tag.
        """
        self._guarded(lambda: self._send_act("deploy", version, [], (where, f"services/{version.name}")))

    @cached_property
    def _origin(self) -> str:
        """Namespace of the jobs, and of files in git."""
        url = origin_url(self._repo.git)
        return url if ":" in url else f"file://{url or self._repo.root.resolve()}"

    # -- inside --------------------------------------------------------------------------------------------------------

    def _guarded(self, send: Callable[[], None]) -> None:
        """Send for a bounded time; after the first failure, send nothing more."""
        if _ended.is_set() or not is_configured():
            return
        failed: list[str] = []

        def run() -> None:
            try:
                send()
            except ImportError as error:
                failed.append(f"{error}. Install dvkf-prefect[openlineage]")
            except Exception as error:  # noqa: BLE001 (lineage must not end a run)
                failed.append(str(error) or type(error).__name__)

        thread = threading.Thread(target=run, name="dvkf-openlineage", daemon=True)
        thread.start()
        thread.join(_LIMIT)
        if thread.is_alive():
            failed.append(f"no answer in {_LIMIT:.0f} s")
        if failed:
            _ended.set()
            _logger.warning("OpenLineage: no more events are sent: %s", failed[0])

    def _send_stage(self, event: StageEvent) -> None:
        from openlineage.client.event_v2 import RunState
        from openlineage.client.facet_v2 import error_message_run
        from openlineage.client.uuid import generate_new_uuid

        if event.kind == "start" or event.stage not in self._runs:
            self._runs[event.stage] = str(generate_new_uuid())
        state = {"start": RunState.START, "done": RunState.COMPLETE, "fail": RunState.FAIL}[event.kind]
        facets: dict[str, Any] = {}
        if event.kind == "fail":
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(event.message, "PYTHON")
        entry = self._entry(event.stage) if event.kind == "done" else {}
        inputs, outputs = (self._items(event.stage, entry.get(key, ())) for key in ("deps", "outs"))
        self._emit(state, self._runs[event.stage], self._job(event.stage, "STAGE"), inputs, outputs, facets)

    def _send_act(
        self,
        act: str,
        version: ModelVersion,
        read: Iterable[tuple[str, str]],
        written: tuple[str, str],
    ) -> None:
        from openlineage.client.event_v2 import RunState
        from openlineage.client.uuid import generate_new_uuid

        run, job = str(generate_new_uuid()), self._job(f"{act} {version.name}", "MODEL")
        tracked, named = self._tracked(), self._facets("", version.version)
        inputs = [(*self._place(path, tracked), self._facets(path, digest)) for path, digest in read]
        outputs = [(*written, named)]
        for state in (RunState.START, RunState.COMPLETE):
            self._emit(
                state, run, job, inputs or [(self._origin, f"models/{version.name}", named)], outputs, {}
            )

    def _entry(self, address: str) -> Mapping[str, Any]:
        """Return the record of a stage's last run."""
        path, _, name = address.rpartition(":")
        with suppress(DvkfError, OSError):
            return read_lock(self._repo.files(), lock_file(path or "dvc.yaml")).get(name, {})
        return {}

    def _items(self, address: str, items: Iterable[Mapping[str, Any]]) -> list[_Item]:
        folder = posixpath.dirname(address.rpartition(":")[0])
        tracked = self._tracked()
        found = []
        for item in items:
            path = str(item["path"])
            if "://" in path or posixpath.isabs(path):
                continue  # not in the repository
            path = posixpath.normpath(posixpath.join(folder, path))
            digest = str(item.get("md5") or "")
            found.append((*self._place(path, tracked), self._facets(path, digest)))
        return found

    def _tracked(self) -> list[Any]:
        with suppress(DvkfError):
            return [output for output in self._repo.outputs() if output.cached]
        return []

    def _place(self, path: str, tracked: list[Any]) -> tuple[str, str]:
        """Return namespace and name of a path of the repository."""
        for output in tracked:
            if path == output.path or path.startswith(f"{output.path}/"):
                with suppress(DvkfError):
                    url = public_url(self._repo.remote(output.remote).url)
                    return (url if "://" in url else f"file://{url}"), path
        return self._origin, path

    def _facets(self, path: str, version: str) -> dict[str, Any]:
        from openlineage.client.facet_v2 import dataset_version_dataset, schema_dataset

        facets: dict[str, Any] = {}
        if version:
            facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(version)
        fields = [schema_dataset.SchemaDatasetFacetFields(*field) for field in _columns(self._repo, path)]
        if fields:
            facets["schema"] = schema_dataset.SchemaDatasetFacet(fields)
        return facets

    def _job(self, name: str, kind: str) -> Job:
        from openlineage.client.event_v2 import Job
        from openlineage.client.facet_v2 import job_type_job

        return Job(self._origin, name, {"jobType": job_type_job.JobTypeJobFacet("BATCH", "DVC", kind)})

    def _emit(
        self,
        state: Any,
        run: str,
        job: Job,
        inputs: Iterable[_Item],
        outputs: Iterable[_Item],
        facets: dict[str, Any],
    ) -> None:
        from openlineage.client.event_v2 import InputDataset, OutputDataset, Run, RunEvent
        from openlineage.client.facet_v2 import parent_run

        if self._client is None:
            self._client = open_client()
        if self._parent is not None:
            above = parent_run.Job(self._origin, self._parent[1])
            facets["parent"] = parent_run.ParentRunFacet(parent_run.Run(self._parent[0]), above)
        self._client.emit(
            RunEvent(
                eventTime=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                producer=PRODUCER,
                run=Run(run, facets),
                job=job,
                eventType=state,
                inputs=[InputDataset(space, name, facets=found) for space, name, found in inputs],
                outputs=[OutputDataset(space, name, facets=found) for space, name, found in outputs],
            )
        )


def _columns(repo: Repository, path: str) -> list[tuple[str, str | None]]:
    """Return name and type of a table's columns; none for other files. Of a CSV file only the names are known."""
    file = repo.root / path
    with suppress(OSError, ValueError, ImportError, csv.Error):
        if path.endswith((".csv", ".tsv")) and file.is_file():
            with open(file, encoding="utf-8", newline="") as stream:
                lines = stream.read(_HEADER).splitlines()[:1]
            names = next(csv.reader(lines, delimiter="\t" if path.endswith(".tsv") else ","), [])
            return [(name, None) for name in names if name]
        if path.endswith(".parquet") and file.is_file():
            from pyarrow import parquet

            return [(field.name, str(field.type)) for field in parquet.read_schema(file)]
    return []
