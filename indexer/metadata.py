"""meta.sqlite: its tables, its numbered migrations, and how connections to it are opened.

SQLite is the manifest, the write-ahead log and the metadata store of an index folder. This module knows the
schema and the connection settings; what is written in which transaction is `store.py`'s business.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer import keywords
from indexer.errors import FormatError, NotAnIndexError, StorageError, no_folder

if TYPE_CHECKING:
    from sqlite_utils import Database

APPLICATION_ID = 0x74676478  # "tgdx"
PAGE_SIZE = 16_384  # a 3 KB vector takes 4.1 KB with the default page size of 4,096

_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)  # the latter where SQLite's message quotes what is damaged
_VARIABLES = 500  # in one statement; old builds of SQLite allow 999

Migration = Callable[["Database"], None]


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
            content_hash BLOB NOT NULL,
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
        # The embedding of the whole document, only where it has more than one passage: fp16, normalised. Its CRC-32
        # is that of number 0 (durable.vector_crc).
        """
        CREATE TABLE pooled (
            doc INTEGER PRIMARY KEY REFERENCES documents (doc),
            vector BLOB NOT NULL,
            crc32 INTEGER NOT NULL
        ) STRICT
        """,
        # Vectors that no segment holds yet: fp16, normalised, with their CRC-32 (durable.vector_crc).
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
        # `doc` is no foreign key: checking it would scan the table for every document that is removed.
        "CREATE TABLE paths (path INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
        """
        CREATE TABLE fields (
            path INTEGER NOT NULL REFERENCES paths (path),
            kind INTEGER NOT NULL,
            value ANY NOT NULL,
            doc INTEGER NOT NULL,
            PRIMARY KEY (path, kind, value, doc)
        ) STRICT, WITHOUT ROWID
        """,
        # Immutable files under segments/; a file that has no row here does not exist for a reader. `digest` is over
        # the row and those of its files.
        """
        CREATE TABLE segments (
            name TEXT PRIMARY KEY,
            first_vid INTEGER NOT NULL,
            last_vid INTEGER NOT NULL,
            rows INTEGER NOT NULL,
            rerank INTEGER NOT NULL,
            factory TEXT NOT NULL,
            faiss_version TEXT NOT NULL,
            digest TEXT NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE segment_files (
            name TEXT PRIMARY KEY,
            segment TEXT NOT NULL REFERENCES segments (name),
            bytes INTEGER NOT NULL,
            sha256 TEXT NOT NULL
        ) STRICT
        """,
        "CREATE INDEX segment_files_by_segment ON segment_files (segment)",
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
        "CREATE INDEX changes_by_removed_vid ON changes (vid) WHERE op = 'remove'",
        # The last commit: its number, how many rows there must be, the sum of all documents' digests, and a digest of
        # these, chained to that of the commit before.
        """
        CREATE TABLE commits (
            commit_number INTEGER PRIMARY KEY,
            documents INTEGER NOT NULL,
            passages INTEGER NOT NULL,
            entities INTEGER NOT NULL,
            fields INTEGER NOT NULL,
            digest_sum BLOB NOT NULL,
            previous BLOB NOT NULL,
            chain BLOB NOT NULL
        ) STRICT
        """,
        # The words of the texts.
        keywords.CREATE,
        # Facts about the index: model, fingerprints, dimension, and so on; JSON values. One row, "digests", has the
        # digest of each of the others.
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    )
    for statement in statements:
        db.execute(statement)


MIGRATIONS: tuple[Migration, ...] = (m001_create_tables,)
FORMAT = len(MIGRATIONS)


def expected_schema() -> dict[str, str]:
    """The definition of each table and index of this version's format, by name."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())


def read_schema(path: Path) -> dict[str, str]:
    """The definition of each table and index of a database, by name; nothing where it cannot be read."""
    try:
        with closing(_connect_read_only(f"{path.resolve().as_uri()}?mode=ro")) as connection:
            return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())
    except _DAMAGE:
        return {}


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open meta.sqlite for writing, creating or migrating it; the caller holds the folder's lock.

    Raises `NotAnIndexError` for a file that is something else and `FormatError` for a newer format.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
    try:
        check_format(connection, path, may_be_new=True)
        # These two only take effect before the first table is made.
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -65536")  # 64 MB
        # Else what a statement may have to undo is written to a file in /var/tmp: seven of eight writes of an update,
        # and a disk that may be full although the index's is not.
        connection.execute("PRAGMA temp_store = MEMORY")
        # After an fsync that failed, what a run has left in the log may be in memory only, and no later fsync of the
        # log would bring it to the disk. Copied into the database it is written anew.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open meta.sqlite read-only. It may be used by several threads, one at a time.

    On read-only media SQLite cannot make its shared-memory file; then the file is opened as immutable, which is
    only right where the write-ahead log is empty. Raises `NotAnIndexError`, `FormatError` and `StorageError`.
    """
    if not path.parent.is_dir():
        raise no_folder(path.parent)
    if not path.is_file():
        raise NotAnIndexError(f"{path.parent} is not an index: it has no {path.name}")
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        connection = _connect_read_only(uri)
    except sqlite3.OperationalError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    try:
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            connection = _connect_immutable(path, uri, error)
        except _DAMAGE:
            pass  # not a database at all: `check_format` says so
        check_format(connection, path, may_be_new=False)
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA mmap_size = 268435456")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_read_only(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=30.0)


def _connect_immutable(path: Path, uri: str, error: sqlite3.OperationalError) -> sqlite3.Connection:
    if os.access(path.parent, os.W_OK):
        raise StorageError(f"{path} cannot be read: {error}") from error
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size > 0:
        raise NotAnIndexError(
            f"{path.parent} cannot be written to, but its last changes are still in {log.name} "
            f"({log.stat().st_size} bytes): copy the folder to a writable place, or close its writer cleanly first"
        ) from error
    return _connect_read_only(f"{uri}&immutable=1")


def is_disk_error(error: sqlite3.DatabaseError | UnicodeDecodeError) -> bool:
    """Whether an error says nothing about a file, only about the disk it is on or the processes that use it."""
    code: int = getattr(error, "sqlite_errorcode", 0)  # the sqlite3 module's own errors have none
    disk = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN}
    return code & 0xFF in disk and code != sqlite3.SQLITE_IOERR_SHORT_READ


def check_format(connection: sqlite3.Connection, path: Path, *, may_be_new: bool) -> None:
    """Raise where a database is not ours, or of a format newer than this version knows, or cannot be read at all."""
    try:
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except _DAMAGE as error:
        if is_disk_error(error):
            raise StorageError(f"{path} cannot be read: {error}") from error
        raise NotAnIndexError(f"{path} is not an index's database: {error}") from error
    if tables == 0:
        if may_be_new:
            return
        raise NotAnIndexError(f"{path.parent} is not an index: {path.name} is empty; make it with 'indexer add'")
    if application_id != APPLICATION_ID:
        raise NotAnIndexError(
            f"{path} is a SQLite database, but not an index's (application id {application_id:#x}, "
            f"expected {APPLICATION_ID:#x})"
        )
    if version > FORMAT:
        raise FormatError(
            f"{path.parent} has format {version}, this version of tagdex reads formats up to {FORMAT}: "
            "use a newer tagdex"
        )
    if version < FORMAT and not may_be_new:
        raise FormatError(
            f"{path.parent} has the older format {version}: bring it to format {FORMAT} with "
            f"'indexer compact {path.parent}'"
        )


def is_index(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is an index, of any format, or one in the making: by its files and its application id."""
    path = Path(folder, "meta.sqlite")
    if not path.is_file() or not Path(folder, "segments").is_dir():
        return False
    # Never opened as a plain file: closing that would let go of the locks that a writer in this process has on it.
    try:
        with closing(_connect_read_only(f"{path.resolve().as_uri()}?mode=ro")) as connection:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except _DAMAGE as error:
        return is_disk_error(error)  # on read-only media, for example, it cannot be opened this way
    return bool(application_id == APPLICATION_ID or tables == 0)


def has_wal_reset_defect(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether a version of SQLite can lose what was committed when two connections write or checkpoint at one moment.

    A checkpoint may then miss that another connection has begun the log anew, and count pages as copied that are not
    (https://sqlite.org/wal.html#walresetbug). An index has one connection that writes or checkpoints, its writer's:
    one that is opened read-only cannot, not even when it is the last to be closed.
    """
    branches: dict[tuple[int, ...], int] = {(3, 44): 6, (3, 50): 7}
    fixed_in_branch = branches.get(version[:2])
    if fixed_in_branch is not None and version[2] >= fixed_in_branch:
        return False
    return version < (3, 51, 3)


def select_in(connection: sqlite3.Connection, statement: str, values: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of a statement that ends with IN, for any number of values.

    Texts are bound one by one, because a list in JSON would cut them off at a NUL character.
    """
    for start in range(0, len(values), _VARIABLES):
        chunk = values[start : start + _VARIABLES]
        yield from connection.execute(f"{statement} ({', '.join('?' * len(chunk))})", tuple(chunk)).fetchall()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside is committed at the end, or nothing of it."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except GeneratorExit:  # left by an interrupt on its way out, and found much later: another may be open now
        raise
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database to the current format: all missing migrations in one transaction."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == FORMAT:
        return
    from sqlite_utils import Database  # takes a twentieth of a second, which a query need not wait

    with transaction(connection):
        for migration in MIGRATIONS[version:]:
            migration(Database(connection))
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
