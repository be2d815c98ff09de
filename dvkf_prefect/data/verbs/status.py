"""Find outputs whose workspace content differs from the recorded content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dvkf_prefect.data.workspace.workspace import Found
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import is_tree

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Change:
    """One output that differs from its record.

    Attributes:
        path: Path of the output, relative to the root.
        source: File that describes the output.
        stage: Stage that writes the output, None without one.
        state: ``deleted``, ``modified`` or ``not in cache``, in DVC's words.
    """

    path: str
    source: str
    stage: str | None
    state: str


@dataclass(frozen=True, slots=True)
class Status:
    """Changed outputs; falsy if there are none.

    Attributes:
        changes: One entry for each changed output.
        outputs: Number of outputs compared.
        imports: The imports among them; their sources may have changed too.
        edited: `.dvc` files whose md5 field does not match their content.
        always: `.dvc` files marked as always changed.
    """

    changes: tuple[Change, ...]
    outputs: int
    imports: tuple[Output, ...] = ()
    edited: tuple[str, ...] = ()
    always: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes)


def status(
    repo: Repository, targets: Sequence[str] = (), *, look: Callable[[str, str], Found] | None = None
) -> Status:
    """Implement `Repo.status`.

    Args:
        repo: The repository.
        targets: Limit to these.
        look: Returns the state of a path by the name of the hash; None to look at each path now.
    """

    def look_now(path: str, hash_name: str) -> Found:
        return repo.workspace.look(path, hash_name=hash_name, lenient=True)

    tracked = repo.outputs(targets, overlap="any")
    changes = [
        Change(output.path, output.source, output.stage, state)
        for output in tracked
        if (state := _state(repo, output, (look or look_now)(output.path, output.hash_name))) is not None
    ]
    return Status(
        tuple(changes),
        len(tracked),
        tuple(output for output in tracked if output.origin),
        tuple(dict.fromkeys(output.source for output in tracked if output.edited)),
        tuple(dict.fromkeys(output.source for output in tracked if output.always_changed)),
    )


def _state(repo: Repository, output: Output, found: Found) -> str | None:
    if output.digest and output.cached and not _in_cache(repo, output, found):
        return "not in cache"
    if found.digest is None:
        return "deleted"
    return None if found.digest == output.digest else "modified"


def _in_cache(repo: Repository, output: Output, found: Found) -> bool:
    """Return True if all of an output's content is in the cache.

    If the workspace has the same content, its file digests are used instead of reading the manifest.
    """
    if output.digest is None or not repo.cache.exists(output.digest, output.hash_name):
        return False
    if not is_tree(output.digest):
        return True
    if found.rows is not None and found.digest == output.digest:
        digests = found.rows.digests
    else:
        digests = repo.cache.read_tree(output.digest, output.hash_name).digests
    return not repo.cache.missing(digests, output.hash_name)
