"""`indexer`: build and maintain an index, and run the model over files. A thin layer over `indexer.api`.

Whatever takes long to import is imported inside the commands, so that `indexer --help` answers at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from indexer import __version__
from indexer.command import CONTEXT, counted, model_options, one_line, run
from indexer.errors import CorruptIndexError, InputError
from indexer.training import commands

if TYPE_CHECKING:
    from indexer.backup import Copied
    from indexer.pipeline import Report
    from indexer.readers import ReadOptions
    from indexer.records import Document

F = TypeVar("F", bound=Callable[..., Any])

SHOWN_ERRORS = 5  # of the records that --on-error skip passes over


@click.group(context_settings={**CONTEXT, "auto_envvar_prefix": "INDEXER"})
@click.version_option(__version__, prog_name="indexer")
def cli() -> None:
    """Build a search index over your own texts: embedding, class and named entities from one forward pass."""


def reading_options(command: F) -> F:
    """The options that say how files are read."""
    options = (
        click.option(
            "--format",
            type=click.Choice(["jsonl", "csv", "tsv", "parquet", "text", "sqlite"]),
            help="Format of all files. Default: by each file's suffix.",
        ),
        click.option("--id-field", metavar="F", help="Field with the id. Default: id, else a hash of the content."),
        click.option(
            "--text-field",
            "text_field",
            multiple=True,
            metavar="F",
            help="Field with the text; several are joined by a newline. Default: text.",
        ),
        click.option("--lines", is_flag=True, help="Text files: one document per line instead of one per file."),
        click.option("--table", metavar="T", help="SQLite files: which table, where there are several."),
        click.option(
            "--on-error",
            type=click.Choice(["stop", "skip"]),
            default="stop",
            show_default=True,
            help="What a record that cannot be read does.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


batch_tokens_option = click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of one batch, padding included. Default: 1024 on a CPU, 65536 on a GPU.",
)


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True)
@reading_options
@model_options
@batch_tokens_option
@click.option("--no-tags", is_flag=True, help="A new index without class and entities; it has no such filters.")
@click.option("--tags", is_flag=True, help="A new index with class and entities, although its vectors are given.")
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    metavar="FILE.npy",
    help="Take the vectors from here, one row per document; with --model, they are that model's.",
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

    FILES are JSONL, CSV, TSV, Parquet, SQLite or text files, compressed ones too, or folders of such; '-' reads
    one text per line from standard input. A known id is replaced; a text that has not changed is not embedded
    again, so a run that was stopped goes on where it was.

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
    started = time.monotonic()
    with source_documents(files, reading, on_error=on_error) as source:
        documents = source.documents
        if vectors:
            documents = with_vectors(documents, vectors)
        elif vector_field:
            documents = with_vector_field(documents, vector_field, on_error=source.on_error)
        if metadata_field:
            documents = with_metadata_field(documents, metadata_field, on_error=source.on_error)
        report = add_documents(
            index,
            documents,
            model=model,
            device=device,
            batch_tokens=batch_tokens,
            tags=True if tags else False if no_tags else None,
            on_commit=source.show,
            on_error=source.on_error,
        )
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

    if bool(ids) == bool(where):
        raise click.UsageError("give either IDS or --where EXPR")
    if where:
        click.echo(f"{index}: {counted(remove_matching(index, where), 'document')} removed")
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
@batch_tokens_option
def retag(index: Path, model: str | None, device: str, batch_tokens: int | None) -> None:
    """Find the class and the entities of all documents in INDEX again, with other heads; embeddings stay.

    \b
    Example: indexer retag myindex --model my-model
    """
    from tqdm import tqdm

    from indexer.api import retag_documents

    with tqdm(unit=" documents", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        done = retag_documents(
            index, model=model, device=device, batch_tokens=batch_tokens, on_commit=lambda n: bar.update(n - bar.n)
        )
    click.echo(f"{index}: {counted(done, 'document')} tagged again")


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--codes",
    type=click.Choice(["auto", "always", "never"]),
    help="Which segments get compressed codes, from now on: the large ones, all, or none. Default: as it was (auto).",
)
def compact(index: Path, codes: str | None) -> None:
    """Give back the space of what was removed from INDEX, and put its segments together.

    Searches go on meanwhile. It can be stopped at any moment, and then be run again.

    Large segments are searched by codes of one bit a dimension, which stay in memory, and the vectors of the most
    promising. Without codes every vector is read: exact by construction, several times slower.

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


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--link",
    is_flag=True,
    help="Hard links in place of copies of the segments, where DEST is on the same file system: quick, and needs no "
    "room, but what damages a file damages both. Default: a copy, which shares nothing.",
)
@click.option("--no-verify", is_flag=True, help="Copy without checking; also the way to copy a damaged index.")
def snapshot(index: Path, dest: Path, link: bool, no_verify: bool) -> None:
    """Copy INDEX to the new folder DEST, while it is written to and searched.

    DEST is an index itself, as of one commit, and is checked as `indexer verify` does. It is there whole or not at
    all, and survives a power cut once the command has ended.

    \b
    Example: indexer snapshot myindex /backups/myindex-monday
    """
    from indexer.api import snapshot_index

    copied = snapshot_index(index, dest, link=link, verify=not no_verify)
    click.echo(f"{dest}: {describe_copy(copied)}, {'not verified' if no_verify else 'no fault'}")


@cli.command()
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("index", type=click.Path(path_type=Path))
def restore(source: Path, index: Path) -> None:
    """Make the new INDEX of the snapshot SRC, if `indexer verify` would find no fault in it.

    INDEX is there whole or not at all. One that is there already is not replaced: move it away first.

    \b
    Example: indexer restore /backups/myindex-monday myindex
    """
    from indexer.api import restore_index

    copied = restore_index(source, index)
    click.echo(f"{index}: {describe_copy(copied)}, no fault")


@cli.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A new file, .jsonl or .parquet. Default: JSON Lines on standard output.",
)
@click.option("--vectors", is_flag=True, help='Add "vector", the embedding of the whole document, of length 1.')
@click.option("--passage-vectors", is_flag=True, help='Add "vectors", the embedding of each passage.')
def export(index: Path, output: Path | None, vectors: bool, passage_vectors: bool) -> None:
    """Write everything that INDEX says about its documents, as of one commit: one JSON object each.

    The index can be written to meanwhile. What was exported can be added to another index; with --vectors, also
    without embedding it again.

    \b
    Examples: indexer export myindex --output all.jsonl
              indexer add other all.jsonl --metadata-field metadata
    """
    from tqdm import tqdm

    from indexer.export import export_documents, write_jsonl, write_records

    documents = export_documents(index, vectors=vectors, passage_vectors=passage_vectors)
    with tqdm(documents, unit=" documents", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        if output is None:
            write_jsonl(bar, sys.stdout.buffer)
            return
        count = write_records(bar, output)
    click.echo(f"{output}: {counted(count, 'document')}")


@cli.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The .npy file.")
@reading_options
@model_options
@batch_tokens_option
def encode(
    files: tuple[str, ...],
    output: Path,
    model: str | None,
    device: str,
    batch_tokens: int | None,
    on_error: str,
    **reading: Any,
) -> None:
    """Write the embeddings of the texts in FILES: one fp32 row each, in their order, not normalised.

    \b
    Example: indexer encode texts.txt --lines --output texts.npy
    """
    from indexer.model import TextModel
    from indexer.npy import NpyWriter

    with source_documents(files, reading, on_error=on_error) as source:
        text_model = TextModel.load(model, device=device, batch_tokens=batch_tokens)
        with NpyWriter(output, dimension=text_model.dimension) as rows:
            for batch in source.batches():
                rows.append(text_model.encode([document.text for document in batch]))
    click.echo(f"{output}: {rows.rows} rows of {text_model.dimension} dimensions")


@cli.command()
@click.argument("files", nargs=-1, required=True)
@reading_options
@model_options
@batch_tokens_option
def tag(
    files: tuple[str, ...],
    model: str | None,
    device: str,
    batch_tokens: int | None,
    on_error: str,
    **reading: Any,
) -> None:
    """Print the class and the entities of the texts in FILES: one JSON object each, in their order.

    \b
    Example: echo "Ada Lovelace lived in London." | indexer tag -
    """
    from indexer.model import TextModel

    with source_documents(files, reading, on_error=on_error) as source:
        text_model = TextModel.load(model, device=device, batch_tokens=batch_tokens)
        if text_model.class_labels is None and text_model.entity_types is None:
            raise InputError(f"model {text_model.name} has no heads: it gives embeddings, but no class or entities")
        for batch in source.batches():
            for document, analysis in zip(
                batch, text_model.analyse([document.text for document in batch]), strict=True
            ):
                label = analysis.label
                entities = [
                    {
                        "type": span.type,
                        "text": document.text[span.start : span.end],
                        "start": span.start,
                        "end": span.end,
                        "score": span.score,
                    }
                    for span in analysis.spans
                ]
                click.echo(
                    dumps(
                        {
                            "id": document.id,
                            "label": None if label is None else {"name": label.name, "score": label.score},
                            "entities": entities,
                        }
                    )
                )


cli.add_command(commands.train)
cli.add_command(commands.evaluate)


class Source:
    """Documents from files, with a progress bar on a terminal and a count of what was skipped."""

    def __init__(self, files: tuple[str, ...], options: ReadOptions, *, skip: bool) -> None:
        from tqdm import tqdm

        from indexer.readers import read_documents, total_bytes

        self.skipped: list[InputError] = []
        self.skipped_count = 0
        total = total_bytes(files, options)
        self._bar = tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._started = time.monotonic()
        self.on_error = self._skip if skip else None
        self.documents: Iterator[Document] = read_documents(
            files, options, on_error=self.on_error, on_progress=self._bar.update
        )

    def show(self, report: Report) -> None:
        """The number of documents and their rate, beside the bar."""
        rate = report.documents / max(1e-9, time.monotonic() - self._started)
        self._bar.set_postfix_str(f"{report.documents:,} documents, {rate:,.0f}/s")

    def batches(self) -> Iterator[list[Document]]:
        """The documents in batches for the model."""
        from indexer.pipeline import batched

        done = 0
        for batch in batched(self.documents):
            yield batch
            done += len(batch)
            rate = done / max(1e-9, time.monotonic() - self._started)
            self._bar.set_postfix_str(f"{done:,} texts, {rate:,.0f}/s")

    def close(self) -> None:
        """End the bar; say what was skipped."""
        self._bar.close()
        if self.skipped_count:
            click.echo(f"skipped {counted(self.skipped_count, 'record')} that could not be read:", err=True)
            for error in self.skipped:
                click.echo(f"  {one_line(str(error))}", err=True)
            if self.skipped_count > len(self.skipped):
                click.echo(f"  … and {self.skipped_count - len(self.skipped)} more", err=True)

    def _skip(self, error: InputError) -> None:
        self.skipped_count += 1
        if len(self.skipped) < SHOWN_ERRORS:
            self.skipped.append(error)


@contextmanager
def source_documents(files: tuple[str, ...], reading: dict[str, Any], *, on_error: str) -> Iterator[Source]:
    """The documents of FILES under the reading options of a command."""
    from indexer.readers import ReadOptions

    options = ReadOptions(text_fields=reading.pop("text_field"), **reading)
    source = Source(files, options, skip=on_error == "skip")
    try:
        yield source
    finally:
        source.close()


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


def describe_copy(copied: Copied) -> str:
    """What a copy of an index holds, in words."""
    return f"{counted(copied.documents, 'document')} of commit {copied.commit:,}, {copied.bytes:,} bytes"


def dumps(value: object) -> str:
    """Compact JSON."""
    import orjson

    return orjson.dumps(value).decode()


def main() -> None:
    """Entry point of the command `indexer`."""
    run(cli, name="indexer")
