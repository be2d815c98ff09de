"""Schema of a `.dvc` file and of an entry in dvc.lock: keys and the kinds of their values.

Source of the format: DVC 3.x, dvc/schema.py. It refuses a `.dvc` file of DVC 0.x with `cmd` or `metric`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_HEX = frozenset("0123456789abcdef")
# Path of an invalid part in a document, and the expected value.
Wrong = tuple[list[str | int], str]
_Check = Callable[[Any], bool]


def _is(kind: type) -> _Check:
    return lambda value: type(value) is kind


def _is_checksum(value: Any) -> bool:
    return value is None or (type(value) in (str, int) and (value == "" or len(str(value)) > 2))


def _is_digest(value: Any) -> bool:
    if value is None or value == "":
        return True
    digest = str(value).lower().removesuffix(".dir")
    return type(value) in (str, int) and len(digest) == 32 and _HEX.issuperset(digest)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_TEXT = (_is(str), "a string")
_FLAG = (_is(bool), "true or false")
# Largest size of a file on any file system; arrays of sizes overflow beyond it.
MAX_SIZE = (1 << 63) - 1
_COUNT = (lambda value: type(value) is int and 0 <= value <= MAX_SIZE, "a whole number from 0 to 2^63 - 1")
_MAPPING = (_is(dict), "a mapping")
_ANY = (lambda value: True, "")
_SUM = (_is_checksum, "a checksum")
_MD5 = (_is_digest, "32 hexadecimal digits, followed by `.dir` for a directory")
_LIST = (lambda value: value is None or isinstance(value, list), "a list")

_Schema = Mapping[str, tuple[_Check, str]]
_META: _Schema = {
    "etag": _SUM, "checksum": _SUM, "size": _COUNT, "nfiles": _COUNT, "isexec": _FLAG, "version_id": _TEXT,
}  # fmt: skip
_TOP: _Schema = {
    "desc": _TEXT, "md5": _SUM, "frozen": _FLAG, "locked": _FLAG, "deps": _LIST, "outs": _LIST,
    "wdir": (lambda value: value is None or isinstance(value, str), "a folder relative to the .dvc file"),
    "always_changed": _FLAG, "meta": _ANY,
}  # fmt: skip
_CLOUD: _Schema = {**_META, "md5": _SUM}
_FILE: _Schema = {**_META, "md5": _SUM, "relpath": _TEXT, "cloud": _MAPPING}
_OUT: _Schema = {
    **_META, "md5": _MD5, "hash": (lambda value: value == "md5", "md5"), "path": _TEXT,
    "fs_config": _MAPPING, "desc": _TEXT, "type": _TEXT, "labels": (_is_texts, "a list of strings"), "meta": _ANY,
    "cache": _FLAG, "persist": _FLAG, "remote": _TEXT, "push": _FLAG, "files": _LIST, "cloud": _MAPPING,
}  # fmt: skip
_DEP: _Schema = {
    **_META, "md5": _SUM, "hash": _TEXT, "path": _TEXT, "persist": _FLAG, "cloud": _MAPPING, "fs_config": _MAPPING,
    "files": _LIST, "repo": _MAPPING, "db": _MAPPING,
}  # fmt: skip
_NAME_OR_OPTIONS = (lambda value: isinstance(value, (str, dict)), "a name, or a mapping of options")
_REPO: _Schema = {
    "url": _TEXT, "rev": _TEXT, "rev_lock": _TEXT, "config": _NAME_OR_OPTIONS, "remote": _NAME_OR_OPTIONS,
}  # fmt: skip


def find_wrong(document: Any) -> Wrong | None:
    """Return the first invalid part of a `.dvc` file.

    Args:
        document: The parsed file.

    Returns:
        Path of the part in the document, and the expected value; None if the document is valid.
    """
    if not isinstance(document, dict):
        return [], "a .dvc file is a mapping with `outs`"
    wrong = _unfit(document, _TOP, [], "a .dvc file")
    for name, schema, what in (("deps", _DEP, "a dependency"), ("outs", _OUT, "an output")):
        for index, entry in enumerate(document.get(name) or () if wrong is None else ()):
            wrong = wrong or _find_wrong_entry(entry, schema, [name, index], what)
    return wrong


def _find_wrong_entry(entry: Any, schema: _Schema, where: list[str | int], what: str) -> Wrong | None:
    if not isinstance(entry, dict) or not (entry.get("path") or (what == "a dependency" and "db" in entry)):
        return where, f"{what} is a mapping with `path`"
    wrong = _unfit(entry, schema, where, what) or _find_wrong_cloud(entry, where)
    if wrong is None and "repo" in entry:
        wrong = _unfit(entry["repo"], _REPO, [*where, "repo"], "`repo`")
        if wrong is None and "url" not in entry["repo"]:
            wrong = [*where, "repo"], "`repo` needs a `url`"
    seen: set[str] = set()
    for index, file in enumerate(entry.get("files") or () if wrong is None else ()):
        place = [*where, "files", index]
        if not isinstance(file, dict) or not isinstance(file.get("relpath"), str):
            return place, "a file is a mapping with `relpath`"
        wrong = _unfit(file, _FILE, place, "a file") or _find_wrong_cloud(file, place)
        if wrong is not None:
            return wrong
        parts = file["relpath"].split("/")
        if file["relpath"] in seen or "\0" in file["relpath"] or any(p in ("", ".", "..") for p in parts):
            return [*place, "relpath"], "`relpath` is a path inside the directory, listed once"
        seen.add(file["relpath"])
        if what == "an output" and not (file.get("md5") and _is_digest(file["md5"])):
            return place, "a file of an output has an `md5` of 32 hexadecimal digits"
    return wrong


def _find_wrong_cloud(entry: Mapping[str, Any], where: list[str | int]) -> Wrong | None:
    cloud = entry.get("cloud", {})
    if len(cloud) > 1:
        return [*where, "cloud"], "`cloud` names one remote"
    for remote, values in cloud.items():
        if not isinstance(remote, str) or not isinstance(values, dict):
            return [*where, "cloud", remote], "`cloud` is a mapping of a remote's name to its version"
        return _unfit(values, _CLOUD, [*where, "cloud", remote], "`cloud`")
    return None


def _unfit(values: Mapping[Any, Any], schema: _Schema, where: list[str | int], what: str) -> Wrong | None:
    for key, value in values.items():
        if key not in schema:
            return [*where, key], f"unknown key '{key}' in {what}; expected {', '.join(sorted(schema))}"
        fits, expected = schema[key]
        if not fits(value):
            return [*where, key], f"`{key}` is {expected}, not {value!r:.60}"
    return None
