"""Cards of maintenance: verified and collected objects."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import ROWS, code, count_text, escape, markdown_table, size_text

_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20}\b")
_OBJECT = re.compile(r"/([0-9a-f]{2})/([0-9a-f]{30}(?:\.dir)?)$")

if TYPE_CHECKING:
    from dvkf_prefect.data.upkeep.gc import GarbageCollection, Removed
    from dvkf_prefect.data.upkeep.verify import Verification


def verification_card(found: Verification, place: str, name: str, *, limit: int = ROWS) -> Card:
    """Show verified objects, and each that is damaged or missing.

    Args:
        found: The verification.
        place: Place that was verified, such as ``cache``.
        name: Short name of the repository.
        limit: Maximum number of objects.
    """
    repaired = sum(problem.repaired for problem in found.problems)
    wrong = (
        f"{len(found.problems):,} damaged or missing, {repaired:,} repaired"
        if found.problems
        else "all intact"
    )
    # Else the head names the place.
    elsewhere = any(problem.place != place for problem in found.problems)
    rows = [
        (
            code(problem.digest[:12]),
            ", ".join(problem.paths[:3]) or "not tracked",
            problem.place if elsewhere else "",
            f"{problem.kind}, repaired" if problem.repaired else problem.kind,
            _DIGEST.sub(r"\1…", problem.detail),
        )
        for problem in sorted(found.problems, key=lambda problem: problem.repaired)
    ]
    table = markdown_table(("digest", "files", "place", "state", "finding"), rows, limit=limit)
    read = f"{count_text(found.objects, 'object')} of {size_text(found.size)} read"
    return Card(
        artifact_key("verified", name, place),
        f"**{escape(name)}**, {escape(place)}: {read}, {wrong}.",
        markdown=table if rows else "No object is damaged or missing.",
    )


def garbage_card(found: GarbageCollection, name: str, *, limit: int = ROWS) -> Card:
    """Show removed objects by place, or those that a dry run found.

    Args:
        found: The collection.
        name: Short name of the repository.
        limit: Maximum number of objects listed by name.
    """
    verb = "unused" if found.dry else "removed"
    # The two layouts of a place are one for readers.
    groups: dict[str, list[Removed]] = {}
    for each in found.places:
        groups.setdefault(each.place if each.remote else "cache", []).append(each)
    rows = [
        (
            place,
            f"{sum(each.objects for each in group):,}",
            size_text(sum(each.size for each in group)),
            f"{sum(each.kept for each in group):,}",
            f"{sum(each.young for each in group):,}",
        )
        for place, group in groups.items()
    ]
    names = [
        (place, code(_object_text(each)))
        for place, group in groups.items()
        for removed in group
        for each in removed.names
    ]
    columns = ("place", verb, "size", "kept", "too young")
    parts = ["A dry run: nothing was removed."] if found.dry else []
    parts.append(markdown_table(columns, rows, limit=limit))
    parts += [markdown_table(("place", "unused object"), names, limit=limit)] if names else []
    parts += [f"Skipped: {escape(text)}" for text in found.skipped[:limit]]
    return Card(
        artifact_key("collected", name),
        f"**{escape(name)}**: {count_text(found.objects, 'object')} {verb} ({size_text(found.size)}), "
        f"{found.kept:,} kept.",
        markdown="\n\n".join(parts),
    )


def _object_text(name: str) -> str:
    """Return the digest of an object in place of its path or url; other names unchanged."""
    found = _OBJECT.search(name)
    return "".join(found.groups()) if found else name
