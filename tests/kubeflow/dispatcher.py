"""A dispatcher in a process of its own, which a test can kill."""

from __future__ import annotations

import json
import logging
import pickle
import resource
import time
from pathlib import Path
from typing import Any

from dvkf_prefect.kubeflow.cluster import start
from dvkf_prefect.kubeflow.cluster.api import KfpApi
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.repo import Repo


def _hurry() -> None:
    """Shorten every wait between two attempts, and that for the server to delete a workflow without a run."""
    wait = time.sleep
    time.sleep = lambda seconds: wait(seconds / 5)
    start._DELETED_AFTER, start._ARRIVES = 6.0, 1.5
    assert KfpApi.__init__.__kwdefaults__ is not None
    KfpApi.__init__.__kwdefaults__["sleep"] = time.sleep


def _peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def dispatch(job: str, root: str, report: str, hurried: bool = True) -> None:
    """Run everything in a process of its own, and write the outcome to a file."""
    logging.basicConfig(level=logging.DEBUG)
    if hurried:
        _hurry()
    settings = pickle.loads(Path(job).read_bytes())
    failed: dict[str, str] = {}
    outcome: dict[str, Any] = {"error": "", "failed": failed, "rss_before": _peak()}

    def note(event: Any) -> None:
        if event.kind == "fail":
            failed[event.stage] = event.message

    try:
        repo = Repo.open(root)
        with KfpClusterRunner(repo, settings) as runner:
            result = repro(repo, runner=runner, raise_failures=False, on_event=note)
        outcome.update({name: getattr(result, name) for name in ("ran", "skipped", "restored", "blocked")})
    except Exception as error:  # the outcome is judged by the starter
        outcome["error"] = f"{type(error).__name__}: {error}"
    outcome["rss"] = _peak()
    Path(report).write_text(json.dumps(outcome))
