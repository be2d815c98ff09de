"""The contract of remotes on S3 in a container, by each library that speaks it."""

from __future__ import annotations

import contextlib
import uuid
from typing import Literal

import pytest
from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from remote_contract import StorageContract
from servers import S3Server

from dvkf_prefect.data.remotes import Storage, open_storage

# tests/data/remotes holds the contract on the same server as a plain process.
pytestmark = [pytest.mark.docker, pytest.mark.long]


@pytest.fixture(params=["obstore", "fsspec"])
def storage(request: pytest.FixtureRequest, server: S3Server) -> Storage:
    backend: Literal["obstore", "fsspec"] = request.param
    with contextlib.suppress(ClientError):  # made by the test before
        server.make_bucket("contract")
    return open_storage(f"s3://contract/{uuid.uuid4().hex}/a prefix", server.options(), backend=backend)


class TestContract(StorageContract):
    """Through the published port of a bridge network."""
