"""Plots as files: the HTML page, its images, PNG."""

from __future__ import annotations

import html
import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dvkf_prefect.errors import ConfigError, UnsafePathError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.pipeline.report.plots import VEGA_LITE, Plot, extra


def drawable(plots: Sequence[Plot]) -> tuple[list[Plot], list[tuple[Plot, ConfigError]]]:
    """Return the drawable plots, and the others with the errors of their templates.

    Raises:
        ConfigError: The extra ``plots`` is not installed.
    """
    good: list[Plot] = []
    bad: list[tuple[Plot, ConfigError]] = []
    for plot in plots:
        if plot.kind == "vega" and plot.points:
            extra("dvc_render", "dvc-render")
            try:
                plot.spec()
            except ConfigError as error:
                bad.append((plot, error))
                continue
        good.append(plot)
    return good, bad


def write_images(plots: Sequence[Plot], folder: Path) -> None:
    """Write the images of image plots into a folder.

    Raises:
        UnsafePathError: The folder is a link.
    """
    refuse_link(folder)
    for plot in plots:
        for image in plot.images:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / image.file_name(), image.data)


def refuse_link(folder: Path) -> None:
    """Refuse a folder that is a link: a repository could direct the files to any place.

    Raises:
        UnsafePathError: The folder is a link.
    """
    if folder.is_symlink():
        raise UnsafePathError(
            f"unsafe folder: '{folder}' is a link. Replace it with a folder, or choose one with -o."
        )


def write_page(plots: Sequence[Plot], file: Path, *, template: str | None = None) -> None:
    """Write a page with plots, and its images beside it in ``static``.

    Args:
        plots: The plots; empty ones are omitted.
        file: Path of the page.
        template: HTML of the page, with ``{plot_divs}`` for the plots and ``{scripts}`` for the library.

    Raises:
        ConfigError: The template lacks ``{plot_divs}``, or the extra ``plots`` is not installed.
    """
    page = template or _PAGE
    if "{plot_divs}" not in page:
        raise ConfigError("HTML template must contain '{plot_divs}'.")
    write_images(plots, file.parent / "static")
    shown = [_vega_div(i, plot) for i, plot in enumerate(plots) if plot.kind == "vega" and plot.points]
    scripts = f"<script>{_library()}</script>" if shown else ""
    pictures = sorted((plot for plot in plots if plot.images), key=lambda plot: _image_order(plot.name))
    shown += [_image_div(plot) for plot in pictures]
    parts = {"scripts": scripts, "plot_divs": "\n".join(shown), "refresh_tag": ""}
    # One pass: inserted text is not searched for placeholders.
    page = re.sub(r"\{(scripts|plot_divs|refresh_tag)\}", lambda match: parts[match[1]], page)
    write_atomic(file, page.encode())


def write_pngs(plots: Sequence[Plot], folder: Path, *, scale: float = 1.0) -> list[Path]:
    """Write a PNG of each plot that has points; return the files. An error is raised after all were tried.

    Args:
        plots: The plots.
        folder: Destination folder.
        scale: Scale factor of the pixels.

    Raises:
        ConfigError: A template does not fit, or the extra ``plots`` is not installed.
    """
    written = []
    failed: ConfigError | None = None
    for plot in plots:
        if plot.kind == "vega" and plot.points:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', plot.name)}.png"
            try:
                write_atomic(file, plot.png(scale=scale))
            except ConfigError as error:
                failed = failed or error
            else:
                written.append(file)
    if failed:
        raise failed
    return written


@dataclass(frozen=True)
class PlotImage:
    """A plot as one image.

    Attributes:
        name: Name of the plot; with the versions for an image plot that differs between them.
        data: Bytes of the image: SVG, PNG, or the file that a stage wrote. Empty on an error.
        error: Reason why it cannot be drawn; empty on success.
        absent: True if a version has no file of a plot that other versions have.
    """

    name: str
    data: bytes = b""
    error: str = ""
    absent: bool = False


def draw_images(plots: Sequence[Plot], *, small: int = 64_000) -> list[PlotImage]:
    """Draw each plot as an image: SVG, or PNG where that is smaller.

    Args:
        plots: The plots; empty ones are omitted.
        small: Size in bytes up to which an SVG is taken without drawing the PNG too.

    Returns:
        The images. A plot that cannot be drawn has its error, as has each that the extra ``plots`` is missing for.
    """
    found = []
    for plot in plots:
        found += [
            PlotImage(
                f"{file or plot.name} of {rev}",
                error=str(error),
                absent=isinstance(error, FileNotFoundError) and bool(plot.points or plot.images),
            )
            for rev, file, error in plot.errors
        ]
        versions: dict[bytes, list[str]] = {}
        for image in plot.images:
            versions.setdefault(image.data, []).append(image.rev)
        several = len(versions) > 1
        found += [
            PlotImage(f"{plot.name} of {', '.join(revs)}" if several else plot.name, data)
            for data, revs in versions.items()
        ]
        if plot.kind == "vega" and plot.points:
            try:
                data = plot.svg().encode()
                if len(data) > small and len(png := plot.png()) < len(data):
                    data = png
                found.append(PlotImage(plot.name, data))
            except ConfigError as error:
                found.append(PlotImage(plot.name, error=str(error)))
    return found


def _library() -> str:
    """Return Vega and its embedding code as script text for a page."""
    bundle: str = extra("vl_convert", "vl-convert-python").javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE
    )
    return "(() => {" + bundle.replace("</script", "<\\/script") + "})();"


def _vega_div(number: int, plot: Plot) -> str:
    # Nothing in the data may end the script around it.
    filled = plot.spec()
    # Options of the page itself, HTML among them, that a template may carry.
    filled.pop("usermeta", None)
    spec = json.dumps(filled).replace("<", "\\u003c")
    name = f"plot_{number}"
    return (
        f'<div id="{name}" title="{html.escape(plot.name)}"></div>\n'
        f"<script>vegaEmbed('#{name}', {spec});</script>"
    )


def _image_div(plot: Plot) -> str:
    pictures = "".join(
        '<div style="border:1px dotted black;margin:2px;display:inline-block;overflow:hidden;margin-left:8px;">'
        f'<p>{html.escape(image.rev)}</p><img src="static/{html.escape(_quoted(image.file_name()))}"></div>'
        for image in plot.images
    )
    return (
        '<div style="border:1px solid black;text-align:center;white-space:nowrap;overflow-y:hidden;">'
        f"<p>{html.escape(plot.name)}</p>{pictures}</div>"
    )


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def _image_order(name: str) -> tuple[str, int, str]:
    """Return the sort key of an image: images numbered by step in numeric order."""
    stem = posixpath.splitext(posixpath.basename(name))[0]
    return (
        posixpath.dirname(name),
        int(stem) if stem.isdecimal() and len(stem) < 20 else -1,
        posixpath.basename(name),
    )


_PAGE = """<!DOCTYPE html>
<html>
<head>
    <meta charset="utf-8">
    <title>Plots</title>
    {scripts}
    <style>
        table {
            border-spacing: 15px;
        }
    </style>
</head>
<body>
    {plot_divs}
</body>
</html>"""
