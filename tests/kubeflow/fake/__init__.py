"""A Kubeflow Pipelines server that runs what it is given and refuses what the real one refuses.

Every behaviour is read from the servers' sources; a comment beside it names the file. Paths are relative to
``backend/src`` of kubeflow/pipelines 2.17.0 (commit 4a3592c), or to argoproj/argo-workflows 4.0.5 where they begin with
``argo``. `FakeKfp.version` selects between the servers 2.5, 2.14 and 2.17.

The modules: `store` (rows, limits, refusals), `filters` (of lists, with their orders and pages), `argo` (workflow,
nodes, retries, deadline), `launcher` (one pod),
`platform` (settings of pods), `proxy` (login and hosts), `kube` (Kubernetes' calls about pods), `server` (HTTP),
`forks` (processes that start in milliseconds).

Its behaviours, with their sources and tests, are in `tests.kubeflow.behaviours`.
"""

from __future__ import annotations

from processes import wait_until as wait_for

from .kube import container
from .server import ENDED, VERSIONS, FakeKfp, kill

__all__ = ["ENDED", "VERSIONS", "FakeKfp", "container", "kill", "wait_for"]
