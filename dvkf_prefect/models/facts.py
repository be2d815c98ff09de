"""Facts about a version that are known after its tag: ids in other registries, published places, services.

A tag is never rewritten. So each fact is a line of JSON in a git note on the tag, in ``refs/notes/dvkf``. Notes do not
show in ``gto`` or ``git log``; ``git push origin refs/notes/dvkf`` shares them. A merge of two clones' notes by
``cat_sort_uniq`` keeps the facts of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.errors import GitError

REF = "refs/notes/dvkf"


def read_facts(git: Git, tag: str) -> tuple[Mapping[str, Any], ...]:
    """Return the facts noted on a tag, oldest first; lines that are not JSON objects are skipped.

    Args:
        git: The work tree.
        tag: Name of the tag.
    """
    try:
        text = git.run("notes", f"--ref={REF}", "show", f"refs/tags/{tag}")
    except GitError:
        return ()  # no note, or no such tag
    facts = []
    for line in text.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and isinstance(value.get("kind"), str):
                facts.append(value)
    return tuple(facts)


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
    known = read_facts(git, tag)
    if fact in known:
        return False
    kept = [f for f in known if (f["kind"], f.get("where")) != (kind, values.get("where"))]
    text = "\n".join(json.dumps(each, sort_keys=True) for each in [*kept, fact])
    git.run("notes", f"--ref={REF}", "add", "--force", "--file=-", f"refs/tags/{tag}", stdin=text.encode())
    return True
