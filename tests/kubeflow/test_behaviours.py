"""The tables of behaviours and assumptions, and tests of the product that they lacked."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import httpx
import pytest

from dvkf_prefect.errors import ConfigError, RunnerError, StageCancelledError
from dvkf_prefect.kubeflow.cluster.login import Login
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.cluster.submit import Dispatch
from dvkf_prefect.kubeflow.pod.pod import run_in_pod

from . import mutants
from .behaviours import ASSUMPTIONS, BEHAVIOURS
from .fake import VERSIONS, wait_for
from .test_real_server import newest_version, own

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[2]


@cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((HERE / f"{file}.py").read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def versions_of(test: str) -> set[str]:
    """Versions of the server that a test is run with."""
    file, _, name = test.partition("::")
    function = getattr(importlib.import_module(f"{__package__}.{file}"), name)
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "parametrize" and mark.args[0] == "version":
            return {each if isinstance(each, str) else each.values[0] for each in mark.args[1]}
    return {VERSIONS[-1]}


def test_every_behaviour_has_a_source_and_tests_that_exist():
    assert set(BEHAVIOURS) == set(range(1, 26))
    for number, behaviour in BEHAVIOURS.items():
        assert behaviour.name and behaviour.source and behaviour.tests, number
        for test in behaviour.tests:
            file, _, name = test.partition("::")
            assert name in functions(file), test


def test_every_assumption_is_shown_in_every_version():
    numbers = {int("".join(c for c in key if c.isdigit())) for key in ASSUMPTIONS}
    assert numbers == set(range(1, 22))
    for key, assumption in ASSUMPTIONS.items():
        assert assumption.tests + assumption.plain, key
        for test in assumption.tests + assumption.plain:
            file, _, name = test.partition("::")
            assert name in functions(file), test
            assert test in assumption.plain or versions_of(test) == set(VERSIONS), (key, test)


def test_every_assumption_has_a_mutant_and_every_mutant_a_test():
    assert set(ASSUMPTIONS) <= set(mutants.MUTANTS)
    assert set(BEHAVIOURS) == set(mutants.OF_BEHAVIOURS)
    assert set(mutants.MUTANTS) == set(ASSUMPTIONS) | set(mutants.OF_BEHAVIOURS.values())
    for name, mutant in mutants.MUTANTS.items():
        for owner, last in (mutants.place_of(place) for place, _ in mutant.changes):
            assert hasattr(owner, last), (name, last)
        file, _, rest = mutant.test.partition("::")
        assert rest.partition("[")[0] in functions(file), name
        if name in ASSUMPTIONS:
            shown = ASSUMPTIONS[name].tests + ASSUMPTIONS[name].plain
            assert mutant.test.partition("[")[0] in shown, name


@pytest.mark.long
@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_a_mutant_of_the_product_is_found(name, tmp_path):
    """One process of pytest for each, because pods are processes that have the mutant, too."""
    file, _, test = mutants.MUTANTS[name].test.partition("::")
    plugin = f"{__package__}.mutants"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", plugin, "-p", "no:cacheprovider"]
    command += ["-m", "", "--basetemp", str(tmp_path / "t"), f"{HERE / file}.py::{test}"]
    environment = {**os.environ, mutants.VARIABLE: name, "DVKF_TEST_ALL": ""}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and " failed" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]


# -- images and logins, in each version --------------------------------------------------------------------------------


@newest_version
def test_a_stage_without_an_image_is_refused_before_anything_is_sent(project, kfp, settings):
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, image="")) as runner:
        with pytest.raises(ConfigError, match=r"no image for stage 'a': .* `dvkf image build`"):
            runner.start(own(project, "a"))
    assert {method for method, _ in kfp.requests} <= {"GET"} and not kfp.workflows


@newest_version
@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("kfp", "No module named 'kfp'"),
        ("dvkf_prefect", "No module named 'dvkf_prefect'"),
        ("another dvkf_prefect", "No module named 'dvkf_prefect.kubeflow.pod'"),
    ],
)
def test_a_pod_whose_image_lacks_a_package_tells_which(project, kfp, settings, lacking, said):
    packages = {name: version for name, version in kfp.images["example.org/"].items() if name != lacking}
    kfp.images[settings.image] = {**packages, **({"dvkf_prefect": "0.3.0"} if "another" in lacking else {})}
    with KfpClusterRunner(project.repo, settings) as runner:
        with pytest.raises(RunnerError, match=rf"(?s)stage 'a' failed on the cluster .*{said}"):
            runner.start(own(project, "a")).wait(60)


def test_a_pod_of_another_version_says_so_of_its_parameters():
    run = json.dumps({"key": "k", "url": "/x", "options": {}, "name": "store", "novelty": 1})
    with pytest.raises(SystemExit, match=r"of this image does not know .*novelty.*`dvkf image build`"):
        run_in_pod("{}", run, [], "outputs", "result")


@newest_version
def test_a_stage_runs_behind_a_login_with_a_cookie_in_parts(project, kfp, settings):
    kfp.cookies = {"oauth2_proxy_kubeflow_0": "djI=", "oauth2_proxy_kubeflow_1": "s|1"}
    header = "; ".join(f"{name}={value}" for name, value in kfp.cookies.items())
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, login=Login(cookie=header))) as runner:
        assert not runner.start(own(project, "a")).wait(60).failed
    part = dataclasses.replace(settings, login=Login(cookie=header.partition(";")[0]))
    with KfpClusterRunner(project.repo, part) as runner:
        with pytest.raises(RunnerError, match=r"refused \(401\)\. Check the credentials"):
            runner.start(own(project, "b"))


# -- profiles, signals and ends, in each version -----------------------------------------------------------------------


@newest_version
def test_a_stage_runs_in_a_profile(project, kfp, settings):
    """A multi-user server asks for the namespace in each request about experiments and runs."""
    kfp.multi_user, kfp.allowed = True, {kfp.user: {"kubeflow"}}
    with KfpClusterRunner(project.repo, settings) as runner:
        assert not runner.start(own(project, "a")).wait(60).failed
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, namespace="theirs")) as runner:
        with pytest.raises(RunnerError, match=r"refused \(403: PermissionDenied: User .*theirs"):
            runner.start(own(project, "b"))


@newest_version
def test_a_stage_that_gets_sigterm_writes_that_it_was_stopped(project, kfp, runner):
    run = runner.start(project.step("a", "echo working; sleep 300", outs=["a"]))
    # The command itself is in the log before, as a part of the task's input.
    wait_for(lambda: kfp.runs and "working" in kfp.run.tasks["a"].log.splitlines())
    kfp.run.terminate()
    with pytest.raises(StageCancelledError):
        run.wait(60)
    storage, place = project.repo.remote().storage, f"dvkf/runs/{kfp.run.id}/a/result.json"
    wait_for(lambda: storage.size(place), 8)
    assert json.loads(storage.read(place))["error"] == "StageCancelledError"


@newest_version
def test_a_run_that_has_ended_is_terminated_without_an_error(project, kfp, runner, api):
    run = runner.start(own(project, "a"))
    assert not run.wait(60).failed
    wait_for(lambda: kfp.run.state == "SUCCEEDED")
    api.terminate(run.run_id)
    assert kfp.requests[-2][1].endswith(":terminate") and kfp.run.state == "SUCCEEDED"


# -- the fields of a run -----------------------------------------------------------------------------------------------


@newest_version
def test_a_run_of_the_same_name_without_a_description_is_not_taken(project, kfp, runner, monkeypatch):
    """A run is found by its name where the server gives ids of its own; it leaves out what is empty."""
    kfp.honours_run_id = False
    monkeypatch.setattr(Dispatch, "_display_name", lambda self, key: "nightly")
    first = runner.start(own(project, "a"))
    assert not first.wait(60).failed
    body = {name: value for name, value in kfp.run.body.items() if name not in ("run_id", "description")}
    httpx.post(f"{kfp.host}/apis/v2beta1/runs", json=body).raise_for_status()
    second = runner.start(own(project, "b"))
    assert not second.wait(60).failed
    assert len(kfp.workflows) == 3 and second.run_id not in list(kfp.runs)[:2]
