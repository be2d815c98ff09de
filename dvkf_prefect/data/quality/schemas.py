"""Schemas of pandera: loaded from a repository, and the check of a file against one.

A schema is a YAML or JSON file as pandera writes it, ``FILE.py:NAME``, or ``MODULE:NAME``, where the name is that of a
`pandera.pandas.DataFrameModel` or `DataFrameSchema`.

Source of the files' format: pandera's ``DataFrameSchema.to_yaml`` and ``to_json``.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import io
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.quality.reports import FailedCheck, QualityReport, form_of
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.tables.frames import format_of, read_stream
from dvkf_prefect.errors import ConfigError, DvkfError, OutputError, OutputNotFoundError, ParseError
from dvkf_prefect.files import read_description
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.text import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

# Largest numbers in a report.
_ROWS = 20
_VALUES = 5
_TEXT = 80
_LOOKED_AT = 100
_REASON = 300

_TYPED = ("parquet", "feather")


@dataclass(frozen=True, slots=True)
class QualitySchema:
    """A loaded schema.

    Attributes:
        name: The schema as it was given: path of its file, with ``:NAME`` for Python.
        digest: md5 of its file; for Python, of the file and the name.
        checks: The schema of pandera.
    """

    name: str
    digest: str
    checks: Any = field(repr=False, compare=False)


def load_schema(repo: Repository, schema: str) -> QualitySchema:
    """Load a schema of a repository.

    Args:
        repo: The repository. Paths of files are relative to its root.
        schema: ``FILE.yaml``, ``FILE.json``, ``FILE.py:NAME``, or ``MODULE:NAME`` of an installed module.

    Raises:
        ConfigError: The schema is not one of these, or pandera is not installed.
        OutputNotFoundError: The file does not exist.

    Example:
        >>> load_schema(Repo.open(), "schemas/users.yaml").digest
    """
    try:
        import pandera.pandas as pandera
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pandera":
            raise
        raise ConfigError(
            "quality checks need the package pandera. Install it with `pip install 'dvkf-prefect[quality]'`."
        ) from error
    place, _, name = schema.partition(":")
    if not name and not place.endswith((".yaml", ".yml", ".json")):
        raise ConfigError(
            f"schema '{schema}': no form of a schema. Give FILE.yaml, FILE.json or FILE.py:NAME."
        )
    try:
        if not name:
            data = _read(repo, place)
            return QualitySchema(schema, digest_bytes(data), _strict(_from_text(data, place)))
        if place.endswith(".py"):
            data = _read(repo, place)
            module = _run(repo.root / place, data)
            found = _member(module, name, schema)
        else:
            module = pkgutil.resolve_name(place)
            data = Path(inspect.getsourcefile(module) or "").read_bytes()
            found = _member(module, name, schema)
        if isinstance(found, type) and issubclass(found, pandera.DataFrameModel):
            found = found.to_schema()
    except DvkfError:
        raise
    except Exception as error:
        # Code of the repository, or a file that pandera refuses: both may raise anything.
        raise ConfigError(
            f"schema '{schema}': {type(error).__name__}: {' '.join(str(error).split())}. Correct the schema."
        ) from error
    if not isinstance(found, pandera.DataFrameSchema):
        raise ConfigError(
            f"schema '{schema}': {name} is no schema. Name a DataFrameModel or DataFrameSchema."
        )
    return QualitySchema(schema, digest_bytes(data + f":{name}".encode()), _strict(found))


def check_table(file: Path, name: str, digest: str, schema: QualitySchema) -> QualityReport:
    """Check a file against a schema. A file that cannot be read as a table fails.

    In CSV, TSV and JSON, the columns that the schema declares as text are read as text, so that ``007`` stays.
    Numbers are recognised by pandas, and times need ``coerce`` in the schema.

    Args:
        file: The file.
        name: Its name, whose end sets the format as for `read_frame`.
        digest: md5 of the file.
        schema: The schema.

    Raises:
        ConfigError: The format needs a package that is not installed.
        OSError: The file cannot be read.
    """
    checker = f"pandera {metadata.version('pandera')}"
    form = form_of(name)

    def report(rows: int | None, **found: Any) -> QualityReport:
        return QualityReport(digest, schema.name, schema.digest, form, checker, rows, **found)

    try:
        kind, compression = format_of(name)
        options = None if kind in _TYPED else {"dtype": _text_columns(schema)}
        with open(file, "rb") as stream:
            frame = read_stream(stream, name, "the inbox", kind, compression, options=options)
    except ParseError as error:
        return report(None, failed=(FailedCheck("", "is a table", 1, values=(error.expected[:_REASON],)),))
    except OutputError as error:
        return report(None, failed=(FailedCheck("", "has the name of a table", 1, values=(str(error),)),))
    columns = tuple(map(str, frame.columns))
    cases = _failures(frame, schema)
    if cases is None:
        return report(len(frame), columns=columns)
    position = _positions(frame)
    rows = sorted({row for each in cases["index"].dropna() if (row := position(each)) is not None})
    sample = tuple((str(row), *map(_text, frame.iloc[row].tolist())) for row in rows[:_ROWS])
    failed = tuple(_failed(cases, position))
    return report(len(frame), columns=columns, failed=failed, failed_rows=len(rows), sample=sample)


def _read(repo: Repository, place: str) -> bytes:
    try:
        return read_description(repo.root / repo.relpath(place), name=place)
    except FileNotFoundError as error:
        raise OutputNotFoundError(
            f"schema '{place}' is not in {repo.root}. Write it, or correct the path."
        ) from error


def _from_text(data: bytes, place: str) -> Any:
    from pandera.io import pandas_io

    read = pandas_io.from_json if place.endswith(".json") else pandas_io.from_yaml
    return read(io.StringIO(data.decode()))  # type: ignore[no-untyped-call, unused-ignore]


def _member(module: ModuleType, name: str, schema: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        step = did_you_mean(name, vars(module)) or " Name a DataFrameModel or DataFrameSchema."
        raise ConfigError(f"schema '{schema}': the module has no '{name}'.{step}") from None


def _run(file: Path, data: bytes) -> Any:
    """Import a Python file under a name of its content, so that another version is another module."""
    name = f"_dvkf_schema_{digest_bytes(os.fsencode(file) + data)}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"schema '{file}': no Python module. Give FILE.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    # pandera looks the module up for the annotations of a model.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _strict(checks: Any) -> Any:
    """Return a schema that reports invalid rows, also if it would drop them: they are in the file."""
    checks = copy.copy(checks)
    checks.drop_invalid_rows = False
    return checks


def _text_columns(schema: QualitySchema) -> dict[str, str]:
    from pandera.dtypes import String

    columns = schema.checks.columns.items()
    return {
        str(name): "str" for name, column in columns if isinstance(column.dtype, String) and not column.regex
    }


def _failures(frame: pd.DataFrame, schema: QualitySchema) -> pd.DataFrame | None:
    """Return pandera's table of failures; None without any."""
    from pandera.config import ValidationDepth, config_context
    from pandera.errors import SchemaErrors

    try:
        # A variable of the environment could turn the checks off.
        with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
            schema.checks.validate(frame, lazy=True)
    except SchemaErrors as error:
        cases: pd.DataFrame = error.failure_cases
        return cases
    return None


def _positions(frame: pd.DataFrame) -> Callable[[Any], int | None]:
    """Return a function from a label of the index to the number of its first row."""
    import pandas as pd

    if isinstance(frame.index, pd.RangeIndex) and (frame.index.start, frame.index.step) == (0, 1):
        return int
    labels = {label: number for number, label in reversed(list(enumerate(frame.index)))}
    return labels.get


def _failed(cases: pd.DataFrame, position: Callable[[Any], int | None]) -> Iterator[FailedCheck]:
    """Yield the failed checks, those of the table first, in the order of their names."""
    groups = cases.groupby(["column", "check"], dropna=False, sort=False)
    found = [
        ("" if column is None or column != column else str(column), check, group)
        for (column, check), group in groups
    ]
    for column, check, group in sorted(found, key=lambda each: (each[0], str(each[1]))):
        values = dict.fromkeys(map(_text, group["failure_case"].head(_LOOKED_AT)))
        rows = sorted({row for each in group["index"].dropna() if (row := position(each)) is not None})
        yield FailedCheck(column, _text(check), len(group), tuple(rows[:_ROWS]), tuple(values)[:_VALUES])


def _text(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
