"""Ten broken set-ups, and each line of `dvkf doctor --kubeflow` about them that is not ``ok``."""

from __future__ import annotations

import base64
import dataclasses
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.errors import RemoteDeniedError, RemoteError, RemoteUnreachableError
from dvkf_prefect.kubeflow.cluster.login import Login
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings, PodRemote
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, Volume
from dvkf_prefect.kubeflow.doctor.doctor import check_cluster
from dvkf_prefect.kubeflow.doctor.writes import PROBES, check_writes

from .fake_gate import LOGIN_PAGE, always, bearer, certificate, silent
from .test_doctor import gate, kubernetes, lake, outside_of_a_cluster, there
from .test_login import jwt

__all__ = ["gate", "kubernetes", "lake", "outside_of_a_cluster", "there"]  # fixtures


def wrong(settings: ClusterSettings, repo=None) -> list[str]:
    return [str(check) for check in check_cluster(settings, repo) if check.state != "ok"]


def plain(server, **values) -> ClusterSettings:
    scheme = "https" if server.tls else "http"
    options = {"host": f"{scheme}://localhost:{server.port}", "ask_kubernetes": False, **values}
    return ClusterSettings.from_options(options)


def test_1_dns(monkeypatch):
    def unknown(name, *args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert wrong(ClusterSettings("https://kubeflow.exampel.org/pipeline", ask_kubernetes=False)) == [
        "fail DNS: no address for kubeflow.exampel.org (Name or service not known); "
        "correct the host, or the name servers of this machine"
    ]


def test_2_tls(gate, tmp_path):
    server = gate(tls=certificate(tmp_path, "localhost")[0])
    assert wrong(plain(server)) == [
        f"fail TLS: the certificate of localhost:{server.port} is refused: self-signed certificate; "
        "if the server is right, name the certificate of its authority (ca_file, DVKF_KUBEFLOW_CA_FILE)"
    ]


def test_3_a_login_page(gate):
    assert wrong(plain(gate(always(200, LOGIN_PAGE)), token="x")) == [
        "fail login: answered with a login page ('dex') with a bearer token; its issuer or audience is not the "
        "expected one: make a token with `kubectl create token NAME -n kubeflow`, and without Kubeflow's gateway in "
        "between with `--audience pipelines.kubeflow.org`"
    ]


def test_4_an_expired_token(gate):
    assert wrong(plain(gate(bearer(jwt(exp=2_000_000_000))), token=jwt(exp=1_700_000_000))) == [
        "fail login: refused (401: Jwt verification fails) with a bearer token; the token expired at 2023-11-14 22:13 "
        "UTC: renew it, or name a token file that is renewed"
    ]


def test_5_a_wrong_namespace(gate):
    assert wrong(plain(gate(multi_user=("team-a", "team-b")), namespace="team-c")) == [
        "fail namespace: 'team-c' is forbidden for this login (403: Failed to list experiments: User 'ada' is not "
        "authorized with reason: (request: &ResourceAttributes{Namespace:team-c,Verb:list,Group:pipelines.kubeflow.org,"
        "Resource:experiments,})); name the namespace of your profile, or ask its owner for the role kubeflow-edit"
    ]


def test_6_missing_rights(there):
    login = Login(jwt(sub="system:serviceaccount:ci:worker", exp=2_000_000_000))
    accounts = {
        "ci:worker": ("list experiments", "get runs"),
        "default-editor": ("get configmaps", "get pods"),
    }
    settings = there(multi_user=("kubeflow",), accounts=accounts, values={"login": login})
    assert wrong(settings) == [
        "fail rights on runs: system:serviceaccount:ci:worker lacks in 'kubeflow': create experiments, list runs, "
        "create runs, terminate runs; ask the owner of 'kubeflow' for the role kubeflow-edit",
        "fail service account: 'default-editor' lacks: get secrets, get workflows, create workflowtaskresults, patch "
        "workflowtaskresults; bind it to the role of `pipeline-runner`, or to kubeflow-edit in a profile",
    ]


def test_7_no_secret(lake):
    project, _, start = lake
    assert wrong(start(secret="other"), project.repo) == [
        "fail remote in pods: secret 'other' does not exist in 'kubeflow'; `kubectl create secret generic other -n "
        "kubeflow --from-literal=access_key_id=… --from-literal=secret_access_key=…`"
    ]


def test_8_an_unreachable_store(lake):
    project, bucket, start = lake
    with silent() as port:
        pass
    away = start(options={"endpointurl": f"http://127.0.0.1:{port}"})
    assert wrong(away, project.repo) == [
        f"warn remote in pods: {bucket}/data cannot be reached from this machine; if the name exists only inside the "
        "cluster, only a pod can check it"
    ]


def test_9_a_store_that_cannot_be_written(lake, s3, there):
    project, bucket, _ = lake
    keys = {"access_key_id": s3.reader_key, "secret_access_key": s3.reader_secret}
    data = {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}
    settings = there(objects={"secrets/lake": {"data": data}})
    settings = dataclasses.replace(settings, remote=PodRemote(secret="lake"))
    assert wrong(settings, project.repo) == [
        f"fail remote writes in pods: {bucket}/data does not let the owner of secret 'lake' write objects; allow the "
        "owner of secret 'lake' to write, read and delete objects: it stores stages' sources, results and outputs"
    ]
    assert not list(project.repo.remote().storage.keys("dvkf/doctor"))


def test_10_no_image(there, project, tmp_path):
    volumes = Placement(volumes=(Volume("data", str(tmp_path / "remote")),))
    settings = dataclasses.replace(there(), image="", defaults=volumes, ask_kubernetes=False)
    assert wrong(settings, project.repo) == [
        "fail image: no image for stage 'prepare', 'train', 'report': a pod needs one that contains kfp, dvkf-prefect "
        "and what the stage imports; Make one with `dvkf image build` and name it (`image` of the block, "
        "DVKF_KUBEFLOW_IMAGE, or `meta: kubeflow: image`), or list `packages` with dvkf-prefect, which pods install at "
        "each start"
    ]


# -- writing to the remote ---------------------------------------------------------------------------------------------


class Strict(FolderStorage):
    """A folder that fails at one thing."""

    def __init__(self, root: Path, fails: str, error: Exception | None) -> None:
        super().__init__(root, Place("store", str(root)))
        self.fails, self.error = fails, error

    def _check(self, what: str) -> None:
        if what == self.fails and self.error is not None:
            raise self.error

    def write(self, key: str, data: bytes) -> None:
        self._check("write")
        super().write(key, data)

    def read(self, key: str, *, limit: int | None = None) -> bytes:
        self._check("read")
        found = super().read(key, limit=limit)
        return found[::-1] if self.fails == "change" else found

    def delete(self, keys: Iterable[str]) -> None:
        self._check("delete")
        super().delete(keys)


@pytest.mark.parametrize(
    ("fails", "error", "line"),
    [
        ("", None, "ok   remote writes: me may write, read and delete objects of URL"),
        (
            "write",
            RemoteDeniedError("no"),
            "fail remote writes: URL does not let me write objects; allow me to write, read and delete objects: "
            "it stores stages' sources, results and outputs",
        ),
        ("read", RemoteDeniedError("no"), "fail remote writes: URL does not let me read objects; allow me"),
        (
            "delete",
            RemoteDeniedError("no"),
            "fail remote writes: URL does not let me delete objects; allow me",
        ),
        ("change", None, "fail remote writes: URL gives other bytes than were written; a proxy or a cache"),
        (
            "write",
            RemoteUnreachableError("remote 'store' is away."),
            "fail remote writes: remote 'store' is away; correct the url, or the network to it",
        ),
        (
            "write",
            RemoteError("remote 'store' is full."),
            "fail remote writes: remote 'store' is full; name a remote that can be written",
        ),
    ],
)
def test_writes_are_tried_and_undone(tmp_path, fails, error, line):
    storage = Strict(tmp_path / "store", fails, error)
    said = str(check_writes(storage, "remote writes", storage.url, "me"))
    assert said.replace(storage.url, "URL").startswith(line)
    assert bool(list(storage.keys(PROBES))) == (fails == "delete")


def test_lines_about_writes(lake, s3):
    project, bucket, start = lake
    found = [str(check) for check in check_cluster(start(), project.repo)]
    assert not any(secret in line for line in found for secret in (s3.access_key, s3.secret_key))
    assert not list(project.repo.remote().storage.keys("dvkf"))
    assert f"ok   remote writes: this machine may write, read and delete objects of {bucket}/data" in found
    assert (
        f"ok   remote writes in pods: the owner of secret 'lake' may write, read and delete objects of {bucket}/data"
    ) in found


def test_no_line_about_writes_that_only_a_pod_can_try(project, there, tmp_path):
    volumes = Placement(volumes=(Volume("data", str(tmp_path / "remote")),))
    settings = dataclasses.replace(there(), defaults=volumes, ask_kubernetes=False)
    titles = [check.name for check in check_cluster(settings, project.repo)]
    assert "remote writes" in titles and "remote writes in pods" not in titles
