"""Command that writes pipelines for other programs."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, open_repo, targets_of
from dvkf_prefect.cli._output import say
from dvkf_prefect.errors import ConfigError

if TYPE_CHECKING:
    from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
    from dvkf_prefect.kubeflow.export.export import ExportedPipeline


def export_arguments(parser: Parser) -> None:
    """Describe ``dvkf export``."""
    commands = parser.commands(
        kfp=(kfp, "Write the stages as a Kubeflow pipeline that runs without dvkf on this machine.")
    )
    verb = commands["kfp"]
    verb.add_argument(
        "targets", nargs="*", metavar="TARGET", help="stages, outputs or dvc.yaml files (default: all stages)"
    )
    verb.add_argument(
        "-o",
        "--output",
        default="pipeline.yaml",
        metavar="<file>",
        help="file to write, or - for standard output (default: pipeline.yaml)",
    )
    verb.add_argument("--name", default="", metavar="<name>", help="name of the pipeline")
    verb.add_argument("--image", metavar="<image>", help="image of stages that name none")
    verb.add_argument(
        "--package",
        action="append",
        default=[],
        metavar="<package>",
        help="package that pods install at their start, in pip's syntax",
    )
    verb.add_argument(
        "--remote-secret", metavar="<name>", help="Kubernetes secret with the credentials of the remote"
    )
    verb.add_argument(
        "--remote-secret-key",
        action="append",
        default=[],
        metavar="<key>=<option>",
        help="key of that secret and the remote's option that it holds",
    )
    verb.add_argument("--remote-url", metavar="<url>", help="URL of the remote inside the cluster")
    verb.add_argument(
        "--remote-option",
        action="append",
        default=[],
        metavar="<name>=<value>",
        help="option of the remote that differs inside the cluster",
    )
    verb.add_argument(
        "--workspace",
        action="append",
        default=[],
        metavar="<name>=<value>",
        help="size, access_mode or storage_class of a volume that the pods of a run share",
    )
    for flags, text in (
        (("-s", "--single-item"), "export only the named stages, without their dependencies"),
        (("-f", "--force"), "let each run repeat the stages, even if an equal run is known"),
        (("--allow-dirty",), "include uncommitted changes in the sources"),
        (("--no-push",), "refuse if the remote lacks inputs, in place of pushing them"),
        (("--kubernetes-manifest",), "write a Pipeline and a PipelineVersion for `kubectl apply`"),
    ):
        verb.add_argument(*flags, action="store_true", help=text)
    verb.add_argument(
        "--namespace", default="", metavar="<name>", help="namespace of these Kubernetes objects"
    )


def kfp(args: argparse.Namespace) -> int:
    """Run ``dvkf export kfp``."""
    from dvkf_prefect.files import write_atomic
    from dvkf_prefect.kubeflow.export.export import ExportOptions, export_pipeline

    if args.namespace and not args.kubernetes_manifest:
        raise ConfigError(
            "--namespace is that of Kubernetes objects. Add --kubernetes-manifest, or name the namespace when "
            "you start a run."
        )
    repo = open_repo()
    options = ExportOptions(
        name=args.name,
        single_item=args.single_item,
        force=args.force,
        manifest=args.kubernetes_manifest,
        namespace=args.namespace,
    )
    made = export_pipeline(repo, _settings(args), targets_of(repo, args.targets), options=options)
    if args.output == "-":
        print(made.text, end="")
        return 0
    write_atomic(Path(args.output), made.text.encode())
    if not args.quiet:
        _report(made, args)
    return 0


def _settings(args: argparse.Namespace) -> ClusterSettings:
    from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
    from dvkf_prefect.kubeflow.compile.workspace import parse_workspace

    # The server is not used.
    settings = ClusterSettings.from_environment({"DVKF_KUBEFLOW_HOST": "http://localhost", **os.environ})
    assert settings is not None
    remote = settings.remote
    remote = dataclasses.replace(
        remote,
        secret=args.remote_secret or remote.secret,
        url=args.remote_url or remote.url,
        keys=_pairs("--remote-secret-key", args.remote_secret_key) or remote.keys,
        options={**remote.options, **_pairs("--remote-option", args.remote_option)},
    )
    return dataclasses.replace(
        settings,
        image=args.image or settings.image,
        defaults=dataclasses.replace(settings.defaults, packages=tuple(args.package)),
        remote=remote,
        workspace=parse_workspace(_pairs("--workspace", args.workspace)) if args.workspace else None,
        allow_dirty=args.allow_dirty or settings.allow_dirty,
        push_missing=not args.no_push,
    )


def _pairs(option: str, values: list[str]) -> dict[str, str]:
    for value in values:
        if "=" not in value.strip("="):
            raise ConfigError(f"{option} {value!r} has no '='. Write it as NAME=VALUE.")
    return dict(value.split("=", 1) for value in values)


def _report(made: ExportedPipeline, args: argparse.Namespace) -> None:
    say(f"{args.output}: {len(made.stages)} stage(s) of {made.sources}")
    say(f"Needs Kubeflow Pipelines {made.needs[0]}.{made.needs[1]} or newer.")
    if made.service_account:
        say(f"Start it with the service account '{made.service_account}', which the file cannot name.")
    if made.unrecorded:
        say(
            f"Not recorded, as DVC never restores them: {', '.join(made.unrecorded)}. `dvkf repro` runs them "
            "again."
        )
    step = (
        f"kubectl apply -f {args.output}" if args.kubernetes_manifest else f"kfp run create -f {args.output}"
    )
    say(f"Start it with `{step}`, or in Kubeflow's UI. Then `dvkf repro --pull` restores its results.")
