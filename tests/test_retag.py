"""Re-tagging: other heads, the same embeddings, nothing embedded again, and a stopped run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes import DemoAnalyser, as_text_model, build_index, check_consistent, table_rows

from indexer import pipeline
from indexer.errors import FilterError, FingerprintError, ModelError
from indexer.records import Analysis, Document, Label, Span
from indexer.store import IndexWriter
from indexer.verify import verify_index
from search.searcher import Searcher


class OtherHeads(DemoAnalyser):
    """Embeds as `DemoAnalyser` does, with a class for every text and only its first word as an entity."""

    def __init__(self) -> None:
        super().__init__()
        self.heads_fingerprint = "0" * 64
        self.class_labels = ("note",)
        self.entity_types = ("WORD",)

    def _analyse(self, text: str, *, tags: bool) -> Analysis:
        plain = super()._analyse(text, tags=False)
        if not tags:
            return plain
        span = Span("WORD", 0, len(text.split()[0]), 0.25)
        return Analysis(plain.passages, plain.vectors, plain.pooled, Label("note", 1.0), (span,))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_DOCUMENTS", 256)


class Stopping(OtherHeads):
    """Stops a run after its first batch."""

    def analyse(self, texts: Sequence[str], *, tags: bool = True) -> list[Analysis]:
        if self.analysed:
            raise KeyboardInterrupt
        return super().analyse(texts, tags=tags)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    documents = [Document(f"d{n}", f"Ada met Nora in Oslo, song {n}", {"n": n}) for n in range(600)]
    return build_index(tmp_path / "index", documents, seal=True)


def test_a_searcher_that_was_open_knows_the_new_names_at_once(path: Path) -> None:
    with Searcher(path, model=as_text_model(DemoAnalyser())) as searcher:
        assert searcher.search("song", filter="label = music")
        with IndexWriter(path) as writer:
            pipeline.retag(OtherHeads(), writer)
        assert len(searcher.search("song", filter="label = note", k=3)) == 3
    with Searcher(path) as searcher:
        with IndexWriter(path) as writer:
            pipeline.retag(DemoAnalyser(), writer)
        with pytest.raises(FilterError, match="unknown class 'note'"):
            searcher.facets(filter="label = note")


def test_retagging_replaces_tags_and_keeps_everything_else(path: Path) -> None:
    kept = {name: table_rows(path, name) for name in ("passages", "pooled", "fields", "segments")}
    with IndexWriter(path) as writer:
        assert pipeline.retag(OtherHeads(), writer) == 600
    assert {name: table_rows(path, name) for name in kept} == kept
    with Searcher(path, model=as_text_model(OtherHeads())) as searcher:
        (hit,) = searcher.search("song", k=1, filter="entity WORD:ada and label = note and n = 7")
        assert (hit.id, hit.label, [entity.text for entity in hit.entities]) == ("d7", Label("note", 1.0), ["Ada"])
        assert searcher.info.entity_types == ("WORD",)
    check_consistent(path)
    assert verify_index(path).faults == ()


def test_an_index_without_tags_gets_some(tmp_path: Path) -> None:
    path = build_index(tmp_path / "index", [Document("a", "Ada sings")], DemoAnalyser(heads=False))
    with IndexWriter(path) as writer:
        pipeline.retag(OtherHeads(), writer)
    with Searcher(path, model=as_text_model(OtherHeads())) as searcher:
        assert [hit.id for hit in searcher.search("song", filter="entity WORD:ada")] == ["a"]


def test_a_stopped_run_goes_on_behind_what_was_tagged(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), IndexWriter(path) as writer:
        pipeline.retag(Stopping(), writer)
    heads = OtherHeads()
    with IndexWriter(path) as writer:
        assert writer.retagged_up_to == pipeline.BATCH_DOCUMENTS
        assert pipeline.retag(heads, writer) == 600 - pipeline.BATCH_DOCUMENTS
        assert writer.retagged_up_to is None
    assert len(heads.analysed) == 600 - pipeline.BATCH_DOCUMENTS
    check_consistent(path)


def test_other_heads_start_again(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), IndexWriter(path) as writer:
        pipeline.retag(Stopping(), writer)
    with IndexWriter(path) as writer:
        assert pipeline.retag(DemoAnalyser(), writer) == 600


def test_a_model_that_embeds_otherwise_is_refused(path: Path) -> None:
    with IndexWriter(path) as writer, pytest.raises(FingerprintError, match="was built with model demo"):
        pipeline.retag(DemoAnalyser(seed=1), writer)


def test_a_model_without_heads_is_refused(path: Path) -> None:
    with IndexWriter(path) as writer, pytest.raises(ModelError, match="has no heads"):
        pipeline.retag(DemoAnalyser(heads=False), writer)


def test_vectors_are_bit_identical(path: Path) -> None:
    (file,) = (path / "segments").glob("*.fp16.faiss")
    before = file.read_bytes()
    with IndexWriter(path) as writer:
        pipeline.retag(OtherHeads(), writer)
    assert np.array_equal(np.frombuffer(before, np.uint8), np.frombuffer(file.read_bytes(), np.uint8))
