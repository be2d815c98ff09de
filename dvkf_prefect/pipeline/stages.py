"""dvc.yaml: the stages of a pipeline, and the outputs they describe.

Source of the format: DVC 3.x (``dvc/schema.py``). What `template` files would add (``vars``, ``${}``, ``foreach``,
``matrix``) is refused with the place it stands in; see `_expand`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dvkf_prefect.data import documents
from dvkf_prefect.data.outputs import Output
from dvkf_prefect.data.revisions import PIPELINE_FILE, RepoFiles
from dvkf_prefect.data.store import LEGACY, MD5
from dvkf_prefect.errors import ParseError, UnsafePathError
from dvkf_prefect.pipeline.lock import lock_file, read_lock
from dvkf_prefect.pipeline.params import DEFAULT_FILE

_TOP_KEYS = ("stages", "params", "metrics", "plots", "artifacts", "datasets", "vars")
_OUT_KINDS = {"outs": "out", "metrics": "metric", "plots": "plot"}
_FLAGS: Mapping[str, tuple[type, str]] = {
    "cache": (bool, "true or false"),
    "persist": (bool, "true or false"),
    "push": (bool, "true or false"),
    "remote": (str, "the name of a remote"),
    "desc": (str, "a text"),
    "type": (str, "a text"),
    "labels": (list, "a list of texts"),
    "meta": (object, "anything"),
}
_PLOT_FLAGS: Mapping[str, tuple[type, str]] = {
    **_FLAGS,
    **dict.fromkeys(("template", "x", "y", "x_label", "y_label", "title"), (str, "a text")),
    "header": (bool, "true or false"),
}
_STAGE_KEYS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "cmd": ((str, list), "a command, or a list of commands"),
    "wdir": (str, "a folder relative to the dvc.yaml"),
    "deps": (list, "a list of paths"),
    "params": (list, "a list of parameter names, or of {file: [names]}"),
    "outs": (list, "a list of paths, or of {path: {options}}"),
    "metrics": (list, "a list of paths, or of {path: {options}}"),
    "plots": (list, "a list of paths, or of {path: {options}}"),
    "frozen": (bool, "true or false"),
    "always_changed": (bool, "true or false"),
    "desc": (str, "a text"),
    "meta": (object, "anything"),
}
_TEMPLATE_KEYS = ("foreach", "do", "matrix", "vars")
_INTERPOLATION = re.compile(r"(?<!\\)\$\{.*?\}")
_Path = tuple["str | int", ...]


@dataclass(frozen=True, slots=True)
class Dependency:
    """A file or directory that a stage reads.

    Attributes:
        path: Posix, relative to the repository's root; as written where it lies outside.
        name: As written in dvc.yaml, relative to the stage's working directory.
        external: Whether it is an absolute path or a url.
    """

    path: str
    name: str
    external: bool = False


@dataclass(frozen=True, slots=True)
class StageOutput:
    """A file or directory that a stage writes.

    Attributes:
        path: Posix, relative to the repository's root.
        name: As written in dvc.yaml, relative to the stage's working directory.
        kind: ``out``, ``metric`` or ``plot``.
        cached: False keeps it out of the cache.
        persist: Whether the stage finds its last content there when it starts.
        remote: The only remote it goes to, where one is named.
        pushed: False keeps it off the remotes.
        options: The rest of what dvc.yaml says of it: desc, type, labels, meta, and how to plot it.
    """

    path: str
    name: str
    kind: str = "out"
    cached: bool = True
    persist: bool = False
    remote: str | None = None
    pushed: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a dvc.yaml.

    Attributes:
        name: Its name in the file.
        file: The dvc.yaml, relative to the repository's root.
        wdir: The folder its paths and commands are relative to, itself relative to the root; "" for the root.
        command: What dvc.yaml and dvc.lock say: a text, or a list of texts.
        deps: What it reads, in the order written.
        outs: What it writes, in the order written: outs, metrics, plots.
        params: The parameters it reads: ``{file as written: keys}``; no keys mean the whole file.
        frozen: Whether it never runs.
        always_changed: Whether it runs every time.
        desc: A text for people.
        meta: Anything; what other tools read.
    """

    name: str
    file: str
    wdir: str
    command: str | tuple[str, ...]
    deps: tuple[Dependency, ...] = ()
    outs: tuple[StageOutput, ...] = ()
    params: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    frozen: bool = False
    always_changed: bool = False
    desc: str = ""
    meta: Any = None

    @property
    def address(self) -> str:
        """How a person names it: ``name``, or ``folder/dvc.yaml:name``."""
        return self.name if self.file == PIPELINE_FILE else f"{self.file}:{self.name}"

    @property
    def cmd(self) -> tuple[str, ...]:
        """The commands to run one after another; DVC runs each line of a text by itself."""
        return tuple(self.command.splitlines()) if isinstance(self.command, str) else self.command

    @property
    def runs_always(self) -> bool:
        """Whether it has to run whatever has changed: it says so, or has nothing to compare."""
        return self.always_changed or not (self.deps or self.params or self.outs)

    def params_path(self, file: str) -> str:
        """Return where a parameter file lies, relative to the root."""
        return posixpath.normpath(posixpath.join(self.wdir, file))


def load_stages(files: RepoFiles, path: str) -> list[Stage]:
    """Read the stages of one dvc.yaml, in the order written.

    Args:
        files: The revision to read from.
        path: The dvc.yaml, relative to the root.

    Raises:
        FileNotFoundError: There is no such file.
        ParseError: It does not say what the format allows; names line, key and what was expected.
        UnsafePathError: A path leads out of the repository.
    """
    return list(_load(files.read(path), path))


def read_outputs(files: RepoFiles, path: str) -> list[Output]:
    """Read the outputs of one dvc.yaml's stages, with the content that dvc.lock recorded.

    Args:
        files: The revision to read from.
        path: The dvc.yaml, relative to the root.

    Raises:
        ParseError: One of the two files does not say what its format allows.
        UnsafePathError: A path leads out of the repository.
    """
    stages = load_stages(files, path)
    locked = read_lock(files, lock_file(path)) if stages else {}
    outputs: list[Output] = []
    for stage in stages:
        recorded = {item["path"]: item for item in locked.get(stage.name, {}).get("outs", ())}
        for out in stage.outs:
            item = recorded.get(out.name, {})
            digest = item.get("md5")
            outputs.append(
                Output(
                    path=out.path,
                    digest=digest,
                    size=item.get("size"),
                    nfiles=item.get("nfiles"),
                    isexec=bool(item.get("isexec", False)),
                    hash_name=MD5 if item.get("hash") == MD5 or digest is None else LEGACY,
                    cached=out.cached,
                    remote=out.remote,
                    pushed=out.pushed,
                    persist=out.persist,
                    source=path,
                    stage=stage.name,
                )
            )
    return outputs


@lru_cache(maxsize=64)
def _load(data: bytes, path: str) -> tuple[Stage, ...]:
    # One run asks for the same file several times: for outputs, for stages, for the graph.
    document = load_pipeline_file(data, path)
    return tuple(
        _Reader(data, path).stage(name, definition, place)
        for name, definition, place in _expand(data, path, document)
    )


@lru_cache(maxsize=64)
def load_pipeline_file(data: bytes, path: str) -> dict[str, Any]:
    """Read a dvc.yaml and check its top level; the result is shared and must not be changed.

    Raises:
        ParseError: It is not YAML, or has an unknown key at its top.
    """
    document = documents.load(data, path)
    if document is None:
        return {}
    reader = _Reader(data, path)
    if not isinstance(document, dict):
        raise reader.wrong((), f"a dvc.yaml is a mapping with {_or(_TOP_KEYS)}")
    for key in document:
        if key not in _TOP_KEYS:
            raise reader.wrong((key,), f"unknown key '{key}'; expected {_or(_TOP_KEYS)}")
    if "vars" in document:
        raise reader.wrong(("vars",), "`vars` is not supported yet; write the values out")
    for key in ("params", "metrics"):
        reader.texts(document.get(key, []), (key,))
    for key in ("stages", "artifacts"):
        if not isinstance(document.get(key, {}), dict):
            raise reader.wrong((key,), f"`{key}` is a mapping of names to definitions")
    if not isinstance(document.get("plots", []), list):
        raise reader.wrong(("plots",), "`plots` is a list")
    return document


def _expand(
    data: bytes, path: str, document: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], _Path]]:
    """Yield each stage's name, its definition, and where that stands: one for one as long as nothing is a template."""
    reader = _Reader(data, path)
    for name, definition in document.get("stages", {}).items():
        place: _Path = ("stages", name)
        if not isinstance(name, str) or not name:
            raise reader.wrong(place, f"a stage's name is a text, not {name!r}")
        if not isinstance(definition, dict):
            raise reader.wrong(place, f"the stage '{name}' is a mapping with `cmd`")
        for key in _TEMPLATE_KEYS:
            if key in definition:
                raise reader.wrong((*place, key), f"`{key}` is not supported yet; write the stages out")
        yield name, reader.plain(definition, place), place


class _Reader:
    """Checks the parts of one file; looks a line up only when an error has to be told."""

    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self._path = path

    def wrong(self, place: _Path, expected: str) -> ParseError:
        return ParseError(self._path, expected, line=documents.line_of(self._data, place) or 1)

    def plain(self, value: Any, place: _Path) -> Any:
        """Return a value with the escape of `${` taken out; refuse one with `${}` in it."""
        if isinstance(value, str):
            if "${" not in value:
                return value
            found = _INTERPOLATION.search(value)
            if found:
                raise self.wrong(
                    place,
                    f"`{found[0]}`: interpolation is not supported yet; write the value out, "
                    "or `\\${` where the shell is to see it",
                )
            return value.replace("\\${", "${")
        if isinstance(value, dict):
            return {self.plain(k, (*place, k)): self.plain(v, (*place, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self.plain(v, (*place, i)) for i, v in enumerate(value)]
        return value

    def texts(self, value: Any, place: _Path) -> list[str]:
        if not isinstance(value, list):
            raise self.wrong(place, f"`{place[-1]}` is a list of texts")
        for i, item in enumerate(value):
            if not isinstance(item, str):
                raise self.wrong((*place, i), f"an item of `{place[-1]}` is a text, not {item!r}")
        return value

    def stage(self, name: str, definition: Mapping[str, Any], place: _Path) -> Stage:
        for key, value in definition.items():
            known = _STAGE_KEYS.get(key)
            if known is None:
                raise self.wrong(
                    (*place, key), f"unknown key '{key}' in stage '{name}'; expected {_or(_STAGE_KEYS)}"
                )
            if not isinstance(value, known[0]):
                raise self.wrong((*place, key), f"`{key}` of stage '{name}' is {known[1]}, not {value!r}")
        cmd = definition.get("cmd")
        if not cmd:
            raise self.wrong((*place, "cmd"), f"the stage '{name}' needs `cmd`, a command or a list of them")
        command = tuple(self.texts(cmd, (*place, "cmd"))) if isinstance(cmd, list) else str(cmd)
        wdir = self._inside(posixpath.dirname(self._path), definition.get("wdir", "."), (*place, "wdir"))
        deps = tuple(
            self._dependency(wdir, dep, (*place, "deps", i))
            for i, dep in enumerate(self.texts(definition.get("deps", []), (*place, "deps")))
        )
        outs = tuple(
            out for key in _OUT_KINDS for out in self._outs(wdir, key, definition.get(key, []), (*place, key))
        )
        return Stage(
            name=name,
            file=self._path,
            wdir=wdir,
            command=command,
            deps=deps,
            outs=outs,
            params=self._params(wdir, definition.get("params", []), (*place, "params")),
            frozen=definition.get("frozen", False),
            always_changed=definition.get("always_changed", False),
            desc=definition.get("desc", ""),
            meta=definition.get("meta"),
        )

    def _inside(self, folder: str, name: str, place: _Path) -> str:
        path = posixpath.normpath(posixpath.join(folder, name))
        if path.startswith(("/", "../")) or path == ".." or "://" in name:
            line = documents.line_of(self._data, place) or 1
            raise UnsafePathError(f"{self._path}, line {line}: '{name}' leads out of the repository")
        return "" if path == "." else path

    def _dependency(self, wdir: str, name: str, place: _Path) -> Dependency:
        if name.startswith("/") or "://" in name:
            return Dependency(name, name, external=True)
        return Dependency(self._inside(wdir, name, place), name)

    def _outs(self, wdir: str, key: str, items: Sequence[Any], place: _Path) -> Iterator[StageOutput]:
        known = _PLOT_FLAGS if key == "plots" else _FLAGS
        merged: dict[str, dict[str, Any]] = {}
        places: dict[str, _Path] = {}
        for i, item in enumerate(items):
            here = (*place, i)
            pairs = {item: {}} if isinstance(item, str) else item
            if not isinstance(pairs, dict) or not all(isinstance(name, str) for name in pairs):
                raise self.wrong(
                    here, f"an item of `{key}` is a path, or {{path: {{options}}}}, not {item!r}"
                )
            for name, flags in pairs.items():
                if not isinstance(flags, dict):
                    raise self.wrong((*here, name), f"the options of '{name}' are a mapping, not {flags!r}")
                for flag, value in flags.items():
                    if flag not in known:
                        raise self.wrong(
                            (*here, name, flag), f"unknown option '{flag}' of '{name}'; expected {_or(known)}"
                        )
                    if not isinstance(value, known[flag][0]):
                        raise self.wrong(
                            (*here, name, flag), f"`{flag}` of '{name}' is {known[flag][1]}, not {value!r}"
                        )
                merged.setdefault(name, {}).update(flags)
                places[name] = (*here, name) if isinstance(item, dict) else here
        for name, flags in merged.items():
            path = self._inside(wdir, name, places[name])
            if not path:
                raise self.wrong(places[name], f"the output '{name}' is the repository itself")
            yield StageOutput(
                path=path,
                name=name,
                kind=_OUT_KINDS[key],
                cached=flags.pop("cache", True),
                persist=flags.pop("persist", False),
                remote=flags.pop("remote", None),
                pushed=flags.pop("push", True),
                options=flags,
            )

    def _params(self, wdir: str, items: Sequence[Any], place: _Path) -> dict[str, tuple[str, ...]]:
        """Return the keys by file; a file that is named once without keys is meant whole."""
        whole = {file for item in items if isinstance(item, dict) for file, keys in item.items() if not keys}
        merged: dict[str, list[str]] = {}
        for i, item in enumerate(items):
            pairs = {DEFAULT_FILE: [item]} if isinstance(item, str) else item
            if not isinstance(pairs, dict):
                raise self.wrong(
                    (*place, i), f"an item of `params` is a name, or {{file: [names]}}, not {item!r}"
                )
            for file, keys in pairs.items():
                if not isinstance(file, str):
                    raise self.wrong((*place, i), f"a parameter file is a path, not {file!r}")
                self._inside(wdir, file, (*place, i))
                if file in whole:
                    merged[file] = []
                    continue
                merged.setdefault(file, []).extend(self.texts(keys, (*place, i, file)))
        return {file: tuple(dict.fromkeys(keys)) for file, keys in merged.items()}


def _or(names: Sequence[str] | Mapping[str, Any]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"
