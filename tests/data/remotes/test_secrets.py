"""No secret is shown."""

from __future__ import annotations

import traceback

import pytest

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.errors import RemoteUnreachableError
from dvkf_prefect.urls import public_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ssh://me:pass@host:22/d", "ssh://me@host:22/d"),
        ("https://host/d?sig=abc", "https://host/d"),
        ("s3://b/p", "s3://b/p"),
        ("/a/folder", "/a/folder"),
    ],
)
def test_public_url(url: str, shown: str) -> None:
    assert public_url(url) == shown


def test_secrets_are_cut_from_what_a_library_reports() -> None:
    place = Place("store", "azure://c", ("s3cr/t",))
    for text in (
        "GET https://a.blob/c/k?sv=1&sig=Zm9v%3D&se=2 failed",
        "the key s3cr/t, or s3cr%2Ft in a url",
        "<Error><StringToSign>GET\nx-amz-security-token:tok</StringToSign></Error>",
        "Authorization: Bearer abcdefghijklmnop",
    ):
        cleaned = place.clean(text)
        assert not any(word in cleaned for word in ("Zm9v", "s3cr", "tok<", "abcdefghij"))
    harmless = OSError("nothing in it")
    assert place.cause(harmless) is harmless
    assert "s3cr/t" not in str(place.cause(OSError("s3cr/t")))


def test_a_password_in_a_url_is_never_shown() -> None:
    storage = open_storage("http://me:hunter22@127.0.0.1:1/data")
    with pytest.raises(RemoteUnreachableError) as caught:
        storage.read("a")
    told = "".join(traceback.format_exception(caught.value)) + repr(storage) + repr(caught.value)
    assert "hunter22" not in told
