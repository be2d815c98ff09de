"""Run of one stage in the workspace, as in DVC: nothing is copied, and files it leaves stay in place."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import (
    DvkfError,
    StageCancelledError,
    StageError,
    StageFailedError,
    StageOutputError,
    explained,
)
from dvkf_prefect.files import temporary_beside
from dvkf_prefect.paths import check_output, check_parents
from dvkf_prefect.pipeline.step.commands import Commands
from dvkf_prefect.pipeline.step.spec import StepContent, StepOutput, StepResult, StepSpec


def run_in_place(spec: StepSpec) -> StepResult:
    """Run a stage's commands in the workspace, then hash its outputs and put them into the cache.

    Non-persistent outputs are removed first. If a command fails or is stopped, all its files stay.

    Args:
        spec: Specification of the run.

    Returns:
        The result. A failure is in `StepResult.error`; `StepResult.check` raises it.
    """
    root = Path(spec.workspace or ".")
    commands = Commands(spec, root)

    def result(**values: object) -> StepResult:
        seconds, tail = round(commands.seconds, 3), commands.log_tail
        return StepResult(spec.stage, seconds=seconds, log_tail=tail, **values)  # type: ignore[arg-type]

    try:
        repo = Repository(root, config={"cache": dict(spec.cache_config)})
        if not (root / spec.wdir).is_dir():
            raise StageError(f"stage '{spec.stage}': its folder {spec.wdir} does not exist. Create it first.")
        for out in spec.outs:
            _make_way(root, out, spec.stage)
        commands.run()
        outs = tuple(_take(repo, out, spec) for out in spec.outs)
        return result(outs=outs, warnings=commands.warnings)
    except StageFailedError as error:
        return result(
            error=StageFailedError.__name__,
            message=str(error),
            command=error.command,
            exit_code=error.status,
        )
    except StageCancelledError as error:
        return result(error=type(error).__name__, message=str(error))
    except DvkfError as error:
        return result(error=type(error).__name__, message=str(error))
    except OSError as error:
        return result(error=StageError.__name__, message=f"stage '{spec.stage}': {explained(error)}")


def _make_way(root: Path, out: StepOutput, stage: str) -> None:
    """Remove an output before the commands run; make a persistent one writable without its cached object."""
    check_output(out.path, f"stage '{stage}'")
    check_parents(root, out.path)
    place = root / out.path
    try:
        info = place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if out.persist:
        _unprotect(place, info)
    elif stat.S_ISDIR(info.st_mode):
        shutil.rmtree(place)
    else:
        place.unlink()


def _unprotect(place: Path, info: os.stat_result) -> None:
    """Replace links into the cache by writable copies."""
    if stat.S_ISDIR(info.st_mode):
        with os.scandir(place) as entries:
            for entry in entries:
                _unprotect(Path(entry.path), entry.stat(follow_symlinks=False))
        return
    shared = stat.S_ISLNK(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_nlink > 1)
    if shared and place.is_file():
        temporary = temporary_beside(place)
        try:
            shutil.copyfile(place, temporary)
            os.chmod(temporary, stat.S_IMODE(place.stat().st_mode) | 0o200)
            os.replace(temporary, place)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    elif stat.S_ISREG(info.st_mode) and not info.st_mode & 0o200:
        place.chmod(stat.S_IMODE(info.st_mode) | 0o200)


def _take(repo: Repository, out: StepOutput, spec: StepSpec) -> StepContent:
    """Hash an output, add it to the cache if it belongs there, and link it as configured."""
    check_parents(repo.root, out.path)
    found = repo.workspace.look(out.path) if not out.cached else None
    if (found is not None and found.digest is None) or not (repo.root / out.path).exists():
        raise StageOutputError(
            f"stage '{spec.stage}' succeeded but did not write '{out.path}'. Write it, or remove it from "
            "`outs`."
        )
    content = repo.workspace.take(out.path) if found is None else found.existing()
    return StepContent(out.path, content)
