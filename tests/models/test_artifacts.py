"""The catalogue of dvc.yaml's artifacts, and their files by version or stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dvkf_prefect.cli import main
from dvkf_prefect.errors import ModelNotFoundError, OutputError
from dvkf_prefect.models.catalogue import get_artifact, list_artifacts
from dvkf_prefect.repo import Repo

from .conftest import Project


def released(project: Project, remote: Path) -> None:
    """Two versions on a remote: the first holds prod; dvc.yaml of the newest declares one more artifact."""
    with project.repo.config.edit() as sections:
        sections["remote"]["store"] = {"url": str(remote)}
        sections["core"]["remote"] = "store"
    for number in (1, 2):
        project.train(f"weights {number}")
        Repo.open(project.root).push()
        project.registry.register(("ml:" if project.root != project.top else "") + "classifier")
    (project.root / "sub").mkdir()
    (project.root / "sub" / "dvc.yaml").write_text(
        "artifacts:\n  net: {path: ../model.bin, type: model, desc: The net, labels: [a, b]}\n"
    )
    project.commit()


def test_list(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    released(project, tmp_path / "remote")
    project.registry.assign("classifier", "v0.0.1", "prod")
    found = list_artifacts(project.repo)
    assert list(found) == ["classifier", "sub:net"]
    assert (found["classifier"].latest, found["classifier"].stages) == ("v0.0.2", {"prod": "v0.0.1"})
    assert (found["sub:net"].declared.path, found["sub:net"].latest) == ("model.bin", None)
    assert list(list_artifacts(project.repo, "HEAD~1")) == ["classifier"]
    monkeypatch.chdir(project.root)
    assert main(["artifacts", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sub:net"]["desc"] == "The net"
    assert main(["artifacts", "list"]) == 0
    assert "#prod v0.0.1" in capsys.readouterr().out


def test_get_by_version_and_stage(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    released(project, tmp_path / "remote")
    project.registry.assign("classifier", "v0.0.1", "prod")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    folder, url = str(project.root), f"file://{project.root}"
    assert main(["artifacts", "get", folder, "classifier"]) == 0
    assert (here / "model.bin").read_text() == "weights 2"
    assert main(["artifacts", "get", url, "classifier", "--stage", "prod", "-o", "old"]) == 0
    assert (here / "old").read_text() == "weights 1"
    assert main(["artifacts", "get", folder, "classifier", "--rev", "v0.0.1"]) == 255
    assert "already exists" in capsys.readouterr().err
    assert main(["artifacts", "get", folder, "classifier", "--rev", "v0.0.1", "--force", "-j", "1"]) == 0
    assert (here / "model.bin").read_text() == "weights 1"
    capsys.readouterr()
    assert main(["artifacts", "get", folder, "classifier", "--show-url", "--remote", "store"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/remote/files/md5/")
    with pytest.raises(ModelNotFoundError, match=r"no version '#dev'.*versions: v0.0.2, v0.0.1"):
        get_artifact(folder, "classifier", "#dev")
    with pytest.raises(ModelNotFoundError, match=r"no version 'latest'.*versions: none"):
        get_artifact(folder, "sub:net")
    with pytest.raises(OutputError):
        get_artifact(folder, "classifier")


def test_the_same_as_dvc(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own `artifacts get` downloads the same files for the same words."""
    import subprocess
    import sys

    released(project, tmp_path / "remote")
    project.registry.assign("classifier", "v0.0.1", "prod")
    monkeypatch.chdir(tmp_path)
    words = ["artifacts", "get", str(project.root), "classifier", "--stage", "prod"]
    subprocess.run([sys.executable, "-m", "dvc", *words, "-o", "theirs"], check=True, capture_output=True)
    assert main([*words, "-o", "ours"]) == 0
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_repository_below_the_top_of_git(tmp_path: Path) -> None:
    project = Project(tmp_path / "mono", subdir="ml")
    released(project, tmp_path / "remote")
    assert "ml:classifier" in list_artifacts(project.repo)
    got = get_artifact(str(project.root), "ml:classifier", "v0.0.1", out=tmp_path / "got")
    assert got.read_text() == "weights 1"
