"""What the verbs on pipelines do that the real `dvc` does not, or cannot be compared with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect import cli
from dvkf_prefect.errors import (
    ConfigError,
    ParseError,
    StageCancelledError,
    StageError,
    StageFailedError,
    StageGraphError,
    StageNotFoundError,
)
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.dvclock import put_entry
from dvkf_prefect.pipeline.edit import NewOutput, NewStage, add_stage, freeze
from dvkf_prefect.pipeline.plan.decide import Expansion, Rules
from dvkf_prefect.pipeline.plan.why import Decision, Reason, stage_status
from dvkf_prefect.pipeline.report import metrics, plot_files, plots
from dvkf_prefect.pipeline.report.dag import draw
from dvkf_prefect.pipeline.run.dry_run import plan
from dvkf_prefect.repo import Repo

CHAIN = """\
stages:
  a:
    cmd: cat in > a
    deps: [in]
    outs: [a]
  b:
    cmd: cat a a > b
    deps: [a]
    outs: [b]
  other:
    cmd: echo > other
    outs: [other]
"""


@pytest.fixture
def chain(project):
    project.write("dvc.yaml", CHAIN)
    project.write("in", "1\n")
    return project


def commit(project, message: str = "one") -> None:
    subprocess.run(["git", "-C", str(project.root), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(project.root), "commit", "-qm", message], check=True)


# -- repro -------------------------------------------------------------------------------------------------------------


def test_after_a_failure_the_rest_is_left_finished_or_run_all_the_same(chain):
    chain.write("dvc.yaml", CHAIN.replace("cat in > a", "exit 3"))
    with pytest.raises(StageFailedError):
        chain.repro(on_error="fail", jobs=1)
    assert not (chain.root / "other").exists()
    result = chain.repro(on_error="fail", jobs=1, raise_failures=False)
    assert (result.failed, result.blocked, result.ran) == (("a",), ("b", "other"), ())
    chain.write("a", "by hand\n")
    result = chain.repro(on_error="ignore")
    # As with DVC, what a stage writes is removed before it runs; nothing of it was left for the next one.
    assert (result.failed, result.blocked, result.ran) == (("a", "b"), (), ("other",))
    assert not (chain.root / "a").exists()
    kept = chain.repo.cache.path(digest_bytes(b"by hand\n"))
    assert kept.read_text() == "by hand\n"


def test_each_stage_is_asked_about(chain):
    asked = []

    def confirm(stage):
        asked.append(stage.name)
        return stage.name != "b"

    with pytest.raises(StageCancelledError, match="stage 'b': reproduction aborted by the user"):
        chain.repro(confirm=confirm, jobs=1)
    assert asked == ["a", "b", "other"] and not (chain.root / "b").exists()


def test_what_ran_may_force_what_needs_it(chain):
    chain.repro()
    rules = Rules(force_downstream=True)
    assert [d.action for d in plan(chain.repo, rules=rules)] == ["skip"] * 3
    # A comment's worth of change: what `a` writes is the same.
    chain.write("dvc.yaml", CHAIN.replace("cat in > a", "cat < in > a"))
    assert [d.action for d in plan(chain.repo, ["b"], rules=rules)] == ["run", "run"]
    assert chain.repro("b").ran == ("a",)
    chain.write("dvc.yaml", CHAIN)
    chain.repro("b", rules=Rules(run_cache=False))
    chain.write("dvc.yaml", CHAIN.replace("cat in > a", "cat in in > a; cat in > a"))
    assert chain.repro("b", rules=rules).ran == ("a", "b")


def test_a_dvc_file_is_a_target_and_downstream_of_it_is_what_reads_it(chain):
    chain.repo.add([chain.root / "in"])
    chain.repro()
    chain.write("in", "2\n")
    events = []
    result = chain.repro("in.dvc", on_source=events.append)
    assert not result.decisions
    assert [(event.source, event.action) for event in events] == [("in.dvc", "record")]
    assert not chain.repo.status(["in.dvc"])
    assert chain.repro("in.dvc", expansion=Expansion(downstream=True)).ran == ("a", "b")
    with pytest.raises(StageNotFoundError, match=r"'no\.dvc' does not exist"):
        chain.repro("no.dvc")


def test_a_folder_a_pattern_and_a_name_beside_another_dvc_yaml_are_targets(chain):
    chain.write("sub/dvc.yaml", CHAIN.replace("in ", "../in ").replace("[in]", "[../in]"))
    for target, expansion, expected in (
        ("sub", Expansion(), ["sub/dvc.yaml:a", "sub/dvc.yaml:b", "sub/dvc.yaml:other"]),
        ("sub/b", Expansion(), ["sub/dvc.yaml:a", "sub/dvc.yaml:b"]),
        ("sub/dvc.yaml:b", Expansion(single_item=True), ["sub/dvc.yaml:b"]),
        (
            ".",
            Expansion(recursive=True),
            ["a", "b", "other"] + [f"sub/dvc.yaml:{n}" for n in ("a", "b", "other")],
        ),
        ("oth*", Expansion(glob=True), ["other"]),
        ("a", Expansion(downstream=True), ["a", "b"]),
        ("a", Expansion(pipeline=True), ["a", "b"]),
    ):
        assert [d.stage for d in plan(chain.repo, [target], expansion=expansion)] == expected, target
    with pytest.raises(StageNotFoundError, match=r"no stage of 'dvc\.yaml' has a name like 'x\*'"):
        plan(chain.repo, ["x*"], expansion=Expansion(glob=True))


def test_an_import_that_is_not_frozen_follows_its_source(project, tmp_path):
    source = tmp_path / "source"
    source.write_text("1\n")
    project.repo.import_url(str(source), "in")
    project.write("dvc.yaml", CHAIN)
    project.repro()
    source.write_text("2\n")
    assert project.repro().skipped == ("a", "b", "other")
    freeze(project.repo, "in.dvc", frozen=False)
    events = []
    assert project.repro(on_source=events.append).ran == ("a", "b")
    assert events[0].action == "update"
    assert project.read("b") == "2\n" * 2
    assert project.repro().skipped == ("a", "b", "other")


# -- the run cache and what is gone ----------------------------------------------------------------------------------


@pytest.fixture
def shared(chain, tmp_path):
    """A pipeline whose runs and outputs are on a remote, and nowhere else."""
    text = CHAIN.replace("cat in > a", "mkdir a; cp in a/x; echo more > a/y")
    chain.write("dvc.yaml", text.replace("cat a a > b", "cat a/x a/y > b"))
    chain.repro("b")
    config = ["[core]", "    remote = s", "['remote \"s\"']", f"    url = {tmp_path / 'remote'}", ""]
    (chain.root / ".dvc/config").write_text("\n".join(config))
    chain.repo.push(run_cache=True)
    chain.store = tmp_path / "remote"
    shutil.rmtree(chain.root / ".dvc/cache")
    shutil.rmtree(chain.root / "a")
    (chain.root / "b").unlink()
    return chain


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_whose_outputs_are_on_the_remote_is_restored(shared, recorded):
    if not recorded:
        (shared.root / "dvc.lock").unlink()
    pull = Rules(pull=True)
    assert {d.action for d in plan(shared.repo, ["b"])} == {"run"}
    # Without a lock the runs are only known when they were pulled, which a plan does not do.
    assert {d.action for d in plan(shared.repo, ["b"], rules=pull)} == {"restore" if recorded else "run"}
    assert not (shared.root / ".dvc/cache/runs").exists()
    assert shared.repro("b", rules=pull).restored == ("a", "b")
    assert (shared.read("a/y"), shared.read("b")) == ("more\n", "1\nmore\n")
    assert not stage_status(shared.repo, ["a", "b"])


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("gone", ["*", "*.dir"])
def test_a_run_whose_outputs_are_gone_everywhere_is_no_hit(shared, recorded, gone):
    if not recorded:
        (shared.root / "dvc.lock").unlink()
    for path in list((shared.store / "files").rglob(gone)):
        if path.is_file():
            path.unlink()
    result = shared.repro("b", rules=Rules(pull=True))
    assert result.ran[0] == "a" and not set(result.restored) - {"b"}
    assert (shared.read("a/y"), shared.read("b")) == ("more\n", "1\nmore\n")
    assert not stage_status(shared.repo, ["a", "b"])


def test_the_error_of_an_input_that_cannot_be_pulled_names_the_cause(shared):
    """It was that the input is not in the cache, with the advice to pull it."""
    shutil.rmtree(shared.store)
    with pytest.raises(
        StageError, match=r"(?s)its dependency 'a' could not be pulled: .* is not on the remote 's'"
    ):
        shared.repro("b", single_item=True, rules=Rules(pull=True))


def test_a_known_run_whose_outputs_left_the_cache_is_run_again(chain):
    chain.repro("b")
    chain.write("in", "2\n")
    chain.repro("b")
    chain.write("in", "1\n")
    cache = chain.root / ".dvc/cache/files/md5"
    shutil.rmtree(cache)
    result = chain.repro("b")
    assert result.ran == ("a", "b")
    assert chain.read("b") == "1\n" * 2


def test_missing_data_is_no_reason_where_it_may_be_missing(chain):
    chain.repro()
    shutil.rmtree(chain.root / ".dvc/cache")
    for name in ("a", "b"):
        (chain.root / name).unlink()
    allowed = Rules(allow_missing=True)
    assert {d.action for d in plan(chain.repo, rules=allowed)} == {"skip"}
    assert chain.repro(rules=allowed).skipped == ("a", "b", "other")
    chain.write("in", "2\n")
    assert [d.action for d in plan(chain.repo, rules=allowed)] == ["run", "skip", "skip"]
    assert chain.repro(rules=allowed).ran == ("a", "b")


def test_nothing_enters_the_cache_without_commit(chain):
    assert chain.repro("b", commit=False).ran == ("a", "b")
    assert chain.read("b") == "1\n" * 2
    assert not [
        path for path in (chain.root / ".dvc/cache").rglob("*") if path.is_file() and "files" in path.parts
    ]
    assert not (chain.root / ".dvc/cache/runs").exists()
    assert "md5: b026324c6904b2a9cb4b88d6d61c81d1" in chain.read("dvc.lock")
    # What lies there is what was recorded: it is taken in, not made again.
    assert chain.repro("b").restored == ("a", "b")
    assert not stage_status(chain.repo, ["a", "b"])


def test_an_entry_with_a_name_of_many_letters_is_replaced_whole():
    """The line that such a name begins was taken for its whole block, and the rest of it was left behind."""
    name = "x" * 140
    data = put_entry(put_entry(b"", name, {"cmd": "one"}), "b", {"cmd": "b"})
    data = put_entry(data, name, {"cmd": "two"})
    assert data.count(b"cmd: ") == 2 and b"one" not in data
    assert data.index(b"two") < data.index(b"cmd: b")


# -- why ---------------------------------------------------------------------------------------------------------------


def test_a_decision_as_json_and_markdown(chain):
    chain.repro()
    chain.write("in", "2\n")
    (decision,) = plan(chain.repo, ["a"])
    assert json.loads(json.dumps(decision.as_dict())) == {
        "stage": "a",
        "action": "run",
        "reasons": [
            {
                "kind": "dependency",
                "name": "in",
                "old": "b026324c6904b2a9cb4b88d6d61c81d1",
                "new": "26ab0db90d72e28ad0ba1e22ee510510",
                "text": "dependency 'in': b026324c → 26ab0db9",
            }
        ],
    }
    assert decision.commands == ("cat in > a",)
    assert decision.markdown().splitlines() == [
        "**a**: run",
        "",
        "| why | what | old | new |",
        "|---|---|---|---|",
        "| dependency | in | b026324c | 26ab0db9 |",
    ]
    odd = Decision("a_b", "run", (Reason("output", "x|y", None, None, "is missing"),))
    assert odd.markdown().splitlines()[-1] == r"| output | x\|y |  | is missing |"
    assert Decision("a", "skip").markdown() == "**a**: skip, nothing changed"


# -- dvc.yaml ----------------------------------------------------------------------------------------------------------


def test_a_stage_that_does_not_fit_is_not_written(chain):
    before = chain.read("dvc.yaml")
    for stage, error, message in (
        (
            NewStage("c", "x", outs=[NewOutput("a")]),
            StageGraphError,
            "stage 'c' was not added: 'a' is an output",
        ),
        (NewStage("c", "x", deps=["b"], outs=[NewOutput("in")]), StageGraphError, "cycle"),
        (NewStage("c", "echo ${nope}"), ParseError, "nope"),
        (NewStage("c/d", "x"), StageError, "punctuation"),
        (NewStage("a", "x"), StageError, "already exists in 'dvc.yaml'. Use '--force'"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            add_stage(chain.repo, stage)
        assert chain.read("dvc.yaml") == before
    added = add_stage(chain.repo, NewStage("c", "x", deps=["b"], outs=[NewOutput("c")]))
    assert added.written == ("dvc.yaml", ".gitignore")
    assert added.stage.deps[0].path == "b"


def test_stages_of_a_template_are_not_frozen_one_by_one(project):
    project.write(
        "dvc.yaml",
        "stages:\n  t:\n    foreach: [1, 2]\n    do:\n      cmd: echo ${item}\n  p:\n    cmd: echo ${x}\n",
    )
    project.write("params.yaml", "x: 1\n")
    for target in ("t@1", "p"):
        with pytest.raises(StageError, match=r"comes from a template\. Add `frozen: true`"):
            freeze(project.repo, target)
    with pytest.raises(StageNotFoundError, match=r"stage 'q' is not in 'dvc\.yaml'"):
        freeze(project.repo, "q")


def test_the_graph_as_text(chain):
    chain.repo.add([chain.root / "in"])
    chain.write(
        "dvc.yaml", CHAIN + "  c:\n    cmd: x\n    deps: [a, b, other]\n  d:\n    cmd: x\n    deps: [a]\n"
    )
    assert draw(chain.repo).text() == ("other\nin.dvc\n└─ a\n   ├─ b\n   │  └─ c  ← a, other\n   └─ d")
    assert draw(chain.repo, "b").text() == "in.dvc\n└─ a\n   └─ b"
    with pytest.raises(StageNotFoundError):
        draw(chain.repo, "nope")


# -- values ------------------------------------------------------------------------------------------------------------


def test_metrics_that_are_only_on_the_remote_are_read_from_there(shared):
    shared.write("dvc.yaml", "stages:\n  m:\n    cmd: 'echo ''x: 1'' > m.yaml'\n    metrics: [m.yaml]\n")
    shared.repro()
    shared.repo.push()
    commit(shared)
    shutil.rmtree(shared.root / ".dvc/cache")
    (shared.root / "m.yaml").unlink()
    assert metrics.show(shared.repo) == {"m.yaml": {"x": 1}}
    assert metrics.show(shared.repo, "HEAD") == {"m.yaml": {"x": 1}}
    shutil.rmtree(shared.root / ".dvc/cache")
    shutil.rmtree(shared.store)
    (reading,) = metrics.read_metrics(shared.repo).values()
    assert reading.failed and "m.yaml" in str(reading.files["m.yaml"].error)


def test_a_file_of_values_that_does_not_parse_is_told_with_the_others_shown(project, monkeypatch, capsys):
    project.write("dvc.yaml", "metrics: [a.json, b.json]\n")
    project.write("a.json", "{")
    project.write("b.json", '{"x": 1}')
    monkeypatch.chdir(project.root)
    assert cli.main(["metrics", "show"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["Path    x", "a.json  -", "b.json  1"]
    assert said.err.startswith("WARNING: 'a.json' cannot be read: a.json, line 1: not valid JSON")


# -- plots -------------------------------------------------------------------------------------------------------------

HOSTILE = "</script><script>alert(1)</script>"
PLOTTED = """\
plots:
- p.csv: {x: step, y: acc}
- pics
"""


@pytest.fixture
def plotted(project):
    project.write("dvc.yaml", PLOTTED)
    project.write("p.csv", f"step,acc,note\n0,0.5,{HOSTILE}\n1,0.75,b\n")
    project.write("pics/10.svg", "<svg xmlns='http://www.w3.org/2000/svg' width='5' height='5'/>")
    project.write("pics/9.svg", "<svg xmlns='http://www.w3.org/2000/svg' width='5' height='5'/>")
    commit(project)
    project.write("p.csv", "step,acc,note\n0,0.5,a\n1,0.9,b\n")
    return project


def test_the_page_needs_nothing_from_elsewhere(plotted, tmp_path):
    found = plots.read_plots(plotted.repo, revs=["HEAD", "workspace"])
    assert [plot.name for plot in found] == ["p.csv", "pics/10.svg", "pics/9.svg"]
    assert found[0].revisions() == ["workspace", "HEAD"]
    page = tmp_path / "out" / "index.html"
    plot_files.write_page(found, page)
    text = page.read_text()
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text)
    assert len(text) > 500_000
    assert "window.vegaEmbed=" in text
    # Data stays data: one script for the library, one for the plot.
    assert HOSTILE not in text and text.count("</script>") == 2
    assert "\\u003c/script>" in text
    pictures = re.findall(r'src="(static/[^"]+)"', text)
    assert pictures == [f"static/{rev}_pics_{n}.svg" for n in (9, 10) for rev in ("workspace", "HEAD")]
    assert all((page.parent / picture).exists() for picture in pictures)
    with pytest.raises(ConfigError, match="plot_divs"):
        plot_files.write_page(found, page, template="<html></html>")
    plot_files.write_page(found, page, template="<i>{plot_divs}</i>")
    assert page.read_text().startswith("<i><div") and "window.vegaEmbed" not in page.read_text()


def test_pictures_of_plots(plotted, tmp_path):
    (file,) = plot_files.write_pngs(plots.read_plots(plotted.repo), tmp_path / "png")
    assert file.name == "p.csv.png"
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert width > 300 and height > 300


def test_what_cannot_be_drawn_is_told(plotted, monkeypatch, capsys):
    monkeypatch.chdir(plotted.root)
    assert cli.main(["plots", "show", "p.csv", "-y", "nope", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["data"] == {"dvc.yaml::p.csv": [], "p.csv": []}
    assert "unknown field 'nope'; expected step, acc, note" in said["errors"][0]["msg"]
    assert cli.main(["plots", "show", "p.csv", "-t", "nope", "--json"]) == 251
    assert "p.csv': Template 'nope' not found" in capsys.readouterr().err
    assert cli.main(["plots", "show", "--show-vega"]) == 1
    assert cli.main(["plots", "show", "-o", "drawn"]) == 0
    assert capsys.readouterr().out == (plotted.root / "drawn" / "index.html").as_uri() + "\n"
    assert cli.main(["plots", "diff", "--png", "-o", "drawn"]) == 0
    assert (plotted.root / "drawn" / "p.csv.png").exists()


def test_a_changed_value_in_a_group_of_parameters_is_named(tmp_path: Path) -> None:
    stage = "stages:\n  a:\n    cmd: touch a\n    params: [train]\n    outs: [a]\n"
    repo = make_repo(
        tmp_path / "r", {"dvc.yaml": stage, "params.yaml": "train: {depth: {max: 3}, old: 1, lr: 1}\n"}
    )
    repo.repro()
    (repo.root / "params.yaml").write_text("train: {depth: {max: 2}, new: 1, lr: 1}\n")
    (decision,) = plan(Repo.open(repo.root))
    assert list(map(str, decision.reasons)) == [
        "parameter 'params.yaml:train.depth.max': 3 → 2",
        "parameter 'params.yaml:train.new': none → 1",
        "parameter 'params.yaml:train.old': 1 → none",
    ]
