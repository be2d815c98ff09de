"""Compare the model server with kserve.ModelServer: the same model and requests, in turn. Writes SERVING.md.

kserve pins versions that this package does not take, so it has an environment of its own::

    make .kserve-venv/stamp
    python tests/benchmarks/serving.py --kserve .kserve-venv/bin/python

Each client has a connection and sends its next request once it has the answer to the one before. Figures are medians
of the rounds. CPU time is that of the whole server process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.processes.identity import listen

RESULTS = Path(__file__).with_name("SERVING.md")
ROW = [5.1, 3.5, 1.4, 0.2]
TENSOR = {"name": "input-0", "shape": [1, 4], "datatype": "FP64", "data": ROW}
PATHS = {"V1": "/v1/models/m:predict", "V2": "/v2/models/m/infer"}
OURS: dict[str, object] = {
    "V1": {"instances": [ROW]},
    # kserve's model has one output; ours has probabilities, too, if none is named.
    "V2": {"inputs": [TENSOR], "outputs": [{"name": "predict"}]},
}
THEIRS: dict[str, object] = {**OURS, "V2": {"inputs": [TENSOR]}}
KSERVE = """
import sys, joblib, numpy, kserve
from kserve.utils.utils import get_predict_response

class M(kserve.Model):
    def __init__(self, path):
        super().__init__("m")
        self.model, self.ready = joblib.load(path), True
    def predict(self, payload, headers=None, response_headers=None):
        if isinstance(payload, kserve.InferRequest):
            return get_predict_response(payload, self.model.predict(payload.inputs[0].as_numpy()), self.name)
        return {"predictions": self.model.predict(numpy.asarray(payload["instances"])).tolist()}

server = kserve.ModelServer(http_port=int(sys.argv[2]), enable_grpc=False, workers=1, access_log_format=None)
server.start([M(sys.argv[1])])
"""


@dataclass(frozen=True)
class Figures:
    """Figures of one round: requests a second, milliseconds of CPU a request, and of latency."""

    rate: float
    cpu: float
    half: float
    most: float


class Server:
    """A server process on a port."""

    def __init__(self, argv: list[str], port: int, requests: dict[str, object]) -> None:
        self.port = port
        self.requests = requests
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(f"no server on port {port}: {argv[0]}")

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def measure(self, protocol: str, clients: int, seconds: float) -> Figures:
        body = json.dumps(self.requests[protocol]).encode()
        lines = [f"POST {PATHS[protocol]} HTTP/1.1", "Host: x", "Content-Type: application/json"]
        request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
        poll = select.epoll()
        socks = {}
        for _ in range(clients):
            sock = socket.create_connection(("127.0.0.1", self.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            socks[sock.fileno()] = sock
            poll.register(sock.fileno(), select.EPOLLIN)
        _drive(poll, socks, request, seconds / 4)
        cpu, started = self.cpu(), time.perf_counter()
        times = sorted(_drive(poll, socks, request, seconds))
        spent, elapsed = self.cpu() - cpu, time.perf_counter() - started
        for sock in socks.values():
            sock.close()
        count = len(times)
        return Figures(
            count / elapsed, 1000 * spent / count, 1000 * times[count // 2], 1000 * times[count * 99 // 100]
        )


def _drive(
    poll: select.epoll, socks: dict[int, socket.socket], request: bytes, seconds: float
) -> list[float]:
    times: list[float] = []
    sent: dict[int, float] = {}
    received = dict.fromkeys(socks, b"")
    end = time.perf_counter() + seconds
    for number, sock in socks.items():
        sent[number] = time.perf_counter()
        sock.sendall(request)
    while sent:
        for number, _ in poll.poll(60):
            data = received[number] + socks[number].recv(65536)
            head, found, body = data.partition(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]) if found else 1
            if len(body) < size:
                received[number] = data
                continue
            if not head.startswith(b"HTTP/1.1 200"):
                raise ValueError(data)
            received[number] = b""
            now = time.perf_counter()
            times.append(now - sent.pop(number))
            if now < end:
                sent[number] = now
                socks[number].sendall(request)
    return times


def _port() -> int:
    with listen(0) as listener:
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kserve", required=True, help="Python of the environment with kserve")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    say = "import kserve; from importlib import metadata; print(metadata.version('kserve'))"
    version = subprocess.run(
        [args.kserve, "-c", say], capture_output=True, text=True, check=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "m.joblib")
        joblib.dump(LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True)), model)
        ports = _port(), _port()
        ours = [sys.executable, "-m", "dvkf_prefect.serving.server", "--name", "m", "--version", "v1"]
        ours += ["--model", str(model), "--digest", digest_file(model), "--port", str(ports[0])]
        servers = [
            Server(ours, ports[0], OURS),
            Server([args.kserve, "-c", KSERVE, str(model), str(ports[1])], ports[1], THEIRS),
        ]
        lines = [
            "# The model server and kserve.ModelServer",
            "",
            "Made by `tests/benchmarks/serving.py`: a logistic regression of 4 features, one row a request, one "
            f"process each, {args.rounds} rounds of {args.seconds:g} s in turn, medians. kserve {version} logs each "
            f"request, as it does by default. {os.cpu_count()} cores, shared with the client; Python "
            f"{platform.python_version()}. Load average at the end: LOAD.",
            "",
            "| protocol | clients | requests/s, dvkf / kserve | ratio | CPU a request, ms | ratio | p50, ms | "
            "p99, ms |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        try:
            for protocol in PATHS:
                for clients in (1, 8, 64):
                    pairs = [
                        [server.measure(protocol, clients, args.seconds) for server in servers]
                        for _ in range(args.rounds)
                    ]
                    lines.append(_line(protocol, clients, pairs))
                    print(lines[-1])
        finally:
            for server in servers:
                server.process.terminate()
                server.process.wait(60)
    text = "\n".join(lines).replace("LOAD", f"{os.getloadavg()[0]:.1f}")
    RESULTS.write_text(text + "\n")


def _line(protocol: str, clients: int, pairs: list[list[Figures]]) -> str:
    def both(name: str, digits: int) -> str:
        return " / ".join(
            f"{statistics.median(getattr(pair[side], name) for pair in pairs):.{digits}f}" for side in (0, 1)
        )

    rate = statistics.median(mine.rate / other.rate for mine, other in pairs)
    cpu = statistics.median(other.cpu / mine.cpu for mine, other in pairs)
    cells = [protocol, clients, both("rate", 0), f"{rate:.2f}", both("cpu", 3), f"{cpu:.2f}"]
    return "| " + " | ".join(map(str, [*cells, both("half", 2), both("most", 2)])) + " |"


if __name__ == "__main__":
    main()
