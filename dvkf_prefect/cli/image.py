"""Commands on the container images of stages."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.cli._common import Parser, open_repo, positive
from dvkf_prefect.cli._output import say
from dvkf_prefect.errors import ConfigError, NotARepositoryError

if TYPE_CHECKING:
    from dvkf_prefect.kubeflow.image.needs import Needs
    from dvkf_prefect.repo import Repo

_ENGINES = ("docker", "podman", "kaniko")


def image_arguments(parser: Parser) -> None:
    """Describe ``dvkf image``."""
    commands = parser.commands(
        build=(build, "Build an image for stages: the project's requirements, kfp and this package, pinned."),
        check=(check, "Run an image as a stage's pod would, and try what the stages import."),
    )
    make = commands["build"]
    make.add_argument("tag", nargs="?", metavar="IMAGE", help="name of the image: registry/name:tag")
    make.add_argument(
        "-r",
        "--requirements",
        action="append",
        default=[],
        metavar="<file>",
        help="requirements file or pyproject.toml (default: the project's own, if any)",
    )
    make.add_argument(
        "--require", action="append", default=[], metavar="<package>", help="requirement in pip's syntax"
    )
    make.add_argument("--base", default="", metavar="<image>", help="image to build on (python:X.Y-slim)")
    make.add_argument("--user", default="", metavar="<uid>", help="user of the container")
    make.add_argument("--engine", choices=_ENGINES, default="", help="program that builds the image")
    make.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="<option>",
        help="option of that program, such as --option=--network=host",
    )
    make.add_argument("--push", action="store_true", help="push the image to its registry")
    make.add_argument(
        "--print", action="store_true", dest="shown", help="print the Dockerfile without building the image"
    )
    make.add_argument(
        "--context",
        metavar="<folder>",
        help="write the Dockerfile and its files to this folder without building the image",
    )
    test = commands["check"]
    test.add_argument(
        "tag", nargs="?", metavar="IMAGE", help="name of the image (default: each image that the stages name)"
    )
    test.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="<module>",
        help="further module to import",
    )
    test.add_argument("--engine", choices=_ENGINES[:2], default="", help="program that runs the image")
    test.add_argument(
        "--timeout",
        type=positive,
        default=300,
        metavar="<seconds>",
        help="timeout of each check in seconds (default: 300)",
    )
    test.add_argument("--json", action="store_true", help="print JSON")


def build(args: argparse.Namespace) -> int:
    """Run ``dvkf image build``."""
    from dvkf_prefect import __version__
    from dvkf_prefect.kubeflow.image.context import make_recipe
    from dvkf_prefect.kubeflow.image.engines import find_engine
    from dvkf_prefect.kubeflow.image.needs import remote_scheme

    repo = _repo()
    recipe = make_recipe(
        repo.root if repo else Path.cwd(),
        version=__version__,
        base=args.base,
        files=[os.path.abspath(name) for name in args.requirements],
        requirements=args.require,
        scheme=remote_scheme(repo, os.environ.get("DVKF_KUBEFLOW_REMOTE_URL")) if repo else "",
        user=args.user,
    )
    if args.shown:
        print(recipe.dockerfile, end="")
        return 0
    if args.context:
        folder = Path(args.context)
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"the folder {folder} is not empty. Name a new one.")
        recipe.write(folder)
        if not args.quiet:
            say(f"Wrote the Dockerfile and its files to {folder}.")
        return 0
    if not args.tag:
        raise ConfigError("no name for the image. Use `dvkf image build REGISTRY/NAME:TAG`.")
    engine = find_engine(args.engine)
    with tempfile.TemporaryDirectory(prefix="dvkf-image-") as place:
        recipe.write(Path(place))
        engine.build(
            Path(place), args.tag, push=args.push, options=args.option, show=None if args.quiet else _show
        )
    if not args.quiet:
        say(f"Built {args.tag} with {engine.kind}. Try it with `dvkf image check {args.tag}`.")
    return 0


def check(args: argparse.Namespace) -> int:
    """Run ``dvkf image check``."""
    from dvkf_prefect import __version__
    from dvkf_prefect.kubeflow.image.check import check_image
    from dvkf_prefect.kubeflow.image.engines import find_engine

    images = _images(_repo(), args.tag, args.imports)
    engine = find_engine(args.engine, runs=True)
    results = [
        check_image(engine, image, needs, version=__version__, timeout=args.timeout)
        for image, needs in images.items()
    ]
    if args.json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(result) for result in results]))
    else:
        for result in results:
            if not (args.quiet and result):
                say(str(result))
    return 0 if all(results) else 1


def _images(repo: Repo | None, tag: str | None, imports: list[str]) -> dict[str, Needs]:
    """Return the images to check with what their stages need."""
    from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
    from dvkf_prefect.kubeflow.compile.placements import load_placements
    from dvkf_prefect.kubeflow.compile.pod_settings import Placement
    from dvkf_prefect.kubeflow.image.needs import Needs, images_of, read_needs

    if repo is None:
        if not tag:
            raise ConfigError("no image to check. Name one, or run this in a repository.")
        return {tag: Needs(tuple(imports))}
    settings = ClusterSettings.from_environment({"DVKF_KUBEFLOW_HOST": "http://localhost", **os.environ})
    stages = load_placements(repo, Placement())
    url = settings.remote.url if settings else None
    named = images_of(stages, settings.image if settings else "")
    if not tag:
        if not named:
            raise ConfigError("no stage names an image. Use `dvkf image check IMAGE`.")
        return {image: read_needs(repo, group, imports=imports, url=url) for image, group in named.items()}
    # Stages that name another image do not run in this one.
    group = named.get(tag) or [stage for stage, _ in stages]
    return {tag: read_needs(repo, group, imports=imports, url=url)}


def _repo() -> Repo | None:
    with suppress(NotARepositoryError):
        return open_repo()
    return None


def _show(line: str) -> None:
    say(line.rstrip("\n"), stream=sys.stderr)
