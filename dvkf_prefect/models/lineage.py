"""Lineage of a registered version: from data and code to the model, and on to registries and services.

The record of the stages behind a model is written into its tag at registration, as the trailer ``Dvkf-Lineage`` with
one line of JSON. It is read without any other file of the commit. A tag without it, such as one of GTO's, is traced
from its commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.models.content import ModelContent
from dvkf_prefect.models.making import Making
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.paths import overlaps
from dvkf_prefect.pipeline.plan.signature import input_key
from dvkf_prefect.pipeline.report.dag import Drawing
from dvkf_prefect.pipeline.report.metrics import show as read_metrics

#: Trailer of a registration that holds the record.
TRAILER = "Dvkf-Lineage"
_FORMAT = 1


@dataclass(frozen=True)
class Item:
    """A file or folder that a stage read or wrote.

    Attributes:
        path: Path relative to the repository's root.
        digest: Its md5, with ``.dir`` for a folder.
        kind: ``data`` if DVC tracks it, ``code`` if git does, ``made`` if a stage behind the model wrote it.
    """

    path: str
    digest: str
    kind: str

    @property
    def label(self) -> str:
        """Path and the start of the digest."""
        return f"{self.path} ({self.digest[:8]})"


@dataclass(frozen=True)
class StageRecord:
    """A stage's run behind a model.

    Attributes:
        name: Address of the stage.
        signature: Key of its inputs in the run cache, sha256.
        reads: Dependencies.
        writes: Outputs.
        params: Parameter values by ``file:key``.
    """

    name: str
    signature: str
    reads: tuple[Item, ...] = ()
    writes: tuple[Item, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain values; the reverse of `from_dict`."""
        return {
            "name": self.name,
            "signature": self.signature,
            "reads": [[item.path, item.digest, item.kind] for item in self.reads],
            "writes": [[item.path, item.digest, item.kind] for item in self.writes],
            "params": dict(self.params),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageRecord:
        """Create a record from the values of `as_dict`."""
        reads, writes = (tuple(Item(*map(str, each)) for each in values[key]) for key in ("reads", "writes"))
        return cls(str(values["name"]), str(values["signature"]), reads, writes, dict(values["params"]))


@dataclass(frozen=True)
class Service:
    """A running service of a version.

    Attributes:
        name: Name of the model at the service.
        url: Its address.
        where: Place: ``local``, or a cluster.
    """

    name: str
    url: str
    where: str = "local"


@dataclass(frozen=True)
class Lineage:
    """Origin and whereabouts of a version.

    Attributes:
        version: The version.
        stages: Runs of the stages behind it, nearest first; empty for a model that was added by hand.
        metrics: Metrics of its commit by ``file:name``.
        runs: Runs that made and registered it, by trailer: ``Prefect-Flow-Run``, ``Kubeflow-Run``, ...
        facts: Later facts, see `dvkf_prefect.models.facts`.
        services: Services that run it now, as far as they were looked up.
    """

    version: ModelVersion
    stages: tuple[StageRecord, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[Mapping[str, Any], ...] = ()
    services: tuple[Service, ...] = ()

    @property
    def inputs(self) -> tuple[Item, ...]:
        """Data and code that no stage behind the model wrote, without repetitions."""
        return tuple(
            dict.fromkeys(item for stage in self.stages for item in stage.reads if item.kind != "made")
        )

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of all stages behind the model, by ``file:key``."""
        return {key: value for stage in reversed(self.stages) for key, value in stage.params.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the lineage as plain values for JSON."""
        return {
            "version": self.version.as_dict(),
            "inputs": [[item.path, item.digest, item.kind] for item in self.inputs],
            "stages": [stage.as_dict() for stage in self.stages],
            "params": self.params,
            "metrics": dict(self.metrics),
            "runs": dict(self.runs),
            "facts": [dict(fact) for fact in self.facts],
            "services": [{"name": s.name, "url": s.url, "where": s.where} for s in self.services],
        }

    def __str__(self) -> str:
        version = self.version
        rows = [("model", str(version)), ("commit", version.rev), ("registered by", version.author)]
        rows += [("stage", f"{stage.name}, signature {stage.signature[:12]}") for stage in self.stages]
        rows += [(item.kind, item.label) for item in self.inputs]
        rows += [("parameter", f"{key} = {value}") for key, value in self.params.items()]
        rows += [("metric", f"{key} = {value}") for key, value in self.metrics.items()]
        rows += [("run", f"{key}: {value}") for key, value in self.runs.items()]
        rows += [(str(fact["kind"]), fact_text(fact)) for fact in self.facts if fact["kind"] != "service"]
        rows += [("service", f"{service.name} at {service.url}") for service in self.services]
        return "\n".join(f"{name + ':':<15}{value}" for name, value in rows)


def fact_text(fact: Mapping[str, Any]) -> str:
    """Return the values of a fact in one line: the place, and the others behind it."""
    others = ", ".join(f"{key} {value}" for key, value in fact.items() if key not in ("kind", "where"))
    place = str(fact.get("where", ""))
    return f"{place} ({others})" if place and others else place or others


def draw_lineage(lineages: Sequence[Lineage]) -> Drawing:
    """Return the graph from data and code over stages and versions to registries, places and services."""
    needs: dict[str, list[str]] = {}

    def link(node: str, *needed: str) -> str:
        found = needs.setdefault(node, [])
        found += [each for each in needed if needs.setdefault(each, []) is not None and each not in found]
        return node

    for lineage in lineages:
        version = lineage.version
        for stage in reversed(lineage.stages):
            run = link(f"stage {stage.name} ({stage.signature[:8]})", *(item.label for item in stage.reads))
            for item in stage.writes:
                link(item.label, run)
        model = link(f"{version.name} {version.version}")
        whole = [
            item
            for stage in lineage.stages
            for item in stage.writes
            if version.path and overlaps(item.path, version.path)
        ]
        if whole or version.path is not None:
            own = Item(version.path or "", version.digest or "", "made")
            link(model, *(item.label for item in whole or [own]))
        for fact in lineage.facts:
            if fact["kind"] != "service":
                link(f"{fact['kind']} {fact.get('where', '')}", model)
        for service in lineage.services:
            link(f"service {service.url}", model)
    return Drawing({node: tuple(needed) for node, needed in needs.items()})


def record_lineage(repo: Repository, model: ModelContent) -> dict[str, Any]:
    """Return the record of a commit's model, for the trailer of its tag.

    Args:
        repo: The repository.
        model: The model at its commit.

    Returns:
        ``format``, ``path``, ``digest``, ``stages``, see `StageRecord.as_dict`, and ``metrics`` by ``file:name``.
    """
    making = Making(repo.files(model.rev))
    steps = making.behind(model.path)
    made = {out.path for step in steps for out in step.stage.outs}

    def kind(path: str) -> str:
        if path in made:
            return "made"
        return "data" if making.tracked(path) is not None else "code"

    stages = []
    for step in steps:
        paths = {dep.name: dep.path for dep in step.stage.deps if not dep.external}
        outs = {out.name: out.path for out in step.stage.outs}
        reads = [
            Item(paths.get(item["path"], item["path"]), item["md5"], kind(paths.get(item["path"], "")))
            for item in step.entry.get("deps", ())
            if item.get("md5")
        ]
        writes = [
            Item(outs.get(item["path"], item["path"]), item["md5"], "made")
            for item in step.entry.get("outs", ())
            if item.get("md5")
        ]
        params = {
            f"{step.stage.params_path(file)}:{key}": value
            for file, values in step.entry.get("params", {}).items()
            for key, value in values.items()
        }
        signature = input_key(step.entry)
        stages.append(StageRecord(step.stage.address, signature, tuple(reads), tuple(writes), params))
    metrics: dict[str, Any] = {}
    with suppress(DvkfError):  # a metric that cannot be read is none of the model's
        for file, values in read_metrics(repo, model.rev).items():
            metrics |= {f"{file}:{name}": value for name, value in values.items()}
    return {
        "format": _FORMAT,
        "path": model.path,
        "digest": model.content.digest if model.content.hash_name == MD5 else None,
        "stages": [stage.as_dict() for stage in stages],
        "metrics": metrics,
    }


def as_trailer(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the trailer that holds a record; one line, in ASCII."""
    return {TRAILER: json.dumps(record, separators=(",", ":"), default=str)}


def parse_trailer(trailers: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the record of a tag; None if it has none, or one that this version cannot read."""
    try:
        record = json.loads(trailers[TRAILER])
        if record["format"] != _FORMAT:
            return None
        return {
            "stages": tuple(StageRecord.from_dict(each) for each in record["stages"]),
            "metrics": dict(record["metrics"]),
        }
    except (KeyError, TypeError, ValueError):
        return None
