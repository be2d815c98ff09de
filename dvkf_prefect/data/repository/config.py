"""Settings of a repository, and the remotes configured in them."""

from __future__ import annotations

from dvkf_prefect.errors import ConfigError, RemoteNotFoundError
from dvkf_prefect.formats.config import ConfigFiles, keeps_versions, option_text
from dvkf_prefect.text import did_you_mean

_CHAIN = 20  # longest chain of remotes that refer to one another
# Common options that are safe from any source, so they need no check of their origin.
_HARMLESS = frozenset(("url", "region", "profile", "endpointurl", "jobs", "verify", "type", "user", "port"))


class Config(ConfigFiles):
    """Merged settings of a repository; see `ConfigFiles` for the arguments."""

    def default_remote(self) -> str | None:
        """Return the name of the default remote, None without one."""
        name: str | None = self.get("core", "remote")
        return name

    def remote(self, name: str | None, *, _seen: tuple[str, ...] = ()) -> tuple[str, dict[str, str]]:
        """Return a remote's name and options; a ``remote://other/sub`` url is resolved.

        Raises:
            RemoteNotFoundError: No remote has that name, or there is no default one.
            ConfigError: An untrusted configuration sets an option that runs a command, see `trust`.
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
                f"remote '{name}' doesn't exist (known: {known}). See `dvkf remote list`."
                f"{did_you_mean(name, self.values['remote'])}"
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
                    f"remotes refer to each other: {' -> '.join((*seen, base.lower()))}. Set a url for one "
                    "of them."
                )
            _, inherited = self.remote(base, _seen=seen)
            url = inherited["url"].rstrip("/") + ("/" + rest if rest else "")
            options = {**inherited, **options, "url": url}
        return name, options

    def is_versioned(self, name: str | None) -> bool:
        """Return True if a remote keeps versions itself; False for a remote that does not exist.

        Args:
            name: Name of the remote; None for the default one.
        """
        try:
            return keeps_versions(self.remote(name)[1])
        except RemoteNotFoundError:
            return False
