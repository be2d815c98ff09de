"""Tasks that maintain caches and remotes."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from dvkf_prefect.blocks import DvcRepository, find_block
from dvkf_prefect.cards import garbage_card, verification_card
from dvkf_prefect.data.upkeep.gc import GarbageCollection, GcOptions, GcScope
from dvkf_prefect.data.upkeep.verify import Verification, VerifyOptions
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import listed, run_name
from dvkf_prefect.tasks._progress import ArtifactProgress


@task(task_run_name=run_name("verify {repository.name}"), cache_policy=NO_CACHE)
def verify_data(
    repository: DvcRepository | str,
    targets: str | Sequence[str] = (),
    *,
    cloud: bool = False,
    remote: str | None = None,
    sample: float = 1.0,
    repair: bool = False,
    all_branches: bool = False,
    all_tags: bool = False,
) -> Verification:
    """Hash the objects of the cache, or those of the outputs on the remote.

    Args:
        repository: The repository.
        targets: Outputs, `.dvc` files or stages; everything if empty.
        cloud: Verify the remote in place of the cache.
        remote: Name of the remote; the output's own or the default one if None.
        sample: Share of the files to read, above 0 and up to 1, chosen at random. All manifests are read.
        repair: Replace damaged objects by good copies. Needs a ``sample`` of 1.
        all_branches: Include the objects of the tips of all branches.
        all_tags: Include the objects of all tags.

    Returns:
        The verification, false if an object is damaged or missing and was not repaired.

    Raises:
        ConfigError: The sample is out of range, or goes together with ``repair``.
        OutputNotFoundError: A target is not tracked.
        RemoteError: The remote cannot be used.

    Example:
        ``verify_data(DvcRepository.load("local"), cloud=True, sample=0.05).problems``
    """
    repository = find_block(DvcRepository, repository, "repository")
    repo = repository.open().using(progress=ArtifactProgress(repository.name))
    found = repo.verify(
        listed(targets),
        VerifyOptions(
            cloud=cloud,
            remote=remote,
            sample=sample,
            repair=repair,
            all_branches=all_branches,
            all_tags=all_tags,
        ),
    )
    logger = run_logger()
    for problem in found.problems[:20]:
        logger.log(
            20 if problem.repaired else 40, "%s%s", "repaired, was " if problem.repaired else "", problem
        )
    logger.info("%d objects verified, %d damaged or missing", found.objects, len(found.problems))
    place = (remote or "remote") if cloud else "cache"
    publish(verification_card(found, place, repository.name, limit=DvkfSettings().card_rows))
    return found


@task(task_run_name=run_name("collect {repository.name}"), cache_policy=NO_CACHE)
def collect_data(
    repository: DvcRepository | str,
    *,
    cloud: bool = False,
    remote: str | None = None,
    all_branches: bool = True,
    all_tags: bool = True,
    all_commits: bool = False,
    run_cache: bool = True,
    projects: Sequence[str] = (),
    grace: float | None = None,
    assume_unshared: bool = False,
    dry_run: bool = True,
) -> GarbageCollection:
    """Remove unused objects from the cache and, by choice, from a remote.

    Kept are the data of the workspace, of branches and of tags, which include all registered models. If anything in
    use is unknown, nothing is removed.

    Args:
        repository: The repository.
        cloud: Remove from the remote too.
        remote: Name of the remote; the default one and those that outputs name if None.
        all_branches: Keep the data of the tips of all branches.
        all_tags: Keep the data of all tags.
        all_commits: Keep the data of all commits.
        run_cache: Keep the objects that the run cache names.
        projects: Folders of other repositories that share the cache or the remote; their data is kept too.
        grace: Hours to keep objects after they were added; one hour in shared places if None.
        assume_unshared: Assume that no other repository uses the cache or the remote, despite any marks in it.
        dry_run: Only report what would be removed.

    Returns:
        The collection: removed and kept objects of each place.

    Raises:
        ConfigError: Another repository uses the cache or the remote.
        MissingObjectError: A manifest in use is nowhere, so its files are unknown.
        RemoteError: The remote cannot be used.

    Example:
        ``collect_data(DvcRepository.load("local"), cloud=True).size``
    """
    repository = find_block(DvcRepository, repository, "repository")
    repo = repository.open().using(progress=ArtifactProgress(repository.name))
    found = repo.gc(
        GcScope(workspace=True, all_branches=all_branches, all_tags=all_tags, all_commits=all_commits),
        GcOptions(
            cloud=cloud,
            remote=remote,
            projects=projects,
            dry_run=dry_run,
            run_cache=run_cache,
            grace=None if grace is None else grace * 3600,
            assume_unshared=assume_unshared,
        ),
    )
    verb = "unused" if dry_run else "removed"
    run_logger().info("%d objects %s, %d kept, %d too young", found.objects, verb, found.kept, found.young)
    publish(garbage_card(found, repository.name, limit=DvkfSettings().card_rows))
    return found
