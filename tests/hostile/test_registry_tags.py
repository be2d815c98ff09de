"""One odd tag, .gto file or dvc.yaml takes no model but its own away."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.tags import parse_tag_name, read_tags
from dvkf_prefect.repo import Repo


def git(root: Path, *args: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(["git", *args], cwd=root, input=stdin, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    root = tmp_path / "repo"
    made = make_repo(root)
    monkeypatch.chdir(root)
    Path("f").write_text("1")
    made.add(["f"])
    Path("dvc.yaml").write_text("artifacts:\n  clf: {path: f, type: model}\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    assert main(["model", "register", "clf", "--version", "v1.0.0"]) == 0
    assert main(["model", "assign", "clf", "v1.0.0", "prod"]) == 0
    return made


def put(root: Path, name: str, tag: bytes | None, target: str = "", kind: str = "commit") -> None:
    """Write a tag past git's own checks."""
    target = target or git(root, "rev-parse", "HEAD")
    made = target
    if tag is not None:
        text = f"object {target}\ntype {kind}\ntag {name}\n".encode() + tag
        made = git(root, "hash-object", "-t", "tag", "-w", "--literally", "--stdin", stdin=text)
    with (root / ".git/packed-refs").open("ab") as stream:
        stream.write(f"{made} refs/tags/{name}\n".encode())


def tagger(date: str, who: str = "E <e@e>", message: str = "m") -> bytes:
    return f"tagger {who} {date}\n\n{message}\n".encode()


def blob(root: Path) -> str:
    return git(root, "hash-object", "-w", "--stdin", stdin=b"x")


ODD: dict[str, Callable[[Path, str], None]] = {
    "zone": lambda root, model: put(root, f"{model}@v1.0.0", tagger("1700000000 +9900")),
    "zone of words": lambda root, model: put(root, f"{model}@v1.0.0", tagger("1700000000 UTC")),
    "no tagger": lambda root, model: put(root, f"{model}@v1.0.0", b"\nm\n"),
    "no date": lambda root, model: put(root, f"{model}@v1.0.0", b"tagger E <e@e>\n\nm\n"),
    "year 3000000": lambda root, model: put(root, f"{model}@v1.0.0", tagger("99999999999999 +0000")),
    "long date": lambda root, model: put(root, f"{model}@v1.0.0", tagger("9" * 5000 + " +0000")),
    "before 1970": lambda root, model: put(root, f"{model}@v1.0.0", tagger("-5 +0000")),
    "end of the year 9999": lambda root, model: put(root, f"{model}@v1.0.0", tagger("253402300799 +1400")),
    "5000 digits": lambda root, model: put(root, f"{model}@v{'9' * 5000}.0.0", tagger("1700000000 +0000")),
    "5000 digits counted": lambda root, model: put(root, f"{model}#prod#{'9' * 5000}", tagger("1700000000 +0000")),
    "30 digits counted": lambda root, model: put(root, f"{model}#prod#{'9' * 30}", tagger("1700000000 +0000")),
    "nul": lambda root, model: put(root, f"{model}@v1.0.0", tagger("1700000000 +0000", message="a\0b\0c")),
    "escape": lambda root, model: put(root, f"{model}@v1.0.0", tagger("1700000000 +0000", "\x1b[2J", "\x1b]0;\x07")),
    "not utf-8": lambda root, model: put(root, f"{model}@v1.0.0", b"tagger \xff\xfe <e> 1700000000 +0000\n\n\xff\n"),
    "of a blob": lambda root, model: put(root, f"{model}@v1.0.0", tagger("1 +0000"), blob(root), "blob"),
    "of a tree": lambda root, model: put(
        root, f"{model}@v1.0.0", tagger("1 +0000"), git(root, "rev-parse", "HEAD^{tree}"), "tree"
    ),
    "lightweight": lambda root, model: put(root, f"{model}@v1.0.0", None),
    "of nothing there": lambda root, model: put(root, f"{model}@v1.0.0", None, "1234567890" * 4),
    "object of nothing there": lambda root, model: put(root, f"{model}@v1.0.0", tagger("1 +0000"), "1234567890" * 4),
    "no tag at all": lambda root, model: put(root, f"{model}@v1.0.0", b"garbage", "", "nonsense"),
}  # fmt: skip


@pytest.mark.parametrize("odd", sorted(ODD))
def test_an_odd_tag_takes_no_other_model_away(
    repo: Repo, odd: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A tag that anybody may push ended every verb of the registry in a traceback."""
    ODD[odd](repo.root, "other")
    _deploy(repo, capfd)


@pytest.mark.parametrize("odd", sorted(ODD))
def test_an_odd_tag_of_a_model_stops_no_deployment_of_it(
    repo: Repo, odd: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if "counted" not in odd and "digits" not in odd:
        git(repo.root, "tag", "clf@v0.9.0")
    ODD[odd](repo.root, "clf" if "counted" in odd else "folder=clf")
    _deploy(repo, capfd)


def _deploy(repo: Repo, capfd: pytest.CaptureFixture[str]) -> None:
    git(repo.root, "commit", "-q", "--allow-empty", "-m", "second")
    capfd.readouterr()
    for arguments in (
        ["list"], ["show", "clf"], ["register", "clf"], ["assign", "clf", "v1.0.1", "prod"], ["list"],
        ["rollback", "clf", "prod"],
    ):  # fmt: skip
        assert main(["model", *arguments]) == 0, arguments
    told = capfd.readouterr()
    assert "v1.0.1" in told.out
    assert "Traceback" not in told.err
    assert "\x1b" not in told.out + told.err
    assert ModelRegistry(repo).show("clf", "#prod").version == "v1.0.0"


def test_a_missing_commit_in_a_shallow_clone_hides_one_version_only(repo: Repo, tmp_path: Path) -> None:
    put(repo.root, "lost@v1.0.0", tagger("1700000000 +0000"), "1234567890" * 4)
    names = {event.model for event in read_tags(repo.git)} if repo.git else set()
    assert "clf" in names
    assert [version.name for version in ModelRegistry(repo).list("clf")] == ["clf"]


@pytest.mark.parametrize(
    "text", ["stages: 5\n", "- a\n", "stages: [1, 2, prod]\n", "", "stages: null\n", "kinds: [x]\n"]
)
def test_an_odd_gto_file_is_read_past(repo: Repo, text: str) -> None:
    Path(".gto").write_text(text)
    assert main(["model", "list"]) == 0
    assert main(["model", "show", "clf"]) == 0
    assert ModelRegistry(repo).unassign("clf", "v1.0.0", "prod").stages == ()


@pytest.mark.parametrize(
    "text",
    [
        "artifacts: 5\n",
        "artifacts: {clf: 3}\n",
        "artifacts: {clf: {path: ../../x}}\n",
        "[",
        "artifacts: {clf: {path: [1]}}\n",
    ],
)
def test_an_odd_declaration_hides_no_version(repo: Repo, text: str) -> None:
    Path("dvc.yaml").write_text(text)
    git(repo.root, "commit", "-q", "-a", "-m", "odd")
    put(repo.root, "clf@v1.2.0", tagger("1700000000 +0000"))
    assert main(["model", "list"]) == 0
    assert {version.version for version in ModelRegistry(repo).list("clf")} == {"v1.0.0", "v1.2.0"}
    assert main(["model", "rollback", "clf", "prod"]) != 0
    assert main(["model", "assign", "clf", "v1.2.0", "dev"]) == 0


def test_names_that_nobody_writes_are_no_tags_of_the_registry() -> None:
    assert parse_tag_name("clf@v" + "9" * 5000 + ".0.0") is None
    assert parse_tag_name("clf#prod#" + "9" * 5000) is None
    assert parse_tag_name("clf#prod#12")
