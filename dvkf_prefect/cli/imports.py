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
    from dvkf_prefect.data.repo import Repo
    from dvkf_prefect.data.repository.config import Config
    from dvkf_prefect.data.verbs.imports import Annotations, Import

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
    parser.add_argument("url", help="the repository: a folder or a git url")
    parser.add_argument("path", help="a file or a directory in it, tracked by DVC or by git")
    parser.add_argument("-o", "--out", nargs="?", metavar="<path>", help="where to put it")
    parser.add_argument("--rev", nargs="?", metavar="<commit>", help="a git revision of the repository")
    parser.add_argument("--config", help="a configuration file over the repository's own")
    parser.add_argument("--remote", help="the repository's remote to download from")
    parser.add_argument(
        "--remote-config", nargs="*", action=_Options, metavar="NAME=VALUE", help="options over that remote's"
    )
    _transfer_arguments(parser)


def _transfer_arguments(parser: Parser) -> None:
    parser.add_argument("-j", "--jobs", type=positive, metavar="<number>", help="transfers at once")
    parser.add_argument("-f", "--force", action="store_true", help="replace what is there")


def _fs_config_argument(parser: Parser) -> None:
    parser.add_argument(
        "--fs-config", nargs="*", action=_Options, metavar="NAME=VALUE", help="options for the url"
    )


def _import_arguments(parser: Parser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--no-exec", action="store_true", help="only write the .dvc file")
    group.add_argument(
        "--no-download", action="store_true", help="write the .dvc file with the version, but bring no data"
    )
    parser.add_argument("--desc", metavar="<text>", help="a description of the data")
    parser.add_argument("--type", metavar="<str>", help="what kind of data it is")
    parser.add_argument(
        "--label", action="append", dest="labels", metavar="<str>", help="a word to find it by"
    )
    parser.add_argument(
        "--meta", nargs="*", action=_Options, metavar="NAME=VALUE", help="anything else to note of it"
    )


def _annotations(args: argparse.Namespace) -> Annotations:
    from dvkf_prefect.data.verbs.imports import Annotations

    return Annotations(args.desc, args.type, tuple(args.labels or ()), args.meta)


def get_arguments(parser: Parser) -> None:
    """Describe ``dvkf get``."""
    _source_arguments(parser)
    parser.add_argument(
        "--show-url", action="store_true", help="only print where the remote keeps it, and download nothing"
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
    parser.add_argument("url", help="a path or a url; remote://name/path is one below a remote")
    parser.add_argument("out", nargs="?", help="where to put it")
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
    parser.add_argument("url", help="a path or a url; remote://name/path is one below a remote")
    parser.add_argument("-R", "--recursive", action="store_true", help="list the files in folders too")
    parser.add_argument("--size", action="store_true", help="with sizes")
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
    from dvkf_prefect.data.verbs.imports import resolve_out

    repo = open_repo()
    done = _tried(
        f"failed to import '{args.path}' from '{public_url(args.url)}'.",
        lambda: repo.import_(
            args.url,
            args.path,
            os.path.abspath(resolve_out(args.path, args.out)),
            rev=args.rev,
            force=args.force,
            no_exec=args.no_exec,
            no_download=args.no_download,
            remote=args.remote,
            remote_config=args.remote_config,
            config=args.config,
            annotations=_annotations(args),
            jobs=args.jobs,
            progress=progress_bar(args.quiet),
        ),
    )
    return _told(args, repo, [done], executed=not args.no_exec) if done else 1


def import_url_arguments(parser: Parser) -> None:
    """Describe ``dvkf import-url``."""
    parser.add_argument("url", help="a path or a url; remote://name/path is one below a remote")
    parser.add_argument("out", nargs="?", help="where to put it")
    parser.add_argument("--to-remote", action="store_true", help="bring the data to a remote, not here")
    parser.add_argument("-r", "--remote", metavar="<name>", help="the remote to bring it to")
    parser.add_argument(
        "--version-aware", action="store_true", help="record versions where the service keeps them"
    )
    _transfer_arguments(parser)
    _fs_config_argument(parser)
    _import_arguments(parser)


def import_url(args: argparse.Namespace) -> int:
    """Run ``dvkf import-url``."""
    from dvkf_prefect.data.verbs.imports import resolve_out

    repo = open_repo()
    done = _tried(
        f"failed to import {public_url(args.url)}. You could also try downloading it manually, "
        "and adding it with `dvkf add`.",
        lambda: repo.import_url(
            args.url,
            os.path.abspath(resolve_out(args.url, args.out)),
            force=args.force,
            no_exec=args.no_exec,
            no_download=args.no_download,
            to_remote=args.to_remote,
            remote=args.remote,
            version_aware=args.version_aware,
            fs_config=args.fs_config,
            annotations=_annotations(args),
            jobs=args.jobs,
            progress=progress_bar(args.quiet),
        ),
    )
    return _told(args, repo, [done], executed=not args.no_exec) if done else 1


def update_arguments(parser: Parser) -> None:
    """Describe ``dvkf update``."""
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=".dvc files of imports")
    parser.add_argument("--rev", nargs="?", metavar="<commit>", help="follow this git revision from now on")
    parser.add_argument("-R", "--recursive", action="store_true", help="all imports below a folder")
    parser.add_argument("--no-download", action="store_true", help="only write the .dvc files")
    parser.add_argument("--to-remote", action="store_true", help="bring the data to a remote, not here")
    parser.add_argument("-r", "--remote", metavar="<name>", help="the remote to bring it to")
    parser.add_argument("-j", "--jobs", type=positive, metavar="<number>", help="transfers at once")


def update(args: argparse.Namespace) -> int:
    """Run ``dvkf update``."""
    repo = open_repo()
    done = _tried(
        "failed update data",
        lambda: repo.update(
            targets_of(repo, args.targets),
            rev=args.rev,
            recursive=args.recursive,
            no_download=args.no_download,
            to_remote=args.to_remote,
            remote=args.remote,
            jobs=args.jobs,
            progress=progress_bar(args.quiet),
        ),
    )
    return 1 if done is None else _told(args, repo, done)


def _told(args: argparse.Namespace, repo: Repo, done: Sequence[Import], *, executed: bool = True) -> int:
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
