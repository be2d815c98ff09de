"""Expansion of ``foreach`` and ``matrix`` into stages, and of ``${…}`` in every other part of a dvc.yaml.

Source: DVC 3.x (``dvc/parsing/__init__.py``).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

from dvkf_prefect.formats.template.context import Context, Read
from dvkf_prefect.formats.template.interpolation import (
    Node,
    compile_value,
    fill,
    fill_nodes,
    is_interpolated,
    written,
)
from dvkf_prefect.formats.template.source import Place, SourceFile

JOIN = "@"
"""Separator between the group's name and the item's name in a stage's name."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One stage's definition with every ``${…}`` filled in.

    Attributes:
        name: Name of the stage.
        group: Name of its ``foreach`` or ``matrix`` definition; None for a stage outside a group.
        values: The definition's keys; without ``vars``, ``foreach``, ``do`` and ``matrix``.
        place: Place of the definition in the document.
        used: Values filled in from files: ``{file: {dotted key: value}}``.
    """

    name: str
    group: str | None
    values: Mapping[str, Any]
    place: Place
    used: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Resolver:
    """Resolver of the templates in one dvc.yaml.

    Args:
        source: The file.
        document: The parsed file, already validated.
        read: Function that returns a file's bytes by its path relative to the root; None if the file is missing.
        settings: Function that returns the settings ``parsing.bool`` and ``parsing.list``.

    Attributes:
        source: The file.
        folder: Folder of the file, relative to the root.
    """

    def __init__(
        self,
        source: SourceFile,
        document: Mapping[str, Any],
        read: Read,
        settings: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.source = source
        self._document = document
        self._read = read
        self._settings = settings
        self.folder = posixpath.dirname(source.path)

    @cached_property
    def context(self) -> Context:
        """Values visible to the whole file, read on first use."""
        context = Context(self.source, self._read, self._settings)
        context.load_default(self.folder)
        context.load(self._document.get("vars", []), self.folder, ("vars",))
        return context

    def check_vars(self) -> None:
        """Load the file's own ``vars``, to report errors in them even if nothing uses them.

        Raises:
            ParseError: They are invalid.
        """
        if "vars" in self._document:
            self.forbid_expressions(self._document["vars"], ("vars",))
            _ = self.context

    def section(self, name: str) -> Any:
        """Return one of the file's sections other than its stages, filled in; None if the file does not have it.

        Raises:
            ParseError: A value is missing, or cannot be used there.
        """
        if name not in self._document:
            return None
        return fill(compile_value(self._document[name], self.source, (name,)), _Lazy(self), None)

    def stages(self) -> Iterator[Instance]:
        """Yield every stage in file order.

        Raises:
            ParseError: A definition cannot be resolved.
        """
        for name, definition in self._document.get("stages", {}).items():
            place: Place = ("stages", name)
            if "matrix" in definition:
                rest = {key: value for key, value in definition.items() if key != "matrix"}
                yield from self._generate(name, self._matrix(name, definition["matrix"]), rest, place)
            elif "foreach" in definition:
                items = self._foreach(name, definition["foreach"])
                yield from self._generate(name, items, definition["do"], (*place, "do"))
            else:
                if JOIN in name:
                    raise self.source.wrong(
                        place,
                        f"the stage's name '{name}' contains '{JOIN}', which is reserved for the stages "
                        "of a group",
                    )
                yield _Template(self, definition, place).instance(name, None, {})

    def _generate(
        self,
        group: str,
        items: Iterator[tuple[str, dict[str, Any]]],
        definition: Mapping[str, Any],
        place: Place,
    ) -> Iterator[Instance]:
        # As in DVC, of several items with one name the last is used, at the position of the first.
        by_key = dict(items)
        template: _Template | None = None
        for key, bound in by_key.items():
            if not key or JOIN in key:
                said = f"has a '{JOIN}'" if key else "is empty"
                raise self.source.wrong(
                    place[:2],
                    f"the item '{key}' of '{group}' {said} and cannot be part of a stage's name. Use a "
                    "mapping of names to items.",
                )
            template = template or _Template(self, definition, place)
            yield template.instance(f"{group}{JOIN}{key}", group, bound)

    def _foreach(self, name: str, data: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        place: Place = ("stages", name, "foreach")
        compiled = compile_value(data, self.source, place)
        found = _children(fill_nodes(compiled, _Lazy(self)))
        if isinstance(found, (dict, list)):
            self.source.count_stages(len(found), ("stages", name))
        if isinstance(found, dict):
            for key, value in found.items():
                yield written(key), {"item": value, "key": written(key)}
        elif isinstance(found, list):
            composite = any(_is_composite(item) for item in found)
            for index, item in enumerate(found):
                yield (str(index) if composite else _name(item)), {"item": item}
        else:
            raise self.source.wrong(
                place, f"`foreach` of '{name}' is a list or a mapping, not {_plain(found)!r}"
            )

    def _matrix(self, name: str, data: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        place: Place = ("stages", name, "matrix")
        axes: dict[str, Any] = {}
        for key, value in fill_nodes(compile_value(data, self.source, place), _Lazy(self)).items():
            items = _children(value)
            if not isinstance(items, (list, dict, str)) or (
                isinstance(value, Node) and isinstance(items, str)
            ):
                raise self.source.wrong(
                    (*place, key), f"`{key}` of the matrix of '{name}' is a list, not {_plain(items)!r}"
                )
            axes[key] = list(items)
        self.source.count_stages(prod(map(len, axes.values())), ("stages", name))
        for combination in product(*(enumerate(items) for items in axes.values())):
            item = {key: value for key, (_, value) in zip(axes, combination, strict=True)}
            words = [
                f"{key}{i}" if _is_composite(value) else _name(value)
                for key, (i, value) in zip(axes, combination, strict=True)
            ]
            yield "-".join(words), {"key": "-".join(words), "item": item}

    def forbid_expressions(self, items: Any, place: Place) -> None:
        """Refuse ``${}`` in a ``vars`` section.

        Raises:
            ParseError: The section has one.
        """
        for index, item in enumerate(items):
            if is_interpolated(item):
                raise self.source.wrong((*place, index), "`vars` cannot contain `${}`. Write the value out.")


class _Lazy:
    """The file's context, loaded on first use: most files need none."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self.source = resolver.source

    def select(self, reference: Any) -> Node:
        return self._resolver.context.select(reference)

    @property
    def arguments(self) -> Mapping[str, str]:
        return self._resolver.context.arguments


class _Template:
    """A stage's definition, compiled."""

    def __init__(self, resolver: Resolver, definition: Mapping[str, Any], place: Place) -> None:
        self._resolver = resolver
        self.source = resolver.source
        self._place = place
        self._vars = definition.get("vars", [])
        resolver.forbid_expressions(self._vars, (*place, "vars"))
        self._keys: dict[str, Any] = {}
        for key, value in definition.items():
            if key != "vars":
                self._keys[key] = compile_value(value, self.source, (*place, key))
        self._fixed = {key: value for key, value in self._keys.items() if not hasattr(value, "fill")}

    def instance(self, name: str, group: str | None, bound: Mapping[str, Any]) -> Instance:
        if len(self._fixed) == len(self._keys) and not self._vars:
            return Instance(name, group, self._fixed, self._place)
        context = self._resolver.context.copy() if self._vars else self._resolver.context
        context.bind(bound, self._place[:2])
        try:
            if self._vars:
                context.load(self._vars, self._folder(context), (*self._place, "vars"))
            context.used = {}
            values = {
                key: value if key in self._fixed else value.fill(context, key)
                for key, value in self._keys.items()
            }
            return Instance(name, group, values, self._place, context.used)
        finally:
            context.bind({}, ())
            context.used = {}  # later selections do not belong to this stage

    def _folder(self, context: Context) -> str:
        """Return the base folder of the stage's `vars`: its working directory, resolved without them."""
        wdir = self._keys.get("wdir")
        folder = self._resolver.folder
        return posixpath.join(folder, written(fill(wdir, context, None))) if wdir else folder


def _children(value: Any) -> Any:
    """Return a node's value with its items as nodes; any other value unchanged."""
    if not isinstance(value, Node):
        return value
    path = value.path or ()
    if isinstance(value.value, dict):
        return {k: Node(v, (*path, k)) for k, v in value.value.items()}
    if isinstance(value.value, list):
        return [Node(v, (*path, str(i))) for i, v in enumerate(value.value)]
    return value.value


def _is_composite(value: Any) -> bool:
    # As in DVC, bytes are a sequence unless they come from the context.
    if isinstance(value, Node):
        return isinstance(value.value, (dict, list))
    return isinstance(value, (dict, list, bytes))


def _name(value: Any) -> str:
    # DVC writes true/false for values in the definition, and True/False for values from the context.
    return str(value.value) if isinstance(value, Node) else written(value)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Node) else value
