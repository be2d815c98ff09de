"""Save the blocks for a cluster: a repository at a git URL, a remote in an object store, Kubeflow Pipelines.

python blocks/cluster.py GIT_URL --remote s3://bucket/prefix --host https://kubeflow.example.org/pipeline
    --image registry.example.org/stages:1 [--remote-secret NAME] [--name NAME]

The command line takes no secrets. Environment variables hold them: DVKF_ACCESS_KEY_ID and DVKF_SECRET_ACCESS_KEY for
the remote, DVKF_KUBEFLOW_TOKEN for Kubeflow Pipelines. Pods get theirs from a Kubernetes secret.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from dvkf_prefect import DvcRemote, DvcRepository, KubeflowCredentials, KubeflowPipelines


def save(
    repository: str,
    *,
    remote: str,
    host: str,
    image: str,
    namespace: str = "kubeflow",
    remote_secret: str | None = None,
    endpointurl: str | None = None,
    token_file: str | None = None,
    service_account: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
    name: str = "cluster",
) -> list[str]:
    """Save the blocks, overwriting those of the same names.

    Args:
        repository: Git URL of the DVC repository, or a folder that every worker has.
        remote: Url of its remote, for workers and pods alike.
        host: Address of Kubeflow Pipelines.
        image: Container image of the stages.
        namespace: Namespace that runs belong to.
        remote_secret: Kubernetes secret with the remote's credentials, under the names of its options.
        endpointurl: Address of an S3 service other than Amazon's.
        token_file: File on the worker with the token for Kubeflow Pipelines.
        service_account: Kubernetes service account of the pods.
        defaults: Settings of every pod, as a stage's ``meta: kubeflow:`` writes them.
        environment: Environment variables, with the secrets.
        name: Name of each block.

    Returns:
        The saved blocks, as ``type/name``.

    Raises:
        ConfigError: The settings of pods are wrong.

    Example:
        ``save("https://git.example.org/team/digits.git", remote="s3://lake/digits", host="http://ml:8080", image="…")``
    """

    def secret(variable: str) -> SecretStr | None:
        return SecretStr(environment[variable]) if environment.get(variable) else None

    store = DvcRemote(
        url=remote,
        endpointurl=endpointurl,
        access_key_id=secret("DVKF_ACCESS_KEY_ID"),
        secret_access_key=secret("DVKF_SECRET_ACCESS_KEY"),
    )
    credentials = KubeflowCredentials(host=host, token=secret("DVKF_KUBEFLOW_TOKEN"), token_file=token_file)
    pipelines = KubeflowPipelines(
        backend="kubeflow",
        credentials=credentials,
        image=image,
        namespace=namespace,
        remote_secret=remote_secret,
        service_account=service_account,
        defaults=dict(defaults or {}),
    )
    saved = []
    # Nested blocks are saved first, so that the others refer to them by name.
    for block in (store, credentials, DvcRepository(path=repository, remote=store), pipelines):
        block.save(name, overwrite=True)
        saved.append(f"{block.get_block_type_slug()}/{name}")
    return saved


def main() -> None:
    """Read the command line, save the blocks and print their names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repository", help="git URL of the DVC repository")
    parser.add_argument(
        "--remote", required=True, metavar="URL", help="URL of the remote: s3://bucket/prefix, …"
    )
    parser.add_argument("--host", required=True, metavar="URL", help="address of Kubeflow Pipelines")
    parser.add_argument("--image", required=True, help="container image of the stages")
    parser.add_argument("--namespace", default="kubeflow", help="namespace of the runs (default: kubeflow)")
    parser.add_argument(
        "--remote-secret", metavar="NAME", help="Kubernetes secret with the remote's credentials"
    )
    parser.add_argument("--endpointurl", metavar="URL", help="endpoint of an S3 service other than Amazon's")
    parser.add_argument("--token-file", metavar="FILE", help="file on the worker with the token")
    parser.add_argument("--service-account", metavar="NAME", help="Kubernetes account of the pods")
    parser.add_argument("--defaults", type=Path, metavar="FILE", help="settings of every pod, as JSON")
    parser.add_argument("--name", default="cluster", help="name of each block (default: cluster)")
    options = parser.parse_args()
    saved = save(
        options.repository,
        remote=options.remote,
        host=options.host,
        image=options.image,
        namespace=options.namespace,
        remote_secret=options.remote_secret,
        endpointurl=options.endpointurl,
        token_file=options.token_file,
        service_account=options.service_account,
        defaults=json.loads(options.defaults.read_text()) if options.defaults else None,
        name=options.name,
    )
    print(f"Saved {len(saved)} blocks for {options.host}:")
    for block in saved:
        print(f"  {block}")


if __name__ == "__main__":
    main()
