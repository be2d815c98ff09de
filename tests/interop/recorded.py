"""Recorded answers of the real `dvc`, in place of its run where a test always asks the same of the same content.

An answer is the exit code, what was printed, and every change below the test's folder. It is stored under the test, the
command, settings in the environment and a digest of the folder, in ``answers/<module>.json``. Commits get
one fixed date, so that their ids come out alike; paths of temporary folders are replaced.

``DVKF_RECORD_DVC=1`` runs `dvc` and writes the files (``make answers``). ``DVKF_LIVE_DVC=1`` runs it and compares.
Otherwise an answer that is missing fails the test. `dvc` always runs in modules that are not in ``RECORDED``, and where
a folder's content names a server or another test's folder: that differs between runs.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from commands import Done, Dvc

HERE = Path(__file__).parent
RECORD = bool(os.environ.get("DVKF_RECORD_DVC"))
COMPARE = bool(os.environ.get("DVKF_LIVE_DVC"))
DATE = "2024-01-01T00:00:00 +0000"
RUN = subprocess.run
# Folders of ours whose content has names by chance: temporary files, marks of users, workspaces of failed stages.
BY_CHANCE = ("tmp-dvkf", "users-dvkf", "dvkf-steps")
# Bytes of a change above which an answer is not stored.
LIMIT = 50_000

# Modules whose answers are recorded; for all others `dvc` runs. What it prints is as wide as the paths in it, so tables
# with paths cannot be recorded.
RECORDED = frozenset(
    {
        "test_current_dvc",
        "test_data_dvc",
        "test_gc_dvc",
        "test_imports_dvc",
        "test_inspect_dvc",
        "test_legacy_dvc",
        "test_outside_dvc",
        "test_pipeline_dvc",
        "test_public_dvc",
        "test_removal_dvc",
        "test_repositories_dvc",
        "test_repro_dvc",
        "test_verbs_dvc",
    }
)
# Tests of them, as module::function, for which it runs all the same: paths, times or examples differ between runs.
LIVE = frozenset(
    {
        "test_current_dvc::test_an_import_that_follows_its_source_is_told_of_before_it_runs",
        "test_data_dvc::test_manifests_of_any_directory_are_dvcs",
        "test_imports_dvc::test_import_urls_write_what_dvc_writes",
        "test_inspect_dvc::test_a_directory_that_is_elsewhere_is_listed",
        "test_inspect_dvc::test_imports_that_changed_where_they_come_from_are_told_of",
        "test_legacy_dvc::test_edits_move_outputs_alike",
        "test_legacy_dvc::test_legacy_repositories_are_clean",
        "test_pipeline_dvc::test_dvcs_gc_and_push_leave_our_folders_alone_and_need_nothing_of_them",
        "test_removal_dvc::test_moving_an_import_signs_it_again",
        "test_repositories_dvc::test_a_file_whose_md5_does_not_fit_is_told",
        "test_repro_dvc::test_datasets",
        "test_repro_dvc::test_generated_pipelines",
    }
)


class Unrecorded(AssertionError):
    """No recorded answer fits."""


@dataclass(frozen=True)
class Entry:
    """One path of a folder: its kind (f, d or l), mode, digest of the normalised content, and inode."""

    kind: str
    mode: int
    digest: str
    inode: int


@dataclass(frozen=True)
class State:
    """All that a folder holds.

    Attributes:
        entries: Its paths, without git's folders and DVC's temporary ones.
        staged: Entries of each git index, by the path of the repository.
        commits: HEAD and refs of each repository.
        foreign: True if some content names a server or a folder of another test.
    """

    entries: dict[str, Entry]
    staged: dict[str, dict[str, str]]
    commits: dict[str, str]
    foreign: bool

    @property
    def digest(self) -> str:
        entries = [
            (path, entry.kind, entry.kind == "f" and entry.mode & 0o111, entry.digest)
            for path, entry in sorted(self.entries.items())
        ]
        text = json.dumps([entries, self.staged, self.commits], sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


class Folder:
    """The temporary folder of a test, read and changed with its own path left out."""

    # What DVC remembers between commands, wherever a test of this run puts it.
    memories: ClassVar[set[str]] = set()

    def __init__(self, base: Path, top: Path) -> None:
        self.top = top
        self.memories.add(os.environ.get("DVC_SITE_CACHE_DIR", ""))
        self._paths = [(str(top), "<folder>"), (os.environ.get("HOME", "/nowhere"), "<home>")]
        self._base = str(base)

    def normalise(self, text: str) -> str:
        for path, name in self._paths:
            text = text.replace(path, name)
        return text

    def restore(self, text: str) -> str:
        for path, name in self._paths:
            text = text.replace(name, path)
        return text

    def is_foreign(self, text: str) -> bool:
        return self._base in text or "127.0.0.1" in text or "localhost" in text

    def read(self) -> State:
        """Return what the folder holds."""
        entries: dict[str, Entry] = {}
        staged: dict[str, dict[str, str]] = {}
        commits: dict[str, str] = {}
        foreign = False
        stack = [self.top]
        while stack:
            folder = stack.pop()
            with os.scandir(folder) as items:
                found = list(items)
            for item in found:
                path = Path(item.path)
                name = path.relative_to(self.top).as_posix()
                status = item.stat(follow_symlinks=False)
                mode = stat.S_IMODE(status.st_mode)
                if item.is_symlink():
                    target = self.normalise(os.readlink(path))
                    foreign |= self.is_foreign(target)
                    entries[name] = Entry("l", 0, target, status.st_ino)
                elif item.is_dir():
                    if item.path in self.memories:
                        continue
                    if item.name == ".git" and (path / "HEAD").exists():
                        staged[name], commits[name] = _index(path / "index"), _commits(path)
                    elif not (item.name == "tmp" and folder.name == ".dvc"):
                        entries[name] = Entry("d", mode, "", status.st_ino)
                        if item.name not in BY_CHANCE:
                            stack.append(path)
                elif item.is_file():
                    data = path.read_bytes()
                    if len(data) < LIMIT:
                        text = data.decode("latin-1")
                        if self._base in text or os.path.dirname(self._base) in text:
                            data = (text := self.normalise(text)).encode("latin-1")
                        foreign |= self.is_foreign(text)
                    entries[name] = Entry("f", mode, hashlib.md5(data).hexdigest(), status.st_ino)
        return State(entries, staged, commits, foreign)


def _index(path: Path) -> dict[str, str]:
    """Return the paths of a git index, with mode and object."""
    if not path.exists():
        return {}
    done = subprocess.run(
        ["git", "-c", "core.quotepath=off", "ls-files", "-s", "-z"],
        cwd=path.parent.parent,
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode(errors="surrogateescape").split("\0")
    return {name: what for what, _, name in (line.partition("\t") for line in lines if line)}


def _commits(git: Path) -> str:
    """Return what HEAD and refs say."""
    found = [(git / "HEAD").read_text()]
    for path in sorted((git / "refs").rglob("*")):
        if path.is_file() and "remotes" not in path.parts:
            found.append(f"{path.relative_to(git)} {path.read_text()}")
    if (git / "packed-refs").exists():
        found.append((git / "packed-refs").read_text())
    return "".join(found)


class Answers:
    """The real `dvc` or its recorded answers; called as `Dvc`."""

    def __init__(self) -> None:
        self._dvc: Dvc | None = None
        self._files: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, defaultdict[str, defaultdict[str, list[Any]]]] = {}
        self._times: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.base = Path("/nowhere")
        self.module = ""
        self.owner = ""
        self._is_live = True

    def begin(self, base: Path, path: Path, owner: str) -> None:
        """Store and find answers under this test from here on; outside this folder `dvc` always runs."""
        self.base, self.module, self.owner = base, path.stem, owner
        self._is_live = path.parent != HERE or self.module not in RECORDED
        self._times.clear()
        if RECORD and not self._is_live:
            # Also of a test that asks nothing any more.
            self._seen.setdefault(self.module, defaultdict(lambda: defaultdict(list)))[owner] = defaultdict(
                list
            )

    @contextmanager
    def owned(self, owner: str) -> Iterator[None]:
        """Store and find answers under another name for a while."""
        before, self.owner = self.owner, owner
        try:
            yield
        finally:
            self.owner = before

    def live(self, folder: Path, *arguments: str) -> Done:
        """Run the real `dvc`."""
        self._dvc = self._dvc or Dvc()
        return self._dvc(folder, *arguments)

    def __call__(self, folder: Path, *arguments: str) -> Done:
        function = self.owner.partition("[")[0]
        if self._is_live or f"{self.module}::{function}" in LIVE:
            return self.live(folder, *arguments)
        folder = Path(folder)
        if not folder.is_relative_to(self.base) or folder == self.base:
            return self.live(folder, *arguments)
        place = Folder(self.base, self.base / folder.relative_to(self.base).parts[0])
        before = place.read()
        if before.foreign or any(place.is_foreign(place.normalise(word)) for word in arguments):
            return self.live(folder, *arguments)
        key = self._key(place, folder, arguments, before)
        if RECORD or COMPARE:
            done = self.live(folder, *arguments)
            answer = _answer(place, before, done)
        if RECORD:
            self._seen[self.module][self.owner][key].append(answer)
            return done
        kept = self._load().get(self.owner, {}).get(key)
        if kept is None:
            raise Unrecorded(
                f"dvc {' '.join(arguments)}: no recorded answer for this command and content. "
                "Run `make answers` and commit tests/interop/answers."
            )
        number = self._times[self.owner, key]
        self._times[self.owner, key] += 1
        recorded = kept[min(number, len(kept) - 1)]
        if COMPARE:
            _compare(recorded, answer, arguments)
            return done
        if "live" in recorded:
            return self.live(folder, *arguments)
        _apply(place, before, recorded)
        return Done(
            f"dvc {arguments} in {folder}",
            recorded["code"],
            place.restore(recorded.get("out", "")),
            place.restore(recorded.get("err", "")),
        )

    def _key(self, place: Folder, folder: Path, arguments: tuple[str, ...], state: State) -> str:
        environment = {
            name: place.normalise(value)
            for name, value in sorted(os.environ.items())
            if (name.startswith("DVC_") and name not in ("DVC_SITE_CACHE_DIR", "DVC_NO_ANALYTICS"))
            or name == "COLUMNS"
        }
        # A process of pytest-xdist has it set.
        environment.setdefault("COLUMNS", "80")
        where = folder.relative_to(place.top).as_posix()
        parts = [where, [place.normalise(word) for word in arguments], environment, state.digest]
        digest = hashlib.sha256(json.dumps(parts).encode(errors="surrogateescape")).hexdigest()[:16]
        return f"{' '.join(parts[1])[:60]} {digest}"

    def _load(self) -> dict[str, Any]:
        if self.module not in self._files:
            path = HERE / "answers" / f"{self.module}.json"
            found = json.loads(path.read_text()) if path.exists() else {"answers": {}}
            if path.exists() and found["dvc"] != pinned():
                raise Unrecorded(
                    f"{path}: answers of dvc {found['dvc']}, not {pinned()}. Run `make answers`."
                )
            self._files[self.module] = found["answers"]
        return self._files[self.module]

    def save(self) -> None:
        """Write what was recorded, beside what tests that did not run have."""
        for module, seen in self._seen.items():
            if importlib.metadata.version("dvc") != pinned():
                raise RuntimeError("the dvc installed is not the one in constraints.txt")
            path = HERE / "answers" / f"{module}.json"
            kept = json.loads(path.read_text())["answers"] if path.exists() else {}
            for owner, answers in seen.items():
                kept[owner] = {key: _folded(found) for key, found in answers.items()}
            kept = {owner: answers for owner, answers in kept.items() if answers}
            path.parent.mkdir(exist_ok=True)
            if kept:
                document = {"dvc": pinned(), "answers": kept}
                path.write_text(json.dumps(document, indent=0, sort_keys=True, ensure_ascii=True) + "\n")

    def run(self, argv: Any, *args: Any, **options: Any) -> Any:
        """Do what `subprocess.run` does, for `dvc` without a start of its own."""
        known = {"cwd", "capture_output", "text", "timeout", "check", "env", "stdin"}
        words = [os.fspath(word) for word in argv] if isinstance(argv, (list, tuple)) else []
        usual = (
            options.keys() <= known
            and options.get("env") in (None, dict(os.environ))
            and options.get("stdin") in (None, subprocess.DEVNULL)
        )
        if args or not usual or not words or Path(words[0]).name != "dvc":
            return RUN(argv, *args, **options)
        done = self(Path(options.get("cwd") or os.getcwd()), *words[1:])
        out: Any = done.out
        err: Any = done.err
        if not options.get("capture_output"):
            sys.stdout.write(out)
            sys.stderr.write(err)
            out = err = None
        elif not options.get("text"):
            out, err = out.encode(), err.encode()
        if options.get("check") and done.code:
            raise subprocess.CalledProcessError(done.code, argv, out, err)
        return subprocess.CompletedProcess(argv, done.code, out, err)

    def close(self) -> None:
        """Write what was recorded, and end the process that runs `dvc`."""
        if RECORD:
            self.save()
        if self._dvc:
            self._dvc.close()
            self._dvc = None


ANSWERS = Answers()


def pinned() -> str:
    """Return the version of dvc that constraints.txt names."""
    text = (HERE.parents[1] / "constraints.txt").read_text()
    found = re.search(r"^dvc==(.+)$", text, re.MULTILINE)
    assert found
    return found[1].strip()


def _folded(answers: list[Any]) -> list[Any]:
    """Return the answers without the last ones that repeat."""
    while len(answers) > 1 and answers[-1] == answers[-2]:
        answers.pop()
    return answers


def _answer(place: Folder, before: State, done: Done) -> dict[str, Any]:
    """Describe what a command printed and changed."""
    after = place.read()
    out, err = place.normalise(done.out), place.normalise(done.err)
    answer: dict[str, Any] = {"code": done.code, "out": out, "err": err}
    if after.foreign or after.commits != before.commits or place.is_foreign(out):
        return {"live": True}
    first: dict[int, str] = {}
    links = {}
    changed: dict[str, Any] = {}
    sources = {entry.digest: path for path, entry in before.entries.items() if entry.kind == "f"}
    for path, entry in sorted(after.entries.items()):
        if entry.kind == "f":
            if entry.inode in first:
                links[path] = first[entry.inode]
            first.setdefault(entry.inode, path)
        old = before.entries.get(path)
        if old and (old.kind, old.mode, old.digest) == (entry.kind, entry.mode, entry.digest):
            continue
        if entry.kind == "d":
            changed[path] = ["d", entry.mode]
        elif entry.kind == "l":
            changed[path] = ["l", entry.digest]
        elif entry.digest in sources:
            changed[path] = ["as", entry.mode, sources[entry.digest]]
        else:
            data = (place.top / path).read_bytes()
            if len(data) > LIMIT:
                return {"live": True}
            try:
                changed[path] = ["f", entry.mode, place.normalise(data.decode())]
            except UnicodeDecodeError:
                changed[path] = ["b", entry.mode, base64.b64encode(data).decode()]
    answer["changed"] = changed
    answer["linked"] = {path: to for path, to in links.items() if path in changed or to in changed}
    answer["removed"] = sorted(before.entries.keys() - after.entries.keys())
    answer["staged"] = {
        repo: {
            path: entries.get(path)
            for path in sorted(entries.keys() | before.staged.get(repo, {}).keys())
            if entries.get(path) != before.staged.get(repo, {}).get(path)
        }
        for repo, entries in after.staged.items()
    }
    answer["staged"] = {repo: found for repo, found in answer["staged"].items() if found}
    if after.staged.keys() != before.staged.keys():
        return {"live": True}
    return {name: value for name, value in answer.items() if value or name == "code"}


def _unspaced(text: str) -> str:
    return "".join(sorted("".join(text.split())))


def _compare(recorded: Mapping[str, Any], answer: Mapping[str, Any], arguments: tuple[str, ...]) -> None:
    """Check that the real `dvc` still answers as recorded; lines may come in another order or break elsewhere."""
    if "live" in recorded or "live" in answer:
        assert "live" in recorded and "live" in answer, arguments
        return
    for name in ("code", "changed", "removed", "staged"):
        assert recorded.get(name) == answer.get(name), (arguments, name, recorded, answer)
    assert _unspaced(recorded.get("out", "")) == _unspaced(answer.get("out", "")), (
        arguments,
        recorded,
        answer,
    )


def _apply(place: Folder, before: State, answer: Mapping[str, Any]) -> None:
    """Change a folder as `dvc` did."""
    changed = answer.get("changed", {})
    taken = {what[2]: (place.top / what[2]).read_bytes() for what in changed.values() if what[0] == "as"}
    for name in sorted(answer.get("removed", ()), key=len, reverse=True):
        path = place.top / name
        if before.entries[name].kind != "d":
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    for name, what in sorted(changed.items()):
        path = place.top / name
        if path.is_symlink() or (path.exists() and not (what[0] == "d" and path.is_dir())):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if what[0] == "d":
            path.mkdir(exist_ok=True)
        elif what[0] == "l":
            path.symlink_to(place.restore(what[1]))
        elif name in answer.get("linked", {}):
            path.hardlink_to(place.top / answer["linked"][name])
        else:
            kind, mode, content = what
            if kind == "as":
                path.write_bytes(taken[content])
            elif kind == "b":
                path.write_bytes(base64.b64decode(content))
            else:
                path.write_bytes(place.restore(content).encode())
            path.chmod(mode)
    for name, to in answer.get("linked", {}).items():
        path = place.top / name
        if name not in changed:
            path.unlink()
            path.hardlink_to(place.top / to)
    for name, what in changed.items():
        if what[0] == "d":
            (place.top / name).chmod(what[1])
    for repo, entries in answer.get("staged", {}).items():
        root = (place.top / repo).parent
        there = [path for path, what in entries.items() if what]
        gone = [path for path, what in entries.items() if not what]
        if there:
            subprocess.run(["git", "add", "-f", "--", *there], cwd=root, check=True, capture_output=True)
        if gone:
            subprocess.run(
                ["git", "rm", "-q", "--cached", "--", *gone], cwd=root, check=True, capture_output=True
            )
