"""Flow that looks after a repository: `maintain` verifies its data, and removes what nothing names."""

from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.states import Completed, Failed

from dvkf_prefect import (
    DvcRepository,
    DvkfError,
    KServeModelServer,
    collect_data,
    collect_models,
    find_block,
    verify_data,
)


@flow(name="maintain")
def maintain(
    repository: DvcRepository | str = "local",
    sample: float = 0.1,
    cloud: bool = True,
    collect: bool = True,
    dry_run: bool = True,
    grace_hours: float = 48.0,
    projects: Sequence[str] = (),
    models_url: str | None = None,
    servers: Sequence[KServeModelServer | str] = (),
    all_namespaces: bool = False,
) -> Any:
    """Verify data in the cache and on the remote, and remove objects and published models that nothing names.

    Data of the workspace, of all branches and of all tags is kept, and with it every registered model. Published
    models are kept that a tag, a stage, a service or a revision names. Nothing is removed if an object is damaged,
    since an unused object may be its last good copy.

    Args:
        repository: DVC Repository block, or its name.
        sample: Share of the files to read and hash, above 0 and up to 1, chosen at random in each run.
        cloud: Verify and collect the remote too.
        collect: Also look for unused objects and published models.
        dry_run: Report unused objects and published models without removing them.
        grace_hours: Hours to keep objects and published models after they were added, or withdrawn.
        projects: Folders of other repositories that share the cache or the remote.
        models_url: Place of published models; that of the block if empty, none if the block has none.
        servers: KServe Model Server blocks that serve published models, or their names.
        all_namespaces: Ask these clusters for the services of all namespaces.

    Returns:
        Numbers of verified, damaged, unused and removed objects and published models. The state is Failed if an
        object is damaged, and Undecided if the services that may use published models are not known.
    """
    data = find_block(DvcRepository, repository, "repository")
    with data.turn():
        verified = [verify_data(data, sample=sample)]
        if cloud:
            verified.append(verify_data(data, cloud=True, sample=sample, all_branches=True, all_tags=True))
        damaged = [problem for found in verified for problem in found.problems if not problem.repaired]
        summary: dict[str, Any] = {
            "verified": sum(found.objects for found in verified),
            "damaged": len(damaged),
            "dry_run": dry_run or bool(damaged),
        }
        doubt = ""
        if collect:
            garbage = collect_data(
                data, cloud=cloud, projects=projects, grace=grace_hours, dry_run=summary["dry_run"]
            )
            summary["unused_objects"], summary["unused_bytes"] = garbage.objects, garbage.size
            if models_url or data.models_url:
                models = collect_models(
                    data,
                    place=models_url,
                    servers=servers,
                    all_namespaces=all_namespaces,
                    grace=grace_hours,
                    dry_run=summary["dry_run"],
                )
                summary["unused_models"], doubt = len(models.unused), models.doubt
    if damaged:
        objects = "1 object" if len(damaged) == 1 else f"{len(damaged)} objects"
        said = f"{objects} damaged or missing, so nothing was removed: {damaged[0]}"
        return Failed(message=said, data=DvkfError(said))
    if doubt:
        return Completed(name="Undecided", message=f"all published models are kept: {doubt}", data=summary)
    return summary
