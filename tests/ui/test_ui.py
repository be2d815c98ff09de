"""What a person sees in the Prefect UI after the demo, in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from servers import PrefectServer

from .conftest import Version, Viewer, newest_card

# The demo, a server and a browser take a minute of the processors.
pytestmark = [pytest.mark.browser, pytest.mark.long]


def test_the_runs_are_there(viewer: Viewer) -> None:
    viewer.read("/runs", "quickstart", "Completed")


def test_a_dataset_has_a_timeline(viewer: Viewer) -> None:
    viewer.read("/artifacts/key/data-quickstart-data-train", "1,437 files")
    expect(viewer.page.get_by_text("Flow run").nth(1)).to_be_visible()


def test_a_model_has_a_timeline_that_says_who_is_in_production(viewer: Viewer) -> None:
    viewer.read("/artifacts/key/model-quickstart--digits", "prod is v0.0.1", "roll back prod of digits")


def test_a_flow_run_shows_its_stages(ui: PrefectServer, viewer: Viewer) -> None:
    """A task run each, with the state that says what was done; the one that ran has its log and its card."""
    (run,) = ui.post("/flow_runs/filter", {"flows": {"name": {"any_": ["repro"]}}})
    tasks = ui.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    states = {task["name"]: task["state_name"] for task in tasks}
    stages = {
        "prepare": "Skipped",
        "prepare-holdout": "Skipped",
        "train": "Completed",
        "evaluate": "Completed",
    }
    assert {name: states.get(name) for name in stages} == stages
    viewer.read(f"/runs/flow-run/{run['id']}?tab=Task+Runs", *stages, exact=True)
    expect(viewer.page.get_by_text("Skipped").first).to_be_visible()
    (train,) = (task for task in tasks if task["name"] == "train")
    viewer.read(f"/runs/task-run/{train['id']}", "python train.py")
    viewer.read(f"/runs/task-run/{train['id']}?tab=Artifacts", "params.yaml:train")


@pytest.mark.parametrize(
    ("key", "texts"),
    [
        ("diff-quickstart", ["added", "737", "data/train/0/0020.pgm"]),
        ("metrics-quickstart", ["accuracy", "0.925", "0.9528", "+0.0278"]),
        ("stage-quickstart--train", ["dependency", "features/train.npz"]),
        ("data-quickstart-data-train", ["1,437", "700", "d3a4ed866c6a"]),
    ],
)
def test_a_card_shows_what_it_is_for(ui: PrefectServer, viewer: Viewer, key: str, texts: list[str]) -> None:
    viewer.read(newest_card(ui, key), *texts)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("metrics-quickstart", "accuracy over 2 versions"),
        ("model-quickstart--digits", "metrics.json:accuracy over 2 versions"),
        ("plots-quickstart", "predictions.csv"),
        ("overview-quickstart", "Stages of quickstart"),
    ],
)
def test_both_pages_show_the_pictures_of_cards(
    ui: PrefectServer, viewer: Viewer, version: Version, key: str, name: str
) -> None:
    """The browser loads each data URI: an image that it refuses has no width."""
    path = newest_card(ui, key)
    picture = viewer.open(path, lambda page: page.get_by_alt_text(name, exact=True).first, version=version)
    assert picture.evaluate("image => image.naturalWidth") > 100


def test_the_blocks_can_be_made_by_hand(viewer: Viewer) -> None:
    """The server found the block types by the package's entry point."""
    names = ("DVC Repository", "DVC Remote", "Kubeflow Pipelines", "Model Server")
    viewer.read("/blocks/catalog", *names, exact=True)
