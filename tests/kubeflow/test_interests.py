"""Dispatchers that follow one run: each ends its own interest, and the last one the run."""

from __future__ import annotations

import dataclasses
import os
import threading

import pytest

from dvkf_prefect.errors import RemoteUnreachableError, StageCancelledError
from dvkf_prefect.kubeflow.cluster.ending import end_runs_of
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.exchange import interests
from dvkf_prefect.kubeflow.exchange.interests import Interest
from dvkf_prefect.processes.holder import Holder
from dvkf_prefect.processes.identity import ProcessId

from .fake import VERSIONS, wait_for

ELSEWHERE = Holder("elsewhere", ProcessId.of(os.getpid()))
PLACE = "dvkf/runs/k/interests/other.json"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(interests, "EXPIRY", 0.4)
    monkeypatch.setattr(interests, "_LOOK", 0.02)


@pytest.mark.parametrize("version", VERSIONS)
def test_two_that_share_a_run_end_only_their_own_interest(project, kfp, settings, tmp_path):
    go = tmp_path / "go"
    step = project.step("a", f"while ! test -e {go}; do sleep 0.1; done; echo 1 > a", outs=["a"])
    with KfpClusterRunner(project.repo, settings) as one, KfpClusterRunner(project.repo, settings) as two:
        first, second = one.start(step), two.start(step)
        assert first.run_id == second.run_id == kfp.run.id
        first.cancel()
        with pytest.raises(StageCancelledError, match="its run goes on for another dispatcher"):
            first.wait(60)
        one.close()
        assert not kfp.run.workflow.terminated
        # A retry follows the same run again.
        with KfpClusterRunner(project.repo, settings) as again:
            third = again.start(step)
            go.touch()
            assert third.wait(60).outs == second.wait(60).outs
    assert len(kfp.workflows) == 1 and kfp.run.state == "SUCCEEDED"
    assert not list((tmp_path / "remote/store/dvkf/runs" / kfp.run.id).glob("interests/*"))


def test_the_last_one_that_cancels_ends_the_run(project, kfp, settings):
    step = project.step("a", "sleep 300", outs=["a"])
    with KfpClusterRunner(project.repo, settings) as one, KfpClusterRunner(project.repo, settings) as two:
        runs = [one.start(step), two.start(step)]
        for run, ended in zip(runs, (False, True), strict=True):
            run.cancel()
            with pytest.raises(StageCancelledError):
                run.wait(60)
            assert kfp.run.workflow.terminated == ended
    assert kfp.run.state == "FAILED"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_run_of_a_killed_owner_is_ended_unless_another_follows_it(project, kfp, settings):
    """As the hook of a cancelled flow run does whose process was killed."""
    step = project.step("a", "sleep 300", outs=["a"])
    storage = project.repo.remote().storage
    here = ProcessId.of(os.getpid())
    ended = Holder(Holder.here().machine, dataclasses.replace(here, started=here.started + 1), owner="flow-1")
    with KfpClusterRunner(project.repo, settings, owner="flow-2") as runner:
        run = runner.start(step)
        wait_for(lambda: kfp.run.state == "RUNNING")
        place = f"dvkf/runs/{kfp.run.id}/interests/killed.json"
        storage.write(place, ended.to_json())
        assert end_runs_of("flow-3", settings, project.repo.remote()) == []
        assert end_runs_of("flow-1", settings, project.repo.remote()) == []
        assert storage.size(place) is None and not kfp.run.workflow.terminated
        # Its last follower is gone, too.
        storage.write(place, dataclasses.replace(ended, owner="flow-2").to_json())
        assert end_runs_of("flow-2", settings, project.repo.remote()) == [kfp.run.id]
        with pytest.raises(StageCancelledError):
            run.wait(60)
    assert end_runs_of("flow-2", settings, project.repo.remote()) == []


def test_one_that_comes_while_another_ends_the_run_starts_it_again(project, kfp, settings):
    step = project.step("a", "test -e flag || sleep 300; echo 1 > a", outs=["a"])
    with KfpClusterRunner(project.repo, settings) as runner:
        run = runner.start(step)
        wait_for(lambda: kfp.run.state == "RUNNING")
        first = kfp.run
        project.repo.remote().storage.write(f"dvkf/runs/{first.id}/endings/x.json", ELSEWHERE.to_json())
        threading.Timer(0.5, first.terminate).start()
        with KfpClusterRunner(project.repo, settings) as late:
            assert late.start(step).run_id != first.id
            assert len(kfp.runs) == 2
        with pytest.raises(StageCancelledError):
            run.wait(60)


def test_who_lives(project, quick):
    storage = project.repo.remote().storage

    def gives_up() -> bool:
        mine = Interest(storage, "k")
        left = mine.give_up()
        mine.clear()
        return left

    assert not gives_up()
    here = ProcessId.of(os.getpid())
    ended = dataclasses.replace(here, started=here.started + 1)
    storage.write(PLACE, Holder(Holder.here().machine, ended).to_json())
    assert not gives_up()
    storage.write(PLACE, Holder.here().to_json())
    assert gives_up()
    storage.write(PLACE, ELSEWHERE.to_json())  # it was killed, or it has just renewed
    assert not gives_up()


def test_a_dispatcher_elsewhere_that_renews_its_interest_lives(project, quick, monkeypatch):
    storage = project.repo.remote().storage
    storage.write(PLACE, ELSEWHERE.to_json())
    monkeypatch.setattr(
        interests.time, "sleep", lambda seconds: storage.write(PLACE, ELSEWHERE.to_json() + b"\n")
    )
    assert Interest(storage, "k").give_up()
    assert list(storage.keys("dvkf/runs/k/endings")) == []


def test_an_interest_is_renewed_until_it_is_given_up(project, monkeypatch):
    monkeypatch.setattr(interests, "RENEWAL", 0.02)
    storage = project.repo.remote().storage
    mine = Interest(storage, "k")
    (place,) = storage.keys("dvkf/runs/k/interests")
    sizes = {storage.size(place)}
    wait_for(lambda: sizes.add(storage.size(place)) or len(sizes) > 3)
    mine.release()
    assert storage.size(place) is None


def test_a_remote_that_is_away_leaves_nobody_to_ask(project, monkeypatch):
    """The run is ended: nothing would end it later."""
    storage = project.repo.remote().storage
    mine = Interest(storage, "k")

    def fail(*arguments: object) -> None:
        raise RemoteUnreachableError("the remote is away")

    monkeypatch.setattr(type(storage), "write", fail)
    assert not mine.give_up()
    mine.release()
