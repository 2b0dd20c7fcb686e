"""`search`: ask an index. A thin layer over `search.Searcher`.

Whatever takes long to import is imported inside the commands, so that `search --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path

import click

from indexer import __version__
from indexer.command import CONTEXT, model_options, one_line, run, text_model_options
from search.cli_evaluate import evaluate
from search.cli_options import (
    entity_options,
    filter_options,
    flag_filter,
    fusion_options,
    hit_options,
    passage_options,
    rerank_options,
)
from search.cli_output import show_cursor, show_explanation, show_facets, show_hits, show_missing_fields
from search.cli_serve import serve


@click.group(context_settings={**CONTEXT, "auto_envvar_prefix": "SEARCH"})
@click.version_option(__version__, prog_name="search")
def cli() -> None:
    """Search an index by meaning, and filter by entity, class and metadata."""


cli.add_command(serve)
cli.add_command(evaluate)


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("text")
@hit_options
@entity_options
@passage_options
@rerank_options
@click.option(
    "--cursor",
    is_flag=False,
    flag_value="",
    metavar="[CURSOR]",
    help="Show page after page, while the index may change: without CURSOR the first, with the CURSOR that a page ends "
    "with the next.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Say on standard error what was searched, how long it took, and what each score is made of.",
)
@click.option(
    "--mode",
    type=click.Choice(["cosine", "hybrid", "keyword"]),
    default="cosine",
    show_default=True,
    help='How hits are ranked: by meaning; by meaning and words; by words, "phrases" and prefixes*, without a model.',
)
@fusion_options
@model_options
def query(
    index: Path,
    text: str,
    k: int,
    entity: tuple[str, ...],
    label: tuple[str, ...],
    where: str | None,
    offset: int,
    min_score: float | None,
    distinct: float | None,
    mmr: float | None,
    json: bool,
    auto_filter: bool,
    boost: float | None,
    passages: int,
    neighbours: int,
    highlight: bool,
    rerank: str | None,
    rerank_top: int,
    cursor: str | None,
    explain: bool,
    mode: str,
    fusion: str,
    keyword_weight: float,
    model: str | None,
    device: str,
) -> None:
    """Show the documents in INDEX that are nearest in meaning to TEXT.

    \b
    Example: search query myindex "supply problems" --entity "ORG:Halden Steel" --where "year >= 2020"
    """
    from search.query import Query
    from search.searcher import Searcher

    if auto_filter and boost is not None:
        raise click.UsageError("'--auto-filter' and '--boost' exclude each other.", ctx=click.get_current_context())
    with Searcher(index, model=model, device=device) as searcher:
        filter = flag_filter(entity, label, where)
        asked = Query(
            k=k,
            filter=filter,
            mode=mode,
            offset=offset,
            min_score=min_score,
            distinct=distinct,
            mmr=mmr,
            fusion=fusion,
            keyword_weight=keyword_weight,
            entities="filter" if auto_filter else None if boost is None else "boost",
            boost=0.0 if boost is None else boost,
            passages=passages,
            neighbours=neighbours,
            highlight=highlight,
            rerank=rerank,
            rerank_top=rerank_top,
        )
        if cursor is not None:
            page = searcher.answer_page(text, asked, cursor or None, explain=explain)
            show_hits(page.hits, as_json=json, offset=offset)
            show_cursor(page.cursor, as_json=json)
            explanation = page.explanation
        else:
            answer = searcher.answer(text, asked, explain=explain)
            show_hits(answer.hits, as_json=json, offset=offset)
            explanation = answer.explanation
        if explanation.allowed == 0 and not json:
            show_missing_fields(searcher, filter)
    if explain:
        show_explanation(explanation, as_json=json)
    else:
        for note in explanation.notes:
            click.echo(one_line(note), err=True)


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--id", multiple=True, metavar="ID", help="A document that hits should be like; may be repeated.")
@click.option("--text", multiple=True, metavar="TEXT", help="A text that hits should be like; may be repeated.")
@click.option("--not-id", multiple=True, metavar="ID", help="A document that hits should not be like.")
@click.option("--not-text", multiple=True, metavar="TEXT", help="A text that hits should not be like.")
@click.option(
    "--not-weight",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    help="How much the negative examples count against the others.",
)
@hit_options
@model_options
def similar(
    index: Path,
    id: tuple[str, ...],
    text: tuple[str, ...],
    not_id: tuple[str, ...],
    not_text: tuple[str, ...],
    not_weight: float,
    k: int,
    entity: tuple[str, ...],
    label: tuple[str, ...],
    where: str | None,
    offset: int,
    min_score: float | None,
    distinct: float | None,
    mmr: float | None,
    json: bool,
    model: str | None,
    device: str,
) -> None:
    """Show the documents in INDEX that are most like some of its own or some texts, and unlike others.

    The documents given are left out. Needs a model only for texts.

    \b
    Examples: search similar myindex --id article-17 -k 5
              search similar myindex --id article-17 --text "steel prices" --not-id article-4
    """
    if not id and not text:
        raise click.UsageError("Missing option '--id' or '--text'.", ctx=click.get_current_context())
    from search.searcher import Searcher
    from search.similar import Examples

    examples = Examples(ids=id, texts=text, not_ids=not_id, not_texts=not_text, not_weight=not_weight)
    filter = flag_filter(entity, label, where)
    with Searcher(index, model=model, device=device) as searcher:
        hits = searcher.similar(
            examples, k=k, filter=filter, offset=offset, min_score=min_score, distinct=distinct, mmr=mmr
        )
        show_hits(hits, as_json=json, offset=offset)
        if not hits and not json:
            show_missing_fields(searcher, filter)


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--query", metavar="TEXT", help="Count the best hits of this query instead of all documents.")
@filter_options
@click.option(
    "--facet",
    "names",
    envvar="SEARCH_FACETS_FACET",
    multiple=True,
    metavar="NAME",
    help="What to count: label, entity (all types), entity:TYPE, a metadata field as in filters, FIELD:year, :month or "
    ":day (dates), FIELD:histogram or FIELD:histogram:WIDTH (numbers). Default, and what `default` stands for: the "
    "class, the entities of each type, and the fields of few values.",
)
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="How many values of each.")
@click.option(
    "--significant",
    is_flag=True,
    help="The values that stand out most from the whole index instead of the most frequent ones.",
)
@click.option("--of", type=click.IntRange(min=1), default=100, show_default=True, help="With --query: how many hits.")
@click.option("--min-score", type=float, help="With --query: only hits with at least this score.")
@click.option(
    "--mode",
    type=click.Choice(["cosine", "hybrid", "keyword"]),
    default="cosine",
    show_default=True,
    help="With --query: how hits are ranked.",
)
@click.option("--json", is_flag=True, help="Print one JSON object.")
@model_options
def facets(
    index: Path,
    query: str | None,
    entity: tuple[str, ...],
    label: tuple[str, ...],
    where: str | None,
    names: tuple[str, ...],
    top: int,
    significant: bool,
    of: int,
    min_score: float | None,
    mode: str,
    json: bool,
    model: str | None,
    device: str,
) -> None:
    """Count the documents in INDEX by class, entity and metadata: of all that the filter allows, or of a query's hits.

    \b
    Example: search facets myindex --where "year >= 2020" --facet entity:ORG --facet published:month
    """
    from search.searcher import Searcher

    filter = flag_filter(entity, label, where)
    with Searcher(index, model=model, device=device) as searcher:
        found = searcher.facets(
            query,
            names=names,
            filter=filter,
            of=of,
            min_score=min_score,
            mode=mode,
            top=top,
            significant=significant,
        )
        show_facets(found, as_json=json)
        if not found.documents and not json:
            show_missing_fields(searcher, filter)


@cli.command()
@click.argument("text1")
@click.argument("text2")
@text_model_options
def similarity(text1: str, text2: str, model: str | None, device: str) -> None:
    """Print the cosine of the embeddings of two texts.

    \b
    Example: search similarity "Well, hello there" "Hi!"
    """
    from indexer.model import TextModel

    click.echo(f"{TextModel.load(model, device=device).similarity(text1, text2):.8f}")


def main() -> None:
    """Entry point of the command `search`."""
    run(cli, name="search")


if __name__ == "__main__":
    main()
