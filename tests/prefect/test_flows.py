"""What the flows decide by themselves; that they run is shown by the deployments' test."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dvkf_prefect
from dvkf_prefect import MetricChange, ReproResult, flows
from dvkf_prefect.flows.pipelines import check_metric_name, find_metric, outcome_text

FLOWS = Path(__file__).parents[2] / "flows"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_flow", FLOWS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ROWS = (
    MetricChange("a.json", "accuracy", 0.5, 0.9, 0.4),
    MetricChange("b.json", "accuracy", 0.5, 0.8, 0.3),
    MetricChange("b.json", "loss", None, 0.2),
    MetricChange("b.json", "name", None, "tree"),
)


def test_metric_by_name_or_by_file() -> None:
    assert find_metric(ROWS, "loss") == 0.2
    assert find_metric(ROWS, "b.json:accuracy") == 0.8


@pytest.mark.parametrize(
    ("name", "message"), [("accuracy", "several files"), ("name", "not a number"), ("recall", "not a number")]
)
def test_metric_that_cannot_be_compared(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        find_metric(ROWS, name)
    assert "b.json:loss" in str(caught.value)


def test_the_commit_names_what_ran_and_what_was_restored() -> None:
    made = functools.partial(ReproResult, decisions=(), skipped=("a",), failed=())
    assert outcome_text(made(ran=("b", "c"), restored=())) == "b, c"
    assert outcome_text(made(ran=("b",), restored=("c", "d"))) == "b; restored c, d"
    assert outcome_text(made(ran=(), restored=("c",))) == "restored c"
    assert outcome_text(made(ran=(), restored=())) == "nothing ran"


def test_a_misspelt_metric_is_refused_before_the_run() -> None:
    metrics = {"a.json": {"accuracy": 0.9}, "b.json": {"loss.train": 0.2}}
    for name in ("accuracy", "a.json:accuracy", "recall"):
        check_metric_name(metrics, name)
        check_metric_name({}, name)
    with pytest.raises(ValueError, match=r"'acuracy' is not in the last run .* Use 'accuracy'"):
        check_metric_name(metrics, "acuracy")


@pytest.mark.parametrize(
    ("file", "name", "said"),
    [
        ("train", "train", "Bring a DVC pipeline up to date"),
        ("repro", "repro", "Run the changed stages of a dvc.yaml"),
        ("ingest", "ingest", "Check new files by a schema of pandera"),
        ("maintain", "maintain", "Verify data in the cache and on the remote"),
        ("serve", "serve", "Serve a registered version of a model"),
        ("serve", "rollback", "Serve the version that had a model stage"),
        ("promote", "promote", "Promote a registered version"),
    ],
)
def test_parameters_are_described_for_the_form(file: str, name: str, said: str) -> None:
    made = getattr(load(file), name)
    assert made is getattr(flows, name)
    properties = made.parameters.properties
    assert [name for name, shown in properties.items() if not shown.get("description")] == []
    assert made.description.startswith(said)


def test_flows_use_what_is_exported() -> None:
    """Who copies a flow gets by with the package's public names."""
    files = [file for file in Path(str(flows.__file__)).parent.glob("*.py") if file.name != "__init__.py"]
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dvkf_prefect"):
                assert node.module == "dvkf_prefect"
                assert {alias.name for alias in node.names} <= set(dvkf_prefect.__all__)


@pytest.mark.parametrize("name", flows.__all__)
def test_annotations_go_with_a_flow_to_another_process(name: str) -> None:
    """Runs of `repro.serve(cron=...)` failed: `Sequence` is not defined.

    Prefect pickles such a flow by value, and names in annotations that are texts stay behind.
    """
    parameters = inspect.signature(getattr(flows, name).fn).parameters.values()
    assert parameters and not [each.name for each in parameters if isinstance(each.annotation, str)]
