"""The command line, with DVC's verbs, options and exit codes where DVC has them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from dvkf_prefect import __version__
from dvkf_prefect.errors import DvkfError

# A command's function, as module.name: only what is asked for is imported.
Handler = str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What stands behind ``dvkf``; None for the process's own.

    Returns:
        The exit code: 0, 1 for "something changed" where a verb says so, 251 for a wrong configuration, 252 for an
        interruption, 253 outside a repository, 254 for a wrong command line, 255 for any other failure.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    handler: Handler | None = getattr(args, "handler", None)
    if handler is None:
        (getattr(args, "parser", None) or parser).print_help()
        return 254
    try:
        if args.cd != ".":
            os.chdir(args.cd)
        module, _, name = handler.partition(".")
        run: Callable[[argparse.Namespace], int] = getattr(import_module(f"dvkf_prefect.cli.{module}"), name)
        return run(args)
    except DvkfError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 255
    except KeyboardInterrupt:
        print("ERROR: interrupted by the user", file=sys.stderr)
        return 252
    except OSError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 255


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(254, f"ERROR: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dvkf", description="Versions of data and models, in DVC's formats, on Prefect and Kubeflow."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--cd", default=".", metavar="<path>", help="change to this folder first")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def verb(name: str, handler: Handler | None, text: str, group: Any = verbs) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
        sub.set_defaults(handler=handler, parser=sub)
        return sub

    init = verb("init", "data.init", "Make this folder a repository.")
    init.add_argument("--no-scm", action="store_true", help="do without git")
    init.add_argument(
        "--subdir", action="store_true", help="allow a folder below the top of a git repository"
    )
    init.add_argument(
        "-f", "--force", action="store_true", help="set the settings of an existing repository anew"
    )
    init.add_argument("-q", "--quiet", action="store_true", help="say nothing")

    add = verb("add", "data.add", "Track files or directories.")
    add.add_argument("targets", nargs="+", metavar="PATH")
    add.add_argument(
        "--no-commit", action="store_true", help="record the content, do not store it in the cache"
    )
    add.add_argument("-q", "--quiet", action="store_true", help="say nothing")

    commit = verb("commit", "data.commit", "Record and store tracked data as it is in the workspace.")
    commit.add_argument("targets", nargs="*", metavar="TARGET")
    commit.add_argument("-f", "--force", action="store_true", help="do not ask")
    commit.add_argument("-q", "--quiet", action="store_true", help="say nothing")

    status = verb(
        "status", "data.status", "Show what changed: in the workspace, or between cache and remote."
    )
    status.add_argument("targets", nargs="*", metavar="TARGET")
    status.add_argument("-c", "--cloud", action="store_true", help="compare the cache with the remote")
    status.add_argument("-r", "--remote", metavar="<name>", help="the remote to compare with")
    status.add_argument("-j", "--jobs", type=_positive, metavar="<number>", help="requests at once")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing; exit code 1 when something changed"
    )

    checkout = verb("checkout", "data.checkout", "Make the workspace hold what is recorded, from the cache.")
    checkout.add_argument("targets", nargs="*", metavar="TARGET")
    checkout.add_argument("-f", "--force", action="store_true", help="overwrite content that is nowhere else")
    checkout.add_argument(
        "--allow-missing", action="store_true", help="pass over what the cache does not hold"
    )
    checkout.add_argument("--summary", action="store_true", help="only count the changes")
    checkout.add_argument("-q", "--quiet", action="store_true", help="say nothing")

    for name, handler, text in (
        ("push", "data.push", "Upload tracked data to a remote."),
        ("fetch", "data.fetch", "Download tracked data into the cache."),
        ("pull", "data.pull", "Download tracked data into the cache and the workspace."),
    ):
        move = verb(name, handler, text)
        move.add_argument("targets", nargs="*", metavar="TARGET")
        move.add_argument("-r", "--remote", metavar="<name>", help="the remote; otherwise the default one")
        move.add_argument("-j", "--jobs", type=_positive, metavar="<number>", help="transfers at once")
        move.add_argument("-q", "--quiet", action="store_true", help="say nothing")
        if name == "pull":
            move.add_argument(
                "-f", "--force", action="store_true", help="overwrite content that is nowhere else"
            )
            move.add_argument(
                "--allow-missing", action="store_true", help="pass over what is not on the remote"
            )

    diff = verb("diff", "data.diff", "Compare two versions of the data.")
    diff.add_argument("a_rev", nargs="?", default="HEAD", help="the older git revision (default: HEAD)")
    diff.add_argument("b_rev", nargs="?", help="the newer one (default: the workspace)")
    diff.add_argument("--targets", nargs="*", default=[], metavar="TARGET", help="only these outputs")
    diff.add_argument("--json", action="store_true", help="as JSON")
    diff.add_argument("--show-hash", action="store_true", help="with digests")
    diff.add_argument("--hide-missing", action="store_true", help="without what is missing from the cache")

    _remote_verbs(verb, verbs)

    config = verb("config", "settings.config", "Get or set settings.")
    config.add_argument("name", nargs="?", help="section.option, or remote.NAME.option")
    config.add_argument("value", nargs="?")
    config.add_argument("-l", "--list", action="store_true", help="list all settings")
    config.add_argument("-u", "--unset", action="store_true", help="remove the setting")
    config.add_argument("--show-origin", action="store_true", help="say which file a setting stands in")
    _level(config)

    repro = verb("repro", "pipeline.repro", "Run the stages of dvc.yaml that are out of date.")
    repro.add_argument("targets", nargs="*", metavar="STAGE")
    repro.add_argument("-f", "--force", action="store_true", help="run stages even when nothing changed")
    repro.add_argument(
        "-s", "--single-item", action="store_true", help="only the stages named, not what they need"
    )
    repro.add_argument(
        "-P",
        "--all-pipelines",
        action="store_true",
        help="every dvc.yaml of the repository (default: the one here)",
    )
    repro.add_argument("--dry", action="store_true", help="only say what would run, and why")
    repro.add_argument("-j", "--jobs", type=_positive, default=2, metavar="<number>", help="stages at once")
    repro.add_argument(
        "--runner",
        choices=("local", "kubeflow"),
        default="local",
        help="plain processes, or Kubeflow Pipelines on this machine (default: local)",
    )
    repro.add_argument("-q", "--quiet", action="store_true", help="say nothing")

    _model_verbs(verb, verbs)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return number


def _level(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    for name, level in (("global", "global"), ("system", "system"), ("project", "repo"), ("local", "local")):
        group.add_argument(
            f"--{name}", dest="level", action="store_const", const=level, help=f"the {name} configuration"
        )


def _remote_verbs(verb: Any, verbs: Any) -> None:
    remotes = verb("remote", None, "Set up remotes.", verbs).add_subparsers(
        title="commands", metavar="COMMAND", parser_class=_Parser
    )
    add = verb("add", "settings.remote_add", "Add a remote.", remotes)
    add.add_argument("name")
    add.add_argument("url", help="a folder or a url: s3://, gs://, azure://, ssh://, http(s)://, …")
    add.add_argument("-d", "--default", action="store_true", help="make it the default one")
    add.add_argument("-f", "--force", action="store_true", help="replace a remote of that name")
    listing = verb("list", "settings.remote_list", "List the remotes.", remotes)
    default = verb("default", "settings.remote_default", "Show, set or unset the default remote.", remotes)
    default.add_argument("name", nargs="?")
    default.add_argument("-u", "--unset", action="store_true", help="have no default remote")
    modify = verb("modify", "settings.remote_modify", "Set an option of a remote.", remotes)
    modify.add_argument("name")
    modify.add_argument("option")
    modify.add_argument("value", nargs="?")
    modify.add_argument("-u", "--unset", action="store_true", help="remove the option")
    remove = verb("remove", "settings.remote_remove", "Remove a remote.", remotes)
    remove.add_argument("name")
    for parser in (add, listing, default, modify, remove):
        _level(parser)


def _model_verbs(verb: Any, verbs: Any) -> None:
    models = verb(
        "model", None, "Register model versions and say where they are used.", verbs
    ).add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    register = verb(
        "register", "pipeline.model_register", "Register a version of a model from a commit.", models
    )
    register.add_argument("name", help="an artifact of dvc.yaml")
    register.add_argument("rev", nargs="?", default="HEAD", help="the commit (default: HEAD)")
    register.add_argument(
        "--version", dest="model_version", metavar="<vX.Y.Z>", help="otherwise the next one"
    )
    register.add_argument("-m", "--message", default="", help="what is new in it")
    listing = verb("list", "pipeline.model_list", "List the registered versions.", models)
    listing.add_argument("name", nargs="?")
    listing.add_argument("--json", action="store_true", help="as JSON")
    show = verb("show", "pipeline.model_show", "Show one version.", models)
    show.add_argument("name")
    show.add_argument("which", nargs="?", default="latest", help="a version, #stage, or latest (default)")
    show.add_argument("--json", action="store_true", help="as JSON")
    assign = verb("assign", "pipeline.model_assign", "Assign a version to a stage, such as prod.", models)
    assign.add_argument("name")
    assign.add_argument("model_version", metavar="version")
    assign.add_argument("stage")
    rollback = verb(
        "rollback", "pipeline.model_rollback", "Assign a stage to the version that held it before.", models
    )
    rollback.add_argument("name")
    rollback.add_argument("stage")
