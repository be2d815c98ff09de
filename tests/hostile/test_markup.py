"""Markup in anything that a card shows: every builder, every text it is given."""

from __future__ import annotations

import ast
import base64
import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from xml.etree import ElementTree

import pytest

from dvkf_prefect import cards
from dvkf_prefect.data.progress import Part
from dvkf_prefect.tasks._progress import ArtifactProgress

HOSTILE = [
    "![x](http://evil/p.png)",
    "<img src=http://evil/q>",
    "[Approve](javascript:alert(1))",
    "a | b || c",
    "` ``` ~~~ <script>alert(1)</script>",
    "x\n\n# Approve\n\n- [ ] http://evil/r www.evil.org",
    "\\[x](http://evil/s)\\",
    "[x]: http://evil/t 'y'",
    "</script><!-- {{ x }} ${x}",
    "me@evil.org WWW.evil.org HTTPS://evil.org ftp://evil.org",
    "\x1b]0;PWN\x07\u202e\u200b",
]
# Words that the code itself chooses.
CHOSEN = {("Decision", "action"): "run", ("StageEvent", "kind"): "fail", ("TagEvent", "action"): "assign"}
BUILDERS = [
    value for name, value in vars(cards).items() if name.endswith("_card") and inspect.isfunction(value)
]


def _names(module: types.ModuleType | None) -> dict[str, Any]:
    """Return the names of a module with those that it imports for types only."""
    assert module is not None
    found = dict(vars(module))
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dvkf_prefect."):
            source = importlib.import_module(node.module or "")
            found |= {alias.asname or alias.name: getattr(source, alias.name) for alias in node.names}
    return found


def _make(hint: Any, text: str) -> Any:
    """Return a value of a type with ``text`` wherever there can be one."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (str, object, Any):
        return text
    if hint is bytes:
        return text.encode()
    if hint in (int, float, bool):
        return hint(1)
    if hint is datetime:
        return datetime(2026, 1, 1, tzinfo=timezone.utc)
    if origin in (typing.Union, types.UnionType):
        return _make(next(kind for kind in inner if kind is not type(None)), text)
    if origin is typing.Literal:
        return inner[0]
    if origin in (tuple, list, Sequence):
        many = [_make(kind, text) for kind in inner if kind is not ...]
        return tuple(many) if origin is tuple else many
    if origin in (dict, Mapping):
        # A fact of a lineage always has a kind.
        return {_make(inner[0], text): _make(inner[1], text)} | ({"kind": text} if inner[1] is Any else {})
    assert dataclasses.is_dataclass(hint), hint
    made = object.__new__(hint)
    hints = typing.get_type_hints(hint, _names(inspect.getmodule(hint)))
    for field in dataclasses.fields(hint):
        value = CHOSEN.get((hint.__name__, field.name), _make(hints[field.name], text))
        object.__setattr__(made, field.name, value)
    return made


def _rendered(markdown: str) -> str:
    """Return what markdown shows as markup may: without blocks and spans of code."""
    lines, fence = [], ""
    for line in markdown.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif match := re.match(r"(`{3,})\w*$", line):
            fence = match[1]
        else:
            lines.append(line)
    assert not fence, "a block of code does not end"
    return re.sub(r"(?<![\\`])`[^`\n]+`(?!`)", "CODE", "\n".join(lines))


PICTURE = re.compile(r"!\[((?:[^\[\]\n\\]|\\.)*)\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)")


def _check(text: str) -> None:
    shown = _rendered(text)
    for _alt, data in PICTURE.findall(shown):
        _check_svg(base64.b64decode(data).decode())
    shown = PICTURE.sub(r"\1", shown)
    assert "<" not in shown
    assert not re.search(r"(?<!\\)\]\(", shown), shown
    assert not re.search(r"(?<!\\)\[(?!metadata|ready|http://127)", shown), shown
    assert not re.search(r"(?i)(https?|ftp)://(?!127\.0\.0\.1)", shown), shown
    assert not re.search(r"\w@\w", shown), shown
    assert not re.search(r"(?i)www\.", shown), shown
    assert not re.search(r"^# ", shown, re.MULTILINE), shown
    assert not set(text) & set("\x1b\x07\u202e\u200b")
    for table in shown.split("\n\n"):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.split("\n") if line.startswith("|")}
        assert len(bars) <= 1, table


def _check_svg(text: str) -> None:
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
    assert tags <= {"svg", "g", "rect", "path", "text", "circle"}
    assert not re.search(r"href|url\(|\son\w+=", re.sub(r">[^<]*<", "><", text))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.__name__)
def test_cards_show_text_and_no_markup_of_it(builder: Callable[..., cards.Card], text: str) -> None:
    hints = typing.get_type_hints(builder, _names(inspect.getmodule(builder)))
    arguments = {
        name: _make(hints[name], text) for name in inspect.signature(builder).parameters if name != "limit"
    }
    if "findings" in arguments:  # plain values, see `Finding.as_dict`
        arguments["findings"] = [{"gate": text, "passed": False, "detail": text, "blocks": True}]
    card = builder(**arguments)
    assert re.fullmatch(r"[a-z0-9-]+", card.key)
    _check(card.description)
    _check(card.markdown)


@pytest.mark.parametrize("text", ["a|b", "a\\|b", "a\\\\|b", "a\\\\\\|b|"])
def test_a_bar_ends_no_cell_in_text_or_code(text: str) -> None:
    table = cards.markdown_table(("one", "two"), [(text, cards.code(text))])
    row = table.splitlines()[2]
    # GFM reads a backslash and the character after it as one.
    assert len(re.findall(r"\|", re.sub(r"\\.", "", row))) == 3


def test_every_builder_is_tried() -> None:
    assert len(BUILDERS) >= 12


@pytest.mark.parametrize("text", HOSTILE)
def test_progress_shows_text(text: str) -> None:
    progress = ArtifactProgress("x")
    progress._label = f"push to {text}"
    progress._meter.add(0, 1, Part(text, 2))
    _check(progress.text())


@pytest.mark.parametrize(
    ("url", "linked"),
    [
        ("http://127.0.0.1:80/v2", True), ("https://a.example/b-c", True), ("javascript:alert(1)", False),
        ("http://x/)![y](http://z", False), ("http://x y", False), ("data:text/html,x", False), ("http://x\n", False),
    ],
)  # fmt: skip
def test_only_plain_web_addresses_are_links(url: str, linked: bool) -> None:
    assert ("](" in cards.link("t", url)) is linked


@pytest.mark.parametrize("text", [*HOSTILE, "```", "````\n```", "``` text"])
def test_blocks_end_where_they_should(text: str) -> None:
    assert _rendered(f"{cards.block(text)}\nafter") == "after"
