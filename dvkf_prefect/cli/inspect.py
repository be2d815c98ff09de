"""Commands that inspect a repository without changing it."""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, open_repo, positive, targets_of
from dvkf_prefect.cli._output import own_lines, say, unescaped
from dvkf_prefect.cli.tables import natural_size, plain_table
from dvkf_prefect.errors import (
    ConfigError,
    DvkfError,
    MissingObjectError,
    NotARepositoryError,
    RemoteNotFoundError,
)
from dvkf_prefect.text import printable
from dvkf_prefect.urls import public_url

if TYPE_CHECKING:
    from dvkf_prefect.data.imports.external import ExternalRepo
    from dvkf_prefect.data.upkeep.doctor import Check
    from dvkf_prefect.data.verbs.data_status import DataStatus
    from dvkf_prefect.data.verbs.ls import Listed, Node
    from dvkf_prefect.repo import Repo

_TITLES = {
    "not_in_cache": ("Not in cache", 'use "dvkf fetch <file>..." to download files'),
    "not_in_remote": ("Not in remote", 'use "dvkf push <file>..." to upload files'),
    "committed": (
        "DVC committed changes",
        "git commit the corresponding dvc files to update the repo",
    ),
    "uncommitted": (
        "DVC uncommitted changes",
        'use "dvkf commit <file>..." to track changes',
        'use "dvkf checkout <file>..." to discard changes',
    ),
    "untracked": (
        "Untracked files",
        'use "git add <file> ..." or "dvkf add <file>..." to commit to git or to dvc',
    ),
    "unchanged": ("DVC unchanged files",),
}


def data_arguments(parser: Parser) -> None:
    """Describe ``dvkf data``."""
    commands = parser.commands(
        status=(
            data_status,
            "Show changes since the last commit, in the workspace, the cache and the remote.",
        )
    )
    status = commands["status"]
    status.add_argument("targets", nargs="*", metavar="TARGET", help="paths to show (default: all)")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--granular", action="store_true", help="list each file of directories")
    status.add_argument("--unchanged", action="store_true", help="include unchanged data")
    status.add_argument(
        "--untracked-files",
        choices=["no", "all"],
        default="no",
        const="all",
        nargs="?",
        help="include files that neither git nor DVC tracks",
    )
    status.add_argument("-r", "--remote", metavar="<name>", help="remote of --not-in-remote")
    status.add_argument("--not-in-remote", action="store_true", help="include data that is not on the remote")
    status.add_argument(
        "--no-remote-refresh",
        dest="remote_refresh",
        action="store_false",
        help="use the last known listing of the remote",
    )


def data_status(args: argparse.Namespace) -> int:
    """Run ``dvkf data status``."""
    repo = open_repo()
    try:
        found = repo.data_status(
            targets_of(repo, args.targets),
            granular=args.granular,
            untracked=args.untracked_files == "all",
            not_in_remote=args.not_in_remote,
            remote=args.remote,
            remote_refresh=args.remote_refresh,
        )
    except RemoteNotFoundError as error:
        raise ConfigError(str(error)) from None
    if args.quiet:
        return 1 if found else 0
    groups = found.as_dict(unchanged=args.unchanged)
    if "untracked" in groups:
        groups["untracked"] = [os.path.relpath(repo.root / path) for path in groups["untracked"]]
    if args.json:
        print(json.dumps(groups))
    else:
        _print_data_status(found, groups)
    return 0


def _print_data_status(found: DataStatus, groups: dict[str, object]) -> None:
    if not groups:
        say(f"No changes{' in an empty git repo' if found.git_empty else ''}.")
    for number, (name, group) in enumerate(groups.items()):
        title, *hints = _TITLES[name]
        say(f"{chr(10) if number else ''}{title}:")
        for hint in hints:
            say(f"  ({hint})")
        for item in _items(group):
            say(f"        {item}")
    if found.git_dirty:
        say(f'(there are {"other " if groups else ""}changes not tracked by dvc, use "git status" to see)')


def _items(group: object) -> Iterable[str]:
    if isinstance(group, dict):
        for state, paths in group.items():
            for path in paths:
                yield f"{state}: {' -> '.join(path.values()) if isinstance(path, dict) else path}"
    elif isinstance(group, list):
        yield from group


# -- contents --------------------------------------------------------------------------------------------------------


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not '{text}'")
    return name, value


def _source_arguments(parser: Parser) -> None:
    parser.add_argument("url", help="repository: a folder or a git URL")
    parser.add_argument("path", nargs="?", help="file or folder in the repository")
    parser.add_argument("--rev", nargs="?", metavar="<commit>", help="git revision")
    parser.add_argument("--config", help="configuration file that overrides the repository's own")
    parser.add_argument("--remote", help="remote of the repository to query")
    parser.add_argument(
        "--remote-config",
        nargs="*",
        type=_pair,
        metavar="NAME=VALUE",
        help="options that override the remote's own",
    )


@contextmanager
def _source(args: argparse.Namespace) -> Iterator[tuple[ExternalRepo, str, str]]:
    """Open the innermost repository of a path; yield it, the path inside it, and its location."""
    from dvkf_prefect.data.imports.external import open_external
    from dvkf_prefect.data.imports.lookup import repository_of

    config = dict(args.remote_config or ()) or None
    with open_external(
        args.url, args.rev, remote=args.remote, remote_config=config, config=args.config
    ) as repo:
        path = args.path or ""
        here = os.path.realpath(os.getcwd())
        if path and args.rev is None and posixpath.commonpath([here, repo.root]) == str(repo.root):
            path = os.path.join(here, path)
        inner, rest = repository_of(repo, repo.relpath(path) if path else "")
        yield inner, rest, "" if inner is repo else repo.relpath(inner.root)


def list_files_arguments(parser: Parser) -> None:
    """Describe ``dvkf list``."""
    _source_arguments(parser)
    parser.add_argument("-R", "--recursive", action="store_true", help="list the files in folders")
    parser.add_argument("-T", "--tree", action="store_true", help="print a tree")
    parser.add_argument("-L", "--level", type=int, metavar="<depth>", help="maximum depth of levels")
    parser.add_argument("--dvc-only", action="store_true", help="list only tracked data")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--size", action="store_true", help="print sizes")
    parser.add_argument("--show-hash", action="store_true", help="print digests")


def list_files(args: argparse.Namespace) -> int:
    """Run ``dvkf list``."""
    from dvkf_prefect.data.verbs.ls import file_tree, list_files

    if args.tree and args.json:
        raise DvkfError("--tree and --json do not go together")
    if args.level is not None and args.level < 0:
        raise ConfigError("--level is at least 0")
    try:
        with _source(args) as (repo, path, _):
            if args.tree:
                top = file_tree(repo, path, tracked_only=args.dvc_only, depth=args.level)
                if args.path:
                    top = replace(top, listed=top.listed._replace(path=args.path))
                rows = list(_tree_rows(top))
            else:
                entries = list_files(
                    repo, path, recursive=args.recursive, tracked_only=args.dvc_only, depth=args.level
                )
                if not args.path and args.rev is None:
                    entries = _from_here(repo, entries)
                if args.json:
                    print(json.dumps([entry.as_dict() for entry in entries]))
                    return 0
                rows = [(entry, "") for entry in entries]
    except DvkfError as error:
        print(f"ERROR: failed to list '{public_url(args.url)}' - {own_lines(str(error))}", file=sys.stderr)
        return 255 if isinstance(error, MissingObjectError) else 1
    if args.quiet:
        return 0
    show = _Painter()
    if not (args.size or args.show_hash):
        # For very many files, alignment would take longer than the listing.
        if rows:
            print("\n".join(prefix + show(entry) for entry, prefix in rows), file=unescaped(sys.stdout))
        return 0
    table: list[list[str | None]] = []
    for entry, prefix in rows:
        row: list[str | None] = []
        if args.size:
            known = entry.size is not None and not (entry.isdir and entry.size <= 0)
            row.append(natural_size(entry.size or 0) if known else "")
        if args.show_hash:
            row.append(entry.digest and printable(entry.digest))
        table.append([*row, prefix + show(entry)])
    if table:
        print(plain_table(table, right=args.size, painted=True), file=unescaped(sys.stdout))
    return 0


def _from_here(repo: ExternalRepo, entries: list[Listed]) -> list[Listed]:
    """Name files of a repository from the current folder if that is below its root, as DVC does."""
    here = os.path.realpath(os.getcwd())
    root = str(repo.root)
    if not here.startswith(root + os.sep):
        return entries
    named: list[Listed] = []
    for entry in entries:
        folder, _, name = entry.path.rpartition("/")
        around = os.path.relpath(os.path.join(root, folder), here)
        named.append(entry if name == "." else entry._replace(path=posixpath.normpath(f"{around}/{name}")))
    return sorted(named)


def _tree_rows(node: Node, prefix: str = "", tail: str = "") -> Iterator[tuple[Listed, str]]:
    """Yield each entry with the branches of the tree before its name."""
    yield node.listed, prefix + tail
    inner = prefix + {"": "", "├── ": "│   ", "└── ": "    "}[tail]
    for number, child in enumerate(node.nodes, 1):
        mark = "└── " if number == len(node.nodes) else "├── "
        yield from _tree_rows(child, inner, mark)


class _Painter:
    """Colours of names on a terminal by LS_COLORS, as in DVC."""

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}
        if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            known = os.environ.get("LS_COLORS") or "rs=0:di=01;34:ex=01;32"
            self._codes = dict(rule.split("=", 1) for rule in known.split(":") if "=" in rule)

    def __call__(self, entry: Listed) -> str:
        name = printable(entry.path) if sys.stdout.isatty() else entry.path
        if not self._codes:
            return name
        kind = "di" if entry.isdir else "ex" if entry.isexec else "*" + posixpath.splitext(entry.path)[1]
        if entry.isout and "out" in self._codes:
            kind = "out"
        code = self._codes.get(kind)
        return f"\033[{code}m{name}\033[{self._codes.get('rs', '0')}m" if code else name


def du_arguments(parser: Parser) -> None:
    """Describe ``dvkf du``."""
    _source_arguments(parser)
    parser.add_argument("-s", "--summarize", action="store_true", help="print only the total")
    parser.add_argument(
        "--max-depth", type=positive, default=1, metavar="<number>", help="maximum depth of levels"
    )


def du(args: argparse.Namespace) -> int:
    """Run ``dvkf du``."""
    from dvkf_prefect.data.verbs.ls import disk_usage

    with _source(args) as (repo, path, place):
        rows = disk_usage(repo, path, summarize=args.summarize, depth=args.max_depth)
    if not args.quiet:
        print(
            plain_table(
                [(natural_size(row.size), posixpath.join(place, row.path).rstrip("/")) for row in rows]
            )
        )
    return 0


# -- ignored paths -----------------------------------------------------------------------------------------------------


def check_ignore_arguments(parser: Parser) -> None:
    """Describe ``dvkf check-ignore``."""
    parser.add_argument("targets", nargs="*", metavar="PATH")
    parser.add_argument("-d", "--details", action="store_true", help="print the pattern that decides")
    parser.add_argument("-a", "--all", action="store_true", help="print every pattern that matches")
    parser.add_argument(
        "-n", "--non-matching", action="store_true", help="include paths that match no pattern"
    )
    parser.add_argument("--stdin", action="store_true", help="read paths from standard input")


def check_ignore(args: argparse.Namespace) -> int:
    """Run ``dvkf check-ignore``."""
    for wrong, message in (
        (not args.stdin and not args.targets, "no paths. Name some, or pass --stdin."),
        (args.stdin and args.targets, "paths and --stdin do not go together"),
        (args.non_matching and not args.details, "--non-matching goes only with --details"),
        (args.all and not args.details, "--all goes only with --details"),
        (args.quiet and args.details, "--details and --quiet do not go together"),
    ):
        if wrong:
            raise DvkfError(message)
    repo = open_repo()
    top = str(repo.root) + os.sep
    code = 1
    for target in _typed() if args.stdin else args.targets:
        full = os.path.normpath(os.path.join(os.path.realpath(os.getcwd()), target))
        path = full.removeprefix(top) if full.startswith(top) else ""
        verdict = repo.ignore.check(path, folder=os.path.isdir(full))
        if verdict.rules and (verdict.ignored or args.details):
            code = 0
        if args.details:
            rules = verdict.rules or (("::",) if args.non_matching else ())
            for rule in rules if args.all else rules[-1:]:
                say(f"{rule}\t{target}")
        elif verdict.ignored and not args.quiet:
            say(target)
    return code


def _typed() -> Iterator[str]:
    """Yield lines of standard input up to the first empty line."""
    for line in sys.stdin:
        if not line.rstrip("\n"):
            return
        yield line.rstrip("\n")


# -- environment -------------------------------------------------------------------------------------------------------


def root_arguments(parser: Parser) -> None:
    """Describe ``dvkf root``."""


def root(args: argparse.Namespace) -> int:
    """Run ``dvkf root``."""
    say(os.path.relpath(open_repo().root))
    return 0


def version_arguments(parser: Parser) -> None:
    """Describe ``dvkf version``."""


def version(args: argparse.Namespace) -> int:
    """Run ``dvkf version``."""
    from dvkf_prefect import __version__
    from dvkf_prefect.data.upkeep.doctor import about

    repo: Repo | None = None
    with suppress(NotARepositoryError):
        repo = open_repo()
    print(about(repo, version=__version__))
    return 0


def doctor_arguments(parser: Parser) -> None:
    """Describe ``dvkf doctor``."""
    parser.add_argument("--no-remote", action="store_true", help="skip the checks of the default remote")
    parser.add_argument(
        "--kubeflow",
        action="store_true",
        help="check Kubeflow Pipelines and the needs of the stages (DVKF_KUBEFLOW_HOST)",
    )
    parser.add_argument(
        "--kserve",
        action="store_true",
        help="check a namespace that is to serve models by KServe (--namespace)",
    )
    parser.add_argument(
        "-n", "--namespace", metavar="<name>", help="namespace of the services on the cluster"
    )
    parser.add_argument("--context", metavar="<name>", help="context of the kubeconfig")
    parser.add_argument(
        "--service-account",
        default="",
        metavar="<name>",
        help="account of the services' pods (default: one is made)",
    )
    parser.add_argument("--json", action="store_true", help="print only the checks, as JSON")


def doctor(args: argparse.Namespace) -> int:
    """Run ``dvkf doctor``."""
    from dataclasses import asdict

    from dvkf_prefect import __version__
    from dvkf_prefect.data.upkeep.doctor import Check, about

    repo: Repo | None = None
    checks: list[Check] = []
    try:
        with suppress(NotARepositoryError):
            repo = open_repo()
            checks = repo.doctor(remote=not args.no_remote)
    except ConfigError as error:
        # Invalid settings are among the problems that the doctor reports.
        checks = [Check("settings", "fail", str(error), "correct the file")]
    if args.kubeflow:
        checks += _of_cluster(repo, write=not args.no_remote)
    if args.kserve:
        checks += _of_kserve(repo, args)
    if args.json:
        print(json.dumps([asdict(check) for check in checks]))
    elif not args.quiet:
        if repo is not None or not checks:
            print(about(repo, version=__version__))
        if checks:
            print("\nChecks:")
        for check in checks:
            say(f"\t{check}")
    return 1 if any(check.state == "fail" for check in checks) else 0


def _of_kserve(repo: Repo | None, args: argparse.Namespace) -> list[Check]:
    """Return the checks of a namespace with KServe, and of the place of published models."""
    import os

    from dvkf_prefect.blocks import KServeModelServer
    from dvkf_prefect.data.upkeep.doctor import Check
    from dvkf_prefect.errors import DvkfError, RemoteNotFoundError, ServingError
    from dvkf_prefect.models.places import Place
    from dvkf_prefect.serving.kserve.checks import check_kserve

    if not args.namespace:
        raise ConfigError("no namespace on the cluster. Give it as --namespace.")
    options = None
    with suppress(RemoteNotFoundError):
        options = repo.config.remote(None)[1] if repo is not None else None
    remote = options if options and str(options.get("url", "")).startswith("s3://") else None
    server = KServeModelServer(namespace=args.namespace, context=args.context)
    try:
        kube = server.kubernetes()
    except ServingError as error:
        return [
            Check("Kubernetes", "fail", str(error).partition(". ")[0], "set KUBECONFIG, or name a --context")
        ]
    checks = list(check_kserve(kube, args.namespace, account=args.service_account, remote=remote))
    if repo is not None and not args.no_remote and (url := os.environ.get("DVKF_MODELS_URL")):
        try:
            place = Place(repo, url)
            place.manifest("dvkf-doctor", "v0.0.0")
            checks.append(Check("published models", "ok", f"{place.shown} answers"))
        except DvkfError as error:
            checks.append(
                Check("published models", "fail", str(error), "correct DVKF_MODELS_URL or the keys")
            )
    return checks


def _of_cluster(repo: Repo | None, *, write: bool) -> list[Check]:
    """Return the checks of the cluster that environment variables name."""
    from dvkf_prefect.data.upkeep.doctor import Check
    from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
    from dvkf_prefect.kubeflow.doctor.doctor import check_cluster

    settings = ClusterSettings.from_environment()
    if settings is None:
        return [
            Check("address", "fail", "no server of Kubeflow Pipelines is named", "set DVKF_KUBEFLOW_HOST")
        ]
    return list(check_cluster(settings, repo, write=write))
