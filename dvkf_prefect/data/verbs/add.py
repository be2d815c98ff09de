"""Track files and directories of the workspace, or record their new content."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.git import gitignore
from dvkf_prefect.data.imports.dependencies import dependencies_now
from dvkf_prefect.data.progress import NO_PROGRESS, Work, counting
from dvkf_prefect.data.repository import legacy
from dvkf_prefect.data.repository.selection import written_paths
from dvkf_prefect.errors import OutputError, OutputInGitError, OutputNotFoundError, OutputOverlapError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats.dvcfile import read_plain
from dvkf_prefect.formats.dvcfile_edit import tidy_dvc_file, write_dvc_file
from dvkf_prefect.formats.dvcignore import NAME as IGNORE_FILE
from dvkf_prefect.formats.objects import MD5, Content
from dvkf_prefect.formats.outputs import DataVersion, Output
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.paths import file_meant

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


def add(
    repo: Repository, targets: Sequence[str | os.PathLike[str]], *, no_commit: bool = False
) -> list[DataVersion]:
    """Implement `Repo.add`."""
    with repo.lock(write=[os.fspath(target) for target in targets]):
        return _add(repo, targets, no_commit)


def _add(repo: Repository, targets: Sequence[str | os.PathLike[str]], no_commit: bool) -> list[DataVersion]:
    tracked = repo.outputs()
    paths = [repo.relpath(target) for target in targets]
    with repo.git_ignored.asking() as git_ignored:  # one query for all; `_check_new` refuses each below
        git_ignored([path + ".dvc" for path in paths])
    paths = [_check_new(repo, path, tracked) for path in paths]
    versions: dict[str, DataVersion] = {}
    staged: list[str] = []
    inside: dict[str, tuple[Output, list[str]]] = {}
    with _taking(repo, "add", paths) as taking:
        for path in paths:
            around = next((o for o in tracked if path.startswith(o.path + "/")), None)
            if around is not None and around.hash_name != MD5:
                raise OutputError(
                    f"'{path}' lies in '{around.path}', which DVC 2.x recorded ({around.source}); its digests "
                    f"cannot be mixed with those of DVC 3. Add all of it: `dvkf add {around.path}`"
                )
            same = next((o for o in tracked if o.path == path), None)
            old = legacy.unchanged(repo, path, same.digest, same.hash_name) if same else None
            if same is not None and old is not None:
                staged += _record(repo, same, legacy.keep(repo, path, old, commit=not no_commit))
                versions[path] = repo.version_of(same)
                continue
            if no_commit:
                content = repo.workspace.look(path).existing()
            else:
                content = taking.take(path, keep_manifest=around is None)
            if around is not None:
                inside.setdefault(around.path, (around, []))[1].append(path)
                continue
            output = next((o for o in tracked if o.path == path), Output(path, None, source=path + ".dvc"))
            staged += _record(repo, output, content)
            versions[path] = repo.version_of(replace(output, content=content))
    for around, parts in inside.values():
        content = _merged(repo, around, parts)
        staged += _record(repo, around, content)
        versions.update(dict.fromkeys(parts, repo.version_of(replace(around, content=content))))
    repo.stage(staged)
    return [versions[path] for path in paths]


def commit(repo: Repository, targets: Sequence[str] = (), *, sources: bool = False) -> list[DataVersion]:
    """Record and store the current workspace content of the outputs of `.dvc` files.

    Args:
        repo: The repository.
        targets: Limit to these, see `Repository.outputs`.
        sources: Record the current content of imports' sources too; the sources must exist.

    Returns:
        The versions of the outputs that changed.

    Raises:
        OutputNotFoundError: An output is not on disk, or the source of an import does not exist.
        DiskFullError: The disk is full.
    """
    with repo.lock(write=lambda: written_paths(repo, targets)):
        return _commit(repo, targets, sources)


def _commit(repo: Repository, targets: Sequence[str], sources: bool) -> list[DataVersion]:
    changed: list[DataVersion] = []
    dependencies: dict[str, Sequence[Mapping[str, Any]] | None] = {}
    outputs = repo.outputs(targets, overlap="any")
    if not targets:
        _commit_empty(repo, {output.source for output in outputs}, sources=sources)
    stored = [output.path for output in outputs if output.cached and not output.stage]
    with _taking(repo, "commit", stored) as taking:
        for output in outputs:
            if output.stage:
                continue
            if not os.path.lexists(repo.root / output.path):
                raise OutputNotFoundError(f"'{output.path}' is not in the workspace. Run `dvkf checkout`.")
            if sources and output.source not in dependencies:
                dependencies[output.source] = dependencies_now(repo, output.source)
            deps = dependencies.get(output.source)
            old = legacy.unchanged(repo, output.path, output.digest, output.hash_name)
            if old is not None:
                content = legacy.keep(repo, output.path, old, commit=output.cached)
            elif output.cached:
                content = taking.take(output.path)
            else:
                content = repo.workspace.look(output.path).existing()
            renewed = replace(output, content=content)
            same = (content.digest, content.isexec, content.hash_name) == (
                output.digest,
                output.isexec,
                output.hash_name,
            )
            plain = same and deps is None and content.size == output.size
            if plain and read_plain(read_description(repo.root / output.source)):
                _keep_out_of_git(repo, output)
                continue
            _record(repo, output, content, deps=deps)
            if not same:
                changed.append(repo.version_of(renewed))
    return changed


class _Taking:
    """Storage of several paths in the cache as one piece of work.

    Totals are known from the start for files, and for a directory after its scan.
    """

    def __init__(self, repo: Repository, work: Work, paths: Sequence[str]) -> None:
        self._repo = repo
        self._work = work
        self._sizes: dict[str, int] = {}
        for path in paths:
            with suppress(OSError):
                found = (repo.root / path).stat()
                if stat.S_ISREG(found.st_mode):
                    self._sizes[path] = found.st_size
        work.more(len(self._sizes), sum(self._sizes.values()))

    def take(self, path: str, *, keep_manifest: bool = True) -> Content:
        """Store a path, see `Workspace.take`, which adds to the totals what is really to do."""
        if path in self._sizes:
            self._work.more(-1, -self._sizes.pop(path))
        return self._repo.workspace.take(path, work=self._work, keep_manifest=keep_manifest)


@contextmanager
def _taking(repo: Repository, verb: str, paths: Sequence[str]) -> Iterator[_Taking]:
    label = f"{verb} {paths[0]}" if len(paths) == 1 else f"{verb} {len(paths):,} paths"
    with counting(repo.progress if paths else NO_PROGRESS, label) as work:
        yield _Taking(repo, work, paths)


def _commit_empty(repo: Repository, known: set[str], *, sources: bool) -> None:
    """Rewrite `.dvc` files without outputs in DVC's form."""
    for source in repo.files().find():
        if source.endswith(".dvc") and source not in known:
            file = repo.root / source
            old = read_description(file)
            new = tidy_dvc_file(old, source, dependencies_now(repo, source) if sources else None)
            if new != old:
                write_atomic(file, new)


def _check_new(repo: Repository, path: str, tracked: Sequence[Output]) -> str:
    if not path or path.split("/")[0] in (".dvc", ".git"):
        raise OutputError(f"'{path or '.'}' cannot be tracked: it contains the repository itself")
    full = repo.root / path
    if not os.path.lexists(full):
        raise OutputNotFoundError(f"'{path}' does not exist in {repo.root}.{file_meant(repo.root, path)}")
    if repo.ignore.matches(path + ("/" if full.is_dir() else "")):
        raise OutputError(f"'{path}' is excluded by {IGNORE_FILE}. Change that file to track it.")
    for output in tracked:
        if output.path == path:
            if output.stage:
                raise OutputError(
                    f"'{path}' is an output of stage '{output.stage}' ({output.source}). Record it with "
                    "`dvkf commit` or `dvkf repro`."
                )
            return path
        if path.startswith(output.path + "/") and output.is_dir and not output.stage:
            return path
        if output.path.startswith(path + "/") or path.startswith(output.path + "/"):
            raise OutputOverlapError(
                f"'{path}' overlaps the output '{output.path}' ({output.source}). Add that output again, or "
                "remove its tracking first."
            )
    repo.git_ignored.check(path + ".dvc")
    if repo.git:
        in_git = repo.git.tracked([repo.git_prefix + path])
        if in_git:
            raise OutputInGitError(
                f"'{path}' is tracked by git ({len(in_git)} file(s)). Run `git rm -r --cached '{path}'` and "
                "commit."
            )
    return path


def _record(
    repo: Repository,
    output: Output,
    content: Content,
    *,
    deps: Sequence[Mapping[str, Any]] | None = None,
) -> list[str]:
    """Write the output's `.dvc` file and ignore its data in git; return the files written."""
    file = repo.root / output.source
    old = read_description(file) if file.exists() else None
    new = write_dvc_file(old, output.source, output.path, content, deps=deps)
    if new != old:
        write_atomic(file, new)
    return [output.source, *_keep_out_of_git(repo, output)]


def _keep_out_of_git(repo: Repository, output: Output) -> list[str]:
    """Add the output's data to the `.gitignore` beside it; return that file if it was changed."""
    if repo.git and output.cached and gitignore.ignore(repo.root / output.path):
        return [posixpath.join(posixpath.dirname(output.path), ".gitignore")]
    return []


def _merged(repo: Repository, output: Output, paths: Sequence[str]) -> Content:
    """Update a directory's manifest with the current content of paths in it, and store the manifest.

    The other files of the directory may be absent from the workspace.

    Returns:
        The directory's new content.

    Raises:
        MissingObjectError: The directory's own manifest is not in the cache.
    """
    old = repo.cache.read_tree(output.digest or "", output.hash_name)
    inner = {path[len(output.path) + 1 :]: path for path in paths}
    fresh: dict[str, tuple[str, int]] = {}
    for part, path in inner.items():
        rows = repo.workspace.look(path).rows
        for name, file_digest, file_size in rows.files() if rows else ():
            fresh[posixpath.join(part, name) if name else part] = (file_digest, file_size)
    kept = {path: digest for path, digest in old.items() if not _is_below(path, inner)}
    tree = Tree.from_pairs({**kept, **{path: digest for path, (digest, _) in fresh.items()}}.items())
    digest = repo.cache.add_tree(tree)
    # As in DVC: a manifest has no sizes, so the sum is only known if nothing was replaced. A size of 0 means unknown.
    size: int | None = None
    if output.size is not None and digest == output.digest:
        size = output.size
    elif output.size and len(kept) == len(old):
        size = output.size + sum(bytes_ for _, bytes_ in fresh.values())
    return Content(digest, size, len(tree))


def _is_below(path: str, folders: Collection[str]) -> bool:
    """Return True if a path is one of these, or lies in one."""
    end = len(path)
    while end > 0:
        if path[:end] in folders:
            return True
        end = path.rfind("/", 0, end)
    return False
