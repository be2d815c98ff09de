"""The overview of a repository, and its plots, on real repositories and a real server."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from repos import make_repo

from dvkf_prefect import DvcRepository, KubeflowPipelines, Repo, flows, show_overview, show_plots
from dvkf_prefect.cards.pictures import Picture
from dvkf_prefect.data.workspace.workspace import Workspace
from dvkf_prefect.overview import read_overview
from dvkf_prefect.pipeline.report import plots

from .conftest import git

Artifacts = Callable[[str], list[Any]]

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PIPELINE = """\
stages:
  score:
    cmd: python score.py
    params: [guess]
    deps: [score.py]
    outs: [rows.csv]
    plots: [map.png]
    metrics:
    - score.yaml:
        cache: false
plots:
- rows.csv:
    template: confusion
    x: actual
    y: predicted
"""
SCORE = f"""\
from pathlib import Path
guess = Path("params.yaml").read_text().split()[1]
Path("rows.csv").write_text(f"actual,predicted\\ncat,{{guess}}\\ndog,dog\\n")
Path("score.yaml").write_text("right: 2" if guess == "cat" else "right: 1")
Path("map.png").write_bytes({PNG!r} + guess.encode())
"""


@pytest.fixture
def scored(tmp_path: Path) -> Repo:
    files = {
        "dvc.yaml": PIPELINE,
        "score.py": SCORE,
        "params.yaml": "guess: dog\n",
    }
    return make_repo(tmp_path / "scored", files, commit="Score")


def pictures(card: Any) -> dict[str, bytes]:
    """Return the pictures of a card by their text."""
    found = re.findall(r"!\[([^\]]*)\]\(data:image/[\w+]+;base64,([\w+/=]+)\)", card.data)
    return {name: base64.b64decode(data) for name, data in found}


def test_a_repro_shows_plots_before_and_after_and_the_overview(scored: Repo, artifacts: Artifacts) -> None:
    DvcRepository(path=str(scored.root)).save("scored", overwrite=True)
    KubeflowPipelines().save("scored", overwrite=True)
    for guess in ("dog", "cat"):
        (scored.root / "params.yaml").write_text(f"guess: {guess}\n")
        flows.repro("scored", "scored", push=False)

    _, second = artifacts("plots-scored")
    assert second.description == "**scored**: 3 plots of `HEAD`, `workspace`."
    drawn = pictures(second)
    assert sorted(drawn) == ["map.png of HEAD", "map.png of workspace", "rows.csv"]
    assert drawn["map.png of HEAD"] == PNG + b"dog"
    # The default of Vega is wider in some browsers than where its labels were measured.
    assert b'font-family="Liberation Sans,Arial' in drawn["rows.csv"]
    assert b'font-family="sans-serif"' not in drawn["rows.csv"]
    assert {Picture(name, data).kind for name, data in drawn.items()} == {"png", "svg+xml"}
    assert b"cat" in drawn["rows.csv"]

    _, second = artifacts("overview-scored")
    assert second.description == "**scored**: 2 outputs, 1 stage, 0 models, 0 services; healthy."
    assert "| score | up to date |" in second.data
    assert "| rows.csv | " in second.data and "### Health\n\nAll " in second.data
    assert list(pictures(second)) == ["Stages of scored"]


def test_an_overview_tells_what_changed_and_what_cannot_be_read(scored: Repo, artifacts: Artifacts) -> None:
    block = DvcRepository(path=str(scored.root), label="changed")
    scored.repro()
    (scored.root / "rows.csv").unlink()
    (scored.root / "rows.csv").write_text("other\n")
    (scored.root / "params.yaml").write_text("guess: cat\n")
    overview = flow(lambda: show_overview(block), name="look")()
    assert overview.stale == ("score",) and overview.changed == {"rows.csv": "modified"}
    card = artifacts("overview-changed")[-1]
    assert "2 outputs (1 changed), 1 stage (1 to run)" in card.description
    assert "| score | to run | parameter" in card.data

    (scored.root / "dvc.yaml").write_text("stages: [\n")
    overview = flow(lambda: show_overview(block), name="look")()
    assert {"data", "stages", "graph"} <= set(overview.faults)
    assert "not readable" in artifacts("overview-changed")[-1].description


def test_an_overview_looks_at_each_path_once(scored: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes and decisions on stages walked each output on their own."""
    scored.repro()
    seen: list[str] = []
    look = Workspace.look

    def counted(self: Workspace, path: str, **options: Any) -> Any:
        seen.append(path)
        return look(self, path, **options)

    monkeypatch.setattr(Workspace, "look", counted)
    overview = read_overview(Repo.open(scored.root))
    assert overview.stale == () and not overview.faults
    assert sorted(seen) == ["map.png", "rows.csv", "score.py", "score.yaml"]


def test_plots_without_the_extra_are_named(
    scored: Repo, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    scored.repro()
    git(scored.root, "add", "--all")
    git(scored.root, "commit", "--quiet", "--message", "Result")
    monkeypatch.setattr(plots, "import_module", missing)
    block = DvcRepository(path=str(scored.root), label="bare")
    assert flow(lambda: show_plots(block), name="look")() == ("map.png",)
    (card,) = artifacts("plots-bare")
    assert card.description == "**bare**: 1 plot of `workspace`, 1 not drawn."
    assert "| rows.csv | plots need the package " in card.data
