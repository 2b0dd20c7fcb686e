"""The size of meta.sqlite and of its write-ahead log."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

# SQLite begins its log anew only in a moment without a reader, which a busy service hardly has. Beyond so many bytes
# the writer waits for such a moment: readers that come meanwhile do without the log, so that it takes as long as the
# longest search under way. A reader that stays longer than the patience is let be.
LOG_BYTES = 24 * 2**20
LOG_PATIENCE = 1.0  # seconds
BUSY_SECONDS = 30.0

_FREE_PAGES = 64  # that may stay
_PAGES_AT_ONCE = 512


class Upkeep:
    """Keeps the database of a writer's connection, and its log, no larger than need be."""

    def __init__(self, connection: sqlite3.Connection, database: Path) -> None:
        self._connection = connection
        self._log = database.with_name(database.name + "-wal")
        self._limit = LOG_BYTES

    def keep_log_small(self) -> None:
        """Empty a log that has grown too large because there was a reader at every moment."""
        if self._log_bytes() < self._limit:
            return
        self._connection.execute(f"PRAGMA busy_timeout = {int(1_000 * LOG_PATIENCE)}")
        try:
            # What is in the log is durable: a disk that fails now loses nothing, and will be met by the next commit.
            with suppress(sqlite3.OperationalError):
                self._empty_log()
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {int(1_000 * BUSY_SECONDS)}")
        # One reader that stays for long must not make each commit wait.
        left = self._log_bytes()
        self._limit = left + LOG_BYTES // 4 if left >= LOG_BYTES else LOG_BYTES

    def give_pages_back(self) -> None:
        """Give free pages back to the disk in slices, so that the log stays small."""
        while self._pragma("freelist_count") > _FREE_PAGES:
            before = self._pragma("page_count")
            self._connection.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()
            if self._pragma("page_count") >= before:
                return
            self.keep_log_small()

    def end(self) -> None:
        """Leave no free pages and no log, before the connection is closed."""
        self.give_pages_back()
        self._connection.execute("PRAGMA busy_timeout = 1000")  # a reader may hold the log's end for long
        self._empty_log()

    def _empty_log(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _log_bytes(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])
