"""Stages as task runs: a real Prefect server, real commands, each backend."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from prefect import Task, flow, task
from prefect.client.base import PrefectHttpxSyncClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterTaskRunId,
)
from prefect.client.schemas.sorting import LogSort
from prefect.context import get_run_context
from prefect.settings import get_current_settings
from prefect.task_runners import ThreadPoolTaskRunner
from repos import make_repo

from dvkf_prefect import DvcRepository, KubeflowPipelines, repro_pipeline
from dvkf_prefect.errors import ParseError, StageError, StageFailedError, StageWriteError
from dvkf_prefect.pipeline.run.commit import commit_stages
from dvkf_prefect.pipeline.run.events import ReproResult
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks.stages import runner
from dvkf_prefect.tasks.stages.log import LogFollower, Mask

Backend = Literal["local", "kubeflow-local"]


# Waits for a file beside it.
AWAIT = """\
n=0
while [ ! -e "$(dirname $0)/$1" ] && [ $n -lt 600 ]; do sleep 0.1; n=$((n+1)); done
test -e "$(dirname $0)/$1"
"""


class Pipeline:
    """A repository with a dvc.yaml, and flow runs on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outside = root.parent / "outside"
        self.outside.mkdir()
        (self.outside / "await").write_text(AWAIT)
        make_repo(root)
        (root / "in").mkdir()
        (root / "in" / "a").write_text("1\n")
        self.flow_run: Any = None

    @property
    def repo(self) -> Repo:
        return Repo.open(self.root)

    def write(self, stages: str) -> None:
        text = textwrap.dedent(stages).replace("OUTSIDE", str(self.outside))
        (self.root / "dvc.yaml").write_text("stages:\n" + textwrap.indent(text, "  "))

    def run(
        self, backend: Backend = "local", pipelines: KubeflowPipelines | None = None, **options: Any
    ) -> ReproResult:
        """Run the stages in a flow of their own."""

        @flow(name="stages")
        def stages() -> ReproResult:
            self.flow_run = get_run_context().flow_run.id  # type: ignore[union-attr]
            block = DvcRepository(path=str(self.root), label="stages")
            return repro_pipeline(block, pipelines or KubeflowPipelines(backend=backend, jobs=2), **options)

        return stages()

    def task_runs(self) -> dict[str, Any]:
        """The task runs of the last flow run by name, once the server knows how all of them ended."""
        deadline = time.monotonic() + 60
        with get_client(sync_client=True) as client:
            while True:
                wanted = FlowRunFilter(id=FlowRunFilterId(any_=[self.flow_run]))
                found = client.read_task_runs(flow_run_filter=wanted, limit=200)
                ended = [
                    run
                    for run in found
                    if run.state_name == "NotReady" or (run.state and run.state.is_final())
                ]
                if found and len(ended) == len(found):
                    # The server is told of them by events, which come in any order.
                    time.sleep(0.5)
                    again = client.read_task_runs(flow_run_filter=wanted, limit=200)
                    if len(again) == len(found):
                        return {run.name: run for run in again}
                assert time.monotonic() < deadline, [(run.name, run.state_name) for run in found]
                time.sleep(0.2)

    def log(self, task_run: Any, until: str = "") -> str:
        """The log of a task run, when it has a text."""
        deadline = time.monotonic() + 60
        while True:
            with get_client(sync_client=True) as client:
                wanted = LogFilter(task_run_id=LogFilterTaskRunId(any_=[task_run.id]))
                text = "\n".join(log.message for log in client.read_logs(wanted, limit=200))
            if until in text:
                return text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)

    def flow_log(self, until: str) -> list[str]:
        """The records that the last flow run itself logged, when one has a text."""
        deadline = time.monotonic() + 60
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.flow_run]))
        while True:
            with get_client(sync_client=True) as client:
                records = [log.message for log in client.read_logs(wanted, limit=200) if not log.task_run_id]
            if any(until in record for record in records):
                return records
            assert time.monotonic() < deadline, records
            time.sleep(0.2)

    def count(self, name: str) -> int:
        """How many lines commands wrote to a file outside."""
        file = self.outside / name
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def pipeline(tmp_path: Path, prefect_server: None) -> Pipeline:
    return Pipeline(tmp_path / "repo")


TOGETHER = """\
a:
  cmd: touch OUTSIDE/a; sh OUTSIDE/await b && cat in/a > a.txt
  deps: [in]
  outs: [a.txt]
b:
  cmd: touch OUTSIDE/b; sh OUTSIDE/await a && cat in/a > b.txt
  deps: [in]
  outs: [b.txt]
c:
  cmd: cat a.txt b.txt > c.txt
  deps: [a.txt, b.txt]
  outs: [c.txt]
"""


FAILING = """\
a:
  cmd: echo no such luck; exit 3
  deps: [in]
  outs: [a.txt]
b:
  cmd: cat a.txt > b.txt
  deps: [a.txt]
  outs: [b.txt]
c:
  cmd: cat in/a > c.txt
  deps: [in]
  outs: [c.txt]
"""


def test_a_failure_says_first_how_and_stages_behind_it_are_shown_as_not_reached(
    pipeline: Pipeline, artifacts: Callable[[str], list[Any]]
) -> None:
    pipeline.repo.add(["in"])
    pipeline.write(FAILING)
    with pytest.raises(StageFailedError) as caught:
        pipeline.run()
    assert caught.value.blocked == ("b",)
    runs = pipeline.task_runs()
    assert {name: run.state_name for name, run in runs.items()} == {
        "a": "Failed",
        "b": "NotReached",
        "c": "Completed",
    }
    assert (runs["b"].state_type.value, runs["b"].state.message) == ("CANCELLED", "not reached: 'a' failed")
    assert {item.id for item in runs["b"].task_inputs["stage"]} == {runs["a"].id}
    card = artifacts("stage-stages--a")[-1]
    assert "failed" in card.description and "ended with exit code 3; no such luck." in card.description
    how, log, why = (
        card.data.index(text) for text in ("ended with exit code 3", "no such luck\n", "### Why it ran")
    )
    assert how < log < why < card.data.index("| why |")
    overview = artifacts("pipeline-stages")[-1]
    assert overview.description == "3 stages of **stages**: 1 ran, 1 failed, 1 not reached."
    assert "| b | not reached | not reached, since a failed |" in overview.data


def test_stages_are_task_runs_that_overlap_where_they_may(
    pipeline: Pipeline, artifacts: Callable[[str], list[Any]]
) -> None:
    """The first two end only if both run at the same time; the third has edges from them."""
    pipeline.repo.add(["in"])
    pipeline.write(TOGETHER)
    assert sorted(pipeline.run().ran) == ["a", "b", "c"]
    runs = pipeline.task_runs()
    assert {name: run.state_name for name, run in runs.items()} == dict.fromkeys("abc", "Completed")
    assert {item.id for item in runs["c"].task_inputs["stage"]} == {runs["a"].id, runs["b"].id}
    assert runs["c"].start_time >= max(runs["a"].end_time, runs["b"].end_time)

    again = pipeline.run()
    assert again.skipped == ("a", "b", "c")
    runs = pipeline.task_runs()
    states = {(run.state_name, run.state_type.value, run.state.message) for run in runs.values()}
    assert states == {("Skipped", "COMPLETED", "nothing changed")}
    assert {item.id for item in runs["c"].task_inputs["stage"]} == {runs["a"].id, runs["b"].id}

    (pipeline.root / "c.txt").unlink()
    (pipeline.root / "in" / "b").write_text("2\n")
    assert pipeline.run().restored == ("c",)
    runs = pipeline.task_runs()
    assert runs["c"].state_name == "Restored"
    assert "c.txt" in runs["c"].state.message
    # The card is one of the stage's own run, and tells which file of the directory is another one.
    card = artifacts("stage-stages--a")[-1]
    assert card.task_run_id == runs["a"].id
    assert "in (1 added)" in card.data
    assert "| added | b |" in card.data


def test_a_command_that_failed_is_tried_again(pipeline: Pipeline) -> None:
    pipeline.write(
        """\
        flaky:
          cmd: echo x >> OUTSIDE/tries; test $(wc -l < OUTSIDE/tries) -gt 2 && echo done > out
          deps: [in]
          outs: [out]
          meta: {prefect: {retries: 2, retry_delay_seconds: [0.1, 0.2], tags: [unsteady]}}
        steady:
          cmd: "false"
          deps: [in]
          outs: [other]
        """.replace("gt 2;", "gt 2 &&")
    )
    with pytest.raises(StageFailedError, match="steady"):
        pipeline.run()
    assert pipeline.count("tries") == 3
    runs = pipeline.task_runs()
    assert (runs["flaky"].state_name, runs["flaky"].run_count) == ("Completed", 3)
    assert "unsteady" in runs["flaky"].tags
    assert (runs["steady"].state_name, runs["steady"].run_count) == ("Failed", 1)
    assert "exit code 1" in runs["steady"].state.message


@pytest.mark.parametrize("backend", ["local", "kubeflow-local"])
def test_each_try_logs_its_own_lines(pipeline: Pipeline, backend: Backend) -> None:
    """A retry once read the log of the try before it, and lost the beginning of its own."""
    pipeline.write(
        """\
        flaky:
          cmd: >-
            echo x >> OUTSIDE/tries; n=$(wc -l < OUTSIDE/tries); echo "begin of try "$n; sleep 0.6;
            echo "end of try "$n; test $n -gt 1 && echo done > out
          deps: [in]
          outs: [out]
          meta: {prefect: {retries: 1}}
        """
    )
    assert pipeline.run(backend).ran == ("flaky",)
    log = pipeline.log(pipeline.task_runs()["flaky"], "end of try 2")
    lines = [line for line in log.splitlines() if line.startswith(("begin of", "end of"))]
    assert sorted(lines) == ["begin of try 1", "begin of try 2", "end of try 1", "end of try 2"]


@pytest.mark.parametrize(
    ("cmd", "error"),
    [
        ("echo x >> OUTSIDE/tries; echo 1 > out; echo 2 > undeclared", StageWriteError),
        ("echo x >> OUTSIDE/tries; there-is-no-such-command", StageFailedError),
        ("echo x >> OUTSIDE/tries; cat code.txt > out", StageFailedError),
    ],
)
def test_what_no_try_can_mend_is_tried_once(pipeline: Pipeline, cmd: str, error: type[Exception]) -> None:
    (pipeline.root / "code.txt").write_text("not declared\n")
    pipeline.write(f"s:\n  cmd: {cmd}\n  deps: [in]\n  outs: [out]\n  meta: {{dvkf: {{hermetic: true}}}}\n")
    with pytest.raises(error):
        pipeline.run(retries=3)
    assert pipeline.count("tries") == 1
    assert pipeline.task_runs()["s"].run_count == 1


def test_a_stage_that_cannot_begin_has_a_failed_task_run(pipeline: Pipeline) -> None:
    pipeline.write("""\
        lost: {cmd: "cat gone > o", deps: [gone], outs: [o]}
        after: {cmd: "cat o > p", deps: [o], outs: [p]}
        other: {cmd: "cat in/a > q", deps: [in], outs: [q]}
        """)
    with pytest.raises(StageError, match="gone"):
        pipeline.run()
    runs = pipeline.task_runs()
    states = {name: run.state_name for name, run in runs.items()}
    assert states == {"lost": "Failed", "after": "NotReached", "other": "Completed"}
    assert "'lost': missing dependencies: gone" in runs["lost"].state.message


def test_a_flow_run_that_is_retried_goes_on(pipeline: Pipeline) -> None:
    """Prefect runs the whole flow again under the same id."""
    pipeline.write("""\
        a: {cmd: "echo x >> OUTSIDE/a; cat in/a > a", deps: [in], outs: [a]}
        b: {cmd: "echo x >> OUTSIDE/b; test $(wc -l < OUTSIDE/b) -gt 1 && cat a > b", deps: [a], outs: [b]}
        """)

    @flow(retries=1)
    def tried_twice() -> ReproResult:
        block = DvcRepository(path=str(pipeline.root), label="twice")
        return repro_pipeline(block, KubeflowPipelines(backend="local"))

    result = tried_twice()
    assert (result.skipped, result.ran) == (("a",), ("b",))
    assert (pipeline.count("a"), pipeline.count("b")) == (1, 2)


def test_a_stage_beyond_its_time_is_ended(pipeline: Pipeline) -> None:
    pipeline.write("""\
        slow:
          cmd: echo $$ >> OUTSIDE/pids; sleep 600; echo > out
          deps: [in]
          outs: [out]
          meta: {prefect: {timeout_seconds: 1, retries: 1}}
        """)
    with pytest.raises(Exception, match="timeout_seconds"):
        pipeline.run()
    pids = [int(pid) for pid in (pipeline.outside / "pids").read_text().split()]
    assert len(pids) == 2
    assert not any(map(_alive, pids))


@pytest.mark.parametrize(
    ("values", "key", "text"),
    [
        ("{retires: 2}", "meta.prefect.retires", "did you mean 'retries'"),
        ("{retries: -1}", "meta.prefect.retries", "whole number"),
        ("{retry_delay_seconds: [1, soon]}", "meta.prefect.retry_delay_seconds.1", "seconds"),
        ("{timeout_seconds: 0}", "meta.prefect.timeout_seconds", "greater than 0"),
        ("{tags: gpu}", "meta.prefect.tags", "list"),
        ("{tags: [gpu, 5]}", "meta.prefect.tags.1", "string"),
        ("{retries: null}", "meta.prefect.retries", "whole number"),
        ("5", "meta.prefect", "mapping"),
    ],
)
def test_wrong_options_are_named_before_anything_runs(
    pipeline: Pipeline, values: str, key: str, text: str
) -> None:
    pipeline.write(f"""\
        first: {{cmd: echo x >> OUTSIDE/ran; echo > o, deps: [in], outs: [o]}}
        train:
          cmd: echo
          meta:
            prefect: {values}
        """)
    with pytest.raises(ParseError) as caught:
        pipeline.run()
    assert all(part in str(caught.value) for part in ("dvc.yaml, line 6", "'train'", f"'{key}'", text))
    assert not pipeline.count("ran")


def test_a_result_that_prefect_kept_counts_while_its_outputs_can_be_had(pipeline: Pipeline) -> None:
    pipeline.write("""\
        a:
          cmd: echo x >> OUTSIDE/ran; cat in/a > out
          deps: [in]
          outs: [out]
        """)

    def forget() -> None:
        (pipeline.root / "dvc.lock").unlink()
        shutil.rmtree(pipeline.root / ".dvc/cache/runs")

    pipeline.run()
    forget()
    assert pipeline.run().ran == ("a",)
    assert pipeline.task_runs()["a"].state_name == "Cached"
    assert pipeline.count("ran") == 1
    assert not pipeline.repo.status()

    forget()
    (pipeline.root / "out").unlink()
    output = pipeline.repo.cache.root / "files"
    shutil.rmtree(output)
    pipeline.run()
    assert pipeline.task_runs()["a"].state_name == "Completed"
    assert pipeline.count("ran") == 2

    pipeline.run(force=True)
    assert pipeline.task_runs()["a"].state_name == "Completed"
    assert pipeline.count("ran") == 3


def test_a_failure_is_not_kept(pipeline: Pipeline) -> None:
    pipeline.write("""\
        a:
          cmd: echo x >> OUTSIDE/ran; test -e OUTSIDE/ready && echo > out
          deps: [in]
          outs: [out]
        """)
    with pytest.raises(StageFailedError):
        pipeline.run()
    (pipeline.outside / "ready").touch()
    assert pipeline.run().ran == ("a",)
    assert pipeline.count("ran") == 2
    assert pipeline.task_runs()["a"].state_name == "Completed"


@pytest.mark.parametrize("backend", ["local", "kubeflow-local"])
def test_the_log_is_there_while_the_stage_runs(
    pipeline: Pipeline, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKE_TOKEN", "s3cr3t-0f-mine")
    pipeline.write(
        """\
        a:
          cmd: printf '\\033[31mred\\033[0m of %s BACKEND\\n' $LAKE_TOKEN; sh OUTSIDE/await go && echo > out
          deps: [in]
          outs: [out]
        """.replace("BACKEND", backend)
    )
    seen: list[str] = []

    def look() -> None:
        deadline = time.monotonic() + 50
        try:
            with get_client(sync_client=True) as client:
                while time.monotonic() < deadline and not seen:
                    found = client.read_logs(limit=200, sort=LogSort.TIMESTAMP_DESC)
                    seen.extend(log.message for log in found if log.message == f"red of *** {backend}")
                    time.sleep(0.1)
        finally:
            (pipeline.outside / "go").touch()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert pipeline.run(backend).ran == ("a",)
    finally:
        watcher.join()
    assert seen
    log = pipeline.log(pipeline.task_runs()["a"], "red of")
    assert "\nred of ***" in log
    assert "s3cr3t" not in log


def test_a_log_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "log"
    follower = LogFollower(file, Mask(["the-secret"]), lines=100)
    assert follower.read() == []
    file.write_bytes(b"one\ntw")
    assert follower.read() == ["one"]
    with file.open("ab") as log:
        log.write(b"o the-secret\n50%\r100%\n" + b"x" * 5000 + b"\n")
    two, progress, long = follower.read()
    assert (two, progress, len(long)) == ("two ***", "100%", 1000)
    with file.open("ab") as log:
        log.writelines(b"line %d\n" % n for n in range(10_000))
    records = follower.read()
    assert len(records) < 10
    assert sum(len(record.splitlines()) for record in records) == 97
    assert records[-1].endswith("shown here")
    assert follower.read(last=True) == []


def test_one_thread_is_enough(pipeline: Pipeline) -> None:
    """The task that starts stages has the task runner's only thread; they run all the same."""
    pipeline.write("""\
        a: {cmd: echo > a, deps: [in], outs: [a]}
        b: {cmd: cat a > b, deps: [a], outs: [b]}
        """)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
    def narrow() -> ReproResult:
        self_ = DvcRepository(path=str(pipeline.root), label="narrow")
        return task(repro_pipeline).submit(self_, KubeflowPipelines(backend="local")).result()

    assert narrow().ran == ("a", "b")


def test_many_skipped_stages_cost_a_bounded_number_of_task_runs(
    pipeline: Pipeline, artifacts: Callable[[str], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 30 stages and at most 10 in place of 100, which take a minute; more stages are no more requests or lines."""
    assert runner._MARKS == 100
    monkeypatch.setattr(runner, "_MARKS", 10)
    pipeline.write(
        """\
        s:
          foreach: [ITEMS]
          do: {cmd: 'true', outs: ['out-${item}'], deps: [in]}
        """.replace("ITEMS", ", ".join(map(str, range(30))))
    )
    for number in range(30):
        (pipeline.root / f"out-{number}").write_text(f"{number}\n")
    assert len(commit_stages(pipeline.repo)) == 30
    requests: list[str] = []
    tasks: list[str] = []
    send, make = PrefectHttpxSyncClient.send, Task.__init__

    def counted(client: Any, request: Any, *args: Any, **options: Any) -> Any:
        # A client asks for the server's version once, and each flow run has an ID.
        if not request.url.path.endswith("/version"):
            requests.append(re.sub("[0-9a-f-]{36}", "ID", request.url.path))
        return send(client, request, *args, **options)

    def made(self: Any, *args: Any, **options: Any) -> None:
        tasks.append(options.get("name", ""))
        make(self, *args, **options)

    monkeypatch.setattr(PrefectHttpxSyncClient, "send", counted)
    monkeypatch.setattr(Task, "__init__", made)
    assert len(pipeline.run(targets=[f"s@{number}" for number in range(11)]).skipped) == 11
    of_eleven = requests.copy()
    requests.clear()
    assert len(pipeline.run().skipped) == 30
    assert requests == of_eleven
    assert tasks == []
    runs = pipeline.task_runs()
    assert runs.keys() <= {f"s@{number}" for number in range(30)}
    assert {run.state_name for run in runs.values()} == {"Skipped"}
    assert {run.state.message for run in runs.values()} == {"nothing changed"}
    assert len(runs) == 10
    assert artifacts("pipeline-stages")[-1].description == "30 stages of **stages**: 30 skipped."
    lines = "\n".join(f"Stage 's@{number}': skipped, nothing changed" for number in range(30))
    assert pipeline.flow_log(until="skipped").count(lines) == 1


# -- processes that are ended ------------------------------------------------------------------------------------------


# The flow runs the stages directly, in an async flow, in a task of one, or in a submitted task.
SCRIPT = """\
import asyncio
import json
import sys
from prefect import flow, task
from prefect.utilities.engine import capture_sigterm
from dvkf_prefect import DvcRepository, KubeflowPipelines, repro_pipeline

def stages():
    return repro_pipeline(DvcRepository(path=sys.argv[1]), KubeflowPipelines(**json.loads(sys.argv[2])), retries=3)

@flow
def sync():
    return stages()

@flow
async def async_():
    return stages()

@flow
async def task_():
    return task(stages)()

@flow
def submit():
    return task(stages).submit().result()

run = {"sync": sync, "async": async_, "task": task_, "submit": submit}[sys.argv[3]]
with capture_sigterm():
    result = asyncio.run(run()) if run.isasync else run()
print("ran", *result.ran, "skipped", *result.skipped)
"""

LONG = """\
done: {cmd: "echo x >> OUTSIDE/done; echo > first", deps: [in], outs: [first]}
one: {cmd: "echo $$ > OUTSIDE/one; test -e OUTSIDE/go || sleep 600 & wait $!; echo > 1", deps: [first], outs: ["1"]}
two: {cmd: "echo $$ > OUTSIDE/two; test -e OUTSIDE/go || sleep 600 & wait $!; echo > 2", deps: [first], outs: ["2"]}
"""


@pytest.fixture
def start(pipeline: Pipeline, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process with a flow run on the pipeline."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
    with get_client(sync_client=True) as client:
        environment["PREFECT_API_URL"] = str(client.api_url)
    started: list[subprocess.Popen[str]] = []

    def run(backend: str, shape: str = "sync", **more: Any) -> subprocess.Popen[str]:
        block = json.dumps({"backend": backend, "jobs": 2, **more})
        process = subprocess.Popen(
            [sys.executable, str(script), str(pipeline.root), block, shape],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


# The signals are the flow's, and the leash of the commands is the same in both: one of the four pairs is quick.
@pytest.mark.parametrize(
    ("sign", "backend"),
    [
        (signal.SIGTERM, "local"),
        pytest.param(signal.SIGKILL, "kubeflow-local", marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, "local", marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "kubeflow-local", marks=pytest.mark.long),
    ],
)
def test_an_ended_flow_leaves_nothing_running_and_the_next_goes_on(
    pipeline: Pipeline,
    start: Callable[..., subprocess.Popen[str]],
    backend: str,
    sign: signal.Signals,
) -> None:
    pipeline.write(LONG)
    process = start(backend)
    deadline = time.monotonic() + 120
    files = [pipeline.outside / name for name in ("one", "two")]
    while not all(file.exists() and file.read_text() for file in files):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pids = [int(file.read_text()) for file in files]
    children = [child for pid in pids for child in _children(pid)]
    assert len(children) == 2
    process.send_signal(sign)
    # Prefect's own grace before it kills is 30 s: nobody must need it.
    process.wait(120)
    deadline = time.monotonic() + 20
    while any(map(_alive, [*pids, *children])):
        assert time.monotonic() < deadline, "a stage outlived its flow"
        time.sleep(0.1)

    (pipeline.outside / "go").touch()
    again = start(backend)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert said.splitlines()[-1] == "ran one two skipped done"
    assert pipeline.count("done") == 1
    assert not pipeline.repo.status()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
