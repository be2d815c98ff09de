"""`dvkf export kfp`: a pipeline that runs without a dispatcher, and `dvkf repro` after it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import repos
import yaml

from dvkf_prefect import KubeflowCredentials, KubeflowPipelines
from dvkf_prefect.cli import main
from dvkf_prefect.errors import ConfigError, MissingObjectError, StageError
from dvkf_prefect.formats.dvclock import read_lock
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings, PodRemote
from dvkf_prefect.kubeflow.exchange.exports import read_record
from dvkf_prefect.kubeflow.export.export import ExportOptions, export_pipeline
from dvkf_prefect.kubeflow.pod.overrides import write_values
from dvkf_prefect.pipeline.step.spec import StepContent, StepSpec

from .fake import ENDED, VERSIONS, wait_for

every_version = pytest.mark.parametrize("version", VERSIONS)
IMAGE = "registry.example.org/stages:1"
SETTINGS = ClusterSettings("", image=IMAGE)
PYTHON = sys.executable
DVC_YAML = f"""\
stages:
  prepare:
    cmd: {PYTHON} prepare.py
    deps: [prepare.py, data/raw]
    outs: [data/clean]
  train:
    wdir: work
    cmd:
    - {PYTHON} train.py
    - echo trained >> ran.txt
    deps: [train.py, ../data/clean/a.txt]
    params: [../params.yaml: [lr]]
    outs: [model.bin]
    metrics:
      - metrics.json: {{cache: false}}
  report:
    cmd: cat work/metrics.json work/model.bin > report.txt
    deps: [work/metrics.json, work/model.bin]
    outs: [report.txt]
"""
PREPARE = """\
import os
os.makedirs('data/clean')
for n in 'ab': open(f'data/clean/{n}.txt', 'w').write(open(f'data/raw/{n}').read().upper())
"""
TRAIN = """\
import json
lr = float(open('../params.yaml').read().split('lr: ')[1].split()[0])
open('model.bin', 'w').write(open('../data/clean/a.txt').read() + str(lr))
json.dump({'acc': lr}, open('metrics.json', 'w'))
"""
FILES = {
    "dvc.yaml": DVC_YAML, "params.yaml": "lr: 0.5\nother: 1\n", "prepare.py": PREPARE, "work/train.py": TRAIN,
    "data/raw/a": "alpha\n", "data/raw/b": "beta\n",
}  # fmt: skip


class Exported:
    """A repository with three stages, and the pipeline that was made of it."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        self.root = folder / "repo"
        self.store = folder / "remote" / "store"
        self.store.mkdir(parents=True)
        self.repo = repos.make_repo(self.root, FILES, remote=self.store, add=["data/raw"], commit="Start")
        self.file = folder / "pipeline.yaml"
        monkeypatch.chdir(self.root)

    def export(self, *options: str) -> None:
        mount = ["--remote-url", str(self.store)]
        assert main(["export", "kfp", "-o", str(self.file), *mount, *options]) == 0

    @property
    def documents(self) -> list[dict]:
        return list(yaml.safe_load_all(self.file.read_text()))

    def inputs(self, task: str) -> dict[str, str]:
        """Constant parameters of a task."""
        given = self.documents[0]["root"]["dag"]["tasks"][task]["inputs"]["parameters"]
        return {k: v["runtimeValue"]["constant"] for k, v in given.items() if "runtimeValue" in v}

    def about(self, task: str) -> dict:
        return json.loads(self.inputs(task)["run"])

    def ran(self) -> int:
        """Number of runs in the remote's run cache."""
        return len([file for file in (self.store / "runs").rglob("*") if file.is_file()])


@pytest.fixture
def project(tmp_path, monkeypatch) -> Exported:
    monkeypatch.setenv("DVKF_KUBEFLOW_IMAGE", IMAGE)
    project = Exported(tmp_path, monkeypatch)
    # Pods see the folder of the remote as if a volume with it were mounted.
    mount = f"\n    meta: {{kubeflow: {{volumes: [{{claim: data, mount: {tmp_path}/remote}}]}}}}"
    text = re.sub(r"(?m)^(    cmd:)", mount[1:] + r"\n\1", DVC_YAML)
    (project.root / "dvc.yaml").write_text(text)
    repos.commit_all(project.root)
    return project


LOCAL = """
import json, sys
from kfp import components, local
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2], workspace_root=sys.argv[2] + "/w",
    raise_on_error=True, enable_caching=False)
components.load_component_from_file(sys.argv[1])(**json.loads(sys.argv[3]))
"""


def run_locally(project: Exported, **values) -> str:
    """Run the pipeline by KFP's local runner, in a folder without the repository."""
    folder = project.folder / f"local-{time.monotonic_ns()}"
    folder.mkdir()
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", LOCAL, str(project.file), str(folder / "root"), json.dumps(values)],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def test_a_pipeline_runs_by_kfps_local_runner_and_repro_restores_it(project, capsys):
    project.export("--image", "registry.example.org/python:1")
    assert "3 stage(s) of commit" in capsys.readouterr().out
    log = run_locally(project)
    assert project.ran() == 3 and "reusing its outputs" not in log
    # Another run takes all from the run cache.
    assert run_locally(project).count("reusing its outputs") == 3
    assert main(["repro", "--pull"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("is cached - skipping run") == 3 and "Running stage" not in shown
    assert (project.root / "report.txt").read_text() == '{"acc": 0.5}ALPHA\n0.5'
    assert set(read_lock(project.repo.files(), "dvc.lock")) == {"prepare", "train", "report"}
    assert main(["status"]) == 0 and "up to date" in capsys.readouterr().out
    # Another value of a parameter is another run, which repro restores once params.yaml has it.
    log = run_locally(project, lr=0.25)
    assert log.count("reusing its outputs") == 1 and project.ran() == 5
    (project.root / "params.yaml").write_text("lr: 0.25\nother: 1\n")
    assert main(["repro", "--pull"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("is cached - skipping run") == 2 and "Running stage" not in shown
    assert (project.root / "report.txt").read_text() == '{"acc": 0.25}ALPHA\n0.25'


def test_changed_values_are_written_into_the_parameters_files_of_the_sources(tmp_path):
    files = {
        "params.yaml": "lr: 1\nother: {a: 1}\n",
        "p.json": '{"a": {"b": 1}, "c": 2}',
        "code.py": "a = 1\n",
    }
    repos.write(tmp_path, files)
    params = {"params.yaml": {"lr": 2}, "p.json": {"a.b": 3}, "code.py": {"a": 4}, "none.yaml": {"x": 1}}
    step = StepSpec("train", ("true",), "", params=params)
    write_values(tmp_path, step, {"params.yaml", "p.json", "none.yaml"})
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) == {"lr": 2, "other": {"a": 1}}
    assert json.loads((tmp_path / "p.json").read_text()) == {"a": {"b": 3}, "c": 2}
    assert not (tmp_path / "none.yaml").exists()
    with pytest.raises(StageError, match=r"a value of 'code\.py' was changed, which is code"):
        write_values(tmp_path, step, {"code.py"})
    step = dataclasses.replace(step, deps=(StepContent("params.yaml", Content("0" * 32)),))
    with pytest.raises(StageError, match="also depends on the file as a whole"):
        write_values(tmp_path, step, {"params.yaml"})


@every_version
def test_the_kfp_command_starts_it_on_a_server_of_each_version(project, kfp, version, capsys):
    """Nothing but KFP's own command is used between the export and the restore."""
    project.export("--name", "My Pipeline")
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(project.folder), "DO_NOT_TRACK": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    command = ["kfp", "--endpoint", kfp.host, "--output", "json"]
    command += ["run", "create", "-e", "by-hand", "-r", "first", "-f", str(project.file)]
    done = subprocess.run(
        command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = kfp.runs.values()
    wait_for(lambda: run.state in ENDED, 120)
    assert run.state == "SUCCEEDED", [task.log for task in kfp.run.tasks.values()]
    assert kfp.workflows[0].pipeline["pipelineInfo"]["name"] == "my-pipeline"
    assert not kfp.problems
    assert project.ran() == 3
    # Results of a run are below its id.
    assert (project.store / "dvkf/runs" / run.id / "train" / "result.json").is_file()
    assert main(["repro", "--pull"]) == 0
    assert capsys.readouterr().out.count("is cached - skipping run") == 3
    assert (project.root / "report.txt").read_text() == '{"acc": 0.5}ALPHA\n0.5'


def test_runs_in_dvc_lock_are_in_the_run_cache_before_the_pipeline_runs(project):
    assert main(["repro"]) == 0 and main(["push"]) == 0
    repos.commit_all(project.root)
    project.export()
    assert project.ran() == 3
    record = read_record(project.repo.remote().storage, project.about("prepare")["record"])
    spec = StepSpec.from_json(project.inputs("prepare")["spec"])
    known = record.known(project.repo.remote().storage, spec)
    assert [out.path for out in known.outs] == ["data/clean"]
    changed = dataclasses.replace(spec, deps=(dataclasses.replace(spec.deps[0], content=Content("0" * 32)),))
    assert (
        record.known(
            project.repo.remote().storage, dataclasses.replace(changed, deps=(*changed.deps, spec.deps[1]))
        )
        is None
    )
    # With --force the same run is not taken.
    project.export("--force")
    record = read_record(project.repo.remote().storage, project.about("prepare")["record"])
    assert record.force and record.known(project.repo.remote().storage, spec) is None


def test_the_sources_outlive_a_collection(project):
    """Files of runs are removed after eight days, but the pipeline may be started later."""
    project.export()
    files = [file for file in (project.store / "dvkf-exports").rglob("*") if file.is_file()]
    assert len(files) == 4  # the sources, and a record for each stage
    for file in [*files, *(project.store / "files").rglob("*")]:
        os.utime(file, (0, 0))
    assert main(["gc", "-w", "-c", "-f"]) == 0
    assert all(file.is_file() for file in files)
    for file in files:
        file.unlink()
    with pytest.raises(MissingObjectError, match="Export the pipeline again"):
        read_record(project.repo.remote().storage, project.about("train")["record"])
    project.export()
    assert all(file.is_file() for file in files)


def test_no_secret_is_in_the_file_nor_beside_it_on_the_remote(project, monkeypatch):
    for name in ("TOKEN", "PASSWORD", "COOKIE", "USERNAME"):
        monkeypatch.setenv(f"DVKF_KUBEFLOW_{name}", "planted-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    project.export("--remote-secret", "lake", "--remote-secret-key", "key=password")
    text = project.file.read_text()
    assert "lake" in text and "DVKF_REMOTE_OPTION_PASSWORD" in text
    stored = [file for file in project.store.rglob("*") if file.is_file()]
    assert stored and not any(
        b"planted" in data for data in [text.encode(), *(f.read_bytes() for f in stored)]
    )
    with pytest.raises(ConfigError, match="'password' of the remote is a secret"):
        export_pipeline(
            project.repo,
            dataclasses.replace(SETTINGS, remote=PodRemote(options={"password": "planted-secret"})),
        )


def test_it_is_written_as_kubernetes_objects(project, capsys):
    project.export("--kubernetes-manifest", "--namespace", "team", "--name", "Lake")
    pipeline, version = project.documents
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert pipeline["metadata"] == {"name": "lake", "namespace": "team"}
    assert version["spec"]["pipelineName"] == "lake" and version["metadata"]["name"].startswith("lake-")
    assert list(version["spec"]["pipelineSpec"]["root"]["dag"]["tasks"]) == ["prepare", "report", "train"]
    assert (
        "exec-train"
        in version["spec"]["platformSpec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    )
    assert f"kubectl apply -f {project.file}" in capsys.readouterr().out
    # The same export is the same version.
    project.export("--kubernetes-manifest", "--namespace", "team", "--name", "Lake")
    assert project.documents[1]["metadata"] == version["metadata"]


def test_targets_and_options_reach_the_pipeline(project, monkeypatch, capsys):
    project.export("prepare")
    assert list(project.documents[0]["root"]["dag"]["tasks"]) == ["prepare"]
    monkeypatch.setenv("DVKF_KUBEFLOW_IMAGE", "")
    monkeypatch.setenv("DVKF_KUBEFLOW_PIPELINE_ROOT", "s3://bucket/root")
    monkeypatch.setenv("DVKF_KUBEFLOW_SERVICE_ACCOUNT", "trainer")
    project.export("prepare", "--package", "dvkf-prefect==0.4.0", "--remote-option", "jobs=3", "--no-push")
    assert "service account 'trainer'" in capsys.readouterr().out
    spec = project.documents[0]
    assert spec["defaultPipelineRoot"] == "s3://bucket/root"
    assert "dvkf-prefect==0.4.0" in json.dumps(spec["deploymentSpec"]["executors"]["exec-prepare"])
    assert project.about("prepare")["options"] == {"jobs": "3"}
    assert (
        main(["export", "kfp", "prepare", "-o", "-", "--image", "a:1", "--remote-url", str(project.store)])
        == 0
    )
    assert next(iter(yaml.safe_load_all(capsys.readouterr().out)))["root"]["dag"]["tasks"].keys() == {
        "prepare"
    }


def test_outputs_of_left_out_stages_are_inputs(project):
    assert main(["repro"]) == 0 and main(["push"]) == 0
    repos.commit_all(project.root)
    project.export("-s", "report", "--allow-dirty")
    assert list(project.documents[0]["root"]["dag"]["tasks"]) == ["report"]
    deps = {dep.path: dep.digest for dep in StepSpec.from_json(project.inputs("report")["spec"]).deps}
    lock = read_lock(project.repo.files(), "dvc.lock")["report"]
    assert deps == {item["path"]: item["md5"] for item in lock["deps"]}


def test_a_stage_that_dvc_never_restores_is_named(project, capsys):
    text = (
        (project.root / "dvc.yaml")
        .read_text()
        .replace("  prepare:\n", "  prepare:\n    always_changed: true\n")
    )
    (project.root / "dvc.yaml").write_text(text)
    repos.commit_all(project.root)
    project.export()
    assert "Not recorded, as DVC never restores them: prepare." in capsys.readouterr().out
    assert project.about("prepare")["record"] == ""


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("image", ""), (), "no image for stage 'prepare'"),
        (None, ("--namespace", "a"), "Add --kubernetes-manifest"),
        (None, ("--remote-option", "a"), "Write it as NAME=VALUE"),
        (("raw", ""), (), "the dependency 'data/raw' ("),
        (("data/clean/a.txt]", "data]"), (), "stage 'train' reads a folder or a parameters file that other stages"),
        (("[report.txt]", "[report.txt]\n    frozen: true"), ("-s", "report"), "no stage to export"),
        (("prepare.py\n    deps: [prepare.py", "none.py\n    deps: [none.py"), (), "missing dependencies: none.py"),
        (None, ("nowhere",), "'nowhere' is not a stage"),
        (("dirty", ""), (), "1 file(s) are not committed"),
        (("most", ""), (), "3 stages, at most 2 in a pipeline"),
        (
            ("    meta: {kubeflow: {", "    meta: {kubeflow: {labels: {}, annotations: {a: 😀}, "),
            (),
            "contain 😀, which the database",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    project, monkeypatch, capsys, change, options, message
):
    if change == ("image", ""):
        monkeypatch.setenv("DVKF_KUBEFLOW_IMAGE", "")
    elif change == ("most", ""):
        monkeypatch.setattr("dvkf_prefect.kubeflow.export.export.MOST_STAGES", 2)
    elif change == ("dirty", ""):
        (project.root / "prepare.py").write_text("# changed")
    elif change == ("raw", ""):
        (project.root / "data/raw/a").unlink()
        (project.root / "data/raw/a").write_text("not added")
    elif change:
        text = (project.root / "dvc.yaml").read_text()
        assert change[0] in text
        (project.root / "dvc.yaml").write_text(text.replace(*change))
        repos.commit_all(project.root)
    mount = ["--remote-url", str(project.store)]
    assert main(["export", "kfp", "-o", str(project.file), *mount, *options]) != 0
    assert message in capsys.readouterr().err
    assert not project.file.exists()


def test_a_long_specification_is_stored_with_the_sources(project):
    """Argo cannot hold it as a parameter."""
    text = (project.root / "dvc.yaml").read_text().replace("cmd: cat", f"cmd: echo {'x' * 40_000}; cat")
    (project.root / "dvc.yaml").write_text(text)
    repos.commit_all(project.root)
    project.export()
    place = project.inputs("report")["spec"]
    assert place.startswith("remote:dvkf-exports/") and len(project.file.read_text()) < 40_000
    spec = StepSpec.from_json(project.repo.remote().storage.read(place.removeprefix("remote:")))
    assert spec.stage == "report" and len(spec.cmd[0]) > 40_000


def test_a_block_exports_with_its_settings(project):
    block = KubeflowPipelines(
        backend="kubeflow",
        credentials=KubeflowCredentials(host="http://localhost"),
        image="block:1",
        remote_url=str(project.store),
        workspace={"size": "1Gi", "access_mode": "ReadWriteOnce"},
        defaults={"cpu": 3},
    )
    made = block.export(project.repo, ["prepare"], options=ExportOptions(name="mine"))
    spec, platform = yaml.safe_load_all(made.text)
    assert (made.stages, made.needs) == (("prepare",), (2, 15)) and made.sources.commit
    assert spec["pipelineInfo"]["name"] == "mine"
    container = spec["deploymentSpec"]["executors"]["exec-prepare"]["container"]
    assert (container["image"], container["resources"]["resourceCpuLimit"]) == ("block:1", "3")
    assert platform["platforms"]["kubernetes"]["pipelineConfig"]["workspace"]["size"] == "1Gi"
