"""Schema of a dvc.yaml before its templates are filled in.

Source of the format: DVC 3.x (``dvc/schema.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dvkf_prefect.formats.template.source import Place, SourceFile, one_of

_Kinds = Mapping[str, tuple["type | tuple[type, ...]", str]]

_TOP_KEYS = ("stages", "params", "metrics", "plots", "artifacts", "datasets", "vars")
_ABOUT: _Kinds = {
    "desc": (str, "a string"),
    "type": (str, "a string"),
    "labels": (list, "a list of strings"),
    "meta": (object, "anything"),
}
_FLAGS: _Kinds = {
    "cache": (bool, "true or false"),
    "persist": (bool, "true or false"),
    "push": (bool, "true or false"),
    "remote": (str, "the name of a remote"),
    "checkpoint": (bool, "true or false"),
    **_ABOUT,
}
PLOT_KEYS = ("template", "x", "y", "x_label", "y_label", "title", "header")
"""Plot options of a stage's ``plots``."""
_PLOT_FLAGS: _Kinds = {
    **_FLAGS,
    **dict.fromkeys(PLOT_KEYS[:-1], (str, "a string")),
    "header": (bool, "true or false"),
}
OUT_KEYS: Mapping[str, _Kinds] = {"outs": _FLAGS, "metrics": _FLAGS, "plots": _PLOT_FLAGS}
"""Keys of a stage's outputs, each with its allowed options."""
_STAGE_KEYS: _Kinds = {
    "cmd": ((str, list), "a command, or a list of commands"),
    "wdir": (str, "a folder relative to the dvc.yaml"),
    "deps": (list, "a list of paths"),
    "params": (list, "a list of parameter names, or of {file: [names]}"),
    "outs": (list, "a list of paths, or of {path: {options}}"),
    "metrics": (list, "a list of paths, or of {path: {options}}"),
    "plots": (list, "a list of paths, or of {path: {options}}"),
    "frozen": (bool, "true or false"),
    "always_changed": (bool, "true or false"),
    "desc": (str, "a string"),
    "meta": (object, "anything"),
    "vars": (list, "a list of files and of mappings of values"),
    "matrix": (dict, "a mapping of names to lists"),
}
_AXES = "a column, or a mapping of files to columns"
_PLOT_DEFINITION: _Kinds = {
    "x": ((str, dict), _AXES),
    "y": ((str, list, dict), _AXES),
    **dict.fromkeys(("x_label", "y_label", "title", "template"), (str, "a string")),
}


def check_document(source: SourceFile, document: Any) -> dict[str, Any]:
    """Validate a dvc.yaml as far as possible before its values are known.

    Args:
        source: The file.
        document: The parsed YAML.

    Returns:
        The document.

    Raises:
        ParseError: It violates the format; the error names line, key and expected value.
    """
    if not document:
        return {}
    if not isinstance(document, dict):
        raise source.wrong((), f"a dvc.yaml is a mapping with {one_of(_TOP_KEYS)}")
    for key in document:
        if key not in _TOP_KEYS:
            raise source.wrong((key,), f"unknown key '{key}'; expected {one_of(_TOP_KEYS)}")
    check = _Check(source)
    for key in ("params", "metrics"):
        check.texts(document.get(key, []), (key,))
    for key in ("stages", "artifacts"):
        if not isinstance(document.get(key, {}), dict):
            raise source.wrong((key,), f"`{key}` is a mapping of names to definitions")
    for key in ("plots", "datasets"):
        if not isinstance(document.get(key, []), list):
            raise source.wrong((key,), f"`{key}` is a list")
    check.vars(document.get("vars", []), ("vars",))
    for name, definition in document.get("stages", {}).items():
        check.stage(name, definition, ("stages", name))
    for index, plot in enumerate(document.get("plots", [])):
        check.plot(plot, ("plots", index))
    for name, values in document.get("artifacts", {}).items():
        check.artifact(name, values, ("artifacts", name))
    return document


class _Check:
    """Validator of the parts of one file."""

    def __init__(self, source: SourceFile) -> None:
        self._wrong: Callable[[Place, str], Exception] = source.wrong

    def texts(self, value: Any, place: Place) -> None:
        if not isinstance(value, list):
            raise self._wrong(place, f"`{place[-1]}` is a list of strings")
        for i, item in enumerate(value):
            if not isinstance(item, str):
                raise self._wrong((*place, i), f"an item of `{place[-1]}` is a string, not {item!r}")

    def vars(self, value: Any, place: Place) -> None:
        if not isinstance(value, list):
            raise self._wrong(place, "`vars` is a list of files and of mappings of values")
        for i, item in enumerate(value):
            if not isinstance(item, (str, dict)):
                raise self._wrong((*place, i), f"an item of `vars` is a file or a mapping, not {item!r}")

    def keys(self, values: Mapping[Any, Any], known: _Kinds, place: Place, noun: str, owner: str) -> None:
        """Check a mapping's keys, and the kind of each value."""
        for key, value in values.items():
            kind = known.get(key)
            if kind is None:
                raise self._wrong(
                    (*place, key), f"unknown {noun} '{key}' of {owner}; expected {one_of(known)}"
                )
            if not isinstance(value, kind[0]):
                raise self._wrong((*place, key), f"`{key}` of {owner} is {kind[1]}, not {value!r}")
        if "labels" in values and "labels" in known:
            self.texts(values["labels"], (*place, "labels"))

    def stage(self, name: Any, definition: Any, place: Place) -> None:
        if not isinstance(name, str) or not name:
            raise self._wrong(place, f"a stage's name is a string, not {name!r}")
        if not isinstance(definition, dict):
            raise self._wrong(place, f"the stage '{name}' is a mapping with `cmd`")
        if "foreach" in definition or "do" in definition:
            self._foreach(name, definition, place)
            return
        self.keys(definition, _STAGE_KEYS, place, "key", f"stage '{name}'")
        if not definition.get("cmd"):
            raise self._wrong((*place, "cmd"), f"the stage '{name}' needs `cmd`, a command or a list of them")
        self.texts(definition.get("deps", []), (*place, "deps"))
        for i, item in enumerate(definition.get("params", [])):
            if not isinstance(item, (str, dict)):
                raise self._wrong(
                    (*place, "params", i),
                    f"an item of `params` is a name, or {{file: [names]}}, not {item!r}",
                )
        for key, flags in OUT_KEYS.items():
            for i, item in enumerate(definition.get(key, [])):
                self._out(key, item, flags, (*place, key, i))
        self.vars(definition.get("vars", []), (*place, "vars"))
        for key, value in definition.get("matrix", {}).items():
            if not isinstance(key, str) or not isinstance(value, (str, list)):
                raise self._wrong(
                    (*place, "matrix", key),
                    f"`{key}` of the matrix of '{name}' is a list, or `${{}}` for one",
                )

    def _foreach(self, name: str, definition: Mapping[Any, Any], place: Place) -> None:
        for key in definition:
            if key not in ("foreach", "do"):
                raise self._wrong(
                    (*place, key), f"'{key}' is beside `foreach` in stage '{name}'. Put it under `do`."
                )
        if not isinstance(definition.get("foreach"), (dict, list, str)):
            raise self._wrong(
                (*place, "foreach"),
                f"the stage '{name}' needs `foreach`, a list, a mapping or `${{}}` for one",
            )
        if not isinstance(definition.get("do"), dict):
            raise self._wrong((*place, "do"), f"the stage '{name}' needs `do`, a mapping with `cmd`")
        if {"foreach", "do"} & definition["do"].keys():
            raise self._wrong((*place, "do"), f"a `foreach` inside another in stage '{name}'. Use `matrix`.")
        self.stage(name, definition["do"], (*place, "do"))

    def _out(self, key: str, item: Any, flags: _Kinds, place: Place) -> None:
        if isinstance(item, str):
            return
        if not isinstance(item, dict) or not all(isinstance(name, str) for name in item):
            raise self._wrong(place, f"an item of `{key}` is a path, or {{path: {{options}}}}, not {item!r}")
        for name, options in item.items():
            if not isinstance(options, dict):
                raise self._wrong((*place, name), f"the options of '{name}' are a mapping, not {options!r}")
            self.keys(options, flags, (*place, name), "option", f"'{name}'")

    def plot(self, plot: Any, place: Place) -> None:
        if isinstance(plot, str):
            return
        if not isinstance(plot, dict) or not plot or not all(isinstance(name, str) for name in plot):
            raise self._wrong(place, f"an item of `plots` is a path, or {{name: {{options}}}}, not {plot!r}")
        for name, options in plot.items():
            here = (*place, name)
            if options is None:
                continue
            if not isinstance(options, dict):
                raise self._wrong(here, f"the options of '{name}' are a mapping, not {options!r}")
            self.keys(options, _PLOT_DEFINITION, here, "option", f"'{name}'")
            for axis in ("x", "y"):
                self._axis(options.get(axis, ""), axis, (*here, axis))

    def _axis(self, value: Any, axis: str, place: Place) -> None:
        def column(found: Any) -> bool:
            listed = axis == "y" and isinstance(found, list)
            return all(isinstance(item, str) for item in (found if listed else [found]))

        pairs = value.values() if isinstance(value, dict) else [value]
        names = value if isinstance(value, dict) else ()
        if not all(map(column, pairs)) or not all(isinstance(name, str) for name in names):
            raise self._wrong(place, f"`{axis}` is {_AXES}, not {value!r}")

    def artifact(self, name: Any, values: Any, place: Place) -> None:
        if not isinstance(name, str) or not isinstance(values, dict) or "path" not in values:
            raise self._wrong(place, f"the artifact '{name}' is a mapping with `path`")
        known: _Kinds = {"path": (str, "a string"), **_ABOUT}
        self.keys(values, known, place, "key", f"the artifact '{name}'")
