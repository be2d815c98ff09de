"""In a clean folder, what a stage reads and does not declare is not there when it runs, and is named."""

from __future__ import annotations

import sys

import pytest

from dvkf_prefect.errors import StageFailedError, StageWriteError
from dvkf_prefect.formats.digest import digest_bytes, digest_file

from .conftest import Project

LANGUAGES = {
    "sh": "cat data/rows.csv > out",
    "sh redirection": "sort < data/rows.csv > out",
    "a folder above": "cd data && cat rows.csv > ../out",
    "python open": f"{sys.executable} main.py data/rows.csv",
    "python in the script": f"{sys.executable} fixed.py",
    "awk": "awk '{print}' data/rows.csv > out",
    "grep": "grep 1 data/rows.csv > out",
}


@pytest.fixture
def code(project: Project) -> Project:
    project.write("data/rows.csv", "1\n")
    project.write("src/rows.py", "ROWS = 1\n")
    project.write("src/inner/__init__.py", "")
    project.write("src/inner/deep.py", "DEEP = 1\n")
    project.write("settings.toml", "a = 1\n")
    project.write("main.py", "import sys\nopen('out', 'w').write(open(sys.argv[1]).read())\n")
    project.write("fixed.py", "open('out', 'w').write(open('data/rows.csv').read())\n")
    return project


def fails(project: Project, cmd: str, deps: tuple[str, ...]) -> str:
    listed = "".join(f"    - {dep}\n" for dep in deps)
    project.write("dvc.yaml", f"stages:\n  s:\n    cmd: {cmd!r}\n    deps:\n{listed}    outs: [out]\n")
    with pytest.raises(StageFailedError) as caught:
        project.repro(in_place=False)
    return str(caught.value)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_file_that_is_read(code: Project, name: str) -> None:
    said = fails(code, LANGUAGES[name], ("main.py", "fixed.py"))
    path = "data" if name == "a folder above" else "data/rows.csv"
    assert f"stage 's' sees only its declared dependencies: '{path}' is in the repository" in said
    assert "not in `deps`" in said


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("import rows", "src/rows.py"),
        ("from rows import ROWS", "src/rows.py"),
        ("from inner.deep import DEEP", "src/inner/deep.py"),
        ("import inner", "src/inner/__init__.py"),
        ("import src.inner.deep", "src/inner/deep.py"),
        ("import tomllib; tomllib.load(open('settings.toml', 'rb'))", "settings.toml"),
        ("import pathlib; (pathlib.Path.cwd() / 'settings.toml').read_text()", "settings.toml"),
    ],
)
def test_a_module_or_settings(code: Project, line: str, named: str) -> None:
    code.write("src/go.py", f"{line}\n")
    said = fails(code, f"{sys.executable} src/go.py", ("src/go.py",))
    hint = said.splitlines()[-1]
    assert hint.startswith("stage 's' sees only its declared dependencies: ") and f"'{named}'" in hint


def test_in_another_folder(code: Project) -> None:
    code.write("src/go.py", "open('../data/rows.csv')\n")
    code.write(
        "dvc.yaml",
        f"stages:\n  s:\n    wdir: src\n    cmd: {sys.executable} go.py\n    deps: [go.py]\n    outs: [out]\n",
    )
    with pytest.raises(StageFailedError, match=r"'data/rows\.csv' is in the repository"):
        code.repro(in_place=False)


def test_what_is_missing_altogether_is_not_blamed_on_the_stage(code: Project) -> None:
    said = fails(code, "cat data/none.csv > out", ("main.py",))
    assert "sees only its declared dependencies" not in said


@pytest.mark.parametrize("kind", ["copy", "hardlink", "symlink"])
def test_data_is_linked_as_the_settings_say_and_whoever_writes_to_it_damages_nothing(
    project: Project, kind: str
) -> None:
    """All data was copied into clean folders, whatever cache.type says."""
    project.write("data/a", "1\n")
    project.write("data/b", "2\n")
    project.write("one", "3\n")
    project.repo.add(["data", "one"])
    # The workspace keeps copies of its own; what is linked from now on is the stage's alone.
    with open(project.root / ".dvc/config", "a") as config:
        config.write(f"[cache]\n    type = {kind}\n")
    look = (
        "import os; "
        "open('out', 'w').write(str([(os.path.islink(p), os.stat(p).st_ino) for p in ('data/a', 'one')]))"
    )
    project.write("look.py", look)
    text = "stages:\n  s:\n    cmd: {cmd}\n    deps: [data, one, look.py]\n    outs: [out]\n"
    project.write("dvc.yaml", text.format(cmd=f"{sys.executable} look.py"))
    project.repro(in_place=False)
    objects = [project.repo.cache.path(digest_bytes(data)) for data in (b"1\n", b"3\n")]
    same = [(kind == "symlink", path.stat().st_ino) for path in objects]
    assert (project.read("out") == str(same)) == (kind != "copy")

    for failing in ("", "; false"):
        cmd = f"chmod u+w data/a one; echo x >> data/a; echo y > one; cp one out{failing}"
        project.write("dvc.yaml", text.format(cmd=cmd))
        expected = StageFailedError if failing else StageWriteError
        with pytest.raises(expected, match="false" if failing else "'data/a', 'one'"):
            project.repro(in_place=False)
        for digest in (digest_bytes(b"1\n"), digest_bytes(b"2\n"), digest_bytes(b"3\n")):
            assert digest_file(project.repo.cache.path(digest)) == digest
        assert project.read("data/a") == "1\n" and project.read("one") == "3\n"
        assert not project.repo.status()

    # Where nobody else has the content, the object is at least not taken for what it was.
    if kind != "copy":
        (project.root / "one").unlink()
        with pytest.raises(StageWriteError, match="wrote to data that is linked to the cache: 'one'"):
            project.write("dvc.yaml", text.format(cmd="chmod u+w one; echo y > one; cp one out"))
            project.repro(in_place=False)
        assert not objects[1].exists()
