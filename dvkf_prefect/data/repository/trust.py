"""Checks of untrusted settings that could run a command or read a file of credentials on this machine.

Trusted settings come from the system or global configuration, the command line or code. A ``config.local`` is trusted
if git does not track it. Untrusted settings come from other authors:

- the committed ``.dvc/config`` of a cloned repository,
- the configuration of a repository that is read (``get``, ``import``, ``list``, ``update``),
- the keys ``repo`` and ``fs_config`` of a ``.dvc`` file.

To allow one option, the user sets it at a trusted level. To trust a whole source, the user names it in
``feature.trusted_sources`` of the global configuration or in ``DVKF_TRUSTED_SOURCES``. DVC ignores that setting with a
warning.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.git.command import comes_with_git
from dvkf_prefect.data.remotes.options import SECRETS
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.text import printable
from dvkf_prefect.urls import public_url

if TYPE_CHECKING:
    from dvkf_prefect.formats.config import ConfigFiles

# Options that run a command, or name a file that can contain a command or be uploaded.
_RUNS = {
    "bearer_token_command": "runs a command",
    "configpath": "names a file that can run a command",
    "credentialpath": "names a file of credentials",
    "gdrive_user_credentials_file": "names a file of credentials",
    "gdrive_service_account_json_file_path": "names a file of credentials",
}
# Options that use a local secret for a server that the settings' author chose; harmless in the user's own clone.
_USES = {
    "keyfile": "names a key",
    "cert_path": "names a certificate",
    "key_path": "names a key",
    "kerb_ticket": "names a ticket",
    "ssl_verify": "names a file of certificates",
    "ask_password": "asks you for a password",
    "ask_passphrase": "asks you for a passphrase",
}


def check_remote(config: ConfigFiles, name: str, options: Mapping[str, Any]) -> None:
    """Refuse dangerous options of a remote that come from an untrusted configuration.

    Args:
        config: Configuration of the user's repository or of another one.
        name: Name of the remote.
        options: Merged options of the remote.

    Raises:
        ConfigError: An option runs a command, or names a file of credentials.
    """
    source = config.source
    foreign = source is not None and not config.lent
    doubtful = [option for option, value in options.items() if _reason(option, value, foreign)]
    if doubtful:
        for option in doubtful:
            origin = config.level_of(name, option)
            if origin in _own_levels(config) or _is_trusted(config):
                continue
            raise ConfigError(
                _refusal(config, name, option, options[option], origin)
                if source is None
                else _foreign_refusal(source, name, option, options[option])
            )
    if source is not None and foreign:
        _check_recipient(config, source, name, options)


def _check_recipient(config: ConfigFiles, source: str, name: str, options: Mapping[str, Any]) -> None:
    """Refuse to send a secret from the user's configuration to a url from another repository's configuration."""
    kept = [option for option in SECRETS if option in options]
    own = ("system", "global")
    if (
        kept
        and config.level_of(name, "url") not in (*own, "given")
        and any(config.level_of(name, option) in own for option in kept)
        and not _is_trusted(config)
    ):
        raise ConfigError(
            f"remote '{printable(name)}' of {printable(public_url(source))}: your own configuration has a "
            "secret for a remote of that name, and it is not sent to the url of that repository. "
            f"{_how_to_trust(source)}"
        )


def check_options(options: Mapping[str, Any], root: Path, place: str) -> None:
    """Refuse options of a url in a `.dvc` file that run a command or read a file of credentials.

    Args:
        options: Options under the names of remote options.
        root: Root of the repository.
        place: Name of the file, for the message.

    Raises:
        ConfigError: An option does so, and the user does not trust the repository.
    """
    for option, value in options.items():
        reason = _reason(option, value, False)
        if reason and not is_trusted(str(root)):
            raise ConfigError(
                f"{printable(place)}: '{option}' is ignored because it {reason}. Set it for a remote of "
                f"yours with `dvkf remote modify --local`, or trust the folder: {_command(str(root))}"
            )


def own_options(config: ConfigFiles) -> dict[str, dict[str, str]]:
    """Return the user's sensitive options of remotes, as an overlay for a clone of the repository."""
    overlay: dict[str, dict[str, str]] = {}
    for name, options in config.values["remote"].items():
        for option, value in options.items():
            if _reason(option, value, True) and (
                config.level_of(name, option) in _own_levels(config) or _is_trusted(config)
            ):
                text = str(value).lower() if isinstance(value, bool) else str(value)
                overlay.setdefault(f'remote "{name}"', {})[option] = text
    return overlay


def is_trusted(source: str, config: ConfigFiles | None = None) -> bool:
    """Return True if the user trusts a folder or git url: it equals, or lies below, a named one."""
    named = os.environ.get("DVKF_TRUSTED_SOURCES", "")
    if config is not None:
        for level in ("system", "global"):
            named += f" {config.read(level).get('feature', {}).get('trusted_sources', '')}"
    elif not named:
        from dvkf_prefect.formats.config import ConfigFiles

        return is_trusted(source, ConfigFiles(None, check=False))
    folder = os.path.isabs(source.removeprefix("file://"))
    place = os.path.realpath(source.removeprefix("file://")) if folder else source
    if not folder and (".." in place.split("/") or "%2e" in place.lower() or "\\" in place):
        return False
    for prefix in named.split():
        if folder:
            prefix = os.path.realpath(os.path.expanduser(prefix.removeprefix("file://")))
        bare = prefix.rstrip("/")
        if place.rstrip("/") == bare or (bare and place.startswith(bare if bare[-1] == ":" else bare + "/")):
            return True
    return False


def _is_trusted(config: ConfigFiles) -> bool:
    return is_trusted(config.source or str(config.folder.parent), config)


def _reason(option: str, value: Any, foreign: bool) -> str | None:
    """Return the reason why an option is dangerous from an untrusted source; None if it is harmless."""
    if option in _RUNS:
        return _RUNS[option]
    if foreign and str(value).lower() not in ("true", "false"):
        return None if option.startswith("ask_") else _USES.get(option)
    return _USES[option] if foreign and option.startswith("ask_") and str(value).lower() == "true" else None


def _own_levels(config: ConfigFiles) -> tuple[str, ...]:
    local = config.files.get("local")
    own = local is not None and config.at_rest and not comes_with_git(local)
    return ("system", "global", "given", "local") if own else ("system", "global", "given")


def _refusal(config: ConfigFiles, name: str, option: str, value: Any, origin: str) -> str:
    place = config.files.get(origin, config.folder)
    command = f"dvkf remote modify --local {shlex.quote(name)} {option} {shlex.quote(str(value))}"
    return printable(
        f"remote '{name}': '{option}' in {place} is ignored because it {_reason(option, value, False)} and "
        f"came with the repository. To use it, run `{command}`."
    )


def _foreign_refusal(source: str, name: str, option: str, value: Any) -> str:
    return printable(
        f"remote '{name}' of {public_url(source)}: '{option}' of that repository's configuration is ignored "
        f"because it {_reason(option, value, True)}. Give it with --remote-config {option}=..., or trust the "
        f"source: {_command(source)}"
    )


def _how_to_trust(source: str) -> str:
    return f"To allow it, trust the source: {printable(_command(source))}"


def _command(source: str) -> str:
    return f"`dvkf config --global feature.trusted_sources {shlex.quote(public_url(source))}`."
