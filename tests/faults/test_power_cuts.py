"""Power cuts on a disk of its own: what a .dvc file or a manifest names is whole, and the next run completes.

A copy of the backing file of a mounted file system is what a power cut leaves of it: of one moment, since the kernel
goes on writing while it is read.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults_world import DVKF, VERBS, Verb, World, label, run
from sizes import size

pytestmark = pytest.mark.timeout(7200)

# How many cuts; FAULTS_CUTS=100 takes a quarter of an hour.
CUTS = int(size("FAULTS_CUTS", "1", "6"))
SEED = int(os.environ.get("FAULTS_SEED", "1"))
CHOSEN = [
    verb for verb in VERBS if verb.name in {"add", "commit", "push", "pull", "import", "import-url", "update"}
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 file system in a file, written back as late as it can be."""
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4")
    image, place = tmp_path / "image", tmp_path / "disk"
    subprocess.run(["truncate", "-s", "256M", str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    place.mkdir()
    if not _mount(image, place):
        pytest.skip("cannot mount here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _mount(image: Path, place: Path) -> bool:
    command = ["mount", "-o", "loop,commit=1", str(image), str(place)]
    return subprocess.run(command, capture_output=True).returncode == 0


def _extents(image: Path) -> list[tuple[int, bytes]]:
    """Return what a file with holes holds, and where."""
    found: list[tuple[int, bytes]] = []
    end = 0
    with image.open("rb", buffering=0) as stream:
        while True:
            try:
                start = os.lseek(stream.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return found
            end = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
            found.append((start, os.pread(stream.fileno(), end - start, start)))


def snapshot(image: Path, after: Path, *, tries: int = 200) -> None:
    """Copy a disk that is written to, as it was at one moment.

    A copy in one go would hold a block as it was before and its journal as it was after: no disk ever held both.
    """
    last = _extents(image)
    for _ in range(tries):
        now = _extents(image)
        if now == last:  # nothing changed between the two: each block is as it was at the moment between them
            break
        last = now
    else:
        raise AssertionError("the disk was never still")
    with after.open("wb") as stream:
        stream.truncate(image.stat().st_size)
        for start, data in last:
            stream.seek(start)
            stream.write(data)


def test_the_copy_of_a_disk_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written while it is read is in it whole or not at all."""
    image, after = tmp_path / "image", tmp_path / "after"
    image.write_bytes(b"0" * 8192)
    real, told = _extents, iter((b"1", b"2"))

    def busy(path: Path) -> list[tuple[int, bytes]]:
        found = real(path)
        if text := next(told, b""):  # after the read of a pass, and so between the blocks of a longer one
            image.write_bytes(text * 8192)
        return found

    monkeypatch.setitem(globals(), "_extents", busy)
    snapshot(image, after)
    assert after.read_bytes() == b"2" * 8192


def _cut(template: World, verb: Verb, disk: Path, rng: random.Random) -> list[str]:
    """Run a verb, cut the power at some moment, and see what the disk holds."""
    shutil.rmtree(disk / "w", ignore_errors=True)
    where = template.copy(verb, "prepared")
    subprocess.run(["cp", "-a", str(where), str(disk / "w")], check=True)
    shutil.rmtree(where)
    subprocess.run(["sync", "-f", str(disk)], check=True)
    image, after = disk.with_name("image"), disk.with_name("after")
    process = subprocess.Popen(
        [*DVKF, *verb.command],
        cwd=disk / "w/r",
        env=template.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if rng.random() < 0.5:
        process.wait()
        time.sleep(rng.uniform(0, 2.5))
    else:
        time.sleep(rng.uniform(0.1, 1.5))
    snapshot(image, after)
    process.wait()
    place = disk.with_name("cut")
    place.mkdir(exist_ok=True)
    assert _mount(after, place)
    try:
        return _state(template, place / "w", verb)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        after.unlink()


def _state(template: World, where: Path, verb: Verb) -> list[str]:
    problems = []
    before = template.check(where, leftovers=False)
    # Objects that nothing names yet may be empty: that is noticed, see below.
    problems += [problem for problem in before if not problem.startswith("damaged")]
    if not run(where / "r", template.env, "sh", "-c", verb.done, ok=False).returncode:
        # It names what it made: that is there.
        problems += [problem for problem in before if problem.startswith("damaged: r")]
    return problems + template.finish(where, verb)


def test_a_power_cut_loses_nothing_that_is_named(template: World, disk: Path) -> None:
    rng = random.Random(SEED)
    for number in range(CUTS):
        verb = CHOSEN[number % len(CHOSEN)]
        problems = _cut(template, verb, disk, rng)
        assert not problems, f"{verb.name} (seed {SEED}, {number}):\n{label(problems)}"
    print(f"{CUTS} cuts")
