"""Undeclared reads and writes of stages.

In a clean folder an undeclared input is missing, so the command fails; its log gets a hint. In the workspace all
files are present; a quick scan then detects some undeclared reads and writes.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError, StageFailedError
from dvkf_prefect.files import is_temporary, read_description
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.paths import overlaps
from dvkf_prefect.pipeline.step.spec import WORK

_ABSENT = re.compile(r"no such file|not found|can't (?:open|cd)|cannot open|no module named", re.IGNORECASE)
VARIABLE = "DVKF_UNDECLARED"
"""Environment variable that turns off warnings of undeclared reads and writes, by ``0``."""

# Limits: directory entries scanned, modules scanned, paths named.
_ENTRIES, _MODULES, _NAMED = 10_000, 200, 5
_PASSED_OVER = frozenset(
    (".git", ".dvc", ".venv", "venv", "node_modules", "__pycache__", ".ipynb_checkpoints")
)
# Files that dvc and dvkf write beside a run.
_OURS = frozenset(("dvc.lock", ".gitignore"))
_WORD = re.compile(r"[\w.+/@-]+")


def hint_at_undeclared(repo: Repository, stage: Stage, error: StageFailedError) -> StageFailedError:
    """Add a hint to a failed command's log: undeclared files of the repository that the command or its log names.

    Args:
        repo: The repository.
        stage: The stage.
        error: The failure.
    """
    if not _ABSENT.search(error.log_tail):
        return error
    declared = {dep.path for dep in stage.deps} | {out.path for out in stage.outs}
    declared |= {stage.params_path(file) for file in stage.params}
    # Modules may also lie beside the script that imports them.
    folders = dict.fromkeys([stage.wdir, "", *sorted(posixpath.dirname(path) for path in declared)])
    named: set[str] = set()
    for line in f"{error.command}\n{error.log_tail}".splitlines():
        complains = bool(_ABSENT.search(line))
        for word in _WORD.findall(line):
            for path in _paths(word, stage.wdir, folders):
                covered = any(overlaps(path, d) for d in declared)
                place = repo.root / path
                if not covered and (place.is_file() or (complains and place.is_dir())):
                    named.add(path)
    if not named:
        return error
    names = ", ".join(f"'{name}'" for name in sorted(named)[:5])
    hint = (
        f"stage '{stage.address}' sees only its declared dependencies: {names} is in the repository but not "
        "in `deps`. Add it to `deps`."
    )
    return StageFailedError(
        error.stage, error.command, error.status, f"{error.log_tail.rstrip()}\n{hint}\n".lstrip()
    )


def _paths(word: str, wdir: str, folders: Iterable[str]) -> Iterator[str]:
    """Yield the paths in the repository that a word may mean: a file, or a Python module."""
    if word.startswith("/"):
        names = [word.rpartition(f"/{WORK}/")[2]] if f"/{WORK}/" in word else []
    else:
        module = word.replace(".", "/")
        names = [posixpath.join(wdir, word)]
        for folder in folders if word.replace(".", "").isidentifier() else ():
            names += [posixpath.join(folder, f"{module}.py"), posixpath.join(folder, module, "__init__.py")]
    for name in names:
        path = posixpath.normpath(name)
        if path != "." and not path.startswith(("../", "/")) and path != "..":
            yield path


def warn_of_undeclared(
    repo: Repository, stage: Stage, *, outputs: Iterable[str], since: int, alone: bool
) -> tuple[str, ...]:
    """Return warnings of undeclared reads and writes of a stage that ran in the workspace.

    Reads are files named in its commands, and modules of the repository that its Python files import. Writes are
    files younger than its start that git does not ignore. At most 10,000 entries are scanned.

    Args:
        repo: The repository.
        stage: The stage, which succeeded.
        outputs: All tracked paths of the repository.
        since: Start of the stage, in nanoseconds.
        alone: True if no other stage ran meanwhile; otherwise writes cannot be attributed.
    """
    if os.environ.get(VARIABLE, "").strip().lower() in ("0", "false", "no", "off"):
        return ()
    try:
        return tuple(_warnings(repo, stage, outputs=outputs, since=since, alone=alone))
    except (DvkfError, OSError, ValueError):
        return ()  # a failed scan must not fail the stage


def _warnings(
    repo: Repository, stage: Stage, *, outputs: Iterable[str], since: int, alone: bool
) -> list[str]:
    warnings = []
    if reads := _reads(repo, stage, since):
        warnings.append(
            f"stage '{stage.address}' reads undeclared files: {_listed(reads)}. Changes of them do not rerun "
            "the stage. Add them to `deps`."
        )
    if alone and (writes := _writes(repo, stage, set(outputs), since)):
        warnings.append(
            f"stage '{stage.address}' wrote undeclared files: {_listed(writes)}. Add them to `outs`, or to "
            ".gitignore."
        )
    return warnings


def _declared(stage: Stage) -> set[str]:
    declared = {dep.path for dep in stage.deps if not dep.external} | {out.path for out in stage.outs}
    return declared | {stage.params_path(file) for file in stage.params}


def _is_below(path: str, places: Container[str]) -> bool:
    while path:
        if path in places:
            return True
        path = posixpath.dirname(path)
    return "" in places


def _reads(repo: Repository, stage: Stage, since: int) -> list[str]:
    declared = _declared(stage)
    named = [
        path
        for word in dict.fromkeys(_WORD.findall("\n".join(stage.cmd)))
        for path in _paths(word, stage.wdir, ())
        if posixpath.basename(path) not in ("dvc.yaml", "dvc.lock") and (repo.root / path).is_file()
    ]
    scripts = [path for path in (*named, *sorted(declared)) if path.endswith(".py")]
    found = dict.fromkeys(path for path in named if not _is_below(path, declared))
    queue, seen = scripts, set(scripts)
    while queue and len(seen) < _MODULES:
        path = queue.pop(0)
        for module in _imported(repo, path, stage.wdir):
            if module not in seen:
                seen.add(module)
                queue.append(module)
                if not _is_below(module, declared):
                    found[module] = None
    return [path for path in found if not _is_young(repo, path, since)]


def _is_young(repo: Repository, path: str, since: int) -> bool:
    """Return True if the stage itself wrote a file, or the file is gone."""
    try:
        return (repo.root / path).stat().st_mtime_ns >= since
    except OSError:
        return True


def _imported(repo: Repository, path: str, wdir: str) -> Iterator[str]:
    """Yield the repository's files that a Python file imports, from its own folder or the working directory."""
    import ast

    try:
        # As for all description files: a regular file of bounded size.
        tree = ast.parse(read_description(repo.root / path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError, DvkfError):
        return
    beside = posixpath.dirname(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(repo, [beside, wdir], alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = beside
            for _ in range(node.level - 1):
                above = posixpath.dirname(above)
            folders = [above] if node.level else [beside, wdir]
            name = node.module or ""
            yield from _module(repo, folders, name)
            for alias in node.names:
                yield from _module(repo, folders, f"{name}.{alias.name}".strip("."))


def _module(repo: Repository, folders: Iterable[str], name: str) -> Iterator[str]:
    """Yield the files of a module in the first folder that has it, its packages first."""
    parts = name.split(".")
    for folder in dict.fromkeys(folders):
        place = posixpath.join(folder, *parts) if name else folder
        files = [candidate for candidate in (f"{place}.py", f"{place}/__init__.py") if name]
        file = next((file for file in files if (repo.root / file).is_file()), None)
        if file is not None:
            packages = [posixpath.join(folder, *parts[:n], "__init__.py") for n in range(1, len(parts))]
            yield from (package for package in packages if (repo.root / package).is_file())
            yield file
            return


def _writes(repo: Repository, stage: Stage, tracked: set[str], since: int) -> list[str]:
    declared = _declared(stage) | tracked
    young: list[str] = []
    left, count = [""], 0
    while left:
        prefix = left.pop()
        with suppress(OSError), os.scandir(repo.root / prefix) as entries:
            for entry in entries:
                count += 1
                if count > _ENTRIES:
                    return []
                path = prefix + entry.name
                if entry.name in _PASSED_OVER or is_temporary(entry.name) or path in declared:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    left.append(f"{path}/")
                elif entry.stat(follow_symlinks=False).st_mtime_ns >= since and not repo.ignore.matches(path):
                    young.append(path)
    young = [path for path in young if posixpath.basename(path) not in _OURS]
    if not young:
        return []
    with repo.git_ignored.asking() as left_out:
        ignored = left_out(young)
    tops: dict[str, list[str]] = {}
    for path in sorted(set(young) - ignored):
        tops.setdefault(path.partition("/")[0], []).append(path)
    return [f"{top}/" if len(paths) > 1 else paths[0] for top, paths in tops.items()]


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(f"'{path}'" for path in paths[:_NAMED]) + more
