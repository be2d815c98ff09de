"""What the flows decide by themselves; that they run is shown by the deployments' test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dvkf_prefect.pipeline.report.metrics import MetricChange

FLOWS = Path(__file__).parents[2] / "flows"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_flow", FLOWS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train() -> ModuleType:
    return load("train")


ROWS = (
    MetricChange("a.json", "accuracy", 0.5, 0.9, 0.4),
    MetricChange("b.json", "accuracy", 0.5, 0.8, 0.3),
    MetricChange("b.json", "loss", None, 0.2),
    MetricChange("b.json", "name", None, "tree"),
)


def test_metric_by_name_or_by_file(train: ModuleType) -> None:
    assert train.find_metric(ROWS, "loss") == 0.2
    assert train.find_metric(ROWS, "b.json:accuracy") == 0.8


@pytest.mark.parametrize(
    ("name", "message"), [("accuracy", "several files"), ("name", "not a number"), ("recall", "not a number")]
)
def test_metric_that_cannot_be_compared(train: ModuleType, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train.find_metric(ROWS, name)
    assert "b.json:loss" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train", "Bring a DVC pipeline up to date"),
        ("repro", "Run the stages of a dvc.yaml for which something"),
    ],
)
def test_parameters_are_described_for_the_form(name: str, said: str) -> None:
    made = getattr(load(name), name)
    properties = made.parameters.properties
    assert [name for name, shown in properties.items() if not shown.get("description")] == []
    assert made.description.startswith(said)
