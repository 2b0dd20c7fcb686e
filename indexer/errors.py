"""Every error that the packages raise on purpose.

The message is one line that names the place, the values, and the way out; the command lines print it as it is.
"""

from __future__ import annotations

from pathlib import Path


class TagdexError(Exception):
    """Base of all errors that a user can act on."""


class InputError(TagdexError):
    """A file, a record or a field that cannot be read as a document.

    `source` is the file's name (or "-"), `line` counts from 1 (a row where the format has no lines), `field`
    names the field; each is `None` where it does not apply.
    """

    def __init__(
        self, problem: str, *, source: str | None = None, line: int | None = None, field: str | None = None
    ) -> None:
        self.problem = problem
        self.source = source
        self.line = line
        self.field = field
        place = ", ".join(
            part
            for part in (
                source,
                f"line {line}" if line is not None else None,
                f"field '{field}'" if field is not None else None,
            )
            if part
        )
        super().__init__(f"{place}: {problem}" if place else problem)


class ModelError(TagdexError):
    """A model that cannot be found, loaded or used for what was asked."""


class FingerprintError(ModelError):
    """An index and a model that do not belong together."""


class IndexFolderError(TagdexError):
    """Base of errors about an index folder."""


class NotAnIndexError(IndexFolderError):
    """The path is not an index folder, or cannot be opened as one."""


class UnfinishedIndexError(NotAnIndexError):
    """The folder's making was cut short before anything was stored; adding documents makes it."""


class ReplacedIndexError(NotAnIndexError):
    """Another index has taken the place of an open one."""


class ClosedError(IndexFolderError):
    """What is asked of an index that was closed, or of a snapshot that has ended."""


class LockedError(IndexFolderError):
    """Another process is writing to the index."""


class FormatError(IndexFolderError):
    """The index folder has a format that this version cannot read."""


class CorruptIndexError(IndexFolderError):
    """The index folder contradicts its own checksums."""


class StorageError(IndexFolderError):
    """The disk refused a read or a write: full, read-only or failing."""


class DestinationError(TagdexError):
    """The place where a copy or an export is to be written is taken, or cannot be used."""


_EXCERPT = 60  # characters of a filter shown on either side of a fault


class FilterError(TagdexError):
    """A filter that does not parse or that names something unknown.

    `position` is the code point offset of the fault in the filter's text, `None` for a filter built in Python.
    """

    def __init__(self, problem: str, *, text: str | None = None, position: int | None = None) -> None:
        self.problem = problem
        self.text = text
        self.position = position
        if text is None or position is None:
            super().__init__(problem)
        else:
            before, after = text[max(0, position - _EXCERPT) : position], text[position : position + _EXCERPT]
            before = before if position <= _EXCERPT else "…" + before
            after = after if len(text) - position <= _EXCERPT else after + "…"
            super().__init__(f"{problem} at character {position + 1}: {before}⟨here⟩{after}")


class QueryError(TagdexError):
    """A query that cannot be answered as asked: k ≤ 0, an empty text, an unknown id, and so on."""


class CursorError(QueryError):
    """A cursor that is damaged, or that belongs to another index or another query."""


def no_folder(path: Path) -> NotAnIndexError:
    """The error of a path where an index was looked for and no folder is."""
    found = "it is a file" if path.exists() else "there is no such folder"
    return NotAnIndexError(f"{path} is not an index folder: {found}")
