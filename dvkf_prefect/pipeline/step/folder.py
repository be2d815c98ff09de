"""Work folder of a stage's run, and recovery of the folders of killed runs."""

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

# Marker file: outputs are being moved into the store and are no longer complete.
_STORED = "stored"
_NAME = 40
# Seconds to keep folders of other stages, and of other repositories with the same cache, for inspection.
_KEPT = 7 * 24 * 3600


class StepFolder:
    """Work folder for one run of one stage, below the cache so that files can be moved between the two.

    Leftovers of earlier runs of the stage are removed first; their persistent outputs are copied into the workspace.
    A lock identifies the owner, see `leftovers`: a process id does not identify a run in another container.

    Args:
        spec: The stage's run.

    Attributes:
        path: The folder.
        root: Its subfolder that serves as the repository's root.
        side: Its subfolder with a cache for outputs that stay out of the real one.
        regained: Persistent outputs recovered from an earlier run.

    Raises:
        OSError: The folder cannot be created.
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
        """Mark the outputs as being moved, so that leftovers are never taken for complete outputs."""
        (self.path / _STORED).touch()

    def release(self, *, keep: bool) -> None:
        """Release the folder; persistent outputs of a failed run are saved first.

        Args:
            keep: Leave the folder for inspection or for the reader of `side`; the stage's next run removes it.
        """
        try:
            self._keep_persistent(self.path)
        finally:
            self._owned.release(keep=keep)

    def _keep_persistent(self, folder: Path) -> None:
        """Copy persistent outputs of a failed or killed run into the workspace, where the next run continues."""
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
    """Return the name prefix of a stage's folders; repositories with a shared cache may have equal stage names."""
    place = hashlib.sha256(f"{spec.workspace}\0{spec.stage}".encode(errors="surrogateescape")).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", spec.stage).strip("-.")[:_NAME]
    return f"{name or 'stage'}-{place[:8]}-"
