"""Options that select outputs and commits."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.selection import Choice


def choice_arguments(parser: Parser) -> None:
    """Add the options that select outputs."""
    parser.add_argument(
        "-d", "--with-deps", action="store_true", help="also all that the targets are made from"
    )
    parser.add_argument(
        "-R", "--recursive", action="store_true", help="a target that is a folder means all described in it"
    )


def history_arguments(parser: Parser) -> None:
    """Add the options that select commits."""
    parser.add_argument("-a", "--all-branches", action="store_true", help="also the tips of all branches")
    parser.add_argument("-T", "--all-tags", action="store_true", help="also all tags")
    parser.add_argument("-A", "--all-commits", action="store_true", help="also all commits")


def choice_of(args: argparse.Namespace) -> Choice:
    """Return the selection of outputs and commits from parsed options. Missing options keep their defaults."""
    from dvkf_prefect.data.repository.selection import Choice

    return Choice(
        all_branches=getattr(args, "all_branches", False),
        all_tags=getattr(args, "all_tags", False),
        all_commits=getattr(args, "all_commits", False),
        with_deps=getattr(args, "with_deps", False),
        recursive=getattr(args, "recursive", False),
        glob=getattr(args, "glob", False),
        max_size=getattr(args, "max_size", None),
        types=tuple(getattr(args, "types", ())),
    )
