"""Commands on services of models, on this machine or on a cluster with KServe."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from dvkf_prefect.cli._common import Parser, model_and_version, open_repo, positive
from dvkf_prefect.cli._output import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dvkf_prefect.blocks import KServeModelServer, ModelServer
    from dvkf_prefect.models.gates import Finding
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.models.version import ModelVersion
    from dvkf_prefect.serving.gating import GateCheck

# Options of a service that are fields of the block of the same name.
SERVICE_FIELDS = (
    "format", "runtime", "protocol", "image", "service_account", "cpu", "memory", "gpu", "min_replicas", "max_replicas",
    "mode", "split", "url", "context",
)  # fmt: skip


def serving_arguments(commands: dict[str, Parser]) -> None:
    """Describe ``dvkf model deploy``, ``undeploy``, ``canary`` and ``services``."""
    deploy, undeploy, canary = commands["deploy"], commands["undeploy"], commands["canary"]
    deploy.add_argument("model", metavar="MODEL[@VERSION]", help="model, with @version or #stage")
    for parser in (undeploy, canary):
        parser.add_argument("model", help="name of the model")
    for parser in (deploy, undeploy):
        parser.add_argument(
            "--to" if parser is deploy else "--from",
            dest="place",
            choices=("local", "kserve"),
            default="local",
            help="this machine, or a cluster with KServe (default: local)",
        )
    for parser in (deploy, undeploy, canary):
        parser.add_argument(
            "-n", "--namespace", metavar="<name>", help="namespace of the services on the cluster"
        )
        parser.add_argument("--context", metavar="<name>", help="context of the kubeconfig")
        parser.add_argument(
            "--force",
            action="store_true",
            help="take over a service, or fields of it, that something else manages",
        )
    deploy.add_argument(
        "--uri", default="", metavar="<url>", help="published folder (default: that of `dvkf model publish`)"
    )
    deploy.add_argument(
        "--canary", type=int, metavar="<percent>", help="give the version this part of the traffic, 0 to 99"
    )
    service_options(deploy)
    split_option(deploy)
    act = canary.add_mutually_exclusive_group()
    act.add_argument("--promote", action="store_true", help="give the canary all traffic")
    act.add_argument(
        "--abort", action="store_true", help="end the canary; the version before it has all traffic"
    )
    for parser in (deploy, canary):
        parser.add_argument(
            "--gate",
            action="append",
            default=[],
            metavar="<gate>",
            help="end the canary unless it passes, such as metric:accuracy>=champion-0.01, smoke, or "
            "prometheus:errors<1%%,p99<200ms; may be repeated",
        )
    for parser in (deploy, canary, commands["services"]):
        parser.add_argument("--json", action="store_true", help="print JSON")


def service_options(parser: Parser) -> None:
    """Describe the options of a service."""
    parser.add_argument(
        "--timeout", type=positive, metavar="<seconds>", help="seconds until the version serves"
    )
    parser.add_argument(
        "--format",
        metavar="<name>",
        help="format (default: that of the publication, or by the names of the files)",
    )
    parser.add_argument(
        "--server", default="", metavar="<name>", help="server on this machine that several models share"
    )
    parser.add_argument(
        "--workers", type=positive, metavar="<n>", help="processes on this machine that compute its answers"
    )
    parser.add_argument(
        "--grpc-port", type=int, metavar="<port>", help="port on this machine for gRPC; 0 for a free one"
    )
    parser.add_argument(
        "--runtime", metavar="<name>", help="runtime of KServe in place of the format's usual one"
    )
    parser.add_argument("--protocol", choices=("v1", "v2"), help="protocol of the runtime")
    parser.add_argument("--image", metavar="<image>", help="image of a container of format custom")
    parser.add_argument(
        "--service-account",
        metavar="<name>",
        help="account of the pods (default: one with the remote's keys)",
    )
    parser.add_argument("--cpu", metavar="<n>", help="CPUs of a pod, such as 2 or 500m")
    parser.add_argument("--memory", metavar="<size>", help="memory of a pod, such as 4Gi")
    parser.add_argument("--gpu", type=positive, metavar="<n>", help="GPUs of a pod")
    parser.add_argument("--min-replicas", type=int, metavar="<n>", help="smallest number of pods")
    parser.add_argument("--max-replicas", type=positive, metavar="<n>", help="largest number of pods")
    parser.add_argument("--mode", choices=("Standard", "Knative"), help="mode of a new service")
    parser.add_argument(
        "--url", metavar="<url>", help="address of the cluster's gateway, for requests from outside"
    )


def split_option(parser: Parser) -> None:
    """Describe the way to split the requests of a canary."""
    parser.add_argument(
        "--split",
        choices=("graph",),
        help="split the requests of a canary on a cluster by an InferenceGraph",
    )


def model_deploy(args: argparse.Namespace) -> int:
    """Run ``dvkf model deploy``."""
    from dvkf_prefect.errors import ConfigError, DvkfError
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.openlineage.sending import send_deployed

    if args.place == "local":
        _refuse_cluster_options(args, "--to", but=("format", "split"))
    registry = ModelRegistry(open_repo(args))
    version = registry.show(*model_and_version(args.model))
    if args.gate and args.canary is None:
        raise ConfigError("--gate judges a canary. Add --canary and its part of the traffic.")
    if args.split and (args.place == "local" or args.canary is None):
        raise ConfigError("--split is for a canary on a cluster. Add --to kserve and --canary.")
    check = _check(registry, version, args.gate)
    if args.place == "local":
        if args.uri:
            raise ConfigError("--uri is for a cluster. Add --to kserve.")
        here = local_server(args.timeout, args.server, args.workers, args.grpc_port)
        endpoint: Any
        if args.canary is not None:
            endpoint = here.start_canary(
                registry, version, args.canary, model_format=args.format, check=check
            )
        else:
            endpoint = here.deploy(registry, version, model_format=args.format)
        where = here.where
    else:
        if args.server or args.workers or args.grpc_port is not None:
            raise ConfigError(
                "--server, --workers and --grpc-port are for this machine. Leave --to kserve out."
            )
        server = kserve_server(args)
        if args.canary is not None:
            canary = server.deployment().start_canary(
                registry, version, args.canary, uri=args.uri, check=check
            )
            _print(canary, check.findings, args.json)
            return 0
        endpoint, where = server.deployment().deploy(registry, version, uri=args.uri), server.where
    try:
        registry.note(version, "service", {"where": where, "url": endpoint.url})
    except DvkfError as error:  # the model is served all the same
        print(
            f"WARNING: the service was not noted for the lineage of {version.version}: {error}",
            file=sys.stderr,
        )
    send_deployed(registry.repo, version, where)
    _print(endpoint, check.findings, args.json)
    return 0


def _refuse_cluster_options(args: argparse.Namespace, option: str, *, but: Sequence[str] = ()) -> None:
    """Refuse options of a cluster for this machine, where they would mean nothing.

    Raises:
        ConfigError: There is one.
    """
    from dvkf_prefect.errors import ConfigError

    for name in ("namespace", *SERVICE_FIELDS):
        if name not in but and getattr(args, name, None) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for a cluster. Add {option} kserve.")


def _check(registry: ModelRegistry, version: ModelVersion, gates: Sequence[str]) -> GateCheck:
    from dvkf_prefect.models.gates import parse_gate
    from dvkf_prefect.serving.gating import GateCheck

    return GateCheck(registry, version, [parse_gate(gate) for gate in gates])


def _print(found: Any, findings: Sequence[Finding], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        judged = {"findings": [finding.as_dict() for finding in findings]} if findings else {}
        print(json.dumps({**asdict(found), **judged} if found else None))
        return
    for finding in findings:
        say(finding)
    say(found)


def model_undeploy(args: argparse.Namespace) -> int:
    """Run ``dvkf model undeploy``."""
    if args.place == "local":
        _refuse_cluster_options(args, "--from")
    server = local_server(None) if args.place == "local" else kserve_server(args)
    removed = server.undeploy(args.model)
    say(f"{args.model} is not served any more" if removed else f"{args.model} was not served")
    return 0


def model_canary(args: argparse.Namespace) -> int:
    """Run ``dvkf model canary``."""
    findings: tuple[Finding, ...] = ()
    # A namespace is a cluster's; without it, the model is served on this machine.
    server = kserve_server(args) if args.namespace else local_server(None)
    found: Any
    if args.gate:
        from dvkf_prefect.models.registry import ModelRegistry
        from dvkf_prefect.serving.gating import judge_canary

        if args.abort:
            from dvkf_prefect.errors import ConfigError

            raise ConfigError("--gate and --abort exclude each other. Give one of them.")
        findings = judge_canary(server, ModelRegistry(open_repo(args)), args.model, args.gate)
    if args.promote or args.abort:
        found = (server.promote_canary if args.promote else server.abort_canary)(args.model)
    elif args.namespace:
        found = kserve_server(args).deployment().canaries.get(args.model)
    else:
        endpoint = local_server(None).endpoint(args.model)
        found = endpoint if endpoint.canary else None
    if found or args.json:
        _print(found, findings, args.json)
    else:
        say(f"{args.model} has no canary")
    return 0


def model_services(args: argparse.Namespace) -> int:
    """Run ``dvkf model services``."""
    from dataclasses import asdict

    endpoints = local_server(None).serving().list()
    if args.json:
        print(json.dumps([asdict(endpoint) for endpoint in endpoints]))
        return 0
    for endpoint in endpoints:
        say(endpoint)
    return 0


def local_server(
    timeout: int | None, server: str = "", workers: int | None = None, grpc_port: int | None = None
) -> ModelServer:
    """Return the servers of this machine."""
    from dvkf_prefect.blocks import ModelServer

    here = ModelServer(server=server, workers=workers or 0, grpc_port=grpc_port)
    return here if timeout is None else here.model_copy(update={"timeout": timeout})


def kserve_server(args: argparse.Namespace) -> KServeModelServer:
    """Return the services of the namespace that the arguments name."""
    from dvkf_prefect.blocks import KServeModelServer
    from dvkf_prefect.errors import ConfigError

    if not args.namespace:
        raise ConfigError("no namespace on the cluster. Give it as --namespace.")
    values = {name: value for name in SERVICE_FIELDS if (value := getattr(args, name, None)) is not None}
    if getattr(args, "timeout", None):
        values["deploy_timeout"] = args.timeout
    return KServeModelServer(namespace=args.namespace, take_over=args.force, **values)
