"""What a person sees in the Prefect UI after the demo, in a real browser."""

from __future__ import annotations

import functools
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from processes import wait_until
from servers import PrefectServer

from .conftest import TREE, Version, Viewer, newest_card

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


@pytest.fixture(scope="module")
def site(ui: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a documentation site, which the server's block types know."""
    folder = tmp_path_factory.mktemp("site")
    Path(folder, "logo.svg").write_bytes((TREE / "docs/logo.svg").read_bytes())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{served.server_address[1]}"
        name = "PREFECT_INTEGRATIONS_DVKF_DOCS_URL"
        ui.environment[name] = address
        ui.run(sys.executable, "-m", "prefect", "block", "register", "-m", "dvkf_prefect.blocks")
        del ui.environment[name]
        yield address
        served.shutdown()
        thread.join()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_pages_show_the_logo_of_a_documentation_site(
    ui: PrefectServer, viewer: Viewer, site: str, version: Version
) -> None:
    """Prefect takes it by HTTP alone; the link to the block's reference goes with it."""
    shown = ui.get("/block_types/slug/dvc-repository")
    assert shown["logo_url"] == f"{site}/logo.svg"
    assert shown["documentation_url"] == f"{site}/reference/blocks/#dvkf_prefect.DvcRepository"
    logo = viewer.open(
        "/blocks/catalog", lambda page: page.locator(f'img[src="{site}/logo.svg"]').first, version=version
    )
    wait_until(lambda: logo.evaluate("image => image.complete && image.naturalWidth > 0"), 60)
