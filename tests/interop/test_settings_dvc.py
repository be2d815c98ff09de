"""Settings next to the real `dvc`: the same commands leave the same files, print the same and end alike."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from commands import Dvc, Tool, dvkf
from repos import make_repo

Pair = tuple[Path, Path]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Two empty repositories below one folder, for dvc and for us, each with settings of a system and a user."""
    made = []
    for name in ("real", "ours"):
        root = tmp_path / name / "repo"
        (root / "sub").mkdir(parents=True)
        make_repo(root)
        made.append(root)
    return made[0], made[1]


def both(pair: Pair, dvc: Dvc, *args: str, cd: str = ".", printed: bool = True) -> str:
    """Run a command by dvc and by us; they end and print alike. Return what was printed."""
    done = []
    for tool, root in ((dvc, pair[0]), (dvkf, pair[1])):
        for level in ("system", "global"):
            os.environ[f"DVC_{level.upper()}_CONFIG_DIR"] = str(root.parent / level)
        done.append(run(tool, root, *args, cd=cd))
    assert done[1][0] == done[0][0], f"{args}: {done}"
    if printed:
        assert done[1][1] == done[0][1], args
    return done[1][1]


def run(tool: Tool, root: Path, *args: str, cd: str = ".") -> tuple[int, str]:
    done = tool(root / cd, *args)
    return done.code, done.out.replace(str(root.parent), "…")


def files(root: Path) -> dict[str, str]:
    """The files of all levels; dvc makes empty ones as it passes by."""
    return {
        place: text
        for place in ("../system/config", "../global/config", ".dvc/config", ".dvc/config.local")
        if (root / place).exists() and (text := (root / place).read_text()).strip()
    }


@pytest.fixture(autouse=True)
def levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that `both` sets are taken back; dvc does not break lines."""
    monkeypatch.setenv("COLUMNS", "1000")
    for level in ("SYSTEM", "GLOBAL"):
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", "")


NAMES = ["store", "Lake", "a.b", "x y"]
URLS = [
    "../../s1",
    "rel/dir",
    "/abs/x",
    "s3://bucket/pre fix",
    "http://h:1/p",
    "~/home",
    "ssh://u@h/p",
    "remote://store/d",
]
URLS += ["magic://x", "a,b", "a#b", "it's", "file:///abs/y"]
OPTIONS = [
    "jobs 4",
    "jobs 0",
    "region eu",
    "verify true",
    "verify maybe",
    "url s3://other/x",
    "nothing 1",
    "version_aware true",
]
OPTIONS += ["credentialpath ../cred", "Jobs 2", "ssl_verify false", "keyfile ~/key", "user a"]
SETTINGS = [
    "core.autostage true",
    "core.autostage yes",
    "cache.type hardlink,symlink",
    "cache.type link",
    "cache.dir ../c",
]
SETTINGS += [
    "cache.dir /abs/cache",
    "core.remote lake",
    "core.checksum_jobs 3",
    "cache.shared group",
    "cache.shared all",
]
SETTINGS += [
    "core.no_scm True",
    "feature.x 1",
    "nowhere.x 1",
    "remote.store.jobs 3",
    "remote.new.url s3://b",
    "core.nothing 1",
]
SETTINGS += [
    "hydra.config_dir a",
    "hydra.config_module b",
    "plots.out_dir p",
    "db.d.url u",
    "Core.Interactive true",
    "state.dir x",
]


def command(choose: random.Random) -> list[str]:
    """One command on settings, right or wrong."""
    name = choose.choice(NAMES)
    level = choose.choice([[], [], [], ["--local"], ["--global"], ["--system"], ["--project"]])
    url, force = choose.choice(URLS), choose.choice([[], [], ["-f"], ["-d"], ["-d", "-f"]])
    option, setting = choose.choice(OPTIONS).split(" ", 1), choose.choice(SETTINGS).split(" ", 1)
    return [
        *choose.choice(
            [
                ["remote", "add", *force, name, url],
                ["remote", "add", *force, name, url],
                ["remote", "modify", name, *option],
                ["remote", "modify", name, *option],
                ["remote", "modify", "-u", name, option[0]],
                ["remote", "default", name],
                ["remote", "default", "-u"],
                ["remote", "rename", name, choose.choice(NAMES)],
                ["remote", "remove", name],
                ["config", *setting],
                ["config", *setting],
                ["config", "-u", setting[0]],
                ["config", setting[0], "--show-origin"],
                ["config", setting[0]],
                ["cache", "dir", choose.choice(["../c2", "/abs/c2", "in/side"])],
                ["cache", "dir", "-u"],
            ]
        ),
        *level,
    ]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 6))])
def test_any_sequence_leaves_the_same_files(pair: Pair, dvc: Dvc, seed: int) -> None:
    """A command after which dvc cannot start any more is taken back: ours repairs or refuses there."""
    choose = random.Random(seed)
    for _ in range(40):
        args, cd = command(choose), choose.choice([".", "sub"])
        kept = [{place: (root / place).read_bytes() for place in files(root)} for root in pair]
        codes = []
        for tool, root in ((dvc, pair[0]), (dvkf, pair[1])):
            for level in ("system", "global"):
                os.environ[f"DVC_{level.upper()}_CONFIG_DIR"] = str(root.parent / level)
            codes.append(run(tool, root, *args, cd=cd))
        if dvc(pair[0], "status", "-q").code == 251:
            # Ours may have done better. Take both back.
            for root, old in zip(pair, kept, strict=True):
                for place in files(root):
                    (root / place).unlink()
                for place, data in old.items():
                    (root / place).write_bytes(data)
            continue
        # Where dvc falls over its own feet, ours says what is wrong.
        assert codes[1] == ((251, codes[0][1]) if codes[0][0] == 255 else codes[0]), args
        assert files(pair[1]) == files(pair[0]), args
    for level in ([], ["--local"], ["--global"], ["--system"], ["--project"]):
        both(pair, dvc, "config", "-l", *level)
        both(pair, dvc, "config", "-l", "--show-origin", *level, cd="sub")
        both(pair, dvc, "remote", "default", *level)
        both(pair, dvc, "cache", "dir", *level)
    both(pair, dvc, "remote", "list")


def test_each_command_prints_what_dvc_prints(pair: Pair, dvc: Dvc) -> None:
    both(pair, dvc, "remote", "default")
    both(pair, dvc, "remote", "list")
    both(pair, dvc, "config", "-l")
    assert both(pair, dvc, "cache", "dir") == "…/repo/.dvc/cache\n"
    assert both(pair, dvc, "remote", "add", "-d", "Store", "../s") == "Setting 'store' as a default remote.\n"
    both(pair, dvc, "remote", "add", "other", "s3://b/c", "--local")
    assert both(pair, dvc, "remote", "list").split() == ["store", "…/s", "(default)", "other", "s3://b/c"]
    both(pair, dvc, "remote", "list", "--local")
    both(pair, dvc, "remote", "add", "store", "../t")
    both(pair, dvc, "remote", "rename", "store", "other")
    both(pair, dvc, "remote", "rename", "none", "new")
    both(pair, dvc, "remote", "modify", "none", "jobs", "3")
    both(pair, dvc, "remote", "remove", "none")
    both(pair, dvc, "remote", "default", "none")
    both(pair, dvc, "remote", "modify", "store", "jobs")
    both(pair, dvc, "remote", "rename", "store", "new")
    assert both(pair, dvc, "remote", "default") == "new\n"
    assert both(pair, dvc, "config", "core.remote", "--show-origin", cd="sub") == ".dvc/config\tnew\n"
    for wrong in (["core"], ["a.b.c"], ["remote.a.b.c"], ["--list", "core.remote"], [], ["core.nothing"]):
        both(pair, dvc, "config", *wrong, printed=False)
    both(pair, dvc, "config", "--show-origin", "core.remote", "x")
    both(pair, dvc, "config", "--unset", "core.nothing")
    both(pair, dvc, "config", "--local", "core.remote")
    both(pair, dvc, "config", "remote.nothing.url")
    both(pair, dvc, "remote", printed=False)
    both(pair, dvc, "cache", "dir", "--local")
    both(pair, dvc, "cache", "dir", "--local", "c")
    assert both(pair, dvc, "cache", "dir") == "…/repo/c\n"
    both(pair, dvc, "cache", "dir", "--local", "-u")
    both(pair, dvc, "cache", "dir", "--local", "-u")
    assert files(pair[1]) == files(pair[0])


def test_outside_a_repository(tmp_path: Path, dvc: Dvc) -> None:
    pair = (tmp_path / "real/here", tmp_path / "ours/here")
    for root in pair:
        root.mkdir(parents=True)
    both(pair, dvc, "config", "core.autostage", "true")
    both(pair, dvc, "config", "--local", "-l")
    both(pair, dvc, "cache", "dir")
    both(pair, dvc, "remote", "add", "x", "y")
    both(pair, dvc, "config", "--global", "core.autostage", "true")
    both(pair, dvc, "remote", "add", "--system", "-d", "x", "y")
    both(pair, dvc, "remote", "list")
    both(pair, dvc, "config", "-l", "--show-origin")
    assert files(pair[1]) == files(pair[0])


def test_a_file_written_by_hand_is_read_alike_and_set_right(pair: Pair, dvc: Dvc) -> None:
    for root in pair:
        (root / ".dvc/config").write_text(
            '[Core]\nremote=S ; # c\n[cache]\n type = hardlink, copy\n[remote "s"]\n\turl = ./a/../b # here\n'
            "PORT = 22\n[feature]\nx = 1\n['remote \"t\"']\nurl = 'http://q, r'\npassword = \"%x'y\"\n"
        )
    assert both(pair, dvc, "config", "-l").startswith("remote.s.url=…/repo/.dvc/b\nremote.s.port=22\n")
    both(pair, dvc, "remote", "list")
    assert both(pair, dvc, "config", "cache.type") == "['hardlink', 'copy']\n"
    both(pair, dvc, "push")
    both(pair, dvc, "config", "core.autostage", "true")
    both(pair, dvc, "remote", "modify", "-u", "s", "port")
    both(pair, dvc, "config", "core.remote", "s")
    both(pair, dvc, "config", "-l")
    # The comments are ours to keep, dvc drops them.
    ours = files(pair[1])[".dvc/config"]
    assert "# here" in ours
    kept = ours.replace("    # c", "").replace("    # here", "").replace("./a/../b", "b")
    assert kept == files(pair[0])[".dvc/config"]


def test_removing_a_remote_that_others_build_on(pair: Pair, dvc: Dvc) -> None:
    """After dvc's `remote remove`, options of another level stand alone: no dvc command works any more."""
    for args in (
        ("add", "-d", "s", "s3://b/c"),
        ("modify", "--local", "s", "jobs", "3"),
        ("default", "--local", "s"),
    ):
        both(pair, dvc, "remote", *args)
    assert run(dvc, pair[0], "remote", "remove", "s")[0] == 251
    assert run(dvc, pair[0], "status")[0] == 251
    assert run(dvkf, pair[1], "remote", "remove", "s") == (0, "")
    assert files(pair[1]) == {}
    shutil.rmtree(pair[0])
    shutil.copytree(pair[1], pair[0])
    assert run(dvc, pair[1], "status", "-q")[0] == 0
