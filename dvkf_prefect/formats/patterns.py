"""Regular expressions from untrusted patterns, matched in time linear in the text.

Python's ``re`` tries all ways to match ``*a*a*a*b``, and may practically never end on a long name. An expression with
many repeats therefore runs as an automaton: it follows all ways at once and reads each character once. Source:
Thompson, Regular Expression Search Algorithm, 1968.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

_FEW = 2
_SETS = 10_000
_MAX_LENGTH = 4096
_REPEAT = re.compile(r"(?<!\\)[*+]")

Match = Callable[[str], object]


class PatternError(ValueError):
    """Invalid or unsupported expression."""


def compile_pattern(regex: str) -> Match:
    """Return a function that matches a regular expression at the beginning of a text, like ``re.match``.

    Args:
        regex: Characters, sets, groups, alternatives and repeats; no references and no lookaround.

    Raises:
        PatternError: The expression is invalid or uses unsupported syntax.
    """
    regex = regex.replace("[^/]*[^/]*", "[^/]*")
    if len(regex) > _MAX_LENGTH:
        raise PatternError(f"longer than {_MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sets that a later Python may read otherwise
            compiled = re.compile(regex)
            return compiled.match if is_simple(regex) else _Automaton(regex).match
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(str(error)) from None


def is_simple(regex: str) -> bool:
    """Return True if an expression has too few repeats to be slow in ``re``."""
    return len(_REPEAT.findall(regex.removeprefix("^(?:.+/)?"))) <= _FEW


class _Automaton:
    """A nondeterministic automaton with a cache of its state transitions."""

    def __init__(self, regex: str) -> None:
        parser: Any = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
        # For each state: its transitions without a character, and with one.
        self._free: list[list[tuple[str, int]]] = []
        self._step: list[tuple[Callable[[str], bool], int] | None] = []
        self._end = self._state()
        self._start = self._sequence(list(parser.parse(regex)), self._end)
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._begin = self._closure({self._start}, at_start=True)

    def match(self, text: str) -> bool:
        """Return True if a prefix of the text matches."""
        states = self._begin
        for char in text:
            if self._end in states:
                return True
            if not states:
                return False
            after = self._known.get((states, char))
            if after is None:
                if len(self._known) > _SETS:
                    self._known.clear()
                moved = {s[1] for s in map(self._step.__getitem__, states) if s is not None and s[0](char)}
                after = self._known[(states, char)] = self._closure(moved)
            states = after
        return self._end in self._closure(states, at_end=True, at_start=not text)

    def _closure(
        self, states: set[int] | frozenset[int], *, at_start: bool = False, at_end: bool = False
    ) -> frozenset[int]:
        found = set(states)
        queue = list(states)
        while queue:
            for condition, target in self._free[queue.pop()]:
                if (
                    target in found
                    or (condition == "^" and not at_start)
                    or (condition == "$" and not at_end)
                ):
                    continue
                found.add(target)
                queue.append(target)
        return frozenset(found)

    def _state(self, *free: tuple[str, int], step: tuple[Callable[[str], bool], int] | None = None) -> int:
        self._free.append(list(free))
        self._step.append(step)
        return len(self._free) - 1

    def _sequence(self, items: list[Any], after: int) -> int:
        for operation, argument in reversed(items):
            after = self._one(str(operation), argument, after)
        return after

    def _one(self, operation: str, argument: Any, after: int) -> int:
        """Add states for one part of an expression in front of state ``after``; return the first new state."""
        match operation:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return self._state(step=(_test(operation, argument), after))
            case "AT" if str(argument) in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
                return self._state(("^", after))
            case "AT" if str(argument) in ("AT_END", "AT_END_STRING"):
                return self._state(("$", after))
            case "SUBPATTERN":
                return self._sequence(list(argument[-1]), after)
            case "BRANCH":
                return self._state(*(("", self._sequence(list(branch), after)) for branch in argument[1]))
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, inner = argument
                if least > 1 or (str(most) != "MAXREPEAT" and most != 1):
                    raise PatternError("a repeat of a given number of times")
                if most == 1:
                    return (
                        self._state(("", self._sequence(list(inner), after)), ("", after))
                        if not least
                        else (self._sequence(list(inner), after))
                    )
                loop = self._state(("", after))
                first = self._sequence(list(inner), loop)
                self._free[loop].append(("", first))
                return first if least else loop
        raise PatternError(f"{operation} in an expression")


def _test(operation: str, argument: Any) -> Callable[[str], bool]:
    if operation == "LITERAL":
        return chr(argument).__eq__
    if operation == "NOT_LITERAL":
        return chr(argument).__ne__
    if operation == "ANY":
        return "\n".__ne__
    negated = str(argument[0][0]) == "NEGATE"
    singles: set[str] = set()
    ranges: list[tuple[str, str]] = []
    for kind, value in argument[1:] if negated else argument:
        if str(kind) == "LITERAL":
            singles.add(chr(value))
        elif str(kind) == "RANGE":
            ranges.append((chr(value[0]), chr(value[1])))
        else:
            raise PatternError(f"{kind} in a set")
    return lambda char: (char in singles or any(a <= char <= b for a, b in ranges)) is not negated
