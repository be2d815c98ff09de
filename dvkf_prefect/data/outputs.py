"""`.dvc` files and the outputs they describe.

Source of the format: DVC 3.x. An output without ``hash: md5`` is a 2.x one (``md5-dos2unix``).
"""

from __future__ import annotations

import importlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from dvkf_prefect.data import documents
from dvkf_prefect.data.revisions import PIPELINE_FILE, RepoFiles
from dvkf_prefect.data.store import LEGACY, MD5, Stored
from dvkf_prefect.errors import OutputOverlapError, ParseError, UnsafePathError

# Files other than `.dvc` ones that describe outputs are read by a layer above this one, loaded when one is met.
READERS = {PIPELINE_FILE: "dvkf_prefect.pipeline.stages:read_outputs"}

_TOP_KEYS = frozenset(
    {"cmd", "deps", "desc", "frozen", "md5", "meta", "outs", "wdir", "always_changed", "params"}
)
_OUT_KEYS = frozenset(
    {
        "md5", "md5-dos2unix", "etag", "checksum", "size", "nfiles", "isexec", "hash", "path", "fs_config", "desc",
        "type", "labels", "meta", "cache", "metric", "plot", "persist", "remote", "push", "files", "version_id",
        "cloud", "mtime", "inode",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Output:
    """A tracked file or directory, as its `.dvc` file or dvc.lock describes it.

    Attributes:
        path: Posix, relative to the repository's root.
        digest: md5 in hex, with ``.dir`` for a directory; None while nothing was recorded.
        size: Bytes; of a directory the sum.
        nfiles: Number of files of a directory.
        isexec: Whether a single file may be executed.
        hash_name: ``md5``, or ``md5-dos2unix`` as DVC 2.x wrote.
        cached: False keeps it out of the cache (``cache: false``).
        remote: The only remote it goes to, where one is named.
        pushed: False keeps it off the remotes (``push: false``).
        persist: Whether a stage finds its last content there when it starts.
        source: The file that describes it, relative to the root.
        stage: The stage's name where the source is a dvc.yaml.
    """

    path: str
    digest: str | None
    size: int | None = None
    nfiles: int | None = None
    isexec: bool = False
    hash_name: str = MD5
    cached: bool = True
    remote: str | None = None
    pushed: bool = True
    persist: bool = False
    source: str = ""
    stage: str | None = None

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return bool(self.digest and self.digest.endswith(".dir"))


@dataclass(frozen=True, slots=True)
class DataVersion:
    """One version of an output. It names content, never a place on a disk, so it can be kept and compared.

    Attributes:
        repo: The repository's path or url.
        rev: The commit, or None for the workspace.
        path: The output, relative to the repository's root.
        digest: md5 in hex, with ``.dir`` for a directory.
        size: Bytes.
        nfiles: Number of files; 1 for a file.
    """

    repo: str
    rev: str | None
    path: str
    digest: str
    size: int
    nfiles: int

    def as_dict(self) -> dict[str, str | int | None]:
        """Return it as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataVersion:
        """Make one of `as_dict`'s values.

        Raises:
            TypeError: A field is missing or unknown.
        """
        return cls(**values)

    def __str__(self) -> str:
        rev = f"@{self.rev[:7]}" if self.rev else ""
        return f"{self.path}{rev} ({self.digest[:8]}, {self.nfiles} file(s), {self.size} bytes)"


def read_outputs(files: RepoFiles, path: str) -> list[Output]:
    """Read the outputs that one file describes.

    Args:
        files: The revision to read from.
        path: A `.dvc` file or a dvc.yaml, relative to the root.

    Raises:
        ParseError: The file does not say what its format allows.
        UnsafePathError: An output lies outside the repository.
    """
    reader = READERS.get(PurePosixPath(path).name)
    if reader:
        module, _, name = reader.partition(":")
        outputs: list[Output] = getattr(importlib.import_module(module), name)(files, path)
        return outputs
    return parse_dvc_file(files.read(path), path)


def parse_dvc_file(data: bytes, path: str) -> list[Output]:
    """Read the outputs of a `.dvc` file from its bytes.

    Args:
        data: The file's bytes.
        path: The file, relative to the repository's root.

    Raises:
        ParseError: It does not say what the format allows; names line, key and what was expected.
        UnsafePathError: An output lies outside the repository.
    """
    document = documents.load(data, path)
    if document is None:
        return []

    def wrong(where: list[str | int], expected: str) -> ParseError:
        return ParseError(path, expected, line=documents.line_of(data, where) or 1)

    if not isinstance(document, dict):
        raise wrong([], "a .dvc file is a mapping with `outs`")
    for key in document:
        if key not in _TOP_KEYS:
            raise wrong([key], f"unknown key '{key}'; a .dvc file knows {', '.join(sorted(_TOP_KEYS))}")
    outs = document.get("outs", [])
    if not isinstance(outs, list):
        raise wrong(["outs"], "`outs` is a list of outputs")
    wdir = document.get("wdir", ".")
    if not isinstance(wdir, str):
        raise wrong(["wdir"], "`wdir` is a folder relative to the .dvc file")
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(path), wdir))
    outputs = []
    for index, out in enumerate(outs):
        if not isinstance(out, dict) or not isinstance(out.get("path"), str) or not out["path"]:
            raise wrong(["outs", index], "an output is a mapping with `path`")
        for key in out:
            if key not in _OUT_KEYS:
                raise wrong(["outs", index, key], f"unknown key '{key}' in an output")
        md5 = out.get("md5")
        if md5 is not None and not (
            isinstance(md5, str) and len(md5.removesuffix(".dir")) == 32 and md5[:32].isalnum()
        ):
            raise wrong(
                ["outs", index, "md5"], "`md5` is 32 hexadecimal digits, with `.dir` behind for a directory"
            )
        for key in ("size", "nfiles"):
            if out.get(key) is not None and not isinstance(out[key], int):
                raise wrong(["outs", index, key], f"`{key}` is a whole number")
        outputs.append(
            Output(
                path=inside_root(posixpath.join(folder, out["path"]), path),
                digest=md5,
                size=out.get("size"),
                nfiles=out.get("nfiles"),
                isexec=bool(out.get("isexec", False)),
                hash_name=MD5 if out.get("hash") == "md5" or md5 is None else LEGACY,
                cached=bool(out.get("cache", True)),
                remote=out.get("remote"),
                pushed=bool(out.get("push", True)),
                persist=bool(out.get("persist", False)),
                source=path,
            )
        )
    return outputs


def inside_root(path: str, source: str) -> str:
    """Return a path in its plain form.

    Raises:
        UnsafePathError: It lies outside the repository.
    """
    plain = posixpath.normpath(path)
    if plain.startswith(("/", "../")) or plain in ("..", ".") or "://" in path:
        raise UnsafePathError(f"{source}: the output '{path}' lies outside the repository; move it inside")
    return plain


def write_dvc_file(
    old: bytes | None, path: str, output_path: str, stored: Stored, *, size_known: bool = True
) -> bytes:
    """Return a `.dvc` file that records new content of one output.

    Args:
        old: The file as it is, kept but for what changes; None for a new one.
        path: The file's name for messages.
        output_path: The output, relative to the repository's root.
        stored: The new content.
        size_known: Whether its size is; otherwise none is recorded.

    Raises:
        ParseError: The old file is wrong.
    """
    document: Any = documents.load_editable(old, path) if old else None
    if not document:
        document = {"outs": [{"path": posixpath.basename(output_path)}]}
    wdir = document.get("wdir", ".")
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(path), wdir))
    for out in document["outs"]:
        if posixpath.normpath(posixpath.join(folder, out["path"])) == output_path:
            _record(out, stored, size_known)
    # DVC signs only imports with an md5 of their own; a plain one from an old version is dropped as DVC does.
    if "deps" not in document:
        document.pop("md5", None)
    return documents.dump(document)


def _record(out: Any, stored: Stored, size_known: bool) -> None:
    """Put the content's keys into an output, before `path` when they are new, as DVC orders them."""
    values: dict[str, Any] = {"md5": stored.digest}
    if size_known:
        values["size"] = stored.size
    if stored.nfiles is not None:
        values["nfiles"] = stored.nfiles
    if stored.isexec:
        values["isexec"] = True
    values["hash"] = "md5"
    for key in ("md5", "size", "nfiles", "isexec", "hash", "files", "etag", "version_id"):
        if key not in values:
            out.pop(key, None)
    if all(key in out for key in values):
        out.update(values)
        return
    for key in values:
        out.pop(key, None)
    others = list(out.items()) if not hasattr(out, "insert") else None
    if others is None:  # an editable mapping keeps its comments when keys are put in one by one
        for position, key in enumerate(values):
            out.insert(position, key, values[key])
    else:
        out.clear()
        out.update({**values, **dict(others)})


def check_overlap(outputs: list[Output]) -> None:
    """Refuse outputs that claim one path or lie inside each other.

    Raises:
        OutputOverlapError: Two do; names both and where they are described.
    """
    seen: dict[str, Output] = {}
    for output in outputs:
        other = seen.get(output.path)
        if other:
            raise OutputOverlapError(
                f"'{output.path}' is an output of both {_place(other)} and {_place(output)}; keep one of them"
            )
        seen[output.path] = output
    for output in outputs:
        parent = posixpath.dirname(output.path)
        while parent:
            if parent in seen:
                raise OutputOverlapError(
                    f"'{output.path}' ({_place(output)}) lies inside the output '{parent}' ({_place(seen[parent])}); "
                    "track it as a part of that one, or move it out"
                )
            parent = posixpath.dirname(parent)


def _place(output: Output) -> str:
    return f"{output.source}, stage '{output.stage}'" if output.stage else output.source


def with_content(output: Output, stored: Stored) -> Output:
    """Return the output with new content."""
    return replace(
        output,
        digest=stored.digest,
        size=stored.size,
        nfiles=stored.nfiles,
        isexec=stored.isexec,
        hash_name=MD5,
    )


def matching(tracked: Sequence[Output], target: str) -> Iterator[Output]:
    """Yield the outputs that a target means: a path, a `.dvc` file, a dvc.yaml, a stage, or ``dvc.yaml:stage``."""
    plain = target.rstrip("/").removeprefix("./")
    file, colon, name = plain.rpartition(":")
    for output in tracked:
        if (
            plain in (output.path, output.source)
            or (output.stage is not None and plain == output.stage and posixpath.dirname(output.source) == "")
            or (colon and output.source == file and output.stage == name)
        ):
            yield output
