"""Commands that move data between the cache and a remote."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, open_repo, positive, progress_bar, readable, targets_of
from dvkf_prefect.cli.data import print_checkout

if TYPE_CHECKING:
    from dvkf_prefect.data.repo import Repo
    from dvkf_prefect.data.transfer import Transfer


def _print_transfer(moved: Transfer, word: str, *, changed: bool = False) -> None:
    if moved.files:
        print(f"{moved.files} file(s) {word} ({readable(moved.size)}, {moved.remote})")
    elif not changed:
        print("Everything is up to date.")


def push_arguments(parser: Parser) -> None:
    """Describe ``dvkf push``."""
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("-r", "--remote", metavar="<name>", help="the remote; otherwise the default one")
    parser.add_argument("-j", "--jobs", type=positive, metavar="<number>", help="transfers at once")


def push(args: argparse.Namespace) -> int:
    """Run ``dvkf push``."""
    repo = open_repo()
    return _move(args, repo, repo.push, "pushed")


def fetch_arguments(parser: Parser) -> None:
    """Describe ``dvkf fetch``."""
    push_arguments(parser)


def fetch(args: argparse.Namespace) -> int:
    """Run ``dvkf fetch``."""
    repo = open_repo()
    return _move(args, repo, repo.fetch, "fetched")


def _move(args: argparse.Namespace, repo: Repo, move: Callable[..., Transfer], word: str) -> int:
    targets = targets_of(repo, args.targets)
    moved = move(targets, remote=args.remote, jobs=args.jobs, progress=progress_bar(args.quiet))
    if not args.quiet:
        _print_transfer(moved, word)
    return 0


def pull_arguments(parser: Parser) -> None:
    """Describe ``dvkf pull``."""
    push_arguments(parser)
    parser.add_argument("-f", "--force", action="store_true", help="overwrite content that is nowhere else")
    parser.add_argument("--allow-missing", action="store_true", help="pass over what is not on the remote")


def pull(args: argparse.Namespace) -> int:
    """Run ``dvkf pull``."""
    repo = open_repo()
    pulled = repo.pull(
        targets_of(repo, args.targets),
        remote=args.remote,
        jobs=args.jobs,
        force=args.force,
        allow_missing=args.allow_missing,
        progress=progress_bar(args.quiet),
    )
    if not args.quiet:
        print_checkout(pulled.checkout)
        _print_transfer(pulled.transfer, "fetched", changed=bool(pulled.checkout))
    return 0
