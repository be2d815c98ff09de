"""Dependency graph of stages, built from the paths they read and write."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from dvkf_prefect.errors import StageGraphError, StageNotFoundError
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.template import JOIN
from dvkf_prefect.text import did_you_mean

# A stage in a file; a stage's name may contain a colon, from its ``foreach`` or ``matrix`` item.
_ADDRESS = re.compile(r"((?:.*?/)?dvc\.yaml|):(.+)", re.DOTALL)


class Graph:
    """Stages and their edges: from a stage to the writers of its inputs.

    A dependency needs every output that equals it, contains it or lies inside it.

    Args:
        stages: All stages of a repository, in the order of their files.
        sources: Outputs of `.dvc` files. An import that follows its source (not frozen) adds edges: its readers need
            the writers of the source. Other `.dvc` files add no edges.
        lenient: Accept cycles and several writers of one path, for read-only commands.

    Raises:
        StageGraphError: Two stages write one path, one writes into the other's output, or they form a cycle.
    """

    def __init__(
        self, stages: Sequence[Stage], sources: Iterable[Output] = (), *, lenient: bool = False
    ) -> None:
        self._lenient = lenient
        self.stages: dict[str, Stage] = {stage.address: stage for stage in stages}
        self._writers = _writers(stages, lenient=lenient)
        folders: dict[str, list[str]] = {}
        for path in self._writers:
            parent = posixpath.dirname(path)
            while parent:
                folders.setdefault(parent, []).append(path)
                parent = posixpath.dirname(parent)
        imports = {output.path: origin for output in sources if (origin := followed(output)) is not None}
        self.upstream: dict[str, tuple[str, ...]] = {}
        for stage in stages:
            edges: dict[str, None] = {}
            read = [dep.path for dep in stage.deps if not dep.external]
            read += map(stage.params_path, stage.params)
            for path in _through(imports, read) if imports else read:
                for out in (*_upwards(path), *(folders.get(path, ()) if path else self._writers)):
                    writer = self._writers.get(out)
                    if writer == stage.address and lenient:
                        continue
                    if writer == stage.address:
                        raise StageGraphError(
                            f"stage '{stage.address}' depends on '{path}' and writes '{out}'. A stage cannot "
                            "depend on its own output."
                        )
                    if writer:
                        edges[writer] = None
            self.upstream[stage.address] = tuple(edges)
        self._postorder(self.stages, self.upstream.__getitem__)
        self._order = self._postorder(self.stages, self.needs)

    def order(self, addresses: Iterable[str] | None = None, *, alone: bool = False) -> list[Stage]:
        """Return stages in the order DVC runs them, each after those it needs.

        Args:
            addresses: The selected stages; None for all.
            alone: Leave out the stages they need.
        """
        if addresses is None:
            return [self.stages[address] for address in self._order]
        wanted = set(addresses)
        if not alone:
            wanted = set(self._postorder(wanted, self.needs))
        return [self.stages[address] for address in self._order if address in wanted]

    def needs(self, address: str) -> tuple[str, ...]:
        """Return the stages that a stage waits for; a frozen one waits for none."""
        return () if self.stages[address].frozen else self.upstream[address]

    def find(self, target: str) -> list[str]:
        """Resolve a target to stages.

        Args:
            target: A stage's name or address, a dvc.yaml, or an output, relative to the root. The name of a
                ``foreach`` or ``matrix`` group means all of its stages.

        Raises:
            StageNotFoundError: The target is none of these; the message lists the stages.
        """
        if target in self.stages:
            return [target]
        match = _ADDRESS.fullmatch(target)
        file, word = (posixpath.normpath(match[1] or PIPELINE_FILE), match[2]) if match else ("", target)
        for name in dict.fromkeys((word, posixpath.normpath(word))) if word else ():
            address = name if file in ("", PIPELINE_FILE) else f"{file}:{name}"
            if address in self.stages:
                return [address]
            members = self._members(file or PIPELINE_FILE, name)
            if members:
                return members
        plain = posixpath.normpath(target) if target else target
        found = [address for address, stage in self.stages.items() if stage.file == plain]
        if found:
            return found
        if plain in self._writers:
            return [self._writers[plain]]
        if posixpath.basename(plain) == PIPELINE_FILE and not self.stages:
            raise StageNotFoundError(f"no stage is in '{plain}'. Add one with `dvkf stage add`.")
        known = ", ".join(list(self.stages)[:20]) or "none"
        names = (
            *self.stages,
            *self._writers,
            *(stage.file for stage in self.stages.values()),
            *(stage.group for stage in self.stages.values() if stage.group),
        )
        raise StageNotFoundError(
            f"'{target}' is not a stage, a dvc.yaml or an output of a stage; stages: {known}."
            f"{did_you_mean(target, names)}"
        )

    def _members(self, file: str, group: str) -> list[str]:
        """Return the stages of a group; none if there is no such group."""
        here = [(address, stage) for address, stage in self.stages.items() if stage.file == file]
        if not any(stage.group == group for _, stage in here):
            return []
        # As in DVC, matched by the name alone.
        return [address for address, stage in here if stage.name.startswith(group + JOIN)]

    def _postorder(self, roots: Iterable[str], needs: Callable[[str], tuple[str, ...]]) -> list[str]:
        order: dict[str, None] = {}
        open_: dict[str, None] = {}
        for root in roots:
            stack = [(root, iter(needs(root)))] if root not in order else []
            if stack:
                open_[root] = None
            while stack:
                address, rest = stack[-1]
                following = next((other for other in rest if other not in order), None)
                if following is None:
                    stack.pop()
                    del open_[address]
                    order[address] = None
                elif following in open_ and self._lenient:
                    continue
                elif following in open_:
                    names = list(open_)
                    circle = [*names[names.index(following) :], following]
                    raise StageGraphError("the stages form a cycle: " + " → ".join(reversed(circle)))
                else:
                    open_[following] = None
                    stack.append((following, iter(needs(following))))
        return list(order)


def followed(output: Output) -> str | None:
    """Return the path in the repository that a `.dvc` file's output follows, or None.

    Args:
        output: The output.
    """
    origin = output.origin
    if origin is None or origin.frozen or origin.repo is not None:
        return None
    if "://" in origin.path or origin.path.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(origin.folder, origin.path))
    return None if path == ".." or path.startswith("../") else path


def _through(imports: Mapping[str, str], read: Iterable[str]) -> list[str]:
    """Return the paths read, plus the sources of all imports that overlap them."""
    found = dict.fromkeys(read)
    waiting = list(found)
    while waiting:
        path = waiting.pop()
        for out, origin in imports.items():
            meet = f"{path}/".startswith(f"{out}/") or f"{out}/".startswith(f"{path}/") or not path
            if meet and origin not in found:
                found[origin] = None
                waiting.append(origin)
    return list(found)


def _upwards(path: str) -> list[str]:
    """Return a path and all its parent folders."""
    found = []
    while path:
        found.append(path)
        path = posixpath.dirname(path)
    return found


def _writers(stages: Sequence[Stage], *, lenient: bool) -> Mapping[str, str]:
    writers: dict[str, str] = {}
    if lenient:
        return {out.path: stage.address for stage in reversed(stages) for out in reversed(stage.outs)}
    for stage in stages:
        for out in stage.outs:
            other = writers.get(out.path)
            if other:
                both = (
                    f"stages '{other}' and '{stage.address}'"
                    if other != stage.address
                    else f"stage '{other}' twice"
                )
                raise StageGraphError(f"'{out.path}' is an output of {both}. Keep one of them.")
            writers[out.path] = stage.address
    for path, address in writers.items():
        for above in _upwards(posixpath.dirname(path)):
            if above in writers:
                raise StageGraphError(
                    f"'{path}' (stage '{address}') lies inside '{above}', an output of stage '{writers[above]}'"
                )
    for stage in stages:
        for above in _upwards(posixpath.dirname(stage.file)):
            if above in writers:
                raise StageGraphError(
                    f"{stage.file} lies inside '{above}', an output of stage '{writers[above]}'. Move it out."
                )
    return writers
