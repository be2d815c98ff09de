"""Commands on metrics and parameters."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dvkf_prefect.cli._choice import history_arguments
from dvkf_prefect.cli._common import Parser, open_repo
from dvkf_prefect.cli._output import say
from dvkf_prefect.errors import reason

if TYPE_CHECKING:
    from pathlib import Path

    from dvkf_prefect.pipeline.report.metrics import MetricChange, Reading
    from dvkf_prefect.repo import Repo

_PRECISION = 5


def metrics_arguments(parser: Parser) -> None:
    """Describe ``dvkf metrics``."""
    commands = parser.commands(
        show=(metrics_show, "Show the metrics of the workspace, or of many versions."),
        diff=(metrics_diff, "Compare the metrics of two versions."),
    )
    show = commands["show"]
    show.add_argument("targets", nargs="*", metavar="PATH", help="files or folders to show (default: all)")
    history_arguments(show)
    _diff_arguments(commands["diff"], "metric")
    for command in (show, commands["diff"]):
        command.add_argument(
            "-R", "--recursive", action="store_true", help="include all files in target folders"
        )
        command.add_argument(
            "--precision",
            type=int,
            metavar="<n>",
            help=f"digits after the decimal point (default: {_PRECISION})",
        )
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument("--md", dest="markdown", action="store_true", help="print a Markdown table")


def params_arguments(parser: Parser) -> None:
    """Describe ``dvkf params``."""
    diff = parser.commands(diff=(params_diff, "Compare the parameters of two versions."))["diff"]
    _diff_arguments(diff, "parameter")
    diff.add_argument("--deps", action="store_true", help="compare only parameters that stages depend on")
    diff.add_argument("--json", action="store_true", help="print JSON")
    diff.add_argument("--md", dest="markdown", action="store_true", help="print a Markdown table")


def _diff_arguments(parser: Parser, what: str) -> None:
    parser.add_argument("a_rev", nargs="?", default="HEAD", help="older git revision (default: HEAD)")
    parser.add_argument(
        "b_rev", nargs="?", default="workspace", help="newer git revision (default: the workspace)"
    )
    parser.add_argument(
        "--targets", nargs="*", default=[], metavar="<paths>", help=f"{what} files to compare (default: all)"
    )
    parser.add_argument("--all", action="store_true", help="include unchanged values")
    parser.add_argument("--no-path", action="store_true", help="omit the path of the file")


def metrics_show(args: argparse.Namespace) -> int:
    """Run ``dvkf metrics show``."""
    from dvkf_prefect.pipeline.report.metrics import read_metrics

    repo = open_repo()
    found = read_metrics(
        repo,
        _paths(repo, args.targets),
        all_branches=args.all_branches,
        all_tags=args.all_tags,
        all_commits=args.all_commits,
    )
    _warn(repo.root, found)
    if args.json:
        rows = {rev: reading.as_dict() for rev, reading in found.items()}
        for row in rows.values():
            if "data" in row:
                row["data"] = {_from_here(repo, path): file for path, file in row["data"].items()}
        _print_json(rows)
        return 0
    many = args.all_branches or args.all_tags or args.all_commits
    _print_metrics(repo, found, args.precision or _PRECISION, with_revision=many, markdown=args.markdown)
    return 0


def _print_metrics(
    repo: Repo, found: Mapping[str, Reading], precision: int, *, with_revision: bool, markdown: bool
) -> None:
    from dvkf_prefect.formats.params import flatten

    rows: list[tuple[str, str, dict[str, str]]] = []
    for rev, reading in found.items():
        for path, file in reading.files.items():
            values = flatten(file.values) if isinstance(file.values, dict) else {"": file.values}
            if file.values is None:
                values = {}
            cells = {name: _cell(value, precision) for name, value in values.items() if value != {}}
            rows.append((rev, _from_here(repo, path), cells))
    names = sorted({name for _, _, cells in rows for name in cells})
    headers = [*(["Revision"] if with_revision else []), "Path", *names]
    table = [
        [*([rev] if with_revision else []), path, *(cells.get(name, "-") for name in names)]
        for rev, path, cells in rows
    ]
    print_table(headers, table, markdown=markdown)


def metrics_diff(args: argparse.Namespace) -> int:
    """Run ``dvkf metrics diff``."""
    from dvkf_prefect.pipeline.report.metrics import diff_metrics

    repo = open_repo()
    rows, found = diff_metrics(repo, args.a_rev, args.b_rev, _paths(repo, args.targets), unchanged=args.all)
    _warn(repo.root, found)
    _print_changes(repo, args, rows, "Metric", precision=args.precision or _PRECISION)
    return 0


def params_diff(args: argparse.Namespace) -> int:
    """Run ``dvkf params diff``."""
    from dvkf_prefect.pipeline.report.metrics import diff_params

    repo = open_repo()
    rows, found = diff_params(
        repo,
        args.a_rev,
        args.b_rev,
        _paths(repo, args.targets),
        unchanged=args.all,
        deps_only=args.deps,
    )
    _warn(repo.root, found)
    _print_changes(repo, args, rows, "Param", precision=None)
    return 0


def _print_changes(
    repo: Repo, args: argparse.Namespace, rows: Iterable[MetricChange], title: str, *, precision: int | None
) -> None:
    if args.json:
        report: dict[str, dict[str, Any]] = {}
        for row in rows:
            report.setdefault(_from_here(repo, row.path), {})[row.name] = row.as_dict()
        _print_json(report)
        return
    with_change = precision is not None
    headers = ["Path", title, args.a_rev, args.b_rev, *(["Change"] if with_change else [])]
    table = []
    for row in rows:
        cells = [_from_here(repo, row.path), row.name, _cell(row.old, precision), _cell(row.new, precision)]
        if with_change:
            cells.append(_cell(row.as_dict().get("diff"), precision))
        table.append(cells)
    if args.no_path:
        headers, table = headers[1:], [cells[1:] for cells in table]
    print_table(headers, table, markdown=args.markdown)


def _cell(value: Any, precision: int | None) -> str:
    if value is None:
        return "-"
    return str(round(value, precision) if isinstance(value, float) and precision else value)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> None:
    """Print a table with headers, as DVC does. Without rows, it is printed only in markdown."""
    from dvkf_prefect.cli.tables import markdown_table, plain_table

    if markdown:
        print(markdown_table(headers, rows))
    elif rows:
        # DVC makes a header two columns wider than needed.
        print(plain_table([[header + "  " for header in headers], *rows]))


def _warn(root: Path, found: Mapping[str, Reading]) -> None:
    """Print warnings for unreadable files."""
    from dvkf_prefect.paths import file_meant

    for rev, reading in found.items():
        errors = {"": reading.error, **{path: file.error for path, file in reading.files.items()}}
        where = f" of '{rev}'" if rev else ""
        whole = rev or "the pipeline"
        for path, error in errors.items():
            if error is not None:
                hint = file_meant(root, path) if isinstance(error, FileNotFoundError) else ""
                say(
                    f"WARNING: {f'{path!r}{where}' if path else whole} cannot be read: {reason(error)}{hint}",
                    stream=sys.stderr,
                )


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, default=str))


def _paths(repo: Repo, targets: Sequence[str]) -> list[str]:
    return [repo.relpath(os.path.abspath(target)) for target in targets]


def _from_here(repo: Repo, path: str) -> str:
    return os.path.relpath(repo.root / path)
