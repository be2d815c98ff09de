"""Logs of stages on a cluster while they run: every line once, by whichever way there is."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest

from dvkf_prefect.errors import MissingObjectError, RunnerError
from dvkf_prefect.kubeflow.cluster import api as api_module
from dvkf_prefect.kubeflow.cluster import logs
from dvkf_prefect.kubeflow.cluster.followed import FollowedRun
from dvkf_prefect.kubeflow.cluster.logs import MOST_LINES, RunLogs
from dvkf_prefect.kubeflow.cluster.pods import PodView
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner

from .fake import VERSIONS, wait_for


class Kubelet:
    """Logs of pods, with the kubelet's habits: whole seconds, cut lines, a log for each start of a container."""

    def __init__(self) -> None:
        self.pods: dict[str, list[list[tuple[str, str]]]] = {}
        self.phases: dict[str, str] = {}
        self.away = False
        self.asked: list[str] = []

    def say(self, pod: str, stamp: str, *lines: str) -> None:
        self.pods.setdefault(pod, [[]])[-1].extend((stamp, line) for line in lines)

    def views(self, run_id: str) -> list[PodView] | None:
        if self.away:
            return None
        return [
            PodView("a", name, self.phases.get(name, "Running"), len(runs) - 1)
            for name, runs in self.pods.items()
        ]

    def log_since(self, pod: str, second: str, limit: int, *, previous: bool = False) -> str | None:
        if self.away or pod not in self.pods:
            return None
        self.asked.append(second)
        found = self.pods[pod][-2 if previous else -1]
        text = "".join(f"{stamp} {line}\n" for stamp, line in found if stamp[:19] >= second)
        return text.encode()[:limit].decode(errors="ignore")


class Nothing:
    """An API and a remote that have no log."""

    def log_head(self, run_id: str, pod: str, namespace: str) -> tuple[str, bool]:
        return "", False

    def read(self, key: str, *, limit: int) -> bytes:
        raise MissingObjectError(key)


class Stream:
    """A stage's log, as it is read."""

    def __init__(self, kubelet: Kubelet | None = None, api: object = None, storage: object = None) -> None:
        self.kubelet = kubelet
        self.lines: list[str] = []
        remote = SimpleNamespace(storage=storage or Nothing())
        run = FollowedRun(api or Nothing(), "r", "k", {"a": "a"}, remote, kubelet, "kubeflow")
        self.logs = RunLogs(run, lambda stage, lines: self.lines.extend(lines))

    def read(self, workflow: object = None) -> None:
        views = self.kubelet.views("r") if self.kubelet else None
        self.logs.read(["a"], views, workflow)


def stamp(second: int, nano: int) -> str:
    return f"2026-01-31T12:{second // 60:02}:{second % 60:02}.{nano:09}Z"


@pytest.mark.parametrize("seed", range(20))
def test_every_line_once_whatever_breaks(seed, monkeypatch):
    """Bursts of one second and of one time, reads that are cut or fail, in any order."""
    chance = random.Random(seed)
    monkeypatch.setattr(logs, "_BYTES", 200)
    kubelet, second, nano, said = Kubelet(), 0, 0, []
    stream = Stream(kubelet)
    kubelet.say("p", stamp(0, 0), "first")
    said.append("first")
    for number in range(120):
        kubelet.away = chance.random() < 0.3
        if chance.random() < 0.2:
            second, nano = second + chance.choice([1, 1, 60]), 0
        nano += chance.choice([0, 0, 1, 10**6])
        for _ in range(chance.choice([0, 1, 2, 9])):
            said.append(f"line {number} {chance.random()}" * chance.choice([1, 1, 5]))
            kubelet.say("p", stamp(second, nano), said[-1])
        if chance.random() < 0.6:
            stream.read()
    kubelet.away = False
    for _ in range(200):
        stream.read()
    stream.logs.finish("a", stream.kubelet.views("r"), None)
    assert stream.lines == said


def test_a_resumed_read_asks_only_from_the_last_second(monkeypatch):
    kubelet = Kubelet()
    stream = Stream(kubelet)
    kubelet.say("p", stamp(7, 5), "one", "two")
    stream.read()
    kubelet.say("p", stamp(7, 5), "three")
    stream.read()
    assert kubelet.asked == ["", "2026-01-31T12:00:07"] and stream.lines == ["one", "two", "three"]


def test_an_attempt_and_a_restarted_container_are_told_apart():
    kubelet = Kubelet()
    stream = Stream(kubelet)
    kubelet.say("p-1", stamp(1, 0), "one")
    stream.read()
    kubelet.say("p-1", stamp(2, 0), "two")
    kubelet.pods["p-1"].append([])
    kubelet.say("p-1", stamp(3, 0), "three")
    kubelet.say("p-2", stamp(4, 0), "four")
    stream.read()
    assert stream.lines == [
        "one", "two", "--- the container of pod p-1 was restarted ---", "three", "--- attempt 2, pod p-2 ---", "four",
    ]  # fmt: skip


def test_a_pod_that_vanished_is_said_once():
    kubelet = Kubelet()
    stream = Stream(kubelet)
    kubelet.say("p", stamp(1, 0), "one")
    stream.read()
    del kubelet.pods["p"]
    stream.read()
    stream.read()
    stream.logs.finish("a", stream.kubelet.views("r"), None)
    assert stream.lines == ["one", "--- the pod p is gone, with the rest of its log ---"]


class Workflow:
    def pod(self, task: str) -> str:
        return "p"


class Ui(Nothing):
    """KFP's UI, which has whole logs."""

    text = ""
    cut = False

    def log_head(self, run_id: str, pod: str, namespace: str) -> tuple[str, bool]:
        return self.text, self.cut


def test_the_ui_goes_on_where_kubernetes_left_off_and_back():
    kubelet, ui = Kubelet(), Ui()
    stream = Stream(kubelet, ui)
    kubelet.say("p", stamp(1, 0), "one", "two")
    stream.read()
    kubelet.away, ui.text = True, "one\ntwo\nthree\nfou"
    stream.read(Workflow())
    stream.read(Workflow())
    assert stream.lines == ["one", "two", "three"]
    kubelet.away = False
    kubelet.say("p", stamp(1, 0), "three")
    kubelet.say("p", stamp(2, 0), "four")
    stream.read()
    assert stream.lines == ["one", "two", "three", "four"]


def test_what_the_ui_gave_first_is_not_repeated_by_kubernetes():
    kubelet, ui = Kubelet(), Ui()
    stream = Stream(kubelet, ui)
    kubelet.away, ui.text = True, "one\n"
    stream.read(Workflow())
    kubelet.away = False
    kubelet.say("p", stamp(1, 0), "one", "two")
    stream.read()
    assert stream.lines == ["one", "two"]


def test_the_input_that_kfps_executor_prints_is_left_out():
    ui = Ui()
    dump = '[KFP Executor 1 INFO]: Got executor_input:\n{\n    "a": {\n    }\n}\n'
    ui.text = f"{dump}hello\n[KFP Executor 2 INFO]: Wrote\n"
    stream = Stream(api=ui)
    stream.read(Workflow())
    assert stream.lines == ["hello"]


def test_a_log_is_bounded():
    ui = Ui()
    ui.text = "".join(f"{n}\n" for n in range(MOST_LINES + 5))
    stream = Stream(api=ui)
    stream.read(Workflow())
    stream.read(Workflow())
    assert len(stream.lines) == MOST_LINES + 1
    assert stream.lines[-1] == "... the log continues; its first 1,000 lines are shown here"


def test_a_log_that_the_ui_cannot_give_whole_ends_with_a_line_about_it():
    ui = Ui()
    ui.text, ui.cut = "one\ntwo\nthr", True
    stream = Stream(api=ui)
    stream.read(Workflow())
    stream.read(Workflow())
    stream.logs.finish("a", None, Workflow())
    assert stream.lines == [
        "one", "two", "thr", "... the log continues; Kubeflow's UI gives its first 8 MiB only"
    ]  # fmt: skip


def test_a_log_of_gigabytes_is_read_to_a_stated_byte(monkeypatch):
    """Its end is asked for, and neither its beginning nor its rest is kept in memory."""
    given = 0

    def endless() -> Iterator[bytes]:
        nonlocal given
        for number in range(1 << 20):  # 4 GiB
            given += 4096
            yield f"{number:04095}\n".encode()

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return httpx.Response(200, headers={"content-type": "text/plain"}, content=endless())

    monkeypatch.setattr(api_module, "LOG_LIMIT", 4 << 20)
    api = api_module.KfpApi("http://localhost:1")
    api._client = httpx.Client(transport=httpx.MockTransport(answer))
    tracemalloc.start()
    try:
        text = api.pod_log("r", "p", "kubeflow")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert given <= (4 << 20) + (128 << 10) and peak < 8 << 20
    assert len(text) < (1 << 20) + 100 and "1023\n" in text
    assert text.endswith("... the log is longer than 4 MiB, and its rest was not read")
    given = 0
    head, cut = api.log_head("r", "p", "kubeflow")
    assert cut and len(head) == 8 << 20 and given <= (8 << 20) + (128 << 10)
    api.close()


# -- on the server ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "version"), [("kubernetes", "2.5"), ("kubernetes", "2.17"), *(("ui", v) for v in VERSIONS)]
)
def test_a_log_is_there_while_the_stage_runs(project, kfp, settings, asked, tmp_path, way):
    go = tmp_path / "go"
    events = []
    wait = f"while ! test -e {go}; do sleep 0.1; done"
    step = project.step("a", f"echo one; {wait}; echo two; echo 1 > a", outs=["a"])
    with KfpClusterRunner(
        project.repo, asked if way == "kubernetes" else settings, on_event=events.append
    ) as runner:
        run = runner.start(step)

        def lines() -> list[str]:
            text = "\n".join(e.message for e in events if e.state == "LOG")
            return [line for line in text.split("\n") if line in ("one", "two")]

        wait_for(lambda: lines() == ["one"])
        go.touch()
        run.wait(60)
        assert lines() == ["one", "two"]
    states = [event.state for event in events if event.state in ("RUNNING", "STARTED", "SUCCEEDED")]
    assert states == ["RUNNING", "STARTED", "SUCCEEDED"]
    by_state = {event.state: event for event in events}
    assert by_state["STARTED"].at is not None and by_state["STARTED"].at <= by_state["SUCCEEDED"].at
    paths = {path for _, path in kfp.requests}
    assert any(path.endswith("/log") and path.startswith("/api/v1/") for path in paths) == (
        way == "kubernetes"
    )


def test_without_both_the_log_on_the_remote_is_read_at_the_end(project, kfp, settings):
    kfp.ui_host = kfp.archived_logs = False
    events = []
    with KfpClusterRunner(project.repo, settings, on_event=events.append) as runner:
        runner.start(project.step("a", "echo one; echo 1 > a", outs=["a"])).wait(60)
    text = "\n".join(e.message for e in events if e.state == "LOG")
    assert "one" in text.split("\n") and "error_message" not in text


def test_a_stage_whose_pod_vanished_says_so(project, kfp, asked, tmp_path):
    events = []
    with KfpClusterRunner(project.repo, asked, on_event=events.append) as runner:
        run = runner.start(project.step("a", "echo one; sleep 300", outs=["a"]))
        wait_for(lambda: any("one" in event.message for event in events if event.state == "LOG"))
        pod = next(node.pod for node in kfp.run.workflow.pods() if node.task)
        kfp.vanished.add(pod)
        wait_for(lambda: any(f"the pod {pod} is gone" in event.message for event in events))
        kfp.run.tasks["a"].end(9)
        with pytest.raises(RunnerError, match="without a result"):
            run.wait(60)
