"""Options that several commands of `search` share, and the filter that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from indexer.command import options

if TYPE_CHECKING:
    from indexer.filters import Filter

F = TypeVar("F", bound=Callable[..., Any])


def hit_options(command: F) -> F:
    """The options of every command that prints hits."""
    return options(
        click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many documents."),
        filter_options,
        click.option(
            "--offset", type=click.IntRange(min=0), default=0, show_default=True, help="Pass over the best N."
        ),
        click.option("--min-score", type=float, help="Only hits with at least this score."),
        click.option(
            "--distinct",
            type=click.FloatRange(0, 1, min_open=True),
            is_flag=False,
            flag_value=0.95,
            metavar="[T]",
            help="Show near-duplicates as one hit: documents with the same text, or a cosine of T or more. Without T: "
            "0.95.",
        ),
        click.option(
            "--mmr",
            type=click.FloatRange(0, 1),
            metavar="λ",
            help="Hits that differ, by maximal marginal relevance: from 1, the order of scores, to 0.",
        ),
        click.option("--json", is_flag=True, help="Print one JSON object per hit."),
    )(command)


def filter_options(command: F) -> F:
    """The options that make a filter, which `flag_filter` reads."""
    return options(
        click.option(
            "--entity",
            multiple=True,
            metavar="TYPE:TEXT",
            help="Only documents that name this entity: ORG:Acme, ORG:acme* (begins with), ORG (any), '!ORG:Acme' "
            "(not). Several must all hold.",
        ),
        click.option(
            "--label",
            multiple=True,
            metavar="NAME",
            help="Only documents of this class; of several, any.",
        ),
        click.option(
            "--where",
            metavar="EXPR",
            help="Only documents for which this is true, as in 'year >= 2020 and lang in [de, fr]'.",
        ),
    )(command)


def fusion_options(command: F) -> F:
    """--fusion and --keyword-weight."""
    return options(
        click.option(
            "--fusion",
            type=click.Choice(["rrf", "weighted"]),
            default="weighted",
            show_default=True,
            help="How a hybrid search makes one ranking of two: by ranks, or by scores.",
        ),
        click.option(
            "--keyword-weight",
            type=click.FloatRange(0, 1),
            default=0.5,
            show_default=True,
            help="The share of words in a weighted fusion.",
        ),
    )(command)


def entity_options(command: F) -> F:
    """What the query's own entities do."""
    return options(
        click.option(
            "--auto-filter",
            is_flag=True,
            help="Only documents that share an entity of TEXT, as the model finds them, where there are any.",
        ),
        click.option(
            "--boost",
            type=click.FloatRange(min=0),
            is_flag=False,
            flag_value=0.1,
            metavar="[WEIGHT]",
            help="Raise documents that share entities of TEXT: WEIGHT is added to the cosine of one that shares all. "
            "Without WEIGHT: 0.1.",
        ),
    )(command)


def passage_options(command: F) -> F:
    """What of their texts hits show."""
    return options(
        click.option(
            "--passages",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="Show the N best passages of each hit, with their scores and offsets.",
        ),
        click.option(
            "--neighbours",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="With --passages: the N passages before and after each.",
        ),
        click.option("--highlight", is_flag=True, help="Mark the best sentence of the best passage."),
    )(command)


def rerank_options(command: F) -> F:
    """A second, slower look at the best hits."""
    return options(
        click.option(
            "--rerank",
            metavar="NAME_OR_PATH",
            help="Put the best hits into the order in which this cross-encoder sees them.",
        ),
        click.option(
            "--rerank-top",
            type=click.IntRange(min=1),
            default=50,
            show_default=True,
            metavar="N",
            help="How many of the best hits it reads; at least --offset + -k.",
        ),
    )(command)


def flag_filter(entities: Sequence[str], labels: Sequence[str], where: str | None) -> Filter | None:
    """The filter of the flags: all entities, any of the labels, and the expression."""
    from indexer.filters import HasLabel, all_of, any_of, parse, parse_entity_flag

    parts = [parse_entity_flag(entity) for entity in entities]
    if labels:
        parts.append(any_of([HasLabel(label) for label in labels]))
    if where is not None:
        parts.append(parse(where))
    return all_of(parts) if parts else None
