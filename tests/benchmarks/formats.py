"""Take a model of each format from its training to its predictions, and write FORMATS.md: figures by format.

python tests/benchmarks/formats.py
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from formats_world import KINDS, Way, whole_way

RESULTS = Path(__file__).with_name("FORMATS.md")
HEAD = """# Formats, the whole way

Made by `tests/benchmarks/formats.py`. Each model is trained by its library in a stage, registered, published to a
folder, served here and asked for five rows in V1 and V2; all answers are those of its library. The published folder
passes the rules by which each runtime of KServe finds its model, and the files found so answer the same. {machine}.

"""
COLUMNS = {
    "model": "---",
    "platform here": "---",
    "published as": "---",
    "runtimes of KServe": "---",
    "files": "---:",
    "KB": "---:",
    "train s": "---:",
    "publish s": "---:",
    "start s": "---:",
    "V1 ms": "---:",
    "V2 ms": "---:",
}


def line(*cells: object) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(map(str, cells))} |\n"


def row(way: Way) -> str:
    """Return the line of a model."""
    cells = [way.kind, way.platform, way.format, ", ".join(way.runtimes), way.files, f"{way.size / 1000:.1f}"]
    cells += [f"{seconds:.2f}" for seconds in way.seconds] + [f"{asked:.1f}" for asked in way.asked]
    return line(*cells)


def main() -> None:
    """Measure each format in turn."""
    with tempfile.TemporaryDirectory() as temporary:
        for variable in ("HOME", "XDG_CACHE_HOME"):
            os.environ[variable] = temporary
        for role in ("AUTHOR", "COMMITTER"):
            os.environ |= {f"GIT_{role}_NAME": "Benchmark", f"GIT_{role}_EMAIL": "benchmark@example.org"}
        rows = []
        for number, kind in enumerate(KINDS):
            folder = Path(temporary, str(number))
            folder.mkdir()
            rows.append(row(whole_way(kind, folder)))
            print(rows[-1], end="", flush=True)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    RESULTS.write_text(
        HEAD.format(machine=machine) + line(*COLUMNS) + line(*COLUMNS.values()) + "".join(rows)
    )


if __name__ == "__main__":
    main()
