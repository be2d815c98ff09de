"""Command line ``dvkf``, with the verbs, options and exit codes of DVC."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from dvkf_prefect import __version__
from dvkf_prefect.cli._common import Parser
from dvkf_prefect.cli._output import own_lines, safe_output
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.text import printable
from dvkf_prefect.urls import without_secrets

# Verbs: module and name of the function, and a description. NAME_arguments beside the function adds its options. A
# command imports only the module of its verb.
VERBS = {
    "init": ("data.init", "Make this folder a repository."),
    "add": ("data.add", "Track files or directories."),
    "commit": ("data.commit", "Record and store tracked data as it is in the workspace."),
    "status": ("data.status", "Show what changed: in the workspace, or between cache and remote."),
    "checkout": ("data.checkout", "Make the workspace hold what is recorded, from the cache."),
    "push": ("transfer.push", "Upload tracked data to a remote."),
    "fetch": ("transfer.fetch", "Download tracked data into the cache."),
    "pull": ("transfer.pull", "Download tracked data into the cache and the workspace."),
    "import": ("imports.import_repo", "Download data of another repository and track it."),
    "import-url": ("imports.import_url", "Download data from a url and track it."),
    "update": ("imports.update", "Bring imports up to date with where they come from."),
    "get": ("imports.get", "Download data of a repository without tracking it."),
    "get-url": ("imports.get_url", "Download data from a url without tracking it."),
    "list-url": ("imports.list_url", "List what is at a url."),
    "ls-url": ("imports.list_url", "List what is at a url, as `list-url`."),
    "diff": ("data.diff", "Compare two versions of the data."),
    "gc": ("maintenance.gc", "Remove objects that nothing uses."),
    "verify": ("maintenance.verify", "Hash again what the cache or a remote holds, and repair it."),
    "data": ("inspect.data", "Show the state of the data since the last commit."),
    "list": ("inspect.list_files", "List what a repository holds, tracked data too."),
    "ls": ("inspect.list_files", "List what a repository holds, as `list`."),
    "du": ("inspect.du", "Show how much space a repository's files and data take."),
    "check-ignore": ("inspect.check_ignore", "Tell whether .dvcignore leaves paths out."),
    "root": ("inspect.root", "Show the way to the repository's root."),
    "version": ("inspect.version", "Show versions, and what this machine and repository can do."),
    "doctor": ("inspect.doctor", "Show what `version` shows, and check that all is in order."),
    "remote": ("settings.remote", "Set up remotes."),
    "config": ("settings.config", "Get or set settings."),
    "remove": ("workspace.remove", "Stop tracking data, or take stages out of dvc.yaml."),
    "rm": ("workspace.remove", "Stop tracking data, as `remove`."),
    "move": ("workspace.move", "Give tracked data another place or name."),
    "mv": ("workspace.move", "Give tracked data another place or name, as `move`."),
    "unprotect": ("workspace.unprotect", "Make files that are linked to the cache safe to write to."),
    "cache": ("workspace.cache", "Show or set where the cache is, and bring it to its present layout."),
    "repro": ("pipeline.repro", "Run the stages of dvc.yaml that are out of date."),
    "stage": ("stages.stage", "Write stages into dvc.yaml, and list them."),
    "freeze": ("stages.freeze", "Let stages or imports keep what they have."),
    "unfreeze": ("stages.unfreeze", "Let frozen stages or imports go on."),
    "dag": ("stages.dag", "Draw the graph of stages or outputs."),
    "metrics": ("metrics.metrics", "Show and compare metrics."),
    "params": ("metrics.params", "Compare parameters."),
    "plots": ("plots.plots", "Draw plots, of one version or several."),
    "model": ("pipeline.model", "Register model versions and say where they are used."),
}


# DVC's verbs that end with 1 in place of 255. Source: dvc/commands, ``except DvcException``.
_FAIL_WITH_1 = frozenset(
    {
        "add",
        "commit",
        "diff",
        "fetch",
        "move",
        "mv",
        "plots",
        "pull",
        "push",
        "remove",
        "rm",
        "get-url",
        "import-url",
    }
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after ``dvkf``; None for those of the process.

    Returns:
        The exit code: 0 for success, 1 for "something changed" and for failures of verbs that DVC ends with 1, 251 for
        an invalid configuration, 252 for an interruption, 253 outside a repository, 254 for an invalid command line,
        255 for any other failure.
    """
    with safe_output():
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> int:
    verb = next((word for word in arguments if not word.startswith("-") and word in VERBS), None)
    parser = build_parser([verb] if verb else list(VERBS))
    args = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] | None = getattr(args, "run", None)
    if run is None:
        (getattr(args, "parser", None) or parser).print_help()
        return 254
    try:
        if args.cd != ".":
            os.chdir(args.cd)
        return run(args)
    except DvkfError as error:
        code = error.exit_code
        # In DVC, a diff of untracked paths raises Python's own error, which ends with 255.
        if (
            code == 255
            and verb in _FAIL_WITH_1
            and not (verb == "diff" and isinstance(error, FileNotFoundError))
        ):
            code = 1
        return _fail(error, args, code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 255
    except KeyboardInterrupt:
        print("ERROR: interrupted by the user", file=sys.stderr)
        return 252
    except OSError as error:
        return _fail(error, args, 255)
    except Exception as error:  # noqa: BLE001 (the command must end with an error message in any case)
        # A bug here or in a library still ends with an error message and an exit code.
        return _fail(error, args, 255, f"unexpected error: {type(error).__name__}: {error}")


def _fail(error: Exception, args: argparse.Namespace, code: int, message: str | None = None) -> int:
    if getattr(args, "verbose", False):
        import traceback

        told = "".join(traceback.format_exception(error))
        print(printable(without_secrets(told), lines=True), file=sys.stderr)
    print(f"ERROR: {own_lines(message or str(error))}", file=sys.stderr)
    return code


def build_parser(verbs: Sequence[str]) -> Parser:
    """Return the parser of the command line. With a single verb, its options are included."""
    parser = Parser(
        prog="dvkf", description="Versions of data and models, in DVC's formats, on Prefect and Kubeflow."
    )
    parser.add_argument("-V", "--version", action="version", version=__version__)
    parser.add_argument("--cd", default=".", metavar="<path>", help="change to this folder first")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for verb in verbs:
        place, text = VERBS[verb]
        sub: Parser = commands.add_parser(verb, help=text, description=text)
        if len(verbs) > 1:
            continue
        module_name, _, name = place.partition(".")
        module = import_module(f"dvkf_prefect.cli.{module_name}")
        getattr(module, f"{name}_arguments")(sub)
        sub.set_defaults(parser=sub)
        if hasattr(module, name):
            sub.runs(getattr(module, name))
    return parser
