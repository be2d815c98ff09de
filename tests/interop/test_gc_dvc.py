"""What the real `dvc gc` leaves and what ours leaves, on copies of one repository."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from dvkf_prefect.cli import main
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.repo import Repo

PIPELINE = """\
stages:
  copy:
    cmd: cp -r data copied && cp data/0 kept
    deps:
    - data
    outs:
    - copied
    - kept:
        cache: false
"""


def dvc(root: Path, *args: str, code: int = 0) -> str:
    done = subprocess.run(["dvc", *args], cwd=root, capture_output=True, text=True)
    assert done.returncode == code, f"dvc {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def objects(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process is again after `--cd`."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a history: branches, tags, days, versions never committed, a run cache, DVC 2.x objects."""
    top = tmp_path_factory.mktemp("generated")
    root = top / "repo"
    root.mkdir()
    # The fixture that cleans the environment is a test's own, and this is made before it.
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]

    def git(*args: str, day: int = 1) -> None:
        when = f"2024-01-{day:02}T12:00:00"
        env = {"GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when, "PATH": "/usr/bin:/bin", "HOME": str(top)}
        subprocess.run(["git", *who, *args], cwd=root, check=True, env=env)

    git("init", "-q", "-b", "main")
    Repo.init(root)
    # Relative, so that a copy has a remote of its own.
    (root / ".dvc/config").write_text(
        "[core]\n    remote = store\n['remote \"store\"']\n    url = ../../store\n"
    )
    repo = Repo.open(root)
    numbers = random.Random(7)

    def state(day: int) -> None:
        lay(root, {f"data/{i}": f"{i} {numbers.randrange(4)}" for i in range(6)})
        lay(root, {"single": f"single {day}", f"sub/deep/{day}": "of one day"})
        repo.add(["data", "single", f"sub/deep/{day}"])
        if day == 5:
            (root / "dvc.yaml").write_text(PIPELINE)
        if day >= 5:
            subprocess.run(["dvkf", "repro", "-q"], cwd=root, check=True)
        repo.push()
        git("add", "-A")
        git("commit", "-q", "-m", f"day {day}", day=day)

    for day in range(1, 8):
        if day == 3:
            git("checkout", "-q", "-b", "side")
        if day == 5:
            git("checkout", "-q", "main")
            repo.checkout(force=True)
        state(day)
        if day in (2, 4):
            git("tag", f"v{day}")
        if day == 6:
            git("tag", "-a", "annotated", "-m", "x")
    git("branch", "old", "HEAD~2")
    # Versions that no commit has.
    lay(root, {"data/0": "never committed", "single": "never committed either"})
    repo.add(["data", "single"])
    repo.push()
    lay(root, {"single": "of the workspace"})
    repo.add(["single"])
    repo.push()
    # DVC 2.x: one in use, one not.
    for used in (True, False):
        text = f"legacy {used}"
        digest = digest_bytes(text.encode())
        for store in (root / ".dvc/cache", top / "store"):
            lay(store, {f"{digest[:2]}/{digest[2:]}": text})
        if used:
            lay(root, {"legacy.dvc": f"outs:\n- md5: {digest}\n  size: {len(text)}\n  path: legacy\n"})
            lay(root, {"legacy": text})
    # Neither of these is an object.
    lay(top / "store", {"packs/ab/pack-1": "x", "dvkf/index": "x", "runs/ab/x": "x"})
    lay(root / ".dvc/cache", {"packs/ab/pack-1": "x"})
    return top


SCOPES = {
    "workspace": ["-w"],
    "branches": ["-a"],
    "branches back": ["-a", "-n", "2"],
    "tags": ["-T"],
    "branches and tags": ["-aT"],
    "commits": ["-A"],
    "revision": ["--rev", "HEAD~1"],
    "revision back": ["--rev", "side", "--num", "3"],
    "date": ["--date", "2024-01-05"],
}


@pytest.mark.parametrize("scope", SCOPES)
def test_the_same_objects_are_left(generated: Path, tmp_path: Path, scope: str) -> None:
    """In the cache and on the remote, of which nothing is too young and everything is known."""
    left = {}
    for name in ("ours", "theirs"):
        top = tmp_path / name
        shutil.copytree(generated, top, symlinks=True)
        arguments = ["gc", *SCOPES[scope], "-c", "-f"]
        if name == "ours":
            assert main(["--cd", str(top / "repo"), *arguments, "--grace", "0"]) == 0
        else:
            dvc(top / "repo", *arguments)
        left[name] = objects(top / "repo/.dvc/cache"), objects(top / "store")
    before = objects(generated / "repo/.dvc/cache"), objects(generated / "store")
    assert left["ours"] == left["theirs"]
    # Whatever the scope, there was something to remove, and something to keep.
    assert all(0 < len(after) < len(was) for after, was in zip(left["ours"], before, strict=True))
    root = tmp_path / "ours/repo"
    if scope == "workspace":
        # The stage is out of date, for its dependency changed.
        dvc(root, "status", "-q", "data.dvc", "single.dvc", "legacy.dvc")
    assert dvc(root, "gc", *SCOPES[scope], "-f", "--dry").splitlines() == [
        "No unused 'repo' cache to remove.",
        "No unused 'legacy' cache to remove.",
    ]


def test_what_is_printed(generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(generated, tmp_path / "top", symlinks=True)
    root = tmp_path / "top/repo"
    capsys.readouterr()
    for arguments in (["-w", "-c", "--dry"], ["-aT", "-c", "-f"], ["-aT", "-c", "-f"]):
        theirs = subprocess.run(
            ["dvc", "gc", *arguments, *([] if "--dry" in arguments else ["--dry"])],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        assert main(["--cd", str(root), "gc", *arguments, "--grace", "0"]) == 0
        ours = capsys.readouterr()
        assert ours.err == theirs.stderr
        said = [line for line in theirs.stdout.splitlines() if not line.startswith("Removing ")]
        assert [line for line in ours.out.splitlines() if line in said] == said
        if "--dry" in arguments:
            names = {line for line in theirs.stdout.splitlines() if line.startswith("Removing ")}
            assert {line for line in ours.out.splitlines() if line.startswith("Removing ")} == names


@pytest.mark.parametrize(
    "arguments",
    [[], ["-w", "--num", "2"], ["-w", "-c", "--not-in-remote"], ["--rev", "nowhere", "-f"], ["-w"]],
)
def test_what_is_refused(generated: Path, tmp_path: Path, arguments: list[str]) -> None:
    """With DVC's exit code; there is nobody to ask."""
    shutil.copytree(generated, tmp_path / "top", symlinks=True)
    root = tmp_path / "top/repo"
    before = objects(tmp_path / "top/store"), objects(root / ".dvc/cache")
    theirs = subprocess.run(
        ["dvc", "gc", *arguments], cwd=root, stdin=subprocess.DEVNULL, capture_output=True
    )
    ours = subprocess.run(["dvkf", "gc", *arguments], cwd=root, stdin=subprocess.DEVNULL, capture_output=True)
    assert ours.returncode == theirs.returncode != 0
    assert b"ERROR: " in ours.stderr
    assert (objects(tmp_path / "top/store"), objects(root / ".dvc/cache")) == before


def test_only_what_the_remote_lacks_is_kept(generated: Path, tmp_path: Path) -> None:
    left = []
    for name in ("ours", "theirs"):
        top = tmp_path / name
        shutil.copytree(generated, top, symlinks=True)
        for path in sorted((top / "store/files/md5").rglob("*"))[:20]:
            if path.is_file():
                path.unlink()
        if name == "ours":
            assert main(["--cd", str(top / "repo"), "gc", "-w", "--not-in-remote", "-f"]) == 0
        else:
            dvc(top / "repo", "gc", "-w", "--not-in-remote", "-f")
        left.append(objects(top / "repo/.dvc/cache"))
    assert left[0] == left[1]
    assert any("files/md5" in path for path in left[0])
