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
from search.hits import Entity, Highlight, Hit, Stretch

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
    if hit.rerank_score is not None:
        head = f"{number:>3}. {hit.rerank_score:.4f}  {one_line(hit.id)}  (before reranking {hit.score:.4f})"
    if hit.label is not None:
        head += f"  [{one_line(hit.label.name)} {hit.label.score:.2f}]"
    if hit.hidden:
        head += f"  (+ {counted(len(hit.hidden), 'near-duplicate')})"
    lines = [click.style(head, bold=True) if colour else head]
    for number, passage in enumerate(hit.passages or (), start=1):
        lines.append(f"     passage {number}  {passage.score:.4g}  {passage.start}–{passage.end}")
        lines += _neighbours(passage.before, colour=colour, width=width)
        span = passage.start, passage.end
        lines += [f"       {line}" for line in mark_entities(hit, colour=colour, width=width - 7, span=span)]
        lines += _neighbours(passage.after, colour=colour, width=width)
    if not hit.passages:
        lines += [f"     {line}" for line in mark_entities(hit, colour=colour, width=width - 5)]
    if hit.metadata:
        facts = " · ".join(f"{one_line(str(key))}={one_line(str(value))}" for key, value in hit.metadata.items())
        if len(facts) > 2 * width:
            facts = facts[: 2 * width - 2] + " …"
        lines += [f"     {click.style(line, dim=True) if colour else line}" for line in wrap(facts, width - 5)]
    return "\n".join(lines)


def mark_entities(hit: Hit, *, colour: bool, width: int, span: tuple[int, int] | None = None) -> list[str]:
    """The text of the best passage, or of a span, in lines: entities coloured by type, or as [text TYPE].

    The highlighted sentence is underlined, or «in quotes» without colours.
    """
    start, end = _shown(hit, *(span or (hit.passage.start, hit.passage.end)))
    entities = [entity for entity in hit.entities if start <= entity.start and entity.end <= end]
    marked = _overlap(hit.highlight, start, end)
    before, after = "… " if start > 0 else "", " …" if end < len(hit.text) else ""
    if not colour:
        return wrap(
            one_line(" ".join((before + _bracketed(hit.text, start, end, entities, marked) + after).split())), width
        )
    types: list[str | None] = [None] * (end - start)
    for entity in entities:
        types[entity.start - start : entity.end - start] = [entity.type] * (entity.end - entity.start)
    text = hit.text[start:end]
    lit = range(marked[0] - start, marked[1] - start) if marked else range(0)
    words = [
        (_coloured(text, types, lit, first, last), _visible(text[first:last]))
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


def _shown(hit: Hit, start: int, end: int) -> tuple[int, int]:
    """What of a span is shown: `SHOWN_CHARACTERS` from its start, or from the highlighted sentence if that is later."""
    lit = _overlap(hit.highlight, start, end)
    if lit is not None and lit[1] > start + SHOWN_CHARACTERS:
        start = max(start, min(lit[0], end - SHOWN_CHARACTERS))
    return start, min(end, start + SHOWN_CHARACTERS)


def _overlap(highlight: Highlight | None, start: int, end: int) -> tuple[int, int] | None:
    if highlight is None or highlight.start >= end or highlight.end <= start:
        return None
    return max(highlight.start, start), min(highlight.end, end)


def _neighbours(parts: Sequence[Stretch] | None, *, colour: bool, width: int) -> Iterator[str]:
    """The passages next to one, each shortened, with its offsets."""
    for part in parts or ():
        text = " ".join(part.text[:SHOWN_CHARACTERS].split()) + (" …" if len(part.text) > SHOWN_CHARACTERS else "")
        for line in wrap(one_line(f"({part.start}–{part.end}) {text}"), width - 7):
            yield f"       {click.style(line, dim=True) if colour else line}"


def _bracketed(
    text: str, start: int, end: int, entities: Sequence[Entity], marked: tuple[int, int] | None = None
) -> str:
    marks: list[tuple[int, int, str]] = []  # position, order among those at one position, what is put there
    position = start
    for entity in entities:
        if entity.start >= position:
            marks += [(entity.start, 2, "["), (entity.end, 0, f" {entity.type}]")]
            position = entity.end
    if marked is not None:
        marks += [(marked[0], 1, "«"), (marked[1], 1, "»")]
    parts, position = [], start
    for at, _, mark in sorted(marks, key=lambda mark: mark[:2]):
        parts += [text[position:at], mark]
        position = at
    return "".join([*parts, text[position:end]])


def _coloured(text: str, types: Sequence[str | None], lit: range, start: int, end: int) -> str:
    """A word with each run of characters of one type in that type's colour, those of `lit` underlined."""
    runs = groupby(range(start, end), key=lambda position: (types[position], position in lit))
    styled = []
    for (entity_type, underlined), positions in runs:
        run = one_line("".join(text[position] for position in positions))
        if entity_type is not None:
            styled.append(click.style(run, fg=colour_of(entity_type), bold=True, underline=underlined or None))
        else:
            styled.append(click.style(run, underline=True) if underlined else run)
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
