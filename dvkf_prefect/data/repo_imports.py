"""What a repository can do with data that comes from elsewhere."""

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
    """The verbs of `Repo` that track data with where it came from."""

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
        """Download data of another repository and track it, and where it came from.

        Args:
            url: The repository: a folder or a git url.
            path: What to import: an output, a path inside one, or a file or folder of git.
            out: Where to, relative to the root or absolute; None for its own name at the root.
            rev: A branch or tag to follow, or a commit; None for the default branch.
            force: Replace what is there.
            no_exec: Only write the `.dvc` file.
            no_download: Write the `.dvc` file with the commit, but bring no data.
            remote: The name of its remote to download from.
            remote_config: Options over those of that remote.
            config: A configuration file whose settings go over the other repository's.
            annotations: What to note of it.
            jobs: How many transfers at once.
            progress: Told of files and bytes.

        Raises:
            OutputError: Something is there already, or may not be there.
            OutputNotFoundError: The repository has no such path.
            GitError: It cannot be cloned, or has no such revision.
            TransferError: Some objects could not be had; nothing was tracked.
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
        """Download a file or a directory from a url and track it, and where it came from.

        Args:
            url: A path, or a url; ``remote://name/path`` uses the options of a remote.
            out: Where to, relative to the root or absolute; None for its own name at the root.
            force: Replace what is there.
            no_exec: Only write the `.dvc` file.
            no_download: Write the `.dvc` file with what the service says of the data, but bring none.
            to_remote: Bring the data to a remote, not here.
            remote: The remote to bring it to; None for the default one.
            version_aware: Record the versions of a service that keeps them, and fetch by them.
            fs_config: Options for the url, by the names that remotes have.
            annotations: What to note of it.
            jobs: How many transfers at once.
            progress: Told of files and bytes.

        Raises:
            OutputError: Something is there already, or may not be there.
            OutputNotFoundError: Nothing is at the url.
            TransferError: Some files could not be had; nothing was tracked.
            RemoteError: The service does not answer, or refuses.
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
        """Bring imports up to date with where they come from.

        Args:
            targets: Their `.dvc` files or paths, relative to the root; folders with ``recursive``.
            rev: Follow this git revision from now on.
            recursive: Take all imports below targets that are folders.
            no_download: Only write the `.dvc` files, and take the old content out of the workspace.
            to_remote: Bring the data to a remote, not here.
            remote: The remote to bring it to; None for the default one.
            jobs: How many transfers at once.
            progress: Told of files and bytes.

        Raises:
            OutputNotFoundError: A target is not tracked, or its source is gone.
            OutputError: A target is not an import.
            OutputChangedError: Files would be lost; nothing was touched.
            TransferError: Some files could not be had; that import is as it was.
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
