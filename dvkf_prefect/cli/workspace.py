"""Commands on storage: the cache's folder and layout, and tracked paths to move, unprotect or remove."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, open_repo, positive, print_git_hint, progress_bar
from dvkf_prefect.cli._output import say
from dvkf_prefect.cli.settings import config_here, find, level_arguments
from dvkf_prefect.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from dvkf_prefect.formats.outputs import DataVersion
    from dvkf_prefect.repo import Repo


def cache_arguments(parser: Parser) -> None:
    """Describe ``dvkf cache``."""
    commands = parser.commands(
        dir=(cache_dir, "Show or set the cache folder."),
        migrate=(cache_migrate, "Migrate objects of DVC 2.x to the layout of DVC 3.0."),
    )
    place = commands["dir"]
    place.add_argument(
        "value", nargs="?", help="folder relative to the working directory (default: print the current one)"
    )
    place.add_argument("-u", "--unset", action="store_true", help="reset to .dvc/cache")
    level_arguments(place)
    migrating = commands["migrate"]
    migrating.add_argument(
        "--dvc-files", action="store_true", help="record the new digests in .dvc and dvc.lock files"
    )
    migrating.add_argument("--dry", action="store_true", help="print the changes without making them")


def cache_dir(args: argparse.Namespace) -> int:
    """Run ``dvkf cache dir``."""
    config = config_here()
    if args.value is None and not args.unset:
        try:
            say(find(config.read(args.level) if args.level else config.values, None, "cache", "dir"))
        except ConfigError:
            if args.level or "repo" not in config.files:
                raise
            say(config.files["repo"].with_name("cache"))
        return 0
    with config.edit(args.level or "repo", strict=True) as sections:
        if args.unset:
            find(sections, None, "cache", "dir")
            del sections["cache"]["dir"]
        else:
            sections["cache"]["dir"] = args.value
    return 0


def cache_migrate(args: argparse.Namespace) -> int:
    """Run ``dvkf cache migrate``."""
    repo = open_repo(args)
    migration = repo.migrate_cache(dvc_files=args.dvc_files, dry_run=args.dry)
    if not args.quiet:
        if args.dry:
            say(f"{migration.found} files will be re-hashed and migrated to the DVC 3.0 cache location.")
        else:
            say(f"Migrated {migration.added} files to DVC 3.0 cache location.")
        if args.dvc_files:
            _print_files(migration.files, repo, dry_run=args.dry)
    for digest in migration.damaged:
        say(
            f"WARNING: {digest} is damaged (its content does not match its digest); not migrated",
            stream=sys.stderr,
        )
    for path in migration.left:
        say(
            f"WARNING: '{path}' is neither in the cache nor in the workspace; its entry was not migrated",
            stream=sys.stderr,
        )
    return 0


def _print_files(files: Sequence[str], repo: Repo, *, dry_run: bool) -> None:
    if not files:
        print("No DVC files in the repo to migrate to the 3.0 format.")
        return
    if dry_run:
        print("Entries in following DVC files will be migrated to the 3.0 format:")
        for file in files:
            say(f"\t{file}")
        return
    for file in files:
        say(f"Updating {'lock' if file.endswith('.lock') else 'DVC'} file '{file}'")
    print_git_hint(repo)


def remove_arguments(parser: Parser) -> None:
    """Describe ``dvkf remove``."""
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=".dvc file, or stage")
    parser.add_argument("--outs", action="store_true", help="remove the data from the workspace")
    parser.add_argument(
        "-f", "--force", action="store_true", help="remove content that has no other copy (with --outs)"
    )
    parser.add_argument(
        "--dry", action="store_true", help="print the files that would be removed, and remove none"
    )


def remove(args: argparse.Namespace) -> int:
    """Run ``dvkf remove``."""
    repo = open_repo()
    removal = repo.remove(_described(repo, args.targets), outs=args.outs, force=args.force, dry_run=args.dry)
    if args.dry and not args.quiet:
        for name in (*(file for file in removal.files if file.endswith(".dvc")), *removal.stages):
            say(f"would remove {name}")
        for path in removal.deleted:
            say(f"would delete {path}")
    return 0


def _described(repo: Repo, targets: Sequence[str]) -> list[str]:
    """Convert a target from the current folder to the root. A bare word is a stage of the dvc.yaml here."""
    typed = []
    for target in targets:
        file, colon, stage = target.rpartition(":")
        if colon:
            typed.append(f"{repo.relpath(os.path.abspath(file or 'dvc.yaml'))}:{stage}")
        elif os.sep in target or target.endswith(".dvc") or target == "dvc.yaml":
            typed.append(repo.relpath(os.path.abspath(target)))
        else:
            typed.append(f"{repo.relpath(os.path.abspath('dvc.yaml'))}:{target}")
    return typed


def unprotect_arguments(parser: Parser) -> None:
    """Describe ``dvkf unprotect``."""
    parser.add_argument("targets", nargs="+", metavar="PATH", help="file or directory")


def unprotect(args: argparse.Namespace) -> int:
    """Run ``dvkf unprotect``."""
    open_repo(args).unprotect([os.path.abspath(target) for target in args.targets])
    return 0


def move_arguments(parser: Parser) -> None:
    """Describe ``dvkf move``."""
    parser.add_argument("src", help="tracked file or directory")
    parser.add_argument("dst", help="new path, or an existing directory to move it into")


def move(args: argparse.Namespace) -> int:
    """Run ``dvkf move``."""
    repo = open_repo(args)
    repo.move(os.path.abspath(args.src), os.path.abspath(args.dst))
    if not args.quiet:
        print_git_hint(repo)
    return 0


def elsewhere_arguments(parser: Parser) -> None:
    """Add the options of ``dvkf add`` for patterns and external data."""
    parser.add_argument("--glob", action="store_true", help="treat targets as patterns: *, ?, [abc], **")
    parser.add_argument(
        "-o", "--out", metavar="<path>", help="copy the target to this path and track the copy"
    )
    parser.add_argument(
        "--to-remote",
        action="store_true",
        help="send the target, a path or URL, to the remote instead of the workspace",
    )
    parser.add_argument("-r", "--remote", metavar="<name>", help="remote to send the data to")
    parser.add_argument(
        "-j", "--jobs", "--remote-jobs", dest="remote_jobs", type=positive, metavar="<number>",
        help="number of parallel transfers to the remote",
    )  # fmt: skip
    parser.add_argument("-f", "--force", action="store_true", help="overwrite an existing path at --out")
    parser.add_argument(
        "--no-relink",
        dest="relink",
        action="store_false",
        help="keep files unchanged, without linking them to the cache",
    )


def add_targets(args: argparse.Namespace) -> tuple[Repo, list[DataVersion]]:
    """Track the targets of ``dvkf add``; return the repository and the new versions."""
    from dvkf_prefect.repo import Repo

    if wrong := _wrong_together(args):
        raise OutputError(wrong)
    # With --no-relink, added files stay in place: only hard or symbolic links would replace them.
    repo = Repo.open(
        config=None if args.relink else {"cache": {"type": "reflink,copy"}},
        jobs=args.remote_jobs,
        progress=progress_bar(args.quiet),
    )
    if not (args.out or args.to_remote):
        targets = args.targets
        if args.glob:
            from dvkf_prefect.data.verbs.add_from import expand

            targets = expand(targets)
        paths = [os.path.abspath(target) for target in targets]
        return repo, repo.add(paths, no_commit=args.no_commit)
    from dvkf_prefect.data.verbs.add_from import place_for

    (source,) = args.targets
    out = place_for(source, args.out)
    place = os.path.abspath(out) if out else None
    if "://" not in source:
        source = os.path.abspath(source)
    if not args.to_remote:
        return repo, [repo.add_copy(source, out=place, force=args.force)]
    version = repo.add_to_remote(
        source,
        out=place or _beside_here(repo, source),
        remote=args.remote,
        force=args.force or place is None,
    )
    return repo, [version]


def _beside_here(repo: Repo, source: str) -> str:
    """Return the default path for external data: the current folder, or its own path inside the repository."""
    from dvkf_prefect.data.verbs.add_from import name_of

    if "://" not in source and os.path.realpath(source).startswith(f"{repo.root}{os.sep}"):
        return source
    return os.path.abspath(name_of(source))


def _wrong_together(args: argparse.Namespace) -> str | None:
    """Return DVC's message for options that exclude each other."""
    if args.to_remote or args.out:
        option = "--to-remote" if args.to_remote else "--out"
        for wrong, name in (
            (len(args.targets) != 1, "multiple targets"),
            (args.glob, "--glob option"),
            (args.no_commit, "--no-commit option"),
        ):
            if wrong:
                return f"{name} can't be used with {option}"
    if not args.to_remote and (args.remote or args.remote_jobs):
        return f"{'--remote' if args.remote else '--remote-jobs'} can't be used without --to-remote"
    return None
