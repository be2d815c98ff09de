"""What public repositories hold, next to the real `dvc`: the same answers from both."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Dvc, dvkf, git
from repos import make_repo

from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile import document_md5

BROKEN = "no: [yaml"
OUT = "outs:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n  size: 0\n  hash: md5\n  path: {}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    make_repo(folder)
    return folder


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def same(dvc: Dvc, root: Path, *arguments: str) -> Any:
    """Return what both print as JSON."""
    theirs, ours = dvc(root, *arguments), dvkf(root, *arguments)
    assert ours.code == theirs.code, f"{ours}\n{theirs}"
    assert sort(ours.json()) == sort(theirs.json())
    return ours.json()


def sort(value: Any) -> Any:
    """Return an answer with its lists of paths sorted; their order is not promised."""
    if isinstance(value, dict):
        return {key: sort(each) for key, each in value.items()}
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return sorted(value)
    return value


IGNORE_FILES = {
    "folder": {".gitignore": "env/\n"},
    "no slash": {".gitignore": "env\n"},
    "nested": {"sub/.gitignore": "deep/\n*.dvc\n"},
    "negated": {".gitignore": "env/*\n!env/kept\n*.dvc\n!top.dvc\n"},
    "negated below an ignored folder": {".gitignore": "env/\n!env/pkg/x.dvc\n"},
    "contents": {".gitignore": "env/*\n!env/*.dvc\nsub/**\n"},
    "contents come back": {".gitignore": "env/**\n!env/**/\n!env/**/*.dvc\n"},
    "overridden below": {".gitignore": "*.dvc\n", "sub/.gitignore": "!*.dvc\n"},
    "exclude": {".git/info/exclude": "env/pkg/\n"},
    "excludesFile": {"../excludes": "sub/\n"},
    "escapes": {".gitignore": "\\#a/\n\\!b/\ntrailing \nc\\ d/\n[ab]x/\n"},
    "nested repository": {".gitignore": "deep/\n", "sub/.gitignore": "!deep/\nx.dvc\n"},
    "tracked by git": {".gitignore": "env/\nsub/*.dvc\n"},
}


@pytest.mark.parametrize("name", IGNORE_FILES)
def test_what_git_ignores_is_not_looked_into(dvc: Dvc, root: Path, name: str) -> None:
    folders = (
        "", "env/", "env/pkg/", "env/kept/", "sub/", "sub/deep/", "#a/", "!b/", "c d/", "ax/", "trailing/", ":(x)/",
    )  # fmt: skip
    lay(root, {f"{folder}{file}.dvc": OUT.format(file) for folder in folders for file in ("x", "top")})
    stages = "stages:\n  s:\n    cmd: 'true'\n    deps: [in.txt]\n"
    lay(root, {"env/pkg/dvc.yaml": stages, "sub/deep/dvc.yaml": stages})
    if name == "tracked by git":
        git(root, "add", "-A")
    if name == "nested repository":
        git(root / "sub", "init", "-q")
    lay(root, IGNORE_FILES[name])
    if name == "excludesFile":
        git(root, "config", "core.excludesFile", str(root.parent / "excludes"))
    status = same(dvc, root, "status", "--json")
    same(dvc, root, "data", "status", "--json")
    assert 0 < len(status) < 2 * len(folders) + 2


def test_a_broken_file_that_git_ignores_does_not_matter(dvc: Dvc, root: Path) -> None:
    lay(root, {"env/pkg/dvc.yaml": BROKEN, ".gitignore": "env/\n", "x.dvc": OUT.format("x")})
    assert same(dvc, root, "status", "--json") == {"x.dvc": [{"changed outs": {"x": "not in cache"}}]}
    shutil.rmtree(root / ".git")
    assert dvkf(root, "status").code != 0


def test_data_is_not_tracked_where_git_ignores_its_dvc_file(dvc: Dvc, root: Path) -> None:
    lay(root, {"env/data": "1\n", ".gitignore": "env/\n", "top": "2\n"})
    for tool in (dvc, dvkf):
        assert "git-ignored" in tool(root, "add", "env/data").err
        assert not (root / "env/data.dvc").exists()
    dvkf(root, "add", "top").ok()
    for arguments in (("move", "top", "env/top"), ("import-url", str(root / "top"), "env/other")):
        assert "git-ignored" in dvkf(root, *arguments).err
    assert (root / "top").exists()


def test_a_dependency_that_is_gone_is_told_as_deleted_also_where_something_makes_it(
    dvc: Dvc, root: Path
) -> None:
    stages = (
        "stages:\n  one:\n    cmd: mkdir one && cp in.csv one/x\n    deps: [in.csv]\n    outs: [one]\n"
        "  two:\n    cmd: cp one/x two.csv\n    deps: [one/x, in/f]\n    outs: [two.csv]\n"
    )
    lay(root, {"in.csv": "1\n", "in/f": "1\n", "dvc.yaml": stages})
    dvkf(root, "add", "in.csv", "in").ok()
    dvkf(root, "repro").ok()
    assert same(dvc, root, "status", "--json") == {}
    for name in ("in.csv", "two.csv"):
        (root / name).unlink()
    shutil.rmtree(root / "one")
    shutil.rmtree(root / "in")
    status = same(dvc, root, "status", "--json")
    assert status["one"][0] == {"changed deps": {"in.csv": "deleted"}}
    assert status["two"][0] == {"changed deps": {"one/x": "deleted", "in/f": "deleted"}}
    same(dvc, root, "status", "--json", "two")


def test_stages_without_outputs_are_targets(dvc: Dvc, root: Path, tmp_path: Path) -> None:
    stage = "stages:\n  check:\n    cmd: test -s in.txt\n    deps: [in.txt]\n"
    lay(root, {"in.txt": "1\n", "dvc.yaml": stage, "sub/dvc.yaml": stage, "sub/in.txt": "1\n"})
    dvkf(root, "remote", "add", "-d", "store", str(tmp_path / "store")).ok()
    dvkf(root, "repro", "-R", ".").ok()
    lay(root, {"in.txt": "2\n", "sub/in.txt": "2\n"})
    changed = [{"changed deps": {"in.txt": "modified"}}]
    assert same(dvc, root, "status", "--json", "check") == {"check": changed}
    for target in ("sub/dvc.yaml:check", "sub/dvc.yaml", "dvc.yaml"):
        same(dvc, root, "status", "--json", target)
    for verb in ("push", "fetch", "pull", "checkout", "freeze", "unfreeze"):
        for tool in (dvc, dvkf):
            tool(root, verb, "check").ok()
    dvkf(root, "commit", "-f", "check").ok()
    assert same(dvc, root, "status", "--json", "check") == {}
    assert dvkf(root, "status", "none").code == dvc(root, "status", "none").code != 0


def test_an_import_whose_source_does_not_answer_hides_nothing(dvc: Dvc, root: Path) -> None:
    dep = "deps:\n- path: http://127.0.0.1:9/f\n  etag: abc\n" + OUT.format("f")
    lay(root, {"f.dvc": dep, "x.dvc": OUT.format("x")})
    document = documents.load((root / "f.dvc").read_bytes(), "f.dvc")
    signed = {**document, "deps": [{**document["deps"][0], "hash": "md5"}]}
    (root / "f.dvc").write_text(f"md5: {document_md5(signed)}\n{dep}")
    status = same(dvc, root, "status", "--json")
    assert status["f.dvc"][0] == {"changed deps": {"http://127.0.0.1:9/f": "deleted"}}
    assert "changed checksum" not in status["f.dvc"]
    assert "x.dvc" in status


SIGNED = {
    "edited": "md5: a0000000000000000000000000000000\n{dep}{out}",
    "not signed": "{dep}{out}",
    "with defaults": "md5: {md5}\nfrozen: false\ndesc: x\nwdir: .\n{dep}{out}  cache: true\n  push: true\n",
    "a changed option": "md5: {md5}\n{dep}{out}  cache: false\n",
    "frozen": "md5: {md5}\nfrozen: true\n{dep}{out}  desc: x\n",
    "no import": "{out}",
    "no import with an md5": "md5: a0000000000000000000000000000000\n{out}",
}


@pytest.mark.parametrize("name", SIGNED)
def test_a_file_whose_md5_does_not_fit_is_told(dvc: Dvc, root: Path, name: str, tmp_path: Path) -> None:
    lay(tmp_path, {"source": "1\n"})
    dvkf(root, "import-url", str(tmp_path / "source"), "f").ok()
    document = {**documents.load((root / "f.dvc").read_bytes(), "f.dvc")}
    dep = documents.dump({"deps": document["deps"]}).decode()
    out = documents.dump({"outs": document["outs"]}).decode()
    (root / "f.dvc").write_text(SIGNED[name].format(dep=dep, out=out, md5=document["md5"]))
    same(dvc, root, "status", "--json")
