"""Measures commands in turn, as whole processes, and draws tables of what came out."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# A process's peak memory begins with that of the one that started it, so a small one starts each command.
_MEASURE = """
import os, sys, time
before = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as stream:
    stream.write(f"{time.perf_counter() - before} {usage.ru_maxrss}")
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


@dataclass
class Contender:
    """One side of a comparison: a command, and what makes the same start for each run of it."""

    name: str
    command: Sequence[str]
    folder: Path
    prepare: Callable[[], None] = field(default=lambda: None)
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self) -> tuple[float, float]:
        """Return the seconds and the peak memory, MB, of one run; of several processes the largest one's."""
        self.prepare()
        with tempfile.TemporaryFile() as said, tempfile.NamedTemporaryFile("r") as measured:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _MEASURE, measured.name, *self.command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**os.environ, **self.environment},
                check=False,
            )
            if done.returncode:
                said.seek(0)
                text = said.read().decode(errors="replace")
                raise SystemExit(f"{self.name}: {' '.join(self.command)} failed:\n{text}")
            seconds, kilobytes = measured.read().split()
        return float(seconds), int(kilobytes) / 1000


@dataclass
class Row:
    """The result of one comparison: medians by contender, the first being ours, and ratios of each pair of runs."""

    work: str
    seconds: dict[str, float]
    memory: dict[str, float]
    ratios: dict[str, float]
    goal: float | None
    limit_goal: float | None

    @property
    def limit(self) -> str | None:
        """The name of the contender that stands for what the machine allows."""
        return next((name for name in self.seconds if name not in ("dvkf", "dvc")), None)

    @property
    def missed(self) -> list[str]:
        """What falls short of its goal."""
        missed = []
        if self.goal and "dvc" in self.ratios and self.ratios["dvc"] < self.goal:
            missed.append(f"{self.ratios['dvc']:.1f} x dvc, not {self.goal:g} x")
        if self.limit and self.limit_goal and 1 / self.ratios[self.limit] > self.limit_goal:
            missed.append(
                f"{1 / self.ratios[self.limit]:.2f} x the time of {self.limit}, not {self.limit_goal:g} x"
            )
        if "dvc" in self.memory and self.memory["dvkf"] > self.memory["dvc"]:
            missed.append(f"{self.memory['dvkf']:.0f} MB, dvc {self.memory['dvc']:.0f} MB")
        return missed


def compete(
    work: str,
    contenders: Sequence[Contender],
    rounds: int,
    *,
    goal: float | None = None,
    limit_goal: float | None = None,
    warm_up: bool = True,
) -> Row:
    """Run contenders in turn.

    Args:
        work: What they do.
        contenders: Ours first.
        rounds: How many runs of each.
        goal: How many times faster than dvc ours should be.
        limit_goal: How many times the time of what is neither ours nor dvc ours may take.
        warm_up: Run each once before, unmeasured.
    """
    runs: dict[str, list[tuple[float, float]]] = {c.name: [] for c in contenders}
    for round_ in range(-1 if warm_up else 0, rounds):
        for contender in contenders:
            result = contender.run()
            if round_ >= 0:
                runs[contender.name].append(result)
    ours = contenders[0].name
    row = Row(
        work,
        {name: statistics.median(s for s, _ in found) for name, found in runs.items()},
        {name: statistics.median(m for _, m in found) for name, found in runs.items()},
        {
            name: statistics.median(b[0] / a[0] for a, b in zip(runs[ours], found, strict=True))
            for name, found in runs.items()
            if name != ours
        },
        goal,
        limit_goal,
    )
    told = ", ".join(f"{name} {row.seconds[name]:.3f} s {row.memory[name]:.0f} MB" for name in runs)
    print(f"{work}: {told}{'; MISSED: ' + '; '.join(row.missed) if row.missed else ''}", flush=True)
    return row


def table(rows: Sequence[Row]) -> str:
    """Return rows as a markdown table."""
    lines = [
        "| work | dvkf | dvc | faster than dvc | goal | the limit | of its time | goal | memory, dvkf / dvc, MB |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        limit = row.limit
        cells = [
            row.work,
            f"{row.seconds['dvkf']:.2f} s",
            f"{row.seconds['dvc']:.2f} s" if "dvc" in row.seconds else "",
            f"{row.ratios['dvc']:.1f} x" if "dvc" in row.ratios else "",
            f"{row.goal:g} x" if row.goal else "",
            f"{limit} {row.seconds[limit]:.2f} s" if limit else "",
            f"{1 / row.ratios[limit]:.2f}" if limit else "",
            f"{row.limit_goal:g}" if limit and row.limit_goal else "",
            " / ".join(f"{row.memory[name]:.0f}" for name in ("dvkf", "dvc") if name in row.memory),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
