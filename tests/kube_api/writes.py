"""Writes: admission, creation, updates, patches, server-side apply, deletion.

Sources: apiserver pkg/registry/generic/registry/store.go, pkg/endpoints/handlers (patch types); serving.md E2, E3, J14
for the texts.
"""

from __future__ import annotations

import copy
from typing import Any

import yaml

from . import access, fields
from .admission import Webhook
from .request import Request
from .resources import Resource, metadata_causes
from .store import Refused, Store

_PATCHES = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")
_STRATEGIC = "application/strategic-merge-patch+json"


class Writes:
    """Writing requests of an API."""

    store: Store
    webhooks: dict[tuple[str, str], Webhook]
    rules: dict[str, tuple[access.Rule, ...]]

    def _allow(
        self, request: Request, verb: str, resource: Resource, namespace: str, name: str, sub: str
    ) -> None:
        full = f"{resource.plural}/{sub}" if sub else resource.plural
        rules = self.rules.get(request.user, ())
        if any(rule.allows(verb, resource.group, full, name) for rule in rules):
            return
        said = access.forbidden(request.user, verb, resource.group, full, name, namespace)
        details = {
            k: v for k, v in (("name", name), ("group", resource.group), ("kind", resource.plural)) if v
        }
        raise Refused(403, "Forbidden", said, details=details)

    def _read(self, request: Request, resource: Resource, namespace: str) -> dict:
        obj = request.json()
        given = (obj.get("apiVersion", resource.api_version), obj.get("kind", resource.kind))
        if given != (resource.api_version, resource.kind):
            said = f"the API version in the data ({given[0]}) does not match the expected API version "
            said += f"({resource.api_version})"
            raise Refused(400, "BadRequest", said)
        obj.update(apiVersion=resource.api_version, kind=resource.kind)
        metadata = obj.setdefault("metadata", {})
        if namespace and metadata.setdefault("namespace", namespace) != namespace:
            said = "the namespace of the provided object does not match the namespace sent on the request"
            raise Refused(400, "BadRequest", said)
        return obj

    def _admit(
        self,
        request: Request,
        resource: Resource,
        obj: dict,
        old: dict | None,
        warnings: list[str],
        sub: str = "",
    ) -> None:
        """Prune, default, let the webhooks change it, check it, let the webhooks refuse it."""
        webhook = None if sub else self.webhooks.get((resource.group, resource.plural))
        if resource.schema:
            warnings += [f'unknown field "{path[1:]}"' for path in resource.schema.prune(obj)]
            resource.schema.default(obj)
        if webhook:
            webhook.mutate(obj)
        causes = metadata_causes(obj)
        if resource.schema:
            causes += resource.schema.validate(obj, old)
        if resource.check:
            causes += resource.check(obj, old)
        if causes:
            self._invalid(resource, obj, causes)
        if webhook:
            webhook.validate(self.store, obj, old)

    @staticmethod
    def _invalid(resource: Resource, obj: dict, causes: list[dict]) -> None:
        listed = [f"{c['field']}: {c['message']}" for c in causes]
        said = listed[0] if len(listed) == 1 else "[" + ", ".join(listed) + "]"
        name = obj["metadata"].get("name", "")
        kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
        details = {"name": name, "group": resource.group, "kind": resource.kind, "causes": causes}
        raise Refused(422, "Invalid", f'{kind} "{name}" is invalid: {said}', details=details)

    def _create(
        self, request: Request, resource: Resource, namespace: str, obj: dict, warnings: list[str]
    ) -> dict:
        if resource.namespaced:
            self.store.find(self.store.resources["", "namespaces"], "", namespace)
        if obj["metadata"].get("resourceVersion"):
            raise Refused(500, "", "resourceVersion should not be set on objects to be created")
        probe = copy.deepcopy(obj)
        if not probe["metadata"].get("name") and probe["metadata"].get("generateName"):
            probe["metadata"]["name"] = probe["metadata"]["generateName"] + "xxxxx"
        self._admit(request, resource, probe, None, warnings)
        if "name" not in obj["metadata"]:
            probe["metadata"].pop("name", None)
        if request.dry:
            return probe
        return self.store.create(resource, probe, (request.writer, "Update"))

    def _change(
        self, request: Request, resource: Resource, old: dict, obj: dict, sub: str, warnings: list[str],
        managers: dict | None = None,
    ) -> dict:  # fmt: skip
        given = obj["metadata"].get("resourceVersion")
        if given and given != old["metadata"]["resourceVersion"]:
            name = old["metadata"]["name"]
            said = (
                "the object has been modified; please apply your changes to the latest version and try again"
            )
            details = {
                "name": name,
                "kind": resource.plural,
                **({"group": resource.group} if resource.group else {}),
            }
            raise Refused(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {resource.full} "{name}": {said}',
                details=details,
            )
        if not given and request.method == "PUT" and resource.schema:
            cause = {"reason": "FieldValueInvalid", "field": "metadata.resourceVersion",
                     "message": "Invalid value: 0x0: must be specified for an update"}  # fmt: skip
            self._invalid(resource, obj, [cause])
        if (uid := obj["metadata"].get("uid")) and uid != old["metadata"]["uid"]:
            said = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old['metadata']['uid']}"
            raise Refused(409, "Conflict", said)
        if resource.status:
            # Each part ignores the other; metadata of the main one alone.
            kept = "status" if not sub else "spec"
            obj.pop(kept, None)
            if kept in old:
                obj[kept] = copy.deepcopy(old[kept])
            if sub:
                obj = {**copy.deepcopy(old), "status": obj.get("status", {})}
        self._admit(request, resource, obj, old, warnings, sub)
        if request.dry:
            return obj
        return self.store.update(resource, old, obj, (request.writer, "Update"), managers)

    def _patch(
        self, request: Request, resource: Resource, namespace: str, name: str, sub: str, warnings: list[str]
    ) -> tuple[int, dict]:
        kind = (request.headers.get("Content-Type") or "").partition(";")[0]
        accepted = _PATCHES if resource.schema else (*_PATCHES, _STRATEGIC)
        if kind not in accepted:
            said = "the body of the request was in an unknown format - accepted media types include: "
            said += ", ".join(accepted)
            raise Refused(415, "UnsupportedMediaType", said)
        if kind == "application/apply-patch+yaml":
            return self._apply(request, resource, namespace, name, sub, warnings)
        old = self.store.find(resource, namespace, name)
        if kind == "application/json-patch+json":
            obj = _json_patch(old, request.json())
        else:
            if not isinstance(request.json(), dict):
                raise Refused(
                    400, "BadRequest", "error decoding patch: cannot unmarshal into map[string]interface {}"
                )
            schema = resource.merge_schema if kind == _STRATEGIC else {}
            obj = _merge_patch(copy.deepcopy(old), request.json(), schema)
        return 200, self._change(request, resource, old, obj, sub, warnings)

    def _apply(
        self, request: Request, resource: Resource, namespace: str, name: str, sub: str, warnings: list[str]
    ) -> tuple[int, dict]:
        """Server-side apply (J14, E2)."""
        manager, force = (
            request.query.get("fieldManager", ""),
            request.flag("force"),
        )
        if not manager:
            raise Refused(
                422,
                "Invalid",
                'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch',
            )
        config = yaml.safe_load(request.body) or {}
        if (config.get("apiVersion"), config.get("kind")) != (resource.api_version, resource.kind):
            raise Refused(400, "BadRequest", "apiVersion and kind must be set as the resource's")
        metadata = config.setdefault("metadata", {})
        if metadata.get("managedFields"):
            raise Refused(400, "BadRequest", "metadata.managedFields must be nil")
        if metadata.setdefault("name", name) != name:
            raise Refused(
                400,
                "BadRequest",
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})",
            )
        if namespace:
            metadata.setdefault("namespace", namespace)
        if resource.schema and (path := resource.schema.undeclared(config)):
            said = (
                f"failed to create typed patch object ({namespace}/{name}; {resource.api_version}, "
                f"Kind={resource.kind}): {path}: field not declared in schema"
            )
            raise Refused(500, "", said)
        schema, who = resource.merge_schema, (manager, "Apply")
        wanted = set(fields.paths(config, schema))
        key = self.store.key(resource, namespace, name)
        old = self.store.objects.get(key)
        if old is None:
            # A new object needs the verb create, too.
            self._allow(request, "create", resource, namespace, "", "")
            self.store.find(
                self.store.resources["", "namespaces"], "", namespace
            ) if resource.namespaced else None
            self._admit(request, resource, config, None, warnings)
            made = self.store.create(resource, config, who)
            with self.store.lock:
                stored = self.store.objects[key]
                return 201, self.store.update(
                    resource, stored, copy.deepcopy(stored), who, {who: wanted}
                ) or made
        managers = {each: set(owned) for each, owned in self.store.managers.get(key, {}).items()}
        clashes = sorted(
            (other, path)
            for other, owned in managers.items()
            if other != who
            for path in owned & wanted
            if fields.get(old, path, schema) != fields.get(config, path, schema) and path[-1][0] == "f"
        )
        if clashes and not force:
            raise self._conflict(resource, clashes)
        for other, path in clashes:
            managers[other].discard(path)
        obj = copy.deepcopy(old)
        kept = set().union(*(owned for other, owned in managers.items() if other != who))
        # An item of a list goes before its fields, which name it.
        for path in sorted(managers.get(who, set()) - wanted - kept, key=len):
            if not any(other[: len(path)] == path for other in kept):
                fields.remove(obj, path, schema)
        obj = fields.merge(obj, config, schema)
        managers[who] = wanted
        return 200, self._change(request, resource, old, obj, sub, warnings, managers)

    @staticmethod
    def _conflict(resource: Resource, clashes: list[tuple[tuple[str, str], fields.Path]]) -> Refused:
        """Source: apimachinery pkg/util/managedfields/internal/conflict.go."""
        named = {}
        for (name, operation), path in clashes:
            using = f" using {resource.api_version}" if operation == "Update" else ""
            named.setdefault(f'"{name}"{using}', []).append(fields.text(path))
        count = len(clashes)
        if count == 1:
            ((who, (path,)),) = named.items()
            said = f"conflict with {who}: {path}"
        else:
            said = "\n".join(
                f"conflicts with {who}:\n" + "\n".join(f"- {p}" for p in ps) for who, ps in named.items()
            )
        causes = [
            {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": path}
            for who, listed in named.items()
            for path in listed
        ]
        text = f"Apply failed with {count} conflict{'s' if count > 1 else ''}: {said}"
        return Refused(409, "Conflict", text, details={"causes": causes})

    def _delete(self, request: Request, resource: Resource, namespace: str, name: str) -> dict:
        options = request.json() if request.body else {}
        obj = self.store.find(resource, namespace, name)
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != obj["metadata"]["uid"]:
            said = f"the UID in the precondition ({wanted}) does not match the UID in record ({obj['metadata']['uid']})"
            raise Refused(409, "Conflict", said)
        if request.query.get("propagationPolicy") == "Orphan" or options.get("propagationPolicy") == "Orphan":
            for child in self.store.objects.values():
                owners = child["metadata"].get("ownerReferences", [])
                owners[:] = [o for o in owners if o["uid"] != obj["metadata"]["uid"]]
        gone = self.store.delete(resource, obj)
        if resource.plural == "namespaces":
            for key, each in list(self.store.objects.items()):
                if key[2] == name:
                    self.store.delete(self.store.resources[key[:2]], each)
        if gone["metadata"].get("finalizers"):
            return copy.deepcopy(gone)
        details = {"name": name, "kind": resource.plural, "uid": gone["metadata"]["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _merge_patch(value: Any, patch: Any, schema: dict) -> Any:
    """RFC 7386; with merge keys in the schema a strategic merge patch."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    value = value if isinstance(value, dict) else {}
    for key, item in patch.items():
        part = fields._part(schema, key)
        if item is None:
            value.pop(key, None)
        elif isinstance(item, list) and part.get("x-kubernetes-list-type") == "map":
            value[key] = fields.merge(value.get(key, []), item, part)
        else:
            value[key] = _merge_patch(value.get(key), item, part)
    return value


def _json_patch(old: dict, patch: list[dict]) -> dict:
    obj = copy.deepcopy(old)
    for step in patch:
        *above, last = [p.replace("~1", "/").replace("~0", "~") for p in step["path"].split("/")[1:]]
        at: Any = obj
        try:
            for part in above:
                at = at[int(part)] if isinstance(at, list) else at[part]
            if isinstance(at, list):
                index = len(at) if last == "-" else int(last)
                if step["op"] == "add":
                    at.insert(index, step["value"])
                elif step["op"] == "remove":
                    del at[index]
                else:
                    at[index] = step["value"]
            elif step["op"] == "remove":
                del at[last]
            elif step["op"] == "test":
                if at.get(last) != step["value"]:
                    raise KeyError(last)
            else:
                at[last] = step["value"]
        except (KeyError, IndexError, ValueError):
            said = "the server rejected our request due to an error in our request"
            raise Refused(422, "Invalid", said) from None
    return obj
