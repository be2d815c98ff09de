"""Pipelines and their versions, as rows.

Sources: apiserver/server/pipeline_server.go, pipeline_upload_server.go, apiserver/model/pipeline.go and
pipeline_version.go, apiserver/resource/resource_manager.go (CreatePipelineVersion).
"""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Any

import yaml

from . import filters, proxy, store
from .store import Refused, now

if TYPE_CHECKING:
    from .server import FakeKfp

# model/pipeline.go: varchar(128); pipeline_version.go: varchar(127).
_PIPELINE, _VERSION = 128, 127
# apiserver/common/const.go: MaxFileLength.
_FILE = 32 << 20
# Kubernetes: names of objects; the message is of pipeline_store_kubernetes.go:248.
_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class Pipelines:
    """Operations on pipelines and versions.

    Attributes:
        kubernetes_store: True if pipelines are Kubernetes objects (flag pipelinesStoreKubernetes, 2.14 and later).
        may_upload: False for users without the right to create pipelines (multi-user mode).
    """

    def __init__(self) -> None:
        self.pipelines: dict[str, dict] = {}
        self.versions: dict[str, dict] = {}
        self.kubernetes_store = False
        self.may_upload = True

    def _access_pipelines(self: FakeKfp, namespace: str, user: str, verb: str) -> None:
        # pipeline_server.go:1275-1310: shared pipelines, without a namespace, are read by all in multi-user mode.
        if not (namespace or not self.multi_user or verb not in ("get", "list")):
            return
        proxy.check_namespace(self, namespace or self.namespace, user, verb)
        if verb in ("create", "delete") and not self.may_upload:
            raise Refused(403, f"PermissionDenied: User '{user}' is not authorized with reason: verb {verb}")

    def _PipelineService_ListPipelines(
        self: FakeKfp, query: dict, body: None, user: str, database: bool
    ) -> dict:
        namespace = query.get("namespace", "") if self.multi_user else ""
        self._access_pipelines(namespace, user, "list")
        found = [p for p in self.pipelines.values() if p.get("namespace", "") == namespace]
        return self._page("pipelines", found, query)

    def _PipelineService_CreatePipeline(
        self: FakeKfp, query: dict, body: dict, user: str, database: bool
    ) -> dict:
        if self.version < (2, 14) and "name" in body:
            raise Refused(400, 'proto: unknown field "name"')  # pipeline.proto of 2.5
        if self.version < (2, 17) and "tags" in body:
            raise Refused(400, 'proto: unknown field "tags"')
        name = body.get("name") or body.get("display_name", "")
        if not name:
            raise Refused(400, "Invalid input error: name is required")
        namespace = body.get("namespace", "") if self.multi_user else ""
        self._access_pipelines(namespace, user, "create")
        return self._shown(self._new_pipeline(name, body.get("display_name") or name, body, namespace))

    def _new_pipeline(self: FakeKfp, name: str, display_name: str, about: dict, namespace: str) -> dict:
        if len(name) > _PIPELINE:
            raise Refused(400, f"Invalid input error: Pipeline.Name length cannot exceed {_PIPELINE}")
        if self.kubernetes_store and not _OBJECT.fullmatch(name):
            raise Refused(
                400, f"Invalid input error: Invalid pipeline name {name!r}: must be an RFC 1123 subdomain"
            )
        store.check_text("DisplayName", display_name, store.TEXT)
        with self.lock:
            taken = {(p["namespace"], p["name"].casefold()) for p in self.pipelines.values()}
            if (namespace, name.casefold()) in taken:
                raise Refused(409, f"Failed to create a new pipeline. The name {name} already exist")
            made = {
                "pipeline_id": str(uuid.uuid4()),
                "name": name,
                "display_name": display_name,
                "description": about.get("description", ""),
                "namespace": namespace,
                "created_at": now(),
            }
            self.pipelines[made["pipeline_id"]] = made
        return made

    def _page(self: FakeKfp, kind: str, rows: list[dict], query: dict) -> dict:
        answer = filters.page(kind, rows, query)
        if kind in answer:
            answer[kind] = [self._shown(row) for row in answer[kind]]
        return answer

    def _shown(self: FakeKfp, row: dict) -> dict:
        # EmitUnpopulated is false; 2.5 has no `name`.
        return {k: v for k, v in row.items() if v and not (k == "name" and self.version < (2, 14))}

    def _PipelineService_GetPipeline(
        self: FakeKfp, pipeline_id: str, query: dict, body: None, user: str, database: bool
    ) -> dict:
        found = self._pipeline(pipeline_id)
        self._access_pipelines(found["namespace"], user, "get")
        return self._shown(found)

    def _PipelineService_GetPipelineByName(
        self: FakeKfp, name: str, query: dict, body: None, user: str, database: bool
    ) -> dict:
        self._access_pipelines(query.get("namespace", ""), user, "get")
        for found in self.pipelines.values():
            if found["name"].casefold() == name.casefold():
                return self._shown(found)
        raise Refused(404, f"Pipeline {name} not found")

    def _PipelineService_DeletePipeline(
        self: FakeKfp, pipeline_id: str, query: dict, body: None, user: str, database: bool
    ) -> dict:
        found = self._pipeline(pipeline_id)
        self._access_pipelines(found["namespace"], user, "delete")
        versions = [v for v in self.versions.values() if v["pipeline_id"] == pipeline_id]
        if versions and query.get("cascade") != "true":
            # resource_manager.go:334-389
            raise Refused(
                400, f"Invalid input error: Failed to delete pipeline as it has {len(versions)} versions"
            )
        for version in versions:
            del self.versions[version["pipeline_version_id"]]
        del self.pipelines[pipeline_id]
        return {}

    def _PipelineService_ListPipelineVersions(
        self: FakeKfp, pipeline_id: str, query: dict, body: None, user: str, database: bool
    ) -> dict:
        self._access_pipelines(self._pipeline(pipeline_id)["namespace"], user, "list")
        found = [v for v in self.versions.values() if v["pipeline_id"] == pipeline_id]
        return self._page("pipeline_versions", found, query)

    def _PipelineService_GetPipelineVersion(
        self: FakeKfp,
        pipeline_id: str,
        pipeline_version_id: str,
        query: dict,
        body: None,
        user: str,
        database: bool,
    ) -> dict:
        found = self.version_row(pipeline_version_id)
        self._access_pipelines(self._pipeline(found["pipeline_id"])["namespace"], user, "get")
        return self._shown(found)

    def _PipelineService_DeletePipelineVersion(
        self: FakeKfp,
        pipeline_id: str,
        pipeline_version_id: str,
        query: dict,
        body: None,
        user: str,
        database: bool,
    ) -> dict:
        found = self.version_row(pipeline_version_id)
        self._access_pipelines(self._pipeline(found["pipeline_id"])["namespace"], user, "delete")
        del self.versions[pipeline_version_id]
        return {}

    def _UploadPipeline(self: FakeKfp, query: dict, body: dict[str, Any], user: str, database: bool) -> dict:
        """Make a pipeline and its first version, which has the pipeline's name (pipeline_upload_server.go)."""
        namespace = query.get("namespace", "") if self.multi_user else ""
        self._access_uploads(namespace, user)
        name = query.get("name") or query.get("display_name") or body["filename"]
        made = self._new_pipeline(name, query.get("display_name") or name, query, namespace)
        self._new_version(made, name, query, body)
        return self._shown(made)

    def _UploadPipelineVersion(
        self: FakeKfp, query: dict, body: dict[str, Any], user: str, database: bool
    ) -> dict:
        if not query.get("pipelineid"):
            raise store.upload_error(400)
        found = self.pipelines.get(query["pipelineid"])
        if found is None:
            raise store.upload_error(400)
        self._access_uploads(found["namespace"], user)
        name = query.get("name") or query.get("display_name") or body["filename"]
        return self._shown(self._new_version(found, name, query, body))

    def _access_uploads(self: FakeKfp, namespace: str, user: str) -> None:
        # pipeline_upload_server.go: a refusal is 400 with a message that says nothing.
        try:
            self._access_pipelines(namespace, user, "create")
        except Refused:
            raise store.upload_error(400) from None

    def _new_version(self: FakeKfp, pipeline: dict, name: str, query: dict, body: dict[str, Any]) -> dict:
        data: bytes = body["uploadfile"]
        if len(data) > _FILE or not body["filename"].endswith((".yaml", ".yml", ".json")):
            raise store.upload_error(400)
        if len(name) > _VERSION:
            raise store.upload_error(400, f"PipelineVersion.Name length cannot exceed {_VERSION}")
        documents = [d for d in yaml.safe_load_all(data) if d is not None]
        specs = [d for d in documents if "pipelineInfo" in d]
        if len(specs) != 1:
            raise store.upload_error(400, "Invalid input error: invalid pipeline spec")
        platforms = [d for d in documents if "platforms" in d]
        if any(ord(character) > 0xFFFF for character in json.dumps(documents, ensure_ascii=False)):
            raise store.upload_error(500)  # Error 1366: the connection's charset is utf8 (client/sql.go:28)
        # api_util.go:118-148: both parts, if there is a platform's.
        spec = {"pipeline_spec": specs[0], "platform_spec": platforms[0]} if platforms else specs[0]
        with self.lock:
            for version in self.versions.values():
                if (
                    version["pipeline_id"] == pipeline["pipeline_id"]
                    and version["name"].casefold() == name.casefold()
                ):
                    raise store.upload_error(409)
            made = {
                "pipeline_id": pipeline["pipeline_id"],
                "pipeline_version_id": str(uuid.uuid4()),
                "name": name,
                "display_name": query.get("display_name") or name,
                "description": query.get("description", ""),
                "created_at": now(),
                "pipeline_spec": spec,
            }
            self.versions[made["pipeline_version_id"]] = made
        return made

    def _pipeline(self: FakeKfp, pipeline_id: str) -> dict:
        if pipeline_id not in self.pipelines:
            raise Refused(
                404, f"Failed to get a pipeline with id {pipeline_id}: Pipeline {pipeline_id} not found"
            )
        return self.pipelines[pipeline_id]

    def version_row(self: FakeKfp, version_id: str) -> dict:
        if version_id not in self.versions:
            raise Refused(404, f"Failed to get a pipeline version with id {version_id}: not found")
        return self.versions[version_id]

    def source_of(self: FakeKfp, body: dict) -> dict:
        """Return the spec of a run's pipeline (resource_manager.go, fetchTemplateFromPipelineSpec)."""
        reference = body.get("pipeline_version_reference")
        if reference is None:
            if "pipeline_spec" not in body:
                raise Refused(400, "Invalid input error: pipeline spec source is missing")
            return body["pipeline_spec"]
        pipeline_id, version_id = reference.get("pipeline_id", ""), reference.get("pipeline_version_id", "")
        if not version_id:
            of = [v for v in self.versions.values() if v["pipeline_id"] == pipeline_id]
            if not of:
                raise Refused(404, "Failed to get the latest pipeline version for a pipeline")
            return of[-1]["pipeline_spec"]
        row = self.versions.get(version_id)
        if row is None:
            # :638-641: wrapped as an internal error.
            raise Refused(
                500,
                f"InternalServerError: Failed to create a run due to error fetching manifest: {version_id}",
            )
        if pipeline_id and row["pipeline_id"] != pipeline_id:
            raise Refused(
                500, f"InternalServerError: Pipeline version {version_id} belongs to another pipeline"
            )
        return row["pipeline_spec"]
