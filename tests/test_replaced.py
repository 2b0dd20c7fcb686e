"""An index that another takes the place of while it is open: a copy restored, a new one built, a repaired database."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import DemoAnalyser, as_text_model, build_index, build_vector_index, check_consistent, clustered, entries

from indexer.backup import copy_index
from indexer.errors import CursorError, NotAnIndexError, QueryError, ReplacedIndexError
from indexer.filters import parse
from indexer.reader import IndexReader, folder_bytes
from indexer.records import Document
from indexer.repair import repair_index
from indexer.snapshot import Snapshot
from indexer.store import IndexWriter
from indexer.verify import verify_index
from search import Searcher

MODEL = DemoAnalyser()


def documents(name: str, count: int = 30) -> list[Document]:
    return [Document(f"{name}{n}", f"{name} text {n} Ada ball", {"from": name}) for n in range(count)]


@pytest.fixture(params=[False, True], ids=["pending", "sealed"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An index, and beside it another one with as many commits."""
    build_index(tmp_path / "new", documents("new"), seal=request.param)
    return build_index(tmp_path / "index", documents("old"), seal=request.param)


def replace(path: Path) -> None:
    """As an operator does it."""
    shutil.rmtree(path)
    path.with_name("new").rename(path)


def found(snapshot: Snapshot) -> set[str]:
    """The beginnings of all ids that a vector search finds."""
    docs = snapshot.search_vectors(MODEL.vector("text"), 100)[0].docs.tolist()
    return {id_[:3] for id_ in snapshot.ids(docs).values()}


def names(searcher: Searcher, **options: Any) -> list[str]:
    return [hit.id[:3] for hit in searcher.search("old text 3", k=100, **options)]


@pytest.fixture
def searcher(path: Path) -> Iterator[Searcher]:
    with Searcher(path, model=as_text_model(MODEL)) as opened:
        yield opened


def test_the_next_query_is_of_the_new_index(path: Path, searcher: Searcher) -> None:
    """Also what is remembered from commit to commit: vectors, filters, columns of facets."""
    wanted = {"filter": "label = sport"}
    assert (names(searcher), names(searcher, **wanted)) == (["old"] * 30, ["old"] * 30)
    assert searcher.facets(names=["from"])["from"].values[0].value == "old"
    replace(path)
    assert (names(searcher), names(searcher, **wanted)) == (["new"] * 30, ["new"] * 30)
    assert searcher.facets(names=["from"])["from"].values[0].value == "new"
    with IndexWriter(path) as writer:
        writer.write(entries([Document("add", "old text 3")], MODEL))
    assert names(searcher)[0] == "add"


def test_what_is_being_read_is_read_to_its_end(path: Path) -> None:
    with IndexReader(path) as reader:
        with reader.snapshot() as before:
            replace(path)
            with reader.snapshot() as after:
                assert (found(before), found(after)) == ({"old"}, {"new"})
            assert before.documents([7])[7].text == "old text 6 Ada ball"
            assert len(before.allowed(parse("from = old"))) == 30
        with reader.snapshot() as after:
            assert found(after) == {"new"}


def test_threads_see_one_or_the_other(path: Path, searcher: Searcher) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(names, searcher) for _ in range(40)]
        path.rename(path.with_name("gone"))
        path.with_name("new").rename(path)
        late = [pool.submit(names, searcher) for _ in range(40)]
    for answer in answers:
        if not isinstance(error := answer.exception(), NotAnIndexError):  # there is a moment without any
            assert error is None
            assert len(set(answer.result())) == 1
    assert all(answer.result() == ["new"] * 30 for answer in late)


def test_an_index_of_the_same_file_number_is_another_one(path: Path, searcher: Searcher) -> None:
    """File systems give the number of a deleted file to the next one, unless it is still open somewhere."""
    with pytest.raises(QueryError):  # closes the connection that it read from
        searcher.similar("nobody")
    shutil.rmtree(path)
    build_index(path, documents("new"))
    assert names(searcher) == ["new"] * 30


def test_an_index_that_has_gone_is_none_until_there_is_one_again(path: Path, searcher: Searcher) -> None:
    assert names(searcher) == ["old"] * 30
    path.rename(path.with_name("gone"))
    for _ in range(2):
        with pytest.raises(NotAnIndexError, match=r"no such folder"):
            names(searcher)
    path.with_name("gone").rename(path)
    assert names(searcher) == ["old"] * 30


def test_an_index_of_another_model_or_dimension_is_refused(path: Path, searcher: Searcher) -> None:
    assert names(searcher) == ["old"] * 30
    for number, build in enumerate(
        (
            lambda: build_index(path, documents("new"), DemoAnalyser(seed=1)),
            lambda: build_vector_index(path, clustered(50)),
        )
    ):
        path.rename(path.with_name(f"gone{number}"))
        build()
        with pytest.raises(ReplacedIndexError, match=r"was replaced: it was built with model demo \(16 dimensions\)"):
            names(searcher)


def test_a_cursor_of_the_index_before_is_refused(path: Path, searcher: Searcher) -> None:
    cursor = searcher.page("text", k=3).cursor
    replace(path)
    with pytest.raises(CursorError, match="of another index"):
        searcher.page("text", k=3, cursor=cursor)


def test_a_copy_of_an_older_commit_can_be_put_back(path: Path, searcher: Searcher, tmp_path: Path) -> None:
    copy_index(path, tmp_path / "copy", link=False, verify=True)
    with IndexWriter(path) as writer:
        writer.remove([f"old{n}" for n in range(10)])
    assert len(names(searcher)) == 20
    shutil.rmtree(path)
    (tmp_path / "copy").rename(path)
    assert len(names(searcher)) == 30


def test_a_repaired_index_is_followed(path: Path, searcher: Searcher) -> None:
    with closing(sqlite3.connect(path / "meta.sqlite")) as database, database:
        database.execute("UPDATE documents SET text = replace(text, 'Ada', 'ADa') WHERE id = 'old7'")
    assert len(searcher.documents(["old6"])) == 1
    assert repair_index(path).lost == ()
    assert searcher.documents(["old7"])["old7"].text == "old text 7 Ada ball"
    with IndexWriter(path) as writer:
        writer.write(entries([Document("add", "old text 3")], MODEL))
    assert names(searcher)[0] == "add"


def test_a_change_of_the_working_directory_is_no_replacement(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    elsewhere = path.parent / "elsewhere"
    build_index(elsewhere / path.name, documents("new", 5))
    with IndexReader(path.name) as reader, IndexWriter(path.name) as writer:
        assert reader.info().documents == 30
        monkeypatch.chdir(elsewhere)
        writer.remove(["old1"])
        with reader.snapshot() as first, reader.snapshot() as second:  # the second one connects anew
            assert (first.count(), second.count()) == (29, 29)
        writer.write(entries([Document("old99", "old text 3")], MODEL))
        writer.seal()
        with reader.snapshot() as snapshot:
            assert found(snapshot) == {"old"}
        assert reader.info().disk_bytes == folder_bytes(path)
        monkeypatch.chdir(path.parent)
    check_consistent(path)
    check_consistent(elsewhere / path.name)
    assert verify_index(path).faults == ()
    assert not list((elsewhere / path.name / "segments").iterdir())


# The writer


def test_a_writer_does_not_acknowledge_what_nobody_would_find(path: Path) -> None:
    new = path.with_name("new")
    before = {file.name: file.read_bytes() for file in new.rglob("*") if file.is_file()}
    writer = IndexWriter(path)
    writer.write(entries([Document("kept", "text")], MODEL))
    path.rename(path.with_name("gone"))
    new.rename(path)
    assert not writer.in_place
    late = entries(documents("late"), MODEL)
    for change in (
        lambda: writer.write(late),
        lambda: writer.remove(["old1"]),
        writer.seal,
        writer.compact,
        writer.close,
    ):
        with pytest.raises(ReplacedIndexError, match="was moved, deleted or replaced while it was being written to"):
            change()
    assert {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    check_consistent(path.with_name("gone"))
    with IndexReader(path.with_name("gone")) as reader, reader.snapshot() as snapshot:
        assert (snapshot.count(), snapshot.number_of("kept") is None) == (31, False)


def test_a_folder_that_vanishes_during_a_commit_acknowledges_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer import store

    apply = store.apply_change

    def vanish(*arguments: Any, **options: Any) -> None:
        apply(*arguments, **options)
        path.rename(path.with_name("gone"))

    with IndexWriter(path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(store, "apply_change", vanish)
            with pytest.raises(ReplacedIndexError):
                writer.write(entries([Document("late", "text")], MODEL))
        path.with_name("gone").rename(path)
