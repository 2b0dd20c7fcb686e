"""`search serve`: an index, or several, over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from indexer.collector import collect_as_usual
from indexer.command import model_options

TOKEN_VARIABLE = "SEARCH_SERVE_TOKEN"


@click.command()
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
    envvar=TOKEN_VARIABLE,
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
    "--max-texts",
    type=click.IntRange(min=1),
    default=400_000,
    show_default=True,
    help="Characters of all texts of one request that go through the model.",
)
@click.option(
    "--max-filter", type=click.IntRange(min=1), default=10_000, show_default=True, help="Characters of a filter."
)
@click.option(
    "--max-filter-depth", type=click.IntRange(1, 100), default=32, show_default=True, help="Levels of a filter."
)
@click.option(
    "--max-filters",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    help="Characters of all filters of one request.",
)
@click.option(
    "--max-answer",
    type=click.IntRange(min=1),
    default=32 * 2**20,
    show_default=True,
    help="Bytes of an answer to searches.",
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
    max_texts: int,
    max_filter: int,
    max_filter_depth: int,
    max_filters: int,
    max_answer: int,
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

    accepted = Tokens(parse_token(text) for text in given_tokens(tokens, token_file))
    run.check_address(host, tokens=bool(accepted))
    limits = Limits(
        body=max_body,
        stream=max_stream,
        batch=max_batch,
        k=max_k,
        text=max_text,
        texts=max_texts,
        filter=max_filter,
        filter_depth=max_filter_depth,
        filters=max_filters,
        answer=max_answer,
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
    collect_as_usual()
    with closing(run.listen(host, port)) as listener:
        service = Service(named_folders(indexes), settings=settings, tokens=accepted, model=model, device=device)
        run.serve(service, listener, on_start=lambda url: click.echo(f"serving at {url}", err=True))


def given_tokens(tokens: Sequence[str], file: Path | None) -> list[str]:
    """The tokens of `--token`, or of its variable, and those of a file.

    Raises `UsageError` where the file or the variable is given and holds none: whoever gives one wants no open service.
    """
    if not tokens and not os.environ.get(TOKEN_VARIABLE, "set").strip():
        raise _usage(f"{TOKEN_VARIABLE} is set, but holds no token: give it one, or unset it to serve without")
    if file is None:
        return list(tokens)
    lines = file.read_text(encoding="utf-8").splitlines()
    written = [line for line in lines if line.strip() and not line.startswith("#")]
    if not written:
        raise _usage(f"{file} holds no token: write one on a line of its own, or leave --token-file out")
    return [*tokens, *written]


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """The folders of `search serve` by their names: NAME=FOLDER, or the folder's own name."""
    folders: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or "/" in name:
            name, folder = Path(text).resolve().name, text
        if name in folders:
            raise _usage(f"two indexes are called '{name}': give one another name, as in NAME={folder}")
        same = next((known for known, path in folders.items() if path.resolve() == Path(folder).resolve()), None)
        if same is not None:
            raise _usage(f"'{same}' and '{name}' are one folder, which can only have one writer: name it once")
        folders[name] = Path(folder)
    return folders


def _usage(message: str) -> click.UsageError:
    return click.UsageError(message, ctx=click.get_current_context())
