"""The logger of a run, safe for terminals and pages that show its lines."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger

from dvkf_prefect.text import printable

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[Any]
else:
    # Python 3.10 takes no type for it at run time.
    _Adapter = logging.LoggerAdapter


class _SafeLogger(_Adapter):
    """Logger that escapes control and hidden characters."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            text = str(msg) % args if args else str(msg)
            # Without arguments a `%` in the text stays one.
            self.logger.log(level, printable(text, lines=True), **kwargs)


def run_logger() -> logging.LoggerAdapter[Any]:
    """Return the logger of the current run.

    Raises:
        prefect.exceptions.MissingContextError: There is no current run.
    """
    return _SafeLogger(get_run_logger(), {})
