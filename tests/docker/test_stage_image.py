"""Images of stages, built and run for real: as a pod's container, through KFP's own DockerRunner."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvkf_prefect import cli
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.kubeflow.cluster.runner import ClusterSettings, KfpClusterRunner
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, Volume
from dvkf_prefect.kubeflow.image.check import RANDOM_USER
from dvkf_prefect.pipeline.step.spec import StepContent, StepOutput, StepSpec
from dvkf_prefect.repo import Repo

from .docker_kfp import DockerKfp
from .images import TINY, make_image

pytestmark = [pytest.mark.docker, pytest.mark.long]

PLAIN, PYTHON = "dvkf-test/plain:1", "dvkf-test/python:1"
STAGES, BARE = "dvkf-test/stages:1", "dvkf-test/bare:1"
DVC_YAML = """\
stages:
  double:
    cmd: python double.py
    deps: [double.py, data.txt]
    outs: [doubled.txt]
"""
PROGRAM = f"""\
import os
import {TINY}
with open("doubled.txt", "w") as file:
    file.write({TINY}.double(open("data.txt").read()))
open(os.path.join(os.path.expanduser("~"), "kept"), "w").close()
print("as", os.getuid())
"""


@pytest.fixture
def project(tmp_path: Path) -> Repo:
    """A repository with one stage that imports a library, its data on a remote that every user may write to."""
    root, remote = tmp_path / "repo", tmp_path / "remote"
    for folder in (root, remote):
        folder.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    Repo.init(root)
    (root / ".dvc" / "config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {remote}/store\n"
    )
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "double.py").write_text(PROGRAM)
    (root / "requirements.txt").write_text(f"{TINY}==1.0\n")
    (root / "data.txt").write_text("ab")
    repo = Repo.open(root)
    repo.add(["data.txt"])
    for words in (["add", "."], ["commit", "-qm", "Start"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    repo.push()
    return repo


@pytest.fixture(scope="module")
def plain(docker_engine: None) -> str:
    """An image with Python alone."""
    make_image(PLAIN, packages=False)
    return PLAIN


@pytest.fixture(scope="module")
def python(docker_engine: None) -> str:
    """An image with what this package requires, but not itself: what an index would give."""
    make_image(PYTHON, packages=True)
    return PYTHON


@pytest.fixture(scope="module")
def bare(python: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with kfp and this package, and nothing of the user's."""
    folder = tmp_path_factory.mktemp("bare")
    assert cli.main(["--cd", str(folder), "image", "build", BARE, "--base", python, "-q"]) == 0
    return BARE


@pytest.fixture(
    params=[
        pytest.param("", id="own user"),
        pytest.param(RANDOM_USER, id="random user"),
    ]
)
def kfp(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DockerKfp]:
    with DockerKfp(tmp_path / "kfp", [tmp_path / "remote"], request.param) as server:
        yield server


def run(repo: Repo, kfp: DockerKfp, image: str, packages: tuple[str, ...] = ()) -> str:
    """Run the stage, and return the log of the container."""
    remote = Path(repo.remote().url).parent
    settings = ClusterSettings(
        kfp.host,
        image=image,
        defaults=Placement(volumes=(Volume("data", str(remote)),), packages=packages),
        ask_kubernetes=False,
    )
    (data,) = (output for output in repo.outputs() if output.path == "data.txt")
    script = repo.root / "double.py"
    code = StepContent("double.py", Content(digest_file(script), script.stat().st_size))
    step = StepSpec(
        "double",
        ("python double.py",),
        str(repo.cache.root),
        deps=(code, StepContent("data.txt", Content(data.digest or "", 2))),
        outs=(StepOutput("doubled.txt"),),
        workspace=str(repo.root),
    )
    # Containers of any user write to the remote, as to a bucket.
    subprocess.run(["chmod", "-R", "a+rwX", str(remote)], check=True)
    with KfpClusterRunner(repo, settings, fetch=True) as runner:
        started = runner.start(step)
        subprocess.run(["chmod", "-R", "a+rwX", str(remote)], check=True)
        try:
            result = started.wait(240)
        except Exception as error:
            raise AssertionError(kfp.logs.get(started.run_id, "no log")) from error
    assert repo.cache.read_bytes(result.outs[0].digest) == b"abab"
    return result.log_tail


def test_a_plain_image_lacks_all_that_a_stage_needs(
    plain: str, project: Repo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--cd", str(project.root), "image", "check", plain]) == 1
    said = capsys.readouterr().out
    assert "\tok   start: Python 3." in said
    assert "\tfail kfp: kfp.dsl.executor_main: ModuleNotFoundError: No module named 'kfp'" in said
    assert "\tfail dvkf-prefect: dvkf_prefect.kubeflow.pod.pod: ModuleNotFoundError" in said
    assert f"\tfail imports: {TINY}: ModuleNotFoundError" in said
    assert "\tok   programs: python\n" in said
    assert f"\twarn any user: as user {RANDOM_USER} cannot write to HOME, /" in said


def test_an_image_that_was_built_runs_the_stage(
    python: str, project: Repo, kfp: DockerKfp, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--cd", str(project.root), "image", "build", STAGES, "--base", python, "-q"]) == 0
    assert cli.main(["--cd", str(project.root), "image", "check", STAGES]) == 0
    said = capsys.readouterr().out
    assert f"\tok   imports: {TINY}\n" in said
    assert f"\tok   any user: the same as user {RANDOM_USER}\n" in said
    assert "warn" not in said
    assert f"as {kfp.user.partition(':')[0] or 0}" in run(project, kfp, STAGES)


def test_packages_are_installed_at_start(
    bare: str, project: Repo, kfp: DockerKfp, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the right to write to the image's packages, and for a random user with no HOME of its own."""
    assert cli.main(["--cd", str(project.root), "image", "check", bare]) == 1
    assert f"\tfail imports: {TINY}: ModuleNotFoundError" in capsys.readouterr().out
    # The image's own HOME is taken away, so that the pod must find another one.
    homeless = f"{bare}-homeless"
    subprocess.run(
        ["docker", "build", "-q", "-t", homeless, "-"],
        input=f"FROM {bare}\nENV HOME=/nonexistent\n".encode(),
        check=True,
        capture_output=True,
    )
    assert f"as {kfp.user.partition(':')[0] or 0}" in run(project, kfp, homeless, (f"{TINY}==1.0",))


def test_an_image_that_does_not_exist(docker_engine: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["image", "check", "registry.invalid/none:1"]) == 255
    assert "ERROR: image registry.invalid/none:1: docker cannot run it: " in capsys.readouterr().err


def test_a_requirement_that_is_nowhere(
    python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--cd",
        str(tmp_path),
        "image",
        "build",
        "dvkf-test/none:1",
        "--base",
        python,
        "--require",
        "nonesuch==9",
    ]
    assert cli.main([*words, "-q"]) == 255
    said = capsys.readouterr().err
    assert "ERROR: docker build ended with 1:" in said and "nonesuch==9" in said
