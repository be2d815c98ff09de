"""Templates of a dvc.yaml: what is said when they are wrong, what is read for them and when, groups as targets."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dvkf_prefect.errors import ConfigError, ParseError, StageGraphError, StageNotFoundError, UnsafePathError
from dvkf_prefect.formats import dvcyaml as stages_module
from dvkf_prefect.formats.artifacts import read_artifacts, read_datasets
from dvkf_prefect.formats.dvcyaml import load_stages, read_outputs, read_sections
from dvkf_prefect.formats.outputs import Origin, Output
from dvkf_prefect.pipeline.plan.graph import Graph


@dataclass
class Files:
    texts: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    rev = None

    def read(self, path: str) -> bytes:
        self.asked.append(path)
        if path not in self.texts:
            raise FileNotFoundError(path)
        return self.texts[path].encode()

    def exists(self, path: str) -> bool:
        return path in self.texts

    def find(self) -> list[str]:
        return sorted(self.texts)


PARAMS = "n: 1\ntrain:\n  lr: 0.1\n  layers: [64, 32]\n  args: {fast: true, slow: false, sizes: [1, 2]}\n"


def stages(text: str, params: str | None = PARAMS, **more: str):
    files = Files({"dvc.yaml": text, **more, **({} if params is None else {"params.yaml": params})})
    return load_stages(files, "dvc.yaml")


def test_one_definition_many_stages():
    made = stages("""\
vars: [{root: data}]
stages:
  train:
    matrix:
      lr: ["${train.lr}", 1]
      net: [{size: 3}, {size: 5}]
    wdir: work
    cmd: fit --lr ${item.lr} --size ${item.net.size} ${train.args}
    deps: ["../${root}/in"]
    params: [train.layers]
    outs:
      - m/${key}: {push: false, desc: "${item.net.size} cells"}
""")
    assert [stage.name for stage in made] == [
        "train@0.1-net0",
        "train@0.1-net1",
        "train@1-net0",
        "train@1-net1",
    ]
    stage = made[1]
    assert stage.command == "fit --lr 0.1 --size 5 --fast --sizes 1 2"
    assert (stage.wdir, stage.deps[0].path, stage.group) == ("work", "data/in", "train")
    assert (stage.outs[0].path, stage.outs[0].options) == ("work/m/0.1-net1", {"desc": "5 cells"})
    assert stage.used == {"params.yaml": {"train.lr": 0.1}}


WRONG = {
    "no such value": (
        "stages:\n  a:\n    cmd:\n    - x\n    - echo ${train.rl}\n",
        5,
        "`${train.rl}`: unknown name 'rl' in 'train' of params.yaml; expected lr, layers or args",
    ),
    "none at the top": (
        "stages:\n  a:\n    cmd: x\n    outs:\n    - o:\n        desc: ${m}\n",
        6,
        "`${m}`: unknown name 'm' in params.yaml or `vars`; expected n or train",
    ),
    "in a key": ("stages:\n  a:\n    cmd: x\n    outs:\n    - b\n    - ${m}: {cache: false}\n", 6, "`${m}`"),
    "under do": (
        "stages:\n  a:\n    foreach: [1]\n    do:\n      cmd: x\n      deps: ['${item.x}']\n",
        6,
        "`${item.x}`: 'item' is 1, which has no 'x'; expected a mapping or a list",
    ),
    "in foreach": ("stages:\n  a:\n    foreach: ${m}\n    do: {cmd: x}\n", 3, "`${m}`"),
    "foreach over a number": (
        "stages:\n  a:\n    foreach: ${n}\n    do: {cmd: x}\n",
        3,
        "`foreach` of 'a' is a list or a mapping, not 1",
    ),
    "a matrix of a number": (
        "stages:\n  a:\n    matrix:\n      k: ${n}\n    cmd: x\n",
        4,
        "`k` of the matrix of 'a' is a list, not 1",
    ),
    "a list's end": (
        "stages:\n  a:\n    cmd: ${train.layers[2]}\n",
        3,
        "no item '2' in the list 'train.layers'; expected 0 to 1",
    ),
    "how it is written": (
        "stages:\n  a:\n    cmd: ${train.[0]}\n",
        3,
        "`${train.[0]}`: not an expression",
    ),
    "a list in a text": ("stages:\n  a:\n    cmd: x ${train.layers}\n", 3, "`${train.layers}` is a list"),
    "a mapping in a path": ("stages:\n  a:\n    cmd: x\n    deps: ['${train}']\n", 4, "`${train}` is a mapping"),
    "a number as a path": ("stages:\n  a:\n    cmd: x\n    deps: ['${n}']\n", 4, "a path is a string, not 1"),
    "vars of no file": ("vars:\n- {a: 1}\n- v.yaml\nstages: {a: {cmd: x}}\n", 3, "the file v.yaml does not exist"),
    "vars of no key": (
        "vars: ['w.yaml:b']\n",
        1,
        "unknown key 'b' at the top of w.yaml; expected a",
    ),
    "vars of params.yaml": ("vars: ['params.yaml:n']\n", 1, "all of params.yaml is loaded already"),
    "vars twice": (
        "vars:\n- {n: 2}\n",
        2,
        "cannot set 'n' from vars[0]: params.yaml sets it already",
    ),
    "vars with an expression": ("vars:\n- {a: '${n}'}\n", 2, "`vars` cannot contain `${}`"),
    "vars set the item": (
        "stages:\n  a:\n    foreach: [1]\n    do:\n      cmd: x ${item}\n      vars:\n      - {item: 2}\n",
        7,
        "item is set by `foreach` or `matrix`",
    ),
    "an @ in an item": ("stages:\n  a:\n    foreach: [x@y]\n    do: {cmd: x}\n", 2, "the item 'x@y' of 'a' has a '@'"),
    "an @ in a name": ("stages:\n  a@b: {cmd: x}\n", 2, "the stage's name 'a@b' contains '@'"),
    "cmd beside foreach": (
        "stages:\n  a:\n    foreach: [1]\n    do: {cmd: x}\n    cmd: y\n",
        5,
        "'cmd' is beside `foreach` in stage 'a'",
    ),
    "no do": ("stages:\n  a:\n    foreach: [1]\n", 2, "the stage 'a' needs `do`"),
    "a dvc.yaml as a dependency": (
        "stages:\n  a:\n    cmd: x\n    deps: [sub/dvc.yaml]\n",
        4,
        "'sub/dvc.yaml' is a DVC file",
    ),
    "a plot's axis": ("plots:\n- p:\n    x: [a]\n", 3, "`x` of 'p' is a column"),
    "an artifact's key": ("artifacts:\n  m:\n    path: a\n    kind: b\n", 4, "unknown key 'kind' of the artifact 'm'"),
    "a metric": ("metrics:\n- a\n- ${m}\n", 3, "`${m}`"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_template_is_told_by_file_line_and_key(what):
    text, line, expected = WRONG[what]
    with pytest.raises(ParseError) as caught:
        stages(text, **{"w.yaml": "a: 1\n"})
    assert expected in caught.value.expected
    assert (caught.value.file, caught.value.line) == ("dvc.yaml", line)


def test_what_is_wrong_with_another_file_names_it():
    with pytest.raises(ParseError, match=r"^params\.yaml, line 2: not valid YAML"):
        stages("stages: {a: {cmd: '${n}'}}\n", "a: [\n")
    with pytest.raises(ParseError, match=r"^params\.yaml: 'a\.b' is a date, which a template cannot use"):
        stages("stages: {a: {cmd: 'x ${n}'}}\n", "n: 1\na: {b: 2020-01-01}\n")
    with pytest.raises(
        UnsafePathError, match=r"dvc\.yaml, line 1: '\.\./v\.yaml' leads outside the repository"
    ):
        stages("vars: [../v.yaml]\n")
    with pytest.raises(UnsafePathError, match=r"dvc\.yaml, line 4: '\.\./1' leads outside the repository"):
        stages("stages:\n  a:\n    cmd: x\n    wdir: ../${n}\n")


def test_parameters_are_read_only_where_something_asks_for_them():
    """A params.yaml that no template can hold does not keep stages without templates from being read."""
    files = Files({"dvc.yaml": "stages: {a: {cmd: 'x \\${n}'}}\n", "params.yaml": "when: 2020-01-01\n"})
    assert load_stages(files, "dvc.yaml")[0].command == "x ${n}"
    assert "params.yaml" not in files.asked


def test_a_file_is_resolved_anew_when_something_it_was_made_of_changed(monkeypatch):
    count = []
    resolver = stages_module.Resolver
    monkeypatch.setattr(stages_module, "Resolver", lambda *args: count.append(1) or resolver(*args))
    files = Files(
        {
            "d/dvc.yaml": "vars: [v.yaml]\nstages: {a: {cmd: 'echo ${x} ${n} ${args}', outs: ['o${x}']}}\n",
            "d/v.yaml": "x: 1\n",
            "d/params.yaml": "n: 2\nargs: {off: false}\n",
        }
    )
    command = lambda: load_stages(files, "d/dvc.yaml")[0].command  # noqa: E731
    assert command() == "echo 1 2 "
    assert read_outputs(files, "d/dvc.yaml")[0].path == "d/o1"
    assert len(count) == 1
    files.texts["d/v.yaml"] = "x: 3\n"
    assert command() == "echo 3 2 " and read_outputs(files, "d/dvc.yaml")[0].path == "d/o3"
    files.texts[".dvc/config"] = "[parsing]\n    bool = Boolean_optional\n"
    assert command() == "echo 3 2 --no-off"
    files.texts[".dvc/config.local"] = "[core]\n    remote = parsing\n"
    assert command() == "echo 3 2 --no-off"
    files.texts[".dvc/config.local"] = "[parsing]\nbool = store_true\n"
    assert command() == "echo 3 2 "
    del files.texts[".dvc/config"], files.texts[".dvc/config.local"]
    before = len(count)
    assert command() == "echo 3 2 " and len(count) == before  # what was is still known
    files.texts[".dvc/config"] = "[parsing]\n    list = all\n"
    with pytest.raises(ConfigError, match=r"\[parsing\] list = all: expected nargs or append"):
        command()
    del files.texts["d/v.yaml"]
    with pytest.raises(ParseError, match=r"the file d/v\.yaml does not exist"):
        command()


def test_groups_are_targets():
    made = Graph(
        stages(
            "stages:\n  a: {foreach: [x, 'y/z', 'u:v'], do: {cmd: x, outs: ['${item}.o']}}\n"
            "  ab: {cmd: x}\n  m: {matrix: {k: [1, 2]}, cmd: x}\n"
        )
        + load_stages(Files({"s/dvc.yaml": "stages: {a: {foreach: [q], do: {cmd: x}}}\n"}), "s/dvc.yaml")
    )
    assert made.find("a") == ["a@x", "a@y/z", "a@u:v"] == made.find("dvc.yaml:a") == made.find(":a")
    assert made.find("m") == ["m@1", "m@2"]
    for address in ("a@x", "a@y/z", "a@u:v", "ab"):
        assert (
            made.find(address)
            == [address]
            == made.find(f"dvc.yaml:{address}")
            == made.find(f"./dvc.yaml:{address}")
        )
    assert (
        made.find("s/dvc.yaml:a")
        == ["s/dvc.yaml:a@q"]
        == made.find("s/dvc.yaml:a@q")
        == made.find("s/dvc.yaml")
    )
    assert made.find("y/z.o") == ["a@y/z"]
    for wrong in ("a@", "a@q", "s/dvc.yaml:m", "k", "s/dvc.yaml:"):
        with pytest.raises(StageNotFoundError):
            made.find(wrong)


def test_an_import_that_follows_its_source_stands_between_stages():
    made = stages(
        "stages:\n  last: {cmd: x, deps: [copy/a]}\n  other: {cmd: x, deps: [copy]}\n"
        "  first: {cmd: x, outs: [made]}\n  before: {cmd: x, outs: [w], deps: [z]}\n"
    )

    def needs(**options):
        output = Output("copy", None, source="copy.dvc", origin=Origin(**{"frozen": False, **options}))
        graph = Graph(made, [output])
        assert graph.upstream["last"] == graph.upstream["other"]
        return graph.upstream["last"]

    assert needs(path="made/x") == ("first",)
    assert needs(path="../made", folder="sub") == ("first",)
    assert needs(path="made", frozen=True) == ()
    assert needs(path="made", repo={"url": "u"}) == ()
    for elsewhere in ("s3://b/made", "/made", "../made", "data"):
        assert needs(path=elsewhere) == ()
    chain = [
        Output("z", None, source="z.dvc", origin=Origin("y", frozen=False)),
        Output("y", None, source="y.dvc", origin=Origin("made", frozen=False)),
    ]
    assert Graph(made, chain).upstream["before"] == ("first",)
    with pytest.raises(StageGraphError, match="cannot depend on its own output"):
        Graph(made, [Output("z", None, source="z.dvc", origin=Origin("w", frozen=False))])


def test_what_else_a_file_says():
    files = Files(
        {
            "d/dvc.yaml": """\
vars: [{v: 1.5}]
metrics: ["m${v}.json"]
params: [p.yaml]
plots:
- a.csv
- roc: {x: fpr, y: {"r${v}.csv": [tpr, b]}, title: "v ${v}"}
artifacts:
  net: {path: "m${v}.pkl", type: model, desc: "${v}", labels: ["l${v}"], meta: {k: "${v}"}}
datasets:
- {name: cats, type: dvc, url: u, path: p}
- {name: dogs, type: url, url: "s3://b/${v}"}
- {name: new, type: dc, url: "dc://x"}
""",
            "d/dvc.lock": """\
schema: '2.0'
datasets:
- {name: cats, url: u, type: dvc, path: p, rev_lock: abc}
- {name: dogs, url: "s3://b/1", type: url, meta: {isdir: true}}
stages: {}
""",
        }
    )
    found = read_sections(files, "d/dvc.yaml")
    assert (found.metrics, found.params) == (("m1.5.json",), ("p.yaml",))
    assert found.plots == {
        "a.csv": {},
        "roc": {"x": "fpr", "y": {"r1.5.csv": ["tpr", "b"]}, "title": "v 1.5"},
    }
    art = read_artifacts(files, "d/dvc.yaml")["net"]
    assert (art.path, art.desc, art.labels, art.meta) == ("d/m1.5.pkl", "1.5", ("l1.5",), {"k": 1.5})
    cats, dogs, new = read_datasets(files, "d/dvc.yaml").values()
    assert cats.lock == {"name": "cats", "url": "u", "type": "dvc", "path": "p", "rev_lock": "abc"}
    assert (dogs.url, dogs.stale, dogs.lock) == ("s3://b/1.5", True, None)
    assert (new.stale, new.lock) == (False, None)
    assert read_datasets(files, "e/dvc.yaml") == {}
    for text, expected in (
        ("datasets: [{name: a, type: x, url: u}]", "the type of a dataset is dvc, dc or url, not 'x'"),
        ("datasets: [{name: a, type: dvc}]", "a dataset is a mapping with `name`"),
        ("datasets: [a]", "a dataset is a mapping with `name`"),
        ("datasets: {a: b}", "`datasets` is a list"),
    ):
        with pytest.raises(ParseError, match=expected):
            read_datasets(Files({"dvc.yaml": text}), "dvc.yaml")
    (stage,) = stages("stages: {a: {cmd: x, deps: ['ds://cats', 's3://b/k', y]}}\n")
    assert [dep.dataset for dep in stage.deps] == ["cats", None, None]


def test_thousands_of_stages_of_one_definition():
    """Each file is parsed once and the definition compiled once, whatever the number of stages."""
    count = 3000
    params = "items:\n" + "".join(f"  k{i}: {{x: {i}}}\n" for i in range(count))
    text = "stages: {s: {foreach: '${items}', do: {cmd: 'x ${item.x}', outs: ['o/${key}'], deps: ['i/${item.x}']}}}\n"
    files = Files({"dvc.yaml": text, "params.yaml": params})
    made = load_stages(files, "dvc.yaml")
    assert files.asked.count("params.yaml") == 1
    assert len(made) == count and made[-1].command == f"x {count - 1}"
    assert len({stage.outs[0].path for stage in made}) == count
    assert made[7].used == {"params.yaml": {"items.k7.x": 7}}
