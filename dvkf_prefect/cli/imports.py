"""Commands on data of other repositories and urls."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dvkf_prefect.cli._common import (
    Parser,
    open_repo,
    positive,
    print_git_hint,
    progress_bar,
    readable,
    targets_of,
)
from dvkf_prefect.cli._output import own_lines, say
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.urls import public_url, without_secrets

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.config import Config
    from dvkf_prefect.data.verbs.imports import Annotations, Import
    from dvkf_prefect.repo import Repo

T = TypeVar("T")


class _Options(argparse.Action):
    """Argparse action that collects NAME=VALUE words in a mapping."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add the words of one option."""
        words = [values] if isinstance(values, str) else values or ()
        found = dict(getattr(namespace, self.dest) or {})
        for word in words:
            name, equals, value = str(word).partition("=")
            if not equals:
                parser.error(f"argument {option_string}: expected NAME=VALUE, not '{word}'")
            found[name] = value
        setattr(namespace, self.dest, found)


def _tried(what: str, action: Callable[[], T]) -> T | None:
    """Run a function and return its result. On failure, print the operation with the error and return None."""
    try:
        return action()
    except DvkfError as error:
        print(f"ERROR: {without_secrets(what)} - {own_lines(str(error))}", file=sys.stderr)
        return None


def _source_arguments(parser: Parser) -> None:
    parser.add_argument("url", help="repository: a folder or a git URL")
    parser.add_argument("path", help="file or directory in the repository, tracked by DVC or git")
    parser.add_argument("-o", "--out", nargs="?", metavar="<path>", help="destination path")
    parser.add_argument("--rev", nargs="?", metavar="<commit>", help="git revision of the repository")
    parser.add_argument("--config", help="configuration file that overrides the repository's own")
    parser.add_argument("--remote", help="remote of the repository to download from")
    parser.add_argument(
        "--remote-config",
        nargs="*",
        action=_Options,
        metavar="NAME=VALUE",
        help="options that override the remote's own",
    )
    _transfer_arguments(parser)


def _transfer_arguments(parser: Parser) -> None:
    parser.add_argument(
        "-j", "--jobs", type=positive, metavar="<number>", help="number of parallel transfers"
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace an existing destination")


def _fs_config_argument(parser: Parser) -> None:
    parser.add_argument(
        "--fs-config",
        nargs="*",
        action=_Options,
        metavar="NAME=VALUE",
        help="options of the URL's filesystem",
    )


def _import_arguments(parser: Parser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--no-exec", action="store_true", help="write the .dvc file without a version or data")
    group.add_argument(
        "--no-download",
        action="store_true",
        help="write the .dvc file and its version without downloading data",
    )
    parser.add_argument("--desc", metavar="<text>", help="description of the data")
    parser.add_argument("--type", metavar="<str>", help="type of the data")
    parser.add_argument(
        "--label", action="append", dest="labels", metavar="<str>", help="label of the data; repeatable"
    )
    parser.add_argument(
        "--meta", nargs="*", action=_Options, metavar="NAME=VALUE", help="further metadata of the data"
    )


def _annotations(args: argparse.Namespace) -> Annotations:
    from dvkf_prefect.data.verbs.imports import Annotations

    return Annotations(args.desc, args.type, tuple(args.labels or ()), args.meta)


def get_arguments(parser: Parser) -> None:
    """Describe ``dvkf get``."""
    _source_arguments(parser)
    parser.add_argument(
        "--show-url", action="store_true", help="print the URL on the remote without downloading"
    )


def get(args: argparse.Namespace) -> int:
    """Run ``dvkf get``."""
    from dvkf_prefect.data.verbs import get as getting

    if args.show_url:
        say(
            getting.storage_url(
                args.url,
                args.path,
                rev=args.rev,
                remote=args.remote,
                remote_config=args.remote_config,
                config=args.config,
            )
        )
        return 0
    done = _tried(
        f"failed to get '{args.path}' from '{public_url(args.url)}'",
        lambda: getting.get(
            args.url,
            args.path,
            args.out,
            rev=args.rev,
            force=args.force,
            remote=args.remote,
            remote_config=args.remote_config,
            config=args.config,
            jobs=args.jobs,
            progress=progress_bar(args.quiet),
        ),
    )
    return 1 if done is None else 0


def get_url_arguments(parser: Parser) -> None:
    """Describe ``dvkf get-url``."""
    parser.add_argument("url", help="path or URL; remote://name/path is a path below a remote")
    parser.add_argument("out", nargs="?", help="destination path")
    _transfer_arguments(parser)
    _fs_config_argument(parser)


def get_url(args: argparse.Namespace) -> int:
    """Run ``dvkf get-url``."""
    from dvkf_prefect.data.verbs import get as getting

    config = _config_here()
    done = _tried(
        f"failed to get '{public_url(args.url)}'",
        lambda: getting.get_url(
            args.url,
            args.out,
            force=args.force,
            fs_config=args.fs_config,
            config=config,
            jobs=args.jobs,
            progress=progress_bar(args.quiet),
        ),
    )
    return 1 if done is None else 0


def list_url_arguments(parser: Parser) -> None:
    """Describe ``dvkf list-url``."""
    parser.add_argument("url", help="path or URL; remote://name/path is a path below a remote")
    parser.add_argument("-R", "--recursive", action="store_true", help="list the files in folders")
    parser.add_argument("--size", action="store_true", help="print sizes")
    _fs_config_argument(parser)


def list_url(args: argparse.Namespace) -> int:
    """Run ``dvkf list-url``."""
    from dvkf_prefect.data.verbs import get as getting

    sizes: dict[str, int | None] = {}
    for path, size in getting.list_url(args.url, fs_config=args.fs_config, config=_config_here()):
        folder, slash, _ = path.partition("/")
        if slash and not args.recursive:
            sizes[folder + "/"] = None
        else:
            sizes[path] = size
    width = max((len(readable(size)) for size in sizes.values() if size is not None), default=1)
    for path, size in sorted(sizes.items()):
        mark = "-" if size is None else readable(size)
        say(f"{mark:>{width}}  {path}" if args.size else path)
    return 0


def _config_here() -> Config:
    from dvkf_prefect.data.repository.config import Config
    from dvkf_prefect.errors import NotARepositoryError

    try:
        return open_repo().config
    except NotARepositoryError:
        return Config(None)


def import_repo_arguments(parser: Parser) -> None:
    """Describe ``dvkf import``."""
    _source_arguments(parser)
    _import_arguments(parser)


def import_repo(args: argparse.Namespace) -> int:
    """Run ``dvkf import``."""
    from dvkf_prefect.data.verbs.imports import ImportOptions, resolve_out

    repo = open_repo(args)
    options = ImportOptions(
        rev=args.rev,
        force=args.force,
        no_exec=args.no_exec,
        no_download=args.no_download,
        remote=args.remote,
        remote_config=args.remote_config,
        config=args.config,
        annotations=_annotations(args),
    )
    done = _tried(
        f"failed to import '{args.path}' from '{public_url(args.url)}'.",
        lambda: repo.import_(
            args.url,
            args.path,
            os.path.abspath(resolve_out(args.path, args.out)),
            options=options,
        ),
    )
    return _print_done(args, repo, [done], executed=not args.no_exec) if done else 1


def import_url_arguments(parser: Parser) -> None:
    """Describe ``dvkf import-url``."""
    parser.add_argument("url", help="path or URL; remote://name/path is a path below a remote")
    parser.add_argument("out", nargs="?", help="destination path")
    parser.add_argument(
        "--to-remote", action="store_true", help="send the data to a remote instead of the workspace"
    )
    parser.add_argument("-r", "--remote", metavar="<name>", help="remote to send the data to")
    parser.add_argument(
        "--version-aware", action="store_true", help="record the version IDs of a service that keeps versions"
    )
    _transfer_arguments(parser)
    _fs_config_argument(parser)
    _import_arguments(parser)


def import_url(args: argparse.Namespace) -> int:
    """Run ``dvkf import-url``."""
    from dvkf_prefect.data.verbs.imports import ImportUrlOptions, resolve_out

    repo = open_repo(args)
    options = ImportUrlOptions(
        force=args.force,
        no_exec=args.no_exec,
        no_download=args.no_download,
        to_remote=args.to_remote,
        remote=args.remote,
        version_aware=args.version_aware,
        fs_config=args.fs_config,
        annotations=_annotations(args),
    )
    done = _tried(
        f"failed to import {public_url(args.url)}. You could also try downloading it manually, "
        "and adding it with `dvkf add`.",
        lambda: repo.import_url(
            args.url,
            os.path.abspath(resolve_out(args.url, args.out)),
            options=options,
        ),
    )
    return _print_done(args, repo, [done], executed=not args.no_exec) if done else 1


def update_arguments(parser: Parser) -> None:
    """Describe ``dvkf update``."""
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=".dvc files of imports")
    parser.add_argument("--rev", nargs="?", metavar="<commit>", help="git revision to follow from now on")
    parser.add_argument(
        "-R", "--recursive", action="store_true", help="include all imports below target folders"
    )
    parser.add_argument(
        "--no-download", action="store_true", help="write the .dvc files without downloading data"
    )
    parser.add_argument(
        "--to-remote", action="store_true", help="send the data to a remote instead of the workspace"
    )
    parser.add_argument("-r", "--remote", metavar="<name>", help="remote to send the data to")
    parser.add_argument(
        "-j", "--jobs", type=positive, metavar="<number>", help="number of parallel transfers"
    )


def update(args: argparse.Namespace) -> int:
    """Run ``dvkf update``."""
    repo = open_repo(args)
    done = _tried(
        "failed update data",
        lambda: repo.update(
            targets_of(repo, args.targets),
            rev=args.rev,
            recursive=args.recursive,
            no_download=args.no_download,
            to_remote=args.to_remote,
            remote=args.remote,
        ),
    )
    return 1 if done is None else _print_done(args, repo, done)


def _print_done(
    args: argparse.Namespace, repo: Repo, done: Sequence[Import], *, executed: bool = True
) -> int:
    """Print the imports and the ``git add`` command for them; return the exit code 0."""
    if args.quiet:
        return 0
    for item in done:
        if not item.changed:
            say(f"'{item.source}' didn't change, skipping")
        elif executed:
            say(f"Importing '{item.origin}' -> '{item.path}'")
    print_git_hint(repo)
    return 0
