"""Command on the lineage of models: from data to services, and back."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, model_and_version, open_repo, targets_of
from dvkf_prefect.cli._output import shown

if TYPE_CHECKING:
    from dvkf_prefect.models.lineage import Lineage
    from dvkf_prefect.models.registry import ModelRegistry


def lineage_arguments(parser: Parser) -> None:
    """Describe ``dvkf lineage``."""
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument(
        "model", nargs="?", metavar="MODEL[@VERSION]", help="model, with @version or #stage (default: latest)"
    )
    wanted.add_argument(
        "--data",
        metavar="<path[@rev]>",
        help="versions that learned from a file or folder, by its content at a revision",
    )
    wanted.add_argument("--service", metavar="<name or url>", help="versions that run in a service now")
    parser.add_argument(
        "-n", "--namespace", metavar="<name>", help="look for services of KServe in this namespace, too"
    )
    parser.add_argument("--context", default="", metavar="<name>", help="context of the kubeconfig for it")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--mermaid", action="store_true", help="print the graph for Mermaid")
    form.add_argument("--tree", action="store_true", help="print the graph as a text tree")


def lineage(args: argparse.Namespace) -> int:
    """Run ``dvkf lineage``."""
    from dvkf_prefect.models.lineage import draw_lineage
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.serving.whereabouts import with_services

    places = [f"kserve:{args.context}/{args.namespace}"] if args.namespace else []
    found = with_services(_found(args, ModelRegistry(open_repo())), places=places)
    if args.service:
        found = [each for each in found if any(args.service in (s.name, s.url) for s in each.services)]
    if args.json:
        print(json.dumps([each.as_dict() for each in found], default=str))
    elif args.mermaid:
        print(draw_lineage(found).mermaid())
    elif args.tree:
        print(draw_lineage(found).text())
    else:
        print("\n\n".join(shown_lines(str(each)) for each in found) or _none(args))
    return 0


def shown_lines(text: str) -> str:
    """Return a text whose lines are each safe to print."""
    return "\n".join(map(shown, text.splitlines()))


def _found(args: argparse.Namespace, registry: ModelRegistry) -> list[Lineage]:
    from dvkf_prefect.models import trace

    if args.data:
        path, rev = _split(args.data)
        (inside,) = targets_of(open_repo(), [path])
        return trace.trace_data(registry, inside, rev)
    if args.model:
        return [trace.trace_version(registry, registry.show(*model_and_version(args.model)))]
    return trace.trace_models(registry)


def _none(args: argparse.Namespace) -> str:
    """Return the sentence that no version was found, with a hint at a misspelt file."""
    from dvkf_prefect.formats.outputs import output_meant
    from dvkf_prefect.paths import file_meant

    if args.service:
        return f"No version runs in the service '{shown(args.service)}'."
    if not args.data:
        return "No version is known."
    path, repo = _split(args.data)[0], open_repo()
    (inside,) = targets_of(repo, [path])
    hint = output_meant(repo.outputs(), inside) or file_meant(repo.root, inside)
    return f"No version learned from '{shown(path)}'.{hint}"


def _split(text: str) -> tuple[str, str | None]:
    """Split PATH@REV; a file whose name has an @ is a path alone."""
    path, at, rev = text.rpartition("@")
    return (text, None) if not at or not path or os.path.lexists(text) else (path, rev)
