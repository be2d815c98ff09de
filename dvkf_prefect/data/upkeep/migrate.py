"""Migration of DVC 2.x data to the layout and the digests of DVC 3.x.

Source of the behaviour: DVC 3.x, ``dvc cache migrate``. DVC 2.x hashed text with Unix line ends. One of its objects
may therefore stand for files with either kind of line end.
"""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.cache.workers import digest_files
from dvkf_prefect.data.progress import counting
from dvkf_prefect.errors import ObjectError
from dvkf_prefect.files import raise_disk_full, read_description, write_atomic
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.digest import digest_dos2unix
from dvkf_prefect.formats.dvcfile import document_md5
from dvkf_prefect.formats.dvcfile_edit import write_document
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.formats.objects import LEGACY, Content
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import SUFFIX, Tree

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Migration:
    """Result of a migration.

    Attributes:
        found: Number of DVC 2.x objects in the cache.
        added: Number of objects added to the current layout.
        damaged: Digests of objects whose bytes do not match their name; they were not migrated.
        files: `.dvc` and dvc.lock files that were rewritten, or would be.
        left: Paths whose content is neither in the cache nor in the workspace; their entries were not changed.
    """

    found: int
    added: int = 0
    damaged: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def migrate(repo: Repository, *, dvc_files: bool = False, dry_run: bool = False) -> Migration:
    """Implement `Repo.migrate_cache`."""
    with repo.lock(write=[""] if dvc_files else ()):
        return _migrate(repo, dvc_files, dry_run)


def _migrate(repo: Repository, dvc_files: bool, dry_run: bool) -> Migration:
    old = list(_legacy_objects(repo.cache.root))
    if dry_run:
        return Migration(len(old), files=tuple(_outdated(repo)) if dvc_files else ())
    now, damaged = _digests(repo, old)
    added = sum(_add(repo.cache, digest, new) for digest, new in now.items())
    migration = Migration(len(old), added, tuple(damaged))
    return _rewrite(repo, now, migration) if dvc_files else migration


# -- objects -----------------------------------------------------------------------------------------------------------


def _legacy_objects(root: Path) -> Iterator[str]:
    """Yield the digests of the objects in ``<root>/aa/bbb…``."""
    for high in "0123456789abcdef":
        for low in "0123456789abcdef":
            try:
                names = os.listdir(root / (high + low))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for name in sorted(names):
                plain = name.removesuffix(SUFFIX)
                if len(plain) == 30 and _HEX.issuperset(plain):
                    yield high + low + name


def _digests(repo: Repository, old: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the md5 of each object by its DVC 2.x digest, and the digests of damaged objects."""
    files = [str(repo.cache.path(digest, LEGACY)) for digest in old]
    sizes = [os.stat(file).st_size for file in files]
    now: dict[str, str] = {}
    damaged: list[str] = []
    with counting(repo.progress, "hash objects of DVC 2.x") as advance:
        for row, md5 in digest_files(files, sizes):
            digest = old[row]
            plain = digest.removesuffix(SUFFIX)
            if md5 == plain or digest_dos2unix(files[row]) == plain:
                now[digest] = md5 + digest[len(plain) :]
            else:
                damaged.append(digest)
            advance(1, sizes[row])
    return now, sorted(damaged)


def _add(cache: Cache, old: str, new: str) -> bool:
    """Add an object to the current layout, as a hard link if possible; return True if it was added."""
    target = cache.path(new)
    if target.exists():
        return False
    source = cache.path(old, LEGACY)
    temporary = cache.temporary(new)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        cache.adopt(temporary, new)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise_disk_full(error, target)
        raise
    # If both names were links to one file already, the rename did nothing and left the temporary name.
    temporary.unlink(missing_ok=True)
    return True


# -- files that describe outputs ---------------------------------------------------------------------------------------


def _is_outdated(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("md5")) and "hash" not in entry and "repo" not in entry and not _elsewhere(entry)


def _elsewhere(entry: Mapping[str, Any]) -> bool:
    path = str(entry.get("path", ""))
    return "://" in path or posixpath.isabs(path)


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield the working folder and the entry of each DVC 2.x output or dependency in a file."""
    if not isinstance(document, dict):
        return
    parts = list((document.get("stages") or {}).values()) if "schema" in document else [document]
    for part in parts:
        # An import's dependency records metadata of its service, not a digest of DVC.
        is_import = "schema" not in document and not part.get("cmd") and len(part.get("deps") or ()) == 1
        for key in ("outs",) if is_import else ("deps", "outs"):
            for entry in part.get(key) or ():
                if isinstance(entry, dict) and _is_outdated(entry):
                    yield str(part.get("wdir") or "."), entry


def _describing(repo: Repository) -> Iterator[tuple[str, str]]:
    """Yield each file that may have DVC 2.x entries, and DVC's display name for it."""
    for file in sorted(repo.files().find()):
        if posixpath.basename(file) == PIPELINE_FILE:
            lock = posixpath.splitext(file)[0] + ".lock"
            if (repo.root / lock).is_file():
                yield lock, f"{file} ({lock})"
        else:
            yield file, file


def _outdated(repo: Repository) -> Iterator[str]:
    for file, name in _describing(repo):
        if any(_entries(documents.load(read_description(repo.root / file, name=file), file))):
            yield name


@dataclass
class _Contents:
    """Content of outputs and dependencies under the digests of DVC 3.x."""

    repo: Repository
    now: Mapping[str, str]
    known: dict[tuple[str, str], Content | None] = field(default_factory=dict)

    def of(self, path: str, digest: str) -> Content | None:
        """Return the content of a DVC 2.x entry; None if it does not exist.

        The workspace comes first, because the cache may have the same text with other line ends.
        """
        key = path, digest
        if key not in self.known:
            self.known[key] = self._in_workspace(path, digest) or self._in_cache(digest)
        return self.known[key]

    def _in_workspace(self, path: str, digest: str) -> Content | None:
        if not os.path.lexists(self.repo.root / path):
            return None
        if self.repo.workspace.look(path, hash_name=LEGACY).digest != digest:
            return None
        return self.repo.workspace.look(path).content

    def _in_cache(self, digest: str) -> Content | None:
        cache = self.repo.cache
        new = self.now.get(digest)
        if new is None:
            return None
        if not new.endswith(SUFFIX):
            return Content(new, cache.path(new).stat().st_size)
        tree = cache.read_tree(digest, LEGACY)
        if any(old not in self.now for old in tree.digests):
            return None
        renewed = Tree.from_pairs((path, self.now[old]) for path, old in tree.items())
        size = sum(cache.path(found).stat().st_size for found in renewed.digests)
        return Content(cache.add_tree(renewed), size, len(renewed))


def _rewrite(repo: Repository, now: Mapping[str, str], migration: Migration) -> Migration:
    contents = _Contents(repo, now)
    files: list[str] = []
    left: list[str] = []
    outputs = {output.path: output for output in repo.outputs()}
    for file, _ in _describing(repo):
        old = read_description(repo.root / file, name=file)
        is_lock = file.endswith(".lock")
        document = documents.load_editable(old, file) if is_lock else documents.load(old, file)
        folder = posixpath.dirname(file)
        changed = False
        for wdir, entry in _entries(document):
            path = posixpath.normpath(posixpath.join(folder, wdir, entry["path"]))
            content = contents.of(path, str(entry["md5"]))
            if content is None:
                left.append(path)
                continue
            output = outputs.get(path)
            if output is not None and output.source in (file, posixpath.splitext(file)[0] + ".yaml"):
                content = _keep(repo, output, content)
            _record(entry, content, is_lock=is_lock)
            changed = True
        if not changed:
            continue
        if is_lock:
            new = documents.dump(document)
        else:
            if "deps" in document and "md5" in document:
                document["md5"] = document_md5(document)
            elif "md5" in document:
                del document["md5"]
            new = write_document(old, file, document)
        write_atomic(repo.root / file, new)
        files.append(file)
    repo.stage(files)
    return replace(migration, files=tuple(files), left=tuple(dict.fromkeys(left)))


def _keep(repo: Repository, output: Output, content: Content) -> Content:
    """Store an output's content in the cache, and update links in the workspace to the new object."""
    if not output.cached or not os.path.lexists(repo.root / output.path):
        return content
    found = repo.workspace.look(output.path)
    if found.digest != content.digest:
        return content
    kept = repo.workspace.take(output.path)
    if str(repo.config.get("cache", "type") or "").split(",")[0] in ("hardlink", "symlink"):
        with suppress(ObjectError):
            repo.workspace.relink(replace(output, content=kept), repo.workspace.look(output.path))
    return kept


def _record(entry: Any, content: Content, *, is_lock: bool) -> None:
    entry["md5"] = content.digest
    entry["size"] = content.size
    if content.nfiles is not None:
        entry["nfiles"] = content.nfiles
    if is_lock:
        entry.insert(1, "hash", "md5")
    else:
        entry["hash"] = "md5"
