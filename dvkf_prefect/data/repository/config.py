"""The settings of a repository, and the remotes that they name."""

from __future__ import annotations

from dvkf_prefect.errors import ConfigError, RemoteNotFoundError
from dvkf_prefect.formats.config import ConfigFiles, keeps_versions, option_text

_CHAIN = 20  # remotes that name one another
# Options of most remotes, of which nobody needs to ask who set them.
_HARMLESS = frozenset(("url", "region", "profile", "endpointurl", "jobs", "verify", "type", "user", "port"))


class Config(ConfigFiles):
    """The merged settings of a repository; see `ConfigFiles` for its arguments."""

    def default_remote(self) -> str | None:
        """Return the default remote's name."""
        name: str | None = self.get("core", "remote")
        return name

    def remote(self, name: str | None, *, _seen: tuple[str, ...] = ()) -> tuple[str, dict[str, str]]:
        """Return a remote's name and options; a ``remote://other/sub`` url is resolved.

        Raises:
            RemoteNotFoundError: There is none of that name, or no default is set.
            ConfigError: Somebody else's configuration has an option that runs a command here, see `trust`.
        """
        known = ", ".join(sorted(self.values["remote"])) or "none"
        if name is None:
            name = self.default_remote()
            if name is None:
                raise RemoteNotFoundError(
                    f"no default remote is set (known: {known}). Add one with `dvkf remote add -d NAME URL`, "
                    "or name one with -r."
                )
        name = name.lower()
        if name not in self.values["remote"]:
            raise RemoteNotFoundError(
                f"remote '{name}' doesn't exist (known: {known}); see `dvkf remote list`"
            )
        options = {key: option_text(value) for key, value in self.values["remote"][name].items()}
        if self.source is not None or not _HARMLESS.issuperset(options):
            from dvkf_prefect.data.repository.trust import check_remote  # takes a while to import

            check_remote(self, name, options)
        if options["url"].startswith("remote://"):
            base, _, rest = options["url"].removeprefix("remote://").partition("/")
            if base.lower() == name:
                raise ConfigError(f"remote '{name}' refers to itself")
            if base.lower() in (seen := (*_seen, name)) or len(seen) > _CHAIN:
                raise ConfigError(
                    f"remotes refer to each other: {' -> '.join((*seen, base.lower()))}. Give one a url."
                )
            _, inherited = self.remote(base, _seen=seen)
            url = inherited["url"].rstrip("/") + ("/" + rest if rest else "")
            options = {**inherited, **options, "url": url}
        return name, options

    def is_versioned(self, name: str | None) -> bool:
        """Return whether a remote keeps versions itself; one that does not exist does not.

        Args:
            name: The remote; None for the default one.
        """
        try:
            return keeps_versions(self.remote(name)[1])
        except RemoteNotFoundError:
            return False
