"""Error messages of remotes: they name the remote, its url and the operation, and never show a secret."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus

from dvkf_prefect.errors import (
    DiskFullError,
    MissingObjectError,
    RemoteDeniedError,
    RemoteError,
    RemoteUnreachableError,
)
from dvkf_prefect.urls import without_secrets

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Place:
    """Name of a remote in messages, and the secrets to remove from them.

    Args:
        name: The remote's name in the configuration, or its url.
        url: The url without credentials.
        secrets: Texts to remove from the errors of libraries.
    """

    name: str
    url: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"remote {self.url}" if self.name == self.url else f"remote '{self.name}' ({self.url})"

    def clean(self, text: str) -> str:
        """Remove secrets from a text."""
        for secret in self.secrets:
            for form in {secret, quote(secret, safe=""), quote_plus(secret), quote(secret)}:
                text = text.replace(form, "***")
        return without_secrets(text)

    def cause(self, error: BaseException) -> BaseException:
        """Return the error to chain: itself, or a copy with its secrets removed."""
        if all(self.clean(text) == text for text in _texts(error)):
            return error
        return RuntimeError(f"{type(error).__name__}: {self.clean(str(error))}")

    def missing(self, key: str) -> MissingObjectError:
        """Return the error for a missing key."""
        return MissingObjectError(f"{self} has no '{key}'")

    def unreachable(self, tried: str, detail: str, *, answers: bool = False) -> RemoteUnreachableError:
        """Return the error for a service that does not answer, or answers only with failures."""
        what, hint = (
            ("keeps failing", "Try again later, or ask its administrator")
            if answers
            else ("does not answer", "Check its url and the network")
        )
        return RemoteUnreachableError(f"{self} {what}: tried to {tried}: {self.clean(detail)}. {hint}.")

    def denied(self, tried: str, detail: str, credentials: str) -> RemoteDeniedError:
        """Return the error for insufficient credentials."""
        return RemoteDeniedError(
            f"{self} refused to {tried} with {credentials}: {self.clean(detail)}. "
            "Check the credentials and what they permit."
        )

    def failed(self, tried: str, detail: str) -> RemoteError:
        """Return the error for any other answer."""
        return RemoteError(f"{self} could not {tried}: {self.clean(detail)}")

    def disk_full(self, tried: str) -> DiskFullError:
        """Return the error for a full disk."""
        return DiskFullError(
            f"{self}: no space left on the disk to {tried}. Free some space and run the command again."
        )

    def local(self, error: OSError, tried: str, key: str | None, credentials: str) -> Exception:
        """Translate an operating system error for a file at the remote."""
        detail = error.strerror or str(error) or type(error).__name__
        if error.errno in _NO_SPACE:
            return self.disk_full(tried)
        if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)) and key is not None:
            return self.missing(key)
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return self.denied(tried, detail, credentials)
        if isinstance(error, (TimeoutError, ConnectionError)) or error.errno in (
            errno.ESTALE,
            errno.ENOTCONN,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
        ):
            return self.unreachable(tried, detail)
        return self.failed(tried, detail)


def _texts(error: BaseException | None) -> Iterator[str]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield str(error)
        yield repr(error)
        error = error.__cause__ or error.__context__
