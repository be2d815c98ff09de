"""Version information (`dvkf version`) and health checks (`dvkf doctor`) of the installation and a repository."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.errors import DvkfError, RemoteError
from dvkf_prefect.leftovers import OWNER
from dvkf_prefect.urls import public_url

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository

_LIBRARIES = ("prefect", "kfp", "fsspec", "obstore", "s3fs", "pandas", "pathspec", "ruamel.yaml")
# Kinds of remote and the packages that serve each, as import name and distribution name.
SCHEMES = {
    "azure": (("obstore", "obstore"),),
    "gs": (("obstore", "obstore"),),
    "hdfs": (("pyarrow", "pyarrow"),),
    "http": (("fsspec", "fsspec"), ("aiohttp", "aiohttp")),
    "https": (("fsspec", "fsspec"), ("aiohttp", "aiohttp")),
    "oss": (("ossfs", "ossfs"),),
    "s3": (("obstore", "obstore"), ("s3fs", "s3fs")),
    "ssh": (("sshfs", "sshfs"),),
    "webdav": (("webdav4", "webdav4"),),
    "webhdfs": (("fsspec", "fsspec"), ("requests", "requests")),
}
# Folder of a cache for incomplete files.
_TEMPORARY = "tmp-dvkf"
# Number of paths for each git command.
_AT_ONCE = 500
_LEVELS_SHOWN = ("global", "system")

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one health check.

    Attributes:
        name: Name of the check.
        state: ``ok``; ``warn`` for a possible problem; ``fail`` if commands will fail.
        found: Description of the finding.
        next_step: Advice for the user; empty if there is nothing to do.
    """

    name: str
    state: State
    found: str
    next_step: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5}{self.name}: {self.found}" + (f"; {self.next_step}" if self.next_step else "")


@dataclass(frozen=True, slots=True)
class About:
    """Versions and facts of an installation and a repository.

    Attributes:
        version: Version of the package.
        platform: Python version and operating system.
        libraries: Name and version of the main dependencies.
        supports: Kinds of remote that are available, with the packages that serve them.
        config: Folders of the global and the system settings, by level.
        repository: Facts about the repository, by name; empty outside a repository.
    """

    version: str
    platform: str
    libraries: tuple[tuple[str, str], ...]
    supports: tuple[str, ...]
    config: tuple[tuple[str, str], ...]
    repository: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        title = f"dvkf version: {self.version}"
        lines = [title, "-" * len(title), f"Platform: {self.platform}", "Libraries:"]
        lines += [f"\t{name} = {version}" for name, version in self.libraries]
        lines += ["Supports:", ",\n".join(f"\t{scheme}" for scheme in self.supports), "Config:"]
        lines += [f"\t{level.capitalize()}: {place}" for level, place in self.config]
        return "\n".join((*lines, *(f"{name}: {fact}" for name, fact in self.repository)))


def about(repo: Repository | None, *, version: str) -> About:
    """Describe the installation, and a repository.

    Args:
        repo: The repository; None outside a repository.
        version: Version of the package.
    """
    from dvkf_prefect.data.repository.config import Config

    files = (repo.config if repo else Config(None)).files
    return About(
        version=version,
        platform=f"Python {platform.python_version()} on {platform.platform()}",
        libraries=tuple((name, found) for name in _LIBRARIES if (found := _version(name))),
        supports=tuple(_supported()),
        config=tuple((level, str(files[level].parent)) for level in _LEVELS_SHOWN),
        repository=tuple(_facts(repo)) if repo else (),
    )


def _version(distribution: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return None


def _supported() -> Iterator[str]:
    for scheme, packages in SCHEMES.items():
        if all(find_spec(module) for module, _ in packages):
            yield f"{scheme} ({', '.join(f'{name} = {_version(name)}' for _, name in packages)})"


def _facts(repo: Repository) -> Iterator[tuple[str, str]]:
    if repo.cache.root.is_dir():
        yield "Cache types", ", ".join(_link_types(repo)) or "copy"
        yield "Cache directory", _file_system(repo.cache.root)
    else:
        yield "Cache types", "unknown until a cache exists"
    remotes = [_scheme(options.get("url", "")) for options in repo.config.values["remote"].values()]
    yield "Caches", "local"
    yield "Remotes", ", ".join(remotes) or "None"
    yield "Workspace directory", _file_system(repo.root)
    kind = "dvc (no_scm)" if repo.git is None else "dvc (subdir), git" if repo.git_prefix else "dvc, git"
    yield "Repo", kind


def _link_types(repo: Repository) -> list[str]:
    from dvkf_prefect.data.workspace.links import Links
    from dvkf_prefect.data.workspace.memory import Memory

    if not os.access(repo.cache.root, os.W_OK):
        return []
    links = Links(repo.cache, Memory(repo.tmp_dir / "memory"), ("copy",), repo.tmp_dir)
    return [kind for kind in ("reflink", "hardlink", "symlink") if links.works(kind)]


def _scheme(url: str) -> str:
    scheme, mark, _ = url.partition("://")
    return "local" if not mark or scheme == "file" else scheme


def _file_system(path: Path) -> str:
    """Return the type and the device of the file system that contains a path, from ``/proc/self/mounts``."""
    found, deepest = "unknown", -1
    with suppress(OSError):
        place = path.resolve()
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            device, mount, kind = line.split(" ")[:3]
            mount = mount.encode().decode("unicode_escape", errors="replace")
            if len(mount) > deepest and place.is_relative_to(mount):
                found, deepest = f"{kind} on {device}", len(mount)
    return found


def check_health(repo: Repository, *, remote: bool = True) -> list[Check]:
    """Run the health checks of a repository, without changing anything.

    Args:
        repo: The repository; its settings parse, because it is open.
        remote: Check the default remote too.
    """
    checks: Sequence[Callable[[Repository], Check]] = (
        _config,
        _git,
        _lock,
        _cache,
        _leftovers,
        _tracked,
        _kept_out_of_git,
    )
    found = [check(repo) for check in checks]
    if remote:
        found.append(check_remote(repo))
    return found


def _config(repo: Repository) -> Check:
    read = [str(file) for file in repo.config.files.values() if file.is_file()]
    return Check("settings", "ok", f"read from {', '.join(read) or 'no file'}")


def _git(repo: Repository) -> Check:
    if repo.git is None:
        if repo.config.get("core", "no_scm"):
            return Check("git", "ok", "the repository is used without git")
        return Check(
            "git",
            "fail",
            f"{repo.root} is in no git repository",
            "run `git init`, or set core.no_scm to true",
        )
    try:
        commit = repo.git.head()
        version = repo.git.run("--version")
    except DvkfError as error:
        return Check("git", "fail", str(error), "install git")
    if commit is None:
        return Check("git", "warn", f"{version}, no commit yet", "commit, so that versions can be identified")
    return Check("git", "ok", f"{version}, at {commit[:7]}")


def _lock(repo: Repository) -> Check:
    path = repo.dvc_dir / "tmp" / "lock"
    try:
        with open(path, "rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = stream.read(32).decode(errors="replace").strip() or "unknown"
                return Check(
                    "lock", "warn", f"process {holder} holds {path}", "wait for it, or end it if it hangs"
                )
    except FileNotFoundError:
        return Check("lock", "ok", "free; never locked yet")
    except OSError as error:
        return Check("lock", "fail", f"{path}: {error.strerror}", "get the permission to write to it")
    return Check("lock", "ok", "free")


def _cache(repo: Repository) -> Check:
    folder = repo.cache.root
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return Check(
            "cache",
            "fail",
            f"{place} cannot be written to",
            "get the permission to write to it, or set cache.dir to another folder",
        )
    left = os.statvfs(place)
    free = left.f_bavail * left.f_frsize
    found = f"{folder}, {free / 1e9:.1f} GB free" if folder.exists() else f"{folder} will be made"
    if free < 1 << 30:
        return Check("cache", "warn", found, "free some space, such as with `dvkf gc`")
    return Check("cache", "ok", found)


def _leftovers(repo: Repository) -> Check:
    """Check the cache for partial downloads and for damaged objects that were moved aside."""
    temporary = [
        name for _, _, names in os.walk(repo.cache.root / _TEMPORARY) for name in names if name != OWNER
    ]
    damaged = [name for name in temporary if "-corrupt-" in name]
    if damaged:
        return Check(
            "temporary files",
            "warn",
            f"{len(damaged)} damaged object(s) set aside of {len(temporary)} file(s)",
            "run `dvkf verify` for details, and remove them after fetching good copies",
        )
    if temporary:
        return Check(
            "temporary files",
            "ok",
            f"{len(temporary)} left in the cache; the next transfer resumes with them",
        )
    return Check("temporary files", "ok", "none")


def _tracked(repo: Repository) -> Check:
    try:
        outputs = repo.outputs()
    except DvkfError as error:
        return Check("tracked data", "fail", str(error), "correct the file")
    lost = [o.path for o in outputs if o.cached and o.digest and not repo.cache.exists(o.digest, o.hash_name)]
    if lost:
        shown = ", ".join(lost[:3]) + (" and others" if len(lost) > 3 else "")
        return Check(
            "tracked data",
            "warn",
            f"{len(lost)} of {len(outputs)} not in the cache: {shown}",
            "run `dvkf fetch`",
        )
    return Check("tracked data", "ok", f"{len(outputs)} output(s), all in the cache")


def _kept_out_of_git(repo: Repository) -> Check:
    name = "git ignores the data"
    if repo.git is None:
        return Check(name, "ok", "git is not used")
    try:
        paths = [o.path for o in repo.outputs() if o.cached and o.digest]
        bad = [
            file
            for start in range(0, len(paths), _AT_ONCE)
            for file in repo.git.tracked([repo.git_prefix + p for p in paths[start : start + _AT_ONCE]])
        ]
        loose = _not_ignored(repo.git, repo.git_prefix, [p for p in paths if os.path.lexists(repo.root / p)])
    except DvkfError as error:
        return Check(name, "fail", str(error))
    if bad:
        return Check(
            name, "fail", f"git tracks {bad[0]}" + (" and others" if bad[1:] else ""), "run `git rm --cached`"
        )
    if loose:
        return Check(
            name,
            "warn",
            f"{', '.join(loose[:3])} not ignored by git",
            "add it to the .gitignore beside it",
        )
    return Check(name, "ok", f"{len(paths)} output(s)")


def _not_ignored(git: Git, prefix: str, paths: Sequence[str]) -> list[str]:
    """Return the paths that git does not ignore."""
    loose: list[str] = []
    for start in range(0, len(paths), _AT_ONCE):
        some = [f":(top,literal){prefix}{path}" for path in paths[start : start + _AT_ONCE]]
        listed = git.run(
            "ls-files", "-z", "--full-name", "--others", "--exclude-standard", "--directory", "--", *some
        )
        loose += [path.removeprefix(prefix).rstrip("/") for path in listed.split("\0") if path]
    return loose


def check_remote(repo: Repository) -> Check:
    """Check that the default remote answers.

    Args:
        repo: The repository.
    """
    name = repo.config.default_remote()
    if not name:
        return Check(
            "remote", "warn", "no default remote is set", "add one with `dvkf remote add -d NAME URL`"
        )
    try:
        remote = repo.remote(name)
        remote.storage.size("files/md5/00/" + "0" * 30)
    except RemoteError as error:
        return Check(
            "remote", "fail", str(error), "see its options with `dvkf remote list` and `dvkf config -l`"
        )
    except DvkfError as error:
        return Check("remote", "fail", str(error))
    url = public_url(remote.url)
    if "://" not in url and not Path(url).is_dir():
        return Check("remote", "warn", f"'{name}' ({url}) does not exist yet", "the first push creates it")
    return Check("remote", "ok", f"'{name}' ({url}) answers")
