"""Values of settings of pods: quantities, durations, names and labels, as Kubernetes and KFP's SDK both take them."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator

from dvkf_prefect.pipeline.step.meta import SettingError, checked, list_only, matching, without_nulls

_DURATION = re.compile(r"([0-9]+)\s*([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = 3650 * 86400
"""Seconds of the longest duration."""


def seconds_of(value: Any) -> int:
    """Return the seconds of a duration such as 90, ``90s``, ``15m``, ``6h`` or ``2d``, at most ten years.

    Raises:
        ValueError: The value is not a duration.
    """
    match = _DURATION.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError(value)
    return min(int(match[1][:18]) * _SECONDS[match[2]], LONGEST)


def _value(value: Any) -> str:
    if not isinstance(value, (str, int, float)):
        raise ValueError(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not (text := str(value)).isdecimal() or len(text) > 18:
        raise ValueError(value)
    return int(value)


def _factor(value: Any) -> int:
    # Argo accepts only whole numbers; with any other the node fails at its first failure.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or int(value) != value or value < 1:
        raise ValueError(value)
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "{{" in value:
        raise ValueError(value)
    return value


def _mount(value: Any) -> str:
    if not _text(value).startswith("/") or ".." in value.split("/"):
        raise ValueError(value)
    return str(value)


def _not_ours(value: str) -> str:
    if value.startswith("DVKF_"):
        raise SettingError((), "names that begin with DVKF_ are reserved")
    return value


Text = Annotated[str, checked(_text, "a string without '{{'")]
Mount = Annotated[str, checked(_mount, "an absolute path")]
Whole = Annotated[int, checked(_whole, "a whole number, at least 0")]
Factor = Annotated[int, checked(_factor, "a whole number, at least 1")]
Value = Annotated[str, checked(_value, "a string or a number")]
_A_DURATION = "a duration such as 90, 90s, 15m, 6h or 2d"
Seconds = Annotated[int, checked(seconds_of, _A_DURATION)]
Duration = Annotated[str, checked(lambda value: f"{seconds_of(value)}s", _A_DURATION)]
# Quantities of Kubernetes, as far as KFP's SDK passes them on. The SDK takes no fraction of memory, and thousands of
# bytes only as K, which Kubernetes refuses.
Cpu = Annotated[str, matching(r"[0-9]+(\.[0-9]+)?m?", "a quantity of cores such as 2, 0.5 or 500m")]
Memory = Annotated[
    str, matching(r"[0-9]+(Ki|[MGTPE]i?)?", "a quantity of bytes without a fraction, such as 512Mi or 4Gi")
]
Size = Annotated[
    str, matching(r"[0-9]+(\.[0-9]+)?(m|k|Ki|[MGTPE]i?)?", "a quantity of bytes such as 4Gi or 1.5Gi")
]
# Names of Kubernetes objects and environment variables; keys (with an optional domain) and values of labels.
Name = Annotated[str, matching(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", "the name of a Kubernetes object")]
# KFP names the volume of a claim, a secret or a configuration map after it.
VOLUME_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
VolumeName = Annotated[
    str, matching(VOLUME_NAME.pattern, "a name of up to 63 lower-case letters, digits and '-', without a dot")
]
Variable = Annotated[
    str, matching("[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable"), AfterValidator(_not_ours)
]
LabelKey = Annotated[
    str,
    matching(
        r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", "a label's key"
    ),
]
Label = Annotated[
    str,
    matching(
        r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?",
        "a label's value of up to 63 letters, digits, '-', '_' or '.'",
    ),
]
K = TypeVar("K")
V = TypeVar("V")
Items = Annotated[tuple[V, ...], BeforeValidator(list_only)]
Pairs = Annotated[dict[K, V], BeforeValidator(without_nulls)]
