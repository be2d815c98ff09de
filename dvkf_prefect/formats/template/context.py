"""Values available to ``${…}``: those of params.yaml, of ``vars``, and of the current item.

Source: DVC 3.x (``dvc/parsing/context.py``).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dvkf_prefect.errors import ParseError
from dvkf_prefect.formats.params import DEFAULT_FILE, load_values
from dvkf_prefect.formats.template.interpolation import Node, Reference
from dvkf_prefect.formats.template.source import Place, SourceFile, one_of

_PLAIN = (int, float, str, bytes, bool)
_Path = tuple[str, ...]
Read = Callable[[str], "bytes | None"]


class Context:
    """Values visible to one dvc.yaml, or to one of its stages.

    Args:
        source: The dvc.yaml.
        read: Function that returns a file's bytes by its path relative to the root; None if the file is missing.
        settings: Function that returns the settings ``parsing.bool`` and ``parsing.list``.

    Attributes:
        used: Values selected from files since the last reset: ``{file: {dotted key: value}}``.
    """

    def __init__(self, source: SourceFile, read: Read, settings: Callable[[], Mapping[str, str]]) -> None:
        self.source = source
        self.used: dict[str, dict[str, Any]] = {}
        self._read = read
        self._settings = settings
        self._values: dict[str, Any] = {}
        self._origins: dict[_Path, tuple[str, bool]] = {}
        self._imports: dict[str, list[str] | None] = {}
        self._bound: dict[str, Any] = {}
        self._aliases: dict[_Path, _Path] = {}

    @property
    def arguments(self) -> Mapping[str, str]:
        """Settings that control how mappings become arguments."""
        return self._settings()

    def copy(self) -> Context:
        """Return a copy that can load more values without changing this context."""
        made = Context(self.source, self._read, self._settings)
        made._values, made._origins = self._values, dict(self._origins)
        made._imports = {path: keys and list(keys) for path, keys in self._imports.items()}
        made._bound, made._aliases = self._bound, self._aliases
        return made

    # -- loading ---------------------------------------------------------------------------------------------------

    def load_default(self, folder: str) -> None:
        """Load the params.yaml of a folder, if there is one.

        Raises:
            ParseError: It does not parse, or holds an unusable value.
        """
        path = posixpath.normpath(posixpath.join(folder, DEFAULT_FILE))
        data = self._read(path)
        if data is not None:
            self._take_file(path, data, None, ())
            self._imports[path] = None

    def load(self, items: Sequence[Any], folder: str, place: Place) -> None:
        """Load a ``vars`` section.

        Args:
            items: Mappings, and files in the form ``path`` or ``path:key,key``.
            folder: Base folder of the files' paths, itself relative to the root.
            place: Place of the section in the document.

        Raises:
            ParseError: A file is missing or does not parse, or a value is given twice.
            UnsafePathError: A file lies outside the repository.
        """
        for index, item in enumerate(items):
            here = (*place, index)
            if isinstance(item, str):
                self._load_file(item, folder, here)
            else:
                self._take(self._clean(item, here, ()), f"vars[{index}]", here, is_file=False)

    def _load_file(self, item: str, folder: str, place: Place) -> None:
        name, _, listed = item.partition(":")
        keys = [key for key in listed.split(",") if key] or None
        path = posixpath.normpath(posixpath.join(folder, name))
        if path.startswith(("/", "../")) or path == "..":
            raise self.source.outside(place, name)
        if path in self._imports:
            loaded = self._imports[path]
            if keys is None and loaded is None:
                return
            if loaded is None:
                raise self.source.wrong(
                    place, f"`{item}`: all of {path} is loaded already. Remove this line."
                )
            if keys is None or set(keys) & set(loaded):
                raise self.source.wrong(
                    place, f"`{item}`: {', '.join(loaded)} of {path} is loaded already. Name other keys."
                )
        data = self._read(path)
        if data is None:
            raise self.source.wrong(
                place, f"the file {path} does not exist; `vars` is a list of files and of mappings of values"
            )
        self._take_file(path, data, keys, place)
        self._imports[path] = [*(self._imports.get(path) or ()), *keys] if keys else None

    def _take_file(self, path: str, data: bytes, keys: list[str] | None, place: Place) -> None:
        values = load_values(data, path)
        if keys is not None:
            for key in keys:
                if key not in values:
                    raise self.source.wrong(
                        place, f"unknown key '{key}' at the top of {path}; expected {one_of(values)}"
                    )
            values = {key: values[key] for key in keys}
        self._take(self._clean(values, place, (), file=path), path, place, is_file=True)

    def _take(self, values: dict[str, Any], origin: str, place: Place, *, is_file: bool) -> None:
        reserved = [name for name in self._bound if name in values]
        if reserved:
            raise self.source.wrong(
                place, f"{one_of(reserved)} is set by `foreach` or `matrix` and cannot be set by `vars`"
            )
        self._values = self._merged(self._values, values, (), (origin, is_file), place)

    def _merged(
        self, into: dict[str, Any], more: dict[str, Any], path: _Path, origin: tuple[str, bool], place: Place
    ) -> dict[str, Any]:
        # A new mapping: a context that this one was copied from may use the old one.
        made = dict(into)
        for key, value in more.items():
            here = (*path, key)
            if key not in into:
                made[key] = value
                self._origins[here] = origin
            elif isinstance(into[key], dict) and isinstance(value, dict):
                made[key] = self._merged(into[key], value, here, origin, place)
            else:
                first = self._origin(here)
                raise self.source.wrong(
                    place,
                    f"cannot set '{'.'.join(here)}' from {origin[0]}: {first[0] if first else 'another'} "
                    "sets it already. Keep one of them.",
                )
        return made

    def _clean(self, value: Any, place: Place, path: _Path, *, file: str | None = None) -> Any:
        """Return a value in the form that references use: keys that are not texts are dropped."""
        if value is None or isinstance(value, _PLAIN):
            return value
        if isinstance(value, dict):
            return {
                k: self._clean(v, place, (*path, k), file=file)
                for k, v in value.items()
                if isinstance(k, str)
            }
        if isinstance(value, list):
            return [self._clean(v, place, (*path, str(i)), file=file) for i, v in enumerate(value)]
        expected = (
            f"'{'.'.join(path)}' is a {type(value).__name__}, which a template cannot use. Write it as a "
            "string, number, list or mapping."
        )
        raise ParseError(file, expected) if file else self.source.wrong(place, expected)

    # -- the current item of `foreach` and `matrix` ----------------------------------------------------------------

    def bind(self, values: Mapping[str, Any], place: Place) -> None:
        """Bind ``item`` and ``key`` to these values, over any other values of these names.

        Args:
            values: Values by name, with a `Node` in them for values from the context.
            place: Place of the values in the document.
        """
        self._aliases = {}
        bound = {name: self._unwrapped(value, (name,)) for name, value in values.items()}
        self._bound = {name: self._clean(value, place, (name,)) for name, value in bound.items()}

    def _unwrapped(self, value: Any, path: _Path) -> Any:
        if isinstance(value, Node):
            if value.path is not None:
                self._aliases[path] = value.path
            return value.value
        if isinstance(value, dict):
            return {k: self._unwrapped(v, (*path, str(k))) for k, v in value.items()}
        if isinstance(value, list):
            return [self._unwrapped(v, (*path, str(i))) for i, v in enumerate(value)]
        return value

    # -- lookup ----------------------------------------------------------------------------------------------------

    def select(self, reference: Reference) -> Node:
        """Return the value of a reference, and record it in ``used`` if it comes from a file.

        Raises:
            ParseError: There is no such value; the error lists the available names.
        """
        first = reference.path[0]
        node: Any = self._bound if first in self._bound else self._values
        path: list[str] = []
        for word in reference.path:
            try:
                if isinstance(node, dict):
                    node = node[word]
                elif isinstance(node, list):
                    index = int(word)
                    node = node[index]
                    word = str(index if index >= 0 else index + len(self._walk(path)))
                else:
                    raise LookupError
            except (LookupError, ValueError):
                raise self._missing(reference, path, node, word) from None
            path.append(word)
        where = self._canonical(tuple(path))
        if where is not None and not isinstance(node, dict):
            origin = self._origin(where)
            if origin and origin[1]:
                self.used.setdefault(origin[0], {})[".".join(where)] = node
        return Node(node, where)

    def _walk(self, path: Sequence[str]) -> Any:
        node: Any = self._bound if path and path[0] in self._bound else self._values
        for word in path:
            node = node[int(word)] if isinstance(node, list) else node[word]
        return node

    def _canonical(self, path: _Path) -> _Path | None:
        """Return the path of a value in the loaded values; None for one from the definition itself."""
        if path[0] not in self._bound:
            return path
        for i in range(len(path), 0, -1):
            alias = self._aliases.get(path[:i])
            if alias is not None:
                return alias + path[i:]
        return None

    def _origin(self, path: _Path) -> tuple[str, bool] | None:
        for i in range(len(path), 0, -1):
            origin = self._origins.get(path[:i])
            if origin is not None:
                return origin
        return None

    def _missing(self, reference: Reference, path: Sequence[str], node: Any, word: str) -> ParseError:
        name = ".".join(path)
        if isinstance(node, dict):
            known = [*self._bound, *(k for k in node if k not in self._bound)] if not path else list(node)
            origin = self._origin(tuple(path)) if path else None
            where = f" in '{name}'" if path else ""
            where += f" of {origin[0]}" if origin else "" if path else " in params.yaml or `vars`"
            expected = f"unknown name '{word}'{where}; expected {one_of(known)}"
        elif isinstance(node, list):
            count = f"0 to {len(node) - 1}" if node else "nothing, it is empty"
            expected = f"no item '{word}' in the list '{name}'; expected {count}"
        else:
            expected = f"'{name}' is {node!r}, which has no '{word}'; expected a mapping or a list"
        return self.source.wrong(reference.place, f"`{reference.text}`: {expected}")
