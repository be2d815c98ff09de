"""What every block of the collection shares."""

from __future__ import annotations

from pydantic import HttpUrl

# There is no logo: Prefect takes a picture by http(s) only, and its page must be whole without a network.
# What a block is and how it is used; the blocks themselves are told of in the README and in their own descriptions.
DOCUMENTATION_URL = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
