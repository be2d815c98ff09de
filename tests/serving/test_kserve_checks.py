"""Broken set-ups of a namespace with KServe, and the lines of `dvkf doctor --kserve` about them that are not ``ok``."""

from __future__ import annotations

from typing import Any

import pytest
from kserve_world import world
from kube_api import KubeApi
from kube_api.access import PIPELINE_RUNNER
from kubernetes import client

from dvkf_prefect.cli import main
from dvkf_prefect.kube.objects import KubeObjects
from dvkf_prefect.serving.kserve.checks import check_kserve

KEYS = {"AWS_ACCESS_KEY_ID": "eA==", "AWS_SECRET_ACCESS_KEY": "eA=="}
REMOTE = {"url": "s3://lake/data", "access_key_id": "x", "secret_access_key": "y"}


def wrong(kube: KubeObjects, **options: Any) -> dict[str, str]:
    return {each.name: str(each) for each in check_kserve(kube, "ml", **options) if each.state != "ok"}


def put(w: Any, kind: str, name: str, **parts: Any) -> None:
    w.api.put({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "ml"}, **parts})


def test_a_namespace_that_serves() -> None:
    with world("0.21") as w:
        put(w, "Secret", "keys", data=KEYS)
        put(w, "ServiceAccount", "reader", secrets=[{"name": "keys"}])
        found = {each.name: each for each in check_kserve(w.kube, "ml", account="reader")}
        assert {each.state for each in found.values()} == {"ok"}
        assert found["KServe"].found == "KServe 0.20 or later, default mode Standard"
        assert list(found) == [
            "KServe", "namespace", "runtimes", "rights", "canaries", "service account", "secret",
        ]  # fmt: skip
        assert wrong(w.kube, remote=REMOTE) == {}


def test_1_a_cluster_without_kserve() -> None:
    with KubeApi() as api:
        settings = client.Configuration(host=api.url)
        settings.api_key["authorization"] = f"Bearer {api.token('admin')}"
        kube = KubeObjects(client.ApiClient(settings))
        assert wrong(kube) == {
            "KServe": "fail KServe: KServe is not installed on this cluster: it has no serving.kserve.io/v1beta1; "
            "install version 0.15 or later"
        }


def test_2_a_namespace_that_does_not_exist() -> None:
    with world() as w:
        found = {each.name: each for each in check_kserve(w.kube, "other", account="lake")}
        assert (
            str(found["namespace"]) == "fail namespace: 'other' does not exist; name another with --namespace"
        )
        assert found["service account"].found == "'lake' does not exist in namespace 'other'"


def test_3_runtimes_that_are_absent_or_disabled() -> None:
    with world("0.21") as w:
        base = "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes"
        w.kube.delete(f"{base}/kserve-lgbserver")
        w.kube.merge(f"{base}/kserve-xgbserver", {"spec": {"disabled": True}})
        assert wrong(w.kube, remote=REMOTE) == {
            "runtimes": "warn runtimes: absent for xgboost (kserve-xgbserver, which is disabled), lightgbm "
            "(kserve-lgbserver); install the cluster runtimes of KServe, or name others with --runtime"
        }
        # A runtime of the namespace counts.
        kind = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "spec": {}}
        for name in ("kserve-lgbserver", "kserve-xgbserver"):
            w.api.put({**kind, "metadata": {"name": name, "namespace": "ml"}})
        assert wrong(w.kube, remote=REMOTE) == {}


def test_4_an_account_of_pipelines_that_has_no_rights_on_services() -> None:
    with world("0.21") as w:
        w.api.rules["runner"] = PIPELINE_RUNNER
        found = wrong(KubeObjects(w.login("runner")), remote=REMOTE)
        assert found["rights"].startswith(
            "fail rights: this login lacks in 'ml': get inferenceservices, list inferenceservices, create "
            "inferenceservices, patch inferenceservices, delete inferenceservices, get events"
        )
        assert "create secrets, patch secrets, create serviceaccounts" in found["service account"]


@pytest.mark.parametrize(
    ("version", "gateway", "said"),
    [
        (
            "0.17",
            True,
            "warn canaries: mode Standard of KServe before 0.20 has none, except with --split graph; upgrade",
        ),
        (
            "0.21",
            False,
            "warn canaries: mode Standard without the Gateway API gives them no traffic, except with --split graph; ",
        ),
    ],
)
def test_5_canaries_without_traffic(version: str, gateway: bool, said: str) -> None:
    with world(version, gateway=gateway) as w:
        assert wrong(w.kube, remote=REMOTE)["canaries"].startswith(said)
    with world(version, gateway=gateway, graphs=False) as w:
        said = said.replace(", except with --split graph", "")
        assert wrong(w.kube, remote=REMOTE)["canaries"].startswith(said)


def test_6_an_account_whose_secret_is_not_listed() -> None:
    """A Secret beside an account, as `kubectl create secret` leaves it, is not read by KServe."""
    with world("0.21") as w:
        put(w, "Secret", "keys", data=KEYS)
        put(w, "ServiceAccount", "reader")
        assert wrong(w.kube, account="reader")["service account"].startswith(
            "fail service account: 'reader' lists no Secret; list the Secret with the keys under its `secrets`"
        )
        put(w, "ServiceAccount", "stale", secrets=[{"name": "gone"}])
        assert wrong(w.kube, account="stale") == {
            "secret": "fail secret: absent: gone; create it, or no pod is made"
        }
        assert "no AWS_ACCESS_KEY_ID in lake" in wrong(w.kube, account="lake")["secret"]


def test_7_a_remote_without_keys() -> None:
    with world("0.21") as w:
        assert "has no access_key_id" in wrong(w.kube, remote={"url": "s3://lake"})["service account"]
        assert "has no S3 remote" in wrong(w.kube)["service account"]


def test_8_knative_as_the_default_mode_without_knative() -> None:
    with world("0.21", mode="Knative") as w:
        assert wrong(w.kube, remote=REMOTE) == {}
        for key in [key for key in w.api.store.resources if key[0] == "serving.knative.dev"]:
            del w.api.store.resources[key]
        assert wrong(w.kube, remote=REMOTE)["canaries"].startswith(
            "fail canaries: the default mode is Knative, and Knative is not installed; install Knative Serving"
        )


def test_the_command(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    with world("0.21") as w:
        monkeypatch.setenv("KUBECONFIG", w.api.kubeconfig(tmp_path / "kubeconfig", namespace="ml"))
        assert main(["doctor", "--kserve", "-n", "ml", "--service-account", "none"]) == 1
        said = capfd.readouterr().out
        assert "\tok   rights: this login may deploy, watch and remove services of 'ml'" in said
        assert "\tfail service account: 'none' does not exist in namespace 'ml'" in said
        assert main(["doctor", "--kserve"]) == 251
        assert "Give it as --namespace" in capfd.readouterr().err
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
        assert main(["doctor", "--kserve", "-n", "ml"]) == 1
        assert "fail Kubernetes: there is no login to Kubernetes" in capfd.readouterr().out
