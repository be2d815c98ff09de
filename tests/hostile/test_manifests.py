"""Manifests of somebody else: whatever they say, no verb takes much memory for them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect import cli
from dvkf_prefect.data.transfer import move
from dvkf_prefect.errors import DvkfError, ParseError, TransferError
from dvkf_prefect.formats import manifest_rows
from dvkf_prefect.formats.objects import object_key
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.repo import Repo

MIB = 1 << 20


def digest_of(number: int) -> str:
    return hashlib.md5(b"%d" % number, usedforsecurity=False).hexdigest()


def manifest(paths: list[str], first: int = 0) -> bytes:
    return Tree(paths, [digest_of(first + n) for n in range(len(paths))]).to_bytes()


def project(root: Path, *manifests: bytes, place: str = "../remote") -> Repo:
    """Return a repository that names some manifests, which a place outside or inside it has."""
    make_repo(root, remote=root.parent / "remote")
    (root.parent / "remote").mkdir(exist_ok=True)
    for number, data in enumerate(manifests):
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest() + ".dir"
        path = root / place / object_key(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        (root / f"d{number}.dvc").write_text(
            f"outs:\n- md5: {digest}\n  size: 1\n  hash: md5\n  path: d{number}\n"
        )
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *author, "commit", "-qm", "1"], cwd=root, check=True)
    return Repo.open(root)


def rows(text: str, count: int) -> bytes:
    return f"[{', '.join(text % (digest_of(n), n) for n in range(count))}]".encode()


# Each of about 27 MB.
SHAPES = {
    "empty rows": lambda: b"[" + b"{}," * (9 * MIB) + b"{}]",
    "lists": lambda: b"[" + b"[]," * (9 * MIB) + b"[]]",
    "one long row": lambda: ("[{" + ",".join(f'"{n:x}":1' for n in range(5 * MIB // 2)) + "}]").encode(),
    "deep folders": lambda: rows('{"md5": "%s", "relpath": "%d/' + "a/" * 2000 + 'f"}', 6800),
    "wide letters": lambda: rows('{"md5": "%s", "relpath": "%d/' + "x" * 3800 + '\\ud83d\\ude00"}', 6900),
    "many rows": lambda: rows('{"md5": "%s", "relpath": "f%d"}', 400_000),
}
# The long tier takes all of them.
SOME = SHAPES if "DVKF_ZOO_PARTS" in os.environ else ("empty rows", "one long row", "deep folders")
RUN = """
import os, sys
from dvkf_prefect import cli
for words in sys.argv[2:]:
    os.chdir(sys.argv[1])
    print(words, cli.main(words.split()), file=sys.stderr)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10)
"""


@pytest.mark.parametrize("shape", SOME)
def test_no_manifest_of_a_remote_takes_much_memory(tmp_path: Path, shape: str) -> None:
    root = project(tmp_path / "r", SHAPES[shape]()).root
    verbs = ["list . d0", "get . d0 -o g", "pull d0"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(root), *verbs], capture_output=True, text=True, timeout=500
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr[-1000:]
    assert int(done.stdout.splitlines()[-1]) < 500, done.stderr[-1000:]


def test_a_manifest_is_read_in_pieces_as_it_is_read_whole() -> None:
    names = [
        '}, {', '}, {"md5": "x', '}, {"a":', '"', '\\', '\\"}, {"md5": "', "\U0001f600", "é", "a b", "}", "{",
        "[", "],",
    ]  # fmt: skip
    paths = sorted(f"{name}/{n}" for n in range(5000) for name in names)
    data = manifest(paths)
    assert len(data) > 4 * MIB
    entries = json.loads(data)
    tree = Tree.from_bytes(data, "x")
    assert tree.relpaths == [entry["relpath"] for entry in entries] == paths
    assert tree.digests == [entry["md5"] for entry in entries]
    # Other writers part rows otherwise, and say more of each.
    for parted in (b"},{", b"},\n {"):
        assert Tree.from_bytes(data.replace(b'"}, {"md5"', b'"%b"md5"' % parted), "x").relpaths == paths
    more = "[" + ", ".join(json.dumps({"size": 1, **entry}) for entry in entries) + "]\n"
    assert Tree.from_bytes(more.encode(), "x").digests == tree.digests


@pytest.mark.parametrize("end", [b"", b"]]", b"] 1", b", ]", b"1]"])
def test_a_manifest_that_is_none_is_refused_in_pieces_too(end: bytes) -> None:
    data = manifest([f"f{n:06}" for n in range(30_000)])
    with pytest.raises(ParseError, match="a manifest is a JSON list"):
        Tree.from_bytes(data[:-1] + end, "x")
    with pytest.raises(ParseError, match="a manifest is a JSON list"):
        Tree.from_bytes(b"1" + data, "x")


def test_manifests_at_hand_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(manifest_rows.VARIABLE, str((manifest_rows._TAKEN.size >> 20) + 2))
    data = manifest([f"f{n:06}" for n in range(9_000)])
    first = Tree.from_bytes(data, "x")
    with pytest.raises(ParseError, match=r"already in memory.*DVKF_MANIFEST_MB=\d+0$"):
        Tree.from_bytes(data, "x")
    assert len(Tree.from_bytes(data, "x", own=True)) == len(first)
    del first
    assert len(Tree.from_bytes(data, "x")) == 9_000


def test_one_s_own_manifest_may_take_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who tracks many files has to set anything; what a clone or a source brings is limited."""
    monkeypatch.setenv(manifest_rows.VARIABLE, "1")
    data = manifest([f"f{n:06}" for n in range(20_000)])
    own = project(tmp_path / "own", data, place=".dvc/cache")
    digest = own.outputs()[0].digest
    assert digest
    assert len(own.cache.read_tree(digest)) == 20_000
    # A source that the user does not name as trusted.
    monkeypatch.chdir(tmp_path)
    assert cli.main(["get", str(own.root), "d0", "-o", "g"]) == 1
    assert cli.main(["list", str(own.root), "d0"]) == 1
    monkeypatch.setenv("DVKF_TRUSTED_SOURCES", str(tmp_path))
    assert cli.main(["list", str(own.root), "d0"]) == 0
    # One that came with git.
    subprocess.run(["git", "add", "-f", ".dvc/cache"], cwd=own.root, check=True)
    with pytest.raises(ParseError, match=f"{digest}.*DVKF_MANIFEST_MB=10"):
        own.cache.read_tree(digest)
    monkeypatch.setenv(manifest_rows.VARIABLE, "10")
    assert len(own.cache.read_tree(digest)) == 20_000


def test_a_manifest_of_a_remote_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(manifest_rows.VARIABLE, "1")
    repo = project(tmp_path / "r", manifest([f"f{n:06}" for n in range(20_000)]))
    monkeypatch.chdir(repo.root)
    for verb, code in {"pull": 1, "list . d0": 1, "get . d0 -o g": 1}.items():
        assert cli.main(verb.split()) == code
        said = capfd.readouterr().err
        assert "DVKF_MANIFEST_MB=10" in said, verb
        assert "Remove it from the remote" not in said
    assert not list((repo.cache.root / "files").rglob("*.dir"))


def test_more_objects_than_fit_are_not_fetched_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(manifest_rows.VARIABLE, "1")
    names = [f"f{n:06}" for n in range(5_000)]
    repo = project(tmp_path / "r", *(manifest(names, number * 5_000) for number in range(4)))
    with pytest.raises(
        DvkfError, match=r"20,000 objects would be fetched.*limit is 16,384 at once.*DVKF_MANIFEST_MB=10"
    ):
        repo.fetch()
    # Some of them at a time are.
    with pytest.raises(TransferError, match=r"5000 file\(s\) failed"):
        repo.fetch(["d0"])


@pytest.mark.parametrize("beside", [True, False])
def test_when_too_much_fails_no_more_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    """To tell of each of a million failures took a gigabyte."""
    monkeypatch.setattr(move, "MOST_FAILED", 10)
    monkeypatch.setattr("dvkf_prefect.data.transfer.transfer.MOST_FAILED", 10)
    if not beside:
        monkeypatch.setattr(move, "FolderStorage", bytes)
    repo = project(tmp_path / "r", manifest([f"f{n:06}" for n in range(500)]))
    with pytest.raises(
        TransferError, match=r"all others: 10 objects failed at .*the transfer was stopped"
    ) as caught:
        repo.fetch()
    assert len(caught.value.failures) < 30
    assert not caught.value.only_missing
