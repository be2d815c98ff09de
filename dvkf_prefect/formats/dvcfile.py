"""Parsing and writing of `.dvc` files and the outputs they describe.

Source of the format: DVC 3.x. An output without ``hash: md5`` comes from DVC 2.x (``md5-dos2unix``).
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from dvkf_prefect.errors import ParseError
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.dvcfile_schema import find_wrong
from dvkf_prefect.formats.objects import LEGACY, MD5, Content
from dvkf_prefect.formats.outputs import CHECKSUMS, FileVersion, Origin, Output, inside_root
from dvkf_prefect.formats.tree import Tree

# Match values that YAML reads as text. A digest needs a letter that no number syntax allows there. A name needs a
# letter in front, and must not be a word that YAML reserves.
_PLAIN_OUT = re.compile(
    r"- md5: ((?![0-9.]*[eE]?[0-9]*\n)[0-9a-f]{32}(?:\.dir)?)\n  size: (0|[1-9][0-9]{0,17})\n"
    r"(?:  nfiles: (0|[1-9][0-9]{0,17})\n)?  hash: md5\n"
    r"  path: (?!(?:true|false|null|yes|no|on|off|y|n)\n)([a-z](?:[A-Za-z0-9_./-]*[A-Za-z0-9_/])?)\n"
)
_PLAIN = re.compile(b"outs:\n(?:" + _PLAIN_OUT.pattern.encode() + b")+")


def read_plain(data: bytes) -> dict[str, Any] | None:
    """Read a `.dvc` file in the form that `add` writes, without a YAML parser.

    A repository may hold thousands of these files, and a YAML parser is slow.

    Args:
        data: The file's bytes.

    Returns:
        The same value that the parser would return; None for any other form.
    """
    if not _PLAIN.fullmatch(data):
        return None
    outs = []
    for match in _PLAIN_OUT.finditer(data.decode()):
        digest, size, nfiles, path = match.groups()
        out: dict[str, Any] = {"md5": digest, "size": int(size)}
        if nfiles:
            out["nfiles"] = int(nfiles)
        outs.append({**out, "hash": "md5", "path": path})
    return {"outs": outs}


def parse_dvc_file(data: bytes, path: str) -> list[Output]:
    """Read the outputs of a `.dvc` file from its bytes.

    Args:
        data: The file's bytes.
        path: The file, relative to the repository's root.

    Raises:
        ParseError: It violates the format; the error names line, key and expected value.
        UnsafePathError: An output lies outside the repository.
    """
    document = read_plain(data) or documents.load(data, path)
    if document is None:
        return []
    wrong = find_wrong(document)
    if wrong is not None:
        where, expected = wrong
        raise ParseError(path, expected, line=documents.line_of(data, where) or 1)
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(path), document.get("wdir") or "."))
    outs = document.get("outs") or []
    origin = _origin(document, folder) if len(outs) == 1 else None
    edited = _is_edited(document, folder)
    outputs = []
    for out in outs:
        files = tuple(_version(entry) for entry in out.get("files") or ())
        digest, size, nfiles = checksum_in(out, "md5"), out.get("size"), out.get("nfiles")
        if files and digest is None:
            digest = Tree.from_pairs((file.relpath, file.digest or "") for file in files).digest
            known = [file.size for file in files if file.size is not None]
            size, nfiles = (sum(known) if len(known) == len(files) else None), len(files)
        elif not files and out.get("cloud"):
            files = (_version({**out, "relpath": ""}),)
        content: Content | None = None
        if digest is not None:
            hash_name = MD5 if out.get("hash") == MD5 else LEGACY
            content = Content(digest, size, nfiles, out.get("isexec", False), hash_name)
        outputs.append(
            Output(
                path=inside_root(posixpath.join(folder, out["path"]), path),
                content=content,
                cached=out.get("cache", True),
                remote=out.get("remote"),
                # Content of another repository is fetched from that repository, not pushed.
                pushed=out.get("push", True) and not (origin and origin.repo),
                persist=out.get("persist", False),
                source=path,
                origin=origin,
                versions=files,
                edited=edited,
                always_changed=document.get("always_changed", False),
            )
        )
    return outputs


def _origin(document: Mapping[str, Any], folder: str) -> Origin | None:
    """Return the source of the output: DVC treats a stage without a command and with one dependency as an import."""
    deps = document.get("deps") or []
    if document.get("cmd") or len(deps) != 1 or "path" not in deps[0]:
        return None
    dep = deps[0]
    files = tuple(_version(entry) for entry in dep.get("files") or ())
    if not files and dep.get("version_id"):
        files = (_version({**dep, "relpath": ""}),)
    return Origin(
        path=dep["path"],
        folder=folder,
        repo=dep.get("repo"),
        checksum=next((sum_ for name in CHECKSUMS if (sum_ := checksum_in(dep, name))), None),
        size=dep.get("size"),
        fs_config=dep.get("fs_config") or {},
        versions=files,
        frozen=bool(document.get("frozen") or document.get("locked")),
    )


def _version(entry: Mapping[str, Any]) -> FileVersion:
    remote, cloud = next(iter((entry.get("cloud") or {}).items()), (None, entry))
    return FileVersion(
        entry["relpath"],
        checksum_in(entry, "md5"),
        entry.get("size"),
        checksum_in(cloud, "etag"),
        cloud.get("version_id"),
        remote,
    )


def checksum_in(values: Mapping[str, Any], name: str) -> str | None:
    """Return a checksum as text, since YAML may read it as a number; None if it is empty."""
    value = values.get(name)
    if value is None or value == "":
        return None
    return str(value) if name == "etag" else str(value).lower()


def is_parametrized(definition: Any) -> bool:
    """Return True if a stage's definition in a dvc.yaml is a template to fill in."""
    if isinstance(definition, Mapping) and {"foreach", "matrix", "vars"} & set(definition):
        return True
    return _has_parameter(definition)


def _has_parameter(value: Any) -> bool:
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, Mapping):
        return any(_has_parameter(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(map(_has_parameter, value))


# Keys that are left out of the md5 of an import.
_UNSIGNED = frozenset(
    {"desc", "type", "labels", "meta", "locked", "frozen", "metric", "persist", "isexec", "size", "nfiles"}
)


def document_md5(document: Mapping[str, Any]) -> str:
    """Return the md5 that DVC uses to detect edits of an import's `.dvc` file.

    Source: dvc/stage/utils.py, ``compute_md5``.
    """

    def signed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: signed(item) for key, item in value.items() if key not in _UNSIGNED}
        return [signed(item) for item in value] if isinstance(value, list) else value

    values = {key: value for key, value in document.items() if key not in ("md5", "meta", "desc")}
    if values.get("wdir") == ".":
        del values["wdir"]
    return digest_bytes(json.dumps(signed(values), sort_keys=True).encode())


def _is_edited(document: Mapping[str, Any], folder: str) -> bool:
    """Return True if the md5 in an import's file does not match; files of `add` have no md5.

    Source: dvc/stage/__init__.py, ``changed_stage``. Values left at their default are not signed.
    """
    deps, outs = document.get("deps") or [], document.get("outs") or []
    if len(deps) != 1 or len(outs) != 1:
        return bool(document.get("md5"))
    signed = {key: value for key, value in document.items() if value}
    signed["outs"] = [
        {k: v for k, v in out.items() if not (k in ("cache", "push") and v is True)} for out in outs
    ]
    place = deps[0]["path"]
    outside = "://" in place or posixpath.normpath(posixpath.join(folder, place)).startswith(("/", "../"))
    if outside and not deps[0].get("repo"):  # DVC 3 signs these with its hash, whichever tool wrote the file
        signed["deps"] = [{"hash": MD5, **deps[0]}]
    return bool(document.get("md5") != document_md5(signed))
