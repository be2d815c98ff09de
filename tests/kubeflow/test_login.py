"""Credentials of a request: each way, its header, and how long it holds."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timezone

import pytest

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.cluster.login import Login


@pytest.fixture(autouse=True)
def outside_of_a_pod(monkeypatch, tmp_path):
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "mounted"))


def jwt(**claims: object) -> str:
    parts = [{"alg": "RS256"}, claims]
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts)
        + ".c2ln"
    )


@pytest.mark.parametrize(
    ("login", "way", "headers"),
    [
        (Login(), "none", {}),
        (Login(token="abc\n"), "bearer token", {"Authorization": "Bearer abc"}),
        (
            Login(username="ada", password="pä:ss"),
            "name and password",
            {"Authorization": "Basic YWRhOnDDpDpzcw=="},
        ),
        (
            Login(cookie="MTY5|x=="),
            "cookie",
            {"Cookie": "oauth2_proxy_kubeflow=MTY5|x==; authservice_session=MTY5|x=="},
        ),
        (
            Login(cookie="djI=|17001|sig="),
            "cookie",
            {"Cookie": "oauth2_proxy_kubeflow=djI=|17001|sig=; authservice_session=djI=|17001|sig="},
        ),
        (Login(cookie="a=b", cookie_name="session"), "cookie", {"Cookie": "session=a=b"}),
        (
            Login(cookie="Cookie: oauth2_proxy_kubeflow_0=dj=I; oauth2_proxy_kubeflow_1=x|1|y=; "),
            "cookie",
            {"Cookie": "oauth2_proxy_kubeflow_0=dj=I; oauth2_proxy_kubeflow_1=x|1|y="},
        ),
        (Login(cookie="authservice_session=MTY5"), "cookie", {"Cookie": "authservice_session=MTY5"}),
    ],
)
def test_each_way_and_its_header(login, way, headers):
    assert (login.way, login.headers()) == (way, headers)


def test_a_token_file_is_read_again_for_each_request(tmp_path):
    file = tmp_path / "token"
    file.write_text("one\n")
    login = Login(token_file=str(file))
    assert login.headers() == {"Authorization": "Bearer one"}
    file.write_text("two\n")
    assert login.headers() == {"Authorization": "Bearer two"}
    assert (login.way, login.place) == ("token file", str(file))
    file.unlink()
    with pytest.raises(ConfigError, match=r"the token file .*token cannot be read: No such file"):
        login.headers()


def test_the_mounted_token_is_used_only_without_others(tmp_path):
    (tmp_path / "mounted").write_text("of the pod")
    assert (Login().way, Login().place) == ("in-cluster token", str(tmp_path / "mounted"))
    assert Login().headers() == {"Authorization": "Bearer of the pod"}
    assert Login(cookie="a=b").headers() == {"Cookie": "a=b"}
    assert Login(username="ada", password="x").headers()["Authorization"].startswith("Basic ")


def test_the_end_of_a_token():
    assert Login(token=jwt(exp=1_900_000_000)).holds_until() == datetime(
        2030, 3, 17, 17, 46, 40, tzinfo=timezone.utc
    )
    for token in ("opaque", jwt(), jwt(exp="soon"), jwt(exp=1e300), "a.b.c", "é.é.é"):
        assert Login(token=token).holds_until() is None


@pytest.mark.parametrize(
    ("cookie", "missing"),
    [
        ("oauth2_proxy_kubeflow_0=a; oauth2_proxy_kubeflow_1=b", ""),
        ("oauth2_proxy_kubeflow_0=a", "oauth2_proxy_kubeflow_1"),
        ("oauth2_proxy_kubeflow_1=b", "oauth2_proxy_kubeflow_0"),
        ("oauth2_proxy_kubeflow_0=a; oauth2_proxy_kubeflow_2=c", "oauth2_proxy_kubeflow_1"),
        ("oauth2_proxy_kubeflow=a; other_1=b", ""),
        ("plain", ""),
    ],
)
def test_a_part_of_a_split_cookie_that_is_missing(cookie, missing):
    assert Login(cookie=cookie).missing_part() == missing


@pytest.mark.parametrize("token", ["two\nlines", "schlüssel"])
def test_what_no_header_can_hold_is_refused_without_repeating_it(token):
    with pytest.raises(ConfigError, match="line break or a character outside ASCII") as caught:
        Login(token=token).headers()
    assert token not in str(caught.value)
    assert token not in repr(Login(token=token, password=token, cookie=token))
