"""Recurring runs of a repository's stages on a Kubeflow Pipelines server, which starts them itself.

A recurring run is an exported pipeline with a cron. Each of its runs has the sources and the data of the commit of its
creation. No dispatcher follows such a run, so its end writes nothing into dvc.lock. Its pods add their results to the
run cache of the remote, from which `dvkf repro --pull` restores them.

Sources: ``apiserver/server/job_server.go`` and ``resource_manager.go`` (``CreateJob``, ``DeleteJob``) of KFP 2.17.
Names of recurring runs need not be unique on the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kubeflow.cluster.api import KfpApi, in_namespace
from dvkf_prefect.kubeflow.cluster.links import Links
from dvkf_prefect.kubeflow.cluster.names import TEXT, fit, project_name
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.cluster.uploads import try_upload, version_name
from dvkf_prefect.kubeflow.export.export import ExportedPipeline, ExportOptions, export_pipeline

_RECURRING = "/apis/v2beta1/recurringruns"
_MARK = "dvkf-schedule"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A recurring run.

    Attributes:
        schedule_id: Id of the recurring run.
        name: Its name.
        cron: Cron of six fields, or its interval in seconds, such as ``every 3600 s``.
        paused: True if it starts no runs.
        url: Its page in KFP's UI; "" if the UI's address is unknown.
        content: Digest of its pipeline; "" if it was not made here.
    """

    schedule_id: str
    name: str
    cron: str
    paused: bool
    url: str = ""
    content: str = ""

    def __str__(self) -> str:
        state = "paused" if self.paused else "enabled"
        return f"{self.name}: {self.cron} ({state}, {self.schedule_id})" + (
            f": {self.url}" if self.url else ""
        )


class Schedules:
    """Recurring runs of a repository.

    Args:
        repo: The repository.
        settings: Settings of the cluster.
        api: Connection to the server.

    Example:
        ``Schedules(Repo.open("."), settings, settings.connect()).create("0 0 3 * * *")``
    """

    def __init__(self, repo: Repository, settings: ClusterSettings, api: KfpApi) -> None:
        self._repo = repo
        self._settings = settings
        self._api = api
        self._project = project_name(repo)
        self._experiment = settings.experiment or self._project
        self._links: Links | None = None

    def all(self) -> list[Schedule]:
        """Return the recurring runs in the experiment of the repository."""
        experiment = self._api.find_experiment(self._experiment, self._settings.namespace)
        return self._in(experiment) if experiment else []

    def create(
        self,
        cron: str,
        targets: Sequence[str] = (),
        *,
        name: str = "",
        force: bool = False,
        paused: bool = False,
    ) -> Schedule:
        """Create a recurring run, in place of the one of that name.

        An equal one stays as it was. Otherwise the new one is created before the old one is deleted.

        Args:
            cron: Cron of six fields; see `dvkf_prefect.kubeflow.export.cron.kubeflow_cron`.
            targets: Stages, outputs or dvc.yaml files; all stages if empty.
            name: Name of the recurring run; that of the repository and the targets if empty.
            force: Let each run repeat the stages, even if an equal run is known.
            paused: Create it without starting runs.

        Raises:
            StageError: Sources are not committed, or an input is neither in git nor on the remote.
            ConfigError: The remote or the settings are not fit for pods.
            RunnerError: The server refuses it.
        """
        name = fit(name or f"{self._project} {' '.join(targets) or 'all stages'}")
        made = export_pipeline(self._repo, self._settings, targets, options=ExportOptions(force=force))
        spec = _documents(made.text)
        content = version_name(spec)
        experiment = self._api.experiment(self._experiment, self._settings.namespace)
        old = [each for each in self._in(experiment) if each.name == name]
        for each in old:
            if (each.cron, each.paused, each.content) == (cron, paused, content):
                return each
        stages = ", ".join(made.stages)
        body: dict[str, Any] = {
            "display_name": name,
            "description": fit(f"{_MARK} {content}\n{made.sources}\n{stages}", TEXT),
            "experiment_id": experiment,
            "trigger": {"cron_schedule": {"cron": cron}},
            # Two runs at once would do the same work; times that were missed are not caught up.
            "max_concurrency": "1",
            "no_catchup": True,
            "mode": "DISABLE" if paused else "ENABLE",
            "runtime_config": {},
            **in_namespace(self._settings.namespace),
            **self._source(spec, made, stages),
        }
        if self._settings.pipeline_root:
            body["runtime_config"]["pipeline_root"] = self._settings.pipeline_root
        if made.service_account:
            body["service_account"] = made.service_account
        created = self._schedule(self._api.call("POST", _RECURRING, body=body))
        for each in old:
            self.delete(each.schedule_id)
        return created

    def find(self, name: str) -> Schedule:
        """Return a recurring run by its name or id.

        Raises:
            RunnerError: There is none, or several have that name.
        """
        known = self.all()
        found = [each for each in known if name in (each.schedule_id, each.name)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(f"'{each.name}' ({each.schedule_id})" for each in known) or "none"
        what = f"{len(found)} recurring runs are called" if found else "there is no recurring run"
        raise RunnerError(
            f"{what} '{name}' in the experiment '{self._experiment}'. Name one of these: {names}."
        )

    def pause(self, schedule_id: str) -> None:
        """Let a recurring run start no runs; those that run go on."""
        self._api.call("POST", f"{_RECURRING}/{quote(schedule_id, safe='')}:disable")

    def resume(self, schedule_id: str) -> None:
        """Let a paused recurring run start runs again."""
        self._api.call("POST", f"{_RECURRING}/{quote(schedule_id, safe='')}:enable")

    def delete(self, schedule_id: str) -> None:
        """Delete a recurring run.

        Its runs stay. Since KFP 2.17 the request says so; before, Kubernetes ends a run that is in progress.
        """
        query = {"propagation_policy": "ORPHAN"}
        self._api.call("DELETE", f"{_RECURRING}/{quote(schedule_id, safe='')}", query=query)

    def _in(self, experiment: str) -> list[Schedule]:
        query = {"experiment_id": experiment, **in_namespace(self._settings.namespace)}
        return [self._schedule(each) for each in self._api.listed(_RECURRING, "recurringRuns", query)]

    def _schedule(self, values: dict[str, Any]) -> Schedule:
        if self._links is None:
            self._links = self._settings.links(self._api)
        trigger = values.get("trigger") or {}
        every = (trigger.get("periodic_schedule") or {}).get("interval_second")
        cron = (trigger.get("cron_schedule") or {}).get("cron", "")
        first = str(values.get("description", "")).split("\n")[0]
        return Schedule(
            str(values["recurring_run_id"]),
            str(values.get("display_name", "")),
            str(cron) if cron else f"every {every} s",
            values.get("status") != "ENABLED",
            self._links.recurring_run(str(values["recurring_run_id"])),
            first.removeprefix(_MARK + " ") if first.startswith(_MARK) else "",
        )

    def _source(self, spec: dict[str, Any], made: ExportedPipeline, about: str) -> dict[str, Any]:
        if self._settings.send_as == "version":
            reference = try_upload(
                self._api,
                spec,
                project=self._project,
                namespace=self._settings.namespace,
                about=f"{made.sources}\n{about}",
            )
            if reference is not None:
                return {"pipeline_version_reference": reference}
        return {"pipeline_spec": spec if "platform_spec" in spec else spec["pipeline_spec"]}


def _documents(text: str) -> dict[str, Any]:
    """Return the parts of an exported pipeline."""
    from ruamel.yaml import YAML

    parts = [part for part in YAML(typ="safe").load_all(text) if part]
    found = {"pipeline_spec": next(part for part in parts if "pipelineInfo" in part)}
    for part in parts:
        if "platforms" in part:
            found["platform_spec"] = part
    return found
