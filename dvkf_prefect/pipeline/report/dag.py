"""Drawings of the graph of stages or outputs: as text, for Mermaid, for Graphviz.

Source of both languages' form: DVC 3.x (``dvc/commands/dag.py``), node for node and line for line.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import StageNotFoundError
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.formats.outputs import Output, matching
from dvkf_prefect.pipeline.plan.selection import choose
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.text import printable

_JOIN = "@"


@dataclass(frozen=True)
class Drawing:
    """A graph to draw.

    Attributes:
        needs: Nodes that each node needs; nodes in the order of their files.
    """

    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def pipelines(self) -> Iterator[list[str]]:
        """Yield the nodes of each connected part, in their order."""
        users = self.users()
        seen: set[str] = set()
        place = {node: i for i, node in enumerate(self.needs)}
        for root in self.needs:
            if root in seen:
                continue
            part, queue = {root}, [root]
            while queue:
                node = queue.pop()
                for other in (*self.needs[node], *users[node]):
                    if other not in part:
                        part.add(other)
                        queue.append(other)
            seen |= part
            yield sorted(part, key=place.__getitem__)

    def users(self) -> dict[str, list[str]]:
        """Return the users of each node, in their order."""
        users: dict[str, list[str]] = {node: [] for node in self.needs}
        for node, needed in self.needs.items():
            for other in needed:
                users[other].append(node)
        return users

    def mermaid(self, *, markdown: bool = False) -> str:
        """Return the graph in Mermaid's language.

        Args:
            markdown: Wrap the graph in a fenced Markdown block.
        """
        lines = ["flowchart TD"]
        count = 0
        for pipeline in self.pipelines():
            ids: dict[str, str] = {}
            for node in sorted(pipeline):
                count += 1
                ids[node] = f"node{count}"
                lines.append(f'\t{ids[node]}["{_label(node)}"]')
            edges = sorted((need, node) for node in pipeline for need in self.needs[node])
            lines += [f"\t{ids[a]}-->{ids[b]}" for a, b in edges]
        text = "\n".join(lines)
        return f"```mermaid\n{text}\n```" if markdown else text

    def dot(self) -> str:
        """Return the graph in Graphviz's language."""
        lines = ["strict digraph {", *(f"{_quoted(node)};" for node in self.needs)]
        users = self.users()
        lines += [f"{_quoted(node)} -> {_quoted(user)};" for node in self.needs for user in users[node]]
        return "\n".join([*lines, "}", ""])

    def text(self) -> str:
        """Return the graph as a text tree: each node below one of its needs, the others named behind it."""
        blocks = [_tree(pipeline, self.needs) for pipeline in self.pipelines()]
        return "\n\n".join("\n".join(lines) for lines in blocks)


def _quoted(name: str) -> str:
    name = printable(name)
    if name.startswith('"') and name.endswith('"') and len(name) > 1 and '"' not in name[1:-1]:
        return name
    escaped = name.replace('"', '\\"')
    return f'"{escaped}"'


def _label(name: str) -> str:
    """Escape a name for Mermaid's quotes: no quote, no HTML, no entity of its own."""
    return printable(re.sub(r"#(?=\w+;)", "#35;", name)).replace('"', "#quot;").replace("<", "#lt;")


def _tree(pipeline: Iterable[str], needs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Put each node below its deepest need, so that all other needs are further up."""
    depth: dict[str, int] = {}
    # A record in a tag may hold a cycle, which would never end.
    begun: set[str] = set()
    for root in pipeline:
        stack = [root]
        while stack:
            node = stack[-1]
            waiting = [need for need in needs[node] if need not in depth and need not in begun]
            begun.add(node)
            if waiting:
                stack.extend(waiting)
                continue
            depth[node] = max((depth.get(need, 0) + 1 for need in needs[node]), default=0)
            stack.pop()
    below: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    roots = []
    for node in pipeline:
        if all(need == node for need in needs[node]):
            roots.append(node)
            continue
        above = max(needs[node], key=lambda need: depth[need])
        below.setdefault(above, []).append(node)
        others[node] = [need for need in needs[node] if need != above]
    lines: list[str] = []
    stack_: list[tuple[str, str, str]] = [(root, "", "") for root in reversed(roots)]
    while stack_:
        node, head, indent = stack_.pop()
        also = f"  ← {', '.join(map(printable, others[node]))}" if others.get(node) else ""
        lines.append(f"{head}{printable(node)}{also}")
        children = below.get(node, [])
        for i, child in reversed(list(enumerate(children))):
            last = i == len(children) - 1
            stack_.append((child, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  ")))
    return lines


def draw(
    repo: Repository,
    target: str | None = None,
    *,
    outs: bool = False,
    full: bool = False,
    collapse: bool = False,
    folder: str = "",
    snapshot: Snapshot | None = None,
) -> Drawing:
    """Return the graph of a repository's stages and tracked data.

    Args:
        repo: The repository.
        target: A stage, a `.dvc` file, a dvc.yaml, or an output, drawn with its needs; all if None.
        outs: Draw outputs as nodes instead of stages.
        full: Draw everything connected with the target.
        collapse: Draw one node for all stages of a ``foreach`` or ``matrix``.
        folder: Folder, relative to the root, that the names of nodes are relative to.
        snapshot: Stages of the workspace; read anew if None.

    Raises:
        StageNotFoundError: The target is none of these, or ``outs`` and ``collapse`` are both given.
        ParseError: A file does not follow its format.
        StageGraphError: The stages do not form a graph.

    Example:
        >>> print(draw(Repo.open("path/to/repository")).mermaid())
    """
    if outs and collapse:
        raise StageNotFoundError("`--outs` and `--collapse-foreach-matrix` are mutually exclusive")
    snapshot = snapshot or Snapshot(repo)
    graph = _Nodes(snapshot, folder)
    drawing = Drawing(graph.of_outputs() if outs else graph.of_stages())
    if target is not None:
        drawing = _around(drawing, graph.named(target, outs=outs), full=full)
    return _collapsed(drawing) if collapse else drawing


class _Nodes:
    """Nodes of a repository: its stages and `.dvc` files, and the outputs of both."""

    def __init__(self, snapshot: Snapshot, folder: str) -> None:
        self._folder = folder
        self._snapshot = snapshot
        stages = snapshot.graph.stages.values()
        plain = [output for output in snapshot.outputs.values() if output.stage is None]
        described = {output.source for output in plain}
        empty = [
            Output("", None, source=source)
            for source in snapshot.files.find()
            if source.endswith(".dvc") and source not in described
        ]
        items: list[Stage | Output] = [*stages, *plain, *empty]
        # A file's stages in its order; a folder's files before those of its subfolders.
        items.sort(key=_place)
        self._items = items
        self._writers: dict[str, str] = {}
        self._inside: dict[str, list[str]] = {}
        for item in items:
            for path in _outputs(item):
                self._writers[path] = self._name(item)
                folder = posixpath.dirname(path)
                while folder:
                    self._inside.setdefault(folder, []).append(path)
                    folder = posixpath.dirname(folder)

    def _name(self, item: Stage | Output) -> str:
        if isinstance(item, Output):
            return self._shown(item.source)
        file = self._shown(item.file)
        return item.name if file == PIPELINE_FILE else f"{file}:{item.name}"

    def _shown(self, path: str) -> str:
        return posixpath.relpath(path, self._folder or ".")

    def _read(self, item: Stage | Output) -> Iterator[str]:
        """Yield the outputs that equal, contain or lie inside a stage's dependencies."""
        if isinstance(item, Output):
            return
        for path in (
            *(dep.path for dep in item.deps if not dep.external),
            *map(item.params_path, item.params),
        ):
            above = path
            while above:
                if above in self._writers:
                    yield above
                above = posixpath.dirname(above)
            yield from self._inside.get(path, ()) if path else self._writers

    def of_stages(self) -> dict[str, tuple[str, ...]]:
        """Return the stages that each stage needs."""
        found: dict[str, tuple[str, ...]] = {}
        for item in self._items:
            needed = dict.fromkeys(self._writers[path] for path in self._read(item))
            found[self._name(item)] = tuple(dict.fromkeys((*found.get(self._name(item), ()), *needed)))
        return found

    def of_outputs(self) -> dict[str, tuple[str, ...]]:
        """Return the outputs that each output is made from."""
        needs: dict[str, dict[str, None]] = {}
        for item in self._items:
            read = dict.fromkeys(map(self._shown, self._read(item)))
            for path in _outputs(item):
                needs.setdefault(path, {}).update(read)
        order = _trie_order(needs)
        return {self._shown(path): tuple(needs[path]) for path in sorted(needs, key=order.__getitem__)}

    def named(self, target: str, *, outs: bool) -> list[str]:
        """Resolve a target to nodes."""
        graph = self._snapshot.graph
        plain = posixpath.normpath(target)
        around = next((path for path in _upwards(plain) if path in self._writers), None)
        try:
            stages = [graph.stages[address] for address in choose(self._snapshot.repo, graph, [target])]
        except StageNotFoundError:
            found = list(matching(list(self._snapshot.outputs.values()), plain))
            if not found and around is None:
                raise
            paths = [output.path for output in found] or [around or ""]
            return [self._shown(path) if outs else self._writers[path] for path in paths]
        if not outs:
            return [self._name(stage) for stage in stages]
        if around is not None:
            return [self._shown(around)]
        return [self._shown(out.path) for stage in stages for out in stage.outs]


def _outputs(item: Stage | Output) -> list[str]:
    if isinstance(item, Output):
        return [item.path] if item.path else []
    return [out.path for out in item.outs]


def _place(item: Stage | Output) -> tuple[list[str], str]:
    file = item.source if isinstance(item, Output) else item.file
    folder = posixpath.dirname(file)
    return folder.split("/") if folder else [], posixpath.basename(file)


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = posixpath.dirname(path)


def _trie_order(paths: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return sort keys in DVC's order of outputs: grouped by folder, folders by first appearance."""
    seen: dict[str, int] = {}
    return {
        path: tuple(seen.setdefault(above, len(seen)) for above in reversed(list(_upwards(path))))
        for path in paths
    }


def _around(drawing: Drawing, targets: Iterable[str], *, full: bool) -> Drawing:
    """Keep the needs of the targets; with ``full`` everything connected with them."""
    wanted: set[str] = set()
    users = drawing.users() if full else {}
    queue = list(targets)
    while queue:
        node = queue.pop()
        if node not in wanted:
            wanted.add(node)
            queue += [*drawing.needs[node], *users.get(node, ())]
    return Drawing({node: needed for node, needed in drawing.needs.items() if node in wanted})


def _collapsed(drawing: Drawing) -> Drawing:
    def group(node: str) -> str:
        return node if node.endswith(".dvc") else node.partition(_JOIN)[0]

    needs: dict[str, dict[str, None]] = {}
    for node, needed in drawing.needs.items():
        merged = needs.setdefault(group(node), {})
        merged.update(dict.fromkeys(name for name in map(group, needed) if name != group(node)))
    # As DVC: nodes that stand for several stages are last.
    plain = [name for name in needs if name in drawing.needs]
    return Drawing({name: tuple(needs[name]) for name in (*plain, *(n for n in needs if n not in plain))})
