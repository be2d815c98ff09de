"""Settings in `.dvc/config`, read and written as DVC does.

Source of the format: ConfigObj INI in four levels: system, global, the repository's ``.dvc/config`` and
``.dvc/config.local``. Each level overrides the ones before it. As in DVC, an unknown section or option is an error.
"""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.formats import ini
from dvkf_prefect.text import did_you_mean
from dvkf_prefect.urls import public_url

LEVELS = ("system", "global", "repo", "local")
LINK_TYPES = ("reflink", "hardlink", "symlink", "copy")

# Kind of each option, from DVC's schema (dvc/config_schema.py), obsolete options included. An option without a kind
# takes any text. A count is a whole number of at least 1.
_COMMON = "url checksum_jobs:count jobs:count worktree:bool no_traverse:bool version_aware:bool verify:bool"
_LOCAL = "type:links protected:bool shared:group slow_link_warning:bool verify:bool"
_HTTP = (
    "auth:basic|digest|custom custom_auth_header user password ask_password:bool ssl_verify:flag method "
    "connect_timeout:seconds read_timeout:seconds"
)
_WEBDAV = (
    "user password ask_password:bool token bearer_token_command custom_auth_header cert_path key_path timeout:int "
    "ssl_verify:flag"
)
_REMOTES = {
    "": _LOCAL,
    "s3": "region profile credentialpath configpath endpointurl access_key_id secret_access_key session_token "
    "listobjects:bool use_ssl:bool allow_anonymous_login:bool ssl_verify:flag sse sse_kms_key_id "
    "sse_customer_algorithm sse_customer_key acl grant_read grant_read_acp grant_write_acp grant_full_control "
    "cache_regions:bool read_timeout:int connect_timeout:int",
    "gs": "projectname credentialpath endpointurl allow_anonymous_login:bool",
    "ssh": "type:links port:int user password ask_password:bool passphrase ask_passphrase:bool keyfile timeout:int "
    "gss_auth:bool allow_agent:bool max_sessions:int",
    "hdfs": "user kerb_ticket replication:int",
    "webhdfs": "kerberos:bool kerberos_principal proxy_to ssl_verify:flag token use_https:bool user password "
    "data_proxy_target",
    "azure": "connection_string sas_token account_name account_key tenant_id client_id client_secret "
    "allow_anonymous_login:bool exclude_environment_credential:bool exclude_visual_studio_code_credential:bool "
    "exclude_shared_token_cache_credential:bool exclude_managed_identity_credential:bool timeout:int read_timeout:int "
    "connection_timeout:int",
    "oss": "oss_key_id oss_key_secret oss_endpoint",
    "gdrive": "profile gdrive_use_service_account:bool gdrive_client_id gdrive_client_secret "
    "gdrive_user_credentials_file gdrive_service_account_user_email gdrive_service_account_json_file_path "
    "gdrive_trash_only:bool gdrive_acknowledge_abuse:bool",
    "http": _HTTP,
    "https": _HTTP,
    "webdav": _WEBDAV,
    "webdavs": _WEBDAV,
}
_SECTIONS = {
    "core": "remote:lower checksum_jobs:count interactive:bool analytics:bool hardlink_lock:bool no_scm:bool "
    "autostage:bool experiments:bool check_update:bool site_cache_dir machine:lower",
    "cache": "local s3 gs hdfs webhdfs ssh azure dir " + _LOCAL,
    "state": "dir row_limit:count row_cleanup_quota:percent",
    "index": "dir",
    "feature": "machine:bool trusted_sources",
    "plots": "html_template auto_open:bool out_dir",
    "exp": "code data models metrics params plots live auto_push:bool git_remote",
    "parsing": "bool:store_true|boolean_optional list:nargs|append",
    "hydra": "enabled:bool config_dir config_module config_name plugins_path",
    "studio": "token url repo_url offline:bool",
}
_NAMED = {
    "remote": "",
    "machine": "cloud:aws|azure region:us-west|us-east|eu-west|eu-north image spot:bool spot_price:number "
    "instance_hdd_size:int instance_type:lower instance_gpu:lower ssh_private startup_script setup_script",
    "db": "url username password",
}
# Order in which DVC adds sections to a file; sections with names follow all others.
_ORDER = (*_SECTIONS, *_NAMED)
_PATHS = {
    "cache": {"dir"},
    "remote": {
        "url", "gdrive_user_credentials_file", "gdrive_service_account_json_file_path", "credentialpath", "configpath",
        "keyfile", "cert_path", "key_path",
    },
    "machine": {"startup_script", "setup_script"},
}  # fmt: skip
_URL = re.compile(r"\w+://")
_CALLED = {"doubtful": "the settings of the source", "given": "the given settings"}

Values = dict[str, dict[str, Any]]


class _Relative(str):
    """Absolute form of a path that the file gives relative to its folder."""

    __slots__ = ()


class _Expanded(str):
    """Absolute form of a path that the file gives as ``~/…``."""

    __slots__ = ("written",)

    written: str


def keeps_versions(options: Mapping[str, object]) -> bool:
    """Return True if a remote with these options keeps versions itself, under the files' own names."""
    return any(str(options.get(option, "")).lower() == "true" for option in ("version_aware", "worktree"))


class ConfigFiles:
    """Settings of a repository, merged from the files of all levels.

    Args:
        dvc_dir: The repository's `.dvc` folder; None reads the system's and the user's settings only.
        overlay: Settings that override all files: sections of options, a remote's section named ``remote "name"``.
        check: False to load settings that may be wrong, in order to correct them.
        doubtful: Settings below ``overlay`` that do not come from the user: see `trust`.
        source: Url of the source repository, None if the repository is the user's own.
        at_rest: True if the repository is a folder of the user; False for a clone made for reading.
        lent: True if the source is a folder of this machine.

    Raises:
        ConfigError: A file does not parse, or has an unknown or invalid option; the error names the file.

    Attributes:
        files: The file of each level, in ascending order of precedence.
        given: The settings that override all files.
        values: Sections of options; ``values["remote"]`` and other named kinds hold one section per name.
    """

    def __init__(
        self,
        dvc_dir: Path | None,
        *,
        overlay: Mapping[str, Mapping[str, str]] | None = None,
        check: bool = True,
        doubtful: Mapping[str, Mapping[str, str]] | None = None,
        source: str | None = None,
        at_rest: bool = True,
        lent: bool = False,
    ) -> None:
        self.files = _config_files(dvc_dir)
        self.folder = dvc_dir or Path.cwd()
        self.source, self.at_rest, self.lent = source, at_rest, lent
        self.given: Mapping[str, Mapping[str, str]] = overlay or {}
        self._overlays = {"doubtful": doubtful or {}, "given": self.given}
        self.values: Values = {}
        self._load(check)

    def _load(self, check: bool) -> None:
        sources = {str(file): self.read(level) for level, file in self.files.items()}
        for level in self._overlays:
            if self._overlays[level]:
                sources[_CALLED[level]] = self._given(level)
        self.values = _checked(sources, strict=False) if check else _merged(sources)

    def _given(self, level: str) -> Values:
        given: ini.Sections = {
            section.lower(): {option.lower(): option_text(value) for option, value in options.items()}
            for section, options in self._overlays[level].items()
        }
        return _resolved(_named(given), self.folder)

    def level_of(self, remote: str, option: str) -> str:
        """Return the level that decides a remote's option; ``doubtful`` and ``given`` are not files."""
        for level in reversed(self._overlays):
            if option in self._given(level)["remote"].get(remote, {}):
                return level
        for level in reversed(self.files):
            if option in self.read(level)["remote"].get(remote, {}):
                return level
        return "doubtful"

    def read(self, level: str) -> Values:
        """Return one level's own settings as unchecked texts, with relative paths made absolute.

        Raises:
            ConfigError: The file does not parse, or this repository has no such level.
        """
        path = self._file(level)
        # Most levels are empty; skip the parser for them.
        if not path.exists() or (path.is_file() and not path.stat().st_size):
            return {section: {} for section in _ORDER}
        values = _resolved(_named(ini.load(path)), path.parent)
        for section in _ORDER:
            values.setdefault(section, {})
        return values

    def below(self, level: str | None) -> Values:
        """Return the merged settings of the levels below ``level``; of all levels if None."""
        levels = list(self.files)
        names = levels if level is None else levels[: levels.index(level)]
        return _merged({name: self.read(name) for name in names})

    def _file(self, level: str) -> Path:
        path = self.files.get(level)
        if path is None:
            raise ConfigError(f"no {level} configuration: this folder is not inside a DVC repository")
        return path

    def get(self, section: str, option: str, default: Any = None) -> Any:
        """Return one setting as str, bool, int or float, according to its kind."""
        return self.values[section].get(option, default)

    def check_remotes(self, names: Iterable[str | None]) -> None:
        """Refuse names of remotes that are not configured.

        Raises:
            ConfigError: A remote is not configured.
        """
        for name in {name.lower() for name in names if name}:
            if name not in self.values["remote"]:
                known = ", ".join(sorted(self.values["remote"])) or "none"
                raise ConfigError(f"remote '{name}' doesn't exist (known: {known}). See `dvkf remote list`.")

    @contextmanager
    def edit(
        self, level: str = "repo", *, strict: bool = False, check_above: bool = True
    ) -> Iterator[Values]:
        """Yield one level's sections for editing; check and save them when the block ends.

        Paths given in the block are relative to the current folder.

        Args:
            level: Level to edit.
            strict: Refuse remote urls of kinds that DVC does not know, since DVC would fail on them.
            check_above: False if the levels above are edited next.

        Raises:
            ConfigError: The result has an unknown or invalid option, alone or over the levels below; the file stays
                unchanged. Or the result is valid, but not together with the levels above.
        """
        path = self._file(level)
        sections = self.read(level)
        before = copy.deepcopy(sections)
        yield sections
        written = _relative(sections, path.parent)
        _checked({"the levels below": self.below(level), str(path): written}, strict=strict)
        old, new = _flat(_relative(before, path.parent)), _flat(written)
        if new != old:
            data = ini.rewrite(path, _flat(before), new)
            path.parent.mkdir(parents=True, exist_ok=True)
            # The local level may hold keys and passwords.
            private = level == "local"
            if private and path.is_file() and not path.is_symlink():
                path.chmod(0o600)
            write_atomic(path, data, mode=0o600 if private else 0o666)
        self._load(check_above)


def _config_files(dvc_dir: Path | None) -> dict[str, Path]:
    if sys.platform == "darwin":
        home, site = os.path.expanduser("~/Library/Application Support"), "/Library/Application Support"
    else:
        home = os.environ.get("XDG_CONFIG_HOME", "").strip() or os.path.expanduser("~/.config")
        site = os.environ.get("XDG_CONFIG_DIRS", "").strip().split(os.pathsep)[0] or "/etc/xdg"
    files = {
        "system": Path(os.environ.get("DVC_SYSTEM_CONFIG_DIR") or os.path.join(site, "dvc")) / "config",
        "global": Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or os.path.join(home, "dvc")) / "config",
    }
    if dvc_dir:
        files["repo"] = dvc_dir / "config"
        files["local"] = dvc_dir / "config.local"
    return files


# -- the shape of the settings -----------------------------------------------------------------------------------------


def _named(sections: ini.Sections) -> Values:
    """Group sections such as ``remote "store"`` by kind."""
    values: Values = {kind: {} for kind in _NAMED}
    for section, options in sections.items():
        match = re.match(r'\s*(remote|machine|db)\s*"(.*)"\s*$', section)
        if match:
            values[match[1]][match[2]] = options
        else:
            values[section] = options
    return values


def _flat(values: Values) -> ini.Sections:
    """Undo `_named`, in the order in which DVC writes; empty sections without a name are left out."""
    flat = {section: options for section, options in values.items() if section not in _NAMED and options}
    for kind in _NAMED:
        flat.update({f'{kind} "{name}"': options for name, options in values.get(kind, {}).items()})
    return flat


def _merged(sources: Mapping[str, Values]) -> Values:
    values: Values = {section: {} for section in _ORDER}
    for more in sources.values():
        for section, options in more.items():
            into = values.setdefault(section, {})
            for option, value in options.items():
                if isinstance(value, dict):
                    into[option] = {**into.get(option, {}), **value}
                else:
                    into[option] = value
    return values


def _map_paths(values: Values, change: Callable[[str], str]) -> Values:
    """Return the settings with a function applied to every path."""

    def mapped(options: dict[str, Any], names: set[str]) -> dict[str, Any]:
        return {
            option: change(value) if option in names and isinstance(value, str) else value
            for option, value in options.items()
        }

    changed: Values = {}
    for section, options in values.items():
        names = _PATHS.get(section, set())
        if section in _NAMED:
            changed[section] = {name: mapped(named, names) for name, named in options.items()}
        else:
            changed[section] = mapped(options, names)
    return changed


def _resolved(values: Values, folder: Path) -> Values:
    """Make relative paths absolute; each remembers its original form."""

    def absolute(path: str) -> str:
        if _URL.match(path) or os.path.isabs(path):
            return path
        expanded = os.path.expanduser(path)
        if os.path.isabs(expanded):
            found = _Expanded(expanded)
            found.written = path
            return found
        return _Relative(os.path.abspath(os.path.join(folder, path)))

    return _map_paths(values, absolute)


def _relative(values: Values, folder: Path) -> Values:
    """Convert paths to the form in the file: relative to its folder if read or typed so."""

    def relative(path: str) -> str:
        if isinstance(path, _Expanded):
            return path.written
        if _URL.match(path) or os.path.expanduser(path) != path:
            return path
        if isinstance(path, _Relative) or not os.path.isabs(path):
            return path and os.path.relpath(path, folder)
        return path

    return _map_paths(values, relative)


# -- checking ----------------------------------------------------------------------------------------------------------


def _options(spec: str) -> dict[str, str]:
    return {name: kind for name, _, kind in (word.partition(":") for word in spec.split())}


def _checked(sources: Mapping[str, Values], *, strict: bool) -> Values:
    """Merge settings and give each value its type.

    Args:
        sources: The settings of each file, in ascending order of precedence.
        strict: Refuse remote urls of kinds that DVC does not know.

    Raises:
        ConfigError: A section or an option is unknown or invalid; the error names the file.
    """
    merged = _merged(sources)
    values: Values = {}
    for section, options in merged.items():
        if section not in _ORDER:
            raise ConfigError(
                f"{_origin(sources, section)}: unknown section '{section}'; known: {', '.join(_ORDER)}."
                f"{did_you_mean(section, _ORDER)}"
            )
        if section not in _NAMED:
            values[section] = _typed(sources, (section,), options, _options(_SECTIONS[section]))
            continue
        values[section] = {}
        for name, named in options.items():
            known = _remote_options(sources, name, named, strict) if section == "remote" else None
            values[section][name] = _typed(
                sources, (section, name), named, known if known is not None else _options(_NAMED[section])
            )
    if {"config_dir", "config_module"} <= values["hydra"].keys():
        origin = _origin(sources, "hydra", "config_module")
        raise ConfigError(f"{origin}: [hydra] has both config_dir and config_module. Keep one of them.")
    return values


def _remote_options(
    sources: Mapping[str, Values], name: str, options: Mapping[str, Any], strict: bool
) -> dict[str, str]:
    """Return the options allowed for a remote, by the kind of its url."""
    url = options.get("url")
    if not url:
        raise ConfigError(
            f"{_origin(sources, 'remote', name)}: remote '{name}' has no url. Set one with "
            f"`dvkf remote modify {name} url URL`."
        )
    scheme, _, rest = str(url).partition("://") if _URL.match(str(url)) else ("", "", "")
    everything = _options(" ".join((_COMMON, *_REMOTES.values())))
    if not rest.split("/")[0]:  # a folder, or `file:///…`
        scheme = ""
    if scheme == "remote":
        return everything
    if scheme not in _REMOTES:
        if strict:
            known = ", ".join(f"{other}://" for other in _REMOTES if other)
            raise ConfigError(
                f"{_origin(sources, 'remote', name)}: remote '{name}' has a url of unknown kind, "
                f"{scheme}://; DVC supports {known}"
            )
        return everything
    return _options(f"{_COMMON} {_REMOTES[scheme]}")


def _typed(
    sources: Mapping[str, Values],
    where: tuple[str, ...],
    options: Mapping[str, Any],
    known: Mapping[str, str],
) -> dict[str, Any]:
    typed = {}
    title = where[0] if len(where) == 1 else f'{where[0]} "{where[1]}"'
    for option, value in options.items():
        if option not in known:
            if where == ("feature",):  # DVC drops features between versions
                continue
            raise ConfigError(
                f"{_origin(sources, *where, option)}: unknown option '{option}' in [{title}]"
                + (f" of {public_url(str(options['url']))}." if where[0] == "remote" else ".")
                + (did_you_mean(option, known) or " Correct or remove it.")
            )
        try:
            typed[option] = _value(known[option], value)
        except ValueError as error:
            raise ConfigError(
                f"{_origin(sources, *where, option)}: [{title}] {option} = {option_text(value)}: expected {error}"
            ) from None
        if (where[0], option) in (("remote", "url"), ("cache", "dir")):
            typed[option] = _folder_or_url(typed[option])
    return typed


def _value(kind: str, value: Any) -> Any:
    """Convert a value to its kind.

    Raises:
        ValueError: The value is not of that kind; the message says what is expected.
    """
    if kind == "links":
        types = [part.strip() for part in option_text(value).split(",")]
        if wrong := [part for part in types if part not in LINK_TYPES]:
            raise ValueError(f"link types from {', '.join(LINK_TYPES)}, not {', '.join(wrong)}")
        return ",".join(types)
    if isinstance(value, (list, dict)) or value is None:
        raise ValueError("one string (in quotes if it has a comma)")
    if not kind:
        return value if isinstance(value, str) else option_text(value)
    text = option_text(value)
    lower = text.lower()
    if kind == "lower":
        return lower
    if kind in ("bool", "flag"):
        if lower in ("true", "false"):
            return lower == "true"
        if kind == "bool":
            raise ValueError("true or false")
        return text
    if kind in _NUMBERS:
        make, low, high, expected = _NUMBERS[kind]
        try:
            number = make(text)
        except ValueError:
            raise ValueError(expected) from None
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError(expected)
        return number
    if lower not in kind.split("|"):
        raise ValueError("one of " + ", ".join(kind.split("|")))
    return lower


# Parser, bounds and description of each kind of number.
_NUMBERS: dict[str, tuple[Callable[[str], float], float | None, float | None, str]] = {
    "int": (int, None, None, "a whole number"),
    "count": (int, 1, None, "a whole number, at least 1"),
    "percent": (int, 0, 100, "a whole number from 0 to 100"),
    "number": (float, None, None, "a number"),
    "seconds": (float, 0, None, "a number of seconds"),
}


def _origin(sources: Mapping[str, Values], *path: str) -> str:
    """Return the file that decides a section or an option."""
    for origin, values in reversed(list(sources.items())):
        place: Any = values
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
        if place is not None and place != {}:
            return origin
    return list(sources)[-1]


def _folder_or_url(url: str) -> str:
    """Return the folder of a ``file://`` url; one with a host stays, for the remote to refuse."""
    folder = url.removeprefix("file://").removeprefix("localhost")
    return os.path.normpath(folder) if url.startswith("file://") and folder.startswith("/") else url


def option_text(value: Any) -> str:
    """Return an option's value in config file syntax."""
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
