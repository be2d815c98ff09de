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

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.files import RepoFiles
from dvkf_prefect.pipeline.step.meta import checked, list_only, read_meta, record
from dvkf_prefect.pipeline.step.spec import StepMeta


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10**7:
        raise ValueError(value)
    return float(value)


def _tag(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _timeout(value: Any) -> float:
    seconds = _number(value)
    if not seconds:
        raise ValueError(value)
    return seconds


Count = Annotated[int, checked(_count, "a whole number, at least 0")]
Seconds = Annotated[float, checked(_number, "seconds, a number of at least 0")]
Timeout = Annotated[float, checked(_timeout, "seconds, a number greater than 0")]
Tag = Annotated[str, checked(_tag, "a string")]
_seconds: TypeAdapter[float] = TypeAdapter(Seconds)


@dataclass(frozen=True, slots=True)
class StageOptions:
    """Options of a stage's task run.

    Attributes:
        retries: Number of retries after the command or its runner failed.
        retry_delay_seconds: Seconds to wait before each retry; the last value applies to all further retries.
        timeout_seconds: Maximum seconds of one attempt; None for no timeout.
        tags: Tags of the task run.
    """

    retries: Count = 0
    retry_delay_seconds: Annotated[
        tuple[Seconds, ...],
        BeforeValidator(
            lambda value: value if isinstance(value, list) else (_seconds.validate_python(value),)
        ),
    ] = ()
    timeout_seconds: Timeout | None = None
    tags: Annotated[tuple[Tag, ...], BeforeValidator(list_only)] = ()

    def delay(self, number: int) -> float:
        """Return the seconds to wait before a retry, counted from 1."""
        delays = self.retry_delay_seconds
        return delays[min(number, len(delays)) - 1] if delays else 0.0


_OPTIONS: TypeAdapter[StageOptions] = TypeAdapter(Annotated[StageOptions, record(StageOptions, nulls=True)])


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
        meta = StepMeta(stage.meta, stage.file, (*stage.place, "meta"))
        found = read_meta(_OPTIONS, "prefect", meta, stage.address, files.read)
        given = stage.meta["prefect"] if found is not None else ()
        options[stage.address] = replace(defaults, **{key: getattr(found, key) for key in given})
    return options
