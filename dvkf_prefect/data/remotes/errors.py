"""How a remote's failures are told: which remote, where, what was tried; and never a secret."""

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
from dvkf_prefect.urls import public_url as public_url  # where remotes look for it
from dvkf_prefect.urls import without_secrets

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Place:
    """A remote as a person knows it, and the words that must not be said of it.

    Args:
        name: Its name in the configuration, or its url.
        url: Without credentials.
        secrets: Texts to cut from whatever a library reports.
    """

    name: str
    url: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"remote {self.url}" if self.name == self.url else f"remote '{self.name}' ({self.url})"

    def clean(self, text: str) -> str:
        """Cut secrets from a text."""
        for secret in self.secrets:
            for form in {secret, quote(secret, safe=""), quote_plus(secret), quote(secret)}:
                text = text.replace(form, "***")
        return without_secrets(text)

    def cause(self, error: BaseException) -> BaseException:
        """The error to chain: itself, or one like it with the secrets cut out."""
        if all(self.clean(text) == text for text in _texts(error)):
            return error
        return RuntimeError(f"{type(error).__name__}: {self.clean(str(error))}")

    def missing(self, key: str) -> MissingObjectError:
        """No blob of that key."""
        return MissingObjectError(f"{self} has no '{key}'")

    def unreachable(self, tried: str, detail: str, *, answers: bool = False) -> RemoteUnreachableError:
        """No answer, or none but failures."""
        what, hint = (
            ("keeps failing", "Try again later, or ask who runs it")
            if answers
            else ("does not answer", "Check its url and the network")
        )
        return RemoteUnreachableError(f"{self} {what}: tried to {tried}: {self.clean(detail)}. {hint}.")

    def denied(self, tried: str, detail: str, credentials: str) -> RemoteDeniedError:
        """The credentials were not enough."""
        return RemoteDeniedError(
            f"{self} refused to {tried} with {credentials}: {self.clean(detail)}. "
            "Check the credentials and what they permit."
        )

    def failed(self, tried: str, detail: str) -> RemoteError:
        """Any other answer."""
        return RemoteError(f"{self} could not {tried}: {self.clean(detail)}")

    def disk_full(self, tried: str) -> DiskFullError:
        """No space left."""
        return DiskFullError(
            f"{self}: no space left on the disk to {tried}; free some and run the command again"
        )

    def local(self, error: OSError, tried: str, key: str | None, credentials: str) -> Exception:
        """One of ours for what an operating system says of a file at the remote."""
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
