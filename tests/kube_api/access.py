"""Users, roles and the refusals of the API server.

Source: kubernetes plugin/pkg/auth/authorizer/rbac, apiserver pkg/endpoints/handlers/responsewriters/errors.go
(``forbiddenMessage``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """Rights on resources of a group; a subresource is written as ``pods/log``, ``*`` stands for everything."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()

    def allows(self, verb: str, group: str, resource: str, name: str) -> bool:
        return (
            self.group in ("*", group)
            and ("*" in self.resources or resource in self.resources)
            and ("*" in self.verbs or verb in self.verbs)
            and (not self.names or name in self.names)
        )


ALL = (Rule("*", ("*",), ("*",)),)
# manifests/kustomize/base/installs/generic/pipeline-runner-role.yaml of KFP: nothing of KServe or Trainer (E1).
PIPELINE_RUNNER = (
    Rule("", ("secrets", "configmaps"), ("get", "watch", "list")),
    Rule("", ("pods", "pods/exec", "pods/log", "services"), ("*",)),
    Rule("argoproj.io", ("workflows", "workflowtaskresults"), ("*",)),
    Rule("apps", ("deployments", "replicasets"), ("*",)),
)
# manifests/overlays/kubeflow-platform/kubeflow-trainer-roles.yaml of Trainer 2.3: no update, no own runtimes.
TRAINER_EDIT = (
    Rule("trainer.kubeflow.org", ("trainingruntimes",), ("get", "list", "watch")),
    Rule("trainer.kubeflow.org", ("trainjobs",), ("create", "patch", "get", "list", "watch", "delete")),
    Rule("", ("pods", "pods/log", "events"), ("get", "list", "watch")),
    # Bound to all that are logged in: kubeflow-trainer-view-cluster-runtimes.
    Rule("trainer.kubeflow.org", ("clustertrainingruntimes",), ("get", "list", "watch")),
)


def forbidden(user: str, verb: str, group: str, resource: str, name: str, namespace: str) -> str:
    """Return the message of a refusal."""
    base = resource.partition("/")[0]
    full = f"{base}.{group}" if group else base
    what = f'{full} "{name}" is forbidden' if name else f"{full} is forbidden"
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    return f'{what}: User "{user}" cannot {verb} resource "{resource}" in API group "{group}" {where}'
