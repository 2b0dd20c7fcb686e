"""Exports say all that the index says, of one commit, and lead back to the same documents."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_fails, write_jsonl
from fakes import DemoAnalyser, as_text_model, build_index, build_vector_index, clustered, entries, unit_fp16
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.api import add_documents, export_index
from indexer.errors import CorruptIndexError, DestinationError, InputError, NotAnIndexError, StorageError
from indexer.export import export_documents
from indexer.given import with_metadata_field, with_vector_field
from indexer.reader import IndexReader
from indexer.readers import ReadOptions, read_documents
from indexer.records import Document, FloatArray
from indexer.settings import settings_of
from indexer.store import IndexWriter
from indexer.verify import verify_index

MODEL = DemoAnalyser()
LONG = " ".join(f"word{n}" for n in range(20)) + " Ada ball"  # three passages

# Every key that an exported object has, too.
COLLIDING = {"id": 1, "text": ["x"], "metadata": {"metadata": None}, "vector": "v", "label": False, "passages": {}}
DOCUMENTS = [
    Document("plain", "Ada met 河 🙂 in Rome, \u2028 a ball\n", {"year": 2020, "tags": ["x", 1, True, None, 1.5]}),
    Document("long", LONG, {"a": {"b.c": {"ü": 2**63 - 1, "least": -(2**63)}}, "zero": -0.0, "tiny": 5e-324}),
    Document("colliding", "Zed", COLLIDING),
    Document("007", "no class"),
]


@contextmanager
def made(path: Path) -> Iterator[IndexWriter]:
    """With sealed and pending vectors, removed and replaced documents."""
    with IndexWriter(path, create=settings_of(MODEL)) as opened:
        opened.write(entries([Document("gone", "gone"), Document("long", "replaced below")], MODEL))
        opened.write(entries(DOCUMENTS[:2], MODEL))
        opened.seal()
        opened.write(entries(DOCUMENTS[2:], MODEL))
        opened.remove(["gone"])
        yield opened


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[IndexWriter]:
    with made(tmp_path / "index") as opened:
        yield opened


@pytest.fixture
def index(writer: IndexWriter) -> Path:
    return writer.path


def in_order(path: Path) -> list[Document]:
    return [Document(record["id"], record["text"], record["metadata"]) for record in export_documents(path)]


def stored(path: Path) -> dict[str, Any]:
    """Everything about each document but its numbers; floats and integers told apart."""
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        docs = [doc for (doc,) in snapshot.connection.execute("SELECT doc FROM documents")]
        return {
            document.id: (
                document.text,
                document.metadata_json,
                document.label,
                document.spans,
                [(passage.start, passage.end, passage.tokens) for passage in document.passages],
            )
            for document in snapshot.documents(docs).values()
        }


def vectors_of(path: Path) -> dict[str, FloatArray]:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        rows = snapshot.connection.execute("SELECT id, doc FROM documents").fetchall()
        return {id_: snapshot.document_vector(doc) for id_, doc in rows}


def read_back(file: Path, *, vectors: bool = False) -> list[Document]:
    documents = read_documents([file], ReadOptions(text_required=not vectors, metadata_field="metadata"))
    if vectors:
        documents = with_vector_field(documents, "vector")
    return list(with_metadata_field(documents, "metadata"))


# What is written


def test_a_record_says_everything_about_its_document(index: Path) -> None:
    records = {record["id"]: record for record in export_documents(index)}
    assert records["plain"] == {
        "id": "plain",
        "text": "Ada met 河 🙂 in Rome, \u2028 a ball\n",
        "metadata": {"year": 2020, "tags": ["x", 1, True, None, 1.5]},
        "label": {"name": "sport", "score": 0.75},
        "entities": [
            {"type": "PER", "text": "Ada", "start": 0, "end": 3, "score": 0.5},
            {"type": "ORG", "text": "Rome", "start": 15, "end": 19, "score": 0.5},
        ],
        "passages": [{"start": 0, "end": 30, "tokens": 7}],
    }
    assert records["007"]["label"] is None
    assert records["007"]["entities"] == []
    assert [passage["start"] for passage in records["long"]["passages"]] == [0, 48, 102]


def test_documents_come_in_the_order_in_which_they_were_added(index: Path) -> None:
    assert [document.id for document in in_order(index)] == ["long", "plain", "colliding", "007"]


def test_vectors_are_those_of_the_index(index: Path) -> None:
    pooled = vectors_of(index)
    for record in export_documents(index, vectors=True, passage_vectors=True):
        np.testing.assert_array_equal(record["vector"], pooled[record["id"]])
        analysis = MODEL.analyse([record["text"]])[0]
        np.testing.assert_array_equal(record["vectors"], unit_fp16(analysis.vectors).astype(np.float32))
        assert record["vector"].dtype == record["vectors"].dtype == np.float32


def test_an_index_of_many_segments_is_exported_whole(tmp_path: Path) -> None:
    table = clustered(1_300, dimension=8)
    index = build_vector_index(tmp_path / "index", table, batch=100)
    with IndexWriter(index) as writer:
        writer.compact(full=True, codes="always")
        writer.remove([f"d{n}" for n in range(0, 1300, 3)])
    records = list(export_documents(index, vectors=True))
    assert [record["id"] for record in records] == [f"d{n}" for n in range(1300) if n % 3]
    exported = np.stack([record["vector"] for record in records])
    np.testing.assert_array_equal(exported, unit_fp16(table)[np.arange(1300) % 3 > 0].astype(np.float32))


def test_an_empty_index_has_no_record(tmp_path: Path) -> None:
    IndexWriter(tmp_path / "index", create=settings_of(MODEL)).close()
    assert list(export_documents(tmp_path / "index", vectors=True)) == []
    assert export_index(tmp_path / "index", tmp_path / "all.jsonl") == 0
    assert (tmp_path / "all.jsonl").read_bytes() == b""


def test_an_export_is_of_one_commit_and_leaves_the_log_free(writer: IndexWriter, index: Path) -> None:
    wanted = list(export_documents(index, passage_vectors=True))
    records = export_documents(index, passage_vectors=True)
    got = [next(records)]
    writer.remove(["007", "colliding"])
    writer.write(entries([Document("plain", "another"), Document("new", "new")], MODEL))
    writer.compact(full=True)
    assert writer._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    got += records
    assert [record.pop("vectors").tolist() for record in got] == [record.pop("vectors").tolist() for record in wanted]
    assert got == wanted


# The way back


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_same_model_makes_the_same_index_of_an_export(index: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    file = tmp_path / f"all{suffix}"
    assert export_index(index, file, vectors=True, passage_vectors=True) == 4
    add_documents(tmp_path / "again", read_back(file), model=as_text_model(MODEL))
    assert stored(tmp_path / "again") == stored(index)
    for id_, vector in vectors_of(index).items():
        np.testing.assert_array_equal(vectors_of(tmp_path / "again")[id_], vector)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_vectors_come_back_without_a_model(tmp_path: Path, run: Run, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    table = clustered(60, dimension=24)
    build_vector_index(tmp_path / "index", table, metadata=lambda n: {**COLLIDING, "n": n}, text="")
    assert (
        run("indexer", "export", "index", "--vectors", "--output", f"all{suffix}").out == f"all{suffix}: 60 documents\n"
    )
    fields = ("--vector-field", "vector", "--metadata-field", "metadata")
    assert run("indexer", "add", "again", f"all{suffix}", *fields).code == 0
    assert stored(Path("again")) == stored(Path("index"))
    # Divided by their length once more, a component may move to the next fp16.
    before, after = vectors_of(Path("index")), vectors_of(Path("again"))
    for id_ in before:
        np.testing.assert_allclose(after[id_], before[id_], rtol=2**-10, atol=1e-7)
        assert float(after[id_] @ before[id_]) == pytest.approx(1.0, abs=1e-3)


def test_vectors_with_a_model_leave_only_the_tags_to_it(index: Path, tmp_path: Path) -> None:
    export_index(index, tmp_path / "all.jsonl", vectors=True)
    add_documents(
        tmp_path / "again", read_back(tmp_path / "all.jsonl", vectors=True), model=as_text_model(MODEL), tags=True
    )
    before, after = stored(index), stored(tmp_path / "again")
    assert {id_: fields[:4] for id_, fields in after.items()} == {id_: fields[:4] for id_, fields in before.items()}
    assert [len(fields[4]) for fields in after.values()] == [1] * 4  # a given vector is one passage


_METADATA = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8"), max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.\\ü", max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: bool(text.strip()))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(st.tuples(_TEXT, _METADATA), min_size=1, max_size=4))
def test_any_text_and_metadata_come_back(
    contents: list[tuple[str, dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    wanted = [Document(f"d{n}", text, metadata) for n, (text, metadata) in enumerate(contents)]
    index = build_index(folder / "index", wanted)
    files = [folder / "all.jsonl", *([folder / "all.parquet"] if _has_pyarrow() else [])]
    for file in files:
        export_index(index, file)
        back = read_back(file)
        assert back == wanted
        # 1, 1.0 and True are equal in Python.
        assert [json.dumps(document.metadata) for document in back] == [json.dumps(d.metadata) for d in wanted]


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_metadata_as_deep_as_may_be_come_back(run: Run, model: str, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    write_jsonl("in.jsonl", [{"id": "a", "text": "hello", "d": nested(100)}])
    assert run("indexer", "add", "index", "in.jsonl", "--model", model).code == 0
    assert run("indexer", "export", "index", "--output", f"all{suffix}").code == 0
    assert run("indexer", "add", "again", f"all{suffix}", "--metadata-field", "metadata", "--model", model).code == 0
    assert in_order(Path("again")) == [Document("a", "hello", {"d": nested(100)})]


@pytest.mark.parametrize("levels", [101, 300, 100_000])
@pytest.mark.parametrize("as_text", [False, True])
def test_metadata_that_are_deeper_are_refused_in_every_way_in(run: Run, model: str, levels: int, as_text: bool) -> None:
    deep = '{"d": ' + "[" * levels + "]" * levels + "}"
    metadata = json.dumps(deep) if as_text else deep
    Path("in.jsonl").write_text(f'{{"id": "a", "text": "hello", "metadata": {metadata}}}\n')
    result = run("indexer", "add", "index", "in.jsonl", "--metadata-field", "metadata", "--model", model)
    assert result.code == 1
    assert result.err.startswith(("Error: in.jsonl, line 1", "Error: document"))
    assert result.err.endswith(": is nested deeper than 100 levels: flatten it\n")
    assert not Path("index").exists()


@pytest.mark.parametrize("value", [nested(101), (nested(100),), {"a": nested(100)}])
def test_metadata_from_python_have_the_same_limit(tmp_path: Path, value: Any) -> None:
    model = as_text_model(MODEL)
    add_documents(tmp_path / "index", [Document("a", "one", {"d": nested(100)})], model=model)
    with pytest.raises(InputError, match=r"^document 1 \('b'\), field 'd': is nested deeper than 100 levels: flatten"):
        add_documents(tmp_path / "index", [Document("b", "two", {"d": value})], model=model)


@pytest.mark.parametrize("levels", [252, 253])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_deeper_metadata_that_an_index_has_are_still_given_out(run: Run, levels: int, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    documents = [Document("a", "Ada"), Document("b", "Bob", {"d": nested(levels)}), Document("c", "Zed")]
    build_index(Path("index"), documents)  # past the checks, as an older version let them in
    assert run("indexer", "export", "index", "--vectors", "--output", f"all{suffix}").code == 0
    result = run("indexer", "export", "index", "--vectors")
    assert [record["metadata"] for record in result.jsons] == [document.metadata for document in documents]
    hits = run("search", "similar", "index", "--id", "a", "--json", "-k", "3")
    assert (hits.code, {hit["id"]: hit["metadata"] for hit in hits.jsons}) == (0, {"b": {"d": nested(levels)}, "c": {}})


@pytest.mark.parametrize(
    ("id_", "problem"),
    [
        ("a\nb", r'an id cannot have control characters: "a\nb"'),
        ("x" * 1_001, f'an id can have 1,000 characters, not 1,001: "{"x" * 29}…{"x" * 29}"'),
        ("a\ud800", r"an id must be valid Unicode, without lone surrogates: 'a\ud800'"),
    ],
)
def test_ids_from_python_are_those_that_files_can_have(tmp_path: Path, id_: str, problem: str) -> None:
    errors: list[InputError] = []
    good = Document("x" * 1_000, "text")
    add_documents(tmp_path / "index", [Document(id_, "text"), good], model=as_text_model(MODEL), on_error=errors.append)
    assert [str(error) for error in errors] == [f"document 1, field 'id': {problem}"]
    assert in_order(tmp_path / "index") == [good]


def _has_pyarrow() -> bool:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("value", [[1], "[1]", "{", 3, "text", True])
def test_metadata_that_is_no_object_is_refused(value: object) -> None:
    documents = [Document("d1", "text", {"m": value})]
    with pytest.raises(InputError, match="document 'd1', field 'm': is not an object"):
        list(with_metadata_field(documents, "m"))


def test_a_record_without_the_metadata_field_has_no_metadata() -> None:
    documents = [
        Document("d1", "text", {"other": 1}),
        Document("d2", "text", {"m": None}),
        Document("d3", "t", {"m": "{}"}),
    ]
    assert [document.metadata for document in with_metadata_field(documents, "m")] == [{}, {}, {}]


# What is refused


def change_a_row(index: Path) -> None:
    with closing(sqlite3.connect(index / "meta.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE documents SET text = text || '.' WHERE id = '007'")


def lose_a_vector(index: Path) -> None:
    with closing(sqlite3.connect(index / "meta.sqlite", isolation_level=None)) as connection:
        connection.execute("DELETE FROM pending")


def flip_a_bit(index: Path) -> None:
    (file,) = (index / "segments").glob("*.fp16.faiss")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_a_row, "document '007' .* does not match its stored digest"),
        (lose_a_vector, "vector 7 is not there; run 'indexer verify"),
        (flip_a_bit, r"fp16\.faiss is not what was written; run 'indexer verify"),
    ],
)
def test_what_is_damaged_is_not_exported(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    with made(tmp_path / "index"):
        pass
    damage(tmp_path / "index")
    with pytest.raises(CorruptIndexError, match=message):
        export_index(tmp_path / "index", tmp_path / "all.jsonl", vectors=True)
    assert {file.name for file in tmp_path.iterdir()} == {"index"}
    assert verify_index(tmp_path / "index").faults


def test_a_file_that_is_there_is_not_replaced(run: Run, index: Path) -> None:
    Path("all.jsonl").write_text("mine")
    assert_fails(
        run("indexer", "export", index, "--output", "all.jsonl"),
        "all.jsonl exists already: choose another name, or move it away first",
    )
    assert Path("all.jsonl").read_text() == "mine"


def test_no_room_for_the_copy_is_said(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def small(database: str, **options: Any) -> sqlite3.Connection:
        connection = connect(database, **options)
        if database == "":
            connection.execute("PRAGMA max_page_count = 10")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(
        StorageError, match=r"meta\.sqlite cannot be copied: .* is full; the copy needs room in \$SQLITE"
    ):
        export_index(index, tmp_path / "all.jsonl")
    assert {file.name for file in tmp_path.iterdir()} == {"index"}


def test_a_suffix_says_how_it_is_written(index: Path, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=r"all\.csv must end with one of \.jsonl, \.ndjson, \.json, \.parquet"):
        export_index(index, tmp_path / "all.csv")


def test_what_is_no_index_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError, match=r"no such folder"):
        export_index(tmp_path / "nothing", tmp_path / "all.jsonl")
    assert list(tmp_path.iterdir()) == []


# The command


def test_the_command_writes_json_lines_to_standard_output(run: Run, index: Path) -> None:
    result = run("indexer", "export", index, "--passage-vectors")
    assert (result.code, result.err) == (0, "")
    lines = [json.loads(line) for line in result.out.removesuffix("\n").split("\n")]
    assert [record["id"] for record in lines] == ["long", "plain", "colliding", "007"]
    wanted = list(export_documents(index, passage_vectors=True))
    for printed, record in zip(lines, wanted, strict=True):
        vectors = np.array(printed.pop("vectors"), dtype=np.float32)
        np.testing.assert_array_equal(vectors, record.pop("vectors"))
        assert printed == record
