"""Old and odd `.dvc` files and dvc.lock files of public projects, each a project of its own."""

from __future__ import annotations

# ruff: noqa: E501
ONE = "b026324c6904b2a9cb4b88d6d61c81d1"  # the md5 of "1\n"
_OUT = f"outs:\n- md5: {ONE}\n  path: x\n"
_COPY = "stages:\n  s:\n    cmd: cp in.txt o\n    deps: [in.txt]\n    outs: [o]\n"
_RAN = (
    f"stages:\n  s:\n    cmd: cp in.txt o\n    deps:\n    - path: in.txt\n      md5: {ONE}\n      size: 2\n"
    f"    outs:\n    - path: o\n      md5: {ONE}\n      size: 2\n"
)
_DATES = "d: 2020-01-02\nt: 2020-01-02 03:04:05\nn: 1\n"
_IMPORT = f"deps:\n- md5: {ONE}\n  path: in.txt\n{_OUT}"


def _reads(params: str) -> str:
    return f"stages:\n  s:\n    cmd: echo > o\n    params:\n{params}    outs: [o]\n"


FILES: dict[str, dict[str, str]] = {
    "two files of one path": {"x.dvc": _OUT, "y.dvc": _OUT, "x": "1\n"},
    "file and stage of one path": {"o.dvc": _OUT.replace(": x", ": o"), "dvc.yaml": _COPY, "o": "1\n"},
    "two stages of one path": {"dvc.yaml": _COPY + "  t:\n    cmd: echo > o\n    outs: [o]\n"},
    "one path twice in a stage": {"dvc.yaml": "stages:\n  s:\n    cmd: echo > o\n    outs: [o, ./o]\n"},
    "circle": {"dvc.yaml": "stages:\n  s:\n    cmd: cp b a\n    deps: [b]\n    outs: [a]\n  t:\n    cmd: cp a b\n    deps: [a]\n    outs: [b]\n"},
    "stage that reads what it writes": {"dvc.yaml": "stages:\n  s:\n    cmd: cp a a\n    deps: [a]\n    outs: [a]\n"},
    "wdir at the top": {"f/x.dvc": f"md5: {ONE}\nwdir: ..\n{_OUT}  cache: true\n  persist: false\n", "x": "1\n"},
    "metric of an old version": {"x.dvc": _OUT + "  cache: true\n  metric: false\n", "x": "1\n"},
    "metric with a type": {"x.dvc": _OUT + "  metric:\n    type: json\n", "x": "1\n"},
    "plot": {"x.dvc": _OUT + "  plot: true\n", "x": "1\n"},
    "command": {"x.dvc": f"md5: {ONE}\ncmd: cp in.txt x\n{_IMPORT}", "x": "1\n"},
    "command without outs": {"r.dvc": "cmd: 'true'\ndeps:\n- path: in.txt\n"},
    "params": {"x.dvc": f"params:\n- a\n{_OUT}", "x": "1\n"},
    "always changed": {"x.dvc": f"always_changed: true\n{_OUT}", "x": "1\n"},
    "locked": {"x.dvc": f"locked: true\n{_OUT}", "x": "1\n"},
    "unnamed remote": {"x.dvc": _OUT + "  remote: nope\n", "x": "1\n"},
    "unnamed remote of a stage": {"dvc.yaml": "stages:\n  s:\n    cmd: echo > o\n    outs:\n    - o:\n        remote: nope\n"},
    "dates in a whole file": {"dvc.yaml": _reads("    - p.yaml:\n"), "p.yaml": _DATES},
    "date by its key": {"dvc.yaml": _reads("    - p.yaml:\n      - d\n"), "p.yaml": _DATES},
    "date beside a key": {"dvc.yaml": _reads("    - p.yaml:\n      - n\n"), "p.yaml": _DATES},
    "date of TOML": {"dvc.yaml": _reads("    - p.toml:\n"), "p.toml": "d = 2020-01-02\n"},
    "date in a template": {"dvc.yaml": "vars: [p.yaml]\nstages:\n  s:\n    cmd: echo ${d} > o\n    outs: [o]\n", "p.yaml": _DATES},
    "set": {"dvc.yaml": _reads("    - p.yaml:\n"), "p.yaml": "d: !!set {a, b}\n"},
    "data left out": {"x.dvc": _OUT, "x": "1\n", ".dvcignore": "x\n"},
    "output left out": {"dvc.yaml": _COPY, "dvc.lock": "schema: '2.0'\n" + _RAN, "o": "1\n", ".dvcignore": "o\n"},
    "folder left out": {"d.dvc": "outs:\n- path: d\n", "d/a": "1\n", ".dvcignore": "d/\n"},
    "upper-case digest": {"x.dvc": _OUT.replace(ONE, ONE.upper()), "x": "1\n"},
    "digest that is a number": {"x.dvc": _OUT.replace(ONE, "12345678901234567890123456789012"), "x": "1\n"},
    "digest of HDFS": {"x.dvc": _OUT.replace("md5", "checksum"), "x": "1\n"},
    "digest of null": {"x.dvc": "outs:\n- md5:\n  path: x\n", "x": "1\n"},
    "wrong size": {"x.dvc": _OUT + "  size: 3\n  hash: md5\n", "x": "1\n"},
    "manifest that is nowhere": {"d.dvc": f"outs:\n- md5: {ONE}.dir\n  path: d\n", "d/a": "1\n"},
    "dots and slashes": {"d.dvc": "outs:\n- path: ./d/\n", "d/a": "1\n"},
    "no path": {"x.dvc": f"outs:\n- md5: {ONE}\n", "x": "1\n"},
    "out that is a text": {"x.dvc": "outs:\n- x\n", "x": "1\n"},
    "empty outs": {"x.dvc": "outs: []\n"},
    "outs of null": {"x.dvc": "outs:\n"},
    "empty file": {"x.dvc": ""},
    "braces": {"x.dvc": "{}\n"},
    "JSON": {"x.dvc": f'{{"outs": [{{"md5": "{ONE}", "path": "x"}}]}}\n', "x": "1\n"},
    "dependencies alone": {"x.dvc": f"deps:\n- md5: {ONE}\n  path: in.txt\n"},
    "old and new outs": {"x.dvc": _OUT + f"- md5: {ONE}\n  hash: md5\n  path: y\n", "x": "1\n", "y": "2\n"},
    "import": {"x.dvc": f"md5: {ONE}\nfrozen: true\n{_IMPORT}", "x": "1\n"},
    "import that changed": {"x.dvc": f"md5: {ONE}\nfrozen: true\n{_IMPORT}", "x": "5\n", "in.txt": "7\n"},
    "import that follows": {"x.dvc": f"md5: {ONE}\n{_IMPORT}", "x": "5\n", "in.txt": "7\n"},
    "import without digests": {"x.dvc": "frozen: true\ndeps:\n- path: in.txt\nouts:\n- path: x\n", "x": "5\n"},
    "import of nothing": {"x.dvc": "frozen: true\n" + _IMPORT.replace("in.txt", "gone"), "x": "5\n"},
    "import of a dead url": {"x.dvc": "frozen: true\n" + _IMPORT.replace("in.txt", "http://127.0.0.1:9/x"), "x": "5\n"},
    "import of two": {"x.dvc": f"frozen: true\ndeps:\n- md5: {ONE}\n  path: in.txt\n- md5: {ONE}\n  path: params.yaml\n{_OUT}", "x": "1\n"},
    "windows line ends in data": {"x.dvc": _OUT, "x": "1\r\n"},
    "old folder": {"d.dvc": "outs:\n- md5: 978ca45691cd12e610fb0788867f8252.dir\n  path: d\n", "d/a": "1\n"},
}  # fmt: skip

LOCKS: dict[str, dict[str, str]] = {
    name: {"dvc.yaml": _COPY, "o": "1\n", "dvc.lock": text}
    for name, text in {
        "empty": "",
        "comment": "# x\n",
        "braces": "{}\n",
        "list": "- a\n",
        "schema alone": "schema: '2.0'\n",
        "no stages": "schema: '2.0'\nstages: {}\n",
        "stages of null": "schema: '2.0'\nstages:\n",
        "schema that is a number": "schema: 2.0\n" + _RAN,
        "schema of tomorrow": "schema: '3.0'\n" + _RAN,
        "other content": "schema: '2.0'\n" + _RAN.replace(ONE, "2737b492" * 4),
        "other stage": "schema: '2.0'\n" + _RAN.replace("  s:", "  t:"),
        "other command": "schema: '2.0'\n" + _RAN.replace("cp in", "cp  in"),
        "unknown key": "schema: '2.0'\nmeta: 1\n" + _RAN,
        "unknown key of a stage": "schema: '2.0'\n" + _RAN + "    extra: 1\n",
        "unknown key of an out": "schema: '2.0'\n" + _RAN + "      extra: 1\n",
        "marks of a merge": f"<<<<<<< ours\nschema: '2.0'\n{_RAN}=======\n>>>>>>> theirs\n",
    }.items()
}
LOCKS["no file beside it"] = {"dvc.lock": "schema: '2.0'\n" + _RAN}
LOCKS["dependency that is new"] = {
    "dvc.yaml": _COPY.replace("[in.txt]", "[in.txt, params.yaml]"), "dvc.lock": "schema: '2.0'\n" + _RAN, "o": "1\n",
}  # fmt: skip

# What is told otherwise, and why: `dvc` crashes or loses data there.
_CRASHES = "dvc ends in an unexpected error"
LEFT: dict[tuple[str, str], str] = {
    ("date in a template", "*"): _CRASHES,
    ("digest that is a number", "*"): _CRASHES,
    ("no path", "*"): _CRASHES,
    ("manifest that is nowhere", "ls"): _CRASHES,
    ("upper-case digest", "*"): "dvc looks for an object that no version of it wrote: the data is lost to it",
}
