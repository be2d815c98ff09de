"""Commands on the places that versions of models are published to."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, model_and_version, open_repo
from dvkf_prefect.cli._output import say
from dvkf_prefect.cli.maintenance import duration

if TYPE_CHECKING:
    from dvkf_prefect.models.unpublishing import AskServices, ServiceUses


def place_argument(parser: Parser, option: str = "--to") -> None:
    """Add the option of a place."""
    parser.add_argument(
        option,
        dest="published",
        metavar="<url>",
        help="place of published versions: a folder, a URL, or remote://name/folder (default: DVKF_MODELS_URL)",
    )


def place_of(args: argparse.Namespace) -> str:
    """Return the place that was given.

    Raises:
        ConfigError: None was.
    """
    from dvkf_prefect.errors import ConfigError

    place: str | None = args.published or os.environ.get("DVKF_MODELS_URL")
    if not place:
        raise ConfigError("no place of published versions. Give its address, or set DVKF_MODELS_URL.")
    return place


def published_arguments(commands: dict[str, Parser]) -> None:
    """Describe ``dvkf model unpublish`` and ``gc``."""
    unpublish, gc = commands["unpublish"], commands["gc"]
    unpublish.add_argument("model", metavar="MODEL@VERSION", help="model and version")
    unpublish.add_argument("--dry", action="store_true", help="check, and remove nothing")
    gc.add_argument(
        "--grace",
        type=duration,
        default=48 * 3600.0,
        metavar="<duration>",
        help="keep versions published or withdrawn more recently than this, such as 2h or 7d (default: 2d)",
    )
    gc.add_argument(
        "-f", "--force", action="store_true", help="remove; without it the versions are only listed"
    )
    for parser in (unpublish, gc):
        place_argument(parser, "--from")
        parser.add_argument(
            "-n",
            "--namespace",
            action="append",
            default=[],
            metavar="<name>",
            help="namespace of services on a cluster to ask; may be repeated",
        )
        parser.add_argument(
            "-A", "--all-namespaces", action="store_true", help="ask for the services of all namespaces"
        )
        parser.add_argument("--context", metavar="<name>", help="context of the kubeconfig")
        parser.add_argument("--json", action="store_true", help="print JSON")


def _services(args: argparse.Namespace) -> AskServices | None:
    if not (args.namespace or args.all_namespaces):
        return None

    def ask() -> ServiceUses:
        from dvkf_prefect.blocks import KServeModelServer

        server = KServeModelServer(namespace=next(iter(args.namespace), "default"), context=args.context)
        return server.uses([] if args.all_namespaces else args.namespace)

    return ask


def model_unpublish(args: argparse.Namespace) -> int:
    """Run ``dvkf model unpublish``."""
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.models.unpublishing import unpublish_version

    registry = ModelRegistry(open_repo())
    model, version = model_and_version(args.model)
    found = unpublish_version(
        registry, model, version, place_of(args), services=_services(args), dry_run=args.dry
    )
    if args.json:
        print(json.dumps(vars(found)))
    else:
        say(found)
    return 0


def model_gc(args: argparse.Namespace) -> int:
    """Run ``dvkf model gc``; its exit code is 1 if it could not judge."""
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.models.unpublishing import collect_published

    registry = ModelRegistry(open_repo())
    collected = collect_published(
        registry,
        place_of(args),
        services=_services(args),
        grace=args.grace / 3600,
        dry_run=not args.force,
    )
    if args.json:
        print(json.dumps(collected.as_dict()))
    else:
        for each in collected.versions:
            say(each)
        say(collected)
    return 1 if collected.doubt else 0
