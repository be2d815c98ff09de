"""What is written here gto reads the same, and what gto writes is read the same here."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sizes import ALL

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.errors import ModelError
from dvkf_prefect.models.history import gather
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.tags import check_model_name, check_stage_name, is_version, parse_tag_name, read_tags
from dvkf_prefect.repo import Repo

from .conftest import Project

# Run apart: gto is an oracle, its warnings are its own.
_READ = """
import json, sys, gto.api
result = []
for repo in sys.argv[1:]:
    models = {}
    events = [{**event, "timestamp": event["timestamp"].timestamp()} for event in gto.api.history(repo)]
    refs = {event["ref"]: None for event in events}
    for ref in [*refs, "light@v1.0.0", "release-1.0", "refs/tags/" + min(refs, default="")]:
        found = gto.api.check_ref(repo, ref)
        refs[ref] = [str(found[0].event), found[0].commit_hexsha, getattr(found[0], "version", None)] if found else None
    overview = {}
    for deprecated in (False, True):
        overview[str(deprecated)] = gto.api.show(repo, deprecated=deprecated)
    for name in gto.api.show(repo, deprecated=True):
        shown = gto.api.show(repo, name)
        # Each stage tag on a commit that is not registered makes a row of its own for gto.
        versions = {}
        for row in shown:
            stages = versions.setdefault(row["version"], [row["commit_hexsha"], []])[1]
            stages += [stage["stage"] for stage in row["stages"]]
        latest = gto.api.show(repo, name + "@latest")
        models[name] = {
            "versions": [[v, rev, sorted(set(stages))] for v, (rev, stages) in versions.items()],
            "latest": latest[0]["version"] if latest else None,
        }
    result.append({"models": models, "events": events, "refs": refs, "overview": overview})
print(json.dumps(result))
"""


def _gto_reads(*repos: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", _READ, *map(str, repos)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: list[dict[str, Any]] = json.loads(done.stdout)
    return result


def _we_read(root: Path) -> dict[str, Any]:
    registry = ModelRegistry(Repo.open(root) if (root / ".dvc").exists() else Repo.init(root))
    events = [event.as_dict() for event in registry.history()]
    refs: dict[str, Any] = {event["ref"]: None for event in events}
    for ref in [*refs, "light@v1.0.0", "release-1.0", "refs/tags/" + min(refs, default="")]:
        found = registry.check_ref(ref)
        refs[ref] = [found.as_dict()["event"], found.rev, found.version] if found else None
    overview = {str(all_): registry.overview(include_inactive=all_) for all_ in (False, True)}
    return {"models": _models(root), "events": events, "refs": refs, "overview": overview}


def _models(repo: Path) -> dict[str, Any]:
    models = {}
    for name, history in gather(read_tags(Git(repo))).items():
        holders = history.stages()
        versions = [
            [version.name, version.rev, [stage for stage, holder in holders.items() if holder is version]]
            for version in (history.standing if history.active else [])
        ]
        models[name] = {"versions": versions, "latest": versions[0][0] if versions else None}
    return models


def _same(ours: dict[str, Any], theirs: dict[str, Any], where: str = "") -> None:
    """Hold two readings equal; gto orders events of the same second and kind by chance."""
    for reading in (ours, theirs):
        moments = [(event["timestamp"], event["priority"]) for event in reading["events"]]
        assert moments == sorted(moments, reverse=True), where
        reading["events"].sort(key=lambda event: event["ref"])
    assert ours == theirs, where


def test_gto_reads_what_we_write(project: Project) -> None:
    registry = project.registry
    for content in "1234":
        project.train(content)
        registry.register("classifier", trailers={"Prefect-Flow-Run": content})
        registry.assign("classifier", "latest", "prod")
    registry.assign("classifier", "v0.0.2", "staging")
    registry.rollback("classifier", "prod", reason="accuracy fell")
    registry.rollback("classifier", "prod")
    registry.unassign("classifier", "v0.0.2", "staging")
    registry.deregister("classifier", "v0.0.4")
    (project.root / "vision").mkdir()
    (project.root / "vision" / "model.bin").write_text("v")
    project.repo.add([project.root / "vision" / "model.bin"])
    (project.root / "vision" / "dvc.yaml").write_text("artifacts:\n  net:\n    path: model.bin\n")
    project.commit()
    registry.register("vision:net", version="v2.0.0-rc.1")

    (theirs,) = _gto_reads(project.top)
    _same(_we_read(project.top), theirs)
    assert theirs["models"]["classifier"]["latest"] == "v0.0.3"
    assert project.gto("show", "--json") == {
        "classifier": {"version": "v0.0.3", "stage": {"prod": "v0.0.2"}, "registered": True, "active": True},
        "vision:net": {"version": "v2.0.0-rc.1", "stage": {"prod": None}, "registered": True, "active": True},
    }
    events = project.gto("history", "classifier", "--json")
    ours = registry.history("classifier")
    assert [event["ref"] for event in events] == [event.tag for event in ours]
    assert [event["author_email"] for event in events] == [event.email for event in ours]
    assert [event["commit"] for event in events] == [event.rev for event in ours]
    assert [event["message"] for event in events] == [event.body for event in ours]
    assert events[-1]["message"].startswith(
        "Registering artifact classifier version v0.0.1\n\nDvkf-Lineage: {"
    )
    assert events[-1]["message"].endswith("}\nPrefect-Flow-Run: 1")

    registry.deprecate("classifier")
    assert list(project.gto("show", "--json")) == ["vision:net"]


def test_we_read_what_gto_writes(project: Project) -> None:
    revs = [project.train(content) for content in "1234"]
    project.gto("register", "classifier", revs[0], "-m", "The first")
    project.gto("register", "classifier", revs[1], "--bump-minor")
    project.gto("register", "classifier", revs[2], "--version", "v1.0.0-rc.1")
    project.gto("assign", "classifier", "--version", "v0.0.1", "--stage", "prod")
    project.gto("assign", "classifier", "--version", "v0.1.0", "--stage", "prod")
    project.gto("assign", "classifier", "--version", "v0.1.0", "--stage", "dev", "--simple", "true")
    project.gto("assign", "classifier", revs[3], "--stage", "raw", "--sr")
    project.gto("deprecate", "classifier", "v0.1.0", "prod")
    project.gto("register", "sub:other", revs[3])
    project.gto("register", "old", revs[3])
    project.gto("deprecate", "classifier", "v1.0.0-rc.1")
    project.gto("deprecate", "old")

    (theirs,) = _gto_reads(project.top)
    _same(_we_read(project.top), theirs)
    first = project.registry.show("classifier", "v0.0.1")
    assert (first.message, first.author, first.stages) == ("The first", "Test", ("prod",))
    assert project.registry.show("classifier", "#raw").version == revs[3]
    # Nobody declared these models; they are shown all the same.
    (other,) = project.registry.list("sub:other")
    assert (other.version, other.path, other.digest) == ("v0.0.1", None, None)
    # And both count on from each other.
    assert project.registry.assign("classifier", "latest", "prod").version == "v0.1.0"
    assert project.registry.history("classifier")[0].tag == "classifier#prod#5"
    project.gto("assign", "classifier", "--version", "v0.0.1", "--stage", "dev")
    assert "classifier#dev#6" in project.git("tag").split()


@pytest.mark.long
def test_generated_histories_read_the_same(tmp_path: Path) -> None:
    """Any order of events, with tags of the same second, withdrawn versions and unregistered commits."""
    repos = []
    for seed in range(40 if ALL else 8):
        dice = random.Random(seed)
        repo = tmp_path / f"r{seed}"
        repo.mkdir()
        _generate(dice, repo)
        repos.append(repo)
    for seed, (repo, theirs) in enumerate(zip(repos, _gto_reads(*repos), strict=True)):
        _same(_we_read(repo), theirs, f"seed {seed}")


def _generate(dice: random.Random, repo: Path) -> None:
    def git(*args: str, at: int = 1_600_000_000) -> str:
        date = f"@{at} +0000"
        env = {**os.environ, "GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date}
        return subprocess.run(
            ["git", *args], cwd=repo, env=env, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    revs = []
    for i in range(4):
        git("commit", "-q", "--allow-empty", "-m", str(i), at=1_600_000_000 + i)
        revs.append(git("rev-parse", "HEAD"))
    versions = [
        "v0.0.1",
        "v0.0.2",
        "v0.10.0",
        "v0.9.0",
        "v1.0.0-rc.1",
        "v1.0.0-rc.10",
        "v1.0.0-rc.2",
        "v1.0.0",
        "v1.0.0-a",
    ]
    for name in ("model", "dir/sub=model"):
        chosen = dict(zip(revs, dice.sample(versions, 4), strict=True))
        registered = [rev for rev in revs if dice.random() < 0.8]
        names = [f"{name}@{chosen[rev]}" for rev in registered]
        tags = list(zip(names, registered, strict=True))
        tags += [(f"{name}@{chosen[rev]}!", rev) for rev in registered if dice.random() < 0.2]
        for counter in range(1, dice.randint(2, 8)):
            stage = dice.choice(["prod", "dev"])
            rev = dice.choice(revs)
            mark = "!" if rev in registered and dice.random() < 0.3 else ""
            tags.append((f"{name}#{stage}{mark}#{counter}", rev))
        if dice.random() < 0.2:
            tags.append((f"{name}@deprecated", revs[0]))
        for position, (tag, rev) in enumerate(tags):
            # gto keeps a row for each stage tag on a commit that is not registered, and so orders ties by chance.
            moment = dice.randint(0, 6) if rev in registered else 10 + position
            git("tag", "-a", "-m", "x", tag, rev, at=1_600_000_100 + moment)
    git("tag", "light@v1.0.0")
    git("tag", "-a", "-m", "x", "release-1.0")


_NAMES = """
import json, sys
from gto.constants import check_string_is_valid, fullname_re, name_re
from gto.tag import parse_name
from gto.versions import SemVer
texts = json.load(sys.stdin)
print(json.dumps([
    [
        check_string_is_valid(text, fullname_re), check_string_is_valid(text, name_re), SemVer.is_valid(text),
        {key: getattr(value, "value", value) for key, value in parse_name(text, raise_on_fail=False).items()},
    ]
    for text in texts
]))
"""


def test_the_grammar_is_gtos() -> None:
    """Texts made of the grammar's own pieces: valid here when and as they are valid there."""
    dice = random.Random(0)
    pieces = [
        "a",
        "Z",
        "0",
        "9",
        "-",
        "_",
        "/",
        ".",
        "=",
        ":",
        "@",
        "#",
        "!",
        "v",
        "+",
        "1.0",
        "v1.0.0",
        "v0.10.2-rc.1",
    ]
    pieces += ["+b.1", "deprecated", "prod", "model", "#1", "#07", "ä", " ", "01", "-01", "-a.b"]
    texts = ["".join(dice.choices(pieces, k=dice.randint(1, 6))) for _ in range(20_000)]
    done = subprocess.run(
        [sys.executable, "-c", _NAMES], input=json.dumps(texts), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for text, theirs in zip(texts, json.loads(done.stdout), strict=True):
        full, plain = _valid(check_model_name, text), _valid(check_stage_name, text)
        assert [full, plain, is_version(text), _as_gto(text)] == theirs, text


def _as_gto(text: str) -> dict[str, Any]:
    parsed = parse_tag_name(text)
    if parsed is None:
        return {}
    values = {**parsed._asdict(), "name": parsed.model}
    return {key: value for key, value in values.items() if key != "model" and value is not None}


def _valid(check: Callable[[str], None], text: str) -> bool:
    try:
        check(text)
    except ModelError:
        return False
    return True
