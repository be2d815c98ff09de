"""What repro's options mean is the same on a cluster, where stages are started together, as here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dvkf_prefect.errors import StageError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.pipeline.plan.decide import Rules, Scope
from dvkf_prefect.pipeline.run.events import ReproResult
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner

from .conftest import Project

# a → b → c, a → d, and e apart. What b writes does not depend on the last line of what it reads.
DVC_YAML = """\
stages:
  a:
    cmd: cat source > a.txt
    deps: [source]
    outs: [a.txt]
  b:
    cmd: mkdir b; head -n 1 a.txt > b/first; wc -c b/first > b/size
    deps: [a.txt]
    outs: [b]
  c:
    cmd: cat b/first > c.txt; echo done
    deps: [b/first]
    params: [p]
    outs: [c.txt: {cache: false}]
  d:
    cmd: sort a.txt > d.txt
    deps: [a.txt]
    outs: [d.txt]
  e:
    cmd: cat other > e.txt
    deps: [other]
    outs: [e.txt]
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The pipeline, before anything has run."""
    (tmp_path / "remote").mkdir()
    project = Project(tmp_path / "repo", str(tmp_path / "remote" / "store"))
    shutil.rmtree(project.root / "data")
    for name in ("prepare.py", "train.py"):
        (project.root / name).unlink()
    project.write("dvc.yaml", DVC_YAML)
    project.write("params.yaml", "p: 1\n")
    project.write("source", "one\ntwo\n")
    project.write("other", "other\n")
    project.commit()
    return project


def replaced(project: Project, name: str, old: str, new: str) -> None:
    text = (project.root / name).read_text()
    assert old in text
    project.write(name, text.replace(old, new))


def freeze_b(project: Project) -> None:
    replaced(project, "dvc.yaml", "  b:\n", "  b:\n    frozen: true\n")


def change_a(project: Project) -> None:
    project.write("source", "ONE\ntwo\n")


def change_the_end_of_a(project: Project) -> None:
    project.write("source", "one\nTWO\n")


def let_b_fail(project: Project) -> None:
    change_a(project)
    replaced(project, "dvc.yaml", "cmd: mkdir b;", "cmd: sleep 1; exit 3;")


def remove_b(project: Project) -> None:
    shutil.rmtree(project.root / "b")


def refuse(*names: str):
    return lambda stage: stage.address not in names


def twin_of(project: Project) -> Project:
    other = Project.__new__(Project)
    other.root = project.root.parent / "twin"
    shutil.copytree(project.root, other.root, symlinks=True)
    return other


def told(result: ReproResult) -> dict[str, set[str]]:
    """What was done; who was restored rather than skipped is told by the digests alone, and no difference."""
    return {
        "ran": set(result.ran),
        "left": {*result.skipped, *result.restored},
        "failed": set(result.failed),
        "blocked": set(result.blocked),
    }


def content(project: Project) -> dict[str, bytes]:
    """dvc.lock, the run cache, and what the stages wrote."""
    found = {}
    for name in ("dvc.lock", "a.txt", "b", "c.txt", "d.txt", "e.txt", ".dvc/cache/runs"):
        path = project.root / name
        for file in [path, *path.rglob("*")]:
            if file.is_file():
                found[file.relative_to(project.root).as_posix()] = file.read_bytes()
    return found


@pytest.mark.parametrize(
    ("change", "targets", "options"),
    [
        pytest.param(change_a, (), {}, id="changed"),
        pytest.param(change_the_end_of_a, (), {}, id="comes-out-as-before"),
        pytest.param(change_the_end_of_a, (), {"rules": Rules(force_downstream=True)}, id="force-downstream"),
        pytest.param(change_the_end_of_a, (), {"rules": Rules(run_cache=False)}, id="no-run-cache"),
        pytest.param(remove_b, (), {"rules": Rules(force=True)}, id="force"),
        pytest.param(change_a, ("b",), {"single_item": True}, id="single-item"),
        pytest.param(change_a, ("b",), {"scope": Scope(downstream=True)}, id="downstream"),
        pytest.param(change_a, ("c",), {}, id="target"),
        pytest.param(lambda p: (freeze_b(p), change_a(p)), (), {}, id="frozen"),
        pytest.param(let_b_fail, (), {"on_error": "keep-going"}, id="keep-going"),
        pytest.param(let_b_fail, (), {"on_error": "ignore"}, id="ignore"),
        pytest.param(change_a, (), {"confirm": refuse("b")}, id="refused"),
        pytest.param(
            change_a, (), {"confirm": refuse("a"), "on_error": "fail"}, id="the-first-refused-and-no-more"
        ),
        pytest.param(change_a, (), {"commit": False}, id="no-commit"),
    ],
)
def test_an_option_means_the_same(project, kfp, settings, change, targets, options) -> None:
    with LocalRunner(echo=False) as runner:
        repro(project.repo, runner=runner)
        project.repo.push()
        change(project)
        project.commit()
        twin = twin_of(project)
        here = repro(twin.repo, targets, runner=runner, jobs=1, raise_failures=False, **options)
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        there = repro(project.repo, targets, runner=runner, raise_failures=False, **options)
    assert told(there) == told(here)
    # In the workspace the outputs go before a stage runs; a cluster leaves the last ones until it ends well.
    failed = tuple(f"{name}/" for name in here.failed)
    there_now, here_now = (
        {path: data for path, data in content(each).items() if not path.startswith(failed)}
        for each in (project, twin)
    )
    assert there_now == here_now


def test_a_part_of_a_directory_that_another_stage_writes(project, kfp, settings) -> None:
    """A folder in it, beside the whole and one file of it."""
    replaced(project, "dvc.yaml", "wc -c b/first > b/size", "mkdir b/sub; wc -c b/first > b/sub/size")
    replaced(project, "dvc.yaml", "cat b/first > c.txt; echo done", "cat b/sub/size b/first > c.txt")
    replaced(project, "dvc.yaml", "deps: [b/first]", "deps: [b/sub, b/first]")
    text = "  f:\n    cmd: ls b b/sub > f.txt\n    deps: [b/sub, b]\n    outs: [f.txt]\n"
    project.write("dvc.yaml", (project.root / "dvc.yaml").read_text() + text)
    project.commit()
    twin = twin_of(project)
    with LocalRunner(echo=False) as runner:
        repro(twin.repo, runner=runner)
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        repro(project.repo, runner=runner)
    assert content(project) == content(twin)
    # The part is known again although nobody brings it.
    for each in (project, twin):
        replaced(each, "dvc.yaml", "cmd: cat source", "cmd: true; cat source")
        each.commit()
    with LocalRunner(echo=False) as runner:
        repro(twin.repo, runner=runner)
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        assert repro(project.repo, runner=runner).ran == ("a",)
    assert content(project) == content(twin)
    # And alone, when who writes the whole has nothing to do, and nobody has it here.
    for each in (project, twin):
        replaced(each, "dvc.yaml", "cmd: ls b b/sub", "cmd: ls b/sub b")
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
    replaced(project, "dvc.yaml", "cmd: sort a.txt", "cmd: sleep 2; sort a.txt")
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
    replaced(project, "dvc.yaml", "cmd: cat source > a.txt", "cmd: cat source >> a.txt")
    replaced(project, "dvc.yaml", "outs: [a.txt]", "outs: [a.txt: {persist: true}]")
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
        with pytest.raises(StageError, match=r"'f' depends on the folder all, parts of which other stages"):
            repro(project.repo, runner=runner)
    with KfpClusterRunner(twin.repo, settings, fetch=True) as runner:
        assert "f" in repro(twin.repo, runner=runner).ran
    assert (twin.root / "f.txt").read_text() == "d.txt\n"
