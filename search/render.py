"""Hits as text for a terminal: score, id, class, and the text with its entities marked."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

import click

from indexer.command import counted, one_line
from search.hits import Entity, Hit

# Colours that differ in brightness too; types beyond these take them in turn.
_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_FIXED = {"PER": "cyan", "ORG": "yellow", "LOC": "green"}

SHOWN_CHARACTERS = 600  # of a hit's text


def wants_colour(*, terminal: bool) -> bool:
    """Colours only on a terminal, and not where NO_COLOR is set (no-color.org)."""
    return terminal and not os.environ.get("NO_COLOR")


def render_hits(hits: Sequence[Hit], *, colour: bool, offset: int = 0) -> str:
    """All hits, best first, numbered from `offset` + 1."""
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 110))
    return "\n\n".join(
        render_hit(hit, number, colour=colour, width=width) for number, hit in enumerate(hits, start=offset + 1)
    )


def render_hit(hit: Hit, number: int, *, colour: bool, width: int) -> str:
    """One hit: a line with its score, id and class, its text, and its metadata."""
    head = f"{number:>3}. {hit.score:.4f}  {one_line(hit.id)}"
    if hit.label is not None:
        head += f"  [{one_line(hit.label.name)} {hit.label.score:.2f}]"
    if hit.hidden:
        head += f"  (+ {counted(len(hit.hidden), 'near-duplicate')})"
    lines = [click.style(head, bold=True) if colour else head]
    lines += [f"     {line}" for line in mark_entities(hit, colour=colour, width=width - 5)]
    if hit.metadata:
        facts = " · ".join(f"{one_line(str(key))}={one_line(str(value))}" for key, value in hit.metadata.items())
        if len(facts) > 2 * width:
            facts = facts[: 2 * width - 2] + " …"
        lines += [f"     {click.style(line, dim=True) if colour else line}" for line in wrap(facts, width - 5)]
    return "\n".join(lines)


def mark_entities(hit: Hit, *, colour: bool, width: int) -> list[str]:
    """The text of the best passage in lines: entities coloured by type, or as [text TYPE] without colours."""
    start, end = hit.passage.start, min(hit.passage.end, hit.passage.start + SHOWN_CHARACTERS)
    entities = [entity for entity in hit.entities if start <= entity.start and entity.end <= end]
    before, after = "… " if start > 0 else "", " …" if end < len(hit.text) else ""
    if not colour:
        return wrap(one_line(" ".join((before + _bracketed(hit.text, start, end, entities) + after).split())), width)
    types: list[str | None] = [None] * (end - start)
    for entity in entities:
        types[entity.start - start : entity.end - start] = [entity.type] * (entity.end - entity.start)
    text = hit.text[start:end]
    words = [
        (_coloured(text, types, first, last), _visible(text[first:last]))
        for match in re.finditer(r"\S+", text)
        for first, last in _cut(text, *match.span(), width)
    ]
    return _fill([*_mark(before), *words, *_mark(after)], width)


def colour_of(entity_type: str) -> str:
    """The colour of an entity type: fixed for PER, ORG and LOC, else by its name."""
    return _FIXED.get(entity_type) or _COLOURS[sum(entity_type.encode()) % len(_COLOURS)]


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, at least one."""
    return textwrap.wrap(text, width) or [""]


def _bracketed(text: str, start: int, end: int, entities: Sequence[Entity]) -> str:
    parts, position = [], start
    for entity in entities:
        if entity.start >= position:
            parts += [text[position : entity.start], f"[{text[entity.start : entity.end]} {entity.type}]"]
            position = entity.end
    return "".join([*parts, text[position:end]])


def _coloured(text: str, types: Sequence[str | None], start: int, end: int) -> str:
    """A word with each run of characters of one type in that type's colour."""
    runs = groupby(range(start, end), key=lambda position: types[position])
    styled = []
    for entity_type, positions in runs:
        run = one_line("".join(text[position] for position in positions))
        styled.append(run if entity_type is None else click.style(run, fg=colour_of(entity_type), bold=True))
    return "".join(styled)


def _mark(ellipsis: str) -> list[tuple[str, int]]:
    return [(ellipsis.strip(), 1)] if ellipsis else []


def _visible(text: str) -> int:
    return len(one_line(text))


def _cut(text: str, start: int, end: int, width: int) -> Iterator[tuple[int, int]]:
    """A word in pieces that fit into a line each."""
    first, used = start, 0
    for position in range(start, end):
        length = _visible(text[position])
        if used + length > width and used:
            yield first, position
            first, used = position, 0
        used += length
    yield first, end


def _fill(words: Sequence[tuple[str, int]], width: int) -> list[str]:
    """Lines of words given with their visible lengths; colour codes do not count."""
    lines: list[str] = []
    line: list[str] = []
    used = 0
    for word, length in words:
        if line and used + 1 + length > width:
            lines.append(" ".join(line))
            line, used = [], 0
        used += length + (1 if line else 0)
        line.append(word)
    return [*lines, " ".join(line)]
