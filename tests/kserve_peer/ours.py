"""Our model server with the same models, on free ports of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from processes import wait_until

from dvkf_prefect.processes.identity import listen, reserve
from dvkf_prefect.serving import server
from dvkf_prefect.serving.intake import MAX_REQUEST_BYTES
from dvkf_prefect.serving.lanes import Lane
from dvkf_prefect.serving.model import Model
from dvkf_prefect.serving.traffic import Models
from kserve_peer.models import build


@contextmanager
def running() -> Iterator[tuple[int, int]]:
    """Serve the models in version ``v1``; the ports of HTTP and gRPC."""
    models = Models()
    for name, estimator in build().items():
        models.put(name, Lane(Model(estimator, name, "v1")))
    with serving(models, MAX_REQUEST_BYTES) as ports:
        yield ports


@contextmanager
def serving(models: Models, limit: int) -> Iterator[tuple[int, int]]:
    """Serve models, with requests of up to ``limit`` bytes; the ports of HTTP and gRPC."""
    listener = listen(0)
    with reserve(0) as reserved:
        port = reserved.getsockname()[1]
        ours = server._Server(models, limit, listener, None, port)
        thread = threading.Thread(target=ours.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: ours.started)
    try:
        yield listener.getsockname()[1], port
    finally:
        ours.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
