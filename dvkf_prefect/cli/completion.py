"""Completion of commands, options and paths in shells, as `dvc completion`."""

from __future__ import annotations

import argparse

from dvkf_prefect.cli._common import Parser


def completion_arguments(parser: Parser) -> None:
    """Describe ``dvkf completion``."""
    parser.add_argument(
        "-s", "--shell", choices=("bash", "zsh", "tcsh"), default="bash", help="shell (default: bash)"
    )


def completion(args: argparse.Namespace) -> int:
    """Run ``dvkf completion``."""
    import shtab  # takes a while to import

    print(shtab.complete(args.whole(), shell=args.shell))
    return 0
