"""A repository to be hurt: two commits of data, a remote, a source to import from; and what must hold afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DVKF = [str(Path(sys.executable).with_name("dvkf"))]
FILES = 240
LARGE = 5 << 20


def environment(home: Path) -> dict[str, str]:
    """Return an environment of this machine without its user's settings."""
    home.mkdir(exist_ok=True)
    temporary = home / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
        "GIT_CONFIG_NOSYSTEM": "1",
    }


def run(
    where: Path, env: Mapping[str, str], *command: str, ok: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it said; it must succeed unless ``ok`` is false."""
    done = subprocess.run(command, cwd=where, env=dict(env), capture_output=True, text=True, timeout=300)
    assert not ok or done.returncode == 0, (command, done.stdout, done.stderr)
    return done


@dataclass(frozen=True)
class Verb:
    """A verb to be interrupted.

    Attributes:
        name: How it is called in messages.
        command: Its arguments.
        prepare: Shell commands that bring the repository into the state that it works on.
        done: A shell command that succeeds once it was done, so that it need not be done again.
    """

    name: str
    command: tuple[str, ...]
    prepare: str = "true"
    done: str = "false"


_CHANGE = "for i in d/s1/*; do echo changed$i > $i; done; head -c 5000000 /dev/zero > d/big"
VERBS = (
    Verb("add", ("add", "-q", "d"), _CHANGE),
    Verb("commit", ("commit", "-q", "-f"), _CHANGE),
    Verb("checkout", ("checkout", "-q"), "git checkout -q HEAD~1 -- d.dvc"),
    Verb("checkout anew", ("checkout", "-q"), "rm -rf d"),
    Verb("push", ("push", "-q"), "rm -rf ../remote"),
    Verb("fetch", ("fetch", "-q"), "rm -rf .dvc/cache"),
    Verb("pull", ("pull", "-q"), "rm -rf .dvc/cache d"),
    Verb("gc", ("gc", "-q", "-w", "-f"), "true"),
    Verb("import", ("import", "-q", "../src", "d", "-o", "i"), "true", "test -e i.dvc"),
    Verb("get", ("get", "-q", "../src", "d", "-o", "g"), "true", "test -e g"),
    Verb("update", ("update", "-q", "old.dvc"), "true"),
    Verb("move", ("move", "d", "e"), "true", "test -e e.dvc -a ! -e d.dvc"),
    Verb("remove", ("remove", "--outs", "d.dvc"), "true", "test ! -e d.dvc"),
    Verb("import-url", ("import-url", "-q", "../plain", "u"), "true", "test -e u.dvc"),
    Verb("verify", ("verify",), "true"),
)


class World:
    """A template that each trial has a copy of.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._copies = 0
        self.env = environment(root / "home")
        self.template = root / "template"
        self.template.mkdir()
        source = self.template / "src"
        self._repository(source, "../srcremote")
        self._data(source / "d", "first")
        self._commit(source, "d")
        run(source, self.env, *DVKF, "push", "-q")
        repo = self.template / "r"
        self._repository(repo, "../remote")
        self._data(repo / "d", "first")
        self._commit(repo, "d")
        run(repo, self.env, *DVKF, "import", "-q", "../src", "d", "-o", "old")
        self._data(repo / "d", "second")
        self._commit(repo, "d")
        run(repo, self.env, *DVKF, "push", "-q", "--all-commits")
        self._data(source / "d", "third")
        self._commit(source, "d")
        run(source, self.env, *DVKF, "push", "-q")
        self._data(self.template / "plain", "plain")
        self.committed = self._objects(repo)

    def _repository(self, path: Path, remote: str) -> None:
        path.mkdir()
        run(path, self.env, "git", "init", "-q", "-b", "main")
        run(path, self.env, *DVKF, "init", "-q")
        run(path, self.env, *DVKF, "remote", "add", "-d", "store", remote)

    def _data(self, folder: Path, content: str) -> None:
        for number in range(FILES):
            path = folder / f"s{number % 3}" / f"f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content} {number}")
        (folder / "big").write_bytes(hashlib.sha256(content.encode()).digest() * (LARGE // 32))

    def _commit(self, repo: Path, *targets: str) -> None:
        run(repo, self.env, *DVKF, "add", "-q", *targets)
        run(repo, self.env, "git", "add", "-A")
        run(repo, self.env, "git", "commit", "-qm", "data")

    def _objects(self, repo: Path) -> set[str]:
        """Return what the commits of d.dvc name."""
        found: set[str] = set()
        for rev in run(repo, self.env, "git", "log", "--format=%H", "--", "d.dvc").stdout.split():
            text = run(repo, self.env, "git", "show", f"{rev}:d.dvc").stdout
            manifest = next(line.split()[-1] for line in text.splitlines() if "md5:" in line)
            data = object_path(repo / ".dvc/cache", manifest).read_bytes()
            found |= {manifest, *(entry["md5"] for entry in json.loads(data))}
        return found

    def copy(self, verb: Verb, name: str) -> Path:
        """Return a new copy of the repository, prepared for a verb."""
        self._copies += 1
        where = self.root / f"{name}{self._copies}"
        subprocess.run(["cp", "-a", str(self.template), str(where)], check=True)
        run(where / "r", self.env, "sh", "-c", verb.prepare)
        return where

    def finish(self, where: Path, verb: Verb, env: Mapping[str, str] | None = None) -> list[str]:
        """Do the verb again; return what is wrong afterwards."""
        env = env or self.env
        repo = where / "r"
        problems: list[str] = []
        if run(repo, env, "sh", "-c", verb.done, ok=False).returncode:
            again = run(repo, env, *DVKF, *verb.command, ok=False)
            if again.returncode:
                problems.append(f"{verb.name} again: {again.returncode} {again.stderr[-600:]}")
        else:
            # Done, perhaps not tidied up: any other verb that writes does that.
            run(repo, env, *DVKF, "checkout", "-q", ok=False)
        problems += self.check(where)
        if not problems:
            said = run(repo, env, *DVKF, "status", ok=False)
            if said.returncode not in (0, 1):
                problems.append(f"status after {verb.name}: {said.stderr[-300:]}")
        return problems

    def check(self, where: Path, *, leftovers: bool = True) -> list[str]:
        """Return what is lost, damaged or left in a copy."""
        problems: list[str] = []
        stores = (where / "r/.dvc/cache", where / "remote")
        whole: set[str] = set()
        for store in stores:
            for path in (store / "files/md5").glob("??/*"):
                name = path.parent.name + path.name
                if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != name[:32]:
                    problems.append(f"damaged: {path.relative_to(where)} ({path.stat().st_size} bytes)")
                else:
                    whole.add(name)
        if lost := self.committed - whole:
            problems.append(f"{len(lost)} committed objects lost")
        for repo in (where / "r",):
            for file in repo.glob("?*.dvc"):
                problems += _named(repo, file, whole)
        if leftovers:
            problems += [f"left: {path}" for path in left(where)]
        return problems


def object_path(store: Path, digest: str) -> Path:
    """Return where an object lies in a cache or a remote that is a folder."""
    return store / "files/md5" / digest[:2] / digest[2:]


def _named(repo: Path, file: Path, whole: set[str]) -> list[str]:
    lines = file.read_text().split("outs:")[-1].splitlines()
    digest = next((line.split()[-1] for line in lines if "md5:" in line), None)
    if digest is None:
        return [f"{file.name} names nothing"]
    if digest not in whole:
        # What was imported may be had again.
        return (
            []
            if file.name in ("old.dvc", "i.dvc", "u.dvc")
            else [f"{file.name} names {digest}, which is lost"]
        )
    path = object_path(repo / ".dvc/cache", digest)
    if not digest.endswith(".dir") or not path.exists():
        return []
    lost = {entry["md5"] for entry in json.loads(path.read_bytes())} - whole
    return [f"{len(lost)} files of {file.name} are lost"] if lost and file.name == "d.dvc" else []


def left(where: Path) -> list[str]:
    """Return temporary files and folders that nobody needs."""
    found: list[str] = []
    for folder, folders, names in os.walk(where):
        if os.path.basename(folder) in ("tmp-dvkf", ".dvkf-tmp"):
            found += [f"{folder}/{name}" for name in (*folders, *names) if "-corrupt-" not in name]
        found += [
            f"{folder}/{name}"
            for name in (*folders, *names)
            if (name.endswith(".dvkf-tmp") and name != ".dvkf-tmp") or name.startswith(".dvkf-get")
        ]
    return found


def discard(where: Path) -> None:
    """Remove a copy."""
    shutil.rmtree(where, ignore_errors=True)


def label(problems: Sequence[str]) -> str:
    """Return problems as one text."""
    return "\n".join(problems)
