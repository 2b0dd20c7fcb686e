"""`indexer`: build and maintain an index, and run the model over files. A thin layer over `indexer.api`.

Whatever takes long to import is imported inside the commands, so that `indexer --help` answers at once.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from indexer import __version__
from indexer.cli_copies import export, restore, snapshot
from indexer.cli_source import SHOWN_ERRORS, computing_options, reading_options, source_documents
from indexer.cli_texts import encode, tag
from indexer.command import CONTEXT, counted, model_options, one_line, run, say_missing_fields
from indexer.errors import CorruptIndexError, InputError
from indexer.training.commands import evaluate, train

if TYPE_CHECKING:
    from indexer.pipeline import Report


@click.group(context_settings={**CONTEXT, "auto_envvar_prefix": "INDEXER"})
@click.version_option(__version__, prog_name="indexer")
def cli() -> None:
    """Build a search index over your own texts: embedding, class and named entities from one forward pass."""


for command in (snapshot, restore, export, encode, tag, train, evaluate):
    cli.add_command(command)


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True)
@reading_options
@model_options
@computing_options("auto")
@click.option("--no-tags", is_flag=True, help="A new index without class and entities; it has no such filters.")
@click.option("--tags", is_flag=True, help="A new index with class and entities, although its vectors are given.")
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    metavar="FILE.npy",
    help="Take the vectors from here, one row per document, counted first but for standard input; with --model, they "
    "are that model's.",
)
@click.option("--vector-field", metavar="F", help="Take the vectors from this field, an array of numbers.")
@click.option(
    "--metadata-field",
    metavar="F",
    help="Take the metadata from this field, an object, and leave all others out, as for what `indexer export` wrote.",
)
def add(
    index: Path,
    files: tuple[str, ...],
    model: str | None,
    device: str,
    precision: str,
    batch_tokens: int | None,
    no_tags: bool,
    tags: bool,
    vectors: Path | None,
    vector_field: str | None,
    metadata_field: str | None,
    on_error: str,
    **reading: Any,
) -> None:
    """Add the documents in FILES to INDEX, which is made if it is not there.

    FILES are JSONL, CSV, TSV, Parquet, SQLite or text files, compressed ones too, or folders of such, from
    which indexes are left out; '-' reads one text per line from standard input. A known id is replaced; a text that
    has not changed is not embedded again, so a run that was stopped goes on where it was.

    \b
    Example: indexer add myindex articles.jsonl --text-field title --text-field body
    """
    from indexer.api import add_documents
    from indexer.given import with_metadata_field, with_vector_field, with_vectors

    if tags and no_tags:
        raise click.UsageError("give either --tags or --no-tags")
    if vectors and vector_field:
        raise click.UsageError("give either --vectors or --vector-field")
    if vectors and on_error == "skip":
        raise click.UsageError("--vectors needs --on-error stop: a record left out would shift all rows after it")
    if vectors or vector_field:
        reading["text_required"] = False
    reading["metadata_field"] = metadata_field
    started = time.monotonic()
    with source_documents(files, reading, on_error=on_error) as source:
        documents = source.documents
        if vectors:
            documents = with_vectors(documents, vectors, count=source.count)
        elif vector_field:
            documents = with_vector_field(documents, vector_field, on_error=source.on_error)
        if metadata_field:
            documents = with_metadata_field(documents, metadata_field, on_error=source.on_error)
        try:
            report = add_documents(
                index,
                documents,
                model=model,
                device=device,
                precision=precision,
                batch_tokens=batch_tokens,
                tags=True if tags else False if no_tags else None,
                on_commit=source.show,
                on_error=source.on_error,
            )
        except InputError as error:
            if error is not source.stopped or not source.stored:
                raise
            way_out = "" if vectors else ", --on-error skip goes on without it"
            raise InputError(f"{error}; what came before it is kept{way_out}") from error
    click.echo(f"{index}: {describe(report)} in {time.monotonic() - started:.1f} s")


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("ids", nargs=-1)
@click.option("--where", metavar="EXPR", help="Remove the documents for which this filter is true.")
def remove(index: Path, ids: tuple[str, ...], where: str | None) -> None:
    """Remove documents from INDEX, by their IDS or by a filter.

    \b
    Examples: indexer remove myindex article-17 article-18
              indexer remove myindex --where 'year < 2015'
    """
    from indexer.api import remove_documents, remove_matching
    from indexer.attributes import missing_fields
    from indexer.filters import parse
    from indexer.reader import IndexReader

    if bool(ids) == bool(where):
        raise click.UsageError("give either IDS or --where EXPR")
    if where:
        removed = remove_matching(index, where)
        click.echo(f"{index}: {counted(removed, 'document')} removed")
        if not removed:
            with IndexReader(index) as reader, reader.snapshot() as snapshot:
                say_missing_fields(missing_fields(snapshot.connection, parse(where)))
        return
    missing = remove_documents(index, ids)
    found = len(set(ids)) - len(missing)
    click.echo(f"{index}: {counted(found, 'document')} removed")
    if missing:
        shown = ", ".join(missing[:SHOWN_ERRORS]) + (", …" if len(missing) > SHOWN_ERRORS else "")
        raise InputError(f"{len(missing)} of the ids are not in {index}: {shown}")


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--json", is_flag=True, help="Print one JSON object.")
def info(index: Path, json: bool) -> None:
    """Show what INDEX holds: documents, model, labels, segments, size.

    \b
    Example: indexer info myindex --json
    """
    from indexer.metadata import has_wal_reset_defect
    from indexer.reader import IndexReader

    with IndexReader(index) as reader:
        facts = asdict(reader.info())
    if has_wal_reset_defect():
        click.echo(
            f"Warning: SQLite {facts['sqlite_version']} can lose data when two connections write or checkpoint at the "
            "same moment (fixed in 3.51.3, 3.50.7 and 3.44.6). An index is safe, because only its one writer does "
            "either, as long as no other program opens meta.sqlite for writing.",
            err=True,
        )
    if json:
        click.echo(dumps(facts))
        return
    segments = facts.pop("segments")
    for name, value in facts.items():
        if isinstance(value, tuple):
            value = ", ".join(value)
        elif name == "disk_bytes":
            value = f"{value:,} ({value / max(1, facts['documents']):,.0f} per document)"
        elif isinstance(value, int):
            value = f"{value:,}"
        click.echo(f"{name.replace('_', ' '):<18} {'none' if value is None else value}")
    for segment in segments:
        size = sum(file["bytes"] for file in segment["files"])
        codes = f", codes with rerank factor {segment['rerank']}" if segment["rerank"] else ""
        click.echo(f"{'segment':<18} {segment['name']}  {segment['rows']:,} vectors, {size:,} bytes{codes}")


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@model_options
@computing_options("auto")
def retag(index: Path, model: str | None, device: str, precision: str, batch_tokens: int | None) -> None:
    """Find the class and the entities of all documents in INDEX again, with other heads; embeddings stay.

    \b
    Example: indexer retag myindex --model my-model
    """
    from tqdm import tqdm

    from indexer.api import retag_documents

    with tqdm(unit=" documents", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        done = retag_documents(
            index,
            model=model,
            device=device,
            precision=precision,
            batch_tokens=batch_tokens,
            on_commit=lambda n: bar.update(n - bar.n),
        )
    click.echo(f"{index}: {counted(done, 'document')} tagged again")


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--codes",
    type=click.Choice(["auto", "always", "never"]),
    help="Which segments get compressed codes, from now on: large ones and those of large indexes, all, or none. "
    "Default: as it was (auto).",
)
def compact(index: Path, codes: str | None) -> None:
    """Give back the space of what was removed from INDEX, and put its segments together.

    Searches go on meanwhile. It can be stopped at any moment, and then be run again.

    Large segments are searched by codes of one bit a dimension, and by the vectors of the most promising. Without
    codes every vector is read: exact by construction, several times slower.

    \b
    Example: indexer compact myindex
    """
    from indexer.api import compact_index
    from indexer.reader import folder_bytes

    before = folder_bytes(index)
    written = compact_index(index, codes=codes)
    click.echo(f"{index}: {counted(written, 'segment')} written, {before:,} bytes before, {folder_bytes(index):,} now")


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Restore what can be restored; the damaged files are kept beside.")
@model_options
def verify(index: Path, repair: bool, model: str | None, device: str) -> None:
    """Check everything in INDEX against its checksums, and the parts against each other.

    Prints one line for each fault, and ends with exit code 1 if there is any.

    With --repair it restores what the rest of the index or the model can give back, names what is lost, and ends with
    exit code 1 only if something is. The model is loaded only if a text must be embedded or tagged again. The damaged
    files are moved to a folder damaged-1, damaged-2, … inside the index. It can be stopped at any moment, and then be
    run again.

    \b
    Examples: indexer verify myindex
              indexer verify myindex --repair
    """
    if repair:
        repaired(index, model, device)
        return
    from indexer.verify import verify_index

    report = verify_index(index)
    for fault in report.faults:
        click.echo(f"{one_line(fault.place)}: {one_line(fault.problem)}")
    if report.faults:
        raise CorruptIndexError(f"{index} is damaged: {counted(len(report.faults), 'fault')}")
    parts = counted(report.documents, "document"), counted(report.passages, "passage")
    click.echo(f"{index}: {' and '.join(parts)}, no fault")


def repaired(index: Path, model: str | None, device: str) -> None:
    """Repair an index and say what came of it."""
    from indexer.api import repair_index

    report = repair_index(index, model=model, device=device)
    for fault in report.found:
        click.echo(f"found: {one_line(fault.place)}: {one_line(fault.problem)}")
    for fault in report.lost:
        click.echo(f"lost: {one_line(fault.place)}: {one_line(fault.problem)}")
    if report.kept is not None:
        click.echo(f"the damaged files are in {report.kept}")
    if report.lost:
        raise CorruptIndexError(f"{index} is sound again, but not everything was restored: see above")
    click.echo(f"{index}: {'everything is restored' if report.found or report.kept else 'no fault'}")


def describe(report: Report) -> str:
    """A report in words: what is zero is left out, but for what was added."""
    parts = [f"{counted(report.added, 'document')} added"]
    parts += [
        f"{count:,} {what}"
        for count, what in (
            (report.replaced, "replaced"),
            (report.updated, "with new metadata"),
            (report.unchanged, "unchanged"),
            (report.duplicates, "with an id that came again (the last one counts)"),
        )
        if count
    ]
    return ", ".join(parts)


def dumps(value: object) -> str:
    """Compact JSON."""
    import orjson

    return orjson.dumps(value).decode()


def main() -> None:
    """Entry point of the command `indexer`."""
    run(cli, name="indexer")


if __name__ == "__main__":
    main()
