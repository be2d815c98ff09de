"""Constants and helpers that all blocks share."""

from __future__ import annotations

from typing import Any

from prefect.blocks.core import Block
from pydantic import HttpUrl, SecretStr

# There is no logo: Prefect loads a picture only by http(s), and its page must be whole without a network.
# The page explains blocks in general; each block describes itself.
DOCUMENTATION_URL = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")


def values_of(block: Block) -> dict[str, Any]:
    """Return the values of a block's own fields by name, single secrets in the clear.

    Args:
        block: The block.
    """
    values = {name: getattr(block, name) for name in type(block).model_fields}
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in values.items()
    }
