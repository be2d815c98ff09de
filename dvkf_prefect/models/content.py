"""Content of a model's file or folder at a commit: look it up and export it."""

from __future__ import annotations

import os
import posixpath
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.data.transfer import transfer
from dvkf_prefect.errors import (
    CorruptObjectError,
    MissingObjectError,
    ModelDigestError,
    ModelError,
    ModelNotFoundError,
    OutputChangedError,
    TransferError,
)
from dvkf_prefect.files import walk_files
from dvkf_prefect.formats import tracked
from dvkf_prefect.formats.artifacts import read_artifacts
from dvkf_prefect.formats.digest import digest_bytes, digest_file
from dvkf_prefect.formats.files import PIPELINE_FILE, RepoFiles
from dvkf_prefect.formats.objects import object_key
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import SUFFIX, Tree
from dvkf_prefect.paths import is_within


@dataclass(frozen=True)
class ModelContent:
    """Content of a model at a commit.

    Attributes:
        path: The model's file or folder, relative to the repository's root.
        digest: Its md5, with ``.dir`` for a folder.
        size: Size in bytes; None if not recorded.
        nfiles: Number of files; 1 for a file.
        output: The output that is the model or contains it.
    """

    path: str
    digest: str
    size: int | None
    nfiles: int
    output: Output


class ModelContents:
    """The models declared by the commits of a repository.

    Args:
        repo: The repository.
        git: The git work tree that contains the repository.
    """

    def __init__(self, repo: Repo, git: Git) -> None:
        self._repo = repo
        self._git = git
        # A commit's content never changes, so this is never invalidated.
        self._known: dict[tuple[str, str], ModelContent] = {}

    def read(self, name: str, rev: str) -> ModelContent:
        """Return the content of a model at a commit.

        Args:
            name: Name of the model; ``folder:name`` if declared in folder/dvc.yaml, relative to git's top.
            rev: The commit.

        Raises:
            ModelNotFoundError: The commit does not declare the model.
            ModelError: The model's path is not an output, or has no recorded digest.
            ParseError: A file of the commit does not follow its format.
        """
        if (name, rev) not in self._known:
            self._known[name, rev] = self._look_up(name, rev)
        return self._known[name, rev]

    def _look_up(self, name: str, rev: str) -> ModelContent:
        files = self._repo.files(rev)
        folder, _, plain = name.rpartition(":")
        prefix = self._repo.root.relative_to(self._git.root.resolve()).as_posix()
        file = posixpath.relpath(posixpath.join(folder or ".", PIPELINE_FILE), prefix)
        artifacts = read_artifacts(files, file)
        if plain not in artifacts:
            raise ModelNotFoundError(
                f"{file} at commit {rev[:7]} declares no model '{plain}' under `artifacts` "
                f"(declared: {', '.join(sorted(artifacts)) or 'none'}); declare it and commit that"
            )
        path = artifacts[plain].path
        for source in _sources(files, path, file):
            for output in tracked.read_outputs(files, source):
                if is_within(path, output.path):
                    return self._inside(output, path, rev)
        raise ModelError(
            f"'{path}', the path of model '{name}', is no output of a stage or of `dvkf add` at commit {rev[:7]}"
        )

    def _inside(self, output: Output, path: str, rev: str) -> ModelContent:
        if output.digest is None:
            folder = posixpath.dirname(output.source)
            lock = posixpath.join(folder, "dvc.lock") if output.stage else output.source
            raise ModelError(
                f"'{output.path}' has no digest in {lock} at commit {rev[:7]}; "
                "run `dvkf repro` or `dvkf add`, and commit what they write"
            )
        if path == output.path:
            return ModelContent(path, output.digest, output.size, output.nfiles or 1, output)
        part = self._part(output, path)
        if not part.relpaths:
            raise ModelError(f"the output '{output.path}' has no '{path}' at commit {rev[:7]}")
        if part.relpaths == [""]:
            return ModelContent(path, part.digests[0], None, 1, output)
        return ModelContent(path, part.digest, None, len(part), output)

    def _part(self, output: Output, path: str) -> Tree:
        """Return the manifest of a folder inside an output; for a file, one entry without a name."""
        inside = path[len(output.path) + 1 :]
        part = self._manifest(output).below(inside)
        return Tree([relpath[len(inside) + 1 :] for relpath in part.relpaths], part.digests)

    def _manifest(self, output: Output) -> Tree:
        """Return a directory's manifest from the cache, else from the remote."""
        digest = output.digest or ""
        with suppress(MissingObjectError, CorruptObjectError):
            return self._repo.cache.read_tree(digest, output.hash_name)
        data = self._repo.remote(output.remote).storage.read(object_key(digest, output.hash_name))
        if digest_bytes(data) + SUFFIX != digest:
            raise CorruptObjectError(f"the manifest {digest} of '{output.path}' is damaged on the remote")
        self._repo.cache.add_bytes(data, tree=True)
        return Tree.from_bytes(data, digest)

    def export(self, content: ModelContent, dest: Path) -> Path:
        """Copy a model out of the cache; objects missing or damaged in the cache are fetched from the remote.

        Args:
            content: The content to copy.
            dest: Destination path. If it already has that content, nothing is done.

        Returns:
            ``dest``.

        Raises:
            OutputChangedError: ``dest`` exists with other content.
            ModelDigestError: An object is missing or damaged both in the cache and on the remote.
            RemoteError: The remote cannot be used.
        """
        if dest.exists():
            if _digest_at(dest) != content.digest:
                raise OutputChangedError([str(dest)])
            return dest
        dest.parent.mkdir(parents=True, exist_ok=True)
        temporary = dest.with_name(f".{dest.name}.{secrets.token_hex(4)}.tmp")
        try:
            self._copy(content, temporary)
            os.rename(temporary, dest)
        finally:
            _remove(temporary)
        return dest

    def _copy(self, content: ModelContent, dest: Path) -> None:
        cache = self._repo.cache
        output = content.output
        if content.digest.endswith(SUFFIX) and content.path != output.path:
            # The cache has no manifest for a part of a directory; store one.
            cache.add_tree(self._part(output, content.path))
        try:
            cache.export(content.digest, dest, hash_name=output.hash_name)
            return
        except (MissingObjectError, CorruptObjectError):
            _remove(dest)
        wanted = Output(content.path, content.digest, hash_name=output.hash_name)
        try:
            transfer.fetch([wanted], cache, self._repo.remote(output.remote))
        except TransferError as error:
            raise ModelDigestError(
                f"no good copy of '{content.path}' ({content.digest}) was found: {error}"
            ) from error
        cache.export(content.digest, dest, hash_name=output.hash_name)


def _digest_at(path: Path) -> str:
    if not path.is_dir():
        return digest_file(path)
    return Tree.from_pairs((name, digest_file(entry.path)) for name, entry in walk_files(path)).digest


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sources(files: RepoFiles, path: str, file: str) -> Iterator[str]:
    """Yield the files that may describe an output, the likely ones first, so that few are read."""
    likely = [
        path + ".dvc",
        *(f"{parent}.dvc" for parent in PurePosixPath(path).parents if parent.name),
        file,
    ]
    first = [source for source in likely if files.exists(source)]
    yield from first
    for source in files.find():
        if source not in first:
            yield source
