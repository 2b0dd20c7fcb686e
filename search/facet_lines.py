"""Facets as text for a terminal: a head for each, and a line for each value with its count."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from indexer.command import counted, one_line
from search.facets import Facet, Facets, FacetValue

SHOWN_CHARACTERS = 80  # of a value

_READS_AS_OTHER = re.compile(r"true|false|[+-]?[0-9.]+(e[+-]?[0-9]+)?|\s*", re.IGNORECASE)


def facet_lines(facets: Facets, *, colour: bool) -> Iterator[str]:
    """All facets. Where not all documents are counted, each value also has its lift."""
    if facets.documents == facets.indexed:
        yield counted(facets.documents, "document")
    else:
        yield f"{facets.documents:,} of {counted(facets.indexed, 'document')}"
    lifts = facets.documents < facets.indexed
    for facet in facets.facets:
        yield ""
        yield from _lines(facet, lifts=lifts, colour=colour)


def _lines(facet: Facet, *, lifts: bool, colour: bool) -> Iterator[str]:
    name = one_line(facet.name)
    head = click.style(name, bold=True) if colour else name
    yield f"{head}  {counted(facet.distinct, 'value')}, {facet.missing:,} without"
    width = max((len(f"{value.count:,}") for value in facet.values), default=0)
    for value in facet.values:
        line = f"  {value.count:>{width},}  {_text(value)}"
        if facet.name == "entity":
            line += f" {value.type}"
        if lifts:
            line += f"  ({value.lift:.1f}× its share of all, {value.total:,})"
        yield line
    if len(facet.values) < facet.distinct:
        rest = f"  {'…':>{width}}"
        yield click.style(rest, dim=True) if colour else rest


def _text(value: FacetValue) -> str:
    if value.below is not None:
        return f"{value.value} to below {value.below}"
    if not isinstance(value.value, str):
        return str(value.value).lower()
    written = one_line(value.value)
    if len(written) > SHOWN_CHARACTERS:
        written = written[: SHOWN_CHARACTERS - 2] + " …"
    return f'"{written}"' if _READS_AS_OTHER.fullmatch(written) else written
