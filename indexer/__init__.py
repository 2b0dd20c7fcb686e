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
        export_index,
        remove_documents,
        repair_index,
        restore_index,
        snapshot_index,
    )
    from indexer.errors import TagdexError
    from indexer.model import TextModel
    from indexer.reader import IndexReader
    from indexer.readers import ReadOptions, read_documents
    from indexer.records import Analysis, Document, Label, Passage, Span
    from indexer.store import IndexWriter

__version__ = "0.1.0"

_HOMES = {
    "Analysis": "indexer.records",
    "Document": "indexer.records",
    "IndexReader": "indexer.reader",
    "IndexWriter": "indexer.store",
    "Label": "indexer.records",
    "Passage": "indexer.records",
    "ReadOptions": "indexer.readers",
    "Span": "indexer.records",
    "TagdexError": "indexer.errors",
    "TextModel": "indexer.model",
    "add_documents": "indexer.api",
    "export_index": "indexer.api",
    "read_documents": "indexer.readers",
    "remove_documents": "indexer.api",
    "repair_index": "indexer.api",
    "restore_index": "indexer.api",
    "snapshot_index": "indexer.api",
}

__all__ = [
    "Analysis",
    "Document",
    "IndexReader",
    "IndexWriter",
    "Label",
    "Passage",
    "ReadOptions",
    "Span",
    "TagdexError",
    "TextModel",
    "add_documents",
    "export_index",
    "read_documents",
    "remove_documents",
    "repair_index",
    "restore_index",
    "snapshot_index",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and faiss take seconds, and `indexer --help` needs neither."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'indexer' has no attribute {name!r}")
