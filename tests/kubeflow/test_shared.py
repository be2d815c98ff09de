"""Stages that runs have already: a chain of stages `a` to `d`, each of which reads the one before."""

from __future__ import annotations

import dataclasses

import pytest

from dvkf_prefect.kubeflow.cluster.open_runs import OpenRun, OpenStage
from dvkf_prefect.kubeflow.cluster.shared import shared_parts


def stages(names: str, **digests: str) -> dict[str, OpenStage]:
    """Return stages of a run or to run; inputs that none of them writes have the digest of their writer's output."""
    found = {}
    for name in names:
        before = chr(ord(name) - 1)
        known = "" if before in names else digests.get(before, f"out of {before}")
        needs = (before,) if before in names else ()
        found[name] = OpenStage(f"task-{name}", f"identity of {name}", {before: known}, (name,), needs)
    return found


def run(names: str, **digests: str) -> OpenRun:
    return OpenRun(f"key-{names}", f"run-{names}", "note", stages(names, **digests))


@pytest.mark.parametrize(
    ("wanted", "runs", "parts"),
    [
        ("abcd", [], []),
        ("abcd", [run("abcd")], ["abcd"]),
        # A killed chain: stages of the first run that are not recorded, and those of a second one.
        ("bcd", [run("abc")], ["bc"]),
        ("bcd", [run("d"), run("abc")], ["bc", "d"]),
        # More targets than before.
        ("abcd", [run("ab")], ["ab"]),
        # One run has the first stages with another input, or is a run of the last stages alone.
        ("bcd", [run("bcd", a="other")], []),
        ("abcd", [run("cd")], []),
        ("abcd", [run("ab"), run("bcd")], ["ab", "cd"]),
    ],
)
def test_parts_that_runs_have(wanted, runs, parts):
    found = shared_parts(stages(wanted), runs, lambda run: True)
    assert found == [list(part) for part in parts]


def test_a_run_that_has_ended_or_has_other_commands_is_not_followed():
    changed = run("ab")
    other = dataclasses.replace(changed.stages["a"], identity="other")
    changed = dataclasses.replace(changed, stages={**changed.stages, "a": other})
    assert shared_parts(stages("abc"), [changed], lambda run: True) == []
    assert shared_parts(stages("abc"), [run("ab")], lambda run: False) == []


def test_a_stage_that_must_run_does_not_follow_one_that_may_take_its_last_run():
    known = run("a")
    stage = dataclasses.replace(known.stages["a"], known={"`": "out of `"})
    known = dataclasses.replace(known, stages={"a": stage})
    wanted = stages("ab")
    assert shared_parts(wanted, [known], lambda run: True) == [["a"]]
    wanted["a"] = dataclasses.replace(wanted["a"], known={"`": "another"})
    assert shared_parts(wanted, [known], lambda run: True) == []
