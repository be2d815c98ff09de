"""One open repository, and what can be done with its data."""

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
    """What a pull brought and changed."""

    transfer: Transfer
    checkout: Checkout


class Repo(RepoImports):
    """A DVC repository, opened for reading and writing.

    Args:
        root: The folder that holds `.dvc`.
        config: Settings over the files', see `Repo.open`.

    Attributes:
        root: The repository's root.
        dvc_dir: Its `.dvc` folder.
        config: Its settings.
        cache: Its cache.
        git: The git work tree it lies in, None without one.

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
        """Return the outputs, and parts of them, that a person means; see `data.targets`.

        Args:
            targets: As of `outputs`, and paths inside outputs.
            choice: What else is meant, or what not.
            rev: A git revision; None for the workspace.
            overlap: As of `outputs`.

        Raises:
            OutputNotFoundError: A target is not tracked.
            ParseError: A file does not say what its format allows.
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
        """Track files or directories: into the cache, and a `.dvc` file beside each.

        A path inside a tracked directory is added to that directory, the rest of which need not be there.

        Args:
            targets: Paths, relative to the root or absolute.
            no_commit: Only record the content; do not store it.
            progress: Told of files and bytes.

        Returns:
            The version recorded for each target, in their order.

        Raises:
            OutputNotFoundError: A target is not on disk.
            OutputInGitError: Git tracks it, or files in it.
            OutputOverlapError: It holds another output, or lies in one of a stage.
            MissingObjectError: It lies in a directory whose manifest is not in the cache.
            OutputError: It belongs to a stage, or holds something that cannot be tracked.
            DiskFullError: There is no room.
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
        """Bring data from elsewhere to a remote and track it, without keeping it here.

        Args:
            source: A path, relative to the root or absolute, or a url; ``remote://name/path`` has a remote's options.
            out: Where it is to be, relative to the root or absolute; None for its own name at the root.
            remote: The remote's name; None for the default one.
            jobs: How many transfers at once.
            force: Track it also where a place named by ``out`` is taken; what is there stays until a checkout.
            progress: Told of files and bytes.

        Raises:
            OutputNotFoundError: Nothing is at the source.
            OutputError: The place is taken, or may not be tracked.
            TransferError: Some files could not be had; nothing was tracked.
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
        """Copy data from elsewhere into the workspace and track it; the source stays.

        Args:
            source: As of `add_to_remote`.
            out: As of `add_to_remote`.
            jobs: How many transfers at once.
            force: Overwrite what is there.
            progress: Told of files and bytes.

        Raises:
            OutputNotFoundError: Nothing is at the source.
            OutputError: The place is taken, or may not be tracked.
            TransferError: Some files could not be had; nothing was tracked.
            DiskFullError: There is no room.
        """
        from dvkf_prefect.data.verbs.add_from import add_copy, name_of

        with self.lock(write=[os.fspath(out or name_of(source))]):
            return add_copy(self, source, out=out, jobs=jobs, force=force, progress=progress)

    def commit(
        self, targets: Sequence[str] = (), *, sources: bool = False, progress: Progress | None = None
    ) -> list[DataVersion]:
        """Record and store the outputs of `.dvc` files as they are in the workspace now.

        Args:
            targets: Only these, see `outputs`.
            sources: Record what imports come from as it is now, too, as ``dvc commit -f``; they must be there.
            progress: Told of files and bytes.

        Returns:
            The versions of those that changed.

        Raises:
            OutputNotFoundError: An output is not on disk, or what an import comes from does not exist.
            DiskFullError: There is no room.
        """
        with self.lock(write=lambda: written_paths(self, targets)):
            return adding.commit(self, targets, sources=sources, progress=progress)

    def status(self, targets: Sequence[str] = ()) -> Status:
        """Compare the workspace with what is recorded.

        Args:
            targets: Only these, see `outputs`.
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
        """Compare the last commit, the `.dvc` files, the workspace, the cache and, when asked to, the remote.

        Args:
            targets: Only these paths, and what lies in them; also those that `outputs` takes.
            granular: File by file, inside directories too.
            untracked: List the files that nobody tracks.
            not_in_remote: List what is not on its remote.
            remote: The remote to ask; None for the default one. An output that names one is looked for there.
            remote_refresh: False to go by what was found on the remote the last time.

        Raises:
            RemoteNotFoundError: There is no remote of that name.
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
        """Make the workspace hold what is recorded, from the cache.

        Without targets, outputs that are tracked no longer are removed too, if they are as they were checked out.

        Args:
            targets: Only these, see `outputs`, and paths inside outputs, of which nothing else is touched.
            choice: What else is meant: dependencies, folders, patterns.
            force: Overwrite and remove files whose content is nowhere else.
            allow_missing: Pass over outputs that the cache does not hold.
            relink: Make the files that are as recorded anew too, by the link type that is configured now.
            progress: Told of files and bytes.

        Raises:
            OutputChangedError: Files would be lost; nothing was touched.
            TransferError: Objects are missing from the cache or damaged; everything else was put in place.
            DiskFullError: There is no room.
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
        """Stop tracking data, or take stages out of a dvc.yaml. The data stays, as files that can be written to.

        Args:
            targets: `.dvc` files, dvc.yaml files, stages of the dvc.yaml at the root, or ``dvc.yaml:name``.
            outs: Remove the data from the workspace too; what the cache holds stays there.
            force: With ``outs``, remove files whose content is nowhere else.
            dry_run: Only say what would be removed.

        Raises:
            OutputNotFoundError: A target is none of them; nothing was touched.
            OutputError: A stage is one of those that a `foreach` or a `matrix` makes; nothing was touched.
            OutputChangedError: Files would be lost; nothing was touched.
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
        """Give a tracked file or directory another place or name, and its `.dvc` file with it.

        Args:
            source: Where it is, relative to the root or absolute.
            target: Where it shall be; into it, if it is a directory.
            progress: Told of files and bytes.

        Raises:
            OutputNotFoundError: It is not tracked.
            OutputError: A stage writes it, or the other place is taken.
            OutputOverlapError: The other place lies in another output.
        """
        from dvkf_prefect.data.verbs.move import move

        paths = [self.relpath(source), self.relpath(target)]
        with self.lock(write=paths):
            return move(self, *paths, progress=progress)

    def unprotect(
        self, targets: Sequence[str | os.PathLike[str]], *, progress: Progress | None = None
    ) -> list[str]:
        """Make files safe to write to: links to the cache become copies.

        Args:
            targets: Files or directories, relative to the root or absolute.
            progress: Told of files and bytes.

        Returns:
            The files that changed.

        Raises:
            OutputNotFoundError: A target is not on disk; nothing was touched.
            MissingObjectError: A link leads to an object that the cache does not hold.
            DiskFullError: There is no room; all files are whole.
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
        """Bring the recorded content of outputs to a remote.

        A manifest that is on the remote vouches for its files, as it does for DVC.

        Args:
            targets: Only these, see `outputs`, and paths inside outputs.
            choice: What else is meant, or what not: other commits, dependencies, patterns.
            remote: The remote's name; None for the default one, or the one an output names. Outputs that name another
                are left out.
            run_cache: The run cache too, with what of its outputs the cache holds.
            deep: Look at the files behind manifests that are on the remote too, and send those that are not.
            jobs: How many transfers at once.
            progress: Told of files and bytes.

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
        """Bring the recorded content of outputs from a remote into the cache.

        Args:
            targets: Only these, see `outputs`, and paths inside outputs.
            rev: As a git revision records them; None for the workspace.
            choice: What else is meant, or what not: other commits, dependencies, sizes.
            remote: The remote's name; None for the default one, or the one an output names. Outputs that name another
                are left out.
            run_cache: The run cache too.
            jobs: How many transfers at once.
            progress: Told of files and bytes.

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
        """Bring outputs from a remote into the cache and the workspace; see `fetch` and `checkout`.

        Raises:
            TransferError: Some objects are missing or damaged on the remote; all others arrived and were checked out.
            OutputChangedError: Files would be lost; the workspace was not touched.
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
            # What arrived is put in place before that is told.
            failure = error
        changes = self.checkout(
            targets,
            choice=choice,
            force=force,
            allow_missing=allow_missing or failure is not None,
            progress=progress,
        )
        if (self.tmp_dir / "imports.json").exists():
            # Imports whose content no `.dvc` file records, fetched just now or before.
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
        """Work out what `push` or `fetch` would move, and change nothing.

        Args:
            direction: ``push`` or ``fetch``.
            targets: As theirs.
            rev: As theirs.
            choice: As theirs.
            remote: As theirs.
            run_cache: As theirs.
            deep: As of `push`.
            jobs: How many requests at once.

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
        """Compare the cache with the remotes that outputs go to.

        Args:
            targets: As of `push`.
            choice: As of `push`.
            remote: As of `push`.
            deep: Look at the files behind manifests that are on the remote too.
            jobs: How many requests at once.

        Returns:
            For each path that is not on both: ``new`` (only in the cache), ``deleted`` (only on the remote) or
            ``missing`` (on neither).

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
        """Remove objects that nothing uses from the cache and, when asked to, from a remote; see `data.gc`.

        Args:
            scope: Which commits' data is kept, beside the workspace's.
            cloud: Remove from the remote too.
            remote: Its name; None for the default one and those that outputs name.
            projects: Other repositories whose data is kept too, by the same scope; any folder in each.
            jobs: How many requests at once.
            dry_run: Only say what would be removed.
            not_in_remote: Of what is used keep only what is not on the remote.
            skip_failed: Do not keep what cannot be known, instead of refusing.
            run_cache: Keep what the run cache names, too.
            grace: Keep what came or changed so recently, seconds. None for an hour on a remote and in a cache that
                others may use, and for none in a cache of our own.
            assume_unshared: Nobody else uses the cache or the remote, whatever is found there.

        Raises:
            ConfigError: The scope says nothing, or options contradict each other.
            MissingObjectError: A manifest in use cannot be had, so its files are not known; nothing was removed.
            ObjectError: Other repositories use the cache, or may; nothing was removed.
            ParseError: A file that tracks data cannot be read; nothing was removed.
            RemoteError: The remote cannot be used, or somebody else uses it; nothing was removed.
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
        """Bring the objects of DVC 2.x to the cache's present layout, under the md5 of their bytes.

        The old ones stay, as hard links where the disk has them: other commits name them.

        Args:
            dvc_files: Record the new digests in `.dvc` files and dvc.lock files too.
            dry_run: Only say what would be done.
            progress: Told of files and bytes.

        Raises:
            ParseError: A file that describes outputs does not parse.
            DiskFullError: There is no room.
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
        """Hash again what the cache holds, or what a remote holds of the outputs.

        Without targets and commits it is the whole cache. With ``cloud`` every object of the outputs is read from the
        remote, the files behind a manifest that is there too.

        Args:
            targets: Only the objects of these, see `outputs`.
            cloud: Look at the remote instead of the cache.
            remote: Its name; None for the default one, or the one an output names.
            repair: Put good copies in the places of bad ones: into the cache from the workspace or the remote, and onto
                the remote from the cache or the workspace. What was damaged in the cache is kept aside.
            all_branches: The objects of the tips of all branches too.
            all_tags: Of all tags.
            all_commits: Of all commits.
            jobs: How many objects at once.
            progress: Told of files and bytes.

        Raises:
            OutputNotFoundError: A target is tracked nowhere.
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
            a: The older git revision.
            b: The newer one; None for the workspace as it is.
            targets: Only these outputs.

        Raises:
            GitError: There is no such revision.
            OutputNotFoundError: A target is in neither version.
        """
        from dvkf_prefect.data.verbs.diff import diff_versions

        return diff_versions(self, a, b, targets)
