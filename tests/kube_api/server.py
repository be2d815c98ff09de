"""HTTP of the API server.

Sources: apiserver pkg/endpoints (paths, verbs, patch types, watches), pkg/storage/cacher (watch errors);
serving.md E1 to E3 for the texts.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import servers
import yaml

from . import access, logs
from .admission import Webhook
from .request import Request
from .resources import BUILT_IN, Resource
from .store import Refused, Store, selected
from .writes import Writes

_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/[^/]))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+))?)?/?"
)


class KubeApi(Writes):
    """A Kubernetes API on 127.0.0.1.

    Attributes:
        url: Its address.
        store: Its objects.
        webhooks: Webhook of each resource, by group and plural.
        rules: Roles of each user; a login without an entry is refused with 401.
        requests: Method, path and user of all requests.
        before: Called before each request, for objects that are put up to date when they are asked for.
    """

    def __init__(self) -> None:
        self.store = Store()
        self.webhooks: dict[tuple[str, str], Webhook] = {}
        self.rules: dict[str, tuple[access.Rule, ...]] = {"admin": access.ALL}
        self.logs: dict[tuple[str, str, str], logs.Log] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.before: list[Callable[[], None]] = []
        self.problems: list[str] = []
        self.closed = threading.Event()
        for resource in BUILT_IN:
            self.serve(resource)
        for name in ("default", "kube-system", "kubeflow"):
            self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    # -- set-up, for tests -------------------------------------------------------------------------------------------

    def serve(self, resource: Resource, webhook: Webhook | None = None) -> None:
        self.store.resources[resource.group, resource.plural] = resource
        if webhook is not None:
            self.webhooks[resource.group, resource.plural] = webhook

    def resource_of(self, obj: dict) -> Resource:
        group, _, version = obj["apiVersion"].rpartition("/")
        return next(
            r
            for r in self.store.resources.values()
            if (r.group, r.version, r.kind) == (group, version, obj["kind"])
        )

    def put(self, obj: dict, manager: str = "test") -> dict:
        """Create an object as the cluster's own controllers do: without admission, with its status."""
        resource = self.resource_of(obj)
        obj = copy.deepcopy(obj)
        status = obj.pop("status", None)
        with self.store.lock:
            made = self.store.create(resource, obj, (manager, "Update"))
            if status is not None:
                name, namespace = made["metadata"]["name"], made["metadata"].get("namespace", "")
                made = self.set_status(resource.group, resource.plural, namespace, name, status)
        return made

    def set_status(self, group: str, plural: str, namespace: str, name: str, status: dict) -> dict:
        with self.store.lock:
            resource = self.store.resources[group, plural]
            old = self.store.find(resource, namespace, name)
            if resource.schema:
                causes = resource.schema.validate({**old, "status": status}, old)
                assert not causes, causes
            return self.store.update(
                resource, old, {**copy.deepcopy(old), "status": status}, ("controller", "Update")
            )

    def get(self, plural: str, namespace: str, name: str, group: str = "") -> dict | None:
        return self.store.objects.get((group, plural, namespace, name))

    def all(self, plural: str, group: str = "") -> list[dict]:
        with self.store.lock:
            return [obj for key, obj in self.store.objects.items() if key[:2] == (group, plural)]

    def event(self, about: dict, reason: str, message: str, kind: str = "Normal") -> dict:
        """Record an event about an object."""
        meta = about["metadata"]
        involved = {
            "kind": about["kind"],
            "apiVersion": about["apiVersion"],
            "name": meta["name"],
            "uid": meta["uid"],
        }
        if "namespace" in meta:
            involved["namespace"] = meta["namespace"]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        metadata = {"generateName": f"{meta['name']}.", "namespace": meta.get("namespace", "default")}
        return self.put(
            {
                "apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": involved, "type": kind,
                "reason": reason, "message": message[:1024], "firstTimestamp": stamp, "lastTimestamp": stamp,
                "count": 1,
            }
        )  # fmt: skip

    def log(self, namespace: str, pod: str, container: str) -> logs.Log:
        return self.logs.setdefault((namespace, pod, container), logs.Log())

    def kubeconfig(self, file: Path, user: str = "admin", namespace: str = "kubeflow") -> str:
        """Write a kubeconfig with a user's login; return its path."""
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}],
            "users": [{"name": user, "user": {"token": self.token(user)}}],
        }  # fmt: skip
        file.write_text(yaml.safe_dump(document))
        return str(file)

    @staticmethod
    def token(user: str) -> str:
        return base64.urlsafe_b64encode(user.encode()).decode()

    def __enter__(self) -> KubeApi:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def _do(self) -> None:
                api._serve(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, address: object) -> None:
                pass  # a client that went away

        self._running = servers.serving(Server(("127.0.0.1", 0), Handler))
        self.url = f"http://127.0.0.1:{self._running.__enter__()}"
        return self

    def __exit__(self, *error: object) -> None:
        self.closed.set()
        with self.store.lock:
            self.store.lock.notify_all()
        for log in self.logs.values():
            log.end()
        self._running.__exit__(None, None, None)
        if error[0] is None:
            assert not self.problems, "\n".join(self.problems)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        request = Request(handler.command, handler.path, handler.headers, body)
        warnings: list[str] = []
        try:
            self._login(request)
            for call in self.before:
                call()
            self.requests.append((request.method, request.path, request.user))
            code, answer = self._answer(request, warnings)
        except Refused as refused:
            code, answer = refused.code, refused.text or refused.status
        except Exception:
            self.problems.append(traceback.format_exc())
            code, answer = 500, "the fake failed"
        if isinstance(answer, (str, dict)):
            kind = "text/plain" if isinstance(answer, str) else "application/json"
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            handler.send_response(code)
            for warning in warnings:
                handler.send_header("Warning", f'299 - "{warning}"')
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        else:
            self._stream(handler, answer)

    @staticmethod
    def _stream(handler: BaseHTTPRequestHandler, chunks: Iterable[str]) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for chunk in chunks:
                data = chunk.encode()
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                handler.wfile.flush()
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            handler.close_connection = True

    def _login(self, request: Request) -> None:
        kind, _, token = (request.headers.get("Authorization") or "").partition(" ")
        if kind != "Bearer":
            request.user = "system:anonymous"
            return
        try:
            request.user = base64.urlsafe_b64decode(token).decode()
        except ValueError:
            request.user = ""
        if request.user not in self.rules:
            raise Refused(401, "Unauthorized", "Unauthorized")

    def answer(self, request: Request) -> tuple[int, Any]:
        """Return the code and body for a request of a user that is logged in; raise `Refused`."""
        return self._answer(request, [])

    def _answer(self, request: Request, warnings: list[str]) -> tuple[int, Any]:
        if found := self._about(request):
            return 200, found
        match = _PATH.fullmatch(request.path)
        parts = match.groupdict() if match else {}
        resource = self.store.resources.get((parts.get("group") or "", parts.get("plural") or ""))
        if resource is None or (parts["core"] or parts["version"]) != resource.version:
            raise Refused(404, "", "404 page not found\n", text=True)  # also for a CRD that is absent (E3)
        namespace, name, sub = parts["namespace"] or "", parts["name"] or "", parts["sub"] or ""
        if resource.namespaced and name and not namespace:
            raise Refused(404, "", "404 page not found\n", text=True)
        watching = request.flag("watch")
        verbs = {"GET": "watch" if watching else "get" if name else "list", "POST": "create", "PUT": "update",
                 "PATCH": "patch", "DELETE": "delete" if name else "deletecollection"}  # fmt: skip
        verb = verbs[request.method]
        self._allow(request, verb, resource, namespace, name, sub)
        if sub == "log" and resource.plural == "pods":
            return self._log(request, self.store.find(resource, namespace, name))
        if sub and not (sub == "status" and resource.status):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if verb == "watch":
            return 200, self._watch(request, resource, namespace)
        if verb == "list":
            return 200, self._list(request, resource, namespace)
        with self.store.lock:
            if verb == "get":
                return 200, copy.deepcopy(self.store.find(resource, namespace, name))
            if verb == "create":
                return 201, self._create(
                    request, resource, namespace, self._read(request, resource, namespace), warnings
                )
            if verb == "update":
                obj = self._read(request, resource, namespace)
                old = self.store.find(resource, namespace, name)
                return 200, self._change(request, resource, old, obj, sub, warnings)
            if verb == "patch":
                return self._patch(request, resource, namespace, name, sub, warnings)
            return 200, self._delete(request, resource, namespace, name)

    def _about(self, request: Request) -> dict | None:
        """Return discovery, OpenAPI and reviews of rights, which every login may ask for."""
        path, resources = request.path.rstrip("/"), self.store.resources.values()
        groups = {r.api_version: [] for r in resources}  # type: dict[str, list[Resource]]
        for resource in resources:
            groups[resource.api_version].append(resource)
        if path == "/version":
            return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            named = [{"groupVersion": v, "version": v.partition("/")[2]} for v in groups if "/" in v]
            listed = [
                {"name": n["groupVersion"].partition("/")[0], "versions": [n], "preferredVersion": n}
                for n in named
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if version in groups and path.startswith("/api"):
            listed = [
                {"name": r.plural, "kind": r.kind, "namespaced": r.namespaced, "singularName": r.kind.lower(),
                 "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]}
                for r in groups[version]
            ]  # fmt: skip
            return {"kind": "APIResourceList", "groupVersion": version, "resources": listed}
        if path.startswith("/openapi/v3/apis/"):
            version = path.removeprefix("/openapi/v3/apis/")
            schemas = {
                ".".join([*reversed(r.group.split(".")), r.version, r.kind]): r.schema.root
                for r in groups.get(version, ())
                if r.schema
            }
            if not schemas:
                raise Refused(404, "", "404 page not found\n", text=True)
            return {"openapi": "3.0.0", "components": {"schemas": schemas}}
        review = re.fullmatch(r"/apis/authorization\.k8s\.io/v1/(self)?subjectaccessreviews", path)
        if review and request.method == "POST":
            spec = request.json()["spec"]
            asked = spec["resourceAttributes"]
            sub = f"/{asked['subresource']}" if asked.get("subresource") else ""
            rules = self.rules.get(request.user if review[1] else spec["user"], ())
            name, group = asked.get("name") or "", asked.get("group") or ""
            allowed = any(r.allows(asked["verb"], group, asked["resource"] + sub, name) for r in rules)
            return {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
                    "spec": spec, "status": {"allowed": allowed}}  # fmt: skip
        return None

    # -- reads -------------------------------------------------------------------------------------------------------

    def _selectors(self, request: Request, resource: Resource) -> tuple[list, list]:
        labels, wanted = [], []
        for term in filter(None, re.split(r",(?![^()]*\))", request.query.get("labelSelector", ""))):
            if inside := re.fullmatch(r"(\S+) in \(([^)]*)\)", term):
                labels.append((inside[1], "in", inside[2].replace(" ", "")))
            elif "=" in term:
                key, sign, value = re.fullmatch(r"([^!=]+)(!=|==?)(.*)", term).groups()  # type: ignore[union-attr]
                labels.append((key, sign[0], value))
            else:
                labels.append((term, "exists", ""))
        for term in filter(None, request.query.get("fieldSelector", "").split(",")):
            key, sign, value = re.fullmatch(r"([^!=]+)(!=|==?)(.*)", term).groups()  # type: ignore[union-attr]
            if key not in ("metadata.name", "metadata.namespace", *resource.selectable):
                raise Refused(400, "BadRequest", f"field label not supported: {key}")
            wanted.append((key, sign[0], value))
        return labels, wanted

    def _list(self, request: Request, resource: Resource, namespace: str) -> dict:
        labels, wanted = self._selectors(request, resource)
        with self.store.lock:
            at = self.store.version
            items = [
                copy.deepcopy(obj)
                for key, obj in sorted(self.store.objects.items())
                if key[:2] == (resource.group, resource.plural)
                and namespace in ("", key[2])
                and selected(obj, labels, wanted)
            ]
        metadata: dict[str, Any] = {"resourceVersion": str(at)}
        limit, start = int(request.query.get("limit") or 0), 0
        if token := request.query.get("continue"):
            version, start = map(int, base64.b64decode(token).decode().split(":"))
            if version <= self.store.compacted:
                # apiserver pkg/storage/etcd3/errors.go: the list must be started anew.
                raise Refused(
                    410,
                    "Expired",
                    "The provided continue parameter is too old to display a consistent list result.",
                )
            metadata["resourceVersion"] = str(version)
            at = version
        if limit and len(items) > start + limit:
            metadata["continue"] = base64.b64encode(f"{at}:{start + limit}".encode()).decode()
            metadata["remainingItemCount"] = len(items) - start - limit
        items = items[start : start + limit] if limit else items[start:]
        if "as=PartialObjectMetadataList;g=meta.k8s.io;v=v1" in (request.headers.get("Accept") or ""):
            # apiserver pkg/endpoints/handlers/response.go (asPartialObjectMetadataList)
            kind, version = "PartialObjectMetadata", "meta.k8s.io/v1"
            items = [{"kind": kind, "apiVersion": version, "metadata": obj["metadata"]} for obj in items]
            return {"kind": f"{kind}List", "apiVersion": version, "metadata": metadata, "items": items}
        return {
            "kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata, "items": items
        }  # fmt: skip

    def _watch(self, request: Request, resource: Resource, namespace: str) -> Iterator[str]:
        """Yield the changes of a kind; it ends after ``timeoutSeconds``, or with an error for an old version."""
        labels, wanted = self._selectors(request, resource)
        given, marks = (
            request.query.get("resourceVersion", ""),
            request.flag("allowWatchBookmarks"),
        )
        deadline = time.monotonic() + float(request.query.get("timeoutSeconds") or 1800)

        def line(kind: str, obj: dict) -> str:
            return json.dumps({"type": kind, "object": obj}) + "\n"

        with self.store.lock:
            seen = int(given) if given and given != "0" else self.store.version
            first = [] if given and given != "0" else self._list(request, resource, namespace)["items"]
            gone, compacted = seen < self.store.compacted, self.store.compacted
        for obj in first:
            yield line("ADDED", obj)
        if gone:
            status = Refused(410, "Expired", f"too old resource version: {seen} ({compacted})").status
            yield line("ERROR", status)
            return
        matching = {obj["metadata"]["uid"] for obj in first}
        while not self.closed.is_set() and (left := deadline - time.monotonic()) > 0:
            with self.store.lock:
                if self.store.version == seen:
                    self.store.lock.wait(min(left, 0.5))
                news = [each for each in self.store.history if each[0] > seen]
                seen = self.store.version
            for _, kind, group, plural, obj in news:
                if (group, plural) != (resource.group, resource.plural):
                    continue
                if namespace not in ("", obj["metadata"].get("namespace", "")):
                    continue
                uid, fits = obj["metadata"]["uid"], selected(obj, labels, wanted)
                # pkg/storage/cacher: an object that leaves the selection is deleted for the watcher.
                if kind == "MODIFIED" and labels + wanted and not fits and uid in matching:
                    kind, fits = "DELETED", True
                elif kind == "MODIFIED" and fits and labels + wanted and uid not in matching and given:
                    kind = "MODIFIED"
                if fits:
                    (matching.discard if kind == "DELETED" else matching.add)(uid)
                    yield line(kind, obj)
        if marks:
            mark = {
                "kind": resource.kind,
                "apiVersion": resource.api_version,
                "metadata": {"resourceVersion": str(seen)},
            }
            yield line("BOOKMARK", mark)

    def _log(self, request: Request, pod: dict) -> tuple[int, Any]:
        container = logs.container_of(pod, request.query)
        logs.check_started(pod, container, previous=request.flag("previous"))
        log = self.log(pod["metadata"]["namespace"], pod["metadata"]["name"], container)
        text = logs.read(log, request)
        return 200, text if request.flag("follow") else "".join(text)
