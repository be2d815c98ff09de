"""Cards of pipelines and their stages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import ROWS, block, code, count_text, escape, markdown_table

if TYPE_CHECKING:
    from dvkf_prefect.pipeline.plan.why import Decision
    from dvkf_prefect.pipeline.run.events import ReproResult, StageEvent

_LOG = 4000
# Text between the cause of a failure and the end of the log, see `StageFailedError`.
_TAIL = " The end of its log:"

_ACTIONS = {"run": "ran", "skip": "skipped", "restore": "restored from the run cache"}


def pipeline_card(result: ReproResult, name: str, *, limit: int = 200) -> Card:
    """Show every stage of a pipeline with its outcome and reasons.

    Args:
        result: Result of `repro`.
        name: Short name of the repository.
        limit: Maximum number of stages.
    """
    failed = set(result.failed)
    rows = [
        (
            d.stage,
            "failed" if d.stage in failed else _ACTIONS[d.action],
            "; ".join(map(str, d.reasons)) or "nothing changed",
        )
        for d in result.decisions
    ]
    after = f"not reached, since {', '.join(result.failed[:3])} failed" if result.failed else "not reached"
    rows += [(stage, "not reached", after) for stage in result.blocked]
    counts = [
        f"{len(names):,} {word}"
        for names, word in (
            (result.ran, "ran"),
            (result.restored, "restored"),
            (result.skipped, "skipped"),
            (result.failed, "failed"),
            (result.blocked, "not reached"),
        )
        if names
    ]
    description = f"{count_text(len(rows), 'stage')} of **{escape(name)}**: {', '.join(counts) or 'none'}."
    table = markdown_table(("stage", "outcome", "why"), rows, limit=limit)
    return Card(
        artifact_key("pipeline", name), description, markdown=f"## Stages of {escape(name)}\n\n{table}"
    )


@dataclass(frozen=True)
class TreeChange:
    """Changed files of a directory, relative to it.

    Attributes:
        added: New files.
        deleted: Removed files.
        modified: Files with new content.
    """

    added: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = ((self.added, "added"), (self.deleted, "deleted"), (self.modified, "modified"))
        return ", ".join(f"{len(names):,} {word}" for names, word in parts if names)


def stage_card(
    decision: Decision,
    name: str,
    event: StageEvent | None = None,
    *,
    limit: int = ROWS,
    files: Mapping[str, TreeChange] | None = None,
) -> Card:
    """Show the outcome of a stage: reasons, changed files of directories, and the end of the log.

    The card of a failed stage begins with its failure: the exit code or the error, and the last lines of the log.

    Args:
        decision: The decision on the stage, with its reasons.
        name: Short name of the repository.
        event: Event of the end of its run, if it ran.
        limit: Maximum number of reasons, and of files per directory.
        files: Changes in directories it depends on, by the name of the dependency.
    """
    files = files or {}
    failed = event is not None and event.kind == "fail"
    action = "failed" if failed else _ACTIONS[decision.action]
    if event is not None and event.kind == "start":
        action = "did not finish"
    seconds = ""
    if event is not None and event.seconds:
        seconds = f" in {event.seconds:.{1 if event.seconds >= 1 else 2}f} s"
    first = str(decision.reasons[0]) if decision.reasons else "nothing changed"
    more = f" and {len(decision.reasons) - 1} more" if len(decision.reasons) > 1 else ""
    tail = event.log_tail.strip() if event is not None else ""
    parts = [f"## {escape(decision.stage)} of {escape(name)}: {action}{seconds}"]
    if failed and event is not None:
        how, _, after = event.message.partition(_TAIL)
        tail = tail or after.strip()
        parts += [_cause(how)] if how.strip() else []
        parts += [f"### Last lines of its log\n\n{block(_cut(tail))}", "### Why it ran"] if tail else []
        ended = re.search(r"ended with exit code -?\d+", how)
        last = tail.splitlines()[-1] if tail else ""
        # The failure itself, where the list of artifacts shows one line.
        first = "; ".join(filter(None, (ended[0] if ended else how.strip().removesuffix("."), last)))
        more = ""
    description = (
        f"**{escape(decision.stage)}** of **{escape(name)}** {action}{seconds}: {escape(first)}{more}."
    )
    rows = []
    for r in decision.reasons:
        what = f"{r.name} ({files[r.name]})" if r.name in files else r.name
        # A reason that names no dependency is a sentence: the stage has no record, or always runs.
        said = str(r) if r.kind in ("new", "always", "forced") else ""
        rows.append((r.kind, said or what, _value(r.old), _value(r.new) or r.note))
    parts.append(
        markdown_table(("why", "what", "old", "new"), rows, limit=limit) if rows else "No dependency changed."
    )
    for directory, change in files.items():
        kinds = (("added", change.added), ("deleted", change.deleted), ("modified", change.modified))
        changed = [(kind, path) for kind, paths in kinds for path in paths]
        table = markdown_table(("change", "file"), changed, limit=limit)
        parts.append(f"### Files of {escape(directory)}: {change}\n\n{table}")
    if tail and not failed:
        parts.append(f"### End of its log\n\n{block(_cut(tail))}")
    return Card(artifact_key("stage", name, decision.stage), description, markdown="\n\n".join(parts))


def _cause(how: str) -> str:
    """Return a sentence in bold, and the command in it as code."""
    texts = how.strip().removesuffix(".").split("`")
    # Commands with quotes of their own stay as they are.
    if len(texts) != 3:
        return f"**{escape(how.strip().removesuffix('.'))}**"
    return " ".join(
        code(text) if number == 1 else f"**{escape(text.strip())}**"
        for number, text in enumerate(texts)
        if text.strip()
    )


def _cut(log: str) -> str:
    return "…" + log[-_LOG:] if len(log) > _LOG else log


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        value = " && ".join(value)
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{32}(\.dir)?", text) else text
