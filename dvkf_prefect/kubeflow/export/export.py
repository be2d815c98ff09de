"""Export of a dvc.yaml as a KFP pipeline that anyone can submit, with `kfp run create` or in KFP's UI.

All selected stages become tasks. Each pod takes an equal run from the remote's run cache, or runs the stage and adds
the run there, see `dvkf_prefect.kubeflow.exchange.exports`. So a second run of the pipeline repeats nothing, and
`dvkf repro --pull` restores the results. The export stores sources and records on the remote; the YAML has digests and
names only, and no secret.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import ConfigError, StageError, StageGraphError
from dvkf_prefect.formats.dvclock import make_entry
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.kubeflow.cluster.chain import MOST_STAGES
from dvkf_prefect.kubeflow.cluster.inputs import Supply
from dvkf_prefect.kubeflow.cluster.pod_plans import pod_of_stage, pods_of_run
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.compile.compile import (
    PodPlan,
    compile_for_cluster,
    edges_of,
    task_names,
)
from dvkf_prefect.kubeflow.compile.images import check_images
from dvkf_prefect.kubeflow.compile.limits import check_pipeline
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, parse_meta
from dvkf_prefect.kubeflow.compile.versions import Version, needed_by
from dvkf_prefect.kubeflow.compile.workspace import WORKSPACE_SINCE, check_workspace
from dvkf_prefect.kubeflow.exchange.bundle import Bundle, make_bundle
from dvkf_prefect.kubeflow.exchange.exports import Record, export_sources, reference, save_run, store
from dvkf_prefect.kubeflow.exchange.runs import PodRun
from dvkf_prefect.pipeline.plan.decide import Expansion
from dvkf_prefect.pipeline.plan.runcache import can_restore, can_save
from dvkf_prefect.pipeline.plan.snapshot import Inputs, Snapshot
from dvkf_prefect.pipeline.run.batch import can_join
from dvkf_prefect.pipeline.run.dry_run import chosen
from dvkf_prefect.pipeline.run.dvc_files import late_sources, read_by
from dvkf_prefect.pipeline.run.inputs import check_inputs, make_spec
from dvkf_prefect.pipeline.step.runner import is_hermetic
from dvkf_prefect.pipeline.step.spec import StepSpec

_NAME = 63


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        name: Name of the pipeline; "" for that of the repository's folder.
        single_item: Leave out the upstream stages of the targets; their outputs are inputs.
        force: Run stages even if an equal run is known.
        manifest: Write Kubernetes objects, a Pipeline and a PipelineVersion, in place of a pipeline.
        namespace: Namespace of these objects; "" for none.
    """

    name: str = ""
    single_item: bool = False
    force: bool = False
    manifest: bool = False
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class ExportedPipeline:
    """An exported pipeline.

    Attributes:
        text: The YAML.
        stages: Addresses of its stages, in the order of the graph.
        unrecorded: Stages whose results are not added to the run cache, because DVC never restores them.
        sources: Sources of its stages.
        needs: Version of Kubeflow Pipelines that it needs, as numbers.
        service_account: Service account to start it with; "" for the default one.
    """

    text: str
    stages: tuple[str, ...]
    unrecorded: tuple[str, ...]
    sources: Bundle
    needs: Version
    service_account: str = ""


def export_pipeline(
    repo: Repository,
    settings: ClusterSettings,
    targets: Sequence[str] = (),
    *,
    options: ExportOptions | None = None,
) -> ExportedPipeline:
    """Return the stages of a repository as a KFP pipeline that runs without a dispatcher.

    Args:
        repo: The repository.
        settings: Settings of the cluster; the server itself is not used.
        targets: See `dvkf_prefect.pipeline.run.repro.repro`; all stages if empty. Frozen stages are left out.
        options: Options of the export.

    Raises:
        StageError: Sources are not committed, an input is neither in git nor on the remote, or a stage needs more of
            other stages than their outputs.
        StageGraphError: There is no stage to export, or the stages do not form a graph.
        ParseError: A stage's ``meta: kubeflow:`` is wrong.
        ConfigError: The remote or the settings are not fit for pods.
        RunnerError: The pipeline is too large for the server.
        RemoteError: The remote cannot be used.

    Example:
        ``export_pipeline(Repo.open("."), ClusterSettings("", image="registry.example.org/stages:1")).text``
    """
    return _Export(repo, settings, options or ExportOptions()).make(targets)


@dataclass(frozen=True, slots=True)
class _Planned:
    stage: Stage
    spec: StepSpec
    inputs: Inputs
    record: Record | None


class _Export:
    def __init__(self, repo: Repository, settings: ClusterSettings, options: ExportOptions) -> None:
        self._repo = repo
        self._settings = settings
        self._options = options
        self._remote = repo.remote()

    def make(self, targets: Sequence[str]) -> ExportedPipeline:
        snapshot = Snapshot(self._repo, self._remote)
        planned = self._planned(snapshot, targets)
        specs, placements = self._placed(planned)
        check_images(placements, self._settings.image)
        since: Version = (2, 5)
        if self._settings.workspace:
            check_workspace(placements, None)
            since = WORKSPACE_SINCE
        described = self._settings.remote.describe(self._repo, self._remote, placements)
        if described.secret:
            placements = {
                stage: dataclasses.replace(p, secrets=(*p.secrets, described.secret))
                for stage, p in placements.items()
            }
        accounts = {p.service_account for p in placements.values() if p.service_account}
        if len(accounts) > 1:
            raise ConfigError(
                f"a run has one service account, but its stages name {', '.join(sorted(accounts))}. Export "
                "them separately."
            )
        bundle = self._provide(specs)
        self._publish_known(snapshot, planned)
        about = pods_of_run(
            self._settings, described, self._remote.name, bundle, edges_of(specs), exported=True
        )
        compiled = self._compiled(planned, specs, placements, about)
        return ExportedPipeline(
            self._written(compiled, bundle),
            tuple(each.stage.address for each in planned),
            tuple(each.stage.address for each in planned if each.record is None),
            bundle,
            max([since, *(need.version for p in placements.values() for need in needed_by(p))]),
            next(iter(accounts), self._settings.service_account or ""),
        )

    # -- stages ------------------------------------------------------------------------------------------------------

    def _planned(self, snapshot: Snapshot, targets: Sequence[str]) -> list[_Planned]:
        """Return the stages with all inputs that are known before the first stage runs."""
        stages = chosen(snapshot, targets, Expansion(single_item=self._options.single_item))
        late = late_sources(snapshot, [stage for stage in stages if not stage.frozen])
        ahead = snapshot.ahead()
        found: list[_Planned] = []
        for stage in stages:
            entry = snapshot.entry(stage)
            if stage.frozen:
                ahead.plan(stage, entry)
                continue
            if read_by(stage, late):
                raise StageError(
                    f"stage '{stage.address}' reads an import of another stage's output, which only `dvkf repro` "
                    "updates. Depend on that output instead."
                )
            if not can_join(stage, (each.stage for each in found)):
                raise StageError(
                    f"stage '{stage.address}' reads a folder or a parameters file that other stages write into, "
                    "so its inputs are not known without a dispatcher. Depend on their outputs instead, or use "
                    "`dvkf repro --runner kubeflow`."
                )
            inputs = ahead.inputs(stage, entry)
            check_inputs(stage, inputs, ahead=True)
            spec = make_spec(self._repo, ahead, stage, inputs, lenient=not is_hermetic(stage))
            found.append(_Planned(stage, spec, inputs, self._record(stage, inputs)))
            ahead.plan(stage, None)
        if not found:
            raise StageGraphError("no stage to export. Add stages to dvc.yaml, or unfreeze them.")
        if len(found) > MOST_STAGES:
            raise StageGraphError(
                f"{len(found)} stages, at most {MOST_STAGES} in a pipeline, because the server cannot read a longer "
                "run. Name targets, and export the rest with --single-item."
            )
        return found

    def _record(self, stage: Stage, inputs: Inputs) -> Record | None:
        """Return the names for a stage's entry of the run cache; None if its runs cannot be restored."""
        unknown = {"hash": MD5, "md5": "0" * 32}
        known = {item["path"]: item for item in inputs.items}
        items = [known.get(dep.name, {"path": dep.name, **unknown}) for dep in stage.deps]
        entry = make_entry(stage.command, items, inputs.params, [{"path": out.name} for out in stage.outs])
        if not can_save(stage, entry) or any("md5" in item and item.get("hash") != MD5 for item in items):
            return None
        inside = {dep.name: dep.path for dep in stage.deps if not dep.external}
        return Record(
            command=stage.command if isinstance(stage.command, str) else list(stage.command),
            deps=inside,
            items=[dict(item) for item in inputs.items if item["path"] not in inside],
            params={file: stage.params_path(file) for file in stage.params},
            outs={out.name: out.path for out in stage.outs},
            force=self._options.force,
        )

    def _placed(self, planned: Sequence[_Planned]) -> tuple[list[StepSpec], dict[str, Placement]]:
        read = self._repo.files().read
        specs, placements = [], {}
        for each in planned:
            outs = {out.path for out in each.spec.outs}
            placement = parse_meta(each.spec.meta, each.stage.address, outs, read, self._settings.defaults)
            placements[each.stage.address] = placement
            models = tuple(sorted({*each.spec.models, *placement.models} & outs))
            specs.append(dataclasses.replace(each.spec, models=models))
        return specs, placements

    # -- the remote --------------------------------------------------------------------------------------------------

    def _provide(self, specs: Sequence[StepSpec]) -> Bundle:
        """Store the sources, and the inputs that only this machine has."""
        bundle = make_bundle(
            self._repo,
            export_sources(self._remote.storage),
            allow_dirty=self._settings.allow_dirty,
            written={output.path for output in self._repo.outputs() if output.stage}
            | {out.path for spec in specs for out in spec.outs},
        )
        folder = self._repo.tmp_dir / "kubeflow" / "export"
        folder.mkdir(parents=True, exist_ok=True)
        Supply(
            self._repo, self._remote, bundle, specs, folder=folder, push=self._settings.push_missing
        ).provide()
        return bundle

    def _publish_known(self, snapshot: Snapshot, planned: Sequence[_Planned]) -> None:
        """Add the last runs in dvc.lock to the remote's run cache, so that no pod repeats them."""
        for each in planned:
            entry = snapshot.entry(each.stage)
            whole = entry is not None and all(
                item.get("hash") == MD5
                for key in ("deps", "outs")
                for item in entry.get(key, ())
                if "md5" in item
            )
            if entry and whole and each.record is not None and can_restore(each.stage, entry):
                save_run(self._remote.storage, entry)

    # -- the pipeline ------------------------------------------------------------------------------------------------

    def _compiled(
        self,
        planned: Sequence[_Planned],
        specs: Sequence[StepSpec],
        placements: Mapping[str, Placement],
        about: PodRun,
    ) -> dict[str, Any]:
        storage = self._remote.storage
        names = task_names([spec.stage for spec in specs])
        stages = {task: stage for stage, task in names.items()}
        records = {
            each.stage.address: store(storage, each.record.to_json()) if each.record else ""
            for each in planned
        }
        read = {stage for needs in edges_of(specs).values() for stage in needs}
        plan = PodPlan(
            run=lambda task: pod_of_stage(
                about,
                self._settings,
                stages[task],
                task,
                placements[stages[task]],
                is_read=stages[task] in read,
                record=records[stages[task]],
            ),
            placements=placements,
            edges={},
            labels={},
            spill=lambda task, text: reference(storage, text),
            named_by_run=True,
            workspace=self._settings.workspace,
        )
        name = self._options.name or self._repo.root.name
        compiled = compile_for_cluster(specs, plan, name=name, image=self._settings.image)
        check_pipeline(compiled, len(specs))
        return compiled if "pipeline_spec" in compiled else {"pipeline_spec": compiled}

    def _written(self, compiled: Mapping[str, Any], bundle: Bundle) -> str:
        """Return the YAML as KFP's own compiler writes it."""
        from google.protobuf import json_format  # type: ignore[import-untyped]
        from kfp.compiler import pipeline_spec_builder as builder
        from kfp.pipeline_spec import pipeline_spec_pb2

        spec = json_format.ParseDict(compiled["pipeline_spec"], pipeline_spec_pb2.PipelineSpec())
        platform = json_format.ParseDict(compiled.get("platform_spec", {}), pipeline_spec_pb2.PlatformSpec())
        if self._settings.pipeline_root:
            spec.default_pipeline_root = self._settings.pipeline_root
        about = f"Stages of dvc.yaml, {bundle}. Exported by dvkf; results go to the run cache of the remote."
        name = spec.pipeline_info.name[:_NAME].rstrip("-")
        mark = hashlib.sha256(json.dumps(compiled, sort_keys=True).encode()).hexdigest()[:8]
        options = builder.KubernetesManifestOptions(
            pipeline_name=name,
            pipeline_version_name=f"{name[: _NAME - 9].rstrip('-')}-{mark}",
            namespace=self._options.namespace or None,
            include_pipeline_manifest=True,
        )
        with tempfile.TemporaryDirectory(prefix="dvkf-export-") as folder:
            file = Path(folder) / "pipeline.yaml"
            builder.write_pipeline_spec_to_file(
                pipeline_spec=spec,
                pipeline_description=about,
                platform_spec=platform,
                package_path=str(file),
                kubernetes_manifest_options=options,
                kubernetes_manifest_format=self._options.manifest,
            )
            return file.read_text(encoding="utf-8")
