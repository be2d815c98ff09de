"""One pod of a stage: its command as a process, and KFP's driver and launcher around it.

A folder of the pod stands for the mount of the object store: ``<work>/store/x`` is ``<pipeline root>/x``. What the
launcher uploads is in `Task.stored`, what it records in ML Metadata in `Task.published`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .platform import secret_of

# Linux: MAX_ARG_STRLEN. argo/workflow/common/common.go:280: longer templates go into a ConfigMap.
ARGUMENT = TEMPLATE = 128 * 1024
# v2/objectstore/config.go: schemes that the launcher uploads to.
_SCHEMES = ("gs://", "s3://", "minio://")

# The module that Python imports at its start, in an image without some modules.
_ABSENT = """\
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Absent())
"""


class Task:
    """A stage's task: its attempts, and what the last one left."""

    def __init__(self, name: str, spec: dict, folder: Path) -> None:
        self.name = name
        self.spec = spec
        self.folder = folder
        self.process: Any = None
        self.popen: Callable[..., Any] = subprocess.Popen
        self.outputs: dict[str, Any] = {}
        self.artifacts: dict[str, Any] = {}
        # Artifacts as ML Metadata has them after the task, and as the driver passed them to it.
        self.published: dict[str, dict[str, Any]] = {}
        self.read: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}
        self.downloaded = 0
        self.tries = 0
        self.lost = False
        self.patch = ""

    @property
    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    def say(self, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("a") as log:
            log.write(text + "\n")

    @property
    def work(self) -> Path:
        return self.folder / f"try-{self.tries}"

    def ended(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def end(self, sign: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.killpg(self.process.pid, sign)
            if sign == signal.SIGKILL:
                self.process.wait()


def executor_input(
    task: Task,
    component: dict,
    parameters: dict[str, Any],
    artifacts: dict[str, dict[str, Any]],
    version: tuple[int, int],
) -> dict:
    """Return what the driver passes to a task (v2/driver/container.go, provisionOutputs)."""
    declared, work = component.get("outputDefinitions", {}), task.work
    return {
        "inputs": {
            "parameterValues": parameters,
            "artifacts": {name: {"artifacts": [found]} for name, found in artifacts.items()},
        },
        "outputs": {
            "parameters": {
                name: {"outputFile": str(work / "outputs" / name)} for name in declared.get("parameters", {})
            },
            "artifacts": {
                name: {
                    "artifacts": [
                        {
                            # Since 2.15, for the SDK.
                            **({"name": name} if version >= (2, 15) else {}),
                            "uri": f"{_store(task)}{task.name}/{uuid.uuid4()}/{name}",
                            "type": about["artifactType"],
                            "metadata": {},
                        }
                    ]
                }
                for name, about in declared.get("artifacts", {}).items()
            },
            "outputFile": str(work / "executor_output.json"),
        },
    }


def _store(task: Task) -> str:
    return f"{task.work}/store/"


def resolve_parameters(
    task: dict,
    component: dict,
    given: dict[str, Any],
    outputs: dict,
    constant: Callable[[Any], Any] = lambda value: value,
) -> dict[str, Any]:
    """Return the values of a task's parameters; raise `ValueError` with the driver's message.

    Source: v2/driver/resolve.go, resolveInputs: values are protobuf's, so numbers are doubles, and each must have the
    type that the component declares.

    Args:
        task: The task.
        component: Its component.
        given: The run's parameters.
        outputs: Output parameters of each task.
        constant: Replaces the placeholders of a constant.
    """
    found: dict[str, Any] = {}
    types = component.get("inputDefinitions", {}).get("parameters", {})
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "taskOutputParameter" in source:
            key = source["taskOutputParameter"]
            found[name] = outputs[key["producerTask"]][key["outputParameterKey"]]
        elif "componentInputParameter" in source:
            found[name] = given[source["componentInputParameter"]]
        else:
            found[name] = constant(source["runtimeValue"]["constant"])
        expected = types[name]["parameterType"]
        if expected != kind_of(found[name]) and not (
            expected == "NUMBER_INTEGER" and kind_of(found[name]) == "NUMBER_DOUBLE"
        ):
            raise ValueError(f'input parameter "{name}" type mismatch: expect {expected}')
        found[name] = through_protobuf(found[name])
    if lacking := [
        name for name, about in types.items() if name not in found and not about.get("isOptional")
    ]:
        raise ValueError(
            f"neither value nor default value provided for non-optional parameter {lacking[0]!r}"
        )
    return found


def kind_of(value: Any) -> str:
    """Return KFP's type of a value of protobuf's."""
    if isinstance(value, bool):
        return "BOOLEAN"
    if isinstance(value, (int, float)):
        return "NUMBER_DOUBLE"
    return {str: "STRING", list: "LIST", dict: "STRUCT"}.get(type(value), "NULL")


def through_protobuf(value: Any) -> Any:
    """Return a value after protobuf's Value and protojson: numbers are doubles, and 1.0 is written as 1."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float)):
        number = float(value)
        assert math.isfinite(number), "JSON has no such number"
        return int(number) if number.is_integer() and abs(number) < 1e21 else number
    if isinstance(value, str):
        # KFP and Argo replace what is in double braces.
        assert "{{" not in value, value
        return value
    if isinstance(value, list):
        return [through_protobuf(each) for each in value]
    return {key: through_protobuf(each) for key, each in value.items()}


def resolve_artifacts(task: dict, tasks: dict[str, Task]) -> dict[str, dict[str, Any]]:
    """Return the artifacts that a task reads; raise `ValueError` with the driver's message.

    Source: v2/driver/resolve.go, resolveUpstreamArtifacts: of the last execution of the producer in ML Metadata.
    """
    found = {}
    for name, source in task.get("inputs", {}).get("artifacts", {}).items():
        key = source["taskOutputArtifact"]
        producer, output = key["producerTask"], key["outputArtifactKey"]
        if producer not in tasks or output not in tasks[producer].published:
            raise ValueError(f'cannot find output artifact key "{output}" in producer task "{producer}"')
        found[name] = tasks[producer].published[output]
    return found


def bring(task: Task, artifacts: dict[str, dict[str, Any]], tasks: dict[str, Task], root: str) -> str:
    """Download the artifacts that a task reads; return the launcher's error, "" if there is none.

    Source: v2/component/launcher_v2.go, downloadArtifacts and fetchNonDefaultBuckets; objectstore/config.go,
    ParseBucketConfigForArtifactURI; object_store.go, DownloadBlob: it lists, so an artifact without a file is none.
    """
    task.read = {}
    for name, artifact in artifacts.items():
        uri = artifact["uri"]
        if not uri.startswith((*_SCHEMES, "mem://", "oci://")):
            return (
                "failed to fetch non default buckets: failed to parse bucketConfig for output artifact "
                f'"{name}" with uri {uri!r}: unsupported Cloud bucket'
            )
        if not uri.startswith(_prefix(root)):
            return f'failed to open bucket for output artifact "{name}" with uri {uri!r}: no credentials'
        local = f"{_store(task)}{uri[len(_prefix(root)) :]}"
        for other in tasks.values():
            for key, data in other.stored.items():
                if key.startswith(uri):
                    file = Path(local + key[len(uri) :])
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
                    task.downloaded += len(data)
        task.read[name] = {**artifact, "uri": local}
    return ""


def _prefix(root: str) -> str:
    return root.rstrip("/") + "/"


def patch(container: dict, given: dict) -> str:
    """Return a pod's patch as its task's driver puts it out (v2/driver/container.go, podSpecPatch)."""
    command = ["/kfp-launcher/launch", "--executor_input", json.dumps(given), "--"]
    command += [*container.get("command", []), *container.get("args", [])]
    environment = container.get("env", [])
    return json.dumps(
        {
            "containers": [
                {"name": "main", "command": command, "image": container["image"], "env": environment}
            ]
        }
    )


def template_size(container: dict, given: dict) -> int:
    """Return the bytes of ARGO_TEMPLATE: the executor's input in a pod's patch in a template, as JSON in JSON in JSON.

    Source: argo/workflow/controller/workflowpod.go:462-541.
    """
    template = {"name": "system-container-executor", "podSpecPatch": patch(container, given), "inputs": {}}
    return len(json.dumps(template).encode())


def start(
    task: Task, container: dict, given: dict, environment: dict[str, str], absent: Sequence[str] = ()
) -> None:
    """Start the container's command; raise `OSError` like execve for an argument that is too long.

    Args:
        task: The task.
        container: Its container.
        given: The executor's input.
        environment: Variables of the pod.
        absent: Modules that its image lacks: imports of them fail in this Python and in those that it starts.
    """
    work = task.work
    (work / "tmp").mkdir(parents=True)
    argv = [
        part.replace("{{$}}", json.dumps(given))
        for part in [*container.get("command", []), *container.get("args", [])]
    ]
    if max(len(part.encode()) for part in argv) >= ARGUMENT:
        raise OSError("argument list too long")
    values = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(work),
        "TMPDIR": str(work / "tmp"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "PIP_NO_INDEX": "1",
        **{e["name"]: e["value"] for e in container.get("env", [])},
        **environment,
    }
    popen = task.popen
    if absent:
        image = work / "image"
        image.mkdir()
        (image / "sitecustomize.py").write_text(_ABSENT.format(names=tuple(absent)))
        values["PYTHONPATH"] = os.pathsep.join((str(image), values["PYTHONPATH"]))
        values["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), values["PATH"]))
        popen = subprocess.Popen  # a fork has imported them
    with (task.folder / "log").open("ab") as log:
        task.process = popen(
            argv,
            cwd=work,
            env=values,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def secrets(config: dict, known: dict[str, dict[str, str]]) -> tuple[dict[str, str], str]:
    """Return the variables with secrets, and the reason for which a container cannot be created."""
    found = {}
    for item in config.get("secretAsEnv", []):
        name = secret_of(item)
        if name not in known:
            if not item.get("optional"):
                return {}, f'secret "{name}" not found'
            continue
        for pair in item["keyToEnv"]:
            if pair["secretKey"] not in known[name]:
                return {}, f"couldn't find key {pair['secretKey']} in Secret kubeflow/{name}"
            found[pair["envVar"]] = known[name][pair["secretKey"]]
    return found, ""


def publish(task: Task, component: dict, root: str) -> str:
    """Take over what a finished command left; return the launcher's error, "" if there is none.

    Source: v2/component/launcher_v2.go, getExecutorOutputFile (protojson, which knows all fields) and
    uploadOutputArtifacts (artifacts are uploaded to the URI that the executor returns: a known scheme outside the
    pipeline root fails, an unknown one is skipped with a warning, a missing file too); v2/metadata/converter.go,
    StructValueToMLMDValue.
    """
    outputs = task.work / "outputs"
    task.outputs = {file.name: file.read_text() for file in outputs.iterdir()} if outputs.is_dir() else {}
    if any(len(value) > 16 << 20 for value in task.outputs.values()):
        return "failed to publish: parameter is larger than MEDIUMTEXT"
    declared = component.get("outputDefinitions", {})
    for name in declared.get("parameters", {}):
        if name not in task.outputs:
            return f'failed to read output parameter name="{name}": no such file'
    written = task.work / "executor_output.json"
    task.published, task.stored = {}, {}
    if written.exists():
        from google.protobuf import json_format
        from kfp.pipeline_spec import pipeline_spec_pb2

        def refuse(text: str) -> float:
            raise ValueError(f"syntax error: invalid value {text}")

        try:
            document = json.loads(written.read_text(), parse_constant=refuse)
            json_format.ParseDict(document, pipeline_spec_pb2.ExecutorOutput())
        except (ValueError, json_format.ParseError) as error:
            return f"failed to unmarshall ExecutorOutput in file: {error}"
        task.artifacts = document.get("artifacts", {})
    store = _store(task)
    for name, about in declared.get("artifacts", {}).items():
        listed = task.artifacts.get(name, {"artifacts": [{}]})
        for artifact in listed["artifacts"]:
            uri = artifact.get("uri", "")
            local = Path(uri) if uri.startswith(store) else None
            if local is not None:
                uri = _prefix(root) + uri[len(store) :]
            if uri.startswith(_SCHEMES) and not uri.startswith(_prefix(root)):
                return (
                    f'failed to upload output artifact "{name}": URI {uri!r} does not have expected bucket prefix '
                    f"{root!r}"
                )
            if local is not None and local.exists():
                files = [local] if local.is_file() else [f for f in local.rglob("*") if f.is_file()]
                for file in files:
                    inside = file.relative_to(local).as_posix()
                    task.stored[uri if inside == "." else f"{uri}/{inside}"] = file.read_bytes()
            properties: dict[str, Any] = {}
            for key, value in artifact.get("metadata", {}).items():
                if value is None:
                    return (
                        f'unable to produce MLMD artifact for output "{name}": unknown/unsupported value type'
                    )
                if isinstance(value, bool):
                    value = int(value)
                wrapped = {list: "list", dict: "struct"}.get(type(value))
                properties[key] = {wrapped: value} if wrapped else through_protobuf(value)
            properties.setdefault("display_name", name)
            properties.setdefault("store_session_info", '{"Provider":"minio","Params":{"fromEnv":"false"}}')
            task.published[name] = {
                "name": str(uuid.uuid4().int % 10**6),
                "uri": uri,
                "type": about["artifactType"],
                "metadata": properties,
            }
    return ""
