"""Program that runs inside an image: tries what a stage would import, and reports it as lines of JSON.

It is sent as text to the image's Python, so it uses the standard library only. Its argument is a JSON object with
``modules`` and ``programs``. Each line of the report starts with the mark; the name comes before the import, so that
a crash shows where it happened.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
from typing import Any

MARK = "dvkf-probe "


def report(name: str, **values: Any) -> None:
    """Print one line of the report."""
    sys.stdout.write("\n" + MARK + json.dumps({"name": name, **values}) + "\n")
    sys.stdout.flush()


def probe(modules: list[str], programs: list[str]) -> None:
    """Try all of it."""
    home = os.path.expanduser("~")
    report(
        "environment",
        python=".".join(map(str, sys.version_info[:3])),
        uid=os.getuid(),
        home=home,
        home_writable=os.access(home, os.W_OK | os.X_OK) and os.path.isdir(home),
    )
    with tempfile.TemporaryDirectory():
        pass
    for name in programs:
        report("program " + name, found=shutil.which(name) is not None)
    for name in modules:
        report("importing " + name)
        try:
            module = importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 (whatever a module raises is reported)
            report("module " + name, error=f"{type(error).__name__}: {str(error)[:300]}")
        else:
            report("module " + name, version=str(getattr(module, "__version__", "")))


if __name__ == "__main__":
    probe(**json.loads(sys.argv[1]))
