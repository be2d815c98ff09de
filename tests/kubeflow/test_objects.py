"""What waits beside the objects of a remote for the stages of a run."""

from __future__ import annotations

import time
import uuid

import pytest

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.transfer.move import move
from dvkf_prefect.formats import manifest_rows
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.kubeflow.exchange import objects
from dvkf_prefect.kubeflow.exchange.objects import renew, send, uncached
from dvkf_prefect.kubeflow.pod.pod import run_in_pod


@pytest.fixture(params=["folder", "s3"])
def remote(request, tmp_path) -> Remote:
    if request.param == "folder":
        return Remote("store", open_storage(str(tmp_path / "store"), {}, name="store"))
    s3 = request.getfixturevalue("s3")
    bucket = s3.make_bucket(f"objects-{uuid.uuid4().hex[:12]}")
    return Remote("store", open_storage(f"{bucket}/here", s3.options(), name="store"))


def test_what_a_run_needs_is_written_again_once_it_is_old(remote, monkeypatch, tmp_path) -> None:
    """A collection goes by age, and what is old may be needed by a run that begins now."""
    cache = Cache(tmp_path / "cache")
    files = [cache.add_bytes(text) for text in (b"one", b"two", b"three", b"four")]
    tree = cache.add_bytes(Tree.from_pairs([("x", files[0]), ("y", files[1])]).to_bytes(), tree=True)
    part = cache.add_bytes(Tree.from_pairs([("z", files[2])]).to_bytes(), tree=True)
    beside = uncached(remote)
    send([tree, files[3]], cache, beside)
    send([files[2]], cache, remote)
    move("push", [part], MD5, cache, beside)  # what it names is an object of the remote itself

    def times() -> dict[str, float]:
        return {key: changed or 0 for key, _, changed in beside.storage.dated()}

    before = times()
    assert len(before) == 5 and all(key.startswith("files/md5/") for key in before)
    time.sleep(1.1)  # an object store tells whole seconds
    renew(remote, [tree, part, "0" * 32])
    assert times() == before
    monkeypatch.setattr(objects, "RENEW_AFTER", 0.5)
    renew(remote, [tree, part, "0" * 32])
    after = times()
    renewed = {key for key in before if after[key] > before[key]}
    assert after.keys() == before.keys() and len(renewed) == 4
    assert not any(key.endswith(files[3][2:]) for key in renewed)


def test_a_pod_reads_manifests_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit whose commands run there is trusted, so the limit for manifests of others does not hold."""
    monkeypatch.setenv(manifest_rows.VARIABLE, "1")
    monkeypatch.delenv(manifest_rows.VARIABLE)
    with pytest.raises(ValueError, match="Expecting property name"):
        run_in_pod("{}", "{", [], "outputs", "result")
    assert manifest_rows.limit() > 1 << 38
