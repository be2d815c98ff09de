"""Stages on a cluster, whose pods are processes that have only the remote."""

from __future__ import annotations

from pathlib import Path

from dvkf_prefect.data.store import Cache


def test_a_whole_pipeline_puts_out_what_the_local_runner_does(project, kfp, runner, tmp_path):
    specs = project.steps()
    runs = runner.start_all(specs)
    results = {stage: run.wait(120) for stage, run in runs.items()}
    assert len(kfp.runs) == 1 and kfp.run.state == "SUCCEEDED"
    # Data did not pass through this machine.
    assert project.repo.cache.missing(out.digest for r in results.values() for out in r.outs)
    here = project.locally(specs)
    for stage, result in results.items():
        assert result.outs == here[stage].outs
        assert (result.exit_code, result.error, result.commit) == (0, "", project.git("rev-parse", "HEAD"))
    assert results["train"].log_tail == here["train"].log_tail == "trained\n"
    # What stays out of the cache is brought for git, as by the local runner.
    (metrics,) = (out for out in results["train"].outs if out.path == "metrics.json")
    side = Cache(Path(results["train"].side_dir))
    assert b"0.9" in side.read_bytes(metrics.digest)
    assert not (tmp_path / "remote/store/files/md5" / metrics.digest[:2] / metrics.digest[2:]).exists()
    # What downstream stages found, which nobody knew before.
    found = {dep.path: dep.digest for dep in results["report"].deps}
    assert found == {out.path: out.digest for out in results["train"].outs}
