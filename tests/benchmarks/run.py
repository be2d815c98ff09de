"""Compare with `dvc` and with what the disk allows, run by run in turn, on the same data: make bench.

Every figure is the wall time of a whole process; a ratio is the median over the pairs. Writes RESULTS.md beside this
file and the table in the README.

    python tests/benchmarks/run.py [--files 20000] [--bytes 4096] [--pairs 3] [--only WORD]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- benchmark: made by make bench -->", "<!-- end of benchmark -->"

Step = Callable[[], None]


@dataclass
class Contender:
    """One side of a comparison: a command, and what makes the same start for each run of it."""

    name: str
    command: list[str]
    folder: Path
    prepare: Step = field(default=lambda: None)

    def run(self) -> tuple[float, int]:
        """Return the seconds and the peak memory, KiB, of one run."""
        self.prepare()
        before = time.perf_counter()
        process = subprocess.Popen(
            self.command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, said = process.communicate()
        seconds = time.perf_counter() - before
        if process.returncode:
            raise SystemExit(
                f"{self.name}: {' '.join(self.command)} failed:\n{said.decode(errors='replace')}"
            )
        return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


@dataclass
class Row:
    """The result of one comparison."""

    work: str
    ours: float
    theirs: float
    ratio: float
    goal: str
    limit: str = ""


def pair(work: str, ours: Contender, theirs: Contender, pairs: int, goal: str) -> Row:
    """Run two contenders in turn and return the medians and the median ratio."""
    ours.run(), theirs.run()
    mine, other = [], []
    for _ in range(pairs):
        mine.append(ours.run()[0])
        other.append(theirs.run()[0])
    ratio = statistics.median(b / a for a, b in zip(mine, other, strict=True))
    row = Row(work, statistics.median(mine), statistics.median(other), ratio, goal)
    print(f"{work:<45} {row.ours:8.3f} s  {row.theirs:8.3f} s  {ratio:6.1f} x  (goal {goal})", flush=True)
    return row


def sh(*command: str, cwd: Path) -> None:
    """Run a command that must work."""
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def make_repository(root: Path, name: str) -> Path:
    """Make a repository with a folder remote of its own."""
    repo = root / name
    repo.mkdir(parents=True)
    sh("git", "init", "-q", cwd=repo)
    sh("dvc", "init", "-q", cwd=repo)
    sh("dvc", "config", "core.site_cache_dir", str(root / f"{name}-site"), cwd=repo)
    sh("dvc", "remote", "add", "-q", "-d", "store", str(root / f"{name}-store"), cwd=repo)
    return repo


def fill(folder: Path, files: int, size: int) -> None:
    """Write files of pseudo-random content, 1,000 a folder."""
    for number in range(files):
        if number % 1000 == 0:
            part = folder / f"{number // 1000:03}"
            part.mkdir(parents=True)
        seed = hashlib.sha512(str(number).encode()).digest()
        (part / f"{number:07}.bin").write_bytes((seed * (size // 64 + 1))[:size])


def forget(repo: Path, *names: str) -> None:
    """Move parts of a repository aside.

    They are not deleted before the end: ext4 does not use an inode again for a minute or more after its file was
    deleted, and creating files next to many such inodes takes ten times as long, whoever creates them.
    """
    aside = repo.parent / "aside"
    aside.mkdir(exist_ok=True)
    for name in names:
        path = repo / name
        if path.exists():
            path.rename(aside / f"{time.monotonic_ns()}")


def start_up(root: Path, pairs: int) -> list[Row]:
    """Start-up of a process, outside and inside a repository."""
    ours, theirs = make_repository(root, "start-ours"), make_repository(root, "start-theirs")
    return [
        pair(
            work,
            Contender("dvkf", ["dvkf", verb], ours),
            Contender("dvc", ["dvc", verb], theirs),
            pairs,
            goal,
        )
        for work, verb, goal in (
            ("--version", "--version", "3 x"),
            ("status, empty repository", "status", "5 x"),
        )
    ]


def many_files(root: Path, files: int, size: int, pairs: int) -> list[Row]:
    """The verbs on one directory of many files, with a folder as the remote."""
    sides: dict[str, Path] = {}
    for tool in ("dvkf", "dvc"):
        sides[tool] = make_repository(root, f"many-{tool}")
        fill(sides[tool] / "data", files, size)

    def versus(work: str, verb: str, goal: str, prepare: Callable[[Path], None] = lambda repo: None) -> Row:
        contenders = []
        for tool, repo in sides.items():

            def ready(repo: Path = repo) -> None:
                prepare(repo)

            contenders.append(Contender(tool, [tool, *verb.split()], repo, ready))
        return pair(f"{work}, {files:,} x {size:,} B", *contenders, pairs, goal)

    def unknown(repo: Path) -> None:
        forget(repo, ".dvc/cache", ".dvc/tmp", f"../{repo.name}-site", "data.dvc")

    def unpushed(repo: Path) -> None:
        forget(repo, f"../{repo.name}-store", f"../{repo.name}-site")

    def uncached(repo: Path) -> None:
        forget(repo, ".dvc/cache", "data", f"../{repo.name}-site", ".dvc/tmp")

    return [
        versus("add", "add data", "8 x", unknown),
        versus("status, clean", "status", "20 x"),
        versus("push to a folder, first", "push", "8 x", unpushed),
        versus("push to a folder, nothing new", "push", "20 x"),
        versus("checkout, full", "checkout", "6 x", lambda repo: forget(repo, "data")),
        versus("checkout, nothing to do", "checkout", "15 x"),
        versus("pull from a folder, cold", "pull", "15 x", uncached),
    ]


def table(rows: list[Row]) -> str:
    """Return the rows as a markdown table."""
    lines = ["| work | dvkf, s | dvc, s | times faster | goal |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {r.work} | {r.ours:.2f} | {r.theirs:.2f} | {r.ratio:.1f} | {r.goal} |" for r in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=("start-up", "files"))
    options = parser.parse_args()
    os.environ.update(DVC_NO_ANALYTICS="1", DO_NOT_TRACK="1", GIT_CONFIG_GLOBAL=os.devnull)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dvkf-bench-") as folder:
        os.environ["HOME"] = folder
        if options.only != "files":
            rows += start_up(Path(folder), max(options.pairs, 7))
        if options.only != "start-up":
            rows += many_files(Path(folder), options.files, options.bytes, options.pairs)
    if options.only:
        return
    versions = subprocess.run(["dvc", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    made = table(rows)
    RESULTS.write_text(
        f"# Benchmark results\n\nMade by `make bench`: wall time of whole processes, medians of {options.pairs} "
        f"alternating pairs after one warm-up; {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, dvc {versions}. The goal is how many times faster than dvc it should be."
        f"\n\n{made}\n"
    )
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
