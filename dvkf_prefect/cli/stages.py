"""Commands on the stages of dvc.yaml."""

from __future__ import annotations

import argparse
import os
import posixpath
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, open_repo, print_git_hint, targets_of
from dvkf_prefect.cli._output import say
from dvkf_prefect.errors import DvkfError, ParseError, StageNotFoundError
from dvkf_prefect.formats.files import PIPELINE_FILE

if TYPE_CHECKING:
    from dvkf_prefect.formats.dvcyaml import Stage
    from dvkf_prefect.pipeline.edit import NewStage
    from dvkf_prefect.repo import Repo

_WIDTH = 80


def stage_arguments(parser: Parser) -> None:
    """Describe ``dvkf stage``."""
    commands = parser.commands(
        add=(stage_add, "Write a stage into dvc.yaml."), list=(stage_list, "List stages.")
    )
    add = commands["add"]
    add.add_argument("-n", "--name", required=True, help="name of the stage")
    add.add_argument("-f", "--force", action="store_true", help="replace an existing stage of that name")
    for flags, metavar, text in (
        (("-d", "--deps"), "<path>", "file or directory that the stage reads"),
        (("-p", "--params"), "[<filename>:]<params_list>", "parameters that the stage reads"),
        (("-o", "--outs"), "<filename>", "file or directory that the stage writes"),
        (("-O", "--outs-no-cache"), "<filename>", "output that is not stored in the cache"),
        (("--outs-persist",), "<filename>", "output that is kept between runs"),
        (
            ("--outs-persist-no-cache",),
            "<filename>",
            "output that is kept between runs and not stored in the cache",
        ),
        (("-m", "--metrics"), "<path>", "metrics file that the stage writes"),
        (("-M", "--metrics-no-cache"), "<path>", "metrics file that is not stored in the cache"),
        (("--plots",), "<path>", "plots file that the stage writes"),
        (("--plots-no-cache",), "<path>", "plots file that is not stored in the cache"),
    ):
        add.add_argument(*flags, action="append", default=[], metavar=metavar, help=text)
    add.add_argument("-w", "--wdir", metavar="<path>", help="working directory of the command")
    add.add_argument("--always-changed", action="store_true", help="run the stage every time")
    add.add_argument("--desc", metavar="<text>", default="", help="description of the stage")
    # "run" is the function of the command.
    add.add_argument("--run", dest="run_it", action="store_true", help="run the stage after writing it")
    add.add_argument("command", nargs=argparse.REMAINDER, metavar="command", help="command of the stage")
    listing = commands["list"]
    listing.add_argument(
        "targets", nargs="*", default=[PIPELINE_FILE], help="files or folders (default: dvc.yaml)"
    )
    listing.add_argument("--all", action="store_true", help="list all stages of the repository")
    listing.add_argument("--fail", action="store_true", help="stop at the first file that cannot be read")
    listing.add_argument("-R", "--recursive", action="store_true", help="list all stages in target folders")
    listing.add_argument("--name-only", "--names-only", action="store_true", help="print only the names")


def stage_add(args: argparse.Namespace) -> int:
    """Run ``dvkf stage add``."""
    from dvkf_prefect.pipeline.edit import add_stage

    repo = open_repo()
    added = add_stage(repo, _new_stage(args), folder=repo.relpath(os.getcwd()), force=args.force)
    if not args.quiet:
        say(f"Added stage '{added.stage.name}' in '{PIPELINE_FILE}'")
    if args.run_it:
        from dvkf_prefect.cli.pipeline import run_one

        return run_one(repo, added.stage.address, quiet=args.quiet)
    if not args.quiet:
        print_git_hint(repo)
    return 0


def _new_stage(args: argparse.Namespace) -> NewStage:
    from dvkf_prefect.formats.params import DEFAULT_FILE
    from dvkf_prefect.pipeline.edit import NewOutput, NewStage

    params: dict[str, list[str]] = {}
    for text in args.params:
        file, _, keys = text.rpartition(":")
        params.setdefault(file or DEFAULT_FILE, []).extend(key for key in keys.split(",") if key)
    outs = [
        NewOutput(name, kind, cached, persist)
        for names, kind, cached, persist in (
            (args.outs_persist, "out", True, True),
            (args.outs_persist_no_cache, "out", False, True),
            (args.metrics, "metric", True, False),
            (args.metrics_no_cache, "metric", False, False),
            (args.plots, "plot", True, False),
            (args.plots_no_cache, "plot", False, False),
            (args.outs_no_cache, "out", False, False),
            (args.outs, "out", True, False),
        )
        for name in names
    ]
    return NewStage(
        args.name,
        _command(args.command),
        deps=args.deps,
        params=params,
        outs=outs,
        wdir=args.wdir or ".",
        desc=args.desc,
        always_changed=args.always_changed,
    )


def _command(words: Sequence[str]) -> str:
    """Join the words of a command, with quotes around words with blanks, as DVC does."""
    if len(words) < 2:
        return "".join(words)
    return " ".join(
        (f'"{word}"' if " " in word and '"' not in word else word) if word else '""' for word in words
    )


def stage_list(args: argparse.Namespace) -> int:
    """Run ``dvkf stage list``."""
    from dvkf_prefect.cli.tables import plain_table

    repo = open_repo()
    rows: dict[str, str] = {}
    for item in _listed(repo, args):
        name, text = _stage_row(repo, item)
        rows.setdefault(name, "" if args.name_only else text)
    if rows:
        print(plain_table(list(rows.items())))
    return 0


def _listed(repo: Repo, args: argparse.Namespace) -> Iterator[Stage | str]:
    from dvkf_prefect.formats.dvcyaml import load_stages
    from dvkf_prefect.formats.tracked import read_outputs

    files = repo.files()

    def find() -> list[str]:
        from dvkf_prefect.data.repository.described import workspace_described

        return sorted(described.path for described in workspace_described(repo))

    def read(path: str, *, strict: bool = False) -> list[Stage | str]:
        try:
            if posixpath.basename(path) == PIPELINE_FILE:
                return list(load_stages(files, path))
            read_outputs(files, path)  # raises for an invalid file
            return [path]
        except ParseError:
            if args.fail or strict:
                raise
            return []
        except FileNotFoundError:
            raise StageNotFoundError(f"'{path}' does not exist") from None

    if args.all:
        for path in find():
            yield from read(path)
        return
    from dvkf_prefect.pipeline.plan.selection import choose

    for typed in args.targets:
        (target,) = targets_of(repo, [typed])
        if args.recursive and os.path.isdir(typed):
            folder = repo.relpath(os.path.abspath(typed))
            for path in find():
                if not folder or path.startswith(folder + "/"):
                    yield from read(path)
        elif target.endswith(".dvc") or posixpath.basename(target) == PIPELINE_FILE:
            yield from read(target, strict=True)
        else:
            from dvkf_prefect.pipeline.plan.snapshot import Snapshot

            graph = Snapshot(repo).graph
            yield from (graph.stages[address] for address in choose(repo, graph, [target]))


def _stage_row(repo: Repo, item: Stage | str) -> tuple[str, str]:
    from dvkf_prefect.formats.dvcyaml import Stage

    if not isinstance(item, Stage):
        return os.path.relpath(repo.root / item), _short(_described_data(repo, item))
    file = os.path.relpath(repo.root / item.file)
    name = item.name if file == PIPELINE_FILE else f"{file}:{item.name}"
    described = next((line.strip() for line in item.desc.splitlines() if line), "")
    return name, _short(described or _description(item))


def _described_data(repo: Repo, file: str) -> str:
    """Return the description of a `.dvc` file, with paths in its own spelling."""
    from dvkf_prefect.formats import documents

    document = documents.load(repo.files().read(file), file) or {}
    desc = str(document.get("desc") or "")
    if described := next((line.strip() for line in desc.splitlines() if line), ""):
        return described
    outs = document.get("outs") or []
    return _sentence(
        [dep["path"] for dep in document.get("deps") or [] if "path" in dep],
        [out["path"] for out in outs if not (out.get("metric") or out.get("plot"))],
        [out["path"] for out in outs if out.get("metric") or out.get("plot")],
    )


def _description(stage: Stage) -> str:
    return _sentence(
        [*(dep.name for dep in stage.deps), *stage.params],
        [out.name for out in stage.outs if out.kind == "out"],
        [out.name for out in stage.outs if out.kind != "out"],
    )


def _sentence(read: Sequence[str], outs: Sequence[str], reports: Sequence[str]) -> str:
    if not outs and not reports:
        return f"Depends on {', '.join(read)}" if read else "No outputs or dependencies"
    return "; ".join(
        f"{verb} {', '.join(paths)}" for verb, paths in (("Outputs", outs), ("Reports", reports)) if paths
    )


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def freeze_arguments(parser: Parser) -> None:
    """Describe ``dvkf freeze``."""
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="stages or .dvc files")


def freeze(args: argparse.Namespace) -> int:
    """Run ``dvkf freeze``."""
    return _freeze(args, frozen=True)


def unfreeze_arguments(parser: Parser) -> None:
    """Describe ``dvkf unfreeze``."""
    freeze_arguments(parser)


def unfreeze(args: argparse.Namespace) -> int:
    """Run ``dvkf unfreeze``."""
    return _freeze(args, frozen=False)


def _freeze(args: argparse.Namespace, *, frozen: bool) -> int:
    from dvkf_prefect.pipeline.edit import freeze as set_frozen

    repo = open_repo()
    code = 0
    for target in args.targets:
        place, colon, name = target.rpartition(":")
        file = repo.relpath(os.path.abspath(place or PIPELINE_FILE))
        address = (
            repo.relpath(os.path.abspath(target))
            if target.endswith(".dvc") and not colon
            else f"{file}:{name}"
        )
        try:
            written = set_frozen(repo, address, frozen=frozen)
            if not args.quiet and not address.endswith(".dvc"):
                say(f"Modifying stage '{name}' in '{os.path.relpath(repo.root / written)}'")
        except DvkfError as error:
            say(
                f"ERROR: failed to {'freeze' if frozen else 'unfreeze'} '{target}': {error}",
                stream=sys.stderr,
            )
            code = 1
    return code


def dag_arguments(parser: Parser) -> None:
    """Describe ``dvkf dag``."""
    parser.add_argument(
        "target", nargs="?", help="stage or output to draw with its dependencies (default: all)"
    )
    parser.add_argument("--dot", action="store_true", help="print Graphviz DOT")
    parser.add_argument("--mermaid", action="store_true", help="print Mermaid")
    parser.add_argument(
        "--md", dest="markdown", action="store_true", help="print Mermaid in a Markdown block"
    )
    parser.add_argument("--full", action="store_true", help="include everything connected with the target")
    parser.add_argument("-o", "--outs", action="store_true", help="draw outputs instead of stages")
    parser.add_argument(
        "--collapse-foreach-matrix", action="store_true", help="draw one node for all stages of a template"
    )


def dag(args: argparse.Namespace) -> int:
    """Run ``dvkf dag``."""
    from dvkf_prefect.pipeline.report.dag import draw

    repo = open_repo()
    found = draw(
        repo,
        targets_of(repo, [args.target])[0] if args.target else None,
        outs=args.outs,
        full=args.full,
        collapse=args.collapse_foreach_matrix,
        folder=repo.relpath(os.getcwd()),
    )
    if args.dot:
        print(found.dot())
    elif args.mermaid or args.markdown:
        print(found.mermaid(markdown=args.markdown))
    else:
        text = found.text()
        if text:
            print(text)
    return 0
