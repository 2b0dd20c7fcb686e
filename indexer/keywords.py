"""The keyword index: SQLite's FTS5 over the texts, in the transactions of everything else.

`keywords` is an external-content table over `documents.text`: it keeps words and their places, not the texts. Words are
runs of letters and digits, without case and diacritics, and reduced to their English stems (Porter 1980). What was
indexed is taken out again by giving FTS5 the same text, so every row that leaves `documents` has to pass through here.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from pyroaring import BitMap

from indexer.durable import is_scarcity

TOKENIZER = "porter unicode61 remove_diacritics 2"

CREATE = f"""
    CREATE VIRTUAL TABLE keywords USING fts5(
        text, content = 'documents', content_rowid = 'doc', tokenize = '{TOKENIZER}'
    )
"""

_MERGE_PAGES = 500  # that one transaction of `merge` may write
_MERGE_STEPS = 10_000
_PIECE = 8_192  # characters of a long text in which words are looked for at once
_BEYOND = 1_024  # characters of the next piece that are read for phrases that end there
_SEPARATOR = re.compile(r"[\s\0!-/:-@\[-`{-~]")  # never part of a word


def add_texts(connection: sqlite3.Connection, texts: Iterable[tuple[int, str]]) -> None:
    """Index the texts of documents, (doc, text), in the caller's transaction."""
    connection.executemany("INSERT INTO keywords (rowid, text) VALUES (?, ?)", texts)


def remove_texts(connection: sqlite3.Connection, texts: Iterable[tuple[int, str]]) -> None:
    """Take documents out, (doc, text as it was indexed), in the caller's transaction."""
    connection.executemany("INSERT INTO keywords (keywords, rowid, text) VALUES ('delete', ?, ?)", texts)


def rebuild(connection: sqlite3.Connection) -> None:
    """Index all texts again, in the caller's transaction."""
    connection.execute("INSERT INTO keywords (keywords) VALUES ('rebuild')")


def merge(connection: sqlite3.Connection) -> None:
    """Put the pieces of the keyword index together, in transactions of bounded size: smaller, and faster to search."""
    pages = -_MERGE_PAGES  # negative: also where there are few pieces
    for _ in range(_MERGE_STEPS):
        before = connection.total_changes
        connection.execute("INSERT INTO keywords (keywords, rank) VALUES ('merge', ?)", (pages,))
        if connection.total_changes - before < 2:  # FTS5's documentation: then nothing was left to do
            return
        pages = _MERGE_PAGES


def problem(connection: sqlite3.Connection) -> str | None:
    """What FTS5 finds wrong when it compares the keyword index with the texts, `None` where nothing is.

    The comparison is a command that needs a connection that may write, so it runs on a copy in the folder for temporary
    files, which is as large as the database.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tagdex-") as folder,
        closing(sqlite3.connect(Path(folder) / "copy.sqlite", isolation_level=None)) as copy,
    ):
        copy.execute("PRAGMA synchronous = OFF")
        connection.backup(copy)
        try:
            copy.execute("INSERT INTO keywords (keywords, rank) VALUES ('integrity-check', 1)")
        except sqlite3.DatabaseError as error:
            if is_scarcity(error):
                raise
            return f"the words are not those of the texts: {error}"
    return None


def match(connection: sqlite3.Connection, expression: str, n: int, allowed: BitMap | None) -> list[tuple[int, float]]:
    """The n allowed documents that match best, (doc, BM25), best first, equal scores in the order of their numbers.

    `expression` in FTS5's syntax. BM25 with k1 = 1.2 and b = 0.75 as FTS5 computes it, its sign turned: more is better.
    Those that tie with the last one are among them too.
    """
    found: list[tuple[int, float]] = []
    for doc, rank in connection.execute(
        "SELECT rowid, rank FROM keywords WHERE keywords MATCH ? ORDER BY rank", (expression,)
    ):
        if len(found) >= n and -rank < found[-1][1]:
            break
        if allowed is None or doc in allowed:
            found.append((doc, -rank))
    return sorted(found, key=lambda row: (-row[1], row[0]))


def matched_words(
    connection: sqlite3.Connection, expression: str, docs: Sequence[int]
) -> dict[int, list[tuple[int, int]]]:
    """For each of these documents that match: (start, end) of the words that do, in code points, in their order.

    A phrase is one of them, and so are phrases that overlap. The texts are indexed once more, in memory and in pieces:
    for each row that is asked for by its number FTS5 would look up all terms again, its `highlight` takes a time that
    grows with the square of a text's length, and leaves out what stands between a NUL and the next word that matches.
    """
    texts = connection.execute(
        "SELECT doc, text FROM documents WHERE doc IN (SELECT value FROM json_each(?)) ORDER BY doc",
        (json.dumps(list(docs)),),
    )
    pieces: list[tuple[int, int, int]] = []

    def numbered() -> Iterator[tuple[int, str]]:
        for doc, text in texts:
            for start, end, stop in _pieces(text):
                pieces.append((doc, start, end))
                yield len(pieces) - 1, text[start:stop].replace("\0", " ")

    found: dict[int, list[tuple[int, int]]] = {}
    with closing(sqlite3.connect(":memory:")) as memory:
        memory.execute(f"CREATE VIRTUAL TABLE keywords USING fts5(text, tokenize = '{TOKENIZER}')")
        add_texts(memory, numbered())
        for number, spans in _highlighted(memory, expression):
            doc, start, end = pieces[number]
            own = [(start + first, start + last) for first, last in spans if start + first < end]
            if own:
                found.setdefault(doc, []).extend(own)
    return found


def _pieces(text: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, stop) of pieces of a text that end between words: they cover it, and each is read until `stop`.

    What begins before `end` belongs to the piece; what follows is there for phrases that go on.
    """
    end = 0
    while end < len(text):
        start, end = end, _between_words(text, end + _PIECE)
        yield start, end, _between_words(text, end + _BEYOND)


def _between_words(text: str, at: int) -> int:
    """The first place from `at` on where no word is cut in two."""
    match = _SEPARATOR.search(text, at)
    return match.start() if match is not None else len(text)


def count_within(words: Sequence[tuple[int, int]], start: int, end: int) -> int:
    """How many of the words, (start, end) in their order, begin in a stretch of the text.

    >>> count_within([(0, 3), (4, 7), (8, 9)], 4, 8)
    1
    """
    return bisect_left(words, (end,)) - bisect_left(words, (start,))


def _highlighted(connection: sqlite3.Connection, expression: str) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The rows that match, in order, each with where its words do."""
    opening, ending = (f"\x01{secrets.token_hex(8)}\x02" for _ in range(2))
    for row, marked in connection.execute(
        "SELECT rowid, highlight(keywords, 0, ?, ?) FROM keywords WHERE keywords MATCH ? ORDER BY rowid",
        (opening, ending, expression),
    ):
        spans = []
        plain, *rest = marked.split(opening)
        at = len(plain)
        for part in rest:
            word, _, following = part.partition(ending)
            spans.append((at, at + len(word)))
            at += len(word) + len(following)
        yield row, spans
