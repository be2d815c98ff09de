"""The deployments of `dvkf prefect init` in a Kubernetes pool: the Job that its worker makes of them."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from kube_api.resources import kserve
from kube_api.schema import Schema
from repos import make_repo
from ruamel.yaml import YAML

from dvkf_prefect import cli
from dvkf_prefect.repo import Repo

from .conftest import git

IMAGE = "registry.example.org/flows:1"


@pytest.fixture
def deployment(tmp_path, monkeypatch) -> dict[str, Any]:
    """The only deployment of a repository's prefect.yaml, and the steps that come before it."""
    repo = make_repo(tmp_path / "digits", {"dvc.yaml": "stages: {}\n"}, remote="s3://lake/digits")
    git(repo.root, "remote", "add", "origin", "https://git.example.org/team/digits.git")
    monkeypatch.chdir(Repo.open(repo.root).root)
    assert cli.main(["prefect", "init", "-q", "--type", "kubernetes", "--image", IMAGE]) == 0
    document = YAML(typ="safe").load(repo.root / "prefect.yaml")
    (found,) = document["deployments"]
    return {"pull": document["pull"], "dockerfile": (repo.root / "Dockerfile.prefect").read_text(), **found}


def rendered(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the Job that the pool's worker makes, by its default template."""
    worker = pytest.importorskip("prefect_kubernetes.worker")
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

    async def job() -> dict[str, Any]:
        # The client is for references to blocks and variables, of which there are none.
        async with PrefectClient("http://127.0.0.1:1/api") as client:
            made = await worker.KubernetesWorkerJobConfiguration.from_template_and_values(
                base_job_template=worker.KubernetesWorker.get_default_base_job_template(),
                values=variables,
                client=client,
            )
        made.prepare_for_flow_run(FlowRun(id=uuid.uuid4(), name="quick-otter", flow_id=uuid.uuid4()))
        return dict(made.job_manifest)

    return asyncio.run(job())


def pod_schema() -> Schema:
    """Return the schema of a pod's specification: that of a predictor, which the full CRD declares in full."""
    resource = kserve()
    assert resource.schema is not None
    predictor = resource.schema.root["properties"]["spec"]["properties"]["predictor"]
    return Schema({"type": "object", "properties": {"spec": predictor}})


def test_the_job_of_a_deployment_is_one_that_kubernetes_takes(deployment):
    from kubernetes import client

    job = rendered(deployment["work_pool"]["job_variables"])
    # Two fields of the Job, which Prefect's template has in its pod; Kubernetes ignores them there.
    misplaced = {job["spec"]["template"]["spec"].pop(name, 1) for name in ("completions", "parallelism")}
    assert misplaced == {1}
    # Every field is one of the API: none is lost on the way through its models.
    api = client.ApiClient()

    class Answer:
        def __init__(self, values: dict[str, Any]) -> None:
            self.data = json.dumps(values)

    def complete(values: dict[str, Any]) -> dict[str, Any]:
        return dict(api.sanitize_for_serialization(api.deserialize(Answer(values), "V1Job")))

    assert complete(job) == without_nulls(job)
    spec = job["spec"]["template"]["spec"]
    schema, pod = pod_schema(), {"spec": spec}
    assert schema.prune(pod) == [] and schema.validate(pod, None) == []
    assert schema.prune({"spec": {**spec, "novelty": 1}}) == [".spec.novelty"]

    (container,) = spec["containers"]
    assert container["image"] == IMAGE and spec["restartPolicy"] == "Never"
    # Without a command the image's entrypoint would run, which the Dockerfile has not.
    assert container["args"] == ["prefect", "flow-run", "execute"] and "command" not in container
    assert "ENTRYPOINT" not in deployment["dockerfile"]
    assert deployment["pull"] == [
        {"prefect.deployments.steps.set_working_directory": {"directory": "/opt/flows"}}
    ]


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
