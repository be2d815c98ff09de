"""Recurring runs: their rows, the grammar and times of their cron, and the runs that they start.

Sources: apiserver/server/job_server.go and api_converter.go:1953-2170, apiserver/model/job.go, apiserver/resource/
resource_manager.go (CreateJob, ChangeJobMode, DeleteJob), crd/controller/scheduledworkflow; robfig/cron
v1.2.0 parser.go.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from . import filters, proxy, store
from .store import Refused, now

if TYPE_CHECKING:
    from .server import FakeKfp, Run

# robfig/cron: bounds of seconds, minutes, hours, days, months and weekdays.
_BOUNDS = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


class Cron:
    """A cron expression of six fields; the weekday may be left out, and the first field is that of seconds."""

    def __init__(self, text: str) -> None:
        if text.startswith("@"):
            raise ValueError("descriptors are not part of this fake")
        fields = text.split()
        if len(fields) not in (5, 6):
            raise ValueError(f"Expected 5 to 6 fields, found {len(fields)}: {text}")
        # Without a sixth field, any weekday: a crontab's five fields are read as second to month.
        fields += ["*"] * (6 - len(fields))
        names = [[], [], [], [], _MONTHS, _DAYS]
        self.fields = [_field(f, *b, n) for f, b, n in zip(fields, _BOUNDS, names, strict=True)]
        self.stars = [any(part.partition("/")[0] in ("*", "?") for part in f.split(",")) for f in fields]

    def matches(self, moment: datetime) -> bool:
        day = moment.day in self.fields[3]
        weekday = (moment.isoweekday() % 7) in self.fields[5]
        # spec.go (dayMatches): both if one is a star, either otherwise.
        right = (day and weekday) if self.stars[3] or self.stars[5] else (day or weekday)
        parts = zip((moment.second, moment.minute, moment.hour), self.fields, strict=False)
        return right and moment.month in self.fields[4] and all(value in allowed for value, allowed in parts)

    def times(self, start: datetime, days: int) -> list[datetime]:
        """Return its times, at full minutes, in some days from a moment on."""
        moments = (start + timedelta(minutes=m) for m in range(days * 1440))
        return [moment for moment in moments if self.matches(moment)]


def _field(text: str, least: int, most: int, names: list[str]) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        low, dash, high = span.partition("-")
        start, end = (least, most) if low in ("*", "?") else (_value(low, names),) * 2
        if dash:
            end = _value(high, names)
        elif slash:
            end = most
        if not least <= start <= end <= most:
            raise ValueError(f"Beginning of range ({start}) or end ({end}) out of {least} to {most}: {part}")
        size = _value(step, []) if slash else 1
        if size < 1:
            raise ValueError(f"Step of range should be a positive number: {part}")
        found |= set(range(start, end + 1, size))
    return found


def _value(text: str, names: list[str]) -> int:
    first = {6: 0, 11: 1}.get(len(names) - 1, 0)
    if text.lower() in names:
        return names.index(text.lower()) + first
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"Failed to parse int from {text}")
    return int(text)


class RecurringRuns:
    """Operations on recurring runs.

    Attributes:
        cron_zone: Time zone of the controller (CRON_SCHEDULE_TIMEZONE), in which a cron is read.
    """

    def __init__(self) -> None:
        self.recurring: dict[str, dict] = {}
        self.cron_zone = ZoneInfo("UTC")

    def _access_recurring(self: FakeKfp, namespace: str, user: str, verb: str) -> None:
        proxy.check_namespace(self, namespace, user, verb)

    def _RecurringRunService_CreateRecurringRun(
        self: FakeKfp, query: dict, body: dict, user: str, database: bool
    ) -> dict:
        if not body.get("display_name"):
            raise Refused(500, "InternalServerError: Recurring run's name cannot be empty")
        if self.version < (2, 16) and "plugins_input" in body:
            raise Refused(400, 'proto: unknown field "plugins_input"')
        most = int(body.get("max_concurrency", 0))
        if not 1 <= most <= 10:
            raise Refused(
                400,
                f"Invalid input error: Max concurrency of a recurring run must be at least 1. Received {most}",
            )
        trigger = body.get("trigger")
        if trigger is None:
            # api_converter.go:2120 dereferences it; a nil *Trigger is no nil interface, so the row has no trigger.
            trigger = {}
        if cron := (trigger.get("cron_schedule") or {}).get("cron"):
            try:
                Cron(cron)
            except ValueError as error:
                raise Refused(
                    400, f"Invalid input error: Schedule cron is not a supported format: {error}"
                ) from None
        interval = (trigger.get("periodic_schedule") or {}).get("interval_second")
        if interval is not None and int(interval) < 1:
            raise Refused(400, f"Invalid input error: Found invalid period schedule interval {interval}")
        # GetValidExperimentNamespacePair: the experiment gives the namespace.
        experiment = self.experiments.get(body.get("experiment_id", ""))
        if body.get("experiment_id") and experiment is None:
            raise Refused(404, f"Experiment {body['experiment_id']} not found")
        if experiment is None and self.multi_user:
            raise Refused(
                400, "Invalid input error: Experiment ID and namespace cannot be empty in multi-user mode"
            )
        namespace = (experiment or {}).get("namespace") or self.namespace
        self._access_recurring(namespace, user, "create")
        spec = self.source_of(body)
        for column in ("display_name", "description"):
            store.check_text(column, body.get(column, ""), store.TEXT)
        enabled = body.get("mode") == "ENABLE"
        made = {
            **{k: v for k, v in body.items() if k not in ("mode", "recurring_run_id")},
            # It is the uid of the ScheduledWorkflow, whatever the request said.
            "recurring_run_id": str(uuid.uuid4()),
            "service_account": body.get("service_account") or self.default_account,
            "namespace": namespace,
            "created_at": now(),
            "updated_at": now(),
            **_mode(enabled),
        }
        self.recurring[made["recurring_run_id"]] = made
        self.recurring_specs = {**getattr(self, "recurring_specs", {}), made["recurring_run_id"]: spec}
        return made

    def _RecurringRunService_ListRecurringRuns(
        self: FakeKfp, query: dict, body: None, user: str, database: bool
    ) -> dict:
        namespace = query.get("namespace", "")
        if query.get("experiment_id"):
            namespace = self.experiments[query["experiment_id"]].get("namespace", "")
        self._access_recurring(namespace, user, "list")
        found = [
            row
            for row in self.recurring.values()
            if (not self.multi_user or row["namespace"] == namespace)
            and query.get("experiment_id") in (None, row.get("experiment_id"))
        ]
        return filters.page("recurringRuns", found, query)

    def _RecurringRunService_GetRecurringRun(
        self: FakeKfp, recurring_run_id: str, query: dict, body: None, user: str, database: bool
    ) -> dict:
        return self._recurring(recurring_run_id, user, "get")

    def _RecurringRunService_EnableRecurringRun(
        self: FakeKfp, recurring_run_id: str, query: dict, body: None, user: str, database: bool
    ) -> dict:
        self._recurring(recurring_run_id, user, "enable").update(_mode(True), updated_at=now())
        return {}

    def _RecurringRunService_DisableRecurringRun(
        self: FakeKfp, recurring_run_id: str, query: dict, body: None, user: str, database: bool
    ) -> dict:
        self._recurring(recurring_run_id, user, "disable").update(_mode(False), updated_at=now())
        return {}

    def _RecurringRunService_DeleteRecurringRun(
        self: FakeKfp, recurring_run_id: str, query: dict, body: None, user: str, database: bool
    ) -> dict:
        self._recurring(recurring_run_id, user, "delete")
        # DeleteJob: workflows belong to the ScheduledWorkflow, so Kubernetes deletes them too, unless they are
        # orphaned; the policy is of 2.17.
        if self.version < (2, 17) or query.get("propagation_policy") != "ORPHAN":
            for run in self.runs.values():
                if run.body.get("recurring_run_id") == recurring_run_id:
                    run.workflow.stop()
        del self.recurring[recurring_run_id]
        return {}

    def _recurring(self: FakeKfp, recurring_run_id: str, user: str, verb: str) -> dict:
        row = self.recurring.get(recurring_run_id)
        if row is None:
            raise Refused(404, f"Failed to fetch recurring run: Job {recurring_run_id} not found")
        self._access_recurring(row["namespace"], user, verb)
        return row

    def fire(self: FakeKfp, recurring_run_id: str) -> Run | None:
        """Start a run as the controller of scheduled workflows does at a time of the schedule; None if it is paused."""
        row = self.recurring[recurring_run_id]
        if row["status"] != "ENABLED":
            return None
        active = [
            run
            for run in self.runs.values()
            if run.body.get("recurring_run_id") == recurring_run_id and not run.workflow.ended
        ]
        if len(active) >= int(row["max_concurrency"]):
            return None
        body = {
            # crd/controller/scheduledworkflow/util/scheduled_workflow.go: the name has the time and an index.
            "display_name": f"{row['display_name']}-{len(self.runs)}",
            "experiment_id": row.get("experiment_id", ""),
            "recurring_run_id": recurring_run_id,
            **{
                k: row[k]
                for k in ("pipeline_version_reference", "pipeline_spec", "service_account")
                if k in row
            },
            "runtime_config": row.get("runtime_config", {}),
        }
        # The controller knows nothing of a `run_id`: the server makes one.
        return self.start_run(body, str(uuid.uuid4()), spec=self.recurring_specs[recurring_run_id])


def _mode(enabled: bool) -> dict:
    return {"mode": "ENABLE", "status": "ENABLED"} if enabled else {"mode": "DISABLE", "status": "DISABLED"}
