"""Check of images in their registries: asked from this machine, with the credentials that `docker login` stored.

Sources: OCI Distribution Specification 1.1, "Checking if content exists in the registry"; the token and OAuth 2.0
endpoints of CNCF Distribution (``docs/content/spec/auth``). The ``docker`` package resolves names and credentials,
those of credential helpers too.
"""

from __future__ import annotations

import ipaddress
import re
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from dvkf_prefect.data.upkeep.doctor import Check

TITLE = "image in registry"
# Kinds of manifests that a kubelet takes.
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_HUB = "docker.io"
_HUB_HOST = "registry-1.docker.io"  # which the name docker.io stands for
_MOST = 10  # images
_PATIENCE = 30.0  # seconds for all images
_PARAMETER = re.compile(r'([a-zA-Z]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class _Image:
    """Image by its name.

    Attributes:
        registry: Name of the registry, as credentials are stored under.
        name: Name of the repository in it.
        reference: Tag or digest.
    """

    registry: str
    name: str
    reference: str

    @classmethod
    def parse(cls, text: str) -> _Image:
        """Read a name such as ``registry.example.org/team/stages:1``.

        Raises:
            docker.errors.InvalidRepository: It is none.
        """
        from docker.auth import resolve_repository_name  # type: ignore[import-untyped]
        from docker.utils import parse_repository_tag  # type: ignore[import-untyped]

        where, reference = parse_repository_tag(text)
        if reference and ":" in reference:
            where = parse_repository_tag(where)[0]  # a digest decides, also beside a tag
        registry, name = resolve_repository_name(where)
        if registry == _HUB and "/" not in name:
            name = f"library/{name}"
        return cls(registry, name, reference or "latest")

    @property
    def url(self) -> str:
        host = _HUB_HOST if self.registry == _HUB else self.registry
        return f"{'http' if _is_local(host) else 'https'}://{host}/v2/{self.name}/manifests/{self.reference}"


def check_registry(images: Sequence[str], *, connect_timeout: float = 10.0) -> Iterator[Check]:
    """Yield one check for each image.

    Args:
        images: Names of the images.
        connect_timeout: Seconds to wait for a connection, and for an answer.
    """
    end = time.monotonic() + _PATIENCE
    for place, image in enumerate(images):
        left = end - time.monotonic()
        if place >= _MOST or left <= 0:
            yield _unknown(image, f"{len(images) - place} images are too many for a check")
            return
        try:
            yield _check(image, min(connect_timeout, left))
        except httpx.HTTPError as error:
            yield _unknown(image, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        except Exception as error:  # noqa: BLE001 (docker's errors, of names and of credential helpers)
            yield _unknown(image, " ".join(str(error).split())[:160] or type(error).__name__)


def _check(image: str, timeout: float) -> Check:
    found = _Image.parse(image)
    with httpx.Client(timeout=timeout, follow_redirects=True, headers={"Accept": _ACCEPT}) as client:
        login: tuple[str, str] | str | None = None
        response = client.head(found.url)
        if response.status_code == 401:
            login = _login(found.registry)
            if header := _authorization(client, found, response, login):
                response = client.head(found.url, headers={"Authorization": header})
    if response.status_code == 200:
        digest = response.headers.get("Docker-Content-Digest", "")
        return Check(TITLE, "ok", f"{image}" + (f" is {digest[:19]}" if digest else ""))
    if response.status_code == 404:
        step = f"push it, or name another one: `dvkf image build` makes one ({found.registry} answered 404)"
        return Check(TITLE, "fail", f"{image} does not exist", step)
    if response.status_code in (401, 403):
        who = "the login of this machine" if login else "this machine without a login"
        step = f"`docker login {found.registry}` to check it; pods use `image_pull_secrets` of their own"
        return _unknown(image, f"{found.registry} refuses {who} ({response.status_code})", step)
    return _unknown(image, f"{found.registry} answered {response.status_code}")


def _login(registry: str) -> tuple[str, str] | str | None:
    """Return the stored name and password for a registry, or its identity token; None without either."""
    from docker.auth import load_config

    stored = load_config().resolve_authconfig(registry) or {}
    values = {key.lower(): value for key, value in stored.items()}
    if token := values.get("identitytoken"):
        return str(token)
    if values.get("username"):
        return str(values["username"]), str(values.get("password") or "")
    return None


def _authorization(
    client: httpx.Client, image: _Image, refused: httpx.Response, login: tuple[str, str] | str | None
) -> str:
    """Return the header that answers a challenge; "" if there is none."""
    kind, _, rest = refused.headers.get("WWW-Authenticate", "").partition(" ")
    if kind.lower() == "basic":
        return _basic(login) if isinstance(login, tuple) else ""
    values = {key.lower(): value for key, value in _PARAMETER.findall(rest)}
    realm = values.get("realm", "")
    # Credentials are not sent in clear text to a host that the registry names.
    if kind.lower() != "bearer" or not (
        urlsplit(realm).scheme == "https" or _is_local(urlsplit(realm).netloc)
    ):
        return ""
    asked = {"scope": values.get("scope") or f"repository:{image.name}:pull"}
    if service := values.get("service"):
        asked["service"] = service
    if isinstance(login, str):
        form = {**asked, "grant_type": "refresh_token", "refresh_token": login, "client_id": "dvkf"}
        answer = client.post(realm, data=form)
    else:
        headers = {"Authorization": _basic(login)} if login else {}
        answer = client.get(realm, params=asked, headers=headers)
    if not answer.is_success:
        return ""
    given = answer.json()
    token = given.get("token") or given.get("access_token")
    return f"Bearer {token}" if token else ""


def _basic(login: tuple[str, str]) -> str:
    return f"Basic {b64encode(':'.join(login).encode()).decode()}"


def _is_local(netloc: str) -> bool:
    """Return True for this machine, where registries speak plain HTTP."""
    host = urlsplit(f"//{netloc}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unknown(image: str, why: str, step: str = "") -> Check:
    step = step or f"see if the cluster's nodes can pull it: `docker manifest inspect {image}`"
    return Check(TITLE, "warn", f"{image} not checked: {why}", step)
