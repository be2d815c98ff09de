"""The credentials of a remote get to pods by the name of a Kubernetes secret, and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import logging
import uuid

import pytest

from dvkf_prefect.errors import ConfigError, RunnerError, StageFailedError
from dvkf_prefect.kubeflow.cluster.login import Login
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings, PodRemote
from dvkf_prefect.kubeflow.compile.pod_settings import Placement
from dvkf_prefect.repo import Repo

from .conftest import Project
from .fake import wait_for


@pytest.fixture
def shared(s3, kfp, settings, tmp_path):
    """A repository whose remote is S3, and a secret of the cluster with its keys."""
    bucket = s3.make_bucket(f"kfp-{uuid.uuid4().hex[:12]}")
    config = {'remote "store"': s3.options()}
    kfp.secrets["lake"] = {"id": s3.access_key, "key": s3.secret_key}
    keys = {"id": "access_key_id", "key": "secret_access_key"}
    settings = dataclasses.replace(settings, defaults=Placement(), remote=PodRemote(secret="lake", keys=keys))

    class Shared(Project):
        @property
        def repo(self) -> Repo:
            return Repo.open(self.root, config=config)

    return Shared(tmp_path / "repo", f"{bucket}/data"), settings


def test_secrets_are_named_and_never_written(shared, kfp, s3, caplog, tmp_path):
    project, settings = shared
    caplog.set_level(logging.DEBUG)
    settings = dataclasses.replace(settings, login=Login("t0ken-of-mine", cookie="c00kie-of-mine"))
    kfp.tokens = {"t0ken-of-mine"}
    specs = project.steps()
    with KfpClusterRunner(project.repo, settings) as runner:
        results = {stage: run.wait(120) for stage, run in runner.start_all(specs).items()}
        # The command of a stage does not see them either.
        env = runner.start(project.step("env", "env; false"))
        with pytest.raises(StageFailedError) as caught:
            env.wait(120)
    here = project.locally(specs)
    assert all(results[stage].outs == here[stage].outs for stage in results)
    assert kfp.headers["Cookie"] == (
        "oauth2_proxy_kubeflow=c00kie-of-mine; authservice_session=c00kie-of-mine"
    )
    bodies = json.dumps([run.body for run in kfp.runs.values()])
    assert '"secretName": "lake"' in bodies
    storage = project.repo.remote().storage
    written = [storage.read(key) for key in storage.keys("dvkf") if "/bundles/" not in key]
    written += [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 10
    for secret in (s3.access_key, s3.secret_key, "t0ken-of-mine", "c00kie-of-mine"):
        assert secret not in bodies + caplog.text + caught.value.log_tail + repr(settings)
        assert not any(secret.encode() in data for data in written)


def test_credentials_that_pods_would_not_get_are_told(shared, kfp):
    project, settings = shared
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, remote=PodRemote())) as runner:
        with pytest.raises(
            ConfigError, match=r"used on this machine with access_key_id, secret_access_key.*remote_secret"
        ):
            runner.start(project.step("a", "true", outs=["a"]))
    options = PodRemote(secret="lake", options={"secret_access_key": "x"})
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, remote=options)) as runner:
        with pytest.raises(ConfigError, match="'secret_access_key' of the remote is a secret"):
            runner.start(project.step("a", "true", outs=["a"]))
    assert not kfp.runs


def test_wrong_credentials_in_the_secret_fail_with_the_reason(shared, kfp, s3):
    project, settings = shared
    kfp.secrets["lake"]["key"] = "wrong"
    with KfpClusterRunner(project.repo, settings) as runner:
        run = runner.start(project.step("a", "true", outs=["a"]))
        with pytest.raises(RunnerError, match=r"refused|denied|credentials"):
            run.wait(60)


def test_a_folder_that_pods_cannot_see(project, kfp, settings):
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, defaults=Placement())) as runner:
        with pytest.raises(ConfigError, match="the pod of stage 'a' cannot access"):
            runner.start(project.step("a", "true", outs=["a"]))


def test_a_token_file_is_read_for_each_request(project, kfp, settings, tmp_path):
    file = tmp_path / "token"
    file.write_text("old\n")
    kfp.tokens = {"old"}
    with KfpClusterRunner(
        project.repo, dataclasses.replace(settings, login=Login(token_file=str(file)))
    ) as runner:
        run = runner.start(project.step("a", "sleep 1; echo 1 > a", outs=["a"]))
        kfp.tokens = {"old", "new"}
        file.write_text("new\n")
        wait_for(lambda: kfp.headers["Authorization"] == "Bearer new")
        kfp.tokens = {"new"}
        assert not run.wait(60).failed


def test_refused_credentials_are_not_tried_again(project, kfp, settings):
    kfp.tokens = {"right"}
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, login=Login("wrong-one"))) as runner:
        with pytest.raises(RunnerError, match=r"refused \(401\)\. Check the credentials") as caught:
            runner.start(project.step("a", "true", outs=["a"]))
    assert "wrong-one" not in str(caught.value)
    assert len(kfp.requests) == 1


def test_settings_from_the_environment():
    assert ClusterSettings.from_environment({}) is None
    said = {
        "KF_PIPELINES_ENDPOINT": "https://kf.example.org/pipeline",
        "DVKF_KUBEFLOW_NAMESPACE": "team",
        "DVKF_KUBEFLOW_TOKEN": "s3cr3t",
        "DVKF_KUBEFLOW_ALLOW_DIRTY": "true",
        "DVKF_KUBEFLOW_REMOTE_SECRET": "lake",
    }
    settings = ClusterSettings.from_environment(said)
    assert (settings.host, settings.namespace, settings.allow_dirty) == (
        "https://kf.example.org/pipeline",
        "team",
        True,
    )
    assert settings.remote.secret == "lake" and settings.login.bearer() == "s3cr3t"
    assert "s3cr3t" not in repr(settings)
