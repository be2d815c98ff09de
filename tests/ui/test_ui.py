"""What a person sees in the Prefect UI after the demo, in a real browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from servers import PrefectServer

from dvkf_prefect.processes.leash import end

# The demo, a server and a browser take a minute of the processors.
pytestmark = [pytest.mark.browser, pytest.mark.long]

TREE = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The server of `make ui`, over what a demo did."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium (Debian: chromium)")
    folder = tmp_path_factory.mktemp("ui")
    for name in ("flows", "blocks"):
        shutil.copytree(TREE / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    server = PrefectServer(folder)
    with ExitStack() as started:
        started.callback(server.http.close)
        environment = {name: value for name, value in server.environment.items() if name != "PREFECT_API_URL"}
        demo = subprocess.run(
            [sys.executable, "flows/quickstart.py"],
            cwd=folder / "tree",
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert demo.returncode == 0, demo.stdout + demo.stderr
        process = server.start(
            "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(server.port)
        )
        started.callback(end, process)
        server.wait_until_up(process)
        server.run(sys.executable, "blocks/local.py", ".demo/repo")
        params = folder / "tree/.demo/repo/params.yaml"
        params.write_text(params.read_text().replace("C: 2.0", "C: 3.0"))
        server.run(sys.executable, "flows/repro.py")
        yield server


@pytest.fixture(scope="module")
def page(ui: PrefectServer) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def address(ui: PrefectServer, path: str) -> str:
    return ui.api.removesuffix("/api") + path


def test_the_runs_are_there(ui: PrefectServer, page: Page) -> None:
    page.goto(address(ui, "/runs"))
    expect(page.get_by_text("quickstart").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Completed").first).to_be_visible()


def test_a_dataset_has_a_timeline(ui: PrefectServer, page: Page) -> None:
    page.goto(address(ui, "/artifacts/key/data-quickstart-data-train"))
    expect(page.get_by_text("1,437 files").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Flow run").nth(1)).to_be_visible()


def test_a_model_has_a_timeline_that_says_who_is_in_production(ui: PrefectServer, page: Page) -> None:
    page.goto(address(ui, "/artifacts/key/model-quickstart--digits"))
    expect(page.get_by_text("prod is v0.0.1").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("roll back prod of digits").first).to_be_visible()


def test_a_flow_run_shows_its_stages(ui: PrefectServer, page: Page) -> None:
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
    page.goto(address(ui, f"/runs/flow-run/{run['id']}?tab=Task+Runs"))
    for name in stages:
        expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Skipped").first).to_be_visible()
    (train,) = (task for task in tasks if task["name"] == "train")
    page.goto(address(ui, f"/runs/task-run/{train['id']}"))
    expect(page.get_by_text("python train.py").first).to_be_visible(timeout=60_000)
    page.goto(address(ui, f"/runs/task-run/{train['id']}?tab=Artifacts"))
    expect(page.get_by_text("params.yaml:train").first).to_be_visible(timeout=60_000)


@pytest.mark.parametrize(
    ("key", "texts"),
    [
        ("diff-quickstart", ["added", "737", "data/train/0/0020.pgm"]),
        ("metrics-quickstart", ["accuracy", "0.925", "0.9528", "+0.0278"]),
        ("stage-quickstart--train", ["dependency", "features/train.npz"]),
        ("data-quickstart-data-train", ["1,437", "700", "d3a4ed866c6a"]),
    ],
)
def test_a_card_shows_what_it_is_for(ui: PrefectServer, page: Page, key: str, texts: list[str]) -> None:
    newest = max(ui.artifacts(key), key=lambda artifact: artifact["created"])
    page.goto(address(ui, f"/artifacts/artifact/{newest['id']}"))
    for text in texts:
        expect(page.get_by_text(text).first).to_be_visible(timeout=60_000)


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
    ui: PrefectServer, page: Page, version: str, key: str, name: str
) -> None:
    """The browser loads each data URI: an image that it refuses has no width."""
    newest = max(ui.artifacts(key), key=lambda artifact: artifact["created"])
    page.context.add_cookies([{"name": "prefect_ui_version", "value": version, "url": address(ui, "")}])
    page.goto(address(ui, f"{'/v2' if version == 'v2' else ''}/artifacts/artifact/{newest['id']}"))
    picture = page.get_by_alt_text(name, exact=True).first
    expect(picture).to_be_visible(timeout=60_000)
    assert picture.evaluate("image => image.naturalWidth") > 100
    page.context.clear_cookies()


def test_the_blocks_can_be_made_by_hand(ui: PrefectServer, page: Page) -> None:
    """The server found the block types by the package's entry point."""
    page.goto(address(ui, "/blocks/catalog"))
    for name in ("DVC Repository", "DVC Remote", "Kubeflow Pipelines", "Model Server"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=60_000)
