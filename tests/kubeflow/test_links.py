"""Links into Kubeflow's UI, and the experiment of a repository."""

from __future__ import annotations

import dataclasses

import pytest

from dvkf_prefect import cli
from dvkf_prefect.kubeflow.cluster import runner as cluster_runner
from dvkf_prefect.kubeflow.cluster.links import Links
from dvkf_prefect.kubeflow.cluster.names import fit, project_name
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.repo import Repo


def test_links_follow_the_pages_of_the_ui():
    links = Links("http://h:1/pipeline")
    assert links.run("a b") == "http://h:1/pipeline/#/runs/details/a%20b"
    assert links.experiment("e") == "http://h:1/pipeline/#/experiments/details/e"
    assert links.recurring_run("r") == "http://h:1/pipeline/#/recurringrun/details/r"
    assert links.version("p", "v") == "http://h:1/pipeline/#/pipelines/details/p/version/v"
    # Kubeflow's dashboard takes the namespace as a query, before the fragment.
    dashboard = Links("https://h/_/pipeline/?ns=team")
    assert dashboard.run("1") == "https://h/_/pipeline/?ns=team#/runs/details/1"
    assert Links("").run("1") == Links("http://h").run("") == ""


@pytest.mark.parametrize(
    ("ui_host", "serves_ui", "start"),
    [
        (None, True, "{host}/#/runs/details/"),
        (None, False, ""),
        ("https://ui.example.org/pipeline/", False, "https://ui.example.org/pipeline/#/runs/details/"),
    ],
)
def test_a_link_leads_to_a_ui_or_there_is_none(project, kfp, settings, ui_host, serves_ui, start):
    """The API server has no pages: a link to it was dead."""
    kfp.ui_host = serves_ui
    events, started = [], []
    settings = dataclasses.replace(settings, ui_host=ui_host)
    with KfpClusterRunner(project.repo, settings, on_event=events.append, on_run=started.append) as runner:
        run = runner.start(project.step("one", "echo 1 > o", outs=["o"]))
        run.wait(60)
        wanted = start.format(host=kfp.host) + run.run_id if start else ""
        assert run.url == wanted and {event.url for event in events} == {wanted}
    (only,) = started
    assert only.url == wanted and only.stages == ("one",)
    assert ("/#/experiments/details/" in only.experiment_url) == bool(wanted) == (": http" in str(only))


def test_each_run_of_a_chain_is_announced(project, kfp, settings, monkeypatch):
    """Only the first run of a chain had its link artifact."""
    monkeypatch.setattr(cluster_runner, "MOST_STAGES", 1)
    started = []
    with KfpClusterRunner(project.repo, settings, on_run=started.append) as runner:
        runs = runner.start_all(project.steps())
        runs["report"].wait(120)
    assert [run.stages for run in started] == [("prepare",), ("train",), ("report",)]
    assert {run.run_id for run in started} == set(kfp.runs)


def test_the_command_line_prints_the_run(project, kfp, monkeypatch, capsys, settings):
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(ClusterSettings, "from_environment", lambda: settings)
    assert cli.main(["repro", "--runner", "kubeflow", "prepare"]) == 0
    said = capsys.readouterr().out
    assert f"Kubeflow run {kfp.run.id} of 1 stage: {kfp.host}/#/runs/details/{kfp.run.id}" in said


def test_the_experiment_is_that_of_the_repository_unless_named(project, kfp, settings):
    with KfpClusterRunner(project.repo, settings) as runner:
        runner.start(project.step("one", "echo 1 > o", outs=["o"])).wait(60)
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, experiment="other")) as runner:
        runner.start(project.step("two", "echo 2 > p", outs=["p"])).wait(60)
    assert [e["display_name"] for e in kfp.experiments.values()] == ["repo", "other"]


def test_clones_of_a_repository_have_its_name(project, tmp_path):
    assert project_name(project.repo) == "repo"
    project.repo.git.run("remote", "add", "origin", "git@example.org:team/Größe.git")
    assert project_name(project.repo) == "Gr\\xf6\\xdfe"
    (project.root / "sub").mkdir()
    assert project_name(Repo.init(project.root / "sub", subdir=True)) == "Gr\\xf6\\xdfe/sub"
    assert project_name(Repo.init(tmp_path / "no-git", no_scm=True)) == "no-git"
    assert len(fit("x" * 300)) == 255 and fit("x" * 300).endswith("...")
