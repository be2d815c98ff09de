"""Content of a stage's KFP artifacts: digests and numbers as metadata, plots as pages.

The metadata becomes custom properties in ML Metadata. It holds no null, because the launcher fails with one
(``backend/src/v2/metadata/converter.go:138-180``, ``StructValueToMLMDValue``, the same in 2.5), and no infinite number,
which is not valid JSON. Characters outside Unicode's first plane and undecodable bytes are escapes, because the
database and protobuf refuse them. A blank parts double braces, which KFP and Argo replace in the input of the tasks
that read the artifact. An artifact keeps its URI, see `dvkf_prefect.kubeflow.compile.artifacts`.

A stage that succeeded does not fail because of this view of it: an error becomes a line in the log.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import ParseError
from dvkf_prefect.formats.objects import object_key
from dvkf_prefect.formats.tree import Tree, is_tree
from dvkf_prefect.kubeflow.compile.artifacts import StageArtifact, artifacts_of, plot_sources
from dvkf_prefect.pipeline.step.spec import StepContent, StepResult, StepSpec

# Bytes of a plot's file, and files of a folder of plots on one page.
_LARGEST = 16 << 20
_FILES = 30
_logger = logging.getLogger(__name__)


class Artifact(Protocol):
    """Part of ``kfp.dsl.Artifact`` that is used here."""

    metadata: dict[str, Any]

    @property
    def path(self) -> str:
        """Local file, which KFP uploads to the artifact's URI."""


def describe(
    artifacts: Mapping[str, Artifact], step: StepSpec, result: StepResult, *, url: str = "", commit: str = ""
) -> None:
    """Fill the artifacts of a stage that succeeded.

    Args:
        artifacts: Artifacts by name; those of the stage that are not here were left out.
        step: The stage.
        result: Its result. The content of metrics and plots is in the step's cache, or in the result's side cache.
        url: URL of the remote, without credentials; "" if the outputs are on no remote.
        commit: Commit of the sources, if known.
    """
    if not artifacts:
        return
    store = _Store(step, result)
    common = {"stage": step.stage, "commit": commit}
    for about in artifacts_of(step):
        artifact = artifacts.get(about.name)
        if artifact is None:
            continue
        try:
            if about.kind == "Metrics":
                artifact.metadata.update(numbers(step, result))
            else:
                content = store.find(about.path)
                shown = common | (_description(content, store.apart, url) if content else {})
                artifact.metadata.update(_valid({"display_name": about.title, **shown}))
                if about.plot is not None:
                    _draw(artifact, about, store)
                elif content is not None:
                    # KFP's UI shows the beginning of an artifact's file.
                    _write(artifact, _pointer(content, artifact.metadata))
        except Exception as error:  # noqa: BLE001 (this view must not fail the stage)
            _logger.warning("KFP's artifact '%s' of stage '%s': %s", about.title, step.stage, error)
        plain = _plain(artifact.metadata)
        artifact.metadata.clear()
        artifact.metadata.update(plain)


def contents_shown(
    artifacts: Mapping[str, Artifact],
    step: StepSpec,
    outs: Sequence[StepContent],
    read_tree: Callable[[str], Tree],
) -> list[str]:
    """Return the digests of files that `describe` reads.

    Args:
        artifacts: Artifacts by name.
        step: The stage.
        outs: Its outputs.
        read_tree: Returns a directory's manifest.
    """
    contents = {out.path: out.digest for out in outs}
    wanted = [contents[out.path] for out in step.outs if out.kind == "metric" and out.path in contents]
    for about in artifacts_of(step):
        if about.plot is None or about.name not in artifacts:
            continue
        for path in _sources(about):
            wanted += [digest for _, digest in _files(path, contents, read_tree)]
    return list(dict.fromkeys(wanted))


class _Store:
    """Contents of a stage's outputs after its run."""

    def __init__(self, step: StepSpec, result: StepResult) -> None:
        self.apart = {out.path for out in step.outs if not out.cached}
        self._contents = {out.path: out for out in result.outs}
        self._cache = Cache(Path(step.cache_dir))
        self._side = Cache(Path(result.side_dir)) if result.side_dir else self._cache

    def find(self, path: str) -> StepContent | None:
        """Return the output at a path, or the one that contains it."""
        for out in self._contents.values():
            if path == out.path or path.startswith(out.path + "/"):
                return out
        return None

    def read(self, path: str) -> Iterator[tuple[str, bytes]]:
        """Yield the path and the bytes of a file, or of each file in a directory.

        Raises:
            ParseError: A file is too large.
            ObjectError: An object is missing.
        """
        out = self.find(path)
        store = self._side if out is not None and out.path in self.apart else self._cache
        digests = {each.path: each.digest for each in self._contents.values()}
        for name, digest in _files(path, digests, store.read_tree):
            if store.path(digest).stat().st_size > _LARGEST:
                raise ParseError(name, f"larger than {_LARGEST} bytes")
            yield name, store.read_bytes(digest)


def _files(path: str, contents: Mapping[str, str], read_tree: Callable[[str], Tree]) -> list[tuple[str, str]]:
    """Return path and digest of the file at a path, or of the files in a directory at it."""
    for output, digest in contents.items():
        if path != output and not path.startswith(output + "/"):
            continue
        if not is_tree(digest):
            return [(output, digest)]
        part = read_tree(digest).subtree(path[len(output) + 1 :]) if path != output else read_tree(digest)
        pairs = zip(part.relpaths, part.digests, strict=True)
        return sorted((f"{path}/{name}" if name else path, found) for name, found in pairs)[:_FILES]
    return []


def _sources(about: StageArtifact) -> list[str]:
    if about.kind != "HTML":
        return [about.path]
    return plot_sources(about.title, about.plot or {})


def _description(out: StepContent, apart: set[str], url: str) -> dict[str, Any]:
    found = {"path": out.path, "md5": out.digest, "size": out.content.size, "nfiles": out.content.nfiles}
    if url:
        folder = "/dvkf/uncached" if out.path in apart else ""
        found["location"] = f"{url.rstrip('/')}{folder}/{object_key(out.digest)}"
    return found


def _valid(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if value is not None and value != ""}


def _plain(value: Any) -> Any:
    """Return a value with strings that pass protobuf, the database and the placeholders of KFP unchanged."""
    if isinstance(value, str):
        kept = (
            c if c < "\ud800" or "\udfff" < c <= "\uffff" else c.encode("unicode_escape").decode()
            for c in value
        )
        return re.sub(r"\{(?=\{)", "{ ", "".join(kept))
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    return value


def _pointer(out: StepContent, metadata: Mapping[str, Any]) -> str:
    """Return the output in the form of a .dvc file; its other metadata are comments."""
    lines = [f"# {key}: {metadata[key]}" for key in ("stage", "commit", "location") if key in metadata]
    lines.append("outs:")
    pairs = {"md5": out.digest, "size": out.content.size, "nfiles": out.content.nfiles, "hash": "md5"}
    items = [f"{key}: {value}" for key, value in pairs.items() if value is not None]
    items.append(f"path: {json.dumps(out.path, ensure_ascii=False)}")
    return "\n".join([*lines, "- " + items[0], *("  " + item for item in items[1:])]) + "\n"


def _write(artifact: Artifact, text: str | bytes) -> None:
    file = Path(artifact.path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode(errors="backslashreplace") if isinstance(text, str) else text)


def _draw(artifact: Artifact, about: StageArtifact, store: _Store) -> None:
    from dvkf_prefect.kubeflow.pod import drawing

    assert about.plot is not None
    files = [file for path in _sources(about) for file in store.read(path)]
    if about.kind == "Markdown":
        _write(artifact, b"\n".join(data for _, data in files))
    elif about.kind == "ClassificationMetrics":
        artifact.metadata.update(drawing.classification(about.path, about.plot, files))
    else:
        # The page is written in any case: KFP's UI shows an error for a stage with an HTML artifact without a file.
        _write(artifact, drawing.page(about.title, about.plot, files))


def numbers(step: StepSpec, result: StepResult) -> Iterator[tuple[str, float]]:
    """Yield the numbers in the metric outputs; nested names are joined by dots.

    Args:
        step: The step.
        result: Its result; the content is still in its cache, or in its side cache.
    """
    from dvkf_prefect.formats.params import parse_params

    kinds = {out.path: out for out in step.outs if out.kind == "metric"}
    for content in result.outs:
        if content.path not in kinds or is_tree(content.digest):
            continue
        store = Cache(Path(step.cache_dir if kinds[content.path].cached else result.side_dir))
        prefix = f"{content.path}:" if len(kinds) > 1 else ""
        # Unreadable metrics are still outputs; KFP's view of metrics just omits them.
        with suppress(ParseError):
            yield from _flat(prefix, parse_params(store.read_bytes(content.digest), content.path))


def _flat(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{key}.", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield prefix + key, value
