"""Run of one stage from digests, in a clean folder: the same code on a laptop and in a pod.

``python -m dvkf_prefect.pipeline.step.step SPEC.json RESULT.json`` runs the `StepSpec` in the first file and writes a
`StepResult` to the second. It exits with 0 whenever a result was written.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import signal
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.git.command import Git
from dvkf_prefect.errors import (
    DvkfError,
    OutputError,
    StageCancelledError,
    StageError,
    StageFailedError,
    StageOutputError,
    StageWriteError,
    explained,
)
from dvkf_prefect.files import walk_files, write_atomic
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.dvcignore import Ignore
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.params import render_params
from dvkf_prefect.formats.tree import Tree, check_relpath, is_tree
from dvkf_prefect.pipeline.step.commands import Commands, clean_log, interrupts
from dvkf_prefect.pipeline.step.folder import StepFolder, copy_writable
from dvkf_prefect.pipeline.step.links import StepLinks
from dvkf_prefect.pipeline.step.spec import StepContent, StepOutput, StepResult, StepSpec

__all__ = [
    "Objects",
    "StepContent",
    "StepOutput",
    "StepResult",
    "StepSpec",
    "clean_log",
    "run_step",
]


class Objects(Protocol):
    """Store of content by digest for a run; a `Cache` is one, a remote can be."""

    def exists(self, digest: str) -> bool:
        """Return True if the object exists."""

    def export(self, digest: str, dest: Path, *, isexec: bool = False) -> None:
        """Copy a file or directory out, verified."""

    def read_tree(self, digest: str) -> Tree:
        """Return a directory's manifest."""

    def add_file(self, source: str | Path, *, move: bool = False) -> str:
        """Store a file's content; return its digest."""

    def add_tree(self, tree: Tree) -> str:
        """Store a directory's manifest; return its digest."""


def run_step(spec: StepSpec, objects: Objects | None = None) -> StepResult:
    """Run a stage's commands: in a folder with exactly the declared files, or in the workspace.

    The outputs are hashed and stored, files before manifests. If a command in a work folder writes less or more than
    its outputs, the folder is kept. The message names it.

    Args:
        spec: Specification of the run.
        objects: Store for the content read and written; the cache of the specification by default.

    Returns:
        The result. A failure is in `StepResult.error`; `StepResult.check` raises it.

    Example:
        >>> import tempfile
        >>> spec = StepSpec("greet", ("echo hello > x",), tempfile.mkdtemp(), outs=(StepOutput("x"),))
        >>> run_step(spec).outs[0].digest
        > echo hello > x
        'b1946ac92492d2347c6235b4d2611184'
    """
    if spec.in_place:
        from dvkf_prefect.pipeline.step.inplace import run_in_place

        return run_in_place(spec)
    try:
        _check_paths(spec)
        folder = StepFolder(spec)
    except DvkfError as error:
        return StepResult(spec.stage, error=type(error).__name__, message=str(error))
    except OSError as error:
        return StepResult(
            spec.stage, error=StageError.__name__, message=f"stage '{spec.stage}': {explained(error)}"
        )
    return _Step(spec, objects or Cache(Path(spec.cache_dir)), folder).run()


def _check_paths(spec: StepSpec) -> None:
    paths = [*(dep.path for dep in spec.deps), *(out.path for out in spec.outs), *spec.params]
    for path in [*paths, spec.wdir] if spec.wdir else paths:
        check_relpath(path, f"stage '{spec.stage}'")


class _Step:
    def __init__(self, spec: StepSpec, objects: Objects, folder: StepFolder) -> None:
        self._spec = spec
        self._objects = objects
        self._folder = folder
        self._root = folder.root
        self._side = folder.side
        self._commands = Commands(spec, self._root)
        self._sources: set[str] = set()
        self._links: StepLinks | None = None
        self._lost: tuple[str, ...] = ()
        self._before: dict[str, tuple[int, int, int, int]] = {}

    def run(self) -> StepResult:
        keep = False
        try:
            self._prepare()
            self._before = {path: self._look_at(path, entry) for path, entry in _walk(self._root, set())}
            try:
                self._commands.run()
            finally:
                if self._links is not None:
                    self._lost = self._links.mend()
            warnings = (*self._commands.warnings, *self._check())
            self._folder.begin_to_store()
            outs = tuple(self._store(out) for out in self._spec.outs)
            keep = self._side.exists()
            shutil.rmtree(self._root, ignore_errors=True)
            return self._result(outs=outs, side_dir=str(self._side) if keep else "", warnings=warnings)
        except StageFailedError as error:
            return self._result(
                error=StageFailedError.__name__,
                message=str(error),
                command=error.command,
                exit_code=error.status,
            )
        except DvkfError as error:
            keep = isinstance(error, (StageOutputError, StageWriteError))
            return self._result(error=type(error).__name__, message=str(error))
        except OSError as error:
            return self._result(
                error=StageError.__name__, message=f"stage '{self._spec.stage}': {explained(error)}"
            )
        finally:
            self._folder.release(keep=keep)

    def _result(self, **values: object) -> StepResult:
        return StepResult(
            self._spec.stage,
            seconds=round(self._commands.seconds, 3),
            log_tail=self._commands.log_tail,
            **values,  # type: ignore[arg-type]
        )

    # -- before ------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        spec = self._spec
        (self._root / spec.wdir).mkdir(parents=True)
        if spec.sources is not None:
            self._place_sources(Path(spec.sources))
        if spec.cache_config and spec.workspace is not None:
            self._links = StepLinks(Path(spec.workspace), spec.cache_config, self._root)
        placed: set[str] = set()
        for dep in sorted(spec.deps, key=lambda dep: dep.path):
            if not any(dep.path.startswith(parent + "/") for parent in placed):
                self._place(dep)
            if is_tree(dep.digest):
                placed.add(dep.path)
        if self._links is not None:
            self._links.settle()
        paths = {dep.path for dep in spec.deps}
        for file, values in spec.params.items():
            if file not in paths and file not in self._sources:
                target = self._root / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(render_params(file, values))
        for out in spec.outs:
            target = self._root / out.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if out.path in self._folder.regained:
                copy_writable(Path(self._spec.workspace or "") / out.path, target)
            elif out.previous:
                self._objects.export(out.previous, target, isexec=out.isexec)

    def _place_sources(self, folder: Path) -> None:
        """Copy git-tracked files in their current state, except declared paths, which are placed by digest."""
        declared = {dep.path for dep in self._spec.deps} | {out.path for out in self._spec.outs}
        for path in _source_files(folder):
            if path.startswith(".dvc/") or posixpath.basename(path) == "dvc.lock":
                continue
            if any(above in declared for above in (path, *map(str, PurePosixPath(path).parents))):
                continue
            source, target = folder / path, self._root / path
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target, follow_symlinks=False)
                self._sources.add(path)

    def _place(self, dep: StepContent) -> None:
        target = self._root / dep.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._links is not None and self._objects.exists(dep.digest):
            self._links.place(dep.digest, dep.path, isexec=dep.content.isexec)
            return
        if self._objects.exists(dep.digest) or self._spec.workspace is None:
            self._objects.export(dep.digest, target, isexec=dep.content.isexec)
            return
        source = Path(self._spec.workspace) / dep.path
        if not is_tree(dep.digest):
            try:
                shutil.copy(source, target)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise StageError(self._changed(dep)) from error
            if digest_file(target) != dep.digest:
                raise StageError(self._changed(dep))
            return
        ignore = Ignore(Path(self._spec.workspace))
        pairs: list[tuple[str, str]] = []
        target.mkdir()
        if source.is_dir():
            for relpath, entry in walk_files(source):
                if not ignore.matches(f"{dep.path}/{relpath}"):
                    copy = target / relpath
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(entry.path, copy)
                    pairs.append((relpath, digest_file(copy)))
        if Tree.from_pairs(pairs).digest != dep.digest:
            raise StageError(self._changed(dep))

    def _changed(self, dep: StepContent) -> str:
        return (
            f"stage '{self._spec.stage}': its dependency '{dep.path}' is neither in the cache nor in the "
            f"workspace with the expected content ({dep.digest}). Run the stage again."
        )

    # -- after -------------------------------------------------------------------------------------------------

    def _check(self) -> tuple[str, ...]:
        """Refuse a run that wrote less than its outputs or, unless lenient, more; return the warnings.

        Raises:
            StageOutputError: An output is missing.
            StageWriteError: Another file was written, or a dependency changed.
        """
        outs = {out.path for out in self._spec.outs}
        missing = sorted(path for path in outs if not (self._root / path).exists())
        ignore = Ignore(Path(self._spec.workspace or self._root))
        seen: set[str] = set()
        written: list[str] = []
        changed: list[str] = []
        for path, entry in _walk(self._root, outs):
            seen.add(path)
            known = self._before.get(path)
            if known is None:
                if not (path.endswith(".pyc") or "__pycache__/" in path or ignore.matches(path)):
                    written.append(path)
            elif (self._look_at(path, entry) != known or self._is_damaged(path)) and self._differs(
                path, entry.path
            ):
                changed.append(path)
        inside = tuple(out + "/" for out in outs)
        changed += [p for p in self._before if p not in seen and p not in outs and not p.startswith(inside)]
        kept = f" The folder is kept: {self._root}"
        if self._lost:
            raise StageWriteError(
                f"stage '{self._spec.stage}' wrote to data that is linked to the cache: "
                f"{_names(self._lost)}. The damaged objects were moved aside. Restore them with "
                f"`dvkf fetch`, and write to an output instead.{kept}"
            )
        if missing:
            other = f"; it wrote {_names(written)} instead" if written else ""
            raise StageOutputError(
                f"stage '{self._spec.stage}' succeeded but did not write {_names(missing)}{other}.{kept}"
            )
        if self._spec.lenient:
            return tuple(
                f"stage '{self._spec.stage}' {what}: {_names(paths)}. {lost}"
                for what, paths, lost in (
                    (
                        "changed its dependencies",
                        changed,
                        "The changes were discarded. Write to an output instead.",
                    ),
                    (
                        "wrote undeclared files",
                        written,
                        "They were discarded. Add them to `outs`.",
                    ),
                )
                if paths
            )
        if changed:
            raise StageWriteError(
                f"stage '{self._spec.stage}' changed its dependencies: {_names(changed)}. Nothing was kept. "
                f"Write to an output instead.{kept}"
            )
        if written:
            raise StageWriteError(
                f"stage '{self._spec.stage}' wrote undeclared files: {_names(written)}. Nothing was kept. "
                f"Add them to `outs`, or to .dvcignore.{kept}"
            )
        return ()

    def _is_damaged(self, path: str) -> bool:
        return self._links is not None and self._links.digest_of(path) in self._links.damaged

    def _look_at(self, path: str, entry: os.DirEntry[str]) -> tuple[int, int, int, int]:
        linked = self._links is not None and self._links.digest_of(path) is not None
        try:
            return _look(entry.stat(follow_symlinks=linked))
        except FileNotFoundError:
            return (0, 0, 0, 0)  # the target of the link was removed

    def _differs(self, path: str, place: str) -> bool:
        """Return True if the bytes of a file changed during the run; touching it is allowed."""
        if self._links is not None and (digest := self._links.digest_of(path)) is not None:
            return digest in self._links.damaged or not os.path.exists(place) or digest_file(place) != digest
        if path in self._sources:
            original = Path(str(self._spec.sources)) / path
            if original.is_symlink() or Path(place).is_symlink():
                return not original.is_symlink() or _target(original) != _target(Path(place))
            return not original.exists() or digest_file(place) != digest_file(original)
        if Path(place).is_symlink():
            return True
        for dep in self._spec.deps:
            if path == dep.path and not is_tree(dep.digest):
                return digest_file(place) != dep.digest
            if path.startswith(dep.path + "/") and is_tree(dep.digest):
                if self._objects.exists(dep.digest):
                    tree = dict(self._objects.read_tree(dep.digest).items())
                    return digest_file(place) != tree[path[len(dep.path) + 1 :]]
                original = Path(str(self._spec.workspace)) / path
                return not original.exists() or digest_file(place) != digest_file(original)
        return Path(place).read_bytes() != render_params(path, self._spec.params[path])

    def _store(self, out: StepOutput) -> StepContent:
        objects: Objects = self._objects if out.cached else Cache(self._side)
        path = self._root / out.path
        if path.is_symlink():
            real = path.resolve()
            if not real.is_relative_to(self._root.resolve()):
                raise OutputError(f"stage '{self._spec.stage}': the output '{out.path}' is a link to {real}")
        content = _store_path(objects, path, Ignore(Path(self._spec.workspace or self._root)), out.path)
        return StepContent(out.path, content)


def _store_path(objects: Objects, path: Path, ignore: Ignore, name: str) -> Content:
    """Move a file or directory of a work folder into a store, files before the manifest."""
    info = path.stat()
    if not stat.S_ISDIR(info.st_mode):
        if not stat.S_ISREG(info.st_mode):
            raise OutputError(f"the output '{name}' is neither a file nor a directory")
        return Content(_take(objects, path), info.st_size, None, bool(info.st_mode & 0o100))
    quiet = ignore.quiet_below(name)
    pairs: list[tuple[str, str]] = []
    size = 0
    for relpath, entry in list(walk_files(path)):
        if quiet or not ignore.matches(f"{name}/{relpath}"):
            size += entry.stat().st_size
            pairs.append((relpath, _take(objects, Path(entry.path))))
    tree = Tree.from_pairs(pairs)
    return Content(objects.add_tree(tree), size, len(pairs))


def _source_files(folder: Path) -> Iterator[str]:
    """Yield the git-tracked files below a folder; outside git, for example in an unpacked bundle, all files."""
    git = Git.find(folder)
    if git is None:
        yield from (path for path, _ in _walk(folder, set()))
        return
    prefix = folder.resolve().relative_to(git.root.resolve()).as_posix()
    start = "" if prefix == "." else f"{prefix}/"
    listed = git.run("ls-files", "-z", "--", f":(top,literal){start}" if start else ":(top)")
    for path in listed.split("\0"):
        if path.startswith(start) and path:
            yield path[len(start) :]


def _take(objects: Objects, path: Path) -> str:
    # A link, or a file with a second name, must not become the object itself.
    info = path.lstat()
    return objects.add_file(path, move=stat.S_ISREG(info.st_mode) and info.st_nlink == 1)


def _walk(root: Path, outs: set[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file below ``root`` that is not at or below one of ``outs``."""
    stack = [("", str(root))]
    while stack:
        prefix, folder = stack.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if path in outs:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    stack.append((path + "/", entry.path))
                else:
                    yield path, entry


def _target(link: Path) -> str | None:
    return os.readlink(link) if link.is_symlink() else None


def _look(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino


def _names(paths: Iterable[str]) -> str:
    listed = sorted(paths)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(f"'{path}'" for path in listed[:10]) + more


def _cancel(number: int, frame: object) -> None:
    raise StageCancelledError("the stage was stopped before its end")


def main(arguments: list[str]) -> int:
    """Run the step of a JSON file and write its result to another."""
    signal.signal(signal.SIGTERM, _cancel)
    interrupts.listen()
    spec_file, result_file = map(Path, arguments)
    result = run_step(StepSpec.from_json(spec_file.read_bytes()))
    write_atomic(result_file, result.to_json().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
