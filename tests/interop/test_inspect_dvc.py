"""What looks at a repository, next to the real `dvc`: the same answers, text and exit codes in many states."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commands import Dvc, dvkf, git
from repos import make_repo

from dvkf_prefect.errors import OutputError
from dvkf_prefect.formats.dvcignore import Ignore
from dvkf_prefect.repo import Repo

DIRECTORIES = ("data", "data-x", "sub/dir")
OUTPUTS = (*DIRECTORIES, "one", "two", "sub/f")
INSIDE = ("a", "b", "s/a", "s/b", "s-t/q", "z/z/z")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    make_repo(folder)
    # Relative, so that commits have the same id wherever the test runs.
    (folder / ".dvc/config").write_text(
        "[core]\n    remote = store\n['remote \"store\"']\n    url = ../../store\n"
    )
    return folder


@pytest.fixture
def fresh_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """DVC keeps what it knew of a directory; a new place to keep it in makes it look."""
    number = iter(range(10_000))

    def renew() -> None:
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / f"site-{next(number)}"))

    return renew


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", "state")


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Life:
    """What may happen to a repository, step by step."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)

    def step(self) -> None:
        actions = (
            self.write, self.write, self.change, self.lose, self.move, self.drop, self.add, self.add, self.add,
            self.commit, self.lose_objects, self.push, self.untrack, self.lose_remote, self.rename, self.plain,
        )  # fmt: skip
        self.random.choice(actions)(self.random.choice(OUTPUTS))

    def text(self) -> str:
        return self.random.choice("abcde")

    def write(self, out: str) -> None:
        remove(self.root / out)
        if out in DIRECTORIES:
            names = self.random.sample(INSIDE, self.random.randint(1, 5))
            lay(self.root, {f"{out}/{name}": self.text() for name in names})
        else:
            lay(self.root, {out: self.text()})

    def change(self, out: str) -> None:
        if (self.root / out).is_dir():
            lay(self.root, {f"{out}/{self.random.choice('abqr')}": self.text()})

    def lose(self, out: str) -> None:
        if out in DIRECTORIES and (found := files_in(self.root / out)):
            self.random.choice(found).unlink()

    def move(self, out: str) -> None:
        if out in DIRECTORIES and (found := files_in(self.root / out)):
            self.random.choice(found).rename(self.root / out / "moved")

    def drop(self, out: str) -> None:
        remove(self.root / out)

    def add(self, out: str) -> None:
        # Git may have it already: then it stays git's.
        with suppress(OutputError):
            Repo(self.root).add([out])

    def commit(self, out: str) -> None:
        commit(self.root)

    def lose_objects(self, out: str) -> None:
        found = [p for p in files_in(self.root / ".dvc/cache/files") if not p.name.endswith(".dir")]
        if found:
            self.random.choice(found).unlink()

    def push(self, out: str) -> None:
        repo = Repo(self.root)
        if not repo.data_status().not_in_cache and not repo.data_status(granular=True).not_in_cache:
            repo.push()

    def untrack(self, out: str) -> None:
        (self.root / f"{out}.dvc").unlink(missing_ok=True)

    def lose_remote(self, out: str) -> None:
        if found := files_in(self.root.parent / "store"):
            self.random.choice(found).unlink()

    def rename(self, out: str) -> None:
        new = self.root / f"{out}-2"
        if (self.root / f"{out}.dvc").exists() and (self.root / out).exists() and not new.exists():
            (self.root / out).rename(new)
            (self.root / f"{out}.dvc").unlink()
            self.add(f"{out}-2")

    def plain(self, out: str) -> None:
        name = self.random.choice(["code/x.py", "sub/k", "README", "sub/deep/y"])
        lay(self.root, {name: "x" * self.random.randint(0, 3000)})
        (self.root / name).chmod(self.random.choice([0o644, 0o755]))
        (self.root / ".dvcignore").write_text(self.random.choice(["*.py\n", "code/\n", "k\n!sub/k\n", ""]))


def ordered(value: Any) -> Any:
    """Return it with its lists sorted: DVC's come in the order of a hash."""
    if isinstance(value, dict):
        return {key: ordered(inner) for key, inner in value.items()}
    return sorted(map(ordered, value), key=json.dumps) if isinstance(value, list) else value


def questions(chance: random.Random) -> Iterator[tuple[str, ...]]:
    target = chance.choice([(), (), ("data",), ("data/s",), ("one", "sub")])
    yield "data", "status", "--unchanged", "--untracked-files", *target
    yield "data", "status", "--unchanged", "--granular", "--not-in-remote", *target
    yield "diff", "--show-hash"
    yield "diff", "--targets", chance.choice(OUTPUTS)
    yield "list", ".", chance.choice(["", "data", "data/s", "sub", "sub/dir", "one", "nope"])
    yield "list", ".", "-R", *chance.choice([(), ("--dvc-only",), ("-L", "2"), ("-L", "0")])
    yield "status", *target[:1]


@pytest.mark.parametrize("seed", range(6))
def test_dvc_and_we_say_the_same(root: Path, seed: int, dvc: Dvc, fresh_index: Callable[[], None]) -> None:
    """Outputs written, changed, lost, moved, added, committed, pushed; objects lost here and there, in any order."""
    life = Life(root, seed)
    if seed % 3:
        commit(root)
    asked = 0
    for number in range(24):
        life.step()
        if number % 6 != 5:
            continue
        for question in questions(life.random):
            fresh_index()
            theirs, ours = dvc(root, *question, "--json"), dvkf(root, *question, "--json")
            assert ours.code == theirs.code, (question, theirs, ours)
            if theirs.code == 0:
                asked += 1
                assert ordered(json.loads(ours.out)) == ordered(json.loads(theirs.out)), (
                    seed,
                    number,
                    question,
                )
    assert asked > 8


@pytest.mark.parametrize("granular", [(), ("--granular",)])
def test_a_manifest_that_is_nowhere_makes_its_changes_unknown(
    root: Path, granular: tuple[str, ...], dvc: Dvc, fresh_index: Callable[[], None]
) -> None:
    lay(root, {"data/a": "a", "data/s/b": "b", "other": "o"})
    Repo(root).add(["data", "other"])
    commit(root)
    lay(root, {"data/new/c": "c", "data/a": "changed"})
    shutil.rmtree(root / ".dvc/cache")
    fresh_index()
    question = ("data", "status", "--json", *granular)
    theirs, ours = dvc(root, *question).json(), dvkf(root, *question).json()
    assert ordered(ours) == ordered(theirs)
    assert ours["uncommitted"] == {
        "modified": ["data/"],
        **({"unknown": ["data/a", "data/new/", "data/new/c", "data/s/", "data/s/b"]} if granular else {}),
    }
    fresh_index()
    assert ordered(dvkf(root, "diff", "--json").json()) == ordered(dvc(root, "diff", "--json").json())


def test_what_the_workspace_shows_of_a_lost_manifest_is_known(root: Path) -> None:
    """DVC says "unknown", unless it remembers; what is there has the recorded digest, so its files are the recorded."""
    lay(root, {"data/a": "a", "data/s/b": "b"})
    repo = Repo(root)
    repo.add(["data"])
    commit(root)
    shutil.rmtree(root / ".dvc/cache")
    found = Repo(root).data_status(granular=True)
    assert not found.uncommitted
    assert found.unchanged == found.not_in_cache == ("data/", "data/a", "data/s/b")


def test_without_a_commit_and_without_git(root: Path, tmp_path: Path, dvc: Dvc) -> None:
    lay(root, {"data/a": "a"})
    Repo(root).add(["data"])
    for question in (("--granular", "--json"), ("--json", "--unchanged"), ()):
        theirs, ours = dvc(root, "data", "status", *question), dvkf(root, "data", "status", *question)
        assert ours.ok().out == theirs.ok().out.replace('"dvc ', '"dvkf ')
    plain = tmp_path / "plain"
    plain.mkdir()
    repo = Repo.init(plain, no_scm=True)
    lay(plain, {"data/a": "a"})
    repo.add(["data"])
    lay(plain, {"data/a": "b"})
    for question in (("--granular", "--json"), ("--json", "--untracked-files"), ()):
        theirs, ours = dvc(plain, "data", "status", *question), dvkf(plain, "data", "status", *question)
        assert ours.ok().out == theirs.ok().out.replace('"dvc ', '"dvkf ')


TEXTS = [
    ("data", "status"), ("data", "status", "one"), ("data", "status", "--unchanged", "two"),
    ("data", "status", "-r", "x"),
    ("data", "status", "--not-in-remote", "-r", "x"), ("diff",), ("diff", "--md"), ("diff", "--md", "--show-hash"),
    ("diff", "--show-hash"), ("diff", "--hide-missing"), ("diff", "--md", "--hide-missing"),
    ("diff", "HEAD", "HEAD", "--md"),
    ("diff", "HEAD~1", "HEAD", "--md", "--show-hash"), ("diff", "HEAD~1", "HEAD"), ("diff", "--targets", "nope"),
    ("list", "."), ("list", ".", "-R"), ("list", ".", "--size"), ("list", ".", "--size", "--show-hash"),
    ("list", ".", "--show-hash"), ("list", ".", "-T"), ("list", ".", "-T", "-L", "1"), ("list", ".", "-T", "--size"),
    ("list", ".", "-T", "-L", "2", "--size", "--show-hash"), ("list", ".", "data", "-T"), ("list", ".", "nope"),
    ("list", ".", "-T", "--json"), ("list", "/nowhere"), ("list", ".", "--rev", "nope"), ("list", ".", "--dvc-only"),
    ("list", ".", "--rev", "HEAD~1", "-R"), ("list", ".", "--rev", "HEAD", "--dvc-only", "--json"), ("ls", "."),
    ("list", ".", "data/sub", "--rev", "HEAD~1", "--json"), ("du", ".", "-s"), ("du", ".", "one"), ("du", ".", "nope"),
    ("root",), ("status",), ("status", "data/sub"), ("status", "-R", "sub"), ("status", "-R", "."),
    ("status", "nope"), ("status", "-a"), ("status", "-j", "3"), ("status", "-d", "data.dvc"),
    ("status", "--no-updates"), ("status", "-q"),
]  # fmt: skip


def test_the_printed_text_is_dvcs(root: Path, dvc: Dvc) -> None:
    lay(
        root,
        {"data/a": "a", "data/sub/b": "b", "one": "o", "two": "2", "sub/n/nn": "n", "plain.py": "x" * 5000},
    )
    (root / "plain.py").chmod(0o755)
    (root / "link").symlink_to("one")
    repo = Repo(root)
    repo.add(["data", "one", "two", "sub/n/nn"])
    commit(root)
    lay(root, {"data/a": "changed"})
    repo.add(["data"])
    commit(root)
    lay(root, {"data/c": "c", "data/sub/ü": "u"})
    (root / "one").unlink()
    (root / "data/sub/b").rename(root / "data/b")
    repo.cache.path(next(o.digest or "" for o in repo.outputs(["one"]))).unlink()
    for line in TEXTS:
        theirs, ours = dvc(root, *line), dvkf(root, *line)
        assert (ours.code, ours.out) == (theirs.code, theirs.out.replace('"dvc ', '"dvkf ')), line
    for line in (("root",), ("status",), ("status", "../data"), ("status", "--json"), ("list", "..", "n")):
        theirs, ours = dvc(root / "sub", *line), dvkf(root / "sub", *line)
        assert (ours.code, ours.out) == (theirs.code, theirs.out), line


def test_a_directory_that_is_elsewhere_is_listed(root: Path, dvc: Dvc) -> None:
    """Neither workspace nor cache has it: the manifest comes from the remote, and nothing is kept of it."""
    # A clone by url finds no relative one.
    config = root / ".dvc/config"
    config.write_text(config.read_text().replace("../../store", str(root.parent / "store")))
    lay(root, {"data/a": "a", "data/sub/b": "b"})
    repo = Repo(root)
    repo.add(["data"])
    commit(root)
    repo.push()
    shutil.rmtree(root / ".dvc/cache")
    shutil.rmtree(root / "data")
    for line in (("data", "-R", "--json"), ("-T",), ("data/sub", "--json"), ("--rev", "HEAD", "-R")):
        assert dvkf(root, "list", ".", *line).ok().out == dvc(root, "list", ".", *line).ok().out
    assert not (root / ".dvc/cache").exists()
    url = f"file://{root}"
    assert dvkf(root.parent, "list", url, "data").ok().out == dvc(root.parent, "list", url, "data").ok().out
    shutil.rmtree(root.parent / "store")
    said = dvkf(root, "list", ".", "data")
    assert said.code == 255  # as dvc ends where its own memory of the remote is gone too
    assert "'data' are unknown" in said.err
    assert "in a clone that has it" in said.err


PATTERNS = (
    "*.log", "a", "a/", "/a", "a/b", "**/b", "b/**", "!keep.log", "!a", "!a/", "!b/", "*.txt", "[ab]", "/b/*",
    "!/b/keep.log", "x y", "# c", "", "!*.txt", "a/**/b", "**", "*", "!**", "/", "\\!q", "a//b", "  b  ", "!c.txt",
    "*/",
)  # fmt: skip
NAMES = ("a", "b", "c.txt", "d.log", "keep.log", "x y", ".h")


def _grow(folder: Path, chance: random.Random, depth: int = 0) -> None:
    if chance.random() < 0.6:
        lines = [chance.choice(PATTERNS) for _ in range(chance.randint(1, 5))]
        (folder / ".dvcignore").write_text("\n".join(lines) + "\n")
    for name in NAMES:
        what = chance.random()
        if what < 0.4 and depth < 3:
            (folder / name).mkdir()
            _grow(folder / name, chance, depth + 1)
        elif what < 0.7:
            (folder / name).write_text("")


@pytest.mark.parametrize("seed", range(8))
def test_dvcignore_means_what_it_means_to_dvc(tmp_path: Path, seed: int, dvc: Dvc) -> None:
    """Nested files, negations and odd patterns: each path's verdict, and the line that decides."""
    repo = Repo.init(tmp_path, no_scm=True)
    _grow(tmp_path, random.Random(seed))
    (tmp_path / "nested/.dvc").mkdir(parents=True)
    (tmp_path / "nested/f").write_text("")
    paths = [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))]
    paths = [p for p in paths if not p.startswith(".dvc/")]
    line = ("check-ignore", "--details", "--non-matching", *paths, "nowhere", "a/nowhere")
    assert dvkf(tmp_path, *line).out == dvc(tmp_path, *line).out
    # What tells a person is what leaves files out.
    told = dvkf(tmp_path, "check-ignore", *paths).out.splitlines()
    ignore = Ignore(repo.root)
    assert told == [p for p in paths if ignore.matches(p + "/" if (tmp_path / p).is_dir() else p)]


CHECKS = [
    ("k.log",), ("keep.log",), ("-d", "keep.log", "k.log", "in/aa", "in/ab", "none", "build", "in/deep/x"), ("none",),
    ("-d", "-n", "none", "k.log"), ("-d", "-a", "in/deep/x/k.log"), (), ("-n", "x"), ("-d", "-q", "x"),
    ("-q", "k.log"), ("-q", "none"), ("-d", ".git", ".dvc", ".dvc/tmp"), ("-a", "x"), (".", "..", "/etc/passwd"),
    ("-d", "in/ab"),
    ("./in/aa", "in/../in/aa/"), ("--stdin", "x"),
]  # fmt: skip


def test_check_ignore_prints_and_ends_as_dvc(root: Path, dvc: Dvc, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(
        root,
        {".dvcignore": "*.log\n!keep.log\nbuild/\n/in/deep\n", "in/.dvcignore": "a*\n!ab\n", "in/aa": ""},
    )
    (root / "build").mkdir()
    for line in CHECKS:
        theirs, ours = dvc(root, "check-ignore", *line), dvkf(root, "check-ignore", *line)
        assert (ours.code, ours.out) == (theirs.code, theirs.out), line
    typed = root.parent / "typed"
    typed.write_text("k.log\nnone\nin/aa\n\nin/k.log\n")
    with open(typed) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        ours = dvkf(root, "check-ignore", "--stdin", "-d", "-n")
    assert (ours.code, ours.out) == (0, ".dvcignore:1:*.log\tk.log\n::\tnone\nin/.dvcignore:1:a*\tin/aa\n")


def test_quiet_data_status_ends_with_1_when_something_changed(root: Path) -> None:
    lay(root, {"data/a": "a"})
    repo = Repo(root)
    repo.add(["data"])
    assert dvkf(root, "data", "status", "-q").ok(1).out == ""
    commit(root)
    dvkf(root, "data", "status", "-q").ok()
    dvkf(root, "data", "status", "-q", "--not-in-remote").ok(1)
    repo.push()
    dvkf(root, "data", "status", "-q", "--not-in-remote").ok()
    assert os.listdir(root.parent / "store")


def test_imports_that_changed_where_they_come_from_are_told_of(root: Path, tmp_path: Path, dvc: Dvc) -> None:
    other = tmp_path / "other"
    make_repo(other)
    lay(other, {"plain/a": "a"})
    commit(other)
    dvc(root, "import", str(other), "plain").ok()
    for line in (("status", "--json"), ("status",)):
        assert dvkf(root, *line).ok().out == dvc(root, *line).ok().out
    lay(other, {"plain/a": "changed"})
    commit(other)
    for line in (
        ("status", "--json"),
        ("status", "--json", "--no-updates"),
        ("status", "plain.dvc"),
        ("status", "-q"),
    ):
        theirs, ours = dvc(root, *line), dvkf(root, *line)
        assert (ours.code, ours.out) == (theirs.code, theirs.out), line
    assert "update available" in dvkf(root, "status").ok().out
