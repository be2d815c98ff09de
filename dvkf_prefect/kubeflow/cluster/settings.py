"""Settings of a Kubeflow Pipelines installation: address, login, defaults of pods, and their access to the remote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dvkf_prefect.data.remotes.options import secrets_of
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.cluster.api import KfpApi
from dvkf_prefect.kubeflow.cluster.connection import checked_address
from dvkf_prefect.kubeflow.cluster.links import Links
from dvkf_prefect.kubeflow.cluster.login import Login
from dvkf_prefect.kubeflow.cluster.patience import Patience
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, Reference, parse_defaults
from dvkf_prefect.kubeflow.compile.workspace import WorkspaceVolume, parse_workspace
from dvkf_prefect.kubeflow.exchange.runs import OPTION_VARIABLE
from dvkf_prefect.urls import public_url

# Options of a remote that mean the same on every machine and are no secret. Paths of this machine and possible secrets
# are left out: everyone in the namespace can read a pipeline.
_SHARED_OPTIONS = frozenset(
    {
        "region",
        "endpointurl",
        "allow_anonymous_login",
        "use_ssl",
        "ssl_verify",
        "read_timeout",
        "connect_timeout",
        "sse",
        "sse_kms_key_id",
        "acl",
        "listobjects",
        "account_name",
        "tenant_id",
        "client_id",
        "projectname",
        "user",
        "port",
        "jobs",
        "timeout",
        "connection_timeout",
        "oss_endpoint",
        "auth",
        "method",
        "max_sessions",
        "gss_auth",
        "kerberos",
        "kerberos_principal",
        "kerb_ticket",
        "use_https",
        "replication",
        "shared",
        "exclude_environment_credential",
        "exclude_managed_identity_credential",
    }
)
_VARIABLE = "DVKF_KUBEFLOW_"
# Options that environment variables give, each by its name in capitals.
_VARIABLES = (
    "host",
    "ui_host",
    "namespace",
    "experiment",
    "image",
    "token",
    "token_file",
    "username",
    "password",
    "cookie",
    "cookie_name",
    "ca_file",
    "service_account",
    "pipeline_root",
    "remote_secret",
    "remote_url",
    "allow_dirty",
    "send_as",
    "failed_run",
    "workspace",
)
# Options with fixed values.
_CHOICES = {"send_as": ("inline", "version"), "failed_run": ("new", "retry")}
# Options that are stored in a part of the settings: the part, and the option's name in it.
_PARTS = {
    **{
        name: ("login", name)
        for name in ("token", "token_file", "username", "password", "cookie", "cookie_name")
    },
    "remote_secret": ("remote", "secret"),
    "remote_secret_keys": ("remote", "keys"),
    "remote_url": ("remote", "url"),
    "remote_options": ("remote", "options"),
    "run_timeout": ("patience", "run"),
    "start_timeout": ("patience", "start"),
    "schedule_timeout": ("patience", "schedule"),
}


@dataclass(frozen=True, slots=True)
class PodRemote:
    """Access of pods to the remote, if it differs from this machine's.

    Attributes:
        secret: Kubernetes secret with the credentials of the remote.
        keys: Option of the remote for each key of that secret. If empty, the keys are named like the options; for S3,
            ``access_key_id`` and ``secret_access_key``.
        url: Url of the remote inside the cluster.
        options: Options that differ inside the cluster, such as ``endpointurl``. No secrets.
    """

    secret: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def describe(self, repo: Repository, remote: Remote, placements: Mapping[str, Placement]) -> RemoteInPods:
        """Return the remote's url and options for pods, and the secret with its credentials.

        Args:
            repo: The repository.
            remote: The remote, opened on this machine.
            placements: Settings of the pods by stage.

        Raises:
            ConfigError: Pods would get no credentials, or cannot reach the remote.
        """
        _, configured = repo.config.remote(remote.name)
        here = configured.pop("url")
        url = public_url(self.url or here)
        for name, value in self.options.items():
            if secrets_of({name: value}):
                raise ConfigError(
                    f"the option '{name}' of the remote is a secret, and pipelines are readable on the "
                    "cluster. Put it into a Kubernetes secret, and name that secret."
                )
        options = {name: v for name, v in configured.items() if name in _SHARED_OPTIONS}
        if options.get("ssl_verify", "").lower() not in ("true", "false"):
            options.pop("ssl_verify", None)  # a file of this machine
        options.update(self.options)
        secret = [name for name, value in configured.items() if secrets_of({name: value})]
        if public_url(here) != here and not secret:
            secret = ["password"]
        if self.secret is None:
            if secret and not any(
                p.service_account or p.secrets or p.config_maps for p in placements.values()
            ):
                raise ConfigError(
                    f"remote '{remote.name}' is used on this machine with {', '.join(secret)}, which are not "
                    "sent to pods. Name the Kubernetes secret that holds them (remote_secret), or a service "
                    "account that needs none"
                )
            self._check_folder(url, remote, placements)
            return RemoteInPods(url, options, None)
        keys = dict(self.keys)
        if not keys:
            names = secret or (["access_key_id", "secret_access_key"] if url.startswith("s3") else [])
            keys = {name: name for name in names}
        if not keys:
            raise ConfigError(
                f"the secret '{self.secret}' has no mapping of its keys to options of remote '{remote.name}'"
            )
        variables = {key: OPTION_VARIABLE + option.upper() for key, option in keys.items()}
        return RemoteInPods(url, options, Reference(self.secret, variables))

    def _check_folder(self, url: str, remote: Remote, placements: Mapping[str, Placement]) -> None:
        if "://" in url:
            return
        path = Path(url)
        for stage, placement in placements.items():
            if not any(path.is_relative_to(volume.mount) for volume in placement.volumes):
                raise ConfigError(
                    f"remote '{remote.name}' is the folder {url} of this machine, which the pod of stage "
                    f"'{stage}' cannot access. Use a remote that both can access, or mount a volume with it "
                    "(`volumes`)."
                )


def _pairs(text: str) -> dict[str, str]:
    """Return the keys and values of ``a=1,b=2``.

    Raises:
        ConfigError: A part is no pair.
    """
    pairs = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equal, value = part.partition("=")
        if not equal:
            raise ConfigError(
                f"{_VARIABLE}WORKSPACE: '{part}' is no pair of key and value. "
                "Write size=500Gi,access_mode=ReadWriteMany."
            )
        pairs[key.strip()] = value.strip()
    return pairs


@dataclass(frozen=True, slots=True)
class RemoteInPods:
    """The remote as pods open it.

    Attributes:
        url: Its URL, without credentials.
        options: Its options, without secret ones.
        secret: Secret with its credentials; None if it needs none.
    """

    url: str
    options: Mapping[str, str]
    secret: Reference | None


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Settings of stages on a cluster.

    Attributes:
        host: Address of Kubeflow Pipelines.
        namespace: Namespace of the runs.
        experiment: Experiment of the runs, created if missing; "" for the name of the repository.
        image: Container image of stages that name none; "" refuses such stages.
        login: Credentials for the server.
        ca_file: CA certificates to trust instead of the usual ones.
        verify_ssl: Verify the server's certificate.
        ui_host: Address of the UI, for links; None if the host may serve it, too.
        service_account: Kubernetes service account of the pods.
        pipeline_root: Location of KFP's own artifacts; KFP's default if None.
        defaults: Settings of pods that their stages do not set.
        remote: Access of pods to the remote.
        workspace: Volume that the pods of a run share; None for none.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for an answer.
        outage: Maximum seconds without an answer of the API while a run is followed.
        patience: Timeouts of runs and pods.
        ask_kubernetes: Query Kubernetes for the reason when a pod does not start.
        kube_config: Kubeconfig file for these queries.
        kube_context: Context in that file.
        allow_dirty: Run stages even if files have uncommitted changes.
        push_missing: Upload objects that only this machine has, before the run.
        send_as: ``inline`` sends the pipeline with each run; ``version`` uploads it as a version of the repository's
            pipeline, to which runs refer. It needs the right to create pipelines, and versions are never deleted.
        failed_run: ``new`` starts the stages of a failed run again as another run; ``retry`` retries the same run.
    """

    host: str
    namespace: str = "kubeflow"
    experiment: str = ""
    image: str = ""
    login: Login = field(default_factory=Login)
    ca_file: str | None = None
    verify_ssl: bool = True
    ui_host: str | None = None
    service_account: str | None = None
    pipeline_root: str | None = None
    defaults: Placement = field(default_factory=Placement)
    remote: PodRemote = field(default_factory=PodRemote)
    workspace: WorkspaceVolume | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    outage: float = 300.0
    patience: Patience = field(default_factory=Patience)
    ask_kubernetes: bool = True
    kube_config: str | None = None
    kube_context: str | None = None
    allow_dirty: bool = False
    push_missing: bool = True
    send_as: Literal["inline", "version"] = "inline"
    failed_run: Literal["new", "retry"] = "new"

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ClusterSettings:
        """Return the settings that options give, by the names that the blocks and environment variables use.

        An option is an attribute of this class, or one of a part: an attribute of `login`; ``remote_secret``,
        ``remote_secret_keys``, ``remote_url`` and ``remote_options`` of `remote`; ``run_timeout``, ``start_timeout``
        and ``schedule_timeout`` of `patience`. ``defaults`` is written as a stage's ``meta: kubeflow:``, and
        ``workspace`` as a mapping of `WorkspaceVolume`.

        Args:
            options: Values by name; None, "" and an empty mapping leave the default.

        Raises:
            ConfigError: The defaults of pods are wrong, or an option with fixed values has another one.
            TypeError: An option is unknown, or the host is missing.

        Example:
            >>> ClusterSettings.from_options({"host": "http://localhost:8080", "run_timeout": 60.0}).patience.run
            60.0
        """
        own: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {"login": {}, "remote": {}, "patience": {}}
        for name, value in options.items():
            if value is None or value == "" or value == {}:
                continue
            if value not in _CHOICES.get(name, (value,)):
                raise ConfigError(f"{name} is {value!r}, which is none of: {', '.join(_CHOICES[name])}.")
            part, inner = _PARTS.get(name, ("", name))
            (parts[part] if part else own)[inner] = value
        if "defaults" in own:
            own["defaults"] = parse_defaults(own["defaults"])
        if "workspace" in own:
            own["workspace"] = parse_workspace(own["workspace"])
        return cls(
            **own,
            login=Login(**parts["login"]),
            remote=PodRemote(**parts["remote"]),
            patience=Patience(**parts["patience"]),
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ClusterSettings | None:
        """Return the settings that environment variables give; None without a host.

        ``DVKF_KUBEFLOW_HOST`` (or KFP's ``KF_PIPELINES_ENDPOINT``) is the address of Kubeflow Pipelines. Further
        variables are ``…_UI_HOST``, ``…_NAMESPACE``, ``…_EXPERIMENT``, ``…_IMAGE``, ``…_TOKEN``, ``…_TOKEN_FILE``,
        ``…_USERNAME``, ``…_PASSWORD``, ``…_COOKIE``, ``…_COOKIE_NAME``, ``…_CA_FILE``, ``…_SERVICE_ACCOUNT``,
        ``…_PIPELINE_ROOT``, ``…_REMOTE_SECRET``, ``…_REMOTE_URL``, ``…_SEND_AS``,
        ``…_FAILED_RUN``, ``…_WORKSPACE=size=500Gi,access_mode=ReadWriteMany`` and ``…_ALLOW_DIRTY=true``.

        Args:
            environment: The variables.

        Raises:
            ConfigError: An option with fixed values has another one, or the workspace is wrong.

        Example:
            >>> ClusterSettings.from_environment({"DVKF_KUBEFLOW_HOST": "http://localhost:8080"}).namespace
            'kubeflow'
        """
        options: dict[str, Any] = {name: environment.get(_VARIABLE + name.upper()) for name in _VARIABLES}
        options["host"] = options["host"] or environment.get("KF_PIPELINES_ENDPOINT")
        if not options["host"]:
            return None
        options["workspace"] = _pairs(options["workspace"] or "")
        options["allow_dirty"] = (options["allow_dirty"] or "").lower() in ("1", "true", "yes")
        return cls.from_options(options)

    def links(self, api: KfpApi) -> Links:
        """Return the links into the UI; without ``ui_host``, the host is asked once if it serves the UI.

        Args:
            api: Connection to the server.

        Raises:
            ConfigError: The address of the UI is wrong.
        """
        if self.ui_host:
            return Links(checked_address(self.ui_host))
        return Links(api.host if api.serves_ui() else "")

    def connect(self) -> KfpApi:
        """Return a connection to the server; the caller closes it.

        Raises:
            ConfigError: The address or the certificates are wrong.
        """
        return KfpApi(
            self.host,
            headers=self.login.headers,
            ca_file=self.ca_file,
            verify_ssl=self.verify_ssl,
            connect_timeout=self.connect_timeout,
            read_timeout=self.read_timeout,
            patience=self.outage,
        )
