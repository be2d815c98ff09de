"""Files of a cloned repository that ended in a traceback once: each is an error that names its file."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.tags import parse_tag_name
from dvkf_prefect.pipeline.plan.runcache import RunCache
from dvkf_prefect.repo import Repo

MD5 = "b026324c6904b2a9cb4b88d6d61c81d1"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one tracked folder, committed."""
    monkeypatch.chdir(tmp_path)
    make_repo(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1\n")
    assert main(["add", "-q", "d"]) == 0
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", "1"], check=True)
    return tmp_path


def _out(path: str) -> str:
    return f"outs:\n- md5: {MD5}\n  size: 5\n  hash: md5\n  path: {path}\n"


FILES = [
    ("status", "x.dvc", _out('"a\\0b"'), "x.dvc"),
    ("status", "x.dvc", "!!omap [a: 1]", "x.dvc"),
    ("status", "x.dvc", "outs: " + "[" * 20000 + "]" * 20000, "x.dvc"),
    ("status", "dvc.yaml", "stages: " + "{a: " * 5000 + "1" + "}" * 5000, "dvc.yaml"),
    ("status", "dvc.yaml", 'vars:\n- a: &a\n    b: *a\nstages: {s: {cmd: "echo ${a}"}}\n', "dvc.yaml"),
    ("repro", "dvc.yaml", 'stages:\n  s:\n    cmd: "echo a\\0b > o"\n    outs: [o]\n', "dvc.yaml"),
    ("push", ".dvc/config", "['remote \"a\"']\n    url = s3://a\0b\n[core]\n    remote = a\n", "config"),
    (
        "push", ".dvc/config",
        "['remote \"a\"']\n    url = remote://b/x\n['remote \"b\"']\n    url = remote://a/y\n[core]\n    remote = a\n",
        "a -> b -> a",
    ),
    ("checkout", ".dvc/tmp/rwlock", '{"write": {"/r/d": {"pid": 1' + "0" * 30 + ', "cmd": "x"}}}', "rwlock"),
    ("checkout", ".dvc/tmp/rwlock", '{"write": {"/r/d": {"pid": "1", "cmd": "x"}}}', "rwlock"),
    ("checkout", ".dvc/tmp/rwlock", "[" * 100000, "rwlock"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "name", "text", "named"), FILES)
def test_a_wrong_file_is_named(
    repository: Path, verb: str, name: str, text: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / name).write_text(text)
    assert main(verb.split()) != 0
    error = capsys.readouterr().err
    assert "unexpected" not in error
    assert named in error


def test_a_path_of_very_many_folders_is_told_and_listed(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "x.dvc").write_text(_out("a/" * 3000 + "b"))
    for verb in (
        ["list", "."],
        ["status"],
        ["checkout"],
        ["gc", "-w", "-f"],
        ["data", "status", "--granular"],
    ):
        main(verb)
        assert "unexpected" not in capsys.readouterr().err


@pytest.mark.parametrize("path", ["a\\u0000b", "a\\ud800b"])
def test_a_manifest_with_an_impossible_name_is_refused(
    repository: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f'[{{"md5": "{MD5}", "relpath": "{path}"}}]'.encode()
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    file = repository / ".dvc/cache/files/md5" / digest[:2] / f"{digest[2:]}.dir"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    (repository / "d.dvc").write_text(
        f"outs:\n- md5: {digest}.dir\n  size: 5\n  nfiles: 1\n  hash: md5\n  path: d\n"
    )
    assert main(["checkout", "-f"]) != 0
    error = capsys.readouterr().err
    assert "unexpected" not in error
    assert digest in error


def test_an_index_in_other_digits_is_no_index(repository: Path) -> None:
    (repository / "p.yaml").write_text("a: [1]")
    (repository / "dvc.yaml").write_text(
        'stages:\n  s:\n    cmd: echo 1 > o\n    params: [{p.yaml: ["a.²"]}]\n    outs: [o]\n'
    )
    assert main(["status", "-q"]) in (0, 1)


@pytest.mark.parametrize(
    "tagger",
    [
        "tagger E <e@e> 1700000000 +9900\n",
        "tagger E <e@e> 99999999999999999 +0000\n",
        "tagger E <e@e> 1 -2359\n",
        "",
    ],
)
def test_a_tag_of_any_time_leaves_the_registry_readable(repository: Path, tagger: str) -> None:
    (repository / "dvc.yaml").write_text("artifacts:\n  clf: {path: d, type: model}\n")
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", "2"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, stdout=subprocess.PIPE, text=True).stdout
    tag = f"object {head.strip()}\ntype commit\ntag clf@v1.0.0\n{tagger}\nm\n"
    command = ["git", "hash-object", "-t", "tag", "-w", "--literally", "--stdin"]
    rev = subprocess.run(command, input=tag, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    subprocess.run(["git", "update-ref", "refs/tags/clf@v1.0.0", rev], check=True)
    assert [version.version for version in ModelRegistry(Repo.open()).list("clf")] == ["v1.0.0"]


def test_a_version_of_endless_digits_is_no_version() -> None:
    assert parse_tag_name("m@v1.0.0") is not None
    assert parse_tag_name("m@v" + "1" * 5000 + ".0.0") is None
    assert parse_tag_name("m@v1.0.0-" + "1" * 5000) is None


@pytest.mark.parametrize(
    "out",
    [
        "{path: o, md5: ../../../../../../etc/passwd}", f"{{path: 1, md5: {MD5}}}", "{path: o, md5: 1}", "3",
        "{path: o}",
        f"{{path: o, md5: {MD5}, size: -1}}", "{{path: o, md5: {}, size: 9{}}}".format(MD5, "9" * 30),
    ],
)  # fmt: skip
def test_a_run_of_the_cache_that_is_wrong_is_passed_over(tmp_path: Path, out: str) -> None:
    """Entries come from remotes: a digest that is none would be a path to anywhere."""
    key = "a" * 64
    folder = tmp_path / "runs" / key[:2] / key
    folder.mkdir(parents=True)
    (folder / ("b" * 64)).write_text(f"cmd: echo\nouts:\n- {out}\n")
    assert RunCache(tmp_path).find(key) is None
    (folder / ("c" * 64)).write_text(f"cmd: echo\nouts:\n- {{path: o, md5: {MD5}, size: 2}}\n")
    found = RunCache(tmp_path).find(key)
    assert found is not None
    assert found["outs"][0]["path"] == "o"
