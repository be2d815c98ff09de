"""The command line: what it prints and ends with, next to what `dvc` does."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dvkf_prefect import cli
from dvkf_prefect.data.git.command import Git
from dvkf_prefect.errors import explained
from dvkf_prefect.repo import Repo


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    monkeypatch.chdir(folder)
    assert cli.main(["init", "-q"]) == 0
    assert cli.main(["remote", "add", "-d", "store", "../store"]) == 0
    (folder / "data").mkdir()
    (folder / "data" / "a").write_text("a")
    (folder / "data" / "b").write_text("bb")
    return folder


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(args) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def test_a_day_with_data(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "add", "data")
    assert said.startswith("data: 2 file(s), 3 B, ")
    assert "git add .gitignore data.dvc" in said
    assert run(capsys, "push").startswith("3 file(s) pushed (")
    assert run(capsys, "push") == "Everything is up to date.\n"
    assert run(capsys, "status") == "Data and pipelines are up to date.\n"
    assert run(capsys, "status", "-c") == "Cache and remote 'store' are in sync.\n"
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", "one"], check=True)
    (root / "data" / "c").write_text("c")
    assert run(capsys, "status") == "data.dvc:\n\tchanged outs:\n\t\tmodified:           data\n"
    assert json.loads(run(capsys, "status", "--json")) == {
        "data.dvc": [{"changed outs": {"data": "modified"}}]
    }
    assert cli.main(["status", "-q"]) == 1
    assert run(capsys, "diff") == ("Added:\n    data/c\n\nModified:\n    data/\n\nfiles summary: 1 added\n")
    assert "data/c" in run(capsys, "checkout", code=255)
    assert run(capsys, "checkout", "--force") == "M\tdata/\n"
    shutil.rmtree(root / ".dvc/cache")
    shutil.rmtree(root / "data")
    assert run(capsys, "pull").startswith("A\tdata/\n3 file(s) fetched")
    assert run(capsys, "checkout", "--summary") == "No changes.\n"


def test_status_json_is_dvcs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["add", "-q", "data"])
    (root / "data" / "a").write_text("other")
    theirs = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(run(capsys, "status", "--json")) == json.loads(theirs)


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("puhs",), "push"),
        (("push", "dta"), "data"),
        (("repro", "trian"), "train"),
        (("repro", "model.tx"), "model.txt"),
        (("freeze", "trian"), "train"),
        (("push", "-r", "stoer"), "store"),
    ],
)
def test_a_misspelt_name_gets_a_hint(
    root: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], near: str
) -> None:
    (root / "dvc.yaml").write_text("stages:\n  train:\n    cmd: touch model.txt\n    outs: [model.txt]\n")
    cli.main(["add", "-q", "data"])
    for given, said in ((words, True), ((*words[:-1], "zzzzzz"), False)):
        with contextlib.suppress(SystemExit):
            assert cli.main(given)
        assert (f"Did you mean '{near}'?" in capsys.readouterr().err) == said


def test_every_verb_hints_at_the_nearest_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hints existed for a few verbs alone, and for neither options nor revisions."""
    (root / "dvc.yaml").write_text("stages:\n  train:\n    cmd: touch model.txt\n    outs: [model.txt]\n")
    cli.main(["add", "-q", "data"])
    git = Git(root)
    git.commit(["data.dvc", ".gitignore"], "Track data")
    git.run("branch", "release")
    expected = {
        ("push", "--jbos", "4"): "--jobs",
        ("get", "--rve", "release"): "--rev",
        ("diff", "relaese"): "release",
        ("metrics", "diff", "relaese"): "release",
        ("get", ".", "data", "--rev", "relaese", "-o", "x"): "release",
        ("get", root.as_uri(), "data", "--rev", "relaese", "-o", "x"): "release",
        ("gc", "--rev", "relaese", "--dry"): "release",
        ("get", ".", "dta", "-o", "x"): "data",
        ("list", ".", "dta"): "data",
        ("diff", "--targets", "dta"): "data",
        ("verify", "dta"): "data",
        ("add", "dta"): "data",
        ("move", "dta", "x"): "data",
        ("checkout", "DATA"): "data",
        ("unprotect", "dta"): "data",
        ("remove", "dta.dvc"): "data.dvc",
        ("remove", "trian"): "train",
        ("remote", "default", "stoer"): "store",
        ("remote", "modify", "store", "ulr", "x"): "url",
        ("config", "core.remoet", "x"): "remote",
        ("config", "cor.remote", "x"): "core",
    }
    for words, near in expected.items():
        with contextlib.suppress(SystemExit):
            assert cli.main(words)
        said = capsys.readouterr().err
        assert said.rstrip().endswith(f". Did you mean '{near}'?"), words


def test_an_option_without_a_similar_one_gets_no_hint(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("checkout", "--rev", "x"), ("model", "deploy", "m", "--stage", "prod")):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        said = capsys.readouterr().err
        assert ended.value.code == 254
        # The usage is that of the command.
        assert f"usage: dvkf {words[0]}" in said
        assert "Did you mean" not in said


def test_a_folder_to_change_to_is_named_with_the_reason(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "file").write_text("")
    for folder, why in (
        ("nowhere", "no such file or directory. Create it, or correct the path."),
        ("file", "not a directory. Name a folder, or remove the file in its place."),
    ):
        assert cli.main(["--cd", folder, "status"]) == 255
        assert capsys.readouterr().err == f"ERROR: --cd '{folder}': {why}\n"


def test_an_error_of_the_system_says_what_to_do(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was a bare `[Errno 21]`, or named a file under a passing name."""
    assert explained(PermissionError(13, "Permission denied", "x/.1a2b.dvkf-tmp")).startswith("x: permission")
    assert explained(OSError(28, "No space left on device")).endswith(
        "device. Free some space, and run the command again."
    )
    (root / "dvc.yaml").mkdir()
    assert cli.main(["repro"]) == 255
    assert capsys.readouterr().err == "ERROR: no stage is in 'dvc.yaml'. Add one with `dvkf stage add`.\n"
    assert cli.main(["stage", "add", "-n", "x", "true"]) == 255
    said = capsys.readouterr().err
    assert said.endswith("dvc.yaml: is a directory. Name a file, or remove the folder in its place.\n")
    (root / "dvc.yaml").rmdir()
    (root / "metrics.json").write_text('{"acc": 1}')
    assert cli.main(["metrics", "show", "metrcs.json"]) == 0
    said = capsys.readouterr().err
    assert "cannot be read: no such file or directory. " in said
    assert said.endswith(" Did you mean 'metrics.json'?\n")
    assert cli.main(["lineage", "--data", "dta"]) == 0
    assert capsys.readouterr().out == "No version learned from 'dta'. Did you mean 'data'?\n"


def test_the_verb_is_the_first_word(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any later word that is a verb's name was taken for the verb: `modl list` offered `list` alone."""
    with pytest.raises(SystemExit):
        cli.main(["modl", "list"])
    assert "Did you mean 'model'?" in capsys.readouterr().err
    (root / "list").mkdir()
    assert cli.main(["--cd", "list", "root"]) == 0
    assert capsys.readouterr().out == "..\n"


def test_cloud_status_names_each_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["add", "-q", "data"])
    said = run(capsys, "status", "-c")
    assert "new:                data" in said
    assert "new:                data/a" in said
    assert cli.main(["status", "-c", "-q"]) == 1


def test_targets_are_taken_from_the_current_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "sub").mkdir()
    os.chdir(root / "sub")
    (root / "sub" / "x").write_text("x")
    assert run(capsys, "add", "x").startswith("sub/x: 1 file(s)")
    assert cli.main(["add", "-q", "../data"]) == 0
    assert cli.main(["push", "-q", "x.dvc"]) == 0
    assert sum(p.is_file() for p in (root.parent / "store/files").rglob("*")) == 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["push", "-r", "nope"], 1, "remote 'nope' doesn't exist"),
        (["add", "missing"], 1, "'missing' does not exist"),
        (["checkout", "unknown"], 255, "'unknown' is not tracked"),
        (["config", "nothing.known", "1"], 251, "nothing"),
        (["remote", "modify", "stroe", "url", "x"], 251, "'stroe' doesn't exist. Did you mean 'store'?"),
        (["remote", "modify", "store", "surprise", "1"], 251, "unknown option 'surprise'"),
        (["remote", "add", "store", "elsewhere"], 251, "already exists"),
        (["diff", "no-such-rev"], 1, "unknown git revision"),
        (["model", "show", "digits"], 255, "digits"),
        (["repro", "nothing"], 255, "nothing"),
    ],
)
def test_errors_say_what_is_wrong(
    root: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, message: str
) -> None:
    if args[0] == "diff":
        subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    said = run(capsys, *args, code=code)
    assert said.startswith("ERROR: ")
    assert message in said


def test_outside_a_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "dvkf init" in run(capsys, "--cd", str(tmp_path), "status", code=253)


@pytest.mark.parametrize("args", [["no-such-verb"], ["push", "-j", "0"], ["add"]])
def test_a_wrong_command_line_ends_with_254(args: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    assert ended.value.code == 254


@pytest.mark.parametrize(
    "args",
    [
        ["remote", "list"],
        ["config", "-l"],
        ["config", "core.remote"],
        ["remote", "default"],
    ],
)
def test_settings_are_shown_as_dvc_shows_them(
    root: Path, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    cli.main(["remote", "add", "lake", "s3://bucket/x"])
    cli.main(["remote", "modify", "lake", "jobs", "3"])
    cli.main(["config", "cache.type", "hardlink,copy"])
    theirs = subprocess.run(["dvc", *args], capture_output=True, text=True, check=True).stdout
    assert sorted(run(capsys, *args).split()) == sorted(theirs.split())


def test_the_same_settings_are_written(root: Path, tmp_path: Path) -> None:
    """The same commands leave the same settings, whichever tool ran them."""
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    subprocess.run(["dvc", "init", "-q"], cwd=other, check=True)
    commands = [
        ["remote", "add", "-d", "store", "../store"],
        ["remote", "add", "lake", "s3://bucket/x"],
        ["remote", "modify", "lake", "endpointurl", "http://127.0.0.1:1"],
        ["remote", "modify", "--local", "lake", "secret_access_key", "a#b"],
        ["remote", "default", "lake"],
        ["config", "core.autostage", "true"],
        ["remote", "add", "gone", "elsewhere"],
        ["remote", "remove", "gone"],
    ]
    for command in commands:
        subprocess.run(["dvc", *command], cwd=other, check=True, capture_output=True)
        if command[-1] != "../store":
            assert cli.main(command) == 0
    for config in (".dvc/config", ".dvc/config.local"):
        read = {
            place: Repo.open(place).config.read("local" if "local" in config else "repo")
            for place in (root, other)
        }
        assert read[root] == read[other]


def test_an_interrupted_command_ends_with_252(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Repo, "push", interrupt)
    assert cli.main(["push"]) == 252


def test_commit_asks_or_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["add", "-q", "data"])
    (root / "data" / "a").write_text("changed")
    done = subprocess.run(
        [sys.executable, "-m", "dvkf_prefect.cli", "commit"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert run(capsys, "commit", "-f").startswith("data: 2 file(s)")
    subprocess.run(["dvc", "status", "-q"], check=True)


def test_repro_runs_says_why_and_skips(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "dvc.yaml").write_text(
        "stages:\n  copy:\n    cmd: cp data/a out\n    deps: [data]\n    outs: [out]\n"
    )
    cli.main(["add", "-q", "data"])
    assert "copy" in run(capsys, "repro", "--dry")
    assert not (root / "out").exists()
    said = run(capsys, "repro", "--runner", "kubeflow-local")
    assert "Running stage 'copy':" in said
    assert "Stage 'copy' done in" in said
    assert "Data and pipelines are up to date." in run(capsys, "repro")
    subprocess.run(["dvc", "status", "-q"], check=True)
    (root / "dvc.yaml").write_text("stages:\n  copy:\n    cmd: exit 3\n    deps: [data]\n    outs: [out]\n")
    said = run(capsys, "repro", code=255)
    assert "`exit 3` ended with exit code 3" in said


def test_repro_on_a_cluster_that_is_not_named(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVKF_KUBEFLOW_HOST", raising=False)
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    (root / "dvc.yaml").write_text("stages:\n  copy:\n    cmd: echo > out\n    outs: [out]\n")
    said = run(capsys, "repro", "--runner", "kubeflow", code=251)
    assert "DVKF_KUBEFLOW_HOST is not set" in said and "kubeflow-local" in said
    assert not (root / "out").exists()


def test_models_from_the_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "model").write_text("weights")
    cli.main(["add", "-q", "model"])
    (root / "dvc.yaml").write_text("artifacts:\n  digits:\n    path: model\n    type: model\n")
    for round_ in ("one", "two"):
        subprocess.run(["git", "add", "-A"], check=True)
        subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", round_], check=True)
        assert f"digits v0.0.{1 if round_ == 'one' else 2}" in run(capsys, "model", "register", "digits")
        (root / "model").write_text("better weights")
        cli.main(["add", "-q", "model"])
    for version in ("v0.0.1", "v0.0.2"):
        assert run(capsys, "model", "assign", "digits", version, "prod") == f"digits #prod is {version}\n"
    assert run(capsys, "model", "rollback", "digits", "prod") == "digits #prod is v0.0.1 again\n"
    assert "#prod" in run(capsys, "model", "list").splitlines()[-1]
    assert json.loads(run(capsys, "model", "show", "digits", "#prod", "--json"))["version"] == "v0.0.1"
    assert json.loads(run(capsys, "model", "show", "digits@v0.0.1", "--json"))["version"] == "v0.0.1"
    assert cli.main(["model", "promote", "digits", "prdo", "--dry-run"]) == 0
    assert "WARNING: no model has the stage 'prdo' yet. Did you mean 'prod'?" in capsys.readouterr().err
    assert run(capsys, "model", "check-ref", "refs/tags/digits#prod#3") == (
        "stage 'prod' was assigned to 'digits' v0.0.1\n"
    )
    assert run(capsys, "model", "check-ref", "release-1") == ""
    assert run(capsys, "model", "unassign", "digits", "v0.0.1", "prod") == "digits #prod is v0.0.2\n"
    assert run(capsys, "model", "show").split() == ["name", "latest", "#prod", "digits", "v0.0.2", "v0.0.2"]
    assert (
        run(capsys, "model", "deregister", "digits", "v0.0.2", "-m", "bad") == "digits v0.0.2 is withdrawn\n"
    )
    assert run(capsys, "model", "list", "-a").splitlines()[0].endswith("\t(withdrawn)")
    events = json.loads(run(capsys, "model", "history", "digits", "--json"))
    assert (events[0]["event"], events[0]["version"], events[0]["message"]) == (
        "deregistration",
        "v0.0.2",
        "bad",
    )
    assert run(capsys, "model", "history", "--ascending").splitlines()[1].split()[2:5] == [
        "digits",
        "registration",
        "v0.0.1",
    ]
    assert run(capsys, "model", "deprecate", "digits") == "digits is deprecated\n"
    assert run(capsys, "model", "show") == "No model is registered.\n"


def test_new_files_are_ingested_from_the_command_line(
    root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The folder of the command counts, not the root; nothing leaves the inbox without a commit."""
    (root / "users.yaml").write_text("columns: {id: {dtype: int64, checks: {greater_than: 0}}}\n")
    inbox = tmp_path / "in"
    inbox.mkdir()
    for name, row in {"good.csv": "1", "bad.csv": "-1"}.items():
        (inbox / name).write_text(f"id\n{row}\n")
    os.chdir(root / "data")
    command = ["ingest", "../../in", "users", "--schema", "users.yaml", "--settle", "0"]
    capsys.readouterr()
    assert cli.main([*command, "--dry-run"]) == 1
    shown = capsys.readouterr().out
    assert "bad.csv" in shown and "greater_than(0), 1 failed: -1" in shown and "1 passed, 1 failed." in shown
    assert sorted(path.name for path in inbox.iterdir()) == ["bad.csv", "good.csv"]
    assert cli.main([*command, "--json", "--message", "New users"]) == 1
    done = json.loads(capsys.readouterr().out)
    assert (done["passed"], list(done["refused"]), done["removed"]) == (["good.csv"], ["bad.csv"], 1)
    assert list(inbox.iterdir()) == [] and (root / "data/users/good.csv").is_file()
    log = subprocess.run(["git", "log", "--format=%s %H"], cwd=root, capture_output=True, text=True).stdout
    assert log.strip() == f"New users {done['commit']}"
    assert Repo.open(root).cloud_status(["data/users"]) == {}
    assert "empty." in run(capsys, *command, "--no-commit", "--no-push")


@pytest.mark.parametrize("columns", ["50", "200", "wide", "0", "-3"])
def test_help_is_as_wide_as_with_the_formatter_of_argparse(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    parser = cli.build_parser(["gc"])
    found = parser.format_help()
    parser.formatter_class = argparse.HelpFormatter
    assert found == parser.format_help()
