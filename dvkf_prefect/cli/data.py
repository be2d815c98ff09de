"""Commands on data."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dvkf_prefect.cli._choice import choice_arguments, choice_of, history_arguments
from dvkf_prefect.cli._common import (
    Parser,
    open_repo,
    positive,
    print_git_hint,
    readable,
    targets_of,
)
from dvkf_prefect.cli._output import own_lines, say
from dvkf_prefect.errors import DvkfError, OutputError

if TYPE_CHECKING:
    from dvkf_prefect.data.verbs.checkout import Checkout
    from dvkf_prefect.data.verbs.diff import DiffEntry
    from dvkf_prefect.repo import Repo


def init_arguments(parser: Parser) -> None:
    """Describe ``dvkf init``."""
    parser.add_argument("--no-scm", action="store_true", help="initialize without git")
    parser.add_argument(
        "--subdir", action="store_true", help="allow a folder below the top of a git repository"
    )
    parser.add_argument(
        "-f", "--force", action="store_true", help="reset the settings of an existing repository"
    )


def init(args: argparse.Namespace) -> int:
    """Run ``dvkf init``."""
    from dvkf_prefect.repo import Repo

    repo = Repo.init(no_scm=args.no_scm, subdir=args.subdir, force=args.force)
    if not args.quiet:
        say(f"Initialized DVC repository in {repo.root}.")
        if repo.git:
            print('\nYou can now commit it:\n\n\tgit commit -m "Initialize DVC"')
    return 0


def add_arguments(parser: Parser) -> None:
    """Describe ``dvkf add``."""
    parser.add_argument("targets", nargs="+", metavar="PATH")
    parser.add_argument(
        "--no-commit", action="store_true", help="record the content without storing it in the cache"
    )
    from dvkf_prefect.cli.workspace import elsewhere_arguments

    elsewhere_arguments(parser)


def add(args: argparse.Namespace) -> int:
    """Run ``dvkf add``."""
    from dvkf_prefect.cli.workspace import add_targets

    repo, versions = add_targets(args)
    if not args.quiet:
        for version in versions:
            say(f"{version.path}: {version.nfiles} file(s), {readable(version.size)}, {version.digest}")
        print_git_hint(repo)
    return 0


def commit_arguments(parser: Parser) -> None:
    """Describe ``dvkf commit``."""
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("-f", "--force", action="store_true", help="skip the confirmation")


def commit(args: argparse.Namespace) -> int:
    """Run ``dvkf commit``."""
    repo = open_repo(args)
    targets = targets_of(repo, args.targets)
    if not args.force:
        changed = [change for change in repo.status(targets).changes if change.state == "modified"]
        if changed:
            names = ", ".join(change.path for change in changed)
            if not sys.stdin.isatty():
                raise OutputError(f"{names} changed. Use --force to record it without confirmation.")
            if input(f"{names} changed. Record the new content? [y/n] ").strip().lower() not in ("y", "yes"):
                return 255
    done = repo.commit(targets, sources=args.force)
    if not args.quiet:
        for version in done.versions:
            say(f"{version.path}: {version.nfiles} file(s), {readable(version.size)}, {version.digest}")
        for stage in done.stages:
            say(f"{stage}: recorded in dvc.lock")
    return 0


def status_arguments(parser: Parser) -> None:
    """Describe ``dvkf status``."""
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("-c", "--cloud", action="store_true", help="compare the cache with the remote")
    parser.add_argument("-r", "--remote", metavar="<name>", help="remote to compare with")
    parser.add_argument("-j", "--jobs", type=positive, metavar="<number>", help="number of parallel requests")
    history_arguments(parser)
    choice_arguments(parser)
    parser.add_argument(
        "--deep",
        action="store_true",
        help="check every file of the directories on the remote (with --cloud)",
    )
    parser.add_argument(
        "--no-updates",
        dest="check_updates",
        action="store_false",
        help="skip the check for changed sources of imports",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def status(args: argparse.Namespace) -> int:
    """Run ``dvkf status``."""
    repo = open_repo(args)
    try:
        return _status(repo, targets_of(repo, args.targets), args)
    except DvkfError as error:
        print(f"ERROR: {own_lines(str(error))}", file=sys.stderr)
        return 1


def _status(repo: Repo, targets: Sequence[str], args: argparse.Namespace) -> int:
    import json

    if args.cloud or args.remote:
        return _cloud_status(repo, targets, args)
    choice = choice_of(args)
    if choice.history or args.jobs or args.deep:
        raise OutputError(
            "--all-branches, --all-tags, --all-commits, --jobs and --deep apply to a remote. Pass --cloud too."
        )
    if targets and (choice.with_deps or choice.recursive):
        from dvkf_prefect.data.repository.selection import select

        targets = list(dict.fromkeys(output.path for output in select(repo, targets, choice).outputs))
        if not targets:
            print("Data and pipelines are up to date.")
            return 0
    if targets:
        # A path inside an output shows the state of the whole output.
        tracked = [output.path for output in repo.outputs()]
        targets = [next((path for path in tracked if t.startswith(path + "/")), t) for t in targets]
    data = repo.status(targets)
    files = [] if data.outputs else repo.files().find()
    report: dict[str, list[Any]] = {}
    if data.outputs or files:
        from dvkf_prefect.pipeline.plan.why import status_report

        report = _from_here(repo, status_report(repo, data, targets))
    imported = [
        output
        for output in data.imports
        if (origin := output.origin) and (args.check_updates or not (origin.repo or origin.frozen))
    ]
    if imported:
        from dvkf_prefect.data.imports.changes import changed_sources

        for source, deps in changed_sources(repo, imported).items():
            name = _path_from_here(repo, source)
            report[name] = [{"changed deps": deps}, *report.get(name, ())]
    for source in data.always:
        report.setdefault(_path_from_here(repo, source), []).insert(0, "always changed")
    for source in data.edited:
        report.setdefault(_path_from_here(repo, source), []).append("changed checksum")
    if args.quiet:
        return 1 if report else 0
    if args.json:
        print(json.dumps(report))
    elif report:
        _print_report(report, _reasons(repo, targets) if any(map(_is_stage, report)) else {})
    elif data.outputs or any(name.endswith("dvc.yaml") for name in files):
        print("Data and pipelines are up to date.")
    else:
        print("There are no data or pipelines tracked in this project yet.")
    return 0


def _from_here(repo: Repo, report: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Convert the names in a report from the root to the current folder, as DVC prints them."""
    if os.getcwd() == str(repo.root):
        return report

    def group(what: Any) -> Any:
        if isinstance(what, str):
            return what
        return {
            title: {_path_from_here(repo, path): state for path, state in entries.items()}
            for title, entries in what.items()
        }

    return {
        _source_from_here(repo, source): [group(what) for what in groups] for source, groups in report.items()
    }


def _is_stage(source: str) -> bool:
    return not source.endswith(".dvc")


def _source_from_here(repo: Repo, source: str) -> str:
    if not _is_stage(source):
        return _path_from_here(repo, source)
    file, colon, stage = source.rpartition(":")
    file = _path_from_here(repo, file if colon else "dvc.yaml")
    return stage if file == "dvc.yaml" else f"{file}:{stage}"


def _reasons(repo: Repo, targets: Sequence[str]) -> dict[str, str]:
    """Return changes with old and new values by stage. Targets may include data."""
    from dvkf_prefect.errors import StageNotFoundError
    from dvkf_prefect.pipeline.plan.why import stage_status

    try:
        changed = stage_status(repo, targets)
    except StageNotFoundError:
        changed = stage_status(repo)
    return {_source_from_here(repo, address): "; ".join(map(str, why)) for address, why in changed.items()}


def _path_from_here(repo: Repo, path: str) -> str:
    return path if path.startswith("/") else os.path.relpath(repo.root / path)


def _print_report(report: dict[str, list[Any]], reasons: dict[str, str]) -> None:
    for name, groups in report.items():
        say(f"{name}:")
        for group in groups:
            if isinstance(group, str):
                say(f"\t{group}")
                continue
            for title, entries in group.items():
                say(f"\t{title}:")
                for path, state in entries.items():
                    if isinstance(state, dict):
                        say(f"\t\t{path}:")
                        for key, what in state.items():
                            say(f"\t\t\t{what + ':':<20}{key}")
                    else:
                        say(f"\t\t{state + ':':<20}{path}")
        if name in reasons:
            say(f"\tbecause {reasons[name]}")


def _cloud_status(repo: Repo, targets: Sequence[str], args: argparse.Namespace) -> int:
    import json

    states = repo.cloud_status(targets, choice=choice_of(args), remote=args.remote, deep=args.deep)
    if args.quiet:
        return 1 if states else 0
    if args.json:
        print(json.dumps(states))
    elif states:
        for path, state in states.items():
            say(f"\t{state + ':':<20}{path}")
    else:
        say(f"Cache and remote '{repo.remote(args.remote).name}' are in sync.")
    return 0


def print_checkout(changes: Checkout) -> None:
    """Print the changes of a checkout, as DVC does."""
    for mark, paths in (("M", changes.modified), ("A", changes.added), ("D", changes.deleted)):
        for path in paths:
            say(f"{mark}\t{path}")


def checkout_arguments(parser: Parser) -> None:
    """Describe ``dvkf checkout``."""
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite content that has no other copy")
    parser.add_argument("--allow-missing", action="store_true", help="skip data that is not in the cache")
    parser.add_argument(
        "--relink", action="store_true", help="recreate unchanged files by the link type of cache.type"
    )
    parser.add_argument("--summary", action="store_true", help="print only the number of changes")
    choice_arguments(parser)


def checkout(args: argparse.Namespace) -> int:
    """Run ``dvkf checkout``."""
    repo = open_repo(args)
    changes = repo.checkout(
        targets_of(repo, args.targets),
        choice=choice_of(args),
        force=args.force,
        allow_missing=args.allow_missing,
        relink=args.relink,
    )
    if args.summary:
        counts = [
            f"{len(paths)} {word}"
            for word, paths in (
                ("modified", changes.modified),
                ("added", changes.added),
                ("deleted", changes.deleted),
            )
            if paths
        ]
        say(" and ".join(counts) if counts else "No changes.")
    elif not args.quiet:
        print_checkout(changes)
    return 0


def diff_arguments(parser: Parser) -> None:
    """Describe ``dvkf diff``."""
    parser.add_argument("a_rev", nargs="?", default="HEAD", help="older git revision (default: HEAD)")
    parser.add_argument("b_rev", nargs="?", help="newer git revision (default: the workspace)")
    parser.add_argument(
        "--targets", nargs="*", default=[], metavar="TARGET", help="outputs to compare (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--md", dest="markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--show-hash", action="store_true", help="print digests")
    parser.add_argument(
        "--hide-missing", action="store_true", help="omit data that is missing from the cache"
    )


def diff(args: argparse.Namespace) -> int:
    """Run ``dvkf diff``."""
    import dataclasses
    import json

    repo = open_repo()
    found = repo.diff(args.a_rev, args.b_rev, targets_of(repo, args.targets))
    if args.quiet:
        return 0
    rows = found.as_dict(hashes=args.show_hash)
    if args.hide_missing:
        rows.pop("not in cache", None)
        found = dataclasses.replace(found, not_in_cache=())
    if args.json:
        print(json.dumps(rows))
        return 0
    groups = (
        ("added", found.added),
        ("deleted", found.deleted),
        ("renamed", found.renamed),
        ("modified", found.modified),
        ("not in cache", found.not_in_cache),
    )
    if args.markdown:
        from dvkf_prefect.cli.tables import markdown_table

        hashes = ("Hash",) if args.show_hash else ()
        print(
            markdown_table(
                ("Status", *hashes, "Path"),
                [
                    (title, *((_mark(entry),) if hashes else ()), _name(entry))
                    for title, entries in groups
                    for entry in entries
                ],
            )
        )
        return 0
    counts = []
    for title, entries in groups:
        if not entries:
            continue
        say(f"{title.capitalize()}:")
        for entry in entries:
            say(f"    {_mark(entry) + '  ' if args.show_hash else ''}{_name(entry)}")
        print()
        files = sum(1 for entry in entries if not entry.path.endswith("/"))
        if files:
            counts.append(f"{files} {title}")
    if counts:
        say(f"files summary: {', '.join(counts)}")
    return 0


def _mark(entry: DiffEntry) -> str:
    return "..".join(dict.fromkeys(d[:8] for d in (entry.old_digest, entry.new_digest) if d))


def _name(entry: DiffEntry) -> str:
    return f"{entry.old_path} -> {entry.path}" if entry.old_path else entry.path
