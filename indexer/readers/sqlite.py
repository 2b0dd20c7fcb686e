"""A table or view of a SQLite file, opened for reading only."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import quote as percent_encode

from indexer.errors import InputError
from indexer.readers.documents import Record, check_columns
from indexer.readers.files import ByteMeter, SourceFile
from indexer.readers.options import ReadOptions


def read_sqlite(file: SourceFile, options: ReadOptions, meter: ByteMeter) -> Iterator[Record | InputError]:
    """Records in the order of the rowid, or of the primary key where there is no rowid; a NULL is absent.

    A row with a BLOB gives an error in its place. Raises `InputError` where the file or the table cannot be
    read. All rows are of one point in time, whoever writes meanwhile.
    """
    row = 0
    try:
        with closing(_connect(file.path)) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("BEGIN")
            table = _choose_table(connection, options.table, file.path)
            nothing = connection.execute(f"SELECT * FROM {_identifier(table)} LIMIT 0")
            columns = [name for name, *_ in nothing.description]
            check_columns(columns, options, source=file.path, line=None)
            (rows,) = connection.execute(f"SELECT count(*) FROM {_identifier(table)}").fetchone()
            order = _order(connection, table, columns)
            for values in connection.execute(f"SELECT * FROM {_identifier(table)}{order}"):
                row += 1
                meter.advance_to((file.size or 0) * row // max(rows, 1))
                yield _record(columns, values, file.path, row)
    except (sqlite3.Error, UnicodeError) as error:
        raise InputError(f"cannot be read as SQLite: {error}", source=file.path, line=row or None) from error


def _connect(path: str) -> sqlite3.Connection:
    # Percent-encoding keeps a "?" or "#" in the name from ending it. The stream may move between threads, as
    # long as only one uses it at a time.
    uri = f"file:{percent_encode(os.fsencode(os.path.abspath(path)))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    # Text that is not UTF-8 then has lone surrogates, which `document_of` refuses with the name of the field.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def _choose_table(connection: sqlite3.Connection, wanted: str | None, source: str) -> str:
    found = connection.execute(
        r"SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')"
        r" AND name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY name"
    ).fetchall()
    names: list[str] = [name for name, _ in found]
    tables: list[str] = [name for name, type in found if type == "table"]
    listed = ", ".join(f"'{name}'" for name in names)
    if not names:
        raise InputError("is empty: the database has no table", source=source)
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"there is no table '{wanted}': tables are {listed}", source=source)
        return wanted
    if len(tables) == 1:
        return tables[0]
    raise InputError(f"there are several tables: choose one with --table from {listed}", source=source)


def _order(connection: sqlite3.Connection, table: str, columns: list[str]) -> str:
    """An ORDER BY clause; without one, SQLite may walk through an index instead of the table."""
    taken = {name.lower() for name in columns}
    hidden = next((name for name in ("rowid", "_rowid_", "oid") if name not in taken), None)
    is_view = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ? AND type = 'view'", (table,)).fetchone()
    if is_view:
        return ""
    if hidden is not None:
        try:
            connection.execute(f"SELECT {hidden} FROM {_identifier(table)} LIMIT 0")
        except sqlite3.OperationalError:
            pass  # a table WITHOUT ROWID
        else:
            return f" ORDER BY {hidden}"
    keys = connection.execute("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (table,))
    joined = ", ".join(_identifier(name) for (name,) in keys)
    return f" ORDER BY {joined}" if joined else ""


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _record(columns: list[str], values: tuple[object, ...], source: str, row: int) -> Record | InputError:
    fields = {}
    for name, value in zip(columns, values, strict=True):
        if isinstance(value, bytes):
            problem = "a BLOB has no place in a document: make a view without this column and name it with --table"
            return InputError(problem, source=source, line=row, field=name)
        if value is not None:
            fields[name] = value
    return Record(fields, row)
