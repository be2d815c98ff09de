"""Modules in the folder that a command is run in: none is imported by a process of ours, whatever its name."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.processes.leash import module_argv
from dvkf_prefect.serving.local import LocalServing

MODULES = (
    "uvicorn", "joblib", "fastapi", "kfp", "json", "argparse", "random", "ruamel", "pathspec", "importlib_metadata",
    "runpy", "site", "sitecustomize", "usercustomize", "yaml", "rich", "subprocess", "typing", "prefect",
)  # fmt: skip


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose folder holds modules of well-known names; each leaves a mark when it is imported."""
    root = tmp_path / "r"
    root.mkdir()
    monkeypatch.chdir(root)
    make_repo(root)
    for name in MODULES:
        (root / f"{name}.py").write_text(f"open({str(tmp_path / 'PWNED')!r} + '-{name}', 'w')\n")
    package = root / "dvkf_prefect"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'PWNED')!r} + '-package', 'w')\n")
    return tmp_path


def _marks(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("PWNED"))


@pytest.mark.parametrize("arguments", [["status"], ["--version"], ["list", ".", "-R"], ["doctor"]])
def test_the_command_line_imports_nothing_of_the_folder(trap: Path, arguments: list[str]) -> None:
    (
        trap / "r" / "dvkf_prefect" / "__init__.py"
    ).unlink()  # `python -m` itself prefers a package of that name
    (trap / "r" / "dvkf_prefect").rmdir()
    for command in (
        [sys.executable, "-m", "dvkf_prefect.cli"],
        [str(Path(sys.executable).with_name("dvkf"))],
    ):
        subprocess.run([*command, *arguments], check=False, stdout=subprocess.DEVNULL)
    assert _marks(trap) == []


def test_processes_of_ours_import_nothing_of_the_folder(trap: Path) -> None:
    done = subprocess.run(
        module_argv("dvkf_prefect.serving.server", "--help"), check=False, capture_output=True, text=True
    )
    assert "--model" in done.stdout, done.stderr
    assert _marks(trap) == []


def test_a_served_model_and_a_run_import_nothing_of_the_folder(trap: Path) -> None:
    model = trap / "m.pkl"
    model.write_bytes(b"x")  # no model: the server ends, with all that it needs imported
    with pytest.raises(Exception, match="unpickled"):
        LocalServing(trap / "state").deploy(
            "m", "v1", model, hashlib.md5(b"x", usedforsecurity=False).hexdigest(), timeout=60
        )
    root = trap / "r"
    (root / "in").write_text("1")
    (root / "dvc.yaml").write_text("stages:\n  s:\n    cmd: cp in out\n    deps: [in]\n    outs: [out]\n")
    assert main(["repro"]) == 0
    assert (root / "out").read_text() == "1"
    assert _marks(trap) == []


def test_a_user_s_own_search_path_holds(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONPATH, and a package that is run with `-m` out of the current folder, work as ever."""
    own = trap / "own"
    (own / "pkg").mkdir(parents=True)
    (own / "pkg" / "__init__.py").write_text("import dvkf_prefect\n")
    (own / "pkg" / "__main__.py").write_text("import pkg.other\n")
    (own / "pkg" / "other.py").write_text("print('other')\n")
    done = subprocess.run(
        [sys.executable, "-m", "pkg"], cwd=own, check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == "other\n"
    monkeypatch.setenv("PYTHONPATH", str(own))
    assert (
        subprocess.run(module_argv("pkg"), check=True, stdout=subprocess.PIPE, text=True).stdout == "other\n"
    )


def test_a_stage_s_command_keeps_its_environment(trap: Path) -> None:
    root = trap / "r"
    command = "python3 -c 'import os; print(os.environ.get(\"PYTHONSAFEPATH\"))' > out"
    (root / "dvc.yaml").write_text(f"stages:\n  s:\n    cmd: {command}\n    outs: [out]\n")
    assert main(["repro"]) == 0
    assert (root / "out").read_text() == "None\n"
