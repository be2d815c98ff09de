"""A bucket that the tests of remotes share, and a web server that keeps blobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import S3Server, WebServer, web_server


@pytest.fixture(scope="session")
def bucket(s3: S3Server) -> str:
    return s3.make_bucket("contract")


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server
