"""Stages of a dvc.yaml, their outputs, and the other sections of the file.

Source of the format: DVC 3.x (``dvc/schema.py``, ``dvc/stage/loader.py``). `dvkf_prefect.formats.template` resolves
its templates.
"""

from __future__ import annotations

import posixpath
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvclock import content_of, lock_file, read_lock
from dvkf_prefect.formats.files import PIPELINE_FILE, RepoFiles
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.params import DEFAULT_FILE
from dvkf_prefect.formats.template import OUT_KEYS, Instance, Place, Resolver, SourceFile, check_document
from dvkf_prefect.paths import check_output

_OUT_KINDS = {"outs": "out", "metrics": "metric", "plots": "plot"}
_DATASET = "ds://"


@dataclass(frozen=True, slots=True)
class Dependency:
    """A file or directory that a stage reads.

    Attributes:
        path: Posix, relative to the repository's root; unchanged from dvc.yaml if it lies outside.
        name: As written in dvc.yaml, relative to the stage's working directory.
        external: True for an absolute path, a url, or a path out of the repository.
    """

    path: str
    name: str
    external: bool = False

    @property
    def dataset(self) -> str | None:
        """Name of the dataset for a ``ds://name`` dependency, None for any other."""
        return self.name.removeprefix(_DATASET).partition("/")[0] if self.name.startswith(_DATASET) else None


@dataclass(frozen=True, slots=True)
class StageOutput:
    """A file or directory that a stage writes.

    Attributes:
        path: Posix, relative to the repository's root.
        name: As written in dvc.yaml, relative to the stage's working directory.
        kind: ``out``, ``metric`` or ``plot``.
        cached: False keeps it out of the cache.
        persist: True to keep the last content in place when the stage starts.
        remote: The only remote for this output, None for any remote.
        pushed: False keeps it off the remotes.
        options: Remaining options in dvc.yaml: desc, type, labels, meta, and how to plot it.
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
        name: Name in the file.
        file: The dvc.yaml, relative to the repository's root.
        wdir: Working directory for its paths and commands, relative to the root; "" for the root.
        command: Command in its dvc.yaml and dvc.lock form: a text, or a list of texts.
        deps: Dependencies, in the order of the file.
        outs: Outputs, in the order of the file: outs, metrics, plots.
        params: Parameters: ``{file as in dvc.yaml: keys}``; an empty tuple stands for the whole file.
        frozen: True if the stage never runs.
        always_changed: True if the stage runs every time.
        desc: Description for readers.
        meta: Free-form metadata for other tools.
        models: Outputs that are models: those of ``type: model``, and those that an artifact of that type names.
        place: Keys that lead to its definition in the file, for messages.
        group: Name of the ``foreach`` or ``matrix`` definition that generated the stage, if any.
        used: Values that its templates read from files: ``{file relative to the root: {dotted key: value}}``.
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
    models: tuple[str, ...] = ()
    place: Place = ()
    group: str | None = None
    used: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """User-facing name: ``name``, or ``folder/dvc.yaml:name``."""
        return self.name if self.file == PIPELINE_FILE else f"{self.file}:{self.name}"

    @property
    def cmd(self) -> tuple[str, ...]:
        """Commands to run one after another; DVC runs each line of a text separately."""
        return tuple(self.command.splitlines()) if isinstance(self.command, str) else self.command

    @property
    def runs_always(self) -> bool:
        """True if the stage runs regardless of changes: by ``always_changed``, or for lack of anything to compare."""
        return self.always_changed or not (self.deps or self.params or self.outs)

    def params_path(self, file: str) -> str:
        """Return the path of a parameter file, relative to the root."""
        return posixpath.normpath(posixpath.join(self.wdir, file))


@dataclass(frozen=True, slots=True)
class Sections:
    """Sections of a dvc.yaml other than its stages, with every ``${}`` filled in.

    Attributes:
        params: Parameter files, relative to the dvc.yaml.
        metrics: Metric files, relative to the dvc.yaml.
        plots: Plot options by the plot's name. The name is a path relative to the dvc.yaml unless ``y`` names files.
        artifacts: Declaration of each artifact, by its name.
        datasets: Declaration of each dataset.
    """

    params: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    plots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    artifacts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    datasets: tuple[Mapping[str, Any], ...] = ()


def load_stages(files: RepoFiles, path: str) -> list[Stage]:
    """Read the stages of one dvc.yaml, in the order of the file; groups in the order of their items.

    Args:
        files: The revision to read from, also for parameter files and the ``parsing`` settings.
        path: The dvc.yaml, relative to the root.

    Raises:
        FileNotFoundError: There is no such file.
        ParseError: The file or its dvc.lock violates the format, or a template in it cannot be resolved; the error
            names line, key and expected value.
        UnsafePathError: A path leads out of the repository.
        ConfigError: A setting of ``parsing`` is unknown.
    """
    with _LOCK:
        stages = list(_open(files, path).stages())
    if stages:
        read_lock(files, lock_file(path))  # as in DVC, an invalid dvc.lock fails the whole read
    return stages


def read_sections(files: RepoFiles, path: str) -> Sections:
    """Read the sections of one dvc.yaml other than its stages.

    Args:
        files: The revision to read from.
        path: The dvc.yaml, relative to the root.

    Raises:
        FileNotFoundError: There is no such file.
        ParseError: It violates the format, or a template in it cannot be resolved.
    """
    with _LOCK:
        return _open(files, path).sections()


def read_outputs(files: RepoFiles, path: str) -> list[Output]:
    """Read the outputs of one dvc.yaml's stages, with the content recorded in dvc.lock.

    Args:
        files: The revision to read from.
        path: The dvc.yaml, relative to the root.

    Raises:
        ParseError: One of the two files violates its format.
        UnsafePathError: A path leads out of the repository.
    """
    stages = load_stages(files, path)
    locked = read_lock(files, lock_file(path)) if stages else {}
    outputs: list[Output] = []
    for stage in stages:
        recorded = {item["path"]: item for item in locked.get(stage.name, {}).get("outs", ())}
        for out in stage.outs:
            item = recorded.get(out.name, {})
            outputs.append(
                Output(
                    path=out.path,
                    content=content_of(item) if item.get("md5") is not None else None,
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
def load_pipeline_file(data: bytes, path: str) -> dict[str, Any]:
    """Read a dvc.yaml with its templates unresolved; do not modify the shared result.

    Raises:
        ParseError: It is not YAML, or violates the format.
    """
    return check_document(SourceFile(data, path), documents.load(data, path))


# -- cache of resolved files: one run reads the same file for outputs, for stages and for the graph --------------------

_LOCK = threading.RLock()
_OPENED: OrderedDict[tuple[bytes, str], list[_File]] = OrderedDict()
_KEPT = 32
_VARIANTS = 4


def _open(files: RepoFiles, path: str) -> _File:
    """Return the resolved file from the cache if all its inputs are unchanged, else resolve it."""
    key = (files.read(path), path)
    variants = _OPENED.setdefault(key, [])
    _OPENED.move_to_end(key)
    found = next((file for file in variants if file.holds(files)), None)
    if found is None:
        found = _File(files, *key)
        variants.insert(0, found)
        del variants[_VARIANTS:]
    if len(_OPENED) > _KEPT:
        _OPENED.popitem(last=False)
    return found


class _File:
    """One dvc.yaml with the bytes of every other file used to resolve it."""

    def __init__(self, files: RepoFiles, data: bytes, path: str) -> None:
        self._files = files
        self._asked: dict[str, bytes | None] = {}
        self._source = SourceFile(data, path)
        self._resolver = Resolver(self._source, load_pipeline_file(data, path), self._read, self._settings)
        self._stages: tuple[Stage, ...] | None = None
        self._sections: Sections | None = None

    def holds(self, files: RepoFiles) -> bool:
        """Return True if all inputs are the same in a revision; later reads then use that revision."""
        if any(_read(files, path) != data for path, data in self._asked.items()):
            return False
        self._files = files
        return True

    def stages(self) -> tuple[Stage, ...]:
        if self._stages is None:
            artifacts = self.sections().artifacts  # as in DVC, an invalid section fails the whole file
            reader = _Reader(self._source, artifacts)
            self._stages = tuple(reader.stage(instance) for instance in self._resolver.stages())
        return self._stages

    def sections(self) -> Sections:
        if self._sections is None:
            self._resolver.check_vars()
            section = self._resolver.section
            self._sections = Sections(
                params=self._texts("params"),
                metrics=self._texts("metrics"),
                plots=self._plots(),
                artifacts=self._artifacts(section("artifacts") or {}),
                datasets=tuple(section("datasets") or ()),
            )
        return self._sections

    def _texts(self, name: str) -> tuple[str, ...]:
        found = self._resolver.section(name) or ()
        for i, item in enumerate(found):
            if not isinstance(item, str):
                raise self._source.wrong((name, i), f"an item of `{name}` is a path, not {item!r}")
        return tuple(found)

    def _plots(self) -> dict[str, Mapping[str, Any]]:
        plots: dict[str, Mapping[str, Any]] = {}
        for i, item in enumerate(self._resolver.section("plots") or ()):
            pairs = {item: None} if isinstance(item, str) else item
            if not isinstance(pairs, dict) or not all(isinstance(name, str) for name in pairs):
                raise self._source.wrong(
                    ("plots", i), f"an item of `plots` is a path or a name, not {item!r}"
                )
            plots.update({name: options or {} for name, options in pairs.items()})
        return plots

    def _artifacts(self, artifacts: Mapping[Any, Any]) -> dict[str, Mapping[str, Any]]:
        for name in artifacts:
            if not isinstance(name, str):
                raise self._source.wrong(("artifacts",), f"an artifact's name is a string, not {name!r}")
        return dict(artifacts)

    def _read(self, path: str) -> bytes | None:
        if path not in self._asked:
            self._asked[path] = _read(self._files, path)
        return self._asked[path]

    def _settings(self) -> Mapping[str, str]:
        return _parsing_settings(self._read(".dvc/config"), self._read(".dvc/config.local"))


def _read(files: RepoFiles, path: str) -> bytes | None:
    try:
        return files.read(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


_PARSING = {"bool": ("store_true", "boolean_optional"), "list": ("nargs", "append")}


@lru_cache(maxsize=16)
def _parsing_settings(*levels: bytes | None) -> Mapping[str, str]:
    """Return the settings for mappings as arguments: the revision's settings override the user's."""
    from configobj import ConfigObj, ConfigObjError

    from dvkf_prefect.formats.config import ConfigFiles

    settings: dict[str, Any] = dict(ConfigFiles(None).values["parsing"])
    for level in levels:
        if level and b"parsing" in level:
            try:
                document = ConfigObj(level.decode().splitlines(), interpolation=False)
            except (ConfigObjError, UnicodeDecodeError) as error:
                raise ConfigError(f".dvc/config: not a configuration file: {error}") from error
            for section, options in document.items():
                if section.lower() == "parsing":
                    settings.update({option.lower(): value for option, value in options.items()})
    for option, value in settings.items():
        known = _PARSING.get(option, ())
        settings[option] = str(value).lower()
        if settings[option] not in known:
            raise ConfigError(f".dvc/config: [parsing] {option} = {value}: expected {' or '.join(known)}")
    return settings


class _Reader:
    """Builder of stages from one file's definitions."""

    def __init__(self, source: SourceFile, artifacts: Mapping[str, Mapping[str, Any]]) -> None:
        self._source = source
        self._path = source.path
        self._folder = posixpath.dirname(source.path)
        self._models = {
            posixpath.normpath(posixpath.join(self._folder, str(artifact["path"])))
            for artifact in artifacts.values()
            if artifact.get("type") == "model"
        }

    def stage(self, instance: Instance) -> Stage:
        name, values, place = instance.name, instance.values, instance.place
        cmd = values["cmd"]
        if not cmd or not isinstance(cmd, (str, list)):
            raise self._source.wrong(
                (*place, "cmd"), f"`cmd` of stage '{name}' is a command, or a list of commands, not {cmd!r}"
            )
        command = tuple(self._texts(cmd, (*place, "cmd"))) if isinstance(cmd, list) else cmd
        folder = values.get("wdir") or "."
        if not isinstance(folder, str):
            raise self._source.wrong(
                (*place, "wdir"), f"`wdir` of stage '{name}' is a folder, not {folder!r}"
            )
        wdir = self._inside(self._folder, folder, (*place, "wdir"))
        deps = tuple(
            [self._dependency(wdir, dep, (*place, "deps", i)) for i, dep in enumerate(values.get("deps", ()))]
        )
        outs = tuple(
            [out for key in _OUT_KINDS if key in values for out in self._outs(wdir, key, values, place)]
        )
        return Stage(
            name=name,
            file=self._path,
            wdir=wdir,
            command=command,
            deps=deps,
            outs=outs,
            params=self._params(wdir, values.get("params", ()), (*place, "params")),
            frozen=values.get("frozen", False),
            always_changed=values.get("always_changed", False),
            desc=_text(values.get("desc", "")),
            meta=values.get("meta"),
            models=tuple(
                [out.path for out in outs if out.path in self._models or out.options.get("type") == "model"]
            ),
            place=place,
            group=instance.group,
            used=instance.used,
        )

    def _texts(self, value: Any, place: Place) -> list[str]:
        if not isinstance(value, list):
            raise self._source.wrong(place, f"`{place[-1]}` is a list of strings")
        for i, item in enumerate(value):
            if not isinstance(item, str):
                raise self._source.wrong((*place, i), f"an item of `{place[-1]}` is a string, not {item!r}")
        return value

    def _inside(self, folder: str, name: str, place: Place) -> str:
        path = posixpath.normpath(posixpath.join(folder, name))
        if path.startswith(("/", "../")) or path == ".." or "://" in name:
            raise self._source.outside(place, name)
        return "" if path == "." else path

    def _file(self, wdir: str, name: Any, place: Place) -> str:
        """Return the path of a dependency, an output or a parameter file, relative to the root."""
        if not isinstance(name, str):
            raise self._source.wrong(place, f"a path is a string, not {name!r}")
        if name.endswith(".dvc") or posixpath.basename(name) == PIPELINE_FILE:
            raise self._source.wrong(
                place, f"'{name}' is a DVC file. Use the path of the output that it describes."
            )
        return self._inside(wdir, name, place)

    def _dependency(self, wdir: str, name: Any, place: Place) -> Dependency:
        if isinstance(name, str) and (name.startswith("/") or "://" in name):
            return Dependency(name, name, external=True)
        if isinstance(name, str) and posixpath.normpath(posixpath.join(wdir, name)).split("/")[0] == "..":
            return Dependency(name, name, external=True)
        return Dependency(self._file(wdir, name, place), name)

    def _outs(self, wdir: str, key: str, values: Mapping[str, Any], place: Place) -> Iterator[StageOutput]:
        known = OUT_KEYS[key]
        merged: dict[str, dict[str, Any]] = {}
        places: dict[str, Place] = {}
        for i, item in enumerate(values[key]):
            here = (*place, key, i)
            for name, flags in item.items() if isinstance(item, dict) else [(item, {})]:
                merged.setdefault(name, {}).update(flags)
                places[name] = (*here, name) if isinstance(item, dict) else here
        for name, flags in merged.items():
            path = self._file(wdir, name, places[name])
            if not path:
                raise self._source.wrong(places[name], f"the output '{name}' is the repository itself")
            check_output(path, self._source.path)
            remote = flags.pop("remote", None)
            if remote is not None and not isinstance(remote, str):
                raise self._source.wrong(
                    (*places[name], "remote"), f"`remote` of '{name}' is {known['remote'][1]}, not {remote!r}"
                )
            flags.pop("checkpoint", None)  # an option of older versions, without effect now
            yield StageOutput(
                path=path,
                name=name,
                kind=_OUT_KINDS[key],
                cached=flags.pop("cache", True),
                persist=flags.pop("persist", False),
                remote=remote,
                pushed=flags.pop("push", True),
                options=flags,
            )

    def _params(self, wdir: str, items: Sequence[Any], place: Place) -> dict[str, tuple[str, ...]]:
        """Return the keys by file; a file named once without keys counts as a whole."""
        if not items:
            return {}
        whole = {file for item in items if isinstance(item, dict) for file, keys in item.items() if not keys}
        merged: dict[str, list[str]] = {}
        for i, item in enumerate(items):
            here = (*place, i)
            if not isinstance(item, (str, dict)):
                raise self._source.wrong(
                    here, f"an item of `params` is a name, or {{file: [names]}}, not {item!r}"
                )
            if isinstance(item, str) and DEFAULT_FILE in whole:
                continue
            for file, keys in ({DEFAULT_FILE: [item]} if isinstance(item, str) else item).items():
                self._file(wdir, file, here)
                if file in whole:
                    merged[file] = []
                else:
                    merged.setdefault(file, []).extend(self._texts(keys, (*here, file)))
        return {file: tuple(dict.fromkeys(keys)) for file, keys in merged.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
