"""``dvkf model deploy``, ``undeploy`` and ``canary``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from kserve_world import World, patch_waits, world
from kube_api import Model
from servers import S3Server

from dvkf_prefect.blocks import KServeModelServer
from dvkf_prefect.cli import main
from dvkf_prefect.models.places import Manifest
from dvkf_prefect.promotion.places import ServingState
from dvkf_prefect.serving.kserve import deployment

from .conftest import Project

read_manifest = deployment._manifest
KSERVE = ("--to", "kserve", "--namespace", "ml", "--service-account", "lake", "--format", "sklearn")
URI = "s3://models/classifier/{}/"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with world("0.21") as w:
        patch_waits(monkeypatch, w)
        monkeypatch.setenv("KUBECONFIG", w.api.kubeconfig(tmp_path / "kubeconfig", namespace="ml"))
        # No bucket is there to read manifests from.
        monkeypatch.setattr(deployment, "_manifest", lambda place, version: None)
        yield w


@pytest.fixture
def published(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Two versions whose tags note that they are published."""
    monkeypatch.chdir(project.root)
    for content in ("one", "two"):
        project.train(content)
        version = project.registry.register("classifier")
        facts = {"where": URI.format(version.version), "format": "sklearn", "digest": version.digest}
        project.registry.note(version, "published", facts)
    return project


def predictor(cluster: World) -> dict:
    return cluster.service("classifier")["spec"]["predictor"]


def test_a_version_is_deployed_tried_and_removed(cluster: World, published: Project, capfd) -> None:
    assert main(["model", "deploy", "classifier@v0.0.1", *KSERVE, "--cpu", "2", "--json"]) == 0
    endpoint = json.loads(capfd.readouterr().out)
    assert (endpoint["version"], endpoint["service"]) == ("v0.0.1", "classifier")
    assert predictor(cluster)["model"]["storageUri"] == URI.format("v0.0.1")
    assert main(["model", "canary", "classifier", "-n", "ml"]) == 0
    assert capfd.readouterr().out == "classifier has no canary\n"
    assert main(["model", "deploy", "classifier", *KSERVE, "--cpu", "2", "--canary", "20"]) == 0
    said = "classifier: v0.0.2 gets 20 % of the traffic, v0.0.1 the rest\n"
    assert capfd.readouterr().out == said
    assert main(["model", "canary", "classifier", "-n", "ml"]) == 0
    assert capfd.readouterr().out == said
    assert main(["model", "canary", "classifier", "-n", "ml", "--abort", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["version"] == "v0.0.1"
    assert main(["model", "deploy", "classifier", *KSERVE, "--cpu", "2", "--canary", "20", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["percent"] == 20
    assert main(["model", "canary", "classifier", "-n", "ml", "--promote"]) == 0
    assert "classifier v0.0.2 at http://" in capfd.readouterr().out
    assert main(["model", "undeploy", "classifier", "--from", "kserve", "-n", "ml"]) == 0
    assert main(["model", "undeploy", "classifier", "--from", "kserve", "-n", "ml"]) == 0
    out = capfd.readouterr().out
    assert out == "classifier is not served any more\nclassifier was not served\n"
    facts = [
        f for f in deployment.read_facts(published.repo.git, "classifier@v0.0.1") if f["kind"] == "service"
    ]
    assert facts[0]["where"] == "kserve:/ml"


def test_the_address_and_the_options_of_a_service(cluster: World, published: Project) -> None:
    more = [
        "--memory",
        "4Gi",
        "--gpu",
        "1",
        "--min-replicas",
        "1",
        "--max-replicas",
        "2",
        "--runtime",
        "kserve-mlserver",
    ]
    more += ["--protocol", "v2", "--mode", "Standard", "--uri", "s3://other/folder", "--timeout", "700"]
    assert main(["model", "deploy", "classifier", *KSERVE, *more]) == 0
    found = predictor(cluster)
    assert (found["minReplicas"], found["maxReplicas"]) == (1, 2)
    model = found["model"]
    assert (model["storageUri"], model["runtime"], model["protocolVersion"]) == (
        "s3://other/folder/", "kserve-mlserver", "v2"
    )  # fmt: skip
    assert model["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}


def test_a_container_needs_no_publication(cluster: World, project: Project, monkeypatch) -> None:
    monkeypatch.chdir(project.root)
    project.train("one")
    project.registry.register("classifier")
    options = [*KSERVE[:-1], "custom", "--image", "registry.example.org/mine:1"]
    assert main(["model", "deploy", "classifier", *options]) == 0
    assert predictor(cluster)["containers"][0]["image"] == "registry.example.org/mine:1"


def test_a_failed_deployment_ends_with_the_words_of_the_container(
    cluster: World, published: Project, capfd
) -> None:
    assert main(["model", "deploy", "classifier@v0.0.1", *KSERVE]) == 0
    cluster.kserve.models[URI.format("v0.0.2")] = Model("crash")
    assert main(["model", "deploy", "classifier@v0.0.2", *KSERVE]) == 255
    said = capfd.readouterr().err
    assert "ValueError: node array from the pickle" in said and "v0.0.1 serves." in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["deploy", "classifier", "--to", "kserve"], "Give it as --namespace"),
        (["deploy", "classifier", "--uri", "s3://b/x"], "Add --to kserve"),
        (["deploy", "classifier", "--canary", "10"], "is not served"),
        (["deploy", "classifier", "--format", "pmml"], "no model format 'pmml'"),
        (["canary", "classifier", "--promote"], "is not served"),
        (["deploy", "classifier", *KSERVE, "--uri", "/tmp/x"], "cannot be read by KServe"),
        (["canary", "classifier", "-n", "ml", "--promote"], "has no canary"),
        (["deploy", "classifier", *KSERVE, "--canary", "10"], "serves nothing yet"),
    ],
)
def test_calls_that_cannot_work(cluster: World, published: Project, capfd, arguments, said) -> None:
    assert main(["model", *arguments]) != 0
    assert said in capfd.readouterr().err


def test_an_unpublished_version(cluster: World, project: Project, monkeypatch, capfd) -> None:
    monkeypatch.chdir(project.root)
    project.train("one")
    project.registry.register("classifier")
    assert main(["model", "deploy", "classifier", *KSERVE]) != 0
    assert "Run `dvkf model publish classifier@v0.0.1`" in capfd.readouterr().err
    project.registry.note(
        project.registry.show("classifier"), "published", {"where": "file:///srv/models/x/"}
    )
    assert main(["model", "deploy", "classifier", *KSERVE[:-2]]) != 0
    assert "the format of classifier v0.0.1 is not known" in capfd.readouterr().err


def test_a_force_takes_a_service_over(cluster: World, published: Project, capfd) -> None:
    cluster.api.put({
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": "classifier", "namespace": "ml"},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/x/"}}},
    })  # fmt: skip
    assert main(["model", "deploy", "classifier", *KSERVE]) != 0
    assert "was not deployed by dvkf" in capfd.readouterr().err
    assert main(["model", "deploy", "classifier", *KSERVE, "--force"]) == 0


def test_keys_of_the_remote_reach_the_service(cluster: World, published: Project) -> None:
    assert main(["remote", "add", "-d", "lake", "s3://data/dvc"]) == 0
    for option, value in (("access_key_id", "AKIA"), ("secret_access_key", "hidden")):
        assert main(["remote", "modify", "--local", "lake", option, value]) == 0
    arguments = [each for each in KSERVE if each not in ("--service-account", "lake")]
    assert main(["model", "deploy", "classifier@v0.0.1", *arguments]) == 0
    account = predictor(cluster)["serviceAccountName"]
    (secret,) = cluster.api.get("serviceaccounts", "ml", account)["secrets"]
    assert set(cluster.api.get("secrets", "ml", secret["name"])["data"]) == {
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
    }  # fmt: skip


def test_the_manifest_of_a_publication_names_the_format_and_the_model(
    cluster: World, published: Project, monkeypatch, capfd
) -> None:
    """Triton names a model by its folder, not by the service."""
    version = published.registry.show("classifier", "v0.0.1")
    manifest = Manifest(
        "classifier", "v0.0.1", URI.format("v0.0.1"), "onnx", "onnx", {"kserve-tritonserver": ("v2", "grpc-v2")},
        "net", str(version.digest), "model.bin", version.rev, "0" * 40, (), "2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    monkeypatch.setattr(deployment, "_manifest", lambda place, version: manifest)
    arguments = [each for each in KSERVE if each not in ("--format", "sklearn")]
    assert main(["model", "deploy", "classifier@v0.0.1", *arguments, "--json"]) == 0
    endpoint = json.loads(capfd.readouterr().out)
    assert (endpoint["served_as"], endpoint["protocol"]) == ("net", "v2")
    model = predictor(cluster)["model"]
    assert (model["modelFormat"], model["runtime"]) == ({"name": "onnx"}, "kserve-tritonserver")


@pytest.mark.long
def test_a_folder_that_is_named_is_compared_with_the_manifest_beside_it(
    cluster: World,
    published: Project,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was served as it was: with a missing file, a strange one, or those of another version."""
    monkeypatch.setattr(deployment, "_manifest", read_manifest)
    place = f"{s3.make_bucket('named-folders')}/models"
    for key, value in {"url": "s3://named-folders/dvc", **s3.options()}.items():
        subprocess.run(["dvc", "config", "--local", f"remote.lake.{key}", value], check=True)
    subprocess.run(["dvc", "config", "--local", "core.remote", "lake"], check=True)
    publish = ["model", "publish", "classifier@v0.0.1", "--to", place, "--format", "sklearn"]
    assert main(publish) == 0
    uri = f"{place}/classifier/v0.0.1"
    deploy = ["model", "deploy", "classifier@v0.0.1", *KSERVE, "--uri"]
    assert main([*deploy, uri]) == 0 and predictor(cluster)["model"]["storageUri"] == f"{uri}/"
    assert "not checked" not in caplog.text
    other = ["model", "deploy", "classifier@v0.0.2", *KSERVE, "--uri", uri]
    assert main(other) == 255 and "holds classifier v0.0.1" in capfd.readouterr().err
    folder = {"Bucket": "named-folders", "Key": "models/classifier/v0.0.1/"}
    with s3.client() as client:
        (listed,) = client.list_objects_v2(Bucket="named-folders", Prefix=folder["Key"])["Contents"]
        client.put_object(Bucket="named-folders", Key=f"{folder['Key']}other.pkl", Body=b"x")
        client.put_object(Bucket="named-folders", Key=listed["Key"], Body=b"longer than it was")
        assert main([*deploy, uri]) == 255
        said = capfd.readouterr().err
        name = listed["Key"].rpartition("/")[2]
        assert f"(missing or of another size: {name}; not of the version: other.pkl). Publish" in said
        client.delete_object(Bucket="named-folders", Key="models/classifier/manifest-v0.0.1.json")
    assert main([*deploy, uri]) == 0
    assert f"{uri}: not checked, as no manifest beside it can be read here" in caplog.text


@pytest.mark.parametrize("kill_at", range(1, 10))
def test_a_promotion_that_ends_at_any_write_is_continued_on_a_cluster(
    cluster: World, published: Project, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """Each step is done and not recorded; the same command then ends the promotion, and a rollback reverts it."""
    from dvkf_prefect.promotion.journal import Journal, Record

    options = ("-n", "ml", "--service-account", "lake", "--format", "sklearn")
    assert main(["model", "promote", "classifier", "v0.0.1", "prod", *options]) == 0
    write, writes = Journal.write, [0]

    def ending(self: Journal, record: Record) -> None:
        writes[0] += 1
        if writes[0] == kill_at:
            raise SystemExit(9)
        write(self, record)

    promote = ["model", "promote", "classifier", "v0.0.2", "prod", "--canary", "20", *options]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", ending)
        with pytest.raises(SystemExit):
            main(promote)
    assert main(promote) == 0
    assert predictor(cluster)["model"]["storageUri"] == URI.format("v0.0.2")
    assert "canary" not in cluster.service("classifier")["spec"]
    assert published.registry.show("classifier", "#prod").version == "v0.0.2"
    assert main(["model", "rollback", "classifier", "prod", *options]) == 0
    assert predictor(cluster)["model"]["storageUri"] == URI.format("v0.0.1")
    assert published.registry.show("classifier", "#prod").version == "v0.0.1"


def test_a_canary_behind_a_graph(cluster: World, published: Project, capfd) -> None:
    """Its service is found by lineage and by the collection of folders, and ends with the canary."""
    assert main(["model", "deploy", "classifier@v0.0.1", *KSERVE]) == 0
    assert main(["model", "deploy", "classifier", *KSERVE, "--canary", "20", "--split", "graph"]) == 0
    capfd.readouterr()
    url = "http://classifier-split.ml.svc.cluster.local"
    assert main(["model", "canary", "classifier", "-n", "ml"]) == 0
    said = "classifier: v0.0.2 gets 20 % of the traffic, v0.0.1 the rest"
    assert capfd.readouterr().out == f"{said}, at {url}\n"
    assert main(["model", "deploy", "classifier", *KSERVE, "--split", "graph"]) != 0
    assert "--split is for a canary on a cluster. Add --to kserve" in capfd.readouterr().err
    server = KServeModelServer(namespace="ml", split="graph")
    assert server.state("classifier") == ServingState("v0.0.1", "v0.0.2", 20, url)
    canary, stable = server.candidate("classifier", "v0.0.2"), server.candidate("classifier", "v0.0.1")
    assert canary is not None and stable is not None
    assert (canary.url, stable.url) == (
        f"http://{canary.service}-ml.example.com",
        "http://classifier-ml.example.com",
    )
    endpoint = server.endpoint("classifier")
    assert (endpoint.version, endpoint.graph) == ("v0.0.1", url)
    assert str(endpoint).endswith(f"(service classifier in namespace ml), behind the graph at {url}")
    assert main(["model", "status", "classifier"]) == 0
    assert f"v0.0.1, canary v0.0.2 with 20 % at {url}\n" in capfd.readouterr().out
    assert main(["lineage", "--service", "classifier", "--json"]) == 0
    found = {
        each["version"]["version"]: {service["name"] for service in each["services"]}
        for each in json.loads(capfd.readouterr().out)
    }
    assert found == {"v0.0.1": {"classifier"}, "v0.0.2": {"classifier"}}
    uses = server.uses()
    for version in ("v0.0.1", "v0.0.2"):
        assert uses.naming("classifier", version, f"classifier/{version}") is not None
    assert main(["model", "deploy", "classifier@v0.0.1", *KSERVE]) == 0  # to all: the canary is ended
    assert server.state("classifier") == ServingState("v0.0.1", url="http://classifier-ml.example.com")
    assert main(["model", "deploy", "classifier", *KSERVE, "--canary", "20"]) == 0
    assert main(["model", "canary", "classifier", "-n", "ml", "--promote"]) == 0
    endpoint = server.endpoint("classifier")
    assert (endpoint.version, endpoint.graph) == ("v0.0.2", url)
    assert main(["model", "undeploy", "classifier", "--from", "kserve", "-n", "ml"]) == 0
    for plural in ("inferenceservices", "inferencegraphs"):
        assert cluster.api.all(plural, "serving.kserve.io") == []


def test_a_promotion_by_a_graph(cluster: World, published: Project, capfd) -> None:
    """The act's own steps, and a gate that refuses the canary of it."""
    options = ("--place", "kserve", "-n", "ml", *KSERVE[4:], "--split", "graph", "--approved-by", "Ada")
    assert main(["model", "promote", "classifier@v0.0.1", "prod", *options]) == 0
    refused = ["model", "promote", "classifier@v0.0.2", "prod", *options, "--canary", "20"]
    assert main([*refused, "--gate", "smoke"]) != 0
    assert "classifier v0.0.2" in capfd.readouterr().err
    server = KServeModelServer(namespace="ml")
    assert server.state("classifier").version == "v0.0.1" and not server.state("classifier").canary
    assert main(refused) == 0
    assert server.state("classifier") == ServingState("v0.0.2", url="http://classifier-ml.example.com")
    assert len(cluster.api.all("inferenceservices", "serving.kserve.io")) == 1
    (graph,) = cluster.api.all("inferencegraphs", "serving.kserve.io")
    assert [step["weight"] for step in graph["spec"]["nodes"]["root"]["steps"]] == [100]
    assert (
        main(["model", "rollback", "classifier", "prod", "--place", "kserve", "-n", "ml", *KSERVE[4:]]) == 0
    )
    assert server.endpoint("classifier").version == "v0.0.1"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["deploy", "classifier", "-n", "ml"], "--namespace is for a cluster. Add --to kserve."),
        (
            ["deploy", "classifier", "--min-replicas", "0"],
            "--min-replicas is for a cluster. Add --to kserve.",
        ),
        (["undeploy", "classifier", "-n", "ml"], "--namespace is for a cluster. Add --from kserve."),
    ],
)
def test_options_of_a_cluster_are_refused_here(
    words: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were ignored, and a model of this machine was removed in place of the cluster's."""
    assert main(["model", *words]) == 251
    assert capsys.readouterr().err == f"ERROR: {option}\n"
