"""Kinds of KServe by version, and its runtimes.

Source: serving.md A5, A11, A15, A18, C7.
"""

from __future__ import annotations

import copy
import functools

from .resources import Resource, kserve
from .schema import Schema

GROUP, PLURAL = "serving.kserve.io", "inferenceservices"
KNATIVE, GATEWAY = "serving.knative.dev", "gateway.networking.k8s.io"
VERSIONS = ("0.15", "0.17", "0.20", "0.21")
DEADLINE = 600  # of a Deployment and of a Knative revision (F2, F3)
SCHEMES = ("gs", "s3", "pvc", "file", "https", "http", "hdfs", "webhdfs", "oci", "hf")  # A11
RUNTIMES = {
    "sklearn": "kserve-sklearnserver",
    "xgboost": "kserve-xgbserver",
    "lightgbm": "kserve-lgbserver",
    "tensorflow": "kserve-tensorflow-serving",
    "onnx": "kserve-tritonserver",
    "triton": "kserve-tritonserver",
    "pytorch": "kserve-torchserve",
    "mlflow": "kserve-mlserver",
    "huggingface": "kserve-huggingfaceserver",
}  # fmt: skip  (A5)
KNOWN = {*RUNTIMES.values()}


def minor_of(version: str) -> int:
    return int(version.partition(".")[2])


@functools.cache
def resource_of(version: str) -> Resource:
    """Return InferenceService by a version's CRD; of 0.15 to 0.19 without the later fields (A15, A18, C7)."""
    resource = kserve()
    root = copy.deepcopy(resource.schema.root)  # type: ignore[union-attr]
    spec, minor = root["properties"]["spec"]["properties"], minor_of(version)
    if minor < 20:
        spec.pop("canary")
        root["properties"]["status"]["properties"].pop("canaryStatuses")
        for name in ("name", "storageContainerName"):
            spec["predictor"]["properties"].pop(name)
    if minor < 16:
        spec["predictor"]["properties"].pop("storageUris")
    return Resource(GROUP, "v1beta1", PLURAL, "InferenceService", schema=Schema(root))
