"""Track data from a path or url outside the workspace: upload it to a remote, or copy it into the workspace.

An upload streams past the cache. Unlike an import, the `.dvc` file does not record the source.

Source of the behaviour: DVC 3.x, ``dvc add --to-remote`` and ``dvc add --out``.
"""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dvkf_prefect.data.git import gitignore
from dvkf_prefect.data.imports.fetch import bring_source
from dvkf_prefect.data.imports.pending import put
from dvkf_prefect.data.imports.relay import send
from dvkf_prefect.data.imports.sources import open_source
from dvkf_prefect.data.remotes.urls import without_query
from dvkf_prefect.errors import OutputError, OutputInGitError, OutputNotFoundError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats.dvcfile_edit import write_dvc_file
from dvkf_prefect.formats.files import describes_outputs
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import DataVersion, Output, check_overlap
from dvkf_prefect.paths import check_target

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


def add_to_remote(
    repo: Repository,
    source: str,
    *,
    out: str | os.PathLike[str] | None = None,
    remote: str | None = None,
    force: bool = False,
) -> DataVersion:
    """Implement `Repo.add_to_remote`."""
    with repo.lock(write=[os.fspath(out or name_of(source))]):
        output = _new_output(repo, out or name_of(source), must_be_free=out is not None and not force)
        found = open_source(repo.config, source, folder=repo.root, fs_config={})
        return _record(repo, output, send(repo, found, remote))


def add_copy(
    repo: Repository,
    source: str,
    *,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> DataVersion:
    """Implement `Repo.add_copy`."""
    with repo.lock(write=[os.fspath(out or name_of(source))]):
        output = _new_output(repo, out or name_of(source), must_be_free=not force)
        found = open_source(repo.config, source, folder=repo.root, fs_config={})
        content = bring_source(found, repo.cache, jobs=repo.jobs, progress=repo.progress)
        put(repo, replace(output, content=content), repo.workspace.look(output.path))
        return _record(repo, output, content)


def name_of(source: str) -> str:
    """Return the last part of a path or a url."""
    path = without_query(source) if "://" in source else source
    return posixpath.basename(posixpath.normpath(path))


def place_for(source: str, out: str | None) -> str | None:
    """Return the output path for the value of ``--out``; a folder receives the source under its own name."""
    return os.path.join(out, name_of(source)) if out and os.path.isdir(out) else out


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the paths that match shell patterns; ``**`` matches folders at any depth.

    Raises:
        OutputNotFoundError: No path matches.
    """
    paths = [path for pattern in patterns for path in sorted(glob.iglob(pattern, recursive=True))]
    if not paths:
        raise OutputNotFoundError(f"Glob {list(patterns)} has no matches.")
    return paths


def _new_output(repo: Repository, out: str | os.PathLike[str], *, must_be_free: bool) -> Output:
    """Return the output to record: the one already tracked at this path, or a new one.

    Raises:
        OutputError: The path cannot be tracked, or is taken by something else.
    """
    path = repo.relpath(out)
    if path:
        check_target(repo.root, path)
    if not path or path.split("/")[0] in (".dvc", ".git") or describes_outputs(posixpath.basename(path)):
        raise OutputError(f"'{path or '.'}' cannot be tracked. Name a data file or a directory with --out.")
    if must_be_free and os.path.lexists(repo.root / path):
        raise OutputError(
            f"'{path}' exists already. Overwrite it with --force, or name another path with --out."
        )
    tracked = repo.outputs()
    output = next((o for o in tracked if o.path == path), None)
    if output is None:
        output = Output(path, None, source=path + ".dvc")
        if (repo.root / output.source).exists():
            raise OutputError(f"'{output.source}' exists already and describes something else")
        check_overlap(sorted([*tracked, output], key=lambda o: o.path))
        repo.git_ignored.check(output.source)
    elif output.stage or output.origin:
        what = f"an output of stage '{output.stage}'" if output.stage else "an import"
        raise OutputError(f"'{path}' is {what} ({output.source}). Run `dvkf remove` first.")
    if repo.git and repo.git.tracked([repo.git_prefix + path]):
        raise OutputInGitError(f"'{path}' is tracked by git. Run `git rm -r --cached '{path}'`.")
    return output


def _record(repo: Repository, output: Output, content: Content) -> DataVersion:
    file = repo.root / output.source
    file.parent.mkdir(parents=True, exist_ok=True)
    # A later pull puts the data here, so git must ignore it now.
    staged = [file]
    if repo.git and gitignore.ignore(repo.root / output.path):
        staged.append((repo.root / output.path).with_name(".gitignore"))
    old = read_description(file) if file.exists() else None
    write_atomic(file, write_dvc_file(old, output.source, output.path, content))
    repo.stage(path.relative_to(repo.root).as_posix() for path in staged)
    return repo.version_of(replace(output, content=content))
