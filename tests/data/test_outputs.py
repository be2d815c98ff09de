"""What `.dvc` files say: read by type, refused by line and key, rewritten with all that is not ours kept."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvkf_prefect.data.git.gitignore import GitIgnored
from dvkf_prefect.data.repository.files import WorkspaceFiles
from dvkf_prefect.errors import ParseError, UnsafePathError
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile import document_md5, parse_dvc_file, read_plain
from dvkf_prefect.formats.dvcfile_edit import write_document, write_dvc_file
from dvkf_prefect.formats.objects import LEGACY, MD5, Content
from dvkf_prefect.formats.outputs import FileVersion
from dvkf_prefect.formats.tree import Tree

A, B, C = "a" * 32, "b" * 32, "c" * 32

EVERYTHING = f"""\
# a comment
desc: what this is
md5: {C}
frozen: true
deps:
- etag: '"quoted"'
  size: 3
  version_id: v1
  hash: md5
  path: s3://bucket/key
  fs_config:
    version_aware: true
    endpointurl: http://127.0.0.1:1
outs:
- md5: {A}  # of the file
  size: 3
  isexec: true
  hash: md5
  path: yes
  desc: more
  type: model
  labels:
  - one
  - two
  meta:
    anything: [1, two]
  persist: true
  remote: store
  push: false
  cloud:
    store:
      etag: etag1
      version_id: v2
always_changed: false
meta:
  free: form
"""


def parse(text: str, path: str = "x.dvc") -> Any:
    return parse_dvc_file(text.encode(), path)


def test_every_key_is_read() -> None:
    (output,) = parse(EVERYTHING, "sub/x.dvc")
    assert (output.path, output.digest, output.size, output.isexec, output.hash_name) == (
        "sub/yes",
        A,
        3,
        True,
        MD5,
    )
    assert (output.remote, output.pushed, output.persist, output.cached) == ("store", False, True, True)
    assert output.versions == (FileVersion("", A, 3, "etag1", "v2", "store"),)
    origin = output.origin
    assert (origin.path, origin.folder, origin.checksum, origin.size) == (
        "s3://bucket/key",
        "sub",
        '"quoted"',
        3,
    )
    assert origin.versioned and origin.frozen and origin.fs_config["endpointurl"] == "http://127.0.0.1:1"
    assert origin.versions == (FileVersion("", None, 3, '"quoted"', "v1", None),)


def test_an_import_of_a_repository_is_not_pushed() -> None:
    (output,) = parse(
        "deps:\n- path: data/a\n  repo:\n    url: ../other\n    rev: main\n    rev_lock: abc\n"
        f"outs:\n- md5: {A}\n  path: a\n"
    )
    assert str(output.origin) == "data/a (../other)"
    assert output.origin.repo == {"url": "../other", "rev": "main", "rev_lock": "abc"}
    assert not output.pushed


def test_files_of_a_directory_make_its_digest() -> None:
    (output,) = parse(
        "outs:\n- hash: md5\n  path: d\n  files:\n"
        f"  - relpath: b\n    md5: {B}\n    size: 2\n"
        "    cloud:\n      s:\n        etag: etag\n        version_id: '7'\n"
        f"  - relpath: a/x\n    md5: {A}\n    size: 1\n"
    )
    assert output.digest == Tree(["a/x", "b"], [A, B]).digest
    assert (output.size, output.nfiles, output.is_dir, output.hash_name) == (3, 2, True, MD5)
    assert output.versions == (
        FileVersion("b", B, 2, "etag", "7", "s"),
        FileVersion("a/x", A, 1, None, None, None),
    )


@pytest.mark.parametrize("text", ["", "outs: null\n", "outs: []\n", "deps: null\nouts: []\nwdir: null\n"])
def test_a_file_may_track_nothing(text: str) -> None:
    assert parse(text) == []


def test_old_and_partial_outputs() -> None:
    assert parse(f"outs:\n- md5: {A}\n  path: a\n")[0].hash_name == LEGACY
    assert parse(f"locked: true\ndeps:\n- path: ../b\nouts:\n- md5: {A}\n  path: a\n")[0].origin.frozen
    for empty in ("", "null", "''"):
        assert parse(f"outs:\n- md5: {empty}\n  hash: md5\n  path: a\n")[0].digest is None
    assert parse(f"outs:\n- md5: {'A' * 32}\n  hash: md5\n  path: a\n")[0].digest == A
    assert parse(f"outs:\n- md5: {'1' * 32}\n  hash: md5\n  path: a\n")[0].digest == "1" * 32
    # DVC 3 refuses a stage of DVC 0 in a `.dvc` file; what has two dependencies is no import.
    with pytest.raises(ParseError, match="unknown key 'cmd'"):
        parse(f"cmd: make\ndeps:\n- path: b\nouts:\n- md5: {A}\n  path: a\n")
    assert parse(f"deps:\n- path: b\n- path: c\nouts:\n- md5: {A}\n  path: a\n")[0].origin is None


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("- a\n", 1, "is a mapping"),
        ("outs:\n- path: a\nouts: []\n", 3, "duplicate key"),
        ("frozen: 'yes'\nouts:\n- path: a\n", 1, "`frozen` is true or false, not 'yes'"),
        ("outs: a\n", 1, "`outs` is a list"),
        ("outs:\n- path: a\nfoo: 1\n", 3, "unknown key 'foo'"),
        ("outs:\n- a\n", 2, "a mapping with `path`"),
        ("outs:\n- md5: a\n", 2, "a mapping with `path`"),
        ("outs:\n- path: 7\n", 2, "`path` is a string, not 7"),
        ("outs:\n- path: a\n  size: true\n", 3, "`size` is a whole number"),
        ("outs:\n- path: a\n  size: -1\n", 3, "`size` is a whole number"),
        ("outs:\n- path: a\n  nfiles: '3'\n", 3, "`nfiles` is a whole number"),
        ("outs:\n- path: a\n  isexec: 1\n", 3, "`isexec` is true or false"),
        ("outs:\n- path: a\n  cache: no thanks\n", 3, "`cache` is true or false"),
        ("outs:\n- path: a\n  push: 0\n", 3, "`push` is true or false"),
        ("outs:\n- path: a\n  remote: [s]\n", 3, "`remote` is a string"),
        ("outs:\n- path: a\n  labels: one\n", 3, "`labels` is a list of strings"),
        ("outs:\n- path: a\n  hash: sha256\n", 3, "`hash` is md5, not 'sha256'"),
        ("outs:\n- path: a\n  md5: xyz\n", 3, "32 hexadecimal digits"),
        (f"outs:\n- path: a\n  md5: {'g' * 32}\n", 3, "32 hexadecimal digits"),
        ("outs:\n- path: a\n  cloud: v1\n", 3, "`cloud` is a mapping"),
        ("outs:\n- path: a\n  cloud:\n    s: v1\n", 4, "a remote's name to its version"),
        ("outs:\n- path: a\n  cloud:\n    s: {}\n    t: {}\n", 3, "names one remote"),
        ("outs:\n- path: a\n  cloud:\n    s:\n      version: 1\n", 5, "unknown key 'version'"),
        ("outs:\n- path: a\n  files:\n  - x\n", 4, "a mapping with `relpath`"),
        ("outs:\n- path: a\n  files:\n  - relpath: x\n", 4, "an `md5` of 32"),
        (
            f"outs:\n- path: a\n  files:\n  - relpath: x/../../y\n    md5: {A}\n",
            4,
            "a path inside the directory",
        ),
        (
            f"outs:\n- path: a\n  files:\n  - {{relpath: x, md5: {A}}}\n  - {{relpath: x, md5: {A}}}\n",
            5,
            "once",
        ),
        ("deps:\n- path: b\n  repo: ../other\nouts:\n- path: a\n", 3, "`repo` is a mapping"),
        ("deps:\n- path: b\n  repo:\n    rev: main\nouts:\n- path: a\n", 3, "needs a `url`"),
        (
            "deps:\n- path: b\n  repo:\n    url: u\n    branch: x\nouts:\n- path: a\n",
            5,
            "unknown key 'branch'",
        ),
        ("deps:\n- path: b\n  fs_config: x\nouts:\n- path: a\n", 3, "`fs_config` is a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert caught.value.file == "x.dvc"
    assert caught.value.line == line
    assert said in caught.value.expected


@pytest.mark.parametrize("path", ["../a", "/a", "a/../..", ".", "s3://b/k"])
def test_an_output_stays_inside(path: str) -> None:
    with pytest.raises(UnsafePathError):
        parse(f"outs:\n- path: {path}\n")


def test_nothing_changes_in_a_file_that_says_the_same() -> None:
    data = EVERYTHING.encode()
    assert write_document(data, "x.dvc", documents.load(data, "x.dvc")) == data
    # As DVC, what is at its default is left out when a file is recorded anew.
    kept = data.replace(b"always_changed: false\n", b"").replace(b"wdir: .\n", b"")
    assert write_dvc_file(data, "x.dvc", "yes", Content(A, 3, None, True)) == kept


def test_new_content_drops_what_a_remote_holds_of_the_old_and_keeps_the_rest() -> None:
    text = write_dvc_file(EVERYTHING.encode(), "x.dvc", "yes", Content(B, 4)).decode()
    assert "cloud" not in text and "isexec" not in text
    for kept in (
        "# a comment",
        "# of the file",
        "labels:",
        "free: form",
        "anything: [1, two]",
        f"- md5: {B}",
    ):
        assert kept in text
    files = (
        f"outs:\n- hash: md5\n  path: d\n  files:\n  - relpath: x\n    md5: {A}\n    size: 1\n"
        "    cloud:\n      s:\n        etag: etag\n        version_id: v\n"
    ).encode()
    same = Tree(["x"], [A])
    assert write_dvc_file(files, "d.dvc", "d", Content(same.digest, 1, 1)) == files
    other = Tree(["x"], [B])
    assert write_dvc_file(files, "d.dvc", "d", Content(other.digest, 1, 1)).decode() == (
        f"outs:\n- hash: md5\n  path: d\n  md5: {other.digest}\n  size: 1\n  nfiles: 1\n"
    )


def test_the_md5_of_an_import_is_that_of_dvc() -> None:
    """The files were written by DVC 3.67.1."""
    document = {
        "md5": "16ac9114bc16fdefab9a6248fc25a68c",
        "frozen": True,
        "deps": [
            {
                "path": "data/sub/b",
                "repo": {
                    "url": "../src",
                    "rev": "master",
                    "rev_lock": "0d311305f4ad9b2ce42a4a57e4f71626101a37f4",
                },
            }
        ],
        "outs": [{"md5": "3b5d5c3712955042212316173ccf37be", "size": 2, "hash": "md5", "path": "b2"}],
    }
    assert document_md5(document) == document["md5"]
    assert (
        document_md5({**document, "desc": "new", "meta": {"a": 1}, "wdir": ".", "frozen": False})
        == document["md5"]
    )
    versions = {
        "deps": [
            {
                "etag": "9a8ad92c50cae39aa2c5604fd0ab6d8c",
                "size": 2,
                "version_id": "671563f811cf8d6a3fa281c3e328ae99",
                "hash": "md5",
                "path": "remote://ver/f",
                "fs_config": {"version_aware": True},
            }
        ],
        "outs": [
            {"md5": "9a8ad92c50cae39aa2c5604fd0ab6d8c", "size": 2, "hash": "md5", "path": "vf", "push": False}
        ],
    }
    assert document_md5(versions) == "865a6d2474ff4e0b316c029cee3e12f8"


_NAMES = st.text(
    st.characters(
        codec="utf-8", exclude_characters="/\\\0\x85\u2028\u2029", exclude_categories=("Cc", "Cs", "Co", "Cn")
    ),
    min_size=1,
    max_size=12,
).filter(lambda name: name.strip() == name and name not in (".", "..") and not name.endswith(".dvc"))
_DIGESTS = st.text("0123456789abcdef", min_size=32, max_size=32)


@settings(max_examples=60, deadline=None)
@given(
    name=_NAMES,
    digest=_DIGESTS,
    size=st.integers(0, 2**50),
    isexec=st.booleans(),
    nfiles=st.none() | st.integers(0, 10**6),
)
def test_what_is_written_is_read_again(
    name: str, digest: str, size: int, isexec: bool, nfiles: int | None
) -> None:
    stored = Content(digest + (".dir" if nfiles is not None else ""), size, nfiles, isexec and nfiles is None)
    data = write_dvc_file(None, "f.dvc", name, stored)
    (output,) = parse_dvc_file(data, "f.dvc")
    assert (output.path, output.digest, output.size, output.nfiles, output.isexec) == (
        name,
        stored.digest,
        size,
        nfiles,
        stored.isexec,
    )
    assert write_dvc_file(data, "f.dvc", name, stored) == data


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_do_worse_than_a_parse_error(data: bytes) -> None:
    try:
        parse_dvc_file(data, "x.dvc")
    except (ParseError, UnsafePathError) as error:
        assert "x.dvc" in str(error)


def test_dvc_takes_all_that_we_write(tmp_path: Path) -> None:
    """One start of dvc reads many files: odd names, every annotation, versions of a remote."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["dvc", "init", "-q"], cwd=tmp_path, check=True)
    names = [
        "yes",
        "1e3",
        "0x1f",
        "a: b",
        "- c",
        "#d",
        "ü ñ",
        "null",
        "'q'",
        '"',
        "{e}",
        "~",
        "2024-01-01",
        "0123",
    ]
    for number, name in enumerate(names):
        (tmp_path / f"{number}.dvc").write_bytes(
            write_dvc_file(None, f"{number}.dvc", name, Content("0" * 31 + "1", 1))
        )
    (tmp_path / "all.dvc").write_text(EVERYTHING.replace("path: yes", "path: all"))
    (tmp_path / ".dvc/config").write_text("['remote \"store\"']\n    url = /nowhere\n")
    done = subprocess.run(
        ["dvc", "data", "status", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["not_in_cache"]) == {*names, "all"}


# Digests that could be taken for numbers, and names for YAML's own words.
_DIGESTS = st.one_of(
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.text("0123456789", min_size=32, max_size=32),
    st.integers(1, 30).map(lambda n: ("1" * n + "e" + "1" * 31)[:32]),
)
_NAMES = st.one_of(
    st.sampled_from(
        [
            "yes",
            "null",
            "true",
            "y",
            "data",
            "data/train",
            "a-b",
            "a.b.",
            "x-",
            "0x1",
            "1e3",
            "~",
            "n",
            "Null",
        ]
    ),
    st.from_regex(r"\A[a-zA-Z0-9_./-]{1,12}\Z"),
)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    outs=st.lists(
        st.tuples(
            _DIGESTS,
            st.sampled_from(["", ".dir"]),
            st.integers(0, 10**18),
            st.none() | st.integers(0, 9),
            _NAMES,
        ),
        min_size=1,
        max_size=3,
    ),
    quirk=st.sampled_from(["", "", "", "# a comment\n", "meta: {}\n", "  isexec: true\n"]),
)
def test_what_is_read_without_a_parser_is_what_the_parser_reads(
    outs: list[tuple[str, str, int, int | None, str]], quirk: str
) -> None:
    text = "outs:\n" + "".join(
        f"- md5: {digest}{suffix}\n  size: {size}\n"
        + ("" if nfiles is None else f"  nfiles: {nfiles}\n")
        + f"  hash: md5\n  path: {name}\n"
        for digest, suffix, size, nfiles, name in outs
    )
    data = (text + quirk).encode()
    plain = read_plain(data)
    if plain is not None:
        assert plain == documents.load(data, "x.dvc")


def test_what_add_writes_is_read_without_a_parser() -> None:
    for stored in (Content(A, 3), Content(A + ".dir", 3, 2)):
        assert read_plain(write_dvc_file(None, "data.dvc", "data", stored)) is not None


def test_folders_that_vanish_and_temporary_ones_describe_nothing(tmp_path: Path) -> None:
    for folder in ("gone", "kept", ".0123456789abcdef.dvkf-tmp"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.dvc").write_text("outs:\n- path: x\n")

    def skip(path: str) -> bool:
        # Another process moves the folder away after it was listed and before it is entered.
        if path == "gone/":
            (tmp_path / "gone").rename(tmp_path.with_name(tmp_path.name + "-gone"))
        return False

    files = WorkspaceFiles(tmp_path, skip, lambda path: set(), GitIgnored(tmp_path, None))
    assert files.find() == ["kept/x.dvc"]
