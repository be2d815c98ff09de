"""What a stage read although it did not declare it: in its clean folder it is not there, and the command fails."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import StageFailedError
from dvkf_prefect.pipeline.spec import WORK
from dvkf_prefect.pipeline.stages import Stage

_ABSENT = re.compile(r"no such file|not found|can't (?:open|cd)|cannot open|no module named", re.IGNORECASE)
_WORD = re.compile(r"[\w.+/@-]+")


def hint_at_undeclared(repo: Repo, stage: Stage, error: StageFailedError) -> StageFailedError:
    """Add to a failed command's log which files of the repository it names but the stage does not declare.

    Args:
        repo: The repository.
        stage: The stage.
        error: How it failed.
    """
    if not _ABSENT.search(error.log_tail):
        return error
    declared = {dep.path for dep in stage.deps} | {out.path for out in stage.outs}
    declared |= {stage.params_path(file) for file in stage.params}
    # Modules are looked for beside the script that imports them, too.
    folders = dict.fromkeys([stage.wdir, "", *sorted(posixpath.dirname(path) for path in declared)])
    named: set[str] = set()
    for line in f"{error.command}\n{error.log_tail}".splitlines():
        complains = bool(_ABSENT.search(line))
        for word in _WORD.findall(line):
            for path in _paths(word, stage.wdir, folders):
                covered = any(
                    path == d or path.startswith(d + "/") or d.startswith(path + "/") for d in declared
                )
                place = repo.root / path
                if not covered and (place.is_file() or (complains and place.is_dir())):
                    named.add(path)
    if not named:
        return error
    names = ", ".join(f"'{name}'" for name in sorted(named)[:5])
    hint = (
        f"A stage sees only what it declares: {names} is in the repository but not in the deps of "
        f"'{stage.address}'."
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
