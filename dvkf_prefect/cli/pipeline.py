"""Commands on pipelines and models."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, open_repo, positive, print_git_hint, targets_of
from dvkf_prefect.cli._output import own_lines, say
from dvkf_prefect.formats.files import PIPELINE_FILE

if TYPE_CHECKING:
    from dvkf_prefect.errors import DvkfError
    from dvkf_prefect.formats.dvcyaml import Stage
    from dvkf_prefect.kubeflow.cluster.runner import StartedRun, TaskEvent
    from dvkf_prefect.pipeline.plan.why import Decision, Reason
    from dvkf_prefect.pipeline.run.dvc_files import SourceEvent
    from dvkf_prefect.pipeline.run.events import ReproResult, StageEvent
    from dvkf_prefect.pipeline.step.runner import Runner
    from dvkf_prefect.repo import Repo


def repro_arguments(parser: Parser) -> None:
    """Describe ``dvkf repro``."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="stages, outputs, dvc.yaml or .dvc files (default: dvc.yaml)",
    )
    for flags, text in (
        (("-f", "--force"), "run stages even if nothing changed"),
        (("-i", "--interactive"), "confirm each stage"),
        (("-s", "--single-item"), "run only the named stages, without their dependencies"),
        (("-p", "--pipeline"), "run all stages connected with the named ones"),
        (("-P", "--all-pipelines"), "run the stages of every dvc.yaml in the repository"),
        (("-R", "--recursive"), "run all stages in target folders"),
        (("--downstream",), "run the named stages and all that depend on them"),
        (("--force-downstream",), "run every stage that depends on a stage that ran"),
        (("--pull",), "download missing data and known runs from the remote"),
        (("--allow-missing",), "skip unchanged stages whose data is missing"),
        (("--dry",), "print the stages that would run, and the reasons, without running them"),
        (("--glob",), "treat names of stages as patterns"),
        (("--no-commit",), "run without storing outputs in the cache"),
        (("--no-run-cache",), "run stages even if an equal run is known"),
        (
            ("--hermetic",),
            "run each stage in a clean folder with only its declared dependencies",
        ),
    ):
        parser.add_argument(*flags, action="store_true", help=text)
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="[<file>:]<name>=<value>",
        help="run the last commit with this value, apart from the workspace, and commit values and results to a branch",
    )
    parser.add_argument(
        "-k",
        "--keep-going",
        action="store_const",
        const="keep-going",
        default="fail",
        dest="on_error",
        help="on a failure, run the stages that do not depend on the failed one",
    )
    parser.add_argument(
        "--ignore-errors",
        action="store_const",
        const="ignore",
        dest="on_error",
        help="on a failure, continue as if the stage had succeeded",
    )
    parser.add_argument(
        "-j",
        "--jobs",
        type=positive,
        metavar="<number>",
        help="number of parallel stages (default: 1 in the workspace, else 2)",
    )
    parser.add_argument(
        "--runner",
        choices=("local", "kubeflow", "kubeflow-local"),
        default="local",
        help="plain processes, Kubeflow Pipelines on the cluster that DVKF_KUBEFLOW_HOST names, or its local runner "
        "(default: local)",
    )


def run_arguments(parser: Parser) -> None:
    """Describe ``dvkf run``."""
    parser.add_argument("targets", nargs=1, metavar="STAGE", help="stage to run, even if nothing changed")
    for flags, text in (
        (("--pull",), "download its missing inputs from the remote"),
        (("--no-commit",), "run without storing its outputs in the cache"),
        (("--hermetic",), "run it in a clean folder with only its declared dependencies"),
    ):
        parser.add_argument(*flags, action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    """Run ``dvkf run``: `repro` of a single stage by force."""
    defaults = Parser()
    repro_arguments(defaults)
    chosen = defaults.parse_args(["--single-item", "--force", "--no-run-cache"])
    return repro(argparse.Namespace(**{**vars(chosen), **vars(args)}))


def repro(args: argparse.Namespace) -> int:
    """Run ``dvkf repro``."""
    repo = open_repo()
    targets = [] if args.all_pipelines else targets_of(repo, args.targets or [PIPELINE_FILE])
    if not args.set_param:
        return _repro(args, repo, targets)[0]
    from dvkf_prefect.errors import ConfigError
    from dvkf_prefect.pipeline.run.apart import apart, commit_apart

    if args.no_commit:
        raise ConfigError("`--set-param` records its results in a commit. Leave out `--no-commit`.")

    def waiting(text: str) -> None:
        say(text, stream=sys.stderr)

    with apart(repo, args.set_param, rehearsal=args.dry, on_wait=waiting) as place:
        inner = type(repo).open(place.root)
        # Names of files and stages are shown relative to the current folder.
        here = os.getcwd()
        os.chdir(place.root)
        try:
            code, ran = _repro(args, inner, targets)
        finally:
            os.chdir(here)
        if args.dry or code:
            return code
        message = f"Repro: {', '.join(ran) or 'nothing ran'}\n\nOverrides: {' '.join(args.set_param)}\n"
        commit_apart(inner, message)
        if not args.quiet:
            say(f"Recorded on the branch {place.branch}. Use `git merge {place.branch}` to take it over.")
    return 0


def _repro(args: argparse.Namespace, repo: Repo, targets: list[str]) -> tuple[int, tuple[str, ...]]:
    """Run stages of a repository; return the exit code, and the stages that ran or were restored."""
    from dvkf_prefect.openlineage.sending import watch_stages
    from dvkf_prefect.pipeline.plan.decide import Expansion, Rules
    from dvkf_prefect.pipeline.run import repro as stages

    whole = args.all_pipelines
    expansion = Expansion(
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
            expansion=expansion,
            rules=rules,
            on_error=args.on_error,
            on_decision=screen.show_decision,
            on_failure=screen.show_failure,
            on_source=screen.show_source,
        )
        return screen.end(rehearsed), ()
    screen = _Screen(repo, quiet=args.quiet, on_error=args.on_error, echoes=args.runner == "local")
    jobs = args.jobs or (2 if args.hermetic or args.runner != "local" else 1)
    show = None if args.quiet else screen.show_task
    watched = watch_stages(repo, screen.show_event)
    with _runner(repo, args.runner, in_place=not args.hermetic, quiet=args.quiet, on_event=show) as runner:
        result = stages.repro(
            repo,
            targets,
            runner=runner,
            expansion=expansion,
            rules=rules,
            on_error=args.on_error,
            commit=not args.no_commit,
            jobs=1 if args.interactive else jobs,
            raise_failures=False,
            confirm=_confirm if args.interactive or repo.config.get("core", "interactive") else None,
            on_event=watched,
            on_source=screen.show_source,
        )
    return screen.end(result), (*result.ran, *result.restored)


def run_one(repo: Repo, address: str, *, quiet: bool) -> int:
    """Run one stage, as ``dvkf stage add --run`` does."""
    from dvkf_prefect.openlineage.sending import watch_stages
    from dvkf_prefect.pipeline.run import repro as stages

    screen = _Screen(repo, quiet=quiet, on_error="fail")
    with _runner(repo, "local") as runner:
        result = stages.repro(
            repo,
            [address],
            runner=runner,
            single_item=True,
            raise_failures=False,
            on_event=watch_stages(repo, screen.show_event),
        )
    if not (result.failed or quiet):
        print_git_hint(repo)
    return 255 if result.failed else 0


def _runner(
    repo: Repo,
    name: str,
    *,
    in_place: bool = True,
    quiet: bool = False,
    on_event: Callable[[TaskEvent], None] | None = None,
) -> Runner:
    if name == "kubeflow":
        from dvkf_prefect.errors import ConfigError
        from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings

        settings = ClusterSettings.from_environment()
        if settings is None:
            raise ConfigError(
                "no cluster for --runner kubeflow: DVKF_KUBEFLOW_HOST is not set. Set it to the address of "
                "Kubeflow Pipelines, or use --runner kubeflow-local for KFP's local runner."
            )
        from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner

        on_run = None if quiet else _show_run
        return KfpClusterRunner(repo, settings, fetch=True, on_event=on_event, on_run=on_run)
    if name == "kubeflow-local":
        from dvkf_prefect.kubeflow.local.runner import KfpLocalRunner

        return KfpLocalRunner(repo.tmp_dir / "kubeflow")
    from dvkf_prefect.pipeline.step.runner import LocalRunner

    return LocalRunner(in_place=in_place)


def _show_run(run: StartedRun) -> None:
    say(str(run), flush=True)


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
        self._logged: set[str] = set()

    def _say(self, *lines: str) -> None:
        if not self._quiet:
            for line in lines:
                say(line)
            sys.stdout.flush()

    def show_task(self, event: TaskEvent) -> None:
        """Print new lines of the log of a stage on a cluster, and why its pod does not start."""
        name = _name(self._repo, event.stage)
        if event.state == "LOG":
            self._logged.add(event.stage)
            self._say(*(f"{name} | {line}" for line in event.message.split("\n")))
        elif event.state == "WAITING":
            say(f"WARNING: {event}", stream=sys.stderr, flush=True)

    def show_source(self, event: SourceEvent) -> None:
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

    def show_decision(self, stage: Stage, decision: Decision) -> None:
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
            self.show_event(StageEvent(stage.address, decision.action, decision.reasons, frozen=stage.frozen))

    def show_failure(self, stage: Stage, error: DvkfError) -> None:
        """Print the expected failure of a stage."""
        from dvkf_prefect.pipeline.run.events import StageEvent

        self.show_event(StageEvent(stage.address, "fail", message=str(error)))

    def show_event(self, event: StageEvent) -> None:
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
                if event.log_tail and not self._echoes and event.stage not in self._logged:
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
                say(f"WARNING: not run: {blocked}", stream=sys.stderr)
            segment = "stages: " if len(result.failed) > 1 else ""
            say(f"ERROR: failed to reproduce {segment}{names}", stream=sys.stderr)
            return 255
        if not self._quiet:
            print_git_hint(self._repo)
        changed = self._changed or any(d.action != "skip" or d.reasons for d in result.decisions)
        _end(self._quiet, changed and not result.failed)
        return 0
