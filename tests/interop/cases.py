"""A generated repository on disk, and what must be true of it whoever wrote it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Tool, dvkf, git
from generators import IGNORED, Edit, File, Project, lay, make, seen
from hypothesis import HealthCheck, Phase, settings
from pathspec import GitIgnoreSpec
from rich.text import Text
from sizes import ALL

_SCALE = int(os.environ.get("GENERATED_SCALE", "1"))
# Without DVKF_TEST_ALL, which `make test-all` sets, a tenth of the examples.
_SHARE = 1 if ALL or _SCALE > 1 else 10


def generated(examples: int, steps: int = 1) -> settings:
    return settings(
        stateful_step_count=steps,
        max_examples=max(2, examples * _SCALE // _SHARE),
        deadline=None,
        derandomize=_SCALE == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
        # A smaller example takes longer to find than the message is worth; the repository is left where it failed.
        phases=[Phase.explicit, Phase.generate],
        report_multiple_bugs=False,
    )


# With the other link types what the workspace holds is an object of the cache itself, with its mode. Of an executable
# file DVC then loses the bit, and records the loss, or gives it to the object and to all other files that are it.
UNLINKED = ("copy", "reflink,copy")
# What outputs hold: by path below each the bytes or their digest, and of a single file whether it may be executed.
Held = dict[str, dict[str, tuple[object, bool | None]]]
PIPELINE = """\
stages:
  copy:
    cmd: cp -rLT 'stage in.txt' 'stage out.txt'
    deps:
    - stage in.txt
    outs:
    - stage out.txt
"""


def without_executables(project: Project) -> Project:
    return replace(
        project,
        outputs={
            path: replace(what, isexec=False)
            if isinstance(what, File)
            else replace(what, files={name: replace(file, isexec=False) for name, file in what.files.items()})
            for path, what in project.outputs.items()
        },
    )


def _without_modes(content: Held) -> dict[str, dict[str, object]]:
    return {path: {name: what[0] for name, what in files.items()} for path, files in content.items()}


class Case:
    """One generated repository.

    Attributes:
        root: Its folder.
        paths: What `add` is called with.
        outputs: These and what the pipeline makes.
    """

    def __init__(self, top: Path, project: Project, init: Tool) -> None:
        if project.link_type not in UNLINKED:
            project = without_executables(project)
        shutil.rmtree(top, ignore_errors=True)
        self.root = top / "repo"
        self.root.mkdir(parents=True)
        git(self.root, "init", "-q")
        init(self.root, "init", "-q").ok()
        (self.root / ".dvc/config").write_text(
            f"[core]\n    remote = store\n    autostage = {str(project.autostage).lower()}\n"
            f"[cache]\n    type = {project.link_type}\n"
            f"['remote \"store\"']\n    url = ../../store\n"
        )
        if project.ignore:
            (self.root / ".dvcignore").write_text("\n".join(project.ignore) + "\n")
        if project.gitignore:
            (self.root / ".gitignore").write_text("\n".join(project.gitignore))
        for path, what in project.outputs.items():
            lay(self.root, path, what)
        self.paths = sorted(project.outputs)
        self.outputs = list(self.paths)
        self.project = project
        if project.stage:
            (self.root / "stage in.txt").write_text("in\n")
            (self.root / "dvc.yaml").write_text(PIPELINE)
            self.paths.append("stage in.txt")
            self.outputs += ["stage in.txt", "stage out.txt"]

    def take(self, tool: Tool, message: str) -> None:
        """Add and run everything, push it, and commit it to git."""
        tool(self.root, "add", "-q", "--", *self.paths).ok()
        if self.project.stage:
            tool(self.root, "repro", "-q").ok()
        self.keep(tool, message)

    def keep(self, tool: Tool, message: str) -> None:
        tool(self.root, "push", "-q").ok()
        git(self.root, "add", "-A")
        git(self.root, "commit", "-q", "--allow-empty", "-m", message)

    def content(self, paths: Sequence[str] | None = None) -> Held:
        """Return what the outputs hold that are there, all of them or some, without what is ignored."""
        rules = GitIgnoreSpec.from_lines(self.project.ignore)
        return {
            path: {
                name: what
                for name, what in seen(self.root, path).items()
                if not name or not rules.match_file(f"{path}/{name}")
            }
            for path in (self.outputs if paths is None else paths)
            if (self.root / path).exists()
        }

    def holds(self, tracked: Held, tool: Tool) -> bool:
        """Tell whether the outputs hold this after ``tool`` put them in place of something else."""
        if tool is dvkf:
            return self.content() == tracked
        # DVC takes the mode of an executable file not away from a file whose content stays.
        return _without_modes(self.content()) == _without_modes(tracked)

    def edit(self, changes: Sequence[Edit]) -> int:
        """Make edits; return how many there were to make."""
        if self.project.link_type not in UNLINKED:
            changes = [edit for edit in changes if edit.what != "mode"]
        made = sum(make(self.root, self.paths, edit) for edit in changes)
        if self.project.stage and not (self.root / "stage in.txt").exists():
            # To us what is recorded of a dependency stands for it while it is not there; to DVC the stage changed.
            (self.root / "stage in.txt").write_text("in\n")
        return made

    def has_empty_folders(self) -> bool:
        return any(
            not folders and not files
            for path in self.outputs
            for _, folders, files in os.walk(self.root / path)
        )

    def is_always_modified(self, path: str) -> bool:
        """Tell whether DVC's checkout says each time that it changed a directory, also one that it wrote itself.

        It does where a file in it may be executed, and where a folder in it holds nothing but what is ignored.
        """
        target = self.root / path
        tracked = self.content([path])[path]
        return any(
            not any(name.startswith(f"{entry.relative_to(target).as_posix()}/") for name in tracked)
            if entry.is_dir()
            else os.access(entry, os.X_OK)
            for entry in target.rglob("*")
        )

    def drop(self) -> None:
        """Remove the cache and the outputs."""
        shutil.rmtree(self.root / ".dvc/cache")
        for path in self.outputs:
            target = self.root / path
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink()


def unspaced(text: str) -> str:
    """Return it without white space: DVC breaks lines wherever they get long."""
    return "".join(text.split())


def removed(tool: Tool, root: Path) -> set[str]:
    """Return what gc would remove from the cache and the remote."""
    # Of what is so young on a remote we remove nothing unless told to.
    said = tool(root, "gc", "-w", "-c", "-f", "--dry", *(["--grace", "0"] if tool is dvkf else [])).ok().out
    found = {line for line in said.splitlines() if line.startswith("Removing ")}
    assert found or "No unused" in said
    return found


def check_clean(case: Case, tool: Tool, tracked: Held, other: Tool | None = None) -> None:
    """Go through the table of the format page: to ``tool`` nothing is left to do.

    Args:
        case: The repository, added, pushed and committed.
        tool: Who looks.
        tracked: What the outputs hold.
        other: Who names the objects that only an older version uses; nobody when there is none.
    """
    root = case.root
    tool(root, "status", "-q").ok()
    tool(root, "status", "-c", "-q").ok()
    assert tool(root, "status", "--json").json() == {}
    assert tool(root, "diff", "--json").json() == {}
    assert tool(root, "data", "status", "--granular", "--not-in-remote", "--json").json() == {}
    assert "Everything is up to date." in tool(root, "fetch").ok().out
    assert "Everything is up to date." in tool(root, "push").ok().out
    if case.has_empty_folders():
        # Once: DVC removes folders that nobody records.
        tool(root, "checkout").ok()
    always = [f"M {path}/" for path in case.outputs if tool is not dvkf and case.is_always_modified(path)]
    said = unspaced(tool(root, "checkout").ok().out)
    for line in always:
        # Of a name in brackets it makes markup.
        said = said.replace(unspaced(Text.from_markup(line).plain), "", 1)
    assert said == ""
    if case.project.stage:
        skipped = "didn't change, skipping"
        assert skipped in tool(root, "repro", "--dry").ok().out
    unused = removed(tool, root)
    assert unused == (removed(other, root) if other else set())
    tool(root, "commit", "-f").ok()
    assert git(root, "status", "--short") == ""
    case.drop()
    tool(root, "pull", "-q").ok()
    assert case.content() == tracked
    tool(root, "status", "-q").ok()
    assert git(root, "status", "--short") == ""


def in_order(value: object) -> object:
    """Return it with its lists sorted: DVC lists the data status in the order it comes upon it."""
    if isinstance(value, dict):
        return {key: in_order(item) for key, item in value.items()}
    return sorted(value, key=str) if isinstance(value, list) else value


def is_hollow(root: Path, row: str | dict[str, str]) -> bool:
    """Tell whether a folder without tracked files is where something was.

    Of a file that gave way to one DVC says in its diff nothing and in its data status that a folder was deleted.
    """
    path = root / (row if isinstance(row, str) else row["path"])
    return path.is_dir() and not any(file.is_file() and file.name not in IGNORED for file in path.rglob("*"))


QUESTIONS = [
    ["status", "--json"],
    ["status", "-c", "--json"],
    ["diff", "--json"],
    ["diff", "--json", "--show-hash"],
    ["data", "status", "--json"],
    ["data", "status", "--granular", "--json"],
    ["data", "status", "--granular", "--not-in-remote", "--json"],
]


def check_alike(case: Case, one: Tool, other: Tool, questions: Sequence[Sequence[str]] = QUESTIONS) -> None:
    """Both say the same of a workspace in which something may have changed."""
    root = case.root
    for arguments in questions:
        said = [tool(root, *arguments).json() for tool in (one, other)]
        if arguments[0] == "data":
            said = [in_order(what) for what in said]
        for what in said:
            for changes in (what, *what.values()):
                if isinstance(changes, dict) and "deleted" in changes:
                    changes["deleted"] = [row for row in changes["deleted"] if not is_hollow(root, row)]
        assert said[0] == said[1], arguments
        if arguments == ["status", "--json"]:
            assert one(root, "status", "-q").code == (1 if said[0] else 0)
        if arguments == ["status", "-c", "--json"]:
            assert one(root, "status", "-c", "-q").code == (1 if said[0] else 0)


def report(capsys: pytest.CaptureFixture[str], what: str, cases: list[int], at_least: int) -> None:
    with capsys.disabled():
        print(f"\n{what}: {sum(cases)} cases in {len(cases)} repositories")
    assert sum(cases) >= at_least // (2 * _SHARE - 1)


def written(case: Case) -> dict[str, object]:
    """Return all that a tool writes for others to read: small files whole, of the stores the names of the objects."""
    root = case.root
    stores = {
        place.name: sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())
        for place in (root / ".dvc/cache/files", root.parent / "store/files")
    }
    small = {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in root.rglob("*")
        if file.name == ".gitignore" or file.name == "dvc.lock" or (file.suffix == ".dvc" and file.is_file())
    }
    manifests = {
        file.name: file.read_bytes()
        for file in (root / ".dvc/cache/files/md5").rglob("*.dir")
        if file.is_file()
    }
    modes = {
        file.name: file.stat().st_mode & 0o777
        for file in (root / ".dvc/cache/files/md5").rglob("*")
        if file.is_file()
    }
    return {
        "stores": stores,
        "small": small,
        "manifests": manifests,
        "modes": modes,
        "staged": git(root, "status", "--porcelain", "--untracked-files=all"),
    }


def stored(case: Case) -> set[str]:
    """Return the names of the cache's objects."""
    place = case.root / ".dvc/cache/files/md5"
    return {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}
