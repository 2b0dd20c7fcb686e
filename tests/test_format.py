"""Formats: every released one opens and answers as it did; old ones migrate whole; newer ones are refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_fails, write_jsonl
from fakes import DemoAnalyser, build_index, check_consistent, entries
from test_docs import script

from indexer.export import export_documents
from indexer.metadata import FORMAT
from indexer.reader import IndexReader
from indexer.records import Document
from indexer.store import IndexWriter
from indexer.verify import verify_index
from search import Searcher
from search.query import Query

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("format-*"))
LONG_TESTS = os.environ.get("TAGDEX_LONG_TESTS") == "1"


@pytest.fixture(params=FIXTURES, ids=lambda folder: folder.name)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """An index of a released format, brought to this one, and what it held and answered when it was made."""
    with tarfile.open(request.param / "index.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    IndexWriter(tmp_path / "index").close()  # brings it to the current format
    return tmp_path / "index", json.loads((request.param / "expected.json").read_text(encoding="utf-8"))


def test_there_is_a_fixture_of_every_format() -> None:
    assert [folder.name for folder in FIXTURES] == [f"format-{number}" for number in range(1, FORMAT + 1)]


def test_a_released_index_has_no_fault(released: tuple[Path, dict[str, Any]]) -> None:
    index, expected = released
    assert verify_index(index).faults == ()
    check_consistent(index)
    info = IndexReader(index).info()
    assert (info.format, info.documents, len(info.segments)) == (FORMAT, len(expected["documents"]), 2)
    assert info.pending > 0
    assert info.dead > 0
    assert [segment.rerank > 0 for segment in info.segments] == [True, False]


def test_a_released_index_holds_what_it_held(released: tuple[Path, dict[str, Any]]) -> None:
    index, expected = released
    assert list(export_documents(index)) == expected["documents"]
    for record in export_documents(index, passage_vectors=True):
        if record["id"] in expected["vectors"]:
            np.testing.assert_allclose(record["vectors"], expected["vectors"][record["id"]], atol=1e-6)


def test_a_released_index_answers_as_it_did(released: tuple[Path, dict[str, Any]]) -> None:
    index, expected = released
    found = script("write_format_fixture").answers(index, expected["queries"])
    assert len(found) == len(expected["answers"]) == 16
    for now, then in zip(found, expected["answers"], strict=True):
        assert [hit[0] for hit in now["hits"]] == [hit[0] for hit in then["hits"]]
        assert [hit[1] for hit in now["hits"]] == pytest.approx([hit[1] for hit in then["hits"]], abs=1e-6)
        assert [hit[2:] for hit in now["hits"]] == [hit[2:] for hit in then["hits"]]
    # The codes of the large segment are read, too: with their help the best are the same.
    with Searcher(index) as searcher:
        for query in expected["queries"]:
            vector = np.array(query, dtype=np.float32)
            scan, codes = (searcher.answer_vector(vector, Query(k=3), path=path).hits for path in ("scan", "codes"))
            assert codes == scan


def test_a_released_index_can_be_written_to(released: tuple[Path, dict[str, Any]]) -> None:
    index, expected = released
    with IndexWriter(index) as writer:
        model = DemoAnalyser(dimension=writer.settings.dimension)
        assert writer.settings.fingerprint == model.fingerprint
        writer.write(entries([Document("new", "Ada ball"), Document("d7", "new text")], model))
        writer.compact(full=True, codes="always")
    assert verify_index(index).documents == len(expected["documents"]) + 1
    check_consistent(index)


# Migrations: a synthetic one, to a format that does not exist

_MIGRATE = """
import sys, time
from indexer import metadata
from indexer.store import IndexWriter

def m002_shout(db):
    db.execute("ALTER TABLE documents ADD COLUMN shouted TEXT")
    db.execute("CREATE TABLE shouts (doc INTEGER PRIMARY KEY, text TEXT)")
    for (doc,) in db.execute("SELECT doc FROM documents").fetchall():
        db.execute("UPDATE documents SET shouted = upper(text) WHERE doc = ?", (doc,))
        db.execute("INSERT INTO shouts SELECT doc, shouted FROM documents WHERE doc = ?", (doc,))
    db.execute("CREATE INDEX shouts_by_text ON shouts (text)")

metadata.MIGRATIONS = (*metadata.MIGRATIONS, m002_shout)
metadata.FORMAT += 1
print("go", flush=True)
started = time.monotonic()
IndexWriter(sys.argv[1]).close()
print(time.monotonic() - started, flush=True)
"""


def migration(index: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _MIGRATE, str(index)], stdout=subprocess.PIPE, text=True)


def check_migrated_or_not(index: Path, documents: int) -> int:
    """The format that an index is in, which it is in whole. Another process looks first, as the next user would."""
    with closing(sqlite3.connect(index / "meta.sqlite", isolation_level=None)) as connection:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        columns = [row[1] for row in connection.execute("PRAGMA table_info(documents)")]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert ("shouted" in columns) is (version == FORMAT + 1)
        assert ({"shouts", "shouts_by_text"} <= tables) is (version == FORMAT + 1)
        assert ({"shouts", "shouts_by_text"} & tables == set()) is (version == FORMAT)
        if version == FORMAT + 1:
            assert connection.execute("SELECT count(*) FROM shouts").fetchone() == (documents,)
            unchanged = "SELECT count(*) FROM documents WHERE shouted IS NULL OR shouted != upper(text)"
            assert connection.execute(unchanged).fetchone() == (0,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return version


def test_a_killed_migration_leaves_the_old_format_or_the_new_one(tmp_path: Path) -> None:
    documents, kills = (20_000, 50) if LONG_TESTS else (1_000, 5)
    source = build_index(tmp_path / "source", [Document(f"d{n}", f"text {n} Ada ball") for n in range(documents)])
    wanted = list(export_documents(source))
    shutil.copytree(source, tmp_path / "index")
    with migration(tmp_path / "index") as whole:
        assert whole.stdout is not None
        assert whole.stdout.readline() == "go\n"
        seconds = float(whole.stdout.readline())
    assert check_migrated_or_not(tmp_path / "index", documents) == FORMAT + 1

    moments, versions = random.Random(1), []
    for _ in range(kills):
        shutil.rmtree(tmp_path / "index")
        shutil.copytree(source, tmp_path / "index")
        with migration(tmp_path / "index") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "go\n"
            time.sleep(moments.random() * 1.1 * seconds)
            process.kill()
        versions.append(check_migrated_or_not(tmp_path / "index", documents))
        if versions[-1] == FORMAT:
            assert verify_index(tmp_path / "index").faults == ()
            assert list(export_documents(tmp_path / "index")) == wanted
        with migration(tmp_path / "index") as again:
            assert again.wait() == 0
        assert check_migrated_or_not(tmp_path / "index", documents) == FORMAT + 1
    print(f"{kills} kills: {versions.count(FORMAT)} left the old format, {versions.count(FORMAT + 1)} the new one")
    assert FORMAT in versions


# Formats that are not ours

COMMANDS = (
    "indexer add index records.jsonl --model MODEL",
    "indexer remove index a",
    "indexer info index",
    "indexer retag index --model MODEL",
    "indexer compact index",
    "indexer snapshot index copy",
    "indexer restore index copy",
    "indexer export index",
    "indexer export index --output all.jsonl",
    "search query index text --model MODEL",
    "search similar index --id d0",
    "search facets index",
    "search evaluate index --queries queries.tsv --qrels qrels.tsv --mode keyword",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("pragma", "message"),
    [
        (
            f"user_version = {FORMAT + 1}",
            f"index has format {FORMAT + 1}, this version of tagdex reads formats up to {FORMAT}: use a newer tagdex",
        ),
        (
            "application_id = 7",
            "index/meta.sqlite is a SQLite database, but not an index's (application id 0x7, expected 0x74676478)",
        ),
    ],
    ids=["newer", "foreign"],
)
def test_what_this_version_does_not_know_is_refused_by_every_command(
    run: Run, model: str, command: str, pragma: str, message: str
) -> None:
    write_jsonl("records.jsonl", [{"id": "a", "text": "text"}])
    Path("queries.tsv").write_text("1\ttext\n")
    Path("qrels.tsv").write_text("1\td0\t1\n")
    before = with_pragma(pragma)
    assert_fails(run(*command.replace("MODEL", model).split()), message)
    assert Path("index/meta.sqlite").read_bytes() == before
    assert {file.name for file in Path().iterdir()} == {"index", "records.jsonl", "queries.tsv", "qrels.tsv"}


def with_pragma(pragma: str) -> bytes:
    """An index in whose header one number is another; returns its database."""
    build_index(Path("index"), [Document("d0", "text")])
    with closing(sqlite3.connect("index/meta.sqlite", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA {pragma}")
    return Path("index/meta.sqlite").read_bytes()


def test_verify_takes_another_number_over_tables_of_this_version_for_damage(run: Run) -> None:
    with_pragma(f"user_version = {FORMAT + 1}")
    result = run("indexer", "verify", "index")
    assert (result.code, result.err) == (1, "Error: index is damaged: 1 fault\n")
    assert f"index has format {FORMAT + 1}, this version of tagdex reads formats up to {FORMAT}" in result.out


def test_verify_refuses_a_newer_format_whose_tables_it_does_not_know(run: Run) -> None:
    with_pragma(f"user_version = {FORMAT + 1}")
    with closing(sqlite3.connect("index/meta.sqlite", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE newer (x)")
    assert_fails(
        run("indexer", "verify", "index"),
        f"index has format {FORMAT + 1}, this version of tagdex reads formats up to {FORMAT}: use a newer tagdex",
    )


def test_every_command_that_takes_an_index_is_tried() -> None:
    from indexer.cli import cli as indexer_cli
    from search.cli import cli as search_cli

    taking = {
        f"{name} {command.name}"
        for name, group in (("indexer", indexer_cli), ("search", search_cli))
        for command in group.commands.values()
        if any(parameter.name == "index" for parameter in command.params)
    }
    assert taking - {"indexer verify"} <= {" ".join(command.split()[:2]) for command in COMMANDS}
