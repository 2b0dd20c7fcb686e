"""`search`: ask an index. A thin layer over `search.Searcher`.

Whatever takes long to import is imported inside the commands, so that `search --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from indexer import __version__
from indexer.command import CONTEXT, model_options, one_line, run

if TYPE_CHECKING:
    from indexer.filters import Filter
    from search.explain import Explanation
    from search.facets import Facets
    from search.hits import Hit

F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={**CONTEXT, "auto_envvar_prefix": "SEARCH"})
@click.version_option(__version__, prog_name="search")
def cli() -> None:
    """Search an index by meaning, and filter by entity, class and metadata."""


def hit_options(command: F) -> F:
    """The options of every command that prints hits."""
    options = (
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
    )
    for option in reversed(options):
        command = option(command)
    return command


def filter_options(command: F) -> F:
    """The options that make a filter, which `flag_filter` reads."""
    options = (
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
    )
    for option in reversed(options):
        command = option(command)
    return command


def fusion_options(command: F) -> F:
    """--fusion and --keyword-weight."""
    command = click.option(
        "--keyword-weight",
        type=click.FloatRange(0, 1),
        default=0.5,
        show_default=True,
        help="The share of words in a weighted fusion.",
    )(command)
    return click.option(
        "--fusion",
        type=click.Choice(["rrf", "weighted"]),
        default="weighted",
        show_default=True,
        help="How a hybrid search makes one ranking of two: by ranks, or by scores.",
    )(command)


def entity_options(command: F) -> F:
    """What the query's own entities do."""
    options = (
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
    )
    for option in reversed(options):
        command = option(command)
    return command


def passage_options(command: F) -> F:
    """What of their texts hits show."""
    options = (
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
    )
    for option in reversed(options):
        command = option(command)
    return command


def rerank_options(command: F) -> F:
    """A second, slower look at the best hits."""
    options = (
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
    )
    for option in reversed(options):
        command = option(command)
    return command


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


@cli.command()
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


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--query", metavar="TEXT", help="Count the best hits of this query instead of all documents.")
@filter_options
@click.option(
    "--facet",
    "names",
    multiple=True,
    metavar="NAME",
    help="What to count: label, entity (all types), entity:TYPE, a metadata field as in filters, FIELD:year, :month or "
    ":day (dates), FIELD:histogram or FIELD:histogram:WIDTH (numbers). Default: the class, the entities of each type, "
    "and the fields of few values.",
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

    with Searcher(index, model=model, device=device) as searcher:
        found = searcher.facets(
            query,
            names=names,
            filter=flag_filter(entity, label, where),
            of=of,
            min_score=min_score,
            mode=mode,
            top=top,
            significant=significant,
        )
    show_facets(found, as_json=json)


@cli.command()
@click.argument("indexes", nargs=-1, required=True, metavar="INDEX...")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; others than this machine's own need a token.",
)
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--token",
    "tokens",
    envvar="SEARCH_SERVE_TOKEN",
    multiple=True,
    metavar="SCOPES:TOKEN",
    help="A token that is accepted, as in read:… or read,write:…; better set as SEARCH_SERVE_TOKEN, which no list of "
    "processes shows. May be repeated.",
)
@click.option("--token-file", type=click.Path(path_type=Path), help="A file with a token of this form on each line.")
@click.option("--read-only", is_flag=True, help="Refuse to change documents.")
@click.option("--max-body", type=click.IntRange(min=1), default=8 * 2**20, show_default=True, help="Bytes of a body.")
@click.option(
    "--max-stream", type=click.IntRange(min=1), default=2**30, show_default=True, help="Bytes of a stream of documents."
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Searches, documents or texts in one request.",
)
@click.option("--max-k", type=click.IntRange(min=1), default=1_000, show_default=True, help="Offset and k together.")
@click.option(
    "--max-text", type=click.IntRange(min=1), default=100_000, show_default=True, help="Characters of a text."
)
@click.option(
    "--max-filter", type=click.IntRange(min=1), default=10_000, show_default=True, help="Characters of a filter."
)
@click.option(
    "--max-filter-depth", type=click.IntRange(1, 100), default=32, show_default=True, help="Levels of a filter."
)
@click.option(
    "--max-requests",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Requests that are answered or wait at a time.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds for one request.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Threads that search. Default: one per core.")
@click.option(
    "--batch-texts",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Texts that go through the model together; 1 for each alone.",
)
@click.option(
    "--batch-wait",
    type=click.FloatRange(0, 100),
    default=2.0,
    show_default=True,
    help="Milliseconds that a text waits for others at most.",
)
@click.option(
    "--reranker", metavar="NAME_OR_PATH", help="A cross-encoder that requests may ask to put the best hits in order."
)
@click.option("--log-texts", is_flag=True, help="Show queries and documents in the log, which otherwise has none.")
@model_options
def serve(
    indexes: tuple[str, ...],
    host: str,
    port: int,
    tokens: tuple[str, ...],
    token_file: Path | None,
    read_only: bool,
    max_body: int,
    max_stream: int,
    max_batch: int,
    max_k: int,
    max_text: int,
    max_filter: int,
    max_filter_depth: int,
    max_requests: int,
    timeout: float,
    workers: int | None,
    batch_texts: int,
    batch_wait: float,
    reranker: str | None,
    log_texts: bool,
    model: str | None,
    device: str,
) -> None:
    """Answer requests over HTTP: an API under /v1, described at /docs, and a page for people at /.

    Each INDEX is a folder, known by its own name, or NAME=FOLDER. Needs the extra `serve`.

    \b
    Examples: search serve myindex
              search serve news=indexes/2026 archive=indexes/old --port 9000 --read-only
    """
    try:
        from search.server import run
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the package {error.name} is missing, which the service needs: pip install 'tagdex[serve]'"
        ) from error
    from search.server.auth import Tokens, parse_token
    from search.server.service import Service
    from search.server.settings import Limits, Settings

    lines = token_file.read_text(encoding="utf-8").splitlines() if token_file is not None else []
    given = [*tokens, *(line for line in lines if line.strip() and not line.startswith("#"))]
    accepted = Tokens(parse_token(text) for text in given)
    run.check_address(host, tokens=bool(accepted))
    limits = Limits(
        body=max_body,
        stream=max_stream,
        batch=max_batch,
        k=max_k,
        text=max_text,
        filter=max_filter,
        filter_depth=max_filter_depth,
        seconds=timeout,
        requests=max_requests,
    )
    settings = Settings(
        limits=limits,
        workers=workers,
        batch_texts=batch_texts,
        batch_wait=batch_wait / 1_000,
        read_only=read_only,
        reranker=reranker,
        log_texts=log_texts,
        loopback_only=not accepted,
    )
    with closing(run.listen(host, port)) as listener:
        service = Service(named_folders(indexes), settings=settings, tokens=accepted, model=model, device=device)
        run.serve(service, listener, on_start=lambda url: click.echo(f"serving at {url}", err=True))


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """The folders of `search serve` by their names: NAME=FOLDER, or the folder's own name."""
    folders: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or "/" in name:
            name, folder = Path(text).resolve().name, text
        if name in folders:
            raise click.UsageError(
                f"two indexes are called '{name}': give one another name, as in NAME={folder}",
                ctx=click.get_current_context(),
            )
        folders[name] = Path(folder)
    return folders


@cli.command()
@click.argument("text1")
@click.argument("text2")
@model_options
def similarity(text1: str, text2: str, model: str | None, device: str) -> None:
    """Print the cosine of the embeddings of two texts.

    \b
    Example: search similarity "Well, hello there" "Hi!"
    """
    from indexer.model import TextModel

    click.echo(f"{TextModel.load(model, device=device).similarity(text1, text2):.8f}")


def flag_filter(entities: Sequence[str], labels: Sequence[str], where: str | None) -> Filter | None:
    """The filter of the flags: all entities, any of the labels, and the expression."""
    from indexer.filters import HasLabel, all_of, any_of, parse, parse_entity_flag

    parts = [parse_entity_flag(entity) for entity in entities]
    if labels:
        parts.append(any_of([HasLabel(label) for label in labels]))
    if where is not None:
        parts.append(parse(where))
    return all_of(parts) if parts else None


def show_hits(hits: Sequence[Hit], *, as_json: bool, offset: int) -> None:
    """Print hits as JSON lines, or for reading."""
    if as_json:
        import orjson

        for hit in hits:
            click.echo(orjson.dumps(hit.to_json()).decode())
        return
    from search.render import render_hits, wants_colour

    if not hits:
        click.echo("no document fits", err=True)
        return
    colour = wants_colour(terminal=sys.stdout.isatty())
    click.echo(render_hits(hits, colour=colour, offset=offset), color=colour)


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


def main() -> None:
    """Entry point of the command `search`."""
    run(cli, name="search")
