"""Each kind of card in both of Prefect's pages: its headline, whole, and no broken picture."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect
from servers import PrefectServer

from .conftest import Viewer

pytestmark = [pytest.mark.browser, pytest.mark.long]

# The start of each key, and what its newest card says on top.
HEADLINES = {
    "candidate": "v2.0.0 beside v1.0.0. 2 values changed",
    "collected": "1 object unused (5.0 kB)",
    "data": "quality-reports of card_gallery is at version",
    "endpoint": "road_signs v2.0.0 of card_gallery answers at http://road-signs.ml.example.com",
    "events": "road_signs of card_gallery: 3 events",
    "gates": "road_signs v2.0.0 of card_gallery: 2 gates refused it",
    "incoming": "card_gallery: 1 file for data/new_users, 1 in quarantine",
    "lineage": "Lineage of road_signs v2.0.0 in card_gallery: 1 version",
    "mirror": "3 records, 0 changed",
    "model": "waits for approval to be prod",
    "predictions": "road_signs v1.0.0 of card_gallery predicted 30 rows",
    "promotion": "Promotion of road_signs v2.0.0 to prod of card_gallery: waits for approval",
    "published": "road_signs v2.0.0 is published at",
    "transfer": "card_gallery: verify the cache: ",
    "unpublished": "2 kept",
    "verified": "1 damaged or missing, 1 repaired",
}


@pytest.fixture(scope="module")
def gallery(ui: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One card of each kind; the ID of the run that waits for approval."""
    ui.environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = ui.run(
        sys.executable, str(Path(__file__).with_name("gallery.py")), str(tmp_path_factory.mktemp("g"))
    )
    return str(json.loads(done.splitlines()[-1])["waiting"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_each_kind_of_card_shows_its_headline(
    ui: PrefectServer, gallery: str, viewer: Viewer, version: str
) -> None:
    like = {"artifacts": {"key": {"like_": "card-gallery"}}, "sort": "CREATED_DESC", "limit": 200}
    newest: dict[str, str] = {}
    for artifact in ui.post("/artifacts/filter", like):
        kind = artifact["key"].partition("-card-gallery")[0]
        newest.setdefault(kind, artifact["id"])
    assert sorted(newest) == sorted(HEADLINES)
    for kind, said in HEADLINES.items():
        # The headline has bold words, so it is read from the text of the page.
        viewer.open(
            f"/artifacts/artifact/{newest[kind]}",
            lambda page, said=said: page.get_by_text(re.compile(re.escape(said))).first,
            version=version,  # type: ignore[arg-type]
        )
        body = viewer.page.locator("main, #app, body").first.inner_text()
        # Escapes and marks of markdown are text where they are not understood.
        assert re.search(r"\\[_|*]|\*\*|&[a-z]+;", body) is None, (kind, body)
        for picture in viewer.page.locator("img").all():
            assert picture.evaluate("image => image.complete && image.naturalWidth") > 0, kind


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_form_of_the_approval_says_what_is_asked(gallery: str, viewer: Viewer, version: str) -> None:
    run = f"/runs/flow-run/{gallery}"
    if version == "v1":
        viewer.open(run, lambda page: page.get_by_role("button", name="Resume").first).click()
    else:
        # The second page has it in the menu beside the run's name.
        viewer.open(run, lambda page: page.get_by_text("Paused").first, version="v2")
        viewer.page.mouse.click(1366, 40)
        viewer.page.get_by_role("menuitem", name="Resume").click()
    shown = viewer.page.get_by_role("dialog").first
    expect(shown.get_by_text("road_signs v2.0.0").first).to_be_visible()
    expect(shown.get_by_text("f1_macro").first).to_be_visible()
    expect(shown.get_by_text("Your name, for the tag of the stage.").first).to_be_visible()
