"""Commands that promote a model, roll it back and show its state."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Literal

from dvkf_prefect.cli._common import Parser, model_and_version, open_repo, progress_bar, warn_of_new_stage
from dvkf_prefect.cli._output import say
from dvkf_prefect.cli.serving import (
    SERVICE_FIELDS,
    kserve_server,
    local_server,
    service_options,
    split_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvkf_prefect.blocks import KServeModelServer, ModelServer
    from dvkf_prefect.kubeflow.registry.client import RegistryApi
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.promotion.act import Acting
    from dvkf_prefect.promotion.journal import Record
    from dvkf_prefect.promotion.promote import Planned


def promotion_arguments(commands: dict[str, Parser]) -> None:
    """Describe ``dvkf model promote``, ``rollback`` and ``status``."""
    promote, rollback, status = commands["promote"], commands["rollback"], commands["status"]
    promote.add_argument("model", metavar="MODEL[@VERSION]", help="model, with @version or #stage")
    promote.add_argument("model_version", metavar="VERSION", nargs="?", help="version (default: latest)")
    promote.add_argument("stage", help="stage, such as prod")
    promote.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="<gate>",
        help="condition, such as metric:accuracy>=champion-0.01; repeatable",
    )
    promote.add_argument(
        "--canary",
        type=int,
        metavar="<percent>",
        help="give the version this part of the traffic first, 0 to 99",
    )
    promote.add_argument(
        "--watch",
        type=float,
        default=0.0,
        metavar="<seconds>",
        help="time for which the canary gets its traffic before it is judged",
    )
    promote.add_argument(
        "--approved-by", default="", metavar="<name>", help="person who approved (default: git's user)"
    )
    promote.add_argument(
        "--publish-to",
        metavar="<url>",
        help="place to publish the version to (default: DVKF_MODELS_URL)",
    )
    split_option(promote)
    rollback.set_defaults(split=None)  # a rollback starts no canary
    rollback.add_argument(
        "--data", action="store_true", help="check out the data that the version learned from, too"
    )
    rollback.add_argument(
        "--to",
        default="",
        metavar="<version>",
        help="version that held the stage before (default: the one before the current one); may be repeated safely",
    )
    for parser in (promote, rollback):
        parser.add_argument(
            "--place",
            choices=("local", "kserve", "none"),
            help="place that serves the model (default: this machine if it serves it, or the cluster of --namespace)",
        )
        parser.add_argument(
            "-n", "--namespace", metavar="<name>", help="namespace of the services on the cluster"
        )
        parser.add_argument("--context", metavar="<name>", help="context of the kubeconfig")
        parser.add_argument(
            "--force",
            action="store_true",
            help="take over a service, or fields of it, that something else manages",
        )
        service_options(parser)
        parser.add_argument(
            "--registry",
            metavar="<url>",
            help="Kubeflow Model Registry to mirror the model in (default: DVKF_MODEL_REGISTRY)",
        )
        parser.add_argument(
            "--take-over", action="store_true", help="continue what another machine began and cannot end"
        )
        parser.add_argument("--dry-run", action="store_true", help="show the steps and change nothing")
    promote.add_argument("-m", "--message", default="", help="reason, for the tag and the journal")
    promote.add_argument(
        "--push", action="store_true", help="share journal, tags and facts with git's origin at each step"
    )
    status.add_argument("model", help="name of the model")
    for parser in (promote, rollback, status):
        parser.add_argument("--json", action="store_true", help="print JSON")


def registry_api(host: str, base: Literal["auto", "v1", "v1alpha3"] = "auto") -> RegistryApi:
    """Return a connection to a Kubeflow Model Registry, with the login of the environment."""
    from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
    from dvkf_prefect.kubeflow.registry.client import RegistryApi

    settings = ClusterSettings.from_environment({"DVKF_KUBEFLOW_HOST": host, **os.environ})
    given = settings is not None and settings.login.way not in ("none", "in-cluster token")
    return RegistryApi(
        host,
        base=base,
        headers=settings.login.headers if settings and given else dict,
        ca_file=settings.ca_file if settings else None,
    )


def model_promote(args: argparse.Namespace) -> int:
    """Run ``dvkf model promote``."""
    from dvkf_prefect.models.gates import parse_gate
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.promotion.promote import Approval, Promotion, plan, promote

    registry = ModelRegistry(open_repo(args))
    model, which = model_and_version(args.model)
    which = args.model_version or which
    warn_of_new_stage(registry, args.stage)
    promotion = Promotion(
        _acting(args, registry, model),
        gates=tuple(parse_gate(gate) for gate in args.gate),
        approve=(lambda _: Approval(True, args.approved_by, args.message)) if args.approved_by else None,
        percent=args.canary,
        watch=args.watch,
        first=args.place is not None or args.namespace is not None,
        publish_to=args.publish_to or os.environ.get("DVKF_MODELS_URL", ""),
        progress=progress_bar(args.quiet),
    )
    if args.dry_run:
        return _show_plan(args, plan(registry, model, which, args.stage, promotion))
    _report(args, promote(registry, model, which, args.stage, promotion))
    return 0


def model_rollback(args: argparse.Namespace) -> int:
    """Run ``dvkf model rollback``."""
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.promotion.rollback import Rollback, plan_rollback, roll_back

    registry = ModelRegistry(open_repo(args))
    rollback = Rollback(
        _acting(args, registry, args.name),
        data=args.data,
        to=args.to,
        report=lambda record: _report(args, record),
    )
    if args.dry_run:
        return _show_plan(args, plan_rollback(registry, args.name, args.stage, rollback))
    roll_back(registry, args.name, args.stage, rollback)
    return 0


def model_status(args: argparse.Namespace) -> int:
    """Run ``dvkf model status``."""
    from dvkf_prefect.blocks.places import places_of
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.promotion.status import model_status as read_status

    registry = ModelRegistry(open_repo(args))
    status = read_status(registry, args.model, places_of(registry, args.model))
    if args.json:
        print(json.dumps(status.as_dict()))
    else:
        for line in str(status).splitlines():
            say(line)
    return 0


def _acting(args: argparse.Namespace, registry: ModelRegistry, model: str) -> Acting:
    from dvkf_prefect.promotion.act import Acting

    host = args.registry or os.environ.get("DVKF_MODEL_REGISTRY")
    return Acting(
        place=_place(args),
        mirror=_mirror(host, registry, model) if host else None,
        why=args.message,
        shared=args.push,
        take_over=args.take_over,
    )


def _place(args: argparse.Namespace) -> ModelServer | KServeModelServer | None:
    from dvkf_prefect.errors import ConfigError

    if args.place == "none":
        return None
    if args.place == "kserve" or (args.place is None and args.namespace):
        if args.server or args.workers or args.grpc_port is not None:
            raise ConfigError(
                "--server, --workers and --grpc-port are for this machine. Leave the cluster's options out."
            )
        return kserve_server(args)
    given = [name for name in (*SERVICE_FIELDS, "namespace") if getattr(args, name) is not None]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is for a cluster. Add --namespace, or leave it out."
        )
    return local_server(args.timeout, args.server, args.workers, args.grpc_port)


def _mirror(host: str, registry: ModelRegistry, model: str) -> Callable[[], object]:
    from dvkf_prefect.kubeflow.registry.mirror import Mirror

    return lambda: Mirror(registry, registry_api(host)).run([model])


def _show_plan(args: argparse.Namespace, steps: tuple[Planned, ...]) -> int:
    from dataclasses import asdict

    if args.json:
        print(json.dumps([asdict(step) for step in steps]))
    else:
        for step in steps:
            say(step)
    return 0


def _report(args: argparse.Namespace, record: Record) -> None:
    """Print a record, and flush, as the journal notes that it was printed."""
    if record.state == "mirroring":
        print(f"WARNING: {record.problem}. Run the command again.", file=sys.stderr)
    elif record.problem:
        print(f"WARNING: {record.what}: {record.problem}", file=sys.stderr)
    if args.json:
        print(json.dumps(record.as_dict()), flush=True)
        return
    if record.kind == "promote" or record.served:
        for step in record.steps:
            say(f"{step.name}: {step.said}")
    holder = record.version or "held by no version"
    say(f"{record.model} #{record.stage} is {holder}{' again' if record.kind == 'rollback' else ''}")
    sys.stdout.flush()
