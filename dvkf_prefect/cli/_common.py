"""Helpers that several commands share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from dvkf_prefect.text import did_you_mean
from dvkf_prefect.urls import without_secrets

if TYPE_CHECKING:
    from dvkf_prefect.data.progress import Progress
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.repo import Repo


class _Help(argparse.HelpFormatter):
    """Formatter of help texts, for the width of the terminal.

    Each parser makes one. For the width, argparse's own imports `shutil` and the compressors that `shutil` needs.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """Return the width of the terminal, as `shutil.get_terminal_size` does."""
    with suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns
    with suppress(AttributeError, ValueError, OSError):
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    return 80


class Parser(argparse.ArgumentParser):
    """Parser of a command; an invalid command line ends with DVC's exit code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse a command line; an unknown option is an error of its command, as in DVC."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command: Parser = getattr(parsed, "parser", self)
            command.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse a command line, and keep its words for hints at misspelt options."""
        self._words = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with 254."""
        hint = ""
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            hint = did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        elif re.match("unrecognized arguments|the following arguments are required", message):
            hint = self._option_meant()
        message += hint and f".{hint}"
        self.print_usage(sys.stderr)
        self.exit(254, f"ERROR: {without_secrets(message)}\n")

    def _option_meant(self) -> str:
        """Return a hint at the option that is closest to the first unknown one; "" without one."""
        known = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        given = (word[2:].partition("=")[0] for word in self._words if word.startswith("--"))
        unknown = next((word for word in given if not any(each.startswith(word) for each in known)), "")
        return did_you_mean(unknown, known).replace("'", "'--", 1)

    def runs(self, run: Callable[[argparse.Namespace], int]) -> None:
        """Make this parser a command that calls ``run``, with the options of all commands."""
        self.set_defaults(run=run)
        self.add_argument("-q", "--quiet", action="store_true", help="print only errors")
        self.add_argument("-v", "--verbose", action="store_true", help="print a traceback on failure")

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
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return number


def open_repo(args: argparse.Namespace | None = None) -> Repo:
    """Open the repository of the current folder, with ``--jobs`` and a progress bar unless ``--quiet``."""
    from dvkf_prefect.repo import Repo

    if args is None:
        return Repo.open()
    return Repo.open(jobs=getattr(args, "jobs", None), progress=progress_bar(args.quiet))


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


def model_and_version(text: str) -> tuple[str, str]:
    """Split MODEL, MODEL@VERSION or MODEL#STAGE; the version is ``latest`` if none is given."""
    match = re.fullmatch(r"([^@#]+)(?:@(.+)|(#.+))?", text)
    return (match[1], match[2] or match[3] or "latest") if match else (text, "latest")


def warn_of_new_stage(registry: ModelRegistry, stage: str) -> None:
    """Print a warning if no model has a stage of that name, but one of a similar name."""
    known = {name for row in registry.overview(include_inactive=True).values() for name in row["stage"]}
    if hint := did_you_mean(stage, known):
        print(f"WARNING: no model has the stage '{stage}' yet.{hint}", file=sys.stderr)


def progress_bar(quiet: bool) -> Progress:
    """Return a progress bar if standard error is a terminal, else one that nothing shows."""
    if quiet or not sys.stderr.isatty():
        from dvkf_prefect.data.progress import NO_PROGRESS

        return NO_PROGRESS
    from dvkf_prefect.cli._progress import Bar

    return Bar()


def readable(count: float) -> str:
    """Format a number of bytes with a decimal unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
