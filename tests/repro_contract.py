"""What `repro` promises whoever runs the stages, as tests to run with each runner.

A module inherits `ReproContract` and makes the `site`: a repository and one way to bring it up to date. What a runner
can do beside is said by the attributes of its class. What it does otherwise is tested in a file of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import pytest
from repos import Project, make_repo
from ruamel.yaml import YAML
from sizes import ALL

from dvkf_prefect.errors import StageError, StageFailedError, StageWriteError
from dvkf_prefect.pipeline.plan.decide import Expansion, Rules
from dvkf_prefect.pipeline.run.events import ReproResult, StageEvent
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner, Runner
from dvkf_prefect.repo import Repo

# a → b → c, a → d, and e apart. What b writes does not depend on the last line of what it reads.
DVC_YAML = """\
stages:
  a:
    cmd: cat source > a.txt
    deps: [source]
    outs: [a.txt]
  b:
    cmd: mkdir -p b; head -n 1 a.txt > b/first; wc -c b/first > b/size
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
FILES = {"dvc.yaml": DVC_YAML, "params.yaml": "p: 1\n", "source": "one\ntwo\n", "other": "other\n"}

# What the real dvc records of them; tests/interop/test_pipeline_dvc.py asks it.
DVC_LOCK = """\
schema: '2.0'
stages:
  a:
    cmd: cat source > a.txt
    deps:
    - path: source
      hash: md5
      md5: 2094b601daac3d68f5aed51d3c20f7cd
      size: 8
    outs:
    - path: a.txt
      hash: md5
      md5: 2094b601daac3d68f5aed51d3c20f7cd
      size: 8
  b:
    cmd: mkdir -p b; head -n 1 a.txt > b/first; wc -c b/first > b/size
    deps:
    - path: a.txt
      hash: md5
      md5: 2094b601daac3d68f5aed51d3c20f7cd
      size: 8
    outs:
    - path: b
      hash: md5
      md5: 28db97b7df8ae50d8cd1df8cef8cd3e3.dir
      size: 14
      nfiles: 2
  c:
    cmd: cat b/first > c.txt; echo done
    deps:
    - path: b/first
      hash: md5
      md5: 5bbf5a52328e7439ae6e719dfe712200
      size: 4
    params:
      params.yaml:
        p: 1
    outs:
    - path: c.txt
      hash: md5
      md5: 5bbf5a52328e7439ae6e719dfe712200
      size: 4
  d:
    cmd: sort a.txt > d.txt
    deps:
    - path: a.txt
      hash: md5
      md5: 2094b601daac3d68f5aed51d3c20f7cd
      size: 8
    outs:
    - path: d.txt
      hash: md5
      md5: 2094b601daac3d68f5aed51d3c20f7cd
      size: 8
  e:
    cmd: cat other > e.txt
    deps:
    - path: other
      hash: md5
      md5: ba7790b1708b71cb2b61b1a30d824712
      size: 6
    outs:
    - path: e.txt
      hash: md5
      md5: ba7790b1708b71cb2b61b1a30d824712
      size: 6
"""
# The run cache: the place of each entry, and the md5 of its bytes. Of c, whose output stays out of the cache, none.
RUNS = {
    "13/1351f6f66c94a77f13480862581eefc6f1b3c28e2674ddee219cdac24e5d31dd/"
    "0859e1f381ed3cef25a2fb08013f0ff1df69dfa1598ce05f0c6a99f088b0d9b7": "5122a4709fd256d402af3fcc4d6308b1",
    "8e/8ed5a603ffe18f893f25d756e3ae7ca590f287b06372141f9b3cc604f8389784/"
    "39d81125d2f3dc3bdf81f0726a18305ba8e91978bc4da213dd20c1156e9b070c": "79d88f7448c5635ab9a40bb6d3e99c88",
    "d9/d9872cbbca2e06ea4bb4bfa1ea875deb0ce6de9016bd5ccb00846b47fb0ac5cc/"
    "7b5f4a53ef0a42c836eb3be78a94247df0d3c434dcd53ea568912f29399bc0b8": "6e4ea728431d88b1feaa15f363066084",
    "f7/f79f0965a7945d2a74ce073e9d71a0146f31a3075209d97500ab5f13cdb579d4/"
    "624fdb3c2d6e76d16dd9b141ac6cf979277aa19f09f6f22b4154337b23530a91": "cbb07161cfeb158eaff4977c325c9225",
}
WRITTEN = {
    "a.txt": "one\ntwo\n", "b/first": "one\n", "b/size": "4 b/first\n", "c.txt": "one\n", "d.txt": "one\ntwo\n",
    "e.txt": "other\n",
}  # fmt: skip


def make_project(tmp_path: Path) -> Project:
    """The pipeline, before anything has run; its remote is a folder that pods can mount."""
    make_repo(tmp_path / "repo", FILES, remote=tmp_path / "remote" / "store", commit="Start")
    (tmp_path / "remote").mkdir()
    return Project(tmp_path / "repo")


# A project whose first run has ended, made once in a process.
_finished: list[Path] = []


def finish(project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Put what a first run leaves in the place of a project in which nothing has run."""
    if not _finished:
        folder = tmp_path_factory.mktemp("finished")
        first = make_project(folder).repo
        with LocalRunner(echo=False) as runner:
            repro(first, runner=runner)
        first.push()
        _finished.append(folder)
    config = project.read(".dvc/config")
    for name in ("repo", "remote"):
        shutil.rmtree(project.root.parent / name)
        shutil.copytree(_finished[0] / name, project.root.parent / name)
    project.write(".dvc/config", config)


def runs_of(root: Path) -> dict[str, str]:
    """The run cache of a repository, as `RUNS`."""
    place = root / ".dvc/cache/runs"
    return {
        path.relative_to(place).as_posix(): md5(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }


def locked(root: Path) -> Any:
    """Return what dvc.lock says; its entries stand in the order in which they were first written."""
    return YAML(typ="safe").load((root / "dvc.lock").read_text())


def content_of(root: Path) -> dict[str, bytes]:
    """dvc.lock, the run cache, and what the stages wrote."""
    found = {}
    for name in ("dvc.lock", "a.txt", "b", "c.txt", "d.txt", "e.txt", ".dvc/cache/runs"):
        path = root / name
        for file in [path, *path.rglob("*")]:
            if file.is_file():
                found[file.relative_to(root).as_posix()] = file.read_bytes()
    return found


class Site(Protocol):
    """A repository with the pipeline, and a way to bring it up to date.

    Attributes:
        events: Events of the last run, None where they are not to be had.
        warnings: Warnings of the last run.
    """

    project: Project
    events: list[StageEvent] | None

    @property
    def warnings(self) -> str: ...

    def repro(self, *targets: str, **options: Any) -> ReproResult:
        """Bring stages up to date; the options are in `ReproContract.options`."""


class RunnerSite:
    """A site whose stages a runner runs."""

    def __init__(
        self, project: Project, open_runner: Callable[[Repo], AbstractContextManager[Runner]]
    ) -> None:
        self.project = project
        self._open_runner = open_runner
        self.events: list[StageEvent] | None = None

    @property
    def warnings(self) -> str:
        return "\n".join(text for event in self.events or () for text in event.warnings)

    def repro(self, *targets: str, **options: Any) -> ReproResult:
        self.events = []
        repo = self.project.repo
        with self._open_runner(repo) as runner:
            return repro(repo, targets, runner=runner, on_event=self.events.append, **to_core(options))


def to_core(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a `Case` as those of `repro`."""
    rules = {"force", "force_downstream", "run_cache", "pull"}
    expansion = {"single_item", "downstream"}
    made: dict[str, Any] = {name: value for name, value in options.items() if name not in rules | expansion}
    return {
        **made,
        "rules": Rules(**{name: options[name] for name in rules & options.keys()}),
        "expansion": Expansion(**{name: options[name] for name in expansion & options.keys()}),
    }


# -- options -----------------------------------------------------------------------------------------------------------


def change_a(project: Project) -> None:
    project.write("source", "ONE\ntwo\n")


def change_the_end_of_a(project: Project) -> None:
    project.write("source", "one\nTWO\n")


def freeze_b_and_change_a(project: Project) -> None:
    project.replace("dvc.yaml", "  b:\n", "  b:\n    frozen: true\n")
    change_a(project)


def let_b_fail(project: Project) -> None:
    change_a(project)
    project.replace("dvc.yaml", "cmd: mkdir -p b;", "cmd: sleep 0.5; exit 3;")


def remove_b(project: Project) -> None:
    shutil.rmtree(project.root / "b")


def forget(project: Project) -> None:
    (project.root / "dvc.lock").unlink()


def refuse(*names: str) -> Callable[[Any], bool]:
    return lambda stage: stage.address not in names


@dataclass(frozen=True)
class Case:
    """What is done after a first run of everything, and what the next run with some options does.

    Attributes:
        change: What is done.
        ran: Stages that run, as one text of their names.
        left: Stages that are skipped, or restored.
    """

    change: Callable[[Project], object]
    ran: str
    left: str
    failed: str = ""
    blocked: str = ""
    targets: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "changed": Case(change_a, "abcd", "e"),
    "comes-out-as-before": Case(change_the_end_of_a, "abd", "ce"),
    "force-downstream": Case(change_the_end_of_a, "abcd", "e", options={"force_downstream": True}),
    # No run of c is known: its output stays out of the cache.
    "run-cache": Case(forget, "c", "abde"),
    "no-run-cache": Case(forget, "abcde", "", options={"run_cache": False}),
    "force": Case(remove_b, "abcde", "", options={"force": True}),
    "single-item": Case(change_a, "", "b", targets=("b",), options={"single_item": True}),
    "downstream": Case(change_a, "", "bc", targets=("b",), options={"downstream": True}),
    "target": Case(change_a, "abc", "", targets=("c",)),
    "output-as-target": Case(change_a, "ab", "", targets=("b",)),
    "frozen": Case(freeze_b_and_change_a, "ad", "bce"),
    "keep-going": Case(let_b_fail, "ad", "e", "b", "c", options={"on_error": "keep-going"}),
    "ignore": Case(let_b_fail, "ad", "ce", "b", options={"on_error": "ignore"}),
    "refused": Case(change_a, "ad", "e", "b", "c", options={"confirm": refuse("b")}),
    "the-first-refused-and-no-more": Case(
        change_a, "", "", "a", "bcde", options={"confirm": refuse("a"), "on_error": "fail"}
    ),
    "no-commit": Case(change_a, "abcd", "e", options={"commit": False}),
}
ALL_OPTIONS = frozenset({name for case in CASES.values() for name in case.options} | {"pull"})


def told(result: ReproResult) -> dict[str, set[str]]:
    """What was done; who was restored rather than skipped is told by the digests alone, and no difference."""
    return {
        "ran": set(result.ran),
        "left": {*result.skipped, *result.restored},
        "failed": set(result.failed),
        "blocked": set(result.blocked),
    }


# Those that differ most in how stages are started and what is stored.
FEW = frozenset({"changed", "keep-going", "ignore", "no-commit"})


# -- the contract ------------------------------------------------------------------------------------------------------


class ReproContract:
    """Tests of a fixture ``site``: the pipeline, before anything has run.

    Attributes:
        options: Options that the way to run it has.
        few: Cases of options that run in `make test`; all of them where it is empty.
        returns_failures: True if the result of a run with failures can be had.
        brings: True if outputs are in the workspace when a run has ended.
        is_model: True if the others are compared with it.
        beside: What becomes of files that are no outputs.
    """

    options: ClassVar[frozenset[str]] = ALL_OPTIONS
    few: ClassVar[frozenset[str]] = frozenset()
    returns_failures: ClassVar[bool] = True
    brings: ClassVar[bool] = True
    is_model: ClassVar[bool] = False
    beside: ClassVar[Literal["kept", "lost", "refused"]] = "kept"

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Ask for what a class can do."""
        if "case" in metafunc.fixturenames:
            names = [
                name
                for name, case in CASES.items()
                if case.options.keys() <= cls.options
                and (cls.returns_failures or not case.failed)
                and (ALL or not cls.few or name in cls.few)
            ]
            metafunc.parametrize("case", [CASES[name] for name in names], ids=names)

    def test_the_first_run_is_recorded_as_by_dvc(self, site: Site) -> None:
        """dvc.lock and the run cache byte for byte, whoever ran it; then nothing is left to do."""
        result = site.repro()
        assert set(result.ran) == set("abcde")
        assert result.ran.index("a") < result.ran.index("b") < result.ran.index("c")
        assert site.project.read("dvc.lock") == DVC_LOCK
        assert runs_of(site.project.root) == RUNS
        here = {name: text for name, text in WRITTEN.items() if self.brings or name == "c.txt"}
        assert {name: site.project.read(name) for name in here} == here
        assert not site.project.repo.status() or not self.brings
        again = site.repro()
        assert told(again) == {"ran": set(), "left": set("abcde"), "failed": set(), "blocked": set()}
        assert site.project.read("dvc.lock") == DVC_LOCK

    def test_only_what_must_run_runs(self, site: Site) -> None:
        """After a change of a parameter, a file, a command and what nobody reads; and back to what was."""
        project = site.project
        site.repro()
        project.write("params.yaml", "p: 2\nother: 1\n")
        result = site.repro()
        assert set(result.ran) == set("c")
        (why,) = (decision for decision in result.decisions if decision.stage == "c")
        assert [str(reason) for reason in why.reasons if reason.kind == "parameter"] == [
            "parameter 'params.yaml:p': 1 → 2"
        ]
        project.write("source", "ONE\ntwo\n")
        assert set(site.repro().ran) == set("abcd")
        project.replace("dvc.yaml", "cmd: sort a.txt", "cmd: sort  a.txt")
        assert set(site.repro().ran) == set("d")
        # Everything as it was: known runs are restored, but for c, which is in no cache.
        for name in ("params.yaml", "source", "dvc.yaml"):
            project.write(name, FILES[name])
        assert set(site.repro().ran) == set("c")
        assert project.read("dvc.lock") == DVC_LOCK
        if self.brings:
            assert {name: project.read(name) for name in WRITTEN} == WRITTEN

    def test_outputs_that_are_gone_come_back_without_a_run(self, site: Site) -> None:
        site.repro()
        (site.project.root / "a.txt").unlink()
        shutil.rmtree(site.project.root / "b")
        result = site.repro()
        assert (set(result.restored), result.ran) == (set("ab"), ())
        assert {name: site.project.read(name) for name in WRITTEN} == WRITTEN

    def test_a_failure_blocks_what_needs_it_and_no_more(self, site: Site) -> None:
        """The others are recorded; when it is mended, it and what needs it run, and nothing else."""
        project = site.project
        project.replace(
            "dvc.yaml",
            "cmd: mkdir -p b; head",
            "cmd: [echo working, echo no good >&2; exit 3]\n    desc: head",
        )
        with pytest.raises(StageFailedError, match="exit code 3") as caught:
            site.repro()
        error = caught.value
        assert (error.stage, error.status) == ("b", 3)
        assert error.command == "echo no good >&2; exit 3"
        assert error.log_tail.endswith("working\nno good\n")
        if site.events is not None:
            assert {event.stage: event.kind for event in site.events} == {
                "a": "done", "b": "fail", "d": "done", "e": "done",
            }  # fmt: skip
        lock = project.read("dvc.lock")
        assert [name for name in "abcde" if f"\n  {name}:\n" in lock] == ["a", "d", "e"]
        assert not (project.root / "b").exists() and not (project.root / "c.txt").exists()
        project.write("dvc.yaml", DVC_YAML)
        assert told(site.repro()) == {
            "ran": set("bc"), "left": set("ade"), "failed": set(), "blocked": set(),
        }  # fmt: skip
        assert locked(project.root) == YAML(typ="safe").load(DVC_LOCK)

    def test_what_a_stage_reads_and_is_not_there_is_named(self, site: Site) -> None:
        (site.project.root / "other").unlink()
        with pytest.raises(StageError, match=r"'e'.*\bother\b"):
            site.repro()
        assert not (site.project.root / "e.txt").exists()
        site.project.write("other", "other\n")
        assert "e" in site.repro().ran
        assert locked(site.project.root) == YAML(typ="safe").load(DVC_LOCK)

    def test_stages_that_need_not_wait_run_at_the_same_time(self, site: Site, tmp_path: Path) -> None:
        """Each of two waits for the other's mark; both end only if both run at once."""
        for me, other in (("b", "d"), ("d", "b")):
            wait = (
                f"touch {tmp_path}/at-{me}; n=0; while [ ! -e {tmp_path}/at-{other} ] && [ $n -lt 600 ]; "
                f"do sleep 0.1; n=$((n+1)); done; test -e {tmp_path}/at-{other} && "
            )
            old = {"b": "mkdir -p b;", "d": "sort a.txt"}[me]
            site.project.replace("dvc.yaml", f"cmd: {old}", f"cmd: {wait}{old}")
        assert {"b", "d"} <= set(site.repro().ran)

    def test_parameters_that_a_stage_writes_are_waited_for(self, site: Site) -> None:
        """Their values are known only when it has ended."""
        site.project.write(
            "dvc.yaml",
            "stages:\n"
            "  tune:\n    cmd: 'echo \"best: 3\" > best.yaml'\n    outs: [best.yaml: {cache: false}]\n"
            "  use:\n    cmd: cp best.yaml used.txt\n    params: [best.yaml: [best]]\n"
            "    outs: [used.txt: {cache: false}]\n",
        )
        assert site.repro().ran == ("tune", "use")
        assert site.project.read("used.txt") == "best: 3\n"
        assert "        best: 3\n" in site.project.read("dvc.lock")

    def test_a_persistent_output_goes_on_from_where_it_was(self, site: Site) -> None:
        site.project.write(
            "dvc.yaml",
            "stages:\n  a:\n    cmd: cat source >> log\n    deps: [source]\n    outs: [log: {persist: true}]\n",
        )
        for text in ("one\n", "two\n"):
            site.project.write("source", text)
            assert site.repro().ran == ("a",)
        digest = md5(b"one\ntwo\n").hexdigest()
        assert f"md5: {digest}\n" in site.project.read("dvc.lock")
        if self.brings:
            assert site.project.read("log") == "one\ntwo\n"

    def test_what_is_written_beside_outputs(self, site: Site) -> None:
        """It stays in the workspace, is lost with a warning, or fails the stage, by where stages run."""
        project = site.project
        project.replace("dvc.yaml", "echo done", "echo > extra; echo more >> other")
        if self.beside == "refused":
            with pytest.raises(StageWriteError, match="wrote undeclared files: 'extra'"):
                site.repro("c")
            assert "\n  c:\n" not in project.read("dvc.lock")
        else:
            assert set(site.repro("c").ran) == set("abc")
        kept = self.beside == "kept"
        assert (project.root / "extra").exists() == kept
        assert (project.read("other") == "other\nmore\n") == kept
        if self.beside == "lost":
            assert "wrote undeclared files: 'extra'. They were discarded" in site.warnings
            assert "changed its dependencies: 'other'" in site.warnings

    def test_an_option_means_the_same(
        self, site: Site, case: Case, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """The same stages run whoever runs them, and the same is left as in the workspace."""
        project = site.project
        finish(project, tmp_path_factory)
        case.change(project)
        twin = Project(project.copy_to("twin"))
        more = {"raise_failures": False} if self.returns_failures else {}
        assert told(site.repro(*case.targets, **more, **case.options)) == {
            "ran": set(case.ran), "left": set(case.left), "failed": set(case.failed), "blocked": set(case.blocked),
        }  # fmt: skip
        if self.is_model:
            return
        with LocalRunner(echo=False) as runner:
            repro(
                twin.repo, case.targets, runner=runner, jobs=1, raise_failures=False, **to_core(case.options)
            )
        # In the workspace the outputs go before a stage runs; elsewhere the last ones stay until it ends well.
        places = ("dvc.lock", "c.txt", ".dvc/", *("abde" if self.brings else ""))
        there_now, here_now = (
            {
                path: data
                for path, data in content_of(each.root).items()
                if path.startswith(places) and path.split("/")[0] not in case.failed
            }
            for each in (project, twin)
        )
        assert there_now == here_now
