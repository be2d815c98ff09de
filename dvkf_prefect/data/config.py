"""`.dvc/config`, read and written as DVC does.

Source of the format: ConfigObj INI in four levels, each over the one before: system, global, the repository's
``.dvc/config`` and ``.dvc/config.local``. An unknown section or option is an error, as it is for DVC.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvkf_prefect.data.digest import write_atomic
from dvkf_prefect.errors import ConfigError, RemoteNotFoundError

LEVELS = ("system", "global", "repo", "local")
LINK_TYPES = ("reflink", "hardlink", "symlink", "copy")

_COMMON = "url:path checksum_jobs:int jobs:int worktree:bool no_traverse:bool version_aware:bool verify:bool"
_LOCAL = "type:links protected:bool shared slow_link_warning:bool verify:bool"
_HTTP = (
    "auth custom_auth_header user password ask_password:bool ssl_verify method connect_timeout:float "
    "read_timeout:float"
)
_WEBDAV = (
    "user password ask_password:bool token bearer_token_command custom_auth_header cert_path:path key_path:path "
    "timeout:int ssl_verify"
)
_REMOTES = {
    "": _LOCAL,
    "file": _LOCAL,
    "memory": "",
    "s3": "region profile credentialpath:path configpath:path endpointurl access_key_id secret_access_key "
    "session_token listobjects:bool use_ssl:bool allow_anonymous_login:bool ssl_verify sse sse_kms_key_id "
    "sse_customer_algorithm sse_customer_key acl grant_read grant_read_acp grant_write_acp grant_full_control "
    "cache_regions:bool read_timeout:int connect_timeout:int",
    "gs": "projectname credentialpath:path endpointurl allow_anonymous_login:bool",
    "ssh": "type:links port:int user password ask_password:bool passphrase ask_passphrase:bool keyfile:path "
    "timeout:int gss_auth:bool allow_agent:bool max_sessions:int",
    "hdfs": "user kerb_ticket replication:int",
    "webhdfs": "kerberos:bool kerberos_principal proxy_to ssl_verify token use_https:bool user password "
    "data_proxy_target",
    "azure": "connection_string sas_token account_name account_key tenant_id client_id client_secret "
    "allow_anonymous_login:bool exclude_environment_credential:bool exclude_visual_studio_code_credential:bool "
    "exclude_shared_token_cache_credential:bool exclude_managed_identity_credential:bool timeout:int read_timeout:int "
    "connection_timeout:int",
    "oss": "oss_key_id oss_key_secret oss_endpoint",
    "gdrive": "profile gdrive_use_service_account:bool gdrive_client_id gdrive_client_secret "
    "gdrive_user_credentials_file:path gdrive_service_account_user_email gdrive_service_account_json_file_path:path "
    "gdrive_trash_only:bool gdrive_acknowledge_abuse:bool",
    "http": _HTTP,
    "https": _HTTP,
    "webdav": _WEBDAV,
    "webdavs": _WEBDAV,
}
_SECTIONS = {
    "core": "remote:lower checksum_jobs:int interactive:bool analytics:bool hardlink_lock:bool no_scm:bool "
    "autostage:bool experiments:bool check_update:bool site_cache_dir:path machine",
    "cache": "dir:path local s3 gs hdfs webhdfs ssh azure " + _LOCAL,
    "state": "dir row_limit row_cleanup_quota",
    "index": "dir",
    "feature": "machine:bool",
    "plots": "html_template:path auto_open:bool out_dir:path",
    "exp": "code data models metrics params plots live auto_push:bool git_remote",
    "parsing": "bool list",
    "hydra": "enabled:bool config_dir config_module config_name plugins_path",
    "studio": "token url repo_url offline:bool",
}
_NAMED = ("remote", "machine", "db")


def _options(spec: str) -> dict[str, str]:
    return {name: kind or "str" for name, _, kind in (word.partition(":") for word in spec.split())}


Values = dict[str, dict[str, Any]]


class Config:
    """The merged settings of a repository.

    Args:
        dvc_dir: The repository's `.dvc` folder; None reads the system's and the user's settings only.
        overlay: Settings over all files: sections of options, a remote's section named ``remote "name"``.

    Raises:
        ConfigError: A file does not parse, or has an unknown or wrong option; names the file.

    Attributes:
        values: Sections of options; ``values["remote"]`` and the like hold a section for each name.
    """

    def __init__(
        self, dvc_dir: Path | None, *, overlay: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        self._dvc_dir = dvc_dir
        self.files = _config_files(dvc_dir)
        self.values: Values = {section: {} for section in (*_SECTIONS, *_NAMED)}
        for level in self.files:
            _merge(self.values, self.read(level))
        if overlay:
            _merge(self.values, _parse(overlay, "the given settings", dvc_dir or Path.cwd()))
        for name, options in self.values["remote"].items():
            _check_remote(name, options)

    def read(self, level: str) -> Values:
        """Return one level's own settings, its relative paths made absolute.

        Raises:
            ConfigError: The file does not parse, or has an unknown or wrong option.
        """
        path = self.files[level]
        # Most levels are empty, and the parser of the others takes a while to import.
        if not path.exists() or not path.stat().st_size:
            return {}
        return _parse(_load(path), str(path), path.parent)

    def get(self, section: str, option: str, default: Any = None) -> Any:
        """Return one setting, as str, bool, int or float by its kind."""
        return self.values[section].get(option, default)

    def default_remote(self) -> str | None:
        """Return the default remote's name."""
        name: str | None = self.get("core", "remote")
        return name

    def remote(self, name: str | None) -> tuple[str, dict[str, str]]:
        """Return a remote's name and options; a ``remote://other/sub`` url is resolved.

        Raises:
            RemoteNotFoundError: There is none of that name, or no default is set.
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
        options = {key: _text(value) for key, value in self.values["remote"][name].items()}
        if options["url"].startswith("remote://"):
            base, _, rest = options["url"].removeprefix("remote://").partition("/")
            if base.lower() == name:
                raise ConfigError(f"remote '{name}' refers to itself")
            _, inherited = self.remote(base)
            url = inherited["url"].rstrip("/") + ("/" + rest if rest else "")
            options = {**inherited, **options, "url": url}
        return name, options

    @contextmanager
    def edit(self, level: str = "repo") -> Iterator[Values]:
        """Change one level's file: the block gets its sections to change, and they are checked and saved at its end.

        Raises:
            ConfigError: The result has an unknown or wrong option; the file is left as it was.
        """
        path = self.files.get(level)
        if path is None:
            raise ConfigError(f"not inside a DVC repository: there is no {level} configuration here")
        sections = self.read(level)
        for section in (*_SECTIONS, *_NAMED):
            sections.setdefault(section, {})
        before = copy.deepcopy(sections)
        yield sections
        document = _load(path)
        _store(document, before, sections, path.parent)
        checked = _parse(document, str(path), path.parent)
        trial: Values = {section: {} for section in (*_SECTIONS, *_NAMED)}
        for other in self.files:
            _merge(trial, checked if other == level else self.read(other))
        for name, options in trial["remote"].items():
            _check_remote(name, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = document.write()
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
        self.values = trial


def _config_files(dvc_dir: Path | None) -> dict[str, Path]:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    site = os.environ.get("XDG_CONFIG_DIRS", "").split(os.pathsep)[0] or "/etc/xdg"
    files = {
        "system": Path(os.environ.get("DVC_SYSTEM_CONFIG_DIR") or os.path.join(site, "dvc")) / "config",
        "global": Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or os.path.join(home, "dvc")) / "config",
    }
    if dvc_dir:
        files["repo"] = dvc_dir / "config"
        files["local"] = dvc_dir / "config.local"
    return files


def _load(path: Path) -> Any:
    """Read a file into a ConfigObj, which keeps comments for the next write."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    from configobj import ConfigObj, ConfigObjError

    try:
        return ConfigObj(text.splitlines(), interpolation=False, indent_type="    ")
    except ConfigObjError as error:
        raise ConfigError(f"{path}: not a configuration file: {error}") from error


def _split(section: str) -> tuple[str, str | None]:
    """Return the kind and name of a section such as ``'remote "store"'``."""
    plain = section.strip().strip("'").lower()
    kind, _, rest = plain.partition(" ")
    rest = rest.strip()
    if rest.startswith('"') and rest.endswith('"') and len(rest) > 2:
        return kind, rest[1:-1]
    return plain, None


def _parse(document: Mapping[str, Any], origin: str, base: Path) -> Values:
    values: Values = {}
    for raw, options in document.items():
        kind, name = _split(raw)
        if not isinstance(options, Mapping):
            raise ConfigError(f"{origin}: '{raw}' stands outside any section")
        if kind in _NAMED and name:
            section = values.setdefault(kind, {}).setdefault(name, {})
            known = None if kind != "remote" else _options(" ".join((_COMMON, *_REMOTES.values())))
        elif kind in _SECTIONS and name is None:
            section = values.setdefault(kind, {})
            known = _options(_SECTIONS[kind])
        else:
            raise ConfigError(f"{origin}: unknown section '{raw}'; known: {', '.join((*_SECTIONS, *_NAMED))}")
        for option, text in options.items():
            option = option.lower()
            if known is not None and option not in known:
                raise ConfigError(f"{origin}: unknown option '{option}' in [{raw}]")
            place = f"{origin}: [{raw}] {option}"
            section[option] = _value(known[option] if known else "str", text, place, base)
    return values


def _value(kind: str, text: Any, place: str, base: Path) -> Any:
    if not isinstance(text, str):
        text = _text(text)
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{place} = {text}: expected true or false")
        return text.lower() == "true"
    if kind in ("int", "float"):
        try:
            number = int(text) if kind == "int" else float(text)
        except ValueError:
            raise ConfigError(f"{place} = {text}: expected a number") from None
        if number < (0 if kind == "float" else 1) and not place.endswith("timeout"):
            raise ConfigError(f"{place} = {text}: expected at least 1")
        return number
    if kind == "links":
        types = [part.strip() for part in text.split(",")]
        if wrong := [part for part in types if part not in LINK_TYPES]:
            raise ConfigError(
                f"{place}: unknown link type {', '.join(wrong)}; known: {', '.join(LINK_TYPES)}"
            )
        return ",".join(types)
    if kind == "path":
        return _absolute(text, base)
    return text.lower() if kind == "lower" else text


def _is_url(text: str) -> bool:
    return "://" in text


def _absolute(text: str, base: Path) -> str:
    if _is_url(text) and not text.startswith("file://"):
        return text
    text = os.path.expanduser(text.removeprefix("file://"))
    return os.path.normpath(text if os.path.isabs(text) else os.path.join(base, text))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _merge(values: Values, more: Values) -> None:
    for section, options in more.items():
        for option, value in options.items():
            if section in _NAMED:
                values[section].setdefault(option, {}).update(value)
            else:
                values[section][option] = value


def _check_remote(name: str, options: dict[str, Any]) -> None:
    url = options.get("url")
    if not url:
        raise ConfigError(f"remote '{name}' has no url; set one with `dvkf remote modify {name} url URL`")
    scheme = url.partition("://")[0] if _is_url(url) else ""
    if scheme == "remote" or scheme not in _REMOTES:
        return
    known = _options(_COMMON + " " + _REMOTES[scheme])
    for option in options:
        if option not in known:
            raise ConfigError(f"remote '{name}' ({url}): unknown option '{option}' for this kind of remote")


def _store(document: Any, before: Values, after: Values, base: Path) -> None:
    """Write what changed between the two into the document; the rest of it is left as it is."""
    flat_before, flat_after = _flat(before), _flat(after)
    names = {_split(raw): raw for raw in document}
    for key in flat_before.keys() - flat_after.keys():
        raw = names.get(key)
        if raw in document:
            del document[raw]
    for key, options in flat_after.items():
        old = flat_before.get(key, {})
        if options == old:
            continue
        kind, name = key
        raw = names.get(key) or (f'{kind} "{name}"' if name else kind)
        section = document.setdefault(raw, {})
        stored = {option.lower(): option for option in section}
        known = _options(_COMMON if kind == "remote" else _SECTIONS.get(kind, ""))
        for option in old.keys() - options.keys():
            section.pop(stored.get(option, option), None)
        for option, value in options.items():
            if option not in old or old[option] != value:
                text = _text(value)
                if (
                    known.get(option) == "path"
                    and not _is_url(text)
                    and not os.path.isabs(os.path.expanduser(text))
                ):
                    text = os.path.relpath(text, base)
                section[stored.get(option, option)] = text
        if not section and not name:
            del document[raw]


def _flat(values: Values) -> dict[tuple[str, str | None], dict[str, Any]]:
    flat: dict[tuple[str, str | None], dict[str, Any]] = {}
    for section, options in values.items():
        if section in _NAMED:
            for name, named in options.items():
                flat[(section, name)] = named
        elif options:
            flat[(section, None)] = options
    return flat
