"""Helpers that several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from dvkf_prefect.urls import without_secrets

if TYPE_CHECKING:
    from dvkf_prefect.data.repo import Repo
    from dvkf_prefect.data.transfer.transfer import Progress


class Parser(argparse.ArgumentParser):
    """Parser of a command; an invalid command line ends with DVC's exit code."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with 254."""
        self.print_usage(sys.stderr)
        self.exit(254, f"ERROR: {without_secrets(message)}\n")

    def runs(self, run: Callable[[argparse.Namespace], int]) -> None:
        """Make this parser a command that calls ``run``, with the options of all commands."""
        self.set_defaults(run=run)
        self.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
        self.add_argument("-v", "--verbose", action="store_true", help="with a traceback when it fails")

    def commands(self, **commands: tuple[Callable[[argparse.Namespace], int], str]) -> dict[str, Parser]:
        """Add subcommands with their functions and descriptions, and return their parsers by name."""
        group = self.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
        parsers: dict[str, Parser] = {}
        for name, (run, text) in commands.items():
            parsers[name] = group.add_parser(name, help=text, description=text)
            parsers[name].set_defaults(parser=parsers[name])
            parsers[name].runs(run)
        return parsers


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return number


def open_repo() -> Repo:
    """Open the repository of the current folder."""
    from dvkf_prefect.data.repo import Repo

    return Repo.open()


def print_git_hint(repo: Repo) -> None:
    """Print the ``git add`` command for the written files, relative to the current folder, as DVC does."""
    if not repo.unstaged:
        return
    from shlex import quote

    from dvkf_prefect.cli._output import shown

    names = sorted(os.path.relpath(repo.root / name) for name in repo.unstaged)
    print(
        f"\nTo track the changes with git, run:\n\n\tgit add {' '.join(shown(quote(name)) for name in names)}"
    )
    print("\nTo enable auto staging, run:\n\n\tdvkf config core.autostage true")


def targets_of(repo: Repo, targets: Sequence[str]) -> list[str]:
    """Convert targets from the current folder to the root of the repository. Stage names stay unchanged."""
    typed = []
    for target in targets:
        file, colon, stage = target.rpartition(":")
        if colon:
            typed.append(f"{repo.relpath(os.path.abspath(file))}:{stage}")
        elif os.sep not in target and not os.path.lexists(target) and os.getcwd() == str(repo.root):
            typed.append(target)
        else:
            typed.append(repo.relpath(os.path.abspath(target)))
    return typed


def progress_bar(quiet: bool) -> Progress | None:
    """Return a progress bar if standard error is a terminal, else None."""
    if quiet or not sys.stderr.isatty():
        return None
    from dvkf_prefect.cli._progress import Bar

    return Bar()


def readable(count: float) -> str:
    """Format a number of bytes with a decimal unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
