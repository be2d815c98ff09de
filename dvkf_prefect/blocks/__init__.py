"""Prefect blocks: configuration that flows load by name.

Blocks of repositories, remotes, credentials, runners of pipelines, model servers and registries. They may import the
engine and Kubeflow, and know nothing of tasks or flows. Prefect imports this package when it starts, so the serializers
of results are registered here too.
"""

from dvkf_prefect import serializers as _serializers  # noqa: F401 - registers them
from dvkf_prefect.blocks._common import find_block
from dvkf_prefect.blocks.credentials import KubeflowCredentials
from dvkf_prefect.blocks.kserve import KServeModelServer
from dvkf_prefect.blocks.pipelines import KubeflowPipelines
from dvkf_prefect.blocks.registries import KubeflowModelRegistry
from dvkf_prefect.blocks.remotes import DvcRemote
from dvkf_prefect.blocks.repositories import DvcRepository
from dvkf_prefect.blocks.serving import ModelServer

__all__ = [
    "DvcRemote",
    "DvcRepository",
    "KServeModelServer",
    "KubeflowCredentials",
    "KubeflowModelRegistry",
    "KubeflowPipelines",
    "ModelServer",
    "find_block",
]
