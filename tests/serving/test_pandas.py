"""Pandas in and out: the columns by name, the index kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from processes import wait_until
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from dvkf_prefect.errors import PredictionError, ServingError
from dvkf_prefect.processes.identity import listen
from dvkf_prefect.serving import server
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.frames import answer_of, answer_of_rows
from dvkf_prefect.serving.kserve.endpoint import ServiceEndpoint
from dvkf_prefect.serving.lanes import Lane
from dvkf_prefect.serving.model import Model
from dvkf_prefect.serving.tensor_model import TensorModel, TensorSpec
from dvkf_prefect.serving.traffic import Models

_TABLE = pd.DataFrame(
    {
        "size": [1.0, 2.0, 3.0, 4.0],
        "colour": ["red", "blue", "red", "blue"],
        "grade": pd.Categorical(["a", "b", "b", "a"]),
        "new": [True, False, True, False],
    },
    index=pd.Index(["p", "q", "r", "s"], name="key"),
)
_NUMBERS = pd.DataFrame({"a": [0, 1, 2], "b": [0.0, 1.5, 3.0]}, index=[7, 5, 3])


def _named() -> Any:
    hot = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer([("hot", hot, ["colour", "grade"])], remainder="passthrough")
    return make_pipeline(columns, LogisticRegression()).fit(_TABLE, ["no", "yes", "no", "yes"])


class _Sum:
    """A program of two inputs and two outputs."""

    inputs = (TensorSpec("a", "INT64", (-1, 1)), TensorSpec("b", "FP64", (-1,)))
    outputs = (TensorSpec("total", "FP64", (-1,)), TensorSpec("both", "FP64", (-1, 2)))

    def run(self, inputs: Any) -> Any:
        total = inputs["a"].ravel() + inputs["b"]
        return {"total": total, "both": np.stack([total, -total], axis=1)}


class _Any:
    """A class of the user, which tells nothing of its input."""

    def predict(self, rows: Any) -> Any:
        return [f"{value}" for value in rows[:, 0]]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    numbers = _NUMBERS.to_numpy()
    models = Models()
    models.put("named", Lane(Model(_named(), "named", "v1")))
    models.put("array", Lane(Model(LinearRegression().fit(numbers, [0, 1, 2]), "array", "v1")))
    models.put("two", Lane(Model(LinearRegression().fit(numbers, numbers), "two", "v1")))
    models.put("sum", Lane(TensorModel(_Sum(), "sum", "v1", "program")))
    models.put("any", Lane(Model(_Any(), "any", "v1")))
    listener = listen(0)
    running = server._Server(models, 1 << 20, listener, None)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: running.started)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join(60)


def _endpoint(url: str, model: str) -> Endpoint:
    return Endpoint(url, model, "v1", "", 0, "")


def test_named_columns_in_any_order(url: str) -> None:
    endpoint = _endpoint(url, "named")
    assert endpoint.metadata()["features"] == ["size", "colour", "grade", "new"]
    found = endpoint.predict(_TABLE[["new", "colour", "size", "grade"]])
    assert isinstance(found, pd.Series) and found.name == "predict"
    assert found.index.equals(_TABLE.index) and found.index.name == "key"
    assert found.tolist() == ["no", "yes", "no", "yes"]
    assert (
        endpoint.predict(_TABLE.assign(colour=_TABLE["colour"].astype("category"))).tolist() == found.tolist()
    )


def test_columns_that_are_not_those_of_the_model(url: str) -> None:
    endpoint = _endpoint(url, "named")
    with pytest.raises(
        PredictionError,
        match=r"lacks columns colour and has unknown columns color\. The model was trained with size",
    ):
        endpoint.predict(_TABLE.rename(columns={"colour": "color"}))
    with pytest.raises(PredictionError, match=r"lacks columns grade, new\. "):
        endpoint.predict(_TABLE[["size", "colour"]])
    with pytest.raises(PredictionError, match="several columns size"):
        endpoint.predict(_TABLE.set_axis(["size", "size", "grade", "new"], axis=1))
    with pytest.raises(PredictionError, match="column 'size' has a Timestamp"):
        endpoint.predict(_TABLE.assign(size=pd.Timestamp("2020-01-01")))
    # The server names them to other clients.
    tensor = {"shape": [1], "datatype": "FP64", "data": [1]}
    with pytest.raises(PredictionError, match=r"missing features \['colour', .*unknown features \['x'\]"):
        endpoint.infer([{"name": "size", **tensor}, {"name": "x", **tensor}])


def test_a_model_of_arrays(url: str) -> None:
    found = _endpoint(url, "array").predict(_NUMBERS)
    assert isinstance(found, pd.Series)
    assert found.index.tolist() == [7, 5, 3] and found.tolist() == pytest.approx([0, 1, 2])
    flags = _endpoint(url, "array").predict(_NUMBERS.assign(a=[False, True, True]))
    assert flags.tolist()[:2] == pytest.approx([0, 1])
    with pytest.raises(PredictionError, match=r"has 1 columns \(a\). The model takes 2"):
        _endpoint(url, "array").predict(_NUMBERS[["a"]])
    with pytest.raises(PredictionError, match="the columns b are texts, others are numbers"):
        _endpoint(url, "array").predict(_NUMBERS.assign(b="x"))
    with pytest.raises(PredictionError, match="contains NaN"):
        _endpoint(url, "array").predict(_NUMBERS.assign(a=pd.array([1, None, 3], dtype="Int64")))
    # Lists and arrays get lists, as before.
    assert _endpoint(url, "array").predict(_NUMBERS.to_numpy()) == pytest.approx([0, 1, 2])


def test_several_outputs_make_a_frame(url: str) -> None:
    two = _endpoint(url, "two").predict(_NUMBERS)
    assert isinstance(two, pd.DataFrame) and list(two.columns) == ["predict-0", "predict-1"]
    assert np.allclose(two.to_numpy(), _NUMBERS.to_numpy()) and two.index.tolist() == [7, 5, 3]
    total = _endpoint(url, "sum").predict(_NUMBERS[["b", "a"]])
    assert isinstance(total, pd.DataFrame) and list(total.columns) == ["total", "both-0", "both-1"]
    assert total["both-1"].tolist() == [0.0, -2.5, -5.0]
    with pytest.raises(PredictionError, match="lacks columns b"):
        _endpoint(url, "sum").predict(_NUMBERS[["a"]])


def test_a_model_that_tells_nothing(url: str) -> None:
    endpoint = _endpoint(url, "any")
    assert endpoint.predict(_NUMBERS[["a"]]).tolist() == ["0", "1", "2"]
    texts = endpoint.predict(pd.DataFrame({"t": ["x", "y"]}, index=[1, 2]))
    assert isinstance(texts, pd.Series) and texts.to_dict() == {1: "x", 2: "y"}


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_a_service_of_kserve(url: str, protocol: str) -> None:
    service = ServiceEndpoint(url, "named", "v1", "", service="named", namespace="ml", protocol=protocol)
    found = service.predict(_TABLE)
    assert isinstance(found, pd.Series) and found.to_dict() == dict(
        zip("pqrs", ["no", "yes"] * 2, strict=True)
    )


def test_answers_with_another_number_of_rows() -> None:
    with pytest.raises(ServingError, match=r"output 'y' has shape \[2\], and the frame 3 rows"):
        answer_of(_NUMBERS, [{"name": "y", "datatype": "FP64", "shape": [2], "data": [1, 2]}])
    with pytest.raises(ServingError, match="1 predictions for 3 rows"):
        answer_of_rows(_NUMBERS, [1])
    found = answer_of_rows(_NUMBERS, [[1, 2]] * 3)
    assert isinstance(found, pd.DataFrame) and found.shape == (3, 2)
