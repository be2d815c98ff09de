"""Commands on where data lies: the cache's place and layout, and tracked paths moved, unlinked or let go."""

from __future__ import annotations

import argparse

from dvkf_prefect.cli._common import Parser
from dvkf_prefect.cli.settings import config_here, find, level_arguments
from dvkf_prefect.errors import ConfigError


def cache_arguments(parser: Parser) -> None:
    """Describe ``dvkf cache``."""
    commands = parser.commands(
        dir=(cache_dir, "Show or set where the cache is."),
    )
    place = commands["dir"]
    place.add_argument(
        "value", nargs="?", help="a folder, relative to this one; without it the present one is shown"
    )
    place.add_argument("-u", "--unset", action="store_true", help="go back to .dvc/cache")
    level_arguments(place)


def cache_dir(args: argparse.Namespace) -> int:
    """Run ``dvkf cache dir``."""
    config = config_here()
    if args.value is None and not args.unset:
        try:
            print(find(config.read(args.level) if args.level else config.values, None, "cache", "dir"))
        except ConfigError:
            if args.level or "repo" not in config.files:
                raise
            print(config.files["repo"].with_name("cache"))
        return 0
    with config.edit(args.level or "repo", strict=True) as sections:
        if args.unset:
            find(sections, None, "cache", "dir")
            del sections["cache"]["dir"]
        else:
            sections["cache"]["dir"] = args.value
    return 0
