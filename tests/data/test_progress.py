"""Progress: totals, and the bytes of a large file while it is copied."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli._progress import Bar
from dvkf_prefect.data import progress as module
from dvkf_prefect.data.cache.workers import watched
from dvkf_prefect.data.progress import Part, Steps
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.errors import TransferError
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks._progress import Meter

LARGE = 20 << 20


class Watch:
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.totals: list[tuple[int, int]] = []
        self.calls: list[tuple[int, int, str]] = []

    def start(self, label: str, files: int, size: int) -> None:
        self.totals.append((files, size))

    def expect(self, files: int, size: int) -> None:
        self.totals.append((files, size))

    def advance(self, files: int, size: int, part: Part | None = None) -> None:
        self.calls.append((files, size, part.name if part else ""))

    def finish(self) -> None:
        pass

    def sums(self) -> tuple[int, int]:
        return sum(call[0] for call in self.calls), sum(call[1] for call in self.calls)

    def names(self) -> set[str]:
        """Files whose bytes came before their end."""
        return {name for files, _, name in self.calls if not files}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A repository with a large file, and one beside a small file in a folder."""
    data = os.urandom(1 << 20) * 20
    return make_repo(
        tmp_path / "repo", {"big.bin": data, "d/big": data[::-1], "d/small": b"1"}, remote=tmp_path / "store"
    )


def test_a_large_file_is_reported_while_each_verb_copies_it(repo: Repo, at_once: None) -> None:
    def run(verb: Callable[[Repo], object]) -> Watch:
        watch = Watch()
        verb(repo.using(progress=watch))
        return watch

    added = run(lambda r: r.add(["big.bin", "d"]))
    assert added.sums() == (3, 2 * LARGE + 1)
    # The size of a file is known at the start, that of a directory after its scan.
    assert added.totals == [(0, 0), (1, LARGE), (1, LARGE), (3, 2 * LARGE + 1)]
    assert added.names() == {"big.bin", "d/big"}
    assert len(added.calls) > 10

    pushed = run(lambda r: r.push())
    assert pushed.sums()[0] == 4
    assert pushed.names() == {"big.bin", "d/big"}

    shutil.rmtree(repo.cache.root)
    assert run(lambda r: r.fetch()).names() == {"big.bin", "d/big"}

    (repo.root / "big.bin").unlink()
    shutil.rmtree(repo.root / "d")
    out = run(lambda r: r.checkout())
    assert out.totals == [(0, 0), (3, 2 * LARGE + 1)]
    assert out.sums() == (3, 2 * LARGE + 1)
    assert out.names() == {"big.bin", "d/big"}

    # A directory of which a file is in place: only the other one counts.
    (repo.root / "d" / "big").unlink()
    out = run(lambda r: r.checkout())
    assert out.totals == [(0, 0), (2, LARGE + 1), (1, LARGE)]
    assert out.sums() == (1, LARGE)


def test_several_paths_are_one_piece_of_work(repo: Repo) -> None:
    """Each path had a bar of its own, and none said how much is left."""
    paths = [f"{name}.bin" for name in "abc"]
    for path in paths:
        (repo.root / path).write_bytes(path.encode() * 1000)

    def totals(verb: Callable[[Repo], object]) -> list[tuple[int, int]]:
        watch = Watch()
        verb(repo.using(progress=watch))
        assert watch.sums() == watch.totals[-1]
        return watch.totals

    assert set(totals(lambda r: r.add(paths))) == {(0, 0), (3, 15_000), (2, 10_000)}
    for path in paths:
        (repo.root / path).write_bytes(path.encode() * 2000)
    assert totals(lambda r: r.commit(paths))[-1] == (3, 30_000)


@pytest.mark.parametrize("url", ["store", "memory://failed-files"])
def test_files_that_fail_do_not_count(tmp_path: Path, url: str) -> None:
    """They counted as complete, so a progress of 3 files ended a push of 2."""
    url = url if "://" in url else str(tmp_path / url)
    names = list("abc")
    repo = make_repo(tmp_path / "repo", {name: name.encode() * 9 for name in names}, remote=url, add=names)
    watch = Watch()
    damaged = repo.cache.path(digest_file(repo.root / "a"))
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * 9)
    with pytest.raises(TransferError):
        repo.using(progress=watch).push()
    assert watch.totals[-1][0] == 3 and watch.sums() == (2, 18)


def test_an_upload_to_a_service_reports_its_parts(tmp_path: Path) -> None:
    storage = open_storage("memory://progress")
    (tmp_path / "big").write_bytes(os.urandom(1 << 20) * 20)
    noted: list[tuple[str, int]] = []
    with watched(lambda key, size: noted.append((key, size)), "digest"):
        storage.upload("files/md5/aa/b", tmp_path / "big")
    assert storage.size("files/md5/aa/b") == LARGE
    assert {key for key, _ in noted} == {"digest"}
    # Parts are read before they are sent: half of the four that may be on their way are not reported.
    assert sum(size for _, size in noted) == LARGE - (16 << 20)


def test_steps_report_at_most_a_few_times_a_second_and_never_twice() -> None:
    times: Iterator[float] = iter(number / 100 for number in range(1000))
    watch = Watch()
    steps = Steps(watch.advance, {"a": Part("data/a", 500)}, clock=lambda: next(times))
    for _ in range(100):
        steps.note("a", 5)
    before = len(watch.calls)
    assert 3 <= before <= 4
    steps.done("a", 500)
    assert watch.sums() == (1, 500)
    steps.note("b", 7)
    steps.note("c", 1)
    steps.done("b", 0)
    assert watch.sums() == (2, 500)
    assert watch.names() == {"data/a", ""}


def test_the_meter_shows_rate_and_remaining_time() -> None:
    now = [0.0]
    meter = Meter(4, 1_000_000_000, clock=lambda: now[0])
    assert meter.text() == "0 of 4 files, 0 B"
    for second in range(1, 11):
        now[0] = second
        meter.add(0, 20_000_000, Part("big", 900_000_000))
    assert meter.text() == "0 of 4 files, 200.0 MB of 1.0 GB, 20.0 MB/s, about 40 s left"
    assert meter.parts == {"big": (200_000_000, 900_000_000)}
    assert meter.part == 0.2
    # The rate is that of the last seconds.
    for second in range(11, 60):
        now[0] = second
        meter.add(0, 10_000_000)
    assert ", 10.0 MB/s, about 31 s left" in meter.text()
    meter.add(4, 310_000_000, Part("big", 900_000_000))
    now[0] = 100.0
    assert meter.text(ended=True) == "4 files, 1.0 GB in 1 min 40 s, 10.0 MB/s"
    assert meter.parts == {}
    meter.files = 5
    assert meter.text(ended=True) == "4 of 5 files, 1.0 GB in 1 min 40 s, 10.0 MB/s"
    assert Meter(clock=lambda: 0.0).text() == "0 files, 0 B"


def test_the_bar_has_a_line_for_each_large_file_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    bar = Bar()
    bar.start("add data", 0, 0)
    bar.expect(2, 100)
    bar.advance(0, 30, Part("data/[big]", 90))
    assert bar._progress is not None
    main, part = bar._progress.tasks
    assert (main.total, main.completed, main.fields["done"]) == (100, 30, "0/2 files")
    assert (part.description, part.total, part.completed) == ("  data/\\[big]", 90, 30)
    bar.advance(1, 60, Part("data/[big]", 90))
    assert len(bar._progress.tasks) == 1
    bar.finish()
