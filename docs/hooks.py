"""Parts of the reference that are made from the code when the site is built.

A page names a part in a comment of its own line:

- ``<!-- reference: tasks -->`` becomes an entry for each public name of that group;
- ``<!-- options -->`` becomes the options of every verb of the command line.
"""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Iterator
from typing import Any

import dvkf_prefect
from dvkf_prefect import cli


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the parts that a page names.

    Args:
        markdown: The page's text.

    Returns:
        The text with its parts.
    """
    markdown = re.sub(
        r"^<!-- reference: (\w+) -->$", lambda found: reference(found[1]), markdown, flags=re.MULTILINE
    )
    return re.sub(r"^<!-- options -->$", lambda _: options(), markdown, flags=re.MULTILINE)


def names(group: str) -> list[str]:
    """Return the public names of a group.

    Args:
        group: ``tasks``, ``blocks`` or ``python`` for all others.
    """
    return [name for name in dvkf_prefect.__all__ if name != "__version__" and _group(name) == group]


def reference(group: str) -> str:
    """Return an entry for each public name of a group, blocks with a table of their fields.

    Args:
        group: The group, see `names`.
    """
    parts = []
    for name in names(group):
        parts.append(f"::: dvkf_prefect.{name}\n")
        if group == "blocks" and isinstance(getattr(dvkf_prefect, name), type):
            parts.append(fields(getattr(dvkf_prefect, name)))
    return "\n".join(parts)


def fields(block: Any) -> str:
    """Return the table of a block's fields.

    Args:
        block: The block's class.
    """
    rows = [f"### Fields of {block.__name__}\n", "| field | default | description |", "|---|---|---|"]
    for name, field in block.model_fields.items():
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        rows.append(f"| `{name}` | {_cell(default)} | {_cell(field.description or '')} |")
    return "\n".join(rows) + "\n"


def options() -> str:
    """Return the usage and the options of every verb, and of the commands of a verb that has some."""
    parts = []
    for verb in cli.VERBS:
        parser = _subparsers(cli.build_parser([verb]))[verb]
        parts.append("\n".join(_describe(parser, 3)))
        for command in _subparsers(parser).values():
            parts.append("\n".join(_describe(command, 4)))
    return "\n\n".join(parts)


def _describe(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield f"{'#' * level} {parser.prog}\n"
    yield f"{parser.description}\n"
    rows = list(_rows(parser))
    if rows:
        yield "| argument | description |"
        yield "|---|---|"
        yield from rows


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        shown = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.metavar and action.nargs != 0:
            shown += f" {action.metavar}"
        shown = shown.replace("|", "\\|")
        yield f"| `{shown}` | {_cell(_help(parser, action))} |"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    if not action.help or action.help is argparse.SUPPRESS:
        return ""
    return parser._get_formatter()._expand_help(action)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _group(name: str) -> str:
    value = getattr(dvkf_prefect, name)
    module = getattr(value, "__module__", "")
    if module.startswith("dvkf_prefect.blocks"):
        return "blocks"
    # A Prefect task is an object that takes its module from its function.
    is_task = module.startswith("dvkf_prefect.tasks") or isinstance(
        getattr(value, "fn", None), types.FunctionType
    )
    return "tasks" if is_task else "python"


def _cell(text: str) -> str:
    return (
        text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
        if "`" not in text
        else text.replace("|", "\\|")
    )
