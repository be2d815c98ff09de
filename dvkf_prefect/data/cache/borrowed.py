"""A cache that reads through to another cache, and never changes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import CorruptObjectError
from dvkf_prefect.formats.objects import MD5


class BorrowedCache(Cache):
    """A cache that reads missing objects from another cache, and never changes that one.

    Args:
        root: Folder of this cache.
        lender: Folder of the other cache.
    """

    foreign = True

    def __init__(self, root: Path, lender: Path) -> None:
        super().__init__(root)
        self._lender = Cache(lender)

    def path(self, digest: str, hash_name: str = MD5) -> Path:
        """Return the path of an object: in this cache, or in the lender if only that one holds it."""
        own = super().path(digest, hash_name)
        if own.exists():
            return own
        lent = self._lender.path(digest, hash_name)
        return lent if lent.exists() else own

    def missing(
        self,
        digests: Iterable[str],
        hash_name: str = MD5,
        *,
        sizes: Mapping[str, int] | None = None,
        look: bool = True,
    ) -> set[str]:
        """Return the ``digests`` that neither cache holds."""
        own = Cache(self.root).missing(digests, hash_name, sizes=sizes, look=look)
        return self._lender.missing(own, hash_name, sizes=sizes, look=look)

    def set_aside(self, digest: str, hash_name: str = MD5) -> Path:
        """Move a damaged object of this cache out of the way; one of the lender stays."""
        path = self.path(digest, hash_name)
        return path if path.is_relative_to(self._lender.root) else super().set_aside(digest, hash_name)

    def _corrupt(self, digest: str, path: Path, found: str) -> CorruptObjectError:
        if path.is_relative_to(self._lender.root):
            return CorruptObjectError(
                f"{path} hashes to {found}, not to its name. Run `dvkf fetch` in that repository."
            )
        return super()._corrupt(digest, path, found)
