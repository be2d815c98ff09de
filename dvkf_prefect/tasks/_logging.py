"""The logger of a run, safe for terminals and pages that show its lines."""

from __future__ import annotations

import logging
from typing import Any

from prefect import get_run_logger

from dvkf_prefect.text import printable


class _SafeLogger(logging.LoggerAdapter[Any]):
    """A logger whose records hold no control or hidden characters."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            text = str(msg) % args if args else str(msg)
            # Without arguments a `%` in the text stays one.
            self.logger.log(level, printable(text, lines=True), **kwargs)


def run_logger() -> logging.LoggerAdapter[Any]:
    """Return the logger of the run this is called in.

    Raises:
        prefect.exceptions.MissingContextError: It is called outside a run.
    """
    return _SafeLogger(get_run_logger(), {})
