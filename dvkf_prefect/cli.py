"""The command line, with DVC's verbs, options and exit codes where DVC has them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dvkf_prefect import __version__
from dvkf_prefect.errors import ConfigError, DvkfError, OutputError

if TYPE_CHECKING:
    from dvkf_prefect.data.repo import Checkout, Repo
    from dvkf_prefect.data.transfer import Progress, Transfer

Handler = Callable[[argparse.Namespace], int]


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
        return handler(args)
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

    init = verb("init", _init, "Make this folder a repository.")
    init.add_argument("--no-scm", action="store_true", help="do without git")
    init.add_argument(
        "--subdir", action="store_true", help="allow a folder below the top of a git repository"
    )
    init.add_argument(
        "-f", "--force", action="store_true", help="set the settings of an existing repository anew"
    )
    init.add_argument("-q", "--quiet", action="store_true", help="say nothing")

    add = verb("add", _add, "Track files or directories.")
    add.add_argument("targets", nargs="+", metavar="PATH")
    add.add_argument(
        "--no-commit", action="store_true", help="record the content, do not store it in the cache"
    )
    add.add_argument("-q", "--quiet", action="store_true", help="say nothing")

    commit = verb("commit", _commit, "Record and store tracked data as it is in the workspace.")
    commit.add_argument("targets", nargs="*", metavar="TARGET")
    commit.add_argument("-f", "--force", action="store_true", help="do not ask")
    commit.add_argument("-q", "--quiet", action="store_true", help="say nothing")

    status = verb("status", _status, "Show what changed: in the workspace, or between cache and remote.")
    status.add_argument("targets", nargs="*", metavar="TARGET")
    status.add_argument("-c", "--cloud", action="store_true", help="compare the cache with the remote")
    status.add_argument("-r", "--remote", metavar="<name>", help="the remote to compare with")
    status.add_argument("-j", "--jobs", type=_positive, metavar="<number>", help="requests at once")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing; exit code 1 when something changed"
    )

    checkout = verb("checkout", _checkout, "Make the workspace hold what is recorded, from the cache.")
    checkout.add_argument("targets", nargs="*", metavar="TARGET")
    checkout.add_argument("-f", "--force", action="store_true", help="overwrite content that is nowhere else")
    checkout.add_argument(
        "--allow-missing", action="store_true", help="pass over what the cache does not hold"
    )
    checkout.add_argument("--summary", action="store_true", help="only count the changes")
    checkout.add_argument("-q", "--quiet", action="store_true", help="say nothing")

    for name, handler, text in (
        ("push", _push, "Upload tracked data to a remote."),
        ("fetch", _fetch, "Download tracked data into the cache."),
        ("pull", _pull, "Download tracked data into the cache and the workspace."),
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

    diff = verb("diff", _diff, "Compare two versions of the data.")
    diff.add_argument("a_rev", nargs="?", default="HEAD", help="the older git revision (default: HEAD)")
    diff.add_argument("b_rev", nargs="?", help="the newer one (default: the workspace)")
    diff.add_argument("--targets", nargs="*", default=[], metavar="TARGET", help="only these outputs")
    diff.add_argument("--json", action="store_true", help="as JSON")
    diff.add_argument("--show-hash", action="store_true", help="with digests")
    diff.add_argument("--hide-missing", action="store_true", help="without what is missing from the cache")

    _remote_verbs(verb, verbs)

    config = verb("config", _config, "Get or set settings.")
    config.add_argument("name", nargs="?", help="section.option, or remote.NAME.option")
    config.add_argument("value", nargs="?")
    config.add_argument("-l", "--list", action="store_true", help="list all settings")
    config.add_argument("-u", "--unset", action="store_true", help="remove the setting")
    config.add_argument("--show-origin", action="store_true", help="say which file a setting stands in")
    _level(config)

    repro = verb("repro", _repro, "Run the stages of dvc.yaml that are out of date.")
    repro.add_argument("targets", nargs="*", metavar="STAGE")
    repro.add_argument("-f", "--force", action="store_true", help="run stages even when nothing changed")
    repro.add_argument(
        "-s", "--single-item", action="store_true", help="only the stages named, not what they need"
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
    add = verb("add", _remote_add, "Add a remote.", remotes)
    add.add_argument("name")
    add.add_argument("url", help="a folder or a url: s3://, gs://, azure://, ssh://, http(s)://, …")
    add.add_argument("-d", "--default", action="store_true", help="make it the default one")
    add.add_argument("-f", "--force", action="store_true", help="replace a remote of that name")
    listing = verb("list", _remote_list, "List the remotes.", remotes)
    default = verb("default", _remote_default, "Show, set or unset the default remote.", remotes)
    default.add_argument("name", nargs="?")
    default.add_argument("-u", "--unset", action="store_true", help="have no default remote")
    modify = verb("modify", _remote_modify, "Set an option of a remote.", remotes)
    modify.add_argument("name")
    modify.add_argument("option")
    modify.add_argument("value", nargs="?")
    modify.add_argument("-u", "--unset", action="store_true", help="remove the option")
    remove = verb("remove", _remote_remove, "Remove a remote.", remotes)
    remove.add_argument("name")
    for parser in (add, listing, default, modify, remove):
        _level(parser)


def _model_verbs(verb: Any, verbs: Any) -> None:
    models = verb(
        "model", None, "Register model versions and say where they are used.", verbs
    ).add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    register = verb("register", _model_register, "Register a version of a model from a commit.", models)
    register.add_argument("name", help="an artifact of dvc.yaml")
    register.add_argument("rev", nargs="?", default="HEAD", help="the commit (default: HEAD)")
    register.add_argument(
        "--version", dest="model_version", metavar="<vX.Y.Z>", help="otherwise the next one"
    )
    register.add_argument("-m", "--message", default="", help="what is new in it")
    listing = verb("list", _model_list, "List the registered versions.", models)
    listing.add_argument("name", nargs="?")
    listing.add_argument("--json", action="store_true", help="as JSON")
    show = verb("show", _model_show, "Show one version.", models)
    show.add_argument("name")
    show.add_argument("which", nargs="?", default="latest", help="a version, #stage, or latest (default)")
    show.add_argument("--json", action="store_true", help="as JSON")
    assign = verb("assign", _model_assign, "Assign a version to a stage, such as prod.", models)
    assign.add_argument("name")
    assign.add_argument("model_version", metavar="version")
    assign.add_argument("stage")
    rollback = verb("rollback", _model_rollback, "Assign a stage to the version that held it before.", models)
    rollback.add_argument("name")
    rollback.add_argument("stage")


# -- data ------------------------------------------------------------------------------------------------------------


def _open() -> Repo:
    from dvkf_prefect.data.repo import Repo

    return Repo.open()


def _targets(repo: Repo, targets: Sequence[str]) -> list[str]:
    """Turn what was typed, relative to the current folder, into targets relative to the root; stage names stay."""
    typed = []
    for target in targets:
        file, colon, stage = target.rpartition(":")
        if colon:
            typed.append(f"{repo.relpath(os.path.abspath(file))}:{stage}")
        elif os.sep not in target and not os.path.lexists(target) and os.getcwd() == str(repo.root):
            typed.append(target)
        else:
            typed.append(repo.relpath(os.path.abspath(target)))
    return typed


def _progress(quiet: bool) -> Progress | None:
    if quiet or not sys.stderr.isatty():
        return None
    from dvkf_prefect.data.progress import Bar

    return Bar()


def _init(args: argparse.Namespace) -> int:
    from dvkf_prefect.data.repo import Repo

    repo = Repo.init(no_scm=args.no_scm, subdir=args.subdir, force=args.force)
    if not args.quiet:
        print(f"Initialized DVC repository in {repo.root}.")
        if repo.git:
            print('\nYou can now commit it:\n\n\tgit commit -m "Initialize DVC"')
    return 0


def _add(args: argparse.Namespace) -> int:
    repo = _open()
    versions = repo.add(
        [os.path.abspath(target) for target in args.targets],
        no_commit=args.no_commit,
        progress=_progress(args.quiet),
    )
    if not args.quiet:
        for version in versions:
            print(f"{version.path}: {version.nfiles} file(s), {_bytes(version.size)}, {version.digest}")
        if repo.git and not repo.config.get("core", "autostage"):
            files = sorted({v.path + ".dvc" for v in versions} | {_beside(v.path) for v in versions})
            print(f"\nTo track the changes with git, run:\n\n\tgit add {' '.join(files)}")
    return 0


def _beside(path: str) -> str:
    folder = os.path.dirname(path)
    return f"{folder}/.gitignore" if folder else ".gitignore"


def _commit(args: argparse.Namespace) -> int:
    repo = _open()
    targets = _targets(repo, args.targets)
    if not args.force:
        changed = [change for change in repo.status(targets).changes if change.state == "modified"]
        if changed:
            names = ", ".join(change.path for change in changed)
            if not sys.stdin.isatty():
                raise OutputError(f"{names} changed; use --force to record it without being asked")
            if input(f"{names} changed. Record the new content? [y/n] ").strip().lower() not in ("y", "yes"):
                return 255
    versions = repo.commit(targets, progress=_progress(args.quiet))
    from dvkf_prefect.pipeline.repro import commit_stages

    stages = commit_stages(repo, targets)
    if not args.quiet:
        for version in versions:
            print(f"{version.path}: {version.nfiles} file(s), {_bytes(version.size)}, {version.digest}")
        for stage in stages:
            print(f"{stage}: recorded in dvc.lock")
    return 0


def _status(args: argparse.Namespace) -> int:
    import json

    repo = _open()
    targets = _targets(repo, args.targets)
    if args.cloud or args.remote:
        return _cloud_status(repo, targets, args)
    from dvkf_prefect.pipeline.why import status_report

    data = repo.status(targets)
    report = status_report(repo, data, targets)
    if args.quiet:
        return 1 if report else 0
    if args.json:
        print(json.dumps(report))
        return 0
    if not report:
        tracked = data.outputs or any(name.endswith("dvc.yaml") for name in repo.files().find())
        print(
            "Data and pipelines are up to date."
            if tracked
            else "There are no data or pipelines tracked in this project yet."
        )
        return 0
    for name, groups in report.items():
        print(f"{name}:")
        for group in groups:
            if isinstance(group, str):
                print(f"\t{group}")
                continue
            for title, entries in group.items():
                print(f"\t{title}:")
                for path, state in entries.items():
                    if isinstance(state, dict):
                        print(f"\t\t{path}:")
                        for key, what in state.items():
                            print(f"\t\t\t{what + ':':<20}{key}")
                    else:
                        print(f"\t\t{state + ':':<20}{path}")
    return 0


def _cloud_status(repo: Repo, targets: Sequence[str], args: argparse.Namespace) -> int:
    import json

    from dvkf_prefect.data.transfer import cloud_status

    states = cloud_status(repo.outputs(targets), repo.cache, repo.remote(args.remote), jobs=args.jobs)
    if args.quiet:
        return 1 if states else 0
    if args.json:
        print(json.dumps(states))
    elif states:
        for path, state in states.items():
            print(f"\t{state + ':':<20}{path}")
    else:
        print(f"Cache and remote '{repo.remote(args.remote).name}' are in sync.")
    return 0


def _print_checkout(changes: Checkout) -> None:
    for mark, paths in (("M", changes.modified), ("A", changes.added), ("D", changes.deleted)):
        for path in paths:
            print(f"{mark}\t{path}")


def _checkout(args: argparse.Namespace) -> int:
    repo = _open()
    changes = repo.checkout(
        _targets(repo, args.targets),
        force=args.force,
        allow_missing=args.allow_missing,
        progress=_progress(args.quiet),
    )
    if args.summary:
        counts = [
            f"{len(paths)} {word}"
            for word, paths in (
                ("modified", changes.modified),
                ("added", changes.added),
                ("deleted", changes.deleted),
            )
            if paths
        ]
        print(" and ".join(counts) if counts else "No changes.")
    elif not args.quiet:
        _print_checkout(changes)
    return 0


def _print_transfer(moved: Transfer, word: str, *, changed: bool = False) -> None:
    if moved.files:
        print(f"{moved.files} file(s) {word} ({_bytes(moved.size)}, {moved.remote})")
    elif not changed:
        print("Everything is up to date.")


def _push(args: argparse.Namespace) -> int:
    repo = _open()
    moved = repo.push(
        _targets(repo, args.targets), remote=args.remote, jobs=args.jobs, progress=_progress(args.quiet)
    )
    if not args.quiet:
        _print_transfer(moved, "pushed")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    repo = _open()
    moved = repo.fetch(
        _targets(repo, args.targets), remote=args.remote, jobs=args.jobs, progress=_progress(args.quiet)
    )
    if not args.quiet:
        _print_transfer(moved, "fetched")
    return 0


def _pull(args: argparse.Namespace) -> int:
    repo = _open()
    pulled = repo.pull(
        _targets(repo, args.targets),
        remote=args.remote,
        jobs=args.jobs,
        force=args.force,
        allow_missing=args.allow_missing,
        progress=_progress(args.quiet),
    )
    if not args.quiet:
        _print_checkout(pulled.checkout)
        _print_transfer(pulled.transfer, "fetched", changed=bool(pulled.checkout))
    return 0


def _diff(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    repo = _open()
    found = repo.diff(args.a_rev, args.b_rev, _targets(repo, args.targets))
    if args.hide_missing:
        found = dataclasses.replace(found, not_in_cache=())
    if args.json:
        rows = found.as_dict(hashes=args.show_hash)
        if args.hide_missing:
            rows.pop("not in cache", None)
        print(json.dumps(rows))
        return 0
    counts = []
    for title, entries in (
        ("added", found.added),
        ("deleted", found.deleted),
        ("renamed", found.renamed),
        ("modified", found.modified),
        ("not in cache", found.not_in_cache),
    ):
        if not entries:
            continue
        print(f"{title.capitalize()}:")
        for entry in entries:
            digests = [d[:8] for d in (entry.old_digest, entry.new_digest) if d]
            mark = "..".join(dict.fromkeys(digests)) + "  " if args.show_hash else ""
            print(f"    {mark}{entry.old_path + ' -> ' if entry.old_path else ''}{entry.path}")
        print()
        files = sum(1 for entry in entries if not entry.path.endswith("/"))
        if files:
            counts.append(f"{files} {title}")
    if counts:
        print(f"files summary: {', '.join(counts)}")
    return 0


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


# -- settings --------------------------------------------------------------------------------------------------------


def _remote_add(args: argparse.Namespace) -> int:
    name = args.name.lower()
    with _open().config.edit(args.level or "repo") as sections:
        if name in sections["remote"] and not args.force:
            raise ConfigError(f"remote '{name}' already exists. Use `-f|--force` to overwrite it.")
        sections["remote"][name] = {"url": args.url}
        if args.default:
            sections["core"]["remote"] = name
    if args.default:
        print(f"Setting '{name}' as a default remote.")
    return 0


def _remote_list(args: argparse.Namespace) -> int:
    config = _open().config
    remotes = config.read(args.level).get("remote", {}) if args.level else config.values["remote"]
    default = config.default_remote()
    for name, options in remotes.items():
        print(f"{name}\t{options.get('url', '')}{' (default)' if name == default else ''}")
    return 0


def _remote_default(args: argparse.Namespace) -> int:
    config = _open().config
    if args.name is None and not args.unset:
        name = (
            config.read(args.level).get("core", {}).get("remote") if args.level else config.default_remote()
        )
        print(name or "No default remote set")
        return 0
    if args.name and args.name.lower() not in config.values["remote"]:
        config.remote(args.name)
    with config.edit(args.level or "repo") as sections:
        if args.unset:
            sections["core"].pop("remote", None)
        else:
            sections["core"]["remote"] = args.name.lower()
    return 0


def _remote_modify(args: argparse.Namespace) -> int:
    config = _open().config
    name = args.name.lower()
    if name not in config.values["remote"]:
        raise ConfigError(f"remote '{name}' doesn't exist.")
    if args.value is None and not args.unset:
        raise ConfigError(f"give a value for '{args.option}', or --unset")
    with config.edit(args.level or "repo") as sections:
        section = sections["remote"].setdefault(name, {})
        if args.unset:
            section.pop(args.option.lower(), None)
        else:
            section[args.option.lower()] = args.value
    return 0


def _remote_remove(args: argparse.Namespace) -> int:
    config = _open().config
    name = args.name.lower()
    level = args.level or "repo"
    if name not in config.read(level).get("remote", {}):
        raise ConfigError(f"remote '{name}' doesn't exist.")
    # The levels above may name it as their default or give it options; without the remote those would be errors.
    levels = list(config.files)
    for other in reversed(levels[levels.index(level) :]):
        with config.edit(other) as sections:
            sections["remote"].pop(name, None)
            if sections["core"].get("remote") == name:
                del sections["core"]["remote"]
    return 0


def _config(args: argparse.Namespace) -> int:
    config = _open().config
    levels = [args.level] if args.level else list(config.files)
    if args.list:
        if args.name or args.value or args.unset:
            raise ConfigError("-l/--list goes with no name, value or --unset")
        for level in levels:
            for name, value in _flat(config.read(level)):
                print(f"{f'{config.files[level]}{chr(9)}' if args.show_origin else ''}{name}={value}")
        return 0
    if not args.name:
        raise ConfigError("name a setting as section.option, or list them with -l")
    section, _, option = args.name.lower().partition(".")
    path = [section, *option.rsplit(".", 1)]
    if not option:
        raise ConfigError(f"'{args.name}' is not section.option")
    if args.value is None and not args.unset:
        for level in reversed(levels):
            for name, value in _flat(config.read(level)):
                if name == args.name.lower():
                    print(f"{f'{config.files[level]}{chr(9)}' if args.show_origin else ''}{value}")
                    return 0
        raise ConfigError(f"option '{args.name}' isn't set")
    with config.edit(args.level or "repo") as sections:
        place = sections
        for part in path[:-1]:
            place = place.setdefault(part, {})
        if not args.unset:
            place[path[-1]] = args.value
        elif place.pop(path[-1], None) is None:
            raise ConfigError(f"option '{args.name}' isn't set")
    return 0


def _flat(values: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for section, options in values.items():
        for option, value in options.items():
            if isinstance(value, dict):
                rows += [(f"{section}.{option}.{key}", _plain(inner)) for key, inner in value.items()]
            else:
                rows.append((f"{section}.{option}", _plain(value)))
    return rows


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- pipelines and models --------------------------------------------------------------------------------------------


def _repro(args: argparse.Namespace) -> int:
    from dvkf_prefect.pipeline import repro
    from dvkf_prefect.pipeline.runner import LocalRunner, Runner

    repo = _open()
    targets = _targets(repo, args.targets)
    if args.dry:
        for decision in repro.plan(repo, targets, force=args.force, single_item=args.single_item):
            print(decision)
        return 0
    runner: Runner
    if args.runner == "kubeflow":
        from dvkf_prefect.kubeflow.local import KfpLocalRunner

        runner = KfpLocalRunner(repo.tmp_dir / "kubeflow")
    else:
        runner = LocalRunner()

    def tell(event: repro.StageEvent) -> None:
        if not args.quiet:
            print(event, flush=True)

    try:
        result = repro.repro(
            repo,
            targets,
            runner=runner,
            force=args.force,
            single_item=args.single_item,
            jobs=args.jobs,
            on_event=tell,
        )
    finally:
        runner.close()
    if not args.quiet and not result.ran and not result.restored:
        print("Data and pipelines are up to date.")
    return 0


def _registry() -> Any:
    from dvkf_prefect.models.registry import ModelRegistry

    return ModelRegistry(_open())


def _model_register(args: argparse.Namespace) -> int:
    version = _registry().register(args.name, version=args.model_version, rev=args.rev, message=args.message)
    print(f"{version.name} {version.version}: {version.path} ({version.digest}) of commit {version.rev[:7]}")
    return 0


def _model_list(args: argparse.Namespace) -> int:
    versions = _registry().list(args.name)
    if args.json:
        import json

        print(json.dumps([version.as_dict() for version in versions]))
        return 0
    for version in versions:
        stages = " ".join(f"#{stage}" for stage in version.stages)
        print(
            f"{version.name}\t{version.version}\t{version.rev[:7]}\t{version.created:%Y-%m-%d %H:%M}\t{stages}".rstrip()
        )
    return 0


def _model_show(args: argparse.Namespace) -> int:
    version = _registry().show(args.name, args.which)
    values = version.as_dict()
    if args.json:
        import json

        print(json.dumps(values))
        return 0
    for key, value in values.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        print(f"{key + ':':<12}{text}")
    return 0


def _model_assign(args: argparse.Namespace) -> int:
    version = _registry().assign(args.name, args.model_version, args.stage)
    print(f"{version.name} #{args.stage} is {version.version}")
    return 0


def _model_rollback(args: argparse.Namespace) -> int:
    version = _registry().rollback(args.name, args.stage)
    print(f"{version.name} #{args.stage} is {version.version} again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
