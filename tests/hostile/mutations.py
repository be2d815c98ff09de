"""Made-up faults in the small files that describe a repository."""

from __future__ import annotations

import copy
import datetime
import io
import json
import random
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML

MD5 = "b026324c6904b2a9cb4b88d6d61c81d1"
TREE = f'[{{"md5": "{MD5}", "relpath": "a"}}, {{"md5": "{MD5}", "relpath": "b/c"}}]'

DOCUMENTS: dict[str, Any] = {
    "x.dvc": {"outs": [{"md5": MD5, "size": 2, "hash": "md5", "path": "x", "desc": "d", "labels": ["l"]}]},
    "i.dvc": {
        "md5": MD5, "frozen": True, "deps": [{"path": "a", "repo": {"url": "../other", "rev_lock": "1" * 40}}],
        "outs": [{"md5": MD5, "size": 2, "hash": "md5", "path": "i"}],
    },
    "u.dvc": {
        "md5": MD5, "frozen": True, "deps": [{"md5": MD5, "size": 2, "hash": "md5", "path": "../elsewhere"}],
        "outs": [{"md5": MD5, "size": 2, "hash": "md5", "path": "u"}],
    },
    "v.dvc": {
        "outs": [{
            "path": "v", "remote": "store", "hash": "md5",
            "files": [{"relpath": "a", "md5": MD5, "size": 2, "cloud": {"store": {"etag": "e123", "version_id": "1"}}}],
        }],
    },
    "dvc.yaml": {
        "vars": ["p.json", {"m": {"a": 1}}],
        "params": ["p.json"],
        "metrics": ["m.json"],
        "plots": ["c.csv", {"two": {"x": "step", "y": {"c.csv": ["loss"]}, "title": "t"}}],
        "artifacts": {"clf": {"path": "x", "type": "model", "desc": "d", "labels": ["l"], "meta": {"a": 1}}},
        "datasets": [{"name": "ds", "type": "url", "url": "s3://b/d"}],
        "stages": {
            "s": {
                "cmd": ["echo ${m.a} > o"], "deps": ["x"], "params": ["lr", {"p.json": ["a.0"]}, {"p.toml": ["t"]}],
                "outs": [{"o": {"cache": True, "persist": False, "desc": "d"}}], "wdir": ".", "desc": "d",
                "meta": {"a": 1}, "frozen": False, "always_changed": False,
            },
            "each": {"foreach": ["a", "b"], "do": {"cmd": "echo ${item} > e_${item}", "outs": ["e_${item}"]}},
            "grid": {
                "matrix": {"k": [1, 2], "l": ["x"]}, "cmd": "echo > g_${item.k}", "outs": ["g_${item.k}"],
                "metrics": [{"q_${item.k}.json": {"cache": False}}], "plots": [{"r_${item.k}.csv": {"x": "a"}}],
            },
        },
    },
    "dvc.lock": {
        "schema": "2.0",
        "stages": {
            "s": {
                "cmd": ["echo 1 > o"], "deps": [{"path": "x", "hash": "md5", "md5": MD5, "size": 2}],
                "params": {"params.yaml": {"lr": 0.1}, "p.json": {"a.0": 1}, "p.toml": {"t": 1}},
                "outs": [{"path": "o", "hash": "md5", "md5": MD5, "size": 2, "isexec": True}],
            },
        },
        "datasets": [{"name": "ds", "type": "url", "url": "s3://b/d", "meta": {"files": []}}],
    },
    "params.yaml": {"lr": 0.1, "net": {"layers": [1, 2], "name": "n"}, "flag": True, "none": None},
    "p.json": {"a": [1, 2], "b": {"c": "d"}},
    "m.json": {"loss": 0.5, "acc": [1, 2], "deep": {"x": 1}},
    ".gto": {"stages": ["dev", "prod"]},
    ".dvc/tmp/rwlock": {"write": {"/r/d": {"pid": 1, "cmd": "x"}}, "read": {"/r/e": [{"pid": 2, "cmd": "y"}]}},
}  # fmt: skip
TEXTS: dict[str, bytes] = {
    "p.toml": b"t = 1\n[n]\na = [1, 2]\n",
    "p.py": b"a = 1\nclass T:\n    b = [1, 2]\n    def __init__(self):\n        self.c = 'x'\n",
    "c.csv": b"step,loss\n0,1.0\n1,0.5\n",
    ".dvcignore": b"*.tmp\n!keep.tmp\n/d/**/e\n",
    ".dvc/config": b"[core]\n    remote = store\n['remote \"store\"']\n    url = ../../remote\n    jobs = 2\n",
    ".dvc/config.local": b"['remote \"store\"']\n    verify = true\n",
    "manifest": TREE.encode(),
}
ODD: list[Any] = [
    None, True, 0, -1, 10**18, 10**400, 0.5, float("nan"), float("inf"), "", " ", ".", "..", "/", "/etc/passwd", "../x",
    "a\0b", "é", "a\nb", "\u202e\x1b[2J".replace("\x1b", "\x85"), "²", "a.²", "9" * 5000, "-1", "${", "${}",
    "${a}", "${m}",
    "${m.a.b}", "${p}", "${item}", "x" * 300, "a/" * 3000 + "b", "%s", "{}", "~", "remote://store/x", "remote://b/x",
    "s3://a\0b", "http://[", "ssh://h:x/", "file:///x", "--option", "1" * 32, "1" * 31 + ".dir", MD5 + ".dir",
    MD5.upper(),
    [], {}, [[]], [{}], {"": None}, [None], {"a": {"b": {"c": []}}}, datetime.date(2001, 1, 1),
    datetime.datetime(2001, 1, 1, 1, 1), b"bytes", {1: 2}, {None: 1}, {"path": "x"}, ["x"], "dvc.yaml",
    ".dvc/config", ".git",
    {"a.b": 1}, [1, [2, [3]]], 1e300, "1e5", "yes", "*", "[", "a:b", "x@y", "#", "\\", "|", "NaN",
]  # fmt: skip


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _nodes(item, (*path, key))


def _changed(document: Any, source: random.Random) -> Any:
    """Return a document with one node replaced, removed, renamed or wrapped."""
    document = copy.deepcopy(document)
    path = source.choice(list(_nodes(document)))
    odd = copy.deepcopy(source.choice(ODD))
    if not path:
        return odd
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    last = path[-1]
    match source.randrange(6):
        case 0 if isinstance(parent, dict):
            value = parent.pop(last)
            parent[odd if not isinstance(odd, (dict, list)) else "k"] = value
        case 1:
            del parent[last]
        case 2:
            parent[last] = [parent[last]]
        case 3:
            parent[last] = {"a": parent[last]}
        case _:
            parent[last] = odd
    return document


def _dumped(name: str, document: Any) -> bytes:
    if name.endswith((".json", "rwlock")):
        return json.dumps(document, default=str, skipkeys=True).encode()
    stream = io.BytesIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 10**6
    yaml.dump(document, stream)
    return stream.getvalue()


def _broken(data: bytes, source: random.Random) -> bytes:
    """Return bytes with a fault that no document explains."""
    at = source.randrange(len(data) + 1)
    lines = data.split(b"\n")
    line = source.randrange(len(lines))
    match source.randrange(14):
        case 0:
            return b""
        case 1:
            return data[:at]
        case 2:
            return b"\xef\xbb\xbf" + data
        case 3:
            return data.replace(b"\n", b"\r\n")
        case 4:
            return data.decode(errors="replace").encode("utf-16")
        case 5:
            return data[:at] + b"\0" + data[at:]
        case 6:
            return data[:at] + b"\xff\xfe\x80" + data[at:]
        case 7:
            return b"\n".join([*lines[:line], lines[line], *lines[line:]])
        case 8:
            return b"\n".join(lines[:line] + lines[line + 1 :])
        case 9:
            return source.randbytes(200)
        case 10:
            return (
                data[:at]
                + source.choice([b"\t", b"&a ", b"*a ", b"!!set ", b"!!omap ", b"? ", b"- ", b"%", b"{"])
                + data[at:]
            )
        case 11:
            return data + b"\n" + data
        case 12:
            return b"\n".join([*lines[:line], b"    " + lines[line], *lines[line + 1 :]])
        case _:
            return (
                data[:at]
                + source.choice([b"[" * 5000, b"{a: " * 3000, b"9" * 5000, b"'", b'"', b"=", b"]"])
                + data[at:]
            )


def originals() -> dict[str, bytes]:
    """Return the files as they should be."""
    return {**{name: _dumped(name, document) for name, document in DOCUMENTS.items()}, **TEXTS}


def mutation(seed: int) -> tuple[str, bytes]:
    """Return the name of one file, and its bytes with a fault made up from a seed."""
    source = random.Random(seed)
    name = source.choice([*DOCUMENTS, *DOCUMENTS, *TEXTS, "dvc.yaml", "dvc.lock", "dvc.yaml"])
    if name in DOCUMENTS and source.random() < 0.8:
        document = DOCUMENTS[name]
        for _ in range(source.choice([1, 1, 1, 2, 3])):
            document = _changed(document, source) if isinstance(document, (dict, list)) else document
        try:
            return name, _dumped(name, document)
        except (ValueError, UnicodeError, AttributeError, TypeError, NotImplementedError):
            return name, _broken(originals()[name], source)
    return name, _broken(originals()[name], source)
