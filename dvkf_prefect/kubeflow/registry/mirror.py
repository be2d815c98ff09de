"""Mirror of git's model versions in a Kubeflow Model Registry. Git's tags are the truth.

A model is a registered model, a version a model version with one model artifact. Each record has an external id:
``dvkf:model:NAME``, ``dvkf:version:NAME@VERSION``, ``dvkf:artifact:NAME@VERSION``. A record is found by it, else by its
exact name. Every write is followed by a read that verifies it, and a record that is right is not written. So a mirror
that was interrupted at any call is completed by the next one.

Custom properties ``dvkf.*`` belong to the mirror; all others are kept. What the mirror wrote last is in
``dvkf.mirrored``. So with two ways, a stage or a state that was changed in the registry since then is taken over
into git, unless git changed it too: then git's value stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dvkf_prefect.errors import DvkfError, GitError, ModelError, RegistryError
from dvkf_prefect.kubeflow.registry.client import Kind, Record, RegistryAnswerError, RegistryApi
from dvkf_prefect.models.lineage import Lineage
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.trace import trace_version
from dvkf_prefect.models.version import ModelVersion

PREFIX = "dvkf."
MIRRORED = "dvkf.mirrored"
STAGE = "dvkf.stage."
# Names are stored as ``<parent id>:<name>`` in 255 characters; an id has at most ten digits.
_NAME_LIMIT = 255 - 11
_EXTERNAL_LIMIT = 255
# PostgreSQL indexed strings up to some 2.7 KB before the server's migration 23.
_VALUE_LIMIT = 2500
_INT_LIMIT = 2**31
Action = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True)
class Mirrored:
    """State of one record after the mirror.

    Attributes:
        name: Name of the model, with ``@`` and the version for a version.
        id: Id in the registry.
        action: ``created``, ``updated`` or ``unchanged``.
    """

    name: str
    id: str
    action: Action


@dataclass(frozen=True)
class MirrorReport:
    """Result of a mirror.

    Attributes:
        host: Address of the registry.
        records: The models and versions.
        pulled: Changes taken over from the registry into git, as sentences.
        conflicts: Changes in the registry that git's own change overruled, as sentences.
    """

    host: str
    records: tuple[Mirrored, ...] = ()
    pulled: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {
            "host": self.host,
            "records": [{"name": r.name, "id": r.id, "action": r.action} for r in self.records],
            "pulled": list(self.pulled),
            "conflicts": list(self.conflicts),
        }

    def __str__(self) -> str:
        done = {action: sum(r.action == action for r in self.records) for action in ("created", "updated")}
        same = len(self.records) - sum(done.values())
        counts = f"{done['created']} created, {done['updated']} updated, {same} unchanged"
        return "\n".join([f"{self.host}: {counts}", *self.pulled, *self.conflicts])


@dataclass
class Mirror:
    """The mirror of one repository's models.

    Args:
        registry: The repository's models.
        api: Connection to the registry.
        prefix: Text before the names of models, to keep repositories apart that share a registry.
        both: Take over stages and states that were changed in the registry.
    """

    registry: ModelRegistry
    api: RegistryApi
    prefix: str = ""
    both: bool = False
    _records: list[Mirrored] = field(default_factory=list)
    _pulled: list[str] = field(default_factory=list)
    _conflicts: list[str] = field(default_factory=list)

    def run(self, models: Sequence[str] = ()) -> MirrorReport:
        """Mirror models with all their versions.

        Args:
            models: Names of the models; all if empty.

        Raises:
            ModelNotFoundError: A model is not registered in git.
            ModelError: A name does not fit into the registry, or belongs to another record.
            RegistryError: The registry refused a call or did not answer. The next run completes the mirror.

        Example:
            >>> Mirror(registry, RegistryApi("http://localhost:8080")).run(["classifier"])
        """
        self._records, self._pulled, self._conflicts = [], [], []
        known = self.registry.list(include_inactive=True)
        names = list(models) or list(dict.fromkeys(version.name for version in known))
        for name in names:
            versions = self.registry.list(name, include_inactive=True)
            self._check_names(name, versions)
            self._mirror(name, versions)
        return MirrorReport(self.api.host, tuple(self._records), tuple(self._pulled), tuple(self._conflicts))

    def _check_names(self, name: str, versions: Sequence[ModelVersion]) -> None:
        lengths = [(name, len(self.prefix + name), _NAME_LIMIT)]
        lengths += [(v.version, len(v.version), _NAME_LIMIT) for v in versions]
        lengths += [
            (v.version, len(self._external("artifact", name, v.version)), _EXTERNAL_LIMIT) for v in versions
        ]
        for text, length, limit in lengths:
            if length > limit:
                raise ModelError(
                    f"'{text[:60]}…' of model '{name[:60]}' is too long for a model registry: {length} characters of "
                    f"at most {limit}. Use a shorter name or prefix."
                )
        seen: dict[str, str] = {}
        for version in versions:
            other = seen.setdefault(version.version.casefold(), version.version)
            if other != version.version:
                raise ModelError(
                    f"versions {other} and {version.version} of model '{name}' differ in case only, and a model "
                    "registry takes them for one. Withdraw one of them and delete its tags."
                )

    def _external(self, kind: str, name: str, version: str = "") -> str:
        return f"dvkf:{kind}:{self.prefix}{name}" + (f"@{version}" if version else "")

    # -- a model -------------------------------------------------------------------------------------------------------

    def _mirror(self, name: str, versions: Sequence[ModelVersion]) -> None:
        kind: Kind = "registered_models"
        full = self.prefix + name
        found = self._find(kind, full, self._external("model", name))
        existed = {}
        if found is not None:
            self._check_owner(found)
            existed = {
                record["name"]: record for record in self.api.list("model_versions", (kind, found["id"]))
            }
            if self.both and self._pull(name, versions, found, existed):
                versions = self.registry.list(name, include_inactive=True)
        active = any(version.active for version in versions)
        stages = {stage: version.version for version in versions for stage in version.stages}
        properties = {
            "dvkf.repository": self._repository(),
            **{f"{STAGE}{stage}": version for stage, version in stages.items()},
            MIRRORED: json.dumps(stages, sort_keys=True),
        }
        body = {
            "externalId": self._external("model", name),
            "state": "LIVE" if active else "ARCHIVED",
        }
        model = self._write(kind, found, {"name": full, **body}, properties, label=name)
        for version in reversed(versions):  # the oldest first, so that ids rise with the versions
            self._mirror_version(name, model, version, existed)

    def _mirror_version(
        self, name: str, model: Record, version: ModelVersion, existed: Mapping[str, Record]
    ) -> None:
        kind: Kind = "model_versions"
        external = self._external("version", name, version.version)
        found = existed.get(version.version)
        if found is None:
            self._refuse_case(version.version, existed.values(), f"model '{name}'")
            found = self.api.find_external(kind, external)
        if found is not None and found.get("registeredModelId") != model["id"]:
            raise ModelError(
                f"'{external}' in the model registry is version {found.get('id')} of another model. Use another prefix."
            )
        lineage = trace_version(self.registry, version)
        state = "LIVE" if version.active else "ARCHIVED"
        body = {
            "externalId": external,
            "state": state,
            "author": version.author[:_EXTERNAL_LIMIT],
            "description": version.message,
        }
        own = {"name": version.version, "registeredModelId": model["id"], **body}
        properties = {**_properties(lineage), MIRRORED: state}
        record = self._write(kind, found, own, properties, label=f"{name}@{version.version}", parent=model)
        artifact = self._mirror_artifact(name, record, version, lineage)
        ids = {
            "where": self.api.host,
            "model": model["id"],
            "version": record["id"],
            "artifact": artifact["id"],
        }
        if version.version != version.rev:  # a version without a registration has no tag to note it on
            try:
                self.registry.note(version, "registry", ids)
            except GitError as error:
                raise GitError(
                    f"the ids of {name} {version.version} could not be noted on its tag: {error}"
                ) from error

    def _mirror_artifact(self, name: str, record: Record, version: ModelVersion, lineage: Lineage) -> Record:
        """Write the artifact last of all: a version without one is not complete."""
        external = self._external("artifact", name, version.version)
        found = None
        for artifact in self.api.list("model_artifacts", ("model_versions", record["id"])):
            if artifact.get("externalId") == external or artifact.get("name") == name:
                found = artifact
        place = next((fact for fact in lineage.facts if fact["kind"] == "published"), None)
        body: Record = {
            "artifactType": "model-artifact",
            "externalId": external,
            "state": "LIVE" if version.active else "MARKED_FOR_DELETION",
            # The project's own client refuses artifacts without a uri (model_registry/types/artifacts.py).
            "uri": str(place["where"]) if place and place.get("where") else self._commit_uri(version),
        }
        properties: dict[str, Any] = {"dvkf.digest": version.digest or "", "dvkf.path": version.path or ""}
        if version.size is not None:
            properties["dvkf.size"] = version.size
        wanted = {**body, "customProperties": _merged(found, properties)}
        if found is not None and not _differs(found, wanted):
            return found
        if found is not None:
            self.api.update("model_artifacts", found["id"], wanted)
            return self._verified("model_artifacts", found["id"], wanted)
        made = self.api.upsert_artifact(record["id"], {"name": name, **wanted})
        return self._verified("model_artifacts", made["id"], wanted)

    def _commit_uri(self, version: ModelVersion) -> str:
        """Return the place of a version that is not published: repository, commit and path."""
        return (
            f"dvkf://{self._repository() or self.registry.git.root.name}@{version.rev}/{version.path or ''}"
        )

    # -- records -------------------------------------------------------------------------------------------------------

    def _find(self, kind: Kind, name: str, external: str) -> Record | None:
        """Return the record with an external id, or else with exactly that name."""
        found = self.api.find_external(kind, external)
        if found is not None:
            if found.get("name") != name:
                raise ModelError(
                    f"'{external}' in the model registry is called {found.get('name')!r}, not '{name}'. Use another "
                    "prefix."
                )
            return found
        listed = list(self.api.list(kind))
        same = [record for record in listed if record.get("name") == name]
        if not same:
            self._refuse_case(name, listed, f"the model registry at {self.api.host}")
            return None
        other = same[0].get("externalId")
        if other:
            raise ModelError(
                f"model '{name}' in the model registry at {self.api.host} belongs to '{other}'. Use a prefix for this "
                "repository's models."
            )
        return same[0]

    def _refuse_case(self, name: str, records: Iterator[Record] | Sequence[Record] | Any, where: str) -> None:
        for record in records:
            other = str(record.get("name", ""))
            if other != name and other.casefold() == name.casefold():
                raise ModelError(
                    f"{where} has '{other}', which the registry takes for '{name}': they differ in case only. Use "
                    "another name or a prefix."
                )

    def _check_owner(self, found: Record) -> None:
        owner = _value(found.get("customProperties", {}).get("dvkf.repository"))
        mine = self._repository()
        if owner and mine and owner != mine:
            raise ModelError(
                f"model '{found['name']}' in the model registry at {self.api.host} mirrors another repository, "
                f"{owner}. Use a prefix for this repository's models."
            )

    def _repository(self) -> str:
        """Return the origin of the repository without scheme, user and suffix; "" without an origin."""
        try:
            url = self.registry.git.run("config", "--get", "remote.origin.url")
        except GitError:
            return ""
        plain = url.rpartition("@")[2] if "://" not in url else url.partition("://")[2].rpartition("@")[2]
        return plain.replace(":", "/", 1).removesuffix("/").removesuffix(".git")[:_EXTERNAL_LIMIT]

    def _write(
        self,
        kind: Kind,
        found: Record | None,
        body: Mapping[str, Any],
        properties: Mapping[str, Any],
        *,
        label: str,
        parent: Record | None = None,
    ) -> Record:
        """Create or change a record if it differs, and verify it."""
        action: Action = "unchanged"
        if found is None:
            action = "created"
            found = self._create(kind, {**body, "customProperties": _merged(None, properties)}, parent)
        else:
            # Properties are replaced as a whole: merge with what the registry has at this moment.
            found = self.api.get(kind, found["id"])
            fixed = ("name", "registeredModelId")
            wanted = {key: value for key, value in body.items() if key not in fixed}
            wanted["customProperties"] = _merged(found, properties)
            if _differs(found, wanted):
                action = "updated"
                self.api.update(kind, found["id"], wanted)
                found = self._verified(kind, found["id"], wanted)
        self._records.append(Mirrored(label, found["id"], action))
        return found

    def _create(self, kind: Kind, body: Record, parent: Record | None) -> Record:
        try:
            made = self.api.create(kind, body)
        except RegistryError as error:
            # The request may have succeeded without its answer, or another mirror was first.
            if isinstance(error, RegistryAnswerError) and error.status != 409:
                raise
            again = self._again(kind, body, parent)
            if again is None:
                raise
            made = again
        return self._verified(kind, made["id"], body)

    def _again(self, kind: Kind, body: Record, parent: Record | None) -> Record | None:
        found = self.api.find_external(kind, body["externalId"])
        if found is None:
            above = None if parent is None else ("registered_models", str(parent["id"]))
            found = next((r for r in self.api.list(kind, above) if r.get("name") == body["name"]), None)
        return found

    def _verified(self, kind: Kind, id_: str, wanted: Mapping[str, Any]) -> Record:
        """Return a record as the registry has it now, after a write."""
        found = self.api.get(kind, id_)
        if wrong := _differs(found, wanted):
            raise RegistryError(
                f"the model registry at {self.api.host} has other values than were written to {kind}/{id_}: "
                f"{', '.join(wrong)}. Run the mirror again."
            )
        return found

    # -- the other way -------------------------------------------------------------------------------------------------

    def _pull(
        self, name: str, versions: Sequence[ModelVersion], model: Record, existed: Mapping[str, Record]
    ) -> bool:
        """Take over stages and states that changed in the registry alone; return True if git was changed."""
        before = len(self._pulled)
        by_name = {version.version: version for version in versions}
        for version in versions:
            record = existed.get(version.version)
            base = _value((record or {}).get("customProperties", {}).get(MIRRORED))
            if record is None or not base or record.get("state") == base:
                continue
            mine = "LIVE" if version.active else "ARCHIVED"
            if mine != base or record.get("state") != "ARCHIVED":
                self._conflicts.append(
                    f"{name} {version.version} is {record.get('state')} in the registry; git's {mine} stands"
                )
                continue
            self.registry.deregister(name, version.version, message="Archived in the model registry")
            self._pulled.append(f"{name} {version.version} was archived in the registry; withdrawn in git")
        properties = model.get("customProperties", {})
        try:
            base_stages = dict(json.loads(_value(properties.get(MIRRORED)) or ""))
        except ValueError:
            return len(self._pulled) > before
        theirs = {
            key[len(STAGE) :]: _value(value) for key, value in properties.items() if key.startswith(STAGE)
        }
        mine_stages = {stage: version.version for version in versions for stage in version.stages}
        for stage in sorted({*theirs, *base_stages}):
            old, new, own = base_stages.get(stage), theirs.get(stage), mine_stages.get(stage)
            if new in (old, own):
                continue
            if own != old or (new is not None and new not in by_name):
                self._conflicts.append(
                    f"{name} #{stage} is {new or 'empty'} in the registry; git's {own or 'empty'} stands"
                )
                continue
            self._take_stage(name, stage, old, new)
        return len(self._pulled) > before

    def _take_stage(self, name: str, stage: str, old: str | None, new: str | None) -> None:
        message = "Changed in the model registry"
        try:
            if new is not None:
                self.registry.assign(name, new, stage, message=message)
            elif old is not None:
                self.registry.unassign(name, old, stage, message=message)
        except DvkfError as error:
            self._conflicts.append(f"{name} #{stage} is {new or 'empty'} in the registry: {error}")
            return
        self._pulled.append(f"{name} #{stage} is {new or 'empty'} in the registry; changed in git")


def _properties(lineage: Lineage) -> dict[str, Any]:
    """Return the custom properties of a version: scalars, which every client of the registry shows."""
    version = lineage.version
    values: dict[str, Any] = {
        "dvkf.commit": version.rev,
        "dvkf.digest": version.digest or "",
        "dvkf.path": version.path or "",
        "dvkf.stages": ",".join(version.stages),
        "dvkf.created": version.created.isoformat(),
    }
    if lineage.stages:
        values["dvkf.stage-of-pipeline"] = lineage.stages[0].name
        values["dvkf.signature"] = lineage.stages[0].signature
    values |= {f"dvkf.run.{key}": value for key, value in lineage.runs.items()}
    values |= {f"dvkf.data.{item.path}": item.digest for item in lineage.inputs if item.kind == "data"}
    values |= {f"dvkf.param.{key}": value for key, value in lineage.params.items()}
    values |= {f"dvkf.metric.{key}": value for key, value in lineage.metrics.items()}
    return values


def _merged(found: Record | None, ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return custom properties with our own replaced, and those of others kept."""
    others = (found or {}).get("customProperties") or {}
    kept = {key: value for key, value in others.items() if not key.startswith(PREFIX)}
    return {**kept, **{key: as_metadata(value) for key, value in ours.items() if len(key) <= _EXTERNAL_LIMIT}}


def as_metadata(value: Any) -> dict[str, Any]:
    """Return a value in the registry's form; what is neither number, text nor truth becomes JSON text.

    Integers above 31 bits become texts, because the registry has 32 bits. Long texts are cut.

    Example:
        >>> as_metadata(3)
        {'metadataType': 'MetadataIntValue', 'int_value': '3'}
    """
    if isinstance(value, bool):
        return {"metadataType": "MetadataBoolValue", "bool_value": value}
    if isinstance(value, int) and abs(value) < _INT_LIMIT:
        return {"metadataType": "MetadataIntValue", "int_value": str(value)}
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return {"metadataType": "MetadataDoubleValue", "double_value": value}
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text.encode()) > _VALUE_LIMIT:
        text = text.encode()[: _VALUE_LIMIT - 3].decode(errors="ignore") + "…"
    return {"metadataType": "MetadataStringValue", "string_value": text.replace("\0", "")}


def _value(metadata: Any) -> str:
    return str(metadata.get("string_value", "")) if isinstance(metadata, Mapping) else ""


def _differs(found: Record, wanted: Mapping[str, Any]) -> list[str]:
    """Return the fields of a record that are not as wanted."""
    return [
        key for key, value in wanted.items() if (found.get(key) or ("" if value == "" else None)) != value
    ]
