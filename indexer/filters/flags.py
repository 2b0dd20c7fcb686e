"""Filters from flags of a command line."""

from __future__ import annotations

from indexer.errors import FilterError
from indexer.filters.ast import EntityMatch, Filter, HasEntity, Not
from indexer.filters.scanner import printable


def parse_entity_flag(text: str) -> Filter:
    """The filter of a flag `--entity TYPE:TEXT`.

    The text is everything after the first colon, as it stands; a star at its end means "starts with".
    `TYPE` or `TYPE:*` is any entity of the type, `*:TEXT` any type, and a `!` in front negates.

    >>> parse_entity_flag("!ORG:Acme Corp*")
    Not(part=HasEntity(type='ORG', text='Acme Corp', match='prefix'))
    """
    negated = text.startswith("!")
    type, colon, surface = text[negated:].partition(":")
    if not type or (colon and not surface):
        position = int(negated) if not type else len(text)
        raise FilterError("expected TYPE:TEXT, TYPE or *:TEXT", text=printable(text), position=position)
    match: EntityMatch = "any" if surface in ("", "*") else "prefix" if surface.endswith("*") else "exact"
    try:
        entity = HasEntity(
            None if type == "*" else type,
            None if match == "any" else surface[:-1] if match == "prefix" else surface,
            match,
        )
    except FilterError as error:
        raise FilterError(error.problem, text=printable(text), position=int(negated)) from None
    return Not(entity) if negated else entity
