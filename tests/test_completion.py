"""Scripts that complete commands, and the run of one stage by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import VERBS, main


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_all_verbs_and_options_are_completed(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", "--shell", shell]) == 0
    script = capsys.readouterr().out
    assert [verb for verb in VERBS if verb not in script] == []
    assert "force-downstream" in script
    if shell == "bash":
        (tmp_path / "script").write_text(script)
        subprocess.run(["bash", "-n", str(tmp_path / "script")], check=True)


def test_one_stage_runs_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dvc = "stages:\n  a:\n    cmd: echo x >> runs; echo 1 > a.txt\n    outs: [a.txt]\n"
    dvc += "  b:\n    cmd: echo y >> runs; cat a.txt > b.txt\n    deps: [a.txt]\n    outs: [b.txt]\n"
    repo = make_repo(tmp_path / "repo", {"dvc.yaml": dvc})
    monkeypatch.chdir(repo.root)
    assert main(["repro", "--quiet"]) == 0
    assert main(["run", "b", "--quiet"]) == 0
    assert (repo.root / "runs").read_text().split() == ["x", "y", "y"]
    assert main(["run", "c"]) != 0
