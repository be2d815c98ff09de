"""dvc.yaml, dvc.lock, parameter files and the graph: what they say, and what is said when they are wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dvkf_prefect.errors import ParseError, StageGraphError, StageNotFoundError, UnsafePathError
from dvkf_prefect.formats.artifacts import ArtifactDecl, read_artifacts
from dvkf_prefect.formats.documents import dump
from dvkf_prefect.formats.dvclock import put_entry, read_lock
from dvkf_prefect.formats.dvcyaml import Dependency, load_stages, read_outputs
from dvkf_prefect.formats.params import check_params, flatten, parse_params, render_params, select
from dvkf_prefect.pipeline.plan.graph import Graph


@dataclass
class Files:
    texts: dict[str, str] = field(default_factory=dict)
    rev = None

    def read(self, path: str) -> bytes:
        if path not in self.texts:
            raise FileNotFoundError(path)
        return self.texts[path].encode()

    def exists(self, path: str) -> bool:
        return path in self.texts

    def find(self) -> list[str]:
        return sorted(self.texts)


def stages(text: str, path: str = "dvc.yaml"):
    return load_stages(Files({path: text}), path)


def test_a_stage_as_written():
    (stage,) = stages(
        """\
stages:
  train:
    cmd: |
      echo 1
      echo \\${HOME}
    wdir: w
    deps: [../in, /abs, "s3://b/k"]
    params: [a, b.c, {other.json: [x]}, {whole.toml: }, a]
    outs:
      - ../m: {cache: false, persist: true, push: false, remote: r, desc: d}
      - d
    metrics: [m.json]
    plots: [p.csv: {x: a, header: false}]
    frozen: true
    always_changed: true
    meta: {any: [thing]}
""",
        "sub/dvc.yaml",
    )
    assert stage.address == "sub/dvc.yaml:train"
    assert stage.cmd == ("echo 1", "echo ${HOME}")
    assert stage.wdir == "sub/w"
    assert stage.deps == (
        Dependency("sub/in", "../in"),
        Dependency("/abs", "/abs", external=True),
        Dependency("s3://b/k", "s3://b/k", external=True),
    )
    assert stage.params == {"params.yaml": ("a", "b.c"), "other.json": ("x",), "whole.toml": ()}
    assert stage.params_path("other.json") == "sub/w/other.json"
    first, second, metric, plot = stage.outs
    assert (first.path, first.cached, first.persist, first.pushed, first.remote) == (
        "sub/m",
        False,
        True,
        False,
        "r",
    )
    assert first.options == {"desc": "d"}
    assert (second.path, second.cached, second.kind) == ("sub/w/d", True, "out")
    assert (metric.kind, plot.kind, plot.options) == ("metric", "plot", {"x": "a", "header": False})
    assert stage.frozen and stage.always_changed and stage.meta == {"any": ["thing"]}


WRONG = {
    "not YAML": ("stages:\n  a: [\n", 3, "not valid YAML"),
    "a list": ("- a\n", 1, "a dvc.yaml is a mapping with stages"),
    "unknown top key": ("stages: {}\nstage: {}\n", 2, "unknown key 'stage'; expected stages"),
    "stages a list": ("stages:\n- a\n", 1, "`stages` is a mapping"),
    "stage a text": ("stages:\n  a: echo\n", 2, "the stage 'a' is a mapping with `cmd`"),
    "no cmd": ("stages:\n  b:\n    cmd: x\n  a:\n    deps: [x]\n", 4, "the stage 'a' needs `cmd`"),
    "cmd a number": (
        "stages:\n  a:\n    cmd: 3\n",
        3,
        "`cmd` of stage 'a' is a command, or a list of commands",
    ),
    "cmd with a number": (
        "stages:\n  a:\n    cmd:\n    - x\n    - 3\n",
        5,
        "an item of `cmd` is a string, not 3",
    ),
    "unknown stage key": ("stages:\n  a:\n    cmd: x\n    dep: [x]\n", 4, "unknown key 'dep' of stage 'a'"),
    "deps a text": ("stages:\n  a:\n    cmd: x\n    deps: x\n", 4, "`deps` of stage 'a' is a list of paths"),
    "flag unknown": (
        "stages:\n  a:\n    cmd: x\n    outs:\n    - o:\n        cach: false\n",
        6,
        "unknown option 'cach' of 'o'; expected cache, persist",
    ),
    "flag of a wrong kind": (
        "stages:\n  a:\n    cmd: x\n    outs:\n    - o:\n        cache: maybe\n",
        6,
        "`cache` of 'o' is true or false, not 'maybe'",
    ),
    "out a number": ("stages:\n  a:\n    cmd: x\n    outs:\n    - 3\n", 5, "an item of `outs` is a path"),
    "frozen a text": (
        "stages:\n  a:\n    cmd: x\n    frozen: 'yes'\n",
        4,
        "`frozen` of stage 'a' is true or false",
    ),
    "params a number": ("stages:\n  a:\n    cmd: x\n    params: [3]\n", 4, "an item of `params` is a name"),
    "params of a file": (
        "stages:\n  a:\n    cmd: x\n    params: [f.yaml: x]\n",
        4,
        "`f.yaml` is a list of strings",
    ),
    "metrics a text": ("metrics: m.json\n", 1, "`metrics` is a list of strings"),
    "two of one name": ("stages:\n  a:\n    cmd: x\n  a:\n    cmd: y\n", 4, "not valid YAML"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_told_by_line(what):
    text, line, expected = WRONG[what]
    with pytest.raises(ParseError) as caught:
        stages(text)
    assert expected in caught.value.expected
    assert caught.value.file == "dvc.yaml"
    assert caught.value.line is not None
    assert what in ("not YAML", "two of one name") or caught.value.line == line


@pytest.mark.parametrize(
    "key", ["outs: [../x]", "outs: [/etc/x]", "wdir: ../..", "params: [../p.yaml: [a]]", "outs: ['s3://b/k']"]
)
def test_paths_stay_in_the_repository(key):
    with pytest.raises(UnsafePathError, match=r"dvc\.yaml, line 4: '.*' leads outside the repository"):
        stages(f"stages:\n  a:\n    cmd: x\n    {key}\n")


def test_outputs_join_dvc_yaml_and_dvc_lock():
    files = Files(
        {
            "d/dvc.yaml": "stages:\n  a:\n    cmd: x\n    outs: [o: {push: false}, new]\n"
            "    metrics: [m: {cache: false}]\n",
            "d/dvc.lock": "schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - path: o\n      hash: md5\n"
            f"      md5: {'0' * 32}.dir\n      size: 5\n      nfiles: 2\n    - path: m\n      md5: {'a' * 32}\n",
        }
    )
    out, new, metric = read_outputs(files, "d/dvc.yaml")
    assert (out.path, out.digest, out.size, out.nfiles, out.pushed) == ("d/o", "0" * 32 + ".dir", 5, 2, False)
    assert (new.digest, new.source, new.stage) == (None, "d/dvc.yaml", "a")
    assert (metric.cached, metric.hash_name) == (False, "md5-dos2unix")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\n", 1),
        ("schema: '1.0'\n", 1),
        ("schema: '2.0'\nstages: []\n", 2),
        ("schema: '2.0'\nstages:\n  a:\n    deps: []\n", 3),
        ("schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - hash: md5\n", 6),
        ("schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - path: x\n      md5: ../../etc\n", 7),
        ("schema: '2.0'\nstages:\n  a:\n    cmd: x\n    params: [x]\n", 5),
    ],
)
def test_a_wrong_lock_is_told_by_line(text, line):
    with pytest.raises(ParseError) as caught:
        read_lock(Files({"dvc.lock": text}), "dvc.lock")
    assert caught.value.line == line


ODD_VALUES = [
    1e-5, 1e22, -0.0, 1.0, "1.0", "yes", "no", "null", "~", "", " x ", "a: b", "# c", "- d", "'", '"', "é ü", "\t",
    "line\n", "two\nlines\n", "x" * 100, "word " * 40, "trailing \nspace", "0x1f", "1_000", "2001-01-01", "=", "!",
    {}, [], [[]], {"a": {"b": [1, {"c": None}]}}, None, True, {1: 2}, {"": 1}, float("inf"), "\x07", "a\\b", "%x", "@y",
]  # fmt: skip


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
def test_an_entry_put_in_is_the_file_written_whole(value):
    """Splicing gives the bytes that DVC's way gives: parse everything, put the entry in, write everything."""
    from ruamel.yaml import YAML

    entry = {"cmd": "x", "params": {"p.yaml": {"k": value}}}
    whole = b""
    spliced = b""
    for name in ("one", "two", "th ree", "one"):
        whole = dump({**(YAML().load(whole) if whole else {"schema": "2.0"})})
        document = YAML().load(whole)
        document.setdefault("stages", {})[name] = entry
        whole = dump(document)
        spliced = put_entry(spliced, name, entry)
        assert spliced == whole


def test_a_new_entry_goes_in_front_of_its_followers():
    data = b""
    for name in ("c", "x", "a"):
        data = put_entry(data, name, {"cmd": name}, before=["b", "c"] if name == "a" else ())
    assert [
        line.strip() for line in data.decode().splitlines() if line.startswith("  ") and line[2] != " "
    ] == [
        "a:",
        "c:",
        "x:",
    ]
    commented = data.replace(b"  x:", b"  # mine\n  x:")
    put = put_entry(commented, "b", {"cmd": "b"}, before=["c"])
    assert b"# mine" in put and put.index(b"  b:") < put.index(b"  c:")


def test_parameter_files():
    python = (
        "A = 1\nB: int = 2\nC = D = 3\nE = [1, (2, 3)]\nF = A + 1\nG = {'x': -1}\n"
        "class K:\n    L = 'l'\n    def __init__(self):\n        self.m = 5\n        n = 6\n"
        "def f():\n    H = 1\n"
    )
    assert parse_params(python.encode(), "p.py") == {
        "A": 1,
        "B": 2,
        "E": [1, [2, 3]],
        "G": {"x": -1},
        "K": {"L": "l", "m": 5},
    }
    assert parse_params(b"", "p.yaml") == {}
    assert parse_params(b'x = 1\n[t]\ny = "z"\n', "p.toml") == {"x": 1, "t": {"y": "z"}}
    for data, name, line in ((b"a: [", "p.yaml", 1), (b'{"a": }', "p.json", 1), (b"a = (\n", "p.py", 1)):
        with pytest.raises(ParseError, match=name) as caught:
            parse_params(data, name)
        assert caught.value.line == line or caught.value.line
    with pytest.raises(ParseError, match="not valid TOML"):
        parse_params(b"a = ", "p.toml")
    with pytest.raises(ParseError, match="a parameter file is a mapping"):
        parse_params(b"- a\n", "p.yaml")
    values = parse_params(b"a: {b: 2020-01-01}\nc: 1\n", "p.yaml")
    check_params({"c": values["c"]}, "p.yaml")
    with pytest.raises(ParseError, match=r"the parameter 'a.b' is a date, which dvc.lock cannot store"):
        check_params(values, "p.yaml")


def test_selecting_flattening_and_rendering():
    values = {"a": {"b": [1, {"c": 2}]}, "n": None, 5: "five"}
    assert select(values, ["a.b.1.c", "n", "5", "a.x", "a.b.9", "n.x"]) == {
        "a.b.1.c": 2,
        "n": None,
        "5": "five",
    }
    assert select(values, []) == values
    assert flatten({"a": {"b": 1, "c": {}}, "d": []}) == {"a.b": 1, "a.c": {}, "d": []}
    assert flatten(3) == {}
    nested = {"a.b": 1, "a.c.d": "x", "e": [1.5, None], "f": {"g": True}}
    for name in ("p.yaml", "p.json"):
        assert parse_params(render_params(name, nested), name) == {
            "a": {"b": 1, "c": {"d": "x"}},
            "e": [1.5, None],
            "f": {"g": True},
        }
    assert parse_params(render_params("p.toml", {"a.b": "é\n", "x": float("inf")}), "p.toml") == {
        "a": {"b": "é\n"},
        "x": float("inf"),
    }
    assert parse_params(render_params("p.yaml", {"": {"a.b": 1}}), "p.yaml") == {"a.b": 1}


def graph(**deps_and_outs: tuple[list[str], list[str]]) -> Graph:
    text = "stages:\n" + "".join(
        f"  {name}:\n    cmd: x\n    deps: {deps}\n    outs: {outs}\n"
        for name, (deps, outs) in deps_and_outs.items()
    )
    return Graph(stages(text))


def test_order_and_targets():
    made = graph(c=(["b/x", "top"], ["c"]), a=(["in"], ["top/y"]), b=(["top/y"], ["b"]))
    assert [s.address for s in made.order()] == ["a", "b", "c"]
    assert [s.address for s in made.order(["b"])] == ["a", "b"]
    assert [s.address for s in made.order(["c", "b"], alone=True)] == ["b", "c"]
    assert made.find("dvc.yaml:a") == ["a"] == made.find("top/y") == made.find("./a")
    assert set(made.find("dvc.yaml")) == {"a", "b", "c"}
    with pytest.raises(StageNotFoundError):
        made.find("in")


def test_a_graph_that_is_none():
    with pytest.raises(StageGraphError, match=r"form a cycle: (a → b → c → a|b → c → a → b|c → a → b → c)"):
        graph(a=(["c"], ["a"]), b=(["a"], ["b"]), c=(["b"], ["c"]))
    with pytest.raises(StageGraphError, match="'o' is an output of stages 'a' and 'b'"):
        graph(a=([], ["o"]), b=([], ["o"]))
    with pytest.raises(StageGraphError, match=r"'o/x' \(stage 'b'\) lies inside 'o', an output of stage 'a'"):
        graph(a=([], ["o"]), b=([], ["o/x"]))
    with pytest.raises(StageGraphError, match="A stage cannot depend on its own output"):
        graph(a=(["o"], ["o/x"]))


def test_a_long_chain_needs_no_stack():
    n = 3000
    made = graph(**{f"s{i}": ([f"o{i - 1}"] if i else [], [f"o{i}"]) for i in reversed(range(n))})
    assert [s.address for s in made.order()] == [f"s{i}" for i in range(n)]


def test_artifacts():
    text = "artifacts:\n  m:\n    path: models/m.pkl\n    type: model\n    labels: [a]\n    meta: {k: 1}\n"
    files = Files({"d/dvc.yaml": text, "bad.yaml": "artifacts:\n  m:\n    type: x\n"})
    assert read_artifacts(files, "d/dvc.yaml") == {
        "m": ArtifactDecl("d/models/m.pkl", "model", labels=("a",), meta={"k": 1})
    }
    assert read_artifacts(files, "none/dvc.yaml") == {}
    with pytest.raises(ParseError, match=r"bad\.yaml, line 2: the artifact 'm' is a mapping with `path`"):
        read_artifacts(files, "bad.yaml")
    with pytest.raises(UnsafePathError):
        read_artifacts(Files({"x": "artifacts: {m: {path: ../m}}\n"}), "x")
