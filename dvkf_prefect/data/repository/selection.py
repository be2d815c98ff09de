"""Resolution of targets and filters to outputs, in the workspace and in many commits."""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.git.command import revisions_of
from dvkf_prefect.errors import ConfigError, DvkfError, OutputNotFoundError
from dvkf_prefect.formats.files import PIPELINE_FILE, RepoFiles
from dvkf_prefect.formats.outputs import Output, matching, output_meant
from dvkf_prefect.formats.tracked import names_stage
from dvkf_prefect.paths import overlaps

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Overlap, Repository

_KINDS = {"metrics": "metric", "plots": "plot"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Options that add to a selection of outputs or filter it, named as in DVC.

    Attributes:
        all_branches: Include the outputs recorded at the tips of all branches.
        all_tags: Include the outputs recorded at all tags.
        all_commits: Include the outputs recorded at all commits.
        with_deps: Include the outputs of all upstream stages and imports.
        recursive: Resolve a folder to all outputs described in it.
        glob: Treat targets as patterns, with ``*`` within a name and ``**`` across folders.
        max_size: Include only outputs smaller than this, in bytes.
        types: Include only outputs that are ``metrics`` or ``plots``.
    """

    all_branches: bool = False
    all_tags: bool = False
    all_commits: bool = False
    with_deps: bool = False
    recursive: bool = False
    glob: bool = False
    max_size: int | None = None
    types: tuple[str, ...] = ()

    @property
    def history(self) -> bool:
        """True if the selection includes other commits."""
        return self.all_branches or self.all_tags or self.all_commits


@dataclass(frozen=True, slots=True)
class Selection:
    """Selected outputs.

    Attributes:
        outputs: The outputs; one path may have several versions.
        parts: Selected paths inside an output, by the output's path; an output without an entry is selected whole.
        skipped: Errors of files in other commits that could not be read.
    """

    outputs: tuple[Output, ...]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def select(
    repo: Repository,
    targets: Sequence[str] = (),
    choice: Choice | None = None,
    *,
    rev: str | None = None,
    overlap: Overlap = "same",
) -> Selection:
    """Resolve targets and filters to outputs and paths inside them.

    Args:
        repo: The repository.
        targets: Paths of outputs or inside them, `.dvc` files, dvc.yaml files, stage names or ``dvc.yaml:name``,
            relative to the root; none for all outputs.
        choice: Options that add to the selection or filter it.
        rev: Git revision to read instead of the workspace.
        overlap: Rule for several outputs with one path, as for `Repo.outputs`.

    Raises:
        OutputNotFoundError: A target is none of these in any of the revisions.
        ConfigError: The choice includes other commits, but the repository has no git.
        GitError: The revision does not exist.
        ParseError: A file of the workspace does not follow its format.
    """
    choice = choice or Choice()
    here = repo.outputs(rev=rev, overlap=overlap)
    picker = _Picker(repo, targets, choice)
    picker.take(here, repo.files(rev))
    if choice.history:
        if repo.git is None:
            raise ConfigError(f"{repo.root} has no git history, so there are no other commits to search")
        commits = revisions_of(
            repo.git,
            all_branches=choice.all_branches,
            all_tags=choice.all_tags,
            all_commits=choice.all_commits,
        )
        picker.look_back(commits)
    selection = picker.picked()
    if selection.skipped:
        import logging

        for reason in selection.skipped:
            logging.getLogger(__name__).warning("skipped, cannot be read: %s", reason)
    return selection


def written_paths(repo: Repository, targets: Sequence[str], choice: Choice | None = None) -> list[str]:
    """Return the paths that a verb with these targets may write; ``""`` means all paths.

    Raises:
        OutputNotFoundError: A target is not tracked.
    """
    chosen = select(repo, targets, choice) if targets else None
    return [output.path for output in chosen.outputs] if chosen else [""]


class _Picker:
    """Collector of the outputs that targets match, over several revisions."""

    def __init__(self, repo: Repository, targets: Sequence[str], choice: Choice) -> None:
        self._repo = repo
        self._targets = list(dict.fromkeys(_plain(target) for target in targets))
        self._choice = choice
        self._outputs: dict[tuple[str, str | None, str, str | None], Output] = {}
        self._whole: set[str] = set()
        self._parts: dict[str, dict[str, None]] = {}
        self._met: set[str] = set()
        self._inside: dict[str, str] = {}
        self._skipped: dict[str, None] = {}

    def take(self, found: Sequence[Output], files: RepoFiles | None) -> None:
        """Add the matching outputs of one revision."""
        picked: dict[str, Output] = {}
        targets = self._targets
        if self._choice.glob:
            targets = self._globbed(found)
        if not self._targets:
            picked = {output.path: output for output in found}
            self._whole.update(picked)
        for target in targets:
            matched = list(matching(found, target)) if target else []
            if not matched and self._choice.recursive:
                start = f"{target}/" if target else ""
                matched = [output for output in found if output.source.startswith(start)]
            self._whole.update(output.path for output in matched)
            if not matched:
                around = next((o for o in found if target.startswith(o.path + "/")), None)
                if around is None:
                    continue
                self._parts.setdefault(around.path, {})[target[len(around.path) + 1 :]] = None
                matched = [around]
            self._met.add(target)
            picked.update({output.path: output for output in matched})
        if self._choice.with_deps and files is not None:
            for output in _upstream(found, picked.values(), files):
                if picked.setdefault(output.path, output) is output:
                    self._whole.add(output.path)
        chosen: Iterable[Output] = picked.values()
        if self._choice.types and files is not None:
            chosen = _of_types(chosen, found, files, self._choice.types)
        for output in chosen:
            limit = self._choice.max_size
            if limit is None or output.size is None or output.size < limit:
                key = (output.path, output.digest, output.hash_name, output.remote)
                self._outputs.setdefault(key, output)

    def look_back(self, commits: Sequence[str]) -> None:
        """Add the matching outputs of commits; a commit that cannot be read is skipped."""
        if self._choice.with_deps or self._choice.types:
            # Dependencies and types need all files of a commit, so read each commit as a whole.
            for commit in commits:
                try:
                    self.take(self._repo.outputs(rev=commit), self._repo.files(commit))
                except DvkfError as error:
                    self._skipped[f"commit {commit[:7]}: {error}"] = None
            return
        from dvkf_prefect.data.git.history import History

        assert self._repo.git is not None
        with History(self._repo.git, self._repo.git_prefix) as history:
            for described in history.walk(commits):
                if described.error:
                    self._skipped[f"{described.place}: {described.error}"] = None
                else:
                    self.take(described.outputs, None)

    def picked(self) -> Selection:
        """Return the selection.

        Raises:
            OutputNotFoundError: A target matched nothing in any revision.
        """
        for target in self._targets:
            if target in self._met:
                continue
            if self._choice.glob:
                if not self._met:
                    names = ", ".join(f"'{target}'" for target in self._targets)
                    raise OutputNotFoundError(f"no tracked path in {self._repo.root} matches {names}")
                continue
            if names_stage(self._repo.files(), target):
                continue  # a stage without outputs
            where = f"{self._repo.root}" + (" in any searched commit" if self._choice.history else "")
            hint = output_meant(self._repo.outputs(), target)
            if (self._repo.root / target).is_dir() and not self._choice.recursive:
                hint = " For all outputs in that folder, pass --recursive."
            raise OutputNotFoundError(
                f"'{target or '.'}' is not tracked in {where}: expected an output, a path inside one, a .dvc "
                f"file or a stage.{hint}"
            )
        ordered = sorted(self._outputs.values(), key=lambda output: output.path)
        parts = {path: tuple(inside) for path, inside in self._parts.items() if path not in self._whole}
        return Selection(tuple(ordered), parts, tuple(self._skipped))

    def _globbed(self, found: Sequence[Output]) -> list[str]:
        """Return the names in one revision that match the patterns: outputs, DVC files, stages, files in outputs."""
        names: dict[str, None] = {}
        for pattern in self._targets:
            for output in found:
                for name in (output.path, output.source, output.stage or ""):
                    if name and _matches(name.split("/"), pattern.split("/")):
                        names[name] = None
            for name in glob.glob(pattern, root_dir=self._repo.root, recursive=True):
                if any(name.startswith(output.path + "/") for output in found):
                    names[name] = None
        return list(names)


def _plain(target: str) -> str:
    plain = posixpath.normpath(target) if target else ""
    return "" if plain == "." else plain


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_matches(name[skip:], pattern[1:]) for skip in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


# -- dependencies of outputs -------------------------------------------------------------------------------------------


def _upstream(found: Sequence[Output], picked: Iterable[Output], files: RepoFiles) -> list[Output]:
    """Return the outputs of all stages and imports upstream of the picked outputs."""
    reads = _dependencies(found, files)
    todo = [(output.source, output.stage) for output in picked]
    seen = set(todo)
    made: list[Output] = []
    while todo:
        for path in reads.get(todo.pop(), ()):
            for output in found:
                if not overlaps(output.path, path):
                    continue
                maker = (output.source, output.stage)
                made.append(output)
                if maker not in seen:
                    seen.add(maker)
                    todo.append(maker)
    # As in DVC, a stage is selected with all of its outputs.
    makers = {(output.source, output.stage) for output in made}
    return [output for output in found if (output.source, output.stage) in makers]


def _dependencies(found: Sequence[Output], files: RepoFiles) -> dict[tuple[str, str | None], list[str]]:
    """Return the paths that each stage and import reads, relative to the root."""
    from dvkf_prefect.formats.dvcyaml import load_stages  # takes a while to import

    reads: dict[tuple[str, str | None], list[str]] = {}
    for source in dict.fromkeys(output.source for output in found):
        if posixpath.basename(source) != PIPELINE_FILE:
            continue
        for stage in load_stages(files, source):
            reads[source, stage.name] = [dep.path for dep in stage.deps if not dep.external]
            reads[source, stage.name] += [stage.params_path(file) for file in stage.params]
    for output in found:
        origin = output.origin
        if origin and origin.repo is None and "://" not in origin.path and not origin.path.startswith("/"):
            path = posixpath.normpath(posixpath.join(origin.folder, origin.path))
            reads.setdefault((output.source, None), []).append(path)
    return reads


def _of_types(
    chosen: Iterable[Output], found: Sequence[Output], files: RepoFiles, types: Sequence[str]
) -> list[Output]:
    """Return the outputs that equal, contain or lie inside metrics or plots."""
    paths: list[str] = []
    from dvkf_prefect.formats.dvcyaml import load_stages, read_sections  # takes a while to import

    kinds = {_KINDS[name] for name in types}
    for source in files.find():
        if posixpath.basename(source) != PIPELINE_FILE:
            continue
        for stage in load_stages(files, source):
            paths += [out.path for out in stage.outs if out.kind in kinds]
        sections = read_sections(files, source)
        named = {"metrics": sections.metrics, "plots": _drawn(sections.plots)}
        folder = posixpath.dirname(source)
        for name in types:
            paths += [posixpath.normpath(posixpath.join(folder, path)) for path in named[name]]
    return [output for output in chosen if any(overlaps(output.path, path) for path in paths)]


def _drawn(plots: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the data paths of a dvc.yaml's plots; a plot's name may be its path."""
    paths: list[str] = []
    for name, options in plots.items():
        axis = options.get("y")
        paths += list(axis) if isinstance(axis, dict) else [name]
    return paths
