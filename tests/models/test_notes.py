"""Facts of two clones: both keep theirs, and neither brings back what the other replaced."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from dvkf_prefect.cli import main
from dvkf_prefect.data.git.clones import clone, push
from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.git.notes import REF, fetch_registry, push_notes, push_registry
from dvkf_prefect.errors import GitError
from dvkf_prefect.models.facts import end_fact, note_fact, read_facts

from .conftest import Project

TAG = "classifier@v0.0.1"


def git(path: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=path, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Clones:
    """A bare origin with a registered version, and two clones of it."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.origin = folder / "origin.git"
        self.one = project.root
        self.project = project
        project.train("model")
        project.registry.register("classifier")
        git(folder, "clone", "-q", "--bare", str(project.root), str(self.origin))
        git(project.root, "remote", "add", "origin", str(self.origin))
        git(folder, "clone", "-q", str(self.origin), "two")
        self.two = folder / "two"


@pytest.fixture
def clones(project: Project, tmp_path: Path) -> Clones:
    return Clones(project, tmp_path)


def facts(path: Path) -> list[tuple[str, str]]:
    return [(str(fact["where"]), str(fact.get("url"))) for fact in read_facts(Git(path), TAG)]


def note(path: Path, where: str, url: str) -> None:
    note_fact(Git(path), TAG, "service", {"where": where, "url": url})


def test_two_clones_note_facts_on_one_tag(clones: Clones) -> None:
    note(clones.one, "a", "1")
    note(clones.two, "b", "2")
    assert push(clones.one, timeout=60)[1:] == ("tags", "notes")
    # The second push is no fast-forward: it merges first.
    assert push_registry(clones.two) == ("tags", "notes")
    assert fetch_registry(clones.one) == ("tags", "notes")
    assert facts(clones.one) == facts(clones.two) == [("a", "1"), ("b", "2")]
    assert git(clones.one, "rev-parse", REF) == git(clones.origin, "rev-parse", REF)


def test_a_merge_does_not_bring_back_what_was_replaced(clones: Clones) -> None:
    note(clones.one, "a", "old")
    push_notes(clones.one, timeout=60)
    fetch_registry(clones.two)
    note(clones.one, "a", "new")
    note(clones.two, "b", "2")
    push_notes(clones.one, timeout=60)
    push_notes(clones.two, timeout=60)
    fetch_registry(clones.one)
    # The union of the lines has the old one, too.
    assert "old" in git(clones.one, "notes", f"--ref={REF}", "show", TAG)
    assert facts(clones.one) == facts(clones.two) == [("a", "new"), ("b", "2")]
    note(clones.one, "c", "3")
    assert "old" not in git(clones.one, "notes", f"--ref={REF}", "show", TAG)


def test_the_later_of_two_facts_about_one_place_counts_in_both_clones(clones: Clones) -> None:
    note(clones.one, "a", "first")
    note(clones.two, "a", "second")
    push_notes(clones.two, timeout=60)
    push_notes(clones.one, timeout=60)
    fetch_registry(clones.two)
    assert facts(clones.one) == facts(clones.two) == [("a", "second")]


def test_a_fact_that_ended_stays_ended(clones: Clones) -> None:
    note(clones.one, "a", "1")
    push_notes(clones.one, timeout=60)
    fetch_registry(clones.two)
    assert end_fact(Git(clones.one), TAG, "service", "a")
    assert not end_fact(Git(clones.one), TAG, "service", "a")
    note(clones.two, "b", "2")
    push_notes(clones.one, timeout=60)
    push_notes(clones.two, timeout=60)
    assert facts(clones.two) == [("b", "2")]
    note(clones.two, "a", "1")
    assert facts(clones.two) == [("b", "2"), ("a", "1")]


def test_a_fact_is_later_than_one_of_a_clone_whose_clock_is_ahead(clones: Clones) -> None:
    line = '{"kind": "service", "where": "a", "url": "1", "at": "2999-01-01T00:00:00.000000+00:00"}'
    git(clones.one, "notes", f"--ref={REF}", "add", "-m", line, TAG)
    note(clones.one, "a", "2")
    assert facts(clones.one) == [("a", "2")]


def test_a_line_without_a_time_is_older_than_all_others(clones: Clones) -> None:
    lines = '{"kind": "service", "where": "a", "url": "1"}\nno JSON\n{"kind": "service", "where": "b", "url": "2"}'
    git(clones.one, "notes", f"--ref={REF}", "add", "-m", lines, TAG)
    assert facts(clones.one) == [("a", "1"), ("b", "2")]
    note(clones.one, "a", "3")
    assert facts(clones.one) == [("b", "2"), ("a", "3")]


def test_pushes_of_many_clones_at_once_lose_nothing(clones: Clones, tmp_path: Path) -> None:
    others = [tmp_path / f"clone{number}" for number in range(4)]
    for number, path in enumerate(others):
        git(tmp_path, "clone", "-q", str(clones.origin), str(path))
        note(path, f"place {number}", "x")
    failed: list[BaseException] = []

    def send(path: Path) -> None:
        try:
            push_notes(path, timeout=60)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=send, args=(path,)) for path in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    fetch_registry(clones.one)
    assert sorted(where for where, _ in facts(clones.one)) == [f"place {number}" for number in range(4)]


def test_notes_that_the_origin_refuses(clones: Clones) -> None:
    hook = clones.origin / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho no notes here >&2\nexit 1\n")
    hook.chmod(0o755)
    note(clones.one, "a", "1")
    with pytest.raises(GitError, match="no notes here"):
        push_notes(clones.one, timeout=60)


def test_a_clone_of_a_worker_brings_the_notes(
    clones: Clones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{clones.origin}"
    path = clone(url, None, tmp_path / "home", timeout=60)
    assert facts(path) == []
    note(clones.one, "a", "1")
    push_notes(clones.one, timeout=60)
    for rev in (None, git(clones.one, "symbolic-ref", "--short", "HEAD"), TAG):
        assert facts(clone(url, rev, tmp_path / "home", timeout=60)) == [("a", "1")]
    # A worker that noted a fact of its own merges, with no user.name in git.
    note(path, "worker", "2")
    note(clones.one, "b", "3")
    push_notes(clones.one, timeout=60)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{name}_NAME")
        monkeypatch.delenv(f"GIT_{name}_EMAIL")
    git(path, "config", "user.useConfigOnly", "true")
    assert clone(url, None, tmp_path / "home", timeout=60) == path
    assert facts(path) == [("a", "1"), ("worker", "2"), ("b", "3")]
    assert push(path, timeout=60)[1:] == ("tags", "notes")
    fetch_registry(clones.one)
    assert facts(clones.one) == facts(path)


def test_the_command_line_pushes_and_fetches(
    clones: Clones, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clones.one)
    note(clones.one, "a", "1")
    assert main(["model", "assign", "classifier", "v0.0.1", "prod", "--push"]) == 0
    assert git(clones.origin, "tag", "--list") == f"classifier#prod#1\n{TAG}"
    monkeypatch.chdir(clones.two)
    assert main(["model", "fetch"]) == 0
    assert capsys.readouterr().out.endswith("fetched tags and notes\n")
    assert facts(clones.two) == [("a", "1")]
    assert main(["model", "push"]) == 0
    git(clones.two, "remote", "remove", "origin")
    assert main(["model", "push"]) != 0
    assert "has no remote 'origin'. Add it" in capsys.readouterr().err
