"""Parameters and artifacts of stages in KFP: typed values, metadata, lineage, plots, and the limits of all that."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from types import SimpleNamespace

import pytest
from google.protobuf import json_format
from hypothesis import example, given
from hypothesis import strategies as st
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import ParseError, StageError
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.kubeflow.cluster.plots import with_plots
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.compile.artifacts import artifacts_of
from dvkf_prefect.kubeflow.compile.compile import PodPlan, compile_for_cluster
from dvkf_prefect.kubeflow.compile.parameters import (
    default_parameters,
    leaves_of,
    parameter_names,
    resolved,
    with_references,
)
from dvkf_prefect.kubeflow.compile.pod_settings import Placement
from dvkf_prefect.kubeflow.exchange.runs import PodRun
from dvkf_prefect.kubeflow.pod import drawing
from dvkf_prefect.kubeflow.pod.describe import describe
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.spec import (
    StepContent,
    StepKnown,
    StepMeta,
    StepOutput,
    StepResult,
    StepSpec,
)

from .fake import VERSIONS, FakeKfp, launcher, wait_for

# -- parameters ------------------------------------------------------------------------------------------------------


def passed(params: dict) -> dict:
    """Parameters after the way through a run's parameters, protobuf and a task."""
    leaves = leaves_of(params)
    names = parameter_names(leaves)
    given = {names[leaf.identity]: launcher.through_protobuf(leaf.value) for leaf in leaves}
    return resolved(json.loads(json.dumps(with_references(params, names))), given, "train")


PARAMS = {
    "params.yaml": {
        "train": {"lr": 0.1, "epochs": 3, "whole": 1.0, "big": 2**60, "none": None, "on": True},
        "layers": [64, 8],
        "mixed": [1.0, 2],
        "name": "größe",
        "emoji": "😀",
        "braces": "{{workflow.name}}",
        "nothing": {},
        "inf": math.inf,
        "$kfp": ["x", "int", "0"],
        "odd": {"$kfp": 1},
    },
    "nlp/params.json": {"": {"train.lr": 1e-3, "text": "a\nb"}},
}


def test_parameters_have_kfps_types_and_keep_their_values():
    leaves = {".".join(leaf.keys): leaf.kind for leaf in leaves_of(PARAMS)}
    assert leaves == {
        "train.lr": "float", "train.epochs": "int", "train.whole": "float", "train.big": "json",
        "train.none": "json", "train.on": "bool", "layers": "list", "mixed": "json", "name": "str", "emoji": "json",
        "braces": "json", "nothing": "dict", "inf": "json", "$kfp": "list", "odd": "dict", ".train.lr": "float",
        ".text": "json",
    }  # fmt: skip
    found = passed(PARAMS)
    assert found == PARAMS and json.dumps(found) == json.dumps(PARAMS)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), _values, max_size=4))
@example({"": -0.0})
def test_any_value_of_a_parameters_file_survives(values):
    params = {"params.yaml": values}
    # Types too: 1 is not 1.0 in dvc.lock.
    assert json.dumps(passed(params)) == json.dumps(params)


def test_names_of_parameters_are_valid_unique_and_stable():
    params = {
        "params.yaml": {
            "lr": 1,
            "a.b": 2,
            "a": {"b": 3},
            "spec": 4,
            "upstream_0": 5,
            "class": 6,
            "4x": 7,
            "日": 8,
        },
        "other/params.yaml": {"lr": 9},
    }
    leaves = leaves_of(params)
    names = parameter_names(leaves, {"lr"})
    assert parameter_names(leaves[::-1], {"lr"}) == names
    assert len(set(names.values())) == len(leaves) and all(name.isidentifier() for name in names.values())
    assert not {"lr", "spec", "upstream_0", "class"} & set(names.values())
    by_value = {leaf.value: names[leaf.identity] for leaf in leaves}
    assert (by_value[7], by_value[9]) == ("p_4x", "other_params_lr")


def test_another_value_than_the_compiled_one_is_refused():
    """A run that was cloned in KFP's UI with another value would write its results over those of the first."""
    params = {"params.yaml": {"train": {"lr": 0.1}}}
    names = parameter_names(leaves_of(params))
    referring = with_references(params, names)
    assert resolved(referring, {"train_lr": 0.1}, "s") == params
    for value in (0.2, "much", None):
        with pytest.raises(StageError, match=r"the KFP parameter 'train_lr' .*params.yaml:train.lr"):
            resolved(referring, {"train_lr": value}, "s")


# -- what is shown within the limits ---------------------------------------------------------------------------------


def chain(stages: int, values: int = 20, outs: int = 6) -> list[StepSpec]:
    """Stages that each read the last one's outputs."""
    return [
        StepSpec(
            f"stage-number-{n}",
            ("python train.py",),
            "",
            deps=tuple(StepContent(f"data/{n - 1}/{i}", Content("")) for i in range(outs if n else 0)),
            outs=(
                *(StepOutput(f"data/{n}/{i}") for i in range(outs)),
                StepOutput(f"m{n}.json", kind="metric"),
            ),
            params={"params.yaml": {f"section{n}": {f"value_{i}": i / 7 for i in range(values)}}},
        )
        for n in range(stages)
    ]


def cluster(steps: list[StepSpec], spilled: dict[str, str] | None = None) -> dict:
    run = PodRun("k" * 36, "s3://bucket/store", {"endpointurl": "http://x"}, "store", "d" * 32, "c" * 40)
    texts = {} if spilled is None else spilled
    plan = PodPlan(
        lambda task: dataclasses.replace(run, task=task).to_json(),
        {step.stage: Placement() for step in steps},
        {},
        {"dvkf-run": "k"},
        lambda task, text: texts.setdefault(task, text) and f"remote:{task}",
    )
    spec = compile_for_cluster(steps, plan, name="demo", image="example.org/a:1")
    return spec["pipeline_spec"]


def test_kfps_own_loader_takes_parameters_artifacts_and_edges():
    spec = cluster(chain(3))
    message = json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    loaded = components.load_component_from_text(json.dumps(spec))
    assert loaded.pipeline_spec == message and not loaded.required_inputs
    assert loaded.component_spec.inputs["section0_value_1"].type == "Float"


@pytest.mark.parametrize(("stages", "all_shown"), [(1, True), (14, True), (60, False), (100, False)])
def test_the_pipeline_of_many_stages_stays_within_argos_limits(stages, all_shown):
    spec = cluster(chain(stages))
    assert len(json.dumps(spec)) < 640 * 1024
    for task in spec["root"]["dag"]["tasks"].values():
        component = spec["components"][task["componentRef"]["name"]]
        # Metrics are shown in any case.
        assert "metrics" in component["outputDefinitions"]["artifacts"]
        if all_shown:
            assert len([name for name in task["inputs"]["parameters"] if "value" in name]) == 20
            assert len(component["outputDefinitions"]["artifacts"]) == 8
            assert len(task["inputs"].get("artifacts", {})) == 6 * ("dependentTasks" in task)
    assert bool(default_parameters(spec)) == (stages < 100)


def test_a_stage_with_many_values_shows_some_and_says_so(caplog):
    caplog.set_level("INFO")
    step = StepSpec(
        "train",
        ("true",),
        "",
        outs=tuple(StepOutput(f"out/{i}") for i in range(40)),
        params={"params.yaml": {**{f"value_{i}": "x" * 60 for i in range(200)}, "long": "y" * 5000}},
    )
    spilled: dict[str, str] = {}
    spec = cluster([step], spilled)
    shown = default_parameters(spec)
    assert 20 < len(shown) < 100
    # The rest is in the specification, which is on the remote if it is large.
    params = StepSpec.from_json(spilled["train"]).params
    assert resolved(params, shown, "train") == step.params
    assert f"does not show {201 - len(shown)} parameters, " in caplog.text


def test_a_pods_template_with_all_that_is_shown_fits(tmp_path):
    """The driver puts the artifacts that a task reads, with their metadata, into the pod's template."""
    steps = chain(2, values=200, outs=40)
    spec = cluster(steps)
    name, task = "stage-number-1", spec["root"]["dag"]["tasks"]["stage-number-1"]
    component = spec["components"][task["componentRef"]["name"]]
    container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    metadata = {
        "path": "p" * 60,
        "md5": "d" * 32,
        "location": "s3://" + "b" * 90,
        "store_session_info": "x" * 250,
    }
    read = {
        each: {"name": "123456", "uri": "minio://mlpipeline/v2/artifacts/" + "u" * 80, "metadata": metadata}
        for each in task["inputs"]["artifacts"]
    }
    assert 1 <= len(read) < 40
    outputs = {"stage-number-0": {"outputs": "o" * 1024}}
    values = launcher.resolve_parameters(task, component, default_parameters(spec), outputs)
    given = launcher.executor_input(launcher.Task(name, task, tmp_path), component, values, read, (2, 17))
    assert launcher.template_size(container, given) < launcher.TEMPLATE


# -- on a server -----------------------------------------------------------------------------------------------------

ROC = [(0.0, 0.0, math.inf), (0.0, 0.6, 0.9), (0.4, 0.8, 0.5), (1.0, 1.0, 0.1)]
PLOTS_YAML = """\
stages:
  prepare:
    cmd: echo 1 > data.csv
    outs: [data.csv]
  train:
    cmd: python train.py
    deps: [train.py, data.csv]
    params: [train]
    outs: [model.bin, eval]
    metrics:
      - metrics.json: {cache: false}
    plots:
      - loss.csv: {cache: false, x: step, y: loss}
  report:
    cmd: cat model.bin > report.md
    deps: [model.bin, eval/roc.json]
    plots: [report.md]
artifacts:
  classifier: {path: model.bin, type: model}
plots:
  - ROC: {template: simple, x: fpr, y: {eval/roc.json: tpr}}
  - eval/confusion.csv: {template: confusion, x: actual, y: predicted}
"""
TRAIN = f"""\
import json, os
os.makedirs('eval')
json.dump({{'roc': [dict(fpr=f, tpr=t, threshold=h) for f, t, h in {ROC!r}]}}, open('eval/roc.json', 'w'))
open('eval/confusion.csv', 'w').write('actual,predicted\\ncat,cat\\ncat,dog\\ndog,dog\\n')
open('loss.csv', 'w').write('step,loss\\n0,2\\n1,1\\n')
open('model.bin', 'w').write('m')
json.dump({{'acc': 0.9, 'nan': float('nan')}}, open('metrics.json', 'w'))
""".replace("inf", "1e999")


def written(kfp: FakeKfp, task: str) -> dict[str, dict]:
    """Kind and metadata of what a task has in ML Metadata, by the artifact's name."""
    reserved = ("store_session_info",)
    return {
        name: {k: v for k, v in found["metadata"].items() if k not in reserved}
        | {"kind": found["type"]["schemaTitle"].removeprefix("system.")}
        for name, found in kfp.run.tasks[task].published.items()
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_kfp_shows_parameters_artifacts_and_their_lineage(project, kfp, runner):
    params = "train: {lr: 0.1, layers: [64, 8], whole: 2.0, optimizer: adam, none: null}\n"
    for path, text in (("dvc.yaml", PLOTS_YAML), ("train.py", TRAIN), ("params.yaml", params)):
        (project.root / path).write_text(text)
    project.git("commit", "-qam", "Plots")
    assert not repro(project.repo, runner=runner).failed
    wait_for(lambda: kfp.run.state == "SUCCEEDED")
    # All that "compare runs" reads.
    assert kfp.run.body["runtime_config"]["parameters"] == {
        "train_lr": 0.1, "train_layers": [64, 8], "train_whole": 2.0, "train_optimizer": "adam", "train_none": "null"
    }  # fmt: skip
    tasks = kfp.run.pipeline["root"]["dag"]["tasks"]
    assert tasks["train"]["inputs"]["parameters"]["train_lr"] == {"componentInputParameter": "train_lr"}
    spec = StepSpec.from_json(tasks["train"]["inputs"]["parameters"]["spec"]["runtimeValue"]["constant"])
    assert "0.1" not in json.dumps(spec.params) and "adam" not in json.dumps(spec.params)

    train = written(kfp, "train")
    assert {name: found["kind"] for name, found in train.items()} == {
        "metrics": "Metrics", "model_0": "Model", "plot_ROC": "ClassificationMetrics",
        "plot_eval_confusion_csv": "ClassificationMetrics", "plot_loss_csv": "HTML", "eval": "Dataset",
        "metrics_json": "Dataset", "loss_csv": "Dataset",
    }  # fmt: skip
    assert train["metrics"] == {"kind": "Metrics", "display_name": "metrics", "acc": 0.9}
    lock = project.repo.outputs()
    (whole,) = (out for out in lock if out.path == "eval")
    assert train["eval"] == {
        "kind": "Dataset", "display_name": "eval", "path": "eval", "md5": whole.digest, "size": whole.size, "nfiles": 2,
        "stage": "train", "commit": project.git("rev-parse", "HEAD"), "location": train["eval"]["location"],
    }  # fmt: skip
    matrix = train["plot_eval_confusion_csv"]["confusionMatrix"]["struct"]
    assert [each["displayName"] for each in matrix["annotationSpecs"]] == ["cat", "dog"]
    assert [each["row"] for each in matrix["rows"]] == [[1, 1], [0, 1]]
    curve = train["plot_ROC"]["confidenceMetrics"]["list"]
    assert [(p["falsePositiveRate"], p["recall"]) for p in curve] == [(f, t) for f, t, _ in ROC]
    assert curve[0]["confidenceThreshold"] == 1.9

    # Nothing of the data is in KFP's object store: pointers and pages only, below the pipeline root.
    stored = kfp.run.tasks["train"].stored
    assert all(uri.startswith("minio://mlpipeline/v2/artifacts/train/") for uri in stored)
    (loss,) = (data for uri, data in stored.items() if uri.endswith("plot_loss_csv"))
    assert b"<svg" in loss or b"<table" in loss
    (pointer,) = (data for uri, data in stored.items() if uri.endswith("/eval"))
    assert f"- md5: {whole.digest}".encode() in pointer and len(pointer) < 500

    report = kfp.run.tasks["report"]
    assert {name: found["metadata"]["path"] for name, found in report.read.items()} == {
        "in_model_bin": "model.bin",
        "in_eval": "eval",
    }
    assert written(kfp, "report")["plot_report_md"]["kind"] == "Markdown"
    (shown,) = (data for uri, data in report.stored.items() if uri.endswith("plot_report_md"))
    assert shown == b"m"
    assert report.downloaded < 1000


def test_a_known_stage_has_its_artifacts_without_running(project, kfp, settings):
    """The driver of a stage that reads them fails if its producer published none."""
    specs = project.steps()
    # The results of the first run are collected at the end of its runner, else the second would follow it.
    with KfpClusterRunner(project.repo, settings) as runner:
        results = {stage: run.wait(120) for stage, run in runner.start_all(specs).items()}
    known = [
        dataclasses.replace(
            spec,
            known=StepKnown({d.path: d.digest for d in results[spec.stage].deps}, results[spec.stage].outs),
        )
        for spec in specs
    ]
    first = set(kfp.runs)
    with KfpClusterRunner(project.repo, settings) as runner:
        again = {stage: run.wait(120) for stage, run in runner.start_all(known).items()}
    assert all(result.restored for result in again.values()) and len(kfp.runs) == 2
    kfp.runs = {key: run for key, run in kfp.runs.items() if key not in first}
    wait_for(lambda: kfp.run.state == "SUCCEEDED")
    train = written(kfp, "train")
    assert train["metrics"]["acc"] == 0.9
    assert train["model_0"]["md5"] == next(o.digest for o in results["train"].outs if o.path == "model.bin")
    assert set(kfp.run.tasks["report"].read) == {"in_model_bin", "in_metrics_json"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_with_another_value_of_a_parameter_fails_with_the_reason(project, kfp, runner):
    """As KFP's UI makes one: "clone run" with a value changed."""
    kfp.pausing = True
    runs = runner.start_all(project.steps())
    kfp.run.workflow.parameters["lr"] = 0.9
    kfp.pausing = False
    with pytest.raises(StageError, match=r"KFP parameter 'lr' is 0.9, .* Change params.yaml and run"):
        runs["train"].wait(120)


# -- the fake is as strict as the server -------------------------------------------------------------------------------


def task_with(tmp_path, artifact: dict, kind: str = "Dataset") -> tuple[launcher.Task, dict]:
    task = launcher.Task("a", {}, tmp_path)
    task.work.mkdir()
    text = json.dumps({"artifacts": {"x": {"artifacts": [artifact]}}})
    (task.work / "executor_output.json").write_text(text)
    return task, {
        "outputDefinitions": {"artifacts": {"x": {"artifactType": {"schemaTitle": f"system.{kind}"}}}}
    }


@pytest.mark.parametrize(
    ("artifact", "problem"),
    [
        ({"uri": "s3://lake/data/x"}, "does not have expected bucket prefix"),
        ({"metadata": {"size": None}}, "unknown/unsupported value type"),
        ({"metadata": {"loss": math.inf}}, "failed to unmarshall ExecutorOutput"),
        ({"metadata": {"loss": math.nan}}, "failed to unmarshall ExecutorOutput"),
        ({"more": 1}, "failed to unmarshall ExecutorOutput"),
        ({"uri": "dvc+s3://lake/data/x"}, ""),
    ],
)
def test_the_launcher_refuses(tmp_path, artifact, problem):
    task, component = task_with(tmp_path, artifact)
    found = launcher.publish(task, component, "minio://mlpipeline/v2/artifacts")
    assert problem in found and bool(found) == bool(problem)


def test_the_launcher_cannot_bring_an_input_of_a_foreign_uri(tmp_path):
    """Such an artifact passes as an output, and then ends each task that reads it."""
    task, component = task_with(tmp_path, {"uri": "dvc+s3://lake/data/x"})
    root = "minio://mlpipeline/v2/artifacts"
    assert launcher.publish(task, component, root) == ""
    spec = {
        "inputs": {
            "artifacts": {"i": {"taskOutputArtifact": {"producerTask": "a", "outputArtifactKey": "x"}}}
        }
    }
    read = launcher.resolve_artifacts(spec, {"a": task})
    assert "unsupported Cloud bucket" in launcher.bring(
        launcher.Task("b", spec, tmp_path), read, {"a": task}, root
    )
    spec["inputs"]["artifacts"]["i"]["taskOutputArtifact"]["outputArtifactKey"] = "y"
    with pytest.raises(ValueError, match="cannot find output artifact key"):
        launcher.resolve_artifacts(spec, {"a": task})


# -- plots -------------------------------------------------------------------------------------------------------------


def test_kinds_of_plots():
    outs = tuple(
        StepOutput(path, kind="plot") for path in ("a.csv", "b.png", "c.md", "d.json", "e.json", "f.csv", "g")
    )
    plots = {
        "d.json": {"x": "fpr", "y": "tpr"},
        "e.json": {"x": "fpr", "y": ["tpr", "other"]},
        "f.csv": {"template": "confusion_normalized"},
        "both": {"x": "FPR", "y": {"d.json": "TPR", "e.json": "tpr"}},
    }
    found = [
        a for a in artifacts_of(StepSpec("s", ("true",), "", outs=outs, plots=plots)) if a.plot is not None
    ]
    assert [(a.name, a.kind) for a in found] == [
        ("plot_d_json", "ClassificationMetrics"),
        ("plot_e_json", "HTML"),
        ("plot_f_csv", "ClassificationMetrics"),
        ("plot_both_d_json", "ClassificationMetrics"),
        ("plot_both_e_json", "ClassificationMetrics"),
        ("plot_a_csv", "HTML"),
        ("plot_b_png", "HTML"),
        ("plot_c_md", "Markdown"),
        ("plot_g", "HTML"),
    ]


def table(rows: list[tuple]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize(
    ("plot", "rows", "problem"),
    [
        ({"x": "fpr", "y": "tpr"}, [("fpr", "other"), (0, 1)], "unknown field 'tpr'"),
        ({"x": "fpr", "y": "tpr"}, [("fpr", "tpr"), ("low", 1)], "not the points of a ROC curve"),
        (
            {"x": "a", "y": "p", "template": "confusion"},
            [("a", "p"), *((i, i) for i in range(60))],
            "60 classes",
        ),
        ({"x": "", "y": "", "template": "confusion"}, [("a",), (1,)], "actual and predicted"),
        ({"x": "fpr", "y": "tpr"}, [("fpr", "tpr")], "unknown field"),
    ],
)
def test_points_that_are_no_classification(plot, rows, problem):
    with pytest.raises(ParseError, match=problem):
        drawing.classification("p.csv", plot, [("p.csv", table(rows))])


def test_long_curves_are_thinned_out():
    rows = [("fpr", "tpr"), *((i / 5000, i / 5000) for i in range(5001))]
    found = drawing.classification("p.csv", {"x": "fpr", "y": "tpr"}, [("p.csv", table(rows))])
    curve = found["confidenceMetrics"]
    assert len(curve) == 200 and curve[0]["recall"] == 0 and curve[-1]["recall"] == 1


def test_pages_of_plots(monkeypatch):
    points = table([("step", "loss"), (0, 2), (1, 1)])
    page = drawing.page("loss.csv", {"x": "step", "y": "loss"}, [("loss.csv", points)])
    assert page.count("<svg") == 1 and "<script" not in page
    assert drawing.page("r.html", {}, [("r.html", b"<p>hi</p>")]) == "<p>hi</p>"
    folder = [("g/a.png", b"\x89"), ("g/b.csv", points), ("g/<c>.txt", b"?")]
    page = drawing.page("g", {}, folder)
    assert "data:image/png;base64,iQ==" in page and page.count("<svg") == 1 and "g/&lt;c&gt;.txt" in page
    assert "no points" in drawing.page("loss.csv", {}, [])
    monkeypatch.setattr("dvkf_prefect.pipeline.report.plots.import_module", _missing)
    page = drawing.page("loss.csv", {}, [("loss.csv", points)])
    assert "<td>2</td>" in page and "dvkf-prefect[plots]" in page and "<svg" not in page


def _missing(name: str) -> None:
    raise ModuleNotFoundError(name)


def test_a_view_that_fails_does_not_fail_the_stage(tmp_path, caplog):
    cache = Cache(tmp_path / "cache")
    digest = cache.add_bytes(b"no,table")
    step = StepSpec(
        "train",
        ("true",),
        str(cache.root),
        outs=(StepOutput("roc.csv", kind="plot"),),
        plots={"roc.csv": {"x": "fpr", "y": "tpr"}},
    )
    shown = SimpleNamespace(metadata={}, path=str(tmp_path / "x"))
    result = StepResult("train", outs=(StepContent("roc.csv", Content(digest, 8)),))
    describe({"plot_roc_csv": shown}, step, result)
    assert "KFP's artifact 'roc.csv' of stage 'train'" in caplog.text and shown.metadata["md5"] == digest


def test_metadata_has_no_text_that_kfp_replaces_or_cannot_store(tmp_path):
    """A path with ``{{$}}`` was replaced in the input of the task that reads it."""
    path = "{{{$}} \U0001f600 \udc80.bin"
    step = StepSpec("train", ("true",), str(tmp_path), outs=(StepOutput(path),))
    (about,) = artifacts_of(step)
    shown = SimpleNamespace(metadata={}, path=str(tmp_path / "x"))
    describe({about.name: shown}, step, StepResult("train", outs=(StepContent(path, Content("d" * 32, 1)),)))
    assert shown.metadata["path"] == r"{ { {$}} \U0001f600 \udc80.bin"
    task, component = task_with(tmp_path, {"metadata": shown.metadata})
    assert launcher.publish(task, component, "minio://mlpipeline/v2/artifacts") == ""


def test_plots_belong_to_the_stage_that_writes_all_their_files(project):
    (project.root / "sub").mkdir()
    (project.root / "sub/dvc.yaml").write_text(
        "stages: {}\nplots:\n- one: {x: fpr, y: {a/roc.json: tpr}}\n- two: {y: {a/x.csv: a, b/y.csv: b}}\n- c.csv\n"
    )
    meta = StepMeta(file="sub/dvc.yaml")
    specs = [
        StepSpec("a", ("true",), "", outs=(StepOutput("sub/a"),), meta=meta),
        StepSpec("b", ("true",), "", outs=(StepOutput("sub/b"), StepOutput("sub/c.csv")), meta=meta),
    ]
    a, b = with_plots(project.repo, specs)
    assert a.plots == {"one": {"x": "fpr", "y": {"sub/a/roc.json": "tpr"}}}
    assert b.plots == {"sub/c.csv": {}}
