"""Objects of the API: versions, managers of fields, watches, finalizers, garbage collection."""

from __future__ import annotations

import copy
import datetime
import itertools
import random
import string
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from . import fields
from .resources import Resource

Key = tuple[str, str, str, str]  # group, plural, namespace, name


class Refused(Exception):
    """An answer with a ``Status``, or with plain text."""

    def __init__(
        self, code: int, reason: str, message: str, *, details: dict | None = None, text: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.text = message if text else ""
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }  # fmt: skip
        if details:
            self.status["details"] = details


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """All objects, and the history of their changes.

    Attributes:
        lock: Held by every change; watchers wait on it.
        on_change: Called with the type and the object after each change, outside of requests' own work.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.objects: dict[Key, dict] = {}
        self.managers: dict[Key, dict[tuple[str, str], set[fields.Path]]] = {}
        self.history: list[tuple[int, str, str, str, dict]] = []
        self.compacted = 0
        self.resources: dict[tuple[str, str], Resource] = {}
        self.on_change: list[Callable[[str, Resource, dict], None]] = []
        # Versions are etcd's: they grow with every write anywhere.
        self._versions = itertools.count(1000)
        self.version = next(self._versions)

    def key(self, resource: Resource, namespace: str, name: str) -> Key:
        return (resource.group, resource.plural, namespace if resource.namespaced else "", name)

    def find(self, resource: Resource, namespace: str, name: str) -> dict:
        found = self.objects.get(self.key(resource, namespace, name))
        if found is None:
            raise self.absent(resource, name)
        return found

    @staticmethod
    def absent(resource: Resource, name: str) -> Refused:
        details = {
            "name": name,
            "kind": resource.plural,
            **({"group": resource.group} if resource.group else {}),
        }
        return Refused(404, "NotFound", f'{resource.full} "{name}" not found', details=details)

    # -- writes ------------------------------------------------------------------------------------------------------

    def put(
        self, resource: Resource, obj: dict, managers: Mapping[tuple[str, str], set[fields.Path]], kind: str
    ) -> dict:
        """Store an object under a new version and tell the watchers."""
        with self.lock:
            key = self.key(resource, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
            self.version = next(self._versions)
            obj["metadata"]["resourceVersion"] = str(self.version)
            obj["metadata"]["managedFields"] = [
                {
                    "manager": name, "operation": operation, "apiVersion": resource.api_version, "time": now(),
                    "fieldsType": "FieldsV1", "fieldsV1": fields.as_v1(owned),
                }
                for (name, operation), owned in managers.items()
                if owned
            ]  # fmt: skip
            self.objects[key] = obj
            self.managers[key] = {who: owned for who, owned in managers.items() if owned}
            self._record(kind, resource, obj)
        if (
            kind != "DELETED"
            and obj["metadata"].get("deletionTimestamp")
            and not obj["metadata"].get("finalizers")
        ):
            self.drop(resource, obj)
        return copy.deepcopy(obj)

    def create(self, resource: Resource, obj: dict, who: tuple[str, str]) -> dict:
        metadata = obj["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            # apiserver pkg/storage/names: five of these letters.
            letters = "".join(c for c in string.ascii_lowercase + string.digits if c not in "aeiou013l")
            metadata["name"] = metadata["generateName"] + "".join(random.choices(letters, k=5))
        name, namespace = metadata["name"], metadata.get("namespace", "")
        with self.lock:
            if self.key(resource, namespace, name) in self.objects:
                details = {"name": name, "kind": resource.plural}
                raise Refused(
                    409, "AlreadyExists", f'{resource.full} "{name}" already exists',
                    details={**details, **({"group": resource.group} if resource.group else {})},
                )  # fmt: skip
            metadata.update(uid=str(uuid.uuid4()), creationTimestamp=now())
            metadata.pop("resourceVersion", None)
            if resource.schema or resource.group or resource.plural == "pods":
                metadata["generation"] = 1
            if resource.schema and resource.status:
                obj.pop("status", None)
            made = self.put(resource, obj, {who: set(fields.paths(obj, resource.merge_schema))}, "ADDED")
        self.collect()
        return made

    def update(
        self, resource: Resource, old: dict, obj: dict, who: tuple[str, str],
        managers: dict[tuple[str, str], set[fields.Path]] | None = None,
    ) -> dict:  # fmt: skip
        """Store a change of an object; an equal object keeps its version."""
        with self.lock:
            key = self.key(resource, old["metadata"].get("namespace", ""), old["metadata"]["name"])
            for name in ("uid", "creationTimestamp", "resourceVersion", "generation", "name", "namespace",
                         "deletionTimestamp", "managedFields"):  # fmt: skip
                obj["metadata"].pop(name, None)
                if name in old["metadata"]:
                    obj["metadata"][name] = old["metadata"][name]
            known = self.managers.get(key, {})
            if obj == old and (managers is None or managers == known):
                return copy.deepcopy(old)

            def desired(each: dict) -> dict:
                return {k: v for k, v in each.items() if k not in ("metadata", "status")}

            if "generation" in old["metadata"] and desired(obj) != desired(old):
                obj["metadata"]["generation"] = old["metadata"]["generation"] + 1
            if managers is None:
                managers = self._taken(resource, old, obj, who, known)
            return self.put(resource, obj, managers, "MODIFIED")

    @staticmethod
    def _taken(
        resource: Resource,
        old: dict,
        obj: dict,
        who: tuple[str, str],
        known: dict[tuple[str, str], set[fields.Path]],
    ) -> dict[tuple[str, str], set[fields.Path]]:
        """Return the managers after an update: changed fields are the writer's, removed ones are no one's."""
        schema = resource.merge_schema
        after = set(fields.paths(obj, schema))
        changed = {p for p in after if fields.get(old, p, schema) != fields.get(obj, p, schema)}
        left = {each: (owned & after) - changed for each, owned in known.items()}
        left[who] = left.get(who, set()) | changed
        return left

    def delete(self, resource: Resource, obj: dict) -> dict:
        """Delete an object; with finalizers it stays until they are gone."""
        with self.lock:
            if obj["metadata"].get("finalizers"):
                if not obj["metadata"].get("deletionTimestamp"):
                    obj = copy.deepcopy(obj)
                    obj["metadata"]["deletionTimestamp"] = now()
                    key = self.key(resource, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
                    self.put(resource, obj, self.managers.get(key, {}), "MODIFIED")
                return obj
            self.drop(resource, obj)
            return obj

    def drop(self, resource: Resource, obj: dict) -> None:
        with self.lock:
            key = self.key(resource, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
            self.objects.pop(key, None)
            self.managers.pop(key, None)
            self.version = next(self._versions)
            gone = copy.deepcopy(obj)
            gone["metadata"]["resourceVersion"] = str(self.version)
            self._record("DELETED", resource, gone)
        self.collect()

    def collect(self) -> None:
        """Delete objects whose owners are all gone, as the garbage collector does in the background.

        Source: kubernetes pkg/controller/garbagecollector/garbagecollector.go (``attemptToDeleteItem``): owners are
        compared by uid, so a reference to an object that never was is one to an absent object.
        """
        with self.lock:
            uids = {obj["metadata"]["uid"] for obj in self.objects.values()}
            for key, obj in list(self.objects.items()):
                owners = obj["metadata"].get("ownerReferences", ())
                if owners and key in self.objects and not any(o["uid"] in uids for o in owners):
                    self.delete(self.resources[key[:2]], obj)

    def _record(self, kind: str, resource: Resource, obj: dict) -> None:
        self.history.append((self.version, kind, resource.group, resource.plural, copy.deepcopy(obj)))
        self.lock.notify_all()
        for call in self.on_change:
            call(kind, resource, copy.deepcopy(obj))

    def compact(self) -> None:
        """Forget the history of changes, as etcd does after five minutes."""
        with self.lock:
            self.compacted = self.version
            self.history.clear()


def selected(obj: dict, labels: list[tuple[str, str, str]], wanted: list[tuple[str, str, str]]) -> bool:
    """Return True if an object matches parsed selectors."""
    have = obj["metadata"].get("labels", {})
    for key, sign, value in labels:
        if sign == "exists":
            ok = key in have
        elif sign == "in":
            ok = have.get(key) in value.split(",")
        else:
            ok = (have.get(key) == value) == (sign == "=")
        if not ok:
            return False
    for place, sign, value in wanted:
        at: Any = obj
        for part in place.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        if ((at or "") == value) != (sign == "="):
            return False
    return True
