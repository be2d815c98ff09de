"""What only a cluster meets, on the pipeline of the contract: parts of directories, early ends, data on a remote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from repos import Project
from repro_contract import content_of, let_b_fail, make_project, refuse

from dvkf_prefect.errors import StageError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The pipeline of the contract, before anything has run."""
    return make_project(tmp_path)


def twin_of(project: Project) -> Project:
    return Project(project.copy_to("twin"))


def test_a_part_of_a_directory_that_another_stage_writes(project, kfp, settings) -> None:
    """A folder in it, beside the whole and one file of it."""
    project.replace("dvc.yaml", "wc -c b/first > b/size", "mkdir b/sub; wc -c b/first > b/sub/size")
    project.replace("dvc.yaml", "cat b/first > c.txt; echo done", "cat b/sub/size b/first > c.txt")
    project.replace("dvc.yaml", "deps: [b/first]", "deps: [b/sub, b/first]")
    text = "  f:\n    cmd: ls b b/sub > f.txt\n    deps: [b/sub, b]\n    outs: [f.txt]\n"
    project.write("dvc.yaml", (project.root / "dvc.yaml").read_text() + text)
    project.commit()
    twin = twin_of(project)
    with LocalRunner(echo=False) as runner:
        repro(twin.repo, runner=runner)
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        repro(project.repo, runner=runner)
    assert content_of(project.root) == content_of(twin.root)
    # The part is known again although nobody brings it.
    for each in (project, twin):
        each.replace("dvc.yaml", "cmd: cat source", "cmd: true; cat source")
        each.commit()
    with LocalRunner(echo=False) as runner:
        repro(twin.repo, runner=runner)
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        assert repro(project.repo, runner=runner).ran == ("a",)
    assert content_of(project.root) == content_of(twin.root)
    # And alone, when who writes the whole has nothing to do, and nobody has it here.
    for each in (project, twin):
        each.replace("dvc.yaml", "cmd: ls b b/sub", "cmd: ls b/sub b")
        each.commit()
    with LocalRunner(echo=False) as runner:
        repro(twin.repo, runner=runner)
    shutil.rmtree(project.root / "b")
    shutil.rmtree(project.root / ".dvc/cache/files")
    with KfpClusterRunner(project.repo, settings) as runner:
        assert repro(project.repo, runner=runner).ran == ("f",)
    assert (project.root / "dvc.lock").read_bytes() == (twin.root / "dvc.lock").read_bytes()


def test_the_first_failure_is_the_end(project, kfp, settings) -> None:
    """Stages that ended before are recorded, nothing else is started."""
    let_b_fail(project)
    project.replace("dvc.yaml", "cmd: sort a.txt", "cmd: sleep 2; sort a.txt")
    project.commit()
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        result = repro(project.repo, runner=runner, raise_failures=False, on_error="fail")
    assert result.failed == ("b",) and result.blocked == ("c",) and len(kfp.runs) == 1
    assert set(result.ran) == {"a", "d", "e"}


def test_a_stage_refused_later_leaves_those_before_it_unsaid(project, kfp, settings) -> None:
    with KfpClusterRunner(project.repo, settings) as runner:
        result = repro(
            project.repo, runner=runner, confirm=refuse("b"), on_error="fail", raise_failures=False
        )
    assert (result.ran, result.failed) == ((), ("b",)) and not kfp.runs
    assert set(result.blocked) == {"a", "c", "d", "e"}


# -- what stays on the remote ------------------------------------------------------------------------------------------


def test_what_is_kept_from_run_to_run_comes_from_the_remote(project, kfp, settings) -> None:
    """A persistent output goes on from where it was, although nobody brought it here."""
    project.replace("dvc.yaml", "cmd: cat source > a.txt", "cmd: cat source >> a.txt")
    project.replace("dvc.yaml", "outs: [a.txt]", "outs: [a.txt: {persist: true}]")
    project.commit()
    twin = twin_of(project)
    with KfpClusterRunner(project.repo, settings) as far, LocalRunner(echo=False) as near:
        for text in ("one\n", "two\n"):
            for each, runner in ((project, far), (twin, near)):
                each.write("source", text)
                each.commit()
                repro(each.repo, runner=runner)
    assert (project.root / "dvc.lock").read_bytes() == (twin.root / "dvc.lock").read_bytes()
    assert not (project.root / "a.txt").exists() and (twin.root / "a.txt").read_text() == "one\ntwo\n"
    project.repo.push()  # nothing here to push, and nothing missing
    project.repo.pull()
    assert (project.root / "a.txt").read_text() == "one\ntwo\n"


def test_a_folder_of_others_outputs_is_read_here_or_refused(project, kfp, settings) -> None:
    text = (project.root / "dvc.yaml").read_text()
    project.write(
        "dvc.yaml",
        text.replace("d.txt", "all/d.txt").replace("sort a.txt", "mkdir -p all; sort a.txt")
        + "  f:\n    cmd: ls all > f.txt\n    deps: [all]\n    outs: [f.txt]\n",
    )
    project.commit()
    twin = twin_of(project)
    with KfpClusterRunner(project.repo, settings) as runner:
        with pytest.raises(StageError, match=r"'f' depends on the folder all, and outputs of other stages"):
            repro(project.repo, runner=runner)
    with KfpClusterRunner(twin.repo, settings, fetch=True) as runner:
        assert "f" in repro(twin.repo, runner=runner).ran
    assert (twin.root / "f.txt").read_text() == "d.txt\n"
