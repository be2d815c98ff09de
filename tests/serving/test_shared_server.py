"""Several models in one server: each is deployed, replaced, tried and removed; none harms another."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from processes import wait_until

from dvkf_prefect.cli import main
from dvkf_prefect.errors import ModelDigestError, ServingError
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.serving.local import LocalServing

_MODEL = """
class Model:
    n_features_in_ = 1
    def load(self, folder):
        self.value = int((folder / "value").read_text())
        if self.value < 0:
            raise SystemExit(3)
        gate = folder / "gate"
        if gate.exists():
            open(gate.read_text(), "rb").read()
    def predict(self, rows):
        return [self.value] * len(rows)
"""


def _model(folder: Path, value: int, gate: Path | None = None) -> tuple[Path, str]:
    folder.mkdir()
    (folder / "model.py").write_text(_MODEL)
    (folder / "value").write_text(str(value))
    if gate is not None:
        os.mkfifo(gate)
        (folder / "gate").write_text(str(gate))
    pairs = [(file.name, digest_file(file)) for file in folder.iterdir()]
    return folder, Tree.from_pairs(pairs).digest


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[LocalServing]:
    serving = LocalServing(tmp_path / "state", server="team")
    yield serving
    for endpoint in serving.list():
        serving.stop(endpoint.model)


def _get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=60)


def _index(url: str, **body: object) -> list[tuple[str, str, str]]:
    answer = httpx.post(f"{url}/v2/repository/index", json=body, trust_env=False, timeout=60)
    return [(each["name"], each["version"], each["state"]) for each in answer.raise_for_status().json()]


def test_models_share_a_server(serving: LocalServing, tmp_path: Path) -> None:
    one = serving.deploy("one", "v1", *_model(tmp_path / "a", 1))
    two = serving.deploy("two", "v1", *_model(tmp_path / "b", 2))
    url = one.url
    assert (two.url, two.pid, two.server) == (url, one.pid, "team") and "server team" in str(two)
    assert (one.predict([[0]]), two.predict([[0]])) == ([1], [2])
    assert [endpoint.model for endpoint in serving.list()] == ["one", "two"]
    assert _get(f"{url}/v1/models").json() == {"models": ["one", "two"]}
    assert _index(url) == [("one", "v1", "READY"), ("two", "v1", "READY")]

    # Deployed again, nothing is loaded; another version is loaded beside the old one.
    assert serving.deploy("two", "v1", *_model(tmp_path / "c", 2)) == two
    # Without the name of the server, a model stays where it is.
    alone = LocalServing(serving.state_dir)
    newer = alone.deploy("two", "v2", *_model(tmp_path / "d", 3))
    assert (newer.url, newer.server, newer.predict([[0]])) == (url, "team", [3])
    assert not two.ready() and one.ready()
    canary = alone.start_canary("two", "v3", *_model(tmp_path / "e", 4), 0)
    assert alone.get("two") == canary and canary.metadata()["versions"] == ["v3", "v2"]
    assert _get(f"{url}/v2/models/two/versions/v3/ready").status_code == 200
    assert alone.promote_canary("two").predict([[0]]) == [4]

    metrics = _get(f"{url}/metrics").text
    for label, count in (('model="one",protocol="v1"', 1), ('model="two",protocol="v1"', 1)):
        assert f'dvkf_requests_total{{{label},status="200",version="v1"}} {count}.0' in metrics

    # One goes, the other stays; the server ends with the last.
    assert serving.stop("two") and not serving.stop("two")
    assert serving.get("two") is None and one.predict([[0]]) == [1]
    assert _get(f"{url}/v2/models/two/ready").status_code == 404
    assert 'dvkf_model_percent{model="two"' not in _get(f"{url}/metrics").text
    assert serving.stop("one") and not one.ready()
    assert serving.list() == [] and not list(serving.state_dir.glob("*.json"))


def test_a_model_that_does_not_load_leaves_the_others(serving: LocalServing, tmp_path: Path) -> None:
    one = serving.deploy("one", "v1", *_model(tmp_path / "a", 1))
    bad = _model(tmp_path / "b", -1)
    with pytest.raises(ServingError, match=r"'two' v1 cannot be loaded \(SystemExit: 3\)"):
        serving.deploy("two", "v1", *bad)
    with pytest.raises(ModelDigestError):
        serving.deploy("one", "v2", bad[0], "0" * 32 + ".dir")
    assert serving.get("two") is None and serving.list() == [one] and one.predict([[0]]) == [1]
    assert _index(one.url) == [
        ("one", "v1", "READY"),
        ("one", "v2", "UNAVAILABLE"),
        ("two", "v1", "UNAVAILABLE"),
    ]
    assert _index(one.url, ready=True) == [("one", "v1", "READY")]
    answer = httpx.post(f"{one.url}/v2/repository/index", content=b"[", trust_env=False)
    assert answer.status_code == 400
    # Deployed well, it is there as if nothing had been.
    assert serving.deploy("two", "v1", *_model(tmp_path / "c", 2)).predict([[0]]) == [2]
    assert ("two", "v1", "READY") in _index(one.url)


def test_a_model_that_loads_is_not_ready(serving: LocalServing, tmp_path: Path) -> None:
    one = serving.deploy("one", "v1", *_model(tmp_path / "a", 1))
    gate = tmp_path / "gate"
    slow = _model(tmp_path / "b", 2, gate)
    thread = threading.Thread(target=serving.deploy, args=("two", "v1", *slow))
    thread.start()
    try:
        wait_until(lambda: ("two", "v1", "LOADING") in _index(one.url))
        answer = _get(f"{one.url}/v2/models/two/ready")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert "model 'two' is loading" in answer.json()["error"]
        assert one.predict([[0]]) == [1]
    finally:
        gate.open("wb").close()
        thread.join()
    assert _get(f"{one.url}/v2/models/two/ready").status_code == 200


def test_what_a_shared_server_refuses(serving: LocalServing, tmp_path: Path) -> None:
    model = _model(tmp_path / "a", 1)
    one = serving.deploy("one", "v1", *model)
    other = LocalServing(serving.state_dir, server="other")
    with pytest.raises(ServingError, match=r"'one' is served by another server \(team\) than 'other'"):
        other.deploy("one", "v2", *model)
    alone = LocalServing(serving.state_dir)
    alone.deploy("own", "v1", *model)
    with pytest.raises(ServingError, match=r"\(one of its own\) than 'team'"):
        serving.deploy("own", "v2", *model)
    with pytest.raises(ServingError, match="listens on port"):
        serving.deploy("two", "v1", *model, port=1)
    with pytest.raises(ServingError, match="the server 'team' outlives the process"):
        serving.deploy("two", "v1", *model, detached=False)
    # A model of a shared server's name is another thing.
    team = alone.deploy("@team", "v1", *model)
    assert team.url != one.url and team.predict([[0]]) == [1]
    assert [endpoint.model for endpoint in serving.list()] == ["@team", "one", "own"]


def test_a_shared_server_that_died_starts_again(serving: LocalServing, tmp_path: Path) -> None:
    model = _model(tmp_path / "a", 1)
    one = serving.deploy("one", "v1", *model)
    serving.deploy("two", "v1", *model)
    os.kill(one.pid, signal.SIGKILL)
    wait_until(lambda: not serving.list())
    assert serving.get("two") is None and not serving.stop("two")
    again = serving.deploy("two", "v1", *model)
    assert again.pid != one.pid and again.predict([[0]]) == [1] and serving.list() == [again]


def test_services_are_listed(
    serving: LocalServing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from dvkf_prefect.blocks import ModelServer

    monkeypatch.setattr(ModelServer, "folder", serving.state_dir)
    assert main(["model", "services"]) == 0 and capfd.readouterr().out == ""
    one = serving.deploy("one", "v1", *_model(tmp_path / "a", 1))
    assert main(["model", "services"]) == 0 and capfd.readouterr().out == f"{one}\n"
    assert main(["model", "services", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["server"] == "team"
