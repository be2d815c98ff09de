"""Dependencies outside the repository that nobody should read to the end, or whose urls hold a password."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main

STAGE = "stages:\n  a:\n    cmd: echo > a\n    deps: {deps}\n    outs: [a]\n"
LOCK = """\
schema: '2.0'
stages:
  a:
    cmd: echo > a
    deps:
    - path: {path}
      hash: md5
      md5: d41d8cd98f00b204e9800998ecf8427e{suffix}
      size: 0
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repo"
    make_repo(root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVKF_CONNECT_SECONDS", "0.1")
    return root


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("path", ["/", "/dev/zero", "/proc/kmsg", "/proc", "{fifo}"])
def test_a_look_reads_no_disk_no_device_and_no_pipe(
    root: Path, path: str, recorded: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(root.parent / "fifo")
    path = path.replace("{fifo}", str(root.parent / "fifo"))
    (root / "dvc.yaml").write_text(STAGE.format(deps=f"[{path}]"))
    if recorded:
        suffix = ".dir\n      nfiles: 1" if Path(path).is_dir() else ""
        (root / "dvc.lock").write_text(LOCK.format(path=path, suffix=suffix))
    for verb in (["status"], ["repro", "--dry"]):
        assert main(verb) in (0, 255)
    assert "Traceback" not in capsys.readouterr().err


def test_the_password_of_a_url_is_not_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://user:s3cretpw@127.0.0.1:1/w"
    (root / "dvc.yaml").write_text(STAGE.format(deps=f"['{url}']"))
    (root / "dvc.lock").write_text(LOCK.format(path=url, suffix=""))
    for verb in (["status"], ["status", "--json"], ["repro", "--dry"], ["repro"]):
        main(verb)
        shown = capsys.readouterr()
        assert "s3cretpw" not in shown.out + shown.err
        assert "127.0.0.1:1/w" in shown.out + shown.err
