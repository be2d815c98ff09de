"""Models of each format, trained by the real libraries; the whole way of one from its training to its predictions.

As a program, a stage of a pipeline: ``python formats_world.py KIND FOLDER`` trains and saves a model.
"""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from dvkf_prefect.files import walk_files
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.models.publishing import publish_version
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.loading import load_model

X, Y = load_iris(return_X_y=True)
ROWS = X[::30].astype(np.float32)


@dataclass(frozen=True)
class Made:
    """A saved model.

    Attributes:
        path: Its file or folder.
        platform: Platform that its metadata must have.
        answers: What its own library answers for `ROWS`, by output.
    """

    path: Path
    platform: str
    answers: dict[str, Any]


def make_sklearn(folder: Path) -> Made:
    model = LogisticRegression(max_iter=500).fit(X, Y)
    joblib.dump(model, folder / "m.joblib")
    return Made(
        folder / "m.joblib",
        "sklearn",
        {"predict": model.predict(ROWS), "predict_proba": model.predict_proba(ROWS.astype(float))},
    )


def _xgboost(suffix: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        import xgboost

        model = xgboost.XGBClassifier(n_estimators=4).fit(X, Y)
        model.get_booster().save_model(folder / f"m{suffix}")
        return Made(folder / f"m{suffix}", "xgboost", {"predict": model.predict_proba(ROWS)})

    return make


def _lightgbm(suffix: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        import lightgbm

        data = lightgbm.Dataset(X, Y)
        options = {"objective": "multiclass", "num_class": 3, "verbose": -1}
        booster = lightgbm.train(options, data, num_boost_round=4)
        booster.save_model(folder / f"m{suffix}")
        return Made(folder / f"m{suffix}", "lightgbm", {"predict": booster.predict(ROWS)})

    return make


def _onnx(folder: Path) -> Made:
    import skl2onnx

    model = LogisticRegression(max_iter=500).fit(X, Y)
    kinds = [("rows", skl2onnx.common.data_types.FloatTensorType([None, 4]))]
    made = skl2onnx.convert_sklearn(model, initial_types=kinds, options={"zipmap": False})
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return Made(
        folder / "m.onnx",
        "onnx_onnxv1",
        {"label": model.predict(ROWS), "probabilities": model.predict_proba(ROWS.astype(float))},
    )


def _onnx_with_data(folder: Path) -> Made:
    import onnx

    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return Made(folder, "onnx_onnxv1", {"y": ROWS @ weights})


def _torch_module() -> Any:
    import torch

    torch.manual_seed(1)
    return torch, torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()


def _torchscript(folder: Path) -> Made:
    torch, module = _torch_module()
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 4)), stream)
    (folder / "m.pt").write_bytes(stream.getvalue())
    answers = module(torch.from_numpy(ROWS)).detach().numpy()
    return Made(folder / "m.pt", "pytorch_torchscript", {"output-0": answers})


def _torch_export(folder: Path) -> Made:
    torch, module = _torch_module()
    rows = torch.export.Dim("rows")
    program = torch.export.export(module, (torch.zeros(2, 4),), dynamic_shapes=({0: rows},))
    torch.export.save(program, folder / "m.pt2")
    answers = module(torch.from_numpy(ROWS)).detach().numpy()
    return Made(folder / "m.pt2", "pytorch_export", {"output-0": answers})


def _keras_model() -> Any:
    import keras

    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((4,), name="rows"), keras.layers.Dense(3, name="scores")])


def _keras(folder: Path) -> Made:
    model = _keras_model()
    model.save(folder / "m.keras")
    return Made(folder / "m.keras", "keras", {"scores": np.asarray(model(ROWS))})


def _savedmodel(folder: Path) -> Made:
    model = _keras_model()
    # The layout of TensorFlow Serving: a folder for each version.
    model.export(folder / "1", verbose=False)
    return Made(folder, "tensorflow_savedmodel", {"output_0": np.asarray(model(ROWS))})


_CLASS = """
from . import scale

class Model:
    n_features_in_ = 4

    def load(self, folder):
        self.factor = float((folder / "factor.txt").read_text())

    def predict(self, rows):
        return scale.by(rows, self.factor).sum(axis=1)
"""


def make_python(folder: Path) -> Made:
    (folder / "model.py").write_text(_CLASS)
    (folder / "scale.py").write_text("def by(rows, factor):\n    return rows * factor\n")
    (folder / "factor.txt").write_text("3")
    return Made(folder, "python", {"predict": (ROWS.astype(float) * 3).sum(axis=1)})


@dataclass(frozen=True)
class Kind:
    """A kind of saved model.

    Attributes:
        make: Trains it, and saves it in a folder.
        file: Its file in that folder; empty if the folder is the model.
        needs: Modules that may be missing.
        declared: The rest of its declaration in dvc.yaml.
    """

    make: Callable[[Path], Made]
    file: str = ""
    needs: tuple[str, ...] = ()
    declared: str = ""


_TORCH = ("torch",)
_TENSORFLOW = ("tensorflow", "keras")
_TENSORS = (
    "{inputs: [{name: INPUT__0, type: FP32, dims: [-1, 4]}], "
    "outputs: [{name: OUTPUT__0, type: FP32, dims: [-1, 3]}]}"
)
_CUSTOM = ", meta: {format: custom}"
KINDS = {
    "sklearn": Kind(make_sklearn, "m.joblib"),
    "xgboost json": Kind(_xgboost(".json"), "m.json", ("xgboost",)),
    "xgboost ubj": Kind(_xgboost(".ubj"), "m.ubj", ("xgboost",)),
    "lightgbm bst": Kind(_lightgbm(".bst"), "m.bst", ("lightgbm",)),
    "lightgbm txt": Kind(_lightgbm(".txt"), "m.txt", ("lightgbm",)),
    "onnx": Kind(_onnx, "m.onnx", ("skl2onnx", "onnxruntime")),
    "onnx with data": Kind(_onnx_with_data, "", ("onnx", "onnxruntime")),
    "torchscript": Kind(_torchscript, "m.pt", _TORCH, f", meta: {_TENSORS}"),
    "torch export": Kind(_torch_export, "m.pt2", _TORCH, _CUSTOM),
    "keras": Kind(_keras, "m.keras", _TENSORFLOW, _CUSTOM),
    "savedmodel": Kind(_savedmodel, "", _TENSORFLOW),
    "python": Kind(make_python, "", (), _CUSTOM),
}


def digest_of(path: Path) -> str:
    """Return DVC's digest of a file or folder."""
    if path.is_file():
        return digest_file(path)
    return Tree.from_pairs((name, digest_file(entry.path)) for name, entry in walk_files(path)).digest


@dataclass(frozen=True)
class Way:
    """What one model went through.

    Attributes:
        kind: Key of `KINDS`.
        platform: Platform that the server names.
        format: Format of the publication.
        runtimes: KServe's runtimes whose rules accept the published folder.
        files: Number of published files.
        size: Bytes of them.
        seconds: Wall time of the training, the publication and the start of the server.
        asked: Milliseconds of a request of five rows in V1 and in V2, the median of 21.
        opened: Files of the published folder that were opened again as the runtime opens them, and answered the same.
    """

    kind: str
    platform: str
    format: str
    runtimes: tuple[str, ...]
    files: int
    size: int
    seconds: tuple[float, float, float]
    asked: tuple[float, float]
    opened: tuple[str, ...]


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def _check(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def _tensor(rows: Any) -> dict[str, Any]:
    return {"name": "rows", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}


def _outputs(answer: dict[str, Any]) -> dict[str, Any]:
    return {out["name"]: np.reshape(out["data"], out["shape"]) for out in answer["outputs"]}


def whole_way(kind: str, folder: Path) -> Way:
    """Train a model in a stage, register, publish and serve it, and compare its predictions with its library's.

    Args:
        kind: Key of `KINDS`.
        folder: An empty folder, for the repository, the place of published versions and the state of the server.

    Raises:
        AssertionError: Any answer differs.
    """
    from dvkf_prefect.blocks import ModelServer  # heavy, and not for the stage

    root, place, how = folder / "project", folder / "published", KINDS[kind]
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    repo = Repo.init(root)
    path = f"trained/{how.file}".rstrip("/")
    command = shlex.join([sys.executable, __file__, kind, "trained"])
    (root / "dvc.yaml").write_text(
        f"stages:\n  train:\n    cmd: {json.dumps(command)}\n    outs: [{path}, answers.json]\n"
        f"artifacts:\n  classifier: {{path: {path}{how.declared}}}\n"
    )
    _, training = _timed(lambda: repo.repro())
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    subprocess.run(["git", "commit", "-qm", "Train"], cwd=root, check=True)
    answers = {
        name: np.asarray(values) for name, values in json.loads((root / "answers.json").read_text()).items()
    }
    first = next(iter(answers))

    registry = ModelRegistry(repo)
    version = registry.register("classifier")
    published, publishing = _timed(lambda: publish_version(registry, version, str(place)))
    copies = place / "classifier" / version.version

    server = ModelServer(state_dir=str(folder / "state"))
    endpoint, starting = _timed(lambda: server.deploy(registry, version))
    try:
        tensor, rows = _tensor(ROWS), ROWS.tolist()
        outputs = _outputs(endpoint.infer([tensor]))
        assert list(outputs) == list(answers)
        for name, values in answers.items():
            _check(outputs[name], values)
        found = [row[first] if isinstance(row, dict) else row for row in endpoint.predict(rows)]
        _check(found, answers[first])
        v1 = sorted(_timed(lambda: endpoint.predict(rows))[1] for _ in range(21))[10]
        v2 = sorted(_timed(lambda: endpoint.infer([tensor]))[1] for _ in range(21))[10]
        platform = endpoint.metadata()["platform"]
    finally:
        server.undeploy("classifier")

    opened = {name for loaded in published.loaded for name in loaded.files}
    for name in opened:
        place_of = copies / name
        if not how.file and place_of.is_file():  # its model has more files beside it
            place_of = place_of.parent
        with ExitStack() as keep:
            again = load_model(place_of, digest_of(place_of), "classifier", version.version, keep=keep)
            for output, values in _outputs(again.infer({"inputs": [_tensor(ROWS)]})).items():
                _check(values, answers[output])
    return Way(
        kind,
        platform,
        published.manifest.format,
        tuple(loaded.runtime for loaded in published.loaded),
        len(published.manifest.files),
        sum(file.size for file in published.manifest.files),
        (training, publishing, starting),
        (v1 * 1000, v2 * 1000),
        tuple(sorted(opened)),
    )


def main() -> None:
    """Train a model of a kind in a folder, and write the answers of its library to answers.json."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    made = KINDS[kind].make(folder)
    answers = {name: np.asarray(values).tolist() for name, values in made.answers.items()}
    Path("answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
