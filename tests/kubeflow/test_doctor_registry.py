"""Images in their registries: what the doctor says of each, and what it sends."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from pathlib import Path

import pytest

from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, Volume
from dvkf_prefect.kubeflow.doctor import doctor
from dvkf_prefect.kubeflow.doctor.doctor import check_cluster
from dvkf_prefect.kubeflow.doctor.registry import _Image, check_registry

from .fake_gate import Gate, silent
from .fake_registry import INDEX, MANIFEST, FakeRegistry


@pytest.fixture(autouse=True)
def logins(tmp_path, monkeypatch) -> Path:
    """The folder of Docker's settings, without a login."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return folder


def store(logins: Path, registry: str, **values: str) -> None:
    (logins / "config.json").write_text(json.dumps({"auths": {registry: values}}))


def basic(name: str, password: str) -> str:
    return base64.b64encode(f"{name}:{password}".encode()).decode()


def said(*images: str) -> list[str]:
    return [str(check) for check in check_registry(images, connect_timeout=2)]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("stages", "https://registry-1.docker.io/v2/library/stages/manifests/latest"),
        ("team/stages:1", "https://registry-1.docker.io/v2/team/stages/manifests/1"),
        ("ghcr.io/a/b/c:v1.2", "https://ghcr.io/v2/a/b/c/manifests/v1.2"),
        ("localhost:5000/a", "http://localhost:5000/v2/a/manifests/latest"),
        ("registry:5000/a:1", "https://registry:5000/v2/a/manifests/1"),
        (f"ghcr.io/a:1@sha256:{'0' * 64}", f"https://ghcr.io/v2/a/manifests/sha256:{'0' * 64}"),
    ],
)
def test_the_address_of_an_image(text, url):
    assert _Image.parse(text).url == url


@pytest.mark.parametrize("kind", [INDEX, MANIFEST])
def test_an_image_that_exists_and_one_that_does_not(kind):
    with FakeRegistry() as registry:
        registry.images["team/stages:1"] = kind
        there, gone, by_digest = said(
            f"{registry.host}/team/stages:1",
            f"{registry.host}/team/stages:2",
            f"{registry.host}/team/stages@{registry.digest('team/stages:1')}",
        )
    digest = registry.digest("team/stages:1")[:19]
    assert there == f"ok   image in registry: {registry.host}/team/stages:1 is {digest}"
    assert gone.startswith(f"fail image in registry: {registry.host}/team/stages:2 does not exist; push it")
    assert by_digest.startswith("ok   ")


@pytest.mark.parametrize("login", ["basic", "bearer"])
def test_a_login_of_docker_is_used(logins, login):
    with FakeRegistry(login) as registry:
        registry.images["team/stages:1"] = INDEX
        image = f"{registry.host}/team/stages:1"
        (without,) = said(image)
        store(logins, registry.host, auth=basic("robot", "s3cret"))
        (with_it,) = said(image)
        store(logins, registry.host, auth=basic("robot", "another"))
        (wrong,) = said(image)
    assert without.startswith("warn image in registry: ")
    assert f"not checked: {registry.host} refuses this machine without a login (401)" in without
    assert f"`docker login {registry.host}`" in without
    assert with_it.startswith("ok   ")
    assert "refuses the login of this machine (401)" in wrong and "another" not in wrong


def test_a_public_image_takes_a_token_without_a_login():
    with FakeRegistry("bearer") as registry:
        registry.images["public/stages:1"] = INDEX
        assert said(f"{registry.host}/public/stages:1")[0].startswith("ok   ")
    assert [method for method, _ in registry.requests] == ["HEAD", "GET", "HEAD"]


def test_an_identity_token_is_exchanged(logins):
    with FakeRegistry("bearer") as registry:
        registry.images["team/stages:1"] = INDEX
        store(logins, registry.host, identitytoken="identity")
        assert said(f"{registry.host}/team/stages:1")[0].startswith("ok   ")
    assert ("POST", "/token") in registry.requests


def test_a_credential_helper_is_asked(logins, tmp_path, monkeypatch):
    helper = tmp_path / "bin/docker-credential-test"
    helper.parent.mkdir()
    helper.write_text('#!/bin/sh\ncat > /dev/null\necho \'{"Username": "robot", "Secret": "s3cret"}\'\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}{os.pathsep}{os.environ['PATH']}")
    with FakeRegistry("basic") as registry:
        registry.images["team/stages:1"] = INDEX
        (logins / "config.json").write_text(json.dumps({"credHelpers": {registry.host: "test"}}))
        assert said(f"{registry.host}/team/stages:1")[0].startswith("ok   ")
        (logins / "config.json").write_text(json.dumps({"credHelpers": {registry.host: "absent"}}))
        (lost,) = said(f"{registry.host}/team/stages:1")
    assert lost.startswith("warn ") and "docker-credential-absent" in lost


def test_no_password_goes_to_a_host_in_clear_text(logins):
    """The registry names the token service, and may name any."""
    with FakeRegistry("bearer") as registry:
        registry.realm = "http://token.example.org/token"
        store(logins, registry.host, auth=basic("robot", "s3cret"))
        (line,) = said(f"{registry.host}/team/stages:1")
    assert "refuses the login of this machine (401)" in line and len(registry.requests) == 1


def test_a_registry_that_cannot_be_reached_or_does_not_answer():
    with silent() as port:
        first, second = said(f"localhost:{port}/a:1", "127.0.0.1:1/a:1")
    assert first.startswith(f"warn image in registry: localhost:{port}/a:1 not checked: ReadTimeout")
    assert second.startswith("warn image in registry: 127.0.0.1:1/a:1 not checked: ConnectError: ")
    assert second.endswith("`docker manifest inspect 127.0.0.1:1/a:1`")
    assert said("https://a/b")[0].startswith("warn image in registry: https://a/b not checked: ")


def test_many_images_are_checked_in_part():
    with FakeRegistry() as registry:
        lines = said(*(f"{registry.host}/a:{i}" for i in range(12)))
    assert len(lines) == 11 and "not checked: 2 images are too many for a check" in lines[-1]


def test_the_doctor_asks_for_the_images_of_stages(project, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "check_registry", check_registry)
    with FakeRegistry() as registry, Gate() as server:
        registry.images["stages:1"] = INDEX
        volumes = Placement(volumes=(Volume("data", str(tmp_path / "remote")),))
        settings = ClusterSettings(
            f"http://localhost:{server.port}", image=f"{registry.host}/stages:1", ask_kubernetes=False
        )
        settings = dataclasses.replace(settings, defaults=volumes)
        found = {check.name: check.state for check in check_cluster(settings, project.repo)}
    assert found["image in registry"] == "ok"
