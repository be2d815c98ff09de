"""Commands on runs and recurring runs of a Kubeflow Pipelines server, which ``DVKF_KUBEFLOW_HOST`` names."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from dvkf_prefect.cli._common import Parser, open_repo, positive, targets_of
from dvkf_prefect.cli._output import say
from dvkf_prefect.errors import ConfigError, NotARepositoryError

if TYPE_CHECKING:
    from dvkf_prefect.kubeflow.cluster.api import KfpApi
    from dvkf_prefect.kubeflow.cluster.links import Links
    from dvkf_prefect.kubeflow.cluster.runs import Runs
    from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
    from dvkf_prefect.kubeflow.export.schedules import Schedules
    from dvkf_prefect.repo import Repo


def runs_arguments(parser: Parser) -> None:
    """Describe ``dvkf runs``."""
    commands = parser.commands(
        list=(list_runs, "List the runs of this repository's experiment, the newest first."),
        show=(show_run, "Show a run with the states of its stages."),
        retry=(retry, "Run the failed stages of a failed run again, in the same run."),
        terminate=(terminate, "End a run."),
        archive=(archive, "Move runs to the archive, where lists and the UI hide them."),
        unarchive=(unarchive, "Move runs back from the archive."),
        delete=(delete, "Delete runs from the server; results on the remote stay."),
    )
    listing = commands["list"]
    listing.add_argument("--archived", action="store_true", help="list the runs of the archive")
    listing.add_argument("--all", action="store_true", help="list the runs of all experiments")
    listing.add_argument(
        "-n", "--number", type=positive, default=20, metavar="<number>", help="number of runs (default: 20)"
    )
    for name in ("list", "show"):
        commands[name].add_argument("--json", action="store_true", help="print JSON")
    for name in ("show", "retry", "terminate"):
        commands[name].add_argument("run_id", metavar="RUN", help="ID of the run")
    for name in ("archive", "unarchive", "delete"):
        commands[name].add_argument("run_ids", nargs="+", metavar="RUN", help="ID of a run")


def schedule_arguments(parser: Parser) -> None:
    """Describe ``dvkf schedule``."""
    commands = parser.commands(
        create=(create_schedule, "Create a recurring run of the stages, in place of the one of that name."),
        list=(list_schedules, "List the recurring runs of this repository's experiment."),
        pause=(pause, "Let a recurring run start no runs."),
        resume=(resume, "Let a paused recurring run start runs again."),
        delete=(delete_schedule, "Delete a recurring run; its runs stay."),
    )
    make = commands["create"]
    make.add_argument(
        "targets", nargs="*", metavar="TARGET", help="stages, outputs or dvc.yaml files (default: all stages)"
    )
    times = make.add_mutually_exclusive_group(required=True)
    times.add_argument(
        "--cron", metavar="<cron>", help="times as in a crontab: five fields, or an alias such as @daily"
    )
    times.add_argument(
        "--deployment",
        metavar="<flow/name>",
        help="Prefect deployment whose schedule to take: its cron, zone and state",
    )
    make.add_argument(
        "--timezone", default="UTC", metavar="<zone>", help="time zone of the times (default: UTC)"
    )
    make.add_argument(
        "--server-timezone",
        default="UTC",
        metavar="<zone>",
        help="time zone of Kubeflow's controller, its CRON_SCHEDULE_TIMEZONE (default: UTC)",
    )
    make.add_argument("--name", default="", metavar="<name>", help="name of the recurring run")
    for flags, text in (
        (("-f", "--force"), "let each run repeat the stages, even if an equal run is known"),
        (("--paused",), "start no runs until `dvkf schedule resume`"),
    ):
        make.add_argument(*flags, action="store_true", help=text)
    commands["list"].add_argument("--json", action="store_true", help="print JSON")
    for name in ("pause", "resume", "delete"):
        commands[name].add_argument("name", metavar="NAME", help="name or ID of the recurring run")


def create_schedule(args: argparse.Namespace) -> int:
    """Run ``dvkf schedule create``."""
    from dvkf_prefect.kubeflow.export.cron import kubeflow_cron

    cron, zone, day_or, paused = args.cron, args.timezone, True, args.paused
    if args.deployment:
        from dvkf_prefect.tasks.kubeflow import schedule_of

        found = schedule_of(args.deployment)
        cron, zone, day_or, paused = found.cron, found.timezone, found.day_or, paused or not found.active
    cron = kubeflow_cron(cron, zone, server_zone=args.server_timezone, day_or=day_or)
    with _schedules() as (schedules, repo):
        made = schedules.create(
            cron, targets_of(repo, args.targets), name=args.name, force=args.force, paused=paused
        )
    if not args.quiet:
        say(str(made))
        say("Its runs have the sources and data of this commit. Create it again after a change.")
        say("Use `dvkf repro --pull` to record results, which its runs add to the remote's run cache.")
    return 0


def list_schedules(args: argparse.Namespace) -> int:
    """Run ``dvkf schedule list``."""
    with _schedules() as (schedules, _):
        found = schedules.all()
    if args.json:
        print(json.dumps([asdict(each) for each in found]))
        return 0
    for each in found:
        say(str(each))
    if not found and not args.quiet:
        say("No recurring runs.")
    return 0


def pause(args: argparse.Namespace) -> int:
    """Run ``dvkf schedule pause``."""
    return _change(args, lambda schedules, each: schedules.pause(each), "Paused '{}'.")


def resume(args: argparse.Namespace) -> int:
    """Run ``dvkf schedule resume``."""
    return _change(args, lambda schedules, each: schedules.resume(each), "Resumed '{}'.")


def delete_schedule(args: argparse.Namespace) -> int:
    """Run ``dvkf schedule delete``."""
    return _change(args, lambda schedules, each: schedules.delete(each), "Deleted '{}'.")


@contextmanager
def _schedules() -> Iterator[tuple[Schedules, Repo]]:
    from dvkf_prefect.kubeflow.export.schedules import Schedules

    repo = open_repo()
    with server() as (settings, api):
        yield Schedules(repo, settings, api), repo


def _change(args: argparse.Namespace, do: Callable[[Schedules, str], None], text: str) -> int:
    with _schedules() as (schedules, _):
        found = schedules.find(args.name)
        do(schedules, found.schedule_id)
    if not args.quiet:
        say(text.format(found.name))
    return 0


def list_runs(args: argparse.Namespace) -> int:
    """Run ``dvkf runs list``."""
    with server() as (settings, api):
        experiment = ""
        if not args.all and (name := _experiment(settings)):
            experiment = api.find_experiment(name, settings.namespace)
            if not experiment:
                raise ConfigError(
                    f"no experiment '{name}' on {api.host}. Use `--all`, or name another by DVKF_KUBEFLOW_EXPERIMENT."
                )
        found = api.runs(experiment_id=experiment, namespace=settings.namespace, archived=args.archived)
        links = settings.links(api)
        rows = [_row(run, links) for run in islice(found, args.number)]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        say(row["state"].ljust(10), row["created"], row["run"], row["name"], row["url"])
    if not rows and not args.quiet:
        say("No runs.")
    return 0


def show_run(args: argparse.Namespace) -> int:
    """Run ``dvkf runs show``."""
    from dvkf_prefect.kubeflow.cluster.runs import Runs

    with server() as (settings, api):
        run = Runs(settings, api).find(args.run_id)
        links = settings.links(api)
        workflow = api.workflow(args.run_id)
    stages = _stages(run)
    row = _row(run, links)
    row["experiment_url"] = links.experiment(str(run.get("experiment_id", "")))
    reason = workflow.reason() if workflow is not None else ""
    if args.json:
        print(json.dumps({**row, "reason": reason, "stages": stages}))
        return 0
    for label, value in (
        ("run", row["run"]),
        ("name", row["name"]),
        ("state", row["state"] + (" (archived)" if row["archived"] else "")),
        ("created", row["created"]),
        ("page", row["url"]),
        ("experiment", row["experiment_url"]),
        ("reason", reason),
    ):
        if value:
            say(f"{label}:".ljust(12), value)
    for stage, state in sorted(stages.items()):
        say(" ", state.ljust(10), stage)
    return 0


def retry(args: argparse.Namespace) -> int:
    """Run ``dvkf runs retry``."""
    repo = _repo()
    storage = None
    if repo is not None:
        with suppress(ConfigError):
            storage = repo.remote().storage
    with _runs() as runs:
        url = runs.retry(args.run_id, storage)
    if not args.quiet:
        say(f"Retrying run {args.run_id}." + (f" See {url}" if url else ""))
        say("Use `dvkf repro --runner kubeflow` to follow it and to record its results.")
    return 0


def terminate(args: argparse.Namespace) -> int:
    """Run ``dvkf runs terminate``."""
    with _runs() as runs:
        runs.terminate(args.run_id)
    if not args.quiet:
        say(f"Run {args.run_id} is being terminated.")
    return 0


def archive(args: argparse.Namespace) -> int:
    """Run ``dvkf runs archive``."""
    return _each(args, lambda runs, run: runs.archive(run), "Archived run {}.")


def unarchive(args: argparse.Namespace) -> int:
    """Run ``dvkf runs unarchive``."""
    return _each(args, lambda runs, run: runs.unarchive(run), "Moved run {} back from the archive.")


def delete(args: argparse.Namespace) -> int:
    """Run ``dvkf runs delete``."""
    return _each(args, lambda runs, run: runs.delete(run), "Deleted run {}.")


@contextmanager
def server() -> Iterator[tuple[ClusterSettings, KfpApi]]:
    """Open the connection to the server that the environment names.

    Raises:
        ConfigError: It names none.
    """
    from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings

    settings = ClusterSettings.from_environment()
    if settings is None:
        raise ConfigError(
            "no cluster: DVKF_KUBEFLOW_HOST is not set. Set it to the address of Kubeflow Pipelines."
        )
    with closing(settings.connect()) as api:
        # An interactive command gives up sooner than a run that is followed.
        yield settings, api.having(patience=min(settings.outage, 30.0))


@contextmanager
def _runs() -> Iterator[Runs]:
    from dvkf_prefect.kubeflow.cluster.runs import Runs

    with server() as (settings, api):
        yield Runs(settings, api)


def _each(args: argparse.Namespace, do: Callable[[Runs, str], None], text: str) -> int:
    with _runs() as runs:
        for run_id in args.run_ids:
            do(runs, run_id)
            if not args.quiet:
                say(text.format(run_id))
    return 0


def _experiment(settings: ClusterSettings) -> str:
    from dvkf_prefect.kubeflow.cluster.names import project_name

    repo = None if settings.experiment else _repo()
    return settings.experiment or (project_name(repo) if repo is not None else "")


def _row(run: dict[str, Any], links: Links) -> dict[str, Any]:
    return {
        "run": str(run.get("run_id", "")),
        "name": str(run.get("display_name", "")),
        "state": str(run.get("state", "")),
        "archived": run.get("storage_state") == "ARCHIVED",
        "created": str(run.get("created_at", "")),
        "url": links.run(str(run.get("run_id", ""))),
    }


def _stages(run: dict[str, Any]) -> dict[str, str]:
    """Return the states of a run's tasks by the addresses of their stages, which its pipeline has."""
    spec = run.get("pipeline_spec") or {}
    tasks = ((spec.get("pipeline_spec") or spec).get("root") or {}).get("dag", {}).get("tasks", {})
    names = {task: (about.get("taskInfo") or {}).get("name", task) for task, about in tasks.items()}
    states = {
        str(detail.get("display_name", "")): str(detail.get("state", ""))
        for detail in (run.get("run_details") or {}).get("task_details") or ()
    }
    if not names:
        # The pipeline of a run by reference is elsewhere; tasks without an own row are drivers and executors.
        return {
            n: s
            for n, s in states.items()
            if s and not n.endswith("-driver") and n not in ("root", "executor")
        }
    return {names[task]: states.get(task, "") or "NOT STARTED" for task in names}


def _repo() -> Repo | None:
    with suppress(NotARepositoryError):
        return open_repo()
    return None
