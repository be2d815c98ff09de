"""An open repository: its folder, its settings and its tracked outputs."""

from __future__ import annotations

import copy
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.git.gitignore import GitIgnored
from dvkf_prefect.data.progress import NO_PROGRESS, Progress
from dvkf_prefect.data.repository import cache_users
from dvkf_prefect.data.repository.config import Config
from dvkf_prefect.data.repository.files import RevisionFiles, WorkspaceFiles
from dvkf_prefect.data.repository.locks import RepoLock
from dvkf_prefect.data.repository.stage_notes import note_stages
from dvkf_prefect.data.workspace.memory import Memory
from dvkf_prefect.data.workspace.workspace import Workspace
from dvkf_prefect.errors import (
    ConfigError,
    NotARepositoryError,
    OutputError,
    OutputNotFoundError,
    UnsafePathError,
)
from dvkf_prefect.files import write_atomic
from dvkf_prefect.formats import tracked
from dvkf_prefect.formats.dvcignore import NAME as IGNORE_FILE
from dvkf_prefect.formats.dvcignore import Ignore
from dvkf_prefect.formats.files import RepoFiles
from dvkf_prefect.formats.outputs import DataVersion, Output, check_overlap, matching, output_meant
from dvkf_prefect.leftovers import sweep_files
from dvkf_prefect.paths import check_own_folder, find_link

if TYPE_CHECKING:
    from dvkf_prefect.data.remotes.remote import Remote

_IGNORE_TEXT = """\
# Add patterns of files dvc should ignore, which could improve
# the performance. Learn more at
# https://dvc.org/doc/user-guide/dvcignore
"""
_LOCK_WAIT = 60.0
Overlap = Literal["refused", "same", "any"]
_Opened = TypeVar("_Opened", bound="Repository")


class Repository:
    """An open repository, the base of every verb of `Repo`.

    Args:
        root: Folder that holds `.dvc`.
        config: Settings that override those in the files, see `open`; or a complete `Config`.
        jobs: Number of parallel transfers and requests; None for the default of each remote.
        progress: Called as files and bytes complete.
    """

    def __init__(
        self,
        root: Path,
        *,
        config: Mapping[str, Mapping[str, str]] | Config | None = None,
        jobs: int | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> None:
        self.root = root
        self.jobs = jobs
        self.progress = progress
        self.dvc_dir = root / ".dvc"
        if self.dvc_dir.is_symlink():
            raise UnsafePathError(
                f"unsafe state: {self.dvc_dir} is a link to {os.readlink(self.dvc_dir)}. Remove the link."
            )
        check_own_folder(self.dvc_dir / "tmp", self.tmp_dir)
        self.config = config if isinstance(config, Config) else Config(self.dvc_dir, overlay=config)
        kind = Cache
        if self.config.get("cache", "shared") == "group":
            from dvkf_prefect.data.cache.shared import SharedCache

            kind = SharedCache
        self.cache: Cache = kind(
            Path(self.config.get("cache", "dir") or self.dvc_dir / "cache"),
            ledger=self.tmp_dir / "large-objects",
        )
        self.git = None if self.config.get("core", "no_scm") else Git.find(root)
        # Files written since opening that were not staged in git, relative to the root.
        self.unstaged: set[str] = set()
        self._check_cache()
        self.ignore = Ignore(root)
        self.git_ignored = GitIgnored(root, self.git)
        self._marked = False
        self._swept = False
        self._lock = RepoLock(
            self.dvc_dir / "tmp" / "lock", hardlink=bool(self.config.get("core", "hardlink_lock"))
        )
        types = str(self.config.get("cache", "type") or "reflink,copy").split(",")
        self.workspace = Workspace(
            root, self.cache, Memory(self.tmp_dir / "memory"), self.ignore, tuple(types), self.tmp_dir
        )

    def _check_cache(self) -> None:
        """Refuse links in the cache that came with the git repository; links made by the user are allowed.

        Raises:
            UnsafePathError: Git tracks such a link.
        """
        link = find_link(self.dvc_dir / "cache")
        if (
            link is not None
            and self.git
            and self.git.tracked([os.path.relpath(link, self.git.root.resolve())])
        ):
            raise UnsafePathError(
                f"unsafe cache: {link} is a link to {os.readlink(link)} that git tracks. Remove the link."
            )

    def __repr__(self) -> str:
        return f"Repo({str(self.root)!r})"

    @classmethod
    def open(
        cls: type[_Opened],
        path: str | os.PathLike[str] = ".",
        *,
        config: Mapping[str, Mapping[str, str]] | None = None,
        jobs: int | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> _Opened:
        """Open the repository that contains a path.

        Args:
            path: Folder in the repository.
            config: Settings that override those in its files, for instance
                ``{"core": {"remote": "lake"}, 'remote "lake"': {"url": "s3://bucket/data"}}``.
            jobs: Number of parallel transfers and requests; None for the default of each remote.
            progress: Called as files and bytes complete.

        Raises:
            NotARepositoryError: The folder does not exist, or neither it nor any parent has a `.dvc` folder.
            ConfigError: The settings are invalid.
        """
        start = Path(path).resolve()
        if not start.exists():
            raise NotARepositoryError(f"{start} does not exist. Name a folder of a DVC repository.")
        for folder in (start, *start.parents):
            if (folder / ".dvc").is_dir():
                return cls(folder, config=config, jobs=jobs, progress=progress)
        raise NotARepositoryError(
            f"{start} is not in a DVC repository (no .dvc folder here or above). Create one with `dvkf init`."
        )

    @classmethod
    def init(
        cls: type[_Opened],
        path: str | os.PathLike[str] = ".",
        *,
        no_scm: bool = False,
        subdir: bool = False,
        force: bool = False,
    ) -> _Opened:
        """Create a repository in a folder.

        Args:
            path: Existing folder.
            no_scm: Create a repository without git.
            subdir: Allow a folder below the top of a git work tree.
            force: Replace the settings of an existing repository; its cache is kept.

        Raises:
            ConfigError: The folder is a repository already, or not the top of a git work tree.
        """
        root = Path(path).resolve()
        git = None if no_scm else Git.find(root)
        if not no_scm and git is None:
            raise ConfigError(f"{root} is not in a git repository. Run `git init` first, or pass --no-scm.")
        if git and git.root != root and not subdir:
            raise ConfigError(
                f"{root} is not the top of its git repository ({git.root}). Pass --subdir to allow it."
            )
        dvc_dir = root / ".dvc"
        if dvc_dir.exists() and not force:
            raise ConfigError(f"{dvc_dir} exists. Pass --force to reset the repository's settings.")
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

    def using(self: _Opened, *, jobs: int | None = None, progress: Progress | None = None) -> _Opened:
        """Return this repository with another number of jobs or another progress; this one keeps its own.

        Both share the cache, the locks and all other state.

        Args:
            jobs: Number of parallel transfers and requests; None to keep it.
            progress: Called as files and bytes complete; None to keep it.

        Example:
            >>> repo.using(jobs=8, progress=bar).push()
        """
        other = copy.copy(self)
        other.jobs = self.jobs if jobs is None else jobs
        other.progress = self.progress if progress is None else progress
        return other

    @property
    def tmp_dir(self) -> Path:
        """Folder for state that may be deleted at any time; it is created on first use."""
        return self.dvc_dir / "tmp" / "dvkf"

    @property
    def turn_file(self) -> Path:
        """File of the turns in the workspace, see `dvkf_prefect.data.repository.turns`."""
        return self.dvc_dir / "tmp" / "dvkf-turn.lock"

    @contextmanager
    def lock(
        self, timeout: float = _LOCK_WAIT, *, write: Sequence[str] | Callable[[], Sequence[str]] = ()
    ) -> Iterator[None]:
        """Hold the repository's lock, shared with DVC, and block garbage collections in its cache.

        Args:
            timeout: Seconds to wait for another holder.
            write: Paths to be written, relative to the root; no running stage of another process may use them.

        Raises:
            LockedError: Another process or thread held the lock the whole time.
        """

        def written() -> list[str]:
            paths = write() if callable(write) else write
            return [os.path.normpath(self.root / path) for path in paths]

        with self._lock.hold(timeout, write=written), cache_users.working(self.cache.root, timeout):
            self._mark()
            self._sweep()
            self.git_ignored.forget()
            try:
                yield
            finally:
                # The cache may have been created in the block.
                self._mark()

    def _sweep(self) -> None:
        """Remove leftovers of killed runs from the folders that verbs write to; the caller holds the lock."""
        if not self._swept:
            self._swept = True
            self.cache.sweep()
            self.workspace.sweep(["."])
            for folder in (self.dvc_dir, self.tmp_dir, self.tmp_dir / "memory"):
                sweep_files(folder)

    def _mark(self) -> None:
        if not self._marked:
            self._marked = cache_users.mark(self)

    def note_stages(
        self, *, read: Sequence[str], write: Sequence[str], anew: bool = False, timeout: float = _LOCK_WAIT
    ) -> None:
        """Record the paths that this process's stages read and write, in DVC's ``rwlock`` file.

        Args:
            read: Absolute paths.
            write: Absolute paths.
            anew: Replace the paths recorded before. If False, no other process may be using the new ones.
            timeout: Seconds to wait for others.

        Raises:
            LockedError: Another process runs a stage on the same paths.
        """
        others = {} if anew else {"read": read, "write": write}
        file = self.dvc_dir / "tmp" / "rwlock"
        with (
            self._lock.hold(timeout, **others),
            RepoLock(file.with_name("rwlock.lock")).hold(timeout),
        ):
            note_stages(file, read=read, write=write, anew=anew)

    def remote(self, name: str | None = None) -> Remote:
        """Open a remote.

        Args:
            name: Name of the remote; None for the default one.

        Raises:
            RemoteNotFoundError: No remote has that name, or there is no default one.
            ConfigError: Its options are invalid.
            RemoteError: The remote keeps versions itself; dvkf only fetches from such a remote.
        """
        from dvkf_prefect.data.remotes.remote import open_remote  # takes a while to import

        return open_remote(*self.config.remote(name), jobs=self.jobs)

    # -- staging in git ------------------------------------------------------------------------------------------------

    def stage(self, names: Iterable[str]) -> None:
        """Stage files in git if ``core.autostage`` is set; otherwise add them to `unstaged`.

        Args:
            names: Files that were written or removed, relative to the root.

        Raises:
            GitError: Git failed.
        """
        if self.git is None:
            return
        if self.config.get("core", "autostage"):
            self.git.stage([str(self.root / name) for name in names])
        else:
            self.unstaged.update(names)

    # -- tracked data ------------------------------------------------------------------------------------------------

    def relpath(self, path: str | os.PathLike[str]) -> str:
        """Return a path in posix form relative to the root, which is also the base of a relative path.

        Raises:
            UnsafePathError: The path lies outside the repository.
        """
        full = os.path.normpath(self.root / path)
        with suppress(ValueError):
            relative = Path(full).relative_to(self.root)
            return relative.as_posix() if relative.parts else ""
        # The root is resolved, but the path may reach it through links.
        parent = os.path.realpath(os.path.dirname(full))
        with suppress(ValueError):
            return (Path(parent) / os.path.basename(full)).relative_to(self.root).as_posix()
        raise UnsafePathError(f"{path} lies outside the repository {self.root}")

    @cached_property
    def git_prefix(self) -> str:
        """Path of the root in the git work tree, with a trailing slash; empty at the top."""
        if self.git is None:
            return ""
        relative = self.root.relative_to(self.git.root.resolve()).as_posix()
        return "" if relative == "." else relative + "/"

    def files(self, rev: str | None = None) -> RepoFiles:
        """Return the small files of a revision, or of the workspace.

        Raises:
            GitError: The revision does not exist.
            ConfigError: A revision was given, but the repository has no git.
        """
        if rev is None:
            return WorkspaceFiles(
                self.root,
                self.ignore.matches,
                lambda path: {o.path for o in tracked.read_outputs(self.files(), path)},
                self.git_ignored,
            )
        if self.git is None:
            raise ConfigError(f"{self.root} has no git history, so it has no revision '{rev}'")
        return RevisionFiles(self.git, self.git.resolve(rev), self.git_prefix)

    def outputs(
        self, targets: Sequence[str] = (), *, rev: str | None = None, overlap: Overlap = "refused"
    ) -> list[Output]:
        """Return the tracked outputs, sorted by path.

        Args:
            targets: Limit to these: output paths, `.dvc` files, dvc.yaml files, stage names or ``dvc.yaml:name``,
                relative to the root.
            rev: Git revision; None for the workspace.
            overlap: Rule for several outputs with one path: ``refused``; ``same`` allows `.dvc` files that record
                the same content; ``any`` allows all, for verbs that only read.

        Raises:
            GitError: The revision does not exist.
            ParseError: A file does not follow its format.
            OutputError: A .dvcignore excludes an output.
            OutputNotFoundError: A target is none of these.
            OutputOverlapError: Two outputs claim one path.
        """
        found: list[Output]
        if rev is None:
            known: dict[str, list[Output]] = {}
            files: RepoFiles

            def paths_of(path: str) -> set[str]:
                known[path] = tracked.read_outputs(files, path)
                return {output.path for output in known[path]}

            files = WorkspaceFiles(self.root, self.ignore.matches, paths_of, self.git_ignored)
            found = [output for path in files.find() for output in known[path]]
            self.check_ignored(found)
        else:
            from dvkf_prefect.data.git.history import outputs_of

            commit = self.files(rev).rev
            found = outputs_of(self.git, commit, self.git_prefix) if self.git and commit else []
        found.sort(key=lambda output: output.path)
        if overlap != "any":
            check_overlap(found, same=overlap == "same")
        if not targets:
            return found
        from dvkf_prefect.formats.tracked import names_stage

        picked: dict[tuple[str, str, str], Output] = {}
        for target in targets:
            matched = list(matching(found, target))
            if not matched and not names_stage(self.files(rev), target):
                inside = next((o.path for o in found if target.startswith(o.path + "/")), None)
                hint = f"; it is inside the output '{inside}'. Use the path of that output." if inside else ""
                hint = hint or output_meant(found, target).replace(" Did", ". Did")
                raise OutputNotFoundError(
                    f"'{target}' is not an output, a .dvc file or a stage of {self.root}{hint}"
                )
            picked.update({(output.path, output.source, output.stage or ""): output for output in matched})
        return [picked[key] for key in sorted(picked)]

    def check_ignored(self, found: Iterable[Output]) -> None:
        """Refuse outputs of the workspace that a .dvcignore excludes, because they could be neither listed nor stored.

        Raises:
            OutputError: There is such an output.
        """
        for output in found:
            path, ignore = output.path, self.ignore
            if ignore.quiet_below(posixpath.dirname(path)):
                continue
            if ignore.matches(path) or (ignore.matches(path + "/") and not ignore.is_repo(path)):
                raise OutputError(
                    f"'{output.path}' ({output.source}) is excluded by {IGNORE_FILE}. Change that file to "
                    "track it."
                )

    def version(self, path: str, *, rev: str | None = None) -> DataVersion:
        """Return the recorded version of one output.

        Args:
            path: Path of the output, relative to the root.
            rev: Git revision; None for the workspace's `.dvc` file or dvc.lock.

        Raises:
            OutputNotFoundError: The output is not tracked, or has no recorded content yet.
        """
        (output, *_) = self.outputs([path], rev=rev)
        commit = self.git.resolve(rev) if rev and self.git else None
        return self.version_of(output, commit)

    def version_of(self, output: Output, rev: str | None = None) -> DataVersion:
        """Return the recorded version of an output; ``rev`` is the commit that it was read from."""
        if output.digest is None:
            raise OutputNotFoundError(f"'{output.path}' has no recorded content yet ({output.source})")
        size, nfiles = output.size, output.nfiles
        if nfiles is None and output.is_dir:
            nfiles = len(self.cache.read_tree(output.digest, output.hash_name))
        return DataVersion(
            str(self.root), rev, output.path, output.digest, size or 0, nfiles if nfiles is not None else 1
        )
