"""What the commands of `search` print: for reading, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from indexer.command import one_line, say_missing_fields

if TYPE_CHECKING:
    from indexer.filters import Filter
    from search.explain import Explanation
    from search.facets import Facets
    from search.hits import Hit
    from search.searcher import Searcher


def show_hits(hits: Sequence[Hit], *, as_json: bool, offset: int) -> None:
    """Print hits as JSON lines, or for reading."""
    if as_json:
        from indexer.stored import json_line

        for hit in hits:
            click.echo(json_line(hit.to_json()).decode(), nl=False)
        return
    from search.render import render_hits, wants_colour

    if not hits:
        click.echo("no document fits", err=True)
        return
    colour = wants_colour(terminal=sys.stdout.isatty())
    click.echo(render_hits(hits, colour=colour, offset=offset), color=colour)


def show_missing_fields(searcher: Searcher, filter: Filter | None) -> None:
    """Say on standard error which fields of a filter no document has."""
    if filter is not None:
        say_missing_fields(searcher.missing_fields(filter))


def show_cursor(cursor: str | None, *, as_json: bool) -> None:
    """Print where the next page begins: in JSON as the last line, else on standard error."""
    if as_json:
        import orjson

        click.echo(orjson.dumps({"cursor": cursor}).decode())
    else:
        click.echo("no more hits" if cursor is None else f"next page: --cursor {cursor}", err=True)


def show_explanation(explanation: Explanation, *, as_json: bool) -> None:
    """Print on standard error what was done: one JSON object, or for reading."""
    if as_json:
        import orjson

        click.echo(orjson.dumps(explanation.to_json()).decode(), err=True)
        return
    for line in explanation.lines():
        click.echo(one_line(line), err=True)


def show_facets(facets: Facets, *, as_json: bool) -> None:
    """Print facets as one JSON object, or for reading."""
    if as_json:
        import orjson

        click.echo(orjson.dumps(facets.to_json()).decode())
        return
    from search.facet_lines import facet_lines
    from search.render import wants_colour

    colour = wants_colour(terminal=sys.stdout.isatty())
    click.echo("\n".join(facet_lines(facets, colour=colour)), color=colour)
