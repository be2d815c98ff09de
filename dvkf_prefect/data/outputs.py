"""`.dvc` files and the outputs they describe.

Source of the format: DVC 3.x. An output without ``hash: md5`` is a 2.x one (``md5-dos2unix``).
"""

from __future__ import annotations

import importlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from dvkf_prefect.data import documents
from dvkf_prefect.data.digest import digest_bytes
from dvkf_prefect.data.revisions import PIPELINE_FILE, RepoFiles
from dvkf_prefect.data.schema import find_wrong
from dvkf_prefect.data.store import LEGACY, MD5, Stored
from dvkf_prefect.data.tree import Tree
from dvkf_prefect.errors import OutputOverlapError, ParseError, UnsafePathError
from dvkf_prefect.paths import check_output
from dvkf_prefect.urls import holds_secret, public_url

# Digests with a letter after a first part that is no number of any base: YAML takes them for what they are. A name that
# starts with a letter, and is no word of YAML's, is a text too.
_PLAIN_OUT = re.compile(
    r"- md5: ((?![0-9.]*[eE]?[0-9]*\n)[0-9a-f]{32}(?:\.dir)?)\n  size: (0|[1-9][0-9]{0,17})\n"
    r"(?:  nfiles: (0|[1-9][0-9]{0,17})\n)?  hash: md5\n"
    r"  path: (?!(?:true|false|null|yes|no|on|off|y|n)\n)([a-z](?:[A-Za-z0-9_./-]*[A-Za-z0-9_/])?)\n"
)
_PLAIN = re.compile(b"outs:\n(?:" + _PLAIN_OUT.pattern.encode() + b")+")

# Files other than `.dvc` ones that describe outputs are read by a layer above this one, loaded when one is met.
READERS = {PIPELINE_FILE: "dvkf_prefect.pipeline.stages:read_outputs"}

_CHECKSUMS = ("md5", "etag", "checksum")


@dataclass(frozen=True, slots=True)
class FileVersion:
    """One file as a service that keeps versions holds it.

    Attributes:
        relpath: Posix, relative to the output; empty for an output that is a file.
        digest: md5 in hex; None where only the service's own mark is known.
        size: Bytes.
        etag: The service's mark of the content.
        version_id: The service's name of the version; None for a file that was not pushed there.
        remote: The remote's name; None in an import.
    """

    relpath: str
    digest: str | None = None
    size: int | None = None
    etag: str | None = None
    version_id: str | None = None
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an imported output comes from: the dependency of its `.dvc` file.

    Attributes:
        path: As it is written: a path in another repository, a url, or a path relative to ``folder``.
        folder: The folder that a relative path counts from, relative to the root.
        repo: The other repository's ``url``, ``rev``, ``rev_lock``, ``config`` and ``remote``; None for a url.
        checksum: Its md5, etag or checksum when it was imported; None for a repository, and before the import.
        size: Bytes it had then.
        fs_config: Options for its url.
        versions: Each file's version, where the service keeps versions.
        frozen: False where changes of it count as changes of the output.
    """

    path: str
    folder: str = "."
    repo: Mapping[str, Any] | None = None
    checksum: str | None = None
    size: int | None = None
    fs_config: Mapping[str, Any] = field(default_factory=dict)
    versions: tuple[FileVersion, ...] = ()
    frozen: bool = True

    @property
    def versioned(self) -> bool:
        """Whether it is read from a service that keeps versions, by version."""
        return bool(self.fs_config.get("version_aware")) or any(file.version_id for file in self.versions)

    def __str__(self) -> str:
        if self.repo:
            return f"{self.path} ({public_url(str(self.repo['url']))})"
        return public_url(self.path) if holds_secret(self.path) else self.path


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
        origin: Where it was imported from, if it was.
        versions: Its files on a remote that keeps versions, where it was pushed to one.
        edited: Whether its `.dvc` file was edited after DVC signed it: the file's own md5 does not fit.
        always_changed: Whether its `.dvc` file says that it always changes.
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
    origin: Origin | None = field(default=None, compare=False, repr=False)
    versions: tuple[FileVersion, ...] = field(default=(), compare=False, repr=False)
    edited: bool = field(default=False, compare=False, repr=False)
    always_changed: bool = field(default=False, compare=False, repr=False)

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


def read_plain(data: bytes) -> dict[str, Any] | None:
    """Read a `.dvc` file of the form that `add` writes without a YAML parser, of which there may be thousands.

    Args:
        data: The file's bytes.

    Returns:
        What the parser would make of it; None for any other form.
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
        ParseError: It does not say what the format allows; names line, key and what was expected.
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
        outputs.append(
            Output(
                path=inside_root(posixpath.join(folder, out["path"]), path),
                digest=digest,
                size=size,
                nfiles=nfiles,
                isexec=out.get("isexec", False),
                hash_name=MD5 if out.get("hash") == "md5" or digest is None else LEGACY,
                cached=out.get("cache", True),
                remote=out.get("remote"),
                # What another repository holds is had from there.
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
    """Return where the output comes from: DVC calls a stage without a command, of one dependency, an import."""
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
        checksum=next((sum_ for name in _CHECKSUMS if (sum_ := checksum_in(dep, name))), None),
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
    """Return a checksum, which YAML may take for a number; an empty one is none."""
    value = values.get(name)
    if value is None or value == "":
        return None
    return str(value) if name == "etag" else str(value).lower()


def inside_root(path: str, source: str) -> str:
    """Return a path in its plain form.

    Raises:
        UnsafePathError: It lies outside the repository.
    """
    plain = posixpath.normpath(path)
    if plain.startswith(("/", "../")) or plain in ("..", ".") or "://" in path:
        raise UnsafePathError(f"{source}: the output '{path}' lies outside the repository; move it inside")
    check_output(plain, source)
    return plain


def is_parametrized(definition: Any) -> bool:
    """Tell whether a stage's definition in a dvc.yaml is filled with values before it is used."""
    if isinstance(definition, Mapping) and {"foreach", "matrix", "vars"} & set(definition):
        return True
    return _has_parameter(definition)


def _has_parameter(value: Any) -> bool:
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, Mapping):
        return any(_has_parameter(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(map(_has_parameter, value))


# Keys that the md5 of an import does not depend on.
_UNSIGNED = frozenset(
    {"desc", "type", "labels", "meta", "locked", "frozen", "metric", "persist", "isexec", "size", "nfiles"}
)


def document_md5(document: Mapping[str, Any]) -> str:
    """Return the md5 by which DVC notices that the `.dvc` file of an import was edited.

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
    """Tell whether the md5 of an import does not fit; what `add` writes has none.

    Source: dvc/stage/__init__.py, ``changed_stage``; what is left at its default is not signed.
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
    if outside and not deps[0].get("repo"):  # DVC 3 signs these with its hash, whoever wrote the file
        signed["deps"] = [{"hash": MD5, **deps[0]}]
    return bool(document.get("md5") != document_md5(signed))


def check_overlap(outputs: Sequence[Output], *, same: bool = False) -> None:
    """Refuse outputs that claim one path or lie inside each other.

    Args:
        outputs: The outputs, in one order for all calls.
        same: Allow `.dvc` files that record the same content of one path: none of them can change another's.

    Raises:
        OutputOverlapError: Two do; names both and where they are described.
    """
    seen: dict[str, Output] = {}
    for output in outputs:
        other = seen.get(output.path)
        if other and not (same and _is_twin(output, other)):
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


def _is_twin(output: Output, other: Output) -> bool:
    plain = output.stage is None and other.stage is None and bool(output.digest)
    return plain and (output.digest, output.hash_name) == (other.digest, other.hash_name)


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
    """Yield the outputs that a target means.

    Args:
        tracked: The outputs to choose from.
        target: A path, a `.dvc` file, a dvc.yaml, a stage, the name of a ``foreach`` or ``matrix`` for all of its
            stages, or ``dvc.yaml:stage``.
    """
    plain = target.rstrip("/").removeprefix("./")
    file, colon, name = plain.rpartition(":")
    for output in tracked:
        if (
            plain in (output.path, output.source)
            or (posixpath.dirname(output.source) == "" and _is_of(output, plain))
            or (colon and output.source == file and _is_of(output, name))
        ):
            yield output


def _is_of(output: Output, name: str) -> bool:
    """Tell whether a stage of that name, or one of the group of that name, writes an output."""
    stage = output.stage
    return stage is not None and (stage == name or stage.startswith(name + "@"))
