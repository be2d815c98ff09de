"""A process that starts, promotes or ends a canary behind a graph; a test kills it between two of its calls.

Usage: canary_child.py KUBECONFIG ACT. It writes a line before each pause and after each change of the cluster, and goes
on when it has read a line: the time of the cluster.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from kserve_world import SETTINGS, uri

from dvkf_prefect.kube.client import kube_client
from dvkf_prefect.kube.objects import KubeObjects
from dvkf_prefect.serving.kserve.canaries import Canaries
from dvkf_prefect.serving.kserve.services import KServeServices


class Told(KubeObjects):
    """Tells each change."""

    def apply(self, *arguments, **options):  # type: ignore[no-untyped-def]
        found = super().apply(*arguments, **options)
        tell("change")
        return found

    def delete(self, *arguments, **options):  # type: ignore[no-untyped-def]
        found = super().delete(*arguments, **options)
        tell("change")
        return found


def tell(what: str) -> float:
    print(what, flush=True)
    return float(sys.stdin.readline())


def main() -> None:
    config, act = sys.argv[1:]
    kube = Told(kube_client(config))
    services = KServeServices(
        kube, "ml", pause=lambda seconds: tell(f"pause {seconds}") and None, clock=lambda: tell("clock")
    )
    canaries = Canaries(services)
    if act == "start":
        settings = replace(SETTINGS, split="graph")
        canaries.start("iris", "v2.0.0", "digest2", uri(2), settings, percent=20)
    else:
        {"promote": canaries.promote, "abort": canaries.abort}[act]("iris")


if __name__ == "__main__":
    main()
