"""The server of `make ui`, and a browser that looks at it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Locator, Page, Request, expect, sync_playwright
from servers import PrefectServer

TREE = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
# The second page of Prefect asks for an address on the web: no name is resolved.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
Version = Literal["v1", "v2"]


@pytest.fixture(scope="session")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The server of `make ui`, over what a demo did."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium (Debian: chromium)")
    folder = tmp_path_factory.mktemp("ui")
    for name in ("flows", "blocks"):
        shutil.copytree(TREE / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    server = PrefectServer(folder)
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
    with server.serving():
        server.run(sys.executable, "blocks/local.py", ".demo/repo")
        params = folder / "tree/.demo/repo/params.yaml"
        params.write_text(params.read_text().replace("C: 2.0", "C: 3.0"))
        server.run(sys.executable, "flows/repro.py")
        yield server


class Viewer:
    """A person at one of the two user interfaces of a server.

    Attributes:
        page: The page of the browser.
    """

    def __init__(self, page: Page, server: PrefectServer) -> None:
        self.page = page
        self._site = server.api.removesuffix("/api")
        self._failed: list[str] = []
        page.on("requestfailed", self._note)

    def _note(self, request: Request) -> None:
        # A page that is left takes its requests back.
        if request.url.startswith(self._site) and request.failure != "net::ERR_ABORTED":
            self._failed.append(f"{request.url}: {request.failure}")

    def open(self, path: str, wanted: Callable[[Page], Locator], *, version: Version = "v1") -> Locator:
        """Open a page, and return what it has to show.

        A script that a busy server does not send leaves the page empty for good, so the page is opened again.
        """
        cookie = {"name": "prefect_ui_version", "value": version, "url": self._site}
        self.page.context.add_cookies([cookie])  # type: ignore[list-item]
        for last in (False, False, True):
            self._failed.clear()
            self.page.goto(f"{self._site}{'/v2' if version == 'v2' else ''}{path}")
            if self._failed and not last:
                continue
            found = wanted(self.page)
            try:
                expect(found).to_be_visible(timeout=120_000)
            except AssertionError as error:
                if self._failed and not last:
                    continue
                shown = self.page.inner_text("body")[:1000]
                raise AssertionError(f"{error}\nfailed: {self._failed}\nthe page: {shown}") from None
            return found
        raise AssertionError("not reached")

    def read(self, path: str, *texts: str, exact: bool = False, version: Version = "v1") -> None:
        """Open a page, and find texts on it."""
        first, *others = texts
        self.open(path, lambda page: page.get_by_text(first, exact=exact).first, version=version)
        for text in others:
            expect(self.page.get_by_text(text, exact=exact).first).to_be_visible(timeout=60_000)


def newest_card(server: PrefectServer, key: str) -> str:
    """Return the path of the page of a key's newest artifact."""
    newest = max(server.artifacts(key), key=lambda artifact: artifact["created"])
    return f"/artifacts/artifact/{newest['id']}"


# Not of the session: Playwright runs an event loop of its own in the thread of the tests meanwhile.
@pytest.fixture(scope="module")
def viewer(ui: PrefectServer) -> Iterator[Viewer]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(120_000)
        yield Viewer(page, ui)
        browser.close()
