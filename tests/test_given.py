"""Vectors that were made elsewhere: from a .npy file, from a field, from Python; and what such an index can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_fails, assert_usage, write_jsonl
from fakes import (
    DemoAnalyser,
    as_text_model,
    build_vector_index,
    check_consistent,
    clustered,
    entries,
    table_rows,
    unit_fp16,
)

from indexer import pipeline
from indexer.api import add_documents
from indexer.errors import FingerprintError, InputError, ModelError, QueryError
from indexer.given import as_vector, with_vector_field, with_vectors
from indexer.model import TextModel
from indexer.pipeline import Report
from indexer.reader import IndexReader
from indexer.records import Document, FloatArray
from indexer.settings import settings_of
from indexer.store import IndexWriter
from indexer.verify import verify_index
from search import Searcher

TABLE = clustered(6, dimension=8)
RECORDS = [{"id": f"d{n}", "text": f"text {n} Ada", "n": n} for n in range(6)]
# clustered() gives rows of length 1; given vectors may have any length.
LONG = TABLE * np.arange(1, 7, dtype=np.float32)[:, None]


def docs(vectors: FloatArray | None = TABLE, *, text: bool = True) -> list[Document]:
    return [
        Document(f"d{n}", f"text {n} Ada" if text else "", {"n": n}, vector=None if vectors is None else vectors[n])
        for n in range(6)
    ]


def ranking(path: Path | str, query: FloatArray, *, table: FloatArray = TABLE, **options: Any) -> list[str]:
    """Ids in the order of an index, with the scores checked against brute force."""
    with Searcher(path) as searcher:
        hits = searcher.search_vector(query, **options)
    unit = (query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))).astype(np.float32)
    scores = np.clip(unit_fp16(table) @ unit.astype(np.float64), -1, 1)
    for hit in hits:
        assert hit.score == pytest.approx(scores[int(hit.id[1:])], abs=1e-9)
    assert [hit.id for hit in hits] == [f"d{n}" for n in np.argsort(-scores, kind="stable")][: len(hits)]
    return [hit.id for hit in hits]


# From Python


def test_documents_that_bring_their_vector_need_no_model(tmp_path: Path) -> None:
    path = tmp_path / "index"
    assert add_documents(path, docs(LONG)) == Report(added=6)
    settings = {name: json.loads(value) for name, value in table_rows(path, "settings")}
    assert (settings["model"], settings["fingerprint"], settings["dimension"]) == (None, None, 8)
    assert (settings["class_labels"], settings["entity_types"]) == (None, None)
    assert len(ranking(path, TABLE[2] * 3)) == 6
    check_consistent(path)
    assert verify_index(path).faults == ()


def test_a_given_vector_is_one_passage_over_the_whole_text(tmp_path: Path) -> None:
    add_documents(tmp_path / "index", docs())
    with Searcher(tmp_path / "index") as searcher:
        hits = searcher.search_vector(TABLE[0])
    assert {hit.id: (hit.passage.start, hit.passage.end) for hit in hits} == {f"d{n}": (0, 10) for n in range(6)}
    assert table_rows(tmp_path / "index", "pooled") == []


@pytest.mark.parametrize("seal", [False, True])
def test_texts_may_be_empty_where_vectors_are_given(tmp_path: Path, seal: bool) -> None:
    path = tmp_path / "index"
    add_documents(path, docs(text=False))
    if seal:
        with IndexWriter(path) as writer:
            writer.seal()
    ranking(path, TABLE[1])
    with Searcher(path) as searcher:
        assert [hit.id for hit in searcher.search_vector(TABLE[1], filter="n in 2..3")] == [
            id_ for id_ in ranking(path, TABLE[1]) if id_ in {"d2", "d3"}
        ]
        assert "d3" not in [hit.id for hit in searcher.similar("d3")]
    assert verify_index(path).faults == ()


def test_the_same_text_and_vector_is_skipped_and_a_new_vector_replaces(tmp_path: Path) -> None:
    path = tmp_path / "index"
    add_documents(path, docs())
    assert add_documents(path, docs()) == Report(unchanged=6)
    changed = TABLE.copy()
    changed[2] = -TABLE[2]
    assert add_documents(path, docs(changed)) == Report(replaced=1, unchanged=5)
    ranking(path, TABLE[2], table=changed)
    metadata_only = [Document("d0", "text 0 Ada", {"n": 99}, vector=TABLE[0])]
    assert add_documents(path, metadata_only) == Report(updated=1)
    check_consistent(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_of_any_float_type_are_taken(tmp_path: Path, dtype: type) -> None:
    table = TABLE.astype(dtype)
    add_documents(tmp_path / "index", docs(table))
    ranking(tmp_path / "index", TABLE[0], table=table.astype(np.float32))


def test_documents_without_a_vector_cannot_join_such_an_index(tmp_path: Path) -> None:
    path = tmp_path / "index"
    add_documents(path, docs())
    with pytest.raises(
        InputError, match="document 'x': has no vector, and the index holds vectors that were made else"
    ):
        add_documents(path, [Document("x", "text")])
    with pytest.raises(InputError, match="document 'x': has no vector"):
        add_documents(path, [Document("y", "y", vector=TABLE[0]), Document("x", "text")])
    assert len(table_rows(path, "documents")) == 7  # what came before it is kept


def test_a_vector_of_another_dimension_cannot_join(tmp_path: Path) -> None:
    path = tmp_path / "index"
    add_documents(path, docs())
    with pytest.raises(InputError, match=r"document 'x': its vector has shape \(9,\), the index's \(8,\)"):
        add_documents(path, [Document("x", "text", vector=np.ones(9, dtype=np.float32))])
    assert len(table_rows(path, "documents")) == 6


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(8, dtype=np.float32),
        np.full(8, np.nan, dtype=np.float32),
        np.array([1, np.inf, 0, 0, 0, 0, 0, 0], dtype=np.float32),
    ],
)
def test_a_first_vector_without_direction_leaves_no_index_behind(tmp_path: Path, vector: FloatArray) -> None:
    with pytest.raises(InputError, match="'bad'"):
        add_documents(tmp_path / "index", [Document("bad", "text", vector=vector)])
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("shape", [(2, 4), (), (0,)])
def test_a_first_vector_of_another_shape_leaves_no_index_behind(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="'bad'"):
        add_documents(tmp_path / "index", [Document("bad", "text", vector=np.ones(shape, dtype=np.float32))])
    assert not (tmp_path / "index").exists()


def test_the_same_id_twice_takes_the_last_vector(tmp_path: Path) -> None:
    twice = [Document("d0", "x", vector=-TABLE[0]), Document("d0", "x", vector=TABLE[0])]
    assert add_documents(tmp_path / "index", twice) == Report(added=1, duplicates=1)
    ranking(tmp_path / "index", TABLE[0], table=TABLE[:1])


# With a model


MODEL = DemoAnalyser(dimension=8)


def test_vectors_of_a_named_model_make_an_index_of_that_model(tmp_path: Path) -> None:
    path = tmp_path / "index"
    vectors = np.stack([MODEL.vector(f"text {n} Ada") for n in range(6)])
    add_documents(path, docs(vectors), model=as_text_model(MODEL))
    settings = {name: json.loads(value) for name, value in table_rows(path, "settings")}
    assert (settings["model"], settings["fingerprint"]) == ("demo", MODEL.fingerprint)
    assert settings["class_labels"] is None  # no tags unless they are asked for
    assert MODEL.analysed == []
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        (hit,) = searcher.search("text 3 Ada", k=1)
        assert (hit.id, hit.score) == ("d3", pytest.approx(1.0, abs=1e-3))
    # Texts without a vector are embedded by the model.
    add_documents(path, [Document("new", "quite another text")], model=as_text_model(MODEL))
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        assert searcher.search("quite another text", k=1)[0].id == "new"
    MODEL.analysed.clear()


def test_tags_are_made_where_they_are_asked_for_and_the_vectors_stay(tmp_path: Path) -> None:
    path, model = tmp_path / "index", DemoAnalyser(dimension=8)
    add_documents(path, docs(), model=as_text_model(model), tags=True)
    assert sorted(model.analysed) == [f"text {n} Ada" for n in range(6)]
    with Searcher(path) as searcher:
        assert len(searcher.search_vector(TABLE[0], filter="entity PER:ada")) == 6
    ranking(path, TABLE[0])


@pytest.mark.parametrize("there", [True, False])
def test_a_vector_in_the_middle_is_refused_as_the_first_is(tmp_path: Path, there: bool, monkeypatch: Any) -> None:
    path = tmp_path / "index"
    monkeypatch.setattr("indexer.api._load", lambda *_: as_text_model(MODEL))
    if there:
        add_documents(path, [Document("t", "a text")], tags=False)
    texts = [Document("u", "another text"), Document("v", "", vector=TABLE[0]), Document("w", "one more")]
    with pytest.raises(InputError, match=f"{path} was built with model demo: pass --model to say that these vectors"):
        add_documents(path, texts)
    with IndexReader(path) as reader, reader.snapshot() as snapshot:  # what came before it is kept
        assert [snapshot.number_of(id_) is not None for id_ in ("t", "u", "v", "w")] == [there, True, False, False]


def test_given_vectors_join_an_index_of_a_model_only_when_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "index"
    add_documents(path, [Document("t", "a text")], model=as_text_model(MODEL), tags=False)
    with pytest.raises(InputError, match="was built with model demo: pass --model to say that these vectors are its"):
        add_documents(path, docs())
    assert add_documents(path, docs(), model=as_text_model(MODEL)) == Report(added=6)
    other = DemoAnalyser(dimension=8, seed=1, name="other")
    with pytest.raises(FingerprintError, match="was built with model demo"):
        add_documents(path, docs(), model=as_text_model(other))


def test_vectors_that_are_not_the_model_s_leave_no_index_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="document 'd0': its vector has 8 dimensions, those of model demo have 16"):
        add_documents(tmp_path / "index", docs(), model=as_text_model(DemoAnalyser(dimension=16)))
    assert not (tmp_path / "index").exists()


def test_a_text_query_needs_a_model_of_that_dimension(tmp_path: Path) -> None:
    path = tmp_path / "index"
    vectors = np.stack([MODEL.vector(f"text {n} Ada") for n in range(6)])
    add_documents(path, docs(vectors))
    with (
        Searcher(path) as searcher,
        pytest.raises(ModelError, match="holds vectors that were made elsewhere: pass the"),
    ):
        searcher.search("text")
    with (
        Searcher(path, model=as_text_model(DemoAnalyser(dimension=16))) as searcher,
        pytest.raises(FingerprintError, match="holds vectors of 8 dimensions that were made elsewhere, demo makes 16"),
    ):
        searcher.search("text")
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        assert searcher.search("text 3 Ada", k=1)[0].id == "d3"


def test_vectors_given_for_texts_that_a_model_embedded_replace_them(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with IndexWriter(path, create=settings_of(MODEL, tags=False)) as writer:
        writer.write(entries(docs(None), MODEL, tags=False))
    assert add_documents(path, docs(), model=as_text_model(MODEL)) == Report(replaced=6)
    ranking(path, TABLE[4])
    MODEL.analysed.clear()


# Queries by vector


@pytest.mark.parametrize("shape", [(7,), (9,), (8, 1), (1, 8), ()])
def test_a_query_vector_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = build_vector_index(tmp_path / "index", TABLE)
    with (
        Searcher(path) as searcher,
        pytest.raises(QueryError, match=r"the query's vector has shape \(.*\), the index's"),
    ):
        searcher.search_vector(np.ones(shape, dtype=np.float32))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_query_vector_without_direction_is_refused(tmp_path: Path, bad: float) -> None:
    path = build_vector_index(tmp_path / "index", TABLE)
    with Searcher(path) as searcher, pytest.raises(QueryError, match=r"no direction|NaN or infinity"):
        searcher.search_vector(np.full(8, bad, dtype=np.float32))


# Reading .npy files and fields


def pairs(count: int) -> list[Document]:
    return [Document(f"d{n}", "x") for n in range(count)]


def test_each_document_gets_its_row(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", LONG)
    given = list(with_vectors(pairs(6), tmp_path / "v.npy"))
    assert [document.id for document in given] == [f"d{n}" for n in range(6)]
    np.testing.assert_array_equal(
        np.stack([document.vector for document in given if document.vector is not None]), LONG
    )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
def test_floats_of_any_size_and_order_are_read(tmp_path: Path, dtype: str, order: Any) -> None:
    np.save(tmp_path / "v.npy", np.asarray(TABLE, dtype=dtype, order=order))
    for document, row in zip(with_vectors(pairs(6), tmp_path / "v.npy"), TABLE, strict=True):
        assert document.vector is not None
        assert document.vector.dtype == np.float32
        np.testing.assert_allclose(document.vector, row, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("rows", "problem"), [(5, "has 5 rows, but there are more documents"), (7, "has 7 rows, but")])
def test_another_number_of_rows_is_refused(tmp_path: Path, rows: int, problem: str) -> None:
    np.save(tmp_path / "v.npy", np.ones((rows, 8), dtype=np.float32))
    with pytest.raises(InputError, match=problem):
        list(with_vectors(pairs(6), tmp_path / "v.npy"))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.nan, "row 3: the vector holds NaN or infinity"),
        (np.inf, "row 3: the vector holds NaN or infinity"),
        (0.0, "row 3: the vector is zero: it has no direction"),
        (1e300, "row 3: the vector holds NaN or infinity"),
        (1e-300, "row 3: the vector is zero"),
    ],
)
def test_a_row_without_direction_is_refused_with_its_number(tmp_path: Path, value: float, problem: str) -> None:
    table = TABLE.astype(np.float64)
    table[2] = value
    np.save(tmp_path / "v.npy", table)
    with pytest.raises(InputError, match=problem):
        list(with_vectors(pairs(6), tmp_path / "v.npy"))


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.ones(6, dtype=np.float32), r"holds float32 of shape \(6,\), not one row of floats each"),
        (np.ones((6, 8), dtype=np.int64), r"holds int64 of shape \(6, 8\)"),
        (np.ones((6, 8), dtype=bool), r"holds bool of shape"),
        (np.ones((6, 2, 2), dtype=np.float32), r"holds float32 of shape \(6, 2, 2\)"),
        (np.ones((6, 0), dtype=np.float32), r"holds float32 of shape \(6, 0\): there is no number in it"),
        (np.array([["a"]] * 6), r"holds <U1 of shape"),
        (np.array([[None]] * 6, dtype=object), "it is not a .npy file of numbers"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: Any, problem: str) -> None:
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=problem):
        list(with_vectors(pairs(6), tmp_path / "v.npy"))


@pytest.mark.parametrize("shape", [(2, 0), (0, 4), (2**70, 0), (0, 2**70), (2**63, 1)])
def test_a_shape_without_a_number_or_of_more_than_there_can_be_is_refused(tmp_path: Path, shape: Any) -> None:
    with (tmp_path / "v.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with pytest.raises(InputError) as caught:
        list(with_vectors(pairs(2), tmp_path / "v.npy"))
    assert str(caught.value) == (
        f"{tmp_path}/v.npy: holds float32 of shape {shape}: there is no number in it, or no file could hold them"
    )


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "npz", "cut"])
def test_what_is_no_npy_file_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "v.npy"
    if kind == "folder":
        file.mkdir()
    elif kind == "npz":
        with file.open("wb") as out:
            np.savez(out, TABLE)
    elif kind == "cut":
        np.save(file, TABLE)
        file.write_bytes(file.read_bytes()[:-4])
    elif kind != "missing":
        file.write_bytes(b"" if kind == "empty" else b"1.0 2.0\n")
    with pytest.raises(InputError, match=r"v\.npy: cannot be read: "):
        list(with_vectors(pairs(6), file))


def test_a_field_becomes_the_vector_and_leaves_the_metadata() -> None:
    given = [Document("a", "x", {"n": 1, "v": [1, 2.5, -3]})]
    (document,) = with_vector_field(given, "v")
    assert (document.id, document.text, document.metadata) == ("a", "x", {"n": 1})
    assert document.vector is not None
    assert (document.vector.dtype, document.vector.tolist()) == (np.float32, [1.0, 2.5, -3.0])
    assert given[0].metadata == {"n": 1, "v": [1, 2.5, -3]}


@pytest.mark.parametrize("value", [None, "x", 1.0, [], ["1"], [1, None], {"a": 1}, [[1, 2]], [True, False]])
def test_a_field_that_is_no_array_of_numbers_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="document 'a', field 'v': is not an array of numbers"):
        list(with_vector_field([Document("a", "x", {"v": value})], "v"))


@pytest.mark.parametrize(("value", "problem"), [([0, 0.0], "is zero"), ([1e300, 1], "NaN or infinity")])
def test_a_field_without_direction_is_refused(value: Any, problem: str) -> None:
    with pytest.raises(InputError, match=f"document 'a', field 'v': the vector .*{problem}"):
        list(with_vector_field([Document("a", "x", {"v": value})], "v"))


def test_a_record_without_the_field_is_refused() -> None:
    with pytest.raises(InputError, match="document 'a', field 'v': is not an array of numbers"):
        list(with_vector_field([Document("a", "x", {"w": [1]})], "v"))


# Command lines


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_add_takes_vectors_from_a_file(run: Run, dtype: type) -> None:
    np.save("v.npy", LONG.astype(dtype))
    result = run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("i: 6 documents added in ")
    ranking("i", TABLE[3], table=LONG.astype(dtype).astype(np.float32))
    again = run("indexer", "add", "i", "r.jsonl", "--vectors", "v.npy")
    assert again.out.startswith("i: 0 documents added, 6 unchanged in ")


def test_a_vector_that_changes_under_the_same_text_is_replaced(run: Run) -> None:
    np.save("v.npy", TABLE)
    run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy")
    changed = TABLE[::-1].copy()
    np.save("v.npy", changed)
    result = run("indexer", "add", "i", "r.jsonl", "--vectors", "v.npy")
    assert result.out.startswith("i: 0 documents added, 6 replaced in ")
    ranking("i", TABLE[0], table=changed)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (4, "v.npy: has 4 rows, but there are more documents"),
        (9, "v.npy: has 9 rows, but there are only 6 documents"),
    ],
)
def test_another_number_of_rows_is_one_line(run: Run, rows: int, message: str) -> None:
    np.save("v.npy", clustered(rows, dimension=8))
    known = f"v.npy: has {rows} rows, but there are 6 documents: it must have one for each, in their order"
    records = write_jsonl("r.jsonl", RECORDS)
    assert_fails(run("indexer", "add", "i", records, "--vectors", "v.npy"), f"{known}, also for those without text")
    assert not Path("i").exists()
    piped = run("indexer", "add", "i", "-", "--format", "jsonl", "--vectors", "v.npy", stdin=Path(records).read_bytes())
    assert_fails(piped, message)


def test_vectors_for_some_of_the_records_are_refused_before_anything_is_stored(run: Run, model: str) -> None:
    records = [{"id": "a", "text": "hello"}, {"id": "b", "text": ""}, {"id": "c", "text": "london"}]
    encode = ("indexer", "encode", write_jsonl("r.jsonl", records), "--output", "v.npy")
    assert run(*encode, "--model", model, "--on-error", "skip").out == "v.npy: 2 rows of 128 dimensions\n"
    refused = "v.npy: has 2 rows, but there are 3 documents: it must have one for each, in their order"
    assert_fails(
        run("indexer", "add", "i", "r.jsonl", "--vectors", "v.npy", "--model", model),
        f"{refused}, also for those without text",
    )
    assert not Path("i").exists()
    Path("r.jsonl").write_text(Path("r.jsonl").read_text() + "broken\n")
    assert run("indexer", "add", "i", "r.jsonl", "--vectors", "v.npy").err.startswith("Error: r.jsonl, line 4: ")
    assert not Path("i").exists()


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "holds NaN or infinity"), (0.0, "is zero: it has no direction")]
)
def test_a_bad_row_is_one_line_and_leaves_no_index(run: Run, value: float, message: str) -> None:
    table = TABLE.copy()
    table[0] = value
    np.save("v.npy", table)
    result = run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy")
    assert result.err.startswith(f"Error: v.npy, row 1: the vector {message}")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert not Path("i").exists()


def test_a_file_of_another_dimension_is_one_line(run: Run) -> None:
    np.save("v.npy", TABLE)
    run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy")
    np.save("w.npy", clustered(6, dimension=9))
    assert_fails(
        run("indexer", "add", "i", "r.jsonl", "--vectors", "w.npy"),
        "document 'd0': its vector has shape (9,), the index's (8,)",
    )


def test_vectors_of_the_wrong_model_leave_no_index(run: Run, model: str) -> None:
    np.save("v.npy", TABLE)
    result = run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy", "--model", model)
    assert_fails(result, f"document 'd0': its vector has 8 dimensions, those of model {model} have 128")
    assert not Path("i").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--vectors", "v.npy", "--on-error", "skip"],
            "--vectors needs --on-error stop: a record left out would shift all rows after it",
        ),
        (["--vectors", "v.npy", "--vector-field", "v"], "give either --vectors or --vector-field"),
        (["--tags", "--no-tags"], "give either --tags or --no-tags"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(run: Run, options: list[str], message: str) -> None:
    assert_usage(run("indexer", "add", "i", "r.jsonl", *options), message)


def test_records_without_any_text_can_be_indexed_by_vector(run: Run) -> None:
    np.save("v.npy", TABLE)
    records = [{"id": f"d{n}", "n": n} for n in range(6)]
    assert run("indexer", "add", "i", write_jsonl("r.jsonl", records), "--vectors", "v.npy").code == 0
    assert [row[2] for row in table_rows(Path("i"), "documents")] == [""] * 6
    hits = run("search", "similar", "i", "--id", "d1", "--json", "--where", "n >= 3").jsons
    assert {hit["id"] for hit in hits} == {"d3", "d4", "d5"}
    assert run("search", "similar", "i", "--id", "d1").code == 0
    assert run("indexer", "verify", "i").code == 0


def test_a_text_field_that_no_record_has_is_named(run: Run) -> None:
    np.save("v.npy", TABLE)
    records = write_jsonl("r.jsonl", [record | {"v": LONG[n].tolist()} for n, record in enumerate(RECORDS)])
    problem = "Error: r.jsonl: no record has the text %s, so all texts are empty; fields here are "
    one = run("indexer", "add", "i", records, "--vectors", "v.npy", "--text-field", "tetx")
    assert (one.code, one.err.startswith(problem % 'field "tetx"')) == (1, True)
    assert not Path("i").exists()
    two = run("indexer", "add", "i", records, "--vector-field", "v", "--text-field", "tetx", "--text-field", "body")
    assert (two.code, two.err.startswith(problem % 'fields "tetx", "body"')) == (1, True)
    assert two.err.count("\n") == 1
    again = run("indexer", "add", "i", records, "--vector-field", "v", "--text-field", "text", "--text-field", "body")
    assert (again.code, again.out.startswith("i: 0 documents added, 6 replaced")) == (0, True)


def test_a_field_of_each_record_can_hold_its_vector(run: Run) -> None:
    records = [record | {"v": LONG[n].tolist()} for n, record in enumerate(RECORDS)]
    assert run("indexer", "add", "i", write_jsonl("r.jsonl", records), "--vector-field", "v").code == 0
    ranking("i", TABLE[2], table=LONG)
    assert [json.loads(row[3]) for row in table_rows(Path("i"), "documents")] == [{"n": n} for n in range(6)]


def test_a_record_without_its_vector_is_one_line(run: Run) -> None:
    records = [RECORDS[0] | {"v": TABLE[0].tolist()}, RECORDS[1]]
    assert_fails(
        run("indexer", "add", "i", write_jsonl("r.jsonl", records), "--vector-field", "v"),
        "document 'd1', field 'v': is not an array of numbers; what came before it is kept, --on-error skip goes on "
        "without it",
    )
    assert [row[1] for row in table_rows(Path("i"), "documents")] == ["d0"]


def test_text_queries_of_given_vectors_need_their_model(run: Run, model: str) -> None:
    table = TextModel.load(model).encode([record["text"] for record in RECORDS])
    np.save("v.npy", table)
    assert run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy").code == 0
    assert_fails(
        run("search", "query", "i", "text 3 Ada"),
        "i holds vectors that were made elsewhere: pass the --model that made them, or search by vector",
    )
    (hit, *_) = run("search", "query", "i", "text 3 Ada", "--json", "--model", model).jsons
    assert (hit["id"], hit["score"], hit["label"]) == ("d3", pytest.approx(1.0, abs=1e-3), None)


def test_a_text_query_with_a_model_of_another_dimension_is_one_line(run: Run, model: str) -> None:
    np.save("v.npy", TABLE)
    run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy")
    assert_fails(
        run("search", "query", "i", "x", "--model", model),
        f"i holds vectors of 8 dimensions that were made elsewhere, {model} makes 128: pass the --model that made them",
    )


def test_adding_texts_to_given_vectors_is_one_line(run: Run) -> None:
    np.save("v.npy", TABLE)
    run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy")
    assert_fails(
        run("indexer", "add", "i", write_jsonl("s.jsonl", [{"id": "new", "text": "new"}])),
        "document 'new': has no vector, and the index holds vectors that were made elsewhere: "
        "give it one with --vectors",
    )


def test_info_of_given_vectors_names_no_model(run: Run) -> None:
    np.save("v.npy", TABLE)
    run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy")
    (facts,) = run("indexer", "info", "i", "--json").jsons
    assert (facts["model"], facts["fingerprint"], facts["dimension"], facts["documents"]) == (None, None, 8, 6)
    assert run("indexer", "info", "i").code == 0


def test_tags_of_given_vectors(run: Run, model: str) -> None:
    table = TextModel.load(model).encode([record["text"] for record in RECORDS])
    np.save("v.npy", table)
    arguments = ["indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--vectors", "v.npy", "--model", model]
    assert run(*arguments, "--tags").code == 0
    hits = run("search", "query", "i", "x", "--json").jsons
    assert all(hit["label"] is not None for hit in hits)
    assert {hit["passage"]["end"] for hit in hits} == {10}


def test_given_vectors_are_not_made_those_of_the_model_that_would_tag_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "index"
    add_documents(path, docs())
    before = table_rows(path, "settings")
    with IndexWriter(path) as writer, pytest.raises(ModelError, match="made elsewhere, and would become those of demo"):
        pipeline.retag(MODEL, writer)
    assert table_rows(path, "settings") == before


@pytest.mark.parametrize("step", [1, 2])
def test_a_vector_whose_square_overflows_is_kept_without_a_warning(step: int) -> None:
    vector = np.full(6, 3e38, dtype=np.float32)[::step]
    assert as_vector(vector, "row 1") is vector
