"""Login in front of the server, and the hosts that it can be reached by."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING

from .store import Refused

if TYPE_CHECKING:
    from .server import FakeKfp


def check_login(fake: FakeKfp, path: str, headers: Mapping[str, str]) -> str:
    """Refuse a request without credentials; return its user.

    Source: kubeflow/manifests, common/oauth2-proxy/base/oauth2_proxy.cfg: cookie ``oauth2_proxy_kubeflow``, in parts
    ``_0``, ``_1``, … if it is long; ``api_routes "/apis/"`` get 401, other paths a redirect to the login page; a
    service account's token bypasses the login.
    """
    if not (fake.tokens or fake.cookies):
        return fake.user
    kind, _, value = headers.get("Authorization", "").partition(" ")
    if kind == "Bearer" and value in fake.tokens:
        return value
    sent = {name: morsel.value for name, morsel in SimpleCookie(headers.get("Cookie", "")).items()}
    known = fake.cookies and all(sent.get(name) == value for name, value in fake.cookies.items())
    if known and time.time() < fake.cookies_until:
        return fake.user
    # oauth2-proxy, oauthproxy.go (errorJSON): an API's answer is an empty object.
    if path.startswith(("/apis/", "/api/")):
        raise Refused(401, "{}", by="proxy")
    raise Refused(302, "", by="proxy")


def check_namespace(fake: FakeKfp, namespace: str, user: str, verb: str) -> None:
    """Refuse a request about another's namespace, in multi-user mode.

    Source: apiserver/resource/resource_manager.go (IsAuthorized: a SubjectAccessReview on pipelines.kubeflow.org).
    """
    if not fake.multi_user:
        return
    if not namespace:
        raise Refused(400, "Invalid input error: a resource must belong to a namespace in multi-user mode")
    if not user:
        # resource_manager.go:2606 (IsAuthorized)
        raise Refused(
            401,
            "Unauthenticated: Failed to check authorization. User identity is empty in the request header",
        )
    if namespace not in fake.allowed.get(user, ()):
        raise Refused(
            403,
            f"PermissionDenied: User '{user}' is not authorized with reason: (request: verb {verb}, group "
            f"pipelines.kubeflow.org, namespace {namespace})",
        )
