"""What every block of the collection shares."""

from __future__ import annotations

from pydantic import HttpUrl

# There is no logo: Prefect takes a picture by http(s) only, and its page must be whole without a network.
DOCUMENTATION_URL = HttpUrl("https://pypi.org/project/dvkf-prefect/")
