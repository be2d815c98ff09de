"""Facade of an open repository: one method for each verb on its data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dvkf_prefect.data.repo_imports import RepoImports
from dvkf_prefect.data.repository.selection import written_paths
from dvkf_prefect.data.verbs import add as adding
from dvkf_prefect.data.verbs.checkout import Checkout
from dvkf_prefect.data.verbs.checkout import checkout as check_out
from dvkf_prefect.data.verbs.status import Status
from dvkf_prefect.data.verbs.status import status as compare_workspace
from dvkf_prefect.errors import TransferError
from dvkf_prefect.formats.outputs import DataVersion

if TYPE_CHECKING:
    from dvkf_prefect.data.progress import Direction
    from dvkf_prefect.data.repository.repository import Overlap
    from dvkf_prefect.data.repository.selection import Choice, Selection
    from dvkf_prefect.data.transfer.transfer import Progress, Transfer
    from dvkf_prefect.data.upkeep.gc import GarbageCollection, Scope
    from dvkf_prefect.data.upkeep.migrate import Migration
    from dvkf_prefect.data.upkeep.verify import Verification
    from dvkf_prefect.data.verbs.data_status import DataStatus
    from dvkf_prefect.data.verbs.diff import Diff
    from dvkf_prefect.data.verbs.move import Move
    from dvkf_prefect.data.verbs.push_fetch import Plans
    from dvkf_prefect.data.verbs.remove import Removal


@dataclass(frozen=True, slots=True)
class Pull:
    """Result of a pull: the objects downloaded and the changes to the workspace."""

    transfer: Transfer
    checkout: Checkout


class Repo(RepoImports):
    """A DVC repository, opened for reading and writing.

    Args:
        root: Folder that holds `.dvc`.
        config: Settings that override those in the files, see `Repo.open`.

    Attributes:
        root: Root folder of the repository.
        dvc_dir: The `.dvc` folder.
        config: Merged settings.
        cache: Local object store.
        git: Git work tree that contains the repository, None without git.

    Example:
        >>> repo = Repo.open("path/to/repository")
        >>> repo.add(["data/images"])
        >>> repo.push()
    """

    def select(
        self,
        targets: Sequence[str] = (),
        choice: Choice | None = None,
        *,
        rev: str | None = None,
        overlap: Overlap = "same",
    ) -> Selection:
        """Resolve targets and filters to outputs and paths inside them; see `data.repository.selection`.

        Args:
            targets: Those that `outputs` takes, and paths inside outputs.
            choice: Options that add to the selection or filter it.
            rev: Git revision; None for the workspace.
            overlap: As for `outputs`.

        Raises:
            OutputNotFoundError: A target is not tracked.
            ParseError: A file does not follow its format.
        """
        from dvkf_prefect.data.repository.selection import select

        return select(self, targets, choice, rev=rev, overlap=overlap)

    # -- verbs -------------------------------------------------------------------------------------------------------

    def add(
        self,
        targets: Sequence[str | os.PathLike[str]],
        *,
        no_commit: bool = False,
        progress: Progress | None = None,
    ) -> list[DataVersion]:
        """Track files or directories: store them in the cache and write a `.dvc` file beside each.

        A path inside a tracked directory updates that directory; its other files may be absent from the workspace.

        Args:
            targets: Paths, relative to the root or absolute.
            no_commit: Record the content without storing it in the cache.
            progress: Called as files and bytes complete.

        Returns:
            The version recorded for each target, in the order of `targets`.

        Raises:
            OutputNotFoundError: A target is not on disk.
            OutputInGitError: Git tracks a target, or files in it.
            OutputOverlapError: A target contains another output, or lies inside a stage's output.
            MissingObjectError: A target lies in a directory whose manifest is not in the cache.
            OutputError: A target belongs to a stage, or contains something that cannot be tracked.
            DiskFullError: The disk is full.
        """
        with self.lock(write=[os.fspath(target) for target in targets]):
            return adding.add(self, targets, no_commit=no_commit, progress=progress)

    def add_to_remote(
        self,
        source: str,
        *,
        out: str | os.PathLike[str] | None = None,
        remote: str | None = None,
        jobs: int | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> DataVersion:
        """Upload data from a path or url to a remote and track it, without storing it locally.

        Args:
            source: Path, relative to the root or absolute, or a url; ``remote://name/path`` uses a remote's options.
            out: Path of the output, relative to the root or absolute; None for the source's name at the root.
            remote: Name of the remote; None for the default one.
            jobs: Number of parallel transfers.
            force: Track it even if the path ``out`` exists; that file stays until the next checkout.
            progress: Called as files and bytes complete.

        Raises:
            OutputNotFoundError: The source does not exist.
            OutputError: The path is taken, or cannot be tracked.
            TransferError: Some files could not be read; nothing was tracked.
            RemoteError: The remote cannot be used.
        """
        from dvkf_prefect.data.verbs.add_from import add_to_remote, name_of

        with self.lock(write=[os.fspath(out or name_of(source))]):
            return add_to_remote(
                self, source, out=out, remote=remote, jobs=jobs, force=force, progress=progress
            )

    def add_copy(
        self,
        source: str,
        *,
        out: str | os.PathLike[str] | None = None,
        jobs: int | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> DataVersion:
        """Copy data from a path or url into the workspace and track it; the source stays.

        Args:
            source: As for `add_to_remote`.
            out: As for `add_to_remote`.
            jobs: Number of parallel transfers.
            force: Overwrite an existing file or directory.
            progress: Called as files and bytes complete.

        Raises:
            OutputNotFoundError: The source does not exist.
            OutputError: The path is taken, or cannot be tracked.
            TransferError: Some files could not be read; nothing was tracked.
            DiskFullError: The disk is full.
        """
        from dvkf_prefect.data.verbs.add_from import add_copy, name_of

        with self.lock(write=[os.fspath(out or name_of(source))]):
            return add_copy(self, source, out=out, jobs=jobs, force=force, progress=progress)

    def commit(
        self, targets: Sequence[str] = (), *, sources: bool = False, progress: Progress | None = None
    ) -> list[DataVersion]:
        """Record and store the current workspace content of the outputs of `.dvc` files.

        Args:
            targets: Limit to these, see `outputs`.
            sources: Record the current content of imports' sources too, as ``dvc commit -f``; the sources must exist.
            progress: Called as files and bytes complete.

        Returns:
            The versions of the outputs that changed.

        Raises:
            OutputNotFoundError: An output is not on disk, or the source of an import does not exist.
            DiskFullError: The disk is full.
        """
        with self.lock(write=lambda: written_paths(self, targets)):
            return adding.commit(self, targets, sources=sources, progress=progress)

    def status(self, targets: Sequence[str] = ()) -> Status:
        """Compare the workspace with the recorded content.

        Args:
            targets: Limit to these, see `outputs`.
        """
        return compare_workspace(self, targets)

    def data_status(
        self,
        targets: Sequence[str] = (),
        *,
        granular: bool = False,
        untracked: bool = False,
        not_in_remote: bool = False,
        remote: str | None = None,
        remote_refresh: bool = True,
    ) -> DataStatus:
        """Compare the last commit, the `.dvc` files, the workspace, the cache and, on request, the remote.

        Args:
            targets: Limit to these paths and the paths inside them; also those that `outputs` takes.
            granular: Compare file by file inside directories.
            untracked: List the files that neither git nor DVC tracks.
            not_in_remote: List recorded content that is missing from its remote.
            remote: Remote to query; None for the default one. An output's own remote takes precedence.
            remote_refresh: Query the remote; False to use the result of the last query.

        Raises:
            RemoteNotFoundError: No remote has that name.
            RemoteError: The remote cannot be used.
        """
        from dvkf_prefect.data.verbs.data_status import data_status

        return data_status(
            self,
            targets,
            granular=granular,
            untracked=untracked,
            not_in_remote=not_in_remote,
            remote=remote,
            remote_refresh=remote_refresh,
        )

    def checkout(
        self,
        targets: Sequence[str] = (),
        *,
        choice: Choice | None = None,
        force: bool = False,
        allow_missing: bool = False,
        relink: bool = False,
        progress: Progress | None = None,
    ) -> Checkout:
        """Restore the recorded content in the workspace from the cache.

        Without targets, it also removes outputs that are no longer tracked and unchanged since their checkout.

        Args:
            targets: Limit to these, see `outputs`; a path inside an output restores only that path.
            choice: Options that add to the selection: dependencies, folders, patterns.
            force: Overwrite and remove files whose content is stored nowhere else.
            allow_missing: Skip outputs that are missing from the cache.
            relink: Recreate unchanged files too, with the link type that is configured now.
            progress: Called as files and bytes complete.

        Raises:
            OutputChangedError: Files would be lost; nothing was changed.
            TransferError: Objects are missing from the cache or damaged; everything else was checked out.
            DiskFullError: The disk is full.
        """
        with self.lock(write=lambda: written_paths(self, targets, choice)):
            return check_out(
                self,
                targets,
                choice,
                force=force,
                allow_missing=allow_missing,
                relink=relink,
                progress=progress,
            )

    def remove(
        self, targets: Sequence[str], *, outs: bool = False, force: bool = False, dry_run: bool = False
    ) -> Removal:
        """Stop tracking data, or remove stages from a dvc.yaml. The data stays in the workspace as writable files.

        Args:
            targets: `.dvc` files, dvc.yaml files, stages of the dvc.yaml at the root, or ``dvc.yaml:name``.
            outs: Remove the data from the workspace too; the cache is not changed.
            force: With ``outs``, remove files whose content is stored nowhere else.
            dry_run: Return what would be removed without removing it.

        Raises:
            OutputNotFoundError: A target is none of these; nothing was changed.
            OutputError: A stage is generated by a `foreach` or a `matrix`; nothing was changed.
            OutputChangedError: Files would be lost; nothing was changed.
        """
        from dvkf_prefect.data.verbs.remove import remove

        with self.lock(write=lambda: remove(self, targets, dry_run=True).outputs):
            return remove(self, targets, outs=outs, force=force, dry_run=dry_run)

    def move(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        progress: Progress | None = None,
    ) -> Move:
        """Move or rename a tracked file or directory, together with its `.dvc` file.

        Args:
            source: Current path, relative to the root or absolute.
            target: New path; an existing directory receives the source under its own name.
            progress: Called as files and bytes complete.

        Raises:
            OutputNotFoundError: The source is not tracked.
            OutputError: A stage writes the source, or the new path is taken.
            OutputOverlapError: The new path lies inside another output.
        """
        from dvkf_prefect.data.verbs.move import move

        paths = [self.relpath(source), self.relpath(target)]
        with self.lock(write=paths):
            return move(self, *paths, progress=progress)

    def unprotect(
        self, targets: Sequence[str | os.PathLike[str]], *, progress: Progress | None = None
    ) -> list[str]:
        """Make files writable: replace links to the cache by copies.

        Args:
            targets: Files or directories, relative to the root or absolute.
            progress: Called as files and bytes complete.

        Returns:
            The files that changed.

        Raises:
            OutputNotFoundError: A target is not on disk; nothing was changed.
            MissingObjectError: A link points to an object that is missing from the cache.
            DiskFullError: The disk is full; every file is complete, as a link or a copy.
        """
        from dvkf_prefect.data.verbs.unprotect import unprotect

        paths = [self.relpath(target) for target in targets]
        with self.lock(write=paths):
            return unprotect(self, paths, progress=progress)

    # -- remotes -----------------------------------------------------------------------------------------------------

    def push(
        self,
        targets: Sequence[str] = (),
        *,
        choice: Choice | None = None,
        remote: str | None = None,
        run_cache: bool = False,
        deep: bool = False,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Transfer:
        """Upload the recorded content of outputs to a remote.

        If a manifest is on the remote, its files are assumed to be there too, as in DVC.

        Args:
            targets: Limit to these, see `outputs`, and paths inside outputs.
            choice: Options that add to the selection or filter it: other commits, dependencies, patterns.
            remote: Name of the remote; None for the output's own remote, else the default one. Outputs with
                another remote are left out.
            run_cache: Upload the run cache too, with those of its outputs that are in the cache.
            deep: Check the files of manifests that are on the remote too, and upload the missing ones.
            jobs: Number of parallel transfers.
            progress: Called as files and bytes complete.

        Raises:
            OutputNotFoundError: A target is not tracked.
            TransferError: Some objects failed; all others arrived.
            RemoteError: The remote cannot be used.
        """
        from dvkf_prefect.data.verbs import push_fetch

        return push_fetch.push(
            self,
            self.select(targets, choice, overlap="any"),
            remote=remote,
            run_cache=run_cache,
            deep=deep,
            jobs=jobs,
            progress=progress,
        )

    def fetch(
        self,
        targets: Sequence[str] = (),
        *,
        rev: str | None = None,
        choice: Choice | None = None,
        remote: str | None = None,
        run_cache: bool = False,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Transfer:
        """Download the recorded content of outputs from a remote into the cache.

        Args:
            targets: Limit to these, see `outputs`, and paths inside outputs.
            rev: Git revision that records the outputs; None for the workspace.
            choice: Options that add to the selection or filter it: other commits, dependencies, sizes.
            remote: Name of the remote; None for the output's own remote, else the default one. Outputs with
                another remote are left out.
            run_cache: Download the run cache too.
            jobs: Number of parallel transfers.
            progress: Called as files and bytes complete.

        Raises:
            OutputNotFoundError: A target is not tracked.
            TransferError: Some objects are missing or damaged on the remote; all others arrived.
            RemoteError: The remote cannot be used.
        """
        from dvkf_prefect.data.verbs import push_fetch

        return push_fetch.fetch(
            self,
            self.select(targets, choice, rev=rev, overlap="any"),
            remote=remote,
            run_cache=run_cache,
            jobs=jobs,
            progress=progress,
        )

    def pull(
        self,
        targets: Sequence[str] = (),
        *,
        choice: Choice | None = None,
        remote: str | None = None,
        run_cache: bool = False,
        jobs: int | None = None,
        force: bool = False,
        allow_missing: bool = False,
        progress: Progress | None = None,
    ) -> Pull:
        """Download outputs from a remote into the cache and check them out; see `fetch` and `checkout`.

        Raises:
            TransferError: Some objects are missing or damaged on the remote; all others arrived and were checked out.
            OutputChangedError: Files would be lost; the workspace was not changed.
        """
        from dvkf_prefect.data.verbs import push_fetch

        failure: TransferError | None = None
        try:
            fetched = push_fetch.fetch(
                self,
                self.select(targets, choice),
                remote=remote,
                run_cache=run_cache,
                allow_missing=allow_missing,
                jobs=jobs,
                progress=progress,
            )
        except TransferError as error:
            # Check out the objects that arrived before raising the error.
            failure = error
        changes = self.checkout(
            targets,
            choice=choice,
            force=force,
            allow_missing=allow_missing or failure is not None,
            progress=progress,
        )
        if (self.tmp_dir / "imports.json").exists():
            # Fetched imports whose content no `.dvc` file records yet.
            from dvkf_prefect.data.imports.pending import place_imports

            with self.lock(write=lambda: written_paths(self, targets, choice)):
                placed = place_imports(
                    self, self.select(targets, choice).outputs, force=force, progress=progress
                )
            changes = replace(changes, added=(*changes.added, *placed))
        if failure is not None:
            raise failure
        return Pull(fetched, changes)

    def plan(
        self,
        direction: Direction,
        targets: Sequence[str] = (),
        *,
        rev: str | None = None,
        choice: Choice | None = None,
        remote: str | None = None,
        run_cache: bool = False,
        deep: bool = False,
        jobs: int | None = None,
    ) -> Plans:
        """Return what `push` or `fetch` would transfer, without changing anything.

        Args:
            direction: ``push`` or ``fetch``.
            targets: As for `push` and `fetch`.
            rev: As for `fetch`.
            choice: As for `push` and `fetch`.
            remote: As for `push` and `fetch`.
            run_cache: As for `push` and `fetch`.
            deep: As for `push`.
            jobs: Number of parallel requests.

        Raises:
            OutputNotFoundError: A target is not tracked.
            RemoteError: The remote cannot be used.
        """
        from dvkf_prefect.data.verbs import push_fetch

        selection = self.select(targets, choice, rev=rev)
        return push_fetch.plan(
            self, direction, selection, remote=remote, run_cache=run_cache, deep=deep, jobs=jobs
        )

    def cloud_status(
        self,
        targets: Sequence[str] = (),
        *,
        choice: Choice | None = None,
        remote: str | None = None,
        deep: bool = False,
        jobs: int | None = None,
    ) -> dict[str, str]:
        """Compare the cache with the remotes of the outputs.

        Args:
            targets: As for `push`.
            choice: As for `push`.
            remote: As for `push`.
            deep: Check the files of manifests that are on the remote too.
            jobs: Number of parallel requests.

        Returns:
            State of each path that is not in both: ``new`` (only in the cache), ``deleted`` (only on the remote)
            or ``missing`` (in neither).

        Raises:
            OutputNotFoundError: A target is not tracked.
            RemoteError: A remote cannot be used.
        """
        from dvkf_prefect.data.verbs import push_fetch

        return push_fetch.status(self, self.select(targets, choice), remote=remote, deep=deep, jobs=jobs)

    # -- upkeep ------------------------------------------------------------------------------------------------------

    def gc(
        self,
        scope: Scope,
        *,
        cloud: bool = False,
        remote: str | None = None,
        projects: Sequence[str | os.PathLike[str]] = (),
        jobs: int | None = None,
        dry_run: bool = False,
        not_in_remote: bool = False,
        skip_failed: bool = False,
        run_cache: bool = False,
        grace: float | None = None,
        assume_unshared: bool = False,
    ) -> GarbageCollection:
        """Remove unused objects from the cache and, on request, from a remote; see `data.upkeep.gc`.

        Args:
            scope: Commits whose data is kept, beside the workspace's.
            cloud: Remove from the remote too.
            remote: Name of the remote; None for the default one and those that outputs name.
            projects: Other repositories whose data is kept too, with the same scope; any folder in each.
            jobs: Number of parallel requests.
            dry_run: Return what would be removed without removing it.
            not_in_remote: Remove used objects too, if they are on the remote.
            skip_failed: Continue if a file or manifest cannot be read, instead of refusing; its data is not kept.
            run_cache: Keep the objects that the run cache names, too.
            grace: Keep objects that were added or changed within this many seconds. None for one hour in shared
                places and 0 in the repository's own cache.
            assume_unshared: Assume that no other repository uses the cache or the remote, despite any marks in it.

        Raises:
            ConfigError: The scope is empty, or options contradict each other.
            MissingObjectError: A used manifest cannot be read, so its files are unknown; nothing was removed.
            ObjectError: Other repositories use the cache, or may use it; nothing was removed.
            ParseError: A file that tracks data cannot be read; nothing was removed.
            RemoteError: The remote cannot be used, or other repositories use it; nothing was removed.
        """
        from dvkf_prefect.data.upkeep.gc import collect_garbage

        return collect_garbage(
            self,
            scope,
            cloud=cloud,
            remote=remote,
            projects=projects,
            jobs=jobs,
            dry_run=dry_run,
            not_in_remote=not_in_remote,
            skip_failed=skip_failed,
            run_cache=run_cache,
            grace=grace,
            assume_unshared=assume_unshared,
        )

    def migrate_cache(
        self, *, dvc_files: bool = False, dry_run: bool = False, progress: Progress | None = None
    ) -> Migration:
        """Convert the cache's DVC 2.x objects to the current layout, named by the md5 of their bytes.

        The old objects stay, because other commits name them; where possible both are hard links to one file.

        Args:
            dvc_files: Record the new digests in `.dvc` files and dvc.lock files too.
            dry_run: Return what would be done without doing it.
            progress: Called as files and bytes complete.

        Raises:
            ParseError: A file that describes outputs does not parse.
            DiskFullError: The disk is full.
        """
        from dvkf_prefect.data.upkeep.migrate import migrate

        with self.lock(write=[""] if dvc_files else ()):
            return migrate(self, dvc_files=dvc_files, dry_run=dry_run, progress=progress)

    def verify(
        self,
        targets: Sequence[str] = (),
        *,
        cloud: bool = False,
        remote: str | None = None,
        repair: bool = False,
        all_branches: bool = False,
        all_tags: bool = False,
        all_commits: bool = False,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Verification:
        """Hash the objects of the cache, or the outputs' objects on a remote, and report damaged ones.

        Without targets and commits, it verifies the whole cache. With ``cloud``, it reads every object of the outputs
        on the remote, including the files of manifests.

        Args:
            targets: Limit to the objects of these, see `outputs`.
            cloud: Verify the remote instead of the cache.
            remote: Name of the remote; None for the output's own remote, else the default one.
            repair: Replace damaged objects by good copies: in the cache from the workspace or the remote, on
                the remote from the cache or the workspace. Damaged objects of the cache are moved aside.
            all_branches: Include the objects of the tips of all branches.
            all_tags: Include the objects of all tags.
            all_commits: Include the objects of all commits.
            jobs: Number of objects read in parallel.
            progress: Called as files and bytes complete.

        Raises:
            OutputNotFoundError: A target is tracked neither in the workspace nor in the chosen commits.
            ParseError: A file that tracks data cannot be read.
            RemoteError: The remote cannot be used.
        """
        from dvkf_prefect.data.upkeep.verify import verify

        return verify(
            self,
            targets,
            cloud=cloud,
            remote=remote,
            repair=repair,
            all_branches=all_branches,
            all_tags=all_tags,
            all_commits=all_commits,
            jobs=jobs,
            progress=progress,
        )

    # -- comparing ---------------------------------------------------------------------------------------------------

    def diff(self, a: str = "HEAD", b: str | None = None, targets: Sequence[str] = ()) -> Diff:
        """Compare two versions of the data, file by file.

        Args:
            a: Older git revision.
            b: Newer git revision; None for the workspace.
            targets: Limit to these outputs.

        Raises:
            GitError: A revision does not exist.
            OutputNotFoundError: A target is in neither version.
        """
        from dvkf_prefect.data.verbs.diff import diff_versions

        return diff_versions(self, a, b, targets)
