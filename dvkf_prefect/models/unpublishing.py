"""Removal of published versions that nothing names.

A folder is removed only if no standing version, stage, service, revision or pod names it, after a grace period.
In these cases the collection cannot judge, and keeps what it finds:

- git's origin does not answer, or has tags of the model that this clone lacks;
- a version was noted as a service of a cluster, and that namespace is not asked or does not answer;
- the manifest is missing, unreadable, or of another repository.

The note of the publication ends first, so that no new service reads the folder. Then the files go, and the manifest
last. A removal that was interrupted is completed by the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from dvkf_prefect.data.git.command import run_git
from dvkf_prefect.data.git.notes import has_origin
from dvkf_prefect.errors import DvkfError, GitError, ModelError, ModelNotFoundError, RemoteError
from dvkf_prefect.models.facts import noted_clusters
from dvkf_prefect.models.history import ModelHistory, gather
from dvkf_prefect.models.places import Manifest, Place, folder_of, manifest_key
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.tags import check_model_name, is_version, parse_tag_name, read_tags

GRACE = 48.0
"""Hours after the publication and the withdrawal of a version. Knative keeps unused revisions as long."""
_MANIFEST = re.compile(r"manifest-(.+)\.json")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_GIT_TIMEOUT = 120.0


class ServiceUses(Protocol):
    """Published folders that the services of a cluster name."""

    def naming(self, model: str, version: str, folder: str) -> str | None:
        """Return the object that names a version or its folder; None if there is none."""

    def covers(self, where: str) -> bool:
        """Return True if the services of a place, as noted on a tag, were asked."""


#: Asks clusters anew; their answers are as old as the call.
AskServices = Callable[[], ServiceUses]


@dataclass(frozen=True)
class PublishedVersion:
    """A published folder, and the verdict on it.

    Attributes:
        model: Name of the model.
        version: The version.
        uri: Address of the folder.
        files: Number of files.
        size: Size in bytes.
        unused: True if nothing names it.
        reason: Reason for the verdict.
        removed: True if it was removed.
    """

    model: str
    version: str
    uri: str
    files: int
    size: int
    unused: bool
    reason: str
    removed: bool = False

    def __str__(self) -> str:
        verb = "removed" if self.removed else "unused" if self.unused else "kept"
        return f"{verb} {self.model} {self.version}: {self.reason}"


@dataclass(frozen=True)
class Unpublished:
    """Result of a collection of published versions.

    Attributes:
        place: Address of the place.
        versions: Each published folder, sorted by model and version.
        dry_run: True if nothing was to be removed.
        doubt: Reason why everything is kept; empty if the collection could judge.
    """

    place: str
    versions: tuple[PublishedVersion, ...]
    dry_run: bool
    doubt: str = ""

    @property
    def unused(self) -> tuple[PublishedVersion, ...]:
        """Folders that are unused: removed, or to be removed without ``dry_run``."""
        return tuple(each for each in self.versions if each.unused)

    @property
    def size(self) -> int:
        """Size of the unused folders in bytes."""
        return sum(each.size for each in self.unused)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return {
            "place": self.place,
            "dry_run": self.dry_run,
            "doubt": self.doubt,
            "size": self.size,
            "versions": [vars(each).copy() for each in self.versions],
        }

    def __str__(self) -> str:
        verb = "unused" if self.dry_run else "removed"
        kept = len(self.versions) - len(self.unused)
        return f"published versions at {self.place}: {len(self.unused)} {verb}, {kept} kept"


def collect_published(
    registry: ModelRegistry,
    place: str,
    *,
    services: AskServices | None = None,
    grace: float = GRACE,
    dry_run: bool = True,
) -> Unpublished:
    """Remove the published versions of a place that nothing names.

    Args:
        registry: The registry whose versions are published there.
        place: The place: a folder, a url, or ``remote://NAME/FOLDER``.
        services: Asks the clusters that serve models; None if none does.
        grace: Hours to keep a version after its publication and its withdrawal.
        dry_run: Only report what would be removed.

    Returns:
        Each published folder with the reason to keep or to remove it.

    Raises:
        ConfigError: The place cannot be used.
        RemoteError: The place refused, or did not answer.
        GitError: Git refused the note that a publication ended.

    Example:
        >>> registry = ModelRegistry(Repo.open("path/to/repository"))
        >>> print(collect_published(registry, "remote://store/models"))
        published versions at s3://bucket/models: 2 unused, 5 kept
    """
    judge = _Judge(registry, Place(registry.repo, place), services, grace)
    found = [judge.verdict(*each) for each in judge.listed()]
    if not dry_run:
        found = [judge.remove(each) if each.unused else each for each in found]
    return Unpublished(judge.place.shown, tuple(found), dry_run, judge.doubt)


def unpublish_version(
    registry: ModelRegistry,
    model: str,
    version: str,
    place: str,
    *,
    services: AskServices | None = None,
    dry_run: bool = False,
) -> PublishedVersion:
    """Remove one published version, registered or not, that neither a stage nor a service names.

    Args:
        registry: The registry of the version.
        model: Name of the model.
        version: The version.
        place: The place: a folder, a url, or ``remote://NAME/FOLDER``.
        services: Asks the clusters that serve models; None if none does.
        dry_run: Only check.

    Raises:
        ModelNotFoundError: The version is not published there.
        ModelError: A stage or a service names it, or that cannot be known; the message gives the reason.
        ConfigError: The place cannot be used.
        RemoteError: The place refused, or did not answer.
        GitError: Git refused the note that the publication ended.

    Example:
        >>> unpublish_version(registry, "digits", "v1.0.0", "remote://store/models").removed
        True
    """
    check_model_name(model)
    judge = _Judge(registry, Place(registry.repo, place), services, grace=0, registered=True)
    uri = judge.place.uri(model, version)
    files = judge.files(model, version) if is_version(version) else {}
    if not files and judge.place.manifest(model, version) is None:
        raise ModelNotFoundError(f"{model} {version} is not published at {uri}. Look at `dvkf model gc`.")
    found = judge.verdict(model, version, len(files), sum(files.values()))
    if found.unused and not dry_run:
        found = judge.remove(found)
    if not found.unused:
        raise ModelError(f"{model} {version} stays published at {uri}: {found.reason}.")
    return found


class _Judge:
    """Verdicts on the folders of one place."""

    def __init__(
        self,
        registry: ModelRegistry,
        place: Place,
        services: AskServices | None,
        grace: float,
        *,
        registered: bool = False,
    ) -> None:
        self.place = place
        self._registry = registry
        self._git = registry.git
        self._services = services
        self._hours = grace
        # True if a registration alone keeps no version.
        self._registered = registered
        self._uses: ServiceUses | None = None
        self._origin: set[str] = set()
        self._models: dict[str, ModelHistory] = {}
        self._tags: set[str] = set()
        self.doubt = self._ask_origin() or self._ask_services()
        self._read_tags()

    # -- sources -------------------------------------------------------------------------------------------------------

    def _ask_origin(self) -> str:
        root = self._git.root
        try:
            if has_origin(root, timeout=_GIT_TIMEOUT):
                listed = run_git(root, "ls-remote", "--tags", "--refs", "--", "origin", timeout=_GIT_TIMEOUT)
                self._origin = {line.partition("\trefs/tags/")[2] for line in listed.splitlines()}
        except GitError as error:
            return f"git's origin cannot be asked for its tags: {error}"
        return ""

    def _ask_services(self) -> str:
        noted = noted_clusters(self._git)
        if self._services is None:
            return f"services of {noted[0]} were noted, and no cluster is asked" if noted else ""
        try:
            self._uses = self._services()
        except DvkfError as error:
            return f"the services cannot be asked: {str(error).rstrip('.')}"
        strange = [where for where in noted if not self._uses.covers(where)]
        return f"services of {strange[0]} were noted, and it is not asked" if strange else ""

    def _read_tags(self) -> None:
        events = read_tags(self._git)
        self._models = gather(events)
        self._tags = {event.tag for event in events}

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def listed(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield model, version, number of files and bytes of each folder and each manifest of the place."""
        found: dict[tuple[str, str], list[int]] = {}
        for key, size in self.place.storage.list():
            parts = key.split("/")
            # No version's own files are looked at for manifests.
            at = next((number for number, part in enumerate(parts) if is_version(part)), None)
            if at is not None:
                which, counts = ("/".join(parts[:at]), parts[at]), [1, size]
            elif (match := _MANIFEST.fullmatch(parts[-1])) and is_version(match[1]):
                which, counts = ("/".join(parts[:-1]), match[1]), [0, 0]
            else:
                continue
            with suppress(ModelError):
                check_model_name(which[0].replace("=", ":"))
                row = found.setdefault(which, [0, 0])
                row[:] = [row[0] + counts[0], row[1] + counts[1]]
        for (folder, version), (files, size) in sorted(found.items(), key=lambda item: item[0]):
            yield folder.replace("=", ":"), version, files, size

    def files(self, model: str, version: str) -> dict[str, int]:
        """Return the keys of a folder with their sizes."""
        return {key: size for key, size, _ in self.place.storage.starting(f"{folder_of(model, version)}/")}

    def verdict(self, model: str, version: str, files: int, size: int) -> PublishedVersion:
        """Return the verdict on a folder."""
        unused, reason = self._judged(model, version)
        return PublishedVersion(model, version, self.place.uri(model, version), files, size, unused, reason)

    def _judged(self, model: str, version: str) -> tuple[bool, str]:
        manifest = self.place.manifest(model, version)
        if manifest is None:
            return False, "it has no manifest of this version of dvkf, so its publication may be under way"
        if (manifest.model, manifest.version) != (model, version) or not self._is_ours(manifest):
            return False, f"its commit {manifest.commit[:7]} is not in this repository"
        history = self._models.get(model)
        same = [each for each in history.versions if each.name == version] if history else []
        stages = [stage for stage, by in history.stages().items() if by in same] if history else []
        if stages:
            return False, f"it is in stage {', '.join(stages)}"
        if not self._registered and any(each.active and each.registrations for each in same):
            return False, "it is registered"
        if self.doubt:
            return False, self.doubt
        missing = sorted(
            tag
            for tag in self._origin - self._tags
            if (parsed := parse_tag_name(tag)) and parsed.model == model
        )
        if missing:
            return False, f"git's origin has the tag {missing[0]}, which this clone lacks"
        since = [_moment(manifest.created), *(event.created for each in same for event in each.withdrawals)]
        if self._hours and max(since) + timedelta(hours=self._hours) > datetime.now(timezone.utc):
            return False, f"it was published or withdrawn less than {self._hours:g} h ago"
        folder = folder_of(model, version)
        if self._uses is not None and (by := self._uses.naming(model, version, folder)):
            return False, f"{by} names it"
        return True, "withdrawn" if any(each.withdrawals for each in same) else "unused"

    def _is_ours(self, manifest: Manifest) -> bool:
        """Return True if the commits of a manifest are in this repository."""
        commits = (manifest.repository, manifest.commit)
        if not all(_COMMIT.fullmatch(commit) for commit in commits):
            return False
        try:
            self._git.run("rev-list", "--no-walk", "--quiet", *commits)
        except GitError:
            return False
        return True

    # -- removal -------------------------------------------------------------------------------------------------------

    def remove(self, found: PublishedVersion) -> PublishedVersion:
        """Look again at tags and services, then remove a folder and its manifest."""
        self.doubt = self.doubt or self._ask_services()
        self._read_tags()
        model, version = found.model, found.version
        unused, reason = self._judged(model, version)
        if not unused:
            return replace(found, unused=False, reason=reason)
        self._registry.end_note(model, version, "published", found.uri)
        storage = self.place.storage
        storage.delete(list(self.files(model, version)))
        if left := self.files(model, version):
            raise RemoteError(
                f"{found.uri} still lists {', '.join(sorted(left)[:3])} after their removal. Run it again."
            )
        self.place.drop_uploads(model, version)
        storage.delete([manifest_key(model, version)])
        return replace(found, removed=True)


def _moment(text: str) -> datetime:
    """Return a manifest's time; the present for one that cannot be read."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(timezone.utc)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
