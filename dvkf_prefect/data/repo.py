"""One open repository, and what can be done with its data."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.data import gitignore, outputs
from dvkf_prefect.data.config import Config
from dvkf_prefect.data.diff import Diff, Side, compare
from dvkf_prefect.data.digest import Memory, write_atomic
from dvkf_prefect.data.git import Git
from dvkf_prefect.data.ignore import NAME as IGNORE_FILE
from dvkf_prefect.data.ignore import Ignore
from dvkf_prefect.data.locks import RepoLock
from dvkf_prefect.data.outputs import DataVersion, Output, check_overlap, with_content, write_dvc_file
from dvkf_prefect.data.revisions import RepoFiles, RevisionFiles, WorkspaceFiles
from dvkf_prefect.data.store import Cache, Stored
from dvkf_prefect.data.tree import is_tree
from dvkf_prefect.data.workspace import Advance, Found, Workspace
from dvkf_prefect.errors import (
    ConfigError,
    MissingObjectError,
    NotARepositoryError,
    OutputChangedError,
    OutputError,
    OutputInGitError,
    OutputNotFoundError,
    OutputOverlapError,
    TransferError,
    UnsafePathError,
)

if TYPE_CHECKING:
    from dvkf_prefect.data.transfer import Move, Progress, Remote, Transfer

_IGNORE_TEXT = """\
# Add patterns of files dvc should ignore, which could improve
# the performance. Learn more at
# https://dvc.org/doc/user-guide/dvcignore
"""
_LOCK_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class Change:
    """One output that is not as it was recorded.

    Attributes:
        path: The output, relative to the root.
        source: The file that describes it.
        stage: The stage it belongs to, if any.
        state: ``new``, ``deleted``, ``modified`` or ``not in cache``, as DVC says it.
    """

    path: str
    source: str
    stage: str | None
    state: str


@dataclass(frozen=True, slots=True)
class Status:
    """The outputs that changed; false when there are none.

    Attributes:
        changes: One for each.
        outputs: How many outputs were looked at.
    """

    changes: tuple[Change, ...]
    outputs: int

    def __bool__(self) -> bool:
        return bool(self.changes)


@dataclass(frozen=True, slots=True)
class Checkout:
    """What a checkout changed, in output paths; a directory has a slash at the end."""

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.deleted)


@dataclass(frozen=True, slots=True)
class Pull:
    """What a pull brought and changed."""

    transfer: Transfer
    checkout: Checkout


class Repo:
    """A DVC repository, opened for reading and writing.

    Args:
        root: The folder that holds `.dvc`.
        config: Settings over the files', see `Repo.open`.

    Attributes:
        root: The repository's root.
        dvc_dir: Its `.dvc` folder.
        config: Its settings.
        cache: Its cache.
        git: The git work tree it lies in, None without one.

    Example:
        >>> repo = Repo.open("path/to/repository")
        >>> repo.add(["data/images"])
        >>> repo.push()
    """

    def __init__(self, root: Path, *, config: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.root = root
        self.dvc_dir = root / ".dvc"
        self.config = Config(self.dvc_dir, overlay=config)
        self.cache = Cache(Path(self.config.get("cache", "dir") or self.dvc_dir / "cache"))
        self.git = None if self.config.get("core", "no_scm") else Git.find(root)
        self.ignore = Ignore(root)
        self._lock = RepoLock(self.dvc_dir / "tmp" / "lock")
        types = str(self.config.get("cache", "type") or "copy").split(",")
        self.workspace = Workspace(
            root, self.cache, Memory(self.tmp_dir / "memory"), self.ignore, tuple(types)
        )

    def __repr__(self) -> str:
        return f"Repo({str(self.root)!r})"

    @classmethod
    def open(
        cls, path: str | os.PathLike[str] = ".", *, config: Mapping[str, Mapping[str, str]] | None = None
    ) -> Repo:
        """Open the repository that holds a path.

        Args:
            path: A folder in it.
            config: Settings over those in its files, for instance
                ``{"core": {"remote": "lake"}, 'remote "lake"': {"url": "s3://bucket/data"}}``.

        Raises:
            NotARepositoryError: Neither the folder nor any above it has a `.dvc` folder.
            ConfigError: Its settings are wrong.
        """
        start = Path(path).resolve()
        for folder in (start, *start.parents):
            if (folder / ".dvc").is_dir():
                return cls(folder, config=config)
        raise NotARepositoryError(
            f"{start} is not in a DVC repository (no .dvc folder here or above); make one with `dvkf init`"
        )

    @classmethod
    def init(
        cls,
        path: str | os.PathLike[str] = ".",
        *,
        no_scm: bool = False,
        subdir: bool = False,
        force: bool = False,
    ) -> Repo:
        """Make a folder a repository.

        Args:
            path: The folder; it must exist.
            no_scm: Do without git.
            subdir: Allow a folder below the top of a git work tree.
            force: Replace the settings of an existing repository; its cache is kept.

        Raises:
            ConfigError: It is a repository already, or not the top of a git work tree.
        """
        root = Path(path).resolve()
        git = None if no_scm else Git.find(root)
        if not no_scm and git is None:
            raise ConfigError(f"{root} is not in a git repository; run `git init` first, or pass --no-scm")
        if git and git.root != root and not subdir:
            raise ConfigError(
                f"{root} is not the top of its git repository ({git.root}); pass --subdir to allow it"
            )
        dvc_dir = root / ".dvc"
        if dvc_dir.exists() and not force:
            raise ConfigError(f"{dvc_dir} exists; pass --force to set the repository's settings anew")
        (dvc_dir / "tmp").mkdir(parents=True, exist_ok=True)
        write_atomic(dvc_dir / "config", b"[core]\n    no_scm = True\n" if no_scm else b"")
        written = [".dvc/config", ".dvc/.gitignore"]
        write_atomic(dvc_dir / ".gitignore", b"/config.local\n/tmp\n/cache\n")
        if not (root / IGNORE_FILE).exists():
            write_atomic(root / IGNORE_FILE, _IGNORE_TEXT.encode())
            written.append(IGNORE_FILE)
        if git:
            git.run("add", "--", *(str(root / name) for name in written))
        return cls(root)

    @property
    def tmp_dir(self) -> Path:
        """Where we keep what can be lost at any time; not made before it is needed."""
        return self.dvc_dir / "tmp" / "dvkf"

    def lock(self, timeout: float = _LOCK_WAIT) -> AbstractContextManager[None]:
        """Hold the repository's lock, which is DVC's too.

        Args:
            timeout: How long to wait for another holder, seconds.

        Raises:
            LockedError: Somebody else held it the whole time.
        """
        return self._lock.hold(timeout)

    # -- what is tracked ---------------------------------------------------------------------------------------------

    def relpath(self, path: str | os.PathLike[str]) -> str:
        """Return a path as posix relative to the root; a relative one is taken from the root.

        Raises:
            UnsafePathError: It lies outside the repository.
        """
        full = os.path.normpath(self.root / path)
        with suppress(ValueError):
            relative = Path(full).relative_to(self.root)
            return relative.as_posix() if relative.parts else ""
        # The root is resolved; the way to it may lead through links.
        parent = os.path.realpath(os.path.dirname(full))
        with suppress(ValueError):
            return (Path(parent) / os.path.basename(full)).relative_to(self.root).as_posix()
        raise UnsafePathError(f"{path} lies outside the repository {self.root}")

    @cached_property
    def _git_prefix(self) -> str:
        if self.git is None:
            return ""
        relative = self.root.relative_to(self.git.root.resolve()).as_posix()
        return "" if relative == "." else relative + "/"

    def files(self, rev: str | None = None) -> RepoFiles:
        """Return the small files of a revision, or of the workspace.

        Raises:
            GitError: There is no such revision.
            ConfigError: A revision was asked for, but there is no git.
        """
        if rev is None:
            return WorkspaceFiles(
                self.root,
                self.ignore.matches,
                lambda path: {o.path for o in outputs.read_outputs(self.files(), path)},
            )
        if self.git is None:
            raise ConfigError(f"{self.root} has no git history; revision '{rev}' means nothing here")
        return RevisionFiles(self.git, self.git.resolve(rev), self._git_prefix)

    def outputs(self, targets: Sequence[str] = (), *, rev: str | None = None) -> list[Output]:
        """Return what is tracked, sorted by path.

        Args:
            targets: Only these: output paths, `.dvc` files, dvc.yaml files, stage names or ``dvc.yaml:name``,
                relative to the root.
            rev: A git revision; None for the workspace.

        Raises:
            ParseError: A file does not say what its format allows.
            OutputNotFoundError: A target is none of them.
            OutputOverlapError: Two outputs claim one path.
        """
        found: list[Output]
        if rev is None:
            known: dict[str, list[Output]] = {}
            files: RepoFiles

            def paths_of(path: str) -> set[str]:
                known[path] = outputs.read_outputs(files, path)
                return {output.path for output in known[path]}

            files = WorkspaceFiles(self.root, self.ignore.matches, paths_of)
            found = [output for path in files.find() for output in known[path]]
        else:
            files = self.files(rev)
            found = [output for path in files.find() for output in outputs.read_outputs(files, path)]
        found.sort(key=lambda output: output.path)
        check_overlap(found)
        if not targets:
            return found
        picked: dict[str, Output] = {}
        for target in targets:
            matched = list(_matching(found, target))
            if not matched:
                inside = next((o.path for o in found if target.startswith(o.path + "/")), None)
                hint = f"; it is inside the output '{inside}': name that" if inside else ""
                raise OutputNotFoundError(
                    f"'{target}' is not an output, a .dvc file or a stage of {self.root}{hint}"
                )
            picked.update({output.path: output for output in matched})
        return [picked[path] for path in sorted(picked)]

    def version(self, path: str, *, rev: str | None = None) -> DataVersion:
        """Return the recorded version of one output.

        Args:
            path: The output, relative to the root.
            rev: A git revision; None for what the workspace's `.dvc` file or dvc.lock says.

        Raises:
            OutputNotFoundError: It is not tracked, or nothing was recorded for it yet.
        """
        (output, *_) = self.outputs([path], rev=rev)
        commit = self.git.resolve(rev) if rev and self.git else None
        return self._version(output, commit)

    def _version(self, output: Output, rev: str | None = None) -> DataVersion:
        if output.digest is None:
            raise OutputNotFoundError(f"'{output.path}' has no recorded content yet ({output.source})")
        size, nfiles = output.size, output.nfiles
        if nfiles is None and output.is_dir:
            nfiles = len(self.cache.read_tree(output.digest, output.hash_name))
        return DataVersion(
            str(self.root), rev, output.path, output.digest, size or 0, nfiles if nfiles is not None else 1
        )

    # -- verbs -------------------------------------------------------------------------------------------------------

    def add(
        self,
        targets: Sequence[str | os.PathLike[str]],
        *,
        no_commit: bool = False,
        progress: Progress | None = None,
    ) -> list[DataVersion]:
        """Track files or directories: into the cache, and a `.dvc` file beside each.

        Args:
            targets: Paths, relative to the root or absolute.
            no_commit: Only record the content; do not store it.
            progress: Told of files and bytes.

        Returns:
            The version recorded for each target, in their order.

        Raises:
            OutputNotFoundError: A target is not on disk.
            OutputInGitError: Git tracks it, or files in it.
            OutputOverlapError: It holds, or lies in, another output.
            OutputError: It belongs to a stage, or holds something that cannot be tracked.
            DiskFullError: There is no room.
        """
        with self.lock():
            tracked = self.outputs()
            paths = [self._check_new(self.relpath(target), tracked) for target in targets]
            versions: list[DataVersion] = []
            staged: list[str] = []
            for path in paths:
                advance = _starting(progress, f"add {path}")
                stored = (
                    self.workspace.look(path).stored()
                    if no_commit
                    else self.workspace.take(path, advance=advance)
                )
                if progress:
                    progress.finish()
                output = next(
                    (o for o in tracked if o.path == path), Output(path, None, source=path + ".dvc")
                )
                staged += self._record(output, stored)
                versions.append(self._version(with_content(output, stored)))
            if self.git and self.config.get("core", "autostage"):
                self.git.run("add", "--", *(str(self.root / name) for name in staged))
        return versions

    def _check_new(self, path: str, tracked: Sequence[Output]) -> str:
        if not path or path.split("/")[0] in (".dvc", ".git"):
            raise OutputError(f"'{path or '.'}' cannot be tracked: it holds the repository itself")
        full = self.root / path
        if not os.path.lexists(full):
            raise OutputNotFoundError(f"'{path}' does not exist in {self.root}")
        if self.ignore.matches(path + ("/" if full.is_dir() else "")):
            raise OutputError(f"'{path}' is left out by {IGNORE_FILE}; change that file to track it")
        for output in tracked:
            if output.path == path:
                if output.stage:
                    raise OutputError(
                        f"'{path}' is an output of stage '{output.stage}' ({output.source}); "
                        "record it with `dvkf commit` or `dvkf repro`"
                    )
                return path
            if output.path.startswith(path + "/") or path.startswith(output.path + "/"):
                raise OutputOverlapError(
                    f"'{path}' overlaps the output '{output.path}' ({output.source}); "
                    "add that one again, or remove its tracking first"
                )
        if self.git:
            in_git = self.git.tracked([self._git_prefix + path])
            if in_git:
                raise OutputInGitError(
                    f"'{path}' is tracked by git ({len(in_git)} file(s)); stop that first: "
                    f"`git rm -r --cached '{path}'` and commit"
                )
        return path

    def _record(self, output: Output, stored: Stored) -> list[str]:
        """Write the output's `.dvc` file and keep its data out of git; return the files written."""
        file = self.root / output.source
        old = file.read_bytes() if file.exists() else None
        new = write_dvc_file(old, output.source, output.path, stored)
        if new != old:
            write_atomic(file, new)
        if self.git and gitignore.ignore(self.root / output.path):
            return [output.source, posixpath.join(posixpath.dirname(output.path), ".gitignore")]
        return [output.source]

    def commit(self, targets: Sequence[str] = (), *, progress: Progress | None = None) -> list[DataVersion]:
        """Record and store the outputs of `.dvc` files as they are in the workspace now.

        Args:
            targets: Only these, see `outputs`.
            progress: Told of files and bytes.

        Returns:
            The versions of those that changed.

        Raises:
            OutputNotFoundError: An output is not on disk.
            DiskFullError: There is no room.
        """
        changed: list[DataVersion] = []
        with self.lock():
            for output in self.outputs(targets):
                if output.stage or not output.cached:
                    continue
                if not os.path.lexists(self.root / output.path):
                    raise OutputNotFoundError(
                        f"'{output.path}' is not in the workspace; `dvkf checkout` brings it back"
                    )
                advance = _starting(progress, f"commit {output.path}")
                stored = self.workspace.take(output.path, advance=advance)
                if progress:
                    progress.finish()
                if (stored.digest, stored.isexec, "md5") != (output.digest, output.isexec, output.hash_name):
                    self._record(output, stored)
                    changed.append(self._version(with_content(output, stored)))
        return changed

    def status(self, targets: Sequence[str] = ()) -> Status:
        """Compare the workspace with what is recorded.

        Args:
            targets: Only these, see `outputs`.
        """
        tracked = self.outputs(targets)
        changes = [
            Change(output.path, output.source, output.stage, state)
            for output in tracked
            if (state := self._state(output)) is not None
        ]
        return Status(tuple(changes), len(tracked))

    def _state(self, output: Output) -> str | None:
        found = self.workspace.look(output.path, hash_name=output.hash_name)
        if output.digest and output.cached and not self._in_cache(output):
            return "not in cache"
        if found.digest is None:
            return "deleted"
        if output.digest is None:
            return "new"
        return None if found.digest == output.digest else "modified"

    def _in_cache(self, output: Output) -> bool:
        """Tell whether all of an output's content is in the cache."""
        if output.digest is None or not self.cache.exists(output.digest, output.hash_name):
            return False
        if not is_tree(output.digest):
            return True
        tree = self.cache.read_tree(output.digest, output.hash_name)
        return not self.cache.missing(tree.digests, output.hash_name)

    def checkout(
        self,
        targets: Sequence[str] = (),
        *,
        force: bool = False,
        allow_missing: bool = False,
        progress: Progress | None = None,
    ) -> Checkout:
        """Make the workspace hold what is recorded, from the cache.

        Without targets, outputs that are tracked no longer are removed too, if they are as they were checked out.

        Args:
            targets: Only these, see `outputs`.
            force: Overwrite and remove files whose content is nowhere else.
            allow_missing: Pass over outputs that the cache does not hold.
            progress: Told of files and bytes.

        Raises:
            OutputChangedError: Files would be lost; nothing was touched.
            TransferError: Objects are missing from the cache or damaged; everything else was put in place.
            DiskFullError: There is no room.
        """
        with self.lock():
            tracked = [o for o in self.outputs(targets) if o.cached and o.digest]
            self.workspace.sweep(tracked)
            work = [(o, self.workspace.look(o.path, hash_name=o.hash_name)) for o in tracked]
            work = [(o, f) for o, f in work if f.digest != o.digest or f.isexec != o.isexec]
            gone = {} if targets else self._no_longer_tracked(tracked)
            if not force:
                lost = [path for output, found in work for path in self.workspace.lost_by(output, found)]
                if lost:
                    raise OutputChangedError(lost)
            added: list[str] = []
            modified: list[str] = []
            failures: dict[str, str] = {}
            for output, found in work:
                advance = _starting(progress, f"checkout {output.path}")
                name = output.path + ("/" if output.is_dir else "")
                try:
                    self.workspace.put(output, found, advance=advance)
                except TransferError as error:
                    failures.update(error.failures)
                except MissingObjectError as error:
                    failures[name] = str(error)
                else:
                    (added if found.digest is None else modified).append(name)
                if progress:
                    progress.finish()
            for path, found in gone.items():
                self.workspace.remove(path, found)
            self._remember_checked_out(tracked, set(gone))
        if failures and not allow_missing:
            raise TransferError(f"the cache ({self.cache.root})", failures)
        deleted = tuple(
            sorted(path + ("/" if found.nfiles is not None else "") for path, found in gone.items())
        )
        return Checkout(tuple(added), tuple(modified), deleted)

    @property
    def _checked_out_file(self) -> Path:
        return self.tmp_dir / "checked-out.json"

    def _checked_out(self) -> dict[str, str]:
        try:
            known = json.loads(self._checked_out_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _no_longer_tracked(self, tracked: Sequence[Output]) -> dict[str, Found]:
        """Return what we checked out once, nobody tracks now, and is as we left it."""
        paths = {output.path for output in self.outputs()}
        gone: dict[str, Found] = {}
        for path, digest in self._checked_out().items():
            if path in paths or any(p.startswith(path + "/") or path.startswith(p + "/") for p in paths):
                continue
            if self.git and self.git.tracked([self._git_prefix + path]):
                continue
            found = self.workspace.look(path)
            if found.digest == digest:
                gone[path] = found
        return gone

    def _remember_checked_out(self, tracked: Sequence[Output], gone: set[str]) -> None:
        before = self._checked_out()
        after = {path: digest for path, digest in before.items() if path not in gone}
        after.update({output.path: output.digest for output in tracked if output.digest})
        if after != before:
            self.tmp_dir.mkdir(parents=True, exist_ok=True)
            write_atomic(self._checked_out_file, json.dumps(after, sort_keys=True).encode())

    # -- remotes -----------------------------------------------------------------------------------------------------

    def remote(self, name: str | None = None) -> Remote:
        """Open a remote.

        Args:
            name: Its name; None for the default one.

        Raises:
            RemoteNotFoundError: There is none of that name, or no default.
            ConfigError: Its options are wrong.
        """
        from dvkf_prefect.data.remotes import open_storage
        from dvkf_prefect.data.transfer import Remote

        name, options = self.config.remote(name)
        jobs = options.pop("jobs", None)
        storage = open_storage(options.pop("url"), options, name=name)
        return Remote(name, storage, jobs=int(jobs) if jobs else None)

    def push(
        self,
        targets: Sequence[str] = (),
        *,
        remote: str | None = None,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Transfer:
        """Bring the recorded content of outputs to a remote.

        Args:
            targets: Only these, see `outputs`.
            remote: The remote's name; None for the default one, or the one an output names.
            jobs: How many transfers at once.
            progress: Told of files and bytes.

        Raises:
            TransferError: Some objects failed; all others arrived.
            RemoteError: The remote cannot be used.
        """
        from dvkf_prefect.data.transfer import push

        wanted = [output for output in self.outputs(targets) if output.pushed]
        return self._move(push, wanted, remote, jobs, progress)

    def fetch(
        self,
        targets: Sequence[str] = (),
        *,
        rev: str | None = None,
        remote: str | None = None,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Transfer:
        """Bring the recorded content of outputs from a remote into the cache.

        Args:
            targets: Only these, see `outputs`.
            rev: As a git revision records them; None for the workspace.
            remote: The remote's name; None for the default one, or the one an output names.
            jobs: How many transfers at once.
            progress: Told of files and bytes.

        Raises:
            TransferError: Some objects are missing or damaged on the remote; all others arrived.
            RemoteError: The remote cannot be used.
        """
        from dvkf_prefect.data.transfer import fetch

        return self._move(fetch, self.outputs(targets, rev=rev), remote, jobs, progress)

    def pull(
        self,
        targets: Sequence[str] = (),
        *,
        remote: str | None = None,
        jobs: int | None = None,
        force: bool = False,
        allow_missing: bool = False,
        progress: Progress | None = None,
    ) -> Pull:
        """Bring outputs from a remote into the cache and the workspace; see `fetch` and `checkout`.

        Raises:
            TransferError: Some objects are missing or damaged on the remote; all others arrived and were checked out.
            OutputChangedError: Files would be lost; the workspace was not touched.
        """
        try:
            fetched = self.fetch(targets, remote=remote, jobs=jobs, progress=progress)
        except TransferError as error:
            self.checkout(targets, force=force, allow_missing=True, progress=progress)
            if not allow_missing:
                raise
            from dvkf_prefect.data.transfer import Transfer

            return Pull(Transfer(error.place), Checkout())
        changes = self.checkout(targets, force=force, allow_missing=allow_missing, progress=progress)
        return Pull(fetched, changes)

    def _move(
        self,
        move: Move,
        wanted: Sequence[Output],
        remote: str | None,
        jobs: int | None,
        progress: Progress | None,
    ) -> Transfer:
        from dvkf_prefect.data.transfer import Transfer

        groups: dict[str | None, list[Output]] = {}
        for output in wanted:
            groups.setdefault(remote or output.remote, []).append(output)
        done: Transfer | None = None
        for name, group in (groups or {remote: []}).items():
            place = self.remote(name)
            with self.lock():
                self.cache.sweep()
                moved = move(group, self.cache, place, jobs=jobs, progress=progress)
            done = done + moved if done else moved
        return done or Transfer(remote or "")

    # -- comparing ---------------------------------------------------------------------------------------------------

    def diff(self, a: str = "HEAD", b: str | None = None, targets: Sequence[str] = ()) -> Diff:
        """Compare two versions of the data, file by file.

        Args:
            a: The older git revision.
            b: The newer one; None for the workspace as it is.
            targets: Only these outputs.

        Raises:
            GitError: There is no such revision.
            OutputNotFoundError: A target is in neither version.
        """
        if self.git and self.git.head() is None:
            return Diff(a, b)
        old = self._side(self._outputs_or_none(targets, a), look=False)
        new = self._side(self._outputs_or_none(targets, b), look=b is None)
        if targets and not old and not new:
            raise OutputNotFoundError(
                f"{', '.join(targets)}: not an output at {a} nor at {b or 'the workspace'}"
            )

        def size_of(digest: str) -> int | None:
            try:
                return None if is_tree(digest) else self.cache.path(digest).stat().st_size
            except OSError:
                return None

        return compare(a, b, old, new, size_of=size_of, is_missing=self.cache.missing if b is None else None)

    def _outputs_or_none(self, targets: Sequence[str], rev: str | None) -> list[Output]:
        found = self.outputs(rev=rev)
        return [o for target in targets for o in _matching(found, target)] if targets else found

    def _side(self, tracked: Sequence[Output], *, look: bool) -> dict[str, Side]:
        side: dict[str, Side] = {}
        for output in tracked:
            digest = output.digest
            files: dict[str, str] | None = None
            if look:
                found = self.workspace.look(output.path, hash_name=output.hash_name)
                digest = found.digest
                if found.rows and found.nfiles is not None:
                    files = dict(zip(found.rows.relpaths, found.rows.digests, strict=True))
            elif digest and is_tree(digest):
                with suppress(MissingObjectError):
                    files = dict(self.cache.read_tree(digest, output.hash_name).items())
            if digest:
                side[output.path] = Side(digest, files)
        return side


def _matching(tracked: Sequence[Output], target: str) -> Iterator[Output]:
    plain = target.rstrip("/").removeprefix("./")
    file, colon, name = plain.rpartition(":")
    for output in tracked:
        if (
            plain in (output.path, output.source)
            or (output.stage is not None and plain == output.stage and posixpath.dirname(output.source) == "")
            or (colon and output.source == file and output.stage == name)
        ):
            yield output


def _starting(progress: Progress | None, label: str) -> Advance | None:
    if progress is None:
        return None
    progress.start(label, 0, 0)
    return progress.advance
