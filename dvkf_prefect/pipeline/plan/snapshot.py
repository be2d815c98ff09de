"""Stages of a repository and the current state of the workspace; each file is examined once."""

from __future__ import annotations

import copy
import posixpath
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.workspace.workspace import Found
from dvkf_prefect.errors import (
    DvkfError,
    MissingObjectError,
    OutputError,
    ParseError,
    RemoteError,
    UnsafePathError,
)
from dvkf_prefect.formats.dvclock import Entry, Item, content_of, item_of, lock_file, read_lock
from dvkf_prefect.formats.dvcyaml import Dependency, Stage, load_stages
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.formats.objects import LEGACY, MD5, Content, object_key
from dvkf_prefect.formats.outputs import Output, check_overlap
from dvkf_prefect.formats.params import check_params, parse_params, select
from dvkf_prefect.formats.tracked import read_outputs as read_any_outputs
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.paths import overlaps
from dvkf_prefect.pipeline.plan.graph import Graph
from dvkf_prefect.pipeline.plan.outside import with_own_paths

if TYPE_CHECKING:
    from dvkf_prefect.data.remotes.remote import Remote

UNKNOWN = Content("", 0)
"""Content that a stage will write and that is not known yet."""


@dataclass(frozen=True)
class Inputs:
    """Current inputs of a stage.

    Attributes:
        deps: Dependencies by name as written: content, `UNKNOWN`, or None if not available.
        items: Dependencies as an entry holds them, with the datasets; only those that are known.
        params: Parameter values by file as written.
        missing_params: ``file`` or ``file:key`` of declared parameters that are missing.
        datasets: Datasets by name as written, as dvc.lock has them. None if the version is not known: never updated,
            declared anew, or not declared.
        wrong: Reasons why existing dependencies are not usable, by name as written.
        storable: True if dvc.lock can hold the parameters; always True unless the snapshot only looks.
    """

    deps: Mapping[str, Content | None]
    items: tuple[Item, ...]
    params: Mapping[str, Mapping[str, Any]]
    missing_params: tuple[str, ...] = ()
    datasets: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)
    storable: bool = True

    @property
    def known(self) -> bool:
        """True if all inputs are known and present."""
        return (
            self.storable
            and not self.missing_params
            and all(s is not None and s is not UNKNOWN for s in self.deps.values())
            and all(lock is not None for lock in self.datasets.values())
        )


@dataclass
class Snapshot:
    """Stages and outputs of a workspace, with its current state.

    Args:
        repo: The repository.
        away: Remote of outputs that are not fetched here, for manifests and sizes.
        only_looks: True if nothing will be recorded; outside dependencies of another size are then not read.
        lenient: Accept overlapping outputs and cycles of stages, to report on each of them.

    Attributes:
        graph: Graph of the stages.
        outputs: All tracked outputs by path, as recorded.
        not_pulled: Errors of outputs that could not be pulled, by path.

    Raises:
        ParseError: A file does not follow its format.
        StageGraphError: The stages do not form a graph.
        OutputOverlapError: A stage's output overlaps a tracked one.
    """

    repo: Repository
    away: Remote | None = None
    only_looks: bool = False
    lenient: bool = False
    graph: Graph = field(init=False)
    outputs: dict[str, Output] = field(init=False)
    not_pulled: dict[str, DvkfError] = field(init=False, default_factory=dict)
    _locks: dict[str, dict[str, Entry]] = field(default_factory=dict)
    _found: dict[tuple[str, str], Found] = field(default_factory=dict)
    _params: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    _planned: MutableMapping[str, Content] = field(default_factory=dict)
    _planned_folders: MutableMapping[str, None] = field(default_factory=dict)
    _cached: set[str] = field(default_factory=set)
    _below: dict[str, set[str]] = field(default_factory=dict)
    _pipelines: list[str] = field(default_factory=list)
    _datasets: dict[str, Mapping[str, Any] | None] | None = None
    _outside: dict[str, tuple[Content | None, Item | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = self.repo.files()
        sources = self.files.find()
        self._pipelines = [path for path in sources if posixpath.basename(path) == PIPELINE_FILE]
        root = self.repo.root
        stages = [
            with_own_paths(stage, root) for path in self._pipelines for stage in load_stages(self.files, path)
        ]
        tracked = [output for path in sources for output in read_any_outputs(self.files, path)]
        self.repo.check_ignored(tracked)
        self.graph = Graph(
            stages, [output for output in tracked if output.stage is None], lenient=self.lenient
        )
        if not self.lenient:
            check_overlap(tracked)
        self.outputs = {output.path: output for output in tracked}

    # -- records ---------------------------------------------------------------------------------------------------

    def entry(self, stage: Stage) -> Entry | None:
        """Return the stage's last run; dvc.lock is read once, at the first request."""
        if stage.file not in self._locks:
            self._locks[stage.file] = read_lock(self.files, lock_file(stage.file))
        return self._locks[stage.file].get(stage.name)

    # -- current state ---------------------------------------------------------------------------------------------

    def look(self, path: str, hash_name: str = MD5) -> Found:
        """Return the current state of a path for a comparison, see `Workspace.look`.

        Raises:
            OutputError: The path holds something that cannot be tracked.
        """
        key = (path, hash_name)
        if key not in self._found:
            self._found[key] = self.repo.workspace.look(path, hash_name=hash_name, lenient=True)
            for folder in _folders(path):
                self._below.setdefault(folder, set()).add(path)
        return self._found[key]

    def forget(self, paths: Iterable[str]) -> None:
        """Invalidate cached state of these paths, their children and parents."""
        for path in paths:
            for other in (path, *_folders(path), *self._below.get(path, ())):
                for hash_name in (MD5, LEGACY):
                    self._found.pop((other, hash_name), None)
            for file in [f for f in self._params if overlaps(f, path)]:
                del self._params[file]

    def forget_all(self) -> None:
        """Invalidate all cached state: a command ran that may have written anywhere."""
        self._found.clear()
        self._outside.clear()
        self._below.clear()
        self._params.clear()

    def tracked(self, path: str) -> Output | None:
        """Return the output that equals or contains a path."""
        while path:
            if path in self.outputs:
                return self.outputs[path]
            path = posixpath.dirname(path)
        return None

    def is_cached(self, digest: str, hash_name: str = MD5) -> bool:
        """Return True if the cache has all of a content."""
        key = f"{hash_name}:{digest}"
        if key in self._cached:
            return True
        cache = self.repo.cache
        found = cache.exists(digest, hash_name) and (
            not is_tree(digest) or not cache.missing(cache.read_tree(digest, hash_name).digests, hash_name)
        )
        if found:  # a missing object may be added later, so only success is remembered
            self._cached.add(key)
        return found

    # -- inputs of a stage -----------------------------------------------------------------------------------------

    def plan(self, stage: Stage, entry: Entry | None) -> None:
        """Record a stage's future outputs for the stages after it: an entry's outputs, or unknown content."""
        recorded = {item["path"]: content_of(item) for item in (entry or {}).get("outs", ())}
        for out in stage.outs:
            self._planned[out.path] = recorded.get(out.name, UNKNOWN)
            folder = posixpath.dirname(out.path)
            while folder:
                self._planned_folders[folder] = None
                folder = posixpath.dirname(folder)

    def expect(self, output: Output) -> None:
        """Record that a `.dvc` file's content will be in the workspace."""
        if output.content:
            self._planned[output.path] = output.content

    def _is_expected(self, path: str) -> bool:
        return bool(self._planned) and any(above in self._planned for above in (path, *_folders(path)))

    def ahead(self) -> Snapshot:
        """Return a copy for planning ahead: it sees this snapshot's plans; its own plans do not come back here."""
        other = copy.copy(self)
        other._planned = ChainMap({}, self._planned)
        other._planned_folders = ChainMap({}, self._planned_folders)
        return other

    def content(self, path: str) -> Content | None:
        """Return a dependency's content: planned, in the workspace, or recorded, in this order."""
        if path in self._planned_folders:
            return UNKNOWN
        above = path
        while above and self._planned:
            planned = self._planned.get(above)
            if planned is not None:
                return planned if above == path or planned is UNKNOWN else self._part(planned, above, path)
            above = posixpath.dirname(above)
        found = self.look(path)
        if found.content is not None:
            return found.content
        above = path
        while above:
            output = self.outputs.get(above)
            if output is not None and output.content and output.hash_name == MD5:
                if above != path and (self.repo.root / above).exists():
                    return None  # the directory is in the workspace, without this part of it
                return output.content if above == path else self._part(output.content, above, path)
            above = posixpath.dirname(above)
        return None

    def _part(self, whole: Content, folder: str, path: str) -> Content | None:
        """Return one file or folder inside a directory, by its manifest."""
        if not whole.is_dir or whole.hash_name != MD5:
            return None
        from dvkf_prefect.data.transfer.manifests import read_manifest

        cache = self.repo.cache
        remotes = [] if self.away is None else [self.away]
        try:
            tree = read_manifest(whole.digest, caches=[cache], remotes=remotes, mend=True)
        except MissingObjectError:
            return None
        part = tree.subtree(path[len(folder) + 1 :])
        if not part:
            return None
        sizes: list[int] = []
        for digest in part.digests:
            size = self._size(digest)
            if size is None:
                return None
            sizes.append(size)
        if part.relpaths == [""]:
            return Content(part.digests[0], sizes[0])
        return Content(cache.add_tree(part), sum(sizes), len(part))

    def _size(self, digest: str) -> int | None:
        try:
            return self.repo.cache.path(digest).stat().st_size
        except FileNotFoundError:
            return None if self.away is None else self.away.storage.size(object_key(digest))

    def inputs(self, stage: Stage, entry: Entry | None, *, on_disk: bool = False) -> Inputs:
        """Return the current inputs of a stage.

        Args:
            stage: The stage.
            entry: Last run of the stage.
            on_disk: Count only inputs that are, or are expected, in the workspace; not those that could be fetched.

        Raises:
            ParseError: A parameter file does not parse.
        """
        recorded = {item["path"]: item for item in (entry or {}).get("deps", ())}
        deps: dict[str, Content | None] = {}
        datasets: dict[str, Mapping[str, Any] | None] = {}
        items: list[Item] = []
        wrong: dict[str, str] = {}
        for dep in stage.deps:
            if dep.dataset is not None:
                datasets[dep.name] = lock = self._dataset(dep.dataset)
                if lock is not None:
                    items.append({"path": dep.name, "dataset": dict(lock)})
                continue
            old = recorded.get(dep.name)
            if dep.external:
                deps[dep.name], item = self._read_outside(stage, dep, old)
                items += [item] if item is not None else []
                continue
            try:
                stored = self._same_as_legacy(dep, old) or self._read(dep, on_disk)
            except (OutputError, UnsafePathError) as error:
                stored, wrong[dep.name] = None, str(error)
            deps[dep.name] = stored
            if stored is not None and stored is not UNKNOWN:
                legacy = old is not None and old.get("hash") != MD5 and old.get("md5") == stored.digest
                items.append(dict(old) if legacy and old else item_of(dep.name, stored))
        params: dict[str, dict[str, Any]] = {}
        missing: list[str] = []
        storable = True
        for file, keys in stage.params.items():
            values = self._read_params(stage.params_path(file))
            if values is None:
                missing.append(file)
                continue
            params[file] = select(values, keys)
            try:
                check_params(params[file], stage.params_path(file))
            except ParseError:
                if not self.only_looks:
                    raise
                storable = False
            missing += [f"{file}:{key}" for key in keys if key not in params[file]]
        return Inputs(deps, tuple(items), params, tuple(missing), datasets, wrong, storable)

    def _read(self, dep: Dependency, on_disk: bool) -> Content | None:
        if not on_disk or self._is_expected(dep.path):
            return self.content(dep.path)
        return self.look(dep.path).content

    def _read_outside(
        self, stage: Stage, dep: Dependency, recorded: Item | None
    ) -> tuple[Content | None, Item | None]:
        from dvkf_prefect.pipeline.plan import outside

        place = outside.place_of(self.repo, stage, dep)
        if place not in self._outside:
            if self.only_looks and outside.exists_outside(self.repo, stage, dep):
                with suppress(OSError):
                    if outside.differs_at_a_look(self.repo, stage, dep, recorded):
                        return Content("other", 0), None
            try:
                self._outside[place] = outside.read_outside(self.repo, stage, dep)
            except RemoteError as error:
                if not self.only_looks:
                    raise
                import logging

                # The report remains useful without it.
                logging.getLogger(__name__).warning("cannot check a dependency: %s", error)
                self._outside[place] = None, None
        stored, item = self._outside[place]
        return stored, None if item is None else {**item, "path": dep.name}

    def _dataset(self, name: str) -> Mapping[str, Any] | None:
        """Return the dvc.lock record of a dataset; it may be in any dvc.yaml, as in DVC."""
        if self._datasets is None:
            from dvkf_prefect.formats.artifacts import read_datasets

            found = [read_datasets(self.files, path) for path in self._pipelines]
            self._datasets = {key: each.lock for datasets in found for key, each in datasets.items()}
        return self._datasets.get(name)

    def _same_as_legacy(self, dep: Dependency, old: Item | None) -> Content | None:
        """Return the recorded content of DVC 2.x, if the workspace still has it."""
        if old is None or not old.get("md5") or old.get("hash") == MD5:
            return None
        return content_of(old) if self.look(dep.path, LEGACY).digest == old["md5"] else None

    def _read_params(self, path: str) -> dict[str, Any] | None:
        if path not in self._params:
            try:
                self._params[path] = parse_params(self.files.read(path), path)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._params[path] = None
        return self._params[path]


def _folders(path: str) -> Iterator[str]:
    folder = posixpath.dirname(path)
    while folder:
        yield folder
        folder = posixpath.dirname(folder)
