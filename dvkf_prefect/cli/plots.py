"""Commands on plots."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.cli._common import Parser, open_repo
from dvkf_prefect.cli._output import say
from dvkf_prefect.errors import reason
from dvkf_prefect.text import did_you_mean

if TYPE_CHECKING:
    from dvkf_prefect.errors import ConfigError
    from dvkf_prefect.pipeline.report.plots import Plot
    from dvkf_prefect.repo import Repo

_PROPS = ("template", "x", "y", "x_label", "y_label", "title", "header")


def plots_arguments(parser: Parser) -> None:
    """Describe ``dvkf plots``."""
    commands = parser.commands(
        show=(plots_show, "Draw plots of the workspace."),
        diff=(plots_diff, "Draw plots of several versions in one picture each."),
        templates=(plots_templates, "List the templates that come with DVC, or show one."),
    )
    show, diff = commands["show"], commands["diff"]
    show.add_argument(
        "targets", nargs="*", metavar="PATH", help="files or plots of dvc.yaml to draw (default: all)"
    )
    diff.add_argument(
        "--targets", nargs="*", metavar="<paths>", help="files or plots of dvc.yaml to draw (default: all)"
    )
    diff.add_argument(
        "revisions", nargs="*", help="git revisions (default: the last commit and the workspace)"
    )
    for command in (show, diff):
        _drawing_arguments(command)
    commands["templates"].add_argument("template", nargs="?", help="template to print as JSON")


def _drawing_arguments(parser: Parser) -> None:
    for flags, metavar, text in (
        (("-t", "--template"), "<path>", "name or file of a template"),
        (("-x",), "<field>", "field of the x axis"),
        (("-y",), "<field>", "field of the y axis"),
        (("--title",), "<text>", "title of the plot"),
        (("--x-label",), "<text>", "label of the x axis"),
        (("--y-label",), "<text>", "label of the y axis"),
        (("-o", "--out"), "<path>", "output folder (default: dvc_plots)"),
        (("--html-template",), "<path>", "HTML template of the page, with {plot_divs} in it"),
    ):
        parser.add_argument(*flags, metavar=metavar, help=text)
    parser.add_argument(
        "--no-header",
        dest="header",
        action="store_false",
        default=None,
        help="read tables without a header line",
    )
    parser.add_argument("--show-vega", action="store_true", help="print a plot as Vega-Lite JSON")
    parser.add_argument("--json", action="store_true", help="print all plots as JSON")
    parser.add_argument("--split", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--png", action="store_true", help="write pictures instead of a page")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def plots_show(args: argparse.Namespace) -> int:
    """Run ``dvkf plots show``."""
    return _draw(args, open_repo(), None)


def plots_diff(args: argparse.Namespace) -> int:
    """Run ``dvkf plots diff``."""
    from dvkf_prefect.pipeline.report.plots import changed_versions

    repo = open_repo()
    return _draw(args, repo, changed_versions(repo, args.revisions))


def _draw(args: argparse.Namespace, repo: Repo, revs: Sequence[str] | None) -> int:
    from dvkf_prefect.pipeline.report.plot_files import drawable, write_images
    from dvkf_prefect.pipeline.report.plots import WORKSPACE, read_plots

    targets = args.targets or []
    if args.show_vega:
        wrong = (
            "please specify a target for `--show-vega`"
            if not targets
            else "you can only specify one target for `--show-vega`"
            if len(targets) > 1
            else "'--show-vega' and '--json' are mutually exclusive options."
            if args.json
            else ""
        )
        if wrong:
            say(f"ERROR: {wrong}", stream=sys.stderr)
            return 1
    props = {name: value for name in _PROPS if (value := getattr(args, name)) is not None}
    plots = read_plots(
        repo,
        targets,
        revs=[WORKSPACE] if revs is None else revs,
        props=props,
        folder=repo.relpath(os.getcwd()),
    )
    out = _folder(args, repo)
    everything = plots
    plots, bad = drawable(plots)
    if bad and not any(plot.points or plot.images for plot in plots):
        raise bad[0][1]
    code = bad[0][1].exit_code if bad else 0
    if args.json:
        write_images(plots, out)
        _print_json(_report(plots, out, bad, split=args.split))
        return code
    for _, fault in bad:
        say(f"WARNING: {fault}", stream=sys.stderr)
    for plot in everything:
        for rev, file, error in plot.errors:
            say(
                f"WARNING: {file or plot.name} of '{rev}' cannot be drawn: {reason(error)}", stream=sys.stderr
            )
    if args.show_vega:
        spec = next((plot.spec() for plot in plots if plot.kind == "vega"), None)
        if spec is not None:
            _print_json(spec)
        return code
    if not plots:
        print("No plots were loaded, visualization file will not be created.", file=sys.stderr)
        return 0
    return _write(args, repo, plots, out) or code


def _folder(args: argparse.Namespace, repo: Repo) -> Path:
    """Return the output folder of pages and pictures. A repository's setting cannot point outside the repository."""
    from dvkf_prefect.errors import UnsafePathError
    from dvkf_prefect.paths import check_output, check_parents
    from dvkf_prefect.pipeline.report.plot_files import refuse_link

    if args.out:
        return Path(args.out).absolute()
    own = repo.config.read("repo").get("plots", {}).get("out_dir")
    name = repo.config.get("plots", "out_dir") or "dvc_plots"
    out = Path(name).absolute()
    place = os.path.relpath(out, repo.root)
    if name == own or name == "dvc_plots":
        if place.startswith("../") or place in (".", ".."):
            raise UnsafePathError(f"unsafe folder: plots.out_dir '{name}' leads out of {repo.root}. Use -o.")
        check_output(place, "plots.out_dir")
        check_parents(repo.root, place)
        refuse_link(out)
    return out


def _write(args: argparse.Namespace, repo: Repo, plots: Sequence[Plot], out: Path) -> int:
    from dvkf_prefect.pipeline.report.plot_files import write_page, write_pngs

    if args.png:
        for file in write_pngs(plots, out):
            print(file.as_uri())
        return 0
    template = args.html_template
    if template is None and (configured := repo.config.get("plots", "html_template")):
        template = str(repo.dvc_dir / configured)
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    write_page(plots, page, template=Path(template).read_text() if template else None)
    print(page.as_uri())
    if args.open or str(repo.config.get("plots", "auto_open")).lower() == "true":
        import webbrowser

        return 0 if webbrowser.open(page.as_uri()) else 1
    return 0


def _report(
    plots: Sequence[Plot], out: Path, bad: Sequence[tuple[Plot, ConfigError]], *, split: bool
) -> dict[str, Any]:
    report: dict[str, Any] = {}
    errors = [
        {
            **({} if plot.lost else {"name": plot.name}),
            "rev": rev,
            **({"source": file} if file else {}),
            "type": type(error).__name__,
            "msg": str(error),
        }
        for plot in plots
        for rev, file, error in plot.errors
    ]
    errors += [
        {"name": plot.name, "rev": rev, "type": type(fault).__name__, "msg": str(fault)}
        for plot, fault in bad
        for rev in plot.revisions()
    ]
    if errors:
        report["errors"] = errors
    data = {plot.name: plot.as_dict(split=split, out=out) for plot in plots if not plot.lost}
    if data:
        report["data"] = data
    return report


def plots_templates(args: argparse.Namespace) -> int:
    """Run ``dvkf plots templates``."""
    from dvkf_prefect.pipeline.report.plots import templates

    known = templates()
    if args.template is None:
        for name in known:
            say(name)
    elif args.template in known:
        _print_json(known[args.template])
    else:
        step = did_you_mean(args.template, known) or " List them with `dvkf plots templates`."
        say(f"ERROR: Unexpected template: {args.template}.{step}", stream=sys.stderr)
        return 1
    return 0


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, default=str))
