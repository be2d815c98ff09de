"""Paths of the stages that run in the workspace, recorded in DVC's rwlock."""

from __future__ import annotations

import os

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.formats.dvcyaml import Stage


class StagesLock:
    """Inputs and outputs of this process's stages while their commands run.

    Args:
        repo: The repository.
    """

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._held: dict[str, Stage] = {}

    def add(self, stage: Stage) -> None:
        """Record a stage before its commands start.

        Args:
            stage: The stage.

        Raises:
            LockedError: Another process runs a stage that reads or writes the same paths.
        """
        read, write = self._paths(stage)
        self._repo.note_stages(read=read, write=write)
        self._held[stage.address] = stage

    def drop(self, stage: Stage) -> None:
        """Remove the record of a stage when it has ended; do nothing if it has none.

        Args:
            stage: The stage.
        """
        if self._held.pop(stage.address, None) is not None:
            self._note()

    def drop_all(self) -> None:
        """Remove the records of all stages."""
        if self._held:
            self._held.clear()
            self._note()

    def _note(self) -> None:
        read: list[str] = []
        write: list[str] = []
        for stage in self._held.values():
            more_read, more_write = self._paths(stage)
            read += more_read
            write += more_write
        self._repo.note_stages(read=read, write=write, anew=True)

    def _paths(self, stage: Stage) -> tuple[list[str], list[str]]:
        read = [dep.path for dep in stage.deps if not dep.external] + [
            stage.params_path(file) for file in stage.params
        ]
        absolute = [
            [os.path.normpath(self._repo.root / path) for path in paths]
            for paths in (read, [out.path for out in stage.outs])
        ]
        return absolute[0], absolute[1]
