"""Compare unchanged stages with as many empty tasks of Prefect, in turn, in one process and flow. Writes FLOWS.md.

A Prefect server of its own runs beside it. Each round runs all sides, in changing order; the figures are seconds and
CPU seconds of this process, and the quartiles of each round's ratio.

    python tests/benchmarks/flows.py [--stages 100] [--pairs 15] [--profile FILE]
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

RESULTS = Path(__file__).with_name("FLOWS.md")
WIDTH = 10
OURS = "stages in a flow"
TASKS = ("empty tasks, submitted", "empty tasks, called")


def make_stages(root: Path, count: int) -> None:
    """Write a dvc.yaml of chains of ten stages, each with a parameter, a script and the output before it."""
    lines = ["stages:"]
    for number in range(count):
        before = "raw.txt" if number % WIDTH == 0 else f"out{number - 1}.txt"
        lines += [
            f"  s{number}:",
            f"    cmd: cp {before} out{number}.txt",
            f"    deps: [{before}, code.py]",
            f"    params: [p{number}]",
            f"    outs: [out{number}.txt]",
        ]
    (root / "dvc.yaml").write_text("\n".join(lines) + "\n")
    (root / "params.yaml").write_text("".join(f"p{number}: 1\n" for number in range(count)))
    (root / "raw.txt").write_text("raw\n")
    (root / "code.py").write_text("pass\n")


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(root: Path, count: int, pairs: int, profile: str) -> None:
    """Run both flows in turn and print their figures."""
    from prefect import flow, task

    from dvkf_prefect import DvcRepository, KubeflowPipelines, repro_pipeline
    from dvkf_prefect.repo import Repo

    repository = DvcRepository(path=str(root), label="bench")
    pipelines = KubeflowPipelines(backend="local")

    @task
    def empty() -> None:
        pass

    def submitted() -> None:
        for future in [empty.submit() for _ in range(count)]:
            future.result()

    def called() -> None:
        for _ in range(count):
            empty()

    repo = Repo.open(root)
    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: repro_pipeline(repository, pipelines),
        TASKS[0]: submitted,
        TASKS[1]: called,
        "stages without a flow": lambda: repo.repro(),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}

    @flow(name="bench")
    def bench() -> None:
        for number in range(pairs + 1):
            for name in sorted(sides, reverse=number % 2 == 1):
                figures = measure(sides[name])
                if number:
                    found[name].append(figures)

    bench()
    lines = [
        "# Unchanged stages and empty tasks of Prefect",
        f"Made by `tests/benchmarks/flows.py`: {count} stages in chains of {WIDTH}, and as many empty tasks,"
        f" {pairs} rounds in turn in one flow run. Medians, with the least and the most. Prefect {version('prefect')},"
        f" Python {platform.python_version()}, {os.cpu_count()} cores, shared with the server. Load average at the end:"
        f" {os.getloadavg()[0]:.1f}.",
        "| work | seconds | CPU seconds |\n|---|---:|---:|",
    ]
    for name, rows in found.items():
        cells = [
            f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})"
            for each in zip(*rows, strict=True)
        ]
        lines[-1] += f"\n| {name} | {' | '.join(cells)} |"
    lines.append("| stages in a flow, against | time, times | CPU time, times |\n|---|---:|---:|")
    for other in TASKS:
        cells = []
        for index in (0, 1):
            ratios = [a[index] / b[index] for a, b in zip(found[OURS], found[other], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        lines[-1] += f"\n| {other} | {' | '.join(cells)} |"
    RESULTS.write_text("\n\n".join(lines) + "\n")
    if profile:
        profiler = cProfile.Profile()
        profiler.runcall(flow(name="profile")(sides[OURS]))
        profiler.dump_stats(profile)


def main() -> None:
    """Start a server, and compare in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--profile", default="", help="file for the profile of one run")
    parser.add_argument("--in", dest="root", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.root:
        compare(Path(options.root), options.stages, options.pairs, options.profile)
        return
    from servers import PrefectServer

    from dvkf_prefect.repo import Repo

    with tempfile.TemporaryDirectory() as folder, ExitStack() as started:
        server = PrefectServer(Path(folder))
        root = Path(folder) / "tree"
        root.mkdir()
        for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
            subprocess.run(command, cwd=root, check=True)
        make_stages(root, options.stages)
        repo = Repo.open(root)
        repo.add(["raw.txt"])
        repo.repro()
        identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.com"]
        subprocess.run(["git", "add", "--all"], cwd=root, check=True)
        subprocess.run(["git", *identity, "commit", "-qm", "Stages"], cwd=root, check=True)
        started.enter_context(server.serving())
        again = [sys.executable, *sys.argv, "--in", str(root)]
        if subprocess.run(again, env=server.environment, stdout=subprocess.DEVNULL, check=False).returncode:
            sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    main()
