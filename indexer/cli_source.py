"""How the commands of `indexer` read files: their options, and the documents with a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from indexer.command import counted, one_line, options
from indexer.errors import InputError

if TYPE_CHECKING:
    from indexer.pipeline import Report
    from indexer.readers import ReadOptions
    from indexer.records import Document

F = TypeVar("F", bound=Callable[..., Any])

SHOWN_ERRORS = 5  # of the records that --on-error skip passes over


def reading_options(command: F) -> F:
    """The options that say how files are read."""
    return options(
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
    )(command)


def computing_options(default: str) -> Callable[[F], F]:
    """--precision, with its default, and --batch-tokens."""
    return options(
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16"]),
            default=default,
            show_default=True,
            help="What the model computes in; auto takes bf16 where the hardware has it and embeddings stay the same.",
        ),
        click.option(
            "--batch-tokens",
            type=click.IntRange(min=1),
            metavar="N",
            help="Tokens of one batch, padding included. Default: 512 on a CPU, one for each core; 65536 on a GPU.",
        ),
    )


class Source:
    """Documents from files, with a progress bar on a terminal and a count of what was skipped."""

    def __init__(self, files: tuple[str, ...], options: ReadOptions, *, skip: bool) -> None:
        from tqdm import tqdm

        from indexer.readers import read_documents, total_bytes

        self._files, self._options = files, options
        self.skipped: list[InputError] = []
        self.skipped_count = 0
        self.stopped: InputError | None = None
        self.stored = 0
        total = total_bytes(files, options)
        self._bar = tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._started = time.monotonic()
        self.on_error = self._skip if skip else self._stop
        self.documents: Iterator[Document] = read_documents(
            files, options, on_error=self.on_error, on_progress=self._bar.update
        )

    def count(self) -> int | None:
        """How many documents there are, read once before the others; `None` with standard input, which cannot be.

        Raises the `InputError` of the first record that cannot be read.
        """
        from indexer.readers import read_documents
        from indexer.readers.files import STDIN

        if STDIN in self._files:
            return None
        count = sum(1 for _ in read_documents(self._files, self._options, on_progress=self._bar.update))
        self._bar.reset()
        self._started = time.monotonic()
        return count

    def show(self, report: Report) -> None:
        """The number of documents, which are stored, and their rate, beside the bar."""
        self.stored = report.documents
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

    def _stop(self, error: InputError) -> None:
        self.stopped = error
        raise error

    def _skip(self, error: InputError) -> None:
        self.skipped_count += 1
        if len(self.skipped) < SHOWN_ERRORS:
            self.skipped.append(error)


@contextmanager
def source_documents(files: tuple[str, ...], reading: dict[str, Any], *, on_error: str) -> Iterator[Source]:
    """The documents of FILES under the reading options of a command."""
    from indexer.readers import ReadOptions

    source = Source(files, ReadOptions(text_fields=reading.pop("text_field"), **reading), skip=on_error == "skip")
    try:
        yield source
    finally:
        source.close()
