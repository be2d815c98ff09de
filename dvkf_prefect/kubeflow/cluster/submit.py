"""Submission of stages to a cluster: provide their inputs, then start one pipeline run or find it again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import RunnerError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.kubeflow.cluster.announced import find_run, mark_of, record_found, settle_run, start_of
from dvkf_prefect.kubeflow.cluster.api import KfpApi
from dvkf_prefect.kubeflow.cluster.inputs import Supply
from dvkf_prefect.kubeflow.cluster.names import TEXT, fit, project_name
from dvkf_prefect.kubeflow.cluster.notes import first_attempt, left_key, mark_taken
from dvkf_prefect.kubeflow.cluster.open_runs import Manifests, OpenRun, OpenStage, open_runs, result_of
from dvkf_prefect.kubeflow.cluster.plots import with_plots
from dvkf_prefect.kubeflow.cluster.pod_plans import pod_of_stage, pods_of_run
from dvkf_prefect.kubeflow.cluster.retry import retry_once
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.cluster.shared import shared_parts
from dvkf_prefect.kubeflow.cluster.start import CLAIM_PATIENCE, Started
from dvkf_prefect.kubeflow.cluster.uploads import results_key, try_upload
from dvkf_prefect.kubeflow.compile.compile import (
    PodPlan,
    compile_for_cluster,
    edges_of,
    task_names,
)
from dvkf_prefect.kubeflow.compile.images import check_images
from dvkf_prefect.kubeflow.compile.limits import check_pipeline
from dvkf_prefect.kubeflow.compile.parameters import default_parameters
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, parse_meta
from dvkf_prefect.kubeflow.compile.versions import check_version, needed_by
from dvkf_prefect.kubeflow.compile.workspace import check_workspace
from dvkf_prefect.kubeflow.exchange.bundle import Bundle, make_bundle
from dvkf_prefect.kubeflow.exchange.claims import Claim
from dvkf_prefect.kubeflow.exchange.exports import reference
from dvkf_prefect.kubeflow.exchange.objects import uncached
from dvkf_prefect.kubeflow.exchange.runs import PodRun, spill
from dvkf_prefect.paths import is_within
from dvkf_prefect.pipeline.step.spec import StepContent, StepKnown, StepSpec

_NAMESPACE = uuid.UUID("5f0c1c5e-6a0e-5d0a-9f6e-3d7f4f4b7c11")
_ATTEMPTS = 100
# States of a run that is terminated, or that ended without success.
ENDING = frozenset({"FAILED", "CANCELED", "CANCELING", "SKIPPED"})
# Requests of one start whose answers left it open.
_OPEN_TRIES = 3
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """A submitted run.

    Attributes:
        run: The run, which may have more stages than these.
        experiment_id: Id of its experiment.
        tasks: Task name of each stage.
        edges: Predecessors of each stage.
        note: Local file that records the run.
        dirty: Files of the sources that differ from their commit.
    """

    run: OpenRun
    experiment_id: str
    tasks: Mapping[str, str]
    edges: Mapping[str, Sequence[str]]
    note: Path
    dirty: tuple[str, ...] = ()


class Dispatch:
    """Submission of stages as a pipeline run.

    Args:
        repo: The repository.
        settings: Settings of the cluster.
        api: API of the cluster.
        specs: The stages, in any order.
        edges: Predecessors of stages, besides the writers of their inputs.
        run_key: Distinguishes runs with equal content.
        folder: Folder of the local records of runs.
        runs: Runs whose results were not all collected, as a moment ago; None to list them.
        owner: Owner of this dispatcher's work, as in its interests.
    """

    def __init__(
        self,
        repo: Repository,
        settings: ClusterSettings,
        api: KfpApi,
        specs: Sequence[StepSpec],
        edges: Mapping[str, Sequence[str]],
        *,
        run_key: str,
        folder: Path,
        runs: Sequence[OpenRun] | None = None,
        owner: str = "",
    ) -> None:
        self._repo = repo
        self._settings = settings
        self._api = api
        self._specs = specs
        self._more = edges
        self._edges = edges_of(specs, edges)
        self._run_key = run_key
        self._folder = folder
        self._runs = runs
        self._owner = owner
        self._names = task_names([spec.stage for spec in specs])
        self._remote = repo.remote()
        self._not_retried: set[str] = set()

    def submit(self) -> Submitted:
        """Start the stages, or find the existing run of these stages.

        Raises:
            StageError: Sources are not committed, or an input is neither in git nor on the remote.
            ParseError: A stage's ``meta: kubeflow:`` is wrong.
            ConfigError: The remote or the cluster is not configured for this.
            RunnerError: The stages could not be started.
        """
        pods = self._pods()
        Supply(
            self._repo,
            self._remote,
            pods.bundle,
            self._specs,
            folder=self._folder,
            push=self._settings.push_missing,
        ).provide()
        content = self._content(pods.about, pods.placements)
        run, experiment = self._start(content, self._stages(pods), pods)
        tasks = {spec.stage: run.stages[spec.stage].task for spec in self._specs}
        return Submitted(run, experiment, tasks, self._edges, self._folder / run.note, pods.bundle.dirty)

    def shared(self) -> list[list[str]]:
        """Return the stages that runs on the server have already, one list for each run; see `shared_parts`.

        Raises:
            Same as `submit`.
        """
        addresses = {spec.stage for spec in self._specs}
        runs = [run for run in self._open_runs() if addresses & run.stages.keys()]

        def goes_on(run: OpenRun) -> bool:
            found = find_run(self._api, run, self._settings.namespace)
            if found is None:
                return not run.run_id and Claim(self._remote.storage, run.key).in_use
            return found.get("state") not in ENDING

        return shared_parts(self._stages(self._pods()), runs, goes_on) if runs else []

    def _open_runs(self) -> Sequence[OpenRun]:
        """Return the runs whose results were not all collected; those given are of the first call alone."""
        runs, self._runs = self._runs, None
        return runs if runs is not None else list(open_runs(self._remote.storage))

    def _pods(self) -> _Pods:
        """Return all that the pods need; upload the sources."""
        for spec in self._specs:
            if spec.env:
                raise RunnerError(
                    f"stage '{spec.stage}': the environment of this machine is not sent to a cluster, where "
                    "other users could read it. Name variables and secrets in its `meta: kubeflow:`."
                )
        placements = self._placements()
        check_images(placements, self._settings.image)
        if self._settings.workspace or any(any(needed_by(placement)) for placement in placements.values()):
            version = self._api.version()
            check_version(placements, version)
            if self._settings.workspace:
                check_workspace(placements, version)
        described = self._settings.remote.describe(self._repo, self._remote, placements)
        if described.secret:
            placements = {
                stage: dataclasses.replace(p, secrets=(*p.secrets, described.secret))
                for stage, p in placements.items()
            }
        account = self._service_account(placements)
        bundle = make_bundle(
            self._repo,
            self._remote.storage,
            allow_dirty=self._settings.allow_dirty,
            written={output.path for output in self._repo.outputs() if output.stage}
            | {out.path for spec in self._specs for out in spec.outs},
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        about = pods_of_run(self._settings, described, self._remote.name, bundle, self._edges)
        return _Pods(about, placements, account, bundle)

    # -- settings of stages ----------------------------------------------------------------------------------------

    def _placements(self) -> dict[str, Placement]:
        """Return the settings of each stage's pod; complete the specifications with the models that they name."""
        read = self._repo.files().read
        placements, specs = {}, []
        for spec in self._specs:
            outs = {out.path for out in spec.outs}
            placement = parse_meta(spec.meta, spec.stage, outs, read, self._settings.defaults)
            placements[spec.stage] = placement
            models = tuple(sorted({*spec.models, *placement.models} & outs))
            specs.append(dataclasses.replace(spec, models=models))
        self._specs = with_plots(self._repo, specs)
        return placements

    def _service_account(self, placements: Mapping[str, Placement]) -> str | None:
        named = {p.service_account for p in placements.values() if p.service_account}
        if len(named) > 1:
            raise RunnerError(
                f"a run has one service account, but its stages name {', '.join(sorted(named))}. Run them "
                "separately."
            )
        return next(iter(named), self._settings.service_account)

    # -- the run -----------------------------------------------------------------------------------------------------

    def _content(self, about: PodRun, placements: Mapping[str, Placement]) -> str:
        """Return the digest of everything that identifies this run."""
        steps = [
            dataclasses.replace(
                spec,
                cache_dir="",
                workspace=None,
                log=None,
                # Outputs of other stages have no digest yet; local knowledge of them must not change the run's
                # identity.
                deps=tuple(sorted(self._known(spec), key=lambda dep: dep.path)),
            ).to_json()
            for spec in sorted(self._specs, key=lambda spec: spec.stage)
        ]
        values = {
            "steps": steps,
            "about": about.to_json(),
            "placements": {stage: repr(p) for stage, p in sorted(placements.items())},
            "image": self._settings.image,
            "tasks": self._names,
            "edges": {stage: sorted(needs) for stage, needs in sorted(self._edges.items())},
            "namespace": self._settings.namespace,
            "workspace": repr(self._settings.workspace),
            "key": self._run_key,
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def _known(self, spec: StepSpec) -> list[StepContent]:
        written = {out.path for other in self._specs for out in other.outs}
        return [
            StepContent(dep.path, Content("", 0))
            if any(is_within(dep.path, path) for path in written)
            else dep
            for dep in spec.deps
        ]

    def _stages(self, pods: _Pods) -> dict[str, OpenStage]:
        """Return what identifies each stage, apart from the others of its run."""
        found = {}
        for spec in self._specs:
            bare = dataclasses.replace(spec, cache_dir="", workspace=None, log=None, deps=(), known=None)
            values = [
                bare.to_json(),
                dataclasses.replace(pods.about, inline=0).to_json(),
                repr(pods.placements[spec.stage]),
                self._settings.image,
                self._settings.namespace,
                self._run_key,
            ]
            found[spec.stage] = OpenStage(
                self._names[spec.stage],
                hashlib.sha256(json.dumps(values).encode()).hexdigest(),
                {dep.path: dep.digest for dep in self._known(spec)},
                tuple(out.path for out in spec.outs),
                tuple(self._edges[spec.stage]),
                dict(spec.known.deps) if spec.known is not None else None,
            )
        return found

    def _start(self, content: str, stages: Mapping[str, OpenStage], pods: _Pods) -> tuple[OpenRun, str]:
        """Start the run, or find it, or one that has these stages among others; return its experiment, too."""
        experiment = self._api.experiment(
            self._settings.experiment or project_name(self._repo), self._settings.namespace
        )
        note = self._folder / f"{content[:32]}.json"
        left, open_tries = left_key(note), 0
        for attempt in range(first_attempt(note), _ATTEMPTS):
            key = str(uuid.uuid5(_NAMESPACE, f"{content}/{attempt}"))
            run = OpenRun(key, "", note.name, stages, self._display_name(key), experiment, self._owner)
            found, started = find_run(self._api, run, self._settings.namespace), False
            if found is None:
                joined, ended = self._join(stages, key)
                if joined is not None:
                    Claim(self._remote.storage, joined.key).clear()  # its killed dispatcher may have left one
                    _logger.info("resuming run %s, which has these stages among others", joined.run_id)
                    return joined, experiment
                start = self._start_once(run, pods, attempt)
                found, started = start.run, start.is_new
                if found is None:
                    open_tries += start.problem is not None
                    if start.problem is not None and open_tries == _OPEN_TRIES:
                        raise start.problem
                    # The server lost the run, or it was deleted there. Results under its key may be of any of both.
                    if key == left:
                        self._learn_from(key, self._names)
                    continue
                for old in ended:
                    mark_taken(self._folder / old.note)
                    old.forget(self._remote.storage)
            if not started:
                # A dispatcher that was killed after its request left its claim.
                Claim(self._remote.storage, key).clear()
                state, place = found.get("state"), results_key(found, key)
                failed = state in ENDING or (
                    state == "SUCCEEDED" and not self._has_results(place, self._names)
                )
                if failed and not self._retry(found, place):
                    if place == left:
                        self._learn_from(place, self._names)
                    continue
                _logger.info("resuming run %s", found["run_id"])
            run = record_found(run, found, self._remote.storage)
            self._take_note(run, attempt)
            return run, experiment
        raise RunnerError(f"these stages were started {_ATTEMPTS} times and never succeeded")

    def _retry(self, run: Mapping[str, Any], key: str) -> bool:
        """Retry a failed run, if the settings say so; return True if it goes on."""
        if self._settings.failed_run != "retry" or run["run_id"] in self._not_retried:
            return False
        again = retry_once(self._api, self._remote.storage, run, key, patience=CLAIM_PATIENCE)
        if again:
            _logger.info("retrying run %s", run["run_id"])
        else:
            self._not_retried.add(str(run["run_id"]))
        return again

    def _join(self, stages: Mapping[str, OpenStage], key: str) -> tuple[OpenRun | None, list[OpenRun]]:
        """Return a run that has these stages and goes on or succeeded, and such runs that failed or never started.

        The dispatcher of such a run was killed after it had recorded some of the stages. Stages that succeeded in a
        failed run are not run again.

        Args:
            stages: The stages by address.
            key: Key of the run to start, which is none of them.
        """
        storage = self._remote.storage
        trees = Manifests(self._repo.cache, self._remote)
        ended: list[OpenRun] = []
        for run in self._open_runs():
            if run.key == key or not run.has(stages, storage, trees):
                continue
            known = settle_run(self._api, run, self._settings, storage)
            if known is None:
                ended.append(run)
                continue
            run = known
            found = self._api.run(run.run_id)
            names = {stage: run.stages[stage].task for stage in stages}
            state = found.get("state") if found is not None else "FAILED"
            if state not in ENDING and (state != "SUCCEEDED" or self._has_results(run.key, names)):
                return run, ended
            if found is not None and self._retry(found, run.key):
                return run, ended
            if run.stages.keys() != stages.keys():
                self._learn_from(run.key, names)
            ended.append(run)
        return None, ended

    def _start_once(self, run: OpenRun, pods: _Pods, attempt: int) -> Started:
        """Start the run, unless another dispatcher does or did; see `RunStart.once`."""
        storage = self._remote.storage

        def announce() -> None:
            self._take_note(run, attempt)
            run.write(storage)

        return start_of(self._api, run, self._settings, storage).once(
            lambda: self._body(run, pods), announce=announce, withdraw=lambda: run.forget(storage)
        )

    def _take_note(self, run: OpenRun, attempt: int) -> None:
        """Write the local record of a run."""
        about = {"run_id": run.run_id, "key": run.key, "attempt": attempt, "host": self._api.host}
        write_atomic(self._folder / run.note, json.dumps(about).encode())

    def _learn_from(self, key: str, names: Mapping[str, str]) -> None:
        """Reuse the successful stages of an earlier run whose results were never collected.

        The starter of that run was killed, so its stages are not in dvc.lock.
        """
        found = []
        for spec in self._specs:
            result = result_of(self._remote.storage, key, names[spec.stage])
            if result is not None and not result.failed:
                known = StepKnown({dep.path: dep.digest for dep in result.deps}, result.outs)
                spec = dataclasses.replace(spec, known=known)
            found.append(spec)
        self._specs = found

    def _display_name(self, key: str) -> str:
        stages = [spec.stage for spec in self._specs]
        shown = stages[0] if len(stages) == 1 else f"{len(stages)} stages"
        return f"{fit(f'{self._repo.root.name} {shown}', TEXT - 9)} {key[:8]}"

    def _has_results(self, key: str, names: Mapping[str, str]) -> bool:
        """Return True if all outputs of these tasks of a run are still on the remote."""
        digests: set[str] = set()
        beside: set[str] = set()
        for spec in self._specs:
            result = result_of(self._remote.storage, key, names[spec.stage])
            if result is None:
                return False
            apart = {out.path for out in spec.outs if not out.cached}
            digests.update(out.digest for out in result.outs if out.path not in apart)
            beside.update(out.digest for out in result.outs if out.path in apart)
        return not (self._remote.missing(digests) or uncached(self._remote).missing(beside))

    def _compiled(self, key: str, pods: _Pods) -> dict[str, Any]:
        """Return the pipeline of a run.

        Args:
            key: Key of the run's results; "" if Kubeflow passes the id of the run to the pods as their key.
            pods: Settings of the pods.

        Raises:
            RunnerError: The pipeline is too large, or has characters that the server cannot store.
        """
        storage = self._remote.storage
        about = dataclasses.replace(pods.about, key=key)
        stages = {task: stage for stage, task in self._names.items()}
        read = {stage for needs in self._edges.values() for stage in needs}
        plan = PodPlan(
            run=lambda task: pod_of_stage(
                about,
                self._settings,
                stages[task],
                task,
                pods.placements[stages[task]],
                is_read=stages[task] in read,
            ),
            placements=pods.placements,
            edges=self._more,
            labels={"dvkf-run": key} if key else {},
            # A version is for later runs, too, so it refers to files that no collection removes.
            spill=(lambda task, text: spill(storage, key, task, text)) if key else _keep_in(storage),
            workspace=self._settings.workspace,
            named_by_run=not key,
        )
        spec = compile_for_cluster(self._specs, plan, name=self._repo.root.name, image=self._settings.image)
        check_pipeline(spec, len(self._specs))
        return spec

    def _source(self, key: str, pods: _Pods, about: str) -> dict[str, Any]:
        """Return the pipeline of a run, as its request holds it: a version's reference, or the whole spec."""
        reference = None
        if self._settings.send_as == "version":
            spec = self._compiled("", pods)
            project, namespace = project_name(self._repo), self._settings.namespace
            reference = try_upload(self._api, spec, project=project, namespace=namespace, about=about)
        if reference is None:
            spec = self._compiled(key, pods)
        # All that KFP's "compare runs" reads of a run's parameters.
        config = {"runtime_config": {"parameters": default_parameters(spec)}}
        return config | ({"pipeline_version_reference": reference} if reference else {"pipeline_spec": spec})

    def _body(self, run: OpenRun, pods: _Pods) -> dict[str, Any]:
        about = f"{pods.bundle}\n{', '.join(spec.stage for spec in self._specs)}"
        body: dict[str, Any] = {
            "run_id": run.key,
            "display_name": run.name,
            "description": fit(f"{mark_of(run.key)}\n{about}", TEXT),
            "experiment_id": run.experiment,
            **self._source(run.key, pods, about),
        }
        if self._settings.pipeline_root:
            body["runtime_config"]["pipeline_root"] = self._settings.pipeline_root
        if pods.account:
            body["service_account"] = pods.account
        return body


@dataclasses.dataclass(frozen=True, slots=True)
class _Pods:
    """All that the pods of a run need.

    Attributes:
        about: Parameters of every pod.
        placements: Settings of each stage's pod.
        account: Their service account; None for the server's default.
        bundle: The sources.
    """

    about: PodRun
    placements: Mapping[str, Placement]
    account: str | None
    bundle: Bundle


def _keep_in(storage: Storage) -> Callable[[str, str], str]:
    """Return a function that stores large specifications of a version, by their content."""
    return lambda _, text: reference(storage, text)
