"""Flow that brings new files into a dataset: `ingest` checks them by a schema, and puts failures in quarantine."""

from typing import Any, Literal

from prefect import flow
from prefect.states import Completed

from dvkf_prefect import (
    DvcRepository,
    add_incoming,
    announce_data,
    check_commit,
    check_incoming,
    clear_incoming,
    commit_results,
    find_block,
    push_commits,
    push_data,
)


@flow(name="ingest")
def ingest(
    repository: DvcRepository | str = "local",
    inbox: str = "incoming",
    dataset: str = "data/incoming",
    table_schema: str = "schemas/incoming.yaml",
    quarantine: str | None = None,
    existing: Literal["quarantine", "replace"] = "quarantine",
    reports: str = "quality-reports",
    settle_seconds: float = 10.0,
    commit: bool = True,
    push: bool = True,
    message: str | None = None,
    dry_run: bool = False,
) -> Any:
    """Check new files by a schema of pandera, and bring those that pass into a dataset.

    The files are added, pushed and committed; then the event dvkf.dataset.pushed starts what waits for them, and they
    leave the inbox. Files that fail are moved into quarantine with a report, and never reach the dataset. A killed run
    is continued by the next one. Equal bytes are checked once under a schema.

    Args:
        repository: DVC Repository block, or its name.
        inbox: Folder with the new files, or a url such as s3://bucket/incoming or remote://store/incoming. A relative
            path starts at the repository's root.
        dataset: Directory of the dataset, relative to the root. It may be new.
        table_schema: Schema of the files as FILE.yaml or FILE.json, or as FILE.py:NAME for a DataFrameModel or
            DataFrameSchema. Paths are relative to the root.
        quarantine: Folder or url for the files that fail; by default one beside the inbox, whose name ends in
            -quarantine.
        existing: Handling of a file whose path in the dataset has other content. quarantine refuses it, replace makes
            a new version.
        reports: Directory of the reports, relative to the root. It is tracked beside the dataset.
        settle_seconds: Seconds since the last change of a file, before which it is left for a later run.
        commit: Commit the dataset and the reports to git, with the ID of this run.
        push: Push data to the remote, and the commit to git's origin if there is one.
        message: Message of the commit; by default the number of files.
        dry_run: Check only. Nothing is moved, added or pushed.

    Returns:
        The files by verdict, and the commit. The state is Quarantined if files were refused.
    """
    data = find_block(DvcRepository, repository, "repository")
    with data.turn():
        if commit and not dry_run:
            check_commit(data)
        found = check_incoming(
            data,
            inbox,
            dataset,
            table_schema,
            reports=reports,
            quarantine=quarantine,
            existing=existing,
            settle_seconds=settle_seconds,
            dry_run=dry_run,
        )
        summary: dict[str, Any] = {
            "passed": [file.path for file in found.files if file.verdict == "passed"],
            "known": [file.path for file in found.files if file.verdict == "known"],
            "refused": {file.path: file.place for file in found.refused},
            "waiting": list(found.waiting),
            "skipped": list(found.skipped),
            "commit": None,
            "dry_run": dry_run,
        }
        if not dry_run:
            outputs = [version.path for version in add_incoming(data, found)]
            if outputs:
                if push:
                    push_data(data, outputs, announce=False)
                if commit:
                    summary["commit"] = commit_results(data, message or found.message, targets=outputs)
                if push:
                    push_commits(data)
                    announce_data(data, outputs)
                clear_incoming(data, found)
    if found.refused:
        first = found.refused[0]
        verb = "would be moved" if dry_run else "were moved"
        said = f"{len(found.refused)} of {len(found.files)} files {verb} to {found.quarantine}: {first}"
        return Completed(name="Quarantined", message=said, data=summary)
    return summary
