"""Lookup of paths in another repository: its outputs and the files that git tracks."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from dvkf_prefect.data.imports.external import ExternalRepo
from dvkf_prefect.errors import OutputNotFoundError, UnsafePathError
from dvkf_prefect.formats.outputs import Output, output_meant
from dvkf_prefect.paths import file_meant, is_within


def check_there(source: ExternalRepo, path: str) -> None:
    """Check that a repository has a path, without reading manifests.

    Raises:
        OutputNotFoundError: The path does not exist.
    """
    source, path = repository_of(source, plain_path(path))
    if not (source.root / path).exists():
        tracked = source.outputs()
        if not any(is_within(path, o.path) or is_within(o.path, path) for o in tracked):
            raise _nothing_at(source, path, tracked)


def outputs_at(source: ExternalRepo, path: str) -> tuple[Output | None, list[Output]]:
    """Return the output at or around a path, and the outputs below it.

    Raises:
        OutputNotFoundError: The path does not exist.
        UnsafePathError: The path leads outside the repository.
    """
    tracked = source.outputs()
    around = next((o for o in tracked if o.cached and (path + "/").startswith(o.path + "/")), None)
    if around is not None:
        return around, []
    inside = [o for o in tracked if o.cached and o.digest and (not path or o.path.startswith(path + "/"))]
    place = source.root / path
    if not place.exists() and not inside:
        raise _nothing_at(source, path, tracked)
    if place.exists():
        check_inside(source, place)
    return None, inside


def _nothing_at(source: ExternalRepo, path: str, tracked: Sequence[Output]) -> OutputNotFoundError:
    step = output_meant(tracked, path) or file_meant(source.root, path) or " See `dvkf list`."
    return OutputNotFoundError(f"'{path}' is neither a tracked path nor a file of '{source.url}'.{step}")


def plain_path(path: str) -> str:
    """Return a normalized posix path inside a repository, relative to its root; empty for the root.

    Raises:
        UnsafePathError: The path leads outside the repository.
    """
    plain = posixpath.normpath(path.replace(os.sep, "/")) if path else ""
    if plain.startswith(("/", "../")) or plain == "..":
        raise UnsafePathError(f"'{path}' is not a path inside the repository")
    return "" if plain == "." else plain


def repository_of(source: ExternalRepo, path: str) -> tuple[ExternalRepo, str]:
    """Return the innermost DVC repository that contains a path, and the path relative to it."""
    parts = path.split("/")
    for count in range(len(parts), 0, -1):
        prefix = "/".join(parts[:count])
        if (source.root / prefix / ".dvc").is_dir() and prefix:
            return source.below(prefix), "/".join(parts[count:])
    return source, path


def check_inside(source: ExternalRepo, place: Path) -> None:
    """Refuse a link in a clone that points to other files of this machine.

    Raises:
        UnsafePathError: The link points outside the clone.
    """
    if source.at is not None and not place.resolve().is_relative_to(source.root.resolve()):
        raise UnsafePathError(
            f"'{place.relative_to(source.root)}' of {source.url} is a link that leads outside it"
        )
