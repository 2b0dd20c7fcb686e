"""Any order of operations on an index, against a dictionary and exact numpy; TAGDEX_LONG_TESTS=1 tries many more."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DemoAnalyser, as_text_model, check_consistent, document_scores, entries, passage_scores
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from indexer import compaction, pipeline, store
from indexer.fields import flatten
from indexer.filters import And, Compare, Everything, Exists, Filter, HasEntity, HasId, HasLabel, In, Not, Or, matches
from indexer.filters.matching import DocumentFacts
from indexer.planner import PLANS
from indexer.reader import IndexReader
from indexer.records import Document
from indexer.settings import settings_of
from indexer.store import Entry, IndexWriter
from indexer.verify import verify_index
from search import Searcher

LONG = os.environ.get("TAGDEX_LONG_TESTS") == "1"

WORDS = st.lists(
    st.sampled_from(["ball", "atom", "song", "Ada", "Rome", "Zed", "x", "ok", "42"]), min_size=1, max_size=14
).map(" ".join)
IDS = st.sampled_from([f"d{n}" for n in range(40)])
METADATA = st.fixed_dictionaries(
    {},
    optional={"year": st.integers(1999, 2003), "tag": st.sampled_from(["a", "b"]), "deep": st.just({"x": [1, True]})},
)
LEAVES = st.one_of(
    st.builds(Compare, st.just("year"), st.sampled_from(["=", "!=", "<", ">="]), st.integers(1999, 2003)),
    st.builds(Compare, st.just("deep.x"), st.just("="), st.sampled_from([1, True])),
    st.builds(In, st.just("tag"), st.sampled_from([("a",), ("a", "b"), ()])),
    st.builds(Exists, st.sampled_from(["deep", "tag", "nowhere"])),
    st.builds(HasLabel, st.sampled_from([None, "sport", "music"])),
    st.builds(HasEntity, st.sampled_from([None, "PER"]), st.just("ada"), st.sampled_from(["exact", "prefix"])),
    st.lists(IDS, max_size=5).map(lambda ids: HasId(tuple(ids))),
    st.just(Everything()),
)
FILTERS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, min_size=2, max_size=3).map(lambda p: And(tuple(p))),
        st.lists(parts, min_size=2, max_size=3).map(lambda p: Or(tuple(p))),
        st.builds(Not, parts),
    ),
    max_leaves=5,
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the index should say of a document."""

    text: str
    metadata: dict[str, Any]


class IndexMachine(RuleBasedStateMachine):
    """Random operations on an index; the model is a dictionary by id. Segments are small, and have codes early."""

    folder: Path

    @initialize()
    def open(self) -> None:
        self.model = DemoAnalyser(dimension=16, passage_words=3)
        self.path = Path(os.path.join(self.folder, f"{random.getrandbits(64):x}"))
        self.writer = IndexWriter(self.path, create=settings_of(self.model))
        self.reader = IndexReader(self.path)
        self.searcher = Searcher(self.path, model=as_text_model(self.model))
        self.expected: dict[str, Expected] = {}
        self.vids: dict[str, list[int]] = {}
        self.highest = 0

    @rule(batch=st.dictionaries(IDS, st.tuples(WORDS, METADATA), min_size=1, max_size=12))
    def add_or_replace(self, batch: dict[str, tuple[str, dict[str, Any]]]) -> None:
        documents = [Document(id_, text, metadata) for id_, (text, metadata) in batch.items()]
        self.writer.write(entries(documents, self.model))
        for document in documents:
            self.expected[document.id] = Expected(document.text, dict(document.metadata))
            self.vids.pop(document.id, None)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), metadata=METADATA)
    def change_metadata(self, data: st.DataObject, metadata: dict[str, Any]) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.expected)))
        text = self.expected[id_].text
        self.writer.write([Entry(Document(id_, text, metadata), None)])
        self.expected[id_] = Expected(text, metadata)

    @rule(ids=st.lists(IDS, max_size=6))
    def remove(self, ids: list[str]) -> None:
        missing = [id_ for id_ in dict.fromkeys(ids) if id_ not in self.expected]
        assert self.writer.remove(ids) == missing
        self._forget(ids)

    @rule(where=FILTERS)
    def remove_matching(self, where: Filter) -> None:
        gone = self._allowed(where)
        if len(gone) > len(self.expected) / 2:  # else there is seldom anything to search
            return
        assert self.writer.remove_matching(where) == len(gone)
        self._forget(gone)

    @rule()
    def seal(self) -> None:
        pending = self.writer.pending_rows
        assert self.writer.seal() is (pending > 0)

    @rule(full=st.booleans())
    def compact(self, full: bool) -> None:
        self.writer.compact(full=full)
        if full:
            info = self.reader.info()
            assert (info.dead, info.pending) == (0, 0)

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        if clean:
            self.writer.close()
        else:
            self.writer._abandon()  # as a crash leaves it: the log is not emptied
        self.writer = IndexWriter(self.path)

    @rule()
    def retag(self) -> None:
        assert pipeline.retag(self.model, self.writer) == len(self.expected)

    @rule(text=WORDS, filter=st.none() | FILTERS, k=st.integers(1, 50), offset=st.sampled_from([0, 0, 3]))
    def search(self, text: str, filter: Filter | None, k: int, offset: int) -> None:
        query = self.model.vector(text)
        hits = self.searcher.search_vector(query, k=k, offset=offset, filter=filter)
        ids = set(self.expected) if filter is None else self._allowed(filter)
        scores = document_scores({id_: self.expected[id_].text for id_ in ids}, query, self.model)
        assert len(hits) == max(0, min(k, len(ids) - offset))
        assert {hit.id for hit in hits} <= ids
        for hit in hits:
            assert (hit.text, hit.metadata) == (self.expected[hit.id].text, self.expected[hit.id].metadata)
            assert hit.score == pytest.approx(scores[hit.id], abs=1e-9)
        best = sorted(scores.values(), reverse=True)[offset : offset + k]
        assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-9)

    @rule(text=WORDS, path=st.sampled_from(PLANS), n=st.sampled_from([1, 5, 1000]))
    def search_by_plan(self, text: str, path: str, n: int) -> None:
        query = self.model.vector(text)
        texts = {id_: expected.text for id_, expected in self.expected.items()}
        best = sorted(passage_scores(texts, query, self.model).values(), reverse=True)[:n]
        with self.reader.snapshot() as snapshot:
            found, plan = snapshot.search_vectors(query, n, path=path)
        assert plan.rows == plan.allowed == len(passage_scores(texts, query, self.model))
        assert len(found.scores) == len(best)
        if path == "scan" or n == 1000:
            assert found.scores.tolist() == pytest.approx(best, abs=1e-12)

    @invariant()
    def tables_agree(self) -> None:
        if hasattr(self, "path"):
            check_consistent(self.path)

    @invariant()
    def readers_see_what_is_expected(self) -> None:
        if not hasattr(self, "path"):
            return
        with IndexReader(self.path) as fresh:
            for reader in (self.reader, fresh):
                self._compare(reader)

    def _forget(self, ids: Any) -> None:
        for id_ in ids:
            self.expected.pop(id_, None)
            self.vids.pop(id_, None)

    def _allowed(self, filter: Filter) -> set[str]:
        """The documents for which a filter is true, by the definition of filters."""
        return {id_ for id_ in self.expected if matches(filter, self._facts(id_))}

    def _facts(self, id_: str) -> DocumentFacts:
        document = self.expected[id_]
        (analysis,) = self.model.analyse([document.text])
        spans = tuple((span.type, document.text[span.start : span.end]) for span in analysis.spans)
        return DocumentFacts(id_, document.metadata, analysis.label.name if analysis.label else None, spans)

    def _compare(self, reader: IndexReader) -> None:
        texts = {id_: expected.text for id_, expected in self.expected.items()}
        info = reader.info()
        assert (info.documents, info.commit) == (len(texts), self.writer.state.number)
        query = self.model.vector("ball Rome")
        expected = passage_scores(texts, query, self.model)
        with reader.snapshot() as snapshot:
            numbers = [row[0] for row in snapshot.connection.execute("SELECT doc FROM documents")]
            stored = snapshot.documents(numbers)
            assert {each.id: (each.text, each.metadata) for each in stored.values()} == {
                id_: (document.text, document.metadata) for id_, document in self.expected.items()
            }
            assert {path for each in stored.values() for path, _, _ in flatten(each.metadata)} <= {
                "year",
                "tag",
                "deep.x",
            }
            assert info.passages == len(expected)
            starts = {passage.vid: passage.start for each in stored.values() for passage in each.passages}
            found, _ = snapshot.search_vectors(query, 1000)
            assert {
                (stored[doc].id, starts[vid]): score
                for vid, doc, score in zip(found.vids.tolist(), found.docs.tolist(), found.scores.tolist(), strict=True)
            } == pytest.approx(expected, abs=1e-12)
            assert np.all(np.diff(found.scores) <= 0)
            if expected:
                vectors = {each.id: snapshot.document_vector(each.doc) for each in list(stored.values())[:3]}
                for id_, vector in vectors.items():
                    exact = self.model.vector(texts[id_]).astype(np.float64)
                    np.testing.assert_allclose(vector, exact / np.linalg.norm(exact), rtol=0, atol=1e-3)
            for id_, number in ((each.id, each.doc) for each in stored.values()):
                vids = [passage.vid for passage in stored[number].passages]
                if id_ in self.vids:
                    assert vids == self.vids[id_]  # nothing but a new text gives new vectors
                elif reader is self.reader:
                    assert min(vids) > self.highest  # never used before
            if reader is not self.reader:
                self.vids = {each.id: [passage.vid for passage in each.passages] for each in stored.values()}
                self.highest = max([self.highest, *(vid for vids in self.vids.values() for vid in vids)])

    def teardown(self) -> None:
        if hasattr(self, "path"):
            self.searcher.close()
            self.reader.close()
            self.writer.close()
            assert verify_index(self.path).faults == ()
            shutil.rmtree(self.path)


def test_any_order_of_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "TIERS", (20, 60, 180))
    monkeypatch.setattr(store, "SEAL_ROWS", 20)
    monkeypatch.setattr(store, "SEAL_ROWS_ON_CLOSE", 10)
    monkeypatch.setattr("indexer.merging.CODES_FROM", 40)
    monkeypatch.setattr("indexer.planner.SCAN_LIMIT", 30)

    class Machine(IndexMachine):
        folder = tmp_path

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=300 if LONG else 15,
            stateful_step_count=40 if LONG else 25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
