"""Settings of blocks and tasks, read like Prefect's own settings.

Each is an environment variable ``PREFECT_INTEGRATIONS_DVKF_<NAME>``, or a key of ``[integrations.dvkf]`` in
prefect.toml and of ``[tool.prefect.integrations.dvkf]`` in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path

from prefect.settings import get_current_settings
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field


class DvkfSettings(PrefectBaseSettings):
    """Folder of the package's files, size of cards, timeouts of git and of turns.

    Example:
        >>> DvkfSettings(card_rows=5).card_rows
        5
    """

    model_config = build_settings_config(("integrations", "dvkf"))

    home: Path | None = Field(
        default=None,
        description="Folder for clones and model servers. By default `dvkf` in Prefect's home.",
    )
    card_rows: int = Field(default=20, ge=1, le=1000, description="Maximum number of rows in a card.")
    git_timeout: float = Field(
        default=600, gt=0, description="Timeout in seconds for git to clone, fetch or push."
    )

    turn_timeout: float = Field(
        default=24 * 3600,
        gt=0,
        description="Seconds for which a flow waits for its turn in a workspace.",
    )

    def folder(self, name: str) -> Path:
        """Return the path of a folder below `home`. The folder may not exist.

        Args:
            name: Name of the folder.
        """
        home = self.home or get_current_settings().home / "dvkf"
        return home.expanduser().absolute() / name
