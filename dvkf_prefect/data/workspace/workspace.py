"""Checked-out files: inspection, storage in the cache, and checkout."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from dvkf_prefect import durability
from dvkf_prefect.data.cache._copier import look
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.cache.workers import digest_files, stepping
from dvkf_prefect.data.progress import NO_WORK, Work
from dvkf_prefect.data.workspace.links import Links, aside_name
from dvkf_prefect.data.workspace.memory import Memory, Rows
from dvkf_prefect.data.workspace.written import Written
from dvkf_prefect.errors import (
    CorruptObjectError,
    MissingObjectError,
    ObjectError,
    OutputError,
    OutputNotFoundError,
    TransferError,
)
from dvkf_prefect.files import check_entry, is_temporary, leads_to_folder
from dvkf_prefect.formats.digest import digest_dos2unix
from dvkf_prefect.formats.dvcignore import NAME as IGNORE_FILE
from dvkf_prefect.formats.dvcignore import Ignore
from dvkf_prefect.formats.objects import MD5, Content
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import Tree, is_tree
from dvkf_prefect.leftovers import discard, sweep_files
from dvkf_prefect.paths import (
    check_look,
    check_output,
    check_parents,
    check_target,
    make_folders,
    unreal_devices,
)

_SPECIAL = frozenset({".git", ".hg", ".dvc", IGNORE_FILE})

# Outputs up to this many bytes are not recorded as written: after a power cut their files are whole or empty.
_AT_ONCE = 1 << 20
# Attempts to list a folder while another process removes files from it.
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Found:
    """Current state of an output's path.

    Attributes:
        content: Content of the path, or None if nothing exists.
        rows: Rows of a directory's files, or the one row of a file.
    """

    content: Content | None
    rows: Rows | None = None

    @property
    def digest(self) -> str | None:
        """Digest of the content, or None if nothing exists."""
        return self.content.digest if self.content else None

    @property
    def nfiles(self) -> int | None:
        """Number of files of a directory, None for a file."""
        return self.content.nfiles if self.content else None

    @property
    def isexec(self) -> bool:
        """True if the content is one executable file."""
        return self.content is not None and self.content.isexec

    def existing(self) -> Content:
        """Return the content.

        Raises:
            OutputNotFoundError: Nothing exists.
        """
        if self.content is None:
            raise OutputNotFoundError(
                "a file or directory disappeared while it was read. Run the command again."
            )
        return self.content


class Workspace:
    """A repository's files outside `.dvc`.

    Args:
        root: The repository's root.
        cache: The repository's cache.
        memory: The repository's stat → digest memory.
        ignore: The repository's ignore files.
        link_types: Link types for workspace files, in order of preference.
        probe: Folder for tests of link types; the root by default.
    """

    def __init__(
        self,
        root: Path,
        cache: Cache,
        memory: Memory,
        ignore: Ignore,
        link_types: tuple[str, ...] = ("copy",),
        probe: Path | None = None,
    ) -> None:
        self._root = root
        self._cache = cache
        self._memory = memory
        self._ignore = ignore
        self._link_types = link_types
        self._links = Links(cache, memory, link_types, probe or root)
        self._written = Written(self._memory.folder / "written.json")
        self._leftovers: list[str] = []
        self._swept: set[str] = set()

    def links_into(self, folder: Path) -> Links:
        """Return the links of the same settings for another folder than the workspace.

        Args:
            folder: The target folder, also used for tests of link types.
        """
        return Links(self._cache, self._memory, self._link_types, folder)

    # -- inspection --------------------------------------------------------------------------------------------------

    def look(self, path: str, *, hash_name: str = MD5, lenient: bool = False) -> Found:
        """Return the current state of a path; only files with changed stats are read.

        Args:
            path: Posix, relative to the root.
            hash_name: ``md5``, or ``md5-dos2unix`` to compare with an output of DVC 2.x.
            lenient: Compare only, as DVC does: a broken link counts as nothing, and links to directories below a
                directory are skipped.

        Raises:
            OutputError: A file there cannot be tracked; the error names it.
        """
        key = path if hash_name == MD5 else f"{hash_name}:{path}"
        known = self._memory.load(key)
        since = known
        for _ in range(_LOOKS):
            rows = self._scan(path, lenient=lenient)
            if rows is None:
                return Found(None)
            read_ns = time.time_ns()
            missing = rows.fill_from(since) if since else list(range(len(rows)))
            if not since:
                rows.digests = [""] * len(rows)
            try:
                self._digest(path, rows, missing, hash_name)
                break
            except FileNotFoundError:
                since = rows  # removed since it was listed; keep the digests so far
        else:
            raise OutputError(
                f"{path}: files disappear while they are read. Stop the process that removes them, and run "
                "the command again."
            )
        found = _summary(rows, hash_name, single=not self._is_dir(path))
        if missing or rows.tree != found.digest or known is None or not rows.same_files(known):
            rows.tree = found.digest
            rows.distrust_racy(read_ns)
            self._memory.save(key, rows)
        return found

    def _digest(self, path: str, rows: Rows, missing: Sequence[int], hash_name: str) -> None:
        base = str(self._root / path)
        files = [f"{base}/{rows.relpaths[i]}" if rows.relpaths[i] else base for i in missing]
        if hash_name == MD5:
            for n, digest in digest_files(files, [rows.sizes[i] for i in missing]):
                rows.digests[missing[n]] = digest
        else:
            for i, file in zip(missing, files, strict=True):
                rows.digests[i] = digest_dos2unix(file)

    def _is_dir(self, path: str) -> bool:
        return (self._root / path).is_dir()

    def _scan(self, path: str, *, lenient: bool = False) -> Rows | None:
        """List the files at a path without reading them; None if nothing exists."""
        base = self._root / path
        try:
            info = base.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            if base.is_symlink() and not lenient:
                raise OutputError(f"{path}: a broken link. Remove it.") from None
            return None
        rows = Rows()
        if stat.S_ISDIR(info.st_mode):
            check_look(self._root, path)
            self._walk(path, rows, lenient=lenient)
        elif stat.S_ISREG(info.st_mode) and info.st_dev not in unreal_devices():
            rows.append("", info, "")
        else:
            raise OutputError(f"{path}: not a regular file")
        return rows

    def _walk(self, path: str, rows: Rows, *, lenient: bool = False) -> None:
        """Add the files below a folder, except ignored ones, in the order of a manifest."""
        quiet = self._ignore.quiet_below(path)

        def listed(prefix: str, place: str) -> Iterator[tuple[str, os.DirEntry[str], bool]]:
            """List one folder in the order of whole paths: a subfolder sorts as its name with a slash."""
            nonlocal quiet
            found: list[tuple[str, os.DirEntry[str], bool]] = []
            try:
                scan = os.scandir(place)
            except (FileNotFoundError, NotADirectoryError):
                if not prefix:
                    raise
                return iter(())  # removed by another process since it was listed
            with scan as entries:
                for entry in entries:
                    name = entry.name
                    is_folder = entry.is_dir(follow_symlinks=False)
                    key = f"{prefix}{name}/" if is_folder else prefix + name
                    if name[0] == "." and is_temporary(name):
                        # Temporary file of a killed or running process; never data.
                        self._leftovers.append(entry.path)
                        continue
                    if name[0] == "." and name in _SPECIAL:
                        if name == IGNORE_FILE and not self._ignore.matches(f"{path}/{key}"):
                            raise OutputError(
                                f"{entry.path}: a {IGNORE_FILE} cannot be inside a tracked directory. Move "
                                f"its patterns to a {IGNORE_FILE} above it."
                            )
                        if name == IGNORE_FILE and quiet:  # it ignores itself, and applies from here on
                            quiet = False
                            found = [row for row in found if not self._ignore.matches(f"{path}/{row[0]}")]
                        if name == ".dvc" and prefix and is_folder:
                            return iter(())  # a nested repository, with its own data
                        continue
                    if not quiet and self._ignore.matches(f"{path}/{key}"):
                        continue
                    if not is_folder and not (name.isascii() and entry.is_file(follow_symlinks=False)):
                        if lenient and leads_to_folder(entry):
                            continue
                        check_entry(entry)
                    found.append((key, entry, is_folder))
            found.sort(key=itemgetter(0))
            return iter(found)

        stack = [listed("", str(self._root / path))]
        while stack:
            infos: list[os.stat_result] = []
            deeper = None
            for key, entry, is_folder in stack[-1]:
                if is_folder:
                    deeper = listed(key, entry.path)
                    break
                try:
                    infos.append(entry.stat())
                except FileNotFoundError:
                    continue  # removed since it was listed
                rows.relpaths.append(key)
            rows.extend_stats(infos)
            if deeper is None:
                stack.pop()
            else:
                stack.append(deeper)
        rows.digests = [""] * len(rows)

    # -- storage in the cache ----------------------------------------------------------------------------------------

    def take(self, path: str, *, work: Work = NO_WORK, keep_manifest: bool = True) -> Content:
        """Store the content of a path in the cache, files before the manifest.

        Files with unchanged stats and a cached object are not read. All others are hashed while they are copied.
        Without ``keep_manifest``, a directory's own manifest is not stored, for a part of a larger directory. ``work``
        receives the totals after the scan, then files and bytes as they complete.

        Raises:
            OutputError: A file there cannot be tracked, or nothing exists.
            DiskFullError: The disk is full; objects stored so far remain, and the next call resumes.
        """
        started = time.time_ns()
        check_target(self._root, path)
        rows = self._scan(path)
        self.sweep([path])
        if rows is None:
            raise OutputError(f"{path}: no such file or directory")
        known = self._memory.load(path)
        if known:
            rows.fill_from(known)
        sizes = {digest: size for _, digest, size in rows.files() if digest}
        absent = self._cache.missing(sizes, sizes=sizes)
        todo = [i for i, digest in enumerate(rows.digests) if not digest or digest in absent]
        single = not self._is_dir(path)
        base = str(self._root / path)
        files = [base] if single and todo else [f"{base}/{rows.relpaths[i]}" for i in todo]
        if todo:
            rows.tree = None
        try:
            lengths = [rows.sizes[i] for i in todo]
            work.more(len(todo), sum(lengths))
            share = bool(todo) and self._links.kind == "reflink"
            stored = self._cache.add_files(files, lengths, share_blocks=share)
            names = (posixpath.join(path, rows.relpaths[i]).rstrip("/") for i in todo)
            with stepping(work, files, names, lengths) as steps:
                for n, digest in stored:
                    rows.digests[todo[n]] = digest
                    steps.done(files[n], lengths[n])
        except BaseException as error:
            # Save the digests so far, so that the next run does not hash these files again.
            rows.distrust_racy(started)
            self._memory.save(path, rows)
            if isinstance(error, FileNotFoundError) and error.filename in files:
                raise OutputError(
                    f"{error.filename} disappeared while it was read; nothing was recorded. Stop the process "
                    "that removes it, and run the command again."
                ) from None
            raise
        content = _summary(rows, MD5, single=single).existing()
        if content.is_dir and keep_manifest and not self._cache.exists(content.digest):
            self._cache.add_tree(Tree(rows.relpaths, rows.digests))
        linked: list[int] = []
        if todo and self._links.shares:
            linked = self._links.relink(base if single else base + "/", rows, todo)
        durability.flush()  # files recorded as stored are not checked again
        rows.tree = content.digest
        rows.distrust_racy(started, but=set(linked))
        self._memory.save(path, rows)
        return content

    # -- checkout ----------------------------------------------------------------------------------------------------

    def lost_by(self, output: Output, found: Found) -> list[str]:
        """Return the files at an output's path with content neither in the cache nor recorded by the output.

        Args:
            output: The output to check out.
            found: Current state of its path.
        """
        if found.rows is None or found.digest in (None, output.digest):
            return []
        rows = found.rows
        recorded = {"": output.digest or ""}
        if output.digest and output.is_dir and self._cache.exists(output.digest, output.hash_name):
            recorded.update(self._cache.read_tree(output.digest, output.hash_name).items())
        keep = set(recorded.values())
        # DVC 2.x hashed text in a converted form, so sizes do not match.
        # An empty file, as left by a power cut, has nothing to lose.
        sizes = {d: size for _, d, size in rows.files() if d not in keep and size}
        known = sizes if output.hash_name == MD5 else None
        unsaved = self._cache.missing(sizes, output.hash_name, sizes=known)
        lost = [name for name, digest in zip(rows.relpaths, rows.digests, strict=True) if digest in unsaved]
        cut = self._written.cut(
            (name, self._root / output.path / name, self._cache.path(recorded[name], output.hash_name))
            for name in lost
            if recorded.get(name)
        )
        return [
            posixpath.join(output.path, name) if name else output.path for name in lost if name not in cut
        ]

    def put(self, output: Output, found: Found, *, work: Work = NO_WORK) -> int:
        """Check out the recorded content at an output's path; return the number of files written or removed.

        A new directory is built under a temporary name and appears at once. In an existing one, each file is replaced
        atomically. Nothing is removed until all required objects are found in the cache.

        Args:
            output: The output to check out; its digest must be known.
            found: Current state of its path; files missing from the cache are overwritten.
            work: Receives files and bytes as they complete; files that are in place already reduce its totals.

        Raises:
            TransferError: Objects are missing from the cache or damaged; all other files were written.
            DiskFullError: The disk is full.
        """
        digest = output.digest
        if digest is None:
            raise OutputError(f"{output.path}: no recorded content yet. Run `dvkf commit` or `dvkf repro`.")
        check_target(self._root, output.path)
        self.sweep([output.path])
        target = self._root / output.path
        if found.digest == digest and found.isexec == output.isexec:
            return 0
        brief = self._links.shares or (output.size or _AT_ONCE + 1) <= _AT_ONCE
        with nullcontext() if brief else self._written.writing():
            if not is_tree(digest):
                return self._put_file(output, target, found, work)
            return self._put_tree(output, target, found, work)

    def _put_tree(self, output: Output, target: Path, found: Found, work: Work) -> int:
        tree = self._cache.read_tree(output.digest or "", output.hash_name)
        if found.rows is not None and found.nfiles is None:
            target.unlink()
            found = Found(None)
        # Each object is hashed during the copy, so a check in advance adds nothing.
        if found.digest is None and not self._cache.missing(tree.digests, output.hash_name, look=False):
            with suppress(CorruptObjectError, MissingObjectError):
                return self._put_new(output, tree, target, work)
        absent = self._cache.missing(tree.digests, output.hash_name)
        return self._put_changes(output, tree, target, found, absent, work)

    def _put_file(self, output: Output, target: Path, found: Found, work: Work) -> int:
        digest = output.digest or ""
        if not self._cache.exists(digest, output.hash_name):
            raise TransferError(
                f"the cache ({self._cache.root})",
                {output.path: f"{digest} is not in the cache. Run `dvkf pull`."},
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        if found.nfiles is not None:
            self._remove_files(target, found.rows.relpaths if found.rows else [])
            if target.exists():
                raise OutputError(
                    f"{output.path}: a file belongs here but the directory contains ignored files. Move them."
                )
        key = str(target.with_name(aside_name(target.name)))
        mode = 0o777 if output.isexec else 0o666
        with stepping(work, [key], [output.path], [output.size]) as steps:
            ((_, placed),) = self._links.place([digest], "", [key], mode=mode, hash_name=output.hash_name)
        if isinstance(placed, ObjectError):
            raise TransferError(f"the cache ({self._cache.root})", {output.path: str(placed)})
        self._links.move(key, str(target))
        rows = Rows.expected([""], [digest])
        rows.put(0, look(str(target)))  # a move changes the stat
        rows.tree = digest
        self._save(output, rows)
        steps.done(key, placed[0])
        return 1

    def _put_new(self, output: Output, tree: Tree, target: Path, work: Work) -> int:
        """Build a directory under a temporary name and move it into place."""
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(aside_name(target.name))
        rows = Rows.expected(tree.relpaths, tree.digests)
        try:
            os.mkdir(aside)
            make_folders(str(aside), tree.relpaths)
            placing = self._links.place(tree.digests, f"{aside}/", tree.relpaths, hash_name=output.hash_name)
            names = (posixpath.join(output.path, relpath) for relpath in tree.relpaths)
            with stepping(work, tree.relpaths, names) as steps:
                for row, placed in placing:
                    if isinstance(placed, ObjectError):
                        raise placed
                    rows.put(row, placed)
                    steps.done(tree.relpaths[row], placed[0])
            if self._links.shares:
                for row, relpath in enumerate(tree.relpaths):
                    rows.put(row, look(f"{aside}/{relpath}"))
            with suppress(FileNotFoundError):
                os.rmdir(target)
            os.rename(aside, target)
        except BaseException:
            import shutil  # slow to import

            shutil.rmtree(aside, ignore_errors=True)
            raise
        rows.tree = output.digest
        self._save(output, rows)
        return len(rows)

    def _put_changes(
        self,
        output: Output,
        tree: Tree,
        target: Path,
        found: Found,
        absent: set[str],
        work: Work,
    ) -> int:
        """Replace, add and remove only the differing files."""
        old = found.rows or Rows()
        have = dict(zip(old.relpaths, range(len(old)), strict=True))
        failures: dict[str, str] = {}
        rows = Rows.expected(tree.relpaths, tree.digests)
        changed = 0
        wanted = set(tree.relpaths)
        # Remove files first: a file may block a new folder, and a folder may block a new file.
        gone = [path for path in old.relpaths if path not in wanted]
        if not absent:
            self._remove_files(target, gone)
            changed += len(gone)
        todo: list[int] = []
        moved: list[int] = []
        for row, (relpath, digest) in enumerate(tree.items()):
            i = have.get(relpath)
            if i is not None and old.digests[i] == digest:
                rows.put(row, (old.sizes[i], old.mtimes[i], old.ctimes[i], old.inodes[i], bool(old.execs[i])))
            elif digest in absent:
                failures[posixpath.join(output.path, relpath)] = (
                    f"{digest} is not in the cache. Run `dvkf pull`."
                )
            else:
                todo.append(row)
        aside = [aside_name(tree.relpaths[row]) for row in todo]
        make_folders(str(target), aside)
        work.more(len(todo) - len(tree), -sum(rows.sizes))
        names = (posixpath.join(output.path, tree.relpaths[row]) for row in todo)
        placing = self._links.place(
            [tree.digests[row] for row in todo], f"{target}/", aside, hash_name=output.hash_name
        )
        with stepping(work, aside, names) as steps:
            for n, placed in placing:
                row = todo[n]
                if isinstance(placed, ObjectError):
                    failures[posixpath.join(output.path, tree.relpaths[row])] = str(placed)
                    steps.done(aside[n], 0)
                    continue
                self._links.move(f"{target}/{aside[n]}", f"{target}/{tree.relpaths[row]}")
                moved.append(row)
                changed += 1
                steps.done(aside[n], placed[0])
        if failures:
            raise TransferError(f"the cache ({self._cache.root})", failures)
        # At the end, since each move and each further link changes an object's stat.
        for row in moved:
            rows.put(row, look(f"{target}/{tree.relpaths[row]}"))
        rows.tree = output.digest
        self._save(output, rows)
        return changed

    def relink(self, output: Output, found: Found) -> int:
        """Replace the files of an unchanged output with links of the current type.

        Returns:
            The number of files.

        Raises:
            ObjectError: An object is missing or damaged; its file is unchanged.
        """
        if found.rows is None or found.digest != output.digest:
            return 0
        check_target(self._root, output.path)
        base = str(self._root / output.path)
        rows = found.rows
        chosen = [i for i, executable in enumerate(rows.execs) if not executable or not self._links.shares]
        self._links.relink(
            base if found.nfiles is None else f"{base}/", rows, chosen, hash_name=output.hash_name
        )
        self._save(output, rows)
        return len(chosen)

    def remove(self, path: str, found: Found) -> None:
        """Remove the tracked files at a path; ignored files inside it stay."""
        check_output(path, "the repository")
        check_parents(self._root, path)
        target = self._root / path
        if found.nfiles is None or target.is_symlink():
            target.unlink(missing_ok=True)
        elif found.rows:
            self._remove_files(target, found.rows.relpaths)
        self._memory.forget(path)

    def _remove_files(self, base: Path, relpaths: list[str]) -> None:
        folders: set[str] = {""}
        for relpath in relpaths:
            with suppress(FileNotFoundError):
                os.unlink(base / relpath)
            folder = posixpath.dirname(relpath)
            while folder and folder not in folders:
                folders.add(folder)
                folder = posixpath.dirname(folder)
        for folder in sorted(folders, key=len, reverse=True):
            with suppress(OSError):
                os.rmdir(base / folder)

    def _save(self, output: Output, rows: Rows) -> None:
        self._links.settle(output.hash_name)
        rows.settle()
        key = output.path if output.hash_name == MD5 else f"{output.hash_name}:{output.path}"
        self._memory.save(key, rows)

    def sweep(self, paths: Iterable[str] = ()) -> None:
        """Remove temporary files of killed runs beside paths and in inspected outputs; the caller holds the lock.

        Args:
            paths: Outputs, or files that describe them.
        """
        for folder in {os.path.dirname(path) for path in paths} - self._swept:
            self._swept.add(folder)
            sweep_files(self._root / folder)
        for leftover in self._leftovers:
            discard(leftover)
        self._leftovers.clear()


def _summary(rows: Rows, hash_name: str, *, single: bool) -> Found:
    size = sum(rows.sizes)
    if single:
        return Found(Content(rows.digests[0], size, None, bool(rows.execs[0]), hash_name), rows)
    digest = rows.tree or Tree(rows.relpaths, rows.digests).digest
    return Found(Content(digest, size, len(rows), hash_name=hash_name), rows)
