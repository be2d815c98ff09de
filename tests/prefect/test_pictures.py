"""Pictures in cards: charts as SVG, their limits, profiles of tables and the pages of commits."""

from __future__ import annotations

import base64
import itertools
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from repos import make_repo

from dvkf_prefect import cards
from dvkf_prefect.cards.charts import Histogram, draw_graph, draw_histograms, draw_line
from dvkf_prefect.cards.metrics import draw_values
from dvkf_prefect.cards.pictures import PICTURE, PICTURES, Picture, show_pictures
from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.git.commits import read_commits
from dvkf_prefect.data.tables.frame_profile import profile_frame
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.models.lineage import Lineage
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.overview import Overview
from dvkf_prefect.pipeline.plan.why import Decision
from dvkf_prefect.pipeline.report.dag import Drawing
from dvkf_prefect.pipeline.report.plot_files import draw_images
from dvkf_prefect.pipeline.report.plots import Image, Plot
from dvkf_prefect.urls import commit_url

from .conftest import git

PNG = b"\x89PNG\r\n\x1a\n"


def texts(svg: bytes) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")
    ]


def spots(svg: bytes) -> list[tuple[float, float]]:
    """Return the centres of the points of a line."""
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg.decode())]


def test_a_line_rises_with_its_values() -> None:
    svg = draw_line("f<1>", [("v1", 0.5), ("v2", 0.25), ("v3", 1.0)])
    (_, first), (_, second), (_, third) = spots(svg)
    assert second > first > third
    assert texts(svg) == ["f<1>", "1", "0.25", "v1", "v2", "v3"]


def test_the_largest_numbers_have_a_place_too() -> None:
    for low, high in ((-1.7e308, 1.7e308), (5.0, 5.0), (0.0, 5e-324)):
        for x, y in spots(draw_line("x", [("a", low), ("b", high)])):
            assert 0 <= x <= 520 and 0 <= y <= 150


def test_bars_are_as_high_as_their_counts() -> None:
    svg = draw_histograms([Histogram("x", (2, 0, 4), "0", "9")]).decode()
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" fill="#2563eb"', svg)]
    assert len(heights) == 2 and heights[1] == 2 * heights[0]


def test_no_label_of_a_line_leaves_its_picture() -> None:
    for value in (3_703_703.67, -1.2345678e-7, -98765.4321, 1.7e308, 123456789.0):
        svg = draw_line("loss", [("a", value), ("b", 2 * value)])
        found = re.findall(r'<text x="(\d+)" y="[\d.]+" text-anchor="end">([^<]*)<', svg.decode())
        # A letter is at most 7 pixels wide, in any font that browsers take.
        assert len(found) == 2 and all(int(x) - 7 * len(text) >= 0 for x, text in found), found


def test_a_wide_row_of_a_graph_takes_several_lines() -> None:
    """One line of 40 nodes was shown at a tenth of its size."""
    needs: dict[str, tuple[str, ...]] = {f"output-number-{n}": ("train",) for n in range(40)}
    svg = (draw_graph({"train": (), **needs, "end": tuple(needs)}) or b"").decode()
    assert float(svg.partition('width="')[2].partition('"')[0]) <= 640
    boxes = [
        tuple(map(float, box)) for box in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', svg)
    ]
    assert len(set(boxes)) == 42
    lines: dict[float, list[tuple[float, float]]] = {}
    for x, y, wide in boxes:
        lines.setdefault(y, []).append((x, x + wide))
    for spans in lines.values():
        spans.sort()
        assert all(left > right for (_, right), (left, _) in itertools.pairwise(spans))


def test_an_image_that_is_equal_in_all_versions_is_shown_once() -> None:
    def plot(*data: bytes, **more: Any) -> Plot:
        revs = ("workspace", "HEAD", "v1")
        images = tuple(Image(rev, "a.png", each) for rev, each in zip(revs, data, strict=False))
        return Plot("a.png", "image", images=images, **more)

    names = [image.name for image in draw_images([plot(b"1", b"1"), plot(b"1", b"2", b"1"), plot(b"1")])]
    assert names == ["a.png", "a.png of workspace, v1", "a.png of HEAD", "a.png"]
    gone = (("HEAD", "a.png", FileNotFoundError("'a.png' is not in HEAD")),)
    assert [(image.name, image.absent) for image in draw_images([plot(b"1", errors=gone)])] == [
        ("a.png of HEAD", True),
        ("a.png", False),
    ]
    assert [image.absent for image in draw_images([plot(errors=gone)])] == [False]


def test_stages_have_their_colour_and_data_its_path() -> None:
    graph = Drawing({"train": ("data.csv.dvc",), "data.csv.dvc": (), "unread.csv.dvc": (), "alone": ()})
    stages = tuple(Decision(name, "skip") for name in ("train", "alone"))
    card = cards.overview_card(Overview((), {"gone.csv": "deleted"}, stages, graph, (), (), {}), "shop")
    assert card.description.startswith("**shop**: 0 outputs, 2 stages")
    (data,) = re.findall(r"base64,([\w+/=]+)", card.markdown)
    svg = base64.b64decode(data)
    fills = re.findall(r'height="24" rx="4" fill="(#\w+)"', svg.decode())
    assert dict(zip(texts(svg), fills, strict=True)) == {
        "train": "#dbeafe",
        "data.csv": "#f4f4f5",
        "alone": "#dbeafe",
    }


def test_outputs_of_several_versions_that_lead_nowhere_are_left_out() -> None:
    needs: dict[str, tuple[str, ...]] = {"data.csv (00000000)": ()}
    for n in (1, 2):
        needs[f"stage train ({n:08x})"] = ("data.csv (00000000)",)
        needs |= {f"{name} ({n:08x})": (f"stage train ({n:08x})",) for name in ("model", "metrics.json")}
        needs[f"price v{n}"] = (f"model ({n:08x})",)
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc)
    version = ModelVersion("price", "v1", "e" * 40, "model", "a" * 32, 10, None, (), moment, "Ann", "")
    for count, kept in ((1, True), (2, False)):
        card = cards.lineage_card([Lineage(version)] * count, "data.csv", "shop", graph=Drawing(needs))
        (data,) = re.findall(r"base64,([\w+/=]+)", card.markdown)
        assert ("metrics.json (00000001)" in texts(base64.b64decode(data))) is kept
        assert "price v2" in texts(base64.b64decode(data))


def test_a_box_has_room_for_wide_letters() -> None:
    wide, narrow = (
        float(re.findall(r'width="([\d.]+)" height="24"', (draw_graph({name: ()}) or b"").decode())[0])
        for name in ("数据集合", "abcd")
    )
    assert wide >= narrow + 4 * 6
    long = (draw_graph({"漢字" * 40: ()}) or b"").decode()
    assert texts(long.encode())[0] == "漢字" * 7 + "…"


def test_whole_numbers_have_bars_without_gaps_and_identifiers_none() -> None:
    """One to nine in 24 intervals were a comb; a unique number of each row was a box."""
    frame = pd.DataFrame(
        {
            "few": [1, 2, 3, 9] * 25,
            "many": [n % 50 for n in range(100)],
            "gaps": [1.0, 2.0, None, 4.0] * 25,
            "order_id": range(1000, 1100),
            "share": [n / 100 for n in range(100)],
        }
    )
    found = {column.name: column for column in profile_frame(frame).columns}
    assert found["few"].counts == (25, 25, 25, 0, 0, 0, 0, 0, 25)
    assert found["many"].counts == (6,) * 16 + (4,)
    assert found["gaps"].counts == (25, 25, 0, 25)
    assert (found["order_id"].counts, found["order_id"].low, found["order_id"].high) == ((), "1000", "1099")
    assert len(found["share"].counts) == 24
    assert profile_frame(pd.DataFrame({"n": [5, 6, 7]})).columns[0].counts == (1, 1, 1)
    assert profile_frame(pd.DataFrame({"n": [-(2**63), 2**63 - 1]})).columns[0].counts[0] == 1


def test_dates_of_a_csv_have_a_range() -> None:
    frame = pd.DataFrame(
        {
            "day": ["2026-01-01", None, "2026-01-31"],
            "time": ["2026-01-01T10:00:00+02:00", "2026-03-01 11:00:00", "2026-02-01T00:00:00Z"],
            "other": ["2026-01-01", "never", "2026-01-02"],
            "part": ["2026-01-01-b", "2026-01-01-c", "2026-01-01-d"],
            "false": ["2026-02-31", "2026-02-30", "2026-02-29"],
        }
    )
    found = {column.name: column for column in profile_frame(frame, bins=3).columns}
    assert (found["day"].low, found["day"].high, found["day"].counts) == (
        "2026-01-01",
        "2026-01-31",
        (1, 0, 1),
    )
    assert found["day"].dtype.endswith(" (time)") and found["day"].missing == 1
    assert (found["time"].low, found["time"].high) == ("2026-01-01", "2026-03-01")
    assert all(found[name].low == "" and not found[name].counts for name in ("other", "part", "false"))


def test_a_node_stands_to_the_right_of_what_it_needs() -> None:
    needs = {
        "model": ("train",),
        "train": ("data", "code"),
        "data": (),
        "code": (),
        "late": (),
        "use": ("model", "late"),
    }
    svg = draw_graph(needs)
    assert svg is not None
    found = dict(zip(texts(svg), re.findall(r'<rect x="([\d.]+)"', svg.decode()), strict=True))
    assert all(float(found[node]) > float(found[other]) for node, needed in needs.items() for other in needed)
    assert found["late"] == found["model"]


@pytest.mark.parametrize(
    "needs", [{}, {"a": ("a",)}, {"a": ("b",), "b": ("a",)}, {f"{n}": () for n in range(99)}]
)
def test_a_graph_with_a_cycle_or_too_many_nodes_is_no_picture(needs: dict[str, tuple[str, ...]]) -> None:
    assert draw_graph(needs) is None
    # The text of a graph with a cycle once never ended.
    Drawing(needs).text()


def test_pictures_are_bounded_and_the_others_named() -> None:
    big = [Picture(f"p{n}", PNG + b"x" * (PICTURE - len(PNG))) for n in range(5)]
    parts = show_pictures([*big, Picture("huge", PNG + b"x" * PICTURE), Picture("a_b", b"<html>")])
    assert len(parts) == PICTURES // PICTURE + 1
    assert (
        parts[-1] == "Not shown, 3 pictures: p4 (64.0 kB), huge (64.0 kB), a\\_b (no image of a known kind)."
    )


@pytest.mark.parametrize(
    ("data", "kind"),
    [(PNG, "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"GIF89a", "gif"), (b"RIFF1234WEBPVP8", "webp"),
     (b'<?xml version="1.0"?><svg/>', "svg+xml"), (b"\n<svg/>", "svg+xml"), (b"<html>", ""), (b"", "")],
)  # fmt: skip
def test_the_kind_of_a_picture_is_that_of_its_bytes(data: bytes, kind: str) -> None:
    assert Picture("x", data).kind == kind


def test_constant_values_and_texts_have_no_chart() -> None:
    assert draw_values("x", [("a", 1), ("b", 1)]) is None
    assert draw_values("x", [("a", 1), ("b", "two"), ("c", True), ("d", float("nan"))]) is None
    assert draw_values("x", [("a", 1), ("b", None), ("c", 2)]) is not None


def test_a_profile_holds_types_spreads_and_no_text() -> None:
    frame = pd.DataFrame(
        {
            "n": [1.0, 2.0, float("nan"), float("inf")],
            "t": ["secret", "x", "x", None],
            "b": [True, False, True, True],
            "d": pd.to_datetime(["2026-01-01", "2026-01-03", None, "2026-01-02"]),
            "l": [[1], [2], [3], [4]],
        }
    )
    profile = profile_frame(frame, bins=2)
    n, t, b, d, lists = profile.columns
    assert (profile.rows, profile.sample) == (4, ())
    assert (n.missing, n.low, n.high, n.counts) == (1, "1", "2", (1, 1))
    assert (t.missing, t.distinct, t.counts) == (1, 2, ()) and (b.counts, lists.distinct) == ((), None)
    assert (d.low, d.high, d.counts) == ("2026-01-01", "2026-01-03", (1, 2))
    assert "secret" not in repr(profile)
    assert profile_frame(frame, sample=1).sample[0][:2] == ("1.0", "secret")
    wide = profile_frame(pd.DataFrame({"x": [-1.7e308, 1.7e308]}), bins=2)
    assert wide.columns[0].counts == (1, 1)


def test_a_card_of_data_names_author_commit_and_run(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    make_repo(root)
    git(root, "remote", "add", "origin", "https://token@git.example.org:3000/team/shop.git")
    message = "Add | [users](x)\n\nPrefect-Flow-Run: 12ab\n"
    git(root, "commit", "--quiet", "--allow-empty", "--message", message)
    rev = git(root, "rev-parse", "HEAD")
    commits = read_commits(Git(root), [rev])
    assert (commits[rev].flow_run, commits[rev].subject) == ("12ab", "Add | [users](x)")
    url = f"https://git.example.org:3000/team/shop/commit/{rev}"
    version = DataVersion("shop", rev, "users.csv", "a" * 32, 10, 1)
    profile = profile_frame(pd.DataFrame({"a|b": [1, 2], "<i>": ["x", "y"]}), sample=2)
    run = ("12ab", "http://127.0.0.1:4200/runs/flow-run/12ab")
    card = cards.data_card(version, "shop", [version], commits=commits, profile=profile, run=run)
    assert f"| commit | [{rev[:10]}]({url}) |" in card.markdown and "token" not in card.markdown
    assert r"| message | Add \| \[users\](x) |" in card.markdown
    assert f"| flow run | [12ab]({run[1]}) |" in card.markdown
    assert r"| a\|b | int64 | 0 | 2 | 1 to 2 |" in card.markdown and "| &lt;i&gt; |" in card.markdown
    assert r"| a\|b | &lt;i&gt; |" in card.markdown and "| 2 | y |" in card.markdown
    data = re.findall(r"base64,([\w+/=]+)", card.markdown)
    assert [texts(base64.b64decode(each))[0] for each in data] == ["a|b"]


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("git@github.com:team/shop.git", "https://github.com/team/shop/commit/4f"),
        ("ssh://git@gitea.example.org:2222/team/shop.git", "https://gitea.example.org/team/shop/commit/4f"),
        ("https://me:pass@gitlab.example.org/a/b/c.git/", "https://gitlab.example.org/a/b/c/-/commit/4f"),
        ("https://bitbucket.org/a/b", "https://bitbucket.org/a/b/commits/4f"),
        ("/srv/shop.git", ""), ("../shop", ""), ("file:///srv/shop.git", ""), ("", ""),
        ("https://x.org/a)[b](javascript:c", ""), ("ext::sh -c x", ""),
    ],
)  # fmt: skip
def test_a_commit_has_its_page_at_the_host(remote: str, url: str) -> None:
    assert commit_url(remote, "4f") == url
