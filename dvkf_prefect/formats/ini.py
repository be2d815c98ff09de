"""INI files of `.dvc/config`: a fast parser for plain files, ConfigObj for the rest and for writing with comments.

Source of the format: ConfigObj, as DVC calls it (dvc/config.py, ``load_file`` and ``_save_config``). Names of sections
and options are lower-cased. Values are texts, or lists if they hold bare commas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import ConfigError, reason
from dvkf_prefect.files import read_description

# Sections of options, in file order.
Sections = dict[str, dict[str, Any]]

# Syntax left to ConfigObj: references, and white space other than blanks and tabs, which may end a line there.
_UNUSUAL = re.compile(r"[^\S \t\n]|%\(")
_SECTION = re.compile(
    r"""[ \t]*\[[ \t]*(?:([\w.-]+(?: "[^"'\[\]#]*")?)|'([^'\[\]#]*)')[ \t]*\][ \t]*(?:#.*)?"""
)
_OPTION = re.compile(r"[ \t]*([\w.-]+)[ \t]*=[ \t]*(.*)")


def load(path: Path) -> Sections:
    """Read a file; a missing one is empty.

    Raises:
        ConfigError: It cannot be read or does not parse; the error names the file.
    """
    text = _text_of(path)
    sections = read_plain(text)
    return read_any(text, str(path)) if sections is None else sections


def read_plain(text: str) -> Sections | None:
    """Read sections of ``key = value`` lines, plain or quoted, and comments; return None for any other syntax.

    ConfigObj reads every file, but its import takes longer than the rest of a short command.
    """
    if _UNUSUAL.search(text):
        return None
    sections: Sections = {}
    seen: set[str] = set()
    options: dict[str, Any] | None = None
    keys: set[str] = set()
    for line in text.split("\n"):
        plain = line.strip()
        if not plain or plain[0] == "#":
            continue
        if section := _SECTION.fullmatch(line):
            bare, quoted = section.groups()
            name = quoted if bare is None else bare
            if not name.strip() or name in seen:
                return None
            seen.add(name)
            # As in DVC: of two names that differ only in case, the later one counts.
            options = sections[name.lower()] = {}
            keys = set()
            continue
        option = _OPTION.fullmatch(line)
        if option is None or options is None or option[1] in keys:
            return None
        keys.add(option[1])
        value = _plain_value(option[2])
        if value is None:
            return None
        options[option[1].lower()] = value
    return sections


def _plain_value(text: str) -> str | None:
    """Return one value without its quotes and trailing comment; None if it may be a list."""
    quote = text[:1]
    if quote and quote in "\"'":
        inner, closing, rest = text[1:].partition(quote)
        rest = rest.strip()
        return inner if closing and "," not in rest and (not rest or rest[0] == "#") else None
    value = text.partition("#")[0].rstrip()
    return None if "," in value else value


def read_any(text: str, name: str) -> Sections:
    """Read a file with ConfigObj, as DVC does.

    Raises:
        ConfigError: It does not parse.
    """
    from configobj import ConfigObjError

    try:
        values = document(text, name, interpolation=True).dict()
    except ConfigObjError as error:
        raise ConfigError(f"{name}: not a configuration file: {error}") from error
    sections: Sections = {}
    for section, options in values.items():
        if not isinstance(options, Mapping):
            raise ConfigError(f"{name}: '{section}' is outside any section")
        for option, value in options.items():
            if isinstance(value, Mapping):
                raise ConfigError(
                    f"{name}: [[{option}]] is a section inside [{section}], which DVC does not support"
                )
        sections[section.lower()] = {option.lower(): value for option, value in options.items()}
    return sections


def document(text: str, name: str, *, interpolation: bool = False) -> Any:
    """Read a file for rewriting: comments and order are kept.

    Raises:
        ConfigError: It does not parse.
    """
    from configobj import ConfigObj, ConfigObjError

    try:
        return ConfigObj(text.splitlines(), interpolation=interpolation, indent_type="    ")
    except ConfigObjError as error:
        raise ConfigError(f"{name}: not a configuration file: {error}") from error


def rewrite(path: Path, before: Sections, after: Sections) -> bytes:
    """Return a file with new settings, in the order in which DVC writes, with its comments kept.

    DVC itself drops all comments.

    Args:
        path: The current file.
        before: Its settings, as returned by `load`.
        after: The new settings. Empty sections are left out unless their name has quotes.

    Raises:
        ConfigError: A value cannot be written.
    """
    from configobj import ConfigObjError

    made = document(_text_of(path), str(path))
    _lower(made)
    wanted = {name: options for name, options in after.items() if options or '"' in name}
    for name in [name for name in made if name not in wanted]:
        del made[name]
    for name, options in wanted.items():
        section = made.setdefault(name, {})
        _lower(section)
        for option in [option for option in section if option not in options]:
            del section[option]
        for option, value in options.items():
            # An unchanged value keeps its spelling, references to other options included.
            if option not in section or before.get(name, {}).get(option) != value:
                section[option] = value
    made.sections = list(wanted)
    try:
        text = "\n".join(made.write())
    except ConfigObjError as error:
        raise ConfigError(f"{path}: {error}") from error
    return (text if text.endswith("\n") else text + "\n").encode()


def _lower(section: Any) -> None:
    """Lower-case all names, as DVC does; of two that differ only in case, the later one counts."""
    latest = {raw.lower(): raw for raw in section}
    for raw in list(section):
        if latest[raw.lower()] != raw:
            del section[raw]
    for name, raw in latest.items():
        if name != raw:
            section.rename(raw, name)


def _text_of(path: Path) -> str:
    try:
        text = read_description(path).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({reason(error)})") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"{path}, line {line}: a setting has a NUL character. Remove it.")
    return text
