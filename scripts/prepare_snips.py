"""SNIPS as its authors distribute it → JSON Lines with text, intent and entities, for docs/training/snips.toml.

    python scripts/prepare_snips.py FOLDER snips.jsonl

`FOLDER` holds train_<Intent>_full.json, a file for each intent: {"<Intent>": [{"data": [{"text", "entity"?}, …]}, …]}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path, target: Path) -> None:
    """Convert SNIPS in FOLDER into the file TARGET."""
    files = sorted(folder.glob("train_*_full.json"))
    if not files:
        raise click.ClickException(f"{folder} has no train_<Intent>_full.json")
    records = [record for file in files for record in records_of(file)]
    target.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    click.echo(f"{target}: {len(records):,} sentences")


def records_of(file: Path) -> Iterator[dict[str, Any]]:
    """The sentences of one file, spaces at their ends left out."""
    content = file.read_bytes()
    try:
        table = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:  # one of the files is in Latin-1
        table = json.loads(content.decode("latin-1"))
    for intent, sentences in table.items():
        for sentence in sentences:
            text, entities = "", []
            for part in sentence["data"]:
                piece = part["text"] if text else part["text"].lstrip()
                start = len(text) + len(piece) - len(piece.lstrip())
                text += piece
                if "entity" in part and piece.strip():
                    entities.append({"start": start, "end": start + len(piece.strip()), "type": part["entity"]})
            if text.strip():
                yield {"text": text.rstrip(), "intent": intent, "entities": entities}


if __name__ == "__main__":
    main()
