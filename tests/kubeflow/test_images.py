"""Images of stages on a cluster: named, or refused before anything is sent."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.compile.compile import PodPlan, compile_for_cluster
from dvkf_prefect.kubeflow.compile.images import check_images, image_of
from dvkf_prefect.kubeflow.compile.pod_settings import Placement
from dvkf_prefect.pipeline.step.spec import StepSpec


@pytest.mark.parametrize(
    "package",
    [
        "dvkf-prefect",
        "dvkf_prefect[serve]==0.4.0",
        "DVKF.Prefect @ https://example.org/x.whl",
        "https://example.org/dvkf_prefect-0.4.0-py3-none-any.whl",
        "git+https://example.org/team/dvkf-prefect@v0.4.0",
    ],
)
def test_packages_with_this_one_need_no_image(package):
    assert image_of(Placement(packages=("numpy", package)), "") == "python:3.11-slim"
    assert image_of(Placement(packages=(package,)), "mine:1") == "mine:1"


@pytest.mark.parametrize(
    "packages", [(), ("numpy",), ("kfp==2.17.0",), ("dvkf-prefect2",), ("not-dvkf-prefectly",)]
)
def test_other_packages_do(packages):
    assert image_of(Placement(packages=packages), "") == ""
    with pytest.raises(ConfigError, match=r"no image for stage 'a', 'b', 'c', …: .* `dvkf image build`"):
        check_images(
            {**dict.fromkeys("abcd", Placement(packages=packages)), "e": Placement(image="mine:1")}, ""
        )


def test_a_stage_without_an_image_is_refused_before_anything_is_sent(project, kfp, settings):
    settings = dataclasses.replace(settings, image="")
    before = set(project.repo.remote().storage.keys(""))
    with KfpClusterRunner(project.repo, settings) as runner:
        with pytest.raises(ConfigError, match=r"no image for stage 'a': .* `dvkf image build`"):
            runner.start(project.step("a", "echo 1 > a", outs=["a"]))
    assert {method for method, _ in kfp.requests} <= {"GET"}
    assert set(project.repo.remote().storage.keys("")) == before


def container(*packages: str) -> dict:
    """Return the container of a stage that installs packages."""
    plan = PodPlan(lambda task: "{}", {"a": Placement(packages=packages)}, {}, {}, lambda task, text: "")
    spec = compile_for_cluster([StepSpec("a", ("true",), "")], plan, name="demo", image="")
    (executor,) = spec.get("pipeline_spec", spec)["deploymentSpec"]["executors"].values()
    return executor["container"]


def test_packages_are_installed_where_a_container_without_rights_may_write():
    """The environment is made first, and KFP's own command runs inside it."""
    made = container("dvkf-prefect")
    assert made["image"] == "python:3.11-slim"
    first, second, third = (i for i, word in enumerate(made["command"]) if word == "sh")
    assert "venv" in made["command"][first + 2] and 'exec "$0" "$@"' in made["command"][first + 2]
    assert "pip install" in made["command"][second + 2]
    assert "kfp.dsl.executor_main" in made["command"][third + 2]


@pytest.mark.parametrize("home", ["/nonexistent", "tmp"])
def test_the_environment_of_packages_is_on_top_of_the_image(home, tmp_path):
    """The image's Python is a virtual environment here, as in many images; its packages stay visible."""
    script = container("dvkf-prefect")["command"][2]
    home = str(tmp_path) if home == "tmp" else home
    shown = "import kfp, os, pip, site, sys; print(sys.prefix, os.environ['HOME'], kfp.__file__, sep='\\n')"
    done = subprocess.run(
        ["sh", "-c", script, "sh", "-c", f'exec python3 -c "{shown}" "$1"', "sh", "argument"],
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": home, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    prefix, there, package = done.stdout.splitlines()
    assert prefix.startswith(str(tmp_path)) and prefix != sys.prefix
    assert os.access(there, os.W_OK) and (there == home) == (home != "/nonexistent")
    assert package.startswith(sys.prefix)
