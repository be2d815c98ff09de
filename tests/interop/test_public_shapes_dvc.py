"""Shapes of dvc.yaml, dvc.lock, .dvc, .dvcignore and config that public projects hold, told alike by both tools.

What is left told otherwise stands in `odd_shapes.LEFT`, each with its reason. ``DVKF_LONG`` compares all shapes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Done, Dvc, dvkf, git
from odd_shapes import FILES, LEFT, LOCKS
from sizes import ALL

# ruff: noqa: E501
ONE = "b026324c6904b2a9cb4b88d6d61c81d1"  # the md5 of "1\n"
SOURCES = {"in.txt": "1\n", "params.yaml": "a: 1\nb: {c: [1, 2], d: x}\nm:\n- {n: p, k: 1}\n- {n: q, k: 2}\n"}

# Each shape: the files of a project, laid over SOURCES.
STAGES: dict[str, dict[str, str]] = {
    "foreach over a list of dicts": {
        "dvc.yaml": "stages:\n  s:\n    foreach: ${m}\n    do:\n      cmd: echo ${item.n} ${item.k} > o-${item.n}\n"
        "      deps: [in.txt]\n      outs: ['o-${item.n}']\n"
    },
    "foreach over a dict with nested values": {
        "dvc.yaml": "vars:\n- who: {x: {path: {out: ox}}, y: {path: {out: oy}}}\nstages:\n  s:\n    foreach: ${who}\n"
        "    do:\n      desc: one of ${key}\n      cmd: echo ${key} > ${item.path.out}\n      outs:\n"
        "      - ${item.path.out}:\n          cache: false\n"
    },
    "foreach over numbers and truths": {
        "dvc.yaml": "stages:\n  s:\n    foreach: [1, 2.50, 1e3, true, null, '007', 0o17]\n    do:\n"
        "      cmd: echo ${item} > f-${item}\n      outs: ['f-${item}']\n"
    },
    "matrix of dicts": {
        "dvc.yaml": "stages:\n  s:\n    matrix:\n      cfg: ${m}\n      size: [1, big]\n    name: t-${item.size}\n"
        "    cmd: echo ${item.cfg.n} > o-${key}\n    outs: ['o-${key}']\n"
    },
    "matrix without names": {
        "dvc.yaml": "stages:\n  s:\n    matrix:\n      x: [0.1, 2]\n      y: [a b, true]\n"
        "    cmd: echo '${item.x} ${item.y}' > 'o-${key}'\n    outs: ['o-${key}']\n"
    },
    "vars of files, parts of files and values": {
        "dvc.yaml": "vars:\n- conf/v.json:q,r\n- conf/t.toml\n- z: {w: 9}\nstages:\n  s:\n    vars: [{l: 3}]\n"
        "    cmd: echo ${q} ${r.s} ${z.w} ${l} ${tool.k} > o\n    outs: [o]\n",
        "conf/v.json": '{"q": 1.0, "r": {"s": "t"}, "unused": 2}\n',
        "conf/t.toml": "[tool]\nk = 1_000\n",
    },
    "dict and list in a command": {
        "dvc.yaml": "stages:\n  s:\n    cmd: echo ${d} > o\n    outs: [o]\nvars:\n- d: {lr: 0.1, flag: true, off: false,"
        " names: [a, b c]}\n"
    },
    "params of yaml, json, toml and py": {
        "dvc.yaml": "stages:\n  s:\n    cmd: cat p.py > o\n    params:\n    - a\n    - b.d\n    - p.py:\n      - A\n      - T.lr\n"
        "    - p.toml:\n      - x.y\n    - p.json:\n    outs: [o]\n",
        "p.py": "A = 1\nB: int = 2\nclass T:\n    lr = 1e-3\n    names = ['x', ('y', 2)]\n    def __init__(self):\n        self.q = 1\n",
        "p.toml": "[x]\ny = 2.0\nd = [1, 2]\n",
        "p.json": '{"u": [1, {"v": null}], "w": "é"}\n',
    },
    "whole params file": {
        "dvc.yaml": "params:\n- extra.yaml\nstages:\n  s:\n    cmd: echo > o\n    params:\n    - b\n    - extra.yaml:\n"
        "    - m\n    outs: [o]\n",
        "extra.yaml": "h: 1e-5\ni: 1_000\nj: 0x10\nl: yes\nm: ~\n",
    },
    "keys of params with dots and indices": {
        "dvc.yaml": "stages:\n  s:\n    cmd: echo ${b.c[1]} > o\n    params: [b.c, 'b.c.0']\n    outs: [o]\n"
    },
    "plots at the top, all forms": {
        "dvc.yaml": "plots:\n- r.csv:\n    x: step\n    y: acc\n    title: T\n- curve:\n    x: step\n    y: {r.csv: [acc, loss], s.json: v}\n"
        "    y_label: both\n- s.json\n- img/\n- conf:\n    template: confusion\n    x: acc\n    y: {r.csv: loss}\n",
        "r.csv": "step,acc,loss\n0,0.1,2\n1,0.2,1\n",
        "s.json": '[{"step": 0, "v": 1}, {"step": 1, "v": 2}]\n',
        "img/a.svg": "<svg/>\n",
    },
    "plots at the top as a dict": {
        "dvc.yaml": "plots:\n  r.csv:\n    x: step\n    y: [acc]\n  two:\n    x: {r.csv: step}\n    y: {r.csv: loss}\n",
        "r.csv": "step,acc,loss\n0,0.1,2\n1,0.2,1\n",
    },
    "plots of stages": {
        "dvc.yaml": "stages:\n  s:\n    cmd: printf 'x,y\\n1,2\\n' > p.csv; echo '[{\"a\":1}]' > q.json\n    plots:\n    - p.csv:\n"
        "        cache: false\n        x: x\n        y: y\n        x_label: ex\n    - q.json\n"
    },
    "metrics of several formats": {
        "dvc.yaml": "metrics:\n- m.toml\n- sub/m.json\nstages:\n  s:\n    cmd: \"echo 'a: {b: 0.50}' > m.yaml\"\n    metrics:\n"
        "    - m.yaml:\n        cache: false\n",
        "m.toml": "x = 1\n[t]\ny = 1e-7\n",
        "sub/m.json": '{"acc": 0.1234567890123, "n": {"deep": {"er": 3}}, "s": "text", "l": [1, 2], "nan": NaN}\n',
    },
    "wdir": {
        "dvc.yaml": "stages:\n  s:\n    wdir: work\n    cmd: cat ../in.txt > o; cat p.yaml > q\n    deps: [../in.txt]\n"
        "    params:\n    - p.yaml:\n      - v\n    outs: [o, ./q]\n",
        "work/p.yaml": "v: 1\n",
    },
    "wdir by a variable": {
        "dvc.yaml": "vars: [{w: work}]\nstages:\n  s:\n    wdir: ${w}/deep\n    cmd: echo > o\n    outs: [o]\n",
        "work/deep/keep": "\n",
    },
    "options of outs": {
        "dvc.yaml": "stages:\n  s:\n    cmd: for f in a b c d; do echo $f > $f; done\n    outs:\n    - a:\n        persist: true\n"
        "    - b:\n        cache: false\n        desc: text\n    - c:\n        push: false\n        type: model\n"
        "        labels: [x, y]\n        meta: {k: {v: [1]}}\n    - d\n"
    },
    "frozen and always changed": {
        "dvc.yaml": "stages:\n  f:\n    frozen: true\n    cmd: echo > f\n    outs: [f]\n  a:\n    always_changed: true\n    cmd: echo > a\n"
        "    outs: [a]\n    meta: anything\n    desc: d\n"
    },
    "lists and blocks of commands": {
        "dvc.yaml": "stages:\n  l:\n    cmd:\n    - X=1; echo $X ${HOME:+h} > l\n    - echo two >> l\n    outs: [l]\n  b:\n    cmd: |\n      set -e\n"
        "      # comment\n      for i in 1 2; do\n        echo \"$i\" >> b\n      done\n    outs: [b]\n  f:\n    cmd: >-\n      echo one\n"
        "      two\n      > f\n    outs:\n    - f\n".replace("${HOME:+h}", "\\${HOME:+h}")
    },
    "escaped substitution": {
        "dvc.yaml": "stages:\n  s:\n    cmd: 'V=1; echo \\${V} $V \\${V:-2} ${a} > o'\n    outs: [o]\n"
    },
    "shell default that is no variable": {"dvc.yaml": "stages:\n  s:\n    cmd: echo ${V:-2} > o\n    outs: [o]\n"},
    "unknown variable": {"dvc.yaml": "stages:\n  s:\n    cmd: echo ${nope} > o\n    outs: [o]\n"},
    "artifacts": {
        "dvc.yaml": "artifacts:\n  net-one:\n    path: net.bin\n    type: model\n    desc: a net\n    labels: [x]\n    meta: {f: 1}\n"
        "stages:\n  s:\n    cmd: echo > net.bin\n    outs: [net.bin]\n"
    },
    "artifact with an odd name": {"dvc.yaml": "artifacts:\n  net_one.bin:\n    path: net.bin\n"},
    "datasets": {
        "dvc.yaml": "datasets:\n- name: ds\n  url: s3://nowhere/x\n  type: url\nstages:\n  s:\n    cmd: echo > o\n    outs: [o]\n"
    },
    "anchors and merges": {
        "dvc.yaml": "x: &a\n", "sub/dvc.yaml": "stages:\n  s: &s\n    cmd: echo > o\n    outs: [o]\n  t:\n    <<: *s\n    cmd: echo > t\n    outs: [t]\n",
    },
    "anchors within stages": {
        "dvc.yaml": "stages:\n  s:\n    cmd: echo > o\n    deps: &d\n    - in.txt\n    outs: [o]\n  t:\n    cmd: echo > t\n    deps: *d\n"
        "    outs: [t]\n"
    },
    "windows line ends": {"dvc.yaml": "stages:\r\n  s:\r\n    cmd: echo > o\r\n    outs:\r\n    - o\r\n"},
    "byte order mark": {"dvc.yaml": "\ufeffstages:\n  s:\n    cmd: echo > o\n    outs: [o]\n"},
    "tab": {"dvc.yaml": "stages:\n  s:\n\tcmd: echo > o\n"},
    "same key twice": {"dvc.yaml": "stages:\n  s:\n    cmd: echo > o\n    cmd: echo > p\n"},
    "empty file": {"dvc.yaml": ""},
    "comments alone": {"dvc.yaml": "# later\n"},
    "no stages": {"dvc.yaml": "stages:\n"},
    "empty stages": {"dvc.yaml": "stages: {}\n"},
    "document marks": {"dvc.yaml": "---\nstages:\n  s:\n    cmd: echo > o\n    outs: [o]\n...\n"},
    "two documents": {"dvc.yaml": "stages:\n  s:\n    cmd: echo > o\n---\nstages: {}\n"},
    "unicode and spaces": {
        "dvc.yaml": "stages:\n  schön:\n    cmd: echo ü > 'aus gabe.txt'; mkdir -p 'd é'; echo > 'd é/ß'\n    deps: [in.txt]\n"
        "    outs: [aus gabe.txt, d é]\n"
    },
    "slashes and dots in paths": {
        "dvc.yaml": "stages:\n  s:\n    cmd: mkdir -p d/e; echo > d/e/f; echo > g\n    deps: [./in.txt, src/]\n    outs: [./d/, sub/../g]\n",
        "src/a.py": "1\n", "sub/k": "\n",
    },
    "file in a folder that another makes": {
        "dvc.yaml": "stages:\n  s:\n    cmd: mkdir -p d; echo 1 > d/a; echo 2 > d/b\n    outs: [d]\n  t:\n    cmd: cp d/a t\n    deps: [d/a]\n"
        "    outs: [t]\n"
    },
    "sub-folders with their own": {
        "dvc.yaml": "stages:\n  s:\n    cmd: cp sub/o t\n    deps: [sub/o]\n    outs: [t]\n",
        "sub/dvc.yaml": "stages:\n  s:\n    cmd: cp ../in.txt o; echo ${w} >> o\n    deps: [../in.txt]\n    params: [w]\n    outs: [o]\n",
        "sub/params.yaml": "w: 3\n",
    },
    "stage without outs": {"dvc.yaml": "stages:\n  s:\n    cmd: 'true'\n    deps: [in.txt]\n  t:\n    cmd: 'true'\n"},
    "stage that fails": {"dvc.yaml": "stages:\n  s:\n    cmd: exit 3\n    deps: [in.txt]\n  t:\n    cmd: echo > t\n    outs: [t]\n"},
    "missing dependency": {"dvc.yaml": "stages:\n  s:\n    cmd: echo > o\n    deps: [gone.txt]\n    outs: [o]\n"},
    "outs missing after the run": {"dvc.yaml": "stages:\n  s:\n    cmd: 'true'\n    outs: [o]\n"},
    "unknown key of a stage": {"dvc.yaml": "stages:\n  s:\n    cmd: echo > o\n    output: [o]\n"},
    "unknown key at the top": {"dvc.yaml": "name: x\nstages:\n  s:\n    cmd: echo > o\n    outs: [o]\n"},
    "number for a command": {"dvc.yaml": "stages:\n  s:\n    cmd: 1\n    outs: [o]\n"},
    "number for a path": {"dvc.yaml": "stages:\n  s:\n    cmd: echo > 1\n    outs: [1]\n"},
    "live": {"dvc.yaml": "stages:\n  s:\n    cmd: echo > o\n    live:\n      dvclive:\n        summary: true\n"},
    "schema told": {"dvc.yaml": "schema: '2.0'\nstages:\n  s:\n    cmd: echo > o\n    outs: [o]\n"},
    "names of stages": {
        "dvc.yaml": "stages:\n  A_b-c1:\n    cmd: echo > o\n    outs: [o]\n  1:\n    cmd: echo > p\n    outs: [p]\n"
    },
    "name with a slash": {"dvc.yaml": "stages:\n  a/b:\n    cmd: echo > o\n    outs: [o]\n"},
    "name with a space": {"dvc.yaml": "stages:\n  a b:\n    cmd: echo > o\n    outs: [o]\n"},
    "lock of schema 1.0": {
        "dvc.yaml": "stages:\n  s:\n    cmd: cp in.txt o\n    deps: [in.txt]\n    outs: [o]\n",
        "dvc.lock": f"s:\n  cmd: cp in.txt o\n  deps:\n  - path: in.txt\n    md5: {ONE}\n  outs:\n  - path: o\n    md5: {ONE}\n", "o": "1\n",
    },
    "lock with isexec, nfiles and old params": {
        "dvc.yaml": "stages:\n  s:\n    cmd: cp in.txt o\n    deps: [in.txt]\n    params: [a]\n    outs: [o]\n",
        "dvc.lock": f"schema: '2.0'\nstages:\n  s:\n    cmd: cp in.txt o\n    deps:\n    - path: in.txt\n      hash: md5\n      md5: {ONE}\n"
        f"      size: 2\n      isexec: true\n    params:\n      params.yaml:\n        a: 2\n        old: 1\n    outs:\n    - path: o\n"
        f"      hash: md5\n      md5: {ONE}\n      size: 2\n", "o": "1\n",
    },
    "lock with marks of a merge": {
        "dvc.yaml": "stages:\n  s:\n    cmd: echo > o\n    outs: [o]\n", "dvc.lock": "<<<<<<< ours\nschema: '2.0'\n=======\n>>>>>>> theirs\n"
    },
}  # fmt: skip

TRACKED: dict[str, dict[str, str]] = {
    "no checksum": {"x.dvc": "outs:\n- path: x\n", "x": "1\n"},
    "md5 and size": {"x.dvc": f"outs:\n- md5: {ONE}\n  size: 2\n  hash: md5\n  path: x\n", "x": "1\n"},
    "no size, no hash": {"x.dvc": f"outs:\n- md5: {ONE}\n  path: x\n", "x": "1\n"},
    "md5 and wdir at the top": {"f/x.dvc": f"md5: {ONE}\nwdir: ..\nouts:\n- md5: {ONE}\n  path: x\n  cache: true\n  metric: false\n"
                                "  persist: false\n", "x": "1\n"},
    "several outs": {"all.dvc": f"outs:\n- md5: {ONE}\n  size: 2\n  path: x\n- md5: {ONE}\n  path: y\n  desc: why\n- path: z\n",
                     "x": "1\n", "y": "2\n", "z": "1\n"},
    "isexec": {"x.dvc": f"outs:\n- md5: {ONE}\n  size: 2\n  isexec: true\n  hash: md5\n  path: x\n", "x": "1\n"},
    "meta, desc, labels, remote": {"x.dvc": f"desc: all\nmeta: {{k: v}}\nouts:\n- md5: {ONE}\n  path: x\n  desc: d\n  type: t\n  labels: [l]\n"
                                   "  meta: {a: [1]}\n  push: false\n# end\n", "x": "1\n"},
    "import of a local file": {"x.dvc": f"frozen: true\ndeps:\n- md5: {ONE}\n  path: in.txt\nouts:\n- md5: {ONE}\n  path: x\n", "x": "1\n"},
    "files listed in place": {"d.dvc": f"outs:\n- path: d\n  hash: md5\n  files:\n  - relpath: a\n    md5: {ONE}\n    size: 2\n    cloud:\n      r:\n"
                              "        etag: e\n        version_id: v\n", "d/a": "1\n"},
    "checksum quoted as a number": {"x.dvc": "outs:\n- md5: '12345678901234567890123456789012'\n  size: '2'\n  path: x\n", "x": "1\n"},
    "empty checksum": {"x.dvc": "outs:\n- md5: ''\n  path: x\n", "x": "1\n"},
    "no outs": {"x.dvc": "md5: x\n"},
    "empty": {"x.dvc": ""},
    "comment": {"x.dvc": "# x\n"},
    "outs as a dict": {"x.dvc": f"outs:\n  x:\n    md5: {ONE}\n"},
    "unknown key": {"x.dvc": f"outs:\n- md5: {ONE}\n  path: x\nowner: me\n", "x": "1\n"},
    "unknown key of an out": {"x.dvc": f"outs:\n- md5: {ONE}\n  path: x\n  owner: me\n", "x": "1\n"},
    "windows line ends": {"x.dvc": f"outs:\r\n- md5: {ONE}\r\n  path: x\r\n", "x": "1\n"},
    "byte order mark": {"x.dvc": f"\ufeffouts:\n- md5: {ONE}\n  path: x\n", "x": "1\n"},
    "spaces and unicode": {"a ü.dvc": f"outs:\n- md5: {ONE}\n  path: a ü\n", "a ü": "1\n"},
    "path above": {"f/x.dvc": f"outs:\n- md5: {ONE}\n  path: ../x\n", "x": "1\n"},
    "same out twice": {"x.dvc": f"outs:\n- md5: {ONE}\n  path: x\n", "y.dvc": f"outs:\n- md5: {ONE}\n  path: x\n", "x": "1\n"},
    "marks of a merge": {"x.dvc": f"outs:\n<<<<<<< HEAD\n- md5: {ONE}\n=======\n- md5: {ONE}\n>>>>>>> b\n  path: x\n", "x": "1\n"},
    "folder of .dvc files ignored": {"old/x.dvc": "broken: [", ".dvcignore": "old/\n", "y.dvc": f"outs:\n- md5: {ONE}\n  path: y\n"},
}  # fmt: skip

_CONFIGS: dict[str, str] = {
    "many remotes": "[core]\n    remote = r\n['remote \"r\"']\n    url = ../../store\n['remote \"s\"']\n    url = s3://b/p\n    region = x\n"
    "    profile = y\n['remote \"g\"']\n    url = gs://b\n    projectname = p\n['remote \"a\"']\n    url = azure://c\n    account_name = n\n",
    "sections quoted oddly": "[core]\nremote = r\n[ 'remote \"r\"' ]\nurl = \"../../store\"\n",
    "sections not quoted": '[core]\nremote = r\n[remote "r"]\nurl = ../../store\n',
    "keys of core": "[core]\n    analytics = false\n    autostage = false\n    hardlink_lock = true\n    check_update = false\n    no_scm = false\n"
    "    interactive = false\n    checksum_jobs = 2\n    remote = r\n['remote \"r\"']\n    url = ../../store\n",
    "upper case truths": "[core]\n    analytics = False\n    autostage = No\n    remote = r\n['remote \"r\"']\n    url = ../../store\n",
    "cache": '[cache]\n    type = "reflink,hardlink,copy"\n    dir = ../../elsewhere\n    protected = true\n    shared = group\n[core]\n    remote = r\n'
    "['remote \"r\"']\n    url = ../../store\n",
    "unknown key": "[core]\n    colour = red\n",
    "unknown section": "[mine]\n    x = 1\n",
    "unknown key of a remote": "['remote \"r\"']\n    url = ../../store\n    colour = red\n",
    "no such remote": "[core]\n    remote = gone\n",
    "remote in a remote": "['remote \"r\"']\n    url = ../../store\n['remote \"s\"']\n    url = remote://r/deep\n[core]\n    remote = s\n",
    "remote in none": "['remote \"s\"']\n    url = remote://r/deep\n[core]\n    remote = s\n",
    "web, ssh and others": "[core]\n    remote = r\n['remote \"r\"']\n    url = ../../store\n['remote \"w\"']\n    url = webdavs://h/p\n    user = u\n"
    "    ask_password = true\n['remote \"h\"']\n    url = ssh://u@h:22/p\n    keyfile = k\n['remote \"d\"']\n    url = gdrive://id/p\n"
    "    gdrive_use_service_account = true\n['remote \"o\"']\n    url = oss://b/p\n    oss_endpoint = e\n['remote \"f\"']\n    url = hdfs://u@h/p\n",
    "state, feature and exp": "[core]\n    remote = r\n['remote \"r\"']\n    url = ../../store\n[feature]\n    machine = true\n[exp]\n    code = src\n"
    "[plots]\n    html_template = t.html\n[hydra]\n    enabled = true\n[parsing]\n    bool = boolean_optional\n",
    "comments and blanks": "# a\n; b\n\n[core]\n  # c\n  remote = r ; d\n\n['remote \"r\"']\n  url = ../../store # e\n",
    "section twice": "[core]\nremote = r\n[core]\nanalytics = false\n",
    "empty value": "[core]\nremote =\n",
    "version aware folder": "[core]\n    remote = r\n['remote \"r\"']\n    url = ../../store\n    version_aware = true\n",
    "worktree folder": "[core]\n    remote = r\n['remote \"r\"']\n    url = ../../store\n    worktree = true\n",
    "byte order mark": "\ufeff[core]\n    remote = r\n",
}  # fmt: skip

CONFIGS = {
    name: {
        ".dvc/config": text,
        "x.dvc": f"outs:\n- md5: {ONE}\n  size: 2\n  hash: md5\n  path: x\n",
        "x": "1\n",
    }
    for name, text in _CONFIGS.items()
}

RUNS = (
    ("status", "--json"),
    ("stage", "list", "--all"),
    ("dag", "--dot"),
    ("check-ignore", "-d", "o", ".dvcignore"),
    ("repro", "--dry"),
    ("repro",),
    ("params", "diff", "--json"),
    ("plots", "show", "--json"),
    ("metrics", "show", "--json"),
    ("ls", "-R", "--json", "."),
)
READS = (
    ("status", "--json"),
    ("data", "status", "--json"),
    ("ls", "-R", "--json", "."),
    ("dag", "--dot"),
    ("stage", "list"),
    ("repro", "--dry"),
    ("plots", "show", "--json"),
    ("metrics", "show", "--json"),
    ("commit", "-f"),
)
RAN = (("status", "--json"), ("repro", "--dry"), ("commit", "-f"), ("status", "--json"))
SENDS = (("commit", "-f"), ("push",), ("status", "-c"), ("status", "-c", "--json"))
# Verbs whose lines are compared, and which of a run's.
_SHOWN = ("stage", "dag", "check-ignore", "repro", "metrics", "params")
_STEPS = ("Running stage", "> ", "Stage '", "Importing ", "Verifying ")
SHARE = 1 if os.environ.get("DVKF_LONG") else 20 if ALL else 60


def lay(folder: Path, files: dict[str, str]) -> None:
    """Write the files of a project."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def told(done: Done, words: tuple[str, ...]) -> Any:
    """Return what is compared of how a verb ended: the code, and what a program would read of its output."""
    if done.code or "--json" not in words:
        shown = words[0] in _SHOWN and not (done.code and words[0] == "stage") and words != ("repro",)
        lines = done.out.split("\n") if shown else []
        if words[0] == "repro":
            lines = [line for line in lines if line.startswith(_STEPS)]
        return done.code, sorted(line.strip() for line in lines)
    return done.code, sort(json.loads(done.out or "{}"))


def sort(value: Any) -> Any:
    """Return an answer as text, with its lists in one order and its cause of a failure left out."""
    if isinstance(value, dict):
        return {key: sort(each) for key, each in value.items() if key not in ("msg", "type")}
    if isinstance(value, list):
        return sorted((sort(each) for each in value), key=repr)
    return repr(value)


def tree(folder: Path) -> dict[str, bytes]:
    """Return the files of a project outside of .git and .dvc."""
    found = {}
    for top, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if each not in (".git", ".dvc")]
        for name in files:
            path = Path(top, name)
            data = path.read_bytes()
            if name == ".gitignore":  # dvc writes a line again for each `.dvc` file of one path
                data = b"".join(dict.fromkeys(data.splitlines(keepends=True)))
            found[path.relative_to(folder).as_posix()] = data
    return found


class Shapes:
    """Two copies of a project for each shape, one for each tool."""

    def __init__(self, root: Path, dvc: Dvc) -> None:
        self.root, self.dvc = root, dvc
        git(root, "init", "-q", "blank")
        dvc(root / "blank", "init", "-q").ok()
        self.differences: list[str] = []
        self.compared = 0

    def compare(self, name: str, files: dict[str, str], verbs: tuple[tuple[str, ...], ...]) -> None:
        """Run verbs in two copies of a project; keep each difference."""
        sides = []
        for tool in ("dvkf", "dvc"):
            folder = self.root / str(self.compared) / tool / "repo"
            shutil.copytree(self.root / "blank", folder, symlinks=True)
            lay(folder, SOURCES | files)
            (folder.parent / "store").mkdir()
            sides.append(folder)
        for words in verbs:
            ours, theirs = dvkf(sides[0], *words), self.dvc(sides[1], *words)
            self.compared += 1
            if "Traceback" in ours.err:
                self.differences.append(f"{name}: {words}: {ours.err}")
            if {(name, "*"), (name, words[0])} & LEFT.keys():
                continue
            if told(ours, words) != told(theirs, words):
                self.differences.append(
                    f"{name}: {' '.join(words)}\n  {told(ours, words)} {ours.err[-300:]}\n"
                    f"  {told(theirs, words)} {theirs.err[-300:]}"
                )
        ours_left, theirs_left = tree(sides[0]), tree(sides[1])
        for path in sorted(ours_left.keys() | theirs_left.keys()) if (name, "*") not in LEFT else ():
            if ours_left.get(path) != theirs_left.get(path):
                self.differences.append(
                    f"{name}: file {path}\n  {ours_left.get(path)!r}\n  {theirs_left.get(path)!r}"
                )

    def check(self) -> None:
        """Fail with all differences."""
        assert not self.differences, f"{len(self.differences)} of {self.compared}\n" + "\n".join(
            self.differences
        )


@pytest.fixture
def shapes(tmp_path: Path, dvc: Dvc) -> Shapes:
    return Shapes(tmp_path, dvc)


@pytest.mark.parametrize(
    ("table", "verbs"),
    [(STAGES, RUNS), (TRACKED, READS), (FILES, READS), (LOCKS, RAN), (LOCKS, RUNS), (CONFIGS, SENDS)],
    ids=["stages", "tracked", "files", "locks", "locks-run", "configs"],
)
def test_a_public_shape_is_told_alike(
    shapes: Shapes, table: dict[str, dict[str, str]], verbs: tuple[tuple[str, ...], ...]
) -> None:
    for name in list(table)[::SHARE]:
        shapes.compare(name, table[name], verbs)
    assert shapes.compared
    shapes.check()
