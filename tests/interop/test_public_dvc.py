"""Shapes that public repositories have, each given to us and to the real `dvc`: the same answer, the same files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Done, Dvc, dvkf, git

_GIVEN = re.compile(r"(?m)^\s*git add .*$|.*auto staging.*")


class Twins:
    """Two copies of one repository, one for each tool."""

    def __init__(self, root: Path, dvc: Dvc, start: Callable[[Path], None]) -> None:
        self.root = root
        self._dvc = dvc
        first = root / "dvc" / "repo"
        first.mkdir(parents=True)
        git(first, "init", "-q")
        dvc(first, "init", "-q").ok()
        start(first)
        git(first, "add", "-A")
        git(first, "commit", "-q", "-m", "start")
        shutil.copytree(root / "dvc", root / "dvkf", symlinks=True)

    def run(self, *words: str, sub: str = "", code: int | None = None) -> tuple[Done, Done]:
        """Run a command with both; return how it ended with ours and with theirs."""
        ours = dvkf(self.root / "dvkf" / "repo" / sub, *words)
        theirs = self._dvc(self.root / "dvc" / "repo" / sub, *words)
        assert ours.code == theirs.code == (theirs.code if code is None else code), (ours, theirs)
        return ours, theirs

    def files(self, name: str) -> list[bytes]:
        """Return what a file holds in both."""
        return [(self.root / tool / "repo" / name).read_bytes() for tool in ("dvkf", "dvc")]

    def git(self, *words: str) -> list[str]:
        """Return what git says in both."""
        return [git(self.root / tool / "repo", *words) for tool in ("dvkf", "dvc")]

    def write(self, name: str, text: str) -> None:
        """Write a file in both."""
        for tool in ("dvkf", "dvc"):
            (self.root / tool / "repo" / name).write_text(text)


@pytest.fixture
def twins(tmp_path: Path, dvc: Dvc) -> Callable[[Callable[[Path], None]], Twins]:
    """Return a function that makes twins of the repository that a function writes."""
    return lambda start: Twins(tmp_path, dvc, start)


def written(text: str, **files: str) -> Callable[[Path], None]:
    """Return a function that writes a dvc.yaml and other files."""

    def start(folder: Path) -> None:
        (folder / "dvc.yaml").write_text(text)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content)

    return start


def equal(pair: list) -> object:
    """Return what both have."""
    assert pair[0] == pair[1]
    return pair[0]


# -- stages ------------------------------------------------------------------------------------------------------------


def test_a_stage_with_parameters_is_not_removed(twins) -> None:
    both = twins(
        written(
            "stages:\n  t:\n    cmd: echo ${n} > o\n    outs: [o]\n  v:\n    vars: [{q: 1}]\n    cmd: echo\n"
            "  l:\n    cmd: [echo, 'echo ${n}']\n  plain:\n    cmd: echo\n    outs: [p]\n",
            params__yaml="n: 1\n",
        )
    )
    for name in ("t", "v", "l"):
        ours, theirs = both.run("remove", name, code=1)
        assert f"cannot remove a parametrized stage: '{name}'" in ours.err and "parametrized" in theirs.err
    assert equal(both.git("diff", "--", "dvc.yaml")) == ""
    both.run("remove", "plain", code=0)
    assert b"plain" not in equal(both.files("dvc.yaml"))
    both.run("stage", "add", "-q", "-f", "-n", "t", "-o", "o", "true", code=0)
    equal(both.files("dvc.yaml"))


def test_staging_leaves_out_what_git_ignores(twins) -> None:
    def start(folder: Path) -> None:
        (folder / "big/s").mkdir(parents=True)
        (folder / "big/s/.gitignore").write_text("/p\n")
        (folder / ".gitignore").write_text("big/\n")
        (folder / "dvc.yaml").write_text(
            "stages:\n  a:\n    cmd: mkdir -p big/s/p && echo 1 > big/s/p/q\n    outs: [big/s/p]\n"
            "  b:\n    cmd: cp big/s/p/q b\n    deps: [big/s/p]\n    outs: [b]\n"
        )
        with open(folder / ".dvc/config", "a") as file:
            file.write("[core]\n    autostage = true\n")

    both = twins(start)
    both.run("repro", code=0)
    assert equal(both.git("status", "--short")) == "M  .gitignore\nA  dvc.lock\n"
    both.write("star*", "1\n")
    both.write("starred", "1\n")
    both.run("add", "-q", "star*", code=0)
    assert "A  star*.dvc" in equal(both.git("status", "--short"))


def test_outputs_are_listed_as_they_are_written(twins) -> None:
    def start(folder: Path) -> None:
        (folder / "data").mkdir()
        out = "- md5: b026324c6904b2a9cb4b88d6d61c81d1\n  size: 2\n  hash: md5\n  path: "
        (folder / "data/a.dvc").write_text(f"wdir: ..\nouts:\n{out}data/a\n")
        (folder / "data/b.dvc").write_text(f"outs:\n{out}b\n{out}./c\n")
        (folder / "data/d.dvc").write_text(f"desc: of it\nouts:\n{out}d\n")

    both = twins(start)
    for words in (("--all",), ("data/a.dvc", "data/b.dvc"), ("-R", "data"), ("--all", "--name-only")):
        ours, theirs = both.run("stage", "list", *words, code=0)
        # Files of one folder come as the file system has them.
        rows = [sorted(line.split() for line in done.out.splitlines()) for done in (ours, theirs)]
        assert rows[0] == rows[1]
    assert "data/a.dvc  Outputs data/a" in both.run("stage", "list", "data/a.dvc")[0].out


def test_the_command_for_git_can_be_pasted(twins) -> None:
    both = twins(written("stages: {}\n"))
    (both.root / "dvc/repo/sub dir").mkdir()
    (both.root / "dvkf/repo/sub dir").mkdir()
    both.write("my file.csv", "1\n")
    both.write("sub dir/it's", "1\n")
    for sub, words in (
        ("", ("add", "my file.csv")),
        ("", ("add", "my file.csv")),
        ("sub dir", ("add", "it's")),
        ("", ("move", "my file.csv", "z.csv")),
        ("sub dir", ("stage", "add", "-n", "s", "-o", "o o", "true")),
    ):
        hints = []
        for done in both.run(*words, sub=sub, code=0):
            found = _GIVEN.findall(done.out)
            assert len(found) == 2, done
            hints.append([sorted(re.findall(r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"])+", line)) for line in found])
        assert hints[0] == hints[1]


# -- listing from below ------------------------------------------------------------------------------------------------


def test_paths_are_listed_from_the_current_folder(twins, dvc: Dvc) -> None:
    def start(folder: Path) -> None:
        (folder / "data/in").mkdir(parents=True)
        (folder / "sub/deep").mkdir(parents=True)
        (folder / "data/in/a").write_text("1\n")
        (folder / "sub/deep/z").touch()
        dvc(folder, "add", "-q", "data").ok()

    both = twins(start)
    for sub in ("sub", "sub/deep"):
        for words in (
            ["."],
            ["-R", "."],
            ["-R", "-L", "1", ".."],
            ["--json", "-R", "--dvc-only", "."],
            ["-L", "0", "-R", "."],
            ["-R", ".", "--rev", "HEAD"],
        ):
            ours, theirs = both.run("ls", *words, sub=sub, code=0)
            assert ours.out == theirs.out, words
    for words in (["-R", "..", "../data"], ["-T", "..", "../data"], ["-T", ".", "deep"], ["..", "deep/z"]):
        ours, theirs = both.run("ls", *words, sub="sub", code=0)
        assert ours.out == theirs.out, words


# -- what DVC 1.x left -------------------------------------------------------------------------------------------------


def test_a_lock_without_schema_is_invalid_in_commits_too(twins, dvc: Dvc) -> None:
    def start(folder: Path) -> None:
        (folder / "params.yaml").write_text("p: 1\n")
        (folder / "m.json").write_text('{"m": 1}\n')
        (folder / "dvc.yaml").write_text(
            "stages:\n  s:\n    cmd: echo 1 > o\n    params: [p]\n    outs: [o]\n"
            "    metrics: [m.json: {cache: false}]\n"
        )
        (folder / "x").write_text("2\n")
        dvc(folder, "add", "-q", "x").ok()
        (folder / "dvc.lock").write_text(
            "s:\n  cmd: echo 1 > o\n  outs:\n  - path: o\n    md5: b026324c6904b2a9cb4b88d6d61c81d1\n"
        )

    both = twins(start)
    both.git("commit", "-q", "--allow-empty", "-m", "second")
    for words, code in (
        (("params", "diff", "--json", "HEAD~1"), 0),
        (("metrics", "diff", "--json", "HEAD~1"), 0),
        (("stage", "list"), 255),
        (("stage", "list", "--all"), 0),
        (("diff", "--json", "HEAD~1", "HEAD"), 1),
        (("repro", "--dry"), 255),
    ):
        ours, theirs = both.run(*words, code=code)
        assert ours.out.split() == theirs.out.split(), words


_GONE = """\
  gone:
    cmd: python some_script_with_a_long_name.py --dataset one input-file.txt output-file-of-it.txt
    params:
        params.yaml:
            a: 0.10
            b: 1e-3
            c: "no"
            d: ~
    outs:
    - path: "q.txt"
      md5: 8b340a3b035f34cb1fe2148f9fcd40c9
      size: 73
"""


@pytest.mark.parametrize("more", [_GONE, _GONE.replace("\n", " # why\n", 1), "  gone: {cmd: x}\n", ""])
def test_a_run_writes_all_of_the_lock_anew(twins, dvc: Dvc, more: str) -> None:
    text = (
        "stages:\n  a:\n    cmd: echo {} > a\n    outs: [a]\n  b:\n    cmd: cp a b\n    deps: [a]\n    outs: [b]\n"
        "  c:\n    cmd: echo c\n    always_changed: true\n"
    )

    def start(folder: Path) -> None:
        (folder / "dvc.yaml").write_text(text.format(1))
        dvc(folder, "repro", "-q").ok()
        with open(folder / "dvc.lock", "a") as file:
            file.write(more)

    both = twins(start)
    both.run("repro", "-q", "c", code=0)
    equal(both.files("dvc.lock"))
    both.write("dvc.yaml", text.format(2))
    both.run("repro", "-q", code=0)
    equal(both.files("dvc.lock"))


@pytest.mark.parametrize(
    "command",
    ["echo", "echo 'a' > \"b\" && x {} [] $HOME", "'a: b'", "a" * 50 + " b" * 30, "no", "a\\tb", "a 'b:c' d"],
)
@pytest.mark.parametrize(
    "value",
    [
        "1",
        "0.5",
        "0.123456789012345678",
        "1e-3",
        "'1'",
        "text",
        "no",
        "null",
        "Null",
        "_1",
        ".5",
        "007",
        "x: 1",
    ],
)
def test_a_lock_taken_for_stable_is_written_alike(value: str, command: str) -> None:
    from dvkf_prefect.formats import documents
    from dvkf_prefect.formats.dvclock import put_entry

    old = (
        "schema: '2.0'\nstages:\n  a:\n    cmd: echo\n    params:\n      params.yaml:\n"
        f"        k: {value if ':' not in value else 'z'}\n" + (f"        {value}\n" if ":" in value else "")
    ).encode()
    old = old.replace(b"echo", command.encode())
    new = put_entry(old, "b", {"cmd": "true"})
    whole = documents.load_editable(old, "dvc.lock")
    whole["stages"]["b"] = {"cmd": "true"}
    assert new == documents.dump(whole)


@pytest.mark.parametrize("place", ["data", "data/d"])
@pytest.mark.parametrize("patterns", ["*\n!*.pth\n!*/\n", ".dvcignore\n*.txt\n"])
def test_an_ignore_file_that_leaves_itself_out_is_obeyed(twins, place: str, patterns: str) -> None:
    def start(folder: Path) -> None:
        (folder / "data/d/e").mkdir(parents=True)
        (folder / ".gitignore").write_text("/data\n")
        for name in (
            "data/b.txt",
            "data/d/.a.txt",
            "data/d/a.pth",
            "data/d/b.txt",
            "data/d/e/c.txt",
            "data/d/e/c.pth",
        ):
            (folder / name).write_text(name)
        (folder / place / ".dvcignore").write_text(patterns)

    both = twins(start)
    both.run("add", "-q", "data", code=0)
    equal(both.files("data.dvc"))
    both.run("status", "-q", code=0)


def test_a_project_below_the_top_of_a_git_repository_is_listed(tmp_path: Path, dvc: Dvc) -> None:
    mono = tmp_path / "mono"
    (mono / "proj/data").mkdir(parents=True)
    git(mono, "init", "-q")
    dvc(mono / "proj", "init", "-q", "--subdir").ok()
    (mono / "proj/data/x").write_text("x\n")
    (mono / "proj/plain.txt").write_text("plain\n")
    dvc(mono / "proj", "add", "-q", "data").ok()
    git(mono, "add", "-A")
    git(mono, "commit", "-q", "-m", "start")
    for words in (
        ["mono", "proj"],
        ["mono", "proj/data"],
        ["-R", "mono", "proj", "--dvc-only"],
        ["mono", "proj/data/x"],
    ):
        for rev in ([], ["--rev", "HEAD"]):
            ours, theirs = dvkf(tmp_path, "list", *words, *rev).ok(), dvc(tmp_path, "list", *words, *rev).ok()
            assert ours.out == theirs.out, words
    assert dvkf(tmp_path, "du", "mono", "proj").ok().out.split()[-1] == "proj"
