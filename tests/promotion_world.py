"""A model of three versions on a server of this machine under load, and processes that promote it and are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

_MODEL = """
class Model:
    n_features_in_ = 2
    def load(self, folder):
        self.value = int((folder / "value").read_text())
    def predict(self, rows):
        return [self.value] * len(rows)
"""

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["promotion_world", "dvkf_prefect.blocks", "dvkf_prefect.promotion.rollback"]
)


def write_version(folder: Path, number: int) -> None:
    """Write the model that answers with a number."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(_MODEL)
    (folder / "value").write_text(str(number))


def run_act(root: str, state: str, verb: str, which: str, kill_at: float, percent: int | None) -> None:
    """Promote or roll back in this process; kill it at a write of the journal.

    Args:
        root: The repository.
        state: State folder of the server.
        verb: ``promote`` or ``rollback``.
        which: Version to promote.
        kill_at: Number of the write: 2.0 kills before the second, 2.5 after it; 0 for none.
        percent: Traffic of the canary.
    """
    from dvkf_prefect.blocks import ModelServer
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.promotion.act import Acting
    from dvkf_prefect.promotion.journal import Journal, Record
    from dvkf_prefect.promotion.promote import Promotion, promote
    from dvkf_prefect.promotion.rollback import Rollback, roll_back
    from dvkf_prefect.repo import Repo

    write, writes = Journal.write, Counter[str]()

    def killing(self: Journal, record: Record) -> None:
        writes["all"] += 1
        if kill_at == writes["all"]:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, record)
        if kill_at == writes["all"] + 0.5:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.write = killing  # type: ignore[method-assign]
    registry, acting = (
        ModelRegistry(Repo.open(root)),
        Acting(place=ModelServer(state_dir=state), why="A test"),
    )
    if verb == "promote":
        promote(registry, "m", which, "prod", Promotion(acting, percent=percent))
    else:
        roll_back(registry, "m", "prod", Rollback(acting, report=print))


def start_act(
    root: Path, state: Path, verb: str, which: str = "", kill_at: float = 0, percent: int | None = 50
) -> Any:
    """Start `run_act` in a process of its own."""
    process = _processes.Process(target=run_act, args=(str(root), str(state), verb, which, kill_at, percent))
    process.start()
    return process


class Load:
    """Two clients that ask all the time, until the block ends.

    Attributes:
        seen: Number of answers by version.
        failures: Requests without a right answer.
    """

    def __init__(self, url: str) -> None:
        self._path = f"{url}/v1/models/m:predict"
        self._done = threading.Event()
        self.seen: Counter[str] = Counter()
        self.failures: list[str] = []

    def _ask(self) -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not self._done.wait(0.005):
                try:
                    answer = client.post(self._path, json={"instances": [[0, 0]]}).raise_for_status()
                    version = answer.headers["x-model-version"]
                    if version != f"v{answer.json()['predictions'][0]}.0.0":
                        self.failures.append(f"{version} answered {answer.json()}")
                    self.seen[version] += 1
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)
