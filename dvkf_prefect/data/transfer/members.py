"""Manifests of tracked directories, read from the workspace, the cache or a remote; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dvkf_prefect.errors import ParseError
from dvkf_prefect.formats.tree import Tree, is_tree

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.data.workspace.workspace import Found
    from dvkf_prefect.formats.outputs import Output


class Members:
    """Manifests of a repository's directories, each read at most once.

    Args:
        repo: Repository that records the outputs.
    """

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._known: dict[tuple[str, str], Tree | None] = {}
        self._refused: dict[tuple[str, str], ParseError] = {}

    def remember(self, found: Found, hash_name: str) -> None:
        """Store the manifest of a directory as scanned in the workspace, so that it need not be read."""
        if found.digest and found.nfiles is not None and found.rows is not None:
            self._known[hash_name, found.digest] = Tree(found.rows.relpaths, found.rows.digests)

    def learn(self, outputs: Iterable[Output]) -> None:
        """Read the manifests of directories that are not stored yet: from the cache, else from the remote."""
        from dvkf_prefect.data.transfer.manifests import Manifest, Manifests

        wanted: list[Manifest] = []
        for output in outputs:
            key = (output.hash_name, output.digest or "")
            if not is_tree(key[1]) or key in self._known:
                continue
            self._known[key] = output.listed_tree()
            if self._known[key] is not None:
                continue
            wanted.append(Manifest(key[1], key[0], output.path, self._repo, output.remote))
        if wanted:
            for manifest, tree in Manifests([self._repo]).read(wanted):
                key = (manifest.hash_name, manifest.digest)
                self._known[key] = tree if isinstance(tree, Tree) else None
                if isinstance(tree, ParseError):
                    self._refused[key] = tree

    def of(self, output: Output) -> Tree | None:
        """Return a directory's manifest; None for a file, or if the manifest cannot be read."""
        self.learn([output])
        return self.known(output.digest or "", output.hash_name)

    def refusal(self, output: Output) -> ParseError | None:
        """Return the error of a directory's manifest that exists but cannot be read; None otherwise."""
        return self._refused.get((output.hash_name, output.digest or ""))

    def known(self, digest: str, hash_name: str) -> Tree | None:
        """Return the stored manifest of a digest; None without one."""
        return self._known.get((hash_name, digest))
