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
        "-d", "--with-deps", action="store_true", help="include all stages that the targets depend on"
    )
    parser.add_argument(
        "-R", "--recursive", action="store_true", help="include everything described in target folders"
    )


def history_arguments(parser: Parser) -> None:
    """Add the options that select commits."""
    parser.add_argument("-a", "--all-branches", action="store_true", help="include the tips of all branches")
    parser.add_argument("-T", "--all-tags", action="store_true", help="include all tags")
    parser.add_argument("-A", "--all-commits", action="store_true", help="include all commits")


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
