"""Model formats that the server knows: names of their files, and the packages that they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dvkf_prefect.errors import ServingError


@dataclass(frozen=True)
class Files:
    """Files of a model, verified.

    Attributes:
        name: Name of the model's file; for a folder, the path of its main file inside.
        data: Content of the file, for formats that load bytes.
        folder: Private copy of the files, for formats that load paths.
    """

    name: str
    data: bytes = b""
    folder: Path | None = None

    @property
    def path(self) -> Path:
        """Path of the main file in the private copy.

        Raises:
            ServingError: The format loads bytes.
        """
        if self.folder is None:
            raise ServingError(f"the model '{self.name}' is in memory and has no path")
        return self.folder / self.name


@dataclass(frozen=True)
class Format:
    """One model format.

    Attributes:
        name: Name for users.
        module: Module of its adapter.
        platform: Platform in V2 metadata.
        packages: Modules to import, each with the package or extra to install.
        suffixes: Suffixes of its file.
        starts: First bytes of its file; None if any.
        folder_files: Names of a file that marks a folder of this format, at its top or in a folder named by a number.
        needs_path: True if its library loads a path only; it gets a private copy.
        with_data: Format to use in place of this one if its file is in a folder with more files.
        verb: Participle for the error of a failed load.
    """

    name: str
    module: str
    platform: str
    packages: tuple[tuple[str, str], ...] = ()
    suffixes: tuple[str, ...] = ()
    starts: bytes | None = None
    folder_files: tuple[str, ...] = ()
    needs_path: bool = False
    with_data: str | None = None
    verb: str = "loaded"


_TORCH = (("torch", "'dvkf-prefect[serve-torch]'"),)
_ONNX = (("onnxruntime", "'dvkf-prefect[serve-onnx]'"),)
_TENSORFLOW = (("tensorflow", "'dvkf-prefect[serve-tensorflow]'"),)

# An earlier format wins for a file or folder of several.
FORMATS = (
    Format("python", "python_class", "python", folder_files=("model.py",), needs_path=True),
    Format(
        "tensorflow", "tensorflow", "tensorflow_savedmodel", _TENSORFLOW,
        folder_files=("saved_model.pb",), needs_path=True,
    ),
    Format("keras", "keras", "keras", _TENSORFLOW, (".keras", ".h5"), needs_path=True),
    Format(
        "sklearn", "sklearn", "sklearn", (("joblib", "'dvkf-prefect[serve]'"),),
        (".joblib", ".pkl", ".pickle"), verb="unpickled",
    ),
    Format("torch-export", "torch_export", "pytorch_export", _TORCH, (".pt2",)),
    Format("torchscript", "torchscript", "pytorch_torchscript", _TORCH, (".pt", ".pth", ".ts")),
    Format("onnx", "onnx", "onnx_onnxv1", _ONNX, (".onnx",), with_data="onnx-with-data"),
    Format(
        "lightgbm", "lightgbm", "lightgbm", (("lightgbm", "'dvkf-prefect[serve-lightgbm]'"),),
        (".bst", ".txt"), starts=b"tree",
    ),
    Format(
        "xgboost", "xgboost", "xgboost", (("xgboost", "'dvkf-prefect[serve-xgboost]'"),),
        (".ubj", ".json", ".bst"),
    ),
)  # fmt: skip
_ONNX_WITH_DATA = Format("onnx-with-data", "onnx", "onnx_onnxv1", _ONNX, (".onnx",), needs_path=True)
BY_NAME = {known.name: known for known in (*FORMATS, _ONNX_WITH_DATA)}
