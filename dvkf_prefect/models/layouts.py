"""Published folder of a model by format: names of the files that the runtimes of KServe look for.

Each format maps the files of a model to the fixed names of its runtimes, see `dvkf_prefect.models.runtimes`. The format
is declared in dvc.yaml, or derived from the names and first bytes of the files. No file is unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.errors import ModelError
from dvkf_prefect.formats.artifacts import ArtifactDecl
from dvkf_prefect.models.runtimes import TRITON_FILES, is_archive

#: Bytes at the start of a file that `detect_format` looks at.
HEAD = 4096
EMPTY = "d41d8cd98f00b204e9800998ecf8427e"
_NUMBER = re.compile(r"[1-9][0-9]*")
_NAME_IN_CONFIG = re.compile(r'^\s*name\s*:\s*["\']([^"\']+)["\']', re.MULTILINE)
_TRITON_TYPE = re.compile("BOOL|U?INT(?:8|16|32|64)|FP(?:16|32|64)|BF16|STRING")


@dataclass(frozen=True)
class Format:
    """A way to publish a model.

    Attributes:
        name: Name of the format.
        kind: KServe's ``modelFormat.name``; empty for a container of its own.
        runtimes: KServe's runtimes that serve it, with the protocols of each.
    """

    name: str
    kind: str
    runtimes: Mapping[str, tuple[str, ...]]


def _format(name: str, kind: str, /, **runtimes: str) -> Format:
    named = {f"kserve-{key}": tuple(protocols.split()) for key, protocols in runtimes.items()}
    return Format(name, kind, named)


# Source of the runtimes and their protocols: kserve 0.20, config/runtimes/*.yaml.
FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        _format("sklearn", "sklearn", sklearnserver="v1 v2", mlserver="v2"),
        _format("xgboost", "xgboost", xgbserver="v1 v2", mlserver="v2"),
        _format("lightgbm", "lightgbm", lgbserver="v1 v2", mlserver="v2"),
        _format("pytorch", "pytorch", tritonserver="v2 grpc-v2"),
        _format("torchserve", "pytorch", torchserve="v1 v2 grpc-v2"),
        Format("tensorflow", "tensorflow", {"kserve-tensorflow-serving": ("v1", "grpc-v1")}),
        _format("tensorflow-triton", "tensorflow", tritonserver="v2 grpc-v2"),
        _format("onnx", "onnx", tritonserver="v2 grpc-v2"),
        _format("triton", "triton", tritonserver="v2 grpc-v2"),
        _format("mlflow", "mlflow", mlserver="v2"),
        _format("huggingface", "huggingface", huggingfaceserver="v2 v1"),
        Format("custom", "", {"custom": ()}),
    )
}


@dataclass(frozen=True)
class Layout:
    """Files of a published folder.

    Attributes:
        format: The format.
        sources: Path in the model by path in the folder; the empty path for a model of one file.
        made: Bytes of the files that are not the model's, by path in the folder.
        model: Name of the model in the runtime's URLs; empty for the name of the service.
    """

    format: Format
    sources: Mapping[str, str]
    made: Mapping[str, bytes] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True)
class ModelFiles:
    """Files of one version of a model.

    Attributes:
        name: Name of the model.
        path: Path of the model in its repository.
        digests: Digest by path in the model; the empty path for a model of one file.
        read: Function that returns the first bytes of a file, at most a number of them.
        declared: Its artifact in dvc.yaml.
    """

    name: str
    path: str
    digests: Mapping[str, str]
    read: Callable[[str, int], bytes]
    declared: ArtifactDecl = field(default_factory=lambda: ArtifactDecl(""))

    @property
    def names(self) -> dict[str, str]:
        """Path in the model by name; the name of a model of one file is that of the file."""
        return {path or self.path.rpartition("/")[2]: path for path in self.digests}

    @property
    def short(self) -> str:
        """Last part of the model's name, a folder name for Triton."""
        return re.split(r"[:/]", self.name)[-1]


def _choices() -> str:
    return ", ".join(FORMATS)


def format_of(model: ModelFiles, wanted: str | None = None) -> Format:
    """Return the format of a model: the wanted one, the declared one, or that of its files.

    A declaration is, in dvc.yaml's ``artifacts``, ``meta: {format: sklearn}``, a label or a type of that name.

    Args:
        model: The model.
        wanted: Name of the format, over all declarations.

    Raises:
        ModelError: The format is not known, or ambiguous; the message lists the choices.
    """
    declared = model.declared
    if wanted is None and (meta := declared.meta.get("format")) is not None:
        wanted = str(meta)
    if wanted is not None:
        if wanted not in FORMATS:
            raise ModelError(
                f"format '{wanted}' of model '{model.name}' is not known. Use one of: {_choices()}."
            )
        return FORMATS[wanted]
    named = [name for name in dict.fromkeys((declared.type, *declared.labels)) if name in FORMATS]
    found = named or sorted(_detect(model))
    if len(found) != 1:
        what = f"may be {' or '.join(found)}" if found else "is not known from its files"
        raise ModelError(
            f"the format of model '{model.name}' {what}: {model.path}. Name it with --format, or in dvc.yaml as "
            f"`meta: {{format: NAME}}`: {_choices()}."
        )
    return FORMATS[found[0]]


def _detect(model: ModelFiles) -> set[str]:
    names = model.names
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if "MLmodel" in names:
        return {"mlflow"}
    if "config/config.properties" in names and "model-store" in tops:
        return {"torchserve"}
    if "saved_model.pb" in names or any(
        _NUMBER.fullmatch(top) and f"{top}/saved_model.pb" in names for top in tops
    ):
        return {"tensorflow"}
    if any(f"{top}/config.pbtxt" in names for top in tops):
        return {"triton"}
    if "config.json" in names and any(name.endswith((".safetensors", "pytorch_model.bin")) for name in names):
        return {"huggingface"}
    return {
        found
        for name, path in names.items()
        if "/" not in name and (found := _detect_file(name, lambda p=path: model.read(p, HEAD)))  # type: ignore[misc]
    }


_SUFFIXES = {
    ".joblib": "sklearn",
    ".ubj": "xgboost",
    ".onnx": "onnx",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".mar": "torchserve",
}


def _detect_file(name: str, head: Callable[[], bytes]) -> str | None:
    """Return the format of one file by its suffix, else by its first bytes; None if neither says it."""
    suffix = name[name.rfind(".") :] if "." in name else ""
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if name == "config.pbtxt" or is_archive(name):
        return None
    start = head()
    if start.startswith(b"tree\n") and b"\nversion=" in start:
        return "lightgbm"
    # JSON and UBJSON of xgboost open with the same key; the second has a marker of its length.
    if start.startswith(b"{") and b"learner" in start[:64]:
        return "xgboost"
    if start.startswith(b"\x80") and b"sklearn" in start:
        return "sklearn"
    return None


def lay_out(model: ModelFiles, chosen: Format) -> Layout:
    """Return the published folder of a model.

    Args:
        model: The model.
        chosen: The format.

    Raises:
        ModelError: The model's files do not fit the format.
    """
    layout = _ARRANGERS[chosen.name](model, chosen)
    if not layout.sources:
        raise _misfit(model, chosen, "has no files")
    return layout


def _misfit(model: ModelFiles, chosen: Format, what: str, step: str = "Name another format.") -> ModelError:
    return ModelError(
        f"model '{model.name}' cannot be published as {chosen.name}: {model.path} {what}. {step}"
    )


def _as_they_are(model: ModelFiles, chosen: Format) -> Layout:
    return Layout(chosen, model.names)


def _one_file(suffixes: Iterable[str], target: Callable[[str, bytes], str]) -> Callable[..., Layout]:
    """Return an arranger that gives the only model file its fixed name; other files keep theirs."""
    endings = tuple(suffixes)

    def arrange(model: ModelFiles, chosen: Format) -> Layout:
        names = model.names
        main = [name for name in names if "/" not in name and name.endswith(endings)]
        if list(model.digests) == [""]:
            main = list(names)
        if len(main) != 1:
            found = ", ".join(sorted(main)) or "none"
            raise _misfit(
                model,
                chosen,
                f"needs exactly one of *{', *'.join(endings)} at its top, and has {found}",
                "Keep one of them.",
            )
        if is_archive(main[0]):
            raise _misfit(
                model,
                chosen,
                "is an archive, which KServe unpacks in place of the model",
                "Track the unpacked folder.",
            )
        fixed = target(main[0], model.read(names[main[0]], HEAD))
        others = {name: path for name, path in names.items() if name != main[0]}
        if fixed in others:
            raise _misfit(model, chosen, f"has both {main[0]} and {fixed}", "Keep one of them.")
        return Layout(chosen, {fixed: names[main[0]], **others})

    return arrange


def _booster_name(name: str, head: bytes) -> str:
    if name.endswith(".ubj") or (head.startswith(b"{L") and b"learner" in head[:64]):
        return "model.ubj"
    # The formats are told apart by the name: JSON under another name is read as the binary format.
    return "model.json" if name.endswith(".json") or head.startswith(b'{"learner"') else "model.bst"


def _config(model: ModelFiles, path: str | None) -> str | None:
    return None if path is None else model.read(path, 1 << 20).decode(errors="replace")


def _triton_model(file: str, backend: str, suffix: str) -> Callable[..., Layout]:
    """Return an arranger of a Triton repository with one version of one model."""

    def arrange(model: ModelFiles, chosen: Format) -> Layout:
        names = model.names
        tops = {name.partition("/")[0] for name in names if "/" in name}
        if any(f"{top}/config.pbtxt" in names for top in tops):
            return Layout(chosen, names, model=min(top for top in tops if f"{top}/config.pbtxt" in names))
        main = [name for name in names if "/" not in name and name.endswith(suffix)]
        if list(model.digests) == [""]:
            main = list(names)
        if len(main) != 1:
            found = ", ".join(sorted(main)) or "none"
            raise _misfit(model, chosen, f"needs exactly one *{suffix} at its top, and has {found}")
        given = _config(model, names.get("config.pbtxt"))
        named = _NAME_IN_CONFIG.search(given) if given else None
        short = named[1] if named else model.short
        sources = {
            f"{short}/1/{file if name == main[0] else name}": path
            for name, path in names.items()
            if name != "config.pbtxt"
        }
        made = {}
        if given is not None:
            sources[f"{short}/config.pbtxt"] = names["config.pbtxt"]
        else:
            made[f"{short}/config.pbtxt"] = _written_config(model, chosen, short, backend)
        return Layout(chosen, sources, made, short)

    return arrange


def _written_config(model: ModelFiles, chosen: Format, name: str, backend: str) -> bytes:
    """Return a config.pbtxt from ``meta: {inputs, outputs, max_batch_size}``; Triton completes that of ONNX itself.

    Source: Triton's ``model_config.proto``.
    """
    meta = model.declared.meta
    lines = [f'name: "{name}"', backend, f"max_batch_size: {int(meta.get('max_batch_size') or 0)}"]
    if backend.endswith('"pytorch_libtorch"') and not (meta.get("inputs") and meta.get("outputs")):
        raise _misfit(
            model,
            chosen,
            "has no config.pbtxt, and Triton cannot derive the inputs of a PyTorch model",
            "Put a config.pbtxt beside model.pt in a folder, or declare in dvc.yaml `meta: {inputs: [{name: INPUT__0, "
            "type: FP32, dims: [-1, 4]}], outputs: [{name: OUTPUT__0, type: FP32, dims: [-1, 3]}]}`.",
        )
    for side, plural in (("input", "inputs"), ("output", "outputs")):
        rows = [_tensor(model, chosen, plural, row) for row in meta.get(plural) or ()]
        if rows:
            lines.append(f"{side} [\n" + ",\n".join(rows) + "\n]")
    return ("\n".join(lines) + "\n").encode()


def _tensor(model: ModelFiles, chosen: Format, plural: str, row: Any) -> str:
    try:
        kind = str(row["type"]).removeprefix("TYPE_")
        if not _TRITON_TYPE.fullmatch(kind):
            raise ValueError(kind)
        dims = ", ".join(str(int(size)) for size in row["dims"])
        return f"  {{ name: {json.dumps(str(row['name']))} data_type: TYPE_{kind} dims: [ {dims} ] }}"
    except (KeyError, TypeError, ValueError) as error:
        raise _misfit(
            model,
            chosen,
            f"has {row!r} among the {plural} of its `meta`",
            "Write each as {name: NAME, type: FP32, dims: [-1, 4]}, with a type of Triton.",
        ) from error


def _tensorflow(model: ModelFiles, chosen: Format) -> Layout:
    names = model.names
    if "saved_model.pb" in names:
        return Layout(chosen, {f"1/{name}": path for name, path in names.items()})
    if any(re.fullmatch(r"[1-9][0-9]*/saved_model\.pb", name) for name in names):
        return Layout(chosen, names)
    raise _misfit(
        model,
        chosen,
        "is no SavedModel, a folder with saved_model.pb",
        "Export it with `model.export(FOLDER)`.",
    )


def _tensorflow_triton(model: ModelFiles, chosen: Format) -> Layout:
    plain = _tensorflow(model, chosen)
    given = _config(model, model.names.get("config.pbtxt"))
    named = _NAME_IN_CONFIG.search(given) if given else None
    short = named[1] if named else model.short
    sources = {}
    for name, path in plain.sources.items():
        number, _, inside = name.partition("/")
        if path != "config.pbtxt":
            sources[f"{short}/{number}/model.savedmodel/{inside}"] = path
    made = {}
    if given is not None:
        sources[f"{short}/config.pbtxt"] = "config.pbtxt"
    else:
        platform = 'platform: "tensorflow_savedmodel"'
        made[f"{short}/config.pbtxt"] = _written_config(model, chosen, short, platform)
    return Layout(chosen, sources, made, short)


def _triton(model: ModelFiles, chosen: Format) -> Layout:
    names = model.names
    models = sorted(
        {name.partition("/")[0] for name in names if name.count("/") == 1 and "config.pbtxt" in name}
    )
    if not models and not any(name.rpartition("/")[2] in TRITON_FILES for name in names):
        raise _misfit(
            model, chosen, "is no model repository of Triton: MODEL/config.pbtxt and MODEL/1/model.*"
        )
    return Layout(chosen, names, model=models[0] if models else "")


# Source: kserve's documentation of TorchServe; ports of config/runtimes/kserve-torchserve.yaml.
_TORCHSERVE = """\
inference_address=http://0.0.0.0:8085
management_address=http://0.0.0.0:8085
metrics_address=http://0.0.0.0:8082
grpc_inference_port=7070
grpc_management_port=7071
enable_metrics_api=true
metrics_format=prometheus
number_of_netty_threads=4
job_queue_size=10
enable_envvars_config=true
install_py_dep_per_model=true
model_store=/mnt/models/model-store
model_snapshot={snapshot}
"""


def _torchserve(model: ModelFiles, chosen: Format) -> Layout:
    names = model.names
    if "config/config.properties" in names:
        return Layout(chosen, names)
    archives = [name for name in names if "/" not in name and name.endswith(".mar")]
    if len(archives) != 1:
        raise _misfit(
            model,
            chosen,
            "has neither config/config.properties with model-store/*.mar, nor exactly one *.mar",
            "Make an archive with `torch-model-archiver`.",
        )
    short = archives[0].removesuffix(".mar")
    settings = {
        "defaultVersion": True, "marName": archives[0], "minWorkers": 1, "maxWorkers": 1, "batchSize": 1,
        "maxBatchDelay": 10, "responseTimeout": 120,
    }  # fmt: skip
    snapshot = {"name": "startup.cfg", "modelCount": 1, "models": {short: {"1.0": settings}}}
    made = {"config/config.properties": _TORCHSERVE.format(snapshot=json.dumps(snapshot)).encode()}
    return Layout(chosen, {f"model-store/{archives[0]}": names[archives[0]]}, made, short)


_ARRANGERS: Mapping[str, Callable[[ModelFiles, Format], Layout]] = {
    "sklearn": _one_file((".joblib", ".pkl", ".pickle"), lambda name, head: "model.joblib"),
    "xgboost": _one_file((".ubj", ".bst", ".json"), _booster_name),
    "lightgbm": _one_file((".bst", ".txt"), lambda name, head: "model.bst"),
    "pytorch": _triton_model("model.pt", 'platform: "pytorch_libtorch"', ".pt"),
    "torchserve": _torchserve,
    "tensorflow": _tensorflow,
    "tensorflow-triton": _tensorflow_triton,
    "onnx": _triton_model("model.onnx", 'platform: "onnxruntime_onnx"', ".onnx"),
    "triton": _triton,
    "mlflow": _as_they_are,
    "huggingface": _as_they_are,
    "custom": _as_they_are,
}
