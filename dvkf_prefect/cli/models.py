"""Commands on versions of models, git tags in GTO's grammar."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from dvkf_prefect.cli._common import Parser, model_and_version, open_repo, progress_bar, warn_of_new_stage
from dvkf_prefect.cli._output import say
from dvkf_prefect.cli.promotion import (
    model_promote,
    model_rollback,
    model_status,
    promotion_arguments,
    registry_api,
)
from dvkf_prefect.cli.published import (
    model_gc,
    model_unpublish,
    place_argument,
    place_of,
    published_arguments,
)
from dvkf_prefect.cli.serving import (
    model_canary,
    model_deploy,
    model_services,
    model_undeploy,
    serving_arguments,
)

if TYPE_CHECKING:
    from dvkf_prefect.models.registry import ModelRegistry

# Names of `dvkf_prefect.models.layouts.FORMATS`, which takes a while to import; a test compares them.
_FORMATS = (
    "sklearn", "xgboost", "lightgbm", "pytorch", "torchserve", "tensorflow", "tensorflow-triton", "onnx", "triton",
    "mlflow", "huggingface", "custom",
)  # fmt: skip

# Commands that write tags or facts.
_PUSHING = ("register", "deregister", "deprecate", "assign", "unassign", "rollback", "publish", "mirror")


def _registry() -> ModelRegistry:
    from dvkf_prefect.models.registry import ModelRegistry

    return ModelRegistry(open_repo())


def _print_json(value: Any) -> int:
    print(json.dumps(value))
    return 0


def model_arguments(parser: Parser) -> None:
    """Describe ``dvkf model``."""
    commands = parser.commands(
        register=(model_register, "Register a version of a model from a commit."),
        deregister=(model_deregister, "Withdraw a version; its number is not used again."),
        deprecate=(model_deprecate, "Deprecate a model; hide it until it is used again."),
        assign=(model_assign, "Assign a version to a stage, such as prod."),
        unassign=(model_unassign, "Remove a stage from a version."),
        promote=(model_promote, "Promote a version: gates, stage, canary and service as one act."),
        rollback=(model_rollback, "Return to the version before: serve it, and give it the stage."),
        status=(model_status, "Show the stages, places, services and promotions of a model."),
        list=(model_list, "List the registered versions."),
        show=(model_show, "Show one version, or all models with their stages."),
        history=(model_history, "Show the events of models, newest first."),
        deploy=(model_deploy, "Serve a version on this machine, or on a cluster with KServe."),
        undeploy=(model_undeploy, "Remove the service of a model."),
        canary=(model_canary, "Show, promote or abort the canary of a model on a cluster."),
        services=(model_services, "List the models that are served on this machine."),
        publish=(model_publish, "Publish the files of a version in the layout of KServe's runtimes."),
        unpublish=(
            model_unpublish,
            "Remove the published files of one version, which no stage or service names.",
        ),
        gc=(model_gc, "List or remove the published versions that no tag, stage or service names."),
        mirror=(model_mirror, "Mirror models in a Kubeflow Model Registry."),
        push=(model_push, "Push tags of models, and the facts noted on them, to git's origin."),
        fetch=(model_fetch, "Fetch tags of models, and the facts noted on them, from git's origin."),
        **{
            "check-ref": (model_check_ref, "Show the event that a git tag records."),
            "record-smoke": (model_record_smoke, "Record answers of the present model, for its gates."),
        },
    )
    register = commands["register"]
    register.add_argument("name", help="artifact in dvc.yaml")
    register.add_argument("rev", nargs="?", default="HEAD", help="git commit (default: HEAD)")
    number = register.add_mutually_exclusive_group()
    number.add_argument(
        "--version",
        dest="model_version",
        metavar="<vX.Y.Z>",
        help="version such as v1.2.0 (default: the next one)",
    )
    number.add_argument(
        "--bump", choices=("major", "minor", "patch"), help="part of the highest version to count up"
    )
    for name in ("deregister", "assign", "unassign"):
        commands[name].add_argument("name")
        commands[name].add_argument("model_version", metavar="version")
    commands["deprecate"].add_argument("name")
    commands["rollback"].add_argument("name")
    for name in ("assign", "unassign", "rollback"):
        commands[name].add_argument("stage")
    for name in ("register", "deregister", "deprecate", "assign", "unassign", "rollback"):
        commands[name].add_argument("-m", "--message", default="", help="notes about the change")
    for name in _PUSHING:
        commands[name].add_argument(
            "--push", action="store_true", help="push tags and facts to git's origin afterwards"
        )
    commands["list"].add_argument("name", nargs="?")
    commands["list"].add_argument(
        "-a", "--all", action="store_true", help="include withdrawn versions and deprecated models"
    )
    show = commands["show"]
    show.add_argument(
        "name",
        nargs="?",
        metavar="MODEL[@VERSION]",
        help="model, with @version or #stage; all models if omitted",
    )
    show.add_argument("which", nargs="?", help="version, #stage, or latest (default)")
    commands["history"].add_argument("name", nargs="?")
    commands["history"].add_argument("--ascending", action="store_true", help="show the oldest event first")
    commands["check-ref"].add_argument("ref", help="git tag, or refs/tags/ and the tag")
    mirror = commands["mirror"]
    mirror.add_argument("models", nargs="*", metavar="model", help="models to mirror (default: all)")
    mirror.add_argument(
        "--host",
        metavar="<url>",
        help="address of the registry (default: DVKF_MODEL_REGISTRY); the login is that of DVKF_KUBEFLOW_TOKEN and its "
        "like",
    )
    mirror.add_argument("--prefix", default="", metavar="<text>", help="text before the names of models")
    mirror.add_argument(
        "--api", choices=("auto", "v1", "v1alpha3"), default="auto", help="version of the API (default: auto)"
    )
    mirror.add_argument(
        "--two-ways", action="store_true", help="copy stages and archived versions of the registry to git"
    )
    record = commands["record-smoke"]
    record.add_argument("name", help="artifact in dvc.yaml")
    record.add_argument(
        "--requests",
        metavar="<file>",
        help='JSON: a list of {"instances": [row]} or {"inputs": [tensor]} (default: the recorded requests)',
    )
    record.add_argument("--rtol", type=float, metavar="<n>", help="relative tolerance of numbers")
    record.add_argument("--atol", type=float, metavar="<n>", help="absolute tolerance of numbers")
    record.add_argument("--format", metavar="<name>", help="format (default: by the names of the files)")
    serving_arguments(commands)
    published_arguments(commands)
    promotion_arguments(commands)
    publish = commands["publish"]
    publish.add_argument("model", metavar="MODEL[@VERSION]", help="model, with @version or #stage")
    publish.add_argument(
        "--format", choices=tuple(_FORMATS), help="format (default: from dvc.yaml or the files)"
    )
    publish.add_argument(
        "--allow-empty",
        action="store_true",
        help="publish empty files, which KServe 0.17 and later do not download",
    )
    place_argument(publish)
    for name in ("list", "show", "history", "check-ref", "publish", "mirror"):
        commands[name].add_argument("--json", action="store_true", help="print JSON")


def _pushed(args: argparse.Namespace) -> int:
    """Push what was written, if asked for."""
    if args.push:
        _share(push=True)
    return 0


def _share(*, push: bool) -> tuple[str, ...]:
    from dvkf_prefect.data.git.notes import fetch_registry, push_registry

    root = _registry().git.root
    return push_registry(root) if push else fetch_registry(root)


def model_push(args: argparse.Namespace) -> int:
    """Run ``dvkf model push``."""
    say(f"pushed {' and '.join(_share(push=True))}")
    return 0


def model_fetch(args: argparse.Namespace) -> int:
    """Run ``dvkf model fetch``."""
    say(f"fetched {' and '.join(_share(push=False))}")
    return 0


def model_register(args: argparse.Namespace) -> int:
    """Run ``dvkf model register``."""
    from dvkf_prefect.openlineage.sending import send_registered

    registry = _registry()
    version = registry.register(
        args.name, version=args.model_version, bump=args.bump, rev=args.rev, message=args.message
    )
    send_registered(registry.repo, version)
    say(f"{version.name} {version.version}: {version.path} ({version.digest}) of commit {version.rev[:7]}")
    return _pushed(args)


def model_deregister(args: argparse.Namespace) -> int:
    """Run ``dvkf model deregister``."""
    version = _registry().deregister(args.name, args.model_version, message=args.message)
    say(f"{version.name} {version.version} is withdrawn")
    return _pushed(args)


def model_deprecate(args: argparse.Namespace) -> int:
    """Run ``dvkf model deprecate``."""
    _registry().deprecate(args.name, message=args.message)
    say(f"{args.name} is deprecated")
    return _pushed(args)


def model_assign(args: argparse.Namespace) -> int:
    """Run ``dvkf model assign``."""
    registry = _registry()
    warn_of_new_stage(registry, args.stage)
    version = registry.assign(args.name, args.model_version, args.stage, message=args.message)
    say(f"{version.name} #{args.stage} is {version.version}")
    return _pushed(args)


def model_unassign(args: argparse.Namespace) -> int:
    """Run ``dvkf model unassign``."""
    registry = _registry()
    version = registry.unassign(args.name, args.model_version, args.stage, message=args.message)
    holder = registry.overview(include_inactive=True)[args.name]["stage"].get(args.stage)
    say(f"{version.name} #{args.stage} is {holder or 'held by no version'}")
    return _pushed(args)


def model_list(args: argparse.Namespace) -> int:
    """Run ``dvkf model list``."""
    versions = _registry().list(args.name, include_inactive=args.all)
    if args.json:
        return _print_json([version.as_dict() for version in versions])
    for version in versions:
        marks = [f"#{stage}" for stage in version.stages] + ([] if version.active else ["(withdrawn)"])
        moment = f"{version.created:%Y-%m-%d %H:%M}"
        say("\t".join((version.name, version.version, version.rev[:7], moment, " ".join(marks))).rstrip())
    return 0


def model_show(args: argparse.Namespace) -> int:
    """Run ``dvkf model show``."""
    if args.name is None:
        return _show_all(args.json)
    name, which = model_and_version(args.name)
    values = _registry().show(name, args.which or which).as_dict()
    if args.json:
        return _print_json(values)
    for key, value in values.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        say(f"{key + ':':<12}{text}")
    return 0


def _show_all(as_json: bool) -> int:
    from dvkf_prefect.cli.tables import plain_table

    models = _registry().overview()
    if as_json:
        return _print_json(models)
    stages = list(next(iter(models.values()), {"stage": {}})["stage"])
    rows: list[list[str | None]] = [["name", "latest", *(f"#{stage}" for stage in stages)]]
    rows += [[name, row["version"], *row["stage"].values()] for name, row in models.items()]
    print(plain_table(rows) if models else "No model is registered.")
    return 0


def model_history(args: argparse.Namespace) -> int:
    """Run ``dvkf model history``."""
    from dvkf_prefect.cli.tables import plain_table

    events = _registry().history(args.name, ascending=args.ascending)
    if args.json:
        return _print_json([event.as_dict() for event in events])
    rows: list[list[str | None]] = [["time", "model", "event", "version", "stage", "commit", "tag"]]
    for event in events:
        values = event.as_dict()
        moment = f"{event.created:%Y-%m-%d %H:%M:%S}"
        names = (values["artifact"], values["event"], event.version, event.stage)
        rows.append([moment, *names, event.rev[:7], event.tag])
    print(plain_table(rows) if events else "No model is registered.")
    return 0


def model_check_ref(args: argparse.Namespace) -> int:
    """Run ``dvkf model check-ref``; a tag that is none of the registry's prints nothing, as with gto."""
    event = _registry().check_ref(args.ref)
    if event is None:
        return 0
    if args.json:
        return _print_json(event.as_dict())
    say(event)
    return 0


def model_record_smoke(args: argparse.Namespace) -> int:
    """Run ``dvkf model record-smoke``."""
    from dvkf_prefect.errors import ParseError
    from dvkf_prefect.serving.recording import record_smoke

    requests = None
    if args.requests:
        try:
            with open(args.requests, encoding="utf-8") as file:
                requests = json.load(file)
        except ValueError as error:
            raise ParseError(args.requests, f"JSON is expected ({error})") from error
        if not isinstance(requests, list):
            raise ParseError(args.requests, "a list of requests is expected")
    smoke = record_smoke(
        _registry(), args.name, requests, rtol=args.rtol, atol=args.atol, model_format=args.format
    )
    count = len(smoke.cases)
    say(f"{smoke.path} has {count} {'request' if count == 1 else 'requests'}. Commit it with the model.")
    return 0


def model_publish(args: argparse.Namespace) -> int:
    """Run ``dvkf model publish``."""
    from dvkf_prefect.models.publishing import publish_version

    place, registry = place_of(args), _registry()
    publication = publish_version(
        registry,
        registry.show(*model_and_version(args.model)),
        place,
        as_format=args.format,
        allow_empty=args.allow_empty,
        progress=progress_bar(args.quiet),
    )
    _pushed(args)
    if args.json:
        return _print_json(publication.as_dict())
    say(publication)
    for loaded in publication.loaded:
        say(f"  {loaded.runtime} loads {', '.join(loaded.files[:5])}")
    return 0


def model_mirror(args: argparse.Namespace) -> int:
    """Run ``dvkf model mirror``."""
    from dvkf_prefect.errors import ConfigError
    from dvkf_prefect.kubeflow.registry.mirror import Mirror

    host = args.host or os.environ.get("DVKF_MODEL_REGISTRY")
    if not host:
        raise ConfigError("no model registry. Give its address as --host, or set DVKF_MODEL_REGISTRY.")
    api = registry_api(host, args.api)
    report = Mirror(_registry(), api, args.prefix, args.two_ways).run(args.models)
    _pushed(args)
    if args.json:
        return _print_json(report.as_dict())
    for line in str(report).splitlines():
        say(line)
    return 0
