"""What is up to date, and what is not: each kind of change, judged by us and by the real `dvc`."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import Done, Dvc, Tool, dvkf, git

Files = Mapping[str, str | None]


@dataclass(frozen=True)
class Row:
    """A stage, what it reads at first, and what changes then.

    Attributes:
        body: The keys of the stage but its command.
        before: Files, by name in the stage's folder.
        after: Files that are written anew, or removed.
        change: What else happens in the folder.
        cmd: The command.
        more: Other stages that belong to it.
        ready: What is done in the folder before the first run.
    """

    body: str = "deps: [d]"
    before: Files = field(default_factory=dict)
    after: Files = field(default_factory=dict)
    change: Callable[[Path], object] | None = None
    cmd: str = "echo 1 > o"
    more: str = ""
    ready: Callable[[Path], object] | None = None
    outs: str = "outs: [o]"


def param(before: str, after: str, name: str = "p.yaml", keys: str = "[v]") -> Row:
    """Return a stage that reads a parameter."""
    return Row(f"params: [{name}: {keys}]", {name: before}, {name: after})


PARAMETERS = {
    "same-nan": param("v: .nan", "v: .NaN"),
    "same-inf": param("v: .inf", "v: .Inf"),
    "nan-to-inf": param("v: .nan", "v: .inf"),
    "nan-to-1": param("v: .nan", "v: 1"),
    "minus-inf": param("v: .inf", "v: -.inf"),
    "nan-in-list": param("v: [1, .nan]", "v: [1, .nan]"),
    "nan-in-dict": param("v: {a: .nan}", "v: {a: .nan}"),
    "inf-in-dict": param("v: {a: .inf}", "v: {a: .inf}"),
    "nan-json": param('{"v": NaN}', '{"v": NaN}', "p.json"),
    "inf-json": param('{"v": Infinity}', '{"v": Infinity, "w": 1}', "p.json"),
    "nan-toml": param("v = nan", "v = nan", "p.toml"),
    "inf-toml": param("v = inf", "v = +inf", "p.toml"),
    "float-int": param("v: 1.0", "v: 1"),
    "int-float": param("v: 1", "v: 1.0"),
    "small": param("v: 1e-5", "v: 0.00001"),
    "small-2": param("v: 0.00001", "v: 1.0e-05"),
    "word-number": param("v: 1e-5", "v: '1e-5'"),
    "sum": param("v: 0.30000000000000004", "v: 0.3"),
    "sum-same": param("v: 0.30000000000000004", "v: 0.300000000000000040"),
    "dot": param("v: 0.5", "v: .5"),
    "thousand": param("v: 1e3", "v: 1000.0"),
    "thousand-2": param("v: 1.0e+3", "v: 1000"),
    "underscore": param("v: 1_000", "v: 1000"),
    "minus-zero": param("v: 0.0", "v: -0.0"),
    "true-1": param("v: true", "v: 1"),
    "false-0": param("v: false", "v: 0"),
    "text-number": param("v: '1'", "v: 1"),
    "null-gone": param("v: null", "w: 1"),
    "null-same": param("v: null", "v: ~"),
    "yes-true": param("v: yes", "v: true"),
    "octal": param("v: 010", "v: 8"),
    "hex": param("v: 0x10", "v: 16"),
    "big": param("v: 123456789012345678901234567890", "v: 123456789012345678901234567891"),
    "big-float": param("v: 1e300", "v: 1.0e+300"),
    "order": param("v: {a: 1, b: 2}", "v: {b: 2, a: 1}"),
    "list-order": param("v: [1, 2]", "v: [2, 1]"),
    "list-float": param("v: [1, 2]", "v: [1.0, 2.0]"),
    "deep": param("a: {b: 1.0, c: 2}", "a: {b: 1, c: 3}", keys="[a.b]"),
    "deep-gone": param("a: {b: 1, c: 2}", "a: {c: 3}", keys="[a.b]"),
    "list-item": param("a: [1, 2]", "a: [1.0, 3]", keys="[a.0]"),
    "other-date": param("v: 1", "v: 1\nd: 2020-01-01"),
    "other-set": param("v = 1", "v = 1\nS = {1, 2}\nB = b'x'", "p.py"),
    "json-float": param('{"v": 1.0}', '{"v": 1}', "p.json"),
    "json-e": param('{"v": 1E5}', '{"v": 100000}', "p.json"),
    "toml-float": param("v = 1.0", "v = 1", "p.toml"),
    "py-tuple": param("v = (1, 2)", "v = [1, 2]", "p.py"),
    "py-tuple-same": param("v = (1, 2)", "v = (1, 2)\nw = 1", "p.py"),
    "py-float": param("v = 1e-5", "v = 0.00001", "p.py"),
    "py-class": param("class v:\n    a = 1", "class v:\n    a = 1.0", "p.py", "[v.a]"),
    "whole": param("a: 1", "a: 1\nb: 2", keys=""),
    "whole-gone": param("a: 1\nb: 2", "a: 1.0", keys=""),
    "whole-nan": param("a: .nan", "a: .nan", keys=""),
    "file-gone": Row("params: [p.yaml: [v]]", {"p.yaml": "v: 1"}, {"p.yaml": None}),
    "whole-file-gone": Row("params: [p.yaml: ]", {"p.yaml": "v: 1"}, {"p.yaml": None}),
    "comment": param("v: 1", "# c\nv: 1"),
    "multi": param("v: |\n  a\n  b", 'v: "a\\nb\\n"'),
    "unicode": param("v: é", 'v: "\\xe9"'),
    "empty-text": param("v: ''", "v:"),
    "empty-list": param("v: []", "v: {}"),
}


def link(target: str, name: str = "d") -> Callable[[Path], object]:
    """Return what makes a link, in place of what is there."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, folder / name)

    return make


def folder(*names: str) -> Callable[[Path], object]:
    """Return what makes folders."""
    return lambda root: [(root / name).mkdir(parents=True) for name in names]


def mode(name: str) -> Callable[[Path], object]:
    """Return what makes a file executable."""
    return lambda root: (root / name).chmod(0o755)


def gone(name: str) -> Callable[[Path], object]:
    """Return what removes a file or a folder."""

    def remove(root: Path) -> None:
        place = root / name
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)

    return remove


A = {"d": "1"}
IN = {"d/a": "1", "d/s/b": "2"}
DEPENDENCIES = {
    "link-inside-folder": Row(before={**IN, "t/x": "1"}, ready=link("../t", "d/l"), after={"t/x": "2"}),
    "link-inside-folder-new": Row(before={**IN, "t/x": "1"}, change=link("../t", "d/l")),
    "link-outside": Row(before=A, change=link("../../outside.txt")),
    "file": Row(before=A, after={"d": "2"}),
    "file-same": Row(before=A, after={"d": "1"}),
    "file-gone": Row(before=A, after={"d": None}),
    "file-mode": Row(before=A, change=mode("d")),
    "file-crlf": Row(before={"d": "a\r\n"}, after={"d": "a\n"}),
    "file-to-folder": Row(before=A, after={"d": None, "d/a": "1"}),
    "folder": Row(before=IN, after={"d/a": "2"}),
    "folder-more": Row(before=IN, after={"d/c": "3"}),
    "folder-less": Row(before=IN, after={"d/s/b": None}),
    "folder-gone": Row(before=IN, change=gone("d")),
    "folder-mode": Row(before=IN, change=mode("d/a")),
    "folder-empty": Row(before=IN, change=folder("d/e", "d/f/g")),
    "folder-empty-less": Row(before=IN, ready=folder("d/e"), change=gone("d/e")),
    "folder-bare": Row(ready=folder("d"), change=folder("d/e")),
    "folder-bare-more": Row(ready=folder("d"), after={"d/a": "1"}),
    "folder-bare-gone": Row(ready=folder("d"), change=gone("d")),
    "folder-slash": Row("deps: [d/]", IN, {"d/a": "2"}),
    "folder-dot": Row("deps: [./d/../d/a]", IN, {"d/a": "2"}),
    "ignored": Row(before={**IN, ".dvcignore": "*.tmp\nx/\n"}, after={"d/a.tmp": "t", "d/x/y": "y"}),
    "ignored-before": Row(before={**IN, "d/a.tmp": "t", ".dvcignore": "*.tmp\n"}, after={"d/a.tmp": "u"}),
    "ignored-later": Row(before=IN, after={".dvcignore": "s/\n"}),
    "ignored-whole": Row(before=A, after={".dvcignore": "/d\n"}),
    "git-ignored": Row(before={**IN, ".gitignore": "*.log\n"}, after={"d/x.log": "x"}),
    "git-ignored-inside": Row(before=IN, after={"d/.gitignore": "a\n"}),
    "git-ignored-whole": Row(before={**A, ".gitignore": "/d\n"}, after={"d": "2"}),
    "git-inside": Row(before=IN, after={"d/.git/config": "x"}),
    "dvc-file-inside": Row(before=IN, after={"d/s/note.txt": "n", "d/temp~": "x"}),
    "link": Row(before={"t": "1"}, ready=link("t"), after={"t": "2"}),
    "link-other": Row(before={"t": "1", "u": "1"}, ready=link("t"), change=link("u")),
    "link-for-file": Row(before={"d": "1", "t": "1"}, change=link("t")),
    "link-folder": Row(before={"t/a": "1"}, ready=link("t"), after={"t/a": "2"}),
    "link-folder-part": Row("deps: [d/a]", before={"t/a": "1"}, ready=link("t"), after={"t/a": "2"}),
    "link-inside": Row(before={**IN, "t": "1"}, ready=link("../t", "d/l"), after={"t": "2"}),
    "link-inside-new": Row(before={**IN, "t": "1"}, change=link("../t", "d/l")),
    "link-to-output": Row(
        before={"in": "1"},
        ready=link("w"),
        after={"in": "2"},
        more="deps: [in]\n    cmd: cp in w\n    outs: [w]",
    ),
    "link-in-output": Row(
        "deps: [l/x]",
        before={"in": "1"},
        ready=link("w", "l"),
        after={"in": "2"},
        more="deps: [in]\n    cmd: mkdir w && cp in w/x\n    outs: [w]",
    ),
    "made-no-more": Row(
        "deps: [w/b]",
        before={"in": "1"},
        after={"in": "2"},
        more="deps: [in]\n    cmd: mkdir w && touch w/a && (grep -q 2 in || echo b > w/b)\n    outs: [w]",
    ),
    "made-folder-no-more": Row(
        "deps: [w/s]",
        before={"in": "1"},
        after={"in": "2"},
        more="deps: [in]\n    cmd: mkdir -p w/s && touch w/a && (grep -q 2 in && rm -r w/s || echo b > w/s/b)\n"
        "    outs: [w]",
    ),
    "made-removed": Row(
        "deps: [w/b]",
        before={"in": "1"},
        change=gone("w/b"),
        more="deps: [in]\n    cmd: mkdir w && touch w/a && echo b > w/b\n    outs: [w]",
    ),
    "made-changed": Row(
        "deps: [w/b]",
        before={"in": "1"},
        after={"w/b": "by hand"},
        more="deps: [in]\n    cmd: mkdir w && echo b > w/b\n    outs: [w]",
    ),
    "made-same": Row(
        "deps: [w]",
        before={"in": "12"},
        after={"in": "13"},
        more="deps: [in]\n    cmd: head -c1 in > w\n    outs: [w]",
    ),
}
BAD = {
    "link-dangling": Row(before={"t": "1"}, ready=link("t"), after={"t": None}),
    "link-dangling-inside": Row(before=IN, change=link("nowhere", "d/l")),
    "link-loop": Row(before=A, change=link("d")),
    "ignored-inside": Row(before={**IN, "d/.dvcignore": "b\n"}, after={"d/s/b": "3"}),
    "ignored-inside-more": Row(before=IN, after={"d/.dvcignore": "# none\n"}),
}
STATES = {
    "link-dangling": "deleted",
    "link-dangling-inside": "modified",
    "link-loop": "deleted",
    "ignored-inside-more": "modified",
}
OUTSIDE = {
    "outside": Row("deps: [../../outside.txt]", {"x": "1"}, change=lambda f: outside(f).write_text("2")),
    "outside-same": Row("deps: [../../outside.txt, d]", A),
    "outside-folder": Row(
        "deps: [../../outside]", change=lambda f: (outside(f, "outside") / "a").write_text("2")
    ),
    "home": Row("deps: ['~/home.txt']", change=lambda f: (Path.home() / "home.txt").write_text("2")),
    "tilde": Row("deps: ['~d']", {"~d": "1"}, {"~d": "2"}),
}


def outside(folder: Path, name: str = "outside.txt") -> Path:
    """Return a path beside the repository."""
    return folder.parents[1] / name


OUT = {"d": "1"}
STAGES = {
    "frozen-dep": Row("deps: [d]", A, {"d": "2"}),
    "frozen-out": Row("deps: [d]", A, {"o": "2"}),
    "frozen-out-gone": Row("deps: [d]", A, {"o": None}),
    "always": Row("deps: [d]\n    always_changed: true", A),
    "callback": Row("", cmd="echo 1 > side", outs=""),
    "only-outs": Row(""),
    "only-outs-gone": Row("", after={"o": None}),
    "no-outs": Row(cmd="true", outs="", before=A),
    "no-outs-changed": Row(cmd="true", outs="", before=A, after={"d": "2"}),
    "out": Row(before=A, after={"o": "by hand"}),
    "out-gone": Row(before=A, after={"o": None}),
    "out-mode": Row(before=A, change=mode("o")),
    "out-link": Row(before={**A, "t": "1\n"}, change=link("t", "o")),
    "out-folder": Row(before=A, cmd="mkdir o && touch o/a", after={"o/b": "b"}),
    "out-folder-less": Row(before=A, cmd="mkdir o && touch o/a o/b", after={"o/b": None}),
    "out-folder-empty": Row(before=A, cmd="mkdir o && touch o/a", change=folder("o/e")),
    "out-bare": Row(before=A, cmd="mkdir o", change=folder("o/e")),
    "out-ignored": Row(
        before={**A, ".dvcignore": "*.tmp"}, cmd="mkdir o && touch o/a", after={"o/x.tmp": "x"}
    ),
    "out-to-folder": Row(before=A, after={"o": None, "o/a": "a"}),
    "metric": Row(before=A, outs="metrics: [o: {cache: false}]", after={"o": "2\n"}),
    "uncached": Row(before=A, outs="outs: [o: {cache: false}]", after={"o": "2\n"}),
    "uncached-gone": Row(before=A, outs="outs: [o: {cache: false}]", after={"o": None}),
    "persist": Row(before=A, outs="outs: [o: {persist: true}]", after={"o": "2\n"}),
    "persist-dep": Row(before=A, outs="outs: [o: {persist: true}]", after={"d": "2"}, cmd="echo 1 >> o"),
    "twice": Row("deps: [d, d]", A, {"d": "2"}),
}


def lay(root: Path, files: Files) -> None:
    for name, text in files.items():
        place = root / name
        if text is None:
            place.unlink(missing_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink() or (place.is_file() and place.stat().st_nlink > 1):
            place.unlink(missing_ok=True)
        place.write_text(text)


_SAID = {
    "run": r"(?m)^Running stage '(.*)':$",
    "same": r"(?m)^Stage '(.*)' didn't change, skipping$",
    "cached": r"(?m)^Stage '(.*)' is cached - skipping run, checking out outputs",
}


def said(done: Done) -> dict[str, set[str]]:
    """Return which stages are said to run, which to be the same, and which to be restored."""
    told = {kind: set(re.findall(pattern, done.out)) for kind, pattern in _SAID.items()}
    found = re.search(r"failed to reproduce(?: stages?)?:? (.*)", done.err)
    told["failed"] = set(re.findall(r"'([^']+)'", found[1])) if found else set()
    return told


@dataclass
class Outcome:
    """What one tool made of a table: how commands ended, and dvc.lock after the first and the second run."""

    status: Done
    dry: Done
    real: Done
    again: Done
    locks: list[str]


def judge(tool: Tool, dvc: Dvc, top: Path, rows: Mapping[str, Row]) -> Outcome:
    """Run all stages of a table, change what they read, and have a tool judge and run them again."""
    shutil.rmtree(top, ignore_errors=True)
    root = top / "repo"
    root.mkdir(parents=True)
    lay(top, {"outside.txt": "1", "outside/a": "1"})
    git(root, "init", "-q")
    dvc(root, "init", "-q").ok()
    stages = ["stages:"]
    for name, row in rows.items():
        (root / name).mkdir()
        lay(root / name, row.before)
        if row.ready:
            row.ready(root / name)
        keys = f"wdir: {name}\n    cmd: {json.dumps(row.cmd)}\n    {row.body}\n    {row.outs}"
        stages.append(f"  {name}:\n    {keys}")
        if row.more:
            stages.append(f"  {name}-above:\n    wdir: {name}\n    {row.more}")
    text = "\n".join(stages) + "\n"
    (root / "dvc.yaml").write_text(text)
    tool(root, "repro", "-k")
    locks = [(root / "dvc.lock").read_text()]
    for name, row in rows.items():
        lay(root / name, row.after)
        if row.change:
            row.change(root / name)
        if name.startswith("frozen"):
            text = text.replace(f"    wdir: {name}\n", f"    wdir: {name}\n    frozen: true\n")
    (root / "dvc.yaml").write_text(text)
    status, dry = tool(root, "status", "--json"), tool(root, "repro", "--dry", "-k")
    real, again = tool(root, "repro", "-k"), tool(root, "status", "--json")
    locks.append((root / "dvc.lock").read_text())
    return Outcome(status, dry, real, again, locks)


def without_removed(report: dict[str, list], failed: set[str]) -> dict[str, list]:
    """Return a status without the outputs of stages that failed: DVC has removed them by then, we have not."""
    return {
        name: [group for group in groups if name not in failed or "changed outs" not in group]
        for name, groups in report.items()
    }


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(PARAMETERS, id="parameters", marks=pytest.mark.long),
        pytest.param({**DEPENDENCIES, **STAGES, **OUTSIDE}, id="dependencies", marks=pytest.mark.long),
    ],
)
def test_what_changed_is_judged_as_dvc_judges_it(rows: Mapping[str, Row], dvc: Dvc, tmp_path: Path) -> None:
    ours, theirs = (judge(tool, dvc, tmp_path / "top", rows) for tool in (dvkf, dvc))
    assert ours.status.json() == theirs.status.json()
    for mine, other in ((ours.dry, theirs.dry), (ours.real, theirs.real)):
        assert mine.code == other.code, (mine, other)
        told, expected = said(mine), said(other)
        if mine is ours.dry:
            # Of a known run, DVC says that it is restored, and that it runs; it looks for the run before the change.
            told["run"] |= told.pop("cached")
            del expected["cached"]
        assert told == expected
    assert ours.locks == theirs.locks
    failed = said(ours.real)["failed"]
    assert without_removed(ours.again.json(), failed) == without_removed(theirs.again.json(), failed)


def test_what_cannot_be_read_fails_its_stage_alone(dvc: Dvc, tmp_path: Path) -> None:
    """A status of DVC ends at the first of these; ours tells of all, and each run goes on with the others."""
    ours, theirs = (judge(tool, dvc, tmp_path / "top", BAD) for tool in (dvkf, dvc))
    assert (theirs.status.code, ours.dry.code, ours.real.code) == (255, 255, 255)
    assert said(ours.real) == said(theirs.real) and said(ours.dry)["failed"] == said(theirs.dry)["failed"]
    assert ours.locks == theirs.locks
    never_run = [
        {"changed deps": {"ignored-inside/d": "modified"}},
        {"changed outs": {"ignored-inside/o": "deleted"}},
    ]
    expected = {name: [{"changed deps": {f"{name}/d": state}}] for name, state in STATES.items()}
    for done in (ours.status, ours.again):
        assert done.json() == {**expected, "ignored-inside": never_run}


def test_missing_data_is_judged_as_dvc_judges_it(dvc: Dvc, tmp_path: Path) -> None:
    """Without the cache and the data, with and without `--allow-missing`, and before any run."""
    chain = (
        "stages:\n  one:\n    cmd: head -c1 in > one\n    deps: [in]\n    outs: [one]\n"
        "  two:\n    cmd: cp one two\n    deps: [one]\n    outs: [two]\n"
        "  part:\n    cmd: cat d/a > part\n    deps: [d/a]\n    outs: [part]\n"
        "  plain:\n    cmd: echo 1 > plain\n    deps: [one]\n"
        "  twos:\n    cmd: mkdir d && echo 1 > d/a\n    deps: [in]\n    outs: [d]\n"
    )
    changes: dict[str, Callable[[Path], object]] = {
        "never-run": lambda root: [(root / name).unlink() for name in ("dvc.lock", "one")],
        "nothing": lambda root: None,
        "data": lambda root: [gone(name)(root) for name in ("one", "two", "d")],
        "all": lambda root: [gone(name)(root) for name in ("one", "two", "d", ".dvc/cache")],
        "input": lambda root: (
            [gone(name)(root) for name in ("one", "d", ".dvc/cache")] and lay(root, {"in": "2"})
        ),
        "gone-input": lambda root: [gone(name)(root) for name in ("in", "one", ".dvc/cache")],
    }
    start = tmp_path / "start"
    start.mkdir()
    git(start, "init", "-q")
    dvc(start, "init", "-q").ok()
    lay(start, {"in": "1", "dvc.yaml": chain})
    dvc(start, "repro", "-q").ok()
    for name, change in changes.items():
        root = tmp_path / name
        shutil.copytree(start, root)
        change(root)
        # DVC passes over a stage that never ran where its dependency may be missing; we do not.
        for options in ((),) if name == "never-run" else ((), ("--allow-missing",)):
            command = ("repro", "--dry", "-k", *options)
            ours, theirs = dvkf(root, *command), dvc(root, *command)
            told, expected = said(ours), said(theirs)
            told["run"] |= told.pop("cached")
            del expected["cached"]
            assert (ours.code, told) == (theirs.code, expected), (name, options, ours, theirs)


def test_an_import_that_follows_its_source_is_told_of_before_it_runs(dvc: Dvc, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q")
    dvc(root, "init", "-q").ok()
    lay(tmp_path, {"f": "1", "same": "1"})
    stage = "stages:\n  s:\n    cmd: cp f o\n    deps: [f, same]\n    outs: [o]\n"
    lay(root, {"dvc.yaml": stage})
    for name in ("f", "same"):
        dvc(root, "import-url", "-q", str(tmp_path / name), name).ok()
        dvc(root, "unfreeze", f"{name}.dvc").ok()
    dvc(root, "repro", "-q").ok()
    lay(tmp_path, {"f": "2"})
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "1")
    files = r"(?m)^(?:Importing .*|'.*\.dvc' didn't change, skipping|Stage .*|Data and pipelines.*|Use `)"
    for command in (["repro", "--dry"], ["repro", "--dry", "f.dvc"], ["repro", "--dry", "same.dvc"]):
        ours, theirs = dvkf(root, *command).ok(), dvc(root, *command).ok()
        assert re.findall(files, ours.out) == re.findall(files, theirs.out), command
    assert "Importing" in ours.out + dvkf(root, "repro", "--dry").out
    assert not git(root, "status", "--porcelain") and (root / "f").read_text() == "1"
    assert "Importing" in dvkf(root, "repro").ok().out and (root / "o").read_text() == "2"
    assert dvc(root, "status", "--json").json() == {}
