"""Read access to other repositories: a folder on this machine, or a git url at a revision."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.cache.borrowed import BorrowedCache
from dvkf_prefect.data.git import clones
from dvkf_prefect.data.git.command import Git, check_revision, check_url
from dvkf_prefect.data.progress import NO_PROGRESS, Progress
from dvkf_prefect.data.repository import cache_users
from dvkf_prefect.data.repository.config import Config
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.repository.trust import is_trusted, own_options
from dvkf_prefect.errors import ConfigError, GitError, NotARepositoryError
from dvkf_prefect.files import read_description
from dvkf_prefect.scratch import scratch_folder
from dvkf_prefect.urls import public_url

if TYPE_CHECKING:
    from dvkf_prefect.data.transfer.transfer import Remote

# Timeout of each git command, seconds.
_TIMEOUT = 600.0
# Seconds to wait for a garbage collection in a cache that is read.
_LOCK_WAIT = 60.0

Overlay = dict[str, dict[str, str]]


class ExternalRepo(Repository):
    """Another repository, opened for reading.

    Attributes:
        url: Folder or url as the user gave it.
        at: Commit of its files; None for the working files of a folder.
        lender: Cache of the local folder that it was cloned from, None without one.
        folder: That local folder.
    """

    url: str
    at: str | None = None
    lender: Path | None = None
    folder: Path | None = None

    def below(self, prefix: str) -> ExternalRepo:
        """Return the repository that is nested in a folder of this one.

        Args:
            prefix: Posix path of the folder, relative to the root.

        Raises:
            ConfigError: Its settings are invalid.
        """
        overlay: Overlay = {"cache": {"dir": str(self.cache.root)}} if self.at else {}
        doubtful: Overlay = {}
        folder = self.folder / prefix if self.folder else None
        if folder is not None and (folder / ".dvc").is_dir():
            lending = Config(folder / ".dvc")
            doubtful = _remotes_of(lending)
            overlay.update(own_options(lending))
        own = self.config
        inner = _opened(
            self.root / prefix,
            self.url,
            overlay,
            doubtful,
            source=own.source,
            at_rest=own.at_rest,
            lent=own.lent,
        ).using(jobs=self.jobs, progress=self.progress)
        inner.at, inner.folder = self.at, folder
        if folder is not None and (folder / ".dvc").is_dir():
            inner._borrow(Repository(folder).cache.root)
        return inner

    def _borrow(self, lender: Path) -> None:
        self.lender = lender
        self.cache = BorrowedCache(self.cache.root, lender)

    def places(self, name: str | None = None) -> list[Remote]:
        """Return the stores that may have its objects, the nearest first: its cache, then a remote.

        Args:
            name: Remote that an output names; None for the default one.

        Raises:
            RemoteNotFoundError: The named remote does not exist.
            RemoteError: The remote keeps versions itself, and so has no objects.
        """
        found = self.caches()
        if name or self.config.default_remote():
            found.append(self.remote(name))
        return found

    def caches(self) -> list[Remote]:
        """Return the caches of this machine that may have its objects."""
        from dvkf_prefect.data.remotes import open_storage
        from dvkf_prefect.data.transfer.transfer import Remote

        found: list[Remote] = []
        folders = [self.lender] if self.lender else []
        if self.at is None:
            folders.append(self.cache.root)
        for folder in folders:
            if folder.is_dir():
                shown = f"cache of {public_url(self.url)}"
                found.append(Remote(shown, open_storage(str(folder), name=shown), jobs=self.jobs))
        return found


@contextmanager
def open_external(
    url: str,
    rev: str | None = None,
    *,
    remote: str | None = None,
    remote_config: Mapping[str, str] | None = None,
    config: str | Mapping[str, Any] | None = None,
    cache_dir: Path | None = None,
    typed: bool = True,
    jobs: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Iterator[ExternalRepo]:
    """Open another repository for reading.

    A folder on this machine is read in place. A revision or a git url is cloned, and the clone is removed at the end of
    the block. A clone of a local folder uses that folder's remotes, including relative urls and ``config.local``. It
    reads missing objects from the folder's cache.

    Args:
        url: Folder or git url.
        rev: Git revision; None for the working files of a folder, or the default branch of a url.
        remote: Name of the remote to use as the default one.
        remote_config: Options that override those of that remote.
        config: Configuration file, or its sections, whose settings override the repository's.
        cache_dir: Folder for the objects fetched for a clone; None for one that is removed with the clone.
        typed: True if the user gave ``remote_config`` and ``config``, False if a file did; see `trust`.
        jobs: Number of parallel transfers; None for the default of each remote.
        progress: Called as files and bytes complete.

    Raises:
        NotARepositoryError: The folder is in no DVC and no git repository.
        GitError: The repository cannot be cloned, or has no such revision.
        ConfigError: Its settings, or the given ones, are invalid.

    Example:
        >>> with open_external("https://git.example.org/team/data.git", "v1.2") as repo:
        ...     repo.outputs()
    """
    folder = local_folder(url)
    if folder is None:
        check_url(url)
    if rev is not None:
        check_revision(rev)
    if folder is not None and rev is None and (root := _work_tree(folder)) is not None:
        merged = _overlay(Config(root / ".dvc"), {}, {}, remote, remote_config, config, typed)
        opened = _opened(root, url, *merged, source=str(root), at_rest=True, lent=True).using(
            jobs=jobs, progress=progress
        )
        with cache_users.working(opened.cache.root, _LOCK_WAIT):
            yield opened
        return
    if folder is None and "://" not in url and ":" not in url:
        raise NotARepositoryError(
            f"{public_url(url)} is neither a folder nor a git url. Correct the path or the url."
        )
    with scratch_folder("dvkf-clone-") as scratch:
        path = scratch / "repository"
        commit = clones.snapshot(str(_cloned(folder) or url), rev, path, timeout=_TIMEOUT)
        base: Overlay = {"cache": {"dir": str(cache_dir or scratch / "cache")}}
        doubtful: Overlay = {}
        lender: Path | None = None
        prefix = "."
        if folder is not None and (root := _work_tree(folder)) is not None:
            source = Repository(root)
            lender = source.cache.root
            doubtful = _remotes_of(source.config)
            base = {**base, **own_options(source.config)}
            git = Git.find(root)
            if git:
                prefix = os.path.relpath(root, git.root.resolve())
        top = path / prefix
        if not top.is_dir():
            raise GitError(f"{public_url(url)} has no folder {prefix} at {rev or 'its default branch'}")
        merged = _overlay(Config(top / ".dvc"), base, doubtful, remote, remote_config, config, typed)
        opened = _opened(top, url, *merged, source=str(folder or url), at_rest=False, lent=lender is not None)
        opened = opened.using(jobs=jobs, progress=progress)
        opened.at = commit
        if lender is None:
            yield opened
            return
        opened.folder = source.root
        opened._borrow(lender)
        with cache_users.working(lender, _LOCK_WAIT):
            yield opened


def _cloned(folder: Path | None) -> Path | None:
    """Return the folder that git can clone: the work tree around it, or the folder itself if bare."""
    if folder is None or ((folder / "HEAD").is_file() and (folder / "objects").is_dir()):
        return folder
    git = Git.find(folder)
    return git.root if git else folder


def local_folder(url: str) -> Path | None:
    """Return the local folder that a url names; None if it names none."""
    path = Path(url.removeprefix("file://")).expanduser()
    return path.resolve() if path.is_dir() else None


def _opened(
    root: Path,
    url: str,
    overlay: Overlay,
    doubtful: Overlay,
    *,
    source: str | None,
    at_rest: bool,
    lent: bool,
) -> ExternalRepo:
    """Open another repository; `Config` describes the last three arguments."""
    config = Config(
        root / ".dvc", overlay=overlay, doubtful=doubtful, source=source, at_rest=at_rest, lent=lent
    )
    opened = ExternalRepo(root, config=config)
    opened.url = url
    opened.cache.foreign = not is_trusted(source or url)
    if opened.git is not None:
        opened.git.foreign = True
    return opened


def _work_tree(folder: Path) -> Path | None:
    """Return the root of the DVC repository around a folder, else of the git repository; None for a bare one.

    Raises:
        NotARepositoryError: The folder is in neither.
    """
    for parent in (folder, *folder.parents):
        if (parent / ".dvc").is_dir():
            return parent
    git = Git.find(folder)
    if git is not None:
        return git.root
    if (folder / "HEAD").is_file() and (folder / "objects").is_dir():
        return None
    raise NotARepositoryError(f"{folder} is neither in a DVC nor in a git repository")


def _remotes_of(config: Config) -> Overlay:
    """Return a repository's remotes as settings for its clone, with absolute paths."""
    overlay: Overlay = {
        f'remote "{name}"': {option: _text(value) for option, value in options.items()}
        for name, options in config.values["remote"].items()
    }
    if default := config.default_remote():
        overlay["core"] = {"remote": default}
    return overlay


def _overlay(
    own: Config,
    base: Overlay,
    doubtful: Overlay,
    remote: str | None,
    remote_config: Mapping[str, str] | None,
    config: str | Mapping[str, Any] | None,
    typed: bool,
) -> tuple[Overlay, Overlay]:
    """Return the settings that override a repository's: those from the user, and those from other sources."""
    merged: Overlay = {section: dict(options) for section, options in base.items()}
    others: Overlay = {section: dict(options) for section, options in doubtful.items()}
    into = merged if typed else others
    if config:
        for section, options in _file_settings(config).items():
            into.setdefault(section, {}).update(options)
    if remote:
        into.setdefault("core", {})["remote"] = remote
    if remote_config:
        default = (settings.get("core", {}).get("remote") for settings in (merged, others))
        name = remote or next(filter(None, default), None) or own.default_remote()
        if not name:
            raise ConfigError("--remote-config needs a remote: name one with --remote")
        into.setdefault(f'remote "{name}"', {}).update(
            {key: _text(value) for key, value in remote_config.items()}
        )
    return merged, others


def _file_settings(config: str | Mapping[str, Any]) -> Overlay:
    from configobj import ConfigObj, ConfigObjError

    sections: Any = config
    if isinstance(config, str):
        try:
            lines = read_description(config).decode().splitlines()
            sections = ConfigObj(lines, interpolation=False)
        except (OSError, ConfigObjError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config}: cannot be read as a configuration file ({error})") from error
    settings: Overlay = {}
    for section, options in sections.items():
        for option, value in options.items() if isinstance(options, Mapping) else ():
            if isinstance(value, Mapping):  # the form in a `.dvc` file: remote: {name: {url: ...}}
                named = settings.setdefault(f'{section} "{option}"', {})
                named.update({key: _text(item) for key, item in value.items()})
            else:
                settings.setdefault(section.strip("'"), {})[option] = _text(value)
    return settings


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
