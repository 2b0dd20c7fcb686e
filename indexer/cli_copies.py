"""`indexer snapshot`, `restore` and `export`: an index, or what it says, somewhere else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from indexer.command import counted

if TYPE_CHECKING:
    from indexer.backup import Copied


@click.command()
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


@click.command()
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


@click.command()
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


def describe_copy(copied: Copied) -> str:
    """What a copy of an index holds, in words."""
    return f"{counted(copied.documents, 'document')} of commit {copied.commit:,}, {copied.bytes:,} bytes"
