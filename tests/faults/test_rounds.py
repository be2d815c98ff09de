"""Processes of `dvkf` and `dvc` at once on clones with one cache and one remote: nothing is lost, also by collections.

After each round, all that a workspace tracks is in the cache, and what was pushed and is tracked still is on the
remote, each object with the bytes of its name. Collections have no grace, so that only locks and marks protect what is
young. Contents come from a small set: what is garbage of one clone is often just being added by another.

``ROUNDS=100`` in the environment makes more rounds, ``ROUNDS_SEED=…`` other ones.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sizes import size

from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.repo import Repo

_ROUNDS = int(size("ROUNDS", "2", "5"))
_SEED = int(os.environ.get("ROUNDS_SEED", "1"))
_BIN = Path(sys.executable).parent
_CLONES = ("a", "b", "c")
_PROCESSES = 6
_CONTENTS = 10
_DIGEST = re.compile(r"md5: ([0-9a-f]{32}(?:\.dir)?)$", re.MULTILINE)

# A file and a directory that another process does not write, tracked and committed.
ADD = """
mkdir -p s{slot}/dir && printf %s 'content {one}' > s{slot}/file
printf %s 'content {two}' > s{slot}/dir/x; printf %s 'content {three}' > s{slot}/dir/y
{tool} add -q s{slot}/file s{slot}/dir && git add -A && git commit -qm 'slot {slot}'
"""
COMMANDS = {
    "add": ADD,
    "commit": (
        "test -f s{slot}/file.dvc || exit 0; printf %s 'content {one}' > s{slot}/file\n"
        "{tool} commit -q -f s{slot}/file.dvc && git add -A && git commit -qm 'slot {slot} again'"
    ),
    "push": (
        "cat */*.dvc dvc.lock > ../before.{id} 2>/dev/null; {tool} push -q || exit 1\n"
        "cat */*.dvc dvc.lock > ../after.{id} 2>/dev/null; true"
    ),
    "pull": "{tool} pull -q",
    "checkout": "rm -rf s{slot}/dir; {tool} checkout -q",
    "status": "{tool} status -q",
    "repro": "printf %s 'input {one}' > in; {tool} repro -q && git add -A && git commit -qm repro",
    "gc": "{tool} gc -q -f -w {grace} -p {others}",
    "gc cloud": "{tool} gc -q -f -w -c {grace} -p {others}",
}
WEIGHTS = {"add": 6, "commit": 2, "push": 3, "repro": 2, "gc": 2, "gc cloud": 2}


@dataclass
class World:
    """Clones that share a cache and a remote.

    Attributes:
        root: The folder that holds all of it.
        draw: Chooses what runs.
        pushed: What each clone tracks since it was pushed.
        ran: How often each command ended well, and how often it did not.
    """

    root: Path
    draw: random.Random
    pushed: dict[str, set[str]] = field(default_factory=dict)
    ran: Counter[str] = field(default_factory=Counter)

    def make(self) -> None:
        origin = self.root / "origin"
        origin.mkdir()
        _run("git init -q . && dvkf init -q", origin)
        _run(f"dvkf cache dir {self.root}/cache && dvkf remote add -q -d store {self.root}/store", origin)
        stage = {"cmd": "cat in > out && cat in in > more", "deps": ["in"], "outs": ["out", "more"]}
        (origin / "dvc.yaml").write_text(json.dumps({"stages": {"copy": stage}}))
        (origin / "in").write_text("input")
        _run("git add -A && git commit -qm start", origin)
        for name in _CLONES:
            _run(f"git clone -q origin {name}", self.root)

    def round(self, number: int) -> None:
        running: list[tuple[str, subprocess.Popen[str]]] = []
        for slot in range(_PROCESSES):
            clone = self.draw.choice(_CLONES)
            kind = self.draw.choices(list(COMMANDS), [WEIGHTS.get(name, 1) for name in COMMANDS])[0]
            tool = self.draw.choice(("dvkf", "dvkf", "dvc"))
            one, two, three = (self.draw.randrange(_CONTENTS) for _ in range(3))
            others = " ".join(f"{self.root}/{name}" for name in _CLONES if name != clone)
            line = COMMANDS[kind].format(
                tool=tool, slot=slot, id=f"{clone}-{number}-{slot}", one=one, two=two, three=three, others=others,
                grace="--grace 0" if tool == "dvkf" else "",
            )  # fmt: skip
            process = subprocess.Popen(
                ["sh", "-c", line],
                cwd=self.root / clone,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            running.append((f"{tool} {kind}", process))
        for name, process in running:
            told, _ = process.communicate(timeout=300)
            assert "Traceback" not in told, told
            self.ran[f"{name} {'ok' if process.returncode == 0 else 'refused'}"] += 1

    def lost(self) -> list[str]:
        """Return what is tracked and not had."""
        found: list[str] = []
        for file in self.root.glob("after.*"):
            before = file.with_name(file.name.replace("after", "before"))
            ours = self.pushed.setdefault(file.name.split(".")[1].split("-")[0], set())
            # What changed while it was sent may not have been.
            ours |= _digests(before) & _digests(file)
            file.unlink()
        for name in _CLONES:
            outputs = Repo.open(self.root / name).outputs()
            tracked = {output.digest: output.path for output in outputs if output.digest}
            pushed = self.pushed[name] = self.pushed.get(name, set()) & tracked.keys()
            for digest, path in tracked.items():
                found += [f"cache: {name}/{path}: {what}" for what in _missing(self.root / "cache", digest)]
                if digest in pushed:
                    found += [
                        f"store: {name}/{path}: {what}" for what in _missing(self.root / "store", digest)
                    ]
        return found


def _digests(file: Path) -> set[str]:
    return set(_DIGEST.findall(file.read_text(errors="replace")))


def _missing(root: Path, digest: str) -> Iterator[str]:
    """Yield what an object and, of a directory, its files lack."""
    path = root / "files" / "md5" / digest[:2] / digest[2:]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        yield f"{digest} is gone"
        return
    if digest_bytes(data) != digest.removesuffix(".dir"):
        yield f"{digest} is damaged"
    elif digest.endswith(".dir"):
        for entry in json.loads(data):
            yield from _missing(root, entry["md5"])


def _run(line: str, folder: Path) -> None:
    subprocess.run(["sh", "-c", line], cwd=folder, check=True, timeout=120)


@pytest.mark.timeout(7200)
def test_rounds_of_processes_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{_BIN}{os.pathsep}{os.environ['PATH']}")
    world = World(tmp_path, random.Random(_SEED))
    world.make()
    for number in range(_ROUNDS):
        world.round(number)
        assert not world.lost(), f"round {number} of seed {_SEED}"
    print(f"{_ROUNDS} rounds, seed {_SEED}, lost 0: {dict(sorted(world.ran.items()))}")


def test_what_is_collected_between_a_run_and_its_record_is_stored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real dvc goes by dvc.lock alone, which does not name a run's outputs yet."""
    from dvkf_prefect.cli import main
    from dvkf_prefect.pipeline.run import repro

    monkeypatch.chdir(tmp_path)
    assert main(["init", "-q", "--no-scm"]) == 0
    stage = {"cmd": "echo a > out && mkdir d && echo b > d/x", "outs": ["out", "d"]}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"copy": stage}}))
    settle = repro.settle_outputs

    def collect(*arguments: object, **options: object) -> object:
        for path in (tmp_path / ".dvc/cache/files/md5").glob("??/*"):
            path.unlink()
        return settle(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(repro, "settle_outputs", collect)
    assert main(["repro", "-q"]) == 0
    digests = _digests(tmp_path / "dvc.lock")
    assert len(digests) == 2
    assert not [what for digest in digests for what in _missing(tmp_path / ".dvc/cache", digest)]
