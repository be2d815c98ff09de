"""Make one card of each kind on the Prefect server of the environment, by the tasks and flows themselves.

The Kubeflow Model Registry and the cluster with KServe are the strict fakes of the other tests; all else is real.
Run as ``python tests/ui/gallery.py FOLDER`` with ``tests`` on the path; it prints a JSON object of the run that waits
for approval.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kserve_world import patch_waits, world
from model_registry.fake import FakeRegistry
from prefect import flow
from prefect.client.orchestration import get_client
from promotion_world import write_version
from repos import commit_all, make_repo, write

from dvkf_prefect import (
    DvcRepository,
    KServeModelServer,
    KubeflowModelRegistry,
    ModelRegistry,
    ModelServer,
    Repo,
    abort_canary,
    deploy_model,
    judge_canary,
    list_model_events,
    mirror_models,
    promote_canary,
    promote_model,
    publish_model,
    push_data,
    request_predictions,
    start_canary,
    trace_model,
    verify_data,
)
from dvkf_prefect.errors import GateError, PromotionError
from dvkf_prefect.flows import ingest, maintain, promote, rollback
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.serving.kserve import deployment

NAME = "card_gallery"
SCHEMA = """\
columns:
  user_id: {dtype: int64, unique: true, checks: {greater_than: 0}}
  zip: {dtype: str, checks: {str_matches: '^[0-9]{5}(-[0-9]{4})?$'}}
strict: true
"""
DVC_YAML = "artifacts:\n  road_signs: {path: model, type: model, meta: {format: custom}}\nmetrics: [m.json]\n"


def make_models(folder: Path) -> DvcRepository:
    """Make a repository with two versions of a model and a folder as its remote."""
    root = folder / NAME
    make_repo(root, {"dvc.yaml": DVC_YAML, "schemas/users.yaml": SCHEMA}, remote=folder / "store")
    repo = Repo.open(root)
    for number in (1, 2):
        write_version(root / "model", number)
        write(root, {"m.json": json.dumps({"accuracy": 0.8 + number / 30, "f1_macro": 0.7 + number / 70})})
        repo.add([root / "model"])
        repo.push()
        commit_all(root, f"Train road signs, {number}")
        ModelRegistry(repo).register("road_signs", version=f"v{number}.0.0", message=f"Trained {number}")
    models = folder / "published"
    return DvcRepository(path=str(root), models_url=str(models))


@flow(name="promotions")
def show_promotions(block: DvcRepository, server: ModelServer, registry: KubeflowModelRegistry) -> None:
    """Promote, predict, be refused, and mirror."""
    push_data(block)
    promote_model(block, "road_signs", "v1.0.0", "prod", server=server, registry=registry, reason="First")
    request_predictions(block, server, "road_signs", [[0, number] for number in range(30)])
    gates = ["metric:m.json:accuracy>=0.99", "smoke"]
    with suppress(PromotionError):
        promote_model(block, "road_signs", "latest", "prod", server=server, gates=gates)
    mirror_models(block, registry)
    list_model_events(block, "road_signs")
    trace_model(block, "road_signs")


def show_approval(block: DvcRepository, server: ModelServer) -> str:
    """Let a run of `promote` wait for approval, and return its ID."""
    block.save("gallery", overwrite=True)
    server.save("gallery", overwrite=True)
    threading.Thread(
        target=lambda: promote("road_signs", repository="gallery", server="gallery", timeout=3600),
        daemon=True,
    ).start()
    with get_client(sync_client=True) as client:
        for _ in range(1200):
            waiting = [run for run in client.read_flow_runs() if run.state and run.state.is_paused()]
            if waiting:
                return str(waiting[0].id)
            time.sleep(0.2)
    raise TimeoutError("no run waits for approval")


def answer(run: str) -> None:
    """Approve a promotion, and wait for its end."""
    with get_client(sync_client=True) as client:
        client.resume_flow_run(run, run_input={"approve": True, "person": "Ann", "reason": "Better"})
        for _ in range(1200):
            found = client.read_flow_run(run)
            if found.state and found.state.is_final():
                assert found.state.is_completed(), found.state
                return
            time.sleep(0.2)


@flow(name="services")
def show_services(block: DvcRepository, folder: Path) -> None:
    """Deploy to a cluster, with a canary that passes and one that is refused."""
    with pytest.MonkeyPatch.context() as patch, world("0.20", mode="Knative") as cluster:
        patch_waits(patch, cluster)
        patch.setattr(deployment, "_manifest", lambda place, version: None)
        config = cluster.api.kubeconfig(folder / "kubeconfig", namespace="ml")
        server = KServeModelServer(namespace="ml", config_file=config, service_account="lake")
        registry = ModelRegistry(block.open())
        for version in (registry.show("road_signs", f"v{number}.0.0") for number in (1, 2)):
            where = f"s3://models/{version.name}/{version.version}/"
            registry.note(version, "published", {"where": where, "format": "sklearn"})
        deploy_model(block, server, "road_signs", "v1.0.0")
        start_canary(
            block, server, "road_signs", "v2.0.0", percent=20, gates=["metric:m.json:accuracy>=champion"]
        )
        abort_canary(block, server, "road_signs")
        start_canary(block, server, "road_signs", "v2.0.0", percent=20)
        with suppress(GateError):
            judge_canary(block, server, "road_signs", ["metric:m.json:accuracy>=0.99", "metric:nothing>=1"])
        start_canary(block, server, "road_signs", "v2.0.0", percent=20)
        promote_canary(block, server, "road_signs")


def show_upkeep(block: DvcRepository, folder: Path) -> None:
    """Ingest files of which some fail, publish, and maintain a repository with a damaged object."""
    inbox = folder / "inbox"
    inbox.mkdir()
    good = "".join(f"{number},0123{number}\n" for number in range(1, 6))
    (inbox / "2026_01_05_users.csv").write_text(f"user_id,zip\n{good}")
    (inbox / "2026_01_06_users.csv").write_text("user_id,zip\n1,01234\n-2,5\n1,a|b`c_d_e\n")
    (inbox / "late.csv").write_text("user_id,zip\n9,01239\n")
    ahead = time.time() + 3
    for path in inbox.iterdir():
        if path.name != "late.csv":
            os.utime(path, (ahead - 3600, ahead - 3600))
    ingest(
        block,
        str(inbox),
        "data/new_users",
        "schemas/users.yaml",
        settle_seconds=600,
        return_state=True,
    )

    @flow(name="publish")
    def publish() -> None:
        for number in (1, 2):
            publish_model(block, "road_signs", f"v{number}.0.0")

    publish()
    repo = block.open()
    write(repo.root, {"scrap.bin": os.urandom(5000)})
    repo.add(["scrap.bin"])
    (repo.root / "scrap.bin.dvc").unlink()
    maintain(block, sample=1, grace_hours=0, dry_run=True)
    output = repo.outputs(["data/new_users"])[0]
    row = next(path for path in (repo.root / output.path).iterdir())
    damaged = repo.cache.path(digest_file(row), "md5")
    os.chmod(damaged, 0o644)
    damaged.write_bytes(b"damaged")
    maintain(block, sample=1, grace_hours=0, return_state=True)

    @flow(name="repair")
    def repair() -> None:
        verify_data(block, repair=True)

    repair()


def main(folder: Path) -> dict[str, Any]:
    """Make all cards."""
    block = make_models(folder)
    server = ModelServer(state_dir=str(folder / "serving"))
    try:
        with FakeRegistry().served() as host:
            show_promotions(block, server, KubeflowModelRegistry(host=host))
            waiting = show_approval(block, server)
            answer(waiting)
            rollback("road_signs", repository="gallery", server="gallery", reason="Wrong", push=False)
            again = show_approval(block, server)
    finally:
        server.undeploy("road_signs")
    show_upkeep(block, folder)
    show_services(block, folder)
    ModelRegistry(block.open()).deregister("road_signs", "v1.0.0")
    return {"waiting": again}


if __name__ == "__main__":
    status = 1
    try:
        print(json.dumps(main(Path(sys.argv[1]))), flush=True)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # the run that waits for approval goes on waiting
