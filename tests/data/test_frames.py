"""Tables of any revision: read, written and tracked, and compared with what plain Python finds."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from repos import make_repo

import dvkf_prefect
from dvkf_prefect.data.tables.frame_diff import compare_frames, diff_frames
from dvkf_prefect.data.tables.frames import format_of, read_frame, write_frame
from dvkf_prefect.data.views import reader, streams
from dvkf_prefect.errors import (
    ConfigError,
    CorruptObjectError,
    GitError,
    OutputChangedError,
    OutputError,
    OutputInGitError,
    OutputNotFoundError,
    ParseError,
    UnsafePathError,
)
from dvkf_prefect.repo import Repo

FRAME = pd.DataFrame(
    {
        "id": [1, 2, 3],
        "name": ["a", 'b,"c"', "ü\nnew"],
        "value": [0.1, float("nan"), 1e-300],
        "flag": [True, False, True],
    }
)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    root = tmp_path / "repo"
    return make_repo(root, remote=tmp_path / "store")


def git(root: Path, *args: str) -> None:
    subprocess.run(["git", *args], cwd=root, check=True, capture_output=True)


def commit(repo: Repo, tag: str) -> None:
    git(repo.root, "add", ".")
    git(repo.root, "commit", "-qm", tag)
    git(repo.root, "tag", tag)
    repo.push()


# -- reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["t.csv", "t.tsv", "t.csv.gz", "t.csv.bz2", "t.csv.xz", "t.json", "t.jsonl.gz", "t.parquet", "t.feather"],
)
def test_what_is_written_is_read_at_any_revision(repo: Repo, name: str) -> None:
    if name.endswith(("parquet", "feather")):
        pytest.importorskip("pyarrow")
    path = f"data/{name}"
    first = write_frame(repo, FRAME, path)
    assert (first.path, first.nfiles) == (path, 1)
    commit(repo, "v1")
    second = write_frame(repo, FRAME.iloc[:1], path)
    commit(repo, "v2")
    shutil.rmtree(repo.cache.root)
    (repo.root / path).unlink()
    pd.testing.assert_frame_equal(read_frame(repo, path, rev="v1"), FRAME)
    pd.testing.assert_frame_equal(read_frame(str(repo.root), path, rev="v1"), FRAME)
    assert len(read_frame(repo, path, rev="v2")) == len(read_frame(repo, path)) == 1
    assert list(read_frame(repo, path, rev="v1", columns=["value", "id"]).columns) == ["value", "id"]
    # The same table is the same bytes, whenever and under whatever name it is written.
    assert write_frame(repo, FRAME, path).digest == first.digest != second.digest
    assert write_frame(repo, FRAME, f"other/{name}").digest == first.digest
    assert not [p for p in repo.root.rglob("*") if "tmp-" in p.name and p.is_file()]


def test_dvc_finds_what_was_written_clean(repo: Repo) -> None:
    write_frame(repo, FRAME, "data/t.csv", options={"float_format": "%.3f"})
    write_frame(repo, FRAME, "data/i.csv", index=True)
    done = subprocess.run(["dvc", "status", "--json"], cwd=repo.root, capture_output=True, text=True)
    assert json.loads(done.stdout) == {}, done.stderr
    assert (repo.root / "data/t.csv").read_text().splitlines()[1] == "1,a,0.100,True"
    assert (repo.root / "data/i.csv").read_text().splitlines()[1] == "0,1,a,0.1,True"


def test_a_directory_of_parts_is_one_table(repo: Repo) -> None:
    for number, name in enumerate(["b/1.csv", "a.csv.gz", "b/0.csv", "c.csv"]):
        write = repo.root / "parts" / name
        write.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"n": [number, number], "s": ["x", name]}).to_csv(write, index=False)
    (repo.root / "parts/_SUCCESS").touch()
    (repo.root / "parts/.part.csv.crc").write_bytes(b"crc")
    repo.add(["parts"])
    commit(repo, "v1")
    # A part more: the directory is tracked, so it is the directory that has a new version.
    version = write_frame(repo, pd.DataFrame({"n": [9], "s": ["new"]}), "parts/aa.csv")
    assert version.path == "parts" and not (repo.root / "parts/aa.csv.dvc").exists()
    shutil.rmtree(repo.cache.root)
    frame = read_frame(repo, "parts", rev="v1")
    assert frame["n"].tolist() == [1, 1, 2, 2, 0, 0, 3, 3]
    assert frame.index.tolist() == list(range(8))
    assert read_frame(repo, "parts")["n"].tolist() == [1, 1, 9, 2, 2, 0, 0, 3, 3]
    assert read_frame(repo, "parts/b", rev="v1", columns=["s"])["s"].tolist() == [
        "x",
        "b/0.csv",
        "x",
        "b/1.csv",
    ]
    (repo.root / "parts/more.json").write_text("[]")
    with pytest.raises(OutputError, match="csv and json; all parts of a table must have the same format"):
        read_frame(repo, "parts")


def test_git_s_files_are_tables_too(repo: Repo) -> None:
    (repo.root / "small.csv").write_text("id;v\n1;2\n")
    commit(repo, "v1")
    assert read_frame(repo, "small.csv", rev="v1", options={"sep": ";"})["v"].tolist() == [2]
    (repo.root / "rows").write_text('{"a": 1}\n{"a": 2}\n')
    assert read_frame(repo, "rows", file_format="jsonl")["a"].tolist() == [1, 2]


def test_nothing_is_lost_by_writing(repo: Repo) -> None:
    (repo.root / "mine.csv").write_text("nobody has this\n")
    with pytest.raises(OutputChangedError, match=r"mine\.csv"):
        write_frame(repo, FRAME, "mine.csv")
    assert (repo.root / "mine.csv").read_text() == "nobody has this\n"
    write_frame(repo, FRAME, "mine.csv", force=True)
    (repo.root / "mine.csv").write_text("changed since\n")
    with pytest.raises(OutputChangedError):
        write_frame(repo, FRAME, "mine.csv")
    repo.add(["mine.csv"])
    write_frame(repo, FRAME, "mine.csv")
    # A file that cannot be tracked is put back, or taken away.
    (repo.root / "ours.csv").write_text("id\n1\n")
    git(repo.root, "add", "ours.csv")
    repo.cache.add_file(repo.root / "ours.csv")
    with pytest.raises(OutputInGitError):
        write_frame(repo, FRAME, "ours.csv")
    assert (repo.root / "ours.csv").read_text() == "id\n1\n"
    (repo.root / ".dvcignore").write_text("*.tsv\n")
    with pytest.raises(OutputError, match="dvcignore"):
        write_frame(Repo.open(repo.root), FRAME, "new.tsv")
    assert not (repo.root / "new.tsv").exists()
    before = (repo.root / "mine.csv").read_bytes()
    with pytest.raises(TypeError):
        write_frame(repo, FRAME, "mine.csv", options={"no_such": 1})
    assert (repo.root / "mine.csv").read_bytes() == before


def test_a_workspace_of_links_is_replaced_not_written_through(repo: Repo) -> None:
    with repo.config.edit() as sections:
        sections["cache"]["type"] = "hardlink"
    linked = Repo.open(repo.root)
    first = write_frame(linked, FRAME, "t.csv")
    linked.checkout()
    write_frame(linked, FRAME.iloc[:1], "t.csv")
    assert linked.cache.read_bytes(first.digest)


def test_what_cannot_be_a_table_is_told(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo.root / "bad.parquet").write_bytes(b"not parquet")
    (repo.root / "bad.csv").write_bytes(b'a,b\n1,2\n"')
    for suffix in ("gz", "bz2", "xz", "zip"):
        (repo.root / f"bad.csv.{suffix}").write_bytes(b"not compressed")
    write_frame(repo, FRAME, "cut.csv.gz")
    (repo.root / "cut.csv.gz").write_bytes((repo.root / "cut.csv.gz").read_bytes()[:-12])
    (repo.root / "empty.csv").touch()
    (repo.root / "none").mkdir()
    for name in (*(p.name for p in repo.root.glob("bad.csv*")), "cut.csv.gz", "empty.csv", "bad.parquet"):
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow")
        with pytest.raises(ParseError, match=rf"{name} of the workspace of .*: cannot be read as"):
            read_frame(repo, name)
    write_frame(repo, FRAME, "t.csv")
    with pytest.raises(ParseError, match="nope"):
        read_frame(repo, "t.csv", columns=["nope"])
    with pytest.raises(OutputNotFoundError, match=r"'gone\.csv' is not in the workspace"):
        read_frame(repo, "gone.csv")
    with pytest.raises(GitError, match="nope"):
        read_frame(repo, "t.csv", rev="nope")
    with pytest.raises(OutputError, match="no files"):
        read_frame(repo, "none")
    with pytest.raises(OutputError, match="is a directory"):
        write_frame(repo, FRAME, "none", file_format="csv")
    with pytest.raises(OutputError, match="not written"):
        write_frame(repo, FRAME, "t.csv.zip")
    with pytest.raises(UnsafePathError):
        write_frame(repo, FRAME, "../t.csv")
    for path, given, error in (
        ("t.xls", None, OutputError),
        ("t.parquet.gz", None, OutputError),
        ("t", "x", ConfigError),
    ):
        with pytest.raises(error):
            format_of(path, given)

    def lacking(*args: Any, **kwargs: Any) -> None:
        raise ImportError("no pyarrow here", name="pyarrow")

    monkeypatch.setattr(pd, "read_parquet", lacking)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        read_frame(repo, "bad.parquet")


def test_a_damaged_object_never_becomes_a_table(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LARGE", 100)
    monkeypatch.setattr(streams, "_BLOCK", 256)
    version = write_frame(repo, pd.DataFrame({"n": range(1000)}), "t.csv")
    commit(repo, "v1")
    shutil.rmtree(repo.root.parent / "store")
    (repo.root.parent / "store").mkdir()
    place = repo.cache.path(version.digest)
    os.chmod(place, 0o644)
    place.write_bytes(place.read_bytes().replace(b"999", b"998"))
    with pytest.raises(CorruptObjectError, match=r"t\.csv"):
        read_frame(repo, "t.csv", rev="v1")


# -- comparing -------------------------------------------------------------------------------------------------------


def test_rows_of_a_key_are_compared_as_plain_python_does() -> None:
    draw = random.Random(7)
    for _ in range(30):
        rows = [
            {
                (draw.randrange(6), draw.choice("ab")): (
                    draw.choice([1.5, None, 2.0]),
                    draw.choice(["x", "y", None]),
                )
                for _ in range(8)
            }
            for _ in range(2)
        ]
        old, new = (
            pd.DataFrame([(*k, *v) for k, v in table.items()], columns=["k", "l", "f", "s"]).sample(
                frac=1, random_state=draw.randrange(99)
            )
            for table in rows
        )
        found = compare_frames(old, new, path="t", a="a", b="b", key=["k", "l"])
        before, after = rows
        shared = before.keys() & after.keys()
        assert found.rows_added == len(after.keys() - before.keys())
        assert found.rows_removed == len(before.keys() - after.keys())
        assert found.rows_changed == sum(before[k] != after[k] for k in shared)
        changed = {column.name: column.changed for column in found.columns}
        assert changed == {
            "k": 0,
            "l": 0,
            "f": sum(before[k][0] != after[k][0] for k in shared),
            "s": sum(before[k][1] != after[k][1] for k in shared),
        }
        assert bool(found) == (before != after)
        whole = compare_frames(old, new, path="t", a="a", b="b")
        counts = [Counter((*k, *v) for k, v in table.items()) for table in rows]
        assert (whole.rows_removed, whole.rows_added) == (
            (counts[0] - counts[1]).total(),
            (counts[1] - counts[0]).total(),
        )
        assert whole.rows_changed is None and all(column.changed is None for column in whole.columns)


def test_equal_rows_count_as_often_as_they_are_there() -> None:
    old = pd.DataFrame({"a": [1, 1, 1, 2], "b": ["x", "x", "x", None]})
    new = pd.DataFrame({"b": ["x", None, None], "a": [1.0, 2.0, 2.0]})
    found = compare_frames(old, new, path="t", a="v1", b="v2")
    assert (found.rows_removed, found.rows_added) == (2, 1)
    assert [column.name for column in found.dtypes_changed] == ["a"]


def test_texts_and_categories_are_compared() -> None:
    kinds = pd.CategoricalDtype(["red", "green", "blue"])
    old = pd.DataFrame({"kind": ["a", "a", "b", None], "name": [str(n) for n in range(4)]})
    old["colour"] = pd.Series(["red", "red", "green", "green"], dtype=kinds)
    new = pd.DataFrame({"kind": ["a", "c", "c", "c"], "name": [f"n{n}" for n in range(4)]})
    new["colour"] = pd.Series(["red", "blue", "blue", "green"], dtype=kinds)
    found = compare_frames(old, new, path="t", a="v1", b="v2")
    kind, name, colour = found.columns
    assert (kind.old.distinct, kind.old.values, kind.old.nulls) == (2, (("a", 2), ("b", 1)), 1)
    assert (kind.values_added, kind.values_removed) == (("c",), ("b",))
    assert colour.new.values == (("blue", 2), ("green", 1), ("red", 1)) and colour.old.values[-1] == (
        "blue",
        0,
    )
    assert len(name.values_added) == 4
    card = found.as_markdown()
    assert "+ c, - b, a: 2 → 1" in card and "blue: 0 → 2" in card
    many = pd.DataFrame({"id": [f"{n:02}" for n in range(30)] + ["07"]})
    (column,) = compare_frames(many, many[1:], path="t", a="v1", b="v2").columns
    assert (column.old.distinct, column.old.values[0], len(column.old.values)) == (30, ("07", 2), 5)
    assert (column.values_added, column.values_removed) == ((), ())


def test_drift_types_and_columns_are_told(repo: Repo) -> None:
    old = pd.DataFrame({"id": [1, 2, 3, 4], "score": [1.0, 2.0, 3.0, None], "gone": 1, "code": [1, 2, 3, 4]})
    new = pd.DataFrame(
        {"id": [2, 3, 4, 5], "score": [2.0, 30.0, 4.0, 5.0], "code": ["2", "3", "x", "5"], "come": 0}
    )
    write_frame(repo, old, "t.csv")
    commit(repo, "v1")
    write_frame(repo, new, "t.csv")
    found = dvkf_prefect.diff_frames(repo, "t.csv", "v1", key="id")
    assert isinstance(found, dvkf_prefect.FrameDiff) and found
    assert (found.rows_a, found.rows_b, found.rows_added, found.rows_removed, found.rows_changed) == (
        4,
        4,
        1,
        1,
        3,
    )
    assert (found.columns_added, found.columns_removed) == (("come",), ("gone",))
    score = next(column for column in found.columns if column.name == "score")
    assert score.changed == 2 and (score.old.nulls, score.new.nulls) == (1, 0)
    assert score.old.mean == 2.0 and score.new.mean == pytest.approx(10.25)
    assert score.new.std == pytest.approx(np.std([2, 30, 4, 5], ddof=1))
    (code,) = found.dtypes_changed
    assert code.name == "code" and code.old.dtype == "int64" and code.new.mean is None
    told = found.as_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["columns"][0]["old"]["dtype"] == "int64"
    assert str(found) == (
        "'t.csv' from v1 to workspace: 1 rows added, 1 rows removed, 3 rows changed, 1 columns added, "
        "1 columns removed, 1 types changed (4 to 4 rows)"
    )
    card = found.as_markdown()
    assert card.startswith("## t.csv, `v1` to `workspace`\n\nRows are compared by id.")
    assert "| 4 | 4 | 1 | 1 | 3 |" in card
    assert "| score | float64 | 2 | 1 → 0 | 2 → 10.25 | 1 → 13.2256 |" in card
    assert "and 2 more" in found.as_markdown(limit=1)
    narrow = diff_frames(repo, "t.csv", "v1", key=["id"], columns=["score"])
    assert [column.name for column in narrow.columns] == ["id", "score"]
    assert (narrow.rows_changed, narrow.columns_added) == (2, ())


def test_what_is_the_same_is_read_once_and_says_so(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frame(repo, FRAME, "t.csv")
    commit(repo, "v1")
    git(repo.root, "commit", "-q", "--allow-empty", "-m", "nothing")
    reads: list[Any] = []
    real = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *a, **k: reads.append(a) or real(*a, **k))
    found = diff_frames(repo, "t.csv", "v1", "HEAD", key="id")
    assert not found and len(reads) == 1
    assert found.as_markdown() == "## t.csv, `v1` to `HEAD`\n\nNothing differs: 3 rows."
    assert str(found) == "'t.csv' does not differ from v1 to HEAD: 3 rows"
    assert not diff_frames(repo, "t.csv", "v1", "workspace")


@pytest.mark.parametrize("key", [[], ["id"]])
def test_any_type_of_column_is_compared(key: list[str]) -> None:
    old = pd.DataFrame(
        {
            "id": [1, 2, 3],
            "time": pd.to_datetime(["2024-01-01", None, "2024-01-03"]),
            "zoned": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03"], utc=True),
            "kind": pd.Categorical(["a", "b", "a"]),
            "maybe": pd.array([1, None, 3], dtype="Int64"),
            "many": [[1], [2, 3], None],
            "flag": [True, False, True],
            "odd": [1, "x", None],
            7: [1, 2, 3],
        }
    )
    new = old.copy()
    new["kind"] = pd.Categorical(["a", "c", "a"], categories=["c", "a"])
    new["maybe"] = pd.array([1, 2, 3], dtype="Int64")
    new["many"] = [[1], [2, 4], None]
    assert not compare_frames(old, old.copy(), path="t", a="a", b="b", key=key)
    found = compare_frames(old, new, path="t", a="a", b="b", key=key)
    if key:
        assert found.rows_changed == 1
        assert {column.name for column in found.columns if column.changed} == {"kind", "maybe", "many"}
        moved = compare_frames(old, old.assign(zoned=old["time"]), path="t", a="a", b="b", key=key)
        assert moved.rows_changed == 3
    else:
        assert (found.rows_added, found.rows_removed) == (1, 1)
    assert json.dumps(found.as_dict())


def test_keys_that_do_not_tell_rows_apart_are_refused(repo: Repo) -> None:
    write_frame(repo, pd.DataFrame({"id": [1, 1, 2], "v": 0}), "t.csv")
    commit(repo, "v1")
    with pytest.raises(OutputError, match=r"'t\.csv' at v1 has 1 rows with a duplicate key, the first \[1\]"):
        diff_frames(repo, "t.csv", "v1", key="id")
    with pytest.raises(OutputError, match="has no column nope; it has id, v"):
        diff_frames(repo, "t.csv", "v1", key=["id", "nope"])
    with pytest.raises(OutputNotFoundError):
        diff_frames(repo, "u.csv", "v1")


def test_a_card_holds_what_columns_are_called_however_they_are() -> None:
    old = pd.DataFrame({"a|b`<script>": [1], "new\nline": [1]})
    card = compare_frames(old, old + 1, path="x|y", a="a`b", b="b").as_markdown()
    assert "a\\|b\\`&lt;script&gt; | int64" in card and "| new line |" in card and "<script>" not in card
    assert card.startswith("## x\\|y, `a'b` to `b`")


def test_empty_tables_are_tables() -> None:
    empty, full = pd.DataFrame({"id": [], "v": []}), pd.DataFrame({"id": [1], "v": [2]})
    for key in ([], ["id"]):
        assert compare_frames(empty, full, path="t", a="a", b="b", key=key).rows_added == 1
        assert compare_frames(full, empty, path="t", a="a", b="b", key=key).rows_removed == 1
        assert not compare_frames(empty, empty, path="t", a="a", b="b", key=key)
    assert not compare_frames(pd.DataFrame(), pd.DataFrame(), path="t", a="a", b="b")


def test_pandas_is_imported_by_the_first_table_only() -> None:
    code = (
        "import sys, dvkf_prefect.data.tables.frames, dvkf_prefect.data.tables.frame_diff; "
        "print([m for m in ('pandas', 'prefect', 'fsspec', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
