"""Kubeconfigs that do not serve: each is named with its fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubernetes.config import ConfigException

from dvkf_prefect.kube.client import kube_client

GOOD = """
apiVersion: v1
kind: Config
current-context: CURRENT
contexts:
- name: staging
  context: {cluster: k, user: u}
clusters:
- name: k
  cluster: {server: "https://127.0.0.1:9", certificate-authority: CA}
users:
- name: u
  user: {}
"""


@pytest.mark.parametrize(
    ("text", "context", "message"),
    [
        (None, None, r"the kubeconfig .*/config does not exist$"),
        ("", None, r"the kubeconfig .*/config is not one: "),
        ("x: [", None, r"the kubeconfig .*/config is not one: while parsing a flow node "),
        ("3", None, r"the kubeconfig .*/config is not one: "),
        (GOOD, "stagng", r"has no context 'stagng' \(contexts: staging\), but 'staging'$"),
        (GOOD.replace("CA}", "/no/ca.pem}"), "staging", r"/no/ca\.pem|File does not exist"),
    ],
)
def test_a_wrong_kubeconfig_is_named(
    text: str | None, context: str | None, message: str, tmp_path: Path
) -> None:
    """Some were a `TypeError` or a parser's text of several lines."""
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text.replace("CURRENT", "staging"))
    with pytest.raises(ConfigException, match=message) as refused:
        kube_client(str(file), context)
    assert "\n" not in str(refused.value)
