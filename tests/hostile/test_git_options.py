"""Revisions and urls of others never become options of git, nor transports that run commands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError
from repos import make_repo

from dvkf_prefect.blocks.repositories import DvcRepository
from dvkf_prefect.cli import main
from dvkf_prefect.data.git import clones
from dvkf_prefect.data.git.command import Git, check_revision, check_url
from dvkf_prefect.data.imports.external import open_external
from dvkf_prefect.data.views.filesystem import DvkfFileSystem
from dvkf_prefect.errors import DvkfError, GitError
from dvkf_prefect.repo import Repo


def git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    root = tmp_path / "repo"
    made = make_repo(root)
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    monkeypatch.chdir(root)
    return made


def options(mark: Path) -> list[str]:
    """Revisions that make git run a command where they are taken for options."""
    return [f"--upload-pack=touch {mark}; false", f"--output={mark}", f"-O{mark}", "--exec=x", "-", ""]


def urls(mark: Path) -> list[str]:
    """Urls that make git run a command."""
    return [
        f"ext::sh -c touch% {mark}",
        f"EXT::sh -c touch% {mark}",
        "fd::17/foo",
        "unknown::address",
        f"--upload-pack=touch {mark}",
        f"-u{mark}",
        "ssh://-oProxyCommand=x/y",
        "ssh://me@-oProxyCommand=x/y",
        "-oProxyCommand=x:y",
        "me@-oProxyCommand=x:y",
        "ext://x",
        "https://host/a\nb",
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_revision_is_never_an_option(repo: Repo, tmp_path: Path, number: int) -> None:
    """`--upload-pack=CMD` as the revision of an import ran CMD, whatever the url."""
    mark = tmp_path / "PWNED"
    rev = options(mark)[number]
    for url in ("file:///nothing/there", "https://127.0.0.1:9/x.git", str(repo.root)):
        with pytest.raises(GitError), open_external(url, rev):
            pass
        with pytest.raises(GitError):
            clones.tip(url, rev, timeout=20)
        with pytest.raises(GitError):
            clones.snapshot(url, rev, tmp_path / "snapshot", timeout=20)
    with pytest.raises(GitError):
        clones.clone("file:///nothing/there", rev, tmp_path / "clones", timeout=20)
    work_tree = Git(repo.root)
    for ask in (work_tree.resolve, work_tree.ls_tree, lambda asked: work_tree.show(asked, "a")):
        with pytest.raises(GitError):
            ask(rev)
    if rev:
        with pytest.raises(ValidationError):
            DvcRepository(path="https://host/r.git", rev=rev)
        with pytest.raises((DvkfError, OSError)):
            DvkfFileSystem("file:///nothing/there", rev=rev).ls("")
    assert not mark.exists()


@pytest.mark.parametrize("number", range(12))
def test_a_url_never_runs_a_command(
    repo: Repo, tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "PWNED"
    url = urls(mark)[number]
    with pytest.raises(DvkfError), open_external(url, None):
        pass
    with pytest.raises(GitError):
        clones.tip(url, "main", timeout=20)
    with pytest.raises(GitError):
        clones.clone(url, None, tmp_path / "clones", timeout=20)
    with pytest.raises((ValidationError, GitError)):
        DvcRepository(path=url).open()
    for arguments in (["get", "--", url, "d"], ["import", "--", url, "d"], ["list", "--", url]):
        assert main(arguments) != 0
    assert not mark.exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["pull", "fetch", "update"])
def test_the_import_of_a_cloned_repository_is_not_believed(repo: Repo, tmp_path: Path, verb: str) -> None:
    mark = tmp_path / "PWNED"
    dep = 'rev_lock: "--upload-pack=touch {m}; false"\n    rev: "--upload-pack=touch {m}; false"\n'
    outs = "outs:\n- md5: a0000000000000000000000000000000\n  size: 5\n  hash: md5\n  path: {n}\n"
    for name, url, lock in (
        ("a", "file:///x", dep),
        ("b", f"ext::sh -c touch% {mark}", "rev_lock: main\n"),
        ("c", "file:///x", "rev_lock: '+main:refs/heads/main'\n"),
    ):
        text = f"frozen: true\ndeps:\n- path: d\n  repo:\n    url: '{url}'\n    {lock}{outs}"
        (repo.root / f"{name}.dvc").write_text(text.replace("{m}", str(mark)).replace("{n}", name))
    arguments = [verb, "a.dvc", "b.dvc", "c.dvc"] if verb == "update" else [verb]
    assert main(arguments) in (1, 255)
    assert not mark.exists()


def test_no_hook_filter_or_monitor_of_a_source_runs(repo: Repo, tmp_path: Path) -> None:
    """A folder's own git configuration is not the reader's word."""
    mark = tmp_path / "PWNED"
    source = tmp_path / "source"
    make_repo(source)
    (source / "code.py").write_text("code")
    (source / ".gitattributes").write_text("*.py filter=evil diff=evil\n")
    git(source, "add", "-A")
    git(source, "commit", "-q", "-m", "first")
    hook = source / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    with (source / ".git/config").open("a") as stream:
        stream.write(
            f'[core]\n    fsmonitor = "touch {mark};"\n[filter "evil"]\n    smudge = touch {mark}; cat\n'
        )
    for arguments in (
        ["get", str(source), "code.py", "-o", "one"],
        ["get", str(source), "code.py", "-o", "two", "--rev", "main"],
        ["list", str(source)],
        ["list", str(source), "--rev", "main"],
        ["import", str(source), "code.py", "-o", "three"],
    ):
        assert main(arguments) == 0
    assert (repo.root / "two").read_text() == "code"
    assert not mark.exists()


def test_the_attributes_of_a_source_choose_no_filter_of_the_user(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git ran the user's own filters on files of others, and gave them other bytes than `dvc` gets."""
    mark = tmp_path / "RAN"
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f'[core]\n autocrlf = true\n[filter "one"]\n smudge = "touch {mark}; cat"\n clean = cat\n required = true\n'
        f'[filter "two"]\n process = "touch {mark}"\n required = true\n'
        '[filter "lfs"]\n smudge = "sed s/pointer/content/"\n clean = cat\n'
    )
    source = tmp_path / "source"
    make_repo(source)
    files = {
        "a.one": b"one\n",
        "a.two": b"two\n",
        "a.ident": b"$Id$\n",
        "a.crlf": b"x\n",
        "a.big": b"pointer\n",
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    git(source, "add", "-A")
    (source / ".gitattributes").write_text(
        "*.one filter=one\n*.two filter=two\n*.ident ident\n*.crlf text eol=crlf\n*.big filter=lfs\n"
    )
    git(source, "add", ".gitattributes")
    git(source, "commit", "-q", "-m", "first")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    for number, url in enumerate((str(source), f"file://{source}")):
        for name, data in files.items():
            for more in ([], ["--rev", "main"]):
                place = f"{number}-{len(more)}-{name}"
                assert main(["get", url, name, "-o", place, *more]) == 0
                # The files of Git LFS are not in the commit, but beside it.
                expected = data.replace(b"pointer", b"content") if more else data
                assert (repo.root / place).read_bytes() == expected, place
    assert not mark.exists()


def test_ordinary_names_go_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for rev in ("main", "v1.0", "feature/a-b", "HEAD~1", "name@v1.0.0", "a1b2c3d"):
        assert check_revision(rev) == rev
    for url in (
        "https://host/r.git",
        "ssh://git@host/r.git",
        "git@host:o/r.git",
        "/a/folder",
        "file:///a",
        "../a",
    ):
        assert check_url(url) == url
    with pytest.raises(GitError, match="codecommit"):
        check_url("codecommit::eu-west-1://r")
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "https:codecommit")
    assert check_url("codecommit::eu-west-1://r")
