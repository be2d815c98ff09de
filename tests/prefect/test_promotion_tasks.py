"""The tasks that promote a model and roll it back, and the flow that asks a person, with a Prefect server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from model_registry.fake import FakeRegistry
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Running
from promotion_world import write_version
from repos import commit_all, git, make_repo

from dvkf_prefect.blocks import DvcRepository, KubeflowModelRegistry, ModelServer
from dvkf_prefect.cards import artifact_key
from dvkf_prefect.errors import ModelError, ModelNotFoundError, PromotionError
from dvkf_prefect.flows import promote, rollback
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.promotion.journal import Journal
from dvkf_prefect.promotion.promote import Approval
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks import compare_versions, promote_model, rollback_model

Artifacts = Callable[[str], list[Any]]


@pytest.fixture
def block(tmp_path: Path, prefect_server: None) -> DvcRepository:
    """A repository with two versions of the model ``m``."""
    root = tmp_path / "repo"
    make_repo(root, {"dvc.yaml": "artifacts:\n  m:\n    path: model\n    type: model\nmetrics: [m.json]\n"})
    repo = Repo.open(root)
    for number in (1, 2):
        write_version(root / "model", number)
        (root / "m.json").write_text(f'{{"accuracy": 0.{8 + number - 1}}}')
        repo.add([root / "model"])
        commit_all(root)
        ModelRegistry(repo).register("m", version=f"v{number}.0.0")
    return DvcRepository(path=str(root))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ModelServer]:
    made = ModelServer(state_dir=str(tmp_path / "serving"))
    yield made
    made.undeploy("m")


def test_tasks_promote_compare_and_roll_back(
    block: DvcRepository, server: ModelServer, artifacts: Artifacts
) -> None:
    with FakeRegistry().served() as host:
        mirror = KubeflowModelRegistry(host=host)

        @flow
        def release() -> Any:
            first = promote_model(block, "m", "v1.0.0", "prod", server=server, registry=mirror)
            compared = compare_versions(block, "m", "latest", "prod")
            waits = promote_model(
                block, "m", "latest", "prod", server=server, gates=["metric:accuracy>=champion"], wait=True
            )
            answer = Approval(True, "Ann", "Better")
            second = promote_model(
                block, "m", "latest", "prod", server=server, canary=50, approval=answer, registry=mirror
            )
            with pytest.raises(PromotionError, match=r"metric:accuracy>=1 failed"):
                promote_model(block, "m", "v1.0.0", "prod", server=server, gates=["metric:accuracy>=1"])
            return first, compared, waits, second

        first, compared, waits, second = release()
    assert first.stages == ("prod",) and second.stages == ("prod",) and waits.stages == ()
    assert [(d.kind, d.name, d.champion, d.candidate) for d in compared.differences] == [
        ("metric", "m.json:accuracy", 0.8, 0.9)
    ]
    assert server.endpoint("m").predict([[0, 0]]) == [2]
    registry = ModelRegistry(block.open())
    tag = registry.history("m")[0]
    assert tag.trailers["Approved-By"] == "approved by Ann: Better" and tag.trailers["Prefect-Flow-Run"]
    cards = artifacts(artifact_key("promotion", block.name, "m", "prod"))
    assert "Promotion of m v1.0.0 to prod" in cards[0].description
    assert cards[-1].description.endswith(": refused.") and "metric:accuracy&gt;=1" in str(cards[-1].data)
    assert "0.8" in artifacts(artifact_key("candidate", block.name, "m"))[0].data

    @flow
    def back() -> Any:
        return rollback_model(block, "m", "prod", server=server, reason="Wrong")

    assert back().version == "v1.0.0" and server.endpoint("m").predict([[0, 0]]) == [1]
    assert "Rolled-Back-From" in registry.history("m")[0].trailers


@pytest.mark.long
def test_workers_with_their_own_clones_share_a_promotion(
    block: DvcRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that gets the answer continues what the other began; the journal was that of one clone alone."""
    origin = f"file://{block.path}"
    git(Path(block.path), "config", "receive.denyCurrentBranch", "ignore")
    cloned = DvcRepository(path=origin, remote=None)

    @flow
    def act(worker: str, version: str, **options: Any) -> Any:
        folder = tmp_path / worker
        monkeypatch.setattr("dvkf_prefect.settings.DvkfSettings.folder", lambda self, name: folder / name)
        return promote_model(cloned, "m", version, "prod", **options)

    act("one", "v2.0.0", wait=True)
    with pytest.raises(ModelError, match=r"promotion of m v2.0.0 to prod, by .* has not ended"):
        act("two", "v1.0.0")
    assert act("two", "v2.0.0", approval=Approval(True, "Ann")).stages == ("prod",)
    record = Journal(ModelRegistry(block.open()).git, "m", "prod").read()
    assert record is not None and (record.state, record.steps[1].said) == ("done", "approved by Ann")
    assert len({path.parent for path in tmp_path.glob("*/clones/*/.git")}) == 2
    assert ModelRegistry(block.open()).show("m", "#prod").version == "v2.0.0"


def test_the_flow_asks_a_person(block: DvcRepository, server: ModelServer, artifacts: Artifacts) -> None:
    block.save("asked", overwrite=True)
    server.save("asked", overwrite=True)
    places = {"repository": "asked", "server": "asked"}
    assert promote("m", which="v1.0.0", approval=False, **places) == {
        "model": "m", "version": "v1.0.0", "stages": ["prod"],
    }  # fmt: skip
    ended: list[Any] = []

    def run() -> None:
        ended.append(promote("m", timeout=120, **places))

    thread = threading.Thread(target=run)
    thread.start()
    with get_client(sync_client=True) as client:
        for _ in range(600):
            waiting = [each for each in client.read_flow_runs() if each.state and each.state.is_paused()]
            if waiting or ended:
                break
            time.sleep(0.2)
        (waits,) = waiting
        record = Journal(ModelRegistry(block.open()).git, "m", "prod").read()
        assert record is not None and [step.name for step in record.steps] == ["gate"]
        # The stage's tag needs a name.
        for unnamed in ({"approve": True}, {"approve": True, "person": ""}):
            assert client.resume_flow_run(waits.id, run_input=unnamed).status.value == "REJECT"
        answer = {"approve": True, "person": "Ann", "reason": "Better"}
        assert client.resume_flow_run(waits.id, run_input=answer).status.value == "ACCEPT"
    thread.join(120)
    assert ended == [{"model": "m", "version": "v2.0.0", "stages": ["prod"]}]
    assert server.endpoint("m").predict([[0, 0]]) == [2]
    assert ModelRegistry(block.open()).history("m")[0].trailers["Approved-By"] == "approved by Ann: Better"
    done = rollback("m", instances=[[0, 0]], reason="Wrong", push=False, **places)
    assert (done["version"], done["predictions"]) == ("v1.0.0", [1])


@pytest.mark.long
def test_a_form_that_nobody_answers_refuses_the_version(block: DvcRepository, server: ModelServer) -> None:
    block.save("unasked", overwrite=True)
    server.save("unasked", overwrite=True)
    places = {"repository": "unasked", "server": "unasked"}
    promote("m", which="v1.0.0", approval=False, **places)
    with pytest.raises(PromotionError, match=r"nothing was changed. refused by no person: no answer in 1 s"):
        promote("m", timeout=1, **places)
    registry = ModelRegistry(block.open())
    record = Journal(registry.git, "m", "prod").read()
    assert record is not None and (record.version, record.state) == ("v2.0.0", "refused")
    assert server.endpoint("m").version == registry.show("m", "#prod").version == "v1.0.0"
    assert promote("m", approval=False, **places)["version"] == "v2.0.0"


@pytest.mark.long
def test_a_rollback_flow_that_did_not_complete_is_continued_by_another(
    block: DvcRepository, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed after its task; the next run found no version before the one that it had returned to."""
    block.save("killed", overwrite=True)
    server.save("killed", overwrite=True)
    places = {"repository": "killed", "server": "killed"}
    for version in ("v1.0.0", "v2.0.0"):
        promote("m", which=version, approval=False, **places)

    def killed(*arguments: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("dvkf_prefect.flows.serving.deploy_model", killed)
        with pytest.raises(RuntimeError, match="killed"):
            rollback("m", push=False, **places)
    record = Journal(ModelRegistry(block.open()).git, "m", "prod").read()
    assert record is not None and (record.version, record.state) == ("v1.0.0", "done")
    with get_client(sync_client=True) as client:  # as a kill leaves it
        client.set_flow_run_state(UUID(record.holder.run), Running(), force=True)
    assert rollback("m", push=False, **places)["version"] == "v1.0.0"
    with pytest.raises(ModelNotFoundError, match=r"held stage 'prod' before v1.0.0"):
        rollback("m", push=False, **places)
