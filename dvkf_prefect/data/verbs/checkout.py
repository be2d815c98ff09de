"""Restore the recorded content of outputs in the workspace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.progress import NO_WORK, Work, counting
from dvkf_prefect.data.repository.selection import Choice, select, written_paths
from dvkf_prefect.data.workspace.workspace import Found
from dvkf_prefect.errors import (
    MissingObjectError,
    ObjectError,
    OutputChangedError,
    OutputError,
    OutputNotFoundError,
    TransferError,
)
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import Tree

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


_KEPT_OFF = "not in the cache, and never pushed (push: false). Create it again, such as with `dvkf repro`."


@dataclass(frozen=True, slots=True)
class Checkout:
    """Output paths that a checkout changed; a directory ends with a slash."""

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.deleted)


def checkout(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    choice: Choice | None = None,
    force: bool = False,
    allow_missing: bool = False,
    relink: bool = False,
) -> Checkout:
    """Implement `Repo.checkout`."""
    with repo.lock(write=lambda: written_paths(repo, targets, choice)):
        return _check_out(repo, targets, choice, force, allow_missing, relink)


def _check_out(
    repo: Repository,
    targets: Sequence[str],
    choice: Choice | None,
    force: bool,
    allow_missing: bool,
    relink: bool,
) -> Checkout:
    # A checkout only concerns the workspace's revision.
    choice = choice and replace(choice, all_branches=False, all_tags=False, all_commits=False)
    selection = select(repo, targets, choice)
    whole = [o for o in selection.outputs if o.cached and o.digest and o.path not in selection.parts]
    failures: dict[str, str] = {}
    with ExitStack() as borrowed:
        tracked = list(whole)
        for output in selection.outputs:
            if output.path in selection.parts and output.cached and output.digest:
                try:
                    tracked += _parts(repo, output, selection.parts[output.path], borrowed)
                except MissingObjectError as error:
                    failures[f"{output.path}/"] = str(error)
        repo.workspace.sweep(output.path for output in tracked)
        work = [(o, repo.workspace.look(o.path, hash_name=o.hash_name)) for o in tracked]
        repo.workspace.sweep()
        inside = {id(o) for o in tracked[len(whole) :]}
        # Manifests do not record the executable bit, so files inside an output keep theirs.
        work = [(_with_mode(o, f) if id(o) in inside else o, f) for o, f in work]
        kept = [(o, f) for o, f in work if f.digest == o.digest and f.isexec == o.isexec]
        work = [(o, f) for o, f in work if f.digest != o.digest or f.isexec != o.isexec]
        gone = {} if targets else _no_longer_tracked(repo)
        if not force:
            lost = [path for output, found in work for path in repo.workspace.lost_by(output, found)]
            if lost:
                raise OutputChangedError(lost)
        added: list[str] = []
        modified: list[str] = []
        with _counting(repo, [output for output, _ in work]) as progress:
            for output, found in work:
                name = output.path + ("/" if output.is_dir else "")
                try:
                    repo.workspace.put(output, found, work=progress)
                except TransferError as error:
                    failures.update(error.failures)
                    if not output.pushed:
                        failures.update(dict.fromkeys(error.failures, _KEPT_OFF))
                except MissingObjectError as error:
                    failures[name] = str(error) if output.pushed else _KEPT_OFF
                else:
                    (added if found.digest is None else modified).append(name)
        for path, found in gone.items():
            repo.workspace.remove(path, found)
        for output, found in kept if relink else ():
            try:
                repo.workspace.relink(output, found)
            except ObjectError as error:
                failures[output.path] = str(error)
    _remember(repo, whole, set(gone))
    if failures and not allow_missing:
        raise TransferError(f"the cache ({repo.cache.root})", failures)
    deleted = (path + ("/" if found.nfiles is not None else "") for path, found in gone.items())
    return Checkout(tuple(added), tuple(modified), tuple(sorted(deleted)))


@contextmanager
def _counting(repo: Repository, outputs: Sequence[Output]) -> Iterator[Work]:
    """Count the files and bytes of outputs that are checked out, from their records."""
    if not outputs:
        yield NO_WORK
        return
    label = f"checkout {outputs[0].path}" if len(outputs) == 1 else f"checkout {len(outputs):,} outputs"
    with counting(repo.progress, label) as work:
        work.more(sum(o.nfiles or 1 for o in outputs), sum(o.size or 0 for o in outputs))
        yield work


def _with_mode(output: Output, found: Found) -> Output:
    """Return the output, executable if the file in the workspace is."""
    content = output.content
    return replace(output, content=replace(content, isexec=found.isexec)) if content else output


def _parts(repo: Repository, output: Output, inside: Sequence[str], borrowed: ExitStack) -> list[Output]:
    """Return files and folders of a directory as separate outputs.

    Args:
        repo: The repository.
        output: The directory.
        inside: Selected files and folders, relative to the directory.
        borrowed: Stack that removes the temporary manifests of folders when it closes.

    Raises:
        MissingObjectError: The directory's manifest is not in the cache.
        OutputNotFoundError: The directory has no such file or folder.
    """
    tree = repo.cache.read_tree(output.digest or "", output.hash_name)
    parts: list[Output] = []
    for part in inside:
        chosen = tree.subtree(part)
        if not chosen:
            raise OutputNotFoundError(f"'{output.path}/{part}': not recorded in '{output.path}'")
        path = f"{output.path}/{part}"
        if chosen.relpaths == [""]:
            digest = chosen.digests[0]
        else:
            digest = borrowed.enter_context(_lent(repo.cache, chosen, output.hash_name))
        parts.append(replace(output, path=path, content=Content(digest, hash_name=output.hash_name)))
    return parts


@contextmanager
def _lent(cache: Cache, tree: Tree, hash_name: str) -> Iterator[str]:
    """Keep a manifest in the cache for the length of a ``with`` block; one that was there before stays."""
    digest = tree.digest
    if cache.exists(digest, hash_name):
        yield digest
        return
    cache.add_tree(tree, hash_name)
    try:
        yield digest
    finally:
        cache.path(digest, hash_name).unlink(missing_ok=True)


def _record_file(repo: Repository) -> Path:
    return repo.tmp_dir / "checked-out.json"


def _checked_out(repo: Repository) -> dict[str, str]:
    try:
        known = json.loads(read_description(_record_file(repo)))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _no_longer_tracked(repo: Repository) -> dict[str, Found]:
    """Return earlier checkouts that neither DVC nor git tracks now and that are unchanged since."""
    paths = {output.path for output in repo.outputs()}
    gone: dict[str, Found] = {}
    for path, digest in _checked_out(repo).items():
        if path in paths or any(p.startswith(path + "/") or path.startswith(p + "/") for p in paths):
            continue
        if repo.git and repo.git.tracked([repo.git_prefix + path]):
            continue
        try:
            found = repo.workspace.look(path)
        except OutputError:
            continue  # replaced by something that this program did not write: keep it
        if found.digest == digest:
            gone[path] = found
    return gone


def _remember(repo: Repository, tracked: Sequence[Output], gone: set[str]) -> None:
    before = _checked_out(repo)
    after = {path: digest for path, digest in before.items() if path not in gone}
    after.update({output.path: output.digest for output in tracked if output.digest})
    if after != before:
        repo.tmp_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(_record_file(repo), json.dumps(after, sort_keys=True).encode(), durable=False)
