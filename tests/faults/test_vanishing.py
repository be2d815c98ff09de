"""Files and folders that another process removes between the listing of their folder and the look at them."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sizes import size

from dvkf_prefect import cli
from dvkf_prefect.data.cache import cache, workers

# The share of what is listed that is removed, each in a try of its own; VANISHING=1 takes three minutes.
SHARE = float(size("VANISHING", "0.02", "0.05"))
# What the rest stands or falls with is removed in any case.
ALWAYS = {
    "status": ["r/d/s", "r/d/y", "r/d.dvc", "r/dvc.yaml"],
    "add d": ["r/d/s", "r/d/y", "r/sub/z.dvc"],
    "repro": ["r/d.dvc"],
    "unprotect d": ["r/d/s/x"],
    "gc -w -f": ["r/sub/z.dvc"],
}
# Nobody knows what a file names that git may just be writing anew: such data is not collected, nor vouched for.
REFUSED = re.compile(r"(dvc.yaml|\.dvc): (cannot be read, so .*nothing was removed|\[Errno 2])")
VERBS = [
    "status", "status -c", "data status", "diff", "list . -R", "list . -R --size", "du .", "gc -w -f", "gc -w -c -f",
    "add d", "commit -f", "repro", "push", "push --run-cache", "fetch", "pull", "checkout", "stage list --all",
    "metrics show", "unprotect d", "verify", "dag", "move d e", "remove d.dvc", "import . d -o i",
]  # fmt: skip
PIPELINE = (
    "stages:\n  one:\n    cmd: cp in kept/out && echo 1 > m.yaml\n    deps: [in]\n"
    "    outs: [kept/out]\n    metrics: [m.yaml: {cache: false}]\n"
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("vanishing") / "w"
        repo = root / "r"
        for folder in ("d/s", "sub/deep", "kept", "plain/empty"):
            (repo / folder).mkdir(parents=True)
        for name in ("d/s/x", "d/y", "sub/deep/z", "sub/z", "in", "plain/p"):
            (repo / name).write_text(name)
        (repo / "dvc.yaml").write_text(PIPELINE)
        patch.chdir(repo)
        subprocess.run(["git", "init", "-q"], check=True)
        for line in ("init -q", "remote add -d store ../remote", "add -q d sub/z sub/deep/z", "repro -q"):
            assert cli.main(line.split()) == 0
        subprocess.run(["git", "add", "-A"], check=True)
        subprocess.run(["git", "commit", "-qm", "1"], check=True)
        assert cli.main(["push", "-q", "--run-cache"]) == 0
        for name in ("d/s/x", "in"):
            (repo / name).chmod(0o644)
            (repo / name).write_text("changed")
        yield root


class Vanishing:
    """In place of `os.scandir`: notes what it lists, and removes one of it before anybody looks at it."""

    def __init__(self, root: Path, victim: str | None) -> None:
        self.root = root
        self.victim = victim
        self.listed: set[str] = set()
        self._scandir: Any = os.scandir

    def __call__(self, path: Any = ".") -> Any:
        with self._scandir(path) as real:
            entries = list(real)
        for entry in entries:
            full = os.path.abspath(os.fspath(entry.path)) if isinstance(entry.path, str) else ""
            if full.startswith(f"{self.root}/") and "/.git/" not in full:
                name = full[len(str(self.root)) + 1 :]
                self.listed.add(name)
                if name == self.victim:
                    self.victim = None
                    self._remove(Path(full))
        return _Listed(entries)

    def _remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            for folder, folders, names in os.walk(path, topdown=False):
                for name in (*names, *folders):
                    with suppress(OSError):
                        place = Path(folder, name)
                        place.rmdir() if place.is_dir() else place.unlink()
            path.rmdir()
        else:
            path.unlink()


class _Listed:
    def __init__(self, entries: list[os.DirEntry[str]]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self._entries

    def __next__(self) -> os.DirEntry[str]:
        return next(self._entries)

    def __enter__(self) -> _Listed:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Do nothing: all was read."""


def _try(template: Path, where: Path, verb: str, victim: str | None) -> tuple[int, set[str]]:
    shutil.copytree(template, where, symlinks=True)
    vanishing = Vanishing(where, victim)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where / "r")
        patch.setattr(os, "scandir", vanishing)
        code = cli.main(verb.split())
    assert victim is None or vanishing.victim is None or victim not in vanishing.listed
    shutil.rmtree(where)
    return code, vanishing.listed


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", VERBS)
def test_what_vanishes_while_it_is_looked_at_is_not_there(
    template: Path, tmp_path: Path, verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _, listed = _try(template, tmp_path / "all", verb, None)
    capfd.readouterr()
    assert listed
    victims = sorted(listed)
    if SHARE < 1:
        some = random.Random(verb).sample(victims, max(1, int(len(victims) * SHARE)))
        victims = sorted({*some, *ALWAYS.get(verb, ())})
    problems = []
    for number, victim in enumerate(victims):
        code, _ = _try(template, tmp_path / f"w{number}", verb, victim)
        out, err = capfd.readouterr()
        allowed = verb.startswith(("gc", "verify")) and REFUSED.search(err)
        # A stage's command may need the folder, and a warning that names the file is an answer.
        allowed = allowed or (verb, victim) in {("repro", "r/kept"), ("metrics show", "r/m.yaml")}
        if "Traceback" in err or "unexpected error" in err or (not allowed and "No such file" in err):
            problems.append(f"{victim}: {code} {out[-300:]} {err[-1500:]}")
        elif code and not err and not out:
            problems.append(f"{victim}: {code} without a word")
    assert not problems, f"{verb}: {len(problems)} of {len(victims)}\n" + "\n".join(problems)


@pytest.mark.parametrize("verb", ["status", "diff", "data status"])
def test_what_vanishes_before_it_is_hashed_is_not_there(
    template: Path,
    tmp_path: Path,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    where = _removed_before_hashing(template, tmp_path, monkeypatch, often=1)
    assert cli.main(verb.split()) == 0
    out, err = capfd.readouterr()
    assert not err
    assert "d" in out and not (where / "r/d/s/x").exists()


def test_a_folder_that_never_rests_is_named(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _removed_before_hashing(template, tmp_path, monkeypatch, often=99)
    assert cli.main(["status"]) != 0
    assert "d: files disappear while they are read" in capfd.readouterr().err


def test_what_vanishes_while_it_is_added_is_named(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As `dvc`: a file that the user sees added was there to the end."""
    where = _removed_before_hashing(template, tmp_path, monkeypatch, often=1)
    before = (where / "r/d.dvc").read_text()
    assert cli.main(["add", "d"]) == 1
    assert "d/s/x disappeared while it was read; nothing was recorded" in capfd.readouterr().err
    assert (where / "r/d.dvc").read_text() == before
    assert cli.main(["add", "-q", "d"]) == 0
    assert (where / "r/d.dvc").read_text() != before


def _removed_before_hashing(template: Path, tmp_path: Path, patch: pytest.MonkeyPatch, *, often: int) -> Path:
    """Remove a file between the scan of a folder and the hashing, and bring it back `often` less one times."""
    where = tmp_path / "w"
    shutil.copytree(template, where, symlinks=True)
    patch.chdir(where / "r")
    victim = where / "r/d/s/x"
    left = [often]
    share = workers.share

    def removing(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            victim.unlink()
            try:
                yield from share(*args, **kwargs)
            finally:
                if left[0]:
                    victim.write_text("again")
        else:
            yield from share(*args, **kwargs)

    for module in (cache, workers):
        patch.setattr(module, "share", removing)
    return where
