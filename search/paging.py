"""Page after page of one query, without a repeated or a skipped hit while the index changes.

The pages of a query are about the documents that the index had at the first page, with the texts that they had then.
Each page ranks those that are still there, and shows the best that were not shown. So a document is shown at most once,
and one that stays, keeps its text and fits the filter throughout is shown exactly once, whatever else is written,
removed, sealed or compacted meanwhile. Of near-duplicates that are one hit, those that are hidden count as shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pyroaring import BitMap

from indexer.errors import QueryError
from indexer.filters import Everything
from indexer.snapshot import Snapshot
from search import steps
from search.cursor import Cursor, check, decode, encode, query_digest
from search.diversity import Group
from search.explain import Explanation
from search.hits import Hit
from search.query import Query
from search.steps import Asked

# A model may give a text another vector on another device or with other threads: cosines move less than this.
WOBBLE = 1e-5


@dataclass(frozen=True, slots=True)
class Page:
    """Hits, best first; the cursor for the next page, `None` where there are no more; and what was done."""

    hits: tuple[Hit, ...]
    cursor: str | None
    explanation: Explanation


def find_page(snapshot: Snapshot, asked: Asked, cursor: str | None, explanation: Explanation) -> Page:
    """The first page of a query, or the one after a cursor. Raises `CursorError`, `QueryError`."""
    query = asked.query
    check_pages(query)
    digest = query_digest(asked.text if asked.vector is None else asked.text or asked.vector, query)
    if cursor is None:
        state = Cursor(snapshot.index_id, digest, snapshot.view.commit, snapshot.last_vid())
    else:
        state = decode(cursor)
        check(state, index=snapshot.index_id, query=digest, commit=snapshot.view.commit)
    with explanation.timed("filter"):
        chosen = _still_there(snapshot, asked, state)
        if query.entities is not None:
            used = None if cursor is None else state.entities
            asked, chosen = steps.with_entities(snapshot, asked, chosen, explanation, used=used)
            if explanation.entities is not None and cursor is None:
                state = replace(state, entities=explanation.entities.sharing > 0)
        explanation.documents = snapshot.count()
        explanation.allowed = explanation.documents if chosen is None else len(chosen)
    # Codes may miss a document that belongs on this page, and the next page would not look for it.
    asked = replace(asked, path="scan")
    wanted = state.seen + query.k + 1
    while True:
        groups = steps.groups_among(snapshot, asked, chosen, explanation, wanted=wanted)
        if copies := {group.best.doc for group in groups if _is_copy(group, state)}:
            chosen = _without(snapshot, chosen, copies)
            state = replace(state, hidden=state.hidden | copies)
            continue
        left = [group for group in groups if _is_ahead(group, state)]
        if len(left) > query.k or len(groups) < wanted:
            break
        wanted *= 2
    shown = left[: query.k]
    following = encode(_after(state, groups, shown, plain=_is_plain(asked))) if len(left) > query.k else None
    return Page(tuple(steps.show(snapshot, asked, shown, explanation)), following, explanation)


def check_pages(query: Query) -> None:
    """Raise `QueryError` for options that pages cannot have."""
    if query.offset:
        raise QueryError(f"pages go on where the one before ended: offset must be 0 with a cursor, got {query.offset}")
    if query.rerank is not None:
        raise QueryError(
            "a cross-encoder reads the best hits only, and which these are changes with the index, so that pages could "
            "skip some: ask for all hits at once, with a large k and without a cursor"
        )


def _still_there(snapshot: Snapshot, asked: Asked, state: Cursor) -> BitMap | None:
    """The documents of the first page's commit that still have their texts, and that the filter allows now."""
    newer = snapshot.written_after(state.last_vid)
    return _without(snapshot, steps.allowed(snapshot, asked.query), newer | BitMap(state.hidden))


def _without(snapshot: Snapshot, chosen: BitMap | None, docs: Iterable[int]) -> BitMap | None:
    """Chosen documents (`None`: all) but for some."""
    if not docs:
        return chosen
    return (snapshot.allowed(Everything()) if chosen is None else chosen) - BitMap(docs)


def _is_plain(asked: Asked) -> bool:
    """Whether a document's score and place depend on nothing but its own text."""
    query = asked.query
    return query.mode == "cosine" and not query.diverse and query.entities != "boost"


def _is_ahead(group: Group, state: Cursor) -> bool:
    """Whether a hit belongs to a later page."""
    if state.limit is not None and group.best.score > state.limit + WOBBLE:
        return False
    return group.best.doc not in state.shown


def _is_copy(group: Group, state: Cursor) -> bool:
    """Whether a hit that would come now is nearly the same as one that was shown, so that it must not hide others.

    It had no place on the pages before, as the filter did not allow it.
    """
    return group.best.doc not in state.shown and any(document.doc in state.shown for document in group.hidden)


def _after(state: Cursor, groups: Sequence[Group], shown: Sequence[Group], *, plain: bool) -> Cursor:
    """The state after a page. In a `plain` ranking, what was shown is known by its score, but for the last few."""
    numbers = state.shown | {group.best.doc for group in shown}
    hidden = state.hidden | {document.doc for group in shown for document in group.hidden}
    limit = None
    if plain:
        limit = shown[-1].best.score
        numbers -= {group.best.doc for group in groups if group.best.score > limit + 2 * WOBBLE}
    return replace(state, seen=state.seen + len(shown), limit=limit, shown=numbers, hidden=hidden)
