"""The mirror of git's versions in a registry: exact, repeatable, and whole after an interruption anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dvkf_prefect.cli import main
from dvkf_prefect.errors import ConfigError, ModelError, RegistryError
from dvkf_prefect.kubeflow.registry.client import RegistryAnswerError, RegistryApi
from dvkf_prefect.kubeflow.registry.mirror import as_metadata
from dvkf_prefect.models.facts import read_facts

from .conftest import World
from .fake import FakeRegistry


def post(world: World, kind: str, **body: Any) -> dict[str, Any]:
    status, made = world.fake.answer("POST", f"{world.fake.base}/{kind}", {}, json.dumps(body).encode())
    assert status == 201
    return made


def patch(world: World, name: str, **body: Any) -> None:
    record = world.record(name)
    path = f"{world.fake.base}/{record['_kind']}/{record['id']}"
    assert world.fake.answer("PATCH", path, {}, json.dumps(body).encode())[0] == 200


def text(value: str) -> dict[str, str]:
    return {"metadataType": "MetadataStringValue", "string_value": value}


def test_versions_stages_and_states(world: World) -> None:
    first, second = world.release("one", message="The first"), world.release("two")
    world.registry.assign("iris", first, "prod")
    report = world.mirror()
    assert [(r.name, r.id, r.action) for r in report.records] == [
        ("iris", "1", "created"),
        ("iris@v0.0.1", "2", "created"),
        ("iris@v0.0.2", "3", "created"),
    ]
    assert "3 created, 0 updated, 0 unchanged" in str(report)
    assert world.record("iris")["externalId"] == "dvkf:model:iris"
    assert world.properties("iris")["dvkf.stage.prod"] == "v0.0.1"
    shown = world.registry.show("iris", first)
    record, values = world.record(first), world.properties(first)
    assert (record["externalId"], record["author"], record["description"]) == (
        "dvkf:version:iris@v0.0.1",
        "Test",
        "The first",
    )
    assert (values["dvkf.commit"], values["dvkf.digest"], values["dvkf.stages"]) == (
        shown.rev,
        shown.digest,
        "prod",
    )
    artifact = world.fake.artifacts["1"]
    assert artifact["uri"] == f"dvkf://repo@{shown.rev}/model.bin"
    assert (artifact["name"], artifact["state"], artifact["externalId"]) == (
        "iris",
        "LIVE",
        "dvkf:artifact:iris@v0.0.1",
    )
    assert read_facts(world.registry.git, "iris@v0.0.1") == (
        {"kind": "registry", "where": "http://registry", "model": "1", "version": "2", "artifact": "1"},
    )

    # Nothing is written a second time, and what git changes is changed there.
    before, writes = world.state(), len(world.fake.writes)
    assert {r.action for r in world.mirror().records} == {"unchanged"}
    assert (world.state(), len(world.fake.writes)) == (before, writes)
    world.registry.assign("iris", second, "prod")
    world.registry.deregister("iris", first)
    world.mirror("iris")
    assert world.properties("iris")["dvkf.stage.prod"] == second
    assert (world.record(first)["state"], world.record(second)["state"]) == ("ARCHIVED", "LIVE")
    assert world.fake.artifacts["1"]["state"] == "MARKED_FOR_DELETION"
    world.registry.unassign("iris", second, "prod")
    world.registry.deprecate("iris")
    world.mirror()
    assert world.record("iris")["state"] == "ARCHIVED" and "dvkf.stage.prod" not in world.properties("iris")


def test_the_artifact_names_the_published_place(world: World) -> None:
    version = world.registry.show("iris", world.release("one"))
    world.mirror()
    world.registry.note(version, "published", {"where": "s3://bucket/iris/v0.0.1/"})
    world.mirror()
    assert world.fake.artifacts["1"]["uri"] == "s3://bucket/iris/v0.0.1/"


def test_properties_of_others_are_kept(world: World) -> None:
    first = world.release("one")
    world.mirror()
    for name in ("iris", first):
        kept = {**world.record(name)["customProperties"], "team": text("a"), "dvkf.old": text("x")}
        patch(world, name, customProperties=kept)
    world.registry.assign("iris", first, "prod")
    world.mirror()
    for name in ("iris", first):
        assert world.properties(name)["team"] == "a" and "dvkf.old" not in world.properties(name)


def interrupt_at(wanted: int, when: str) -> Callable[[int, str], None]:
    """Cut the connection once, at one request: before the server has it, or before its answer arrives."""
    left = [wanted]

    def interrupt(number: int, moment: str) -> None:
        if left == [number] and moment == when:
            left.clear()
            raise httpx.ReadError("cut") if when == "after" else httpx.ConnectError("cut")

    return interrupt


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interruption_at_any_call_is_repaired(world: World, when: str) -> None:
    version = world.release("one")
    world.registry.assign("iris", version, "prod")
    world.mirror()
    whole, calls = world.state(), len(world.fake.calls)
    cut = 0
    for number in range(calls):
        world.fake = FakeRegistry()
        world.fake.interrupt = interrupt_at(number, when)
        try:
            world.mirror()
        except RegistryError:
            cut += 1
            world.mirror()
        assert world.state() == whole, number
    # Two creates whose answers were lost are found again in the same run.
    assert cut == calls - (2 if when == "after" else 0)


def test_what_git_and_the_registry_had_before(world: World) -> None:
    """A model made by hand is taken by its exact name, beside names that its pattern matches."""
    post(world, "registered_models", name="ir_s")
    post(world, "registered_models", name="iris")
    world.release("one")
    assert [r.action for r in world.mirror().records] == ["updated", "created"]
    assert world.record("iris")["externalId"] == "dvkf:model:iris"
    (world.root / "dvc.yaml").write_text("artifacts:\n  a_c: {path: model.bin}\n")
    post(world, "registered_models", name="abc")
    world.release("two", "a_c")
    assert [(r.name, r.action) for r in world.mirror("a_c").records] == [
        ("a_c", "created"),
        ("a_c@v0.0.1", "created"),
    ]


def test_a_thousand_models_are_paged(world: World) -> None:
    for number in range(250):
        post(world, "registered_models", name=f"m{number}")
    post(world, "registered_models", name="iris")
    world.release("one")
    assert world.mirror().records[0].action == "updated"
    assert (
        sum(call == "GET /registered_models" for call in world.fake.calls) == 4
    )  # the probe and three pages


def test_what_is_refused_before_anything_is_written(world: World) -> None:
    world.release("one")
    cases: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
        (
            lambda: post(world, "registered_models", name="Iris"),
            {},
            "has 'Iris', which the registry takes for 'iris'",
        ),
        (
            lambda: post(world, "registered_models", name="iris", externalId="other:iris"),
            {},
            "belongs to 'other:iris'. Use a prefix",
        ),
        (
            lambda: post(world, "registered_models", name="renamed", externalId="dvkf:model:iris"),
            {},
            "is called 'renamed', not 'iris'",
        ),
        (lambda: None, {"prefix": "p" * 250}, "too long for a model registry: 254 characters of at most 244"),
    ]
    for prepare, options, said in cases:
        world.fake = FakeRegistry()
        prepare()
        with pytest.raises(ModelError, match=said.replace(".", r"\.")):
            world.mirror(**options)
        assert world.fake.writes == []
    world.fake = FakeRegistry()
    world.release("two", version="v1.0.0-rc")
    world.release("three", version="v1.0.0-RC")
    with pytest.raises(ModelError, match="differ in case only"):
        world.mirror()
    assert world.fake.calls == []


def test_repositories_are_kept_apart(world: World, tmp_path: Path) -> None:
    world.release("one")
    world.git("remote", "add", "origin", "https://user:secret@git.example.org/team/one.git")
    world.mirror()
    assert world.properties("iris")["dvkf.repository"] == "git.example.org/team/one"
    other = World(tmp_path / "other")
    other.fake = world.fake
    other.release("else")
    other.git("remote", "add", "origin", "git@git.example.org:team/two.git")
    with pytest.raises(
        ModelError, match=r"mirrors another repository, git.example.org/team/one\. Use a prefix"
    ):
        other.mirror()
    assert other.mirror(prefix="two/").records[0].action == "created"
    assert other.record("two/iris")["externalId"] == "dvkf:model:two/iris"
    # The same repository by ssh.
    world.git("remote", "set-url", "origin", "ssh://git@git.example.org/team/one")
    assert {r.action for r in world.mirror().records} == {"unchanged"}


def test_two_ways(world: World) -> None:
    first, second = world.release("one"), world.release("two")
    world.registry.assign("iris", first, "prod")
    world.mirror(both=True)

    def stage(**stages: str) -> None:
        kept = {k: v for k, v in world.record("iris")["customProperties"].items() if "stage" not in k}
        patch(world, "iris", customProperties=kept | {f"dvkf.stage.{k}": text(v) for k, v in stages.items()})

    stage(prod=second, dev=first)
    report = world.mirror(both=True)
    assert report.pulled == (
        "iris #dev is v0.0.1 in the registry; changed in git",
        "iris #prod is v0.0.2 in the registry; changed in git",
    )
    assert world.registry.show("iris", "#prod").version == second
    assert world.registry.history("iris")[0].message == "Changed in the model registry"
    assert world.mirror(both=True).pulled == ()

    # One way, the registry is put right.
    stage(prod=first)
    assert world.mirror().pulled == ()
    assert world.properties("iris")["dvkf.stage.prod"] == second
    assert world.properties("iris")["dvkf.stage.dev"] == first

    # Changed on both sides, git stands; versions that git does not have are not assigned.
    stage(prod=second, dev="v9.0.0", test="v9.0.0")
    world.registry.unassign("iris", first, "dev")
    report = world.mirror(both=True)
    assert len(report.conflicts) == 2 and "iris #dev is v9.0.0 in the registry; git's empty stands" in str(
        report
    )
    assert "dvkf.stage.test" not in world.properties("iris")

    # A stage emptied and a version archived there.
    stage()
    patch(world, first, state="ARCHIVED")
    report = world.mirror(both=True)
    assert len(report.pulled) == 2
    assert world.registry.show("iris").stages == ()
    assert [v.version for v in world.registry.list("iris")] == [second]
    # Git's withdrawal is not undone from there.
    patch(world, first, state="LIVE")
    assert "git's ARCHIVED stands" in str(world.mirror(both=True))
    assert world.record(first)["state"] == "ARCHIVED"


def test_a_version_of_another_model_is_not_taken(world: World) -> None:
    world.release("one")
    post(
        world, "model_versions", name="v0.0.1", registeredModelId="77", externalId="dvkf:version:iris@v0.0.1"
    )
    with pytest.raises(ModelError, match="is version 1 of another model"):
        world.mirror()


def test_the_command(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By --host or a variable, with the login of Kubeflow's variables; a mounted token is not sent."""
    world.release("one")
    seen: list[str] = []
    real = httpx.Client

    def client(**options: Any) -> httpx.Client:
        def serve(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers.get("authorization", ""))
            return world.fake._serve(request)

        return real(**{**options, "transport": httpx.MockTransport(serve)})

    monkeypatch.setattr(httpx, "Client", client)
    monkeypatch.chdir(world.root)
    monkeypatch.delenv("DVKF_MODEL_REGISTRY", raising=False)
    (world.root / "token").write_text("mounted")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(world.root / "token"))
    assert main(["model", "mirror"]) == 251
    assert "set DVKF_MODEL_REGISTRY" in capsys.readouterr().err
    assert main(["model", "mirror", "iris", "--host", "http://registry", "--prefix", "a/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"][0] == {
        "name": "iris",
        "id": "1",
        "action": "created",
    }
    assert set(seen) == {""} and world.record("a/iris")
    monkeypatch.setenv("DVKF_MODEL_REGISTRY", "http://registry")
    monkeypatch.setenv("DVKF_KUBEFLOW_TOKEN", "abc")
    assert main(["model", "mirror", "--api", "v1alpha3", "--two-ways"]) == 0
    assert "2 created, 0 updated, 0 unchanged" in capsys.readouterr().out
    assert seen[-1] == "Bearer abc"
    assert main(["model", "mirror", "--api", "v1"]) == 255


@pytest.mark.parametrize("base", ["v1", "v1alpha3"])
def test_the_base_path_is_found(base: str) -> None:
    fake = FakeRegistry(base)
    api = RegistryApi("http://registry/", transport=fake.transport())
    assert list(api.list("registered_models")) == []
    assert (
        list(RegistryApi("http://registry", base=base, transport=fake.transport()).list("model_versions"))
        == []
    )  # type: ignore[arg-type]
    other = "v1" if base == "v1alpha3" else "v1alpha3"
    with pytest.raises(RegistryError, match="no model registry answers at http://registry below"):
        list(RegistryApi("http://registry", base=other, transport=fake.transport()).list("registered_models"))  # type: ignore[arg-type]


def test_answers_that_are_not_the_registrys() -> None:
    def answers(*responses: httpx.Response) -> RegistryApi:
        left = list(responses)
        transport = httpx.MockTransport(lambda request: left.pop(0) if len(left) > 1 else left[0])
        return RegistryApi("http://registry", transport=transport, patience=1)

    login = httpx.Response(200, text="<html>")
    with pytest.raises(RegistryAnswerError, match="did not send JSON"):
        list(answers(login).list("registered_models"))
    for status in (302, 401, 403):
        with pytest.raises(RegistryAnswerError, match="Check the credentials"):
            list(answers(httpx.Response(status, text="no")).list("registered_models"))
    empty = {"items": [], "nextPageToken": "", "pageSize": 1, "size": 0}
    assert list(answers(httpx.Response(503), httpx.Response(200, json=empty)).list("registered_models")) == []
    for wrong in ("registry:8080", "ftp://registry", "http://user:pw@registry"):
        with pytest.raises(ConfigError):
            RegistryApi(wrong)


@pytest.mark.parametrize(
    ("value", "kind", "stored"),
    [
        (True, "Bool", True),
        (2**31 - 1, "Int", str(2**31 - 1)),
        (2**31, "String", str(2**31)),
        (0.5, "Double", 0.5),
        (float("nan"), "String", "NaN"),
        ([1, 2], "String", "[1, 2]"),
        ("a\0b", "String", "ab"),
        ("é" * 2000, "String", "é" * 1248 + "…"),
    ],
)
def test_values_of_properties(value: Any, kind: str, stored: Any) -> None:
    made = as_metadata(value)
    assert made.pop("metadataType") == f"Metadata{kind}Value"
    assert list(made.values()) == [stored]
