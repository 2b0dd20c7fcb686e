"""Where a reader of pages stands: an opaque text that holds all that the next page needs. Pure functions, no I/O.

A cursor is base64url, without padding, of one byte for its form, the CRC-32 of that and of what follows, and deflated
JSON. The checksum finds damage; it is no signature, and nothing in a cursor is trusted: a forged one is refused, or
gives other documents that its maker may search anyway.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import orjson

from indexer.errors import CursorError, QueryError
from indexer.filters import to_json
from indexer.records import FloatArray
from search.query import Query

VERSION = 2
MAX_SHOWN = 10_000  # documents that a cursor names; each takes about two characters

_MAX_BYTES = 2**20  # of the JSON, when it is read
_MAX_NUMBER = 2**63 - 1
_MAX_DOC = 2**32 - 1  # what a bitmap holds
_FREE = ("k", "offset", "passages", "neighbours", "highlight")  # options that do not change the ranking


@dataclass(frozen=True, slots=True)
class Cursor:
    """What is known after a page.

    - `index`: the index's id; `query`: the digest of the query (`query_digest`).
    - `commit`: that of the first page, `last_vid` the highest number of a vector then: only documents whose vectors
      are no newer belong to the pages.
    - `seen`: how many hits were shown.
    - `limit`: what comes next has no higher score; `None` where scores move when the index changes.
    - `shown`: numbers of documents that were shown, but for those that the limit tells already; `hidden`: of those that
      were not, as they are nearly the same as one that was.
    - `entities`: whether there were documents, on the first page, that share the query's entities.
    """

    index: str | None
    query: str
    commit: int
    last_vid: int
    seen: int = 0
    limit: float | None = None
    shown: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()
    entities: bool = False


def query_digest(asked: str | FloatArray, query: Query) -> str:
    """What tells queries apart that rank differently: over the text or vector, and all options of ranking."""
    options: dict[str, Any] = {
        option.name: getattr(query, option.name) for option in fields(query) if option.name not in _FREE
    }
    if query.filter is not None:
        options["filter"] = to_json(query.filter)
    digest = hashlib.blake2b(repr(sorted(options.items())).encode("utf-8", "surrogatepass"), digest_size=8)
    digest.update(asked.encode() if isinstance(asked, str) else np.ascontiguousarray(asked, dtype="<f4").tobytes())
    return digest.hexdigest()


def encode(cursor: Cursor) -> str:
    """The text of a cursor. Raises `QueryError` where more documents were shown than one can hold."""
    if len(cursor.shown) + len(cursor.hidden) > MAX_SHOWN:
        raise QueryError(
            f"these pages would hold more than {MAX_SHOWN:,} hits, the most that a cursor remembers: narrow the query "
            "with a filter or min_score, or ask for all at once with a large k"
        )
    numbers = [
        [after - before for before, after in pairwise((0, *sorted(docs)))] for docs in (cursor.shown, cursor.hidden)
    ]
    record = [cursor.index, cursor.query, cursor.commit, cursor.last_vid, cursor.seen, cursor.limit, *numbers]
    record.append(cursor.entities)
    deflated = zlib.compress(orjson.dumps(record), 9)
    form = bytes([VERSION])
    data = form + zlib.crc32(form + deflated).to_bytes(4, "little") + deflated
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> Cursor:
    """The cursor of a text. Raises `CursorError` for what `encode` did not make."""
    damaged = CursorError(
        "the cursor is damaged: pass it on exactly as the page before gave it, or begin anew without one"
    )
    if not isinstance(text, str):
        raise damaged
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise damaged from None
    if len(data) < 6 or zlib.crc32(data[:1] + data[5:]) != int.from_bytes(data[1:5], "little"):
        raise damaged
    if data[0] != VERSION:
        raise CursorError(
            f"the cursor has form {data[0]}, this version of tagdex reads form {VERSION}: begin anew without a cursor"
        )
    try:
        inflate = zlib.decompressobj()
        record = orjson.loads(inflate.decompress(data[5:], _MAX_BYTES))
    except (zlib.error, orjson.JSONDecodeError):
        raise damaged from None
    if inflate.unconsumed_tail or not isinstance(record, list) or len(record) != 9:
        raise damaged
    index, query, commit, last_vid, seen, limit, *numbers, entities = record
    if not (
        isinstance(index, str | None)
        and isinstance(query, str)
        and all(map(_is_count, (commit, last_vid, seen)))
        and (limit is None or isinstance(limit, float))
        and isinstance(entities, bool)
        and all(map(_are_numbers, numbers))
    ):
        raise damaged
    shown, hidden = (frozenset(accumulate(gaps)) for gaps in numbers)
    return Cursor(index, query, commit, last_vid, seen, limit, shown, hidden, entities)


def check(cursor: Cursor, *, index: str | None, query: str, commit: int) -> None:
    """Raise `CursorError` unless a cursor is of this index and this query, and not of a later commit."""
    if cursor.index != index:
        raise CursorError(
            f"the cursor is of another index (id {cursor.index or 'none'}, this one has {index or 'none'}): begin anew "
            "without a cursor"
        )
    if cursor.query != query:
        raise CursorError(
            "the cursor is of another query: pages need the same text or vector, filter and options (only k, and what "
            "hits show, may differ); begin anew without a cursor"
        )
    if cursor.commit > commit:
        raise CursorError(
            f"the cursor is of commit {cursor.commit}, this index is at commit {commit}: it was put back to an older "
            "copy; begin anew without a cursor"
        )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_NUMBER


def _are_numbers(gaps: object) -> bool:
    return isinstance(gaps, list) and all(map(_is_count, gaps)) and sum(gaps) <= _MAX_DOC
