"""A Kubernetes API server for tests, over HTTP, as strict as the real one.

Its name is not ``kubernetes``: ``tests`` is on the path, and a package of that name would hide the client library.

The modules:

- `schema`: structural schemas of CRDs: pruning, defaults, validation, CEL rules;
- `fields`: server-side apply: field managers and conflicts;
- `resources`: the kinds that are served, built-in and custom;
- `store`: objects, resourceVersions, watches, finalizers, garbage collection;
- `access`: users, roles and the text of refusals;
- `admission`: the webhooks of KServe and of Kubeflow Trainer;
- `kserve_kinds`: the schemas of KServe by version;
- `kserve`, `kserve_knative`: its controllers in simulated time;
- `kserve_graph`: its graphs: schema, webhook, controller and router;
- `server_pods`: pods of a model server over time;
- `trainer`: the schemas of Kubeflow Trainer by version, and its controller;
- `logs`: logs of pods;
- `writes`: admission, updates, patches and apply;
- `request`, `server`: HTTP.

A comment names the source of a behaviour. ``serving.md`` stands for the notes on KServe 0.15 to 0.21 and Trainer 2.0 to
2.3 that were read in their sources; ``apiserver``, ``apimachinery`` and ``kubernetes`` for those projects at 1.32.
"""

from __future__ import annotations

from .access import Rule
from .kserve import KServeController, install_kserve
from .server import KubeApi
from .server_pods import Model
from .store import Refused
from .trainer import TrainerController, install_trainer

__all__ = [
    "KServeController",
    "KubeApi",
    "Model",
    "Refused",
    "Rule",
    "TrainerController",
    "install_kserve",
    "install_trainer",
]
