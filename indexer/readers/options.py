"""What a user can say about how files are to be read."""

from __future__ import annotations

from dataclasses import dataclass

from indexer.errors import InputError

FORMATS = ("jsonl", "csv", "tsv", "parquet", "text", "sqlite")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How to read, for all sources of one call.

    - `format`: one of `FORMATS`; `None` goes by each file's suffix. Given, it holds for every file, those in
      folders included.
    - `id_field`: must then be in every record; `None` takes "id" where a record has it, else a content hash.
    - `text_fields`: several are joined by a newline; empty means "text".
    - `lines`: text files give one document per line instead of one per file.
    - `text_required`: whether a record without text is an error; it is none where vectors are given.
    - `metadata_field`: holds an object that `given.with_metadata_field` will take for all metadata; it may be nested
      one level deeper than other fields.
    - `table`: which table or view of a SQLite file; needed only where the file has several tables.
    """

    format: str | None = None
    id_field: str | None = None
    text_fields: tuple[str, ...] = ()
    lines: bool = False
    metadata_field: str | None = None
    table: str | None = None
    text_required: bool = True

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise InputError(f"unknown format {self.format!r}: choose one of {', '.join(FORMATS)}")

    @property
    def id_name(self) -> str:
        """The field that holds the id, if any does."""
        return "id" if self.id_field is None else self.id_field

    @property
    def text_names(self) -> tuple[str, ...]:
        """The fields that hold the text, at least one."""
        return self.text_fields or ("text",)


DEFAULT_OPTIONS = ReadOptions()
