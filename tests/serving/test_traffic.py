"""The split of requests between versions: its arithmetic, and a server under load while it changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from dvkf_prefect.errors import ModelDigestError, ServingError
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.intake import HttpError
from dvkf_prefect.serving.lanes import Lane
from dvkf_prefect.serving.local import LocalServing
from dvkf_prefect.serving.model import Model
from dvkf_prefect.serving.records import Records
from dvkf_prefect.serving.traffic import Models


class _Constant:
    n_features_in_ = 1

    def predict(self, rows: Any) -> list[int]:
        return [1] * len(rows)


def _lane(version: str) -> Lane:
    return Lane(Model(_Constant(), "m", version))


def _chosen(models: Models, keys: list[str | None]) -> list[str]:
    return [models.lane("m", None, key).version for key in keys]


def test_a_split_by_key_is_stable_and_only_grows() -> None:
    models = Models()
    models.put("m", _lane("v1"))
    keys: list[str | None] = [f"user-{number}" for number in range(4000)]
    assert set(_chosen(models, keys)) == {"v1"}
    before: set[str | None] = set()
    for percent in (0, 10, 50, 99):
        models.put("m", _lane("v2"), percent)
        chosen = _chosen(models, keys)
        assert chosen == _chosen(models, keys)
        canary = {key for key, version in zip(keys, chosen, strict=True) if version == "v2"}
        assert before <= canary
        assert len(canary) == pytest.approx(40 * percent, abs=100)
        before = canary
    assert [lane.version for lane in models.shift("m", {"v1": 100})] == ["v2"]
    assert set(_chosen(models, keys)) == {"v1"}


def test_a_split_without_keys_is_random() -> None:
    models = Models()
    models.put("m", _lane("v1"))
    models.put("m", _lane("v2"), 30)
    counts = Counter(_chosen(models, [None] * 4000))
    assert counts["v2"] == pytest.approx(1200, abs=200)
    assert models.lane("m", "v2").version == "v2"
    # A third version takes the canary's place; the main version stays.
    assert [lane.version for lane in models.put("m", _lane("v3"), 60)] == ["v2"]
    assert models.split("m").percents == {"v3": 60, "v1": 40}
    assert [lane.version for lane in models.put("m", _lane("v4"))] == ["v3", "v1"]


def test_what_a_split_refuses() -> None:
    models = Models()
    models.put("m", _lane("v1"))
    models.put("m", _lane("v2"), 30)
    with pytest.raises(ServingError, match="no version v9 of 'm' is loaded"):
        models.shift("m", {"v9": 100})
    with pytest.raises(ServingError, match="make 90"):
        models.shift("m", {"v1": 60, "v2": 30})
    with pytest.raises(HttpError, match="Use 'm' version v2 or v1"):
        models.lane("m", "v9")
    with pytest.raises(HttpError, match="no model 'x' on this server"):
        models.lane("x")


_MODEL = """
class Model:
    n_features_in_ = 2
    def load(self, folder):
        self.value = int((folder / "value").read_text())
    def predict(self, rows):
        return [self.value] * len(rows)
"""


# Kills its process once the new server has loaded its model, and before it may answer.
_KILLED = """
import os, signal, sys
from pathlib import Path
from dvkf_prefect.serving import launch
from dvkf_prefect.serving.local import LocalServing

start = launch.start

def kill_when_loaded(*args, loaded, **options):
    def kill(started):
        loaded(started)
        os.kill(started.process.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)
    start(*args, loaded=kill, **options)

launch.start = kill_when_loaded
LocalServing(Path(sys.argv[1])).deploy("m", "v2", Path(sys.argv[2]), sys.argv[3])
"""


def _model(folder: Path, value: int, code: str = _MODEL) -> tuple[Path, str]:
    from dvkf_prefect.formats.tree import Tree

    folder.mkdir()
    (folder / "model.py").write_text(code)
    (folder / "value").write_text(str(value))
    pairs = [(file.name, digest_file(file)) for file in folder.iterdir()]
    return folder, Tree.from_pairs(pairs).digest


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[LocalServing, Endpoint]]:
    serving = LocalServing(tmp_path / "state")
    yield serving, serving.deploy("m", "v1", *_model(tmp_path / "one", 1))
    serving.stop("m")


def test_canary_promotion_and_abort_under_load(served: tuple[LocalServing, Endpoint], tmp_path: Path) -> None:
    """Four clients ask all the time; no request fails, and each answer is of the version that it names."""
    serving, first = served
    two = _model(tmp_path / "two", 2)
    path = f"{first.url}/v1/models/m:predict"
    done = threading.Event()
    seen: Counter[tuple[str, int]] = Counter()
    failures: list[str] = []

    def ask() -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not done.is_set():
                try:
                    answer = client.post(path, json={"instances": [[0, 0]]}).raise_for_status()
                    seen[answer.headers["x-model-version"], answer.json()["predictions"][0]] += 1
                except httpx.HTTPError as error:
                    failures.append(repr(error))

    def versions(key: str = "k") -> set[str]:
        headers = {"x-sticky-key": key}
        body = {"instances": [[0, 0]]}
        answers = [httpx.post(path, json=body, headers=headers, trust_env=False) for _ in range(5)]
        return {answer.headers["x-model-version"] for answer in answers}

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        canary = serving.start_canary("m", "v2", *two, 50)
        assert (canary.pid, canary.canary, canary.percent) == (first.pid, "v2", 50)
        assert serving.get("m") == canary and "50 % to v2" in str(canary)
        assert len(versions()) == 1
        metadata = canary.metadata()
        assert metadata["versions"] == ["v2", "v1"]
        assert serving.start_canary("m", "v2", *two, 99).percent == 99
        back = serving.abort_canary("m")
        assert (back.version, back.canary) == ("v1", "") and versions() == {"v1"}
        serving.start_canary("m", "v2", *two, 0)
        assert versions() == {"v1"}
        asked = httpx.get(f"{first.url}/v2/models/m/versions/v2/ready", trust_env=False)
        assert asked.status_code == 200
        now = serving.promote_canary("m")
        assert (now.version, now.digest, now.pid) == ("v2", two[1], first.pid) and versions() == {"v2"}
        assert serving.deploy("m", "v2", *two) == now
        metrics = httpx.get(f"{first.url}/metrics", trust_env=False).text
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert set(seen) == {("v1", 1), ("v2", 2)}
    found = re.search(
        r'dvkf_requests_total\{model="m",protocol="v1",status="200",version="v1"\} (\d+)', metrics
    )
    assert found and int(found[1]) > 0
    assert 'dvkf_model_percent{model="m",version="v2"} 100.0' in metrics


def test_a_canary_that_does_not_start_changes_nothing(
    served: tuple[LocalServing, Endpoint], tmp_path: Path
) -> None:
    serving, first = served
    two, digest = _model(tmp_path / "two", 2)
    with pytest.raises(ModelDigestError, match="It was not loaded"):
        serving.start_canary("m", "v2", two, "0" * 32 + ".dir", 10)
    for version, percent, said in (("v1", 10, "is served already"), ("v2", 100, "Use 0 to 99")):
        with pytest.raises(ServingError, match=said):
            serving.start_canary("m", version, two, digest, percent)
    with pytest.raises(ServingError, match="has no canary"):
        serving.promote_canary("m")
    with pytest.raises(ServingError, match="'x' is not served"):
        serving.abort_canary("x")
    assert serving.get("m") == first and first.predict([[0, 0]]) == [1]
    # A whole deployment ends a canary.
    serving.start_canary("m", "v2", two, digest, 10)
    again = serving.deploy("m", "v1", tmp_path / "one", first.digest)
    assert again.url == first.url and again.canary == "" and again.metadata()["versions"] == ["v1"]


def test_a_server_whose_starter_was_killed_replaces_none(
    served: tuple[LocalServing, Endpoint], tmp_path: Path
) -> None:
    """On a busy machine it ends late; a deployment took it for the one that answers, and ended the one that did."""
    serving, first = served
    two = _model(tmp_path / "two", 2)
    argv = [sys.executable, "-c", _KILLED, str(serving.state_dir), str(two[0]), two[1]]
    assert subprocess.run(argv).returncode == -signal.SIGKILL
    assert serving.get("m") == first
    old, late = Records(serving.state_dir).running("m")
    answers: list[Any] = []

    def meanwhile() -> None:
        answers.append(first.predict([[0, 0]]))
        os.kill(late.process.pid, signal.SIGCONT)

    asking = threading.Timer(0.5, meanwhile)
    asking.start()
    now = serving.deploy("m", "v2", *two)
    asking.join()
    assert answers == [[1]] and (now.url, now.version) == (first.url, "v2") and now.predict([[0, 0]]) == [2]
    assert not old.process.alive and not late.process.alive


def test_a_canary_that_loads_after_its_client_has_gone_gets_no_request(
    served: tuple[LocalServing, Endpoint], tmp_path: Path
) -> None:
    """Its load was carried out late: the canary got its requests, and no state file named it."""
    serving, first = served
    go = tmp_path / "go"
    waits = f"import time\nfrom pathlib import Path\n{_MODEL}".replace(
        "        self.value",
        f"        while not Path({str(go)!r}).exists(): time.sleep(0.02)\n        self.value",
    )
    two = _model(tmp_path / "two", 2, waits)
    with pytest.raises(ServingError, match="no answer to 'load'"):
        serving.start_canary("m", "v2", *two, 99, timeout=0.5)
    assert serving.get("m") == first
    go.touch()
    index = f"{first.url}/v2/repository/index"
    while "LOADING" in (states := httpx.post(index, trust_env=False).text):
        time.sleep(0.05)
    assert "its client has gone" in states and first.metadata()["versions"] == ["v1"]
    # As a kill before the load leaves it: the state file names a canary that the server does not have.
    records = Records(serving.state_dir)
    (server,) = records.running("m")
    named = replace(first, canary="v2", percent=10, canary_digest=two[1])
    records.write("m", [server.having(replace(server.models[0], endpoint=named))])
    assert serving.start_canary("m", "v2", *two, 10) == named
    assert serving.promote_canary("m").predict([[0, 0]]) == [2]
