"""Small files that would keep a machine busy, and documents that parsers or walks end in: all are refused by name.

No test asserts a time: a bound that is lost shows as the time-out of the whole run, or as the memory limit here.
"""

from __future__ import annotations

import random
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.errors import DvkfError, ParseError
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.params import load_values, select
from dvkf_prefect.formats.patterns import PatternError, compile_pattern, is_simple
from dvkf_prefect.formats.template import interpolation
from dvkf_prefect.formats.template.source import SourceFile
from dvkf_prefect.formats.tree import Tree

MEMORY = 2 << 30


def _aliases(first: str, line: str) -> bytes:
    text, last = first, "a"
    for name in "bcdefghij":
        text += line.format(name=name, refs=",".join([f"*{last}"] * 9))
        last = name
    return text.encode()


DOCUMENTS = {
    "a.yaml": {
        "deep flow": b"a: " + b"[" * 20000 + b"]" * 20000,
        "open flow": b"a: " + b"{a: " * 200000,
        "deep blocks": b"- " * 5000 + b"a",
        "deep keys": b"? " * 3000 + b"a",
        "deep mappings": b"".join(b" " * i + b"a:\n" for i in range(300)),
        "deep in UTF-16": ("a: " + "- " * 5000 + "a").encode("utf-16"),
        "aliases": _aliases("a: &a [1,1,1,1,1,1,1,1,1]\n", "{name}: &{name} [{refs}]\n"),
        "merges": _aliases("a: &a {x: 1}\n", "{name}: &{name} {{<<: [{refs}]}}\n"),
        "long texts": b"a: &a " + b"x" * 100000 + b"\nb: [" + b",".join([b"*a"] * 1000) + b"]\n",
        "itself": b"a: &a\n  b: *a\n",
        "too many": b"a: [" + b"1," * 1_100_000 + b"1]",
        "digits": b"a: " + b"1" * 5000,
        "hexadecimal digits": b"a: 0x" + b"f" * 5000,
        "date": b"a: 2001-99-99",
        "zone": b"a: 2001-12-14t21:59:43.10-99:00",
        "a tag's text": b"a: !!float x",
        "binary": b"a: !!binary a",
        "unknown tag": b"a: !<foo> 1",
        "bytes": b"a: \xff",
        "two documents": b"a: 1\n---\nb: 2\n",
    },
    "a.json": {
        "deep": b"[" * 100000,
        "rather deep": b'{"a":' * 500 + b"1" + b"}" * 500,
        "lone surrogate": b'{"a": "\\ud800"}',
        "digits": b'{"a": ' + b"1" * 5000 + b"}",
        "too many": b"[" + b"1," * 1_100_000 + b"1]",
        "bytes": b'{"a": "\xff"}',
    },
    "a.toml": {
        "deep": b"a = " + b"[" * 5000 + b"]" * 5000,
        "dots": b".".join([b"a"] * 3000) + b" = 1",
        "digits": b"a = 0x" + b"f" * 5000,
        "bytes": b"\xff",
    },
    "a.py": {
        "deep": b"a = " + b"[" * 5000 + b"]" * 5000,
        "signs": b"a = " + b"-" * 100000 + b"1",
        "sum": b"a = " + b"1+" * 20000 + b"1",
        "attributes": b"a" + b".b" * 50000 + b" = 1",
        "digits": b"a = 0x" + b"f" * 5000,
        "NUL": b"a = 1\0",
        "encoding": b"# -*- coding: foo -*-\na=1",
        "lone surrogate": b'a = "\\ud800"',
    },
}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param(name, data, id=f"{name}-{what}")
        for name, found in DOCUMENTS.items()
        for what, data in found.items()
    ],
)
def test_documents_are_refused_by_name(name: str, data: bytes) -> None:
    with pytest.raises(ParseError, match=rf"^{re.escape(name)}"):
        load_values(data, name)


@pytest.mark.parametrize("what", ["deep flow", "aliases", "itself", "deep keys"])
def test_documents_to_be_rewritten_are_refused_too(what: str) -> None:
    with pytest.raises(ParseError):
        documents.load_editable(DOCUMENTS["a.yaml"][what], "a.yaml")


def test_what_people_write_is_read() -> None:
    text = b"a: &x {k: 1}\nb: {<<: *x, l: 2}\nc: [*x, *x]\nd: !!omap [e: 1]\nf: x && ls *.csv &b\ng: 0xff\n"
    assert documents.load(text, "a.yaml") == {
        "a": {"k": 1}, "b": {"k": 1, "l": 2}, "c": [{"k": 1}] * 2, "d": {"e": 1}, "f": "x && ls *.csv &b", "g": 255,
    }  # fmt: skip
    assert documents.load("a: [1]\n".encode("utf-16"), "a.yaml") == {"a": [1]}
    deep = "a: " + "[" * 90 + "]" * 90
    assert documents.load(deep.encode(), "a.yaml") == documents.load_editable(deep.encode(), "a.yaml")
    assert load_values(b'{"a": NaN, "\xc3\xa9": "\xf0\x9f\x98\x80"}', "a.json")["é"] == "\U0001f600"


def test_parts_of_keys_are_indexes_only_in_plain_digits() -> None:
    assert select({"a": [1, 2]}, ["a.1", "a.²", "a.-1", "a." + "9" * 5000]) == {"a.1": 2}


@pytest.mark.parametrize(
    "entries",
    [
        b"[" * 100000, b'[{"md5": 1, "relpath": "a"}]', b'[{"md5": "%s", "relpath": "a\\u0000b"}]',
        b'[{"md5": "%s", "relpath": "a\\ud800b"}]', b'[{"md5": "%s", "relpath": 1}]', b"{}1", b"3", b'["a"]', b"null",
        b'[{"md5": "%s"}]', b'{"a": 1}',
        b'[{"md5": "\xc2\xb2%.30s", "relpath": "a"}]', b'[{"md5": "%s", "relpath": ""}]',
    ],
)  # fmt: skip
def test_manifests_are_refused_by_name(entries: bytes) -> None:
    data = entries % (b"1" * 32) if b"%" in entries else entries
    with pytest.raises(DvkfError, match="a manifest"):
        Tree.from_bytes(data, "a manifest")


def _random_pattern(source: random.Random) -> str:
    pieces = ["*", "**", "?", "a", "b", "/", "[ab]", "[!a]", "[a-c]", "\\*", ".", "é", "*a"]
    return "".join(source.choice(pieces) for _ in range(source.randint(1, 9)))


def test_patterns_match_as_their_expressions_do() -> None:
    """The automaton gives what `re` gives, for made-up patterns against made-up paths."""
    source = random.Random(8)
    tried = complex_ = 0
    for _ in range(3000):
        pattern = _random_pattern(source)
        try:
            regex, _ = GitIgnoreSpecPattern.pattern_to_regex(pattern)
        except ValueError:
            continue
        if regex is None:
            continue
        regex = re.sub(r"\(\?P<\w+>", "(?:", regex)
        complex_ += not is_simple(regex)
        match = compile_pattern(regex)
        for _ in range(5):
            path = "".join(source.choice("aabc/.é*") for _ in range(source.randint(0, 10)))
            assert bool(match(path)) is bool(re.match(regex, path)), (pattern, path)
            tried += 1
    assert tried > 5000
    assert complex_ > 300


@pytest.mark.parametrize("regex", [r"(a)\1*b*c*d*", r"(?=a*)b*c*d*", r"a*b*c*\d*", "[z-a]", "a" * 5000, "("])
def test_expressions_of_another_kind_are_refused(regex: str) -> None:
    with pytest.raises(PatternError):
        compile_pattern(regex)


NINETY = b",".join(b"%d" % i for i in range(90))
REPOSITORIES = {
    "aliases in params": {
        "params.yaml": DOCUMENTS["a.yaml"]["aliases"],
        "dvc.yaml": b"stages:\n  s:\n    cmd: echo 1 > o\n    params: [i]\n    outs: [o]\n",
    },
    "aliases in vars": {
        "v.yaml": DOCUMENTS["a.yaml"]["aliases"],
        "dvc.yaml": b"vars: [v.yaml]\nstages:\n  s:\n    cmd: echo ${a[0]}\n",
    },
    "matrix": {
        "dvc.yaml": b"stages:\n  s:\n    matrix:\n"
        + b"".join(b"      k%d: [%s]\n" % (k, b",".join(b"%d" % i for i in range(50))) for k in range(8))
        + b"    cmd: echo ${item.k1}\n",
    },
    "many matrices": {
        "dvc.yaml": b"stages:\n"
        + b"".join(
            b"  s%d:\n    cmd: echo\n    matrix: {a: [%s], b: [%s]}\n" % (n, *[NINETY] * 2) for n in range(100)
        ),
    },
    "foreach": {
        "params.yaml": b"l: [" + b"1," * 30000 + b"1]\n",
        "dvc.yaml": b"stages:\n  s:\n    foreach: ${l}\n    do: {cmd: echo}\n",
    },
    "a long text many times": {
        "params.yaml": b"a: " + b"x" * 500_000 + b"\n",
        "dvc.yaml": b"stages:\n  s:\n    cmd: " + b"${a}" * 5000 + b"\n",
    },
    "long texts in many stages": {
        "params.yaml": b"a: " + b"x" * 500_000 + b"\n",
        "dvc.yaml": b"stages:\n  s:\n    matrix: {i: [%s]}\n    cmd: echo ${a} ${item.i}\n"
        % b",".join(b"%d" % i for i in range(9000)),
    },
}  # fmt: skip


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvkf_prefect.cli", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120, preexec_fn=_limited, check=False,
    )  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_repo(tmp_path)
    return tmp_path


@pytest.mark.parametrize("files", REPOSITORIES.values(), ids=REPOSITORIES)
def test_bombs_are_refused_with_their_file(repository: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (repository / name).write_bytes(data)
    done = _run(repository, "status")
    assert done.returncode in (1, 255)
    assert re.match(r"ERROR: (params|v|dvc)\.yaml(, line \d+)?: ", done.stderr), done.stderr[:500]


def test_patterns_of_many_stars_are_matched(repository: Path) -> None:
    lines = ["*a" * k + "b" for k in range(20, 41)] + ["**/" * 30 + "x*y*z*", "[a-z]*[!b]*[c-d]*e"]
    (repository / ".dvcignore").write_text("\n".join(lines))
    long = "a" * 200
    (repository / long).write_text("1")
    (repository / ("a" * 199 + "b")).write_text("1")
    assert main(["check-ignore", "-q", long]) == 1
    assert main(["check-ignore", "-q", "a" * 199 + "b"]) == 0


@pytest.mark.parametrize("line", [b"[z-a]*", b"a\\", b"\xff", b"*a" * 5000])
def test_lines_that_are_no_patterns_are_told_with_their_file(
    repository: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / ".dvcignore").write_bytes(line + b"\n")
    (repository / "f").write_text("1")
    assert main(["add", "f"]) == 1
    assert ".dvcignore" in capsys.readouterr().err


EXPRESSION = re.compile(r"(?<!\\)\$\{(.*?)\}")
_PART = r"[^.\[\]]+"
SYNTAX = re.compile(rf"{_PART}(?:\s*(?:\.{_PART}|\[{_PART}\]))*\s*")


def test_expressions_are_found_as_by_the_rule_of_the_format() -> None:
    """DVC's own expressions, which take quadratic and cubic time, against those that do not."""
    source = random.Random(3)
    for _ in range(20_000):
        text = "".join(source.choice("$${{}}\\ \na") for _ in range(source.randint(0, 12)))
        assert [match.span() for match in EXPRESSION.finditer(text)] == list(interpolation._expressions(text))
        inner = "".join(source.choice("a.[] \n") for _ in range(source.randint(0, 9)))
        assert bool(SYNTAX.fullmatch(inner)) is bool(interpolation._SYNTAX.fullmatch(inner))


@pytest.mark.parametrize(
    "text", ["}" + "${" * 500_000 + "\n}", "${a" + " " * 100_000 + "[}", "${a" + "[0] " * 100_000 + "!}"]
)
def test_expressions_that_never_end_are_read_at_once(text: str) -> None:
    source = SourceFile(b"", "dvc.yaml")
    try:
        interpolation.compile_value(text, source, ("stages",))
    except ParseError as error:
        assert len(str(error)) < 1000
