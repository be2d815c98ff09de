"""Plots declared in dvc.yaml, of one version or several: as a page, as images, or as Vega's JSON.

The page contains the drawing library, so it opens without a network. Templates are filled by `dvc-render`, DVC's own
package. Images and the library come from `vl-convert`. Both are in the extra ``plots``.

Source of the selection: DVC 3.x (``dvc/repo/plots``, ``dvc/render/match.py``).
"""

from __future__ import annotations

import base64
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.views.reader import View
from dvkf_prefect.errors import ConfigError, DvkfError, OutputNotFoundError
from dvkf_prefect.files import read_description
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcyaml import load_stages, read_sections
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.pipeline.report.metrics import read_bounded
from dvkf_prefect.pipeline.report.plot_data import IMAGES, parse, points_of, sources
from dvkf_prefect.pipeline.step.spec import PLOT_OPTIONS
from dvkf_prefect.text import did_you_mean

WORKSPACE = "workspace"

# Fonts as wide as the one that Vega measures with: a browser's own may be wider, and labels would be cut off.
_FONTS = "Liberation Sans,Arial,Helvetica,DejaVu Sans Condensed,sans-serif"

VEGA_LITE = "5.20"
"""Version of Vega-Lite for images and pages."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image written by a stage, in one version.

    Attributes:
        rev: Name of the version.
        path: Path of the file, relative to the current folder.
        data: Bytes of the image.
    """

    rev: str
    path: str
    data: bytes

    def file_name(self) -> str:
        """Return the name of the image among the page's files, as DVC names it."""
        return f"{self.rev}_{self.path}".replace(os.sep, "_").replace("/", "_")


@dataclass(frozen=True)
class Plot:
    """One plot with all its shown versions.

    Attributes:
        name: Name of the plot.
        kind: ``vega`` or ``image``.
        points: Rows of all versions; each names its version as ``rev``.
        props: Properties of the drawing.
        images: Images of an image plot.
        errors: Read and draw errors: version, file ("" for the plot as a whole), error.
        lost: True if it stands for a whole version whose plots are unknown.
    """

    name: str
    kind: str
    points: list[dict[str, Any]] = field(default_factory=list)
    props: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Image, ...] = ()
    errors: tuple[tuple[str, str, Exception], ...] = ()
    lost: bool = False

    def spec(self) -> dict[str, Any]:
        """Return the plot in Vega-Lite's JSON; empty if it has no points.

        Raises:
            ConfigError: Its template is missing or does not fit, or the extra ``plots`` is not installed.
        """
        return dict(self._whole)

    @cached_property
    def _whole(self) -> dict[str, Any]:
        return self._filled(split=False)[0]

    def as_dict(self, *, split: bool = False, out: Path | None = None) -> list[dict[str, Any]]:
        """Return the plot in the shape of ``dvc plots show --json``.

        Args:
            split: Return the values of the template's anchors apart from the template.
            out: Folder of the images; if None they are embedded as data.
        """
        if self.kind == "image":
            return [
                {"type": "image", "revisions": [i.rev], "url": str(out / i.file_name()) if out else _url(i)}
                for i in self.images
            ]
        if not self.points:
            return []
        content, anchors = self._filled(split=split)
        return [{"type": "vega", "revisions": self.revisions(), "content": content, **anchors}]

    def revisions(self) -> list[str]:
        """Return the versions that have points."""
        return list(dict.fromkeys(row["rev"] for row in self.points))

    def png(self, *, scale: float = 1.0) -> bytes:
        """Return the plot as a PNG image.

        Args:
            scale: Scale factor of the pixels.

        Raises:
            ConfigError: The template does not fit, or the extra ``plots`` is not installed.
        """
        convert = extra("vl_convert", "vl-convert-python").vegalite_to_png
        spec = self.spec()
        try:
            picture: bytes = convert(spec, vl_version=VEGA_LITE, scale=scale, allowed_base_urls=[])
        except ValueError as error:
            raise ConfigError(f"the plot '{self.name}' cannot be drawn: {error}") from error
        return picture

    def svg(self) -> str:
        """Return the plot as an SVG image.

        Raises:
            ConfigError: The template does not fit, or the extra ``plots`` is not installed.
        """
        convert = extra("vl_convert", "vl-convert-python").vegalite_to_svg
        spec = self.spec()
        try:
            picture: str = convert(spec, vl_version=VEGA_LITE, allowed_base_urls=[])
        except ValueError as error:
            raise ConfigError(f"the plot '{self.name}' cannot be drawn: {error}") from error
        return picture.replace('font-family="sans-serif"', f'font-family="{_FONTS}"')

    def _filled(self, *, split: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        render = extra("dvc_render", "dvc-render")
        if not self.points:
            return {}, {}
        try:
            # Filling a template modifies rows; they may be needed again.
            _check_template(self.props.get("template"), str(self.props.get("template_dir", "")))
            rows = [dict(row) for row in self.points]
            renderer = render.VegaRenderer(rows, self.name, **self.props)
            filled = renderer.get_partial_filled_template() if split else (renderer.get_filled_template(), {})
        except Exception as error:
            hint = did_you_mean(str(self.props.get("template") or ""), templates())
            raise ConfigError(f"the plot '{self.name}': {error or type(error).__name__}{hint}") from error
        return filled[0], filled[1]


def extra(module: str, package: str) -> Any:
    """Import a package that the extra ``plots`` installs.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"plots need the package {package}. Install it with `pip install 'dvkf-prefect[plots]'`."
        ) from error


def _check_template(template: object, folder: str) -> None:
    """Refuse a template that is not a regular file: a fifo would block, a device would never end.

    Raises:
        ConfigError: The template is not a regular file.
    """
    if not isinstance(template, str):
        return
    for place in (
        template,
        f"{template}.json",
        os.path.join(folder, template),
        os.path.join(folder, f"{template}.json"),
    ):
        if os.path.exists(place) and not os.path.isdir(place):
            try:
                documents.load_json(read_description(place), place)
            except DvkfError as error:
                raise ConfigError(f"the template '{template}': {error}") from error


def templates() -> dict[str, dict[str, Any]]:
    """Return the templates that come with DVC, by name.

    Raises:
        ConfigError: The extra ``plots`` is not installed.
    """
    known = extra("dvc_render.vega_templates", "dvc-render").TEMPLATES
    return {template.DEFAULT_NAME: template.DEFAULT_CONTENT for template in known}


# -- selection
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Version:
    """The plots of one version.

    Attributes:
        name: Name of the version.
        definitions: Properties by plot by the file that declares it ("" for stages and targets).
        contents: Parsed contents by file.
        errors: Read errors by file.
        error: Error of finding the plots; None on success.
    """

    name: str
    definitions: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    contents: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    error: Exception | None = None


def read_plots(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    revs: Sequence[str] = (WORKSPACE,),
    props: Mapping[str, Any] | None = None,
    folder: str = "",
) -> list[Plot]:
    """Return the plots to draw.

    Args:
        repo: The repository.
        targets: Files, or names of plots; all that dvc.yaml files declare if empty.
        revs: Git revisions, and ``workspace``, which is first in every plot.
        props: Properties that override dvc.yaml: template, x, y, x_label, y_label, title, header.
        folder: Folder, relative to the root, that targets and the names of plots are relative to.

    Returns:
        The plots, each with its read errors.

    Raises:
        GitError: There is no such revision.

    Example:
        >>> for plot in read_plots(Repo.open("path/to/repository"), revs=["main", "workspace"]):
        ...     Path(plot.name).with_suffix(".png").write_bytes(plot.png())
    """
    names = list(dict.fromkeys(revs))
    if WORKSPACE in names:
        names = [WORKSPACE, *(name for name in names if name != WORKSPACE)]
    versions = [_read(repo, name, targets, dict(props or {}), folder) for name in names]
    groups: dict[str, list[tuple[_Version, str, dict[str, Any]]]] = {}
    for version in versions:
        for name, inner, definition in _named(version.definitions):
            groups.setdefault(name, []).append((version, inner, definition))
    return [_plot(repo, name, group) for name, group in groups.items()] + [
        Plot(version.name, "vega", errors=((version.name, "", version.error),), lost=True)
        for version in versions
        if version.error is not None
    ]


def changed_versions(repo: Repository, revs: Sequence[str] = ()) -> list[str]:
    """Return the versions that ``plots diff`` compares: the given ones, or the last commit and the workspace.

    Args:
        repo: The repository.
        revs: Git revisions.
    """
    if repo.git is None or repo.git.head() is None:
        return []
    if len(revs) > 1:
        return list(revs)
    dirty = not revs and bool(repo.git.run("status", "--porcelain", "--untracked-files=no"))
    return [*revs, *(["HEAD"] if dirty else []), WORKSPACE]


def _named(
    definitions: Mapping[str, Mapping[str, dict[str, Any]]],
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield plots under unique names: with the declaring file if several files declare the same name."""
    places: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for file, plots in definitions.items():
        for name, definition in plots.items():
            places.setdefault(name, []).append((file, definition))
    for name, found in places.items():
        for file, definition in found:
            yield f"{file}::{name}" if len(found) > 1 and file else name, name, definition


def _plot(repo: Repository, name: str, group: Sequence[tuple[_Version, str, dict[str, Any]]]) -> Plot:
    props: dict[str, Any] = {}
    for _, _, definition in group:
        props = {**definition, **props}
    errors: list[tuple[str, str, Exception]] = []
    points: list[dict[str, Any]] = []
    images: list[Image] = []
    drawn: dict[str, Any] = {}
    kind, title = "vega", name
    for version, inner, definition in group:
        files = sources(inner, definition)
        errors += [(version.name, file, version.errors[file]) for file in files if file in version.errors]
        contents = {file: version.contents[file] for file in files if version.contents.get(file)}
        if posixpath.splitext(inner)[1] in IMAGES:
            kind, title = "image", inner
            images += [Image(version.name, file, data) for file, data in contents.items()]
            continue
        try:
            found = points_of(inner, props, contents, version.name)
        except DvkfError as error:
            errors.append((version.name, "", error))
            continue
        drawn = drawn or found.props
        points += found.points
    if kind == "image":
        return Plot(title, kind, images=tuple(images), errors=tuple(errors))
    drawn.setdefault("title", name)
    drawn["revs_with_datapoints"] = list(dict.fromkeys(row["rev"] for row in points))
    drawn["template_dir"] = str(repo.dvc_dir / "plots")
    return Plot(name, kind, points, drawn, errors=tuple(errors))


def _read(
    repo: Repository, name: str, targets: Sequence[str], props: dict[str, Any], folder: str
) -> _Version:
    rev = None if name == WORKSPACE else name
    files = repo.files(rev)
    version = _Version(name)
    try:
        reader = _Reader(repo, View(repo, files.rev), folder)
        headers = reader.collect(targets, props, version.definitions)
    except DvkfError as error:
        return _Version(name, error=error)
    wanted = [
        file
        for plots in version.definitions.values()
        for plot, definition in plots.items()
        for file in sources(plot, definition)
    ]
    for file in dict.fromkeys(wanted):
        header = props.get("header", headers.get(file, True))
        try:
            version.contents[file] = parse(reader.read(file), file, header=header)
        except OutputNotFoundError:
            version.errors[file] = FileNotFoundError(f"'{file}' is not in {name}")
        except (DvkfError, OSError) as error:
            version.errors[file] = error
    return version


class _Reader:
    """Finder of one version's plots; all names are relative to one folder."""

    def __init__(self, repo: Repository, view: View, folder: str) -> None:
        self._files = repo.files(view.commit)
        self._view = view
        self._folder = folder

    def _from_here(self, path: str) -> str:
        return posixpath.relpath(path or ".", self._folder or ".")

    def _place(self, name: str) -> str:
        path = posixpath.normpath(posixpath.join(self._folder, name))
        return "" if path == "." else path

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        with self._view.open(self._view.entry(self._place(name))) as file:
            return read_bounded(file, name)

    def _expand(self, name: str) -> list[str]:
        """Return the files of a folder, or the file itself."""
        path = self._place(name)
        try:
            if self._view.entry(path).is_dir:
                skip = len(path) + 1 if path else 0
                found = sorted(entry.path[skip:] for entry in self._view.find(path))
                return [posixpath.normpath(posixpath.join(name, inner)) for inner in found]
        except (DvkfError, OSError):
            pass  # `read` meets the same error and reports it
        return [name]

    def collect(
        self,
        targets: Sequence[str],
        props: dict[str, Any],
        definitions: dict[str, dict[str, dict[str, Any]]],
    ) -> dict[str, bool]:
        """Add the properties of all plots to ``definitions``; return the header option of the files that have one."""
        pipelines = [path for path in self._files.find() if posixpath.basename(path) == PIPELINE_FILE]
        for source in pipelines:
            plots = read_sections(self._files, source).plots
            if plots:
                definitions[self._from_here(source)] = dict(self._top_level(source, plots, targets, props))
        headers: dict[str, bool] = {}
        outputs: dict[str, dict[str, Any]] = {}
        declared: set[str] = set()
        for source in pipelines:
            for stage in load_stages(self._files, source):
                for out in stage.outs:
                    declared.add(out.path)
                    name = self._from_here(out.path)
                    if out.kind != "plot" or not _matches(targets, self._from_here(source), name):
                        continue
                    options = {key: out.options[key] for key in PLOT_OPTIONS if key in out.options}
                    for file in self._expand(name):
                        outputs[file] = {**options, **props}
                        if "header" in options:
                            headers[file] = options["header"]
        if outputs:
            definitions.setdefault("", {}).update(outputs)
        for target in targets:
            if not definitions or self._place(target) in declared or self._exists(target):
                for file in self._expand(posixpath.normpath(target)):
                    definitions.setdefault("", {}).setdefault(file, {}).update(props)
        return headers

    def _exists(self, name: str) -> bool:
        try:
            self._view.entry(self._place(name))
        except (DvkfError, OSError):
            return False
        return True

    def _top_level(
        self,
        source: str,
        plots: Mapping[str, Mapping[str, Any]],
        targets: Sequence[str],
        props: dict[str, Any],
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self._from_here(source)
        folder = posixpath.dirname(config)
        parents = [posixpath.normpath(posixpath.join(folder, name)) for name in plots]
        for name, said in plots.items():
            if not _matches(targets, config, name):
                continue
            definition = dict(said)
            if isinstance(definition.get("y"), dict):
                for axis in ("x", "y"):
                    if isinstance(definition.get(axis), dict):
                        definition[axis] = {
                            posixpath.normpath(posixpath.join(folder, file)): fields
                            for file, fields in definition[axis].items()
                        }
                yield name, {**definition, **props}
                continue
            place = posixpath.normpath(posixpath.join(folder, name))
            for file in self._expand(place):
                if (
                    _closest(file, parents) == place
                ):  # a plot's own properties take precedence over its folder's
                    yield file, {**definition, **props}


def _closest(path: str, parents: Sequence[str]) -> str:
    best = ""
    for parent in parents:
        common = posixpath.commonpath([path, parent])
        if len(common) > len(best):
            best = common
    return best


def _matches(targets: Sequence[str], config: str, name: str) -> bool:
    """Return True if a target selects a plot: as in DVC, targets are patterns of the start of its name."""
    if not targets:
        return True
    for target in targets:
        try:
            pattern = re.compile(target)
        except re.error:
            pattern = re.compile(re.escape(target))
        if pattern.match(name) or pattern.match(f"{config}::{name}"):
            return True
    return False


# -- drawing -----------------------------------------------------------------------------------------------------------


def _url(image: Image) -> str:
    return f"data:image;base64,{base64.b64encode(image.data).decode()}"
