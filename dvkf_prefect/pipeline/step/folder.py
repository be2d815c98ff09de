"""The folder of its own that a stage runs in, and what a run that was killed left in one."""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
from pathlib import Path

from dvkf_prefect.files import temporary_beside
from dvkf_prefect.leftovers import OwnedFolder, claim, sweep_old
from dvkf_prefect.paths import check_parents
from dvkf_prefect.pipeline.step.spec import WORK, StepSpec

# Its outputs are being moved into the store, and no longer whole.
_STORED = "stored"
_NAME = 40
# Seconds for which folders of other stages, and of other repositories with the same cache, are left for a look.
_KEPT = 7 * 24 * 3600


class StepFolder:
    """A folder for one run of one stage, below the cache so that files can be moved between the two.

    Leftovers of earlier runs of the stage go first; what they hold at persistent outputs comes into the workspace.
    The owner is told by a lock, see `leftovers`: a process number says nothing about another container's run.

    Args:
        spec: The stage's run.

    Attributes:
        path: The folder.
        root: In it, the folder that stands for the repository's root.
        side: In it, the root of a cache for outputs that stay out of the real one.
        regained: The persistent outputs that an earlier run left.

    Raises:
        OSError: It cannot be made.
        DvkfError: A persistent output leads out of the workspace.
    """

    def __init__(self, spec: StepSpec) -> None:
        self._spec = spec
        self.regained: set[str] = set()
        home = Path(spec.cache_dir) / "dvkf-steps"
        prefix = _prefix(spec)
        for left in claim(home, prefix):
            self._keep_persistent(left)
        sweep_old(home, _KEPT)
        self._owned = OwnedFolder(home, prefix)
        self.path = self._owned.path
        self.root = self.path / WORK
        self.side = self.path / "side"

    def begin_to_store(self) -> None:
        """Mark the outputs as being moved, so that what is left of them is never taken for a whole."""
        (self.path / _STORED).touch()

    def release(self, *, keep: bool) -> None:
        """Give it up, persistent outputs of a run that did not end well first.

        Args:
            keep: Leave it for a look, or for whoever takes what lies beside; the stage's next run removes it.
        """
        try:
            self._keep_persistent(self.path)
        finally:
            self._owned.release(keep=keep)

    def _keep_persistent(self, folder: Path) -> None:
        """Bring what a run that failed or was killed left at persistent outputs to where the next one goes on."""
        workspace, left = self._spec.workspace, folder / WORK
        if workspace is None or not left.exists() or (folder / _STORED).exists():
            return
        for out in self._spec.outs:
            source, target = left / out.path, Path(workspace) / out.path
            if not out.persist or source.is_symlink() or not source.exists():
                continue
            check_parents(Path(workspace), out.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_beside(target)
            copy_writable(source, temporary)
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            self.regained.add(out.path)


def copy_writable(source: Path, target: Path) -> None:
    """Copy a file or directory so that its owner can write to the copy."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy(source, target)
        target.chmod(target.stat().st_mode | stat.S_IWUSR)


def _prefix(spec: StepSpec) -> str:
    """Return how the folders of a stage are named: repositories that share a cache have stages of the same name."""
    place = hashlib.sha256(f"{spec.workspace}\0{spec.stage}".encode(errors="surrogateescape")).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", spec.stage).strip("-.")[:_NAME]
    return f"{name or 'stage'}-{place[:8]}-"
