"""Model servers as processes: start, takeover, failure, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import httpx
import numpy as np
import pandas as pd
import pytest

from dvkf_prefect.errors import ModelDigestError, PredictionError, ServingError
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.processes.identity import ProcessId
from dvkf_prefect.serving.endpoint import Endpoint, _json, _rows
from dvkf_prefect.serving.local import LocalServing


def constant(number: int) -> bytes:
    """Return a pickle with a model that always answers one number.

    Its code is in the pickle. The import of scikit-learn would take most of a server's start; tests/packaging and the
    demo serve its estimators.
    """

    class Constant:
        n_features_in_ = 2

        def predict(self, rows: object) -> object:
            return np.full(len(rows), number)  # type: ignore[arg-type]

    made: bytes = cloudpickle.dumps(Constant())
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Models that answer 1, 2, … by version: file and digest."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for number in (1, 2, 3):
        file = folder / f"m{number}.joblib"
        file.write_bytes(constant(number))
        made[f"v{number}.0.0"] = (file, digest_file(file))
    return made


class Serving(LocalServing):
    """Stops what a test started."""

    def __init__(self, state_dir: Path, models: dict[str, tuple[Path, str]]) -> None:
        super().__init__(state_dir)
        self.models = models

    def start(self, version: str, name: str = "m", *, port: int = 0, detached: bool = True) -> Endpoint:
        file, digest = self.models[version]
        return self.deploy(name, version, file, digest, port=port, detached=detached)


@pytest.fixture
def serving(tmp_path: Path, models: dict[str, tuple[Path, str]]) -> Iterator[Serving]:
    serving = Serving(tmp_path / "state", models)
    yield serving
    for endpoint in serving.list():
        serving.stop(endpoint.model)


def _gone(process: ProcessId, timeout: float = 120) -> bool:
    deadline = time.monotonic() + timeout
    while process.alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _process(endpoint: Endpoint) -> ProcessId:
    process = ProcessId.of(endpoint.pid)
    assert process is not None
    return process


def test_deploy_ask_find_stop(serving: Serving) -> None:
    assert serving.list() == [] and serving.get("m") is None and serving.stop("m") is False
    endpoint = serving.start("v1.0.0")
    assert endpoint.ready()
    assert endpoint.predict([[0, 0], [1, 1]]) == [1, 1]
    assert endpoint.predict(np.zeros((2, 2))) == [1, 1]
    assert endpoint.predict([np.zeros(2)]) == [1]
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0, 0]}
    assert endpoint.infer([tensor], outputs=["predict"])["outputs"][0]["data"] == [1]
    assert endpoint.metadata()["versions"] == ["v1.0.0"]
    with pytest.raises(PredictionError, match="rows of 2 finite numbers"):
        endpoint.predict([[0, 0, 0]])
    with pytest.raises(PredictionError, match="cannot be sent as JSON"):
        endpoint.predict([object()])
    # Another process finds it by the state folder alone.
    assert LocalServing(serving.state_dir).get("m") == endpoint
    assert serving.list() == [endpoint]
    # The same again is the same server.
    assert serving.start("v1.0.0") == endpoint

    process = _process(endpoint)
    assert serving.stop("m") is True
    assert not process.alive
    assert serving.stop("m") is False and serving.get("m") is None
    assert not endpoint.ready()
    with pytest.raises(ServingError, match="does not answer"):
        endpoint.predict([[0, 0]])
    assert not list(serving.state_dir.glob("*.json"))


def test_what_the_client_sends() -> None:
    document = {
        "instances": [[1.0, float("nan")], np.array([2.0, np.nan]), np.float32(0.5), (True, "a", None)]
    }
    assert json.loads(_json(document)) == {"instances": [[1.0, None], [2.0, None], 0.5, [True, "a", None]]}
    table = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    assert _rows(table)[0] == {"a": 1, "b": "x"} and json.loads(_json(_rows(table)))[1]["b"] is None
    for rows in ([float("inf")], np.array([-np.inf]), [object()], [float("nan"), object()]):
        with pytest.raises(PredictionError, match="cannot be sent as JSON"):
            _json({"instances": rows})


def test_it_listens_on_this_machine_only(serving: Serving) -> None:
    endpoint = serving.start("v1.0.0")
    port = f"{int(endpoint.url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert [row[1] for row in rows if row[3] == "0A" and row[1].endswith(":" + port)] == [f"0100007F:{port}"]
    assert not [1 for line in Path("/proc/net/tcp6").read_text().splitlines() if f":{port} " in line]


def test_takeover_loses_no_request(serving: Serving) -> None:
    """Clients with new and with kept connections ask all the time while versions go back and forth."""
    endpoint = serving.start("v1.0.0")
    url = f"{endpoint.url}/v1/models/m:predict"
    body = {"instances": [[0, 0]]}
    done = threading.Event()
    failures: list[str] = []
    answers: list[list[int]] = [[], [], [], []]

    def hammer(position: int) -> None:
        keep = position % 2 == 0
        client = httpx.Client(trust_env=False, verify=False, timeout=30)
        while not done.is_set():
            try:
                if not keep:
                    client.close()
                    client = httpx.Client(trust_env=False, verify=False, timeout=30)
                response = client.post(url, json=body)
                response.raise_for_status()
                answers[position].append(response.json()["predictions"][0])
            except httpx.HTTPError as error:
                failures.append(repr(error))
        client.close()

    threads = [threading.Thread(target=hammer, args=(position,)) for position in range(4)]
    for thread in threads:
        thread.start()
    pids = [endpoint.pid]
    try:
        for version in ("v2.0.0", "v1.0.0", "v2.0.0", "v3.0.0"):
            now = serving.start(version)
            assert now.url == endpoint.url
            # Only the new version answers once deploy has returned.
            assert now.predict([[0, 0]]) == [int(version[1])]
            pids.append(now.pid)
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert all({1, 2} <= set(seen) for seen in answers)
    assert len(set(pids)) == 5
    assert [pid for pid in pids if ProcessId.of(pid)] == pids[-1:]


def test_another_port(serving: Serving) -> None:
    first = serving.start("v1.0.0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    second = serving.start("v2.0.0", port=port)
    assert second.url == f"http://127.0.0.1:{port}"
    assert not first.ready()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServingError, match="cannot listen on 127"):
            serving.start("v3.0.0", port=taken.getsockname()[1])
    assert second.predict([[0, 0]]) == [2]


def test_the_wrong_file_is_not_loaded_and_the_old_version_stays(serving: Serving) -> None:
    endpoint = serving.start("v1.0.0")
    file, _ = serving.models["v2.0.0"]
    with pytest.raises(ModelDigestError, match="It was not loaded"):
        serving.deploy("m", "v2.0.0", file, "0" * 32)
    assert serving.get("m") == endpoint
    assert endpoint.predict([[0, 0]]) == [1]


def test_a_start_that_fails_gives_the_log(serving: Serving, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(b"cno_such_package.module\nModel\n.")
    with pytest.raises(ServingError, match=r"(?s)did not start.*no_such_package.*The end of its log.*ERROR"):
        serving.deploy("m", "v1.0.0", bad, digest_file(bad))
    killer = tmp_path / "killer.pkl"
    killer.write_bytes(b"cposix\n_exit\n(I3\ntR.")
    with pytest.raises(ServingError, match="exited without a message"):
        serving.deploy("m", "v1.0.0", killer, digest_file(killer))
    sleeper = tmp_path / "sleeper.pkl"
    sleeper.write_bytes(b"ctime\nsleep\n(I60\ntR.")
    with pytest.raises(ServingError, match="it was not ready in time"):
        serving.deploy("m", "v1.0.0", sleeper, digest_file(sleeper), timeout=3)
    assert serving.get("m") is None and serving.list() == []


def test_a_server_that_died_is_not_there(serving: Serving) -> None:
    endpoint = serving.start("v1.0.0")
    process = _process(endpoint)
    os.kill(endpoint.pid, signal.SIGKILL)
    assert _gone(process)
    assert serving.get("m") is None and serving.list() == []
    again = serving.start("v1.0.0")
    assert again.pid != endpoint.pid and again.ready()


def test_a_number_given_to_another_process_is_left_alone(serving: Serving) -> None:
    endpoint = serving.start("v1.0.0")
    serving_pid = _process(endpoint)
    file = serving.state_dir / "m.json"
    with subprocess.Popen(["sleep", "60"]) as other:
        document = json.loads(file.read_bytes())
        document["servers"][0]["process"]["pid"] = other.pid
        file.write_text(json.dumps(document))
        assert serving.get("m") is None
        assert serving.stop("m") is False
        assert other.poll() is None
        other.kill()
    serving_pid.end(10)


def test_a_hung_server_is_replaced(serving: Serving) -> None:
    endpoint = serving.start("v1.0.0")
    os.kill(endpoint.pid, signal.SIGSTOP)
    now = serving.start("v2.0.0")
    assert now.url == endpoint.url and now.predict([[0, 0]]) == [2]
    assert ProcessId.of(endpoint.pid) is None


def test_a_takeover_cut_short_is_finished_by_the_next(serving: Serving) -> None:
    """A state file that names two servers: whoever died in between, none of them is forgotten."""
    first = serving.start("v1.0.0")
    before = json.loads((serving.state_dir / "m.json").read_bytes())["servers"]
    file, digest = serving.models["v2.0.0"]
    other = LocalServing(serving.state_dir.with_name("other"))
    second = other.deploy("m", "v2.0.0", file, digest)
    now = json.loads((other.state_dir / "m.json").read_bytes())["servers"]
    (serving.state_dir / "m.json").write_text(json.dumps({"servers": now + before}))
    assert serving.get("m") == second
    stale = _process(first)
    assert serving.start("v2.0.0").pid == second.pid
    assert not stale.alive


def test_a_request_in_flight_is_answered(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_model.py").write_text(
        "import time\n"
        "class Slow:\n"
        "    def predict(self, rows):\n"
        "        time.sleep(1.5)\n"
        "        return [7] * len(rows)\n"
    )
    script = "import joblib, slow_model; joblib.dump(slow_model.Slow(), 'slow.joblib')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    # Modules come from where the user says, never from the current folder.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    endpoint = serving.deploy("m", "v1.0.0", Path("slow.joblib"), digest_file(tmp_path / "slow.joblib"))
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(endpoint.predict([[0]])))
    thread.start()
    deadline = time.monotonic() + 10
    port = f":{int(endpoint.url.rpartition(':')[2]):04X} "
    while time.monotonic() < deadline:
        # Until the connection is established on the server's side, too.
        rows = Path("/proc/net/tcp").read_text().splitlines()
        if any(port in " ".join(row.split()[1:2]) + " " and row.split()[3] == "01" for row in rows[1:]):
            break
        time.sleep(0.01)
    time.sleep(0.2)
    assert serving.stop("m") is True
    thread.join(20)
    assert answers == [[7]]


_PARENT = """
import sys, time
from pathlib import Path
from dvkf_prefect.serving.local import LocalServing
state, file, digest, detached = sys.argv[1:]
endpoint = LocalServing(Path(state)).deploy("m", "v1.0.0", Path(file), digest, detached=detached == "yes")
print(endpoint.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("detached", [True, False])
def test_what_outlives_a_killed_parent(serving: Serving, detached: bool) -> None:
    file, digest = serving.models["v1.0.0"]
    argv = [sys.executable, "-c", _PARENT, str(serving.state_dir), str(file), digest]
    with subprocess.Popen([*argv, "yes" if detached else "no"], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        process = ProcessId.of(pid)
        assert process is not None
        endpoint = serving.get("m")
        assert endpoint is not None and endpoint.pid == pid and endpoint.detached is detached
        parent.send_signal(signal.SIGKILL)
        parent.wait(120)
        if detached:
            assert endpoint.predict([[0, 0]]) == [1]
            # Another process takes over from it.
            assert serving.start("v2.0.0").url == endpoint.url
            assert not process.alive
        else:
            assert _gone(process)
            assert serving.get("m") is None


def test_a_leashed_server_lives_as_long_as_this_process_wants(serving: Serving) -> None:
    endpoint = serving.start("v1.0.0", detached=False)
    assert endpoint.predict([[0, 0]]) == [1]
    assert serving.start("v1.0.0", detached=False) == endpoint
    detached = serving.start("v1.0.0")
    assert detached.url == endpoint.url and detached.pid != endpoint.pid and detached.detached


def test_two_at_once_wait_for_each_other(serving: Serving) -> None:
    done: list[Endpoint] = []
    threads = [
        threading.Thread(target=lambda v=version: done.append(serving.start(v)))
        for version in ("v1.0.0", "v2.0.0", "v3.0.0")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len({endpoint.url for endpoint in done}) == 1
    running = serving.get("m")
    assert running is not None
    assert [endpoint.pid for endpoint in done if ProcessId.of(endpoint.pid)] == [running.pid]


def test_names_with_a_folder(serving: Serving) -> None:
    endpoint = serving.start("v1.0.0", "vision/nets:m")
    assert endpoint.ready() and endpoint.predict([[0, 0]]) == [1]
    assert [e.model for e in serving.list()] == ["vision/nets:m"]
    assert {p.parent for p in serving.state_dir.rglob("*")} == {serving.state_dir}


def test_a_damaged_state_file(serving: Serving) -> None:
    serving.state_dir.mkdir()
    (serving.state_dir / "m.json").write_text("{")
    with pytest.raises(ServingError, match="does not describe a server"):
        serving.get("m")
    (serving.state_dir / "m.json").unlink()


def test_only_the_same_user_gets_the_socket(serving: Serving) -> None:
    """The listening socket is handed to who asks by the name in the state file, which others cannot read."""
    serving.start("v1.0.0")
    assert (serving.state_dir / "m.json").stat().st_mode & 0o077 == 0


def test_a_server_started_by_hand(models: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    file, digest = models["v1.0.0"]
    argv = [sys.executable, "-m", "dvkf_prefect.serving.server", "--name", "m", "--version", "v1.0.0"]
    argv += ["--model", str(file)]
    refused = subprocess.run([*argv, "--digest", "0" * 32], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "It was not loaded" in refused.stderr
    with subprocess.Popen([*argv, "--digest", digest], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = next(line.split()[-1] for line in server.stderr if "answers on" in line)
        answer = httpx.post(f"{url}/v1/models/m:predict", json={"instances": [[0, 0]]}, trust_env=False)
        assert answer.json() == {"predictions": [1]}
        server.terminate()
        server.stderr.read()
