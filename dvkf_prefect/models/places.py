"""Places that model versions are published to: their keys, manifests and listings.

| key below the place | content |
|---|---|
| ``MODEL/VERSION/...`` | files of the version, under the names of its runtimes |
| ``MODEL/manifest-VERSION.json`` | manifest: written last, removed last, and beside the folder |

No key of another version starts with ``MODEL/VERSION/``. A folder without a manifest is incomplete.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.imports.sources import resolve_place
from dvkf_prefect.data.remotes.copying import open_place
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import ConfigError, MissingObjectError, ModelError, RemoteError
from dvkf_prefect.paths import is_within
from dvkf_prefect.urls import public_url

_logger = logging.getLogger(__name__)
_FORMAT = 1
# Folders of a remote that belong to DVC and to pipeline runs; `dvkf gc` collects them.
_TAKEN = ("files", "runs", "dvkf")
_LARGEST_MANIFEST = 64 << 20


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published version.

    Attributes:
        path: Path in the folder.
        size: Size in bytes.
        digest: Its md5.
        source: Path in the model; None for a file that was made for the runtime.
    """

    path: str
    size: int
    digest: str
    source: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Record of a published version, a sibling of its folder.

    Attributes:
        model: Name of the model.
        version: The version.
        uri: Folder of the version, ending in ``/``.
        format: Name of the format, see `dvkf_prefect.models.layouts.FORMATS`.
        kind: KServe's ``modelFormat.name``; empty for a container of its own.
        runtimes: KServe's runtimes that load it, with the protocols of each.
        served_as: Name of the model in the runtime's URLs; empty for the name of the service.
        digest: Digest of the model in its repository.
        path: Path of the model in its repository.
        commit: Commit of the version.
        repository: First commit of the repository, the same in all its clones.
        files: The files.
        created: Time of the first publication, ISO 8601.
    """

    model: str
    version: str
    uri: str
    format: str
    kind: str
    runtimes: Mapping[str, tuple[str, ...]]
    served_as: str
    digest: str
    path: str
    commit: str
    repository: str
    files: tuple[PublishedFile, ...]
    created: str

    @property
    def size(self) -> int:
        """Sum of the sizes in bytes."""
        return sum(file.size for file in self.files)

    def to_bytes(self) -> bytes:
        """Return the manifest as JSON; the reverse of `from_bytes`."""
        return (json.dumps({"manifest": _FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest | None:
        """Return the manifest in a file; None if it is none, or of a later version of the format."""
        try:
            values = json.loads(data)
            if values.pop("manifest") != _FORMAT:
                return None
            files = tuple(PublishedFile(**each) for each in values.pop("files"))
            runtimes = {str(key): tuple(map(str, value)) for key, value in values.pop("runtimes").items()}
            return cls(files=files, runtimes=runtimes, **values)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


def folder_of(model: str, version: str) -> str:
    """Return the folder of a version below its place.

    Example:
        >>> folder_of("vision:signs", "v1.0.0")
        'vision=signs/v1.0.0'
    """
    return f"{model.replace(':', '=')}/{version}"


def manifest_key(model: str, version: str) -> str:
    """Return the key of a version's manifest, which no listing of a version's folder contains."""
    return f"{model.replace(':', '=')}/manifest-{version}.json"


def repository_id(git: Git) -> str:
    """Return the first commit of a repository, the same in all its clones.

    A shallow clone does not have it: its oldest commit is returned.
    """
    return git.run("rev-list", "--max-parents=0", "--date-order", "HEAD").split()[-1]


@dataclass
class Place:
    """A place for published versions.

    Args:
        repo: The repository, whose remotes may name the place.
        url: Folder, url, or ``remote://NAME/FOLDER``. A url of the default remote's service uses its options.

    Raises:
        ConfigError: The url cannot be used.

    Attributes:
        options: Options of the place as those of a remote, with its ``url``; they may hold secrets.
    """

    repo: Repository
    url: str
    options: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.options = resolve_place(self.repo.config, self.url)
        self.storage = open_place(self.options, public_url(self.options["url"]))
        # An existing parent shows that a disk is mounted, see `FolderStorage`.
        if (root := self.storage.local_path("x")) is not None:
            os.makedirs(root.parent.parent, exist_ok=True)

    def check(self, model: str) -> None:
        """Refuse a folder of a remote that a collection of data cleans.

        Raises:
            ConfigError: Versions of the model would lie in it.
        """
        folder = f"{self.options['url'].rstrip('/')}/{model.replace(':', '=')}"
        for name in self.repo.config.values["remote"]:
            taken = self.repo.config.remote(name)[1]["url"].rstrip("/")
            if any(is_within(folder, f"{taken}/{top}") for top in _TAKEN):
                raise ConfigError(
                    f"{public_url(folder)} is among the data of remote '{name}', which `dvkf gc` collects. Publish to "
                    f"another folder, such as remote://{name}/models."
                )

    @property
    def shown(self) -> str:
        """Url of the place without secrets; ``file://`` and the path for a folder."""
        url = self.storage.url.rstrip("/")
        return url if "://" in url else f"file://{url}"

    def uri(self, model: str, version: str) -> str:
        """Return the address of a version for a service, ending in ``/``."""
        return f"{self.shown}/{folder_of(model, version)}/"

    def manifest(self, model: str, version: str) -> Manifest | None:
        """Return the manifest of a version; None if it is not published here, or not completely."""
        try:
            key = manifest_key(model, version)
            return Manifest.from_bytes(self.storage.read(key, limit=_LARGEST_MANIFEST))
        except MissingObjectError:
            return None

    def check_whole(self, manifest: Manifest) -> None:
        """Compare the folder of a version with its manifest, by the names and sizes of its files.

        Raises:
            ModelError: A file is missing, has another size, or is none of the version's.
            RemoteError: The place refused or does not answer.
        """
        start = f"{folder_of(manifest.model, manifest.version)}/"
        there = {key[len(start) :]: size for key, size, _ in self.storage.starting(start)}
        wanted = {file.path: file.size for file in manifest.files}
        wrong = [path for path, size in wanted.items() if there.get(path) != size]
        strange = sorted(path for path in there if path not in wanted and not path.endswith("/"))
        said = [f"missing or of another size: {', '.join(wrong[:5])}"] * bool(wrong)
        said += [f"not of the version: {', '.join(strange[:5])}"] * bool(strange)
        if said:
            raise ModelError(
                f"{self.uri(manifest.model, manifest.version)} is not what its manifest says ({'; '.join(said)}). "
                f"Publish {manifest.model}@{manifest.version} again."
            )

    def drop_uploads(self, model: str, version: str) -> None:
        """Drop what killed uploads to the folder of a version left; the place may refuse, as they harm no version."""
        try:
            dropped = self.storage.drop_uploads(f"{folder_of(model, version)}/")
        except RemoteError as error:
            _logger.info("uploads to %s that never ended stay: %s", self.uri(model, version), error)
        else:
            if dropped:
                _logger.info("dropped %d uploads to %s that never ended", dropped, self.uri(model, version))

    def write(self, manifest: Manifest) -> None:
        """Store the manifest of a version."""
        self.storage.write(manifest_key(manifest.model, manifest.version), manifest.to_bytes())
