"""Models loaded from files whose digest the registry recorded, whatever their format.

Nothing is opened before its digest is verified, and what is loaded are the verified bytes: those of a file in memory,
or a private copy of a folder. So replacing a file in between has no effect.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path, PurePosixPath

from dvkf_prefect.errors import DvkfError, ModelDigestError, ServingError
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.scratch import scratch_folder
from dvkf_prefect.serving.adapters.table import BY_NAME, FORMATS, Files, Format
from dvkf_prefect.serving.model import Model
from dvkf_prefect.serving.served import Served
from dvkf_prefect.serving.tensor_model import TensorModel


def load_model(
    path: Path, digest: str, name: str, version: str, *, model_format: str | None = None, keep: ExitStack
) -> Served:
    """Load a model after its digest is verified.

    Args:
        path: The model's file, or its folder.
        digest: DVC's md5 of the file, or of the folder's manifest with ``.dir``.
        name: Name of the model.
        version: Version of the model.
        model_format: Name of its format; by the names of the files if None.
        keep: Closes with the model's use: it removes the private copy of a folder.

    Raises:
        ModelDigestError: The file or folder has another digest; nothing was loaded.
        ServingError: It cannot be read, its format is not known, a package is missing, or it cannot be loaded.
    """
    files, found = read_verified(path, digest, model_format=model_format, keep=keep)
    for module, distribution in found.packages:
        try:
            import_module(module)
        except ImportError as error:
            raise ServingError(
                f"no package {module} for a model of the format {found.name}: '{name}' {version} ({error}). Run `pip "
                f"install {distribution}`."
            ) from error
    adapter = import_module(f"dvkf_prefect.serving.adapters.{found.module}")
    try:
        loaded = adapter.load(files)
    except DvkfError:
        raise
    except (Exception, SystemExit) as error:  # other models of the server go on
        raise ServingError(
            f"model '{name}' {version} cannot be {found.verb} ({type(error).__name__}: {error}). Install the packages "
            "that it was trained with, in the same versions."
        ) from error
    platform = getattr(loaded, "platform", found.platform)
    if hasattr(loaded, "run") and hasattr(loaded, "inputs"):
        return TensorModel(loaded, name, version, platform)
    return Model(loaded, name, version, platform)


def read_verified(
    path: Path, digest: str, *, model_format: str | None = None, keep: ExitStack
) -> tuple[Files, Format]:
    """Read a model's files once, and verify them against a digest.

    Args:
        path: The model's file, or its folder.
        digest: DVC's md5 of the file, or of the folder's manifest with ``.dir``.
        model_format: Name of the format; by the names of the files if None.
        keep: Removes the private copy when it closes.

    Returns:
        The verified files, and their format.

    Raises:
        ModelDigestError: The file or folder has another digest; nothing was loaded.
        ServingError: It cannot be read, or its format is not known.
    """
    try:
        if path.is_dir():
            return _read_folder(path, digest, model_format, keep)
        data = path.read_bytes()
    except OSError as error:
        raise ServingError(f"the model {path} cannot be read: {error.strerror or error}") from error
    _check(path, digest_bytes(data), digest)
    found = _format_of_file(path, data, model_format)
    if not found.needs_path:
        return Files(path.name, data), found
    folder = keep.enter_context(scratch_folder("dvkf-model-"))
    (folder / path.name).write_bytes(data)
    return Files(path.name, folder=folder), found


def _read_folder(path: Path, digest: str, model_format: str | None, keep: ExitStack) -> tuple[Files, Format]:
    names = sorted(
        Path(folder, name).relative_to(path).as_posix()
        for folder, _, found in os.walk(path, onerror=_raise)
        for name in found
    )
    main, wanted = _format_of_folder(path, names, model_format)
    copy = keep.enter_context(scratch_folder("dvkf-model-")) if wanted and wanted.needs_path else None
    kept = b""
    pairs = []
    for name in names:
        data = (path / name).read_bytes()
        pairs.append((name, digest_bytes(data)))
        if copy is not None:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(data)
        elif name == main:
            kept = data
    _check(path, Tree.from_pairs(pairs).digest, digest)
    if wanted is None:
        raise ServingError(
            f"the model folder {path} must contain exactly one of {_suffixes()}, a saved_model.pb or a model.py; "
            f"found {', '.join(_candidates(names)) or 'none'}. Name its format, or register the file alone."
        )
    if main.endswith(".bst") and model_format is None:
        wanted = _format_of_file(Path(main), kept, None)
    return (Files(main, kept) if copy is None else Files(main, folder=copy)), wanted


def _format_of_folder(path: Path, names: Sequence[str], asked: str | None) -> tuple[str, Format | None]:
    """Return a folder's main file and its format; None for the format if it is not clear."""
    wanted = None if asked is None else _named(path, asked)
    for known in (wanted,) if wanted else FORMATS:
        for name in names:
            pure = PurePosixPath(name)
            inside = len(pure.parts) == 1 or (len(pure.parts) == 2 and pure.parts[0].isdecimal())
            if pure.name in known.folder_files and inside:
                return name, known
    found = _candidates(names)
    if wanted:
        found = [name for name in found if name.endswith(wanted.suffixes)]
    if len(found) != 1:
        return "", None
    main = found[0]
    known = wanted or next(known for known in FORMATS if main.endswith(known.suffixes))
    if known.with_data and len(names) > 1:
        # Weights may be in files beside it.
        return main, BY_NAME[known.with_data]
    return main, known


def _candidates(names: Sequence[str]) -> list[str]:
    """Return the files at the top that may be the model; a .json counts only alone, a .txt never."""
    top = [name for name in names if "/" not in name]
    suffixes = {suffix for known in FORMATS for suffix in known.suffixes} - {".txt", ".json"}
    return [name for name in top if name.endswith(tuple(suffixes))] or [
        name for name in top if name.endswith(".json")
    ]


def _format_of_file(path: Path, data: bytes, asked: str | None) -> Format:
    if asked is not None:
        return _named(path, asked)
    if not path.suffix:
        return BY_NAME["sklearn"]
    for known in FORMATS:
        if path.name.endswith(known.suffixes) and data.startswith(known.starts or b""):
            return known
    raise ServingError(
        f"the format of the model is not known by its name: {path}. Use one of the suffixes {_suffixes()}, or name its "
        f"format: {', '.join(known.name for known in FORMATS)}."
    )


def _named(path: Path, name: str) -> Format:
    if name not in BY_NAME:
        raise ServingError(
            f"no model format '{name}': {path}. Use one of {', '.join(known.name for known in FORMATS)}."
        )
    return BY_NAME[name]


def _suffixes() -> str:
    return ", ".join(f"*{suffix}" for known in FORMATS for suffix in known.suffixes)


def _raise(error: OSError) -> None:
    raise error


def _check(path: Path, actual: str, expected: str) -> None:
    if actual != expected:
        raise ModelDigestError(
            f"the model {path} has digest {actual}, its version has {expected}. It was not loaded. Get the version's "
            "own file from the cache or the remote."
        )
