"""Commands on settings and remotes."""

from __future__ import annotations

import argparse
from typing import Any

from dvkf_prefect.cli._common import Parser, open_repo
from dvkf_prefect.errors import ConfigError


def remote_arguments(parser: Parser) -> None:
    """Describe ``dvkf remote``."""
    commands = parser.commands(
        add=(remote_add, "Add a remote."),
        list=(remote_list, "List the remotes."),
        default=(remote_default, "Show, set or unset the default remote."),
        modify=(remote_modify, "Set an option of a remote."),
        remove=(remote_remove, "Remove a remote."),
    )
    add = commands["add"]
    add.add_argument("name")
    add.add_argument("url", help="a folder or a url: s3://, gs://, azure://, ssh://, http(s)://, …")
    add.add_argument("-d", "--default", action="store_true", help="make it the default one")
    add.add_argument("-f", "--force", action="store_true", help="replace a remote of that name")
    default = commands["default"]
    default.add_argument("name", nargs="?")
    default.add_argument("-u", "--unset", action="store_true", help="have no default remote")
    modify = commands["modify"]
    modify.add_argument("name")
    modify.add_argument("option")
    modify.add_argument("value", nargs="?")
    modify.add_argument("-u", "--unset", action="store_true", help="remove the option")
    commands["remove"].add_argument("name")
    for command in commands.values():
        _level(command)


def _level(parser: Parser) -> None:
    group = parser.add_mutually_exclusive_group()
    for name, level in (("global", "global"), ("system", "system"), ("project", "repo"), ("local", "local")):
        group.add_argument(
            f"--{name}", dest="level", action="store_const", const=level, help=f"the {name} configuration"
        )


def remote_add(args: argparse.Namespace) -> int:
    """Run ``dvkf remote add``."""
    name = args.name.lower()
    with open_repo().config.edit(args.level or "repo") as sections:
        if name in sections["remote"] and not args.force:
            raise ConfigError(f"remote '{name}' already exists. Use `-f|--force` to overwrite it.")
        sections["remote"][name] = {"url": args.url}
        if args.default:
            sections["core"]["remote"] = name
    if args.default:
        print(f"Setting '{name}' as a default remote.")
    return 0


def remote_list(args: argparse.Namespace) -> int:
    """Run ``dvkf remote list``."""
    config = open_repo().config
    remotes = config.read(args.level).get("remote", {}) if args.level else config.values["remote"]
    default = config.default_remote()
    for name, options in remotes.items():
        print(f"{name}\t{options.get('url', '')}{' (default)' if name == default else ''}")
    return 0


def remote_default(args: argparse.Namespace) -> int:
    """Run ``dvkf remote default``."""
    config = open_repo().config
    if args.name is None and not args.unset:
        name = (
            config.read(args.level).get("core", {}).get("remote") if args.level else config.default_remote()
        )
        print(name or "No default remote set")
        return 0
    if args.name and args.name.lower() not in config.values["remote"]:
        config.remote(args.name)
    with config.edit(args.level or "repo") as sections:
        if args.unset:
            sections["core"].pop("remote", None)
        else:
            sections["core"]["remote"] = args.name.lower()
    return 0


def remote_modify(args: argparse.Namespace) -> int:
    """Run ``dvkf remote modify``."""
    config = open_repo().config
    name = args.name.lower()
    if name not in config.values["remote"]:
        raise ConfigError(f"remote '{name}' doesn't exist.")
    if args.value is None and not args.unset:
        raise ConfigError(f"give a value for '{args.option}', or --unset")
    with config.edit(args.level or "repo") as sections:
        section = sections["remote"].setdefault(name, {})
        if args.unset:
            section.pop(args.option.lower(), None)
        else:
            section[args.option.lower()] = args.value
    return 0


def remote_remove(args: argparse.Namespace) -> int:
    """Run ``dvkf remote remove``."""
    config = open_repo().config
    name = args.name.lower()
    level = args.level or "repo"
    if name not in config.read(level).get("remote", {}):
        raise ConfigError(f"remote '{name}' doesn't exist.")
    # The levels above may name it as their default or give it options; without the remote those would be errors.
    levels = list(config.files)
    for other in reversed(levels[levels.index(level) :]):
        with config.edit(other) as sections:
            sections["remote"].pop(name, None)
            if sections["core"].get("remote") == name:
                del sections["core"]["remote"]
    return 0


def config_arguments(parser: Parser) -> None:
    """Describe ``dvkf config``."""
    parser.add_argument("name", nargs="?", help="section.option, or remote.NAME.option")
    parser.add_argument("value", nargs="?")
    parser.add_argument("-l", "--list", action="store_true", help="list all settings")
    parser.add_argument("-u", "--unset", action="store_true", help="remove the setting")
    parser.add_argument("--show-origin", action="store_true", help="say which file a setting stands in")
    _level(parser)


def config(args: argparse.Namespace) -> int:
    """Run ``dvkf config``."""
    config = open_repo().config
    levels = [args.level] if args.level else list(config.files)
    if args.list:
        if args.name or args.value or args.unset:
            raise ConfigError("-l/--list goes with no name, value or --unset")
        for level in levels:
            for name, value in _flat(config.read(level)):
                print(f"{f'{config.files[level]}{chr(9)}' if args.show_origin else ''}{name}={value}")
        return 0
    if not args.name:
        raise ConfigError("name a setting as section.option, or list them with -l")
    section, _, option = args.name.lower().partition(".")
    path = [section, *option.rsplit(".", 1)]
    if not option:
        raise ConfigError(f"'{args.name}' is not section.option")
    if args.value is None and not args.unset:
        for level in reversed(levels):
            for name, value in _flat(config.read(level)):
                if name == args.name.lower():
                    print(f"{f'{config.files[level]}{chr(9)}' if args.show_origin else ''}{value}")
                    return 0
        raise ConfigError(f"option '{args.name}' isn't set")
    with config.edit(args.level or "repo") as sections:
        place = sections
        for part in path[:-1]:
            place = place.setdefault(part, {})
        if not args.unset:
            place[path[-1]] = args.value
        elif place.pop(path[-1], None) is None:
            raise ConfigError(f"option '{args.name}' isn't set")
    return 0


def _flat(values: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for section, options in values.items():
        for option, value in options.items():
            if isinstance(value, dict):
                rows += [(f"{section}.{option}.{key}", _plain(inner)) for key, inner in value.items()]
            else:
                rows.append((f"{section}.{option}", _plain(value)))
    return rows


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
