"""Python's collector during a block, in nested blocks, and where the process has set it otherwise."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer import Document, add_documents
from indexer.collector import collect_as_usual, collect_rarely, collecting_rarely


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_what_was_set_before_is_set_after_the_last_block() -> None:
    one, other = collecting_rarely(), collecting_rarely()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)  # as with two threads, the first to begin ends first
    assert gc.get_threshold() == (100_000, 10, 10)
    other.__exit__(None, None, None)
    assert gc.get_threshold() == (700, 10, 10)


def test_after_an_error() -> None:
    with pytest.raises(KeyError), collecting_rarely():
        raise KeyError
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("first", [0, 1_000_000])
def test_a_process_that_looks_more_rarely_stays_as_it_is(first: int) -> None:
    gc.set_threshold(first, 5, 5)
    with collecting_rarely():
        assert gc.get_threshold() == (first, 5, 5)
    collect_rarely()
    assert gc.get_threshold() == (first, 5, 5)


def test_adding_looks_rarely_and_leaves_the_setting_of_the_process(tmp_path: Path) -> None:
    seen = set()

    def documents() -> Iterator[Document]:
        for number in range(3):
            seen.add(gc.get_threshold()[0])
            yield Document(id=str(number), text="", vector=[1.0, number])  # type: ignore[arg-type]

    add_documents(tmp_path / "index", documents())
    assert 100_000 in seen
    assert gc.get_threshold() == (700, 10, 10)


def test_work_without_end_looks_as_often_as_python_does() -> None:
    code = "import gc; before = gc.get_threshold(); from indexer import collector as c; c.collect_rarely();"
    code += "assert gc.get_threshold()[0] == 100_000; c.collect_as_usual(); assert gc.get_threshold() == before"
    subprocess.run([sys.executable, "-c", code], check=True)
    collect_rarely()
    collect_as_usual()
    assert gc.get_threshold()[0] < 100_000
