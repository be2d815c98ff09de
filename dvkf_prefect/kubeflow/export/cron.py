"""Cron expressions of Kubeflow Pipelines, from a crontab's five fields and a time zone.

Kubeflow reads six fields, of which the first is that of seconds (``robfig/cron`` 1.2.0, ``parser.go``). The weekday may
be left out, so it takes five fields for seconds to months: ``0 3 * * *`` would run at the third minute of each hour.
A schedule has no time zone. All are read in that of the controller (``CRON_SCHEDULE_TIMEZONE``, UTC by default).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dvkf_prefect.errors import ConfigError

_NAMES = ("minute", "hour", "day of the month", "month", "weekday")
_BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_WORDS: tuple[dict[str, int], ...] = (
    {},
    {},
    {},
    {name: number for number, name in enumerate(_MONTHS, 1)},
    {name: number for number, name in enumerate(_DAYS)},
)
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MINUTES = 24 * 60  # of a day


def kubeflow_cron(text: str, zone: str = "UTC", *, server_zone: str = "UTC", day_or: bool = True) -> str:
    """Return a crontab's schedule as Kubeflow Pipelines reads it.

    Args:
        text: Five fields: minute, hour, day of the month, month and weekday; or an alias such as ``@daily``.
        zone: Time zone of the schedule.
        server_zone: Time zone of Kubeflow's controller.
        day_or: Either day is enough if both are restricted, as in a crontab and in Prefect.

    Raises:
        ConfigError: The schedule is wrong, or Kubeflow cannot express it: its field has other grammar, the time zone
            changes between summer and winter, or a shift of the zone splits the days.

    Example:
        >>> kubeflow_cron("30 2 * * mon-fri", "Asia/Kolkata")
        '0 0 21 * * 0,1,2,3,4'
    """
    fields = _ALIASES.get(text.strip().lower(), text).split()
    if len(fields) != len(_NAMES):
        raise ConfigError(
            f"the schedule '{text}' has {len(fields)} fields, not the five of a crontab. Write five."
        )
    values = [_values(text, field, i) for i, field in enumerate(fields)]
    free = [field == "*" for field in fields]
    if not (day_or or free[2] or free[4]):
        raise ConfigError(
            f"the schedule '{text}' names days of the month and weekdays, and both must match (day_or is off). "
            "Kubeflow starts a run if one of them does. Restrict one of them."
        )
    shift = _shift(text, zone, server_zone, any_hour=all(free[1:]))
    if shift:
        values, free = _moved(text, values, free, shift, zone, server_zone)
    return " ".join(
        ["0", *("*" if star else ",".join(map(str, v)) for v, star in zip(values, free, strict=True))]
    )


def _values(text: str, field: str, place: int) -> list[int]:
    """Return the values of a field."""
    least, most = _BOUNDS[place]
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        low, dash, high = span.partition("-")
        try:
            start = least if low == "*" else _number(low, place)
            end = _number(high, place) if dash else most if slash or low == "*" else start
            size = int(step) if slash else 1
            if size < 1 or not (least <= start <= most and least <= end <= most):
                raise ValueError(part)
        except ValueError:
            raise ConfigError(
                f"the {_NAMES[place]} '{part}' of the schedule '{text}' cannot be a schedule of Kubeflow. Use numbers, "
                "names, ranges, steps and lists."
            ) from None
        if place == 4 and low == "*":
            end = 6  # 7 is Sunday again
        # A range such as 22-2 goes on at the beginning.
        span_values = (
            [*range(start, end + 1)] if start <= end else [*range(start, most + 1), *range(least, end + 1)]
        )
        found.update(span_values[::size])
    return sorted({value % 7 for value in found} if place == 4 else found)


def _number(text: str, place: int) -> int:
    word = _WORDS[place].get(text.lower())
    if word is not None:
        return word
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def _shift(text: str, zone: str, server_zone: str, *, any_hour: bool) -> int:
    """Return the minutes by which the schedule's zone is ahead of the server's.

    Args:
        text: The schedule.
        zone: Its time zone.
        server_zone: Time zone of the server.
        any_hour: True if the schedule is that of each hour, so that whole hours do not matter.
    """
    here, there = _zone(zone), _zone(server_zone)
    start = datetime.now(timezone.utc)
    shifts = set()
    for day in range(0, 3 * 366, 7):
        moment = start + timedelta(days=day)
        offsets = [moment.astimezone(each).utcoffset() or timedelta() for each in (here, there)]
        shifts.add(round((offsets[0] - offsets[1]).total_seconds() / 60))
    if any_hour:
        shifts = {shift % 60 for shift in shifts}
    if len(shifts) > 1:
        raise ConfigError(
            f"the schedule '{text}' in {zone} cannot be a schedule of Kubeflow, whose controller reads it in "
            f"{server_zone}: the difference changes between summer and winter. Give the schedule in that zone, or set "
            "the controller's CRON_SCHEDULE_TIMEZONE and name it as the server's zone."
        )
    return shifts.pop()


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"there is no time zone '{name}'. Use a name such as Europe/Berlin.") from error


def _moved(
    text: str, values: Sequence[list[int]], free: Sequence[bool], shift: int, zone: str, server_zone: str
) -> tuple[list[list[int]], list[bool]]:
    """Return the fields in the server's zone."""
    moments = {hour * 60 + minute - shift for hour, minute in itertools.product(values[1], values[0])}
    days = {moment // _MINUTES for moment in moments}
    hours = sorted({moment % _MINUTES // 60 for moment in moments})
    minutes = sorted({moment % 60 for moment in moments})
    any_day = free[2] and free[3] and free[4]
    if len(hours) * len(minutes) != len(moments) or not (any_day or len(days) == 1):
        raise _split(text, zone, server_zone)
    day = 0 if any_day else days.pop()
    if day and not (free[2] and free[3]):
        raise _split(text, zone, server_zone)
    weekdays = sorted((value + day) % 7 for value in values[4])
    stars = [len(minutes) == 60, len(hours) == 24, free[2], free[3], free[4]]
    return [minutes, hours, values[2], values[3], weekdays], stars


def _split(text: str, zone: str, server_zone: str) -> ConfigError:
    return ConfigError(
        f"the schedule '{text}' in {zone} is not one cron expression in {server_zone}, in which Kubeflow's controller "
        "reads it: its times fall on different days or minutes. Split the schedule, or give it in that zone."
    )
