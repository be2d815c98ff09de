"""Settings of a tool in a stage's ``meta``: parsed by pydantic into dataclasses, with one form of error.

This module imports pydantic, so neither data verbs nor the process that runs a stage import it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import (
    BeforeValidator,
    TypeAdapter,
    ValidationError,
)

from dvkf_prefect.errors import ParseError
from dvkf_prefect.formats.documents import line_of
from dvkf_prefect.pipeline.step.spec import StepMeta
from dvkf_prefect.text import nearest

T = TypeVar("T")
Place = tuple["str | int", ...]

# Expected values by pydantic's name of the error; the texts and numbers of settings use `checked`.
_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
}


class SettingError(ValueError):
    """A setting with an invalid value, or without a meaning.

    Attributes:
        place: Keys and indexes that lead to it.
        problem: The problem, with the value and the expected one.
    """

    def __init__(self, place: Place, problem: str) -> None:
        self.place = place
        self.problem = problem
        super().__init__(f"'{'.'.join(map(str, place))}': {problem}")


def parse(settings: TypeAdapter[T], values: Any) -> T:
    """Parse settings.

    Args:
        settings: Type of the settings.
        values: Values to parse, of any type.

    Raises:
        SettingError: A key is unknown or a value invalid.
    """
    try:
        return settings.validate_python(values)
    except ValidationError as error:
        raise _setting_error(error) from None


def read_meta(
    settings: TypeAdapter[T],
    tool: str,
    meta: StepMeta,
    stage: str,
    read: Callable[[str], bytes],
    *,
    finish: Callable[[T], T] = lambda found: found,
) -> T | None:
    """Parse the settings of a tool in a stage's ``meta``.

    Args:
        settings: Type of the settings.
        tool: Key of the settings in ``meta``.
        meta: The ``meta`` of the stage, of any type.
        stage: Address of the stage.
        read: Returns the bytes of a file of the repository; called to find the line of a mistake.
        finish: Completes and checks the parsed settings; may raise `SettingError`.

    Returns:
        The settings, or None if the stage has none.

    Raises:
        ParseError: A key is unknown or a value invalid; names file, line, stage and key.
    """
    values = meta.values.get(tool) if isinstance(meta.values, Mapping) else None
    if values is None:
        return None
    try:
        return finish(parse(settings, values))
    except SettingError as error:
        place = (tool, *error.place)
        key = ".".join(map(str, ("meta", *place)))
        line = line_of(read(meta.file), (*meta.place, *place))
        raise ParseError(meta.file, f"stage '{stage}', key '{key}': {error.problem}", line=line) from None


# -- annotations of fields ---------------------------------------------------------------------------------------------


def record(
    model: type[Any], *, short: Callable[[Any], Any] | None = None, nulls: bool = False
) -> BeforeValidator:
    """Return an annotation for a dataclass that is written as a mapping.

    Args:
        model: The dataclass.
        short: Makes an instance from any other value; None if there is no short form.
        nulls: True validates null values; otherwise they count as unset.
    """
    known = [field.name for field in fields(model)]

    def check(value: Any) -> Any:
        if isinstance(value, Mapping):
            for name in value:
                if name not in known:
                    near = nearest(str(name), known)
                    hint = f"did you mean '{near}'?" if near else f"expected {', '.join(sorted(known))}"
                    raise SettingError((str(name),), f"unknown setting; {hint}")
            return dict(value) if nulls else without_nulls(value)
        return short(value) if short is not None else value

    return BeforeValidator(check)


def without_nulls(values: Any) -> Any:
    """Return a mapping as a dictionary without null values, and any other value unchanged.

    Raises:
        SettingError: A key is not a text.
    """
    if not isinstance(values, Mapping):
        return values
    for key in values:
        if not isinstance(key, str):
            raise SettingError((), f"expected names as keys, not {key!r}")
    return {key: value for key, value in values.items() if value is not None}


def checked(read: Callable[[Any], Any], what: str) -> BeforeValidator:
    """Return an annotation for a value that a function reads.

    Args:
        read: Returns the value; raises ValueError or OverflowError for an invalid one.
        what: The expected value, for messages.
    """

    def check(value: Any) -> Any:
        try:
            return read(value)
        except SettingError:
            raise
        except (ValueError, OverflowError):
            raise SettingError((), f"expected {what}, not {value!r}") from None

    return BeforeValidator(check)


def matching(pattern: str, what: str) -> BeforeValidator:
    """Return an annotation for a text or number whose text matches a regular expression as a whole."""

    def read(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(value)
        if re.fullmatch(pattern, str(value)) is None:
            raise ValueError(value)
        return str(value)

    return checked(read, what)


def list_only(value: Any) -> Any:
    """Refuse iterables that are neither a list nor a tuple, which pydantic would accept.

    Raises:
        SettingError: The value is something else.
    """
    if not isinstance(value, (list, tuple)):
        raise SettingError((), f"expected a list, not {value!r}")
    return value


# -- errors ------------------------------------------------------------------------------------------------------------


def _setting_error(error: ValidationError) -> SettingError:
    first = error.errors(include_url=False)[0]
    place = first["loc"][:-1] if first["loc"][-1:] == ("[key]",) else first["loc"]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ValidationError):  # of a short form
        cause = _setting_error(cause)
    if isinstance(cause, SettingError):
        return SettingError((*place, *cause.place), cause.problem)
    if first["type"] == "missing":
        return SettingError(place[:-1], f"'{place[-1]}' is missing")
    if first["type"] == "literal_error":
        what = "one of " + first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
    else:
        what = _EXPECTED[first["type"]]
    return SettingError(place, f"expected {what}, not {first['input']!r}")
