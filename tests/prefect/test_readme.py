"""The sessions and programs of the README and of the documentation run, and print what the pages show.

A ``console`` block is a terminal session: bash runs each line after ``$``, which must end with 0. The lines below it
are the output, in which ``...`` stands for any text. A ``python`` block is a program: the comment below its last
``print`` is the end of its output. The blocks of a page run one after the other in a copy of the repository of
`start`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.local import LocalServing

from .conftest import TRAIN as SIGNS

TREE = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)```(console|python)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
PAGES = {
    str(page.relative_to(TREE)): page
    for page in [TREE / "README.md", *sorted((TREE / "docs").rglob("*.md"))]
    # The test of distributed trainings runs the program of that page in several processes.
    if page.stem != "training" and BLOCK.search(page.read_text())
}

PREPARE = """\
from pathlib import Path

rows = "".join(path.read_text() for path in sorted(Path("data/train").iterdir()))
Path("rows.csv").write_text(rows)
print(f"prepared {rows.count(chr(10))} rows")
"""
TRAIN = """\
import json
from pathlib import Path

depth = int(Path("params.yaml").read_text().split(":")[1])
rows = Path("rows.csv").read_text().split()
Path("model.json").write_text(json.dumps({"depth": depth, "rows": len(rows)}))
Path("metrics.json").write_text(json.dumps({"rows": len(rows)}))
print(f"trained on {len(rows)} rows")
"""


def run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def commit(root: Path, message: str) -> None:
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture
def start(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository that the pages start in, made by the real `dvc`, with what lies beside it."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
    if not (made / "new.csv").exists():
        root = made / "my-repository"
        (root / "data/train").mkdir(parents=True)
        (root / "data/train/a.csv").write_text("-3,0,0\n-2,1,0\n-1,2,0\n1,0,1\n2,1,1\n3,2,1\n")
        tutorial = (TREE / "docs/tutorial.md").read_text()
        (root / "dvc.yaml").write_text(re.findall(r"```yaml\n(.*?)```", tutorial, re.DOTALL)[0])
        for name, text in {"prepare.py": PREPARE, "train.py": TRAIN, "params.yaml": "depth: 2\n"}.items():
            (root / name).write_text(text)
        images = made / "images"
        (images / "cats").mkdir(parents=True)
        (images / "cats/1.txt").write_text("1\n")
        for folder, data, store in ((root, "data/train", "../store"), (images, "cats", "../images-store")):
            run(folder, "git", "init", "--quiet", "--initial-branch", "main")
            run(folder, "dvc", "init", "--quiet")
            run(folder, "dvc", "remote", "add", "--quiet", "--default", "store", store)
            run(folder, "dvc", "add", "--quiet", data)
            if folder == root:
                run(folder, "dvc", "repro", "--quiet")
            commit(folder, "Data and pipeline")
            run(folder, "dvc", "push", "--quiet")
        run(images, "git", "tag", "v1")
        (made / "new.csv").write_text("-6,1,0\n6,1,1\n")
    folder = tmp_path / "start"
    shutil.copytree(made, folder, symlinks=True)
    return folder


class Reader:
    """Follows a page in a folder, which its sessions may leave for another."""

    def __init__(self, folder: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.here = folder
        self.page = page
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.patch = monkeypatch
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def session(self, text: str) -> None:
        for entry in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, shown = entry.partition("\n")
            note = self.folder / "here"
            script = f"{command}\ncode=$?\npwd > '{note}'\nexit $code"
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=self.here,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert done.returncode == 0, f"{self.page}: $ {command}\n{done.stdout}"
            self.here = Path(note.read_text().strip())
            if shown.strip():
                self.compare(command, shown, done.stdout)

    def compare(self, command: str, shown: str, said: str) -> None:
        lines = [re.escape(line.rstrip()).replace(r"\.\.\.", ".*?") for line in shown.rstrip().splitlines()]
        plain = "\n".join(line.rstrip() for line in said.rstrip().splitlines())
        assert re.fullmatch("\n".join(lines), plain, re.DOTALL), f"{self.page}: $ {command}\n{said}"

    def program(self, text: str, capsys: pytest.CaptureFixture[str]) -> str:
        # A flow is found by its file, so the program needs one.
        file = self.programs / f"program{len(list(self.programs.iterdir()))}.py"
        file.write_text(text)
        self.patch.chdir(self.here)
        capsys.readouterr()
        self.names["__file__"] = str(file)
        exec(compile(text, str(file), "exec"), self.names)  # the page's own text
        said = capsys.readouterr().out
        shown = re.search(r"^ *print\(.*\n((?:# .*\n)+)(?!.*^ *print\()", text, re.DOTALL | re.MULTILINE)
        if shown:
            expected = "\n".join(line.removeprefix("# ") for line in shown[1].splitlines())
            assert said.rstrip().endswith(expected), f"{self.page}: {said}"
        return said


@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run(
    name: str,
    start: Path,
    prefect_server: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader = Reader(start, name, monkeypatch)
    if "serving" in name or "promote" in name:
        prepare_a_model(start / "my-repository")
    if "tables" in name:
        prepare_tables(start)
        reader.here = start / "tables"
    said = ""
    try:
        for _, kind, text in BLOCK.findall(PAGES[name].read_text()):
            if kind == "console":
                reader.session(text)
            else:
                said += reader.program(text, capsys)
    finally:
        if (start / "servers").is_dir():
            for endpoint in LocalServing(start / "servers").list():
                LocalServing(start / "servers").stop(endpoint.model)
    if name == "README.md":
        check_the_readme(reader, said, capsys)


def prepare_a_model(root: Path) -> None:
    """Let the pipeline write a model that the server can load."""
    (root / "train.py").write_text(SIGNS)
    described = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(described.replace("model.json", "model.joblib"))
    run(root, sys.executable, "-m", "dvkf_prefect.cli", "repro", "--quiet")
    commit(root, "A model to serve")


def prepare_tables(start: Path) -> None:
    """Two revisions of a table."""
    root = start / "tables"
    run(start, "git", "init", "--quiet", str(root))
    repo = Repo.init(root)
    (root / "data").mkdir()
    for rev, rows in (("v1", "1,a\n2,b\n9,old\n"), ("v2", "1,a\n2,c\n3,d\n")):
        (root / "data/users.csv").write_text("id,name\n" + rows)
        repo.add(["data/users.csv"])
        commit(root, rev)
        run(root, "git", "tag", rev)


def check_the_readme(reader: Reader, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With nothing new its flow registers nothing; after a change it registers the commit it made."""
    assert "data/train (" in said
    assert "False 0\ndata/train/new.csv " in said
    repo = Repo.open(reader.here)
    assert ModelRegistry(repo).list() == []
    (repo.root / "params.yaml").write_text("depth: 3\n")
    flow = next(text for _, kind, text in BLOCK.findall(PAGES["README.md"].read_text()) if kind == "python")
    reader.program(flow, capsys)
    (version,) = ModelRegistry(repo).list("signs")
    assert version.version == "v0.0.1"
    assert repo.git is not None and version.rev == repo.git.head()
