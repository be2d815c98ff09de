"""Dependencies outside the repository: recorded and told of as the real `dvc` does."""

from __future__ import annotations

import functools
import http.server
import json
from pathlib import Path

import pytest
from servers import serving

from dvkf_prefect.cli import main

from .test_pipeline_dvc import DVC, run

PIPELINE = """\
stages:
  b:
    cmd: cat a > b
    deps: [{root}/a, {root}/in]
    outs: [b]
  a:
    cmd: cat {out}/f > a
    deps: [{out}/f, {out}/dir, "remote://store/f", "remote://store/dir", "{url}/w", ../out/f]
    outs: [a]
  c:
    wdir: sub
    cmd: cat ../../out/f > c
    deps: [../../out/f]
    outs: [c]
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url(tmp_path: Path):
    (tmp_path / "web").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        yield f"http://127.0.0.1:{port}"


def test_both_record_and_tell_the_same(tmp_path: Path, url: str, capsys, monkeypatch) -> None:
    """Stages that read a path or a url outside were refused."""
    out, web = tmp_path / "out", tmp_path / "web"
    (out / "dir/sub").mkdir(parents=True)
    for path, text in ((out / "f", "1"), (out / "dir/a", "2"), (out / "dir/sub/b", "3"), (web / "w", "4")):
        path.write_text(text)
    (out / "f").chmod(0o755)
    roots = [tmp_path / name for name in ("they", "mine")]
    for root in roots:
        (root / "sub").mkdir(parents=True)
        run(root, "git", "init", "-q")
        run(root, str(DVC), "init", "-q")
        run(root, str(DVC), "remote", "add", "-q", "store", str(out))
        (root / "in").write_text("5")
        (root / "dvc.yaml").write_text(PIPELINE.format(root=root, out=out, url=url))
    they, mine = roots
    monkeypatch.chdir(mine)

    def compare(*, there: bool = True) -> dict[str, object]:
        states = [json.loads(run(they, str(DVC), "status", "--json"))]
        capsys.readouterr()
        assert main(["status", "--json"]) == 0
        states.append(json.loads(capsys.readouterr().out))
        assert states[0] == states[1]
        if there:
            run(they, str(DVC), "repro", "-q")
            assert main(["repro", "-q"]) == 0
            assert main(["status"]) == 0
            locks = [(root / "dvc.lock").read_text().replace(str(root), "ROOT") for root in roots]
            assert locks[0] == locks[1]
        return states[0]

    compare()
    assert compare() == {}
    (out / "f").write_text("9")
    (out / "dir/a").unlink()
    (web / "w").write_text("changed")
    assert list(compare()) == ["a", "c"]
    assert (mine / "sub/c").read_text() == "9"
    (out / "dir/sub/b").write_text("8")  # of the same size
    changed = compare()["a"]
    assert changed == [{"changed deps": {f"{out}/dir": "modified", "remote://store/dir": "modified"}}]
    (out / "f").unlink()
    compare(there=False)
    assert main(["repro"]) == 255
    assert f"missing dependencies: {out}/f, remote://store/f, ../out/f" in capsys.readouterr().err
