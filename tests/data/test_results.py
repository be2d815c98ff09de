"""Results on a remote: by content, safe with concurrent writers, locked by leases, and removed once they are old."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from repos import make_repo
from servers import S3Server

from dvkf_prefect.cli import main
from dvkf_prefect.data.remotes import Storage, open_storage
from dvkf_prefect.data.results import expiry, locks, store
from dvkf_prefect.data.results.expiry import expire_results
from dvkf_prefect.data.results.locks import ResultLocks
from dvkf_prefect.data.results.store import KEYS, OBJECTS, ResultStorage, place_of
from dvkf_prefect.errors import ConfigError, CorruptObjectError, MissingObjectError
from dvkf_prefect.processes.holder import Holder

DAY = 86_400.0


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "store"))
    server: S3Server = request.getfixturevalue("s3")
    return open_storage(server.make_bucket(f"results-{uuid.uuid4()}") + "/data", server.options())


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


def record(value: str, key: str = "key", expiration: str | None = None) -> bytes:
    """A result as Prefect writes it."""
    metadata = {"storage_key": key, "expiration": expiration, "serializer": {"type": "json"}}
    return b'{"metadata":' + json.dumps(metadata).encode() + b',"result":' + json.dumps(value).encode() + b"}"


def objects(storage: Storage) -> list[str]:
    return sorted(storage.keys(OBJECTS))


CONTENTS = [
    b"",
    b"\xff\x00 not text",
    record("small ü ✓"),
    record("x" * 100_000, key='odd ","result":" key ü'),
    b'{"metadata":{"broken"',
    b'{"metadata":[],"result":"' + b"y" * 5000 + b'"}',
    b'{"metadata":{"k":"\xff"},"result":"' + b"y" * 5000 + b'"}',
    os.urandom(50_000),
]


def test_bytes_come_back_as_they_were(storage: Storage) -> None:
    results = ResultStorage(storage)
    for number, content in enumerate(CONTENTS):
        results.write(f"a/../b {number} ü", content)
    for number, content in enumerate(CONTENTS):
        assert results.read(f"a/../b {number} ü") == content
    results.write("a/../b 0 ü", b"later")
    assert results.read("a/../b 0 ü") == b"later"
    with pytest.raises(MissingObjectError, match="there is no such result"):
        results.read("other")


def test_a_large_result_is_stored_from_a_file(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_AT_ONCE", 1000)
    content = record("z" * 100_000)
    ResultStorage(folder).write("k", content)
    assert ResultStorage(folder).read("k") == content


def test_equal_values_are_stored_once_and_small_ones_in_the_entry(storage: Storage) -> None:
    results = ResultStorage(storage)
    for key in ("one", "two"):
        results.write(key, record("x" * 10_000, key=key))
        results.write(f"{key}-small", record("x", key=key))
    assert len(objects(storage)) == 1
    assert len(list(storage.keys(KEYS))) == 4
    assert json.loads(results.read("one"))["metadata"]["storage_key"] == "one"
    assert json.loads(results.read("two"))["metadata"]["storage_key"] == "two"


def test_a_damaged_result_is_refused_and_written_again(folder: Storage) -> None:
    results = ResultStorage(folder)
    results.write("k", record("x" * 10_000))
    (place,) = objects(folder)
    path = folder.local_path(place)
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(b"?" * path.stat().st_size)
    with pytest.raises(CorruptObjectError, match="the result 'k' is damaged"):
        results.read("k")
    path.write_bytes(b"")
    with pytest.raises(CorruptObjectError):
        results.read("k")
    results.write("k", record("x" * 10_000))
    assert results.read("k") == record("x" * 10_000)


def test_an_entry_of_a_later_version_stops_the_removal(folder: Storage) -> None:
    ResultStorage(folder).write("old", b"1")
    folder.write(place_of("new"), b'{"format": 2}')
    with pytest.raises(CorruptObjectError, match="format 2, which this version of dvkf does not know"):
        ResultStorage(folder).read("new")
    with pytest.raises(CorruptObjectError, match="Update dvkf"):
        expire_results(folder, older_than=0)
    assert ResultStorage(folder).read("old") == b"1"
    folder.write(place_of("new"), b"[]")
    with pytest.raises(CorruptObjectError, match="is damaged"):
        ResultStorage(folder).read("new")


def test_writers_and_readers_of_one_key_see_whole_results(storage: Storage) -> None:
    contents = {record(letter * 20_000) for letter in "abcd"}
    ResultStorage(storage).write("k", min(contents))

    def write(content: bytes) -> None:
        for _ in range(5):
            ResultStorage(storage).write("k", content)

    def read(_: int) -> set[bytes]:
        return {ResultStorage(storage).read("k") for _ in range(5)}

    with ThreadPoolExecutor(8) as pool:
        writing = [pool.submit(write, content) for content in contents]
        seen = set().union(*pool.map(read, range(4)))
        for each in writing:
            each.result()
    assert seen <= contents


class TestExpiry:
    def later(self, monkeypatch: pytest.MonkeyPatch, days: float) -> None:
        now = time.time() + days * DAY
        for module in (store, expiry):
            monkeypatch.setattr(module.time, "time", lambda: now)  # type: ignore[attr-defined]

    def test_expired_and_old_results_go_with_their_objects(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = ResultStorage(storage)
        results.write("short", record("s" * 9000, expiration="2000-01-01T00:00:00Z"))
        results.write("long", record("l" * 9000, expiration="2999-01-01T00:00:00+00:00"))
        results.write("shared", record("s" * 9000))
        results.write("endless", record("e"))
        dry = expire_results(storage, dry_run=True)
        assert (dry.results, dry.objects, dry.kept, dry.keys) == (1, 0, 3, ("short",))
        assert "short" in str(dry.keys) and results.read("short")

        assert expire_results(storage).results == 1
        with pytest.raises(MissingObjectError):
            results.read("short")
        # Of today: a writer may be about to name them.
        assert len(objects(storage)) == 2

        self.later(monkeypatch, 3)
        assert not expire_results(storage)
        results.write("new", record("n" * 9000))
        removed = expire_results(storage, older_than=DAY)
        assert (removed.results, removed.objects, removed.kept) == (3, 2, 1)
        assert removed.size > 18_000
        assert results.read("new")
        assert len(objects(storage)) == 1
        assert not expire_results(storage, older_than=DAY)

    def test_a_result_that_is_written_again_meanwhile_stays(
        self, folder: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = ResultStorage(folder)
        results.write("k", record("o" * 9000, expiration="2000-01-01T00:00:00Z"))
        self.later(monkeypatch, 3)
        entries = expiry._entries
        calls: list[Any] = []

        def read(*args: Any) -> Any:
            if calls:
                results.write("k", record("n" * 9000))
            calls.append(args)
            return entries(*args)

        monkeypatch.setattr(expiry, "_entries", read)
        removed = expire_results(folder)
        assert (len(calls), removed.results) == (2, 0)
        assert results.read("k") == record("n" * 9000)

    def test_a_killed_removal_is_continued(self, folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        results = ResultStorage(folder)
        results.write("k", record("o" * 9000, expiration="2000-01-01T00:00:00Z"))
        self.later(monkeypatch, 3)
        folder.delete([place_of("k")])
        assert expire_results(folder).objects == 1
        assert objects(folder) == []

    def test_empty_folders_go_once_nothing_changed_in_them(
        self, folder: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = ResultStorage(folder)
        results.write("k", record("o" * 9000, expiration="2000-01-01T00:00:00Z"))
        self.later(monkeypatch, 3)
        expire_results(folder)
        root = folder.local_path(store.FOLDER)
        assert root is not None
        for path, _, _ in os.walk(root):
            os.utime(path, (0, 0))
        expire_results(folder)
        for path, _, _ in os.walk(root):
            os.utime(path, (0, 0))
        expire_results(folder)
        assert not root.exists() or not any((root / "objects").glob("*"))
        results.write("k", record("o" * 9000))
        assert results.read("k")

    def test_a_negative_age_is_refused(self, folder: Storage) -> None:
        with pytest.raises(ConfigError, match="age of results"):
            expire_results(folder, older_than=-1)


class TestCommandLine:
    def test_gc_removes_old_results_of_the_remote_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        repo = make_repo(tmp_path / "repo", remote=tmp_path / "store")
        (repo.root / "rows").write_text("1\n")
        repo.add(["rows"])
        repo.push()
        (repo.root / "rows.dvc").unlink()
        results = ResultStorage(open_storage(str(tmp_path / "store")))
        results.write("old", record("o", expiration="2000-01-01T00:00:00Z"))
        results.write("kept", record("k"))
        monkeypatch.chdir(repo.root)
        assert main(["gc", "--results", "--dry"]) == 0
        out = capsys.readouterr()
        assert (
            "Removing result old\n1 results and 0 of their objects would be removed, 1 results kept"
            in out.out
        )
        assert "expired results of Prefect from the remote" in out.err
        assert main(["gc", "--results", "1d", "--force", "--quiet"]) == 0
        assert capsys.readouterr() == ("", "")
        assert results.read("kept") == record("k")
        with pytest.raises(MissingObjectError):
            results.read("old")
        # The data of the repository stays.
        assert list((tmp_path / "store/files/md5").glob("*/*"))

    def test_gc_of_data_keeps_results_and_takes_both_options(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        repo = make_repo(tmp_path / "repo", remote=tmp_path / "store")
        (repo.root / "rows").write_text("1\n")
        repo.add(["rows"])
        repo.push()
        (repo.root / "rows.dvc").unlink()
        results = ResultStorage(open_storage(str(tmp_path / "store")))
        results.write("old", record("o" * 9000, expiration="2000-01-01T00:00:00Z"))
        monkeypatch.chdir(repo.root)
        assert main(["gc", "-w", "-c", "-f", "-q", "--grace", "0"]) == 0
        assert results.read("old")
        assert not list((tmp_path / "store/files/md5").glob("*/*"))
        assert main(["gc", "-w", "-c", "-f", "-q", "--results"]) == 0
        with pytest.raises(MissingObjectError):
            results.read("old")
        with pytest.raises(SystemExit, match="254"):
            main(["gc", "--results", "soon"])
        assert "is not a duration" in capsys.readouterr().err


def _holder(storage: Storage, key: str, holder: Holder) -> str:
    place = f"{place_of(key, store.LOCKS, '')}/{uuid.uuid4()}.json"
    storage.write(place, holder.to_json())
    return place


class TestLocks:
    def test_one_holder_at_a_time(self, storage: Storage) -> None:
        one, two = ResultLocks(lambda: storage), ResultLocks(lambda: storage)
        assert one.acquire_lock("k", "a")
        assert one.acquire_lock("k", "a")  # again
        assert one.is_lock_holder("k", "a") and not one.is_lock_holder("k", "b")
        assert one.is_locked("k") and two.is_locked("k") and not two.is_locked("other")
        assert not two.is_lock_holder("k", "a")
        assert not two.acquire_lock("k", "b", 0)
        assert not one.acquire_lock("k", "b", 0.1)
        assert not two.wait_for_lock("k", 0.1)
        with pytest.raises(ValueError, match="'b' does not hold the lock"):
            one.release_lock("k", "b")
        one.release_lock("k", "a")
        with pytest.raises(ValueError, match="'a' does not hold"):
            one.release_lock("k", "a")
        assert two.wait_for_lock("k", 0) and two.acquire_lock("k", "b", 0)
        two.release_lock("k", "b")
        assert not list(storage.keys(store.LOCKS))

    def test_many_workers_take_turns(self, folder: Storage) -> None:
        inside = threading.Lock()
        turns = []

        def work(number: int) -> None:
            own = ResultLocks(lambda: folder)
            assert own.acquire_lock("k", f"holder {number}", 60)
            assert inside.acquire(blocking=False)
            turns.append(number)
            inside.release()
            own.release_lock("k", f"holder {number}")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(12)))
        assert sorted(turns) == list(range(12))

    def test_the_lock_of_a_killed_process_is_free(self, folder: Storage, tmp_path: Path) -> None:
        code = (
            "import os, signal; from dvkf_prefect.data.remotes import open_storage;"
            "from dvkf_prefect.data.results.locks import ResultLocks;"
            f"assert ResultLocks(lambda: open_storage({str(tmp_path / 'store')!r})).acquire_lock('k', 'a');"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == -9
        assert list(folder.keys(store.LOCKS))
        assert ResultLocks(lambda: folder).acquire_lock("k", "b", 0)

    def test_a_lock_of_another_machine_lives_while_it_is_renewed(
        self, folder: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "EXPIRY", 0.3)
        place = _holder(folder, "k", Holder("elsewhere", None))
        own = ResultLocks(lambda: folder)
        assert own.is_locked("k")
        time.sleep(0.4)
        folder.write(place, folder.read(place) + b"\n")
        assert own.is_locked("k")
        time.sleep(0.4)
        assert own.acquire_lock("k", "a", 0)
        assert folder.size(place) is None

    def test_a_lease_is_renewed_and_ends_when_it_is_taken_away(
        self, folder: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "RENEWAL", 0.05)
        own = ResultLocks(lambda: folder)
        assert own.acquire_lock("k", "a")
        ((place, size),) = folder.list(store.LOCKS)
        _until(lambda: (folder.size(place) or 0) > size)
        folder.delete([place])
        _until(lambda: not own.is_lock_holder("k", "a"))
        assert not own.is_locked("k")

    def test_a_lock_is_given_up_after_its_time(self, folder: Storage) -> None:
        own = ResultLocks(lambda: folder)
        assert own.acquire_lock("k", "a", hold_timeout=0.1)
        _until(lambda: not own.is_lock_holder("k", "a"))
        assert ResultLocks(lambda: folder).acquire_lock("k", "b", 5)

    def test_async_code_waits_without_blocking_and_can_be_cancelled(self, folder: Storage) -> None:
        one, two = ResultLocks(lambda: folder), ResultLocks(lambda: folder)

        async def run() -> None:
            assert await one.aacquire_lock("k", "a")
            waiting = asyncio.ensure_future(two.aacquire_lock("k", "b"))
            assert not await two.await_for_lock("k", 0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            one.release_lock("k", "a")
            assert await two.await_for_lock("k", 5)

        asyncio.run(run())
        assert one.acquire_lock("k", "c", 5)

    def test_copies_share_the_locks_and_pickles_open_the_remote_anew(
        self, folder: Storage, tmp_path: Path
    ) -> None:
        own = ResultLocks(_opener(str(tmp_path / "store")))
        assert own.acquire_lock("k", "a")
        assert copy.deepcopy(own).is_lock_holder("k", "a")
        other = pickle.loads(pickle.dumps(own))
        assert other.is_locked("k") and not other.is_lock_holder("k", "a")


class _opener:
    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self) -> Storage:
        return open_storage(self.url)


def _until(done: Any) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)
