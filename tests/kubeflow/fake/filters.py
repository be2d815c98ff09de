"""Filters, orders and pages of lists.

Sources: apiserver/server/list_request_util.go (parseAPIFilter, transformJSONForBackwardCompatibility,
validatedListOptions), apiserver/filter/filter.go (toPredicate, checkPredicate, AddToSelect), apiserver/list/list.go
(NewOptions, Matches, nextPageToken, validatePageSize), api/v2beta1/filter.proto.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

from .store import Refused

# list.go: validatePageSize caps what is larger. The fake's pages are shorter, so that they are turned.
MOST_PER_PAGE, DEFAULT_PAGE, OWN_PAGE = 200, 20, 2
# filter.proto: names and numbers of the operations, both of which protojson takes.
_OPERATIONS = {
    1: "EQUALS", 2: "NOT_EQUALS", 3: "GREATER_THAN", 5: "GREATER_THAN_EQUALS", 6: "LESS_THAN", 7: "LESS_THAN_EQUALS",
    8: "IN", 9: "IS_SUBSTRING",
}  # fmt: skip
_SCALARS = {"int_value": int, "long_value": int, "string_value": str, "timestamp_value": str}
_LISTS = {"int_values": int, "long_values": int, "string_values": str}
# apiserver/model (APIToModelFieldMap): the fields by which each kind of row is filtered and sorted, and its column,
# which is the field of a row here.
_COMMON = {"name": "display_name", "display_name": "display_name", "created_at": "created_at",
           "description": "description"}  # fmt: skip
FIELDS: dict[str, dict[str, str]] = {
    "runs": _COMMON | {"id": "run_id", "status": "conditions"} | {
        name: name for name in ("run_id", "finished_at", "scheduled_at", "storage_state", "namespace", "experiment_id",
                                "state", "state_history", "runtime_details", "recurring_run_id")
    },
    "experiments": _COMMON | {"id": "experiment_id"} | {
        name: name for name in ("experiment_id", "last_run_created_at", "namespace", "storage_state")
    },
    "pipelines": _COMMON | {"id": "pipeline_id", "pipeline_id": "pipeline_id", "name": "name",
                            "namespace": "namespace"},
    "pipeline_versions": _COMMON | {
        "id": "pipeline_version_id", "pipeline_version_id": "pipeline_version_id", "name": "name", "status": "status",
        "pipeline_spec": "pipeline_spec",
    },
    "recurringRuns": _COMMON | {"id": "recurring_run_id", "recurring_run_id": "recurring_run_id",
                                "updated_at": "updated_at"},
}  # fmt: skip
# Operation, then column, then its values, as `filter.Filter` keeps them.
Filter = dict[str, dict[str, list[Any]]]


def page(kind: str, items: list[dict], query: dict[str, str]) -> dict[str, Any]:
    """Return a page of the rows that a filter leaves, their number, and the token of the next page."""
    size = _size(query.get("page_size", ""))
    token = query.get("page_token", "")
    asked = _options(kind, query)
    at: dict[str, Any] = {}
    if token:
        try:
            at = json.loads(base64.b64decode(token, validate=True))
            bound: tuple[Filter, str, bool] = (at["filter"], at["sort"], at["desc"])
        except (ValueError, KeyError, TypeError):
            raise Refused(400, "InvalidInputError: Invalid page token") from None
        if (query.get("filter") or query.get("sort_by")) and asked != bound:
            raise Refused(
                400,
                "Invalid input error: page token does not match the supplied sort by and/or filtering criteria. Either "
                "specify the same criteria or leave the latter empty if page token is specified",
            )
        asked = bound
    predicates, column, descending = asked
    rows = [row for row in items if all(_fits(row, *each) for each in _flat(predicates))]
    rows.sort(key=lambda row: _order(row.get(column, "")), reverse=descending)
    key = FIELDS[kind]["id"]
    # The next page begins at a row, and not at a number: rows may be made and deleted in between.
    start = next((i for i, row in enumerate(rows) if row[key] == at.get("key")), len(rows)) if at else 0
    found, rest = rows[start : start + min(size, OWN_PAGE)], rows[start + min(size, OWN_PAGE) :]
    answer: dict[str, Any] = {"total_size": len(rows), kind: found} if found else {}
    if rest:
        more = {"filter": predicates, "sort": column, "desc": descending, "key": rest[0][key]}
        answer["next_page_token"] = base64.b64encode(json.dumps(more).encode()).decode()
    return answer


def _size(text: str) -> int:
    try:
        size = int(text or 0)
    except ValueError:
        # The gateway parses the query (runtime.PopulateQueryParameters).
        raise Refused(
            400,
            f'parsing field "page_size": strconv.ParseInt: parsing "{text}": invalid syntax',
            by="gateway",
        ) from None
    if size < 0:
        raise Refused(400, f"Invalid input error: The page size should be greater than 0. Got {size}")
    return min(size or DEFAULT_PAGE, MOST_PER_PAGE)


def _options(kind: str, query: dict[str, str]) -> tuple[Filter, str, bool]:
    """Return the filter, the column of the order, and True for a descending one."""
    words = query.get("sort_by", "").lower().split()
    if len(words) > 2 or words[1:] not in ([], ["asc"], ["desc"]):
        raise Refused(
            400,
            f'Invalid input error: Received invalid sort by format "{query["sort_by"]}". Supported format: '
            '"field_name", "field_name desc", or "field_name asc"',
        )
    if words and words[0] not in FIELDS[kind]:
        raise Refused(
            400, f'Invalid input error: Invalid sorting field: "{words[0]}" on listable type {kind}'
        )
    column = FIELDS[kind][words[0]] if words else "created_at"
    return _filter(kind, query.get("filter", "")), column, words[1:] == ["desc"]


def _filter(kind: str, encoded: str) -> Filter:
    """Parse a filter, which is unescaped once more than a query is (list_request_util.go:143)."""

    def refused(reason: object) -> Refused:
        return Refused(400, f'Invalid input error: failed to parse valid filter from "{encoded}": {reason}')

    if not encoded:
        return {}
    if not _escapes(encoded):
        raise refused("invalid URL escape")
    text = unquote_plus(encoded)
    for name in (*_SCALARS, *_LISTS):
        head, _, tail = name.partition("_")
        text = text.replace(f'"{head}{tail.capitalize()}":', f'"{name}":')
    try:
        document = json.loads(text)
    except ValueError as error:
        raise refused(error) from None
    if not isinstance(document, dict) or set(document) - {"predicates"}:
        raise refused("unknown field")
    found: Filter = {}
    for predicate in document.get("predicates", []):
        operation, key, value = _predicate(predicate, refused)
        if key not in FIELDS[kind]:
            raise Refused(400, f'Invalid input error: no support for filtering on unrecognized field "{key}"')
        found.setdefault(operation, {}).setdefault(FIELDS[kind][key], []).append(value)
    return found


def _predicate(predicate: Any, refused: Any) -> tuple[str, str, Any]:
    """Return operation, key and value (filter.go: toPredicate, checkPredicate)."""
    if not isinstance(predicate, dict) or set(predicate) - {"operation", "key", *_SCALARS, *_LISTS}:
        raise refused("unknown field")
    operation = _OPERATIONS.get(predicate.get("operation", 0), predicate.get("operation", 0))
    values = {name: value for name, value in predicate.items() if name not in ("operation", "key")}
    if operation not in _OPERATIONS.values() or len(values) != 1:
        raise Refused(
            400, f"Invalid input error: {operation or 'OPERATION_UNSPECIFIED'} with {sorted(values)}"
        )
    if not predicate.get("key"):
        raise Refused(400, f"Invalid input error: Predicate key cannot be empty for operation {operation}")
    ((name, value),) = values.items()
    if name in _LISTS:
        if not isinstance(value, dict) or set(value) - {"values"}:
            raise refused("unknown field")
        if operation != "IN":
            kind = "non string value" if operation == "IS_SUBSTRING" else "scalar operator on array"
            raise Refused(
                400, f"Invalid input error: cannot use {kind} type {name} with operator {operation}"
            )
        return operation, predicate["key"], [_LISTS[name](each) for each in value.get("values", [])]
    if operation == "IN":
        raise Refused(400, f"Invalid input error: cannot use IN operator with scalar type {name}")
    if operation == "IS_SUBSTRING" and name != "string_value":
        raise Refused(
            400, f"Invalid input error: cannot use non string value type {name} with operator {operation}"
        )
    if name == "timestamp_value":
        return operation, predicate["key"], _seconds(value)
    return operation, predicate["key"], _SCALARS[name](value)


def _flat(predicates: Filter) -> list[tuple[str, str, Any]]:
    return [
        (op, key, value) for op, by in predicates.items() for key, values in by.items() for value in values
    ]


def _fits(row: dict, operation: str, column: str, wanted: Any) -> bool:
    """Return True if a row has a value (filter.go: AddToSelect). MySQL's default collation ignores case."""
    value = row.get(column, "")
    if operation == "IN":
        return any(_fits(row, "EQUALS", column, each) for each in wanted)
    if operation == "IS_SUBSTRING":
        # LIKE, whose wildcards in the value are not escaped.
        pattern = "".join({"%": ".*", "_": "."}.get(char, re.escape(char)) for char in wanted)
        return re.search(pattern, str(value), re.IGNORECASE | re.DOTALL) is not None
    have, want = (_order(value), _order(wanted)) if isinstance(wanted, str) else (_seconds(value), wanted)
    return {
        "EQUALS": have == want, "NOT_EQUALS": have != want, "GREATER_THAN": have > want,
        "GREATER_THAN_EQUALS": have >= want, "LESS_THAN": have < want, "LESS_THAN_EQUALS": have <= want,
    }[operation]  # fmt: skip


def _order(value: Any) -> str:
    return str(value).casefold()


def _seconds(value: Any) -> int:
    """Return a time as its column has it, in whole seconds."""
    if isinstance(value, int):
        return value
    try:
        return int(datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp())
    except ValueError:
        return 0  # as MySQL compares a text without digits with a number


def _escapes(text: str) -> bool:
    """Return False if Go's url.QueryUnescape fails: a percent sign without two hexadecimal digits."""
    parts = text.split("%")[1:]
    return all(len(part) >= 2 and all(c in "0123456789abcdefABCDEF" for c in part[:2]) for part in parts)
