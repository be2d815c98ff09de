"""Logs of a run's stages while they run, as whole lines, none lost and none repeated.

Kubernetes gives a pod's log with a time before each line. A read begins at the second of the last line that was read
(``sinceTime``), since Kubernetes ignores fractions of it; lines of that second that were read are left out by their
time and number. Without Kubernetes, KFP's UI gives a pod's log from its beginning, of which the lines that were read
are left out by their number; no more than its first 8 MiB are read. Without both, the log that the pod uploads to the
remote is read the same way. Each attempt of a stage has a pod of its own, and a restarted container a log of its own; a
line separates them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dvkf_prefect.errors import DvkfError
from dvkf_prefect.kubeflow.cluster.api import LOG_HEAD
from dvkf_prefect.kubeflow.cluster.followed import FollowedRun
from dvkf_prefect.kubeflow.cluster.pods import PodView
from dvkf_prefect.kubeflow.cluster.workflow import Workflow
from dvkf_prefect.kubeflow.exchange.runs import LOG
from dvkf_prefect.pipeline.step.step import clean_log

MOST_LINES = 1000
_STAGES = 16  # read at once; the others have their turn at the next read
_BYTES, _MOST_BYTES = 64 * 1024, 8 << 20
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z ?")
# Beginning of the lines of KFP's executor (``sdk/python/kfp/dsl/executor_main.py``).
_EXECUTOR = "[KFP Executor "
# Name of the log on the remote, in place of a pod's.
_REMOTE = ""


@dataclass(slots=True)
class _Progress:
    """Lines of one pod's log that were read.

    Attributes:
        lines: Number of lines.
        ahead: Number of the last ones whose times are not known, as they were read without.
        second: Second of the last line with a time.
        fraction: Its nanoseconds.
        same: Number of lines that have this time.
        restarts: Restarts of the container when its log was read.
        limit: Bytes of the next read.
    """

    lines: int = 0
    ahead: int = 0
    second: str = ""
    fraction: int = 0
    same: int = 0
    restarts: int = 0
    limit: int = _BYTES

    def stamped(self, text: str, *, last: bool) -> list[str]:
        """Return the new lines of a log with a time before each line."""
        new: list[str] = []
        before, had, seen, moved = (self.second, self.fraction), self.same, 0, False
        for line in _whole(text, last=last):
            match = _STAMP.match(line)
            if match is None:
                continue
            time = match[1], int((match[2] or "").ljust(9, "0"))
            if time < before:
                continue
            if time == before:
                seen += 1
                if seen <= had:
                    continue
            self.same = self.same + 1 if time == (self.second, self.fraction) else 1
            self.second, self.fraction = time
            moved = True
            if self.ahead:
                self.ahead -= 1
            else:
                new.append(line[match.end() :])
        self.lines += len(new)
        full = len(text.encode()) >= self.limit
        self.limit = min(self.limit * 4, _MOST_BYTES) if full and not moved else _BYTES
        return new

    def plain(self, text: str, *, last: bool) -> list[str]:
        """Return the new lines of a whole log."""
        new = _whole(text, last=last)[self.lines :]
        self.lines += len(new)
        self.ahead += len(new)
        return new


@dataclass(slots=True)
class _StageLog:
    pods: dict[str, _Progress] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    lines: int = 0
    ended: bool = False
    dumping: bool = False

    def without_executor(self, lines: Sequence[str]) -> list[str]:
        """Return the lines without those of KFP's executor, which prints all of its input as JSON."""
        kept = []
        for line in lines:
            if line.startswith(_EXECUTOR):
                self.dumping = line.endswith("Got executor_input:")
            elif not self.dumping:
                kept.append(line)
            elif line.rstrip() == "}":
                self.dumping = False
        return kept


class RunLogs:
    """Logs of a run's stages.

    Args:
        run: The run. Its API waits only briefly for an answer.
        tell: Called with a stage and new lines of its log.
    """

    def __init__(self, run: FollowedRun, tell: Callable[[str, Sequence[str]], None]) -> None:
        self._run = run
        self._tell = tell
        self._lock = threading.Lock()
        self._logs = {stage: _StageLog() for stage in run.tasks}
        self._turn = 0

    def read(
        self, running: Collection[str], views: Sequence[PodView] | None, workflow: Workflow | None
    ) -> None:
        """Read new lines of the stages that run, of some of them if they are many.

        Args:
            running: The stages.
            views: Pods of the run; None if Kubernetes cannot be queried.
            workflow: Workflow of the run, if it is known.
        """
        stages = sorted(running)
        start = self._turn % len(stages) if stages else 0
        self._turn += _STAGES
        for stage in (stages[start:] + stages[:start])[:_STAGES]:
            with self._lock:
                if not self._logs[stage].ended:
                    self._read(stage, views, workflow, last=False)

    def finish(self, stage: str, views: Sequence[PodView] | None, workflow: Workflow | None) -> None:
        """Read the rest of the log of a stage that has ended.

        Args:
            stage: The stage.
            views: Pods of the run; None if Kubernetes cannot be queried.
            workflow: Workflow of the run, if it is known.
        """
        with self._lock:
            if not self._logs[stage].ended:
                self._read(stage, views, workflow, last=True)
                self._logs[stage].ended = True

    def _read(
        self, stage: str, views: Sequence[PodView] | None, workflow: Workflow | None, *, last: bool
    ) -> None:
        task, log = self._run.tasks[stage], self._logs[stage]
        if views is not None:
            mine = [view for view in views if view.task == task]
            there = {view.name for view in mine}
            for name in log.pods:
                if name and name not in there | log.gone:
                    log.gone.add(name)
                    self._say(stage, [f"--- the pod {name} is gone, with the rest of its log ---"])
            read = [self._read_pod(stage, view, last=last) for view in mine]
            if mine and all(read):
                return
            if not mine and log.gone:
                return
        name = workflow.pod(task) if workflow is not None else ""
        text, cut = (
            self._run.api.log_head(self._run.run_id, name, self._run.namespace) if name else ("", False)
        )
        if not text and last and not log.pods:
            name = _REMOTE
            with suppress(DvkfError):
                place = self._run.place(stage, LOG)
                text = self._run.remote.storage.read(place, limit=_MOST_BYTES).decode(errors="replace")
        if text:
            self._say(stage, self._progress(stage, name).plain(text, last=last or cut))
        if cut and not log.ended:
            # Another read would bring the same beginning.
            log.ended = True
            self._tell(
                stage, [f"... the log continues; Kubeflow's UI gives its first {LOG_HEAD >> 20} MiB only"]
            )

    def _read_pod(self, stage: str, view: PodView, *, last: bool) -> bool:
        """Read the log of a pod by Kubernetes; return False if it cannot be queried."""
        assert self._run.pods is not None
        if view.phase == "Pending":
            return True
        known = self._progress(stage, view.name)
        if view.restarts > known.restarts:
            rest = self._run.pods.log_since(view.name, known.second, known.limit, previous=True)
            self._say(stage, known.stamped(rest or "", last=True))
            self._say(stage, [f"--- the container of pod {view.name} was restarted ---"])
            known.restarts = view.restarts
        text = self._run.pods.log_since(view.name, known.second, known.limit)
        if text is None:
            return False
        self._say(stage, known.stamped(text, last=last or view.ended is not None))
        return True

    def _progress(self, stage: str, name: str) -> _Progress:
        log = self._logs[stage]
        if name not in log.pods:
            log.pods[name] = _Progress()
            if len(log.pods) > 1 and name:
                self._say(stage, [f"--- attempt {len(log.pods)}, pod {name} ---"])
        return log.pods[name]

    def _say(self, stage: str, lines: Sequence[str]) -> None:
        log = self._logs[stage]
        lines = log.without_executor(lines)
        left = MOST_LINES - log.lines
        if lines and left > 0:
            log.lines += len(lines)
            self._tell(stage, [clean_log(line.encode()).rstrip() for line in lines[:left]])
            if log.lines >= MOST_LINES:
                log.ended = True
                self._tell(stage, [f"... the log continues; its first {MOST_LINES:,} lines are shown here"])


def _whole(text: str, *, last: bool) -> list[str]:
    """Return the lines of a log, without an unfinished last one unless it is the end."""
    lines = text.split("\n")
    rest = lines.pop()
    return [*lines, rest] if last and rest else lines
