"""Download recorded data and check it out (`dvkf pull`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dvkf_prefect.data.repository.selection import Choice, select, written_paths
from dvkf_prefect.data.verbs.checkout import Checkout, checkout
from dvkf_prefect.data.verbs.push_fetch import fetch_selection
from dvkf_prefect.errors import TransferError

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.data.transfer.transfer import Transfer


@dataclass(frozen=True, slots=True)
class Pull:
    """Result of a pull: the objects downloaded and the changes to the workspace."""

    transfer: Transfer
    checkout: Checkout


def pull(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    choice: Choice | None = None,
    remote: str | None = None,
    run_cache: bool = False,
    force: bool = False,
    allow_missing: bool = False,
) -> Pull:
    """Implement `Repo.pull`."""
    failure: TransferError | None = None
    try:
        fetched = fetch_selection(
            repo,
            select(repo, targets, choice),
            remote=remote,
            run_cache=run_cache,
            allow_missing=allow_missing,
        )
    except TransferError as error:
        # Check out the objects that arrived before raising the error.
        failure = error
    changes = checkout(
        repo, targets, choice=choice, force=force, allow_missing=allow_missing or failure is not None
    )
    if (repo.tmp_dir / "imports.json").exists():
        # Fetched imports whose content no `.dvc` file records yet.
        from dvkf_prefect.data.imports.pending import place_imports

        with repo.lock(write=lambda: written_paths(repo, targets, choice)):
            placed = place_imports(repo, select(repo, targets, choice).outputs, force=force)
        changes = replace(changes, added=(*changes.added, *placed))
    if failure is not None:
        raise failure
    return Pull(fetched, changes)
