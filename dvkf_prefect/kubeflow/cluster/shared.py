"""Stages that runs on the server have already, so that they are followed there and not started again.

A dispatcher that was killed leaves a run of its stages, or the first of several runs in order. The next one may have
other stages: those without what was recorded meanwhile, or more, because it has more targets. Then no run has all of
them (`dvkf_prefect.kubeflow.cluster.open_runs`), but some have a part. Each such part is a run of the chain. Of the
stages that no run has, those that need none of these parts are started at once, the others after them
(`dvkf_prefect.kubeflow.cluster.chain`). The parts are chosen before the outputs of earlier ones are known. So a part
whose inputs prove to be others is started as a new run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from dvkf_prefect.kubeflow.cluster.open_runs import OpenRun, OpenStage


def shared_parts(
    wanted: Mapping[str, OpenStage], runs: Sequence[OpenRun], goes_on: Callable[[OpenRun], bool]
) -> list[list[str]]:
    """Return the stages that runs have, one list for each run; each needs only itself and the lists before.

    Args:
        wanted: The stages to run, by address.
        runs: Runs whose results were not all collected.
        goes_on: Returns True if a run may still give the results of its stages.
    """
    left = dict(wanted)
    runs = list(runs)
    parts: list[list[str]] = []
    while True:
        taken = wanted.keys() - left.keys()
        for run in runs:
            part = _part(wanted, left, run, taken)
            if part and goes_on(run):
                break
        else:
            return parts
        runs.remove(run)
        parts.append([address for address in left if address in part])
        left = {address: stage for address, stage in left.items() if address not in part}


def _part(
    wanted: Mapping[str, OpenStage], left: Collection[str], run: OpenRun, taken: Collection[str]
) -> set[str]:
    """Return the stages of a run that need only each other and those of earlier parts."""
    written = [out for address in taken for out in wanted[address].outs]
    part = {a for a in left if a in run.stages and wanted[a].continues(run.stages[a], written)}
    while lacking := {a for a in part if not set(wanted[a].needs) <= part | set(taken)}:
        part -= lacking
    return part
