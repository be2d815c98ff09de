"""Options of a stage's task run: ``meta: prefect:`` in dvc.yaml, with defaults from the flow.

DVC keeps ``meta`` and ignores its content. ::

    stages:
      train:
        cmd: python train.py
        meta:
          prefect:
            retries: 2
            retry_delay_seconds: [10, 60]   # or one number
            timeout_seconds: 3600
            tags: [gpu]                     # concurrency limits of tags apply, as for every task
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dvkf_prefect.errors import ParseError
from dvkf_prefect.formats.documents import line_of
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.files import RepoFiles


@dataclass(frozen=True, slots=True)
class StageOptions:
    """Options of a stage's task run.

    Attributes:
        retries: Number of retries after the command or its runner failed.
        retry_delay_seconds: Seconds to wait before each retry; the last value applies to all further retries.
        timeout_seconds: Maximum seconds of one attempt; None for no timeout.
        tags: Tags of the task run.
    """

    retries: int = 0
    retry_delay_seconds: tuple[float, ...] = ()
    timeout_seconds: float | None = None
    tags: tuple[str, ...] = ()

    def delay(self, number: int) -> float:
        """Return the seconds to wait before a retry, counted from 1."""
        delays = self.retry_delay_seconds
        return delays[min(number, len(delays)) - 1] if delays else 0.0


class _WrongError(Exception):
    """An invalid value of an option."""


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _WrongError(f"expected a whole number from 0 on, not {value!r}")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10**7:
        raise _WrongError(f"expected seconds, a number from 0 on, not {value!r}")
    return float(value)


def _delays(value: Any) -> tuple[float, ...]:
    return tuple(map(_seconds, value)) if isinstance(value, list) else (_seconds(value),)


def _timeout(value: Any) -> float | None:
    if value is None:
        return None
    seconds = _seconds(value)
    if not seconds:
        raise _WrongError("expected more than 0 seconds")
    return seconds


def _tags(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(tag, str) and tag for tag in value):
        raise _WrongError(f"expected a list of texts, not {value!r}")
    return tuple(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "retries": _count,
    "retry_delay_seconds": _delays,
    "timeout_seconds": _timeout,
    "tags": _tags,
}


def read_options(
    stages: Iterable[Stage], files: RepoFiles, defaults: StageOptions
) -> dict[str, StageOptions]:
    """Return the options of each stage by its address.

    Args:
        stages: The stages.
        files: Files of the repository, to find the line of a mistake in a dvc.yaml.
        defaults: Options that a stage does not set.

    Raises:
        ParseError: A key is unknown or a value invalid; with file, line, stage and key.
    """
    options = {}
    for stage in stages:
        values = stage.meta.get("prefect") if isinstance(stage.meta, Mapping) else None
        options[stage.address] = defaults if values is None else _read(stage, values, files, defaults)
    return options


def _read(stage: Stage, values: Any, files: RepoFiles, defaults: StageOptions) -> StageOptions:
    if not isinstance(values, Mapping):
        raise _problem(stage, files, (), f"expected a mapping of {', '.join(_READERS)}")
    read = {}
    for key, value in values.items():
        if key not in _READERS:
            near = difflib.get_close_matches(str(key), _READERS, 1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(_READERS)}"
            raise _problem(stage, files, (str(key),), f"there is no such key{hint}")
        try:
            read[key] = _READERS[key](value)
        except _WrongError as error:
            raise _problem(stage, files, (key,), str(error)) from None
    return replace(defaults, **read)


def _problem(stage: Stage, files: RepoFiles, where: tuple[str, ...], text: str) -> ParseError:
    group = ("stages", stage.group, "do") if stage.group else ("stages", stage.name)
    key = ".".join(("meta", "prefect", *where))
    line = line_of(files.read(stage.file), (*group, "meta", "prefect", *where))
    return ParseError(stage.file, f"stage '{stage.address}', key '{key}': {text}", line=line)
