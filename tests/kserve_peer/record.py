"""Send the requests to `kserve.ModelServer`, and write its answers. ``make kserve-answers`` runs it.

Usage: python -m kserve_peer.record PYTHON, with the Python of kserve's environment, in the folder tests.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import grpc

from dvkf_prefect.processes.identity import listen
from kserve_peer.asks import GRPC, HTTP
from kserve_peer.client import call, send

FILE = Path(__file__).with_name("answers.json")
_SERVER = Path(__file__).with_name("server.py")
_SECONDS = 300


def _port() -> int:
    with listen(0) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"kserve.ModelServer does not listen on port {port}")


def main() -> None:
    """Record the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("python", help="Python of the environment with kserve")
    python = parser.parse_args().python
    say = "from importlib import metadata; print(metadata.version('kserve'))"
    version = subprocess.run([python, "-c", say], capture_output=True, text=True, check=True).stdout.strip()
    ports = _port(), _port()
    # kserve loads models of the same code, and finds no other packages of these tests.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen([python, str(_SERVER), *map(str, ports)], env=env, stdout=subprocess.DEVNULL)
    try:
        for port in ports:
            _wait(port, process)
        answers = {ask.name: {"asked": ask.digest, **send(ask, ports[0])} for ask in HTTP}
        with grpc.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
            for asked in GRPC:
                answers[asked.name] = {"asked": asked.digest, **call(asked, channel)}
    finally:
        process.terminate()
        process.wait(60)
    document = {"kserve": version, "answers": answers}
    FILE.write_text(json.dumps(document, indent=1, ensure_ascii=True) + "\n")
    print(f"{len(answers)} answers of kserve {version}")


if __name__ == "__main__":
    main()
