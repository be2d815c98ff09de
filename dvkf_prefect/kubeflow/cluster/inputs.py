"""Ensure every stage input is in the source bundle or on the remote before a run starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.transfer.manifests import read_manifest
from dvkf_prefect.data.transfer.move import move
from dvkf_prefect.errors import MissingObjectError, StageError
from dvkf_prefect.files import is_temporary, walk_files
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.formats.tree import Tree, is_tree
from dvkf_prefect.kubeflow.exchange.bundle import Bundle
from dvkf_prefect.kubeflow.exchange.objects import renew, send, uncached
from dvkf_prefect.pipeline.step.spec import StepSpec
from dvkf_prefect.scratch import scratch_folder

_logger = logging.getLogger(__name__)


class Supply:
    """Inputs of a run's stages.

    Args:
        repo: The repository.
        remote: Remote that pods read.
        bundle: Sources that pods get.
        specs: The stages.
        folder: Folder for temporary files.
        push: True pushes objects that only this machine has.
    """

    def __init__(
        self,
        repo: Repository,
        remote: Remote,
        bundle: Bundle,
        specs: Sequence[StepSpec],
        *,
        folder: Path,
        push: bool,
    ) -> None:
        self._repo = repo
        self._remote = remote
        self._bundle = bundle
        self._sources = frozenset(bundle.paths)
        self._specs = specs
        self._folder = folder
        self._push = push

    def provide(self) -> None:
        """Make all inputs available before the run starts.

        Raises:
            StageError: An input is neither in git nor on the remote, so no pod can get it.
            MissingObjectError: An input is only on this machine, and pushing is off.
            RemoteError: The remote cannot be used.
        """
        written = {out.path for spec in self._specs for out in spec.outs}
        wanted: dict[str, str] = {}
        for spec in self._specs:
            for dep in spec.deps:
                parts = dep.path.split("/")
                above = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
                if not any(path in written for path in above):
                    wanted.setdefault(dep.digest, dep.path)
            for out in spec.outs:
                if out.previous:
                    wanted.setdefault(out.previous, out.path)
        apart = {out.path for spec in self._specs for out in spec.outs if not out.cached}
        known = {
            out.digest: out.path
            for spec in self._specs
            for out in (spec.known.outs if spec.known else ())
            if out.path in apart
        }
        for digest in uncached(self._remote).missing(known):
            self._hand_over(known[digest], digest)  # on failure the stage just runs
        renew(self._remote, {*wanted, *known})
        absent = self._remote.missing(wanted)
        absent = uncached(self._remote).missing(absent)
        absent = {digest for digest in absent if not self._in_sources(wanted[digest], digest)}
        absent = {digest for digest in absent if not self._hand_over(wanted[digest], digest)}
        absent = {digest for digest in absent if not self._hand_over_part(wanted[digest], digest)}
        here = absent - self._repo.cache.missing(absent)
        for digest in sorted(absent - here):
            raise StageError(
                f"the dependency '{wanted[digest]}' ({digest}) is neither on {self._remote} nor, with this "
                f"content, in the sources of {self._bundle}, so no pod can read it. Commit it, or run "
                "`dvkf add` and `dvkf push`." + self._hint(wanted[digest])
            )
        if here and not self._push:
            names = ", ".join(sorted(f"'{wanted[digest]}'" for digest in here))
            raise MissingObjectError(
                f"{names} is not on {self._remote}, where pods read it. Run `dvkf push`."
            )
        if here:
            _logger.info(
                "pushing objects that are only on this machine: %s",
                ", ".join(sorted(wanted[d] for d in here)),
            )
            send(sorted(here), self._repo.cache, self._remote)

    def _in_sources(self, path: str, digest: str) -> bool:
        """Return True if the sources contain a file or directory with this content."""
        root = self._repo.root
        if not is_tree(digest):
            return path in self._sources and digest_file(root / path) == digest
        inside = path + "/"
        pairs = [
            (name[len(inside) :], digest_file(root / name))
            for name in self._bundle.paths
            if name.startswith(inside) and not self._repo.ignore.matches(name) and (root / name).is_file()
        ]
        return bool(pairs) and Tree.from_pairs(pairs).digest == digest

    def _hand_over(self, path: str, digest: str) -> bool:
        """Upload a result that is not an object of the remote; return True on success.

        Such results are outputs that stay out of the cache, mostly metrics, and folders that contain outputs.
        """
        outputs = self._repo.outputs()
        parts = path.split("/")
        above = {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if not any(
            (output.path in above and not output.cached) or output.path.startswith(path + "/")
            for output in outputs
        ):
            return False
        with scratch_folder("hand-", self._folder) as folder:
            cache = Cache(folder / "cache")
            place = self._repo.root / path
            if place.is_dir():
                tree = Tree.from_pairs(
                    (relpath, cache.add_file(entry.path))
                    for relpath, entry in walk_files(place)
                    if not self._repo.ignore.matches(f"{path}/{relpath}")
                )
                found = cache.add_tree(tree)
            elif place.is_file():
                found = cache.add_file(place)
            else:
                return False
            if found != digest:
                return False
            send([digest], cache, uncached(self._remote), again=True)
        return True

    def _hand_over_part(self, path: str, digest: str) -> bool:
        """Upload the manifest of a folder inside a tracked directory; return True on success.

        No remote has such a manifest; the files that it names are ordinary objects.
        """
        for output in self._repo.outputs() if is_tree(digest) else ():
            whole = output.digest or ""
            if not (output.cached and is_tree(whole) and path.startswith(output.path + "/")):
                continue
            with scratch_folder("hand-", self._folder) as folder:
                cache = Cache(folder / "cache")
                with suppress(MissingObjectError):
                    tree = read_manifest(whole, caches=[self._repo.cache], remotes=[self._remote])
                    part = tree.subtree(path[len(output.path) + 1 :])
                    absent = self._remote.missing(part.digests)
                    if part.digest != digest or (absent and not self._push):
                        return False
                    if self._repo.cache.missing(absent):
                        return False
                    send(sorted(absent), self._repo.cache, self._remote)
                    cache.add_tree(part)
                    moved = move("push", [digest], MD5, cache, uncached(self._remote))
                    return not moved.failed
        return False

    def _hint(self, path: str) -> str:
        folder = self._repo.root / path
        if not folder.is_dir():
            return ""
        known = set(self._bundle.paths)
        extra = sorted(
            name
            for file in folder.rglob("*")
            if file.is_file()
            and not is_temporary(file.name)
            and (name := file.relative_to(self._repo.root).as_posix()) not in known
            and not self._repo.ignore.matches(name)
        )
        return (
            f" Files in it that are not in git: {', '.join(extra[:5])}" + (", …" if len(extra) > 5 else "")
            if extra
            else ""
        )
