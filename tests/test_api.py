"""What the Python API takes of a caller, in every form that one has it in, and how it refuses the rest."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from fakes import DemoAnalyser, as_text_model, build_index, build_vector_index, clustered

from indexer import Document, IndexWriter, add_documents, compact_index, pipeline, read_documents, remove_documents
from indexer.api import remove_matching
from indexer.errors import ClosedError, CursorError, FilterError, InputError, ModelError, QueryError, TagdexError
from indexer.filters import Compare, Field
from indexer.pipeline import Report
from search import Examples, Searcher
from search.query import Query

MODEL = DemoAnalyser()
VECTORS = clustered(40, dimension=16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Documents 0 to 11 with texts; their numbers are in the field n."""
    return build_index(tmp_path / "texts", [Document(str(n), f"text {n} of Ada", {"n": n}) for n in range(12)])


@pytest.fixture
def searcher(path: Path) -> Iterator[Searcher]:
    with Searcher(path, model=as_text_model(MODEL)) as opened:
        yield opened


@pytest.fixture
def given(tmp_path: Path) -> Iterator[Searcher]:
    """Documents d0 to d39 with the vectors, without a model."""
    with Searcher(build_vector_index(tmp_path / "given", VECTORS)) as opened:
        yield opened


def best(vector: np.ndarray[Any, Any], k: int) -> list[str]:
    """Brute force: the ids of the vectors with the highest cosine."""
    stored = VECTORS.astype(np.float16).astype(np.float64)
    return [f"d{at}" for at in np.argsort(-(stored @ vector.astype(np.float64)), kind="stable")[:k]]


# Documents


def test_a_buffer_that_is_filled_anew_for_each_document_gives_each_its_vector(tmp_path: Path) -> None:
    def reading() -> Iterator[Document]:
        buffer = np.empty(16, dtype=np.float32)
        for number, row in enumerate(VECTORS):
            buffer[:] = row
            yield Document(f"d{number}", "", vector=buffer)

    add_documents(tmp_path / "index", reading())
    with Searcher(tmp_path / "index") as searcher:
        for row in VECTORS[:3]:
            assert [hit.id for hit in searcher.search_vector(row, k=3)] == best(row, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("text", r"documents must be several, .* got 'text' of type str"),
        (Document("a", "text"), r"documents must be several, .* of type Document"),
        (None, r"documents must be several, .* got None of type NoneType"),
        ([{"id": "a"}], r"document 1: expected Document\(id, text, metadata\), got {'id': 'a'} of type dict"),
        ([Document("a", b"text")], r"document 1 \('a'\): the text must be a string, got b'text' of type bytes"),  # type: ignore[arg-type]
        ([Document("a", float("nan"))], r"the text must be a string, got nan of type float"),  # type: ignore[arg-type]
        ([Document("a", "text", None)], r"document 1 \('a'\): the metadata must be a dict, got None"),  # type: ignore[arg-type]
        ([Document("a", "text", [1])], r"the metadata must be a dict, got \[1\] of type list"),  # type: ignore[arg-type]
        (
            [Document("a", "text", {np.str_("k"): 1})],
            r"key np.str_\('k'\) is not a string of Python's own: .*str\(key\)",
        ),
        ([Document("a", "text", {"f": np.bool_(True)})], r"numpy.bool is not JSON: give it as .* value.tolist\(\)"),
        ([Document("a", "text", {"f": date(2024, 1, 2)})], r"datetime.date is not JSON: .* value.isoformat\(\)"),
        ([Document("a", "text", {"f": {1}})], r"of type set is not JSON: give it as a string, a number"),
        ([Document("a", "text", {"f": MappingProxyType({})})], r"mappingproxy is not JSON: give it as dict\(value\)"),
        ([Document("a", "", vector=torch.ones(16, requires_grad=True))], "not one of numbers: .*detach"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_document_is_named(path: Path, wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_documents(path, wrong, model=as_text_model(MODEL))


def test_one_file_is_read_as_a_list_of_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("text")
    documents = list(read_documents([file]))
    assert [document.text for document in documents] == ["text"]
    assert list(read_documents(file)) == list(read_documents(str(file))) == documents


def test_metadata_may_be_any_mapping(path: Path, searcher: Searcher) -> None:
    add_documents(path, [Document("a", "text", MappingProxyType({"n": 1}))], model=as_text_model(MODEL))
    assert searcher.documents(["a"])["a"].metadata == {"n": 1}


def test_every_commit_gets_a_report_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_DOCUMENTS", 1)
    reports: list[Report] = []
    documents = [Document("a", "", vector=row) for row in VECTORS[:24]]
    add_documents(tmp_path / "index", documents, on_commit=reports.append)
    assert [report.documents for report in reports] == [8, 16, 24]


def test_tags_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    documents = [Document("a", "Ada")]
    add_documents(tmp_path / "untagged", documents, model=as_text_model(MODEL), tags=False)
    with pytest.raises(TagdexError, match=r"was built without tags, so tags=True \(--tags\) cannot be had"):
        add_documents(tmp_path / "untagged", documents, model=as_text_model(MODEL), tags=True)
    headless = as_text_model(DemoAnalyser(heads=False))
    with pytest.raises(ModelError, match=r"model demo has no heads, so tags=True \(--tags\) cannot be had"):
        add_documents(tmp_path / "new", documents, model=headless, tags=True)
    assert not (tmp_path / "new").exists()
    assert add_documents(tmp_path / "new", documents, model=headless).added == 1


# Several of something


def test_one_id_is_not_taken_for_the_ids_of_its_characters(path: Path, searcher: Searcher) -> None:
    message = "ids must be several strings, got one: '11' of type str; put it in a list"
    with pytest.raises(InputError, match=message):
        remove_documents(path, "11")
    with IndexWriter(path) as writer, pytest.raises(InputError, match=message):
        writer.remove("11")
    with pytest.raises(QueryError, match=message):
        searcher.present("11")
    with pytest.raises(QueryError, match=message):
        searcher.documents("11")
    assert searcher.info.documents == 12


def test_one_text_or_name_is_not_taken_for_its_characters(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="texts must be several strings, got one: 'ball'"):
        searcher.search_many("ball")
    with pytest.raises(QueryError, match="names must be several strings, got one: 'n'"):
        searcher.facets(names="n")


@pytest.mark.parametrize("wrong", [1, None, b"1", ("1",)])
def test_what_is_no_id_or_text_is_named(path: Path, searcher: Searcher, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"ids must be strings, got .* of type "):
        remove_documents(path, [wrong])
    with pytest.raises(QueryError, match=r"ids must be strings, got .* of type "):
        searcher.documents([wrong])
    with pytest.raises(QueryError, match=r"ids must be strings, got .* of type "):
        Examples(ids=[wrong])
    with pytest.raises(QueryError, match=r"texts must be strings, got .* of type "):
        searcher.search_many([wrong])
    with pytest.raises(QueryError, match=r"text must be a string, got .* of type "):
        searcher.search(wrong)


def test_several_may_come_in_any_iterable(path: Path, searcher: Searcher) -> None:
    texts = ["text 3", "Ada", "of"]
    wanted = searcher.search_many(texts)
    assert wanted == [searcher.search(text) for text in texts]
    assert searcher.search_many(iter(texts)) == searcher.search_many(np.array(texts)) == wanted
    assert searcher.facets(names=iter(["n"])) == searcher.facets(names=["n"])
    assert remove_documents(path, (name for name in ("3", "x"))) == ["x"]
    assert searcher.present(np.array(["3", "4"])) == {"4"}


# Vectors


@pytest.mark.parametrize(
    "form",
    [
        np.ndarray.tolist,
        lambda vector: tuple(vector.tolist()),
        lambda vector: vector.astype(np.float64),
        lambda vector: vector.astype(">f4"),
        lambda vector: np.stack([vector, vector], axis=1)[:, 0],
        torch.from_numpy,
        lambda vector: vector.astype(object),
        lambda vector: vector * np.float32(1e-30),
    ],
    ids=["list", "tuple", "fp64", "big-endian", "strided", "tensor", "objects", "short"],
)
def test_a_query_vector_in_any_form_finds_the_nearest(given: Searcher, form: Any) -> None:
    vector, exact = form(VECTORS[7].copy()), best(VECTORS[7], 5)
    assert [hit.id for hit in given.search_vector(vector, k=5)] == exact
    assert [hit.id for hit in given.page(vector, k=5).hits] == exact
    assert [hit.id for hit in given.answer_vector(vector, Query(k=5)).hits] == exact
    assert {value.value for value in given.facets(vector, names=["n"], of=5)["n"].values} == {
        int(name[1:]) for name in exact
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (VECTORS[:1], r"has shape \(1, 16\)"),
        (VECTORS[0, :4], r"has shape \(4,\), the index's vectors have \(16,\)"),
        (VECTORS[0] * np.nan, "holds NaN or infinity"),
        (VECTORS[0] * 0, "is zero: it has no direction"),
        (VECTORS[0].astype(np.float64) * 1e300, "holds NaN or infinity"),
        (VECTORS[0] + 1j, "is not one of numbers: it holds complex64"),
        (VECTORS[0].astype(str), "is not one of numbers: it holds <U32"),
        ([[1.0], [1.0, 2.0]], "is not one of numbers"),
        (torch.ones(16, requires_grad=True), "is not one of numbers: .*detach"),
        (None, "has shape"),
    ],
)
def test_a_query_vector_without_a_direction_is_a_query_error(given: Searcher, wrong: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        given.search_vector(wrong)
    with pytest.raises(QueryError, match=message):
        given.answer_vector(wrong, Query())


def test_embeddings_of_examples_are_counted_and_checked(searcher: Searcher) -> None:
    examples = Examples(texts=["text 3"], not_texts=["Ada"])
    rows = [MODEL.vector("text 3"), MODEL.vector("Ada")]
    assert searcher.similar(examples, encoded=[row.tolist() for row in rows]) == searcher.similar(examples)
    for wrong in (rows[:1], [*rows, rows[0]]):
        with pytest.raises(QueryError, match=f"one embedding for each of 2 texts, got {len(wrong)}"):
            searcher.similar(examples, encoded=wrong)
    with pytest.raises(QueryError, match=r"shape \(4,\)"):
        searcher.similar(examples, encoded=[rows[0][:4], rows[1]])
    with pytest.raises(QueryError, match=r"an id or Examples, got \['3', '4'\] of type list"):
        searcher.similar(["3", "4"])  # type: ignore[arg-type]


# Options


@pytest.mark.parametrize("option", ["k", "offset", "passages"])
def test_whole_numbers_may_be_of_numpy(searcher: Searcher, option: str) -> None:
    assert searcher.search("Ada", **{option: np.int64(3)}) == searcher.search("Ada", **{option: 3})
    assert type(getattr(Query(**{option: np.int64(3)}), option)) is int


@pytest.mark.parametrize("wrong", [2.0, "3", None, float("inf")])
def test_what_is_no_whole_number_is_named(searcher: Searcher, wrong: Any) -> None:
    for option in ("k", "offset", "passages", "neighbours", "rerank_top"):
        with pytest.raises(QueryError, match=f"{option} must be a whole number, got .* of type"):
            searcher.search("Ada", **{option: wrong})
    with pytest.raises(QueryError, match=r"top must be a whole number, got .* of type"):
        searcher.facets(top=wrong)


@pytest.mark.parametrize("option", ["min_score", "keyword_weight", "distinct", "mmr", "boost"])
def test_what_is_no_number_is_named(searcher: Searcher, option: str) -> None:
    assert searcher.search("Ada", **{option: np.float32(0.5)}) == searcher.search("Ada", **{option: 0.5})
    with pytest.raises(QueryError, match=f"{option} must be a number, got '0.5' of type str"):
        searcher.search("Ada", **{option: "0.5"})


def test_a_weight_that_is_no_number_is_named() -> None:
    with pytest.raises(QueryError, match=r"not_weight must be a number from 0 up, got '1'"):
        Examples(ids=["1"], not_weight="1")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [5, True, b"n > 3", ["n > 3"]])
def test_what_is_no_filter_is_named(path: Path, searcher: Searcher, wrong: Any) -> None:
    message = r"a filter is a text, a JSON object or a tree from indexer.filters, got .* of type"
    with pytest.raises(FilterError, match=message):
        searcher.search("Ada", filter=wrong)
    with pytest.raises(FilterError, match=message):
        searcher.present(["1"], filter=wrong)
    with pytest.raises(FilterError, match=message):
        remove_matching(path, wrong)


def test_a_query_takes_a_filter_as_a_tree_only() -> None:
    with pytest.raises(FilterError, match=r"got 'n > 3' of type str: indexer.filters.as_filter makes one"):
        Query(filter="n > 3")  # type: ignore[arg-type]


def test_what_a_search_finds_by_a_filter_is_removed_by_it(path: Path, searcher: Searcher) -> None:
    forms: list[Any] = [Compare("n", "=", 3), "n = 4", {"path": "n", "op": "=", "value": 5}]
    for form in forms:
        assert len(searcher.search("Ada", filter=form)) == 1
        assert remove_matching(path, form) == 1
        assert searcher.search("Ada", filter=form) == []
    with pytest.raises(FilterError, match="a filter must say which documents to remove, got None"):
        remove_matching(path, None)  # type: ignore[arg-type]


def test_what_no_filter_can_compare_with_is_named() -> None:
    with pytest.raises(FilterError, match="isin takes several values, got one: 'abc' of type str; put it in a list"):
        Field("lang").isin("abc")
    with pytest.raises(FilterError, match=r"a number or a boolean, got int64: give it as .* value.tolist\(\)"):
        _ = Field("n") >= np.int64(3)  # type: ignore[operator]
    with pytest.raises(FilterError, match=r"a number or a boolean, got date: give it as .* value.isoformat\(\)"):
        _ = Field("day") == date(2024, 1, 2)  # type: ignore[comparison-overlap]


def test_a_choice_of_codes_that_there_is_not_is_named(path: Path) -> None:
    with pytest.raises(TagdexError, match="unknown choice of codes 'all'; there are auto, always, never"):
        compact_index(path, codes="all")


def test_a_cursor_that_is_no_text_is_damaged(searcher: Searcher) -> None:
    with pytest.raises(CursorError, match="is damaged"):
        searcher.page("Ada", cursor=5)  # type: ignore[arg-type]


# Closing


def test_what_was_closed_says_so(path: Path) -> None:
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        assert searcher.search("Ada")
        searcher.close()
        for ask in (lambda: searcher.search("Ada"), lambda: searcher.info, lambda: searcher.facets(names=["n"])):
            with pytest.raises(ClosedError, match="was closed here, and is asked again: open it anew"):
                ask()
    searcher.close()


def test_a_writer_that_was_closed_says_so(path: Path) -> None:
    with IndexWriter(path) as writer:
        writer.remove(["1"])
        writer.close()
        for ask in (lambda: writer.remove(["2"]), writer.seal, lambda: writer.state):
            with pytest.raises(ClosedError, match="was closed by this writer: open a new one"):
                ask()
    writer.close()
    assert remove_documents(path, ["1", "2"]) == ["1"]


def test_a_snapshot_that_has_ended_says_so(searcher: Searcher) -> None:
    with searcher.snapshot() as snapshot:
        assert searcher.answer("Ada", Query(), snapshot=snapshot).hits
    for ask in (
        snapshot.count,
        lambda: searcher.answer("Ada", Query(), snapshot=snapshot),
        lambda: searcher.facets("Ada", snapshot=snapshot),
    ):
        with pytest.raises(ClosedError, match="this snapshot has ended: ask inside its with block"):
            ask()


def test_a_snapshot_of_another_searcher_is_refused(searcher: Searcher, given: Searcher) -> None:
    with given.snapshot() as snapshot, pytest.raises(QueryError, match="of another Searcher: take one of this one's"):
        searcher.answer("Ada", Query(), snapshot=snapshot)
