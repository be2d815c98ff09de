"""Outputs and their recorded versions, as in `.dvc` files and dvc.lock."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dvkf_prefect.errors import OutputOverlapError, UnsafePathError
from dvkf_prefect.formats.objects import MD5, Content
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.paths import check_output
from dvkf_prefect.text import did_you_mean
from dvkf_prefect.urls import holds_secret, public_url

CHECKSUMS = ("md5", "etag", "checksum")


@dataclass(frozen=True, slots=True)
class FileVersion:
    """One file on a service that keeps versions.

    Attributes:
        relpath: Posix, relative to the output; empty if the output is a file.
        digest: md5 in hex; None if only the service's etag is known.
        size: Size in bytes.
        etag: The service's identifier of the content.
        version_id: The service's identifier of the version; None for a file not pushed to it.
        remote: Name of the remote; None in an import.
    """

    relpath: str
    digest: str | None = None
    size: int | None = None
    etag: str | None = None
    version_id: str | None = None
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Source of an imported output: the dependency in its `.dvc` file.

    Attributes:
        path: Spelling in the file: a path in another repository, a url, or a path relative to ``folder``.
        folder: Base folder of a relative path, itself relative to the root.
        repo: The other repository's ``url``, ``rev``, ``rev_lock``, ``config`` and ``remote``; None for a url.
        checksum: md5, etag or checksum at the time of import; None for a repository, and before the import.
        size: Size in bytes at the time of import.
        fs_config: Options for the url's filesystem.
        versions: Version of each file, if the service keeps versions.
        frozen: False if a change of the source counts as a change of the output.
    """

    path: str
    folder: str = "."
    repo: Mapping[str, Any] | None = None
    checksum: str | None = None
    size: int | None = None
    fs_config: Mapping[str, Any] = field(default_factory=dict)
    versions: tuple[FileVersion, ...] = ()
    frozen: bool = True

    @property
    def versioned(self) -> bool:
        """True if content is read by version from a service that keeps versions."""
        return bool(self.fs_config.get("version_aware")) or any(file.version_id for file in self.versions)

    def __str__(self) -> str:
        if self.repo:
            return f"{self.path} ({public_url(str(self.repo['url']))})"
        return public_url(self.path) if holds_secret(self.path) else self.path


@dataclass(frozen=True, slots=True)
class Output:
    """A tracked file or directory, as recorded in its `.dvc` file or dvc.lock.

    Attributes:
        path: Posix, relative to the repository's root.
        content: Recorded content; None until it is recorded.
        cached: False keeps it out of the cache (``cache: false``).
        remote: The only remote for this output, None for any remote.
        pushed: False keeps it off the remotes (``push: false``).
        persist: True to keep the last content in place when the stage starts.
        source: The file that describes the output, relative to the root.
        stage: Name of the stage if the source is a dvc.yaml.
        origin: Source of an import, None for any other output.
        versions: Files on a remote that keeps versions, if the output was pushed to one.
        edited: True if the `.dvc` file was edited after DVC signed it: its md5 does not match.
        always_changed: True if the `.dvc` file has `always_changed`.
    """

    path: str
    content: Content | None = None
    cached: bool = True
    remote: str | None = None
    pushed: bool = True
    persist: bool = False
    source: str = ""
    stage: str | None = None
    origin: Origin | None = field(default=None, compare=False, repr=False)
    versions: tuple[FileVersion, ...] = field(default=(), compare=False, repr=False)
    edited: bool = field(default=False, compare=False, repr=False)
    always_changed: bool = field(default=False, compare=False, repr=False)

    @property
    def digest(self) -> str | None:
        """Digest of the recorded content; None until it is recorded."""
        return self.content.digest if self.content else None

    @property
    def size(self) -> int | None:
        """Recorded size in bytes; None if unknown."""
        return self.content.size if self.content else None

    @property
    def nfiles(self) -> int | None:
        """Recorded number of files of a directory; None if unknown."""
        return self.content.nfiles if self.content else None

    @property
    def isexec(self) -> bool:
        """True if the output is one executable file."""
        return self.content is not None and self.content.isexec

    @property
    def hash_name(self) -> str:
        """Way of hashing of the recorded content."""
        return self.content.hash_name if self.content else MD5

    @property
    def is_dir(self) -> bool:
        """True if the output is a directory."""
        return self.content is not None and self.content.is_dir

    def listed_tree(self) -> Tree | None:
        """Return the manifest of the files that the `.dvc` file lists; None if it does not list all digests."""
        if not self.is_dir or not self.versions or not all(file.digest for file in self.versions):
            return None
        return Tree.from_pairs((file.relpath, file.digest or "") for file in self.versions)


@dataclass(frozen=True, slots=True)
class DataVersion:
    """One version of an output. It names content rather than a location, so it can be stored and compared.

    Attributes:
        repo: The repository's path or url.
        rev: The commit, or None for the workspace.
        path: The output, relative to the repository's root.
        digest: md5 in hex, with ``.dir`` for a directory.
        size: Size in bytes.
        nfiles: Number of files; 1 for a file.
    """

    repo: str
    rev: str | None
    path: str
    digest: str
    size: int
    nfiles: int

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the version as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataVersion:
        """Create a version from the values of `as_dict`.

        Raises:
            TypeError: A field is missing or unknown.
        """
        return cls(**values)

    def __str__(self) -> str:
        rev = f"@{self.rev[:7]}" if self.rev else ""
        files = f"{self.nfiles:,} file{'' if self.nfiles == 1 else 's'}"
        return f"{self.path}{rev} ({self.digest[:8]}, {files}, {self.size:,} bytes)"


def inside_root(path: str, source: str) -> str:
    """Return a path in normalized form.

    Raises:
        UnsafePathError: It lies outside the repository.
    """
    plain = posixpath.normpath(path)
    if plain.startswith(("/", "../")) or plain in ("..", ".") or "://" in path:
        raise UnsafePathError(f"{source}: the output '{path}' lies outside the repository. Move it inside.")
    check_output(plain, source)
    return plain


def check_overlap(outputs: Sequence[Output], *, same: bool = False) -> None:
    """Refuse outputs with the same path, or with one inside another.

    Args:
        outputs: The outputs, in the same order for all calls.
        same: Allow `.dvc` files that record the same content for one path, since they cannot overwrite each other.

    Raises:
        OutputOverlapError: Two outputs overlap; the error names both and their files.
    """
    seen: dict[str, Output] = {}
    for output in outputs:
        other = seen.get(output.path)
        if other and not (same and _is_twin(output, other)):
            raise OutputOverlapError(
                f"'{output.path}' is an output of both {_place(other)} and {_place(output)}. Keep one of "
                "them."
            )
        seen[output.path] = output
    for output in outputs:
        parent = posixpath.dirname(output.path)
        while parent:
            if parent in seen:
                raise OutputOverlapError(
                    f"'{output.path}' ({_place(output)}) lies inside the output '{parent}' "
                    f"({_place(seen[parent])}). Track it as part of that output, or move it out."
                )
            parent = posixpath.dirname(parent)


def _is_twin(output: Output, other: Output) -> bool:
    plain = output.stage is None and other.stage is None and bool(output.digest)
    return plain and (output.digest, output.hash_name) == (other.digest, other.hash_name)


def _place(output: Output) -> str:
    return f"{output.source}, stage '{output.stage}'" if output.stage else output.source


def matching(tracked: Sequence[Output], target: str) -> Iterator[Output]:
    """Yield the outputs that a target refers to.

    Args:
        tracked: The outputs to choose from.
        target: A path, a `.dvc` file, a dvc.yaml, a stage, the name of a ``foreach`` or ``matrix`` for all of its
            stages, or ``dvc.yaml:stage``.
    """
    plain = target.rstrip("/").removeprefix("./")
    file, colon, name = plain.rpartition(":")
    for output in tracked:
        if (
            plain in (output.path, output.source)
            or (posixpath.dirname(output.source) == "" and _is_of(output, plain))
            or (colon and output.source == file and _is_of(output, name))
        ):
            yield output


def output_meant(tracked: Iterable[Output], target: str) -> str:
    """Return a hint at the output, `.dvc` file or stage that is closest to a misspelt target; "" without one."""
    return did_you_mean(
        target, [name for output in tracked for name in (output.path, output.source, output.stage) if name]
    )


def _is_of(output: Output, name: str) -> bool:
    """Return True if the output belongs to the stage, or to the group, of that name."""
    stage = output.stage
    return stage is not None and (stage == name or stage.startswith(name + "@"))
