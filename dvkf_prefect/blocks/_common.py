"""Constants and helpers that all blocks share."""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any, TypeVar, cast, get_args

from prefect.blocks.core import Block, schema_extra
from prefect.context import SyncClientContext
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, HttpUrl, SecretStr

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.text import did_you_mean, nearest

B = TypeVar("B", bound=Block)

# Explains blocks in general; each block describes itself.
_BLOCKS = "https://docs.prefect.io/v3/concepts/blocks"


def documentation_url(block: str) -> HttpUrl:
    """Return the address of a block's reference, for Prefect's page of it.

    Args:
        block: Name of the block's class.

    Returns:
        Its part of the site that the setting ``docs_url`` names; without one, Prefect's page about blocks.
    """
    site = _site()
    return HttpUrl(f"{site}/reference/blocks/#dvkf_prefect.{block}" if site else _BLOCKS)


def logo_url() -> HttpUrl | None:
    """Return the address of the logo on the site that the setting ``docs_url`` names; None without one.

    Prefect takes pictures of block types by http(s) only, and its page must be whole without a network.
    """
    site = _site()
    return HttpUrl(f"{site}/logo.svg") if site else None


def _site() -> str:
    return str(DvkfSettings().docs_url or "").rstrip("/")


def plain_fields(schema: dict[str, Any], model: type[Block]) -> None:
    """Fit the schema of a block to Prefect's forms, for `json_schema_extra`: an optional field has one type.

    Prefect's form shows a choice between the type and null otherwise. An empty field has its default, see `drop_empty`.

    Args:
        schema: The JSON schema of the block; it is changed.
        model: The block's class.
    """
    schema_extra(schema, model)
    # A run's form sends a picked block as a reference. Prefect wants it to be a reference or the block's values, not
    # both, and takes it for values too if no field is required. The first of Prefect's pages omits keywords that it
    # does not know: it keeps `allOf`, and no bare `not`.
    schema["allOf"] = [{"not": {"required": ["$ref"]}}]
    for field in schema.get("properties", {}).values():
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        if len(kinds) == 1 and len(kinds) < len(field["anyOf"]):
            del field["anyOf"]
            field.update({**kinds[0], **field})
            if field.get("default", "") is None:
                del field["default"]


def values_of(block: Block) -> dict[str, Any]:
    """Return the values of a block's own fields by name, single secrets in the clear.

    Args:
        block: The block.
    """
    values = {name: getattr(block, name) for name in type(block).model_fields}
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in values.items()
    }


def refuse_coroutine(name: str, value: object) -> str:
    """Return a message if a value is a coroutine, which is closed; empty text otherwise.

    In async code `Block.load` returns a coroutine in place of the block.

    Args:
        name: Name of the parameter or field.
        value: Its value.
    """
    if not inspect.iscoroutine(value):
        return ""
    value.close()
    return f"{name} is a coroutine and no block. In async code, load it by `await` and `aload(NAME)`."


def find_block(kind: type[B], block: B | str, parameter: str = "block") -> B:
    """Return a block that is given itself or by its name, in sync and in async code.

    Args:
        kind: Class of the block.
        block: The block, or the name it is saved under.
        parameter: Name of the parameter, for errors.

    Raises:
        ConfigError: No block of this type has that name.
        TypeError: It is a coroutine, or something else.
    """
    if isinstance(block, kind):
        return block
    if message := refuse_coroutine(parameter, block):
        raise TypeError(message)
    if not isinstance(block, str):
        raise TypeError(
            f"{parameter} is {type(block).__name__}. Pass a {kind.get_block_type_name()} block, or its name."
        )
    # As Prefect's pages and its command line name a block: the slug of its type, and its name.
    block = block.removeprefix(f"{kind.get_block_type_slug()}/")
    try:
        return cast(B, kind.load(block, _sync=True))  # type: ignore[call-arg]
    except ValueError as error:
        if "Unable to find block document" not in str(error):
            raise
    known = _names_of(kind)
    raise ConfigError(
        f"{parameter}: no {kind.get_block_type_name()} block is named '{block}' (blocks: {', '.join(known) or 'none'})."
        + (did_you_mean(block, known) or " Save one with that name, or use one of these.")
    )


def _names_of(kind: type[Block]) -> list[str]:
    """Return the names of the saved blocks of a type."""
    with SyncClientContext.get_or_create() as context, suppress(ObjectNotFound):
        found = context.client.read_block_documents_by_type(kind.get_block_type_slug())
        return sorted(document.name for document in found if document.name)
    return []


def drop_empty(cls: type[BaseModel], values: Any) -> Any:
    """Drop empty values of optional fields, so that the fields have their defaults, and spaces around texts.

    Prefect's form sends an empty block, an empty text or null for a field without input. A pasted text often has a
    space or the end of a line with it; a password may.

    Args:
        cls: The block's class.
        values: Values of the fields by name.

    Raises:
        ValueError: A value is a coroutine, as of a nested block that was not awaited. Or a field is misspelt, whose
            value Prefect would keep unused.
    """
    if not isinstance(values, dict):
        return values
    for name, value in values.items():
        if message := refuse_coroutine(name, value):
            raise ValueError(message)
    fields = cls.model_fields
    for name in values.keys() - fields.keys():
        if near := nearest(str(name), fields, cutoff=0.8):
            raise ValueError(f"no field is named '{name}'. Did you mean '{near}'?")
    values = {name: _stripped(name, value) for name, value in values.items()}
    return {
        name: value
        for name, value in values.items()
        if name not in fields or fields[name].is_required() or not _is_empty(value, fields[name].annotation)
    }


def _stripped(name: str, value: Any) -> Any:
    return value.strip() if isinstance(value, str) and name != "password" else value


def _is_empty(value: Any, annotation: Any) -> bool:
    """Return True for null, an empty text, list or mapping, and a nested block without input."""
    if isinstance(value, dict) and any(
        isinstance(t, type) and issubclass(t, Block) for t in get_args(annotation)
    ):
        # Prefect adds the block's type to the values of a nested block.
        given = {name: _stripped(name, inner) for name, inner in value.items() if name != "block_type_slug"}
        return all(inner in (None, "") for inner in given.values())
    return value is None or (isinstance(value, (str, list, dict)) and not value)
