"""Commands that deploy the flows of a repository on Prefect, and check the deployments."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dvkf_prefect.cli._common import Parser, open_repo
from dvkf_prefect.cli._output import say
from dvkf_prefect.errors import NotARepositoryError


def prefect_arguments(parser: Parser) -> None:
    """Describe ``dvkf prefect``."""
    commands = parser.commands(
        init=(init, "Write flows, blocks and prefect.yaml for this repository."),
        check=(check, "Check the deployments of prefect.yaml: blocks, work pools, workers, schedules."),
    )
    make = commands["init"]
    make.add_argument(
        "--name",
        metavar="<name>",
        help="name of the blocks and of the work pool (default: the folder's name)",
    )
    make.add_argument(
        "--type",
        choices=("process", "docker", "kubernetes"),
        default="process",
        help="type of the work pool (default: process)",
    )
    make.add_argument(
        "--image",
        default="",
        metavar="<image>",
        help="container image of the flows, for docker and kubernetes",
    )
    make.add_argument("--cron", metavar="<cron>", help="times of the scheduled run, as in a crontab")
    make.add_argument(
        "--timezone", default="UTC", metavar="<zone>", help="time zone of the times (default: UTC)"
    )
    make.add_argument(
        "--on-push",
        action="store_true",
        help="start the deployment when data that its stages read is pushed, and deploy the flow watch",
    )
    make.add_argument(
        "--inbox",
        default="",
        metavar="<folder>",
        help="deploy the flow ingest for new files of this folder, with --dataset and --schema",
    )
    make.add_argument(
        "--dataset", default="", metavar="<path>", help="directory of the dataset for the files of the inbox"
    )
    make.add_argument(
        "--schema", default="", metavar="<schema>", help="schema of these files: FILE.yaml, or FILE.py:NAME"
    )
    make.add_argument("-f", "--force", action="store_true", help="replace files with other content")
    commands["check"].add_argument("--json", action="store_true", help="print JSON")


def init(args: argparse.Namespace) -> int:
    """Run ``dvkf prefect init``."""
    from prefect.settings import get_current_settings

    from dvkf_prefect import __version__
    from dvkf_prefect.deploy.project import Project, next_steps, project_files, project_name, write_files

    repo = open_repo()
    project = Project(
        args.name or project_name(repo),
        pool_type=args.type,
        image=args.image,
        cron=args.cron,
        timezone=args.timezone,
        on_push=args.on_push,
        inbox=args.inbox,
        dataset=args.dataset,
        table_schema=args.schema,
    )
    written = write_files(repo.root, project_files(repo, project, version=__version__), force=args.force)
    if args.quiet:
        return 0
    for name in written:
        say(f"{name} written")
    if not written:
        say("All files are up to date.")
    say(f"\nTo deploy the flows, start a server (`prefect server start`) and run in {repo.root}:\n")
    for step in next_steps(project, address=not get_current_settings().api.url):
        say(f"\t{step}")
    say("\n`dvkf prefect check` says what is missing.")
    return 0


def check(args: argparse.Namespace) -> int:
    """Run ``dvkf prefect check``."""
    from dvkf_prefect.deploy.check import check_deployments

    try:
        root = open_repo().root
    except NotARepositoryError:
        root = Path.cwd()
    checks = []
    for found in check_deployments(root):
        checks.append(found)
        if not (args.json or args.quiet):
            say(str(found))
    if args.json:
        print(json.dumps([asdict(found) for found in checks]))
    return 1 if any(found.state == "fail" for found in checks) else 0
