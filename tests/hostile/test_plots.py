"""Plots of a repository that is not one's own: where they are written, what stands in the page."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.errors import ParseError
from dvkf_prefect.pipeline.report.plot_data import parse

PNG = b"\211PNG"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "r"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    monkeypatch.chdir(root)
    make_repo(root)
    (root / "a.png").write_bytes(PNG)
    (root / "dvc.yaml").write_text("plots:\n- a.png:\n")
    return root


def test_pictures_of_any_name_are_shown(repository: Path) -> None:
    names = ["².png", "12.png", "9" * 100 + ".png", "\u0663.png", "x<p><script>.png"]
    for name in names:
        (repository / name).write_bytes(PNG)
    (repository / "dvc.yaml").write_text(json.dumps({"plots": [{name: None} for name in names]}))
    assert main(["plots", "show"]) == 0
    page = (repository / "dvc_plots" / "index.html").read_text()
    assert page.count("<img ") == len(names)
    assert "<script>." not in page


@pytest.mark.parametrize("link", ["dvc_plots", "dvc_plots/static"])
@pytest.mark.parametrize("verb", [["plots", "show"], ["plots", "show", "--json"]])
def test_nothing_is_written_through_a_link(repository: Path, link: str, verb: list[str]) -> None:
    outside = repository.parent / "outside"
    (repository / link).parent.mkdir(exist_ok=True)
    (repository / link).symlink_to(outside)
    code = main(verb)
    assert os.listdir(outside) == []
    assert code == 1 or (link.endswith("static") and "--json" in verb)


@pytest.mark.parametrize("folder", ["../outside", "/tmp", ".git/hooks", ".dvc/x", "."])
def test_a_repository_cannot_say_that_plots_go_elsewhere(
    repository: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (repository / ".dvc" / "config").open("a") as config:
        config.write(f"[plots]\n    out_dir = {folder}\n")
    assert main(["plots", "show"]) == 1
    assert "unsafe" in capsys.readouterr().err
    assert os.listdir(repository.parent / "outside") == []


def test_a_folder_on_the_command_line_may_be_anywhere(repository: Path) -> None:
    outside = repository.parent / "outside"
    assert main(["plots", "show", "-o", str(outside)]) == 0
    assert sorted(os.listdir(outside)) == ["index.html", "static"]


def test_data_cannot_end_the_script_or_fill_the_page(repository: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>{refresh_tag}{scripts}"
    (repository / "c.csv").write_text(f"step,{evil}\n0,{evil}\n1,2\n")
    (repository / "dvc.yaml").write_text(
        json.dumps({"plots": [{f"p{evil}": {"x": "step", "y": {"c.csv": evil}, "title": evil}}]})
    )
    assert main(["plots", "show"]) == 0
    page = (repository / "dvc_plots" / "index.html").read_text()
    shown = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "<img" not in shown
    assert "<img src=x" not in page
    assert "{refresh_tag}" in page


def test_a_template_that_is_a_fifo_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(repository / "t.json")
    (repository / "c.csv").write_text("step,loss\n0,1\n")
    (repository / "dvc.yaml").write_text("plots:\n- c.csv:\n    template: t.json\n")
    assert main(["plots", "show"]) == 251
    assert "not a regular file" in capsys.readouterr().err
    (repository / "t.json").unlink()
    (repository / "t.json").write_text("[" * 100000)
    assert main(["plots", "show"]) == 251
    assert "t.json" in capsys.readouterr().err


@pytest.mark.parametrize("template", ["nowhere", "broken.json", "without.json", "fifo.json"])
def test_a_bad_template_takes_no_other_plot_away(
    repository: Path, capsys: pytest.CaptureFixture[str], template: str
) -> None:
    (repository / "broken.json").write_text("{ no")
    (repository / "without.json").write_text("{}")
    os.mkfifo(repository / "fifo.json")
    (repository / "c.csv").write_text("step,loss\n0,1\n")
    (repository / "bad.csv").write_text("step\n")
    (repository / "dvc.yaml").write_text(
        f"plots:\n- tmpl: {{template: {template}, x: step, y: {{c.csv: loss}}}}\n- c.csv: {{x: step, y: loss}}\n"
        "- gone.csv: {x: step}\n- bad.csv: {x: step, y: nope}\n"
    )
    assert main(["plots", "show"]) == 251
    said = capsys.readouterr().err
    assert "WARNING: the plot 'tmpl': " in said and "gone.csv of 'workspace'" in said
    page = (repository / "dvc_plots" / "index.html").read_text()
    assert page.count('title="c.csv"') == 1 and "tmpl" not in page
    assert main(["plots", "show", "--json"]) == 251
    report = json.loads(capsys.readouterr().out)
    assert report["data"]["c.csv"] and "tmpl" not in report["data"]
    assert [error["name"] for error in report["errors"] if "tmpl" in error["name"]] == ["tmpl"]
    assert main(["plots", "show", "--png"]) == 251
    assert [file.name for file in (repository / "dvc_plots").glob("*.png")] == ["c.csv.png"]


@pytest.mark.parametrize(
    "data", [b"a,b\n" + b'"' + b"x" * 200_000 + b'",1\n', b"a\n" + b"1\n" * 1_100_000, b"a\n\xff\n"]
)
def test_tables_that_cannot_be_held_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ParseError, match=r"^c\.csv"):
        parse(data, "c.csv")
