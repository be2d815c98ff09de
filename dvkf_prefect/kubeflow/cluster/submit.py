"""Submission of stages to a cluster: provide their inputs, then start one pipeline run or find it again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import MissingObjectError, ParseError, RunnerError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.formats.artifacts import read_artifacts
from dvkf_prefect.formats.dvcyaml import Stage, load_stages
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.kubeflow.cluster.api import KfpAnswerError, KfpApi, KfpUnreachableError
from dvkf_prefect.kubeflow.cluster.inputs import Supply
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.compile.compile import (
    SPEC_LIMIT,
    PodPlan,
    compile_for_cluster,
    edges_of,
    task_names,
)
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, parse_meta
from dvkf_prefect.kubeflow.exchange.bundle import Bundle, make_bundle
from dvkf_prefect.kubeflow.exchange.objects import uncached
from dvkf_prefect.kubeflow.exchange.runs import RESULT, PodRun, run_place, spill
from dvkf_prefect.paths import is_within
from dvkf_prefect.pipeline.step.spec import StepDependency, StepKnown, StepResult, StepSpec

_NAMESPACE = uuid.UUID("5f0c1c5e-6a0e-5d0a-9f6e-3d7f4f4b7c11")
_ATTEMPTS = 100
# Argo stores a workflow, with all its specifications, in one object of etcd, at most 1.5 MiB.
_ALL_SPECS = 512 * 1024
_FILE = re.compile(r"((?:.*?/)?dvc\.yaml):(.+)", re.DOTALL)
_FAILED = frozenset({"FAILED", "CANCELED", "CANCELING", "SKIPPED"})
_CREATE_TRIES = 8
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """A submitted run.

    Attributes:
        key: Key of its results on the remote.
        run_id: Id of the run on the server.
        tasks: Task name of each stage.
        edges: Predecessors of each stage.
        note: Local file that records the run.
    """

    key: str
    run_id: str
    tasks: Mapping[str, str]
    edges: Mapping[str, Sequence[str]]
    note: Path


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
    """

    def __init__(
        self,
        repo: Repo,
        settings: ClusterSettings,
        api: KfpApi,
        specs: Sequence[StepSpec],
        edges: Mapping[str, Sequence[str]],
        *,
        run_key: str,
        folder: Path,
    ) -> None:
        self._repo = repo
        self._settings = settings
        self._api = api
        self._specs = specs
        self._more = edges
        self._edges = edges_of(specs, edges)
        self._run_key = run_key
        self._folder = folder
        self._names = task_names([spec.stage for spec in specs])
        self._remote = repo.remote()

    def submit(self) -> Submitted:
        """Start the stages, or find the existing run of these stages.

        Raises:
            StageError: Sources are not committed, or an input is neither in git nor on the remote.
            ParseError: A stage's ``meta: kubeflow:`` is wrong.
            ConfigError: The remote or the cluster is not configured for this.
            RunnerError: The stages could not be started.
        """
        for spec in self._specs:
            if spec.env:
                raise RunnerError(
                    f"stage '{spec.stage}': the environment of this machine does not go to a cluster, where anybody "
                    "could read it; name variables and secrets in its `meta: kubeflow:`"
                )
        placements, models = self._settings_of_stages()
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
        Supply(
            self._repo,
            self._remote,
            bundle,
            self._specs,
            folder=self._folder,
            push=self._settings.push_missing,
        ).provide()
        about = PodRun(
            "",
            described.url,
            described.options,
            self._remote.name,
            bundle.digest,
            bundle.commit,
            bundle.dirty,
            self._names,
            models,
        )
        content = self._content(about, placements)
        note = self._folder / f"{content[:32]}.json"
        key, run_id = self._start(content, note, about, placements, account, bundle)
        return Submitted(key, run_id, self._names, self._edges, note)

    # -- settings in dvc.yaml ----------------------------------------------------------------------------------------

    def _settings_of_stages(self) -> tuple[dict[str, Placement], dict[str, tuple[str, ...]]]:
        """Return the settings of each stage's pod, and the outputs of each stage that are models."""
        files = self._repo.files()
        stages: dict[str, dict[str, Stage]] = {}
        declared: dict[str, set[str]] = {}
        placements, models = {}, {}
        for spec in self._specs:
            match = _FILE.fullmatch(spec.stage)
            file = match[1] if match else PIPELINE_FILE
            if file not in stages:
                stages[file], declared[file] = {}, set()
                with suppress(FileNotFoundError):
                    stages[file] = {stage.address: stage for stage in load_stages(files, file)}
                    declared[file] = {
                        artifact.path
                        for artifact in read_artifacts(files, file).values()
                        if artifact.type == "model"
                    }
            stage = stages[file].get(spec.stage)
            placement = Placement()
            if stage is not None:
                place = (
                    ("stages", stage.group, "do", "meta") if stage.group else ("stages", stage.name, "meta")
                )
                placement = parse_meta(
                    stage.meta, stage=spec.stage, file=file, data=files.read(file), place=place
                )
            written = {out.path for out in spec.outs}
            for path in placement.models:
                if path not in written:
                    raise ParseError(
                        file,
                        f"stage '{spec.stage}', key 'meta.kubeflow.models': '{path}' is none of its outputs",
                    )
            typed = {o.path for o in stage.outs if o.options.get("type") == "model"} if stage else set()
            chosen = set(placement.models) | ((declared[file] | typed) & written)
            models[spec.stage] = tuple(sorted(chosen))
            placements[spec.stage] = placement.over(self._settings.defaults)
        return placements, models

    def _service_account(self, placements: Mapping[str, Placement]) -> str | None:
        named = {p.service_account for p in placements.values() if p.service_account}
        if len(named) > 1:
            raise RunnerError(
                f"a run has one service account, but its stages name {', '.join(sorted(named))}; run them apart"
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
            "edges": {stage: sorted(needs) for stage, needs in sorted(self._edges.items())},
            "namespace": self._settings.namespace,
            "key": self._run_key,
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def _known(self, spec: StepSpec) -> list[StepDependency]:
        written = {out.path for other in self._specs for out in other.outs}
        return [
            dataclasses.replace(dep, digest="", size=0, isexec=False)
            if any(is_within(dep.path, path) for path in written)
            else dep
            for dep in spec.deps
        ]

    def _start(
        self,
        content: str,
        note: Path,
        about: PodRun,
        placements: Mapping[str, Placement],
        account: str | None,
        bundle: Bundle,
    ) -> tuple[str, str]:
        """Start the run, or find it; return the key of its results, and its id on the server."""
        experiment = self._api.experiment(self._settings.experiment, self._settings.namespace)
        left = _left(note)
        for attempt in range(_first_attempt(note), _ATTEMPTS):
            key = str(uuid.uuid5(_NAMESPACE, f"{content}/{attempt}"))
            found = self._find(key, experiment)
            if found is not None:
                state = found.get("state")
                if state in _FAILED or (state == "SUCCEEDED" and not self._has_results(key)):
                    if key == left:
                        self._learn_from(key)
                    continue
                _logger.info("going on with run %s", found["run_id"])
            else:
                body = self._body(key, about, placements, account, bundle, experiment)
                found = self._create(key, body, experiment)
            run_id = str(found["run_id"])
            about_run = {"run_id": run_id, "key": key, "attempt": attempt, "host": self._api.host}
            write_atomic(note, json.dumps(about_run).encode())
            return key, run_id
        raise RunnerError(f"these stages were started {_ATTEMPTS} times already and never ended well")

    def _learn_from(self, key: str) -> None:
        """Reuse the successful stages of an earlier run whose results were never collected.

        The starter of that run was killed, so its stages are not in dvc.lock.
        """
        found = []
        for spec in self._specs:
            with suppress(MissingObjectError, ValueError, TypeError):
                place = run_place(key, self._names[spec.stage], RESULT)
                result = StepResult.from_json(self._remote.storage.read(place))
                if not result.failed:
                    known = StepKnown({dep.path: dep.digest for dep in result.deps}, result.outs)
                    spec = dataclasses.replace(spec, known=known)
            found.append(spec)
        self._specs = found

    def _find(self, key: str, experiment: str) -> dict[str, Any] | None:
        return self._api.run(key) or self._api.find_run(
            self._display_name(key),
            _mark(key),
            experiment_id=experiment,
            namespace=self._settings.namespace,
        )

    def _display_name(self, key: str) -> str:
        stages = [spec.stage for spec in self._specs]
        shown = stages[0] if len(stages) == 1 else f"{len(stages)} stages"
        return f"{self._repo.root.name} {shown} {key[:8]}"

    def _has_results(self, key: str) -> bool:
        """Return True if all outputs of a run are still on the remote."""
        digests: set[str] = set()
        beside: set[str] = set()
        for spec in self._specs:
            try:
                place = run_place(key, self._names[spec.stage], RESULT)
                result = StepResult.from_json(self._remote.storage.read(place))
            except (MissingObjectError, ValueError, TypeError):
                return False
            apart = {out.path for out in spec.outs if not out.cached}
            digests.update(out.digest for out in result.outs if out.path not in apart)
            beside.update(out.digest for out in result.outs if out.path in apart)
        return not (self._remote.missing(digests) or uncached(self._remote).missing(beside))

    def _body(
        self,
        key: str,
        about: PodRun,
        placements: Mapping[str, Placement],
        account: str | None,
        bundle: Bundle,
        experiment: str,
    ) -> dict[str, Any]:
        storage = self._remote.storage
        about = dataclasses.replace(about, key=key)
        plan = PodPlan(
            run=about.to_json(),
            placements=placements,
            models=about.models,
            edges=self._more,
            labels={"dvkf-run": key},
            spill=lambda task, text: spill(storage, key, task, text),
            limit=min(SPEC_LIMIT - len(about.to_json()), _ALL_SPECS // len(self._specs)),
        )
        spec = compile_for_cluster(self._specs, plan, name=self._repo.root.name, image=self._settings.image)
        stages = ", ".join(spec.stage for spec in self._specs[:20]) + (", …" if len(self._specs) > 20 else "")
        body: dict[str, Any] = {
            "run_id": key,
            "display_name": self._display_name(key),
            "description": f"{_mark(key)}\n{bundle}\n{stages}",
            "experiment_id": experiment,
            "pipeline_spec": spec,
            "runtime_config": {},
        }
        if self._settings.pipeline_root:
            body["runtime_config"]["pipeline_root"] = self._settings.pipeline_root
        if account:
            body["service_account"] = account
        return body

    def _create(self, key: str, body: Mapping[str, Any], experiment: str) -> dict[str, Any]:
        """Start the run; after an ambiguous answer, look for it before another attempt."""
        wait = 0.5
        for attempt in range(_CREATE_TRIES):
            try:
                return self._api.create_run(body)
            except KfpAnswerError as error:
                # The server answers 500 or 409 if a run with this id exists.
                if error.status < 500 and error.status not in (408, 409, 429):
                    raise
                problem: RunnerError = error
            except KfpUnreachableError as error:
                problem = error
            time.sleep(wait)
            found = self._find(key, experiment)
            if found is not None:
                return found
            if attempt == _CREATE_TRIES - 1:
                raise problem
            wait = min(wait * 2, 15.0)
        raise AssertionError


def _mark(key: str) -> str:
    return f"dvkf-run {key}"


def _left(note: Path) -> str:
    """Return the key of the run started last, if not all of its results were collected; else ""."""
    try:
        known = json.loads(note.read_bytes())
        return "" if known.get("taken") else str(known["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _first_attempt(note: Path) -> int:
    """Return the attempt to look for first; the next one if the last run's results were collected."""
    try:
        known = json.loads(note.read_bytes())
        return int(known["attempt"]) + bool(known.get("taken"))
    except (OSError, ValueError, KeyError, TypeError):
        return 0
