"""Verification of caches and remotes: hash every object, report damaged and missing files, and repair them.

DVC trusts read-only files of its cache without hashing them again. It also assumes that the files of a manifest on a
remote are there. Verification assumes nothing and reads every object completely.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.git.command import revisions_of
from dvkf_prefect.data.git.history import Described, History
from dvkf_prefect.data.progress import counting
from dvkf_prefect.data.repository.described import workspace_described
from dvkf_prefect.data.transfer.manifests import read_manifest
from dvkf_prefect.data.upkeep.inventory import FolderInventory
from dvkf_prefect.errors import (
    ConfigError,
    DvkfError,
    MissingObjectError,
    ObjectError,
    OutputNotFoundError,
    ParseError,
    RemoteError,
    TransferError,
)
from dvkf_prefect.formats.digest import digest_file, unix_text
from dvkf_prefect.formats.objects import MD5, Content, identity, keys_of
from dvkf_prefect.formats.outputs import Output, matching, output_meant
from dvkf_prefect.formats.tree import SUFFIX, Tree, is_tree

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.data.transfer.transfer import Remote

# DVC 2.x removed carriage returns from text in pieces of this size.
_PIECE = 1 << 20
_AT_ONCE = 64
_LOCAL_JOBS = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """One object that is damaged or missing.

    Attributes:
        digest: Digest of the object; a directory's manifest ends with ``.dir``.
        paths: Tracked files with this content, relative to the root; empty if untracked.
        place: ``cache``, or the remote's name.
        kind: ``damaged``; ``missing`` from the remote; ``lost`` if neither the cache nor the workspace has a good copy
            either.
        detail: Description of the finding.
        repaired: True if a good copy has replaced it.
    """

    digest: str
    paths: tuple[str, ...]
    place: str
    kind: str
    detail: str
    repaired: bool = False

    def __str__(self) -> str:
        shown = ", ".join(self.paths[:3]) + (
            f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        )
        where = "in the cache" if self.place == "cache" else f"on the remote '{self.place}'"
        return f"{self.kind} {where}: {shown or 'not tracked'} ({self.digest}): {self.detail}"


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a verification; truthy if everything is intact or repaired.

    Attributes:
        objects: Number of objects verified.
        size: Bytes hashed.
        problems: Problems found, sorted by path.
    """

    objects: int
    size: int
    problems: tuple[Problem, ...]

    def __bool__(self) -> bool:
        return all(problem.repaired for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Checked:
    """Result of hashing one object; its state is ``good``, ``damaged`` or ``missing``."""

    key: str
    state: str
    size: int = 0
    detail: str = ""


@dataclass(slots=True)
class _Run:
    """State of one verification: its options, outputs and findings."""

    repo: Repository
    repair: bool
    sample: float = 1.0
    objects: int = 0
    size: int = 0
    problems: list[Problem] = field(default_factory=list)
    # The readable manifests, each with its output.
    trees: list[tuple[Output, Tree]] = field(default_factory=list)
    named: list[Output] = field(default_factory=list)

    def check(
        self, label: str, keys: Iterable[str], look: Callable[[str], _Checked], jobs: int
    ) -> dict[str, _Checked]:
        """Hash objects in parallel, and return those that are damaged or missing."""
        order = sorted(set(keys))
        if self.sample < 1:
            from random import sample  # slow to import

            files = [key for key in order if not key.endswith(SUFFIX)]
            chosen = set(sample(files, math.ceil(len(files) * self.sample)))
            order = [key for key in order if key.endswith(SUFFIX) or key in chosen]
        wrong: dict[str, _Checked] = {}
        if not order:
            return wrong
        with (
            counting(self.repo.progress, label, len(order)) as advance,
            ThreadPoolExecutor(max(1, min(jobs, len(order))), thread_name_prefix="dvkf-verify") as pool,
        ):
            for start in range(0, len(order), _AT_ONCE * 16):
                for found in pool.map(look, order[start : start + _AT_ONCE * 16], chunksize=1):
                    self.objects += 1
                    self.size += found.size
                    if found.state != "good":
                        wrong[found.key] = found
                    advance(1, found.size)
        return wrong

    def paths(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """Return the tracked files of each object."""
        found: dict[str, list[str]] = {key: [] for key in keys}
        for output in self.named:
            for key in keys_of([output.digest or ""], output.hash_name):
                if key in found and output.path not in found[key]:
                    found[key].append(output.path)
        for output, tree in self.trees:
            for (relpath, _), key in zip(tree.items(), keys_of(tree.digests, output.hash_name), strict=True):
                if key in found and (path := f"{output.path}/{relpath}") not in found[key]:
                    found[key].append(path)
        return found

    def note(
        self, key: str, paths: Sequence[str], place: str, kind: str, detail: str, repaired: bool
    ) -> None:
        """Record a problem."""
        self.problems.append(Problem(identity(key)[0], tuple(paths), place, kind, detail, repaired))

    def result(self) -> Verification:
        """Return the result."""
        self.problems.sort(key=lambda problem: (problem.paths, problem.digest))
        return Verification(self.objects, self.size, tuple(self.problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """Options of a verification.

    Attributes:
        cloud: Verify the remote instead of the cache.
        remote: Name of the remote; None for the output's own remote, else the default one.
        repair: Replace damaged objects by good copies: in the cache from the workspace or the remote, on
            the remote from the cache or the workspace. Damaged objects of the cache are moved aside.
        all_branches: Include the objects of the tips of all branches.
        all_tags: Include the objects of all tags.
        all_commits: Include the objects of all commits.
        sample: Share of the files to read, above 0 and up to 1, chosen at random. All manifests are read.
    """

    cloud: bool = False
    remote: str | None = None
    repair: bool = False
    all_branches: bool = False
    all_tags: bool = False
    all_commits: bool = False
    sample: float = 1.0


def verify(
    repo: Repository, targets: Sequence[str] = (), options: VerifyOptions | None = None
) -> Verification:
    """Implement `Repo.verify`.

    Without targets and commits, it verifies the whole cache. With ``cloud``, it reads every object of the outputs
    on the remote, including the files of manifests.

    Raises:
        ConfigError: The sample is out of range, or goes together with ``repair``.
        OutputNotFoundError: A target is tracked neither in the workspace nor in the chosen commits.
        ParseError: A file that tracks data cannot be read.
        RemoteError: The remote cannot be used.
    """
    options = options or VerifyOptions()
    if not 0 < options.sample <= 1:
        raise ConfigError(
            f"sample: {options.sample} is not a share of the files. Use a number above 0 and up to 1."
        )
    if options.repair and options.sample < 1:
        raise ConfigError(
            "sample: a repair needs to know all objects. Verify all of them, or without repair."
        )
    revs: list[str] = []
    if options.all_branches or options.all_tags or options.all_commits:
        if repo.git is None:
            raise ConfigError(f"{repo.root} has no git history, so -a, -T and -A cannot be used")
        revs = revisions_of(
            repo.git,
            all_branches=options.all_branches,
            all_tags=options.all_tags,
            all_commits=options.all_commits,
        )
    run = _Run(repo, options.repair, options.sample)
    remote = options.remote
    with repo.lock() if options.repair else nullcontext():
        run.named = _outputs(repo, targets, revs)
        if options.cloud:
            groups: dict[str | None, list[Output]] = {}
            for output in run.named:
                if output.pushed:
                    groups.setdefault(remote or output.remote, []).append(output)
            for name, group in (groups or {remote: []}).items():
                _verify_remote(run, group, repo.remote(name))
        else:
            _verify_cache(run, remote, everything=not (targets or revs))
    return run.result()


def _outputs(repo: Repository, targets: Sequence[str], revs: Sequence[str]) -> list[Output]:
    """Return the cached outputs of the workspace and of commits, without duplicates of path and content."""
    described = list(workspace_described(repo))
    if revs and repo.git:
        with History(repo.git, repo.git_prefix) as history:
            described += history.walk(revs)
    for item in described:
        if item.error:
            raise item.error
    tracked = [output for item in described for output in item.outputs]
    if targets:
        picked: list[Output] = []
        for target in targets:
            matched = list(matching(tracked, target))
            if not matched:
                raise OutputNotFoundError(
                    f"'{target}' is not an output, a .dvc file or a stage of {repo.root}."
                    f"{output_meant(tracked, target)}"
                )
            picked += matched
        tracked = picked
    distinct = {(output.path, output.digest): output for output in tracked if output.digest and output.cached}
    return list(distinct.values())


# -- hashing -----------------------------------------------------------------------------------------------------------


class _Hash:
    """Incremental md5 of bytes; for DVC 2.x, also the md5 of the text with Unix line ends."""

    def __init__(self, hash_name: str) -> None:
        self.size = 0
        self._plain = hashlib.md5(usedforsecurity=False)
        self._text = None if hash_name == MD5 else hashlib.md5(usedforsecurity=False)
        self._rest = b""

    def feed(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self.size += len(chunk)
            self._plain.update(chunk)
            if self._text is not None:
                self._rest += chunk
                while len(self._rest) >= _PIECE:
                    self._text.update(unix_text(self._rest[:_PIECE]))
                    self._rest = self._rest[_PIECE:]

    def checked(self, key: str, digest: str) -> _Checked:
        """Return the result of comparing the hash with an object's digest."""
        wanted = digest.removesuffix(SUFFIX)
        found = self._plain.hexdigest()
        if self._text is not None:
            self._text.update(unix_text(self._rest))
            if self._text.hexdigest() == wanted:
                found = wanted
        if found == wanted:
            return _Checked(key, "good", self.size)
        return _Checked(key, "damaged", self.size, f"its {self.size} bytes hash to {found}")


def _chunks(path: str | Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(_PIECE):
            yield chunk


def _look_at_file(key: str, path: str | Path) -> _Checked:
    digest, hash_name = identity(key)
    hashed = _Hash(hash_name)
    try:
        hashed.feed(_chunks(path))
    except (FileNotFoundError, NotADirectoryError):
        return _Checked(key, "missing", 0, "it does not exist")
    except OSError as error:
        return _Checked(key, "damaged", hashed.size, f"it cannot be read ({error.strerror})")
    return hashed.checked(key, digest)


def _look_at_blob(key: str, remote: Remote) -> _Checked:
    place = remote.storage.local_path(key)
    if place is not None:
        return _look_at_file(key, place)
    digest, hash_name = identity(key)
    hashed = _Hash(hash_name)
    try:
        hashed.feed(remote.storage.stream(key))
    except MissingObjectError:
        return _Checked(key, "missing", 0, "it does not exist")
    return hashed.checked(key, digest)


# -- the cache ---------------------------------------------------------------------------------------------------------


def _verify_cache(run: _Run, remote: str | None, *, everything: bool) -> None:
    root = run.repo.cache.root
    there = FolderInventory(root).keys()
    jobs = run.repo.jobs or min(_LOCAL_JOBS, os.cpu_count() or 1)

    def look(key: str) -> _Checked:
        return _look_at_file(key, root / key)

    trees = {key for output in run.named for key in _key(output) if is_tree(output.digest or "")}
    keys = {key for key in there if key.endswith(SUFFIX)} if everything else trees & there
    wrong = run.check("verify manifests", keys, look, jobs)
    _settle_cache(run, _not_gone(wrong), remote)
    for output in run.named:
        if is_tree(output.digest or ""):
            with suppress(DvkfError):
                tree = read_manifest(output.digest or "", output.hash_name, caches=[run.repo.cache])
                run.trees.append((output, tree))
    if everything:
        files = {key for key in there if not key.endswith(SUFFIX)}
    else:
        files = {key for output in run.named for key in _key(output)} - trees
        for output, tree in run.trees:
            files.update(keys_of(tree.digests, output.hash_name))
        files &= there
    wrong = _not_gone(run.check("verify the cache", files, look, jobs))
    known = run.paths(wrong)
    if everything and run.repo.git and not all(known.values()):
        _name_older(run)
    _settle_cache(run, wrong, remote)


def _not_gone(wrong: dict[str, _Checked]) -> dict[str, _Checked]:
    """Drop objects that another process removed after the listing."""
    return {key: found for key, found in wrong.items() if found.state != "missing"}


def _key(output: Output) -> Iterator[str]:
    return keys_of([output.digest or ""], output.hash_name)


def _name_older(run: _Run) -> None:
    """Add the outputs of the whole history, prefixed with a commit, so that damaged objects can be named."""
    repo = run.repo
    assert repo.git
    with History(repo.git, repo.git_prefix) as history:
        older: list[Described] = list(history.walk(revisions_of(repo.git, all_commits=True)))
    known = {(output.path, output.digest) for output in run.named}
    for item in older:
        for output in item.outputs:
            if output.digest and output.cached and (output.path, output.digest) not in known:
                known.add((output.path, output.digest))
                dated = replace(output, path=f"{(item.rev or '')[:7]}:{output.path}")
                run.named.append(dated)
                if is_tree(output.digest):
                    with suppress(DvkfError):
                        tree = read_manifest(output.digest, output.hash_name, caches=[repo.cache])
                        run.trees.append((dated, tree))


def _settle_cache(run: _Run, wrong: dict[str, _Checked], remote: str | None) -> None:
    """Record damaged objects of the cache and, with ``repair``, replace them by good copies."""
    if not wrong:
        return
    known = run.paths(wrong)
    asides: dict[str, Path] = {}
    sources: dict[str, str] = {}
    cache = run.repo.cache
    if run.repair:
        remotes = {key: output.remote for output in run.named for key in _key(output)}
        members = {
            key: output.remote
            for output, tree in run.trees
            for key in keys_of(tree.digests, output.hash_name)
        }
        rest: dict[str | None, list[str]] = {}
        for key in wrong:
            asides[key] = cache.set_aside(*identity(key))
            if _from_workspace(run.repo, key, known[key]):
                sources[key] = "the workspace"
            else:
                rest.setdefault(remote or {**members, **remotes}.get(key), []).append(key)
        for name, keys in rest.items():
            for key, source in _from_remote(run, name, keys).items():
                sources[key] = source
    for key, found in wrong.items():
        detail = found.detail
        if key in sources:
            detail += f"; replaced with a good copy from {sources[key]}; the damaged one is {asides[key]}"
        elif key in asides:
            detail += f"; no good copy was found; the damaged one is {asides[key]}"
        run.note(key, known[key], "cache", "damaged", detail, key in sources)


def _from_workspace(repo: Repository, key: str, paths: Sequence[str]) -> bool:
    """Restore an object from an intact workspace file; return True on success."""
    digest, hash_name = identity(key)
    if hash_name != MD5 or is_tree(digest):
        return False
    for path in paths:
        file = repo.root / path
        with suppress(OSError):
            if file.is_file() and digest_file(file) == digest and repo.cache.add_file(file) == digest:
                return True
    return False


def _from_remote(run: _Run, name: str | None, keys: Sequence[str]) -> dict[str, str]:
    """Download and verify objects from a remote; return the remote of each object that arrived."""
    from dvkf_prefect.data.transfer.transfer import fetch

    cache = run.repo.cache
    try:
        remote = run.repo.remote(name)
    except DvkfError:
        return {}
    came: dict[str, str] = {}
    files: list[Output] = []
    for key in keys:
        digest, hash_name = identity(key)
        if not is_tree(digest):
            files.append(Output(digest, Content(digest, hash_name=hash_name)))
            continue
        with suppress(ObjectError, ParseError, RemoteError):
            read_manifest(digest, hash_name, caches=[cache], remotes=[remote], mend=True)
    with suppress(TransferError, RemoteError):
        fetch(files, cache, remote)
    for key in keys:
        if (cache.root / key).is_file():
            came[key] = str(remote)
    return came


# -- a remote ----------------------------------------------------------------------------------------------------------


def _verify_remote(run: _Run, group: Sequence[Output], remote: Remote) -> None:
    jobs = run.repo.jobs or max(remote.jobs, min(_LOCAL_JOBS, os.cpu_count() or 1))

    def look(key: str) -> _Checked:
        return _look_at_blob(key, remote)

    trees = {key for output in group for key in _key(output) if is_tree(output.digest or "")}
    wrong_trees = run.check(f"verify manifests on {remote.name}", trees, look, jobs)
    files = {key for output in group for key in _key(output)} - trees
    read: dict[str, Tree | None] = {}
    for output in group:
        if not is_tree(output.digest or ""):
            continue
        key = next(_key(output))
        if key not in read:
            read[key] = _tree(run.repo, remote, key, on_remote=key not in wrong_trees)
        tree = read[key]
        if tree is not None:
            run.trees.append((output, tree))
            files.update(keys_of(tree.digests, output.hash_name))
    wrong = run.check(f"verify {remote.name}", files, look, jobs)
    known = run.paths({**wrong, **wrong_trees})
    unrepaired: set[str] = set()
    for key in [*sorted(wrong), *sorted(wrong_trees)]:
        found = wrong.get(key) or wrong_trees[key]
        _, hash_name = identity(key)
        good = _good_copy(run, key, known[key])
        detail, kind, repaired = found.detail, found.state, False
        if not good:
            kind = "lost"
            detail = f"{found.detail}, and neither the cache nor the workspace has a good copy"
        elif run.repair:
            tree = read.get(key)
            members = set(keys_of(tree.digests, hash_name)) if tree is not None else set()
            if members & unrepaired:
                detail += "; it was not sent because some of its files are lost"
            else:
                remote.storage.upload(key, run.repo.cache.root / key)
                repaired = True
                detail += "; a good copy was sent"
        if not repaired:
            unrepaired.add(key)
        run.note(key, known[key], remote.name, kind, detail, repaired)


def _tree(repo: Repository, remote: Remote, key: str, *, on_remote: bool) -> Tree | None:
    """Read a manifest from the remote if it is intact there, else from the cache."""
    digest, hash_name = identity(key)
    with suppress(DvkfError):
        if on_remote:
            return read_manifest(digest, hash_name, remotes=[remote])
        return read_manifest(digest, hash_name, caches=[repo.cache])
    return None


def _good_copy(run: _Run, key: str, paths: Sequence[str]) -> bool:
    """Return True if the cache has a good copy, or the workspace; with ``repair``, the latter is stored."""
    repo = run.repo
    state = _look_at_file(key, repo.cache.root / key).state
    if state == "good":
        return True
    if not run.repair:
        digest, hash_name = identity(key)
        with suppress(OSError):
            return hash_name == MD5 and any(
                digest_file(repo.root / path) == digest for path in paths if (repo.root / path).is_file()
            )
        return False
    if state == "damaged":
        repo.cache.set_aside(*identity(key))
    return _from_workspace(repo, key, paths)
