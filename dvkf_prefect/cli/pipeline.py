"""Commands on pipelines and models."""

from __future__ import annotations

import argparse
from typing import Any

from dvkf_prefect.cli._common import Parser, open_repo, positive, targets_of
from dvkf_prefect.data.revisions import PIPELINE_FILE


def repro_arguments(parser: Parser) -> None:
    """Describe ``dvkf repro``."""
    parser.add_argument("targets", nargs="*", metavar="STAGE")
    parser.add_argument("-f", "--force", action="store_true", help="run stages even when nothing changed")
    parser.add_argument(
        "-s", "--single-item", action="store_true", help="only the stages named, not what they need"
    )
    parser.add_argument(
        "-P",
        "--all-pipelines",
        action="store_true",
        help="every dvc.yaml of the repository (default: the one here)",
    )
    parser.add_argument("--dry", action="store_true", help="only say what would run, and why")
    parser.add_argument("-j", "--jobs", type=positive, default=2, metavar="<number>", help="stages at once")
    parser.add_argument(
        "--runner",
        choices=("local", "kubeflow"),
        default="local",
        help="plain processes, or Kubeflow Pipelines on this machine (default: local)",
    )


def repro(args: argparse.Namespace) -> int:
    """Run ``dvkf repro``."""
    from dvkf_prefect.pipeline import repro as stages
    from dvkf_prefect.pipeline.runner import LocalRunner, Runner

    repo = open_repo()
    targets = [] if args.all_pipelines else targets_of(repo, args.targets or [PIPELINE_FILE])
    if args.dry:
        for decision in stages.plan(repo, targets, force=args.force, single_item=args.single_item):
            print(decision)
        return 0
    runner: Runner
    if args.runner == "kubeflow":
        from dvkf_prefect.kubeflow.local import KfpLocalRunner

        runner = KfpLocalRunner(repo.tmp_dir / "kubeflow")
    else:
        runner = LocalRunner()

    def tell(event: stages.StageEvent) -> None:
        if not args.quiet:
            print(event, flush=True)

    try:
        result = stages.repro(
            repo,
            targets,
            runner=runner,
            force=args.force,
            single_item=args.single_item,
            jobs=args.jobs,
            on_event=tell,
        )
    finally:
        runner.close()
    if not args.quiet and not result.ran and not result.restored:
        print("Data and pipelines are up to date.")
    return 0


def _registry() -> Any:
    from dvkf_prefect.models.registry import ModelRegistry

    return ModelRegistry(open_repo())


def model_arguments(parser: Parser) -> None:
    """Describe ``dvkf model``."""
    commands = parser.commands(
        register=(model_register, "Register a version of a model from a commit."),
        list=(model_list, "List the registered versions."),
        show=(model_show, "Show one version."),
        assign=(model_assign, "Assign a version to a stage, such as prod."),
        rollback=(model_rollback, "Assign a stage to the version that held it before."),
    )
    register = commands["register"]
    register.add_argument("name", help="an artifact of dvc.yaml")
    register.add_argument("rev", nargs="?", default="HEAD", help="the commit (default: HEAD)")
    register.add_argument(
        "--version", dest="model_version", metavar="<vX.Y.Z>", help="otherwise the next one"
    )
    register.add_argument("-m", "--message", default="", help="what is new in it")
    commands["list"].add_argument("name", nargs="?")
    show = commands["show"]
    show.add_argument("name")
    show.add_argument("which", nargs="?", default="latest", help="a version, #stage, or latest (default)")
    for command in (commands["list"], show):
        command.add_argument("--json", action="store_true", help="as JSON")
    assign = commands["assign"]
    assign.add_argument("name")
    assign.add_argument("model_version", metavar="version")
    assign.add_argument("stage")
    rollback = commands["rollback"]
    rollback.add_argument("name")
    rollback.add_argument("stage")


def model_register(args: argparse.Namespace) -> int:
    """Run ``dvkf model register``."""
    version = _registry().register(args.name, version=args.model_version, rev=args.rev, message=args.message)
    print(f"{version.name} {version.version}: {version.path} ({version.digest}) of commit {version.rev[:7]}")
    return 0


def model_list(args: argparse.Namespace) -> int:
    """Run ``dvkf model list``."""
    versions = _registry().list(args.name)
    if args.json:
        import json

        print(json.dumps([version.as_dict() for version in versions]))
        return 0
    for version in versions:
        stages = " ".join(f"#{stage}" for stage in version.stages)
        print(
            f"{version.name}\t{version.version}\t{version.rev[:7]}\t{version.created:%Y-%m-%d %H:%M}\t{stages}".rstrip()
        )
    return 0


def model_show(args: argparse.Namespace) -> int:
    """Run ``dvkf model show``."""
    version = _registry().show(args.name, args.which)
    values = version.as_dict()
    if args.json:
        import json

        print(json.dumps(values))
        return 0
    for key, value in values.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        print(f"{key + ':':<12}{text}")
    return 0


def model_assign(args: argparse.Namespace) -> int:
    """Run ``dvkf model assign``."""
    version = _registry().assign(args.name, args.model_version, args.stage)
    print(f"{version.name} #{args.stage} is {version.version}")
    return 0


def model_rollback(args: argparse.Namespace) -> int:
    """Run ``dvkf model rollback``."""
    version = _registry().rollback(args.name, args.stage)
    print(f"{version.name} #{args.stage} is {version.version} again")
    return 0
