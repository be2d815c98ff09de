"""Commands on settings and remotes."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.cli._common import Parser
from dvkf_prefect.cli._output import say
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.text import did_you_mean
from dvkf_prefect.urls import holds_secret, public_url

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.config import Config

_NAME = re.compile(r"(?:(?P<top>remote|db)\.)?(?P<section>[^.]*)\.(?P<option>[^.]*)")


def remote_arguments(parser: Parser) -> None:
    """Describe ``dvkf remote``."""
    commands = parser.commands(
        add=(remote_add, "Add a remote."),
        default=(remote_default, "Show, set or unset the default remote."),
        modify=(remote_modify, "Set or unset an option of a remote."),
        list=(remote_list, "List the remotes."),
        remove=(remote_remove, "Remove a remote."),
        rename=(remote_rename, "Rename a remote."),
    )
    add = commands["add"]
    add.add_argument("name")
    add.add_argument("url", help="folder or URL: s3://, gs://, azure://, ssh://, http(s)://, …")
    add.add_argument("-d", "--default", action="store_true", help="make it the default remote")
    add.add_argument("-f", "--force", action="store_true", help="replace an existing remote of that name")
    default = commands["default"]
    default.add_argument("name", nargs="?")
    default.add_argument("-u", "--unset", action="store_true", help="unset the default remote")
    modify = commands["modify"]
    modify.add_argument("name")
    modify.add_argument("option")
    modify.add_argument("value", nargs="?")
    modify.add_argument("-u", "--unset", action="store_true", help="remove the option")
    commands["remove"].add_argument("name")
    commands["rename"].add_argument("name")
    commands["rename"].add_argument("new", help="new name of the remote")
    for command in commands.values():
        level_arguments(command)


def level_arguments(parser: Parser) -> None:
    """Add the options that choose a level of the settings."""
    group = parser.add_mutually_exclusive_group()
    for name, level in (("global", "global"), ("system", "system"), ("project", "repo"), ("local", "local")):
        group.add_argument(
            f"--{name}", dest="level", action="store_const", const=level, help=f"use the {name} configuration"
        )


def config_here() -> Config:
    """Return the settings of the current repository; outside one, those of the user and the system.

    Invalid settings are accepted, since these commands correct them.
    """
    from dvkf_prefect.data.repository.config import Config

    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir():
            return Config(folder / ".dvc", check=False)
    return Config(None, check=False)


def remote_add(args: argparse.Namespace) -> int:
    """Run ``dvkf remote add``."""
    name = args.name.lower()
    if args.default and not args.quiet:
        say(f"Setting '{name}' as a default remote.")
    with config_here().edit(args.level or "repo", strict=True) as sections:
        if name in sections["remote"] and not args.force:
            raise ConfigError(f"remote '{name}' already exists. Use `-f|--force` to overwrite it.")
        sections["remote"][name] = {"url": args.url}
        if args.default:
            sections["core"]["remote"] = name
    return 0


def remote_list(args: argparse.Namespace) -> int:
    """Run ``dvkf remote list``."""
    config = config_here()
    values = config.read(args.level) if args.level else config.values
    default = values["core"].get("remote")
    for name, options in values["remote"].items():
        if "url" not in options:
            raise ConfigError(
                f"remote '{name}' has no url. Set one with `dvkf remote modify {name} url URL`."
            )
        mark = "\t(default)" if name == default else ""
        # DVC prints blanks for tabs.
        url = str(options["url"])
        say(f"{name}\t{public_url(url) if holds_secret(url) else url}{mark}".expandtabs())
    return 0


def remote_default(args: argparse.Namespace) -> int:
    """Run ``dvkf remote default``."""
    config = config_here()
    if args.name is None and not args.unset:
        values = config.read(args.level) if args.level else config.values
        name = values["core"].get("remote")
        say(name or "No default remote set")
        return 0 if name else 1
    level = args.level or "repo"
    with config.edit(level, strict=True) as sections:
        if args.unset:
            sections["core"].pop("remote", None)
            return 0
        name = args.name.lower()
        if name not in sections["remote"] and name not in config.below(args.level)["remote"]:
            raise ConfigError(
                f"remote '{name}' does not exist, so it cannot be the default. See `dvkf remote list`."
                f"{did_you_mean(name, config.values['remote'])}"
            )
        sections["core"]["remote"] = name
    return 0


def _unknown_remote(name: str, known: Iterable[str]) -> ConfigError:
    step = did_you_mean(name, known) or " See `dvkf remote list`."
    return ConfigError(f"remote '{name}' doesn't exist.{step}")


def remote_modify(args: argparse.Namespace) -> int:
    """Run ``dvkf remote modify``."""
    config = config_here()
    name = args.name.lower()
    with config.edit(args.level or "repo", strict=True) as sections:
        if name not in sections["remote"] and name not in config.below(args.level)["remote"]:
            raise _unknown_remote(name, config.values["remote"])
        section = sections["remote"].setdefault(name, {})
        if args.unset:
            section.pop(args.option, None)
        elif args.value is None:
            raise ConfigError(f"no value for '{args.option}'. Give one, or --unset.")
        else:
            section[args.option] = args.value
    return 0


def remote_remove(args: argparse.Namespace) -> int:
    """Run ``dvkf remote remove``."""
    config = config_here()
    name = args.name.lower()
    level = args.level or "repo"
    if name not in config.read(level)["remote"]:
        raise _unknown_remote(name, config.read(level)["remote"])
    gone = name not in config.below(level)["remote"]
    # Higher levels may use it as their default or set its options, which would be errors without the remote.
    levels = list(config.files)
    for other in reversed(levels[levels.index(level) :]):
        with config.edit(other) as sections:
            if other == level or (gone and "url" not in sections["remote"].get(name, {"url": ""})):
                del sections["remote"][name]
            if sections["core"].get("remote") == name:
                del sections["core"]["remote"]
    return 0


def remote_rename(args: argparse.Namespace) -> int:
    """Run ``dvkf remote rename``."""
    config = config_here()
    name, level = args.name.lower(), args.level or "repo"
    levels = list(config.files)
    if args.new in config.values["remote"]:
        raise ConfigError(f"Rename failed. Remote name '{args.new}' already exists.")
    if name not in config.read(level)["remote"]:
        raise _unknown_remote(name, config.read(level)["remote"])
    with config.edit(level, strict=True, check_above=False) as sections:
        sections["remote"][args.new] = sections["remote"].pop(name)
        if sections["core"].get("remote") == name:
            sections["core"]["remote"] = args.new
    for other in levels[levels.index(level) + 1 :]:
        with config.edit(other, check_above=False) as sections:
            # DVC keeps options of higher levels under the old name, and later fails on them.
            if name in sections["remote"] and "url" not in sections["remote"][name]:
                sections["remote"][args.new] = sections["remote"].pop(name)
            if sections["core"].get("remote") == name:
                sections["core"]["remote"] = args.new
    return 0


def config_arguments(parser: Parser) -> None:
    """Describe ``dvkf config``."""
    parser.add_argument(
        "name", nargs="?", type=_setting, help="section.option, remote.NAME.option or db.NAME.option"
    )
    parser.add_argument("value", nargs="?")
    parser.add_argument("-l", "--list", action="store_true", help="list all settings")
    parser.add_argument("-u", "--unset", action="store_true", help="remove the setting")
    parser.add_argument("--show-origin", action="store_true", help="print the file of each setting")
    level_arguments(parser)


def _setting(text: str) -> tuple[str | None, str, str]:
    match = _NAME.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            "name argument should look like remote.name.option or db.name.option or section.option"
        )
    return match["top"], match["section"].lower(), match["option"].lower()


def config(args: argparse.Namespace) -> int:
    """Run ``dvkf config``."""
    if args.show_origin and (args.value or args.unset):
        return _misused("--show-origin can't be used together with -u/--unset or a value")
    if args.list and (args.name or args.value or args.unset):
        return _misused("-l/--list can't be used together with a name, a value or -u/--unset")
    if not args.list and args.name is None:
        return _misused("name argument is required")
    config = config_here()
    levels = [args.level] if args.level else list(config.files)
    if args.list:
        for level in levels:
            for setting, text in _settings(config.read(level)):
                say(f"{_origin(config, level, args)}{setting}={text}")
        return 0
    top, section, option = args.name
    if args.value is None and not args.unset:
        for level in reversed(levels):
            try:
                value = find(config.read(level), top, section, option)
            except ConfigError:
                if args.level:
                    raise
            else:
                say(f"{_origin(config, level, args)}{value}")
                break
        return 0
    with config.edit(args.level or "repo", strict=True) as sections:
        if args.unset:
            find(sections, top, section, option)
            del (sections[top] if top else sections)[section][option]
        else:
            (sections[top] if top else sections).setdefault(section, {})[option] = args.value
    return 0


def find(values: dict[str, dict[str, Any]], top: str | None, section: str, option: str) -> Any:
    """Return one setting of a level.

    Raises:
        ConfigError: The level does not set it.
    """
    options = (values[top] if top else values).get(section)
    kind = top or "section"
    if options is None:
        raise ConfigError(f"{kind} '{section}' doesn't exist")
    if option not in options:
        raise ConfigError(f"option '{option}' doesn't exist in {kind} '{section}'")
    return options[option]


def _misused(message: str) -> int:
    say(f"ERROR: {message}", stream=sys.stderr)
    return 1


def _origin(config: Config, level: str, args: argparse.Namespace) -> str:
    """Return the path of a level's file as DVC prints it: relative to the root, or absolute."""
    if not args.show_origin:
        return ""
    file = config.files[level]
    name = os.path.relpath(file, file.parent.parent) if level in ("repo", "local") else str(file)
    return f"{name}\t"


def _settings(values: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for section, options in values.items():
        for option, value in options.items():
            if isinstance(value, dict):
                yield from ((f"{section}.{option}.{key}", inner) for key, inner in value.items())
            else:
                yield f"{section}.{option}", value
