"""Models of each format: trained by the real library, saved, loaded by their digest, and asked in both protocols.

PyTorch and TensorFlow are large, so the tests of their formats are skipped where they are not installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from formats_world import KINDS, ROWS, Made, X, Y, digest_of, make_python, make_sklearn, whole_way
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from dvkf_prefect.errors import ModelDigestError, PredictionError, ServingError
from dvkf_prefect.models.layouts import FORMATS
from dvkf_prefect.serving.loading import load_model
from dvkf_prefect.serving.served import Served

_SPEC = YAML(typ="safe").load(Path(__file__).parents[1] / "kubeflow" / "open-inference-v2.openapi.yaml")


def _make(kind: str, folder: Path) -> Made:
    for module in KINDS[kind].needs:
        pytest.importorskip(module)
    return KINDS[kind].make(folder)


@pytest.fixture
def keep() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _load(made: Made, keep: ExitStack, **options: Any) -> Served:
    return load_model(made.path, digest_of(made.path), "m", "v1.0.0", keep=keep, **options)


def _conforms(document: object, schema: str) -> None:
    rules = {"$ref": f"#/components/schemas/{schema}", "components": _SPEC["components"]}
    Draft202012Validator(rules).validate(json.loads(json.dumps(document)))


# Libraries warn about themselves: a deprecated module of theirs, a compiler that is missing.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(KINDS))
def test_each_format_answers_as_its_library(kind: str, tmp_path: Path, keep: ExitStack) -> None:
    made = _make(kind, tmp_path)
    model = _load(made, keep)
    metadata = model.metadata()
    _conforms(metadata, "metadata_model_response")
    assert metadata["platform"] == made.platform

    tensor = {"name": "rows", "shape": [5, 4], "datatype": "FP32", "data": ROWS.ravel().tolist()}
    answer = model.infer({"inputs": [tensor]})
    _conforms(answer, "inference_response")
    found = {out["name"]: np.reshape(out["data"], out["shape"]) for out in answer["outputs"]}
    assert list(found) == list(made.answers)
    for name, values in made.answers.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)

    # JSON's numbers are FP64; V1 names no type.
    predictions = model.predict({"instances": ROWS.tolist()})["predictions"]
    first = next(iter(made.answers))
    values = [row[first] if isinstance(row, dict) else row for row in predictions]
    np.testing.assert_allclose(values, made.answers[first], rtol=1e-4, atol=1e-5)

    for bad in ([[1.0, 2.0]], [["a"] * 4]):
        with pytest.raises(PredictionError):
            model.predict({"instances": bad})

    # A change of any byte is refused, and nothing is opened: the library would complain in other words.
    digest = digest_of(made.path)
    files = [made.path] if made.path.is_file() else [p for p in made.path.rglob("*") if p.is_file()]
    for file in files[:3]:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if data else b"x")
        with pytest.raises(ModelDigestError, match="It was not loaded"):
            load_model(made.path, digest, "m", "v1.0.0", keep=keep)
        file.write_bytes(data)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_model_of_each_format_goes_the_whole_way(kind: str, tmp_path: Path) -> None:
    for module in KINDS[kind].needs:
        pytest.importorskip(module)
    way = whole_way(kind, tmp_path)
    assert set(way.runtimes) == set(FORMATS[way.format].runtimes)
    assert way.opened


def test_tampered_code_is_not_run(tmp_path: Path, keep: ExitStack) -> None:
    make_python(tmp_path)
    digest = digest_of(tmp_path)
    (tmp_path / "scale.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    with pytest.raises(ModelDigestError):
        load_model(tmp_path, digest, "m", "v1.0.0", keep=keep)
    assert not (tmp_path / "trace").exists()


def test_the_copy_that_was_verified_is_the_one_that_is_used(tmp_path: Path) -> None:
    with ExitStack() as keep:
        model = _load(make_python(tmp_path), keep)
        folder = Path(model._estimator.load.__code__.co_filename).parent  # type: ignore[attr-defined]
        assert folder != tmp_path and folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_names_of_features_come_from_the_booster(tmp_path: Path, keep: ExitStack) -> None:
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    table = pd.DataFrame(X, columns=list("abcd"))
    booster = xgboost.train({"num_class": 3, "objective": "multi:softprob"}, xgboost.DMatrix(table, Y), 2)
    booster.save_model(tmp_path / "m.ubj")
    options = {"objective": "multiclass", "num_class": 3, "verbose": -1}
    lightgbm.train(options, lightgbm.Dataset(table, Y), 2).save_model(tmp_path / "m.bst")
    row = {"d": 0.2, "b": None, "c": 1.4, "a": 5.1}
    for file in ("m.ubj", "m.bst"):
        model = _load(Made(tmp_path / file, "", {}), keep)
        by_name = model.predict({"instances": [row]})
        assert by_name == model.predict({"instances": [[5.1, None, 1.4, 0.2]]})
        with pytest.raises(PredictionError, match="unknown features"):
            model.predict({"instances": [{"a": 1}]})


def test_a_format_by_name(tmp_path: Path, keep: ExitStack) -> None:
    made = make_sklearn(tmp_path)
    odd = made.path.rename(tmp_path / "model.bin")
    with pytest.raises(ServingError, match=r"format of the model is not known.*\*\.onnx"):
        _load(Made(odd, "", {}), keep)
    assert _load(Made(odd, "", {}), keep, model_format="sklearn").platform == "sklearn"
    with pytest.raises(ServingError, match=r"no model format 'pmml'.*Use one of python"):
        _load(Made(odd, "", {}), keep, model_format="pmml")
    # Of two candidates in a folder, the format names one; a .json beside a model is not one.
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "again.joblib").write_bytes(odd.read_bytes())
    with pytest.raises(ServingError, match=r"exactly one of.*found again.joblib, model.onnx"):
        _load(Made(tmp_path, "", {}), keep)
    assert _load(Made(tmp_path, "", {}), keep, model_format="sklearn").platform == "sklearn"


def test_a_package_that_is_missing(tmp_path: Path, keep: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(
        ServingError, match=r"no package onnxruntime.*Run `pip install 'dvkf-prefect\[serve-onnx\]'`"
    ):
        _load(Made(tmp_path / "m.onnx", "", {}), keep)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "no class Model: model.py. Define it"),
        ("class Model:\n    def predict(self, rows): ...", "no method load"),
        ("class Model:\n    def load(self, folder): ...", "no method predict"),
        ("import no_such_thing", "cannot be loaded .*no_such_thing"),
    ],
)
def test_what_a_class_must_have(tmp_path: Path, keep: ExitStack, code: str, said: str) -> None:
    (tmp_path / "model.py").write_text(code)
    with pytest.raises(ServingError, match=said):
        _load(Made(tmp_path, "", {}), keep)


def test_several_inputs_and_outputs(tmp_path: Path, keep: ExitStack) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Neg", ["a"], ["minus"])],
        "g",
        [helper.make_tensor_value_info(name, kind.FLOAT, ["n", 2]) for name in "ab"],
        [helper.make_tensor_value_info(name, kind.FLOAT, ["n", 2]) for name in ("sum", "minus")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    model = _load(Made(tmp_path / "m.onnx", "", {}), keep)
    rows = [{"a": [1, 2], "b": [3, 4]}]
    assert model.predict({"instances": rows}) == {"predictions": [{"sum": [4, 6], "minus": [-1, -2]}]}
    tensors = [{"name": n, "shape": [1, 2], "datatype": "INT8", "data": v} for n, v in rows[0].items()]
    asked = model.infer({"inputs": tensors, "outputs": [{"name": "minus"}]})["outputs"]
    assert [(out["name"], out["datatype"], out["data"]) for out in asked] == [("minus", "FP32", [-1, -2])]
    for wrong, said in (
        (tensors[:1], "inputs a; expected a FP32"),
        ([{**tensors[0], "shape": [2, 1]}, tensors[1]], r"input 'a' has shape \[2, 1\]"),
        ([{**tensors[0], "datatype": "BYTES", "data": ["x", "y"]}, tensors[1]], "not all FP32"),
    ):
        with pytest.raises(PredictionError, match=said):
            model.infer({"inputs": wrong})
    with pytest.raises(PredictionError, match="no output x; this model has sum, minus"):
        model.infer({"inputs": tensors, "outputs": [{"name": "x"}]})
