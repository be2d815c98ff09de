"""What public repositories hold, next to the real `dvc`: the same answers from both."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Dvc, dvkf, git

from dvkf_prefect.data.repo import Repo

BROKEN = "no: [yaml"
OUT = "outs:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n  size: 0\n  hash: md5\n  path: {}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    Repo.init(folder)
    return folder


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def same(dvc: Dvc, root: Path, *arguments: str) -> object:
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
    assert isinstance(status, dict)
    assert 0 < len(status) < 2 * len(folders) + 2


def test_a_broken_file_that_git_ignores_does_not_matter(dvc: Dvc, root: Path) -> None:
    lay(root, {"env/pkg/dvc.yaml": BROKEN, ".gitignore": "env/\n", "x.dvc": OUT.format("x")})
    assert same(dvc, root, "status", "--json") == {"x.dvc": [{"changed outs": {"x": "not in cache"}}]}
    shutil.rmtree(root / ".git")
    assert dvkf(root, "status").code != 0
