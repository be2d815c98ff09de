"""The fsspec protocol ``dvkf``: lazy read access to any file of any revision.

All libraries that read through fsspec can read versions with it: pandas, dask, pyarrow, polars, universal_pathlib.

    dvkf://data/train/a.csv                              a path in the repository that the options name
    dvkf://@v1/data/train/a.csv                          the same at a revision; write %2F for a slash in its name
    dvkf://data/train/a.csv::/srv/repos/images           a path in another repository: a folder, or a git url
    dvkf://@v1/data/train/a.csv::https://git.example.org/team/images.git

A revision in a path overrides the one in the options. If the repository's root has a file or folder with the name
``@v1``, the path refers to that one.

Source of the url forms: ``::`` is fsspec's chaining, and DVC's filesystem reads its repository from it too.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import unquote

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem
from fsspec.utils import tokenize

from dvkf_prefect.data.git import clones
from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.imports.external import ExternalRepo, local_folder, open_external
from dvkf_prefect.data.views.listing import Entry, is_describing, plain_path
from dvkf_prefect.data.views.reader import View
from dvkf_prefect.errors import ConfigError, DvkfError, OutputNotFoundError

__all__ = ["DvkfFileSystem"]

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_ARGUMENTS = ("repo", "rev")
_TIMEOUT = 120.0


class _Pinned(type(AbstractFileSystem)):  # type: ignore[misc]
    """Metaclass that pins a filesystem's repository and revision before fsspec looks in its instance cache.

    The folder becomes absolute and the revision a commit. So a cached instance never shows an old state of a branch.
    Other processes that receive the filesystem or its options read the same data.
    """

    def __call__(cls, *args: Any, **options: Any) -> Any:
        options.update(zip(_ARGUMENTS, args, strict=False))
        repo = os.fspath(
            options.pop("repo", None) or options.pop("fo", None) or options.pop("url", None) or "."
        )
        for name in ("fo", "url", "target_protocol", "target_options"):
            options.pop(name, None)
        label = options.pop("rev", None)
        rev = label
        folder = local_folder(repo)
        if folder is not None:
            repo = str(folder)
            git = Git.find(folder)
            if git is not None and rev is not None and not _COMMIT.fullmatch(rev):
                rev = git.resolve(rev)
        elif ":" in repo and (rev is None or not _COMMIT.fullmatch(rev)):
            rev = clones.tip(repo, rev, timeout=_TIMEOUT) or rev
        if folder is not None and rev is None:
            # The workspace may change, so do not reuse an instance.
            options["skip_instance_cache"] = True
        made = super().__call__(repo=repo, rev=rev, **options)
        made.label = label or made.label
        return made


class DvkfFileSystem(AbstractFileSystem, metaclass=_Pinned):  # type: ignore[misc]
    """Read-only filesystem of a repository at any revision: the files that DVC tracks and those that git tracks.

    A listing reads git's objects and manifests, not the data. A file is downloaded into the cache and verified when it
    is read. A large file that is missing from the cache is downloaded piece by piece, on demand. ``get`` and ``cat``
    download many files in parallel. As in DVC, listings leave out DVC files (``.dvc``, dvc.yaml) unless
    ``dvcfiles=True``. A nested repository is listed and read under its own path; listings of its parents leave it out.

    Without a revision, the filesystem shows the workspace, and tracked files that are not checked out come from the
    cache. For a git url it shows the default branch. The option ``rev`` is resolved when the filesystem is created. A
    revision in a path is resolved on each access if the repository is a local folder.

    Args:
        repo: Folder in a repository, or a git url; None for the current folder.
        rev: Git revision.
        remote: Name of the remote to read from; None for the default one.
        remote_config: Options that override those of that remote.
        config: Settings that override the repository's: a configuration file, or its sections.
        cache_dir: Folder for the objects of a repository at a git url; None for one that is removed with the
            filesystem.
        jobs: Number of parallel transfers; None for the remote's default.

    Raises:
        NotARepositoryError: The folder is in no repository.
        GitError: The revision does not exist, or the repository cannot be cloned.
        ConfigError: The settings are invalid.

    Example:
        >>> import pandas
        >>> pandas.read_csv("dvkf://data/train/a.csv", storage_options={"repo": ".", "rev": "v1"})
    """

    protocol = "dvkf"
    root_marker = ""

    def __init__(
        self,
        repo: str | os.PathLike[str] | None = None,
        rev: str | None = None,
        *,
        remote: str | None = None,
        remote_config: Mapping[str, str] | None = None,
        config: str | Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        jobs: int | None = None,
        **storage_options: Any,
    ) -> None:
        super().__init__(**storage_options)
        self.repo = os.fspath(repo or ".")
        self.rev = rev
        self.label = rev
        self._settings: dict[str, Any] = {
            "remote": remote,
            "remote_config": remote_config,
            "config": config,
            "jobs": jobs,
        }
        self._cache_dir = cache_dir
        self._opening = threading.RLock()
        self._here: ExternalRepo | None = None
        self._views: dict[str | None, View] = {}
        self._projects: dict[tuple[str | None, str], View] = {}
        self._stack = ExitStack()
        weakref.finalize(self, self._stack.close)
        if local_folder(self.repo) is not None:
            self._repo()

    @property
    def fsid(self) -> str:
        """Identifier of the filesystem, equal in all processes."""
        return f"dvkf_{tokenize(self.repo, self.rev)}"

    # -- revisions ---------------------------------------------------------------------------------------------------

    def _repo(self) -> ExternalRepo | None:
        """Return the repository if it is a local folder that is read in place; it is opened on the first call."""
        with self._opening:
            if self._here is None and local_folder(self.repo) is not None:
                opened = self._stack.enter_context(open_external(self.repo, **self._settings))
                if opened.at is None:
                    self._here = opened
            return self._here

    def view(self, rev: str | None = None) -> View:
        """Return the view of a revision, for operations that fsspec does not have.

        Args:
            rev: Git revision; None for the filesystem's own.
        """
        label = rev or self.label
        rev = rev or self.rev
        here = self._repo()
        if here is not None and rev is not None:
            if here.git is None:
                raise ConfigError(f"{here.root} has no git history, so it has no revision '{rev}'")
            rev = rev if _COMMIT.fullmatch(rev) else here.git.resolve(rev)
        with self._opening:
            if rev not in self._views:
                if here is not None:
                    self._views[rev] = View(here, rev, label=label)
                else:
                    opened = self._clone(rev)
                    self._views[rev] = View(opened, opened.at, label=label)
            return self._views[rev]

    def _locate(self, path: str) -> tuple[View, str, str]:
        """Return the view of a path, the path inside it, and the prefix of that view's paths."""
        plain = plain_path(self._strip_protocol(path))
        own = self.view()
        if not plain.startswith("@"):
            return self._innermost(own, plain, "")
        head, _, rest = plain.partition("/")
        try:
            own.entry(head)
        except OutputNotFoundError:
            return self._innermost(self.view(unquote(head[1:])), rest, head + "/")
        return self._innermost(own, plain, "")

    def _innermost(self, view: View, path: str, prefix: str) -> tuple[View, str, str]:
        """Return view, path and prefix for the nested repository around a path; unchanged without one."""
        project = view.project_at(path)
        if not project:
            return view, path, prefix
        with self._opening:
            key = (view.commit, project)
            if key not in self._projects:
                repo = view.repo
                if not (repo.root / project / ".dvc").is_dir():  # it may exist at the revision only
                    repo = self._clone(view.commit)
                assert isinstance(repo, ExternalRepo)
                self._projects[key] = View(repo.below(project), view.commit, label=self.label)
            return self._projects[key], path[len(project) + 1 :], f"{prefix}{project}/"

    def _clone(self, rev: str | None) -> ExternalRepo:
        """Return a clone at a revision; it is removed with the filesystem."""
        cache_dir = Path(self._cache_dir).absolute() if self._cache_dir else None
        opening = open_external(self.repo, rev, cache_dir=cache_dir, **self._settings)
        return self._stack.enter_context(opening)

    # -- listing -----------------------------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a directory; for a file, return the file.

        Args:
            path: The directory.
            detail: Return dictionaries as `info` does; False for paths only.
            kwargs: ``dvcfiles=True`` lists DVC files too; ``sizes=False`` returns None for sizes that would have to be
                looked up.

        Raises:
            OutputNotFoundError: The path does not exist.
            MissingObjectError: The manifest is neither in the cache nor on the remote.
        """
        view, inner, prefix = self._locate(path)
        children = view.children(inner)
        entries = [
            entry
            for name, entry in children.items()
            if kwargs.get("dvcfiles") or entry.is_dir or not name or not is_describing(name)
        ]
        if not detail:
            return [prefix + entry.path for entry in entries]
        return self._infos(view, entries, prefix, sizes=kwargs.get("sizes", True))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return ``name``, ``size``, ``type``, ``isdvc`` and ``isexec`` of a path, and ``md5`` if recorded.

        Args:
            path: The path.
            kwargs: ``sizes=False`` returns None for a size that would have to be looked up.

        Raises:
            OutputNotFoundError: The path does not exist.
        """
        view, inner, prefix = self._locate(path)
        entry = view.entry(inner)
        (info,) = self._infos(view, [entry], prefix, sizes=kwargs.get("sizes", True))
        return info

    def _infos(
        self, view: View, entries: Sequence[Entry], prefix: str, *, sizes: bool, strict: bool = False
    ) -> list[dict[str, Any]]:
        found = view.sizes(entries, strict=strict) if sizes else [entry.size for entry in entries]
        return [_info(entry, prefix, size) for entry, size in zip(entries, found, strict=True)]

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Return True if the path exists."""
        try:
            self.info(path, sizes=False)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Return True if a path is a directory."""
        return self._is(path, "directory")

    def isfile(self, path: str) -> bool:
        """Return True if a path is a file."""
        return self._is(path, "file")

    def _is(self, path: str, kind: str) -> bool:
        try:
            return bool(self.info(path, sizes=False)["type"] == kind)
        except (FileNotFoundError, ValueError):
            return False

    def isdvc(self, path: str) -> bool:
        """Return True if DVC tracks a path, or a directory around it."""
        return self.exists(path) and bool(self.info(path, sizes=False)["isdvc"])

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **kwargs: Any,
    ) -> list[str] | dict[str, dict[str, Any]]:
        """List all files below a directory; the result is empty if it does not exist.

        Args:
            path: The directory.
            maxdepth: Number of levels; None for all.
            withdirs: List directories too.
            detail: Return the result of `info` for each path.
            kwargs: As for `ls`.

        Raises:
            MissingObjectError: A manifest is neither in the cache nor on the remote.
        """
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        view, inner, prefix = self._locate(path)
        if not (detail or withdirs or maxdepth or kwargs.get("dvcfiles")):
            names = view.names(inner)
            if names is not None:
                return [prefix + name for name in names] if prefix else names
        entries: list[Entry] = []
        try:
            top = view.entry(inner)
            if withdirs and top.is_dir and (inner or prefix):
                entries.append(top)
            entries += view.find(
                inner, depth=maxdepth, folders=withdirs, describing=bool(kwargs.get("dvcfiles"))
            )
        except OutputNotFoundError:
            return {} if detail else []
        if not detail:
            return sorted(_name(entry, prefix) for entry in entries)
        infos = self._infos(view, entries, prefix, sizes=kwargs.get("sizes", True))
        return {info["name"]: info for info in sorted(infos, key=lambda info: str(info["name"]))}

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> Iterator[tuple[str, Any, Any]]:
        """Walk all directories; sizes are looked up only with ``detail=True``."""
        kwargs.setdefault("sizes", bool(kwargs.get("detail")))
        yield from super().walk(path, maxdepth, topdown, on_error, **kwargs)

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """Find files by a pattern; sizes are looked up only with ``detail=True``."""
        kwargs.setdefault("sizes", bool(kwargs.get("detail")))
        return super().glob(path, maxdepth, **kwargs)

    def du(
        self,
        path: str,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        **kwargs: Any,
    ) -> int | dict[str, int]:
        """Return the size in bytes of the files below a path.

        Args:
            path: The path.
            total: Return the total; False for the size of each file.
            maxdepth: Number of levels; None for all.
            withdirs: Include directories, with a size of 0.
            kwargs: As for `ls`.

        Raises:
            MissingObjectError: An object is neither in the cache nor on the remote.
            RemoteError: A size must be looked up, and the remote does not respond.
        """
        view, inner, prefix = self._locate(path)
        top = view.entry(inner)
        if total and maxdepth is None and top.digest and top.size is not None:
            return top.size
        describing = bool(kwargs.get("dvcfiles"))
        entries = list(view.find(inner, depth=maxdepth, folders=withdirs, describing=describing))
        if withdirs and top.is_dir:
            entries.insert(0, top)
        infos = self._infos(view, entries, prefix, sizes=True, strict=True)
        if total:
            return sum(int(info["size"]) for info in infos if info["type"] == "file")
        return {info["name"]: info["size"] if info["type"] == "file" else 0 for info in infos}

    def checksum(self, path: str) -> str:
        """Return an identifier of a path's content; same as `ukey`."""
        return self.ukey(path)

    def ukey(self, path: str) -> str:
        """Return an identifier of a path's content: a digest if it is known without reading."""
        view, inner, _ = self._locate(path)
        entry = view.entry(inner)
        if entry.place is None and (entry.digest or entry.blob):
            return entry.digest or entry.blob or ""
        if entry.place is not None:
            info = os.stat(entry.place)
            return str(tokenize(entry.place, info.st_size, info.st_mtime_ns, info.st_ino))
        return str(tokenize(view.name, entry.path))

    def created(self, path: str) -> datetime:
        """Return the same time as `modified`."""
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        """Return the mtime of a file in the workspace; for a revision, the time of the commit."""
        view, inner, _ = self._locate(path)
        entry = view.entry(inner)
        if entry.place is not None:
            seconds: float | None = os.stat(entry.place).st_mtime
        elif view.commit is None and entry.output is not None:
            # It is not checked out; use the file that describes it.
            seconds = os.stat(view.repo.root / entry.output.source).st_mtime
        else:
            seconds = view.modified
        return datetime.fromtimestamp(seconds or 0.0, tz=timezone.utc)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Invalidate the tracked outputs of the workspace, and the resolved revisions of a git url."""
        with self._opening:
            here = self._here
            self._views = {rev: view for rev, view in self._views.items() if here and rev is not None}
            self._projects = {
                key: view for key, view in self._projects.items() if here and key[0] is not None
            }
            if here is not None:
                self._here = None
        super().invalidate_cache(path)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BinaryIO:
        if mode != "rb":
            self._refuse(path)
        view, inner, _ = self._locate(path)
        return view.open(view.entry(inner))

    def get_file(
        self,
        rpath: str,
        lpath: Any,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        """Copy a file to this machine; a directory is created empty.

        Args:
            rpath: The file.
            lpath: Destination path, or an open file.
            callback: Called as bytes complete.
            outfile: Open file to write to instead.
            kwargs: Ignored.
        """
        pairs = kwargs.pop("collected", None)
        if pairs is not None:
            pairs.append((rpath, lpath))
            return
        target = outfile if outfile is not None else lpath if hasattr(lpath, "write") else None
        if target is not None:
            super().get_file(rpath, lpath, callback=callback, outfile=target)
            return
        self._get_all([(rpath, lpath)])
        size = os.path.getsize(lpath) if os.path.isfile(lpath) else 0
        callback.set_size(size)
        callback.relative_update(size)

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy files to this machine; files that are missing from the cache are first downloaded in parallel.

        Args:
            rpath: File, directory, pattern, or a list of them.
            lpath: Destination path, or a list of the same length.
            recursive: Copy the content of directories.
            callback: Called as files complete.
            maxdepth: Number of levels; None for all.
            kwargs: Ignored.

        Raises:
            TransferError: Some files could not be downloaded; nothing was copied.
        """
        pairs: list[tuple[str, str]] = []
        # fsspec pairs sources with destinations; then all files are copied together.
        super().get(rpath, lpath, recursive=recursive, maxdepth=maxdepth, collected=pairs)
        callback.set_size(len(pairs))
        self._get_all(pairs)
        callback.relative_update(len(pairs))

    def _get_all(self, pairs: Sequence[tuple[str, str]]) -> None:
        wanted: dict[int, tuple[View, list[tuple[Entry, str]]]] = {}
        for rpath, lpath in pairs:
            view, inner, _ = self._locate(rpath)
            entry = view.entry(inner)
            if entry.is_dir:
                os.makedirs(lpath, exist_ok=True)
            else:
                wanted.setdefault(id(view), (view, []))[1].append((entry, os.fspath(lpath)))
        for view, rows in wanted.values():
            view.export(rows)

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """Return the content of a file, or of several files by path; missing objects are first downloaded in parallel.

        Args:
            path: File, directory, pattern, or a list of them.
            recursive: Include the content of directories.
            on_error: ``raise``, ``omit`` or ``return``.
            kwargs: ``start`` and ``end`` of the range to read.
        """
        paths = self.expand_path(path, recursive=recursive)
        if recursive:
            # Only files have content.
            paths = [name for name in paths if not self.isdir(name)]
        if len(paths) > 1:
            try:
                self._bring(paths)
            except DvkfError:
                if on_error == "raise":
                    raise
        single = not isinstance(path, list) and paths == [self._strip_protocol(path)]
        return super().cat(paths[0] if single else paths, on_error=on_error, **kwargs)

    def _bring(self, paths: Sequence[str]) -> None:
        wanted: dict[int, tuple[View, list[Entry]]] = {}
        for path in paths:
            view, inner, _ = self._locate(path)
            wanted.setdefault(id(view), (view, []))[1].append(view.entry(inner))
        for view, entries in wanted.values():
            view.bring(entries)

    # -- writing -----------------------------------------------------------------------------------------------------

    def _refuse(self, path: object, *args: Any, **kwargs: Any) -> NoReturn:
        raise OSError(
            errno.EROFS,
            f"cannot write '{path}': dvkf:// is read-only. Write a table with dvkf_prefect.write_frame, or a "
            "file in the workspace, and track it with `dvkf add`.",
        )

    mkdir = makedirs = rmdir = rm = rm_file = _rm = cp_file = copy = mv = _refuse
    put = put_file = pipe = pipe_file = touch = _refuse


def _name(entry: Entry, prefix: str) -> str:
    return prefix + entry.path if entry.path else prefix.rstrip("/")


def _info(entry: Entry, prefix: str, size: int | None) -> dict[str, Any]:
    info: dict[str, Any] = {
        "name": _name(entry, prefix),
        "size": (size or 0) if entry.is_dir else size,
        "type": "directory" if entry.is_dir else "file",
        "isdvc": entry.output is not None,
        "isexec": entry.isexec,
    }
    if entry.digest:
        info[entry.hash_name] = entry.digest
    return info
