"""Cards of maintenance: verified and collected objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import ROWS, code, escape, markdown_table, size_text

if TYPE_CHECKING:
    from dvkf_prefect.data.upkeep.gc import GarbageCollection
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
    rows = [
        (
            code(problem.digest[:12]),
            ", ".join(problem.paths[:3]) or "not tracked",
            problem.place,
            f"{problem.kind}, repaired" if problem.repaired else problem.kind,
            problem.detail,
        )
        for problem in sorted(found.problems, key=lambda problem: problem.repaired)
    ]
    table = markdown_table(("digest", "files", "place", "state", "finding"), rows, limit=limit)
    read = f"{found.objects:,} objects of {size_text(found.size)} read"
    return Card(
        artifact_key("verified", name, place),
        f"**{escape(name)}**, {escape(place)}: {read}, {wrong}.",
        markdown=table if rows else f"{read}, {wrong}.",
    )


def garbage_card(found: GarbageCollection, name: str, *, limit: int = ROWS) -> Card:
    """Show removed objects by place, or those that a dry run found.

    Args:
        found: The collection.
        name: Short name of the repository.
        limit: Maximum number of objects listed by name.
    """
    verb = "unused" if found.dry else "removed"
    rows = [
        (
            place.place if place.remote else f"cache ({place.place})",
            f"{place.objects:,}",
            size_text(place.size),
            f"{place.kept:,}",
            f"{place.young:,}",
        )
        for place in found.places
    ]
    names = [(code(each),) for place in found.places for each in place.names]
    parts = [markdown_table(("place", verb, "size", "kept", "too young"), rows, limit=limit)]
    parts += [markdown_table(("object",), names, limit=limit)] if names else []
    parts += [f"Skipped: {escape(text)}" for text in found.skipped[:limit]]
    return Card(
        artifact_key("collected", name),
        f"**{escape(name)}**: {found.objects:,} objects {verb} ({size_text(found.size)}), {found.kept:,} kept.",
        markdown="\n\n".join(parts),
    )
