"""Commands that transfer data between the cache and a remote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dvkf_prefect.cli._choice import choice_arguments, choice_of, history_arguments
from dvkf_prefect.cli._common import Parser, open_repo, positive, readable, targets_of
from dvkf_prefect.cli._output import own_lines, say
from dvkf_prefect.cli.data import print_checkout
from dvkf_prefect.errors import RemoteNotFoundError, TransferError

if TYPE_CHECKING:
    from dvkf_prefect.data.transfer.transfer import Transfer
    from dvkf_prefect.data.verbs.push_fetch import Plans
    from dvkf_prefect.repo import Repo


def _print_transfer(moved: Transfer, word: str, *, changed: bool = False) -> None:
    if moved.files:
        say(f"{moved.files} file(s) {word} ({readable(moved.size)}, {moved.remote})")
    elif not changed:
        print("Everything is up to date.")


def _print_plans(plans: Plans, quiet: bool) -> int:
    if not quiet:
        print(plans)
    return 0


def _arguments(parser: Parser) -> None:
    """Add the common options of push, fetch and pull."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="outputs, paths inside them, .dvc files, dvc.yaml files or stages (default: all)",
    )
    parser.add_argument(
        "-r", "--remote", metavar="<name>", help="name of the remote (default: the default remote)"
    )
    parser.add_argument(
        "-j", "--jobs", type=positive, metavar="<number>", help="number of parallel transfers"
    )
    history_arguments(parser)
    choice_arguments(parser)
    parser.add_argument(
        "--run-cache",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="include the run cache",
    )
    parser.add_argument(
        "--dry", action="store_true", help="print the transfers and their sizes without running them"
    )


def push_arguments(parser: Parser) -> None:
    """Describe ``dvkf push``."""
    _arguments(parser)
    parser.add_argument(
        "--glob", action="store_true", help="treat targets as patterns: * in a name, ** across folders"
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="check every file of the directories on the remote, and send missing ones",
    )


def push(args: argparse.Namespace) -> int:
    """Run ``dvkf push``."""
    repo = open_repo(args)
    targets = targets_of(repo, args.targets)
    choice = choice_of(args)
    if args.dry:
        plans = repo.plan_push(
            targets, choice=choice, remote=args.remote, run_cache=args.run_cache, deep=args.deep
        )
        return _print_plans(plans, args.quiet)
    moved = _warn_of_missing(
        repo.push,
        targets,
        choice=choice,
        remote=args.remote,
        run_cache=args.run_cache,
        deep=args.deep,
    )
    if moved is not None and not args.quiet:
        _print_transfer(moved, "pushed")
    return 0


def _warn_of_missing(
    verb: Callable[..., Transfer], targets: Sequence[str], **options: Any
) -> Transfer | None:
    """Run a transfer. Objects missing on both sides are a warning after all others moved, as in DVC.

    Args:
        verb: Method of the repository.
        targets: Targets of the transfer.
        options: Further arguments of the method.

    Returns:
        The transfer; None if objects were missing.
    """
    try:
        return verb(targets, **options)
    except TransferError as error:
        if not error.only_missing:
            raise
        print(f"WARNING: {own_lines(str(error))}", file=sys.stderr)
        return None


def fetch_arguments(parser: Parser) -> None:
    """Describe ``dvkf fetch``."""
    _arguments(parser)
    parser.add_argument(
        "--max-size", type=int, metavar="<bytes>", help="transfer only outputs smaller than this"
    )
    parser.add_argument(
        "--type",
        dest="types",
        action="append",
        default=[],
        choices=["metrics", "plots"],
        help="kind of outputs to transfer; repeatable",
    )


def fetch(args: argparse.Namespace) -> int:
    """Run ``dvkf fetch``."""
    repo = open_repo(args)
    targets = targets_of(repo, args.targets)
    if args.dry:
        return _plan_fetch(repo, targets, args)
    try:
        moved = _warn_of_missing(
            repo.fetch,
            targets,
            choice=choice_of(args),
            remote=args.remote,
            run_cache=args.run_cache,
        )
    except RemoteNotFoundError as error:
        # As DVC: a repository without remotes has nothing to fetch from.
        if args.remote or repo.config.default_remote():
            raise
        say(f"WARNING: {error}", stream=sys.stderr)
        return 0
    if moved is not None and not args.quiet:
        _print_transfer(moved, "fetched")
    return 0


def _plan_fetch(repo: Repo, targets: list[str], args: argparse.Namespace) -> int:
    plans = repo.plan_fetch(targets, choice=choice_of(args), remote=args.remote, run_cache=args.run_cache)
    return _print_plans(plans, args.quiet)


def pull_arguments(parser: Parser) -> None:
    """Describe ``dvkf pull``."""
    _arguments(parser)
    parser.add_argument(
        "--glob", action="store_true", help="treat targets as patterns: * in a name, ** across folders"
    )
    parser.add_argument("-f", "--force", action="store_true", help="overwrite content that has no other copy")
    parser.add_argument("--allow-missing", action="store_true", help="skip data that is not on the remote")


def pull(args: argparse.Namespace) -> int:
    """Run ``dvkf pull``."""
    repo = open_repo(args)
    targets = targets_of(repo, args.targets)
    if args.dry:
        return _plan_fetch(repo, targets, args)
    pulled = repo.pull(
        targets,
        choice=choice_of(args),
        remote=args.remote,
        run_cache=args.run_cache,
        force=args.force,
        allow_missing=args.allow_missing,
    )
    if not args.quiet:
        print_checkout(pulled.checkout)
        _print_transfer(pulled.transfer, "fetched", changed=bool(pulled.checkout))
    return 0
