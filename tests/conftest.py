"""A clean environment for every test, and the services that several of them share."""

from __future__ import annotations

import gc
import itertools
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

_MODULES = ("faults_world", "processes", "reaper", "remote_contract", "repos", "repro_contract", "servers")
for _name in (*_MODULES, "commands", "recorded"):
    pytest.register_assert_rewrite(_name)

import servers  # noqa: E402
from recorded import ANSWERS, RUN  # noqa: E402

_REAPER = pytest.StashKey[int]()
# Of every process that the tests start. Fixtures of a module are made before the environment of its first test.
_ALWAYS = {
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


def pytest_configure(config: pytest.Config) -> None:
    """Let what the tests start end with this process, even by SIGKILL; see `reaper`."""
    mark = f"PYTEST_RUN_{secrets.token_hex(8)}"
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py")), str(os.getpid()), mark]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_RUN_")}
    pid = os.posix_spawn(
        command[0], command, environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_CLOSE, writing)],
        setsid=True,
    )  # fmt: skip
    assert pid
    # A shell starts a job behind it with SIGINT ignored, and every child would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(reading)
    config.stash[_REAPER] = writing
    os.environ[mark] = "1"
    os.environ.update(_ALWAYS)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Name the folder to remove when the run is killed."""
    folder = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    os.write(session.config.stash[_REAPER], f"{folder}\n".encode(errors="surrogateescape"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say that the run came to its end, so that its folders stay to be looked at."""
    os.write(config.stash[_REAPER], b"end\n")
    os.close(config.stash[_REAPER])


# What these set up is dear or one of its kind on a machine: one process runs all tests of a folder or a module.
_TOGETHER = ("prefect/test_deployments.py", "prefect/", "docker/", "packaging/", "ui/", "test_run_end.py")


def _group(nodeid: str) -> str | None:
    return next((place for place in _TOGETHER if nodeid.startswith(f"tests/{place}")), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with these, so that no process has one of them to run when all others are at their end."""
    items.sort(key=lambda item: _group(item.nodeid) is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a process all tests of one of these, or else one test after the other.

    The groups of pytest-xdist 3.8 are names that it appends to a test's own, of which pytest 9.2 takes no note.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid) or nodeid

    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run twice as many processes as there are cores: a third of the tests' time is waiting."""
    return (os.cpu_count() or 1) * 2


def pytest_collection_finish() -> None:
    """Leave the modules and the tests, which stay to the end, out of each collection of garbage."""
    gc.collect()
    gc.freeze()


# Their tests run `dvc` by one process that has it imported; those of interop know what it answers.
_BY_SERVER = ("data", "interop", "kubeflow", "pipeline")
# Here two processes run at once, or a server knows them.
_BY_THEMSELVES = ("test_locks_dvc", "test_s3_dvc")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let `dvc` answer without a start of its own, also where a test runs it as a process."""
    if item.path.parent.name not in _BY_SERVER:
        return (yield)
    base = item.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    ANSWERS.begin(base, item.path, item.name)
    if item.path.stem not in _BY_THEMSELVES:
        subprocess.run = ANSWERS.run
    try:
        return (yield)
    finally:
        subprocess.run = RUN


def pytest_sessionfinish() -> None:
    """Write what was recorded, and end the process that runs `dvc`."""
    ANSWERS.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in captured output: they cannot be sent from one process to another."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


_FOREIGN = ("AWS_", "AZURE_", "DVC_", "DVKF_", "GIT_", "GOOGLE_", "KFP_", "PREFECT_")


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders not made yet; pytest's own would look through those of all tests before."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, homes: Iterator[Path]) -> None:
    """An empty home, nobody's credentials, a git identity, no telemetry."""
    for variable in list(os.environ):
        if variable.startswith(_FOREIGN):
            monkeypatch.delenv(variable)
    home = next(homes)
    home.mkdir()
    for variable, value in {
        **_ALWAYS,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "DVC_SITE_CACHE_DIR": str(home / "dvc-site"),
        "PREFECT_HOME": str(home / ".prefect"),
        # Dead addresses are not waited for.
        "DVKF_CONNECT_SECONDS": "0.1",
        # No role of the machine is asked for.
        "AWS_EC2_METADATA_DISABLED": "true",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "init.defaultBranch",
        "GIT_CONFIG_VALUE_0": "main",
        "GIT_CONFIG_KEY_1": "protocol.file.allow",
        "GIT_CONFIG_VALUE_1": "always",
    }.items():
        monkeypatch.setenv(variable, value)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    """One SeaweedFS for the whole run; a test makes its own bucket with ``s3.make_bucket(name)``."""
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


# Their services do not come back; what a pause is for is tested in data/remotes.
_SHORT_PAUSES = ("hostile", "prefect")


@pytest.fixture(autouse=True)
def short_pauses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tries as ever, a hundredth of the time between them."""
    if request.path.parent.name not in _SHORT_PAUSES:
        return
    from webdav4 import retry

    from dvkf_prefect.data.remotes import patience

    for name in ("_QUICK", "UNTIMED"):
        monkeypatch.setattr(patience, name, tuple(pause / 100 for pause in getattr(patience, name)))
    for name in ("REFUSED", "NEVER_ANSWERED"):
        monkeypatch.setattr(patience, name, getattr(patience, name) / 100)
    monkeypatch.setattr(retry, "_exp_backoff", lambda attempt: 0.01)
