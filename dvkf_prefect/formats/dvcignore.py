"""`.dvcignore`: gitignore's syntax, in any folder of the repository.

Source: DVC's dvc/ignore.py and dvc/pathspec_math.py. A folder's rules are those of the folders above it with its own
behind them, rewritten as seen from the root; the last group of rules that says anything about a path decides, and
what lies in an ignored folder cannot come back.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from dvkf_prefect.errors import ParseError
from dvkf_prefect.files import read_description
from dvkf_prefect.formats.patterns import Match, PatternError, compile_pattern, is_simple

NAME = ".dvcignore"
_SHOWN = 200  # characters of a line in a message
# What DVC always leaves out.
_ALWAYS = (".hg/", ".git/", ".git", ".dvc/")
_FOLDERS = frozenset({".git", ".hg", ".dvc"})


class Rule(NamedTuple):
    """One line of an ignore file.

    Attributes:
        pattern: The line, as seen from the root.
        place: ``file:line:pattern`` as it was written, or ``:pattern`` for what is always left out.
    """

    pattern: str
    place: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the ignore files say of a path.

    Attributes:
        ignored: Whether it is left out.
        rules: The places of the rules that decided, ``file:line:pattern``; a negated one for a path that came back.
    """

    ignored: bool
    rules: tuple[str, ...] = ()


class _Group(NamedTuple):
    """Neighbouring rules that ignore alike, looked at together."""

    matches: tuple[Match, ...]
    ignores: bool
    folders_only: bool
    rules: list[tuple[Match, Rule]]

    def match(self, path: str) -> bool:
        """Return whether one of the rules says something about a path."""
        return any(match(path) for match in self.matches)


class _Rules:
    """The rules that hold in one folder, those of the root first."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self.only_defaults = len(rules) == len(_ALWAYS)
        # Folders asked about before: whether they or one above them are left out.
        self.inside: dict[str, bool] = {"": False}

    @cached_property
    def _groups(self) -> list[_Group]:
        """The rules in the order they are tried: the last one first."""
        known: list[tuple[str, bool, bool, Rule]] = []
        for rule in self.rules:
            regex, ignores = _regex(rule.pattern, rule.place)
            if regex is not None and ignores is not None:
                # pathspec names a group; several of one name cannot stand in one expression.
                known.append((re.sub(r"\(\?P<\w+>", "(?:", regex), ignores, rule.pattern.endswith("/"), rule))
        groups: list[_Group] = []
        for (ignores, folders_only), members in groupby(known, key=lambda item: item[1:3]):
            rules = [(regex, _compiled(regex, rule.place), rule) for regex, _, _, rule in members]
            if ignores:
                # Simple ones at once: that is faster than one after another.
                joined = "|".join(f"(?:{regex})" for regex, _, _ in rules if is_simple(regex))
                matches = tuple(match for regex, match, _ in rules if not is_simple(regex))
                if joined:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        matches = (re.compile(joined).match, *matches)
                groups.append(_Group(matches, True, folders_only, [rule[1:] for rule in rules]))
            else:
                groups += [_Group((rule[1],), False, folders_only, [rule[1:]]) for rule in rules]
        return groups[::-1]

    def find(self, path: str, folder: bool) -> tuple[bool, _Group | None]:
        """Return whether a path is ignored by itself, whatever it lies in, and the rules that say so."""
        for group in self._groups:
            if group.folders_only and not folder:
                continue
            if group.match(path) or (folder and group.match(path + "/")):
                return group.ignores, group
        return False, None

    def which(self, group: _Group, path: str, folder: bool) -> Rule:
        """Return the rule of a group that says something about a path: the first, as DVC names it."""
        for text in (path, path + "/") if folder else (path,):
            if group.match(text):
                return next(rule for match, rule in group.rules if match(text))
        raise AssertionError(path)


class Ignore:
    """What the repository's ignore files leave out; each file is read when its folder is first asked about.

    Args:
        root: The repository's root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, _Rules] = {}
        self._repos: dict[str, bool] = {}

    def _rules(self, folder: str) -> _Rules:
        """Return the rules that hold for what lies directly in a folder.

        Raises:
            ParseError: An ignore file cannot be read.
        """
        known = self._known.get(folder)
        if known is not None:
            return known
        above = (
            self._rules(os.path.dirname(folder))
            if folder
            else _Rules(tuple(Rule(p, f":{p}") for p in _ALWAYS))
        )
        name = f"{folder}/{NAME}" if folder else NAME
        own: list[Rule] = []
        if above.only_defaults or not self._says(above, name, folder=False):
            for number, line in enumerate(self._lines(name), 1):
                if line and not line.startswith("#") and _regex(line, f"{name}:{number}:{line}")[0]:
                    own.append(Rule(_from_root(line, folder), f"{name}:{number}:{line}"))
        rules = _Rules(above.rules + tuple(own)) if own else above
        self._known[folder] = rules
        return rules

    def _lines(self, name: str) -> list[str]:
        try:
            text = read_description(self._root / name, name=name).decode("utf-8")
            return [line.strip() for line in text.split("\n")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except UnicodeDecodeError as error:
            raise ParseError(name, f"an ignore file is UTF-8 text ({error})") from None

    def is_repo(self, folder: str) -> bool:
        """Tell whether a folder is a repository of its own, which is no part of this one."""
        known = self._repos.get(folder)
        if known is None:
            known = self._repos[folder] = (self._root / folder / ".dvc").is_dir()
        return known

    def _says(self, rules: _Rules, path: str, *, folder: bool) -> bool:
        """Tell whether rules leave out a path, or a folder that it lies in."""
        if self._is_inside(rules, os.path.dirname(path)):
            return True
        return rules.find(path, folder)[0] or (folder and self.is_repo(path))

    def _is_inside(self, rules: _Rules, folder: str) -> bool:
        known = rules.inside.get(folder)
        if known is None:
            known = rules.inside[folder] = self._says(rules, folder, folder=True)
        return known

    def quiet_below(self, path: str) -> bool:
        """Tell whether no ignore file above ``path`` can leave out anything in it."""
        return self._rules(path).only_defaults

    def matches(self, path: str) -> bool:
        """Tell whether a path is left out.

        Args:
            path: Posix, relative to the root; with a slash at the end for a folder.

        Raises:
            ParseError: An ignore file cannot be read.
        """
        folder = path.endswith("/")
        path = path.rstrip("/")
        parent, _, name = path.rpartition("/")
        rules = self._rules(parent)
        if not rules.only_defaults:
            return self._says(rules, path, folder=folder)
        # Nothing but the defaults: their patterns need no expression.
        if name == ".git" or (folder and (name in _FOLDERS or self.is_repo(path))):
            return True
        inside = rules.inside.get(parent)
        if inside is None:
            inside = rules.inside[parent] = self.matches(parent + "/")
        return inside

    def check(self, path: str, *, folder: bool) -> Verdict:
        """Return what the ignore files say of a path, and which of their lines say it.

        Args:
            path: Posix, relative to the root.
            folder: Whether it is a folder.

        Raises:
            ParseError: An ignore file cannot be read.
        """
        if not path:
            return Verdict(False)
        rules = self._rules(os.path.dirname(path))
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            here = "/".join(parts[:end])
            is_folder = folder or end < len(parts)
            if is_folder and self.is_repo(here):
                return Verdict(True, (f"in sub_repo:{parts[end - 1]}",))
            ignored, group = rules.find(here, is_folder)
            if ignored or end == len(parts):
                place = (rules.which(group, here, is_folder).place,) if group else ()
                return Verdict(ignored, place)
        return Verdict(False)


def _from_root(pattern: str, folder: str) -> str:
    """Return a pattern of a folder's ignore file as it reads at the root."""
    if not folder:
        return pattern
    negated = "!" if pattern.startswith("!") else ""
    pattern = pattern.removeprefix("!")
    if "/" in pattern[:-1] and not pattern.startswith("**/"):
        anywhere, pattern = False, pattern.removeprefix("/")
    else:
        anywhere, pattern = True, pattern.removeprefix("**/")
    return f"{negated}/{folder}{'/**' if anywhere else ''}/{pattern.removeprefix(chr(92))}"


def _regex(pattern: str, place: str) -> tuple[str | None, bool | None]:
    """Return a pattern's regular expression and whether it ignores; None for a line that says nothing.

    Raises:
        ParseError: It is no pattern.
    """
    try:
        regex, ignores = _translator()(pattern)
    except ValueError as error:
        raise ParseError(place[:_SHOWN], f"not a pattern ({error})") from None
    if regex is not None and "[" in pattern:
        _compiled(regex, place)
    return regex, ignores


def _compiled(regex: str, place: str) -> Match:
    try:
        return compile_pattern(regex)
    except PatternError as error:
        raise ParseError(place[:_SHOWN], f"not a pattern ({error})") from None


@cache
def _translator() -> Callable[[str], tuple[str | None, bool | None]]:
    """Return pathspec's function for it; loaded when there is a pattern to read."""
    try:
        pattern: Any = import_module("pathspec.patterns.gitignore.spec").GitIgnoreSpecPattern
    except ImportError:  # before pathspec 1
        pattern = import_module("pathspec.patterns").GitWildMatchPattern
    to_regex: Callable[[str], tuple[str | None, bool | None]] = pattern.pattern_to_regex
    return to_regex
