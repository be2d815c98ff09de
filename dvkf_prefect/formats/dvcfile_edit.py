"""Writing of `.dvc` files in DVC's form: unchanged parts keep their comments and order.

Source of the format: DVC 3.x (``dvc/stage/serialize.py``, ``dvc/utils/serialize``).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile import checksum_in, document_md5
from dvkf_prefect.formats.objects import MD5, Content
from dvkf_prefect.formats.tree import Tree


def write_dvc_file(
    old: bytes | None,
    path: str,
    output_path: str,
    content: Content,
    *,
    deps: Sequence[Mapping[str, Any]] | None = None,
) -> bytes:
    """Return a `.dvc` file that records new content for one output.

    Args:
        old: The current file, kept except for these changes and for keys that DVC leaves out; None for a new one.
        path: The file's name for messages.
        output_path: The output, relative to the repository's root.
        content: The new content; an unknown size is not recorded.
        deps: Current dependencies; None keeps the recorded ones.

    Raises:
        ParseError: The old file is invalid.
    """
    document: Any = documents.load_editable(old, path) if old else None
    if not document:
        document = {"outs": [{"path": posixpath.basename(output_path)}]}
    wdir = document.get("wdir") or "."
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(path), wdir))
    for out in document["outs"]:
        if posixpath.normpath(posixpath.join(folder, out["path"])) == output_path:
            _record(out, content)
    _settle(document, deps)
    return documents.dump(document)


def content_keys(content: Content) -> dict[str, Any]:
    """Return the keys of an output or a dependency that record content, in DVC's order."""
    values: dict[str, Any] = {"md5": content.digest}
    if content.size is not None:
        values["size"] = content.size
    if content.nfiles is not None:
        values["nfiles"] = content.nfiles
    if content.isexec:
        values["isexec"] = True
    if content.hash_name == MD5:
        values["hash"] = MD5
    return values


def tidy_dvc_file(old: bytes, path: str, deps: Sequence[Mapping[str, Any]] | None) -> bytes:
    """Return a `.dvc` file without outputs in the form that DVC would write.

    Args:
        old: The current file.
        path: The file's name for messages.
        deps: Current dependencies; None keeps the recorded ones.
    """
    document: Any = documents.load_editable(old, path) or {}
    _settle(document, deps)
    return documents.dump(document)


def _settle(document: Any, deps: Sequence[Mapping[str, Any]] | None) -> None:
    if deps is not None:
        _bring_to(document["deps"], deps)
    _tidy(document)
    # DVC signs only imports with an md5 of the file; like DVC, drop the one that an old version wrote elsewhere.
    if not document.get("deps"):
        document.pop("md5", None)
    elif deps is not None:
        if len(deps) == 1 and len(document.get("outs") or ()) == 1:
            document["md5"] = document_md5(document)
        else:
            document.pop("md5", None)


_DEFAULTS: Mapping[str, Any] = {"cache": True, "persist": False, "push": True, "isexec": False}


def _tidy(document: Any) -> None:
    """Remove the keys that DVC leaves out: defaults, empty values and old names."""
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


def _record(out: Any, content: Content) -> None:
    """Put the content's keys into an output as DVC does: before `path` in a new file, else new keys last."""
    values = content_keys(content)
    # Versions on a remote belong to the old content: keep them only if the content is the same.
    if out.get("files"):
        if (
            Tree.from_pairs((f["relpath"], checksum_in(f, "md5") or "") for f in out["files"]).digest
            == content.digest
        ):
            return
    elif out.get("cloud") and checksum_in(out, "md5") == content.digest:
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
    if not hasattr(out, "insert"):  # a plain mapping: a new file
        others = {key: value for key, value in out.items() if key not in values}
        out.clear()
        out.update({**values, **others})
        return
    for key, value in values.items():
        if key not in out or out[key] != value:
            out[key] = value


def write_document(old: bytes | None, path: str, document: Mapping[str, Any]) -> bytes:
    """Return a `.dvc` file with the values of ``document``, keeping comments and order of the old file.

    Args:
        old: The current file; None for a new one, with keys in the order of ``document``.
        path: The file's name for messages.
        document: The complete new content, in plain values.

    Raises:
        ParseError: The old file is not YAML.
    """
    editable: Any = documents.load_editable(old, path) if old else None
    if not editable:
        return documents.dump(document)
    _bring_to(editable, document)
    return documents.dump(editable)


def _bring_to(editable: Any, wanted: Any) -> None:
    """Change only the differing values, as DVC's `apply_diff` does: new keys go last."""
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
