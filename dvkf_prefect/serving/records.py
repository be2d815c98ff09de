"""State files of model servers on this machine: one small file a server, which any later process finds.

A model deployed alone has a server of its own, with the file ``MODEL.json``. A named server has ``@NAME.json``, and
holds several models. ``@`` is quoted in names of models, so the two never meet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dvkf_prefect.data.repository.locks import RepoLock
from dvkf_prefect.errors import LockedError, ServingError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.processes.identity import ProcessId
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.lanes import Batching


@dataclass(frozen=True)
class Hosted:
    """A model of a server.

    Attributes:
        endpoint: Its endpoint.
        batching: Bounds of its batches.
        workers: Number of processes that compute; 0 for threads of the server.
    """

    endpoint: Endpoint
    batching: Batching
    workers: int = 0


@dataclass(frozen=True)
class ServerRecord:
    """A running server, with the data to find its process and its listening socket again.

    Attributes:
        process: Its process.
        control: Name of its control socket.
        port: Port on 127.0.0.1.
        models: Its models, at least one.
    """

    process: ProcessId
    control: str
    port: int
    models: tuple[Hosted, ...]

    @property
    def detached(self) -> bool:
        """True if the server outlives the process that started it."""
        return self.models[0].endpoint.detached

    def find(self, name: str) -> Hosted | None:
        """Return a model of the server; None if it has none of that name."""
        return next((hosted for hosted in self.models if hosted.endpoint.model == name), None)

    def having(self, hosted: Hosted) -> ServerRecord:
        """Return the record with a model added, or in place of that of the same name."""
        return replace(self, models=(*self.without(hosted.endpoint.model).models, hosted))

    def without(self, name: str) -> ServerRecord:
        """Return the record without a model."""
        return replace(self, models=tuple(each for each in self.models if each.endpoint.model != name))

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain values for JSON."""
        return {
            "process": self.process.as_dict(),
            "control": self.control,
            "port": self.port,
            "models": [asdict(hosted) for hosted in self.models],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServerRecord:
        """Build a record from the values of `as_dict`; those of older files have one model."""
        models = values.get("models", [values])
        return cls(
            ProcessId.from_dict(values["process"]),
            str(values["control"]),
            int(values["port"]),
            tuple(
                Hosted(
                    Endpoint(**each["endpoint"]), Batching(**each["batching"]), int(each.get("workers", 0))
                )
                for each in models
            ),
        )


class Records:
    """The state files of one folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(model: str, server: str = "") -> str:
        """Return the key of a server: its name, or the model's for a server of its own."""
        return f"@{quote(server, safe='')}" if server else quote(model, safe="")

    @staticmethod
    def is_shared(key: str) -> bool:
        """Return True for a named server, which may hold several models."""
        return key.startswith("@")

    def file(self, key: str, suffix: str = ".json") -> Path:
        """Return the path of a server's state file, or of another file beside it."""
        return self.folder / (key + suffix)

    def place_of(self, model: str) -> str:
        """Return the key of the server that holds a model; that of a server of its own if none does."""
        own = self.key(model)
        if not self.running(own):
            for file in sorted(self.folder.glob("@*.json")):
                if any(record.find(model) for record in self.running(file.stem)):
                    return file.stem
        return own

    def all(self) -> list[list[ServerRecord]]:
        """Return the running servers, by state file."""
        return [self.running(file.stem) for file in self.folder.glob("*.json")]

    def read(self, key: str) -> list[ServerRecord]:
        """Return the servers of a state file: the one that answers, then one that starts or that it replaces.

        Raises:
            ServingError: The file is damaged.
        """
        file = self.file(key)
        try:
            return [ServerRecord.from_dict(entry) for entry in json.loads(file.read_bytes())["servers"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise ServingError(
                f"{file} does not describe a server ({error}). Find the server by the log beside the file, end it, "
                "and remove the file."
            ) from error

    def running(self, key: str) -> list[ServerRecord]:
        """Return the servers of a state file whose processes live."""
        return [record for record in self.read(key) if record.process.alive]

    def write(self, key: str, records: Sequence[ServerRecord]) -> None:
        """Write a state file; remove it if there is no server."""
        if not records:
            self.file(key).unlink(missing_ok=True)
            return
        document = {"servers": [record.as_dict() for record in records]}
        write_atomic(self.file(key), json.dumps(document, indent=1).encode(), mode=0o600)

    @contextmanager
    def lock(self, key: str, what: str, timeout: float) -> Iterator[None]:
        """Hold the lock of a server.

        Args:
            key: Key of the server.
            what: Its name for the error.
            timeout: Seconds to wait for another process.

        Raises:
            ServingError: Another process holds it for longer.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(RepoLock(self.file(key, ".lock")).hold(timeout))
            except LockedError as error:
                raise ServingError(
                    f"{what}: another process has been deploying or stopping it for {timeout:.0f} s"
                ) from error
            yield
