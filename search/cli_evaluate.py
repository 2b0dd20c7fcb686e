"""`search evaluate`: how well an index answers queries whose relevant documents are known."""

from __future__ import annotations

from pathlib import Path

import click

from indexer.command import model_options
from search.cli_options import filter_options, flag_filter, fusion_options


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--queries", required=True, metavar="FILE", help="JSONL (_id, text), lines of id TAB text, or topics.")
@click.option("--qrels", required=True, metavar="FILE", help="Judgements: TSV as BEIR has them, or TREC's 4 columns.")
@click.option(
    "--mode",
    multiple=True,
    type=click.Choice(["cosine", "hybrid", "keyword"]),
    help="A mode to evaluate; may be repeated. Default: all that the index has.",
)
@fusion_options
@click.option(
    "--measure",
    multiple=True,
    metavar="NAME",
    help="As ir_measures names them; may be repeated. Default: nDCG@10, RR@10 (MRR), R@100 (recall), AP@100 (MAP).",
)
@click.option(
    "-k", "--depth", type=click.IntRange(min=1), default=100, show_default=True, help="Documents ranked for each query."
)
@filter_options
@click.option("--per-query", is_flag=True, help="Print the values of each query first, one line each.")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Compare the modes query by query.")
@click.option("--json", is_flag=True, help="Print JSON: an object for each query with --per-query, then one for all.")
@model_options
def evaluate(
    index: Path,
    queries: str,
    qrels: str,
    mode: tuple[str, ...],
    fusion: str,
    keyword_weight: float,
    measure: tuple[str, ...],
    depth: int,
    entity: tuple[str, ...],
    label: tuple[str, ...],
    where: str | None,
    per_query: bool,
    compare: bool,
    json: bool,
    model: str | None,
    device: str,
) -> None:
    """Measure how well INDEX answers QUERIES whose relevant documents QRELS names.

    Compares modes of search by nDCG, recall, MRR and MAP. Needs the extra `eval`.

    \b
    Example: search evaluate myindex --queries queries.jsonl --qrels qrels/test.tsv
    """
    from search.evaluate import evaluate
    from search.evaluate_report import evaluation_json, query_json, query_lines, report_lines
    from search.judged import read_qrels, read_queries
    from search.searcher import Searcher

    asked, judged = read_queries(queries), read_qrels(qrels)
    with Searcher(index, model=model, device=device) as searcher:
        evaluation = evaluate(
            searcher,
            asked,
            judged,
            modes=mode or None,
            fusion=fusion,
            keyword_weight=keyword_weight,
            measures=measure or None,
            depth=depth,
            filter=flag_filter(entity, label, where),
        )
    if json:
        import orjson

        for record in (*(query_json(evaluation) if per_query else ()), evaluation_json(evaluation, compare=compare)):
            click.echo(orjson.dumps(record).decode())
        return
    for line in (*((*query_lines(evaluation), "") if per_query else ()), *report_lines(evaluation, compare=compare)):
        click.echo(line)
