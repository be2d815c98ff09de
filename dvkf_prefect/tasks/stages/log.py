"""Output of a running stage, followed line by line, without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.options import secrets_of
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.pipeline.step.step import clean_log
from dvkf_prefect.repo import Repo
from dvkf_prefect.text import printable

_LINES = 1000
_LINE = 1000
_CHUNK = 256 * 1024
# More lines at once than this are joined into fewer records: each record is a row of the server's database.
_SINGLE = 20
_RECORD = 4000
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIALS?$|CONNECTION_STRING", re.I)
_SHORTEST = 6


class Mask:
    """Replaces secrets in texts.

    Args:
        secrets: The secrets. Those of less than six characters are ignored, for they match ordinary text.

    Example:
        >>> Mask(["s3cr3t-key"])("the key is s3cr3t-key")
        'the key is ***'
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        long = {secret for secret in secrets if len(secret) >= _SHORTEST}
        self._place = Place("", "", tuple(sorted(long, key=len, reverse=True)))

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        return self._place.clean(text)


def mask_of(repo: Repo, environment: Mapping[str, str] = os.environ) -> Mask:
    """Return a mask for the credentials of a repository's default remote and of the environment of stages.

    Args:
        repo: The repository.
        environment: Environment variables. The values of those named like secrets are masked.
    """
    named = [value for name, value in environment.items() if _SECRET_NAME.search(name)]
    # Such a variable may hold the path of a file with a secret; the path itself is no secret.
    secrets = [value for value in named if not os.path.exists(value)]
    with suppress(DvkfError):
        secrets += secrets_of(repo.config.remote(None)[1])
    return Mask(secrets)


class LogFollower:
    """Reader of a growing log: whole lines, without terminal codes, up to a maximum.

    Args:
        path: The log. It may not exist yet.
        mask: Mask that replaces secrets in a line.
        lines: Maximum number of lines to read.

    Attributes:
        cut: True if the log has more lines than the maximum.
        lines_read: Number of lines that were read.
    """

    def __init__(self, path: Path, mask: Mask, *, lines: int = _LINES) -> None:
        self._path = path
        self._mask = mask
        self._left = lines
        self._offset = 0
        self._rest = b""
        self.cut = False
        self.lines_read = 0

    def read(self, *, last: bool = False) -> list[str]:
        """Return new lines as log records; many lines at once are joined into fewer records.

        Args:
            last: True if the log is complete, so that an unfinished last line counts.
        """
        lines: list[str] = []
        while self._left > 0:
            data = self._more()
            *whole, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _CHUNK:
                whole, self._rest = [*whole, self._rest], b""
            lines += self._take(whole)
            if not data:
                break
        if last and self._rest and self._left > 0:
            lines += self._take([self._rest])
            self._rest = b""
        if self._left <= 0 and not self.cut and (len(self._rest) or self._more()):
            self.cut = True
            lines.append(
                f"… the log continues; only its first {self.lines_read:,} lines and its end are shown here"
            )
        return join_lines(lines)

    def _more(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_CHUNK)
        except OSError:
            return b""
        self._offset += len(data)
        return data

    def _take(self, raw: list[bytes]) -> list[str]:
        lines = []
        for data in raw[: self._left]:
            lines.append(_shown(clean_log(data), self._mask))
        if len(raw) > self._left:
            self._rest = b"\n"  # there is more
        self._left -= len(lines)
        self.lines_read += len(lines)
        return lines


def shown_lines(text: str, mask: Mask) -> list[str]:
    """Return lines of a log without secrets and terminal codes, as log records.

    Args:
        text: The lines.
        mask: Mask that replaces secrets.
    """
    return join_lines([_shown(line, mask) for line in text.split("\n")])


def _shown(line: str, mask: Mask) -> str:
    text = printable(mask(line).rstrip(), lines=True)
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"


def join_lines(lines: list[str]) -> list[str]:
    """Return lines as log records: a few as they are, many joined into fewer records.

    Args:
        lines: The lines.
    """
    if len(lines) <= _SINGLE:
        return lines
    records = [lines[0]]
    for line in lines[1:]:
        if len(records[-1]) + len(line) < _RECORD:
            records[-1] += f"\n{line}"
        else:
            records.append(line)
    return records
