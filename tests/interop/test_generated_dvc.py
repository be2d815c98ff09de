"""Generated repositories: what the real `dvc` writes we read and the other way round, and both write the same.

Each output and each edit is a case; every test says how many it had. ``GENERATED_SCALE=10`` in the environment makes
ten times as many, other ones each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cases import Case, check_alike, check_clean, generated, report, stored, written
from commands import Dvc, Tool, dvkf, git
from generators import IGNORED, Content, Edit, File, Project, edits, lay, projects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test


@pytest.mark.parametrize("written_by", ["dvkf", "dvc"])
def test_what_one_writes_the_other_finds_clean(
    written_by: str, dvc: Dvc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two versions of each repository, and the dirty workspace between them."""
    writer, reader = (dvkf, dvc) if written_by == "dvkf" else (dvc, dvkf)
    cases: list[int] = []

    @given(projects(), st.lists(edits, min_size=3, max_size=10), st.booleans())
    @generated(8)
    def check(project: Project, changes: Sequence[Edit], by_commit: bool) -> None:
        case = Case(tmp_path / written_by, project, writer)
        root = case.root
        laid = case.content(case.paths)
        case.take(writer, "one")
        first = {**case.content(), **laid}
        check_clean(case, reader, first)

        made = case.edit(changes)
        check_alike(case, reader, writer)

        gone = [path for path in case.paths if not (root / path).exists()]
        if gone:
            reader(root, "checkout", "-q", "--", *gone).ok()
            assert all((root / path).exists() for path in gone)
        laid = case.content(case.paths)
        if by_commit:
            writer(root, "commit", "-q", "-f").ok()
            case.keep(writer, "two")
        else:
            case.take(writer, "two")
        second = {**case.content(), **laid}
        # While the cache has both: of directories whose manifest it lacks DVC tells no files, and we ask the remote.
        between = ("diff", "--json", "HEAD~1", "HEAD")
        assert reader(root, *between).json() == writer(root, *between).json()
        check_clean(case, reader, second, writer)

        git(root, "checkout", "-q", "HEAD~1")
        reader(root, "pull", "-q").ok()
        assert case.holds(first, reader)
        writer(root, "status", "-q").ok()
        git(root, "checkout", "-q", "main")
        writer(root, "checkout", "-q").ok()
        assert case.holds(second, writer)
        reader(root, "status", "-q").ok()
        cases.append(len(case.outputs) + made)

    check()
    report(capsys, f"written by {written_by}", cases, 70)


# -- the same done in two copies ---------------------------------------------------------------------------------------


def test_both_write_the_same(dvc: Dvc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same outputs added and the same edits recorded in two copies: the same bytes everywhere."""
    cases: list[int] = []

    @given(
        # Of a path like `a:b/c` DVC writes the `.dvc` file into the current folder, as for a url.
        projects().filter(lambda project: not any(urlsplit(path).scheme for path in project.outputs)),
        st.lists(edits, min_size=3, max_size=10),
        st.sampled_from(["add", "commit", "add --no-commit", "part"]),
    )
    @generated(12)
    def check(project: Project, changes: Sequence[Edit], how: str) -> None:
        if how == "commit":
            # DVC's commit stages nothing in git; ours does the lock of a stage.
            project = replace(project, autostage=False)
        ours, theirs = (Case(tmp_path / name, project, tool) for name, tool in (("dvkf", dvkf), ("dvc", dvc)))
        assert written(ours) == written(theirs)
        for case, tool in ((ours, dvkf), (theirs, dvc)):
            case.take(tool, "one")
        assert written(ours) == written(theirs)
        made = 0
        for case in (ours, theirs):
            made = case.edit(changes)
            for path in case.paths:
                if not (case.root / path).exists():
                    lay(case.root, path, project.outputs.get(path, File(Content(0))))
        before = stored(theirs)
        for case, tool in ((ours, dvkf), (theirs, dvc)):
            if how == "commit":
                tool(case.root, "commit", "-q", "-f").ok()
            elif how == "add --no-commit":
                tool(case.root, "add", "-q", "--no-commit", "--", *case.paths).ok()
            else:
                targets = case.paths
                if how == "part":
                    targets = [part_of(case.root, path) for path in case.paths]
                tool(case.root, "add", "-q", "--", *targets).ok()
        if how == "part":
            # DVC also stores the manifest of a folder that becomes a part of the directory's; nothing ever names it.
            for extra in stored(theirs) - stored(ours) - before:
                assert extra.endswith(".dir")
                (theirs.root / ".dvc/cache/files/md5" / extra).unlink()
        assert written(ours) == written(theirs)
        if how != "add --no-commit":
            for case, tool in ((ours, dvkf), (theirs, dvc)):
                case.keep(tool, "two")
            assert written(ours) == written(theirs)
        cases.append(len(ours.outputs) + made)

    check()
    report(capsys, "written by both", cases, 90)


def part_of(root: Path, path: str) -> str:
    """Return a path inside a tracked directory, or the output itself where it is or was a file, or holds nothing."""
    target = root / path
    if "nfiles" not in (root / f"{path}.dvc").read_text() or not target.is_dir():
        return path
    parts = sorted(entry.name for entry in target.iterdir() if entry.name not in IGNORED)
    return f"{path}/{parts[0]}" if parts else path


# -- both on one repository --------------------------------------------------------------------------------------------


@pytest.mark.long
def test_both_take_turns(dvc: Dvc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step done by either: after each of them both say the same."""
    cases: list[int] = []
    tools = st.sampled_from([dvkf, dvc])

    # Each takes as long as a step.
    quick = [["status", "--json"], ["diff", "--json"], ["data", "status", "--granular", "--json"]]

    class Turns(RuleBasedStateMachine):
        """One repository that two people work in, one with `dvc` and the other with `dvkf`."""

        @initialize(project=projects(min_size=2, max_size=4), tool=tools)
        def start(self, project: Project, tool: Tool) -> None:
            self.case = Case(tmp_path / "turns", project, tool)
            self.root = self.case.root
            self.versions: list[tuple[str, dict[str, object]]] = []
            self.steps = len(self.case.outputs)
            self.keep(tool, tool)

        @rule(changes=st.lists(edits, min_size=1, max_size=3))
        def edit(self, changes: Sequence[Edit]) -> None:
            self.steps += self.case.edit(changes)

        @rule(tool=tools)
        def add(self, tool: Tool) -> None:
            there = [path for path in self.case.paths if (self.root / path).exists()]
            tool(self.root, "add", "-q", "--", *there).ok()
            self.steps += 1

        @rule(tool=tools)
        def commit(self, tool: Tool) -> None:
            for path in self.case.outputs:
                if (self.root / path).exists():
                    tool(self.root, "commit", "-q", "-f", "--", path).ok()
            self.steps += 1

        @rule(tool=tools)
        def put_back(self, tool: Tool) -> None:
            tool(self.root, "checkout", "-q", "-f").ok()
            assert all((self.root / path).exists() for path in self.case.outputs)
            self.steps += 1

        @rule(tool=tools, other=tools)
        def keep(self, tool: Tool, other: Tool) -> None:
            """Record everything, push it, and commit it to git."""
            for path in self.case.paths:
                if not (self.root / path).exists():
                    other(self.root, "checkout", "-q", "--", path).ok()
            laid = self.case.content(self.case.paths)
            self.case.take(tool, f"version {len(self.versions)}")
            self.versions.append(
                (git(self.root, "rev-parse", "HEAD").strip(), {**self.case.content(), **laid})
            )
            other(self.root, "status", "-q").ok()
            other(self.root, "status", "-c", "-q").ok()
            self.steps += 1

        @rule(number=st.integers(0, 9), tool=tools, other=tools, by_checkout=st.booleans())
        def go_to(self, number: int, tool: Tool, other: Tool, by_checkout: bool) -> None:
            """Check another version out, and come upon it as it was."""
            self.keep(other, tool)
            revision, tracked = self.versions[number % len(self.versions)]
            git(self.root, "checkout", "-q", revision)
            if by_checkout:
                other(self.root, "fetch", "-q").ok()
                tool(self.root, "checkout", "-q").ok()
            else:
                tool(self.root, "pull", "-q").ok()
            assert self.case.holds(tracked, tool)
            other(self.root, "status", "-q").ok()

        @rule(tool=tools, other=tools)
        def lose_cache(self, tool: Tool, other: Tool) -> None:
            self.keep(other, tool)
            before = self.case.content()
            self.case.drop()
            tool(self.root, "pull", "-q").ok()
            assert self.case.content().keys() == before.keys()
            other(self.root, "status", "-q").ok()

        @invariant()
        def both_say_the_same(self) -> None:
            if hasattr(self, "case"):
                check_alike(self.case, dvkf, dvc, quick)

        def teardown(self) -> None:
            if hasattr(self, "case"):
                cases.append(self.steps)

    run_state_machine_as_test(Turns, settings=generated(20, steps=5))
    report(capsys, "taking turns", cases, 90)
