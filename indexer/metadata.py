"""meta.sqlite: its tables, its numbered migrations, and how connections to it are opened.

SQLite is the manifest, the write-ahead log and the metadata store of an index folder. This module knows the
schema and the connection settings; what is written in which transaction is `store.py`'s business.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from sqlite_utils import Database

from indexer.errors import FormatError, NotAnIndexError

APPLICATION_ID = 0x74676478  # "tgdx"
PAGE_SIZE = 16_384  # a 3 KB vector takes 4.1 KB with the default page size of 4,096

Migration = Callable[[Database], None]


def m001_create_tables(db: Database) -> None:
    """Format 1."""
    statements = (
        # `doc` numbers a document for as long as it exists; bitmaps hold these numbers.
        """
        CREATE TABLE documents (
            doc INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            text TEXT NOT NULL,
            metadata TEXT NOT NULL,
            text_hash BLOB NOT NULL,
            label INTEGER REFERENCES labels (label),
            label_score REAL,
            written INTEGER NOT NULL,
            digest BLOB NOT NULL
        ) STRICT
        """,
        "CREATE INDEX documents_by_label ON documents (label) WHERE label IS NOT NULL",
        "CREATE TABLE labels (label INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
        # `vid` numbers a vector, ever increasing: a text that changes takes new ones.
        """
        CREATE TABLE passages (
            vid INTEGER PRIMARY KEY AUTOINCREMENT,
            doc INTEGER NOT NULL REFERENCES documents (doc),
            start INTEGER NOT NULL,
            "end" INTEGER NOT NULL,
            tokens INTEGER NOT NULL
        ) STRICT
        """,
        "CREATE INDEX passages_by_doc ON passages (doc)",
        # The embedding of the whole document, only where it has more than one passage: fp16, normalised.
        "CREATE TABLE pooled (doc INTEGER PRIMARY KEY REFERENCES documents (doc), vector BLOB NOT NULL) STRICT",
        # Vectors that no segment holds yet: fp16, normalised, with their CRC-32.
        """
        CREATE TABLE pending (
            vid INTEGER PRIMARY KEY REFERENCES passages (vid),
            doc INTEGER NOT NULL,
            vector BLOB NOT NULL,
            crc32 INTEGER NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE entity_terms (
            term INTEGER PRIMARY KEY,
            type TEXT NOT NULL,
            norm TEXT NOT NULL,
            UNIQUE (type, norm)
        ) STRICT
        """,
        """
        CREATE TABLE entities (
            doc INTEGER NOT NULL REFERENCES documents (doc),
            start INTEGER NOT NULL,
            "end" INTEGER NOT NULL,
            term INTEGER NOT NULL REFERENCES entity_terms (term),
            score REAL NOT NULL,
            PRIMARY KEY (doc, start, "end", term)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX entities_by_term ON entities (term, doc)",
        # Metadata as filters see it (fields.py): one row a scalar; the numbers of `kind` are fields.Kind's.
        "CREATE TABLE paths (path INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
        """
        CREATE TABLE fields (
            path INTEGER NOT NULL REFERENCES paths (path),
            kind INTEGER NOT NULL,
            value ANY NOT NULL,
            doc INTEGER NOT NULL REFERENCES documents (doc),
            PRIMARY KEY (path, kind, value, doc)
        ) STRICT, WITHOUT ROWID
        """,
        # Immutable files under segments/; a file that has no row here does not exist for a reader.
        """
        CREATE TABLE segments (
            name TEXT PRIMARY KEY,
            first_vid INTEGER NOT NULL,
            last_vid INTEGER NOT NULL,
            rows INTEGER NOT NULL,
            vectors_bytes INTEGER NOT NULL,
            vectors_sha256 TEXT NOT NULL,
            ids_bytes INTEGER NOT NULL,
            ids_sha256 TEXT NOT NULL,
            factory TEXT NOT NULL,
            faiss_version TEXT NOT NULL
        ) STRICT
        """,
        # What changed, in order, so that a reader can follow instead of reading everything again.
        # "add" and "remove" name a vector; "update" a document whose metadata, label or entities changed.
        """
        CREATE TABLE changes (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            op TEXT NOT NULL CHECK (op IN ('add', 'remove', 'update')),
            doc INTEGER NOT NULL,
            vid INTEGER
        ) STRICT
        """,
        # The last commit: its number, how many rows there must be, and the sum of all documents' digests.
        """
        CREATE TABLE commits (
            commit_number INTEGER PRIMARY KEY,
            documents INTEGER NOT NULL,
            passages INTEGER NOT NULL,
            entities INTEGER NOT NULL,
            fields INTEGER NOT NULL,
            digest_sum BLOB NOT NULL,
            chain BLOB NOT NULL
        ) STRICT
        """,
        # Facts about the index: model, fingerprints, dimension, and so on; JSON values.
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    )
    for statement in statements:
        db.execute(statement)
