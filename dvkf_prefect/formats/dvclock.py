"""Records in dvc.lock of each stage's last inputs and outputs, byte for byte as DVC writes them.

Source of the format: DVC 3.x (``dvc/stage/serialize.py``), schema 2.0.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import ParseError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile_schema import MAX_SIZE
from dvkf_prefect.formats.files import RepoFiles
from dvkf_prefect.formats.objects import LEGACY, MD5, Content
from dvkf_prefect.formats.params import DEFAULT_FILE

Item = dict[str, Any]
Entry = dict[str, Any]
_HEAD = "schema: '2.0'\nstages:\n"
_BLOCK = re.compile(r"^  ([^ \n].*)$", re.MULTILINE)
# Lines that DVC would write back unchanged. Other lines may be stable too, but only parsing can show it.
_WORD = (
    r"(?!(?i:true|false|null|yes|no|on|off|y|n|\.inf|\.nan)[:\n ])(?:[A-Za-z/]|\.[A-Za-z/.])[\w./=@%+,~-]*"
)
_NUMBER = r"(?=[-0-9.]{1,15}\n)-?(?:0|[1-9][0-9]*)(?:\.0|\.[0-9]*[1-9])?"
_VALUE = rf"(?:{_WORD}|{_NUMBER}|true|false)"
_MD5 = r"(?=[0-9]*[a-f])(?![0-9]+e[0-9]+\b)[0-9a-f]{32}(?:\.dir)?"
_SURE = (
    r"schema: '2\.0'\nstages:\n(?:(?![^\n]{81})(?:"
    rf"  [A-Za-z_][\w@-]*:\n|    (?:deps|outs|params):\n|    cmd: {_WORD}(?: [!-\"$-~][!-~]*(?<!:))*\n"
    rf"|    - path: {_WORD}\n|      (?:hash: md5|md5: {_MD5}|(?:size|nfiles): (?:0|[1-9][0-9]*)|isexec: true)\n"
    rf"|      {_WORD}:\n|        {_WORD}: {_VALUE}\n"
    r"))*"
)
_PLAIN = re.compile(r"[A-Za-z_][\w@-]*")
_TOP = ("schema", "datasets", "stages")
_KEYS = ("cmd", "deps", "params", "outs")
_ITEM = frozenset(
    {
        "path",
        "hash",
        "md5",
        "etag",
        "checksum",
        "size",
        "nfiles",
        "isexec",
        "version_id",
        "cloud",
        "files",
        "dataset",
    }
)
_ANCHOR = re.compile(r"[&*]id\d+\b")


def lock_file(path: str) -> str:
    """Return the dvc.lock that belongs to a dvc.yaml."""
    return posixpath.splitext(path)[0] + ".lock"


def read_lock(files: RepoFiles, path: str) -> dict[str, Entry]:
    """Read the stages of a dvc.lock; empty if the file does not exist. Do not modify the result.

    Args:
        files: The revision to read from.
        path: The dvc.lock, relative to the root.

    Raises:
        ParseError: It violates the format; the error names the line.
    """
    try:
        data = files.read(path)
    except FileNotFoundError:
        return {}
    return _parse(data, path)


@lru_cache(maxsize=64)
def _parse(data: bytes, path: str) -> dict[str, Entry]:
    document = documents.load(data, path)

    def wrong(place: Sequence[str | int], expected: str) -> ParseError:
        return ParseError(path, expected, line=documents.line_of(data, place) or 1)

    if not isinstance(document, dict) or document.get("schema") != "2.0":
        raise wrong(["schema"], "a dvc.lock begins with `schema: '2.0'`. Remove it and run `dvkf repro`.")
    for key in document:
        if key not in _TOP:
            raise wrong([key], f"unknown key '{key}' in dvc.lock; expected {', '.join(_TOP)}")
    stages = document.get("stages", {})
    if not isinstance(stages, dict):
        raise wrong(["stages"], "`stages` is a mapping of stage names to entries")
    for name, entry in stages.items():
        if not isinstance(name, str):
            raise wrong(["stages", name], f"a stage's name is a string, not {name!r}")
        if found := find_wrong(entry):
            raise wrong(["stages", name, *found[0]], found[1])
    return stages


def find_wrong(entry: Any) -> tuple[list[str | int], str] | None:
    """Return the first invalid part of an entry.

    Args:
        entry: Entry of a stage in dvc.lock or in the run cache.

    Returns:
        Path of the part in the entry, and the expected value; None if the entry is valid.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("cmd"), (str, list)):
        return [], "the entry of a stage is a mapping with `cmd`"
    for key in entry:
        if key not in _KEYS:
            return [key], f"unknown key '{key}' in the entry of a stage; expected {', '.join(_KEYS)}"
    for key in ("deps", "outs"):
        items = entry.get(key, [])
        if not isinstance(items, list):
            return [key], f"`{key}` is a list of {{path, hash, md5}}"
        for i, item in enumerate(items):
            if not isinstance(item, dict) or not isinstance(item.get("path"), str):
                return [key, i], f"an item of `{key}` is a mapping with `path`"
            unknown = item.keys() - _ITEM
            if unknown:
                name = min(map(str, unknown))
                return [key, i], f"unknown key '{name}' in `{key}`; expected {', '.join(sorted(_ITEM))}"
            md5 = item.get("md5")
            if md5 is not None and not (
                isinstance(md5, str)
                and len(md5.removesuffix(".dir")) == 32
                and md5[:32].isalnum()
                and md5.isascii()
            ):
                return [key, i, "md5"], "`md5` is 32 hexadecimal digits"
            for count in ("size", "nfiles"):
                number = item.get(count)
                if number is not None and not (type(number) is int and 0 <= number <= MAX_SIZE):
                    return [key, i, count], f"`{count}` is a whole number from 0 to 2^63 - 1"
    params = entry.get("params", {})
    if not isinstance(params, dict) or not all(
        isinstance(file, str) and isinstance(values, dict) for file, values in params.items()
    ):
        return ["params"], "`params` is a mapping of files to their values"
    return None


def item_of(name: str, content: Content) -> Item:
    """Return a dependency or output in the form of an entry.

    Args:
        name: The path in its dvc.yaml spelling.
        content: The content; without ``hash`` if DVC 2.x recorded it.
    """
    item: Item = {"path": name}
    if content.hash_name == MD5:
        item["hash"] = MD5
    item.update(md5=content.digest, size=content.size or 0)
    if content.nfiles is not None:
        item["nfiles"] = content.nfiles
    if content.isexec:
        item["isexec"] = True
    return item


def content_of(item: Mapping[str, Any]) -> Content:
    """Return the content recorded for an entry's dependency or output; the reverse of `item_of`."""
    return Content(
        item["md5"],
        item.get("size"),
        item.get("nfiles"),
        bool(item.get("isexec", False)),
        MD5 if item.get("hash") == MD5 else LEGACY,
    )


def make_entry(
    command: str | Sequence[str],
    deps: Sequence[Item],
    params: Mapping[str, Mapping[str, Any]],
    outs: Sequence[Item],
) -> Entry:
    """Return a stage's entry, ordered as DVC does.

    Args:
        command: The stage's command or commands.
        deps: Dependencies that the stage read.
        params: Parameters that the stage read, by file in its dvc.yaml spelling.
        outs: Outputs that the stage wrote.
    """
    entry: Entry = {"cmd": command if isinstance(command, str) else list(command)}
    if deps:
        entry["deps"] = sorted(deps, key=lambda item: item["path"])
    if params:
        files = sorted(params, key=lambda file: (file != DEFAULT_FILE, file))
        entry["params"] = {file: {key: params[file][key] for key in sorted(params[file])} for file in files}
    if outs:
        entry["outs"] = sorted(outs, key=lambda item: item["path"])
    return entry


def write_entry(path: Path, name: str, entry: Entry, *, before: Container[str] = ()) -> None:
    """Put one stage's entry into a dvc.lock, atomically.

    Args:
        path: The dvc.lock; created if missing.
        name: The stage's name.
        entry: Result of `make_entry`.
        before: Stages that a new entry precedes. It goes in front of the first one in the file, else to the end.

    Raises:
        ParseError: The file is not YAML.
        DiskFullError: The disk is full; the old file is unchanged.
    """
    old = read_description(path) if path.exists() else b""
    new = put_entry(old, name, entry, before=before, file=path.name)
    if new != old:
        write_atomic(path, new)


def put_entry(
    old: bytes, name: str, entry: Entry, *, before: Container[str] = (), file: str = "dvc.lock"
) -> bytes:
    """Return a dvc.lock's bytes with one stage's entry put in; see `write_entry`."""
    text = old.decode()
    spliced = _splice(text, name, entry, before)
    if spliced is None:
        return _rewrite(old, name, entry, before, file)
    if not old or _sure().fullmatch(text) or all(map(_is_stable, _blocks(text))):
        return spliced
    # DVC rewrites the whole file: it folds long texts and drops unneeded quotes.
    return _rewrite(old, name, entry, before, file)


@cache
def _sure() -> re.Pattern[str]:
    """Return the pattern of files that DVC would write back unchanged; compiling it takes a millisecond."""
    return re.compile(_SURE, re.ASCII)


def _blocks(text: str) -> Iterator[str]:
    """Yield the text of each stage's entry."""
    starts = [found.start() for found in _BLOCK.finditer(text, len(_HEAD))]
    return (text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True))


@lru_cache(maxsize=1 << 12)
def _is_stable(block: str) -> bool:
    """Return True if DVC would write an entry back unchanged."""
    text = _HEAD + block
    if _sure().fullmatch(text):
        return True
    data = text.encode()
    return documents.dump(documents.load_editable(data, "dvc.lock")) == data


def _rewrite(old: bytes, name: str, entry: Entry, before: Container[str], file: str) -> bytes:
    """Parse and write the whole file, as DVC does, keeping comments."""
    document: Any = (
        documents.load_editable(old, file) if old and documents.load(old, file) else {"schema": "2.0"}
    )
    stages = document.setdefault("stages", {})
    follower = next((other for other in stages if other in before), None)
    if name in stages or follower is None or not hasattr(stages, "insert"):
        stages[name] = entry
    else:
        stages.insert(list(stages).index(follower), name, entry)
    return documents.dump(document)


def _splice(old: str, name: str, entry: Entry, before: Container[str]) -> bytes | None:
    """Insert the entry's text into a file that DVC or dvkf wrote, without parsing the rest.

    Rewriting a file of hundreds of stages after each stage would take longer than many a stage. Returns None if the
    file or the entry needs a full rewrite.
    """
    if old and (not old.startswith(_HEAD) or not old.endswith("\n")):
        return None
    written = documents.dump({"schema": "2.0", "stages": {name: entry}})
    if _has_anchor(old) or _has_anchor(written.decode()) or "#" in old:
        return None
    # A name of more than 128 letters is written as `? name` and a line that begins with a colon.
    if "\n  ? " in old or b"\n  ? " in written:
        return None
    # A value must survive a second write unchanged, or DVC's file would differ from ours.
    if documents.dump(documents.load_editable(written, name)) != written:
        return None
    if not old:
        return written
    block = written.decode().removeprefix(_HEAD)
    if not _BLOCK.match(old, len(_HEAD)):
        return None
    head = block[: block.index("\n") + 1]
    start = old.find("\n" + head, len(_HEAD) - 1) + 1
    if start:
        found = _BLOCK.search(old, start + 1)
        end = found.start() if found else len(old)
    else:
        follower = (found for found in _BLOCK.finditer(old, len(_HEAD)) if _name(found[1]) in before)
        start = end = next((found.start() for found in follower), len(old))
    return f"{old[:start]}{block}{old[end:]}".encode()


def _has_anchor(text: str) -> bool:
    return ("&id" in text or "*id" in text) and _ANCHOR.search(text) is not None


@lru_cache(maxsize=1 << 16)
def _name(head: str) -> str:
    """Return the stage name in the first line of a block."""
    plain = head.removesuffix(":")
    if _PLAIN.fullmatch(plain):
        return plain
    (name,) = documents.load(head.encode(), "dvc.lock")
    return str(name)
