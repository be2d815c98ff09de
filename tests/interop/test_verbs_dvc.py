"""Verbs on pipelines typed to us and to the real `dvc`, in two copies of one project: the same is left behind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dvkf_prefect import cli

DVC = str(Path(sys.executable).with_name("dvc"))


class Pair:
    """Two copies of a project: one for us, one for the real `dvc`."""

    def __init__(self, root: Path, files: dict[str, str], *, add: tuple[str, ...] = ()) -> None:
        self.mine, self.theirs = root / "a" / "repo", root / "b" / "repo"
        self.mine.mkdir(parents=True)
        self._run(self.mine, "git", "init", "-q")
        self._run(self.mine, DVC, "init", "-q")
        self.write(files, folders=[self.mine])
        if add:
            self._run(self.mine, DVC, "add", "-q", *add)
        self.git(self.mine)
        self.theirs.parent.mkdir()
        shutil.copytree(self.mine, self.theirs, symlinks=True)

    @property
    def both(self) -> list[Path]:
        return [self.mine, self.theirs]

    def _run(self, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=300)

    def git(self, *folders: Path, tag: str = "") -> None:
        for folder in folders or self.both:
            self._run(folder, "git", "add", "-A")
            self._run(folder, "git", "commit", "-qm", "all", "--date", "2024-01-01T00:00:00")
            if tag:
                self._run(folder, "git", "tag", tag)

    def write(self, files: dict[str, str], folders: list[Path] | None = None) -> None:
        for folder in folders or self.both:
            for name, text in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def remove(self, *names: str) -> None:
        for folder in self.both:
            for name in names:
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def ours(self, monkeypatch, capfd, *argv: str, sub: str = "") -> tuple[int, str]:
        monkeypatch.chdir(self.mine / sub)
        try:
            code = cli.main(argv)
        except SystemExit as error:
            code = int(error.code or 0)
        return code, capfd.readouterr().out

    def dvcs(self, *argv: str, sub: str = "") -> tuple[int, str]:
        done = self._run(self.theirs / sub, DVC, *argv)
        return done.returncode, done.stdout


def tree(folder: Path) -> dict[str, object]:
    """The files, and those of the cache; git's lines by themselves, since stages may end in another order."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith(".git/"):
            continue
        if name.startswith(".dvc/") and not re.match(r"\.dvc/cache/(files|runs)/", name):
            continue
        data = path.read_bytes()
        found[name] = sorted(data.splitlines()) if path.name == ".gitignore" else data
    return found


@pytest.fixture
def typed(tmp_path, monkeypatch, capfd):
    """Returns a function that types a command to both, and checks that both say and leave the same."""

    def start(files: dict[str, str], **options):
        pair = Pair(tmp_path, files, **options)

        def run(*argv: str, sub: str = "", only: str = r"(?s).*", kind: str = "lines", extra=()) -> str:
            code, said = pair.ours(monkeypatch, capfd, *argv, *extra, sub=sub)
            their_code, theirs = pair.dvcs(*argv, sub=sub)
            assert code == their_code, (said, theirs)
            if kind == "json":
                assert json.loads(said) == json.loads(theirs)
            elif kind == "lines":
                pick = [
                    [line for line in text.splitlines() if re.match(only, line)] for text in (said, theirs)
                ]
                assert pick[0] == pick[1]
            assert tree(pair.mine) == tree(pair.theirs)
            return said

        return pair, run

    return start


# -- writing dvc.yaml --------------------------------------------------------------------------------------------------

HAND_MADE = """\
# head
stages:
  old: # why
    cmd: run it   # comment
    deps: [z, a]   # flow
    params: [lr, net.x, {conf/p.yaml: [b, a]}, {q.json: }]
    outs:
    - zz:
        push: false
        desc: keep me
    - aa
    meta: {x: 1}
    desc: old one
  keep:
    wdir: w
    cmd:
    - one
    - two
    plots:
    - p.csv:
        x: a
        cache: false
        title: T
    metrics: [m.json: {cache: false, type: t}]
    outs: [l: {persist: true, remote: r}]
plots:
- a.csv:   # tail
    x: y
"""


def test_stages_are_written_frozen_and_listed_as_dvc_does(typed):
    _pair, run = typed({"dvc.yaml": HAND_MADE, "w/x/.keep": "", "tracked": "1"})
    add = ("stage", "add", "-n")
    run(
        *add, "s1", "-d", "a", "-d", "./b", "-o", "out1", "-o", "w/out2", "-O", "nc", "-p", "lr,net",
        "-p", "conf/p.yaml:a,b", "-p", "q.json:", "-m", "m1", "-M", "m2", "--plots", "p1", "--plots-no-cache",
        "p2", "--outs-persist", "op", "--outs-persist-no-cache", "opn", "--always-changed", "--desc", "a desc",
        "echo", "hello there", "x", only="Added",
    )  # fmt: skip
    long = 'echo $X > q; echo "a very long command that has to be folded since it is longer than eighty" '
    run(*add, "s2", "-w", "w", "-d", "../a", "-o", "q", long, only="Added")
    run(*add, "s1", "-o", "z", "echo")
    run(*add, "s1", "-f", "-o", "w/out2", "echo 1", only="Added")
    run(*add, "old", "-f", "-d", "n", "-o", "zz", "-o", "n2", "echo", only="Added")
    for wrong in (
        ["b@d", "-o", "z", "echo"],
        ["dup", "-o", "l2", "-o", "l2", "echo"],
        ["circle", "-d", "l3", "-o", "l3", "echo"],
        ["over", "-o", "w/out2/x", "echo"],
        ["empty", "-o", "x9"],
        ["elsewhere", "-w", "nope", "echo"],
    ):
        run(*add, *wrong)
    run(*add, "inner", "-d", "../a", "-o", "k", "echo 1", sub="w", only="Added")
    run("freeze", "keep")
    run("freeze", "s1", "s2")
    run("unfreeze", "s1", "nope")
    run("freeze", "inner", sub="w")
    run("unfreeze", "w/dvc.yaml:inner")
    for listing in ([], ["--all"], ["-R", "w"], ["--name-only"], ["s1"], ["w/dvc.yaml"]):
        run("stage", "list", *listing)
    run("stage", "list", "--all", sub="w")


def test_a_dvc_file_is_frozen_in_place(typed):
    pair, run = typed({"raw": "1"}, add=("raw",))
    run("freeze", "raw.dvc")
    assert "frozen: true" in (pair.mine / "raw.dvc").read_text()
    run("unfreeze", "raw.dvc")


def test_adding_and_running_in_one(typed):
    pair, run = typed({"in": "1\n"})
    run("stage", "add", "-n", "a", "--run", "-d", "in", "-o", "out", "cp in out", only="(Added|> )")
    assert (pair.mine / "out").read_text() == "1\n"


# -- looking -----------------------------------------------------------------------------------------------------------

GRAPH = {
    "dvc.yaml": """\
stages:
  last:
    cmd: x
    deps: [b.txt, a.txt, sub/s.txt, data/x]
    outs: [last.txt, out/z, out/y]
  a:
    cmd: x
    deps: [raw.txt, params.yaml]
    outs: [a.txt]
  b:
    cmd: x
    deps: [a.txt, data]
    outs: [b.txt]
  lone:
    cmd: x
  each:
    foreach: [1, 2]
    do:
      cmd: x
      deps: [b.txt]
      outs: ["each${item}"]
""",
    "sub/dvc.yaml": "stages:\n  s:\n    cmd: x\n    deps: [../a.txt]\n    outs: [s.txt]\n",
    "raw.txt": "1\n",
    "data/x": "2\n",
}


def test_the_graph_is_drawn_as_dvc_draws_it(typed):
    _pair, run = typed(GRAPH, add=("raw.txt", "data"))
    for argv in (
        ["--mermaid"], ["--md"], ["--dot"], ["--dot", "b"], ["--mermaid", "--full", "sub/dvc.yaml:s"],
        ["-o", "--dot"], ["-o", "--mermaid", "last"], ["--mermaid", "a.txt"], ["--mermaid", "raw.txt.dvc"],
        ["--mermaid", "--collapse-foreach-matrix"], ["--mermaid", "each"],
    ):  # fmt: skip
        run("dag", *argv)
    run("dag", "--dot", sub="sub")


VALUES = {
    "dvc.yaml": """\
vars: [conf.yaml]
stages:
  a:
    cmd: echo ${depth}
    params: [lr, net.layers]
    outs: [dir: {cache: false}]
    metrics: [m.json: {cache: false}]
metrics: [top.yaml, few]
params: [other.toml]
""",
    "conf.yaml": "depth: 3\n",
    "params.yaml": "lr: 1\nnet: {layers: [64, 32], drop: 0.123456789}\nname: x\n",
    "other.toml": "[t]\nk = 1\n",
    "m.json": '{"acc": 0.512345678, "n": {"k": [1, 2], "z": 3, "s": "x", "d": null}, "l": true, "e": {}}',
    "top.yaml": "f1: 0.123456789\nbig: 1e20\n",
    "few/a.json": '{"x": 1}',
    "few/b.txt": "2",
    "broken.json": "{",
}


def test_metrics_and_params_are_shown_and_compared_as_dvc_does(typed):
    pair, run = typed(VALUES)
    for argv in ([], ["--md"], ["--json"], ["-A"], ["-a", "-T", "--json"], ["m.json", "--precision", "2"]):
        run("metrics", "show", *argv, kind="json" if "--json" in argv else "lines")
    run("metrics", "diff")
    pair.git(tag="v1")
    pair.write(
        {
            "m.json": '{"acc": 0.712345678, "n": {"z": 3}, "l": false, "new": "y"}',
            "params.yaml": "lr: 2\nnet: {layers: [64, 16], drop: 0.5}\n",
            "conf.yaml": "depth: 4\n",
        }
    )
    for argv in (
        [], ["--all", "--json"], ["--json"], ["--md", "--targets", "m.json"], ["--no-path", "--precision", "3"],
        ["v1", "HEAD"], ["--targets", "params.yaml"],
    ):  # fmt: skip
        # The files of a diff come in no order.
        run("metrics", "diff", *argv, kind="json" if "--json" in argv else "lines")
    for argv in (["--json"], ["--all", "--json"], ["--deps", "--json"], ["--md", "--targets", "params.yaml"]):
        run("params", "diff", *argv, kind="json" if "--json" in argv else "lines")
    run("metrics", "show", "-a")
    run("metrics", "show", "../m.json", sub="few")
    run("metrics", "show", "broken.json", "m.json")


PLOTS = {
    "dvc.yaml": """\
stages:
  a:
    cmd: x
    outs: [raw.json]
    plots:
    - p.csv: {x: step, y: acc, title: T, cache: false}
    - conf.json: {template: confusion, x: actual, y: predicted, cache: false}
    - noh.csv: {header: false, cache: false}
    - imgs: {cache: false}
plots:
- multi:
    x: epoch
    y:
      p.csv: [acc, loss]
      q.yaml: acc
    title: Many
- q.yaml:
    y: acc
- two:
    x: {p.csv: step}
    y: {p.csv: loss}
- missing.csv
- bad:
    y: {p.csv: nofield}
- sub
""",
    "p.csv": "step,acc,loss,epoch\n0,0.5,1.0,1\n1,0.6,0.8,2\n",
    "conf.json": '[{"actual": "a", "predicted": "b"}, {"actual": "b", "predicted": "b"}]',
    "noh.csv": "1,2\n3,4\n",
    "q.yaml": "rows:\n- {epoch: 1, acc: 0.4}\n- {epoch: 2, acc: 0.7}\n",
    "sub/s.csv": "a,b\n1,2\n</script><b>,4\n",
    "imgs/1.svg": "<svg xmlns='http://www.w3.org/2000/svg'/>",
}


def test_plots_are_filled_as_dvc_fills_them(typed, monkeypatch, capfd):
    pair, _ = typed(PLOTS)
    pair.write({"p.csv": PLOTS["p.csv"].replace("0.6", "0.9")})

    def same(*argv: str, sub: str = "") -> None:
        code, said = pair.ours(monkeypatch, capfd, "plots", *argv, sub=sub)
        their_code, theirs = pair.dvcs("plots", *argv, sub=sub)
        assert code == their_code
        reports = []
        for text, folder in ((said, pair.mine), (theirs, pair.theirs)):
            report = json.loads(text.replace(str(folder), "")) if text.strip() else {}
            for error in report.get("errors", ()):
                del error["type"], error["msg"]
            report.get("errors", []).sort(key=str)
            if sub:  # DVC forgets there that a table has no header
                del report["data"]["../noh.csv"]
            reports.append(report)
        assert reports[0] == reports[1]

    same("show", "--json", "-o", "out")
    same("show", "--json", "-o", "out", sub="sub")
    same("diff", "--json", "-o", "out")
    same("diff", "--json", "--split", "HEAD", "workspace", "--targets", "multi")
    same("show", "--show-vega", "p.csv", "-x", "epoch", "-y", "loss", "-t", "smooth", "--title", "Z")
    same("show", "--show-vega")
    same("templates", "simple")
    names = [pair.ours(monkeypatch, capfd, "plots", "templates")[1], pair.dvcs("plots", "templates")[1]]
    assert names[0] == names[1]


# -- repro -------------------------------------------------------------------------------------------------------------

PIPELINE = {
    "dvc.yaml": """\
stages:
  a:
    cmd: cat raw.txt > a.txt
    deps: [raw.txt]
    outs: [a.txt]
  b:
    cmd: cat a.txt > b.txt; echo b >> b.txt; echo '{}' > m.json
    deps: [a.txt]
    params: [p]
    outs: [b.txt]
    metrics: [m.json: {cache: false}]
  bad:
    cmd: test $(cat mode.txt) = ok && echo 1 > bad.txt
    deps: [mode.txt]
    outs: [bad.txt]
  c:
    cmd: cat a.txt bad.txt > c.txt
    deps: [a.txt, bad.txt]
    outs: [c.txt]
  d:
    cmd: cat b.txt > d.txt
    deps: [b.txt]
    outs: [d.txt: {cache: false}]
  keeps:
    cmd: cat a.txt >> keeps.txt
    deps: [a.txt]
    outs: [keeps.txt: {persist: true}]
  other:
    cmd: cat un.txt > other.txt
    deps: [un.txt]
    outs: [other.txt]
""",
    "sub/dvc.yaml": """\
stages:
  s:
    cmd: cat ../d.txt > s.txt
    deps: [../d.txt]
    outs: [s.txt]
  t:
    cmd: mkdir dd; echo 1 > dd/x; echo 2 > dd/y
    outs: [dd]
""",
    "raw.txt": "raw\n",
    "mode.txt": "ok\n",
    "un.txt": "1\n",
    "params.yaml": "p: 1\n",
}
SAID = r"(Running stage|> |Stage '.*' (didn't|is cached)|Data and pip)"
ONE = ("-j", "1")


def test_repro_chooses_what_dvc_chooses(typed):
    pair, run = typed(PIPELINE, add=("raw.txt",))
    run("repro", "b", only=SAID, extra=ONE)
    run("repro", "-s", "d", only=SAID, extra=ONE)
    run("repro", "--downstream", "a", only=SAID, extra=ONE)
    run("repro", "-P", only=SAID, extra=ONE)
    pair.write({"params.yaml": "p: 2\n"})
    run("repro", "-R", "sub", only=SAID, extra=ONE)
    run("repro", "s", sub="sub", only=SAID, extra=ONE)
    pair.write({"un.txt": "2\n"})
    run("repro", "-p", "b", only=SAID, extra=ONE)
    run("repro", "--glob", "oth*", only=SAID, extra=ONE)
    run("repro", "-f", "-s", "other", only=SAID, extra=ONE)
    pair.write({"un.txt": "1\n"})
    run("repro", "other", only=SAID, extra=ONE)
    run("repro", "raw.txt.dvc", only=SAID)
    run("repro", "--force-downstream", "-f", "sub/dvc.yaml", only=SAID, extra=ONE)
    run("repro", "--dry", "sub/dvc.yaml", only=SAID)
    run("repro", "nope", only=SAID)


def test_failures_end_a_repro_as_dvcs_do(typed, monkeypatch, capfd):
    pair, _ = typed(PIPELINE, add=("raw.txt",))
    pair.write({"mode.txt": "no\n"})
    for options in ([], ["-k"], ["--ignore-errors"]):
        code, said = pair.ours(monkeypatch, capfd, "repro", *ONE, *options)
        their_code, theirs = pair.dvcs("repro", *options)
        assert code == their_code
        mine, their = ([x for x in text.splitlines() if re.match(SAID, x)] for text in (said, theirs))
        assert mine == their
        assert (pair.mine / "dvc.lock").read_bytes() == (pair.theirs / "dvc.lock").read_bytes()


def test_no_commit_no_run_cache_and_frozen_leave_what_dvc_leaves(typed, monkeypatch, capfd):
    pair, run = typed(PIPELINE, add=("raw.txt",))
    run("repro", "--no-commit", "b", "d", "keeps", only=SAID, extra=ONE)
    # What was not stored is stored now; DVC runs it for that.
    run("repro", "d", "keeps", kind="state", extra=ONE)
    pair.write({"params.yaml": "p: 3\n"})
    run("repro", "b", only=SAID, extra=ONE)
    pair.write({"params.yaml": "p: 1\n"})
    run("repro", "--no-run-cache", "b", only=SAID, extra=ONE)
    pair.remove("b.txt")
    run("repro", "--no-run-cache", "b", only=SAID, extra=ONE)
    for folder in pair.both:
        subprocess.run([DVC, "freeze", "-q", "b"], cwd=folder, check=True)
    pair.write({"raw.txt": "other\n", "params.yaml": "p: 9\n"})
    run("repro", "d", only=SAID, extra=ONE)
    run("repro", "-f", "b", only=SAID, extra=ONE)


def test_what_is_missing_is_passed_over_or_pulled(typed, tmp_path, monkeypatch, capfd):
    pair, run = typed(PIPELINE, add=("raw.txt",))
    run("repro", "b", only=SAID, extra=ONE)
    run("repro", "other", only=SAID, extra=ONE)
    for folder, name in zip(pair.both, "ab", strict=True):
        for argv in (
            ["remote", "add", "-d", "-q", "s", str(tmp_path / f"remote-{name}")],
            ["push", "-q", "--run-cache"],
        ):
            subprocess.run([DVC, *argv], cwd=folder, check=True)
    (pair.theirs / ".dvc/config").write_bytes((pair.mine / ".dvc/config").read_bytes())
    gone = ("a.txt", "b.txt", "other.txt", "raw.txt", ".dvc/cache")
    pair.remove(*gone)
    for options in ([], ["--dry"]):
        run("repro", "--allow-missing", *options, "b", only=SAID)
    code, said = pair.ours(monkeypatch, capfd, "repro", "--pull", "a", "b", "other")
    assert code == 0 and "Running" not in said
    assert (pair.mine / "b.txt").read_text() == "raw\nb\n"
    assert (
        subprocess.run([DVC, "status", "-q"], cwd=pair.mine).returncode == 1
    )  # of the stages that never ran
    assert subprocess.run([DVC, "status", "-q", "a", "b", "other"], cwd=pair.mine).returncode == 0
