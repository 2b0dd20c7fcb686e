"""Build an index of your own texts: embedding, class and named entities from one forward pass.

from indexer import Document, add_documents
add_documents("myindex", [Document("1", "Some text", {"year": 2026})])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexer.api import (
        add_documents,
        compact_index,
        export_index,
        remove_documents,
        remove_matching,
        repair_index,
        restore_index,
        retag_documents,
        snapshot_index,
    )
    from indexer.errors import InputError, TagdexError
    from indexer.model import TextModel
    from indexer.pipeline import Report
    from indexer.reader import IndexReader
    from indexer.readers import ReadOptions, read_documents
    from indexer.records import Analysis, Document, Label, Passage, Span
    from indexer.store import IndexWriter
    from indexer.verify import verify_index

__version__ = "0.1.0"

_HOMES = {
    "Analysis": "indexer.records",
    "Document": "indexer.records",
    "IndexReader": "indexer.reader",
    "IndexWriter": "indexer.store",
    "InputError": "indexer.errors",
    "Label": "indexer.records",
    "Passage": "indexer.records",
    "ReadOptions": "indexer.readers",
    "Report": "indexer.pipeline",
    "Span": "indexer.records",
    "TagdexError": "indexer.errors",
    "TextModel": "indexer.model",
    "add_documents": "indexer.api",
    "compact_index": "indexer.api",
    "export_index": "indexer.api",
    "read_documents": "indexer.readers",
    "remove_documents": "indexer.api",
    "remove_matching": "indexer.api",
    "repair_index": "indexer.api",
    "restore_index": "indexer.api",
    "retag_documents": "indexer.api",
    "snapshot_index": "indexer.api",
    "verify_index": "indexer.verify",
}

__all__ = [
    "Analysis",
    "Document",
    "IndexReader",
    "IndexWriter",
    "InputError",
    "Label",
    "Passage",
    "ReadOptions",
    "Report",
    "Span",
    "TagdexError",
    "TextModel",
    "add_documents",
    "compact_index",
    "export_index",
    "read_documents",
    "remove_documents",
    "remove_matching",
    "repair_index",
    "restore_index",
    "retag_documents",
    "snapshot_index",
    "verify_index",
]

if not TYPE_CHECKING:  # else every name that is misspelt would be there, as `Any`

    def __getattr__(name: str) -> Any:
        """Import on first use: torch and faiss take seconds, and `indexer --help` needs neither."""
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'indexer' has no attribute {name!r}")


def __dir__() -> list[str]:
    """For tab completion and `help`: what is not imported yet, too."""
    return [*__all__, "__version__"]
