"""What a stage read although it did not declare it: in its clean folder it is not there, and the command fails."""

from __future__ import annotations

import posixpath
import re

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import StageFailedError
from dvkf_prefect.pipeline.spec import WORK
from dvkf_prefect.pipeline.stages import Stage


def hint_at_undeclared(repo: Repo, stage: Stage, error: StageFailedError) -> StageFailedError:
    """Add to a failed command's log which files of the repository it names but the stage does not declare.

    Args:
        repo: The repository.
        stage: The stage.
        error: How it failed.
    """
    if not re.search(r"no such file|not found|can't open|cannot open|no module named", error.log_tail, re.I):
        return error
    declared = {dep.path for dep in stage.deps} | {out.path for out in stage.outs}
    declared |= {stage.params_path(file) for file in stage.params}
    named: set[str] = set()
    for word in re.findall(r"[\w.+/@-]+", f"{error.command}\n{error.log_tail}"):
        name = word.rpartition(f"/{WORK}/")[2] if word.startswith("/") else posixpath.join(stage.wdir, word)
        for path in (posixpath.normpath(name), posixpath.normpath(name).replace(".", "/") + ".py"):
            covered = any(path == d or path.startswith(d + "/") or d.startswith(path + "/") for d in declared)
            if not covered and not path.startswith(("..", "/")) and (repo.root / path).is_file():
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
