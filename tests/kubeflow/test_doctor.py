"""`dvkf doctor --kubeflow`: for each broken set-up one line that names it, and what to do."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
import uuid

import pytest

from dvkf_prefect import cli
from dvkf_prefect.blocks import KubeflowCredentials, KubeflowPipelines
from dvkf_prefect.kubeflow.cluster.login import Login
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings, PodRemote
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, Volume
from dvkf_prefect.kubeflow.doctor.doctor import check_cluster
from dvkf_prefect.repo import Repo

from .conftest import Project
from .fake_gate import (
    DASHBOARD,
    LOGIN_PAGE,
    Gate,
    Kubernetes,
    always,
    authservice,
    basic,
    bearer,
    certificate,
    oauth2_proxy,
    silent,
)
from .test_login import jwt


@pytest.fixture(autouse=True)
def outside_of_a_cluster(monkeypatch, tmp_path):
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "mounted"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def lines(settings: ClusterSettings, repo: Repo | None = None) -> list[str]:
    return [str(check) for check in check_cluster(settings, repo)]


def asked(server: Gate, path: str = "", **values) -> list[str]:
    """The findings about a server, without those about Kubernetes."""
    scheme = "https" if server.tls else "http"
    host = values.pop("host", None) or f"{scheme}://localhost:{server.port}{path}"
    settings = ClusterSettings.from_options(
        {"host": host, "ask_kubernetes": False, "connect_timeout": 2, "read_timeout": 2, **values}
    )
    found = lines(settings)
    assert server.problems == []
    return found


@pytest.fixture
def gate():
    """Return a server that runs until the test's end."""
    running = []

    def start(*arguments, tls=None, **options) -> Gate:
        server = Gate(*arguments, **options)
        server.tls = tls
        running.append(server.__enter__())
        return server

    yield start
    for server in running:
        server.__exit__()
        assert server.problems == []


# -- the way to the server -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["ftp://x", "kubeflow.example.org", "https://ada:s3cr3t@x/", "http://[", "http://x:0"]
)
def test_a_wrong_address(host):
    (found,) = lines(ClusterSettings(host, ask_kubernetes=False))
    assert found.startswith("fail address: the address of Kubeflow Pipelines is http(s)://host[:port][/path]")
    assert found.endswith("; correct the host") and "s3cr3t" not in found


def test_a_name_that_no_dns_knows(monkeypatch):
    def unknown(name, *args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert lines(ClusterSettings("https://kubeflow.exampel.org/pipeline", ask_kubernetes=False)) == [
        "fail DNS: no address for kubeflow.exampel.org (Name or service not known); "
        "correct the host, or the name servers of this machine"
    ]
    (found,) = lines(ClusterSettings("http://ml-pipeline.kubeflow.svc:8888", ask_kubernetes=False))
    assert "names of services exist only inside the cluster" in found and "kubectl port-forward" in found


def test_a_port_that_refuses_and_one_that_keeps_silent(gate):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert lines(ClusterSettings(f"http://localhost:{port}", ask_kubernetes=False))[-1] == (
        f"fail port: localhost:{port} does not accept connections (Connection refused); "
        "correct the port, or start the server or its port-forward"
    )
    with silent() as port:
        settings = ClusterSettings(f"http://localhost:{port}", ask_kubernetes=False, read_timeout=0.3)
        assert lines(settings)[-1] == (
            f"fail answer: localhost:{port} accepts connections but does not answer; check if the server is overloaded"
        )


def test_a_certificate_that_nothing_here_trusts(gate, tmp_path):
    tls, file = certificate(tmp_path, "localhost")
    server = gate(tls=tls)
    assert asked(server)[-1] == (
        f"fail TLS: the certificate of localhost:{server.port} is refused: self-signed certificate; "
        "if the server is right, name the certificate of its authority (ca_file, DVKF_KUBEFLOW_CA_FILE)"
    )
    good = asked(server, ca_file=file)
    assert good[2].startswith("ok   TLS: TLSv1.3, certificate valid until 20")
    assert [line[:4] for line in good] == ["ok  "] * 6
    assert asked(server, verify_ssl=False)[2] == (
        "warn TLS: TLSv1.3, but the certificate is not verified (verify_ssl); "
        "name the certificate of its authority (ca_file) and set verify_ssl to true"
    )
    assert "ca_file" in asked(server, ca_file=str(tmp_path / "absent"))[0]


@pytest.mark.parametrize(
    ("names", "days", "found"),
    [
        (
            ("other.example.org",),
            (-1, 9),
            "Hostname mismatch, certificate is not valid for 'localhost'.; use the name",
        ),
        (
            ("localhost",),
            (-9, -1),
            "certificate has expired; the certificate has expired: ask its owner to renew it",
        ),
        (
            ("localhost",),
            (1, 9),
            "certificate is not yet valid; the certificate is not valid yet: correct the clock",
        ),
    ],
)
def test_certificates_that_are_wrong(gate, tmp_path, names, days, found):
    tls, file = certificate(tmp_path, *names, days=days)
    said = asked(gate(tls=tls), ca_file=file)
    assert said[-1].startswith("fail TLS: the certificate of localhost:") and found in said[-1]


def test_a_certificate_that_ends_soon(gate, tmp_path):
    tls, file = certificate(tmp_path, "localhost", days=(-1, 3))
    said = asked(gate(tls=tls), ca_file=file)
    assert said[2].startswith("warn TLS: TLSv1.3, certificate valid until") and "expires soon" in said[2]


def test_http_and_https_taken_for_each_other(gate, tmp_path):
    tls, _ = certificate(tmp_path, "localhost")
    plain, secure = gate(), gate(tls=tls)
    assert asked(plain, host=f"https://localhost:{plain.port}")[-1] == (
        f"fail TLS: localhost:{plain.port} does not speak TLS (WRONG_VERSION_NUMBER); use http://, or the port of https"
    )
    said = asked(secure, host=f"http://localhost:{secure.port}")[-1]
    assert said.startswith(f"fail answer: localhost:{secure.port} does not answer with HTTP")
    told = gate(always(400, "Client sent an HTTP request to an HTTPS server.\n", "text/plain"))
    assert asked(told)[-1] == f"fail TLS: http://localhost:{told.port} speaks TLS; use https://"
    sent_on = gate(always(301, Location="https://localhost/pipeline/apis"))
    assert asked(sent_on)[-1] == "fail address: redirected to https://localhost/pipeline/apis; use https://"


def test_a_proxy(gate, monkeypatch):
    server = gate()
    monkeypatch.setenv("http_proxy", f"http://user:s3cr3t@127.0.0.1:{server.port}")
    said = asked(server, host="http://kubeflow.example.org")
    assert (
        said[0]
        == f"ok   proxy: http://127.0.0.1:{server.port} leads to kubeflow.example.org (no_proxy does not name it)"
    )
    assert said[-1].startswith("ok   namespace")
    monkeypatch.setenv("no_proxy", "localhost")
    assert asked(server)[0] == "ok   DNS: localhost is 127.0.0.1"
    monkeypatch.delenv("no_proxy")
    refusing = gate(always(407))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{refusing.port}")
    assert asked(refusing, host="http://kubeflow.example.org")[-1] == (
        "fail proxy: the proxy asks for a login (407); put name and password into HTTPS_PROXY"
    )


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (
            always(503, "no healthy upstream", "text/plain"),
            "fail answer: a proxy answers in place of the server (503: no healthy upstream); "
            "is the pod ml-pipeline running? `kubectl get pods -n kubeflow -l app=ml-pipeline`",
        ),
        (always(500, "oops"), "fail answer: answered 500; see the log of the deployment ml-pipeline"),
        (
            always(404, "404 page not found\n", "text/plain"),
            "fail address: {host} is not Kubeflow Pipelines (404: 404 page not found); the address of a Kubeflow "
            "installation mostly ends in /pipeline; that of the API server has no path",
        ),
        (
            always(200, DASHBOARD),
            "fail address: {host} answers with a web page ('Kubeflow Central Dashboard'); the host is that of the "
            "dashboard: add the path of Kubeflow Pipelines, mostly /pipeline",
        ),
        (
            always(200, "<title>Welcome to nginx!</title>"),
            "fail address: {host} answers with a web page ('Welcome to nginx!'); correct the host; behind a login, "
            "correct the credentials",
        ),
        (
            always(302, Location="https://new.example.org/pipeline"),
            "fail address: redirected to https://new.example.org/pipeline; name that address as the host",
        ),
    ],
)
def test_other_servers(gate, answer, found):
    server = gate(answer)
    assert asked(server)[-1] == found.format(host=f"http://localhost:{server.port}")


def test_the_dashboard_with_and_without_the_path_of_pipelines(gate):
    server = gate(prefix="/pipeline", ui=True)
    assert "add the path of Kubeflow Pipelines, mostly /pipeline" in asked(server)[-1]
    assert asked(server, "/pipeline/")[-1].startswith("ok   namespace")


# -- login -------------------------------------------------------------------------------------------------------------

COOKIE_STEP = (
    "sessions expire, mostly after 24 hours: log in with a browser again and copy the whole Cookie header"
)


@pytest.mark.parametrize(
    ("gate_", "good", "way", "bad", "found"),
    [
        (
            bearer("right"),
            {"token": "right"},
            "with a bearer token",
            {"token": "wrong"},
            "fail login: refused (401: Jwt verification fails) with a bearer token; its issuer or audience is not the "
            "expected one: make a token with `kubectl create token NAME -n kubeflow`, and without Kubeflow's gateway "
            "in between with `--audience pipelines.kubeflow.org`",
        ),
        (
            oauth2_proxy("djI|1|s="),
            {"cookie": "djI|1|s="},
            "with a cookie",
            {"cookie": "old"},
            f"fail login: refused (401: Unauthorized) with a cookie; {COOKIE_STEP} "
            "(sent were oauth2_proxy_kubeflow, authservice_session); a token lasts longer",
        ),
        (
            oauth2_proxy("abcd", parts=2),
            {"cookie": "oauth2_proxy_kubeflow_0=ab; oauth2_proxy_kubeflow_1=cd"},
            "with a cookie",
            {"cookie": "oauth2_proxy_kubeflow_0=ab"},
            "fail login: refused (401: Unauthorized) with a cookie; the session's cookie is in parts, and "
            "oauth2_proxy_kubeflow_1 is missing: copy the whole Cookie header",
        ),
        (
            authservice("MTY5"),
            {"cookie": "MTY5"},
            "with a cookie",
            {},
            "fail login: sent to the login page http://localhost:{port}/dex/auth without credentials; name a token "
            "file, a token, or the Cookie header of a browser's session (Kubeflow Credentials, "
            "DVKF_KUBEFLOW_TOKEN_FILE, …_TOKEN, …_COOKIE)",
        ),
        (
            authservice("MTY5"),
            {"cookie": "x=1; authservice_session=MTY5"},
            "with a cookie",
            {"cookie": "authservice_session=MTY1"},
            f"fail login: sent to the login page http://localhost:{{port}}/dex/auth with a cookie; {COOKIE_STEP} "
            "(sent were authservice_session); a token lasts longer",
        ),
        (
            basic("ada", "right"),
            {"username": "ada", "password": "right"},
            "with a name and password",
            {"username": "ada", "password": "wrong"},
            "fail login: refused (401) with a name and password; correct them; Kubeflow's own login takes tokens and "
            "cookies only",
        ),
    ],
)
def test_ways_to_log_in(gate, gate_, good, way, bad, found):
    server = gate(gate_)
    assert f"ok   login: {way}" in asked(server, **good)
    said = asked(server, **bad)
    assert said[-1] == found.format(port=server.port)
    for secret in (*good.values(), *bad.values()):
        assert secret in ("ada",) or secret not in "\n".join(said).replace("oauth2_proxy_kubeflow", "")


def test_a_token_file_and_the_mounted_token(gate, tmp_path):
    server = gate(bearer("right"))
    file = tmp_path / "token"
    file.write_text("right\n")
    assert f"ok   login: with a token file ({file}, read again for each request)" in asked(
        server, token_file=str(file)
    )
    file.unlink()
    assert asked(server, token_file=str(file))[-1] == (
        f"fail login: the token file {file} cannot be read: No such file or directory; correct the credentials"
    )
    (tmp_path / "mounted").write_text("right")
    place = tmp_path / "mounted"
    assert f"ok   login: with an in-cluster token ({place}, read again for each request)" in asked(server)


def test_the_end_of_a_token(gate):
    holds, ended = jwt(exp=time.time() + 3600), jwt(exp=1_700_000_000)
    server = gate(bearer(holds))
    (login,) = (line for line in asked(server, token=holds) if "login" in line)
    assert login.startswith("ok   login: with a bearer token, valid until 20") and login.endswith(" UTC")
    assert asked(server, token=ended)[-1] == (
        "fail login: refused (401: Jwt verification fails) with a bearer token; the token expired at 2023-11-14 22:13 "
        "UTC: renew it, or name a token file that is renewed"
    )


@pytest.mark.parametrize(
    "page", [LOGIN_PAGE, "<title>Sign in to your account</title>", "<title>Log In | SSO</title>"]
)
def test_a_login_page_in_place_of_an_answer(gate, page):
    said = asked(gate(always(200, page)), token="x")[-1]
    assert said.startswith("fail login: answered with a login page ('") and "with a bearer token" in said


def test_an_api_that_only_its_login_hides(gate):
    """The health is open, and lists are not."""

    def of_lists(path, headers):
        return (
            always(401, '{"error": "no"}', "application/json")(path, headers)
            if "healthz" not in path
            else None
        )

    assert asked(gate(of_lists))[-1].startswith(
        "fail login: refused (401: no) without credentials; name a token file"
    )


def test_forbidden_by_istio(gate):
    said = asked(gate(always(403, "RBAC: access denied", "text/plain")), token="x")[-1]
    assert said == (
        "fail login: forbidden (403: RBAC: access denied) with a bearer token; the login is valid but has no rights in "
        "the namespace: ask for the role kubeflow-edit"
    )


def test_credentials_in_the_clear(gate, monkeypatch):
    server = gate(bearer("right"))
    own = socket.getaddrinfo

    def near(name, *args, **options):
        return own("127.0.0.1" if name == "kubeflow.example.org" else name, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", near)
    said = asked(server, host=f"http://kubeflow.example.org:{server.port}", token="right")
    assert (
        said[2]
        == "warn TLS: the credentials cross the network unencrypted; use https://, if the server has it"
    )


# -- API and namespace -------------------------------------------------------------------------------------------------


_LATER = "`workspace`, `optional` variables (2.15), `sub_path` of volumes, `security_context` (2.16)"


@pytest.mark.parametrize(
    ("version", "options", "found"),
    [
        ("2.17.0", {}, "ok   API: 2.17.0, single-user"),
        ("2.17.0", {"ui": True, "multi_user": ("kubeflow",)}, "ok   API: 2.17.0, multi-user"),
        ("2.14.3", {}, f"ok   API: 2.14.3, single-user; lacks {_LATER}"),
        (
            "2.5.0",
            {},
            f"ok   API: 2.5.0, single-user; lacks labels of each stage's own pod, `node_affinity` (2.14), {_LATER}",
        ),
        ("2.0.5", {}, "fail API: Kubeflow Pipelines 2.0.5 is too old; upgrade it to 2.5 or newer"),
        ("1.8.5", {}, "fail API: Kubeflow Pipelines 1.8.5 is too old; upgrade it to 2.5 or newer"),
        ("dev", {}, "warn API: version dev, single-user; 2.5 or newer is needed"),
        (
            "2.17.0",
            {"ui": True, "ready": False},
            "fail API: the UI answers, but its API server does not; "
            "is the pod ml-pipeline running? `kubectl get pods -n kubeflow -l app=ml-pipeline`",
        ),
    ],
)
def test_versions(gate, version, options, found):
    assert found in asked(gate(version=version, **options))


def test_namespaces(gate):
    single, multi = gate(), gate(multi_user=("team-a", "team-b"))
    assert asked(single)[-1] == (
        "ok   namespace: 'kubeflow'; the server is single-user and keeps all runs together"
    )
    assert asked(multi, namespace="team-a")[-1] == "ok   namespace: runs of 'team-a' can be listed"
    said = asked(multi, namespace="team-c")[-1]
    assert said.startswith(
        "fail namespace: 'team-c' is forbidden for this login (403: Failed to list experiments: User"
    )
    assert said.endswith("name the namespace of your profile, or ask its owner for the role kubeflow-edit")


# -- Kubernetes, remote and images -------------------------------------------------------------------------------------


@pytest.fixture
def kubernetes(tmp_path):
    running = []

    def start(**options) -> tuple[Kubernetes, str]:
        server = Kubernetes(**options).__enter__()
        running.append(server)
        return server, server.kubeconfig(tmp_path)

    yield start
    for server in running:
        server.__exit__()
        assert server.problems == []


def found(settings: ClusterSettings, title: str, repo: Repo | None = None) -> str:
    """The one line about a part, without its title."""
    (line,) = (line for line in lines(settings, repo) if line[5:].startswith(f"{title}:"))
    return line.replace(f"{title}: ", "")


@pytest.fixture
def there(gate, kubernetes):
    """Settings of a cluster where all is right, but for what a test changes."""

    def start(*, version="2.17.0", multi_user=None, values=None, **options) -> ClusterSettings:
        server = gate(version=version, multi_user=multi_user)
        _, kube = kubernetes(**options)
        return ClusterSettings(
            f"http://localhost:{server.port}", kube_config=kube, image="mine:1", **(values or {})
        )

    return start


def test_kubernetes_that_answers(there):
    said = lines(there())
    assert said[-2].startswith("ok   Kubernetes: http://127.0.0.1:")
    assert said[-2].endswith("answers; pods, logs, events and workflows can be read")
    assert said[-1] == "ok   service account: 'pipeline-runner' has the rights of KFP's pods"


def test_kubernetes_that_cannot_be_asked(gate, tmp_path):
    settings = ClusterSettings(f"http://localhost:{gate().port}", kube_config=str(tmp_path / "none"))
    said = found(settings, "Kubernetes")
    assert said.startswith("warn cannot be queried from this machine (the kubeconfig ")
    assert "/none does not exist);" in said
    assert said.endswith("give this machine a kubeconfig (kube_config), or set ask_kubernetes to false")


@pytest.mark.parametrize(
    ("options", "title", "line"),
    [
        (
            {"own": ("list pods",)},
            "Kubernetes",
            "answers; this login lacks: get pods/log, list events, list workflows; without them the reason of a pod "
            "that does not start is not shown, and a start without an answer takes three minutes: bind the role `view`",
        ),
        (
            {"accounts": {}},
            "service account",
            "fail 'pipeline-runner' does not exist in namespace 'kubeflow'; `kubectl create serviceaccount "
            "pipeline-runner -n kubeflow` and bind KFP's role to it, or name another",
        ),
        (
            {"accounts": {"pipeline-runner": ("get configmaps", "get pods", "get workflows")}},
            "service account",
            "fail 'pipeline-runner' lacks: get secrets, create workflowtaskresults, patch workflowtaskresults; bind it "
            "to the role of `pipeline-runner`, or to kubeflow-edit in a profile",
        ),
        (
            {"reads": False},
            "service account",
            "warn 'pipeline-runner': its rights cannot be checked (403 Forbidden); an admin can: `kubectl auth can-i "
            "get secrets -n kubeflow --as system:serviceaccount:kubeflow:pipeline-runner`",
        ),
        (
            {"multi_user": ("kubeflow",), "accounts": {"default-editor": ("*",)}},
            "service account",
            "ok   'default-editor' has the rights of KFP's pods",
        ),
        (
            {"values": {"service_account": "robot"}},
            "service account",
            "fail 'robot' does not exist in namespace 'kubeflow'; `kubectl create serviceaccount robot -n kubeflow` "
            "and bind KFP's role to it, or name another",
        ),
    ],
)
def test_rights(there, options, title, line):
    assert found(there(**options), title).endswith(line)


RUNS = ("list experiments", "create experiments", "list runs", "get runs", "create runs", "terminate runs")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"accounts": {"ci:worker": RUNS}}, "ok   {user} may start and terminate runs of 'kubeflow'"),
        (
            {"accounts": {"ci:worker": RUNS[:4]}},
            "fail {user} lacks in 'kubeflow': create runs, terminate runs; ask the owner of 'kubeflow' for the role "
            "kubeflow-edit",
        ),
        (
            {"reads": False},
            "warn those of {user} cannot be checked (403 Forbidden); an admin can: `kubectl auth can-i create "
            "runs.pipelines.kubeflow.org -n kubeflow --as {user}`",
        ),
    ],
)
def test_rights_to_start_runs(there, options, line):
    """A multi-user server has Kubernetes review the token's user; no run is started for the check."""
    user = "system:serviceaccount:ci:worker"
    login = Login(jwt(sub=user, exp=time.time() + 3600))
    settings = there(multi_user=("kubeflow",), values={"login": login}, **options)
    assert found(settings, "rights on runs") == line.format(user=user)


@pytest.mark.parametrize("sub", ["ada@example.org", None])
def test_rights_of_a_login_that_kubernetes_does_not_know(there, sub):
    values = {"login": Login(jwt(sub=sub) if sub else "opaque")}
    assert not any("rights on runs" in line for line in lines(there(multi_user=("kubeflow",), values=values)))
    single = {"login": Login(jwt(sub="system:serviceaccount:ci:worker"))}
    assert not any("rights on runs" in line for line in lines(there(values=single)))


def test_a_namespace_that_kubernetes_does_not_have(there):
    said = lines(there(namespace="other"))
    assert said[-1] == (
        "fail namespace: 'kubeflow' does not exist in Kubernetes; name another (namespace, DVKF_KUBEFLOW_NAMESPACE)"
    )


META = """\
stages:
  train:
    cmd: "true"
    outs: [a]
    meta:
      kubeflow:
        image: mine:1
        secrets: [{name: hub, env: {token: HF_TOKEN, other: OTHER}}, {name: maybe, mount: /m, optional: true}]
        config_maps: [{name: settings, mount: /etc/settings}]
        image_pull_secrets: [pull]
        volumes: [{claim: data, mount: REMOTE, sub_path: x}]
"""


def test_objects_that_stages_name(there, project, tmp_path):
    project.write("dvc.yaml", META.replace("REMOTE", str(tmp_path / "remote")))
    secret = {"data": {"token": "eA=="}}
    settings = there(objects={"secrets/hub": secret, "persistentvolumeclaims/data": {}})
    assert found(settings, "objects of stages", project.repo) == (
        "fail missing: config map 'settings' of stage 'train'; key other of secret 'hub' of stage 'train'; "
        "secret 'pull' of stage 'train'; create them in namespace 'kubeflow', or correct `meta: kubeflow:` or the "
        "defaults"
    )
    objects = {
        "secrets/hub": {"data": {"token": "eA==", "other": "eA=="}},
        "secrets/pull": {},
        "configmaps/settings": {"data": {}},
        "persistentvolumeclaims/data": {},
    }
    good = there(objects=objects)
    assert found(good, "objects of stages", project.repo) == (
        "ok   config map 'settings', secret 'hub', secret 'pull', volume claim 'data'"
    )
    assert found(there(reads=False), "objects of stages", project.repo) == (
        "warn 4 of 4 cannot be checked; ask an admin if they exist"
    )
    assert [line for line in lines(good, project.repo) if not line.startswith("ok")] == []
    old = there(version="2.14.0", objects=objects)
    assert found(old, "settings of pods", project.repo) == (
        "fail stage 'train', setting 'volumes.0.sub_path' of its pod: the server has Kubeflow Pipelines 2.14; 2.16 is "
        "needed, older servers do not know it; mount the whole volume, or upgrade the server"
    )


@pytest.mark.parametrize(
    ("image", "line"),
    [
        ("registry.example.org:5000/a:1", "ok   registry.example.org:5000/a:1"),
        ("a@sha256:0", "ok   a@sha256:0"),
        (
            "a:latest",
            "warn a:latest has no fixed tag; give it a unique tag: a node may keep an older image of that name",
        ),
        (
            "registry.example.org:5000/a",
            "warn registry.example.org:5000/a has no fixed tag; give it a unique tag",
        ),
        (
            "",
            "fail no image for stage 'prepare', 'train', 'report': a pod needs one that contains kfp, dvkf-prefect and",
        ),
    ],
)
def test_images(there, project, tmp_path, image, line):
    volumes = Placement(volumes=(Volume("data", str(tmp_path / "remote")),))
    settings = dataclasses.replace(there(), image=image, defaults=volumes, ask_kubernetes=False)
    said = found(settings, "image", project.repo)
    assert said.startswith(line)
    assert image or "; Make one with `dvkf image build`" in said


@pytest.fixture
def lake(s3, there, tmp_path):
    """A repository whose remote is S3, and settings whose pods get its keys by a secret."""
    bucket = s3.make_bucket(f"doctor-{uuid.uuid4().hex[:12]}")
    config = {'remote "store"': s3.options()}

    class Shared(Project):
        @property
        def repo(self) -> Repo:
            return Repo.open(self.root, config=config)

    project = Shared(tmp_path / "repo", f"{bucket}/data")

    def start(key: str = "", secret: str = "lake", **parts) -> ClusterSettings:
        import base64

        values = {"access_key_id": s3.access_key, "secret_access_key": key or s3.secret_key}
        data = {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}
        if parts.pop("short", False):
            del data["secret_access_key"]
        settings = there(objects={"secrets/lake": {"data": data}}, reads=parts.pop("reads", True))
        return dataclasses.replace(settings, remote=PodRemote(secret=secret or None, **parts))

    return project, bucket, start


def test_the_remote_of_pods(lake, s3):
    project, bucket, start = lake
    url = f"{bucket}/data"
    title = "remote in pods"
    repo = project.repo
    assert found(start(), title, repo) == f"ok   {url} accepts the credentials of secret 'lake'"
    assert found(start(key="wrong"), title, repo) == (
        f"fail {url} refuses the credentials of secret 'lake'; correct the values of the secret, or the rights of "
        "their owner"
    )
    assert found(start(short=True), title, repo) == (
        "fail secret 'lake' has no key secret_access_key; add them, or name the keys that it has (remote_secret_keys)"
    )
    assert found(start(secret="other"), title, repo) == (
        "fail secret 'other' does not exist in 'kubeflow'; `kubectl create secret generic other -n kubeflow "
        "--from-literal=access_key_id=… --from-literal=secret_access_key=…`"
    )
    assert found(start(secret=""), title, repo).startswith(
        "fail remote 'store' is used on this machine with access_key_id, secret_access_key, which are not sent to pods"
    )
    with silent() as port:
        pass
    away = start(options={"endpointurl": f"http://127.0.0.1:{port}"})
    assert found(away, title, repo) == (
        f"warn {url} cannot be reached from this machine; "
        "if the name exists only inside the cluster, only a pod can check it"
    )
    assert found(start(reads=False), title, repo) == (
        f"warn {url} with secret 'lake', which cannot be read (403 Forbidden); `kubectl get secret lake -n kubeflow` "
        "shows whether it has the keys access_key_id, secret_access_key"
    )
    blind = dataclasses.replace(start(), ask_kubernetes=False)
    assert found(blind, title, repo).startswith(f"warn {url} with secret 'lake', which cannot be checked")
    said = "\n".join(lines(start(), repo))
    assert s3.secret_key not in said and s3.access_key not in said


def test_a_folder_that_pods_cannot_see(there, project):
    said = found(dataclasses.replace(there(), ask_kubernetes=False), "remote in pods", project.repo)
    assert "which the pod of stage 'prepare' cannot access" in said


# -- the command and the block -----------------------------------------------------------------------------------------


def test_the_command(gate, project, monkeypatch, capsys):
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("DVKF_KUBEFLOW_HOST", raising=False)
    assert cli.main(["doctor", "--kubeflow", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)
    assert checks[-1]["found"] == "no server of Kubeflow Pipelines is named"
    server = gate(bearer("s3cr3t"))
    monkeypatch.setenv("DVKF_KUBEFLOW_HOST", f"http://localhost:{server.port}")
    assert cli.main(["doctor", "--kubeflow"]) == 1
    assert "\tfail login: refused (401" in capsys.readouterr().out
    monkeypatch.setenv("DVKF_KUBEFLOW_TOKEN", "s3cr3t")
    assert cli.main(["doctor", "--kubeflow"]) == 1
    said = capsys.readouterr().out
    assert "\tok   login: with a bearer token\n" in said
    assert "\tok   remote: 'store'" in said and "\tfail image: no image for stage 'prepare'" in said
    assert "s3cr3t" not in said and "\tok   remote writes: this machine may write" in said
    cli.main(["doctor", "--kubeflow", "--no-remote"])
    assert "remote writes" not in capsys.readouterr().out


def test_the_block(gate, project, tmp_path):
    server = gate()
    block = KubeflowPipelines(
        backend="kubeflow",
        credentials=KubeflowCredentials(host=f"http://localhost:{server.port}"),
        ask_kubernetes=False,
        defaults={"volumes": [{"claim": "data", "mount": str(tmp_path / "remote")}]},
    )
    assert [check.name for check in block.check(project.repo) if check.state != "ok"] == ["image"]
    with silent() as port:
        pass
    with project.repo.config.edit() as sections:
        sections["remote"]["store"].update(url="s3://lake/x", endpointurl=f"http://127.0.0.1:{port}")
    (away,) = (str(check) for check in block.check(project.repo) if check.name == "remote")
    assert away.startswith("fail remote: ") and "s3://lake/x" in away
    assert KubeflowPipelines().check(project.repo) == []
