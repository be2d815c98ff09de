"""Commands on artifacts: those that dvc.yaml files declare, and the files of registered versions."""

from __future__ import annotations

import argparse
import json
import os

from dvkf_prefect.cli._common import Parser, open_repo, positive, progress_bar
from dvkf_prefect.cli._output import say


def artifacts_arguments(parser: Parser) -> None:
    """Describe ``dvkf artifacts``."""
    commands = parser.commands(
        get=(artifacts_get, "Download the files of an artifact's version."),
        list=(artifacts_list, "List the artifacts that dvc.yaml files declare."),
    )
    get = commands["get"]
    get.add_argument("url", help="repository: a folder or a git URL")
    get.add_argument("name", help="artifact; folder:name if declared in folder/dvc.yaml")
    which = get.add_mutually_exclusive_group()
    which.add_argument("--rev", metavar="<version>", help="version (default: the highest)")
    which.add_argument("--stage", metavar="<stage>", help="stage that holds the version, such as prod")
    get.add_argument("-o", "--out", metavar="<path>", help="destination path")
    get.add_argument("-f", "--force", action="store_true", help="replace an existing file or directory")
    get.add_argument(
        "--show-url", action="store_true", help="print the URL on the remote without downloading"
    )
    get.add_argument("--remote", metavar="<name>", help="remote of the repository to download from")
    get.add_argument("-j", "--jobs", type=positive, metavar="<n>", help="number of parallel transfers")
    listing = commands["list"]
    listing.add_argument("--rev", metavar="<commit>", help="git revision (default: the workspace)")
    listing.add_argument("--json", action="store_true", help="print JSON")


def artifacts_get(args: argparse.Namespace) -> int:
    """Run ``dvkf artifacts get``."""
    from dvkf_prefect.models import catalogue

    which = f"#{args.stage}" if args.stage else args.rev or "latest"
    if args.show_url:
        say(catalogue.artifact_url(args.url, args.name, which, remote=args.remote))
        return 0
    path = catalogue.get_artifact(
        args.url,
        args.name,
        which,
        out=args.out,
        force=args.force,
        remote=args.remote,
        jobs=args.jobs,
        progress=progress_bar(args.quiet),
    )
    say(f"{args.name} is in '{os.path.relpath(path)}'")
    return 0


def artifacts_list(args: argparse.Namespace) -> int:
    """Run ``dvkf artifacts list``."""
    from dvkf_prefect.cli.tables import plain_table
    from dvkf_prefect.models.catalogue import list_artifacts

    found = list_artifacts(open_repo(), args.rev)
    if args.json:
        print(json.dumps({name: row.as_dict() for name, row in found.items()}, default=str))
        return 0
    rows: list[list[str | None]] = [["name", "type", "path", "latest", "stages", "description"]]
    for name, row in found.items():
        stages = " ".join(f"#{stage} {version}" for stage, version in row.stages.items())
        rows.append([name, row.declared.type, row.declared.path, row.latest, stages, row.declared.desc])
    print(plain_table(rows) if found else "No dvc.yaml declares an artifact.")
    return 0
