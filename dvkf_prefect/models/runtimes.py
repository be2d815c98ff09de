"""Rules of KServe's runtimes: files that each one loads from the folder of a model.

A service downloads every object below its ``storageUri`` into /mnt/models; its runtime then looks for files of fixed
names. Both steps are stated here as functions of a listing, so that a folder is checked without a cluster.

Sources, in kserve 0.15 to 0.20: ``python/storage/kserve_storage/kserve_storage.py:504`` (download),
``python/sklearnserver/sklearnserver/model.py:26``, ``python/xgbserver/xgbserver/model.py``,
``python/lgbserver/lgbserver/model.py``, ``config/runtimes/*.yaml``; MLServer 1.7 ``mlserver/utils.py`` and
``mlserver_{sklearn,xgboost,lightgbm}``; Triton's, TensorFlow Serving's and TorchServe's layout of a model repository.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dvkf_prefect.errors import ModelError

_ARCHIVE = re.compile(r".*\.(?:tar|tgz|tar\.gz|zip)", re.IGNORECASE)
_NUMBER = re.compile(r"[1-9][0-9]*|0")
#: Files of a version of a model in Triton's repository.
TRITON_FILES = ("model.onnx", "model.pt", "model.plan", "model.graphdef", "model.py", "model.savedmodel")
_WEIGHTS = re.compile(r"[^/]*\.(?:safetensors|bin)")


@dataclass(frozen=True)
class Downloaded:
    """Files in /mnt/models after the download.

    Attributes:
        files: Size in bytes by path.
        archive: Name of the only file, if it is an archive: it is unpacked and removed.
    """

    files: Mapping[str, int]
    archive: str | None = None


@dataclass(frozen=True)
class Loaded:
    """Files that a runtime loads.

    Attributes:
        runtime: Name of KServe's runtime.
        files: Files or folders that it opens.
        models: Names of the models in its URLs; empty for the name of the service.
    """

    runtime: str
    files: tuple[str, ...]
    models: tuple[str, ...] = ()


def download(objects: Iterable[tuple[str, int]], path: str, *, skip_empty: bool = True) -> Downloaded:
    """Return the files that KServe's storage initializer makes of a listing.

    Args:
        objects: Key and size in bytes of every object in the bucket, or at least of those whose key starts with the
            path.
        path: Path of the ``storageUri`` in its bucket. The initializer matches it as the start of a key: ``m/v1``
            also matches ``m/v10/model.joblib``; ``m/v1/`` does not.
        skip_empty: True for KServe 0.17 and later, which skip objects of zero bytes.

    Raises:
        ModelError: No object is left, as the initializer fails too.

    Example:
        >>> download([("m/v1/model.bst", 5), ("m/v10/model.bst", 7)], "m/v1").files
        {'model.bst': 5, '0/model.bst': 7}
    """
    files: dict[str, int] = {}
    for key, size in objects:
        if not key.startswith(path) or key.endswith("/") or (skip_empty and not size):
            continue
        name = key.rpartition("/")[2] if key == path else key[len(path) :].lstrip("/")
        files[name] = size
    if not files:
        raise ModelError(f"no model found in {path}. Publish the version.")
    only = next(iter(files))
    return Downloaded(files, only if len(files) == 1 and _ARCHIVE.fullmatch(only) else None)


def is_archive(name: str) -> bool:
    """Return True if the storage initializer unpacks a file of this name that is alone in its folder."""
    return bool(_ARCHIVE.fullmatch(name))


def loaded_by(runtime: str, downloaded: Downloaded, *, kind: str = "") -> Loaded:
    """Return the files that a runtime loads from /mnt/models.

    Args:
        runtime: Name of KServe's runtime, such as ``kserve-sklearnserver``; ``custom`` for a container of its own.
        downloaded: The files, see `download`.
        kind: Model format, for the runtime ``kserve-mlserver``.

    Raises:
        ModelError: The runtime finds no model, or more than one; the message gives its rule.

    Example:
        >>> loaded_by("kserve-lgbserver", Downloaded({"model.bst": 5})).files
        ('model.bst',)
    """
    if runtime not in _RULES:
        raise ModelError(f"runtime '{runtime}' is not known. Use one of: {', '.join(_RULES)}.")
    if downloaded.archive is not None and runtime != "custom":
        raise ModelError(
            f"{runtime} finds no model: '{downloaded.archive}' is the only file, so the storage initializer unpacks "
            "and removes it. Publish the unpacked folder."
        )
    return _RULES[runtime](runtime, downloaded.files, kind)


def _refused(runtime: str, rule: str, found: Iterable[str]) -> ModelError:
    names = sorted(found)
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return ModelError(
        f"{runtime} loads {rule}, not {shown or 'an empty folder'}. Change the files of the model."
    )


def _exactly_one(*suffixes: str) -> Callable[[str, Mapping[str, int], str], Loaded]:
    def rule(runtime: str, files: Mapping[str, int], kind: str) -> Loaded:
        found = [name for name in files if "/" not in name and name.endswith(suffixes)]
        if len(found) != 1:
            rule = f"exactly one file *{', *'.join(suffixes)} at the top of the folder"
            raise _refused(runtime, rule, found or files)
        return Loaded(runtime, tuple(found))

    return rule


_WELL_KNOWN = {
    "sklearn": ("model.joblib", "model.pickle", "model.pkl"),
    "xgboost": ("model.bst", "model.json", "model.ubj"),
    "lightgbm": ("model.bst",),
    "mlflow": ("MLmodel",),
}


def _mlserver(runtime: str, files: Mapping[str, int], kind: str) -> Loaded:
    if kind not in _WELL_KNOWN:
        raise ModelError(f"{runtime} serves {', '.join(_WELL_KNOWN)}, not '{kind}'. Use another runtime.")
    found = next((name for name in _WELL_KNOWN[kind] if name in files), None)
    if found is None:
        raise _refused(runtime, " or ".join(_WELL_KNOWN[kind]) + " at the top of the folder", files)
    return Loaded(runtime, (found,))


def _tensorflow(runtime: str, files: Mapping[str, int], kind: str) -> Loaded:
    numbers = [
        int(folder)
        for name in files
        for folder, _, rest in [name.partition("/")]
        if _NUMBER.fullmatch(folder) and rest in ("saved_model.pb", "saved_model.pbtxt")
    ]
    if not numbers:
        raise _refused(runtime, "<number>/saved_model.pb", files)
    return Loaded(runtime, (f"{max(numbers)}/",))  # the highest number is served


def _triton(runtime: str, files: Mapping[str, int], kind: str) -> Loaded:
    rule = f"<model>/<number>/{{{','.join(TRITON_FILES)}}} with <model>/config.pbtxt in every folder"
    found: dict[str, list[str]] = {}
    for name in files:
        model, slash, rest = name.partition("/")
        if not slash:
            continue  # files at the top are not read
        mine = found.setdefault(model, [])
        number, _, inside = rest.partition("/")
        # A SavedModel is a folder, the others are files.
        first, _, deeper = inside.partition("/")
        is_model = first in TRITON_FILES and (not deeper or first == "model.savedmodel")
        if _NUMBER.fullmatch(number) and is_model and int(number) > 0:
            mine.append(f"{model}/{number}/{first}")
    bad = [model for model, versions in found.items() if not versions]
    # Triton completes the configuration of ONNX and TensorFlow models, not that of PyTorch's.
    bad += [
        model
        for model, versions in found.items()
        if any(each.endswith((".pt", ".py")) for each in versions) and f"{model}/config.pbtxt" not in files
    ]
    if bad or not found:
        raise _refused(runtime, rule, bad or files)
    opened = tuple(dict.fromkeys(each for versions in found.values() for each in versions))
    return Loaded(runtime, opened, tuple(found))


def _torchserve(runtime: str, files: Mapping[str, int], kind: str) -> Loaded:
    archives = tuple(name for name in files if re.fullmatch(r"model-store/[^/]+\.mar", name))
    if "config/config.properties" not in files or not archives:
        raise _refused(runtime, "config/config.properties and model-store/*.mar", files)
    return Loaded(runtime, ("config/config.properties", *archives))


def _huggingface(runtime: str, files: Mapping[str, int], kind: str) -> Loaded:
    weights = [name for name in files if _WEIGHTS.fullmatch(name)]
    tokenizer = [name for name in files if name.startswith(("tokenizer", "vocab", "spiece", "merges"))]
    if "config.json" not in files or not weights or not tokenizer:
        raise _refused(runtime, "config.json, a tokenizer and *.safetensors or *.bin", files)
    return Loaded(runtime, ("config.json", *tokenizer, *weights))


def _any(runtime: str, files: Mapping[str, int], kind: str) -> Loaded:
    return Loaded(runtime, tuple(files))


_RULES: Mapping[str, Callable[[str, Mapping[str, int], str], Loaded]] = {
    "kserve-sklearnserver": _exactly_one(".joblib", ".pkl", ".pickle"),
    "kserve-xgbserver": _exactly_one(".bst", ".json", ".ubj"),
    "kserve-lgbserver": _exactly_one(".bst"),
    "kserve-mlserver": _mlserver,
    "kserve-tensorflow-serving": _tensorflow,
    "kserve-tritonserver": _triton,
    "kserve-torchserve": _torchserve,
    "kserve-huggingfaceserver": _huggingface,
    "custom": _any,
}
