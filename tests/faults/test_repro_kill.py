"""SIGKILL of what runs a pipeline, of the runner or of a stage's command, at random moments, 16 times in all.

After each: no process of it is left, dvc.lock names only what the cache has, and the next run completes. Seeds are
printed; ``KILL_SEED=…`` in the environment takes another one, ``KILL_TIMES=…`` kills so many times as often.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from processes import wait_until
from repos import make_repo
from sizes import ALL

from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.repo import Repo

_SEED = int(os.environ.get("KILL_SEED", "20"))
_TIMES = int(os.environ.get("KILL_TIMES", "1"))
_MARK = "DVKF_KILLED_RUN"
_DVC = Path(sys.executable).with_name("dvc")

PLAIN = """\
import sys
from pathlib import Path
from dvkf_prefect.repo import Repo
from dvkf_prefect.kubeflow.local.runner import KfpLocalRunner
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner
repo = Repo.open(sys.argv[1])
runner = LocalRunner(echo=False) if sys.argv[2] == "local" else KfpLocalRunner(repo.tmp_dir / "kubeflow")
with runner:
    repro(repo, runner=runner, jobs=2)
"""

FLOW = """\
import sys
from prefect import flow
from dvkf_prefect import DvcRepository, KubeflowPipelines, repro_pipeline

@flow
def run():
    repro_pipeline(DvcRepository(path=sys.argv[1]), KubeflowPipelines(backend=sys.argv[2]))

run()
"""

# A file, a directory, one that several read, a metric in git: what is written in several steps. The names of the
# commands are looked for in /proc.
STAGES = """\
stages:
  first:
    cmd: ': stage-command; sleep 0.1; cat in > first; echo first >> first'
    deps: [in]
    outs: [first]
  folder:
    foreach: [a, b]
    do:
      cmd: ': stage-command; mkdir ${item}; for i in 1 2 3 4 5 6; do cat first > ${item}/$i; echo $i >> ${item}/$i; sleep 0.02; done'
      deps: [first]
      outs: ['${item}']
  score:
    cmd: ': stage-command; wc -l < a/1 > score.json; sleep 0.05; cat a/1 > last'
    deps: [a, b]
    outs: [last]
    metrics: [score.json: {cache: false}]
"""  # noqa: E501


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ProcessLookupError):
        return b""


@dataclass
class Project:
    """A repository whose runs are killed.

    Attributes:
        root: The repository.
        script: What runs its pipeline.
        backend: Where stages run.
        moments: Draws when to kill, and whom.
        seconds: How long a whole run takes.
        environment: Further environment variables.
        killed: Who was killed, when.
    """

    root: Path
    script: Path
    backend: str
    moments: random.Random
    seconds: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    _lock: bytes = b""

    @property
    def temporary(self) -> Path:
        """Where its processes make temporary files."""
        folder = self.root.with_name("temporary")
        folder.mkdir(exist_ok=True)
        return folder

    def write(self, text: str) -> None:
        (self.root / "in").write_text(text)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(self.script), str(self.root), self.backend],
            env={**os.environ, **self.environment, _MARK: str(self.root), "TMPDIR": str(self.temporary)},
            cwd=self.script.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def processes(self) -> dict[int, list[str]]:
        """Return every process that was started by a run, directly or not, with its command line."""
        found = {}
        mark = f"{_MARK}={self.root}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and mark in _read(entry / "environ").split(b"\0"):
                state = _read(entry / "stat").rpartition(b")")[2].split()[:1]
                if state not in ([], [b"Z"], [b"X"]):
                    found[int(entry.name)] = _read(entry / "cmdline").decode().split("\0")
        return found

    def victims(self, who: str, caller: int) -> list[int]:
        """Return the processes that are meant and live now."""
        if who == "caller":
            return [caller]
        live = {pid: argv for pid, argv in self.processes().items() if "_watcher" not in " ".join(argv[:6])}
        if who == "watcher":
            return [pid for pid in self.processes() if _read(Path(f"/proc/{pid}/comm")) == b"dvkf-watcher\n"]
        if who == "command":
            return [
                pid for pid, argv in live.items() if any(a.startswith(": stage-command") for a in argv[1:6])
            ]
        modules = ("dvkf_prefect.pipeline.step.step", "dvkf_prefect.kubeflow.local.host")
        return [pid for pid, argv in live.items() if any(module in argv for module in modules)]

    def check(self) -> None:
        """Check that what dvc.lock names now is in the cache, whoever writes at this moment."""
        lock = _read(self.root / "dvc.lock")
        if lock != self._lock:
            self._lock = lock
            repo = Repo.open(self.root)
            for output in repo.outputs():
                if output.digest and output.cached:
                    objects = [output.digest]
                    if is_tree(output.digest):
                        objects += repo.cache.read_tree(output.digest).digests
                    assert not repo.cache.missing(objects), output

    def wait(self, process: subprocess.Popen[bytes], timeout: float) -> bool:
        """Wait for its end, looking at dvc.lock all the time; False when it still runs."""
        end = time.monotonic() + timeout
        while process.poll() is None:
            self.check()
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        self.check()
        return True

    def measure(self) -> None:
        """Run it whole, to know how long it takes."""
        start = time.monotonic()
        self.complete()
        self.seconds = time.monotonic() - start

    def complete(self) -> None:
        process = self.start()
        try:
            assert self.wait(process, 120)
            assert process.returncode == 0
            self.check_ended()
        finally:
            process.kill()
            process.wait()
        text = (self.root / "in").read_text()
        assert (self.root / "last").read_text() == f"{text}first\n1\n"

    def kill(self, who: str) -> None:
        """Kill one of a run's processes at some moment; when none of that kind lives by then, the next that does."""
        for attempt in range(20):
            if attempt:  # something to do again
                self.write(f"again {self.moments.random()}\n")
            process = self.start()
            moment = self.moments.uniform(0, self.seconds)
            try:
                if self.wait(process, moment):
                    continue  # it was quicker than the moment
                pid = self._next_victim(who, process)
                if pid is None:
                    continue
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it had just ended
                self.killed.append(f"{who} after {moment:.2f} s")
                # What lost its runner or a stage ends by itself.
                assert self.wait(process, 120)
                self.check_ended()
                return
            finally:
                process.kill()
                process.wait()
        raise AssertionError(f"no {who} was met")

    def _next_victim(self, who: str, process: subprocess.Popen[bytes]) -> int | None:
        while process.poll() is None:
            found = self.victims(who, process.pid)
            if found:
                return self.moments.choice(found)
            self.check()
        return None

    def check_ended(self) -> None:
        wait_until(lambda: not self.processes(), 20)

    def check_clean(self) -> None:
        """Check that all is as it should be in the end, by the real `dvc` too."""
        repo = Repo.open(self.root)
        assert not repo.status()
        for path in (repo.cache.root / "files" / "md5").rglob("*"):
            if path.is_file():
                assert digest_file(path) == (path.parent.name + path.name).removesuffix(".dir")
        assert not list(repo.cache.root.glob("dvkf-steps/*"))
        assert not list(self.temporary.glob("dvkf-*"))
        rwlock = _read(self.root / ".dvc/tmp/rwlock")
        assert not any(json.loads(rwlock or "{}").values())
        for command in (["status", "-q"], ["repro", "--dry"]):
            done = subprocess.run([_DVC, *command], cwd=self.root, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Running" not in done.stdout


def make(folder: Path, code: str, backend: str) -> Project:
    root = folder / "repo"
    make_repo(root)
    (root / "dvc.yaml").write_text(STAGES)
    script = folder / "run.py"
    script.write_text(code)
    return Project(root, script, backend, random.Random(f"{_SEED} {backend} {code}"))


def kill_all(project: Project, plan: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    project.write("measured\n")
    project.measure()
    project.moments.shuffle(plan)
    try:
        for number, who in enumerate(plan):
            project.write(f"{number}\n")
            project.kill(who)
            project.complete()
        project.check_clean()
    finally:
        with capsys.disabled():
            said = ", ".join(project.killed)
            print(f"\n{project.backend}, seed {_SEED}, {len(project.killed)} killed: {said}")
    assert len(project.killed) == len(plan)


@pytest.mark.parametrize(
    ("backend", "plan"),
    [
        (
            "local",
            ["caller", "runner", "command", "watcher"] * (2 if ALL else 1)
            if _TIMES == 1
            else (["caller"] * 4 + ["runner"] * 3 + ["command"] * 3 + ["watcher"] * 3) * _TIMES,
        ),
        # A run takes seconds here; `test_runner_kill` kills at each level.
        pytest.param(
            "kubeflow-local",
            ["caller", "runner", "command"] * (1 if _TIMES == 1 else 4),
            marks=pytest.mark.long,
        ),
    ],
)
def test_killed_at_any_moment(
    tmp_path: Path, backend: str, plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kill_all(make(tmp_path, PLAIN, backend), list(plan), capsys)


@pytest.fixture
def prefect_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_HOME, get_current_settings, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        temporary_settings({PREFECT_HOME: tmp_path / "prefect"}),
        prefect_test_harness(server_startup_timeout=120),
    ):
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        with get_client(sync_client=True) as client:
            settings["PREFECT_API_URL"] = str(client.api_url)
        yield settings


@pytest.mark.long
def test_a_flow_killed_at_any_moment(
    tmp_path: Path, prefect_environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    project = make(tmp_path, FLOW, "local")
    project.environment = prefect_environment
    plan = ["caller"] * (6 if _TIMES > 1 else 3 if ALL else 1) + ["runner", "command"] * (
        1 if _TIMES == 1 else 4
    )
    kill_all(project, plan, capsys)
