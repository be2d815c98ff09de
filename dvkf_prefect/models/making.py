"""Stages behind a model at one revision, and the check that a commit holds all that made the model.

A stage's entry in dvc.lock records the command, parameters and digests that it ran with: its signature. A commit is
honest about a model if its own files give the same values. Git's files are hashed as DVC hashes them.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.git.unsaved import IGNORED, find_unsaved
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError, ModelError
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.dvclock import Entry, lock_file, read_lock
from dvkf_prefect.formats.dvcyaml import Stage, load_stages
from dvkf_prefect.formats.files import PIPELINE_FILE, RepoFiles
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.params import parse_params, select
from dvkf_prefect.formats.tracked import read_outputs
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.paths import is_within, overlaps
from dvkf_prefect.pipeline.plan.outside import place_in_git, with_own_paths
from dvkf_prefect.pipeline.report.uncommitted import is_data

_LFS = b"version https://git-lfs"
_SHOWN = 5


@dataclass(frozen=True)
class Step:
    """One stage behind a model.

    Attributes:
        stage: The stage as dvc.yaml declares it.
        entry: Its record in dvc.lock.
    """

    stage: Stage
    entry: Entry


class Making:
    """The stages and outputs of one revision.

    Args:
        files: The revision's files.

    Raises:
        ParseError: A dvc.yaml, dvc.lock or `.dvc` file does not follow its format.
    """

    def __init__(self, files: RepoFiles) -> None:
        self.files = files
        sources = files.find()
        pipelines = [path for path in sources if path.rpartition("/")[2] == PIPELINE_FILE]
        self._stages = [stage for path in pipelines for stage in load_stages(files, path)]
        self.outputs: dict[str, Output] = {
            output.path: output for path in sources for output in read_outputs(files, path)
        }

    def behind(self, path: str) -> list[Step]:
        """Return the stage that writes a path and all stages upstream of it, nearest first.

        Stages that never ran have no record and are left out.
        """
        steps = ((stage, self.entry(stage)) for stage in self.upstream(path))
        return [Step(stage, entry) for stage, entry in steps if entry is not None]

    def upstream(self, path: str) -> list[Stage]:
        """Return the stage that writes a path and all stages upstream of it, nearest first."""
        found: dict[str, Stage] = {}
        waiting = [path]
        while waiting:
            wanted = waiting.pop(0)
            for stage in self._stages:
                if stage.address not in found and any(overlaps(out.path, wanted) for out in stage.outs):
                    found[stage.address] = stage
                    waiting += [dep.path for dep in stage.deps if not dep.external and dep.dataset is None]
        return list(found.values())

    def entry(self, stage: Stage) -> Entry | None:
        """Return a stage's record in dvc.lock; None if it never ran."""
        return read_lock(self.files, lock_file(stage.file)).get(stage.name)

    def find(self, stage: Stage) -> Stage | None:
        """Return this revision's stage of the same address; None if it has none."""
        return next((other for other in self._stages if other.address == stage.address), None)

    def tracked(self, path: str) -> Output | None:
        """Return the output that equals or contains a path, or that lies below it."""
        return next((output for at, output in self.outputs.items() if overlaps(at, path)), None)

    def params(self, stage: Stage, file: str) -> dict[str, Any] | None:
        """Return the values of a stage's parameters in one file; None if the file does not exist."""
        path = stage.params_path(file)
        try:
            return select(parse_params(self.files.read(path), path), stage.params[file])
        except FileNotFoundError:
            return None


def check_committed(repo: Repository, git: Git, name: str, path: str, rev: str, *, here: bool) -> None:
    """Refuse a model that a commit does not explain.

    Args:
        repo: The repository.
        git: The git work tree that contains it.
        name: Name of the model, for messages.
        path: The model's file or folder, relative to the repository's root.
        rev: The commit.
        here: True if the commit stands for the workspace, which then must not differ from it in what made the model.

    Raises:
        ModelError: A parameter, command, dependency or output of the stages behind the model differs. The message
            lists the differences.
    """
    commit = Making(repo.files(rev))
    steps = commit.behind(path)
    tree = _CommitTree(git, rev)
    wrong = [text for step in steps for text in _lies(repo, git, commit, step, tree)]
    if wrong:
        raise ModelError(
            f"model '{name}' was not made by the files of commit {rev[:7]}: {_listed(wrong)}. Commit the files that "
            "the stage ran with, or run `dvkf repro` and commit its results."
        )
    if not here:
        return
    changed = list(_changes(repo, git, commit, steps, path, tree))
    if changed:
        raise ModelError(
            f"model '{name}' has changes that are not in commit {rev[:7]}: {_listed(changed)}. Commit them, run `dvkf "
            f"repro` if the model is older, or register the commit as it stands by its name, {rev[:7]}."
        )


def _lies(repo: Repository, git: Git, commit: Making, step: Step, tree: _CommitTree) -> Iterator[str]:
    """Yield the differences between a stage's record and the files of its commit."""
    stage, entry = with_own_paths(step.stage, repo.root), step.entry
    command = list(stage.command) if isinstance(stage.command, tuple) else stage.command
    if entry["cmd"] != command:
        yield f"stage '{stage.address}' ran another command"
    if stage.frozen:
        return
    for file in stage.params:
        ran, has = entry.get("params", {}).get(file, {}), commit.params(stage, file)
        if has is None:
            yield f"parameter file {file} of stage '{stage.address}' is not committed"
            continue
        for key in dict.fromkeys((*ran, *has)):
            if ran.get(key) != has.get(key):
                yield f"{file}:{key} is {has.get(key)!r}, stage '{stage.address}' ran with {ran.get(key)!r}"
    recorded = {item["path"]: item for item in entry.get("deps", ())}
    for dep in stage.deps:
        item = recorded.get(dep.name)
        if item is None:
            yield f"'{dep.name}', read by stage '{stage.address}' in {stage.file}, was no dependency of its run"
            continue
        place = place_in_git(repo, git, stage, dep)
        if place is None or item.get("hash") != MD5 or "md5" not in item:
            continue
        output = None if dep.external else commit.tracked(dep.path)
        if output is not None and is_within(dep.path, output.path):
            known = _part(repo, output, dep.path)
            if known is not None and known != item["md5"]:
                yield f"'{dep.path}' differs from the data that stage '{stage.address}' read"
        elif not tree.has(place):
            if output is None and not dep.external:
                yield f"'{dep.path}', read by stage '{stage.address}', is neither in git nor tracked by DVC"
        elif tree.differs(place, item["md5"], [] if dep.external else _data_below(repo, commit, dep.path)):
            yield f"'{dep.path}' differs from the file that stage '{stage.address}' read"


def _part(repo: Repository, output: Output, path: str) -> str | None:
    """Return the digest of an output or of a part of it; None if the cache does not tell."""
    if output.content is None or output.hash_name != MD5:
        return None
    if path == output.path:
        return output.content.digest
    tree = _manifest(repo, output)
    part = None if tree is None else tree.subtree(path[len(output.path) + 1 :])
    if not part:
        return None
    return part.digests[0] if part.relpaths == [""] else part.digest


def _data_below(repo: Repository, commit: Making, folder: str) -> list[tuple[str, str]] | None:
    """Return paths, relative to a folder, and digests of the data of DVC in it; None if the cache does not tell."""
    pairs: list[tuple[str, str]] = []
    for output in commit.outputs.values():
        if not output.cached or not is_within(output.path, folder):
            continue
        if output.content is None or output.hash_name != MD5:
            return None
        name = posixpath.relpath(output.path, folder or ".")
        if not output.content.is_dir:
            pairs.append((name, output.content.digest))
            continue
        tree = _manifest(repo, output)
        if tree is None:
            return None
        pairs += [(f"{name}/{key}", digest) for key, digest in tree.items()]
    return pairs


def _manifest(repo: Repository, output: Output) -> Tree | None:
    try:
        return repo.cache.read_tree(output.digest or "", aside=False)
    except DvkfError:
        return None


def _changes(
    repo: Repository, git: Git, commit: Making, steps: list[Step], path: str, tree: _CommitTree
) -> Iterator[str]:
    """Yield what the workspace has changed in a model and in the stages behind it."""
    here = Making(repo.files())
    source = commit.tracked(path)
    now = here.tracked(path)
    if source is not None and source.stage is None and now is not None and now.digest != source.digest:
        yield f"{now.source} records another '{now.path}'"
    for step in steps:
        stage = here.find(step.stage)
        if stage is None:
            yield f"stage '{step.stage.address}' is not in {step.stage.file} any more"
            continue
        entry = here.entry(stage)
        if entry != step.entry:
            yield f"{lock_file(stage.file)} records another run of stage '{stage.address}'"
            continue
        if stage.command != step.stage.command:
            yield f"the command of stage '{stage.address}' in {stage.file}"
        if stage.frozen:
            continue
        for file in stage.params:
            old = commit.params(step.stage, file) if file in step.stage.params else None
            if here.params(stage, file) != old:
                yield f"{stage.params_path(file)}, read by stage '{stage.address}'"
        places = [git.prefix(repo.root) + used for used in stage.used]
        for dep in stage.deps:
            place = place_in_git(repo, git, stage, dep)
            output = None if dep.external else commit.tracked(dep.path)
            if place is not None and (output is None or not is_within(dep.path, output.path)):
                places.append(place)
        for each in find_unsaved(git, places):
            inside = posixpath.relpath(each.path, git.prefix(repo.root) or ".")
            if each.obstacle != IGNORED or not is_data(repo, here.tracked(inside), inside):
                yield f"{each.path}, read by stage '{stage.address}'{each.obstacle and f', {each.obstacle}'}"


class _CommitTree:
    """Files of a commit, hashed as DVC hashes files of the workspace.

    Args:
        git: The work tree.
        rev: The commit.
    """

    def __init__(self, git: Git, rev: str) -> None:
        self._git = git
        self._rev = rev
        self._modes: dict[str, str] | None = None

    def _files(self) -> dict[str, str]:
        if self._modes is None:
            listed = self._git.run_bytes("ls-tree", "-r", "-z", "--full-tree", self._rev)
            rows = (row.split("\t", 1) for row in listed.decode(errors="surrogateescape").split("\0") if row)
            self._modes = {name: head.split(" ", 1)[0] for head, name in rows}
        return self._modes

    def has(self, path: str) -> bool:
        """Return True if the commit has a file or a folder of that path, or lets a link or submodule lead to it."""
        return any(
            is_within(name, path) or (mode in ("120000", "160000") and is_within(path, name))
            for name, mode in self._files().items()
        )

    def differs(self, path: str, digest: str, data: list[tuple[str, str]] | None) -> bool:
        """Return True if a path's content in the commit is surely not that of a digest.

        Args:
            path: Posix, relative to the work tree's top.
            digest: The digest that DVC recorded.
            data: Paths and digests of DVC's data in a folder; None if they are not known.

        Links, submodules and files of git LFS are not compared, nor a folder that has files ignored by git or a
        repository with a .dvcignore: the stage may have read other files of that folder.
        """
        files = {name: mode for name, mode in self._files().items() if is_within(name, path)}
        if not files or any(mode in ("120000", "160000") for mode in files.values()):
            return False
        if digest.endswith(".dir"):
            return data is not None and not self._is_folder(path, digest, list(files), data)
        return not self._is_file(path, digest)

    def _is_file(self, name: str, digest: str) -> bool:
        data = self._git.show(self._rev, name)
        if data.startswith(_LFS):
            return True
        # A checkout with core.autocrlf has other line ends than the commit.
        return digest in (digest_bytes(data), digest_bytes(data.replace(b"\n", b"\r\n")))

    def _has_patterns(self, name: str) -> bool:
        lines = (line.strip() for line in self._git.show(self._rev, name).splitlines())
        return any(line and not line.startswith(b"#") for line in lines)

    def _is_folder(self, folder: str, digest: str, names: list[str], data: list[tuple[str, str]]) -> bool:
        start = len(folder) + 1 if folder else 0
        pairs = [(name[start:], digest_bytes(self._git.show(self._rev, name))) for name in names]
        if Tree.from_pairs([*pairs, *data]).digest == digest:
            return True
        # Files that git ignores and DVC does not, or the other way round, make another manifest of the same commit.
        if any(self._has_patterns(name) for name in self._files() if name.rpartition("/")[2] == ".dvcignore"):
            return True
        spec = f":(top,literal){folder}"
        listed = self._git.run_bytes(
            "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--", spec
        )
        known = {name for name, _ in data}
        return any(os.fsdecode(name)[start:] not in known for name in listed.split(b"\0") if name)


def _listed(texts: list[str]) -> str:
    unique = list(dict.fromkeys(texts))
    more = f", and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else ""
    return "; ".join(unique[:_SHOWN]) + more
