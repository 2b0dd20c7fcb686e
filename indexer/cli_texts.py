"""`indexer encode` and `tag`: what a model says about texts, without an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from indexer.cli_source import computing_options, reading_options, source_documents
from indexer.command import text_model_options
from indexer.errors import InputError


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The .npy file.")
@reading_options
@text_model_options
@computing_options("fp32")
def encode(
    files: tuple[str, ...],
    output: Path,
    model: str | None,
    device: str,
    precision: str,
    batch_tokens: int | None,
    on_error: str,
    **reading: Any,
) -> None:
    """Write the embeddings of the texts in FILES: one fp32 row each, in their order, not normalised.

    What `--on-error skip` passes over has no row; `indexer add --vectors` needs one for each record.

    \b
    Example: indexer encode texts.txt --lines --output texts.npy
    """
    from indexer.model import TextModel
    from indexer.npy import NpyWriter

    with source_documents(files, reading, on_error=on_error) as source:
        text_model = TextModel.load(model, device=device, precision=precision, batch_tokens=batch_tokens)
        with NpyWriter(output, dimension=text_model.dimension) as rows:
            for batch in source.batches():
                rows.append(text_model.encode([document.text for document in batch]))
    click.echo(f"{output}: {rows.rows} rows of {text_model.dimension} dimensions")


@click.command()
@click.argument("files", nargs=-1, required=True)
@reading_options
@text_model_options
@computing_options("fp32")
def tag(
    files: tuple[str, ...],
    model: str | None,
    device: str,
    precision: str,
    batch_tokens: int | None,
    on_error: str,
    **reading: Any,
) -> None:
    """Print the class and the entities of the texts in FILES: one JSON object each, in their order.

    \b
    Example: echo "Ada Lovelace lived in London." | indexer tag -
    """
    import orjson

    from indexer.model import TextModel
    from indexer.records import label_json

    with source_documents(files, reading, on_error=on_error) as source:
        text_model = TextModel.load(model, device=device, precision=precision, batch_tokens=batch_tokens)
        if text_model.class_labels is None and text_model.entity_types is None:
            raise InputError(f"model {text_model.name} has no heads: it gives embeddings, but no class or entities")
        for batch in source.batches():
            for document, analysis in zip(
                batch, text_model.analyse([document.text for document in batch]), strict=True
            ):
                record = {
                    "id": document.id,
                    "label": label_json(analysis.label),
                    "entities": [span.to_json(document.text) for span in analysis.spans],
                }
                click.echo(orjson.dumps(record).decode())
