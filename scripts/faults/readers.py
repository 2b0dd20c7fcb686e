"""One writer, many readers, each a process of its own: no view is torn, none goes back, none is stale.

    python scripts/faults/readers.py [--seconds 60] [--readers 4] [--ids 600] [--folder DIR]

The writer does the steps of the workload without an end (it adds, updates, changes metadata, removes, seals, compacts)
on so many ids, and shares the number of steps that are done. Each reader, which knows the same steps, takes snapshots
and searches. All documents of a snapshot must be exactly the content after n steps, and what its filters allow and
what it finds must be that of these n steps; all hits of a search, filtered or not, must be those of one number of
steps, too. That number must never be lower than the last one, nor than what the writer had done before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
from workload import (
    DIMENSION,
    FILTERS,
    DemoAnalyser,
    Document,
    IndexWriter,
    Query,
    Searcher,
    State,
    allows,
    apply,
    as_filter,
    brute_force,
    check_sound,
    endless_steps,
    perform,
    same_hits,
    settings_of,
    small_segments,
)

from indexer.reader import IndexReader
from indexer.records import FloatArray
from indexer.snapshot import Snapshot
from search.ranking import in_order, rank_documents

BATCH = 20


@dataclass(slots=True)
class Views:
    """What a reader saw: snapshots, searches, how many different numbers of steps, and what was wrong."""

    snapshots: int = 0
    searches: int = 0
    states: int = 0
    bad: list[str] = field(default_factory=list)


class History:
    """The content after n steps, made as it is needed; what is older than the last view is forgotten."""

    def __init__(self, ids: int) -> None:
        self._steps = endless_steps(batch=BATCH, seed=1, ids=ids)
        self._states: dict[int, State] = {0: {}}
        self._made = 0

    def after(self, n: int) -> State:
        """The content after n steps."""
        while self._made < n:
            self._states[self._made + 1] = apply(next(self._steps), self._states[self._made])
            self._made += 1
        return self._states[n]

    def forget(self, below: int) -> None:
        """States of fewer steps are asked for no more."""
        for n in [n for n in self._states if n < min(below, self._made)]:
            del self._states[n]

    def first(self, least: int, most: int, right: Callable[[State], bool]) -> int | None:
        """The lowest number of steps from `least` to `most` whose content is right."""
        return next((n for n in range(least, most + 1) if right(self.after(n))), None)


@dataclass(slots=True)
class Shared:
    """Steps that the writer has done; how many readers have begun; 1 once they are to stop."""

    done: Synchronized[int]
    begun: Synchronized[int]
    stop: Synchronized[int]

    def count_me(self) -> bool:
        """One more reader has begun."""
        with self.begun.get_lock():
            self.begun.value += 1
        return True


def read(index: Path, ids: int, seed: int, shared: Shared, out: Queue[Views]) -> None:
    """A reader's process: snapshots and searches in turn, until the end or until something is wrong."""
    small_segments()
    watch = Watch(History(ids), shared, Views())
    random, begun = np.random.default_rng(seed), False
    try:
        with IndexReader(index) as reader, Searcher(index) as searcher:
            while not shared.stop.value and not watch.views.bad:
                query = random.normal(size=DIMENSION).astype(np.float32)
                condition = FILTERS[int(random.integers(len(FILTERS)))]
                look(reader, query, condition, watch)
                search(searcher, query, condition, watch)
                if not begun:
                    begun = shared.count_me()
    except Exception as error:  # whatever reading raises is a finding
        watch.views.bad.append(f"{type(error).__name__}: {error}")
    if not begun:
        shared.count_me()
    out.put(watch.views)


@dataclass(slots=True)
class Watch:
    """A reader's knowledge; `last` is the number of steps that it saw last, `least` the lowest that it may see next."""

    history: History
    shared: Shared
    views: Views
    last: int = -1
    least: int = 0

    def begin(self) -> None:
        """Before a view: it must be at least as new as this moment."""
        self.least = max(0, self.last, self.shared.done.value)

    def place(self, right: Callable[[State], bool]) -> State | None:
        """The content that the view is of, `None` where there is none that it may be of."""
        # The step that is under way may have been committed, but not yet counted.
        n = self.history.first(self.least, self.shared.done.value + 1, right)
        if n is None:
            return None
        self.views.states += n > self.last
        self.last = n
        self.history.forget(n)
        return self.history.after(n)


def look(reader: IndexReader, query: FloatArray, condition: str | None, watch: Watch) -> None:
    """One snapshot: all its documents, what a filter allows, what a search finds."""
    watch.begin()
    with reader.snapshot() as snapshot:
        docs = [doc for (doc,) in snapshot.connection.execute("SELECT doc FROM documents")]
        found = {s.id: Document(s.id, s.text, s.metadata) for s in snapshot.documents(docs).values()}
        state = watch.place(lambda state: state == found)
        if state is None:
            watch.views.bad.append(f"torn, old or unknown: {len(found)} documents at {watch.least} steps or later")
            return
        check_snapshot(snapshot, state, query, condition, watch.views)
    watch.views.snapshots += 1


def search(searcher: Searcher, query: FloatArray, condition: str | None, watch: Watch) -> None:
    """One search: all hits, whole, of one content, and the right ones."""
    watch.begin()
    hits = searcher.answer_vector(query, Query(k=10, filter=as_filter(condition)), path="scan").hits
    answer = [(hit.id, hit.score) for hit in hits]

    def right(state: State) -> bool:
        whole = all(state.get(hit.id) == Document(hit.id, hit.text, hit.metadata) for hit in hits)
        return whole and same_hits(answer, brute_force(state, query, condition)[:10])

    if watch.place(right) is None:
        watch.views.bad.append(f"hits that are of no one content, filter {condition}: {answer[:3]}")
    watch.views.searches += 1


def check_snapshot(snapshot: Snapshot, state: State, query: FloatArray, condition: str | None, views: Views) -> None:
    """Its filters and its vectors against its documents."""
    allowed = None
    if (filter := as_filter(condition)) is not None:
        allowed = snapshot.allowed(filter)
        names = set(snapshot.ids(list(allowed)).values())
        wanted = {document.id for document in state.values() if allows(document, condition)}
        if names != wanted:
            views.bad.append(f"filter {condition}: {len(names ^ wanted)} documents too many or too few")
            return
    available = len(state) if allowed is None else len(allowed)
    if not available:
        return
    ranked = rank_documents(
        lambda n: snapshot.search_vectors(query, n, allowed=allowed, path="scan")[0], wanted=10, available=available
    )
    ordered = in_order(ranked, snapshot.ids([document.doc for document in ranked]))[:10]
    ids = snapshot.ids([document.doc for document in ordered])
    found = [(ids[document.doc], document.score) for document in ordered]
    if not same_hits(found, brute_force(state, query, condition)[:10]):
        views.bad.append(f"vectors of another content than the documents, filter {condition}: {found[:3]}")


def write_and_watch(folder: Path, *, seconds: float, readers: int, ids: int) -> tuple[int, list[Views]]:
    """The writer in this process and the readers, for so many seconds after the last of them has begun.

    Returns the steps done and what each reader saw.
    """
    index, analyser, spawn = folder / "index", DemoAnalyser(dimension=DIMENSION), multiprocessing.get_context("spawn")
    shared, out = Shared(*(spawn.Value("q", 0) for _ in range(3))), spawn.Queue()
    state: State = {}
    with IndexWriter(index, create=settings_of(analyser)) as writer:
        processes = [spawn.Process(target=read, args=(index, ids, n, shared, out)) for n in range(readers)]
        for process in processes:
            process.start()
        end = None
        for number, step in enumerate(endless_steps(batch=BATCH, seed=1, ids=ids), start=1):
            perform(step, writer, analyser, state)
            state = apply(step, state)
            shared.done.value = number
            if end is None and shared.begun.value == readers:
                end = time.monotonic() + seconds
            if end is not None and time.monotonic() >= end:
                break
        shared.stop.value = 1
        views = [out.get(timeout=120) for _ in processes]
        for process in processes:
            process.join()
    check_sound(index, state=state)
    return shared.done.value, views


def main() -> None:
    """Run it and say what the readers saw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--ids", type=int, default=600)
    parser.add_argument("--folder", type=Path, help="where the index is made; default: a temporary folder")
    arguments = parser.parse_args()
    small_segments()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        steps, views = write_and_watch(
            Path(folder), seconds=arguments.seconds, readers=arguments.readers, ids=arguments.ids
        )
    bad = [line for view in views for line in view.bad]
    print(
        f"{steps} steps in {arguments.seconds:.0f} s under {arguments.readers} readers: "
        f"{sum(v.snapshots for v in views)} snapshots and {sum(v.searches for v in views)} searches, which saw "
        f"{sum(v.states for v in views)} new contents; {len(bad)} torn, backward, stale or wrong"
    )
    for line in bad[:10]:
        print(f"  BAD {line}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
