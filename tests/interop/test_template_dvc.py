# ruff: noqa: E501
"""dvc.yaml files resolved by us and by the real `dvc`: the same stages, or an error from both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sizes import ALL

from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.artifacts import read_datasets
from dvkf_prefect.formats.dvclock import read_lock
from dvkf_prefect.formats.dvcyaml import load_stages, read_sections
from dvkf_prefect.pipeline.run.dry_run import plan
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner
from dvkf_prefect.repo import Repo

DVC = Path(sys.executable).with_name("dvc")

pytestmark = pytest.mark.filterwarnings("ignore")  # dvc's own

FILES = {
    "params.yaml": """\
n: 1
f: 0.5
small: 0.00001
t: true
no: false
nil: null
s: text
sp: a b
q: it's
empty: ''
l: [a, b]
nums: [1, 2.5, true, null]
same: [a, a, b]
ld: [{x: 1, y: u}, {x: 2, y: v}]
mixed: [a, {x: 1}]
d: {a: {x: 1}, b: {x: 2}}
flat: {one: 1, two: 2}
m: {a: {b: [{c: deep}]}, nested: {k: [1, [2]]}}
odd: {1: one, two: 2, false: 3}
args: {lr: 0.1, name: a b, on: true, off: false, xs: [1, two words, true], deep: {z: 1}, none: null, e: {}, el: []}
bad_args: {x: [[1]]}
bytes: !!binary aGk=
""",
    "other.yaml": "o: {a: 1, b: [x]}\nw: 2\n",
    "more.yaml": "d: {c: {x: 3}}\nm: {z: 1}\n",
    "clash.yaml": "n: 2\n",
    "p.json": '{"j": {"k": [1, 2.0]}, "u": "é"}',
    "p.toml": 'x = 1\n[sec]\ny = "z"\n',
    "p.py": "A = 1\nclass C:\n    B = 'b'\n    def __init__(self):\n        self.e = [1, 2]\n",
    "tuple.py": "T = (1, 2)\nA = 1\n",
    "date.yaml": "when: 2020-01-01\nok: 1\n",
    "list.yaml": "- a\n",
    "empty.yaml": "",
    "broken.yaml": "a: [\n",
    "sub/params.yaml": "n: 5\nextra: sub\n",
    "sub/v.yaml": "in_sub: yes\n",
}


class Both:
    """One repository, opened by both; only its dvc.yaml and parameter files are written anew."""

    def __init__(self, root: Path) -> None:
        from dvc.repo import Repo as DvcRepo

        subprocess.run(["git", "init", "-q"], cwd=root, check=True)
        self.root = root
        self.theirs = DvcRepo.init(str(root))
        self.mine = Repo.open(root)
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def dvc(self, path: str = "dvc.yaml") -> Any:
        """Return what dvc makes of a file, or its error."""
        from dvc.repo.index import Index

        try:
            index = Index.from_file(self.theirs, str(self.root / path))
            stages = [_theirs(stage, self.root) for stage in index.stages]
            top = str(self.root / path)
            plots: dict[str, Any] = {}
            for plot in index._plots.get(top, []):
                plots.update({plot: {}} if isinstance(plot, str) else {k: v or {} for k, v in plot.items()})
            sections = {
                "params": index._params.get(top, []),
                "metrics": index._metrics.get(top, []),
                "plots": plots,
                "artifacts": index._artifacts.get(top, {}),
                "datasets": index._datasets.get(top, []),
            }
        except Exception as error:  # whatever it is, a person cannot go on
            return error
        # What dvc loads and cannot run, or runs as nothing.
        for stage in stages:
            cmd = stage["cmd"]
            if not cmd or not isinstance(cmd, (str, list)) or not all(isinstance(c, str) for c in cmd):
                return TypeError("a command that is no text")
        return stages, sections

    def ours(self, path: str = "dvc.yaml") -> Any:
        """Return what we make of a file, or our error; any other than our own goes through."""
        try:
            stages = [_ours(stage) for stage in load_stages(self.mine.files(), path)]
            found = read_sections(self.mine.files(), path)
        except DvkfError as error:
            return error
        sections = {
            "params": list(found.params),
            "metrics": list(found.metrics),
            "plots": dict(found.plots),
            "artifacts": dict(found.artifacts),
            "datasets": list(found.datasets),
        }
        return stages, sections

    def agree(self, text: str, path: str = "dvc.yaml") -> Any:
        self.write(path, text)
        theirs, mine = self.dvc(path), self.ours(path)
        if isinstance(theirs, Exception) or isinstance(mine, Exception):
            assert isinstance(theirs, Exception) == isinstance(mine, Exception), (text, theirs, mine)
        else:
            # As text: 1 is not 1.0 and not true.
            assert json.dumps(mine, default=repr) == json.dumps(theirs, default=repr), text
        return mine


def _theirs(stage: Any, root: Path) -> dict[str, Any]:
    from dvc.dependency import ParamsDependency

    outs = [
        (
            out.def_path,
            bool(out.use_cache),
            bool(out.persist),
            "plot" if out.plot else "metric" if out.metric else "out",
            out.remote,
            bool(out.can_push),
            sorted({**out.annot.to_dict(), **(out.plot if isinstance(out.plot, dict) else {})}.items()),
        )
        for out in stage.outs
    ]
    wdir = os.path.relpath(stage.wdir, root)
    return {
        "name": stage.name,
        "cmd": stage.cmd,
        "wdir": "" if wdir == "." else wdir,
        "deps": [dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)],
        "params": [
            (dep.def_path, list(dict.fromkeys(dep.params)))
            for dep in stage.deps
            if isinstance(dep, ParamsDependency)
        ],
        "outs": outs,
        "frozen": bool(stage.frozen),
        "always_changed": bool(stage.always_changed),
        "desc": "" if stage.desc is None else str(stage.desc),
        "meta": stage.meta,
        "group": stage.raw_data.generated_from,
        "used": {file: dict(sorted(keys.items())) for file, keys in sorted(stage.tracked_vars.items())},
    }


def _ours(stage: Any) -> dict[str, Any]:
    outs = [
        (
            out.name,
            out.cached,
            out.persist,
            out.kind,
            out.remote,
            out.pushed,
            # As dvc, without what says nothing.
            sorted(
                (k, v) for k, v in out.options.items() if v or k not in ("desc", "type", "labels", "meta")
            ),
        )
        for out in stage.outs
    ]
    return {
        "name": stage.name,
        "cmd": list(stage.command) if isinstance(stage.command, tuple) else stage.command,
        "wdir": stage.wdir,
        "deps": [dep.name for dep in stage.deps],
        "params": [(file, list(keys)) for file, keys in stage.params.items()],
        "outs": outs,
        "frozen": stage.frozen,
        "always_changed": stage.always_changed,
        "desc": stage.desc,
        "meta": stage.meta,
        "group": stage.group,
        "used": {file: dict(sorted(keys.items())) for file, keys in sorted(stage.used.items())},
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    root = tmp_path_factory.mktemp("both")
    before = Path.cwd()
    os.chdir(root)  # dvc names files relative to where it stands
    try:
        yield Both(root)
    finally:
        os.chdir(before)


def one(body: str, *, top: str = "") -> str:
    """Return a dvc.yaml of one stage, in flow style."""
    return f"{top}stages: {{s: {body}}}\n"


FILLED = ["n", "f", "small", "t", "no", "nil", "s", "sp", "q", "empty", "l", "l[0]", "l[-1]", "l.1", "l[2]", "l[x]", "ld[1].y",
    "d", "d.a", "d.a.x", "m.a.b[0].c", "m[a][b][0][c]", "nums[2]", "nums[3]", "args", "bad_args", "bytes", "missing", "d.q",
    "s.x", "nil.x", " n ", "d .a", "l[0] ", "l[ 1 ]", "odd.two", "odd.1", "", ".", "a..b", "n.", ".n", "l[", "l]", "l[]",
    "l[0]x", "l[0] .x", "n n", "a{b", "d['a']", "${n}", "n-1", "n:1", "item", "key"]  # fmt: skip

STAGES = [
    *(one(f'{{cmd: "echo ${{{word}}}"}}') for word in FILLED),
    *(one(f'{{cmd: "${{{word}}}"}}') for word in FILLED),
    *(one(f'{{cmd: x, deps: ["${{{word}}}"]}}') for word in ("n", "s", "nil", "t", "l", "d", "missing", "l[0]")),
    *(one(f'{{cmd: x, deps: ["a/${{{word}}}/b"]}}') for word in ("n", "f", "nil", "t", "l", "d", "missing", "bytes")),
    *(one(f'{{cmd: x, desc: "${{{word}}}"}}') for word in ("n", "f", "nil", "t", "l", "d", "s")),
    *(one(f'{{cmd: x, meta: {{"${{{word}}}": ["${{{word}}}", "a${{{word}}}"]}}}}') for word in ("n", "s", "d", "nil", "t")),
    *(one(f'{{cmd: x, wdir: "${{{word}}}"}}') for word in ("s", "n", "empty", "nil", "l", "missing")),
    one('{cmd: "echo \\\\${n} ${n} $${n} \\\\\\\\${n} ${n", deps: ["\\\\${n}"]}'),
    one('{cmd: "echo $n {n} ${n}${s}${l[0]}"}'),
    one('{cmd: ["a ${n}", "b", "${s}"]}'),
    one('{cmd: ["a ${n}", "${n}"]}'),
    one('{cmd: ["${args}", "x ${args}"]}'),
    one('{cmd: "a ${args} b ${d}"}'),
    one('{cmd: "${bytes} ${args.xs}"}'),
    one("{cmd: |-\n echo 1\n echo 2\n}"),
    "stages:\n  s:\n    cmd: |\n      echo ${n}\n      echo ${s}\n    deps:\n    - a\n",
    "stages:\n  s:\n    cmd: >\n      echo ${n\n      } x\n",
    one('{cmd: x, outs: ["${s}", "o/${n}": {cache: false, persist: true, push: false, remote: "${s}", desc: "${s}"}]}'),
    one('{cmd: x, outs: [{"${s}": {cache: false}}, "${s}", {a: {}, b: {persist: true}}]}'),
    one('{cmd: x, outs: [a: {type: "${s}", labels: ["${s}", b], meta: {k: "${n}"}}]}'),
    one('{cmd: x, outs: [a: {cache: "${t}"}]}'),
    one('{cmd: x, frozen: "${t}"}'),
    one("{cmd: x, frozen: true, always_changed: true, meta: [1, {a: b}], desc: d}"),
    one('{cmd: x, outs: [a: {checkpoint: true}], metrics: [m: {cache: false}], plots: [p: {x: "${s}", y: b, header: false}]}'),
    one('{cmd: x, plots: ["${s}.csv", {q: {template: linear, title: T, x_label: X, y_label: Y}}]}'),
    one("{cmd: x, plots: [p: [{x: a}, {x: b}]]}"),
    one("{cmd: x, metrics: [m: {xpath: a}]}"),
    one("{cmd: x, params: [a, b.c, a, {other.yaml: [w, w]}, {p.json: }, {p.json: [j]}, b]}"),
    one("{cmd: x, params: [a, {params.yaml: }]}"),
    one("{cmd: x, params: [a, {params.yaml: [z]}]}"),
    one('{cmd: x, params: ["${s}", {"${s}.yaml": ["${l[0]}"]}]}'),
    one('{cmd: x, params: ["${n}"]}'),
    one("{cmd: x, params: [{other.yaml: w}]}"),
    one("{cmd: x, wdir: sub, deps: [../a, b], outs: [c]}"),
    one('{cmd: x, wdir: "${l[0]}/c", deps: [d]}'),
    one("{cmd: x, deps: [dvc.yaml]}"),
    one("{cmd: x, deps: [a.dvc]}"),
    one("{cmd: x, outs: [a.dvc]}"),
    one("{cmd: x, deps: ['ds://name', 'https://host/x', 's3://b/k', /abs/x]}"),
    # -- vars
    one('{cmd: "${o.a} ${w}"}', top="vars: [other.yaml]\n"),
    one('{cmd: "${w}"}', top="vars: ['other.yaml:w']\n"),
    one('{cmd: "${o.a}"}', top="vars: ['other.yaml:w']\n"),
    one('{cmd: "${o.a}"}', top="vars: ['other.yaml:w,o']\n"),
    one('{cmd: "${o.a}"}', top="vars: ['other.yaml:w', 'other.yaml:o']\n"),
    one('{cmd: "${o.a}"}', top="vars: ['other.yaml:w', 'other.yaml:w']\n"),
    one('{cmd: "${o.a}"}', top="vars: ['other.yaml:w', other.yaml]\n"),
    one('{cmd: "${o.a}"}', top="vars: [other.yaml, 'other.yaml:w']\n"),
    one('{cmd: "${o.a}"}', top="vars: [other.yaml, other.yaml, ./other.yaml, sub/../other.yaml]\n"),
    one('{cmd: "${w}"}', top="vars: ['other.yaml:nope']\n"),
    one('{cmd: "${w}"}', top="vars: ['other.yaml:o.a']\n"),
    one("{cmd: x}", top="vars: [params.yaml]\n"),
    one("{cmd: x}", top="vars: ['params.yaml:n']\n"),
    one("{cmd: x}", top="vars: [nowhere.yaml]\n"),
    one("{cmd: x}", top="vars: [sub]\n"),
    one('{cmd: "${j.k[1]} ${u}"}', top="vars: [p.json]\n"),
    one('{cmd: "${x} ${sec.y}"}', top="vars: [p.toml]\n"),
    one('{cmd: "${A} ${C.B} ${C.e[0]}"}', top="vars: [p.py]\n"),
    one('{cmd: "${A}"}', top="vars: [tuple.py]\n"),
    one('{cmd: "${A}"}', top="vars: ['tuple.py:A']\n"),
    one('{cmd: "${ok}"}', top="vars: [date.yaml]\n"),
    one('{cmd: "${ok}"}', top="vars: ['date.yaml:ok']\n"),
    one("{cmd: x}", top="vars: [list.yaml]\n"),
    one("{cmd: x}", top="vars: [empty.yaml]\n"),
    one("{cmd: x}", top="vars: [broken.yaml]\n"),
    one('{cmd: "${d.a.x} ${d.c.x} ${m.z}"}', top="vars: [more.yaml]\n"),
    one("{cmd: x}", top="vars: [clash.yaml]\n"),
    one('{cmd: "${d.a.x} ${d.e}"}', top="vars: [{d: {e: 1}}]\n"),
    one("{cmd: x}", top="vars: [{d: {a: 1}}]\n"),
    one("{cmd: x}", top="vars: [{d: {a: {x: 1}}}]\n"),
    one("{cmd: x}", top="vars: [{l: [c]}]\n"),
    one('{cmd: "${v.w[0]}"}', top="vars: [{v: {w: [1]}}, {v: {u: 2}}]\n"),
    one('{cmd: "${v}"}', top="vars: [{v: 1}, {v: 1}]\n"),
    one('{cmd: "${v}"}', top='vars: [{v: "${n}"}]\n'),
    one('{cmd: "${v}"}', top='vars: [{"a${n}": 1}]\n'),
    one("{cmd: x}", top='vars: ["${s}.yaml"]\n'),
    one('{cmd: "${v}"}', top='vars: [{v: "\\\\${n}"}]\n'),
    one("{cmd: x}", top="vars: [1]\n"),
    one("{cmd: x}", top="vars: {a: 1}\n"),
    one("{cmd: x}", top="vars: \n"),
    one('{cmd: "${1} ${two}"}', top="vars: [{1: one, two: 2}]\n"),
    one('{cmd: "${v}", vars: [{v: 3}]}'),
    one('{cmd: "${n}", vars: [{n: 3}]}'),
    one('{cmd: "${w} ${n}", vars: [other.yaml]}'),
    one('{cmd: "${in_sub}", wdir: sub, vars: [v.yaml]}'),
    one('{cmd: "${in_sub}", vars: [sub/v.yaml]}'),
    one('{cmd: "${extra}", wdir: sub, vars: ["params.yaml:extra"]}'),
    one('{cmd: "${extra}", wdir: sub, vars: ["params.yaml"]}'),
    one('{cmd: x, wdir: "${v}", vars: [{v: sub}]}'),
    one('{cmd: "${v}", vars: [{v: "${n}"}]}'),
    one("{cmd: x, vars: [params.yaml]}"),
    one('{cmd: "${a}", vars: [{a: 1}, {a: 2}]}'),
    "vars: [{v: 1}]\nstages: {a: {cmd: '${v}x', vars: [{u: 1}]}, b: {cmd: '${u}'}}\n",
    "vars: [{v: {x: 1}}]\nstages: {a: {cmd: '${v.x} ${v.y}', vars: [{v: {y: 1}}]}, b: {cmd: 'x ${v.y}'}}\n",
    "vars: [{v: {x: 1}}]\nstages: {a: {cmd: '${v.x} ${v.y}', vars: [{v: {y: 1}}]}, b: {cmd: 'x ${v.x}'}}\n",
    # -- foreach
    one('{foreach: [a, b, 1, 1.50, true, null], do: {cmd: "echo ${item}"}}'),
    one('{foreach: [a, a, 1, "1"], do: {cmd: "echo ${item}"}}'),
    *(one(f'{{foreach: "${{{w}}}", do: {{cmd: "echo ${{item}}"}}}}') for w in ("l", "nums", "same", "d", "flat", "ld", "mixed",
        "s", "n", "nil", "missing", "odd", "args", "bytes", "m.a.b", "empty")),
    *(one(f'{{foreach: "${{{w}}}", do: {{cmd: "echo ${{item.x}}", outs: ["o/${{key}}"]}}}}') for w in ("d", "ld", "l")),
    one('{foreach: "${ld}", do: {cmd: "echo ${item.x}", deps: ["i/${item.y}"]}}'),
    one('{foreach: "x${l}", do: {cmd: x}}'),
    one('{foreach: [{x: 1}, {x: 2}], do: {cmd: "echo ${item.x}"}}'),
    one('{foreach: [a, {x: 1}], do: {cmd: "echo ${item}"}}'),
    one('{foreach: [a, [b]], do: {cmd: "echo ${item[0]}"}}'),
    one('{foreach: {a: 1, 2: b, true: c, 1.5: d, null: e}, do: {cmd: "echo ${key} ${item}"}}'),
    one('{foreach: {a: {x: "${n}"}, b: {x: "${l}"}}, do: {cmd: "echo ${key} ${item.x}"}}'),
    one('{foreach: {a: {x: "${n}"}, b: {x: "${f}"}}, do: {cmd: "echo ${key} ${item.x}"}}'),
    one('{foreach: {"${n}": 1}, do: {cmd: x}}'),
    one('{foreach: {"a${n}": 1}, do: {cmd: "x ${key}"}}'),
    one('{foreach: ["${n}", "${t}", "${l}", c], do: {cmd: "echo ${item}"}}'),
    one('{foreach: ["${n}", "${t}", "${nil}", c], do: {cmd: "echo ${item}"}}'),
    one('{foreach: ["${n}x", "${l}x", "${d.a}x"], do: {cmd: "echo ${item}"}}'),
    one("{foreach: [], do: {cmd: x}}"),
    one("{foreach: {}, do: {cmd: x}}"),
    one('{foreach: [], do: {cmd: "${a["}}'),
    one('{foreach: [1], do: {cmd: "${a["}}'),
    one('{foreach: ["a@b"], do: {cmd: x}}'),
    one('{foreach: ["a/b", "a:b", "a b", "é"], do: {cmd: "x ${item}"}}'),
    one('{foreach: [""], do: {cmd: x}}'),
    one("{foreach: 3, do: {cmd: x}}"),
    one("{foreach: [1]}"),
    one("{do: {cmd: x}}"),
    one("{foreach: [1], do: {cmd: x}, cmd: y}"),
    one("{foreach: [1], do: {cmd: x}, vars: [{a: 1}]}"),
    one("{foreach: [1], do: {foreach: [2], do: {cmd: x}}}"),
    one("{foreach: [1], do: {cmd: x, matrix: {a: [1]}}}"),
    one("{foreach: [1], do: {deps: [x]}}"),
    one("{foreach: [1], do: }"),
    one('{foreach: [1, 2], do: {cmd: "${item} ${v}", vars: [{v: 1}]}}'),
    one('{foreach: [1, 2], do: {cmd: "${item} ${v}", vars: [{item: 1}]}}'),
    one('{foreach: [1, 2], do: {cmd: "x ${key}", vars: [{key: 1}]}}'),
    one('{foreach: {a: 1}, do: {cmd: "x ${key}", vars: [{key: 1}]}}'),
    one('{foreach: [sub, sub], do: {cmd: "${in_sub}", wdir: "${item}", vars: [v.yaml]}}'),
    one('{foreach: [1], do: {cmd: "x ${item}"}}', top="vars: [{item: 3}]\n"),
    one('{foreach: [1], do: {cmd: "x ${item} ${key}"}}', top="vars: [{item: 3, key: 4}]\n"),
    one('{cmd: "x ${item}"}', top="vars: [{item: 3}]\n"),
    one('{foreach: [{x: {1: a, b: c}}], do: {cmd: "x ${item.x}"}}'),
    one('{foreach: "${d}", do: {cmd: "${item}"}}'),
    one('{foreach: "${d}", do: {cmd: "x ${item}", wdir: "w/${key}", deps: ["${item.x}.d"]}}'),
    one('{foreach: "${d}", do: {cmd: "x", outs: ["${key}": {cache: false, desc: "${item.x}"}], meta: {"${key}": "${item.x}"}}}'),
    one('{foreach: ["${ld}"], do: {cmd: "x ${item[0].x}"}}'),
    one('{foreach: [{a: "${ld}"}], do: {cmd: "x ${item.a[0].x}"}}'),
    "stages: {a@b: {cmd: x}}\n",
    "stages: {a: {foreach: [b], do: {cmd: x}}, c@d: {foreach: [1], do: {cmd: y}}}\n",
    "stages: {b: {cmd: x}, a: {foreach: [2, 1], do: {cmd: x}}, c: {cmd: x}}\n",
    "stages: {x y: {cmd: x}, 'a:b': {cmd: y}, a/b: {cmd: z}}\n",
    # -- matrix
    one('{matrix: {a: [1, x], b: [u, v]}, cmd: "echo ${item.a} ${item.b} ${key}"}'),
    one('{matrix: {a: "${l}", b: ["${n}", true]}, cmd: "echo ${item.a} ${item.b} ${key}"}'),
    one('{matrix: {a: "${nums}", b: [true, null]}, cmd: "echo ${item.a} ${item.b} ${key}"}'),
    one('{matrix: {a: "${ld}", p: [{q: 1}, [2], c]}, cmd: "echo ${item.a.x} ${key}"}'),
    one('{matrix: {a: ["${ld}", "${n}x"]}, cmd: "echo ${key}"}'),
    one('{matrix: {a: "${d}"}, cmd: "echo ${item.a} ${key}"}'),
    one('{matrix: {a: abc}, cmd: "echo ${item.a} ${key}"}'),
    one('{matrix: {a: "${s}"}, cmd: "echo ${item.a}"}'),
    one('{matrix: {a: "x${s}"}, cmd: "echo ${item.a}"}'),
    one('{matrix: {a: "${n}"}, cmd: x}'),
    one('{matrix: {a: "${missing}"}, cmd: x}'),
    one('{matrix: {"a${n}": [1]}, cmd: "x ${item.a1}"}'),
    one('{matrix: {"${s}": [1]}, cmd: "x"}'),
    one("{matrix: {}, cmd: x}"),
    one("{matrix: {a: []}, cmd: x}"),
    one("{matrix: {a: [], b: [1]}, cmd: x}"),
    one("{matrix: {a: 1}, cmd: x}"),
    one("{matrix: [1], cmd: x}"),
    one("{matrix: {1: [1]}, cmd: x}"),
    one("{matrix: {a: [1]}}"),
    one('{matrix: {a: [1, 1]}, cmd: "x ${item.a}"}'),
    one('{matrix: {a: [1-2, 1], b: [3, 2-3]}, cmd: "x ${item.a} ${item.b}"}'),
    one('{matrix: {a: ["x@y"]}, cmd: x}'),
    one('{matrix: {a: [""]}, cmd: x}'),
    one('{matrix: {a: [1]}, cmd: "x ${item}"}'),
    one('{matrix: {a: [1]}, cmd: "x ${item.b}"}'),
    one('{matrix: {a: [1], b: [2.0, 1e3]}, cmd: "x ${v}", vars: [{v: 1}], wdir: "w/${item.a}", deps: ["${item.b}.d"]}'),
    one('{matrix: {a: [1]}, cmd: "x", vars: [{key: 1}]}'),
    one("{matrix: {a: [1]}, foreach: [1], do: {cmd: x}}"),
    one("{matrix: {m: [u, v], n: [{k: [1]}]}, cmd: 'x ${item.m} ${item.n.k[0]}'}"),
    # -- the schema
    "", "[]\n", "a\n", "stages:\n", "stages: []\n", "stage: {}\n", "stages: {1: {cmd: x}}\n", "stages: {'': {cmd: x}}\n",
    "stages: {a: }\n", "stages: {a: x}\n", "stages: {a: {cmd: }}\n", "stages: {a: {cmd: 1}}\n", "stages: {a: {deps: [a]}}\n",
    *(one(f"{{cmd: x, {extra}}}") for extra in ("dep: [a]", "deps: a", "deps: ", "deps: [1]", "deps: [{a: b}]", "outs: [1]",
        "outs: [a: ]", "outs: [a: {cach: true}]", "outs: [a: {cache: 1}]", "outs: [{}]", "outs: [{1: {}}]", "params: [1]",
        "params: [[a]]", "wdir: 1", "frozen: 1", "meta: ", "desc: 1", "vars: x", "always_changed: x", "outs: [a: {labels: x}]",
        "outs: [a: {labels: [1]}]", "outs: [a: {x: y}]", "plots: [a: {x: 1}]", "plots: [a: {cols: y}]", "1: a", "locked: true",
        "plots: [a: {header: x}]", "outs: [a: {remote: 1}]", "md5: a", "outs: [a: {push: x}]")),
    # -- the rest of the file
    'metrics: ["${s}/m.json", b]\nparams: ["p${n}.yaml"]\n',
    "metrics: [1]\n", "metrics: a\n", "metrics: {a: b}\n", "params: [{a: b}]\n", 'metrics: ["${missing}"]\n', 'metrics: ["${a["]\n',
    'plots: [a, {b: }, {c: {x: s, y: [t, u]}}, {"${s}": {y: {"${s}.csv": [a, "${l[0]}"], d: b}, x: {f: "${s}"}, title: "${s}"}}]\n',
    "plots: {a: {x: b}}\n", "plots: [1]\n", "plots: [{}]\n", "plots: [{a: b}]\n", "plots: [{a: {x: [b]}}]\n", "plots: [{a: {y: 1}}]\n",
    "plots: [{a: {header: true}}]\n", "plots: [{a: {y: {b: {c: d}}}}]\n", "plots: [{1: }]\n", 'plots: ["${missing}"]\n',
    'artifacts: {"m${n}": {path: "${s}.pkl", type: model, desc: "${f}", labels: [a, "${l[1]}"], meta: {k: "${d}"}}}\n',
    "artifacts: {m: {type: model}}\n", "artifacts: {m: {path: a, kind: b}}\n", "artifacts: {m: a}\n", "artifacts: {m: {path: 1}}\n",
    "artifacts: {m: {path: a, labels: b}}\n", "artifacts: {1: {path: a}}\n", "artifacts: [a]\n", "artifacts: {m: {path: a, type: 1}}\n",
    'artifacts: {"${n}": {path: a}}\n', 'artifacts: {m: {path: "${missing}"}}\n',
    'datasets: [{name: "d${n}", type: dvc, url: "${s}", path: p, rev: v1}, {name: e, type: url, url: s3://b/p}]\n',
    'datasets: [{name: "${missing}"}]\n',
]  # fmt: skip


@pytest.mark.parametrize("text", STAGES)
def test_written_by_hand(both: Both, text: str) -> None:
    both.agree(text)


def test_a_file_in_a_folder(both: Both) -> None:
    """Paths, vars and the default parameters count from the file's own folder."""
    for text in (
        one('{cmd: "${n} ${extra}", deps: [../a, b]}'),
        one('{cmd: "${n} ${w}"}', top="vars: [../other.yaml]\n"),
        one('{cmd: "${n} ${w}", wdir: .., vars: ["other.yaml:w"]}'),
        one('{cmd: "${n} ${s}"}'),
        one('{cmd: "${n}"}', top="vars: [params.yaml]\n"),
        one(
            '{foreach: "${l}", do: {cmd: "x ${item}", wdir: "../${item}"}}',
            top="vars: ['../params.yaml:l']\n",
        ),
    ):
        both.agree(text, "sub/dvc.yaml")
    (both.root / "sub" / "dvc.yaml").unlink()


def test_without_parameters(both: Both) -> None:
    path = both.root / "params.yaml"
    text = path.read_text()
    try:
        for params in (None, "", "n: 1\n"):
            path.unlink(missing_ok=True)
            if params is not None:
                path.write_text(params)
            both.agree(one('{cmd: "x ${n}"}'))
            both.agree(one("{cmd: x}"))
            both.agree(one('{foreach: [1], do: {cmd: "x ${item}"}}', top="vars: [{n: 2}]\n"))
            both.agree(one("{cmd: x}", top="vars: [params.yaml]\n"))
    finally:
        path.write_text(text)


@pytest.mark.parametrize("flag", ["store_true", "boolean_optional"])
@pytest.mark.parametrize("listed", ["nargs", "append"])
def test_mappings_as_arguments(both: Both, flag: str, listed: str) -> None:
    config = both.root / ".dvc" / "config"
    config.write_text(f"[parsing]\n    bool = {flag}\n    list = {listed}\n")
    both.theirs.config["parsing"] = {"bool": flag, "list": listed}
    try:
        stages, _ = both.agree(one('{cmd: "x ${args}"}'))
        assert ("--no-off" in stages[0]["cmd"]) == (flag == "boolean_optional")
        assert ("--xs 1 --xs" in stages[0]["cmd"]) == (listed == "append")
        both.agree(one('{cmd: ["${args}", "y ${d} ${ld[0]}"]}'))
        both.agree(one('{foreach: "${ld}", do: {cmd: "x ${item}"}}'))
        both.agree(one('{matrix: {a: "${ld}"}, cmd: "x ${item} ${item.a}"}'))
    finally:
        config.write_text("")
        both.theirs.config["parsing"] = {}


# -- made up -----------------------------------------------------------------------------------------------------------

_GOOD = [
    "n",
    "f",
    "t",
    "nil",
    "s",
    "sp",
    "l[0]",
    "l[1]",
    "ld[1].x",
    "d.a.x",
    "m.a.b[0].c",
    "flat.two",
    "v",
    "u.w",
    "nums[1]",
]
_ITEM = ["item", "key", "item.x", "item.a", "item.b", "item[0]"]
_RARE = ["l", "d", "d.a", "args", "missing", "d.q", "l[7]", "s.x", "a[", "n.", ""]
references = st.one_of(
    *[st.sampled_from(_GOOD)] * 6, *[st.sampled_from(_ITEM)] * 2, st.sampled_from(_RARE)
).map(lambda path: f"${{{path}}}")
literals = st.sampled_from(["a", "x ", "-", "_é", " ", "$", "\\${n}", "--y=", "'", "{", "}"])
texts = st.lists(st.one_of(literals, literals, references), min_size=1, max_size=4).map("".join)
paths = st.lists(st.one_of(st.sampled_from(["p", "q/", "r-"]), references), max_size=3).map(
    lambda parts: "o/" + "".join(parts) + "z"
)
scalars = st.one_of(
    texts, references, st.booleans(), st.none(), st.integers(-3, 3), st.sampled_from([0.1, 1e-7, 1e20])
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=4,
)
flags = st.fixed_dictionaries(
    {},
    optional={
        "cache": st.booleans(), "persist": st.booleans(), "push": st.booleans(), "remote": st.sampled_from(["r", "${s}"]),
        "desc": texts, "type": texts, "labels": st.lists(texts, max_size=2), "meta": values,
    },
)  # fmt: skip
outs = st.lists(st.one_of(paths, st.dictionaries(paths, flags, min_size=1, max_size=2)), max_size=2)
new_vars = st.lists(
    st.sampled_from(
        [{"v": 1}, {"v": "x"}, {"u": {"w": [1]}}, {"u": {"z": 2}}, {"d": {"z": {"x": 9}}}, "other.yaml", "other.yaml:w",
         "more.yaml", {"item": 1}, {"n": 2}, "clash.yaml", {"u": 3}, "p.toml:sec"]
    ),
    max_size=2,
)  # fmt: skip
bodies = st.fixed_dictionaries(
    {"cmd": st.one_of(texts, texts, st.lists(texts, min_size=1, max_size=2))},
    optional={
        "deps": st.lists(paths, max_size=2),
        "outs": outs,
        "metrics": outs,
        "plots": outs,
        "params": st.lists(st.one_of(st.sampled_from(["n", "d.a", "${s}"]), st.just({"other.yaml": ["w", "${l[0]}"]})), max_size=2),
        "wdir": st.sampled_from(["sub", ".", "w/${s}", "w/${item}"]),
        "vars": new_vars,
        "desc": texts,
        "meta": values,
        "frozen": st.booleans(),
    },
)  # fmt: skip
items = st.one_of(
    st.lists(
        st.one_of(values, st.sampled_from(["b", "c", 1, True, {"x": 1}, {"x": "${n}", "a": [1]}, "${d.a}"])),
        max_size=3,
    ),
    st.dictionaries(st.sampled_from(["k", "e2", "${s}-k"]), st.one_of(values, st.just({"x": 1})), max_size=2),
    st.sampled_from(["${l}", "${ld}", "${d}", "${flat}", "${nums}", "${mixed}", "${s}"]),
)
axes = st.dictionaries(
    st.sampled_from(["a", "b", "x"]),
    st.one_of(
        st.lists(st.one_of(scalars, st.just({"z": 1})), max_size=3),
        st.sampled_from(["${l}", "${ld}", "${nums}"]),
    ),
    min_size=1,
    max_size=2,
)
definitions = st.one_of(
    bodies,
    st.builds(lambda data, body: {"foreach": data, "do": body}, items, bodies),
    st.builds(lambda data, body: {"matrix": data, **body}, axes, bodies),
)
documents = st.builds(
    lambda stages, top: {**top, "stages": stages},
    st.dictionaries(st.sampled_from(["one", "two", "three"]), definitions, min_size=1, max_size=3),
    st.fixed_dictionaries({}, optional={"vars": new_vars, "metrics": st.lists(paths, max_size=1)}),
)

_SEEN = {"stages": 0, "errors": 0}
# `make test` takes a fifth of them.
_EXAMPLES = 700 if ALL else 60


@settings(
    max_examples=_EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(document=documents)
def _test_made_up(both: Both, document: dict[str, Any]) -> None:
    found = both.agree(json.dumps(document))
    _SEEN["errors" if isinstance(found, Exception) else "stages"] += 1


def test_made_up(both: Both) -> None:
    _test_made_up(both)
    # Neither may crowd out the other, or nothing was compared.
    assert _SEEN["stages"] > _EXAMPLES // 7 and _SEEN["errors"] > _EXAMPLES // 7


# -- run by both -------------------------------------------------------------------------------------------------------

PIPELINES = {
    "foreach, matrix and vars": {
        "params.yaml": "lr: 0.1\nnets: {small: {size: 3, drop: [0.1, 0.2]}, big: {size: 5, drop: [0.5]}}\nflags: {fast: true, n: [1, 2]}\n",
        "more.yaml": "prefix: run\nunused: 1\n",
        "in.txt": "in\n",
        "dvc.yaml": """\
vars: ['more.yaml:prefix', {folder: made}]
stages:
  prepare:
    cmd: mkdir -p ${folder} && cp in.txt ${folder}/in
    deps: [in.txt]
    outs: ["${folder}/in"]
  train:
    foreach: ${nets}
    do:
      cmd: echo ${prefix} ${item.size} ${item.drop[0]} ${flags} $(cat ../${folder}/in) > ${key}.model
      wdir: ${folder}
      deps: [in]
      params: [../params.yaml: ['nets.${key}']]
      outs: ["${key}.model"]
  score:
    matrix:
      net: [small, big]
      seed: [1, 2.50, true]
      more: [{a: 1}]
    cmd:
      - echo ${item.net} > s-${key}
      - echo '{"v":' ${item.more.a} '}' > m-${key}.json
    deps: ["${folder}/${item.net}.model"]
    params: [lr, {more.yaml: [prefix]}]
    outs: ["s-${key}"]
    metrics: ["m-${key}.json": {cache: false}]
""",
    },
    "several files": {
        "params.yaml": "n: 1\n",
        "a/params.yaml": "n: 2\nnames: [x, y z]\n",
        "dvc.yaml": "stages:\n  all:\n    foreach: [x, y z]\n    do:\n      cmd: cp 'a/${item}' '${item}'\n      deps: ['a/${item}']\n      outs: ['${item}']\n",
        "a/dvc.yaml": "stages:\n  make:\n    foreach: ${names}\n    do:\n      cmd: echo ${n} > '${item}'\n      params: [n]\n      outs: ['${item}']\n",
    },
}  # fmt: skip


def _run(folder: Path, *argv: str) -> str:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


def _made(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if not name.startswith((".git/", ".dvc/")) or name.startswith(".dvc/cache/runs/")
    }


def _repro(folder: Path, *targets: str) -> Any:
    with LocalRunner(echo=False) as runner:
        return repro(Repo.open(folder), targets, runner=runner, jobs=1)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_leaves_the_same_files(tmp_path: Path, name: str) -> None:
    """dvc.lock and the run cache byte for byte, and neither of us finds anything to do after the other."""
    mine, theirs = tmp_path / "a" / "repo", tmp_path / "b" / "repo"
    mine.mkdir(parents=True)
    _run(mine, "git", "init", "-q")
    _run(mine, str(DVC), "init", "-q")
    for file, text in PIPELINES[name].items():
        (mine / file).parent.mkdir(exist_ok=True)
        (mine / file).write_text(text)
    shutil.copytree(mine, theirs)
    _run(theirs, str(DVC), "repro", "-q")
    result = _repro(mine)
    assert not result.failed and len(result.ran) >= 4
    assert _made(mine) == _made(theirs)
    assert json.loads(_run(mine, str(DVC), "status", "--json")) == {}
    assert "Running stage" not in _run(mine, str(DVC), "repro", "--dry")
    assert all(decision.action == "skip" for decision in plan(Repo.open(theirs)))
    # One value changes: both run the same stages again.
    path = "params.yaml" if name.startswith("foreach") else "a/params.yaml"
    for folder in (mine, theirs):
        text = (folder / path).read_text()
        (folder / path).write_text(text.replace("size: 3", "size: 4").replace("n: 2", "n: 3"))
    group = "train" if name.startswith("foreach") else "a/dvc.yaml:make"
    _run(theirs, str(DVC), "repro", "-q", group)
    ran = _repro(mine, group).ran
    assert ran == (("train@small",) if group == "train" else ("a/dvc.yaml:make@x", "a/dvc.yaml:make@y z"))
    assert _made(mine) == _made(theirs)


def test_a_dataset(tmp_path: Path) -> None:
    """What dvc records of a dataset that a stage reads is what we would."""
    data, folder = tmp_path / "data", tmp_path / "repo"
    for each in (data, folder):
        each.mkdir()
        _run(each, "git", "init", "-q")
        _run(each, str(DVC), "init", "-q")
    (data / "cats").write_text("meow\n")
    _run(data, str(DVC), "add", "-q", "cats")
    _run(data, "git", "add", "-A")
    _run(data, "git", "commit", "-qm", "cats")
    (folder / "dvc.yaml").write_text(
        f"datasets:\n- {{name: cats, url: '{data}', type: dvc, path: cats}}\nstages:\n  s:\n    cmd: echo > o\n"
        "    deps: ['ds://cats']\n    outs: [o]\n"
    )
    files = Repo.open(folder).files()
    assert read_datasets(files, "dvc.yaml")["cats"].lock is None
    _run(folder, str(DVC), "dataset", "update", "-q", "cats")
    _run(folder, str(DVC), "repro", "-q")
    cats = read_datasets(files, "dvc.yaml")["cats"]
    (stage,) = load_stages(files, "dvc.yaml")
    assert stage.deps[0].dataset == cats.name
    assert read_lock(files, "dvc.lock")["s"]["deps"] == [{"path": "ds://cats", "dataset": cats.lock}]
    (folder / "dvc.yaml").write_text((folder / "dvc.yaml").read_text().replace("path: cats", "path: dogs"))
    assert read_datasets(files, "dvc.yaml")["cats"].stale
