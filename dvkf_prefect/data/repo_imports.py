"""Verbs that import data from other repositories and urls, and update it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.repository.selection import written_paths

if TYPE_CHECKING:
    from dvkf_prefect.data.transfer.transfer import Progress
    from dvkf_prefect.data.verbs.imports import Annotations, Import


class RepoImports(Repository):
    """The verbs of `Repo` that track data together with its source."""

    def import_(
        self,
        url: str,
        path: str,
        out: str | os.PathLike[str] | None = None,
        *,
        rev: str | None = None,
        force: bool = False,
        no_exec: bool = False,
        no_download: bool = False,
        remote: str | None = None,
        remote_config: Mapping[str, str] | None = None,
        config: str | None = None,
        annotations: Annotations | None = None,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Import:
        """Download data of another repository and track it together with its source.

        Args:
            url: The repository: a folder or a git url.
            path: Path to import: an output, a path inside one, or a file or folder that git tracks.
            out: Path of the output, relative to the root or absolute; None for the source's name at the root.
            rev: Branch or tag to follow, or a commit; None for the default branch.
            force: Replace an existing file or directory.
            no_exec: Write the `.dvc` file only, without contacting the repository.
            no_download: Write the `.dvc` file with the commit, without downloading data.
            remote: Name of the other repository's remote to download from.
            remote_config: Options that override those of that remote.
            config: Configuration file whose settings override the other repository's.
            annotations: Description, type, labels and meta to record.
            jobs: Number of parallel transfers.
            progress: Called as files and bytes complete.

        Raises:
            OutputError: The path is taken, or cannot be tracked.
            OutputNotFoundError: The other repository has no such path.
            GitError: The other repository cannot be cloned, or has no such revision.
            TransferError: Some objects could not be downloaded; nothing was tracked.
        """
        from dvkf_prefect.data.verbs.imports import Annotations, import_repo, resolve_out

        place = os.fspath(out) if out else resolve_out(path, None)
        with self.lock(write=[place]):
            return import_repo(
                self,
                url,
                path,
                out=place,
                rev=rev,
                force=force,
                no_exec=no_exec,
                no_download=no_download,
                remote=remote,
                remote_config=remote_config,
                config=config,
                annotations=annotations or Annotations(),
                jobs=jobs,
                progress=progress,
            )

    def import_url(
        self,
        url: str,
        out: str | os.PathLike[str] | None = None,
        *,
        force: bool = False,
        no_exec: bool = False,
        no_download: bool = False,
        to_remote: bool = False,
        remote: str | None = None,
        version_aware: bool = False,
        fs_config: Mapping[str, str] | None = None,
        annotations: Annotations | None = None,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Import:
        """Download a file or a directory from a url and track it together with its source.

        Args:
            url: Path or url; ``remote://name/path`` uses the options of a remote.
            out: Path of the output, relative to the root or absolute; None for the source's name at the root.
            force: Replace an existing file or directory.
            no_exec: Write the `.dvc` file only, without contacting the url.
            no_download: Write the `.dvc` file with the metadata that the service returns, without downloading data.
            to_remote: Upload the data to a remote instead of storing it locally.
            remote: Remote to upload to; None for the default one.
            version_aware: Record the versions that the service keeps, and fetch by them.
            fs_config: Options for the url, under the names of remote options.
            annotations: Description, type, labels and meta to record.
            jobs: Number of parallel transfers.
            progress: Called as files and bytes complete.

        Raises:
            OutputError: The path is taken, or cannot be tracked.
            OutputNotFoundError: The url does not exist.
            TransferError: Some files could not be downloaded; nothing was tracked.
            RemoteError: The service does not respond, or refuses.
        """
        from dvkf_prefect.data.verbs.imports import Annotations, import_url, resolve_out

        place = os.fspath(out) if out else resolve_out(url, None)
        with self.lock(write=[place]):
            return import_url(
                self,
                url,
                out=place,
                force=force,
                no_exec=no_exec,
                no_download=no_download,
                to_remote=to_remote,
                remote=remote,
                version_aware=version_aware,
                fs_config=fs_config,
                annotations=annotations or Annotations(),
                jobs=jobs,
                progress=progress,
            )

    def update(
        self,
        targets: Sequence[str],
        *,
        rev: str | None = None,
        recursive: bool = False,
        no_download: bool = False,
        to_remote: bool = False,
        remote: str | None = None,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> list[Import]:
        """Update imports to the current content of their sources.

        Args:
            targets: `.dvc` files or paths of the imports, relative to the root; folders with ``recursive``.
            rev: Git revision to follow from now on.
            recursive: Include all imports below targets that are folders.
            no_download: Write the `.dvc` files only, and remove the old content from the workspace.
            to_remote: Upload the data to a remote instead of storing it locally.
            remote: Remote to upload to; None for the default one.
            jobs: Number of parallel transfers.
            progress: Called as files and bytes complete.

        Raises:
            OutputNotFoundError: A target is not tracked, or its source no longer exists.
            OutputError: A target is not an import.
            OutputChangedError: Files would be lost; nothing was changed.
            TransferError: Some files could not be downloaded; that import was not changed.
        """
        from dvkf_prefect.data.verbs.imports import update

        with self.lock(write=lambda: [""] if recursive else written_paths(self, targets)):
            return update(
                self,
                targets,
                rev=rev,
                recursive=recursive,
                no_download=no_download,
                to_remote=to_remote,
                remote=remote,
                jobs=jobs,
                progress=progress,
            )
