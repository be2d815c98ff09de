"""Settings of blocks and tasks, read like Prefect's own settings.

Each is an environment variable ``PREFECT_INTEGRATIONS_DVKF_<NAME>``, or a key of ``[integrations.dvkf]`` in
prefect.toml and of ``[tool.prefect.integrations.dvkf]`` in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path

from prefect.settings import get_current_settings
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field, HttpUrl


class DvkfSettings(PrefectBaseSettings):
    """Folder of the package's files, size of cards, asset events, timeouts of git and of turns.

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
    card_table_size: int = Field(
        default=20_000_000,
        ge=0,
        description="Maximum size in bytes of a table whose card shows its columns. 0 shows none.",
    )
    card_sample: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Number of first rows in the card of a table. Cards are stored on Prefect's server.",
    )
    assets: bool = Field(
        default=True,
        description="Emit Prefect's asset events for versions of data and models that tasks write.",
    )
    docs_url: HttpUrl | None = Field(
        default=None,
        description="Address of a site of this package's documentation, for links and logos of block types.",
    )
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
