"""Settings of the Prefect side, from Prefect's own places.

Each is an environment variable ``PREFECT_INTEGRATIONS_DVKF_<NAME>``, or a key of ``[integrations.dvkf]`` in
prefect.toml and of ``[tool.prefect.integrations.dvkf]`` in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path

from prefect.settings import get_current_settings
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field


class DvkfSettings(PrefectBaseSettings):
    """Where the package keeps its files, and how much its cards show.

    Example:
        >>> DvkfSettings(card_rows=5).card_rows
        5
    """

    model_config = build_settings_config(("integrations", "dvkf"))

    home: Path | None = Field(
        default=None,
        description="Folder for clones and model servers. By default `dvkf` in Prefect's home.",
    )
    card_rows: int = Field(default=20, ge=1, le=1000, description="How many rows a card lists at most.")
    git_timeout: float = Field(
        default=600, gt=0, description="Seconds that git may take to clone, fetch or push a repository."
    )

    def folder(self, name: str) -> Path:
        """Return a folder below `home`; it is not made.

        Args:
            name: Its name.
        """
        home = self.home or get_current_settings().home / "dvkf"
        return home.expanduser().absolute() / name
