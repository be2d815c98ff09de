"""Process of one node of a distributed training: ``python3 -m dvkf_prefect.kubeflow.pod.node``.

Each node downloads the inputs and runs the stage's commands in a clean folder. ``torchrun`` starts their processes,
by the ``PET_*`` variables of Trainer. The first node uploads the outputs. A node that Kubernetes starts again after its
end does not run the commands again.

Source: Trainer's runtimes have no initializers for data of a repository, and a Job repeats a failed node six times.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.formats import manifest_rows
from dvkf_prefect.kubeflow.exchange.runs import PodRun
from dvkf_prefect.kubeflow.pod.pod import MANIFEST_MB, SCRATCH_VARIABLE, StagePod, stop, take_secrets
from dvkf_prefect.kubeflow.trainer.nodes import NODE_VARIABLE, Nodes
from dvkf_prefect.scratch import scratch_folder

# Rank of the node: an index of a Job, which Trainer also passes to torchrun.
_RANKS = ("JOB_COMPLETION_INDEX", "PET_NODE_RANK")


def main() -> None:
    """Run the node.

    Raises:
        SystemExit: The commands failed on this node; the code is 1.
    """
    os.environ.setdefault(manifest_rows.VARIABLE, str(MANIFEST_MB))
    secrets = take_secrets()
    opened: list[Remote] = []

    def open_remote(about: PodRun) -> Remote:
        opened.append(about.open(secrets))
        return opened[0]

    nodes = Nodes.of_variable(os.environ.pop(NODE_VARIABLE), lambda about: open_remote(about).storage)
    rank = int(next((os.environ[name] for name in _RANKS if os.environ.get(name)), "0"))
    signal.signal(signal.SIGTERM, stop)
    place = os.environ.pop(SCRATCH_VARIABLE, None)
    result = nodes.recorded(rank)
    if result is None:
        text, upstream, params = nodes.start()
        with scratch_folder("dvkf-node-", Path(place) if place else None) as folder:
            node = StagePod(nodes.about, opened[0], folder, params, {}, log_key=nodes.log_key(rank))
            result = node.run_as_node(text, upstream, first=rank == 0)
        nodes.record(rank, result)
    if result.failed:
        sys.exit(result.message or result.error)


if __name__ == "__main__":
    main()
