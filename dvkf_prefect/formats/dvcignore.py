"""Rules of `.dvcignore` files: gitignore syntax, in any folder of the repository.

Source: DVC's dvc/ignore.py and dvc/pathspec_math.py. A folder inherits the rules of its parents and appends its own,
rewritten relative to the root. The last group of rules that matches a path decides. A file in an ignored folder
cannot be re-included.
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
# Patterns that DVC always ignores.
_ALWAYS = (".hg/", ".git/", ".git", ".dvc/")
_FOLDERS = frozenset({".git", ".hg", ".dvc"})


class Rule(NamedTuple):
    """One line of an ignore file.

    Attributes:
        pattern: The line, rewritten relative to the root.
        place: ``file:line:pattern`` in its original form, or ``:pattern`` for a built-in rule.
    """

    pattern: str
    place: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of matching a path against the ignore files.

    Attributes:
        ignored: True if the path is ignored.
        rules: Places of the deciding rules, ``file:line:pattern``; a negated one for a re-included path.
    """

    ignored: bool
    rules: tuple[str, ...] = ()


class _Group(NamedTuple):
    """Neighbouring rules with the same effect, matched together."""

    matches: tuple[Match, ...]
    ignores: bool
    folders_only: bool
    rules: list[tuple[Match, Rule]]

    def match(self, path: str) -> bool:
        """Return True if one of the rules matches a path."""
        return any(match(path) for match in self.matches)


class _Rules:
    """Rules that apply in one folder, starting with those of the root."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self.only_defaults = len(rules) == len(_ALWAYS)
        # Cached results: True if the folder, or a parent of it, is ignored.
        self.inside: dict[str, bool] = {"": False}

    @cached_property
    def _groups(self) -> list[_Group]:
        """Rules in the order of matching: the last one first."""
        known: list[tuple[str, bool, bool, Rule]] = []
        for rule in self.rules:
            regex, ignores = _regex(rule.pattern, rule.place)
            if regex is not None and ignores is not None:
                # pathspec names its groups; one expression cannot hold a group name twice.
                known.append((re.sub(r"\(\?P<\w+>", "(?:", regex), ignores, rule.pattern.endswith("/"), rule))
        groups: list[_Group] = []
        for (ignores, folders_only), members in groupby(known, key=lambda item: item[1:3]):
            rules = [(regex, _compiled(regex, rule.place), rule) for regex, _, _, rule in members]
            if ignores:
                # One joined expression for simple rules is faster than matching one after another.
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
        """Return True if a path itself is ignored, regardless of its parents, and the group of rules that decided."""
        for group in self._groups:
            if group.folders_only and not folder:
                continue
            if group.match(path) or (folder and group.match(path + "/")):
                return group.ignores, group
        return False, None

    def which(self, group: _Group, path: str, folder: bool) -> Rule:
        """Return the rule of a group that matches a path: the first one, as DVC reports it."""
        for text in (path, path + "/") if folder else (path,):
            if group.match(text):
                return next(rule for match, rule in group.rules if match(text))
        raise AssertionError(path)


class Ignore:
    """The repository's ignore files, each read on the first query for its folder.

    Args:
        root: The repository's root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, _Rules] = {}
        self._repos: dict[str, bool] = {}

    def _rules(self, folder: str) -> _Rules:
        """Return the rules that apply to direct children of a folder.

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
            raise ParseError(name, f"not UTF-8 text ({error})") from None

    def is_repo(self, folder: str) -> bool:
        """Return True if a folder is a nested repository, separate from this one."""
        known = self._repos.get(folder)
        if known is None:
            known = self._repos[folder] = (self._root / folder / ".dvc").is_dir()
        return known

    def _says(self, rules: _Rules, path: str, *, folder: bool) -> bool:
        """Return True if rules ignore a path, or a folder that contains it."""
        if self._is_inside(rules, os.path.dirname(path)):
            return True
        return rules.find(path, folder)[0] or (folder and self.is_repo(path))

    def _is_inside(self, rules: _Rules, folder: str) -> bool:
        known = rules.inside.get(folder)
        if known is None:
            known = rules.inside[folder] = self._says(rules, folder, folder=True)
        return known

    def quiet_below(self, path: str) -> bool:
        """Return True if no ignore file above ``path`` can ignore anything inside it."""
        return self._rules(path).only_defaults

    def matches(self, path: str) -> bool:
        """Return True if a path is ignored.

        Args:
            path: Posix, relative to the root; a trailing slash marks a folder.

        Raises:
            ParseError: An ignore file cannot be read.
        """
        folder = path.endswith("/")
        path = path.rstrip("/")
        parent, _, name = path.rpartition("/")
        rules = self._rules(parent)
        if not rules.only_defaults:
            return self._says(rules, path, folder=folder)
        # Only the built-in rules apply: compare names instead of matching expressions.
        if name == ".git" or (folder and (name in _FOLDERS or self.is_repo(path))):
            return True
        inside = rules.inside.get(parent)
        if inside is None:
            inside = rules.inside[parent] = self.matches(parent + "/")
        return inside

    def check(self, path: str, *, folder: bool) -> Verdict:
        """Return the verdict on a path, with the rules that decided.

        Args:
            path: Posix, relative to the root.
            folder: True if the path is a folder.

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
    """Rewrite a pattern from a folder's ignore file relative to the root."""
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
    """Return a pattern's regular expression and True if it ignores; None for a blank line or comment.

    Raises:
        ParseError: The pattern is invalid.
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
    """Return pathspec's translation function, imported on first use."""
    try:
        pattern: Any = import_module("pathspec.patterns.gitignore.spec").GitIgnoreSpecPattern
    except ImportError:  # before pathspec 1
        pattern = import_module("pathspec.patterns").GitWildMatchPattern
    to_regex: Callable[[str], tuple[str | None, bool | None]] = pattern.pattern_to_regex
    return to_regex
