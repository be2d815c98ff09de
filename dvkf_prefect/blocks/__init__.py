"""Blocks: what a flow works with, configured once and kept by Prefect."""

from dvkf_prefect.blocks.pipelines import KubeflowPipelines
from dvkf_prefect.blocks.remotes import DataRemote
from dvkf_prefect.blocks.repositories import DataRepository
from dvkf_prefect.blocks.serving import ModelServer

__all__ = ["DataRemote", "DataRepository", "KubeflowPipelines", "ModelServer"]
