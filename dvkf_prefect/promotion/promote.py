"""Promotion of a version: gate, approval, stage, publication, canary, all traffic and mirror, each recorded.

A killed promotion is continued by the next call: a completed step is not repeated, and each step first looks for what
an interrupted one left. Nothing is changed before the gates and the approval. If the canary is refused, or the version
does not serve, the version before keeps the traffic and gets the stage back.

The first version of a model has no version beside it. Gates judge a preview of it, at an address without traffic, by
its recorded requests. So a first version that a gate refuses, or cannot judge, never serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dvkf_prefect.data.progress import NO_PROGRESS, Progress
from dvkf_prefect.errors import ModelDigestError, ModelError, ModelNotFoundError, PromotionError, ServingError
from dvkf_prefect.models.gates import Candidate, Finding, Gate, MetricGate, judge_all
from dvkf_prefect.models.publishing import publish_version
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.promotion.act import APPROVED, OTHER, PREVIOUS, PROMOTION, Act, Acting, one_line
from dvkf_prefect.promotion.journal import Record
from dvkf_prefect.promotion.places import ServingPlace

#: Steps in their order.
STEPS = ("gate", "approval", "assign", "publish", "canary", "serve", "alias")


@dataclass(frozen=True)
class Approval:
    """Answer to the question whether a version may be promoted.

    Attributes:
        approved: True if it may.
        by: Person who answered.
        reason: Reason.
    """

    approved: bool
    by: str
    reason: str = ""

    def __str__(self) -> str:
        word = "approved" if self.approved else "refused"
        return f"{word} by {self.by}" + (f": {self.reason}" if self.reason else "")


#: Returns the answer; None if there is none yet, so that the promotion waits for another call.
Approve = Callable[[Record], Approval | None]


@dataclass(frozen=True)
class Promotion:
    """Settings of a promotion.

    Attributes:
        acting: Serving place, mirror, reason and run.
        gates: Gates. Those on metrics judge before any change, all others judge the canary, or the preview of a first
            version, to which the recorded requests are sent.
        approve: Asks for approval; None for the approval of git's user who calls.
        percent: Part of the traffic for the canary, 0 to 99; with 0 it answers the gates alone. None for no canary,
            unless a gate needs it.
        watch: Seconds for which the canary gets its traffic before the gates judge it.
        first: Serve the version even if the place serves no version of the model yet.
        publish_to: Place to publish the version to; empty for none.
        progress: Called as files are published.
        pause: Waits some seconds.
    """

    acting: Acting = field(default_factory=Acting)
    gates: Sequence[Gate] = ()
    approve: Approve | None = None
    percent: int | None = None
    watch: float = 0.0
    first: bool = True
    publish_to: str = ""
    progress: Progress = NO_PROGRESS
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Planned:
    """A step of a plan.

    Attributes:
        step: Its name.
        does: Phrase on what it would do.
        done: True if it is completed.
    """

    step: str
    does: str
    done: bool = False

    def __str__(self) -> str:
        return f"{self.step}: {self.does}{' (done)' if self.done else ''}"


def promote(registry: ModelRegistry, model: str, which: str, stage: str, promotion: Promotion) -> Record:
    """Promote a version to a stage and serve it, or continue a promotion that was interrupted.

    Args:
        registry: The registry.
        model: Name of the model.
        which: The version, ``latest``, or ``#`` and another stage. ``latest`` continues an interrupted promotion.
        stage: The stage, such as ``prod``.
        promotion: Settings.

    Returns:
        The record: ``done``; ``mirroring`` if the mirror failed alone; or ``running`` if it waits for approval.

    Raises:
        ModelNotFoundError: There is no such version.
        PromotionError: A gate or the approval refused it, or the version does not serve. What was before is restored.
        LockedError: Another process changes this stage, or another machine began to.
        ModelError: Another promotion of the stage was interrupted. Continue it, or roll it back.

    Example:
        >>> place = ModelServer()
        >>> promote(registry, "digits", "latest", "prod", Promotion(Acting(place=place), percent=10))
    """
    return _Promoting(registry, model, stage, promotion).run(which)


def plan(
    registry: ModelRegistry, model: str, which: str, stage: str, promotion: Promotion
) -> tuple[Planned, ...]:
    """Return the steps that `promote` would take, without any change.

    Args:
        registry: The registry.
        model: Name of the model.
        which: The version.
        stage: The stage.
        promotion: Settings.

    Raises:
        ModelNotFoundError: There is no such version.
        ModelError: Another promotion of the stage was interrupted.
    """
    return _Promoting(registry, model, stage, promotion).plan(which)


class _Promoting:
    def __init__(self, registry: ModelRegistry, model: str, stage: str, promotion: Promotion) -> None:
        self._registry = registry
        self._act = Act(registry, model, stage, promotion.acting)
        self._promotion = promotion
        self._early = [gate for gate in promotion.gates if isinstance(gate, MetricGate)]
        self._late = [gate for gate in promotion.gates if not isinstance(gate, MetricGate)]
        if self._late and promotion.acting.place is None:
            shown = ", ".join(map(str, self._late))
            raise ModelError(f"{shown}: no serving place. Promote at a place, or use gates on metrics.")

    def run(self, which: str) -> Record:
        act = self._act
        with act.alone() as found:
            last = self._unanswered(found)
            if last is not None and last != found:
                act.record(last)
            version = self._version(which, last)
            if last is not None and last.kind == "promote" and last.version == version.version:
                if last.open or (last.state == "mirroring" and act.holder() == version.version):
                    return self._steps(act.resume(last), version)
                if last.state == "done" and self._stands(version):
                    return last
            record = act.begin("promote", version.version, version.version)
            return self._steps(record, version)

    def plan(self, which: str) -> tuple[Planned, ...]:
        act, promotion = self._act, self._promotion
        last = self._unanswered(act.journal.read())
        version = self._version(which, last)
        ours = last if last and last.open and last.version == version.version else None
        held, state = act.holder(), act.state()
        shown = {
            "gate": ", ".join(map(str, self._early)) or "no gate on metrics",
            "approval": "ask for approval" if promotion.approve else "that of the caller",
            "assign": f"{act.stage} from {held or 'no version'} to {version.version}",
            "publish": f"to {promotion.publish_to}" if promotion.publish_to else "nowhere",
            "canary": self._canary_plan(state is not None),
            "serve": self._serve_plan(version, str(state) if state else ""),
            "alias": "mirror the model" if promotion.acting.mirror else "no registry to mirror in",
        }
        return tuple(Planned(step, does, bool(ours and ours.done(step))) for step, does in shown.items())

    def _canary_plan(self, served: bool) -> str:
        if not served and self._late and self._promotion.first:
            return f"none; {_named(self._late)} judge a preview without traffic"
        if not served or not self._canary_wanted:
            return "none"
        gates = ", ".join(map(str, self._late)) or "no gate"
        return f"{self._promotion.percent or 0} % of the traffic for {self._promotion.watch:g} s; {gates}"

    def _serve_plan(self, version: ModelVersion, now: str) -> str:
        if self._promotion.acting.place is None:
            return "nothing, without a serving place"
        if not now and not self._promotion.first:
            return "nothing, as no version is served"
        return f"{version.version} at {self._promotion.acting.place.where}, in place of {now or 'no version'}"

    # -- beginning ---------------------------------------------------------------------------------------------------

    def _unanswered(self, last: Record | None) -> Record | None:
        """Return the newest record, refused if its run failed before an approval: it has changed nothing.

        A run that completed may leave the approval to another one.
        """
        if last is None or last.kind != "promote" or last.state != "running" or last.done("approval"):
            return last
        if self._act.run_state(last) != "ended":
            return last
        return replace(last, state="refused", problem=f"run {last.holder.run} ended without an approval")

    def _version(self, which: str, last: Record | None) -> ModelVersion:
        """Return the version to promote, after checking that no other promotion is under way."""
        act = self._act
        if last is None or not last.open:
            return act.find(which)
        if last.kind == "rollback":
            raise ModelError(
                f"{last.what} was interrupted. Run `dvkf model rollback {act.model} {act.stage}` again."
            )
        version = act.find(last.version if which == "latest" else which)
        if version.version != last.version:
            raise ModelError(
                f"{last.what}, by {last.holder} for {last.who}, was begun at {last.began} and has not ended. "
                f"Continue it with {last.version}, or run `dvkf model rollback {act.model} {act.stage}`."
            )
        return version

    def _stands(self, version: ModelVersion) -> bool:
        """Return True if a version has what a promotion would give it."""
        state = self._act.state()
        served = state is not None and state.version == version.version and not state.canary
        wanted = self._act.acting.place is not None and (state is not None or self._promotion.first)
        return self._act.holder() == version.version and (served or not wanted)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _steps(self, record: Record, version: ModelVersion) -> Record:
        act = self._act
        if record.state == "aborting":
            return self._restore(record, version)
        if not record.done("gate"):
            record = act.finish(record, "gate", self._judge_early(record, version))
        if not record.done("approval"):
            approve = self._promotion.approve
            answer = approve(record) if approve else Approval(True, act.registry.git.identity())
            if answer is None:
                return record
            if not answer.approved:
                raise self._refused(record, str(answer))
            record = act.finish(record, "approval", str(answer))
        if not record.done("assign"):
            record = act.finish(record, "assign", self._assign(record, version))
        if not record.done("publish"):
            record = act.finish(record, "publish", self._publish(version))
        try:
            if not record.done("canary"):
                record = act.finish(record, "canary", self._canary(record, version))
            if not record.done("serve"):
                record = act.finish(record, "serve", self._serve(record, version))
        except (ServingError, ModelDigestError, _RefusedError) as error:
            record = act.record(replace(record, state="aborting", problem=str(error)))
            return self._restore(record, version)
        record = act.mirrored(record)
        return act.record(replace(record, state="done")) if record.done("alias") else record

    def _judge_early(self, record: Record, version: ModelVersion) -> str:
        findings = judge_all(self._early, self._candidate(record, version))
        if any(finding.blocks for finding in findings):
            raise self._refused(record, _said(findings))
        return _said(findings)

    def _refused(self, record: Record, why: str) -> PromotionError:
        self._act.record(replace(record, state="refused", problem=why))
        return PromotionError(f"{record.what} was refused, and nothing was changed. {why}")

    def _candidate(self, record: Record, version: ModelVersion) -> Candidate:
        champion = None
        for name in (record.served, record.was):
            if name and name != version.version and champion is None:
                try:
                    champion = self._act.find(name)
                except ModelNotFoundError:
                    continue
        return Candidate(self._registry, version.name, version, champion)

    def _assign(self, record: Record, version: ModelVersion) -> str:
        act = self._act
        if act.holder() != version.version:
            approval = next(step.said for step in record.steps if step.name == "approval")
            trailers = {**(act.acting.trailers or {}), PROMOTION: record.id, APPROVED: one_line(approval)}
            if record.was:
                trailers[PREVIOUS] = record.was
            act.registry.assign(act.model, version.version, act.stage, message=record.why, trailers=trailers)
        return f"{act.stage} is {version.version}, after {record.was or 'no version'}"

    def _publish(self, version: ModelVersion) -> str:
        if not self._promotion.publish_to:
            return "not published"
        done = publish_version(
            self._registry, version, self._promotion.publish_to, progress=self._promotion.progress
        )
        return str(done)

    @property
    def _canary_wanted(self) -> bool:
        return self._promotion.percent is not None or bool(self._late)

    def _canary(self, record: Record, version: ModelVersion) -> str:
        place, state = self._act.acting.place, self._act.state()
        if place is None or not self._canary_wanted:
            return "no canary"
        if state is None:
            if not self._promotion.first or not self._late:
                return "no canary, as no version is served"
            return self._first(record, version, place)
        if state.version == version.version:
            if not self._late:
                return f"{version.version} serves already"
        else:
            # Again, if a kill cut it short: the place may name a canary that is not loaded yet.
            place.start_canary(self._registry, version, self._promotion.percent or 0)
            self._promotion.pause(self._promotion.watch)
        if not self._late:
            return f"{version.version} served a part of the traffic"
        endpoint = place.candidate(version.name, version.version)
        return _passed(judge_all(self._late, replace(self._candidate(record, version), endpoint=endpoint)))

    def _first(self, record: Record, version: ModelVersion, place: ServingPlace) -> str:
        """Judge the first version of a model by a preview."""
        try:
            preview = place.start_preview(self._registry, version)
            candidate = replace(self._candidate(record, version), endpoint=preview, preview=True)
            return f"without traffic: {_passed(judge_all(self._late, candidate))}"
        finally:
            place.end_preview(version.name)

    def _serve(self, record: Record, version: ModelVersion) -> str:
        place, state = self._act.acting.place, self._act.state()
        if place is None:
            return "no serving place"
        if state is None and not (record.served or self._promotion.first):
            return "no version is served"
        if state is not None and state.canary == version.version:
            endpoint = place.promote_canary(version.name)
        else:
            endpoint = place.deploy(self._registry, version)
        self._act.note_service(version, endpoint.url)
        return f"{version.version} answers at {endpoint.url}"

    # -- abort -------------------------------------------------------------------------------------------------------

    def _restore(self, record: Record, version: ModelVersion) -> Record:
        """Restore what was before, then raise the reason."""
        act = self._act
        place, state = act.acting.place, act.state()
        if not record.done("restored serving"):
            if place is not None and not record.served:
                place.end_preview(act.model)
            if place is not None and state is None and record.served not in ("", OTHER):
                place.deploy(self._registry, act.find(record.served))
            elif place is not None and state is not None:
                if state.canary == version.version:
                    place.abort_canary(act.model)
                elif state.version == version.version and record.served not in ("", OTHER, version.version):
                    place.deploy(self._registry, act.find(record.served))
                elif state.version == version.version and not record.served:
                    place.undeploy(act.model)
            record = act.finish(record, "restored serving", f"{record.served or 'no version'} serves")
        record = act.finish(record, "restored stage", act.give_back(record, record.was, record.problem))
        act.record(replace(record, state="aborted"))
        raise PromotionError(
            f"{record.what} was ended, and {record.was or 'no version'} is {act.stage} again. {record.problem}"
        )


class _RefusedError(ModelError):
    """A gate refused a version that serves."""


def _named(gates: Sequence[Gate]) -> str:
    return ", ".join(map(str, gates))


def _passed(findings: Sequence[Finding]) -> str:
    """Return a sentence on findings; raise it if one refuses the version."""
    if any(finding.blocks for finding in findings):
        raise _RefusedError(_said(findings))
    return _said(findings)


def _said(findings: Sequence[Finding]) -> str:
    return "; ".join(map(str, findings)) or "no gate"
