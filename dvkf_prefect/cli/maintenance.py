"""Commands that maintain caches and remotes."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, open_repo, positive, readable, targets_of
from dvkf_prefect.cli._output import own_lines, say
from dvkf_prefect.errors import ConfigError

if TYPE_CHECKING:
    from dvkf_prefect.data.upkeep.gc import GarbageCollection, GcScope
    from dvkf_prefect.repo import Repo

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def duration(text: str) -> float:
    """Parse ``90``, ``90s``, ``15m``, ``2h``, ``7d`` or ``4w`` to seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text.strip().lower())
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration such as 90s, 15m, 2h or 7d")
    return float(found[1]) * _UNITS[found[2] or "s"]


def gc_arguments(parser: Parser) -> None:
    """Describe ``dvkf gc``."""
    switches = (
        ("-w", "--workspace", "keep objects of the workspace"),
        ("-a", "--all-branches", "keep objects of the tips of all branches"),
        ("-T", "--all-tags", "keep objects of all tags"),
        ("-A", "--all-commits", "keep objects of all commits"),
    )
    for short, long, text in switches:
        parser.add_argument(short, long, action="store_true", help=text)
    parser.add_argument("--rev", metavar="<commit>", help="keep objects of this revision")
    parser.add_argument(
        "-n",
        "--num",
        type=int,
        metavar="<num>",
        help="number of commits to keep back from each of --rev or -a (default: 1, itself)",
    )
    parser.add_argument(
        "--date",
        metavar="<yyyy-mm-dd>",
        help="keep objects of commits of this date and later",
    )
    parser.add_argument(
        "--all-experiments", action="store_true", help="keep objects of experiments saved by dvc"
    )
    parser.add_argument(
        "--not-in-remote",
        action="store_true",
        help="keep only used objects that are not on the remote",
    )
    parser.add_argument("-c", "--cloud", action="store_true", help="remove objects from the remote too")
    parser.add_argument(
        "-r", "--remote", metavar="<name>", help="name of the remote (default: the default remote)"
    )
    parser.add_argument(
        "--skip-failed",
        action="store_true",
        help="continue if objects in use cannot be determined, instead of refusing",
    )
    parser.add_argument("-f", "--force", action="store_true", help="skip the confirmation")
    parser.add_argument("-j", "--jobs", type=positive, metavar="<number>", help="number of parallel requests")
    parser.add_argument(
        "-p",
        "--projects",
        nargs="*",
        default=[],
        metavar="<paths>",
        help="keep objects of these repositories, which share the cache or the remote",
    )
    parser.add_argument(
        "--dry", action="store_true", help="print the objects that would be removed, and remove none"
    )
    parser.add_argument(
        "--grace",
        type=duration,
        metavar="<duration>",
        help="keep objects younger than this, such as 90s, 15m, 2h or 7d "
        "(1h on a remote and in a cache outside the repository)",
    )
    parser.add_argument("--run-cache", action="store_true", help="keep objects that the run cache names")
    parser.add_argument(
        "--results",
        nargs="?",
        type=duration,
        const=math.inf,
        metavar="<age>",
        help="remove expired results of Prefect from the remote, and those older than an age such as 30d; "
        "objects only if their options are given too",
    )
    parser.add_argument(
        "--assume-unshared",
        action="store_true",
        help="assert that no other repository uses the cache or, with -c, the remote",
    )


def gc(args: argparse.Namespace) -> int:
    """Run ``dvkf gc``."""
    from dvkf_prefect.data.upkeep.gc import GcOptions, GcScope

    scope = GcScope(
        workspace=args.workspace,
        all_branches=args.all_branches,
        all_tags=args.all_tags,
        all_commits=args.all_commits,
        all_experiments=args.all_experiments,
        rev=args.rev,
        num=args.num,
        date=args.date,
    )
    alone = args.results is not None and scope == GcScope() and not args.cloud
    try:
        if not alone:
            scope.check()
        if args.cloud and args.not_in_remote:
            raise ConfigError("`--not-in-remote` and `--cloud` are mutually exclusive")
        if args.remote and not (args.cloud or args.not_in_remote or args.results is not None):
            raise ConfigError("`--remote` requires `--cloud`, `--not-in-remote` or `--results`")
    except ConfigError as error:
        # DVC ends with this code, not with that of an invalid configuration.
        print(f"ERROR: {own_lines(str(error))}", file=sys.stderr)
        return 255
    repo = open_repo(args)
    if not args.quiet:
        texts = [] if alone else [_warning(args, scope, repo)]
        if args.results is not None:
            texts.append(_warning_on_results(args, repo))
        for text in texts:
            say(f"WARNING: {text}", stream=sys.stderr)
    if not (args.dry or args.force) and not _confirmed():
        return 1
    if args.results is not None:
        _expire_results(args, repo)
    if alone:
        return 0
    collected = repo.gc(
        scope,
        GcOptions(
            cloud=args.cloud,
            remote=args.remote,
            projects=args.projects,
            dry_run=args.dry,
            not_in_remote=args.not_in_remote,
            skip_failed=args.skip_failed,
            run_cache=args.run_cache,
            grace=args.grace,
            assume_unshared=args.assume_unshared,
        ),
    )
    if not args.quiet:
        _print_collection(collected)
    return 0


def _warning_on_results(args: argparse.Namespace, repo: Repo) -> str:
    """Return the warning on the results that will be removed."""
    age = "" if math.isinf(args.results) else f" and those older than {args.results / 86400:g} days"
    return (
        f"This will remove expired results of Prefect{age} from the remote '{repo.remote(args.remote).name}'."
    )


def _expire_results(args: argparse.Namespace, repo: Repo) -> None:
    """Remove old results from the remote, and print them in a dry run."""
    from dvkf_prefect.data.results.expiry import expire_results

    age = None if math.isinf(args.results) else args.results
    expired = expire_results(repo.remote(args.remote).storage, older_than=age, dry_run=args.dry)
    if args.quiet:
        return
    for key in expired.keys:
        say(f"Removing result {key}")
    say(f"{expired} ({readable(expired.size)}).")


def _warning(args: argparse.Namespace, scope: GcScope, repo: Repo) -> str:
    """Return DVC's warning on the data that will be kept."""
    num = scope.num or (1 if scope.rev else None)
    kept = ["the workspace"]
    if scope.all_commits:
        kept.append("all git commits")
    else:
        last = f"last {num} commits from " if num else ""
        if scope.all_branches and scope.all_tags and not last:
            kept.append("all git branches and tags")
        else:
            if scope.all_branches:
                kept.append(f"{last}all git branches")
            if scope.all_tags:
                kept.append("all git tags")
        if scope.date:
            kept.append(f"all git commits before date {scope.date}")
        if scope.rev:
            kept.append(f"{last}{scope.rev}")
    if scope.all_experiments:
        kept.append("all experiments")
    text = f"This will remove all cache except items used in {' and '.join(kept)}"
    if args.not_in_remote:
        text += " that are not present in the DVC remote"
    if args.projects:
        others = "".join(f"\n  - {os.path.abspath(path)}" for path in args.projects)
        text += f" of the current and the following repos:{others}"
    else:
        text += " of the current repo."
    if not repo.cache.root.is_relative_to(repo.dvc_dir):
        text += f"\nThe cache is {repo.cache.root}. Name other repositories that use it with -p."
    return text


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        print(
            "ERROR: no terminal for the confirmation. Pass -f to remove without confirmation, or --dry.",
            file=sys.stderr,
        )
        return False
    while True:
        try:
            answer = input("Are you sure you want to proceed? [y/n]: ").strip().lower()
        except EOFError:
            return False
        if answer in ("y", "yes"):
            return True
        if answer in ("n", "no"):
            return False


def _print_collection(collected: GarbageCollection) -> None:
    for text in collected.skipped:
        say(f"WARNING: {text}", stream=sys.stderr)
    for place in collected.places:
        for name in place.names:
            say(f"Removing {name}")
        where = "remote" if place.remote else f"{place.place} cache"
        if place.place.endswith("/dvkf"):
            if place.objects:
                say(f"Removed {place.objects} files that runs on Kubeflow left on the remote.")
        elif place.objects:
            say(f"Removed {place.objects} objects from {where}.")
        elif place.remote:
            print("No unused cache to remove from remote.")
        else:
            say(f"No unused '{place.place}' cache to remove.")
    if collected.objects:
        word = "would be freed" if collected.dry else "freed"
        say(f"{readable(collected.size)} {word}, {collected.kept} objects kept.")
    if collected.young:
        say(f"{collected.young} unused objects are too young to be removed (--grace).")


def verify_arguments(parser: Parser) -> None:
    """Describe ``dvkf verify``."""
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("-c", "--cloud", action="store_true", help="check the remote instead of the cache")
    parser.add_argument(
        "-r", "--remote", metavar="<name>", help="name of the remote (default: the default remote)"
    )
    parser.add_argument("--repair", action="store_true", help="replace damaged objects by good copies")
    parser.add_argument(
        "--sample",
        type=float,
        default=1.0,
        metavar="<share>",
        help="read this share of the files, such as 0.1, chosen at random (default: 1, all)",
    )
    parser.add_argument("-a", "--all-branches", action="store_true", help="include the tips of all branches")
    parser.add_argument("-T", "--all-tags", action="store_true", help="include all tags")
    parser.add_argument("-A", "--all-commits", action="store_true", help="include all commits")
    parser.add_argument("-j", "--jobs", type=positive, metavar="<number>", help="number of parallel checks")
    parser.add_argument("--json", action="store_true", help="print JSON")


def verify(args: argparse.Namespace) -> int:
    """Run ``dvkf verify``."""
    from dvkf_prefect.data.upkeep.verify import VerifyOptions

    repo = open_repo(args)
    found = repo.verify(
        targets_of(repo, args.targets),
        VerifyOptions(
            cloud=args.cloud,
            remote=args.remote,
            repair=args.repair,
            sample=args.sample,
            all_branches=args.all_branches,
            all_tags=args.all_tags,
            all_commits=args.all_commits,
        ),
    )
    if args.json:
        import json

        print(json.dumps(found.as_dict()))
        return 0 if found else 1
    for problem in found.problems:
        if not (args.quiet and problem.repaired):
            say(f"{'repaired, was ' if problem.repaired else ''}{problem}")
    if not args.quiet:
        repaired = sum(problem.repaired for problem in found.problems)
        wrong = f"{len(found.problems)} problem(s), {repaired} repaired" if found.problems else "no problems"
        say(f"{found.objects} objects checked ({readable(found.size)}): {wrong}.")
    return 0 if found else 1
