"""Content of a model's file or folder at a commit: look it up and export it."""

from __future__ import annotations

import os
import posixpath
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.transfer import transfer
from dvkf_prefect.data.transfer.manifests import opened, read_manifest
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
from dvkf_prefect.formats.artifacts import ArtifactDecl, read_artifacts
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.files import PIPELINE_FILE, RepoFiles
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.paths import is_within


@dataclass(frozen=True)
class ModelContent:
    """Content of a model at a commit.

    Attributes:
        path: The model's file or folder, relative to the repository's root.
        content: The content.
        output: The output that is the model or contains it.
        rev: The commit.
    """

    path: str
    content: Content
    output: Output
    rev: str


class ModelContents:
    """The models declared by the commits of a repository.

    Args:
        repo: The repository.
        git: The git work tree that contains the repository.
    """

    def __init__(self, repo: Repository, git: Git) -> None:
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

    def present(self, name: str) -> ModelContent:
        """Return the content of a model in the workspace, as DVC recorded it; ``rev`` is empty.

        Args:
            name: Name of the model.

        Raises:
            ModelNotFoundError: The workspace does not declare the model.
            ModelError: The model's path is not an output, or has no recorded digest.
            ParseError: A file does not follow its format.
        """
        return self._look_up(name, None)

    def _look_up(self, name: str, rev: str | None) -> ModelContent:
        files = self._repo.files(rev)
        file, declared = self._declared(files, name, rev)
        path = declared.path
        for source in _sources(files, path, file):
            for output in tracked.read_outputs(files, source):
                if is_within(path, output.path):
                    return self._inside(output, path, rev or "")
        raise ModelError(
            f"'{path}', the path of model '{name}', is not an output {_at(rev)}. Run `dvkf add`, or make it "
            "an output of a stage, and commit."
        )

    def declared(self, name: str, rev: str) -> ArtifactDecl:
        """Return the artifact of a model in a commit's dvc.yaml.

        Raises:
            ModelNotFoundError: The commit does not declare the model.
            ParseError: A file of the commit does not follow its format.
        """
        return self._declared(self._repo.files(rev), name, rev)[1]

    def declaration(self, name: str, rev: str | None) -> tuple[str, ArtifactDecl]:
        """Return the dvc.yaml that declares a model, and its artifact there.

        Args:
            name: Name of the model.
            rev: The commit; None for the workspace.

        Raises:
            ModelNotFoundError: The revision does not declare the model.
            ParseError: A file of the revision does not follow its format.
        """
        return self._declared(self._repo.files(rev), name, rev)

    def _declared(self, files: RepoFiles, name: str, rev: str | None) -> tuple[str, ArtifactDecl]:
        folder, _, plain = name.rpartition(":")
        prefix = self._repo.root.relative_to(self._git.root.resolve()).as_posix()
        file = posixpath.relpath(posixpath.join(folder or ".", PIPELINE_FILE), prefix)
        artifacts = read_artifacts(files, file)
        if plain not in artifacts:
            raise ModelNotFoundError(
                f"{file} {_at(rev)} declares no model '{plain}' under `artifacts` "
                f"(declared: {', '.join(sorted(artifacts)) or 'none'}). Declare it and commit the file."
            )
        return file, artifacts[plain]

    def digests(self, model: ModelContent) -> dict[str, str]:
        """Return the digest of each file of a model by its path inside; the empty path for a model of one file.

        Raises:
            MissingObjectError: The manifest of a folder is neither in the cache nor on the remote.
        """
        if not model.content.is_dir:
            return {"": model.content.digest}
        output = model.output
        if model.path != output.path:
            return dict(self._part(output, model.path).items())
        remotes = opened(self._repo.remote, [output.remote])
        digest, hash_name = model.content.digest, model.content.hash_name
        return dict(
            read_manifest(digest, hash_name, caches=[self._repo.cache], remotes=remotes, mend=True).items()
        )

    def _inside(self, output: Output, path: str, rev: str) -> ModelContent:
        if output.content is None:
            folder = posixpath.dirname(output.source)
            lock = posixpath.join(folder, "dvc.lock") if output.stage else output.source
            raise ModelError(
                f"'{output.path}' has no digest in {lock} {_at(rev)}. Run `dvkf repro` or `dvkf add`, and "
                "commit."
            )
        if path == output.path:
            return ModelContent(path, output.content, output, rev)
        part = self._part(output, path)
        if not part:
            raise ModelError(f"the output '{output.path}' has no '{path}' {_at(rev)}")
        if part.relpaths == [""]:
            content = Content(part.digests[0], hash_name=output.hash_name)
        else:
            content = Content(part.digest, nfiles=len(part), hash_name=output.hash_name)
        return ModelContent(path, content, output, rev)

    def _part(self, output: Output, path: str) -> Tree:
        """Return the manifest of a folder inside an output; for a file, one entry without a name."""
        tree = read_manifest(
            output.digest or "",
            output.hash_name,
            caches=[self._repo.cache],
            remotes=opened(self._repo.remote, [output.remote]),
            mend=True,
        )
        return tree.subtree(path[len(output.path) + 1 :])

    def export(self, model: ModelContent, dest: Path) -> Path:
        """Copy a model out of the cache; objects missing or damaged in the cache are fetched from the remote.

        Args:
            model: The content to copy.
            dest: Destination path. If it already has that content, nothing is done.

        Returns:
            ``dest``.

        Raises:
            OutputChangedError: ``dest`` exists with other content.
            ModelDigestError: An object is missing or damaged both in the cache and on the remote.
            RemoteError: The remote cannot be used.
        """
        if dest.exists():
            if _digest_at(dest) != model.content.digest:
                raise OutputChangedError([str(dest)])
            return dest
        dest.parent.mkdir(parents=True, exist_ok=True)
        temporary = dest.with_name(f".{dest.name}.{secrets.token_hex(4)}.tmp")
        try:
            self._copy(model, temporary)
            os.rename(temporary, dest)
        finally:
            _remove(temporary)
        return dest

    def _copy(self, model: ModelContent, dest: Path) -> None:
        cache = self._repo.cache
        content, output = model.content, model.output
        if content.is_dir and model.path != output.path:
            # The cache has no manifest for a part of a directory; store one.
            cache.add_tree(self._part(output, model.path), output.hash_name)
        try:
            cache.export(content.digest, dest, hash_name=content.hash_name)
            return
        except (MissingObjectError, CorruptObjectError):
            _remove(dest)
        try:
            transfer.fetch(
                [Output(model.path, content)],
                cache,
                self._repo.remote(output.remote),
                progress=self._repo.progress,
            )
        except TransferError as error:
            raise ModelDigestError(f"no intact copy of '{model.path}' ({content.digest}): {error}") from error
        cache.export(content.digest, dest, hash_name=content.hash_name)


def _at(rev: str | None) -> str:
    return f"at commit {rev[:7]}" if rev else "in the workspace"


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
