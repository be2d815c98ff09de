"""Stages compile to pipelines that KFP's own loader, its API's schema and its local runner accept."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jsonschema
import pytest

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import RunnerError, StageGraphError
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.kubeflow.compile.compile import SPEC_LIMIT, compile_stages, task_names
from dvkf_prefect.pipeline.step.spec import StepContent, StepOutput, StepSpec

SWAGGER = Path(__file__).parent / "kfp-v2beta1-run.schema.json"


def step(name: str, cache: object = "/cache", deps=(), outs=(), cmd="true", **more) -> StepSpec:
    """A stage whose dependencies are known by path only, as those are that another stage writes."""
    return StepSpec(
        name,
        (cmd,),
        str(cache),
        deps=tuple(d if isinstance(d, StepContent) else StepContent(d, Content("")) for d in deps),
        outs=tuple(o if isinstance(o, StepOutput) else StepOutput(o) for o in outs),
        **more,
    )


def diamond(cache: object = "/cache") -> list[StepSpec]:
    return [
        step("join", cache, ["left.txt", "parts/b"], ["all.txt"], "cat left.txt parts/b > all.txt"),
        step(
            "right",
            cache,
            ["raw.txt"],
            ["parts"],
            "mkdir -p parts; tr a-z A-Z < raw.txt > parts/b; touch parts/c",
        ),
        step("left", cache, ["raw.txt"], ["left.txt"], "cp raw.txt left.txt"),
        step("get data", cache, [], ["raw.txt"], "echo hello > raw.txt"),
    ]


def tasks(spec: dict) -> dict:
    return spec["root"]["dag"]["tasks"]


def parameter(spec: dict, task: str, name: str = "spec") -> str:
    return tasks(spec)[task]["inputs"]["parameters"][name]["runtimeValue"]["constant"]


# -- names ---------------------------------------------------------------------------------------------------------


def test_task_names_stay_readable():
    names = task_names(["train", "prepare_data", "nlp/dvc.yaml:train@en-1", "Évaluer", "3d"])
    assert list(names.values()) == ["train", "prepare-data", "nlp-train-en-1", "evaluer", "stage-3d"]


def test_task_names_are_valid_unique_and_independent_of_order():
    stages = [
        "train",
        "Train",
        "TRAIN",
        "tra.in",
        "tra_in",
        "日本",
        "中国",
        "-",
        "_",
        "a" * 300,
        "a" * 301,
        "root",
        "stage",
    ]
    names = task_names(stages)
    assert task_names(stages[::-1]) == names
    assert len(set(names.values())) == len(stages)
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", name) for name in names.values())
    assert names["train"] == "train"


def test_a_marked_name_does_not_take_the_name_of_another_stage():
    marked = task_names(["x y", "x_y"])
    names = task_names(["x y", "x_y", marked["x y"]])
    assert names[marked["x y"]] == marked["x y"]
    assert len(set(names.values())) == 3


# -- the pipeline --------------------------------------------------------------------------------------------------


def test_edges_are_parameters_that_carry_digests():
    spec = compile_stages(diamond(), name="Demo Pipeline!")
    assert spec["pipelineInfo"]["name"] == "demo-pipeline"
    assert {name: sorted(task.get("dependentTasks", [])) for name, task in tasks(spec).items()} == {
        "get-data": [],
        "left": ["get-data"],
        "right": ["get-data"],
        "join": ["left", "right"],
    }
    assert tasks(spec)["get-data"]["taskInfo"]["name"] == "get data"
    producers = [
        tasks(spec)["join"]["inputs"]["parameters"][f"upstream_{i}"]["taskOutputParameter"] for i in range(2)
    ]
    assert producers == [
        {"producerTask": "left", "outputParameterKey": "outputs"},
        {"producerTask": "right", "outputParameterKey": "outputs"},
    ]
    assert StepSpec.from_json(parameter(spec, "left")).cmd == ("cp raw.txt left.txt",)
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks(spec).values())


def test_kfp_loads_it_and_its_api_takes_it():
    from google.protobuf import json_format
    from kfp import components
    from kfp.pipeline_spec import pipeline_spec_pb2

    outs = [StepOutput("m.json", cached=False, kind="metric")]
    spec = compile_stages(
        [*diamond(), step("score", deps=["all.txt"], outs=outs)], name="demo", image="example.org/python:1"
    )
    message = json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    assert json_format.MessageToDict(message) == spec
    loaded = components.load_component_from_text(json.dumps(spec))
    assert loaded.pipeline_spec == message
    assert {e["container"]["image"] for e in spec["deploymentSpec"]["executors"].values()} == {
        "example.org/python:1"
    }
    metrics = spec["components"]["comp-score"]["outputDefinitions"]["artifacts"]["metrics"]
    assert metrics["artifactType"]["schemaTitle"] == "system.Metrics"
    read = tasks(spec)["join"]["inputs"]["artifacts"]
    assert {name: found["taskOutputArtifact"] for name, found in read.items()} == {
        "in_left_txt": {"producerTask": "left", "outputArtifactKey": "left_txt"},
        "in_parts": {"producerTask": "right", "outputArtifactKey": "parts"},
    }
    schema = json.loads(SWAGGER.read_text())
    run = {"display_name": "demo", "pipeline_spec": spec, "runtime_config": {"parameters": {}}}
    jsonschema.Draft4Validator(schema).validate(run)


def test_a_pipeline_may_be_called_like_its_stage():
    """KFP's loader took such a pipeline for the bare component and asked for its parameter."""
    from kfp import components

    loaded = components.load_component_from_text(json.dumps(compile_stages([step("train")], name="train")))
    assert not loaded.required_inputs


def test_braces_of_a_command_are_not_taken_for_placeholders():
    cmd = "echo '{{$.inputs.parameters[\"spec\"]}} {{channel:task=a;name=b;type=String;}} {{workflow.name}} {{{{'"
    spec = compile_stages([step("a", cmd=cmd)], name="p")
    text = parameter(spec, "a")
    assert "{{" not in text
    assert StepSpec.from_json(text).cmd == (cmd,)


def test_the_environment_stays_out_of_the_pipeline():
    assert "s3cr3t" not in json.dumps(compile_stages([step("a", env={"TOKEN": "s3cr3t"})], name="p"))


def test_a_step_too_large_for_a_command_line(tmp_path):
    big = step("a", deps=[StepContent(f"d/{i}", Content(f"{i:032x}", i)) for i in range(2000)])
    assert len(big.to_json()) > SPEC_LIMIT
    with pytest.raises(RunnerError, match="stage 'a' has too many dependencies"):
        compile_stages([big], name="p")
    text = parameter(compile_stages([big], name="p", folder=tmp_path), "a")
    assert text.startswith("file:///") and len(text) < 1000
    (file,) = tmp_path.iterdir()
    assert StepSpec.from_json(file.read_text()) == big


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "no stage"),
        ([step("a"), step("a")], "stage 'a' is given twice"),
        ([step("a", outs=["x"]), step("b", outs=["x"])], "'x' is an output of stage 'a' and of stage 'b'"),
        ([step("a", deps=["y"], outs=["x"]), step("b", deps=["x"], outs=["y"])], "cycle"),
        ([step("a", outs=["data/x"]), step("b", deps=["data"])], "in which stage 'a' writes 'data/x'"),
    ],
)
def test_stages_that_make_no_pipeline(steps, message):
    with pytest.raises(StageGraphError, match=message):
        compile_stages(steps, name="p")


# -- the pipeline runs -----------------------------------------------------------------------------------------------


def run_pipeline(spec: dict, folder: Path) -> dict:
    """Run a compiled pipeline by KFP's local runner, alone; return each task's executor output."""
    (folder / "spec.json").write_text(json.dumps(spec))
    script = textwrap.dedent("""
        import json, sys
        from kfp import components, local
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root="root", workspace_root="ws")
        components.load_component_from_text(open("spec.json").read())()
    """)
    # A file for the output: a pipe would be one more thing that a child could keep open.
    with (folder / "log").open("wb") as log:
        code = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=log,
            stderr=log,
            timeout=120,
        ).returncode
    assert code == 0, (folder / "log").read_text()
    return {p.parent.name: json.loads(p.read_text()) for p in folder.glob("root/*/*/executor_output.json")}


def test_upstream_digests_reach_downstream_stages(tmp_path):
    """None of the dependencies' digests is known when the pipeline is compiled."""
    cache = Cache(tmp_path / "cache")
    score = step(
        "score",
        cache.root,
        ["all.txt", "parts"],
        [StepOutput("m.json", kind="metric"), StepOutput("n/n.yaml", cached=False, kind="metric")],
        """test -f parts/b && grep 'lr: 0.5$' params.yaml && grep -- '- 1$' params.yaml || exit 1
        echo '{"len": 12, "by": {"case": 0.5}, "ok": true, "name": "x"}' > m.json
        echo 'f: 1' > n/n.yaml""",
        # The file is written from the values of KFP's parameters, which the runner passes as doubles.
        params={"params.yaml": {"train": {"lr": 0.5, "layers": [1, 2], "none": None}}},
    )
    outputs = run_pipeline(compile_stages([score, *diamond(cache.root)], name="demo"), tmp_path)
    (written,) = tmp_path.glob("root/*/join/outputs")
    ((path, (digest, size, isexec)),) = json.loads(written.read_text()).items()
    assert (path, size, isexec) == ("all.txt", 12, False)
    assert cache.read_bytes(digest) == b"hello\nHELLO\n"
    metrics = outputs["score"]["artifacts"]["metrics"]["artifacts"][0]["metadata"]
    assert metrics == {"m.json:len": 12, "m.json:by.case": 0.5, "n/n.yaml:f": 1}
    (data,) = outputs["join"]["artifacts"]["all_txt"]["artifacts"]
    assert data["metadata"] == {
        "display_name": "all.txt", "path": "all.txt", "md5": digest, "size": 12, "stage": "join"
    }  # fmt: skip
    (pointer,) = tmp_path.glob("root/*/join/all_txt")
    assert f"- md5: {digest}" in pointer.read_text()


def test_unusual_stage_names_run(tmp_path):
    names = [
        "root",
        "condition-1",
        "for-loop-1",
        "exit-handler-1",
        "Ü 日本",
        "a/dvc.yaml:b@{'c': 1}",
        "comp-root",
        "2",
    ]
    cache = tmp_path / "cache"
    outputs = run_pipeline(compile_stages([step(name, cache) for name in names], name="root"), tmp_path)
    assert set(outputs) == set(task_names(names).values())


def test_a_folder_inside_an_upstream_folder(tmp_path):
    cache = Cache(tmp_path / "cache")
    write = step("write", cache.root, [], ["data"], "mkdir -p data/a/b; echo 1 > data/a/b/x; echo 2 > data/y")
    read = step("read", cache.root, ["data/a"], ["out"], "find data -type f > out")
    run_pipeline(compile_stages([write, read], name="demo"), tmp_path)
    (output,) = tmp_path.glob("root/*/read/outputs")
    assert cache.read_bytes(json.loads(output.read_text())["out"][0]) == b"data/a/b/x\n"


def test_compiling_leaves_the_steps_alone():
    steps = diamond()
    before = [dataclasses.asdict(s) for s in steps]
    compile_stages(steps, name="p")
    assert [dataclasses.asdict(s) for s in steps] == before
