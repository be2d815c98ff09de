"""Repositories as DVC 2.x wrote them, and mixed ones: we take them for what the real `dvc` takes them for.

An output of 2.x has no ``hash:``; its digest is that of the text with Unix line ends, or of the bytes of what is no
text; its objects lie at ``<root>/aa/bbb``. Adding it again moves it to the layout of 3.x.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cases import Case, Held, check_alike, check_clean, generated, report, without_executables
from commands import Dvc, dvkf, git
from generators import Content, Edit, File, Project, edits, projects
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

_PIECE = 1 << 20


def legacy_md5(data: bytes) -> str:
    """Return the digest of 2.x, piece by piece as DVC reads a file."""
    text = bytes(range(32, 127)) + b"\n\r\t\f\b"
    total = hashlib.md5()
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        head = piece[:512]
        is_text = b"\0" not in head and len(head.translate(None, text)) <= 0.3 * len(head)
        total.update(piece.replace(b"\r\n", b"\n") if is_text else piece)
    return total.hexdigest()


def keep_legacy(store: Path, data: bytes, digest: str) -> None:
    path = store / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)
        path.chmod(0o444)


def record_legacy(root: Path, path: str, *, old_keys: bool = False) -> None:
    """Write the `.dvc` file and the objects of an output as DVC 2.x did.

    Args:
        root: The repository.
        path: The output, without anything in it that is ignored.
        old_keys: With the keys that DVC before 1.0 wrote.
    """
    store = root / ".dvc/cache"
    target = root / path
    rows = []
    if target.is_dir():
        sizes = []
        for folder, _, names in os.walk(target):
            for name in names:
                data = Path(folder, name).read_bytes()
                digest = legacy_md5(data)
                keep_legacy(store, data, digest)
                rows.append({"md5": digest, "relpath": os.path.relpath(os.path.join(folder, name), target)})
                sizes.append(len(data))
        rows.sort(key=lambda row: row["relpath"])
        manifest = json.dumps(rows, sort_keys=True).encode()
        digest = hashlib.md5(manifest).hexdigest() + ".dir"
        keep_legacy(store, manifest, digest)
        values: dict[str, object] = {"md5": digest, "size": sum(sizes), "nfiles": len(rows)}
    else:
        data = target.read_bytes()
        digest = legacy_md5(data)
        keep_legacy(store, data, digest)
        values = {"md5": digest, "size": len(data)}
        if target.stat().st_mode & 0o100:
            values["isexec"] = True
    values["path"] = target.name
    if old_keys:
        values = {"md5": digest, "path": target.name, "cache": True, "persist": False}
    document: dict[str, object] = {"outs": [values]}
    if old_keys:
        document = {"wdir": ".", **document}
    yaml = YAML()
    yaml.default_flow_style = False
    with (target.parent / f"{target.name}.dvc").open("w") as stream:
        yaml.dump(document, stream)
    with (target.parent / ".gitignore").open("a") as ignored:
        escaped = "".join("\\" + c if c in "\\*?[]!#" else c for c in target.name)
        ignored.write(f"/{escaped}\n")


class Legacy(Case):
    """A repository whose outputs were recorded by DVC 2.x, but for every third when it is mixed."""

    def __init__(self, top: Path, project: Project, dvc: Dvc, *, mixed: bool, old_keys: bool) -> None:
        if old_keys:  # none of which is for the mode
            project = without_executables(project)
        super().__init__(top, replace(project, ignore=(), gitignore=(), stage=False), dvc)
        modern = self.paths[::3] if mixed else []
        for path in self.paths:
            if path not in modern:
                record_legacy(self.root, path, old_keys=old_keys)
        if modern:
            dvc(self.root, "add", "-q", "--", *modern).ok()

    def content(self, paths: Sequence[str] | None = None) -> Held:
        """Return the digests of 2.x of what the outputs hold: the cache has one object for both line ends."""
        return {
            path: {name: (legacy_md5(what[0]), *what[1:]) for name, what in found.items()}
            for path, found in super().content(paths).items()
        }


@pytest.mark.parametrize("reader", ["dvkf", "dvc"])
def test_legacy_repositories_are_clean(
    reader: str, dvc: Dvc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every row of the cross-check table; `dvc` itself too, which says that the fixtures are what it wrote."""
    tool = dvkf if reader == "dvkf" else dvc
    cases: list[int] = []

    @given(projects(), st.booleans(), st.booleans(), st.lists(edits, min_size=2, max_size=8))
    @generated(5)
    def check(project: Project, mixed: bool, old_keys: bool, changes: Sequence[Edit]) -> None:
        # DVC itself needs to write some files of the oldest form twice before it leaves them alone.
        old_keys = old_keys and reader == "dvkf"
        case = Legacy(tmp_path / reader, project, dvc, mixed=mixed, old_keys=old_keys)
        if old_keys:
            # What they say is dropped as soon as the file is written.
            tool(case.root, "commit", "-q", "-f").ok()
        case.keep(tool, "one")
        names = {
            file.relative_to(case.root.parent / "store").parts[0]
            for file in (case.root.parent / "store").rglob("*")
            if file.is_file()
        }
        assert any(len(name) == 2 for name in names) and ("files" in names) == mixed
        tracked = case.content()
        check_clean(case, tool, tracked)
        made = case.edit(changes)
        check_alike(case, dvkf, dvc)
        tool(case.root, "checkout", "-q", "-f").ok()
        assert case.holds(tracked, tool)
        cases.append(len(case.outputs) + made)

    check()
    report(capsys, f"2.x, read by {reader}", cases, 35)


@pytest.mark.long
def test_edits_move_outputs_alike(dvc: Dvc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Adding or committing moves what changed to the layout of 3.x and leaves the rest, in the same bytes as `dvc`."""
    cases: list[int] = []

    @given(
        projects().filter(lambda project: not any(urlsplit(path).scheme for path in project.outputs)),
        st.booleans(),
        st.lists(edits, min_size=1, max_size=6),
        st.sampled_from(["add", "commit"]),
    )
    @generated(6)
    def check(project: Project, mixed: bool, changes: Sequence[Edit], how: str) -> None:
        ours, theirs = (
            Legacy(tmp_path / name, project, dvc, mixed=mixed, old_keys=False) for name in ("dvkf", "dvc")
        )
        made = 0
        for case, tool in ((ours, dvkf), (theirs, dvc)):
            case.keep(tool, "one")
            made = case.edit([edit for edit in changes if edit.what != "delete output"])
            if how == "add":
                tool(case.root, "add", "-q", "--", *case.paths).ok()
            else:
                tool(case.root, "commit", "-q", "-f").ok()
        assert documents(ours) == documents(theirs)
        assert objects(ours) == objects(theirs)
        for case, tool in ((ours, dvkf), (theirs, dvc)):
            case.keep(tool, "two")
        assert objects(ours, "store/files") == objects(theirs, "store/files")
        check_alike(ours, dvkf, dvc)
        between = ("diff", "--json", "--show-hash", "HEAD~1", "HEAD")
        assert dvkf(ours.root, *between).json() == dvc(ours.root, *between).json()
        check_clean(ours, dvc, ours.content(), dvkf)
        cases.append(len(ours.outputs) + made)

    check()
    report(capsys, "2.x, edited by both", cases, 40)


def documents(case: Case) -> dict[str, bytes]:
    """Return the small files that say what is tracked."""
    return {
        file.relative_to(case.root).as_posix(): file.read_bytes()
        for file in case.root.rglob("*")
        if file.name == ".gitignore" or (file.suffix == ".dvc" and file.is_file())
    }


def objects(case: Case, store: str = "repo/.dvc/cache/files") -> set[str]:
    """Return the names of the objects in the layout of 3.x."""
    place = case.root.parent / store
    return {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}


PIECES = {
    "line end across pieces": b"a" * (_PIECE - 1) + b"\r\n" + b"b\r\n" * 9,
    "text, then binary": b"text\r\n" * 180_000 + b"\0\r\n" * 1000,
    "binary, then text": b"\0\r\n" * 360_000 + b"text\r\n" * 200_000,
    "text to the last byte": b"a\r\n" * (_PIECE // 3) + b"\r",
    "nul behind the first 512 bytes": b"text\r\n" * 100 + b"\0\r\n",
    "three in ten odd": b"\xff" * 3 + b"text\r\n" + b"x",
    "more than three in ten odd": b"\xff" * 4 + b"text\r\n",
    "nothing": b"",
}


def test_text_is_told_from_binary_as_dvc_does(dvc: Dvc, tmp_path: Path) -> None:
    """Both find each file unchanged, in the workspace, after a push, and after a pull into an empty cache."""
    project = Project({name: File(Content(0)) for name in PIECES})
    for tool in (dvc, dvkf):
        top = tmp_path / ("dvkf" if tool is dvkf else "dvc")
        case = Legacy(top, Project({}), dvc, mixed=False, old_keys=False)
        case.paths = case.outputs = sorted(project.outputs)
        for name, data in PIECES.items():
            (case.root / name).write_bytes(data)
            record_legacy(case.root, name)
        (case.root / "all").mkdir()
        for name, data in PIECES.items():
            (case.root / "all" / name).write_bytes(data)
        record_legacy(case.root, "all")
        case.outputs = case.paths = [*case.paths, "all"]
        case.keep(tool, "one")
        check_clean(case, tool, case.content())
        # Other line ends are no change of a text, and one of what is none.
        for name, code in (
            ("three in ten odd", 0),
            ("nul behind the first 512 bytes", 0),
            ("binary, then text", 1),
        ):
            (case.root / name).unlink()
            (case.root / name).write_bytes(
                PIECES[name].replace(b"text\r\n", b"text\n").replace(b"\0\r", b"\0")
            )
            check_alike(case, dvkf, dvc)
            assert dvkf(case.root, "status", "-q").code == code


LOCK = """\
schema: '2.0'
stages:
  copy:
    cmd: cp in.txt out.txt
    deps:
    - path: in.txt
      md5: {digest}
      size: 10
    outs:
    - path: out.txt
      md5: {digest}
      size: 10
"""


@pytest.mark.parametrize("tool_name", ["dvkf", "dvc"])
def test_a_lock_of_2x_is_up_to_date(tool_name: str, dvc: Dvc, tmp_path: Path) -> None:
    """A dvc.lock whose entries have no ``hash:``; running the stage again writes the same lock whoever does it."""
    tool = dvkf if tool_name == "dvkf" else dvc
    written = []
    for writer in (tool, dvc):
        case = Legacy(tmp_path / tool_name, Project({}), dvc, mixed=False, old_keys=False)
        root = case.root
        data = b"one\r\ntwo\r\n"
        for name in ("in.txt", "out.txt"):
            (root / name).write_bytes(data)
        keep_legacy(root / ".dvc/cache", data, legacy_md5(data))
        (root / "dvc.yaml").write_text(
            "stages:\n  copy:\n    cmd: cp in.txt out.txt\n    deps:\n    - in.txt\n    outs:\n    - out.txt\n"
        )
        (root / "dvc.lock").write_text(LOCK.format(digest=legacy_md5(data)))
        (root / ".gitignore").write_text("/out.txt\n")
        case.keep(tool, "one")
        for looking in (dvc, dvkf):
            looking(root, "status", "-q").ok()
            looking(root, "status", "-c", "-q").ok()
            assert looking(root, "diff", "--json").json() == {}
            assert "skip" in looking(root, "repro", "--dry").ok().out
        before = (root / "dvc.lock").read_bytes()
        tool(root, "repro", "-q").ok()
        assert (root / "dvc.lock").read_bytes() == before
        (root / "in.txt").write_bytes(b"three\r\n")
        check_alike(case, dvkf, dvc)
        writer(root, "repro", "-q").ok()
        written.append((root / "dvc.lock").read_bytes())
        for looking in (dvc, dvkf):
            looking(root, "status", "-q").ok()
    assert written[0] == written[1]


def test_a_clone_pulls_2x_from_the_remote(dvc: Dvc, tmp_path: Path) -> None:
    """Nothing but the remote has the objects; each of the two brings what the other pushed."""
    files = {"text": b"a\r\nb\r\n", "folder/x": b"\0\r\n", "folder/sub/y": b"c\n", "folder/empty": b""}
    for pushes, pulls in ((dvkf, dvc), (dvc, dvkf), (dvkf, dvkf)):
        case = Legacy(tmp_path / "case", Project({}), dvc, mixed=False, old_keys=False)
        for name, data in files.items():
            (case.root / name).parent.mkdir(parents=True, exist_ok=True)
            (case.root / name).write_bytes(data)
        record_legacy(case.root, "text")
        record_legacy(case.root, "folder")
        case.keep(pushes, "one")
        store = case.root.parent / "store"
        assert not (store / "files").exists()
        assert len([file for file in store.glob("??/*") if file.is_file()]) == 5
        clone = case.root.parent / "clone"
        git(case.root.parent, "clone", "-q", str(case.root), str(clone))
        pulls(clone, "pull", "-q").ok()
        assert {name: (clone / name).read_bytes() for name in files} == files
        for tool in (dvc, dvkf):
            tool(clone, "status", "-q").ok()
            tool(clone, "status", "-c", "-q").ok()
        assert not (clone / ".dvc/cache/files").exists()
