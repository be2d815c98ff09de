"""Distributed training on this machine: the command of a stage in several processes, started by PyTorch's ``torchrun``.

A stage asks for it in ``meta: {kubeflow: {trainer: {nodes: 2, processes: 4}}}``. On a cluster Kubeflow Trainer starts
the nodes, and this module starts the processes of one node. Elsewhere all processes run on this machine. Source:
``torch/distributed/run.py``; a node's settings are its ``PET_*`` variables, as Trainer sets them
(``pkg/runtime/framework/plugins/torch/torch.go`` of kubeflow/trainer v2.3.0).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from dvkf_prefect.errors import ParseError
from dvkf_prefect.pipeline.step.spec import Distributed

# Set on each node of a cluster by Trainer.
_ON_A_NODE = "PET_NNODES"


def read_distributed(meta: Any, file: str, stage: str) -> Distributed | None:
    """Return the number of nodes and processes in a stage's ``meta: kubeflow: trainer:``; None without it.

    Args:
        meta: The stage's ``meta``, of any type.
        file: Its dvc.yaml, for messages.
        stage: Address of the stage.

    Raises:
        ParseError: A number is wrong.

    Example:
        >>> read_distributed({"kubeflow": {"trainer": {"nodes": 2}}}, "dvc.yaml", "train")
        Distributed(nodes=2, processes=1)
    """
    values: Any = meta
    for key in ("kubeflow", "trainer"):
        values = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(values, Mapping):
        return None
    numbers = {}
    for key in ("nodes", "processes"):
        number = values.get(key)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 10_000:
            raise ParseError(
                file,
                f"stage '{stage}', key 'meta.kubeflow.trainer.{key}': expected a whole number, at least 1, not "
                f"{number!r}",
            )
        numbers[key] = number
    return Distributed(**numbers)


def launcher(distributed: Distributed, environment: Mapping[str, str]) -> list[str]:
    """Return the arguments that start a command in each process; empty if PyTorch is not installed.

    The processes find their rank and each other by the variables of ``torchrun``: ``RANK``, ``LOCAL_RANK``,
    ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``. Their command is appended to the arguments.

    Args:
        distributed: Number of nodes and processes.
        environment: Environment of the command.
    """
    import shutil  # slow to import

    torchrun = shutil.which("torchrun", path=environment.get("PATH"))
    if torchrun is None and importlib.util.find_spec("torch") is None:
        return []
    argv = [torchrun] if torchrun else [sys.executable, "-m", "torch.distributed.run"]
    if _ON_A_NODE not in environment:
        argv += [
            "--nnodes=1",
            f"--nproc-per-node={distributed.total}",
            # A port that is free, and no other address of this machine: its name need not resolve.
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=127.0.0.1:0",
            "--local-addr=127.0.0.1",
        ]
    return [*argv, "--no-python"]


def without_torch(distributed: Distributed, environment: Mapping[str, str]) -> str:
    """Return the note on a run in one process instead of several.

    Args:
        distributed: Number of nodes and processes.
        environment: Environment of the command.
    """
    where = "on this node" if _ON_A_NODE in environment else f"instead of {distributed.total}"
    return (
        f"the command ran as one process {where}, because PyTorch is not installed beside it: there is neither "
        "`torchrun` on PATH nor the module `torch`. Install torch to run all processes."
    )
