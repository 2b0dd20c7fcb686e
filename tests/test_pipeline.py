"""Documents → analysis → store: what is embedded, what is counted, what stays after an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DemoAnalyser, as_text_model, check_consistent, table_rows

from indexer import pipeline
from indexer.api import add_documents, remove_documents, remove_matching
from indexer.errors import FilterError, FingerprintError, InputError, ModelError, NotAnIndexError, TagdexError
from indexer.filters import Compare
from indexer.pipeline import Report, batched
from indexer.reader import IndexReader
from indexer.records import Document
from indexer.settings import settings_of
from indexer.store import IndexWriter


def docs(count: int, *, prefix: str = "d") -> list[Document]:
    return [Document(f"{prefix}{n}", f"text {n} Ada", {"n": n}) for n in range(count)]


def texts_of(path: Path) -> dict[str, str]:
    return {row[1]: row[2] for row in table_rows(path, "documents")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def model() -> DemoAnalyser:
    return DemoAnalyser()


def add(path: Path, documents: Any, model: DemoAnalyser, **options: Any) -> Report:
    return add_documents(path, documents, model=as_text_model(model), **options)


# What is embedded


def test_new_documents_are_embedded_once_each(path: Path, model: DemoAnalyser) -> None:
    assert add(path, docs(3), model) == Report(added=3)
    assert model.analysed == ["text 0 Ada", "text 1 Ada", "text 2 Ada"]
    assert texts_of(path) == {"d0": "text 0 Ada", "d1": "text 1 Ada", "d2": "text 2 Ada"}
    check_consistent(path)


def test_unchanged_documents_are_not_embedded_again(path: Path, model: DemoAnalyser) -> None:
    add(path, docs(3), model)
    before = table_rows(path, "commits")
    model.analysed.clear()
    assert add(path, docs(3), model) == Report(unchanged=3)
    assert model.analysed == []
    assert table_rows(path, "commits") == before


def test_new_metadata_is_stored_without_embedding(path: Path, model: DemoAnalyser) -> None:
    add(path, docs(2), model)
    model.analysed.clear()
    assert add(path, [Document("d0", "text 0 Ada", {"n": 99}), docs(2)[1]], model) == Report(updated=1, unchanged=1)
    assert model.analysed == []
    assert table_rows(path, "documents")[0][3] == '{"n":99}'


def test_only_changed_texts_are_embedded_again(path: Path, model: DemoAnalyser) -> None:
    add(path, docs(3), model)
    model.analysed.clear()
    assert add(path, [*docs(1), Document("d1", "new"), Document("d9", "more")], model) == Report(
        added=1, replaced=1, unchanged=1
    )
    assert model.analysed == ["new", "more"]


def test_a_text_that_moves_to_another_id_is_embedded_for_it(path: Path, model: DemoAnalyser) -> None:
    add(path, [Document("a", "same"), Document("b", "same")], model)
    assert texts_of(path) == {"a": "same", "b": "same"}


# Ids that come again


def test_in_one_batch_the_last_of_an_id_counts(path: Path, model: DemoAnalyser) -> None:
    report = add(path, [Document("a", "first"), Document("b", "b"), Document("a", "second")], model)
    assert report == Report(added=2, duplicates=1)
    assert report.documents == 3
    assert texts_of(path) == {"a": "second", "b": "b"}
    assert model.analysed == ["second", "b"]


@pytest.mark.parametrize("again", [Document("a", "second"), Document("a", "first", {"n": 1}), Document("a", "first")])
def test_across_batches_the_last_of_an_id_counts(
    path: Path, model: DemoAnalyser, monkeypatch: pytest.MonkeyPatch, again: Document
) -> None:
    monkeypatch.setattr(pipeline, "BATCH_DOCUMENTS", 2)
    report = add(path, [Document("a", "first"), Document("b", "b"), Document("c", "c"), again], model)
    assert report == Report(added=3, duplicates=1)
    assert texts_of(path) == {"a": again.text, "b": "b", "c": "c"}
    check_consistent(path)


def test_a_repeated_id_that_was_there_before_is_counted_once_as_replaced(
    path: Path, model: DemoAnalyser, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(path, [Document("a", "old")], model)
    monkeypatch.setattr(pipeline, "BATCH_DOCUMENTS", 1)
    report = add(path, [Document("a", "new"), Document("a", "newer")], model)
    assert report == Report(replaced=1, duplicates=1)
    assert texts_of(path) == {"a": "newer"}


# Batches and errors


def test_batches_end_at_a_number_of_documents_or_of_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(pipeline, "BATCH_CHARACTERS", 10)
    texts = ["a", "b", "c", "d" * 4, "e" * 6, "f" * 20, "g"]
    batches = [[document.text[0] for document in batch] for batch in batched(Document(t, t) for t in texts)]
    assert batches == [["a", "b", "c"], ["d", "e"], ["f"], ["g"]]


def test_a_batch_of_documents_that_need_no_model_holds_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(pipeline, "GIVEN_DOCUMENTS", 3)
    vector = np.ones(4, dtype=np.float32)
    given = [Document(str(n), "g", vector=vector) for n in range(8)]
    assert [len(batch) for batch in batched(given, tagged=False)] == [6, 2]
    assert [len(batch) for batch in batched(given, tagged=True)] == [2] * 4
    mixed = [*given[:3], Document("a", "needs the model"), *given[3:]]
    assert [len(batch) for batch in batched(mixed, tagged=False)] == [4, 5]
    monkeypatch.setattr(pipeline, "BATCH_CHARACTERS", 2)
    monkeypatch.setattr(pipeline, "GIVEN_CHARACTERS", 2)
    assert [len(batch) for batch in batched(given, tagged=False)] == [4, 4]


def failing(count: int) -> Iterator[Document]:
    yield from docs(count)
    raise InputError("broken", source="x.jsonl", line=count + 1)


def test_an_error_in_the_input_leaves_what_came_before_it_stored(path: Path, model: DemoAnalyser) -> None:
    with pytest.raises(InputError, match="line 6: broken"):
        add(path, failing(5), model)
    assert sorted(texts_of(path)) == ["d0", "d1", "d2", "d3", "d4"]
    check_consistent(path)


def test_a_run_that_was_stopped_goes_on_where_it_was(
    path: Path, model: DemoAnalyser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "BATCH_DOCUMENTS", 2)
    done: list[int] = []

    def stop(report: Report) -> None:
        done.append(report.documents)
        if report.documents == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(path, docs(9), model, on_commit=stop)
    assert (done, len(texts_of(path))) == ([2, 4], 4)
    model.analysed.clear()
    assert add(path, docs(9), model) == Report(added=5, unchanged=4)
    assert model.analysed == [document.text for document in docs(9)[4:]]
    check_consistent(path)


def test_what_on_commit_was_told_of_is_durable(
    path: Path, model: DemoAnalyser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "BATCH_DOCUMENTS", 2)
    seen: list[tuple[int, int]] = []
    add(path, docs(5), model, on_commit=lambda report: seen.append((report.added, len(texts_of(path)))))
    assert seen == [(2, 2), (4, 4), (5, 5)]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("", "text"), "document 2: the id must be a string that is not empty, got ''"),
        (Document(7, "text"), "the id must be a string that is not empty, got 7"),  # type: ignore[arg-type]
        (Document("x", " \n"), "document 2 .'x'.: the text is empty"),
        (Document("x", None), "document 2 .'x'.: the text is empty"),  # type: ignore[arg-type]
        (Document("x", "a\ud800b"), "document 2 .'x'.: the text has a lone surrogate, which is not valid Unicode"),
        (Document("x\udfff", "text"), "document 2, field 'id': an id must be valid Unicode, without lone surrogates"),
        (
            Document("x", "text", {"a": {"b": [1.0, float("nan")]}}),
            "document 2 .'x'., field 'a.b': nan is not a number",
        ),
        (Document("x", "text", {"a": 2**63}), "field 'a': integer 9223372036854775808 does not fit in 64 bits"),
        (Document("x", "text", {"a": object()}), "field 'a': a value of type object is not JSON"),
        (
            Document("x", "text", {"a": np.float64(1.5)}),
            "field 'a': a value of type numpy.float64 is not JSON: ",
        ),
        (Document("x", "text", {"a": "\ud800"}), "field 'a': has a lone surrogate"),
        (Document("x", "text", {1: "a"}), "key 1 is not a string"),  # type: ignore[dict-item]
    ],
)
def test_a_document_that_cannot_be_kept_is_refused_and_those_before_it_stay(
    path: Path, model: DemoAnalyser, document: Document, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        add(path, [Document("good", "text"), document, Document("after", "text")], model)
    assert texts_of(path) == {"good": "text"}


@pytest.mark.parametrize("documents", [[], [Document("x", "")], failing(0)], ids=["none", "empty text", "broken"])
def test_no_index_is_left_behind_by_a_bad_first_record(path: Path, model: DemoAnalyser, documents: Any) -> None:
    with pytest.raises(InputError):
        add(path, documents, model)
    assert not path.exists()


def test_no_index_is_left_behind_by_a_model_that_is_not_there(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere is not a model folder"):
        add_documents(path, docs(1), model=tmp_path / "nowhere")
    assert not path.exists()


def test_an_index_whose_making_was_cut_short_is_made_at_the_next_try(path: Path, model: DemoAnalyser) -> None:
    path.mkdir()
    (path / "meta.sqlite").touch()
    assert add(path, docs(2), model) == Report(added=2)
    check_consistent(path)


def test_an_index_that_was_cut_short_before_its_settings_is_made_at_the_next_try(
    path: Path, model: DemoAnalyser, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("indexer.store.write_settings", killed)
        with pytest.raises(KeyboardInterrupt):
            add(path, docs(2), model)
    assert table_rows(path, "settings") == []
    assert add(path, docs(2), model) == Report(added=2)
    check_consistent(path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError, MemoryError])
def test_a_first_run_that_stores_nothing_binds_no_model_and_no_tags(
    path: Path, model: DemoAnalyser, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(model, "analyse", stop)
    with pytest.raises(error):
        add(path, docs(2), model)
    with pytest.raises(NotAnIndexError, match="is not an index yet"):
        IndexReader(path)
    other = DemoAnalyser(name="other", seed=1, dimension=8)
    assert add(path, docs(2), other, tags=False) == Report(added=2)
    check_consistent(path)


# Models and tags


def test_another_model_is_refused_with_both_fingerprints(path: Path, model: DemoAnalyser) -> None:
    add(path, docs(1), model)
    other = DemoAnalyser(name="other", seed=1, dimension=8)
    with pytest.raises(
        FingerprintError,
        match=rf"{path} was built with model demo \(fingerprint {model.fingerprint[:12]}, 16 dimensions\), got other "
        rf"\(fingerprint {other.fingerprint[:12]}, 8 dimensions\): pass --model demo, or build a new index",
    ):
        add(path, docs(2), other)
    assert list(texts_of(path)) == ["d0"]
    assert other.analysed == []


def test_other_heads_are_refused(path: Path, model: DemoAnalyser) -> None:
    add(path, docs(1), model)
    with pytest.raises(FingerprintError, match=r"was tagged with the heads of demo .* tag it again first with"):
        add(path, docs(2), DemoAnalyser(heads=False))


def test_without_tags_there_is_no_class_and_no_entity(path: Path, model: DemoAnalyser) -> None:
    add(path, [Document("a", "Ada plays ball")], model, tags=False)
    settings = dict(table_rows(path, "settings"))
    assert (settings["class_labels"], settings["entity_types"], settings["heads_fingerprint"]) == ("null",) * 3
    assert table_rows(path, "entities") == []
    assert table_rows(path, "documents")[0][5] is None
    assert add(path, [Document("b", "more")], DemoAnalyser(heads=False)) == Report(added=1)


def test_an_index_with_tags_cannot_be_added_to_without(path: Path, model: DemoAnalyser) -> None:
    add(path, docs(1), model)
    with pytest.raises(TagdexError, match=r"was built with tags, so tags=False \(--no-tags\) cannot be had"):
        add(path, docs(2), model, tags=False)


def test_an_index_of_a_model_without_heads_takes_documents(path: Path) -> None:
    plain = DemoAnalyser(heads=False)
    assert add(path, docs(2), plain) == Report(added=2)
    assert add(path, docs(3), plain) == Report(added=1, unchanged=2)


def test_the_pipeline_works_with_any_analyser(path: Path, model: DemoAnalyser) -> None:
    with IndexWriter(path, create=settings_of(model)) as writer:
        assert pipeline.index(docs(2), model, writer) == Report(added=2)


# Removing


def test_removing_from_python(path: Path, model: DemoAnalyser) -> None:
    add(path, docs(6), model)
    assert remove_documents(path, ["d0", "nowhere"]) == ["nowhere"]
    assert remove_matching(path, "n = 1") == 1
    assert remove_matching(path, Compare("n", ">=", 4)) == 2
    assert sorted(texts_of(path)) == ["d2", "d3"]


def test_removing_by_a_name_that_is_not_there_says_which_are(path: Path, model: DemoAnalyser) -> None:
    add(path, docs(1), model)
    with pytest.raises(FilterError, match=r"unknown class 'politics' \(this index knows music, science, sport\)"):
        remove_matching(path, "label = politics")
    with pytest.raises(FilterError, match=r"unknown entity type 'DATE' \(this index knows LOC, ORG, PER\)"):
        remove_matching(path, "entity DATE")


def test_removing_from_what_is_not_an_index(path: Path) -> None:
    with pytest.raises(NotAnIndexError):
        remove_documents(path, ["a"])
    assert not path.exists()
