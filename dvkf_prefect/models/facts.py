"""Facts about a version that are known after its tag: ids in other registries, published places, services.

A tag is never rewritten. So each fact is a line of JSON in a git note on the tag, in ``refs/notes/dvkf``. Notes do not
show in ``gto`` or ``git log``; `dvkf_prefect.data.git.notes` shares them. A merge keeps the lines of both clones, also
those that one of them had replaced. So each line has the time of its note, and the newest of a kind and place counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.git.notes import REF
from dvkf_prefect.errors import GitError

# Keys of a line that are not part of the fact: its time, and a mark that the fact ended.
_AT, _ENDED = "at", "ended"
_Key = tuple[str, str]


def read_facts(git: Git, tag: str) -> tuple[Mapping[str, Any], ...]:
    """Return the facts noted on a tag, oldest first; lines that are not JSON objects are skipped.

    Of the facts of one kind and place, only the newest is returned, and none that ended.

    Args:
        git: The work tree.
        tag: Name of the tag.
    """
    lines = sorted(_newest(git, tag).values(), key=_order)
    return tuple(
        {key: value for key, value in line.items() if key != _AT} for line in lines if not line.get(_ENDED)
    )


def note_fact(git: Git, tag: str, kind: str, values: Mapping[str, Any]) -> bool:
    """Note a fact on a tag, in place of an earlier one of the same kind and place.

    Args:
        git: The work tree.
        tag: Name of the tag.
        kind: Kind of the fact: ``registry``, ``published`` or ``service``.
        values: Values for JSON; ``where`` is the place.

    Returns:
        False if the fact is noted already.

    Raises:
        GitError: Git refused, for example because no identity is configured.
    """
    fact = {"kind": kind, **values}
    if fact in read_facts(git, tag):
        return False
    _write(git, tag, fact)
    return True


def end_fact(git: Git, tag: str, kind: str, where: str) -> bool:
    """Note that a fact of a tag holds no more.

    Args:
        git: The work tree.
        tag: Name of the tag.
        kind: Kind of the fact.
        where: Its place.

    Returns:
        False if there is no such fact.

    Raises:
        GitError: Git refused.
    """
    if not any((fact["kind"], fact.get("where")) == (kind, where) for fact in read_facts(git, tag)):
        return False
    _write(git, tag, {"kind": kind, "where": where, _ENDED: True})
    return True


def noted_clusters(git: Git) -> tuple[str, ...]:
    """Return the clusters that any fact of a repository names as the place of a service, also one that ended.

    Args:
        git: The work tree.

    Returns:
        Places as noted, ``kserve:CONTEXT/NAMESPACE``, sorted.
    """
    try:
        text = git.run("grep", "-h", "--fixed-strings", "-e", '"where": "kserve:', REF, "--")
    except GitError:
        return ()  # no such note, or no notes
    found = set()
    for line in text.splitlines():
        with suppress(ValueError, TypeError, KeyError):
            found.add(str(json.loads(line)["where"]))
    return tuple(sorted(found))


def _write(git: Git, tag: str, fact: Mapping[str, Any]) -> None:
    """Write a line in place of those of its kind and place, later than all of the tag."""
    known = _newest(git, tag)
    now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    last = max((str(line.get(_AT, "")) for line in known.values()), default="")
    # The clock of another clone may be ahead.
    with suppress(ValueError):
        if last >= now:
            now = (datetime.fromisoformat(last) + timedelta(microseconds=1)).isoformat(
                timespec="microseconds"
            )
    known[_key(fact)] = {**fact, _AT: now}
    text = "\n".join(json.dumps(line, sort_keys=True) for line in sorted(known.values(), key=_order))
    git.run("notes", f"--ref={REF}", "add", "--force", "--file=-", f"refs/tags/{tag}", stdin=text.encode())


def _newest(git: Git, tag: str) -> dict[_Key, Mapping[str, Any]]:
    """Return the newest line of each kind and place."""
    try:
        text = git.run("notes", f"--ref={REF}", "show", f"refs/tags/{tag}")
    except GitError:
        return {}  # no note, or no such tag
    found: dict[_Key, Mapping[str, Any]] = {}
    for line in text.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
                continue
            key = _key(value)
            if key not in found or _order(value) >= _order(found[key]):
                found[key] = value
    return found


def _key(fact: Mapping[str, Any]) -> _Key:
    return (str(fact["kind"]), str(fact.get("where", "")))


def _order(fact: Mapping[str, Any]) -> tuple[str, str]:
    # Clones that note two facts in one microsecond agree on the later one by its text. A line of an earlier version of
    # dvkf has no time, and is older than all that have.
    return (str(fact.get(_AT, "")), json.dumps(fact, sort_keys=True) if fact.get(_AT) else "")
