"""Check of an image: a container is started as a stage's pod would, and tries all that the stage imports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dvkf_prefect.data.upkeep.doctor import Check
from dvkf_prefect.kubeflow.image import _probe
from dvkf_prefect.kubeflow.image.engines import Engine, EngineError
from dvkf_prefect.kubeflow.image.needs import Needs

# A user that no image knows, in the root group, as OpenShift runs containers.
RANDOM_USER = "1000660000:0"
_KFP = "kfp.dsl.executor_main"
_OWN = "dvkf_prefect.kubeflow.pod.pod"
_BUILD = "`dvkf image build` makes an image with it"
# As KFP starts a component: a shell, a temporary folder, and the image's python3.
_START = 'mktemp -d > /dev/null && exec python3 -c "$0" "$1"'


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Result of the check of an image.

    Attributes:
        image: Name of the image.
        checks: Findings, in order.
    """

    image: str
    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        """True if stages can run in the image."""
        return all(check.state != "fail" for check in self.checks)

    def __str__(self) -> str:
        return "\n".join((f"Image {self.image}:", *(f"\t{check}" for check in self.checks)))


def check_image(
    engine: Engine, image: str, needs: Needs, *, version: str, timeout: float = 300.0
) -> ImageCheck:
    """Check an image as its own user and as a random one.

    Args:
        engine: Program that runs containers.
        image: Name of the image.
        needs: Contents that stages need.
        version: Version of this package.
        timeout: Maximum seconds for each user.

    Raises:
        EngineError: The image does not exist, or no container can be run.
    """
    checks = list(_findings(_run(engine, image, needs, "", timeout), needs, version))
    failed = {check.name for check in checks if check.state == "fail"}
    if "start" in failed:
        return ImageCheck(image, tuple(checks))
    other = list(_findings(_run(engine, image, needs, RANDOM_USER, timeout), needs, version))
    worse = [check for check in other if check.state == "fail" and check.name not in failed]
    name = "any user"
    if worse:
        what = "; ".join(f"{check.name}: {check.found}" for check in worse)
        checks.append(
            Check(
                name,
                "warn",
                f"as user {RANDOM_USER} it fails ({what})",
                "clusters such as OpenShift run containers as random users: make its files readable for "
                "everyone",
            )
        )
    else:
        home = next((check for check in other if check.name == "HOME" and check.state != "ok"), None)
        checks.append(
            Check(name, "warn", f"as user {RANDOM_USER} {home.found}", home.next_step)
            if home
            else Check(name, "ok", f"the same as user {RANDOM_USER}")
        )
    return ImageCheck(image, tuple(checks))


def _run(
    engine: Engine, image: str, needs: Needs, user: str, timeout: float
) -> list[Mapping[str, Any]] | str:
    """Return the report of the program in the image, or the reason why there is none."""
    wanted = {
        "modules": [_KFP, "kfp", "dvkf_prefect", _OWN, *needs.libraries, *needs.modules],
        "programs": list(needs.programs),
    }
    program = Path(_probe.__file__).read_text(encoding="utf-8")
    done = engine.run(
        image,
        ["sh", "-ec", _START, program, json.dumps(wanted)],
        user=user,
        environment={"_KFP_RUNTIME": "true"},
        timeout=timeout,
    )
    lines = [
        json.loads(line[len(_probe.MARK) :])
        for line in done.stdout.splitlines()
        if line.startswith(_probe.MARK)
    ]
    if lines:
        return lines
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    why = said[-1][:300] if said else f"exit code {done.returncode}"
    # 125: the program itself failed, so nothing is known of the image.
    if done.returncode == 125:
        raise EngineError(f"image {image}: {engine.kind} cannot run it: {why}")
    return why


def _findings(report: list[Mapping[str, Any]] | str, needs: Needs, version: str) -> Iterator[Check]:
    if isinstance(report, str):
        yield Check(
            "start",
            "fail",
            f"KFP's command does not start in it: {report}",
            "it needs sh, mktemp and python3 on its PATH, and a /tmp that every user may write to",
        )
        return
    about = {str(line["name"]): line for line in report}
    here = about["environment"]
    yield Check("start", "ok", f"Python {here['python']}, as user {here['uid']}")
    if here["home_writable"]:
        yield Check("HOME", "ok", f"{here['home']} can be written to")
    else:
        yield Check(
            "HOME",
            "warn",
            f"cannot write to HOME, {here['home']}",
            "libraries that write files to HOME fail: set HOME in the image to a folder that everyone may "
            "write to",
        )
    yield from _of_ours(about, version)
    for title, modules in ((f"remote {needs.remote}", needs.libraries), ("imports", needs.modules)):
        if modules:
            problems = [p for m in modules if (p := _problem(about, m))]
            step = "add it to the image's requirements" if problems else ""
            found = "; ".join(problems) or ", ".join(modules)
            yield Check(title, "fail" if problems else "ok", found, step)
    if needs.programs:
        lost = [name for name in needs.programs if not about.get(f"program {name}", {}).get("found")]
        found = f"{', '.join(lost)} not on the PATH" if lost else ", ".join(needs.programs)
        step = "install it in the image, or use its full path in the stage" if lost else ""
        yield Check("programs", "fail" if lost else "ok", found, step)


def _of_ours(about: Mapping[str, Mapping[str, Any]], version: str) -> Iterator[Check]:
    """Yield the findings about kfp and this package."""
    for title, module, package, wanted in (
        ("kfp", _KFP, "kfp", metadata.version("kfp")),
        ("dvkf-prefect", _OWN, "dvkf_prefect", version),
    ):
        if problem := _problem(about, module):
            yield Check(title, "fail", problem, _BUILD)
            continue
        there = str(about.get(f"module {package}", {}).get("version", ""))
        if there == wanted:
            yield Check(title, "ok", there)
        else:
            found = f"{there or 'of unknown version'} in the image, {wanted} here"
            yield Check(title, "warn", found, "build the image again with this version")


def _problem(about: Mapping[str, Mapping[str, Any]], module: str) -> str:
    """Return the reason why a module cannot be imported; "" if it can."""
    line = about.get(f"module {module}")
    if line is not None:
        return str(line.get("error", "")) and f"{module}: {line['error']}"
    if f"importing {module}" in about:
        return f"{module}: Python crashed while it was imported"
    return f"{module}: not tried, because Python crashed before"
