"""Search of the lineage of registered versions, from a version or from data."""

from __future__ import annotations

from contextlib import suppress

from dvkf_prefect.data.transfer.manifests import opened, read_manifest
from dvkf_prefect.errors import GitError, ModelNotFoundError
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.tree import Tree, is_tree
from dvkf_prefect.models.content import ModelContents
from dvkf_prefect.models.facts import read_facts
from dvkf_prefect.models.lineage import Item, Lineage, as_trailer, parse_trailer, record_lineage
from dvkf_prefect.models.making import Making
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.tags import split_message, tag_name
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.paths import is_within


def trace_version(registry: ModelRegistry, version: ModelVersion) -> Lineage:
    """Return the lineage of a version, without the services that run it.

    Args:
        registry: The registry of the version.
        version: The version.

    Raises:
        ParseError: A file of the commit of a version without a record does not follow its format.

    Example:
        >>> registry = ModelRegistry(Repo.open("path/to/repository"))
        >>> print(trace_version(registry, registry.show("classifier", "#prod")))
    """
    tag = tag_name("register", version.name, version=version.version)
    event = registry.check_ref(tag)
    record = parse_trailer(event.trailers) if event else None
    if record is None and version.path is not None:
        with suppress(ModelNotFoundError):
            model = ModelContents(registry.repo, registry.git).read(version.name, version.rev)
            record = parse_trailer(as_trailer(record_lineage(registry.repo, model)))
    message = registry.git.run("show", "--no-patch", "--format=%B", version.rev)
    runs = {key: value for key, value in version.trailers.items() if key.endswith("-Run")}
    for key, value in split_message(message)[1].items():
        if key.endswith("-Run") and runs.get(key) != value:
            runs[f"{key} of the commit" if key in runs else key] = value
    return Lineage(
        version,
        stages=record["stages"] if record else (),
        metrics=record["metrics"] if record else {},
        runs=runs,
        facts=read_facts(registry.git, tag),
    )


def trace_models(registry: ModelRegistry) -> list[Lineage]:
    """Return the lineage of every version that is not withdrawn."""
    return [trace_version(registry, version) for version in registry.list()]


def trace_data(registry: ModelRegistry, path: str, rev: str | None = None) -> list[Lineage]:
    """Return the lineage of the versions that learned from a file or folder.

    Args:
        registry: The registry.
        path: The file or folder, relative to the repository's root: a dependency of a stage, or a part of one.
        rev: Revision of its content; None for any content of that path.

    Returns:
        The versions, grouped by model, highest first. With a revision, a version counts if a stage behind it read
        the same content, under whatever path.

    Raises:
        ModelNotFoundError: The revision has no such path.
        GitError: There is no such revision.
        MissingObjectError: The manifest of a folder is neither in the cache nor on the remote.
    """
    digest = None if rev is None else _digest_at(registry, path, rev)
    return [
        lineage
        for lineage in trace_models(registry)
        if any(_learned(registry, item, path, digest) for item in lineage.inputs)
    ]


def _learned(registry: ModelRegistry, item: Item, path: str, digest: str | None) -> bool:
    if digest is None:
        if is_within(item.path, path):
            return True
        return is_within(path, item.path) and bool(_part(registry, item.digest, path[len(item.path) + 1 :]))
    if item.digest == digest:
        return True
    if not is_tree(item.digest) or item.kind != "data":
        return False
    tree = _manifest(registry, item.digest)
    if not is_tree(digest):
        return digest in tree.digests
    # The folder of that content may be a part of the one that was read.
    inside = path[len(item.path) + 1 :] if is_within(path, item.path) else ""
    return bool(inside) and tree.subtree(inside).digest == digest


def _manifest(registry: ModelRegistry, digest: str) -> Tree:
    repo = registry.repo
    return read_manifest(digest, caches=[repo.cache], remotes=opened(repo.remote, [None]), mend=True)


def _part(registry: ModelRegistry, digest: str, inside: str) -> Tree | None:
    """Return a part of a folder of data by its path; None if there is none."""
    if not is_tree(digest):
        return None
    return _manifest(registry, digest).subtree(inside) or None


def _digest_at(registry: ModelRegistry, path: str, rev: str) -> str:
    repo, git = registry.repo, registry.git
    commit = git.resolve(rev)
    making = Making(repo.files(commit))
    output = making.tracked(path)
    if output is not None and output.digest is not None and is_within(path, output.path):
        if output.path == path:
            return output.digest
        part = _part(registry, output.digest, path[len(output.path) + 1 :])
        if part is not None:
            return part.digests[0] if part.relpaths == [""] else part.digest
    prefix = repo.root.resolve().relative_to(git.root.resolve())
    with suppress(GitError):
        return digest_bytes(git.show(commit, (prefix / path).as_posix()))
    raise ModelNotFoundError(
        f"'{path}' is neither tracked by DVC nor a file in git at {rev}. Name a dependency of a stage, or a part of "
        "one."
    )
