"""Facade of an open repository: one method for each verb on its data and stages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.repository.repository import Repository

if TYPE_CHECKING:
    from pathlib import Path

    from dvkf_prefect.data.repository.selection import Choice
    from dvkf_prefect.data.transfer.transfer import Transfer
    from dvkf_prefect.data.upkeep.doctor import Check
    from dvkf_prefect.data.upkeep.gc import GarbageCollection, GcOptions, GcScope
    from dvkf_prefect.data.upkeep.migrate import Migration
    from dvkf_prefect.data.upkeep.verify import Verification, VerifyOptions
    from dvkf_prefect.data.verbs.checkout import Checkout
    from dvkf_prefect.data.verbs.data_status import DataStatus
    from dvkf_prefect.data.verbs.diff import Diff
    from dvkf_prefect.data.verbs.imports import Import, ImportOptions, ImportUrlOptions
    from dvkf_prefect.data.verbs.ls import Listed, Usage
    from dvkf_prefect.data.verbs.move import Move
    from dvkf_prefect.data.verbs.pull import Pull
    from dvkf_prefect.data.verbs.push_fetch import Plans
    from dvkf_prefect.data.verbs.remove import Removal
    from dvkf_prefect.data.verbs.status import Status
    from dvkf_prefect.formats.outputs import DataVersion
    from dvkf_prefect.pipeline.report.metrics import MetricChange
    from dvkf_prefect.pipeline.run.commit import Commit
    from dvkf_prefect.pipeline.run.events import OnError, ReproResult
    from dvkf_prefect.pipeline.step.runner import Runner


class Repo(Repository):
    """A DVC repository, opened for reading and writing.

    Args:
        root: Folder that holds `.dvc`.
        config: Settings that override those in the files.
        jobs: As for `open`.
        progress: As for `open`.

    Attributes:
        root: Root folder of the repository.
        dvc_dir: The `.dvc` folder.
        cache: Local object store.
        git: Git work tree that contains the repository, None without git.

    Raises:
        DiskFullError: Any verb that writes: the disk is full.
        LockedError: Any verb that writes: another process held the repository's lock for too long.
        ParseError: Any verb: a file of the workspace does not follow its format.
        RemoteError: Any verb that uses a remote: it cannot be used; `RemoteNotFoundError` if none has the name.

    Example:
        >>> repo = Repo.open("path/to/repository", jobs=8)
        >>> repo.add(["data/images"])
        >>> repo.push()
    """

    # -- workspace ---------------------------------------------------------------------------------------------------

    def add(self, targets: Sequence[str | os.PathLike[str]], *, no_commit: bool = False) -> list[DataVersion]:
        """Store files or directories in the cache, write a `.dvc` file beside each, and return the recorded versions.

        A path inside a tracked directory updates that directory; its other files may be absent from the workspace.

        Args:
            targets: Paths, relative to the root or absolute.
            no_commit: Record the content without storing it in the cache.

        Raises:
            OutputNotFoundError: A target is not on disk.
            OutputInGitError: Git tracks a target, or files in it.
            OutputOverlapError: A target contains another output, or lies inside a stage's output.
            MissingObjectError: A target lies in a directory whose manifest is not in the cache.
            OutputError: A target belongs to a stage, or contains something that cannot be tracked.
        """
        from dvkf_prefect.data.verbs.add import add

        return add(self, targets, no_commit=no_commit)

    def add_to_remote(
        self,
        source: str,
        *,
        out: str | os.PathLike[str] | None = None,
        remote: str | None = None,
        force: bool = False,
    ) -> DataVersion:
        """Upload data from a path or url to a remote and track it, without storing it locally.

        Args:
            source: Path, relative to the root or absolute, or a url; ``remote://name/path`` uses a remote's options.
            out: Path of the output, relative to the root or absolute; None for the source's name at the root.
            remote: Name of the remote; None for the default one.
            force: Track it even if the path ``out`` exists; that file stays until the next checkout.

        Raises:
            OutputNotFoundError: The source does not exist.
            OutputError: The path is taken, or cannot be tracked.
            TransferError: Some files could not be read; nothing was tracked.
        """
        from dvkf_prefect.data.verbs.add_from import add_to_remote

        return add_to_remote(self, source, out=out, remote=remote, force=force)

    def add_copy(
        self, source: str, *, out: str | os.PathLike[str] | None = None, force: bool = False
    ) -> DataVersion:
        """Copy data from a path or url into the workspace and track it; the arguments are those of `add_to_remote`."""
        from dvkf_prefect.data.verbs.add_from import add_copy

        return add_copy(self, source, out=out, force=force)

    def commit(self, targets: Sequence[str] = (), *, sources: bool = False) -> Commit:
        """Record and store the current workspace content of outputs, in `.dvc` files and dvc.lock; nothing is run.

        Args:
            targets: Limit to these, see `outputs`.
            sources: Record the current content of imports' sources too, as ``dvc commit -f``; the sources must exist.

        Raises:
            OutputNotFoundError: An output is not on disk, or the source of an import does not exist.
            StageError: A dependency or parameter of a changed stage is missing.
        """
        from dvkf_prefect.pipeline.run.commit import commit

        return commit(self, targets, sources=sources)

    def status(self, targets: Sequence[str] = ()) -> Status:
        """Compare the workspace with the recorded content."""
        from dvkf_prefect.data.verbs.status import status

        return status(self, targets)

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
    ) -> Checkout:
        """Restore the recorded content in the workspace from the cache.

        Without targets, it also removes outputs that are no longer tracked and unchanged since their checkout.

        Args:
            targets: Limit to these, see `outputs`; a path inside an output restores only that path.
            choice: Options that add to the selection: dependencies, folders, patterns.
            force: Overwrite and remove files whose content is stored nowhere else.
            allow_missing: Skip outputs that are missing from the cache.
            relink: Recreate unchanged files too, with the link type that is configured now.

        Raises:
            OutputChangedError: Files would be lost; nothing was changed.
            TransferError: Objects are missing from the cache or damaged; everything else was checked out.
        """
        from dvkf_prefect.data.verbs.checkout import checkout

        return checkout(self, targets, choice=choice, force=force, allow_missing=allow_missing, relink=relink)

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

        return remove(self, targets, outs=outs, force=force, dry_run=dry_run)

    def move(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Move:
        """Move or rename a tracked file or directory, together with its `.dvc` file; see `data.verbs.move.move`.

        Args:
            source: Current path, relative to the root or absolute.
            target: New path; an existing directory receives the source under its own name.
        """
        from dvkf_prefect.data.verbs.move import move

        return move(self, source, target)

    def unprotect(self, targets: Sequence[str | os.PathLike[str]]) -> list[str]:
        """Make files writable: replace links to the cache by copies; return the files that changed.

        Args:
            targets: Files or directories, relative to the root or absolute.
        """
        from dvkf_prefect.data.verbs.unprotect import unprotect

        return unprotect(self, targets)

    # -- remotes -----------------------------------------------------------------------------------------------------

    def push(
        self,
        targets: Sequence[str] = (),
        *,
        choice: Choice | None = None,
        remote: str | None = None,
        run_cache: bool = False,
        deep: bool = False,
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

        Raises:
            OutputNotFoundError: A target is not tracked.
            TransferError: Some objects failed; all others arrived.
        """
        from dvkf_prefect.data.verbs.push_fetch import push

        return push(self, targets, choice=choice, remote=remote, run_cache=run_cache, deep=deep)

    def fetch(
        self,
        targets: Sequence[str] = (),
        *,
        rev: str | None = None,
        choice: Choice | None = None,
        remote: str | None = None,
        run_cache: bool = False,
    ) -> Transfer:
        """Download the recorded content of outputs from a remote into the cache.

        Args:
            targets: As for `push`.
            rev: Git revision that records the outputs; None for the workspace.
            choice: Options that add to the selection or filter it: other commits, dependencies, sizes.
            remote: As for `push`.
            run_cache: Download the run cache too.
        """
        from dvkf_prefect.data.verbs.push_fetch import fetch

        return fetch(self, targets, rev=rev, choice=choice, remote=remote, run_cache=run_cache)

    def pull(
        self,
        targets: Sequence[str] = (),
        *,
        choice: Choice | None = None,
        remote: str | None = None,
        run_cache: bool = False,
        force: bool = False,
        allow_missing: bool = False,
    ) -> Pull:
        """Download outputs from a remote into the cache and check them out; see `fetch` and `checkout`.

        Raises:
            TransferError: Some objects are missing or damaged on the remote; all others arrived and were checked out.
            OutputChangedError: Files would be lost; the workspace was not changed.
        """
        from dvkf_prefect.data.verbs.pull import pull

        return pull(
            self,
            targets,
            choice=choice,
            remote=remote,
            run_cache=run_cache,
            force=force,
            allow_missing=allow_missing,
        )

    def plan_push(
        self,
        targets: Sequence[str] = (),
        *,
        choice: Choice | None = None,
        remote: str | None = None,
        run_cache: bool = False,
        deep: bool = False,
    ) -> Plans:
        """Return what `push` would upload, without changing anything; the arguments are those of `push`."""
        from dvkf_prefect.data.verbs.push_fetch import plan_push

        return plan_push(self, targets, choice=choice, remote=remote, run_cache=run_cache, deep=deep)

    def plan_fetch(
        self,
        targets: Sequence[str] = (),
        *,
        rev: str | None = None,
        choice: Choice | None = None,
        remote: str | None = None,
        run_cache: bool = False,
    ) -> Plans:
        """Return what `fetch` would download, without changing anything; the arguments are those of `fetch`."""
        from dvkf_prefect.data.verbs.push_fetch import plan_fetch

        return plan_fetch(self, targets, rev=rev, choice=choice, remote=remote, run_cache=run_cache)

    def cloud_status(
        self,
        targets: Sequence[str] = (),
        *,
        choice: Choice | None = None,
        remote: str | None = None,
        deep: bool = False,
    ) -> dict[str, str]:
        """Compare the cache with the remotes of the outputs; the arguments are those of `push`.

        Returns:
            State of each path that is not in both: ``new`` (only in the cache), ``deleted`` (only on the remote)
            or ``missing`` (in neither).

        Raises:
            OutputNotFoundError: A target is not tracked.
        """
        from dvkf_prefect.data.verbs.push_fetch import status

        return status(self, targets, choice=choice, remote=remote, deep=deep)

    # -- imports and downloads ---------------------------------------------------------------------------------------

    def import_(
        self,
        url: str,
        path: str,
        out: str | os.PathLike[str] | None = None,
        *,
        options: ImportOptions | None = None,
    ) -> Import:
        """Download data of another repository and track it with its source; see `data.verbs.imports.import_repo`.

        Args:
            url: The repository: a folder or a git url.
            path: Path to import: an output, a path inside one, or a file or folder that git tracks.
            out: Path of the output, relative to the root or absolute; None for the source's name at the root.
            options: Revision, remote, annotations and more.

        Example:
            >>> repo.import_("https://git.example.org/team/data.git", "images", options=ImportOptions(rev="v1.2"))
        """
        from dvkf_prefect.data.verbs.imports import import_repo

        return import_repo(self, url, path, out, options)

    def import_url(
        self,
        url: str,
        out: str | os.PathLike[str] | None = None,
        *,
        options: ImportUrlOptions | None = None,
    ) -> Import:
        """Download a file or a directory from a url and track it with its source; see `data.verbs.imports.import_url`.

        Args:
            url: Path or url; ``remote://name/path`` uses the options of a remote.
            out: Path of the output, relative to the root or absolute; None for the source's name at the root.
            options: Destination, versions, annotations and more.
        """
        from dvkf_prefect.data.verbs.imports import import_url

        return import_url(self, url, out, options)

    def update(
        self,
        targets: Sequence[str],
        *,
        rev: str | None = None,
        recursive: bool = False,
        no_download: bool = False,
        to_remote: bool = False,
        remote: str | None = None,
    ) -> list[Import]:
        """Update imports to the current content of their sources; see `data.verbs.imports.update`.

        Args:
            targets: `.dvc` files or paths of the imports, relative to the root; folders with ``recursive``.
            rev: Git revision to follow from now on.
            recursive: Include all imports below targets that are folders.
            no_download: Write the `.dvc` files only, and remove the old content from the workspace.
            to_remote: Upload the data to a remote instead of storing it locally.
            remote: Remote to upload to; None for the default one.
        """
        from dvkf_prefect.data.verbs.imports import update

        return update(
            self,
            targets,
            rev=rev,
            recursive=recursive,
            no_download=no_download,
            to_remote=to_remote,
            remote=remote,
        )

    def get(
        self,
        path: str,
        out: str | os.PathLike[str] | None = None,
        *,
        rev: str | None = None,
        force: bool = False,
    ) -> Path:
        """Copy a file or a directory of any revision to a place outside version control; return that place.

        Args:
            path: Path that DVC or git tracks, relative to the root.
            out: Destination; None for the source's name in the current folder.
            rev: Git revision; None for the workspace.
            force: Replace an existing file or directory.
        """
        from dvkf_prefect.data.verbs.get import get_own

        return get_own(self, path, out, rev=rev, force=force)

    # -- comparing and listing ---------------------------------------------------------------------------------------

    def diff(self, a: str = "HEAD", b: str | None = None, targets: Sequence[str] = ()) -> Diff:
        """Compare two versions of the data, file by file.

        Args:
            a: Older git revision.
            b: Newer git revision; None for the workspace.
            targets: Limit to these outputs.
        """
        from dvkf_prefect.data.verbs.diff import diff_versions

        return diff_versions(self, a, b, targets)

    def ls(
        self,
        path: str = "",
        *,
        recursive: bool = False,
        tracked_only: bool = False,
        depth: int | None = None,
    ) -> list[Listed]:
        """Return the content of a folder of the workspace, with tracked data that is not checked out.

        The arguments are those of `data.verbs.ls.list_files`.
        """
        from dvkf_prefect.data.verbs.ls import list_files

        return list_files(self, path, recursive=recursive, tracked_only=tracked_only, depth=depth)

    def du(self, path: str = "", *, summarize: bool = False, depth: int = 1) -> list[Usage]:
        """Return the sizes of a folder's entries; the arguments are those of `data.verbs.ls.disk_usage`."""
        from dvkf_prefect.data.verbs.ls import disk_usage

        return disk_usage(self, path, summarize=summarize, depth=depth)

    # -- stages ------------------------------------------------------------------------------------------------------

    def repro(
        self,
        targets: Sequence[str] = (),
        *,
        runner: Runner | None = None,
        force: bool = False,
        single_item: bool = False,
        on_error: OnError = "keep-going",
        jobs: int = 2,
    ) -> ReproResult:
        """Bring stages up to date; see `dvkf_prefect.repro`, which has more options.

        Args:
            targets: Stages, dvc.yaml files, folders with one, outputs or `.dvc` files. All stages if empty.
            runner: Runner that executes the stages; None for processes of this machine in the workspace.
            force: Run stages even if nothing changed.
            single_item: Leave out the upstream stages of the targets.
            on_error: Reaction to a failed stage: ``keep-going``, ``fail`` or ``ignore``.
            jobs: Number of stages that run at once.
        """
        from dvkf_prefect.pipeline.run.repro import repro
        from dvkf_prefect.pipeline.step.runner import LocalRunner

        with LocalRunner() if runner is None else nullcontext(runner) as used:
            return repro(
                self,
                targets,
                runner=used,
                force=force,
                single_item=single_item,
                on_error=on_error,
                jobs=jobs,
            )

    def metrics(self, rev: str | None = None) -> dict[str, dict[str, Any]]:
        """Return every metric: values by dotted name by file.

        Args:
            rev: Git revision; None for the workspace.
        """
        from dvkf_prefect.pipeline.report.metrics import show

        return show(self, rev)

    def diff_metrics(self, a: str = "HEAD", b: str | None = None) -> list[MetricChange]:
        """Compare the metrics of two versions; the arguments are those of `diff`."""
        from dvkf_prefect.pipeline.report.metrics import diff

        return diff(self, a, b)

    # -- upkeep ------------------------------------------------------------------------------------------------------

    def gc(self, scope: GcScope, options: GcOptions | None = None) -> GarbageCollection:
        """Remove unused objects from the cache and, on request, from a remote; see `data.upkeep.gc.collect_garbage`.

        Args:
            scope: Commits whose data is kept, beside the workspace's.
            options: Places to collect, other repositories, dry run and more.

        Example:
            >>> repo.gc(GcScope(all_branches=True), GcOptions(cloud=True, dry_run=True))
        """
        from dvkf_prefect.data.upkeep.gc import collect_garbage

        return collect_garbage(self, scope, options)

    def verify(self, targets: Sequence[str] = (), options: VerifyOptions | None = None) -> Verification:
        """Hash the objects of the cache, or the outputs' objects on a remote; see `data.upkeep.verify.verify`.

        Args:
            targets: Limit to the objects of these, see `outputs`.
            options: Place to verify, commits to include, and repair.
        """
        from dvkf_prefect.data.upkeep.verify import verify

        return verify(self, targets, options)

    def migrate_cache(self, *, dvc_files: bool = False, dry_run: bool = False) -> Migration:
        """Convert the cache's DVC 2.x objects to the current layout, named by the md5 of their bytes.

        The old objects stay, because other commits name them; where possible both are hard links to one file.

        Args:
            dvc_files: Record the new digests in `.dvc` files and dvc.lock files too.
            dry_run: Return what would be done without doing it.
        """
        from dvkf_prefect.data.upkeep.migrate import migrate

        return migrate(self, dvc_files=dvc_files, dry_run=dry_run)

    def doctor(self, *, remote: bool = True) -> list[Check]:
        """Run the health checks of the repository, without changing anything."""
        from dvkf_prefect.data.upkeep.doctor import check_health

        return check_health(self, remote=remote)
