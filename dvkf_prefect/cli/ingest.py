"""Command that takes new files into a dataset by a quality gate."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, open_repo, positive
from dvkf_prefect.cli._output import say
from dvkf_prefect.cli.maintenance import duration

if TYPE_CHECKING:
    from dvkf_prefect.data.quality.incoming import Incoming
    from dvkf_prefect.repo import Repo


def ingest_arguments(parser: Parser) -> None:
    """Describe ``dvkf ingest``."""
    parser.add_argument("inbox", metavar="INBOX", help="folder or URL with the new files")
    parser.add_argument("dataset", metavar="DATASET", help="directory that receives the files; it may be new")
    parser.add_argument(
        "--schema",
        required=True,
        metavar="<schema>",
        help="pandera schema of the files: FILE.yaml, FILE.json, FILE.py:NAME or MODULE:NAME, from the root",
    )
    parser.add_argument(
        "--quarantine",
        metavar="<place>",
        help="folder or URL for files that fail (default: INBOX-quarantine)",
    )
    parser.add_argument(
        "--reports",
        metavar="<path>",
        help="directory of the reports, from the root (default: quality-reports)",
    )
    parser.add_argument(
        "--existing",
        choices=("quarantine", "replace"),
        default="quarantine",
        help="handling of a file whose path in the dataset has other content (default: quarantine)",
    )
    parser.add_argument(
        "--settle",
        type=duration,
        default=10.0,
        metavar="<duration>",
        help="leave files that changed within this time, such as 90s or 15m (default: 10s)",
    )
    parser.add_argument("--no-push", action="store_true", help="do not push the data to the remote")
    parser.add_argument("--no-commit", action="store_true", help="do not commit the dataset to git")
    parser.add_argument("-m", "--message", metavar="<message>", help="message of the commit")
    parser.add_argument("--dry-run", action="store_true", help="check the files only, and move none")
    parser.add_argument(
        "-j", "--jobs", type=positive, metavar="<number>", help="number of parallel transfers"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def ingest(args: argparse.Namespace) -> int:
    """Run ``dvkf ingest``; the code is 1 if a file was refused."""
    from dvkf_prefect.data.quality.incoming import add_incoming, check_incoming, clear_incoming
    from dvkf_prefect.data.quality.reports import FOLDER
    from dvkf_prefect.data.repository.turns import turn
    from dvkf_prefect.pipeline.run.documents import need_git

    repo = open_repo(args)
    commits = not (args.no_commit or args.dry_run)
    if commits:
        need_git(repo).identity()
    with turn(repo.turn_file):
        found = check_incoming(
            repo,
            _place(args.inbox),
            repo.relpath(os.path.abspath(args.dataset)),
            args.schema,
            reports=args.reports or FOLDER,
            quarantine=_place(args.quarantine) if args.quarantine else None,
            existing=args.existing,
            settle=args.settle,
            dry_run=args.dry_run,
        )
        commit, removed = None, 0
        if not args.dry_run:
            outputs = [version.path for version in add_incoming(repo, found)]
            if outputs and not args.no_push:
                repo.push(outputs)
            if outputs and commits:
                commit = _commit(repo, found, outputs, args.message)
            removed = len(clear_incoming(repo, found))
    _show(args, found, commit, removed)
    return 1 if found.refused else 0


def _place(text: str) -> str:
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def _commit(repo: Repo, found: Incoming, outputs: list[str], message: str | None) -> str | None:
    from dvkf_prefect.pipeline.run.documents import changed_documents, describing_files, need_git

    paths = describing_files(repo, outputs, changed_documents(repo))
    return need_git(repo).commit(paths, message or found.message) if paths else None


def _show(args: argparse.Namespace, found: Incoming, commit: str | None, removed: int) -> None:
    if args.json:
        import json

        print(json.dumps({**found.as_dict(), "commit": commit, "removed": removed}))
        return
    for file in found.refused if args.quiet else found.files:
        say(str(file) + (f" (in {file.place})" if file.place and not args.dry_run else ""))
    if not args.quiet:
        say(f"{found}.")
        if commit:
            say(f"Commit {commit[:10]}. Push it by `git push`.")
