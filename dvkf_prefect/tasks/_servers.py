"""Model servers of tasks: a block of either type, or its name."""

from __future__ import annotations

from contextlib import suppress

from dvkf_prefect.blocks import KServeModelServer, ModelServer, find_block
from dvkf_prefect.errors import ConfigError

AnyServer = ModelServer | KServeModelServer


def find_server(server: AnyServer | str) -> AnyServer:
    """Return a model server that is given itself or by its name.

    A name is looked for among the servers of this machine first.

    Args:
        server: The block, or the name it is saved under.

    Raises:
        ConfigError: No model server has that name.
        TypeError: It is a coroutine, or something else.
    """
    if isinstance(server, KServeModelServer):
        return server
    try:
        return find_block(ModelServer, server, "server")
    except ConfigError:
        if isinstance(server, str):
            with suppress(ConfigError):
                return find_block(KServeModelServer, server, "server")
        raise
