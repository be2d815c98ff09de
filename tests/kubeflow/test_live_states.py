"""States of stages while they run, of runs so large that Argo compresses or offloads their nodes."""

from __future__ import annotations

import logging

import pytest

from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.cluster.workflow import Workflow

from .fake import wait_for


def seen_while_it_runs(project, kfp, settings, expected: set[tuple[str, str]], tmp_path) -> None:
    """Run two stages, the second of which is held until some states were reported; check both results."""
    kfp.compress_above = 0
    seen: set[tuple[str, str]] = set()
    held = f"until test -e {tmp_path}/go; do sleep 0.05; done; cp a b"
    steps = [
        project.step("a", "echo 1 > a", outs=["a"]),
        project.step("b", held, deps=["a"], outs=["b"]),
    ]
    with KfpClusterRunner(
        project.repo, settings, on_event=lambda event: seen.add((event.stage, event.state))
    ) as runner:
        runs = runner.start_all(steps)
        try:
            wait_for(lambda: expected <= seen, timeout=20)
            assert not kfp.run.tasks_seen
            if expected:
                wait_for(lambda: runs["a"].ended)  # and its result is collected
        finally:
            (tmp_path / "go").touch()
        assert not any(run.wait(60).failed for run in runs.values())
    if not kfp.offloads:  # pods are not looked at once the run has ended
        assert {("a", "SUCCEEDED"), ("b", "SUCCEEDED")} <= seen


@pytest.mark.parametrize("version", ["2.5", "2.17"])
def test_compressed_nodes_are_read_from_the_workflow(project, kfp, settings, tmp_path):
    seen_while_it_runs(project, kfp, settings, {("a", "SUCCEEDED"), ("b", "RUNNING")}, tmp_path)


def test_offloaded_nodes_are_replaced_by_pods(project, kfp, asked, tmp_path):
    kfp.offloads = True
    seen_while_it_runs(project, kfp, asked, {("a", "SUCCEEDED"), ("b", "RUNNING")}, tmp_path)


def test_without_nodes_and_kubernetes_one_line_says_so(project, kfp, settings, tmp_path, caplog):
    kfp.offloads = True

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "are not available while it runs" in r.getMessage()]

    with caplog.at_level(logging.WARNING):
        seen_while_it_runs(project, kfp, settings, set(), tmp_path)
        assert len(said()) <= 1
    kfp.delay = 1.0  # longer than the first read of the workflow
    with caplog.at_level(logging.WARNING), KfpClusterRunner(project.repo, settings) as runner:
        run = runner.start(project.step("c", "sleep 1; echo 1 > c", outs=["c"]))
        wait_for(said)
        assert not run.wait(60).failed
    assert "stores its nodes in a database and Kubernetes cannot be queried" in said()[-1]


@pytest.mark.parametrize("nodes", ["H4sIAAAA", "no base64", "AAAA"])
def test_broken_compressed_nodes_are_no_workflow(nodes):
    manifest = f'{{"metadata": {{"name": "w"}}, "status": {{"compressedNodes": "{nodes}"}}}}'
    with pytest.raises(ValueError, match=r"not a workflow|[Cc]ompressed|[Bb]ase64|padded|Expecting"):
        Workflow.from_json(manifest)
