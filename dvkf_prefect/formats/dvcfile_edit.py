"""Writing `.dvc` files: what is not said anew stays as it is, and the form is DVC's.

Source of the format: DVC 3.x (``dvc/stage/serialize.py``, ``dvc/utils/serialize``).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile import checksum_in, document_md5
from dvkf_prefect.formats.objects import MD5, Stored
from dvkf_prefect.formats.tree import Tree


def write_dvc_file(
    old: bytes | None,
    path: str,
    output_path: str,
    stored: Stored,
    *,
    size_known: bool = True,
    hash_name: str = MD5,
    deps: Sequence[Mapping[str, Any]] | None = None,
) -> bytes:
    """Return a `.dvc` file that records new content of one output.

    Args:
        old: The file as it is, kept but for what changes and for keys that DVC leaves out; None for a new one.
        path: The file's name for messages.
        output_path: The output, relative to the repository's root.
        stored: The new content.
        size_known: Whether its size is; otherwise none is recorded.
        hash_name: ``md5``, or ``md5-dos2unix`` for content that DVC 2.x recorded and that did not change.
        deps: What its dependencies are now; None leaves them.

    Raises:
        ParseError: The old file is wrong.
    """
    document: Any = documents.load_editable(old, path) if old else None
    if not document:
        document = {"outs": [{"path": posixpath.basename(output_path)}]}
    wdir = document.get("wdir") or "."
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(path), wdir))
    for out in document["outs"]:
        if posixpath.normpath(posixpath.join(folder, out["path"])) == output_path:
            _record(out, stored, size_known, hash_name)
    _settle(document, deps)
    return documents.dump(document)


def tidy_dvc_file(old: bytes, path: str, deps: Sequence[Mapping[str, Any]] | None) -> bytes:
    """Return a `.dvc` file without outputs as DVC writes it again.

    Args:
        old: The file as it is.
        path: The file's name for messages.
        deps: What its dependencies are now; None leaves them.
    """
    document: Any = documents.load_editable(old, path) or {}
    _settle(document, deps)
    return documents.dump(document)


def _settle(document: Any, deps: Sequence[Mapping[str, Any]] | None) -> None:
    if deps is not None:
        _bring_to(document["deps"], deps)
    _tidy(document)
    # DVC signs only imports with an md5 of their own; a plain one from an old version is dropped as DVC does.
    if not document.get("deps"):
        document.pop("md5", None)
    elif deps is not None:
        if len(deps) == 1 and len(document.get("outs") or ()) == 1:
            document["md5"] = document_md5(document)
        else:
            document.pop("md5", None)


_DEFAULTS: Mapping[str, Any] = {"cache": True, "persist": False, "push": True, "isexec": False}


def _tidy(document: Any) -> None:
    """Leave out what DVC leaves out when it writes a file: defaults, empty values and old names."""
    if document.pop("locked", False):
        document["frozen"] = True
    for key in ("wdir", "frozen", "always_changed", "desc", "meta", "outs", "deps"):
        if key in document and (not document[key] or (key == "wdir" and document[key] == ".")):
            del document[key]
    for out in document.get("outs") or ():
        for key in [key for key, value in _DEFAULTS.items() if out.get(key) is value]:
            del out[key]
        for key in ("desc", "type", "labels", "meta", "remote", "checksum", "files", "cloud"):
            if key in out and not out[key]:
                del out[key]
        if "://" not in out["path"] and posixpath.normpath(out["path"]) != out["path"]:
            out["path"] = posixpath.normpath(out["path"])


def _record(out: Any, stored: Stored, size_known: bool, hash_name: str = MD5) -> None:
    """Put the content's keys into an output: of a new file before `path`, else new ones last, as DVC does."""
    values: dict[str, Any] = {"md5": stored.digest}
    if size_known:
        values["size"] = stored.size
    if stored.nfiles is not None:
        values["nfiles"] = stored.nfiles
    if stored.isexec:
        values["isexec"] = True
    if hash_name == MD5:
        values["hash"] = "md5"
    # What a remote holds of the old content says nothing of new content; of the same, it stays.
    if out.get("files"):
        if (
            Tree.from_pairs((f["relpath"], checksum_in(f, "md5") or "") for f in out["files"]).digest
            == stored.digest
        ):
            return
    elif out.get("cloud") and checksum_in(out, "md5") == stored.digest:
        values["cloud"] = out["cloud"]
    for key in (
        "md5",
        "size",
        "nfiles",
        "isexec",
        "hash",
        "files",
        "cloud",
        "etag",
        "checksum",
        "version_id",
    ):
        if key not in values:
            out.pop(key, None)
    if not hasattr(out, "insert"):  # of a new file
        others = {key: value for key, value in out.items() if key not in values}
        out.clear()
        out.update({**values, **others})
        return
    for key, value in values.items():
        if key not in out or out[key] != value:
            out[key] = value


def write_document(old: bytes | None, path: str, document: Mapping[str, Any]) -> bytes:
    """Return a `.dvc` file that says what ``document`` says, with the old one's comments and order.

    Args:
        old: The file as it is; None for a new one, whose keys are as ``document`` orders them.
        path: The file's name for messages.
        document: All of what it shall say, in plain values.

    Raises:
        ParseError: The old file is not YAML.
    """
    editable: Any = documents.load_editable(old, path) if old else None
    if not editable:
        return documents.dump(document)
    _bring_to(editable, document)
    return documents.dump(editable)


def _bring_to(editable: Any, wanted: Any) -> None:
    """Change just what differs, as DVC's `apply_diff` does: new keys come last."""
    if isinstance(wanted, Mapping):
        for key, value in wanted.items():
            old = editable.get(key)
            if (isinstance(value, Mapping) and isinstance(old, Mapping)) or (
                isinstance(value, list) and isinstance(old, list)
            ):
                _bring_to(old, value)
            elif key not in editable or value != old:
                editable[key] = value
        for key in [key for key in editable if key not in wanted]:
            del editable[key]
    elif len(wanted) != len(editable):
        editable[:] = wanted
    else:
        for index, value in enumerate(wanted):
            old = editable[index]
            if isinstance(value, Mapping) and isinstance(old, Mapping):
                _bring_to(old, value)
            elif value != old:
                editable[index] = value
