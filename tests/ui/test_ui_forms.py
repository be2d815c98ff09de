"""The deployments of prefect.yaml, each started by hand from its form in a browser, on both of Prefect's pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from processes import wait_until
from repos import git
from ruamel.yaml import YAML
from servers import PrefectServer

from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.processes.leash import end
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.local import LocalServing

from .conftest import TREE, Version, Viewer

# A page and a flow run take half a minute each.
pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(1800)]

NAMES = [each["name"] for each in YAML(typ="safe").load(TREE / "prefect.yaml")["deployments"]]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# The pickers of a form, from the top: the parameter of each, the slug of its block, and the title of its tab.
REPOSITORY = ("repository", "dvc-repository", "DvcRepository")
PIPELINES = ("pipelines", "kubeflow-pipelines", "KubeflowPipelines")
SERVER = ("server", "model-server", "ModelServer")
PICKED = {"train": [REPOSITORY, PIPELINES], "repro": [REPOSITORY, PIPELINES]} | {
    name: [REPOSITORY, SERVER] for name in ("serve", "promote", "rollback")
}
SCHEMA = "columns:\n  id: {dtype: int64, unique: true}\nstrict: true\n"


@pytest.fixture(scope="module")
def repo(ui: PrefectServer) -> Repo:
    return Repo.open(ui.folder / "tree/.demo/repo")


@pytest.fixture(scope="module")
def deployed(ui: PrefectServer, repo: Repo) -> Iterator[PrefectServer]:
    """The server with the deployments of prefect.yaml, and a worker."""
    (repo.root / "schemas").mkdir()
    (repo.root / "schemas/incoming.yaml").write_text(SCHEMA)
    git(repo.root, "add", "schemas")
    git(repo.root, "commit", "--quiet", "--message", "Schema of new files")
    shutil.copy(TREE / "prefect.yaml", ui.folder / "tree")
    ui.run("prefect", "--no-prompt", "work-pool", "create", "local", "--type", "process")
    ui.run("prefect", "--no-prompt", "deploy", "--all")
    with ExitStack() as started:
        worker = ui.start("prefect", "worker", "start", "--pool", "local")
        started.callback(LocalServing(ui.folder / "prefect/dvkf/serving").stop, "digits")
        started.callback(end, worker, grace=20)
        yield ui


def field(within: Page | Locator, name: str, version: Version) -> Locator:
    """Return the text field of a parameter."""
    if version == "v1":
        shown = within.locator(".schema-form-property").filter(has_text=name)
        return shown.locator("textarea, input").first
    return within.get_by_label(name).first


def pick(page: Page, version: Version, number: int, title: str) -> None:
    """Pick the block ``local`` in one picker of a form, counted from the top."""
    page.get_by_role("button" if version == "v1" else "tab", name=title, exact=True).click()
    if version == "v1":
        picker = page.locator(".block-document-input__select").nth(number)
        picker.locator(".p-select-button__icon").click()
    else:
        picker = page.get_by_role("button", name="Select a block", exact=True).nth(number)
        picker.click()
    option = page.get_by_role("option", name="local", exact=True)
    option.click()
    expect(option).to_be_hidden(timeout=60_000)
    expect(picker).to_contain_text("local", timeout=60_000)


def fill(viewer: Viewer, version: Version, name: str, server: PrefectServer) -> Locator:
    """Open the form of a deployment, pick its blocks, and return the button that sends it."""
    deployment = server.get(f"/deployments/name/{name}/{name}")
    path = f"/deployments/deployment/{deployment['id']}/run"
    send = viewer.open(path, lambda page: page.get_by_role("button", name="Submit"), version=version)
    page = viewer.page
    for number, (_, _, title) in enumerate(PICKED.get(name, [REPOSITORY])):
        pick(page, version, number, title)
    if "model" in deployment["parameter_openapi_schema"].get("required", ()):
        field(page, "model", version).fill("digits")
    return send


def sent(viewer: Viewer, button: Locator, address: str) -> Any:
    """Send a form, and return the server's answer. A busy server refuses for a moment, and the page says so."""

    def answer() -> Any:
        with viewer.page.expect_response(lambda found: found.url.endswith(address)) as got:
            button.click()
        found = got.value
        assert found.ok or found.status == 503, found.text()
        return found.json() if found.ok else None

    return wait_until(answer, 180, f"the form was not sent: {viewer.page.inner_text('body')[:2000]}")


def reached(server: PrefectServer, run: Any, *names: str) -> Any:
    """Wait for the end of a run, or for a state of one of these names."""

    def now() -> Any:
        found = server.get(f"/flow_runs/{run['id']}")
        return found if found["state_type"] in ENDED or found["state_name"] in names else None

    return wait_until(now, 600, server.logs())


def answer_form(viewer: Viewer, version: Version, run: Any) -> tuple[Locator, Locator]:
    """Open the form that a suspended run shows, and return it and its button."""

    def button(page: Page) -> Locator:
        if version == "v1":
            return page.get_by_role("button", name="Resume").first
        return page.locator("button[aria-haspopup=menu]").first

    viewer.open(f"/runs/flow-run/{run['id']}", button, version=version).click()
    if version == "v2":
        viewer.page.get_by_role("menuitem", name="Resume").click()
    form = viewer.page.get_by_role("dialog")
    return form, form.get_by_role("button", name="Submit" if version == "v1" else "Resume")


def prepare(name: str, repo: Repo, version: Version) -> None:
    """Give a deployment something to do."""
    registry = ModelRegistry(repo)
    if name in ("train", "repro"):
        params = repo.root / "params.yaml"
        (row,) = (line for line in params.read_text().splitlines() if "C:" in line)
        params.write_text(params.read_text().replace(row, row + ("1" if version == "v1" else "2")))
    elif name == "ingest":
        (repo.root / "incoming").mkdir(exist_ok=True)
        new = repo.root / f"incoming/{version}.csv"
        new.write_text(f"id\n{len(version)}\n")
        os.utime(new, (1e9, 1e9))
    elif name in ("promote", "rollback"):
        # The version that the run leaves.
        before = "v0.0.1" if name == "promote" else "v0.0.2"
        if registry.show("digits", "#prod").version != before:
            registry.assign("digits", before, "prod")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", NAMES)
def test_a_form_starts_its_deployment_with_picked_blocks(
    deployed: PrefectServer, viewer: Viewer, repo: Repo, name: str, version: Version
) -> None:
    prepare(name, repo, version)
    run = sent(viewer, fill(viewer, version, name, deployed), "/create_flow_run")
    for parameter, slug, _ in PICKED.get(name, [REPOSITORY]):
        saved = deployed.get(f"/block_types/slug/{slug}/block_documents/name/local")
        assert run["parameters"][parameter] == {"$ref": {"block_document_id": saved["id"]}}
    done = reached(deployed, run, "Suspended")
    if name == "promote":
        assert done["state_name"] == "Suspended", deployed.logs()
        done = approved(deployed, viewer, done, version)
    assert (done["state_type"], done["state_name"]) == ("COMPLETED", "Completed"), deployed.logs()
    head = git(repo.root, "log", "-1", "--format=%B")
    registry = ModelRegistry(repo)
    if name in ("train", "repro", "ingest"):
        assert f"Prefect-Flow-Run: {run['id']}" in head
    if name == "ingest":
        assert Path(repo.root, f"data/incoming/{version}.csv").exists()
    if name == "promote":
        (event, *_) = (each for each in registry.history("digits") if each.stage == "prod")
        assert event.trailers["Approved-By"] == f"approved by Ann of {version}"
    if name in ("serve", "promote", "rollback"):
        endpoint = LocalServing(deployed.folder / "prefect/dvkf/serving").get("digits")
        assert endpoint is not None and endpoint.version == registry.show("digits", "#prod").version


def approved(server: PrefectServer, viewer: Viewer, run: Any, version: Version) -> Any:
    """Approve by the typed form of a suspended run: without a name it stays suspended."""
    form, send = answer_form(viewer, version, run)
    expect(form.get_by_text("Your name, for the tag of the stage.")).to_be_visible(timeout=60_000)
    # The comparison with the version in production.
    expect(form.get_by_text("metrics.json:accuracy")).to_be_visible(timeout=60_000)
    form.get_by_role("switch").first.click()
    if version == "v1":
        with viewer.page.expect_response(lambda found: found.url.endswith("/validate")) as got:
            send.click()
        assert got.value.json()["valid"] is False
    else:
        assert sent(viewer, send, "/resume")["status"] == "REJECT"
        form, send = answer_form(viewer, version, run)
        form.get_by_role("switch").first.click()
    assert server.get(f"/flow_runs/{run['id']}")["state_name"] == "Suspended"
    field(form, "Person", version).fill(f"Ann of {version}")
    assert sent(viewer, send, "/resume")["status"] == "ACCEPT"
    return reached(server, run)
