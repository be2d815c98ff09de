"""Stages that runs have already: a chain of stages `a` to `d`, each of which reads the one before."""

from __future__ import annotations

import dataclasses

import pytest

from dvkf_prefect.errors import StageGraphError
from dvkf_prefect.kubeflow.cluster.chain import parts_of
from dvkf_prefect.kubeflow.cluster.open_runs import OpenRun, OpenStage
from dvkf_prefect.kubeflow.cluster.shared import shared_parts
from dvkf_prefect.pipeline.step.spec import StepSpec


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
    assert shared_parts(wanted, [known], lambda run: True) == []
    wanted["a"] = dataclasses.replace(wanted["a"], known={"`": "out of `"})
    assert shared_parts(wanted, [known], lambda run: True) == [["a"]]
    wanted["a"] = dataclasses.replace(wanted["a"], known={"`": "another"})
    assert shared_parts(wanted, [known], lambda run: True) == []


def test_a_stage_whose_inputs_are_not_known_yet_may_be_the_one_that_was_started():
    """They are outputs of another run; the start of its own part judges it again, when it knows them."""
    started = run("b").stages["b"]
    unknown = dataclasses.replace(started, deps={"a": ""})
    assert unknown.continues(started, ["a"]) and not unknown.continues(started)
    reads = dataclasses.replace(started, known={"a": "out of a"})
    assert unknown.continues(reads, ["a"]) and not started.continues(reads)
    assert not dataclasses.replace(unknown, known={"a": "another"}).continues(reads, ["a"])


@pytest.mark.parametrize(
    ("needs", "shared", "most", "parts"),
    [
        ({"a": "", "b": "a", "c": ""}, [], 9, ["abc"]),
        ({"a": "", "b": "a", "c": "b"}, [], 1, ["a", "b<0", "c<1"]),
        # Parts of a run that is too large start in order, though they do not need each other.
        ({"a": "", "b": "", "c": ""}, [], 2, ["ab", "c<0"]),
        # What needs nothing of a run that is followed does not wait for it.
        ({"a": "", "b": "a", "c": "", "d": "c"}, ["a"], 9, ["a", "cd", "b<0"]),
        ({"a": "", "b": "a", "c": "", "d": "bc"}, ["a"], 9, ["a", "c", "bd<01"]),
        ({"a": "", "b": "a", "c": "b", "d": "", "e": "d"}, ["a", "d"], 9, ["a", "d", "bce<01"]),
        ({"a": "", "b": "a"}, ["a", "b"], 9, ["a", "b<0"]),
    ],
)
def test_a_part_waits_for_those_that_it_needs(needs, shared, most, parts):
    specs = [StepSpec(stage, ("true",), "") for stage in needs]
    found = parts_of(specs, needs, shared, most)
    told = ["".join(s.stage for s in p.specs) + ("<" if p.after else "") + "".join(map(str, sorted(p.after)))
            for p in found]  # fmt: skip
    assert told == parts


def test_parts_of_a_cycle_are_refused():
    with pytest.raises(StageGraphError):
        parts_of([StepSpec(stage, ("true",), "") for stage in "ab"], {"a": "b", "b": "a"}, [])
