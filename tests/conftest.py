"""A clean environment for every test, and the services that several of them share."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    """Load a helper module that lies beside this file, under the name that tests import it by."""
    # By pytest's own finder, so that an assertion in it shows its values.
    pytest.register_assert_rewrite(name)
    folder = [str(Path(__file__).parent)]
    spec = next(found for finder in sys.meta_path if (found := finder.find_spec(name, folder)))
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_load("faults_world")
_load("processes")
_load("remote_contract")
_load("reaper")
servers = _load("servers")

_REAPER = pytest.StashKey[int]()


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
    os.close(reading)
    config.stash[_REAPER] = writing
    os.environ[mark] = "1"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Name the folder to remove when the run is killed."""
    folder = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    os.write(session.config.stash[_REAPER], f"{folder}\n".encode(errors="surrogateescape"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say that the run came to its end, so that its folders stay to be looked at."""
    os.write(config.stash[_REAPER], b"end\n")
    os.close(config.stash[_REAPER])


# What these set up is dear or one of its kind on a machine: one process runs all tests of a folder.
_TOGETHER = ("docker", "packaging", "ui")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what belongs together when several processes share the tests."""
    for item in items:
        folder = item.path.parent.name
        if folder in _TOGETHER:
            item.add_marker(pytest.mark.xdist_group(folder))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in captured output: they cannot be sent from one process to another."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


_FOREIGN = ("AWS_", "AZURE_", "DVC_", "DVKF_", "GIT_", "GOOGLE_", "KFP_", "PREFECT_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty home, nobody's credentials, a git identity, no telemetry."""
    for variable in list(os.environ):
        if variable.startswith(_FOREIGN):
            monkeypatch.delenv(variable)
    home = tmp_path_factory.mktemp("home")
    for variable, value in {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "DVC_SITE_CACHE_DIR": str(home / "dvc-site"),
        "DVC_NO_ANALYTICS": "1",
        # Dead addresses are not waited for.
        "DVKF_CONNECT_SECONDS": "1",
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(home / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # No role of the machine is asked for.
        "AWS_EC2_METADATA_DISABLED": "true",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "init.defaultBranch",
        "GIT_CONFIG_VALUE_0": "main",
        "GIT_CONFIG_KEY_1": "protocol.file.allow",
        "GIT_CONFIG_VALUE_1": "always",
        "GIT_AUTHOR_NAME": "Test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "Test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }.items():
        monkeypatch.setenv(variable, value)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    """One SeaweedFS for the whole run; a test makes its own bucket with ``s3.make_bucket(name)``."""
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
