"""Outputs and their recorded versions, as `.dvc` files and dvc.lock describe them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dvkf_prefect.errors import OutputOverlapError, UnsafePathError
from dvkf_prefect.formats.objects import MD5, Stored
from dvkf_prefect.paths import check_output
from dvkf_prefect.urls import holds_secret, public_url

CHECKSUMS = ("md5", "etag", "checksum")


@dataclass(frozen=True, slots=True)
class FileVersion:
    """One file as a service that keeps versions holds it.

    Attributes:
        relpath: Posix, relative to the output; empty for an output that is a file.
        digest: md5 in hex; None where only the service's own mark is known.
        size: Bytes.
        etag: The service's mark of the content.
        version_id: The service's name of the version; None for a file that was not pushed there.
        remote: The remote's name; None in an import.
    """

    relpath: str
    digest: str | None = None
    size: int | None = None
    etag: str | None = None
    version_id: str | None = None
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an imported output comes from: the dependency of its `.dvc` file.

    Attributes:
        path: As it is written: a path in another repository, a url, or a path relative to ``folder``.
        folder: The folder that a relative path counts from, relative to the root.
        repo: The other repository's ``url``, ``rev``, ``rev_lock``, ``config`` and ``remote``; None for a url.
        checksum: Its md5, etag or checksum when it was imported; None for a repository, and before the import.
        size: Bytes it had then.
        fs_config: Options for its url.
        versions: Each file's version, where the service keeps versions.
        frozen: False where changes of it count as changes of the output.
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
        """Whether it is read from a service that keeps versions, by version."""
        return bool(self.fs_config.get("version_aware")) or any(file.version_id for file in self.versions)

    def __str__(self) -> str:
        if self.repo:
            return f"{self.path} ({public_url(str(self.repo['url']))})"
        return public_url(self.path) if holds_secret(self.path) else self.path


@dataclass(frozen=True, slots=True)
class Output:
    """A tracked file or directory, as its `.dvc` file or dvc.lock describes it.

    Attributes:
        path: Posix, relative to the repository's root.
        digest: md5 in hex, with ``.dir`` for a directory; None while nothing was recorded.
        size: Bytes; of a directory the sum.
        nfiles: Number of files of a directory.
        isexec: Whether a single file may be executed.
        hash_name: ``md5``, or ``md5-dos2unix`` as DVC 2.x wrote.
        cached: False keeps it out of the cache (``cache: false``).
        remote: The only remote it goes to, where one is named.
        pushed: False keeps it off the remotes (``push: false``).
        persist: Whether a stage finds its last content there when it starts.
        source: The file that describes it, relative to the root.
        stage: The stage's name where the source is a dvc.yaml.
        origin: Where it was imported from, if it was.
        versions: Its files on a remote that keeps versions, where it was pushed to one.
        edited: Whether its `.dvc` file was edited after DVC signed it: the file's own md5 does not fit.
        always_changed: Whether its `.dvc` file says that it always changes.
    """

    path: str
    digest: str | None
    size: int | None = None
    nfiles: int | None = None
    isexec: bool = False
    hash_name: str = MD5
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
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return bool(self.digest and self.digest.endswith(".dir"))


@dataclass(frozen=True, slots=True)
class DataVersion:
    """One version of an output. It names content, never a place on a disk, so it can be kept and compared.

    Attributes:
        repo: The repository's path or url.
        rev: The commit, or None for the workspace.
        path: The output, relative to the repository's root.
        digest: md5 in hex, with ``.dir`` for a directory.
        size: Bytes.
        nfiles: Number of files; 1 for a file.
    """

    repo: str
    rev: str | None
    path: str
    digest: str
    size: int
    nfiles: int

    def as_dict(self) -> dict[str, str | int | None]:
        """Return it as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataVersion:
        """Make one of `as_dict`'s values.

        Raises:
            TypeError: A field is missing or unknown.
        """
        return cls(**values)

    def __str__(self) -> str:
        rev = f"@{self.rev[:7]}" if self.rev else ""
        return f"{self.path}{rev} ({self.digest[:8]}, {self.nfiles} file(s), {self.size} bytes)"


def inside_root(path: str, source: str) -> str:
    """Return a path in its plain form.

    Raises:
        UnsafePathError: It lies outside the repository.
    """
    plain = posixpath.normpath(path)
    if plain.startswith(("/", "../")) or plain in ("..", ".") or "://" in path:
        raise UnsafePathError(f"{source}: the output '{path}' lies outside the repository; move it inside")
    check_output(plain, source)
    return plain


def check_overlap(outputs: Sequence[Output], *, same: bool = False) -> None:
    """Refuse outputs that claim one path or lie inside each other.

    Args:
        outputs: The outputs, in one order for all calls.
        same: Allow `.dvc` files that record the same content of one path: none of them can change another's.

    Raises:
        OutputOverlapError: Two do; names both and where they are described.
    """
    seen: dict[str, Output] = {}
    for output in outputs:
        other = seen.get(output.path)
        if other and not (same and _is_twin(output, other)):
            raise OutputOverlapError(
                f"'{output.path}' is an output of both {_place(other)} and {_place(output)}; keep one of them"
            )
        seen[output.path] = output
    for output in outputs:
        parent = posixpath.dirname(output.path)
        while parent:
            if parent in seen:
                raise OutputOverlapError(
                    f"'{output.path}' ({_place(output)}) lies inside the output '{parent}' ({_place(seen[parent])}); "
                    "track it as a part of that one, or move it out"
                )
            parent = posixpath.dirname(parent)


def _is_twin(output: Output, other: Output) -> bool:
    plain = output.stage is None and other.stage is None and bool(output.digest)
    return plain and (output.digest, output.hash_name) == (other.digest, other.hash_name)


def _place(output: Output) -> str:
    return f"{output.source}, stage '{output.stage}'" if output.stage else output.source


def with_content(output: Output, stored: Stored) -> Output:
    """Return the output with new content."""
    return replace(
        output,
        digest=stored.digest,
        size=stored.size,
        nfiles=stored.nfiles,
        isexec=stored.isexec,
        hash_name=MD5,
    )


def matching(tracked: Sequence[Output], target: str) -> Iterator[Output]:
    """Yield the outputs that a target means.

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


def _is_of(output: Output, name: str) -> bool:
    """Tell whether a stage of that name, or one of the group of that name, writes an output."""
    stage = output.stage
    return stage is not None and (stage == name or stage.startswith(name + "@"))
