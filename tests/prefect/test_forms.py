"""Blocks saved from Prefect's form with any subset of fields: each loads, and an empty field has its default."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from prefect.utilities.schema_tools.validation import preprocess_schema, validate
from pydantic import SecretStr, ValidationError

from dvkf_prefect import flows
from dvkf_prefect.blocks import (
    DvcRemote,
    DvcRepository,
    KServeModelServer,
    KubeflowCredentials,
    KubeflowModelRegistry,
    KubeflowPipelines,
    ModelServer,
)
from dvkf_prefect.blocks._common import documentation_url, logo_url

# A picked block; the form sends its document's ID instead.
_PICKED = "picked"
# Input of each field. The form always sends switches, and `{}` for a block that was not picked.
_FILLED: dict[type[Block], dict[str, Any]] = {
    DvcRemote: {
        "url": "s3://bucket/data",
        "remote_name": "store",
        "endpointurl": "http://127.0.0.1:8333",
        "region": "eu-west-1",
        "profile": "work",
        "credentialpath": "/etc/aws",
        "configpath": "/etc/aws.ini",
        "access_key_id": "key-1",
        "secret_access_key": "secret-2",
        "session_token": "token-3",
        "allow_anonymous_login": True,
        "use_ssl": False,
        "ssl_verify": "false",
        "read_timeout": 30,
        "connect_timeout": 5,
        "sse": "AES256",
        "sse_kms_key_id": "key",
        "acl": "private",
        "jobs": 4,
        "options": {"grant_read": "me"},
    },
    DvcRepository: {
        "path": "https://git.example.org/team/digits.git",
        "rev": "main",
        "folder": "sub",
        "label": "digits",
        "remote": _PICKED,
        "models_url": "s3://bucket/models",
    },
    KubeflowCredentials: {
        "host": "https://kubeflow.example.org/pipeline",
        "ui_host": "https://ui.example.org/pipeline",
        "token": "token-1",
        "token_file": "/var/token",
        "username": "user",
        "password": "secret-2",
        "cookie": "cookie-3",
        "cookie_name": "session",
        "ca_file": "/etc/ca.pem",
        "verify_ssl": False,
        "connect_timeout": 5,
        "read_timeout": 30,
    },
    KubeflowModelRegistry: {
        "host": "http://registry:8080",
        "credentials": _PICKED,
        "api": "v1",
        "prefix": "team/",
        "two_ways": True,
        "timeout": 10,
    },
    KubeflowPipelines: {
        "backend": "kubeflow",
        "hermetic": True,
        "jobs": 3,
        "credentials": _PICKED,
        "namespace": "team",
        "experiment": "digits",
        "image": "example.org/image:1",
        "service_account": "runner",
        "pipeline_root": "s3://bucket/kfp",
        "defaults": {"cpu": "1"},
        "remote_secret": "remote",
        "remote_secret_keys": {"KEY": "access_key_id"},
        "remote_url": "s3://bucket/data",
        "remote_options": {"endpointurl": "http://store:8333"},
        "outage": 60,
        "run_timeout": 3600,
        "start_timeout": 60,
        "schedule_timeout": 600,
        "ask_kubernetes": False,
        "fetch": False,
        "allow_dirty": True,
        "send_as": "version",
        "failed_run": "retry",
        "workspace": {"size": "10Gi", "access_mode": "ReadWriteMany"},
    },
    KServeModelServer: {
        "namespace": "ml",
        "config_file": "/etc/kubeconfig",
        "context": "cluster",
        "url": "https://gateway.example.org",
        "mode": "Standard",
        "split": "graph",
        "format": "sklearn",
        "runtime": "kserve-mlserver",
        "protocol": "v2",
        "runtime_version": "1.7.1",
        "image": "example.org/server:1",
        "port": 9000,
        "env": {"A": "1"},
        "args": ["--x"],
        "service_account": "lake",
        "cpu": "2",
        "memory": "4Gi",
        "gpu": 1,
        "gpu_resource": "amd.com/gpu",
        "min_replicas": 1,
        "max_replicas": 3,
        "scale_metric": "cpu",
        "scale_target": 80,
        "concurrency": 4,
        "request_timeout": 30,
        "start_timeout": 900,
        "recreate": True,
        "node_selector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "take_over": True,
        "deploy_timeout": 600,
        "timeout": 30,
    },
    ModelServer: {
        "server": "team",
        "workers": 2,
        "grpc_port": 8101,
        "state_dir": "/srv/models",
        "port": 8100,
        "detached": False,
        "timeout": 30,
        "batch_size": 8,
        "batch_wait": 0.01,
    },
}
_NESTED: dict[str, type[Block]] = {"remote": DvcRemote, "credentials": KubeflowCredentials}


def _required(block: type[Block]) -> set[str]:
    return {name for name, field in block.model_fields.items() if field.is_required()}


def forms(block: type[Block]) -> st.SearchStrategy[dict[str, Any]]:
    """Data of the form: a field is left alone, cleared, or filled; a required one is filled."""
    filled = _FILLED[block]
    needed = _required(block)
    empty: dict[str, list[Any]] = {
        name: [{}] if name in _NESTED else [None, {}] if isinstance(value, dict) else [None, ""]
        for name, value in filled.items()
    }
    return st.fixed_dictionaries(
        {name: st.just(filled[name]) for name in needed},
        optional={
            name: st.sampled_from([value, *empty[name]])
            for name, value in filled.items()
            if name not in needed
        },
    )


def _refusal(form: dict[str, Any]) -> str:
    """Message for the two combinations of fields that have no meaning."""
    if form.get("rev") and not form.get("path"):
        return "needs a git URL"
    if form.get("backend") == "kubeflow" and not form.get("credentials"):
        return "Set `credentials`"
    return ""


def _plain(value: Any) -> Any:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def _check(loaded: Block, form: dict[str, Any]) -> None:
    default = type(loaded)(**{name: _FILLED[type(loaded)][name] for name in _required(type(loaded))})
    for name in type(loaded).model_fields:
        value = _plain(getattr(loaded, name))
        if name in _NESTED and form.get(name):
            assert isinstance(value, _NESTED[name])
        elif form.get(name) in (None, "", {}):
            assert value == _plain(getattr(default, name)), name
        else:
            assert value == form[name], name


@pytest.mark.parametrize("block", _FILLED)
def test_each_field_has_an_example(block: type[Block]) -> None:
    assert set(_FILLED[block]) == set(block.model_fields)


@pytest.mark.parametrize("block", _FILLED)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_subset_of_fields_is_valid(block: type[Block], data: st.DataObject) -> None:
    form = data.draw(forms(block))
    values = {
        name: {**_FILLED[_NESTED[name]], "block_type_slug": _NESTED[name].get_block_type_slug()}
        if value == _PICKED
        else value
        for name, value in form.items()
    }
    if refusal := _refusal(form):
        with pytest.raises(ValidationError, match=refusal):
            block.model_validate(values)
    else:
        _check(block.model_validate(values), form)


@pytest.mark.parametrize("block", _FILLED)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_subset_that_the_server_keeps_is_loaded(
    block: type[Block], prefect_server: None, data: st.DataObject
) -> None:
    form = data.draw(forms(block).filter(lambda form: not _refusal(form)))
    block.register_type_and_schema()
    picked = {}
    for name in {name for name, value in form.items() if value == _PICKED}:
        nested = _NESTED[name]
        made = nested(**{field: _FILLED[nested][field] for field in _required(nested)})
        picked[name] = {"$ref": {"block_document_id": str(made.save(f"picked-{name}", overwrite=True))}}
    name = f"form-{uuid4()}"
    with get_client(sync_client=True) as client:
        client.create_block_document(
            BlockDocumentCreate(
                name=name,
                data={**form, **picked},
                block_schema_id=block._block_schema_id,
                block_type_id=block._block_type_id,
            ),
            include_secrets=True,
        )
    loaded = block.load(name)
    assert isinstance(loaded, block)
    _check(loaded, form)


def test_an_empty_required_field_is_named() -> None:
    with pytest.raises(ValidationError, match="host"):
        KubeflowCredentials.model_validate({"host": "", "token": ""})
    with pytest.raises(ValidationError, match=r"remote\.url"):
        DvcRepository.model_validate({"remote": {"url": None, "region": "eu-west-1"}})


def test_spaces_around_a_pasted_text_are_dropped() -> None:
    """A url with the end of its line was another url, and a field of spaces was no empty one."""
    with pytest.raises(ValidationError, match="url"):
        DvcRemote.model_validate({"url": " "})
    remote = DvcRemote.model_validate(
        {"url": " s3://bucket/data\n", "endpointurl": " ", "secret_access_key": "secret-2\n", "jobs": " "}
    )
    assert (remote.url, remote.endpointurl, remote.jobs) == ("s3://bucket/data", None, None)
    assert _plain(remote.secret_access_key) == "secret-2"
    repository = DvcRepository.model_validate({"path": "/srv/digits\n", "rev": " ", "remote": {"url": " "}})
    assert (repository.path, repository.rev, repository.remote) == ("/srv/digits", None, None)
    credentials = KubeflowCredentials.model_validate({"host": "http://kf ", "token": " t", "password": "pw "})
    assert (credentials.host, _plain(credentials.token), _plain(credentials.password)) == (
        "http://kf",
        "t",
        "pw ",
    )


def test_an_empty_secret_is_none() -> None:
    assert KubeflowCredentials(host="http://kf", token=SecretStr("")).token == SecretStr("")
    assert KubeflowCredentials.model_validate({"host": "http://kf", "token": ""}).token is None


# What the first of Prefect's pages keeps of a schema that it sends back to be validated with a form's values.
_KEPT = {
    "definitions",
    "position",
    "block_type_slug",
    "$ref",
    "anyOf",
    "allOf",
    "example",
    "default",
    "const",
}
_KEPT |= {"description", "enum", "format", "items", "prefixItems", "properties", "required", "title", "type"}


@pytest.mark.parametrize("keep", [None, _KEPT], ids=["whole", "of the first page"])
@pytest.mark.parametrize(
    "name", ["ingest", "repro", "train", "serve", "rollback", "promote", "maintain", "watch"]
)
def test_a_run_takes_a_picked_block_or_its_name(name: str, keep: set[str] | None) -> None:
    """Prefect took a picked block for a reference and for values, and refused both."""
    sent = getattr(flows, name).parameters.model_dump()
    if keep is not None:
        sent["definitions"] = {
            title: {key: value for key, value in definition.items() if key in keep}
            for title, definition in sent["definitions"].items()
        }
    schema = preprocess_schema(sent)
    required = {"model": "m"} if "model" in sent.get("required", ()) else {}
    others = {"server", "pipelines", "registry"} & sent["properties"].keys()
    several = {"servers"} & sent["properties"].keys()
    for value in ("local", {"$ref": {"block_document_id": str(uuid4())}}):
        given = {"repository": value, **dict.fromkeys(others, value), **required}
        given |= {each: [value] for each in several}
        assert not validate(given, schema, raise_on_error=False, preprocess=False)
    assert validate({"repository": 1, **required}, schema, raise_on_error=False, preprocess=False)


@pytest.mark.parametrize("block", _FILLED)
def test_optional_fields_are_one_field(block: type[Block]) -> None:
    schema = block.model_json_schema()
    assert not [
        name for name, field in schema["properties"].items() if {"type": "null"} in field.get("anyOf", ())
    ]


def test_the_basics_of_s3_come_first() -> None:
    names = list(DvcRemote.model_json_schema()["properties"])
    assert names[:5] == ["url", "endpointurl", "region", "access_key_id", "secret_access_key"]


def test_links_and_logos_are_those_of_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logo_url() is None
    assert str(documentation_url("DvcRemote")).startswith("https://docs.prefect.io/")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_DVKF_DOCS_URL", "http://docs.example.org/dvkf/")
    assert str(logo_url()) == "http://docs.example.org/dvkf/logo.svg"
    assert str(documentation_url("DvcRemote")) == (
        "http://docs.example.org/dvkf/reference/blocks/#dvkf_prefect.DvcRemote"
    )
    assert (Path(__file__).parents[2] / "docs/logo.svg").is_file()
