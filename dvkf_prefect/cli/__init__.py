"""Command line ``dvkf``, with the verbs, options and exit codes of DVC."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from dvkf_prefect import __version__
from dvkf_prefect.cli._common import Parser
from dvkf_prefect.cli._output import own_lines, safe_output
from dvkf_prefect.errors import DvkfError, explained, reason
from dvkf_prefect.text import printable
from dvkf_prefect.urls import without_secrets

# Verbs: module and name of the function, and a description. NAME_arguments beside the function adds its options. A
# command imports only the module of its verb.
VERBS = {
    "init": ("data.init", "Make this folder a repository."),
    "add": ("data.add", "Track files or directories."),
    "commit": ("data.commit", "Record and store changes of tracked data."),
    "ingest": ("ingest.ingest", "Check new files by a schema, and take those that pass into a dataset."),
    "status": ("data.status", "Show changes in the workspace, or between cache and remote."),
    "checkout": ("data.checkout", "Restore the recorded data in the workspace from the cache."),
    "push": ("transfer.push", "Upload tracked data to a remote."),
    "fetch": ("transfer.fetch", "Download tracked data into the cache."),
    "pull": ("transfer.pull", "Download tracked data into the cache and the workspace."),
    "import": ("imports.import_repo", "Download data from another repository and track it."),
    "import-url": ("imports.import_url", "Download data from a URL and track it."),
    "update": ("imports.update", "Update imports from their sources."),
    "get": ("imports.get", "Download data from a repository without tracking it."),
    "get-url": ("imports.get_url", "Download data from a URL without tracking it."),
    "list-url": ("imports.list_url", "List the files at a URL."),
    "ls-url": ("imports.list_url", "List the files at a URL, as `list-url`."),
    "diff": ("data.diff", "Compare two versions of the data."),
    "gc": ("maintenance.gc", "Remove unused objects."),
    "verify": ("maintenance.verify", "Check and repair the content of the cache or a remote."),
    "data": ("inspect.data", "Show changes of the data since the last commit."),
    "list": ("inspect.list_files", "List the files of a repository, including tracked data."),
    "ls": ("inspect.list_files", "List the files of a repository, as `list`."),
    "du": ("inspect.du", "Show the disk usage of a repository's files and data."),
    "check-ignore": ("inspect.check_ignore", "Check whether .dvcignore excludes paths."),
    "root": ("inspect.root", "Print the relative path of the repository's root."),
    "version": ("inspect.version", "Show versions and capabilities of this machine and repository."),
    "doctor": ("inspect.doctor", "Show versions and capabilities, and check for problems."),
    "remote": ("settings.remote", "Set up remotes."),
    "config": ("settings.config", "Get or set settings."),
    "remove": ("workspace.remove", "Stop tracking data, or remove stages from dvc.yaml."),
    "rm": ("workspace.remove", "Stop tracking data, as `remove`."),
    "move": ("workspace.move", "Move or rename tracked data."),
    "mv": ("workspace.move", "Move or rename tracked data, as `move`."),
    "unprotect": ("workspace.unprotect", "Replace links to the cache by files that are safe to edit."),
    "cache": ("workspace.cache", "Show or set the cache folder, or migrate the cache of DVC 2.x."),
    "repro": ("pipeline.repro", "Run the stages of dvc.yaml that are out of date."),
    "run": ("pipeline.run", "Run one stage now, without those upstream."),
    "stage": ("stages.stage", "Write stages into dvc.yaml, and list them."),
    "freeze": ("stages.freeze", "Freeze stages or imports, so that `repro` skips them."),
    "unfreeze": ("stages.unfreeze", "Unfreeze stages or imports."),
    "dag": ("stages.dag", "Draw the graph of stages or outputs."),
    "metrics": ("metrics.metrics", "Show and compare metrics."),
    "params": ("metrics.params", "Compare parameters."),
    "plots": ("plots.plots", "Draw plots of one or several versions."),
    "export": ("export.export", "Write the stages as a pipeline for other programs."),
    "image": ("image.image", "Build and check container images for stages on Kubeflow."),
    "schedule": ("kubeflow.schedule", "Create and manage recurring runs of the stages on Kubeflow."),
    "runs": ("kubeflow.runs", "Show and manage pipeline runs on Kubeflow."),
    "model": ("models.model", "Register model versions and assign them to stages."),
    "artifacts": ("artifacts.artifacts", "List declared artifacts and download their versions."),
    "completion": ("completion.completion", "Print a script that completes commands in a shell."),
    "prefect": ("prefect.prefect", "Deploy this repository's flows on Prefect, and check deployments."),
    "lineage": ("lineage.lineage", "Show the data, code and runs behind models, and their services."),
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
# New objects between two searches for garbage; with Python's 700, these take a tenth of a short command.
_GARBAGE = 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after ``dvkf``; None for those of the process.

    Returns:
        The exit code: 0 for success, 1 for "something changed" and for failures of verbs that DVC ends with 1, 251 for
        an invalid configuration, 252 for an interruption, 253 outside a repository, 254 for an invalid command line,
        255 for any other failure.
    """
    if arguments is not None:
        with safe_output():
            return _run(arguments)
    # The process ends with the command, so its garbage is seldom worth a search, and never at the end.
    gc.set_threshold(_GARBAGE)
    try:
        with safe_output():
            return _run(sys.argv[1:])
    finally:
        gc.freeze()


def _run(arguments: Sequence[str]) -> int:
    verb = _verb(arguments)
    parser = build_parser([verb] if verb else list(VERBS))
    args = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] | None = getattr(args, "run", None)
    if run is None:
        (getattr(args, "parser", None) or parser).print_help()
        return 254
    try:
        if args.cd != ".":
            _change_folder(args.cd)
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
        return _fail(error, args, 255, explained(error))
    except Exception as error:  # noqa: BLE001 (the command must end with an error message in any case)
        # A bug here or in a library still ends with an error message and an exit code.
        return _fail(error, args, 255, f"unexpected error: {type(error).__name__}: {error}")


def _change_folder(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise DvkfError(f"--cd '{folder}': {reason(error)}") from error


def _verb(arguments: Sequence[str]) -> str | None:
    """Return the first word that is neither an option nor the folder of ``--cd``, if it is a verb."""
    words = iter(arguments)
    for word in words:
        if word in ("--c", "--cd"):  # argparse takes the first letters of an option
            next(words, None)
        elif not word.startswith("-"):
            return word if word in VERBS else None
    return None


def _fail(error: Exception, args: argparse.Namespace, code: int, message: str | None = None) -> int:
    if getattr(args, "verbose", False):
        import traceback

        text = "".join(traceback.format_exception(error))
        print(printable(without_secrets(text), lines=True), file=sys.stderr)
    print(f"ERROR: {own_lines(message or str(error))}", file=sys.stderr)
    return code


def build_parser(verbs: Sequence[str], *, whole: bool = False) -> Parser:
    """Return the parser of the command line.

    Args:
        verbs: The verbs.
        whole: Include the options of all verbs; those of a single verb are included in any case.
    """
    parser = Parser(
        prog="dvkf", description="Versions of data and models, in DVC's formats, on Prefect and Kubeflow."
    )
    parser.add_argument("-V", "--version", action="version", version=__version__)
    parser.add_argument("--cd", default=".", metavar="<path>", help="change to this folder before running")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for verb in verbs:
        place, text = VERBS[verb]
        sub: Parser = commands.add_parser(verb, help=text, description=text)
        if len(verbs) > 1 and not whole:
            continue
        module_name, _, name = place.partition(".")
        module = import_module(f"dvkf_prefect.cli.{module_name}")
        getattr(module, f"{name}_arguments")(sub)
        sub.set_defaults(parser=sub, whole=_whole_parser)
        if hasattr(module, name):
            sub.runs(getattr(module, name))
    return parser


def _whole_parser() -> Parser:
    return build_parser(list(VERBS), whole=True)
