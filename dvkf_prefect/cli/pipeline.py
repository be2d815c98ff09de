"""Commands on pipelines and models."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dvkf_prefect.cli._common import Parser, open_repo, positive, print_git_hint, targets_of
from dvkf_prefect.cli._output import own_lines, say
from dvkf_prefect.formats.files import PIPELINE_FILE

if TYPE_CHECKING:
    from dvkf_prefect.data.repo import Repo
    from dvkf_prefect.errors import DvkfError
    from dvkf_prefect.formats.dvcyaml import Stage
    from dvkf_prefect.pipeline.plan.why import Decision, Reason
    from dvkf_prefect.pipeline.run.dvc_files import SourceEvent
    from dvkf_prefect.pipeline.run.events import ReproResult, StageEvent
    from dvkf_prefect.pipeline.step.runner import Runner


def repro_arguments(parser: Parser) -> None:
    """Describe ``dvkf repro``."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="stages, outputs, dvc.yaml or .dvc files (default: dvc.yaml)",
    )
    for flags, text in (
        (("-f", "--force"), "run stages even when nothing changed"),
        (("-i", "--interactive"), "ask before each stage"),
        (("-s", "--single-item"), "only the stages named, not what they need"),
        (("-p", "--pipeline"), "all stages that are connected with those named"),
        (("-P", "--all-pipelines"), "every dvc.yaml of the repository"),
        (("-R", "--recursive"), "a target that is a folder means all stages in it"),
        (("--downstream",), "the stages named and all that need them"),
        (("--force-downstream",), "run all that need a stage that ran"),
        (("--pull",), "bring what is missing, and runs that are known, from the remote"),
        (("--allow-missing",), "data that is missing is no reason to run"),
        (("--dry",), "only say what would run, and why"),
        (("--glob",), "names of stages are patterns"),
        (("--no-commit",), "do not store outputs in the cache"),
        (("--no-run-cache",), "run even what an equal run is known of"),
        (
            ("--hermetic",),
            "run each stage in a clean folder with just what it declares, not in the workspace",
        ),
    ):
        parser.add_argument(*flags, action="store_true", help=text)
    parser.add_argument(
        "-k",
        "--keep-going",
        action="store_const",
        const="keep-going",
        default="fail",
        dest="on_error",
        help="when a stage fails, go on with those that do not need it",
    )
    parser.add_argument(
        "--ignore-errors",
        action="store_const",
        const="ignore",
        dest="on_error",
        help="when a stage fails, go on as if it had not",
    )
    parser.add_argument(
        "-j",
        "--jobs",
        type=positive,
        metavar="<number>",
        help="stages at once (default: 1 in the workspace, else 2)",
    )
    parser.add_argument(
        "--runner",
        choices=("local", "kubeflow", "kubeflow-local"),
        default="local",
        help="plain processes, Kubeflow Pipelines on the cluster that DVKF_KUBEFLOW_HOST names, or its local runner "
        "(default: local)",
    )


def repro(args: argparse.Namespace) -> int:
    """Run ``dvkf repro``."""
    from dvkf_prefect.pipeline.plan.decide import Rules, Scope
    from dvkf_prefect.pipeline.run import repro as stages

    repo = open_repo()
    whole = args.all_pipelines
    targets = [] if whole else targets_of(repo, args.targets or [PIPELINE_FILE])
    scope = Scope(
        single_item=args.single_item and not (whole or args.pipeline),
        pipeline=args.pipeline,
        downstream=args.downstream and not (whole or args.pipeline),
        recursive=args.recursive,
        glob=args.glob,
    )
    rules = Rules(
        force=args.force,
        force_downstream=args.force_downstream,
        run_cache=not args.no_run_cache,
        pull=args.pull,
        allow_missing=args.allow_missing,
    )
    if args.dry:
        from dvkf_prefect.pipeline.run.dry_run import rehearse

        screen = _Screen(repo, quiet=args.quiet, on_error=args.on_error, dry=True)
        rehearsed = rehearse(
            repo,
            targets,
            scope=scope,
            rules=rules,
            on_error=args.on_error,
            on_decision=screen.tell_decision,
            on_failure=screen.tell_failure,
            on_source=screen.tell_source,
        )
        return screen.end(rehearsed)
    screen = _Screen(repo, quiet=args.quiet, on_error=args.on_error, echoes=args.runner == "local")
    jobs = args.jobs or (2 if args.hermetic or args.runner != "local" else 1)
    with _runner(repo, args.runner, in_place=not args.hermetic) as runner:
        result = stages.repro(
            repo,
            targets,
            runner=runner,
            scope=scope,
            rules=rules,
            on_error=args.on_error,
            commit=not args.no_commit,
            jobs=1 if args.interactive else jobs,
            raise_failures=False,
            confirm=_confirm if args.interactive or repo.config.get("core", "interactive") else None,
            on_event=screen.tell,
            on_source=screen.tell_source,
        )
    return screen.end(result)


def run_one(repo: Repo, address: str, *, quiet: bool) -> int:
    """Run one stage, as ``dvkf stage add --run`` does."""
    from dvkf_prefect.pipeline.run import repro as stages

    screen = _Screen(repo, quiet=quiet, on_error="fail")
    with _runner(repo, "local") as runner:
        result = stages.repro(
            repo,
            [address],
            runner=runner,
            single_item=True,
            raise_failures=False,
            on_event=screen.tell,
        )
    if not (result.failed or quiet):
        print_git_hint(repo)
    return 255 if result.failed else 0


def _runner(repo: Repo, name: str, *, in_place: bool = True) -> Runner:
    if name == "kubeflow":
        from dvkf_prefect.errors import ConfigError
        from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings

        settings = ClusterSettings.from_environment()
        if settings is None:
            raise ConfigError(
                "no cluster for --runner kubeflow: DVKF_KUBEFLOW_HOST is not set. Set it to the address of Kubeflow "
                "Pipelines, or use --runner kubeflow-local for KFP's local runner"
            )
        from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner

        return KfpClusterRunner(repo, settings, fetch=True)
    if name == "kubeflow-local":
        from dvkf_prefect.kubeflow.local.runner import KfpLocalRunner

        return KfpLocalRunner(repo.tmp_dir / "kubeflow")
    from dvkf_prefect.pipeline.step.runner import LocalRunner

    return LocalRunner(in_place=in_place)


def _confirm(stage: Stage) -> bool:
    question = f"Going to reproduce stage: '{stage.address}'. Are you sure you want to continue? [y/n] "
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _name(repo: Repo, address: str) -> str:
    """Return a stage's address relative to the current folder."""
    match = re.fullmatch(r"(?:((?:.*/)?dvc\.yaml):)?(.*)", address, re.DOTALL)
    file, name = (match[1] or PIPELINE_FILE, match[2]) if match else (PIPELINE_FILE, address)
    shown = os.path.relpath(repo.root / file)
    return name if shown == PIPELINE_FILE else f"{shown}:{name}"


def _because(reasons: Sequence[Reason]) -> str:
    return f"  because {'; '.join(map(str, reasons))}"


def _end(quiet: bool, changed: bool) -> None:
    if not quiet:
        print(
            "Use `dvkf push` to send your updates to remote storage."
            if changed
            else "Data and pipelines are up to date."
        )


class _Screen:
    """Printer of a pipeline's events, in DVC's words, with reasons."""

    def __init__(
        self, repo: Repo, *, quiet: bool, on_error: str, echoes: bool = True, dry: bool = False
    ) -> None:
        self._repo = repo
        self._echoes = echoes  # True if the runner prints the output of stages
        self._quiet = quiet
        self._on_error = on_error
        self._dry = dry
        self._changed = False
        self._ran = False
        self._running: list[str] = []

    def _say(self, *lines: str) -> None:
        if not self._quiet:
            for line in lines:
                say(line)
            sys.stdout.flush()

    def tell_source(self, event: SourceEvent) -> None:
        """Print the state of a `.dvc` file."""
        self._changed |= event.action != "skip"
        would = "would be " if self._dry else ""
        if event.action == "update":
            self._say(f"Importing '{event.origin}' -> '{os.path.relpath(self._repo.root / event.path)}'")
            return
        said = {
            "skip": " didn't change, skipping",
            "record": ": what changed would be recorded" if self._dry else ": recorded what changed",
            "checkout": f": {would}checked out",
            "pull": f": {would}pulled",
        }
        self._say(f"'{os.path.relpath(self._repo.root / event.source)}'{said[event.action]}")

    def tell_decision(self, stage: Stage, decision: Decision) -> None:
        """Print the planned action for a stage."""
        from dvkf_prefect.pipeline.run.events import StageEvent

        name = _name(self._repo, stage.address)
        if decision.action == "run":
            self._say(
                f"Running stage '{name}':",
                *(f"> {command}" for command in stage.cmd),
                _because(decision.reasons),
            )
        else:
            self.tell(StageEvent(stage.address, decision.action, decision.reasons, frozen=stage.frozen))

    def tell_failure(self, stage: Stage, error: DvkfError) -> None:
        """Print the expected failure of a stage."""
        from dvkf_prefect.pipeline.run.events import StageEvent

        self.tell(StageEvent(stage.address, "fail", message=str(error)))

    def tell(self, event: StageEvent) -> None:
        """Print an event of a stage."""
        name = _name(self._repo, event.stage)
        match event.kind:
            case "start":
                self._running.append(name)
                space = [""] if self._ran else []
                self._ran = True
                # The runner prints the commands, each at its start.
                self._say(*space, f"Running stage '{name}':", _because(event.reasons))
            case "skip":
                if event.frozen:
                    text = f"stage: '{name}' is frozen. Its dependencies are not going to be reproduced."
                    say(f"WARNING: {text}", stream=sys.stderr, flush=True)
                if event.frozen and event.reasons:
                    if not self._dry:
                        self._say(f"Verifying outputs in frozen stage: '{name}'")
                else:
                    self._say(f"Stage '{name}' didn't change, skipping")
            case "restore":
                self._say(
                    f"Stage '{name}' is cached - skipping run, checking out outputs", _because(event.reasons)
                )
            case "done":
                self._forget(name)
                if event.log_tail and not self._echoes:
                    self._say(*event.log_tail.rstrip("\n").split("\n"))
                for warning in () if self._quiet else event.warnings:
                    say(f"WARNING: {warning}", stream=sys.stderr, flush=True)
                progress = f" ({event.ended} of {event.total} stages)" if event.total > 1 else ""
                self._say(f"Stage '{name}' done in {event.seconds:.1f} s{progress}{self._others()}")
            case _:
                self._forget(name)
                ignored = self._on_error == "ignore"
                text = (
                    f"{'WARNING' if ignored else 'ERROR'}: {event.message}{' (ignored)' if ignored else ''}"
                )
                print(own_lines(text), file=sys.stderr, flush=True)

    def _forget(self, name: str) -> None:
        if name in self._running:
            self._running.remove(name)

    def _others(self) -> str:
        return f"; still running: {', '.join(self._running)}" if self._running else ""

    def end(self, result: ReproResult) -> int:
        """Print the summary and return the exit code."""
        if result.failed and self._on_error != "ignore":
            names, blocked = (
                " and ".join(f"'{_name(self._repo, address)}'" for address in addresses)
                for addresses in (result.failed, result.blocked)
            )
            if blocked:
                say(f"WARNING: not come to: {blocked}", stream=sys.stderr)
            segment = "stages: " if len(result.failed) > 1 else ""
            say(f"ERROR: failed to reproduce {segment}{names}", stream=sys.stderr)
            return 255
        if not self._quiet:
            print_git_hint(self._repo)
        changed = self._changed or any(d.action != "skip" or d.reasons for d in result.decisions)
        _end(self._quiet, changed and not result.failed)
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
    say(f"{version.name} {version.version}: {version.path} ({version.digest}) of commit {version.rev[:7]}")
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
        say(
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
        say(f"{key + ':':<12}{text}")
    return 0


def model_assign(args: argparse.Namespace) -> int:
    """Run ``dvkf model assign``."""
    version = _registry().assign(args.name, args.model_version, args.stage)
    say(f"{version.name} #{args.stage} is {version.version}")
    return 0


def model_rollback(args: argparse.Namespace) -> int:
    """Run ``dvkf model rollback``."""
    version = _registry().rollback(args.name, args.stage)
    say(f"{version.name} #{args.stage} is {version.version} again")
    return 0
