"""Both command lines: exit codes, one line for every kind of bad input, output, and being stopped."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Result, Run, assert_fails, assert_usage, write_jsonl
from fakes import build_index, check_consistent, table_rows

from indexer import metadata, pipeline
from indexer.errors import NotAnIndexError
from indexer.model import TextModel
from indexer.reader import IndexReader
from indexer.records import Document
from indexer.store import IndexWriter

LABELS, TYPES = ("sport", "science", "music"), ("PER", "ORG", "LOC", "WORK", "EVENT")

RECORDS = [
    {"id": "a", "text": "Ada met Bob in London", "year": 2020, "tags": ["x", "y"]},
    {"id": "b", "text": "hello there, café Ångström", "year": 2021},
    {"id": "c", "text": "the acme race", "year": 2022, "author": {"name": "Zoë"}},
]


@pytest.fixture
def index(run: Run, model: str) -> str:
    """An index of `RECORDS` in the current folder."""
    assert run("indexer", "add", "index", write_jsonl("records.jsonl", RECORDS), "--model", model).code == 0
    return "index"


# add


def test_add_says_what_it_did(run: Run, model: str) -> None:
    records = write_jsonl("r.jsonl", RECORDS)
    assert run("indexer", "add", "i", records, "--model", model).out.startswith("i: 3 documents added in ")
    assert run("indexer", "add", "i", records).out.startswith("i: 0 documents added, 3 unchanged in ")
    write_jsonl("r.jsonl", [RECORDS[0] | {"text": "new"}, RECORDS[1] | {"year": 1}, *RECORDS[2:], {"text": "more"}])
    result = run("indexer", "add", "i", records)
    assert result.out.startswith("i: 1 document added, 1 replaced, 1 with new metadata, 1 unchanged in ")
    assert (result.code, result.err) == (0, "")
    check_consistent(Path("i"))


def test_add_reads_lines_of_standard_input(run: Run, model: str) -> None:
    result = run("indexer", "add", "i", "-", "--model", model, stdin="one\nzwei ä\n".encode())
    assert (result.code, [row[2] for row in table_rows(Path("i"), "documents")]) == (0, ["one", "zwei ä"])


def test_add_leaves_an_index_out_that_lies_in_the_folder(run: Run, model: str) -> None:
    Path("a.txt").write_text("hello there")
    Path("sub").mkdir()
    Path("sub/b.txt").write_text("london paris")
    assert run("indexer", "add", "sub/index", ".", "--model", model).out.startswith("sub/index: 2 documents added in ")
    again = run("indexer", "add", "sub/index", ".")
    assert again.out.startswith("sub/index: 0 documents added, 2 unchanged in ")
    assert (again.code, again.err) == (0, "")
    assert run("indexer", "add", "other", ".", "--model", model).out.startswith("other: 2 documents added in ")


def test_add_leaves_an_index_out_that_is_in_the_making(run: Run, model: str) -> None:
    Path("docs/z").mkdir(parents=True)
    Path("docs/z/a.txt").write_text("hello there")
    Path("docs/index/segments").mkdir(parents=True)  # what is there when the making is cut short
    Path("docs/index/meta.sqlite").touch()
    result = run("indexer", "add", "docs/index", "docs", "--model", model)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("docs/index: 1 document added in ")


def test_an_index_is_not_a_folder_of_documents(run: Run, index: str) -> None:
    assert_fails(
        run("indexer", "add", "other", index),
        "index: is an index, not a folder of documents: add what `indexer export` writes of it",
    )


def test_a_folder_with_a_database_of_that_name_is_read(run: Run, model: str) -> None:
    Path("docs/segments").mkdir(parents=True)
    with closing(sqlite3.connect("docs/meta.sqlite")) as connection:
        connection.executescript("CREATE TABLE t (id, text); INSERT INTO t VALUES ('a', 'one'), ('b', 'two')")
    assert run("indexer", "add", "i", "docs", "--model", model).out.startswith("i: 2 documents added in ")


def test_add_counts_ids_that_come_again(run: Run, model: str) -> None:
    write_jsonl("r.jsonl", [{"id": "a", "text": "first"}, {"id": "a", "text": "last"}])
    result = run("indexer", "add", "i", "r.jsonl", "--model", model)
    assert result.out.startswith("i: 1 document added, 1 with an id that came again (the last one counts) in ")
    assert [row[2] for row in table_rows(Path("i"), "documents")] == ["last"]


def test_add_without_tags(run: Run, model: str) -> None:
    assert run("indexer", "add", "i", write_jsonl("r.jsonl", RECORDS), "--model", model, "--no-tags").code == 0
    assert_fails(
        run("search", "query", "i", "x", "--label", "sport"),
        "this index was built without tags, so it cannot be filtered by class; `indexer retag` adds them",
    )


GOOD = b'{"id": "good", "text": "good"}\n'


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", [], "bad.jsonl: is empty: the file has 0 bytes"),
        (
            GOOD + b'{"text": "\xe4"}\n',
            [],
            "bad.jsonl, line 2: byte 0xE4 at offset 41 is not UTF-8: convert the file first, "
            "for example with `iconv -f LATIN1 -t UTF-8`",
        ),
        (GOOD + b'{"id": "b", "text"\n', [], "bad.jsonl, line 2: is not JSON: Expecting ':' delimiter at column 19"),
        (
            GOOD + b'{"id": "b", "body": "x"}\n',
            [],
            'bad.jsonl, line 2, field \'text\': the text is missing; fields here are "id", "body": '
            "name the text's with --text-field",
        ),
        (
            b'{"text": "x"}\n',
            ["--id-field", "key"],
            "bad.jsonl, line 1, field 'key': the id is missing or null; fields here are \"text\": "
            "name the id's with --id-field",
        ),
        (GOOD + b'{"text": " \\n"}\n', [], "bad.jsonl, line 2, field 'text': text is empty"),
        (
            GOOD + b'{"text": "\\ud800"}\n',
            [],
            "bad.jsonl, line 2, field 'text': the text has a lone surrogate, which is not valid Unicode",
        ),
        (
            GOOD + b'{"text": "x", "v": {"w": [NaN]}}\n',
            [],
            "bad.jsonl, line 2, field 'v.w': nan is not a number that JSON has; leave the field out or use null",
        ),
    ],
    ids=["empty file", "not UTF-8", "broken JSON", "no text", "no id", "empty text", "lone surrogate", "NaN"],
)
def test_a_record_that_cannot_be_read_is_one_line_and_what_came_before_it_stays(
    run: Run, model: str, content: bytes, options: list[str], message: str
) -> None:
    Path("bad.jsonl").write_bytes(content)
    if content.startswith(GOOD):
        message += "; what came before it is kept, --on-error skip goes on without it"
    assert_fails(run("indexer", "add", "i", "bad.jsonl", "--model", model, *options), message)
    if content.startswith(GOOD):
        assert [row[1] for row in table_rows(Path("i"), "documents")] == ["good"]
    else:
        assert not Path("i").exists()


def test_a_missing_file_is_one_line(run: Run, model: str) -> None:
    assert_fails(run("indexer", "add", "i", "no.jsonl", "--model", model), "no.jsonl: there is no such file or folder")
    assert not Path("i").exists()


def test_a_name_with_control_characters_stays_one_line(run: Run, model: str) -> None:
    result = run("indexer", "add", "i", "a\n\x1b[31mb.jsonl", "--model", model)
    assert_fails(result, r"a\n\x1b[31mb.jsonl: there is no such file or folder")


def test_skipping_goes_on_counts_and_shows_the_first_few(run: Run, model: str) -> None:
    Path("r.jsonl").write_bytes(b"".join(GOOD.replace(b"good", b"g%d" % n) + b"broken\n" for n in range(8)))
    result = run("indexer", "add", "i", "r.jsonl", "no.jsonl", "--model", model, "--on-error", "skip")
    assert result.code == 0
    assert result.out.startswith("i: 8 documents added in ")
    lines = result.err.splitlines()
    assert lines[0] == "skipped 9 records that could not be read:"
    assert lines[1].startswith("  r.jsonl, line 2: is not JSON:")
    assert lines[5].startswith("  r.jsonl, line 10: is not JSON:")
    assert lines[6:] == ["  … and 4 more"]


def test_nothing_but_bad_records_makes_no_index(run: Run, model: str) -> None:
    Path("r.jsonl").write_text("broken\n")
    result = run("indexer", "add", "i", "r.jsonl", "--model", model, "--on-error", "skip")
    assert result.code == 1
    assert "Error: there is nothing to add: no document was given" in result.err.splitlines()
    assert not Path("i").exists()


# What is not an index, or not this model's, or in use


@pytest.mark.parametrize(
    "command",
    [
        ["indexer", "add", "x", "records.jsonl"],
        ["indexer", "remove", "x", "a"],
        ["indexer", "info", "x"],
        ["search", "query", "x", "text"],
        ["search", "similar", "x", "--id", "a"],
    ],
    ids=lambda command: command[1],
)
@pytest.mark.parametrize("kind", ["nothing", "folder", "file", "junk"])
def test_what_is_not_an_index_is_one_line(run: Run, model: str, command: list[str], kind: str) -> None:
    write_jsonl("records.jsonl", RECORDS)
    place = Path("x")
    if kind == "file":
        place.write_text("x")
    elif kind != "nothing":
        place.mkdir()
        (place / ("meta.sqlite" if kind == "junk" else "other")).write_bytes(b"not a database" * 100)
    if command[1] == "add":
        if kind == "nothing":
            return
        command = [*command, "--model", model]
    result = run(*command)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("Error: x")
    assert " not an index" in result.err
    assert result.err.count("\n") == 1


def test_another_model_is_one_line_with_both(run: Run, index: str, model: str, raw_model: str) -> None:
    ours, theirs = (TextModel.load(name).fingerprint[:12] for name in (model, raw_model))
    message = (
        f"index was built with model {model} (fingerprint {ours}, 128 dimensions), got {raw_model} "
        f"(fingerprint {theirs}, 128 dimensions): pass --model {model}, or build a new index"
    )
    assert_fails(run("indexer", "add", index, "records.jsonl", "--model", raw_model), message)
    assert_fails(run("search", "query", index, "text", "--model", raw_model), message)


def test_a_model_that_is_not_there_is_one_line(run: Run) -> None:
    write_jsonl("r.jsonl", RECORDS)
    assert_fails(
        run("indexer", "add", "i", "r.jsonl", "--model", "./nowhere"),
        "./nowhere is not a model folder: give a folder with config.json, or a hub name",
    )


def test_an_unknown_device_is_one_line(run: Run, index: str) -> None:
    message = "unknown device 'tpu': use auto, cpu or cuda"
    assert_fails(run("search", "query", index, "x", "--device", "tpu"), message)
    assert_fails(run("indexer", "add", index, "records.jsonl", "--device", "tpu"), message)


def test_a_second_writer_is_one_line_with_the_process(run: Run, index: str) -> None:
    holder = f"index is being written to by process {os.getpid()}: wait until it is done, or stop it"
    with IndexWriter(index):
        assert_fails(run("indexer", "add", index, "records.jsonl"), holder)
        assert_fails(run("indexer", "remove", index, "a"), holder)
        assert run("search", "similar", index, "--id", "a").code == 0


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    run: Run, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "BATCH_DOCUMENTS", 20)
    write_jsonl("many.jsonl", [{"id": f"d{n}", "text": f"text {n}", "fill": "x" * 500} for n in range(300)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))  # no file may grow beyond this
    try:
        result = run("indexer", "add", index, "many.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("Error: index: ")
    assert "what was acknowledged before is kept, run the command again when there is room" in result.err
    assert result.err.count("\n") == 1
    check_consistent(Path(index))
    kept = len(table_rows(Path(index), "documents")) - 3
    assert 0 < kept < 300
    assert kept % 20 == 0
    assert f"{300 - kept} documents added, {kept} unchanged" in run("indexer", "add", index, "many.jsonl").out


# Usage


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["search", "query", "index", "x", "-k", "0"], "Invalid value for '-k': 0 is not in the range x>=1."),
        (["search", "query", "index", "x", "-k", "ten"], "Invalid value for '-k': 'ten' is not a valid integer range."),
        (["search", "query", "index"], "Missing argument 'TEXT'."),
        (
            ["search", "query", "index", "x", "--min-score", "high"],
            "Invalid value for '--min-score': 'high' is not a valid float.",
        ),
        (["search", "similar", "index"], "Missing option '--id' or '--text'."),
        (["indexer", "add", "index"], "Missing argument 'FILES...'."),
        (["indexer", "nonsense"], "No such command 'nonsense'."),
        (["indexer", "remove", "index"], "give either IDS or --where EXPR"),
        (["indexer", "remove", "index", "a", "--where", "year = 1"], "give either IDS or --where EXPR"),
    ],
)
def test_wrong_usage_ends_with_code_2(run: Run, command: list[str], message: str) -> None:
    assert_usage(run(*command), message)


@pytest.mark.parametrize("name", ["indexer", "search"])
def test_the_version_is_shown(run: Run, name: str) -> None:
    assert run(name, "--version") == Result(0, f"{name}, version 0.1.0\n", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label", "politics"], "unknown class 'politics' (this index knows music, science, sport)"),
        (["--entity", "DATE:x"], "unknown entity type 'DATE' (this index knows EVENT, LOC, ORG, PER, WORK)"),
        (["--where", "year >="], "expected a value at character 8: year >=⟨here⟩"),
        (
            ["--where", "year > 1 ) "],
            "expected 'and', 'or' or the end; this ')' closes nothing at character 10: year > 1 ⟨here⟩) ",
        ),
        (["--entity", ":x"], "expected TYPE:TEXT, TYPE or *:TEXT at character 1: ⟨here⟩:x"),
        (["--min-score", "nan"], "min_score must be a number, got nan"),
    ],
)
def test_a_query_that_cannot_be_answered_is_one_line(run: Run, index: str, flags: list[str], message: str) -> None:
    assert_fails(run("search", "query", index, "x", *flags), message)


@pytest.mark.parametrize("text", ["", " ", "a\udc80"])
def test_a_text_that_cannot_be_embedded_is_one_line(run: Run, index: str, text: str) -> None:
    result = run("search", "query", index, text)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith("Error: the query's text ")


def test_an_unknown_id_is_one_line(run: Run, index: str) -> None:
    assert_fails(run("search", "similar", index, "--id", "zz"), "no document has the id 'zz'")


# Output


def test_query_prints_one_json_object_a_hit_with_exactly_these_fields(run: Run, index: str) -> None:
    result = run("search", "query", index, "hello there, café Ångström", "--json")
    assert (result.code, result.err) == (0, "")
    assert [list(hit) for hit in result.jsons] == [
        ["id", "score", "text", "metadata", "label", "entities", "passage"]
    ] * 3
    first = result.jsons[0]
    assert (first["id"], first["text"], first["metadata"]) == ("b", "hello there, café Ångström", {"year": 2021})
    assert first["score"] == pytest.approx(1.0, abs=1e-3)
    assert list(first["label"]) == ["name", "score"]
    assert first["label"]["name"] in LABELS
    assert first["passage"] == {"start": 0, "end": 26}
    for hit in result.jsons:
        for entity in hit["entities"]:
            assert list(entity) == ["type", "text", "start", "end", "score"]
            assert entity["type"] in TYPES
            assert entity["text"] == hit["text"][entity["start"] : entity["end"]]
            assert 0 <= entity["score"] <= 1
    assert [hit["metadata"] for hit in result.jsons if hit["id"] == "c"] == [{"year": 2022, "author": {"name": "Zoë"}}]


def test_query_ranks_as_python_does(run: Run, index: str, model: str) -> None:
    texts = [record["text"] for record in RECORDS]
    table = TextModel.load(model).encode([*texts, "the race"]).astype(np.float64)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    scores = dict(zip("abc", table[:3] @ table[3], strict=True))
    hits = run("search", "query", index, "the race", "--json").jsons
    assert [hit["id"] for hit in hits] == sorted(scores, key=lambda id_: -scores[id_])
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True), abs=2e-3)


def test_flags_of_filters_are_combined(run: Run, index: str) -> None:
    hits = {hit["id"]: hit for hit in run("search", "query", index, "x", "--json").jsons}
    entity = hits["a"]["entities"][0]
    label = hits["a"]["label"]["name"]

    def found(*flags: str) -> set[str]:
        return {hit["id"] for hit in run("search", "query", index, "x", "--json", *flags).jsons}

    assert found("--where", "year >= 2021") == {"b", "c"}
    assert found("--where", "year >= 2021", "--where", "year = 2022") == {"c"}  # the last one counts
    assert found("--entity", f"{entity['type']}:{entity['text'].upper()}") == {
        id_
        for id_, hit in hits.items()
        if (entity["type"], entity["text"].lower()) in {(e["type"], e["text"].lower()) for e in hit["entities"]}
    }
    assert found("--label", label) == {id_ for id_, hit in hits.items() if hit["label"]["name"] == label}
    assert found(*(part for name in LABELS for part in ("--label", name))) == set("abc")
    assert found("--label", label, "--where", "year = 2020", "--entity", entity["type"]) == {"a"}
    assert found("-k", "1", "--offset", "2", "--where", "year > 1") == {
        run("search", "query", index, "x", "--json").jsons[2]["id"]
    }


def test_query_for_reading(run: Run, index: str) -> None:
    result = run("search", "query", index, "hello", "-k", "1", "--where", "year = 2020")
    assert result.code == 0
    head, text, facts = result.out.splitlines()
    assert head.startswith("  1. 0.")
    assert "  a  [" in head
    assert "\x1b" not in result.out
    assert " ".join(text.replace("[", "").replace("]", "").split()).startswith("Ada")
    assert facts == "     year=2020 · tags=['x', 'y']"


def test_no_hit_is_said_on_stderr(run: Run, index: str) -> None:
    assert run("search", "query", index, "x", "--where", "year = 1") == Result(0, "", "no document fits\n")
    assert run("search", "query", index, "x", "--where", "year = 1", "--json") == Result(0, "", "")


def test_a_field_that_no_document_has_is_named_where_nothing_fits(run: Run, index: str) -> None:
    notes = "no document fits\nno document has the field yeer\n"
    filter = ["--where", "yeer > 3 and year > 3 and exists author.name"]
    assert run("search", "query", index, "acme", "--mode", "keyword", *filter) == Result(0, "", notes)
    assert run("search", "similar", index, "--id", "a", *filter) == Result(0, "", notes)
    assert run("search", "similar", index, "--id", "a", "--where", "year > 9999").err == "no document fits\n"
    for query in ([], ["--query", "acme", "--mode", "keyword"]):
        facets = run("search", "facets", index, *query, *filter)
        assert (facets.out.partition("\n")[0], facets.err) == ("0 of 3 documents", "no document has the field yeer\n")
    assert run("search", "facets", index, *filter, "--json").err == ""
    removed = run("indexer", "remove", index, *filter)
    assert removed == Result(0, f"{index}: 0 documents removed\n", "no document has the field yeer\n")
    assert run("indexer", "remove", index, "--where", "year > 9999").err == ""
    as_json = run("search", "query", index, "acme", "--mode", "keyword", *filter, "--json", "--explain")
    assert as_json.err.count("\n") == 1  # one object


def test_similar_prints_the_others(run: Run, index: str) -> None:
    assert {hit["id"] for hit in run("search", "similar", index, "--id", "a", "--json").jsons} == {"b", "c"}


def test_similarity_prints_the_cosine(run: Run, model: str) -> None:
    expected = TextModel.load(model).similarity("hello", "there")
    assert run("search", "similarity", "hello", "there", "--model", model) == Result(0, f"{expected:.8f}\n", "")


def test_info_prints_one_json_object(run: Run, index: str, model: str) -> None:
    (facts,) = run("indexer", "info", index, "--json").jsons
    assert (facts["documents"], facts["passages"], facts["pending"], facts["format"]) == (3, 3, 3, 1)
    assert (facts["class_labels"], facts["entity_types"]) == (list(LABELS), list(TYPES))
    assert (facts["model"], facts["dimension"], facts["segments"]) == (model, 128, [])


def test_info_for_reading(run: Run, index: str) -> None:
    lines = dict(line.split(None, 1) for line in run("indexer", "info", index).out.splitlines())
    assert (lines["documents"], lines["dimension"]) == ("3", "128")
    assert "class" in lines


@pytest.mark.parametrize("defect", [True, False])
def test_info_warns_of_a_sqlite_that_can_lose_data(
    run: Run, index: str, monkeypatch: pytest.MonkeyPatch, defect: bool
) -> None:
    monkeypatch.setattr(metadata, "has_wal_reset_defect", lambda: defect)
    for options in ([], ["--json"]):
        result = run("indexer", "info", index, *options)
        assert result.err.startswith(f"Warning: SQLite {sqlite3.sqlite_version} can lose data") is defect
        assert result.err.count("\n") == defect
    assert result.jsons[0]["sqlite_version"] == sqlite3.sqlite_version


@pytest.mark.parametrize(
    ("version", "defect"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_versions_of_sqlite_that_can_lose_data(version: tuple[int, ...], defect: bool) -> None:
    assert metadata.has_wal_reset_defect(version) is defect


def test_remove_by_ids_and_by_filter(run: Run, index: str) -> None:
    assert run("indexer", "remove", index, "a") == Result(0, "index: 1 document removed\n", "")
    assert_fails(
        run("indexer", "remove", index, "b", "zz"),
        "1 of the ids are not in index: zz",
        out="index: 1 document removed\n",
    )
    assert run("indexer", "remove", index, "--where", "year = 2022") == Result(0, "index: 1 document removed\n", "")
    assert table_rows(Path(index), "documents") == []


def test_encode_writes_one_fp32_row_a_text_in_their_order(run: Run, model: str) -> None:
    texts = [f"text {n} " + "hello there " * (n % 7 * 20) for n in range(40)]  # some longer than the window
    write_jsonl("t.jsonl", [{"text": text} for text in texts])
    result = run("indexer", "encode", "t.jsonl", "--output", "t.npy", "--model", model)
    assert result == Result(0, "t.npy: 40 rows of 128 dimensions\n", "")
    table = np.load("t.npy", allow_pickle=False)
    assert (table.shape, table.dtype) == ((40, 128), np.dtype("float32"))
    np.testing.assert_allclose(table, TextModel.load(model).encode(texts), rtol=0, atol=1e-5)


def test_encode_leaves_nothing_behind_when_it_fails(run: Run, model: str) -> None:
    Path("t.jsonl").write_bytes(GOOD + b"broken\n")
    Path("t.npy").write_bytes(b"before")
    assert run("indexer", "encode", "t.jsonl", "--output", "t.npy", "--model", model).code == 1
    assert Path("t.npy").read_bytes() == b"before"
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["t.jsonl", "t.npy"]


def test_encode_does_not_write_over_what_it_reads(run: Run, model: str) -> None:
    write_jsonl("t.jsonl", RECORDS)
    before = Path("t.jsonl").read_bytes()
    assert_fails(
        run("indexer", "encode", "t.jsonl", "--output", "t.jsonl", "--model", model),
        "t.jsonl exists already and is not a .npy file: choose another name",
    )
    assert Path("t.jsonl").read_bytes() == before


def test_encode_again_replaces_the_file(run: Run, model: str) -> None:
    write_jsonl("t.jsonl", RECORDS)
    for _ in range(2):
        assert run("indexer", "encode", "t.jsonl", "--output", "t.npy", "--model", model).code == 0


def test_a_text_field_that_no_row_has_is_refused_with_vectors_too(run: Run) -> None:
    Path("t.csv").write_text("id,name\na,Kettle\n")
    np.save("v.npy", np.ones((1, 8), np.float32))
    assert_fails(
        run("indexer", "add", "i", "t.csv", "--vectors", "v.npy", "--text-field", "nmae"),
        't.csv, line 1, field \'nmae\': the text is missing; fields here are "id", "name": name the text\'s with '
        "--text-field",
    )


def test_what_is_written_takes_no_other_file_s_name(run: Run, index: str, model: str) -> None:
    for name in ("t.npy.tmp", "t.jsonl.tmp"):
        Path(name).write_bytes(b"mine")
    assert run("indexer", "encode", "records.jsonl", "--output", "t.npy", "--model", model).code == 0
    assert run("indexer", "export", index, "--output", "t.jsonl").code == 0
    assert {path.name: path.read_bytes() for path in Path.cwd().glob("*.tmp")} == {
        "t.npy.tmp": b"mine",
        "t.jsonl.tmp": b"mine",
    }


def test_encode_to_a_place_that_is_not_there_is_one_line(run: Run, model: str) -> None:
    write_jsonl("t.jsonl", RECORDS)
    assert_fails(
        run("indexer", "encode", "t.jsonl", "--output", "no/t.npy", "--model", model),
        "no/t.npy cannot be written: No such file or directory",
    )


def test_tag_prints_one_json_object_a_text_with_offsets_into_it(run: Run, model: str) -> None:
    texts = ["Ada met Bob", "😀 hello  there", "word " * 200 + "Ada"]
    write_jsonl("t.jsonl", [{"id": f"{n}", "text": text} for n, text in enumerate(texts)])
    result = run("indexer", "tag", "t.jsonl", "--model", model)
    assert (result.code, result.err) == (0, "")
    expected = TextModel.load(model).analyse(texts)
    assert [list(tagged) for tagged in result.jsons] == [["id", "label", "entities"]] * 3
    for tagged, text, analysis in zip(result.jsons, texts, expected, strict=True):
        assert analysis.label is not None
        assert tagged["label"] == {"name": analysis.label.name, "score": pytest.approx(analysis.label.score, abs=1e-5)}
        assert [(e["type"], e["start"], e["end"]) for e in tagged["entities"]] == [
            (span.type, span.start, span.end) for span in analysis.spans
        ]
        assert tagged["entities"]
        assert all(e["text"] == text[e["start"] : e["end"]] for e in tagged["entities"])
    assert [tagged["id"] for tagged in result.jsons] == ["0", "1", "2"]


def test_tag_with_a_model_without_heads_is_one_line(run: Run, raw_model: str) -> None:
    write_jsonl("t.jsonl", RECORDS)
    assert_fails(
        run("indexer", "tag", "t.jsonl", "--model", raw_model),
        f"model {raw_model} has no heads: it gives embeddings, but no class or entities",
    )


def test_flags_can_be_set_in_the_environment(run: Run, index: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_QUERY_K", "1")
    monkeypatch.setenv("SEARCH_QUERY_WHERE", "year = 2022")
    assert [line[13:14] for line in run("search", "query", index, "x").out.splitlines()[:1]] == ["c"]
    monkeypatch.setenv("SEARCH_QUERY_K", "0")
    assert run("search", "query", index, "x").code == 2
    monkeypatch.setenv("INDEXER_ADD_MODEL", model)
    monkeypatch.setenv("INDEXER_ADD_NO_TAGS", "1")
    assert run("indexer", "add", "other", "records.jsonl").code == 0
    assert dict(table_rows(Path("other"), "settings"))["class_labels"] == "null"


def test_an_error_that_nobody_foresaw_is_one_line_too(run: Run, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("search.steps.enrich", broken)
    assert_fails(
        run("search", "similar", index, "--id", "a"),
        "unexpected ZeroDivisionError: first second (TAGDEX_DEBUG=1 shows where; please report it)",
    )


# Real processes


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        code = f"from {arguments[0]}.cli import main; main()"
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-c", code, *arguments[1:]]
        # What is started in the background of a shell ignores Ctrl-C, and so would its children.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        processes.append(subprocess.Popen(command, text=True, cwd=tmp_path, preexec_fn=heed, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def documents_in(path: Path) -> int:
    try:
        with IndexReader(path) as reader:
            return reader.info().documents
    except NotAnIndexError:
        return 0


def test_ctrl_c_ends_with_one_line_and_keeps_what_was_acknowledged(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, model: str
) -> None:
    adding = spawn("indexer", "add", "index", "-", "--model", model)
    assert adding.stdin is not None
    # One batch is committed; the process then waits for the rest of the second.
    adding.stdin.write("".join(f"text {n}\n" for n in range(pipeline.BATCH_DOCUMENTS + 10)))
    adding.stdin.flush()
    deadline = time.monotonic() + 60
    while documents_in(tmp_path / "index") < pipeline.BATCH_DOCUMENTS:
        assert adding.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    adding.send_signal(signal.SIGINT)
    assert adding.wait(timeout=30) == 1
    assert not (tmp_path / "index" / "meta.sqlite-wal").exists()  # the index was closed
    assert adding.stderr is not None
    assert adding.stderr.read().strip() == "Error: stopped; what was acknowledged before is kept"
    assert documents_in(tmp_path / "index") >= pipeline.BATCH_DOCUMENTS
    check_consistent(tmp_path / "index")


def test_a_reader_of_the_output_that_goes_away_is_no_traceback(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    build_index(tmp_path / "index", [Document(f"{n}", f"text {n} " + "x" * 2000) for n in range(300)])
    printing = spawn("search", "similar", "index", "--id", "1", "-k", "299", "--json")
    assert printing.stdout is not None
    assert printing.stderr is not None
    assert printing.stdout.readline().startswith('{"id":')
    printing.stdout.close()
    assert printing.wait(timeout=30) == 1
    assert printing.stderr.read() == ""
    printing.stdout = None


def test_the_installed_commands_run(tmp_path: Path) -> None:
    for name in ("indexer", "search"):
        command = Path(sys.executable).with_name(name)
        result = subprocess.run([command, "--version"], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{name}, version 0.1.0\n", "")


def test_a_closed_output_is_no_error(tmp_path: Path, index: str) -> None:
    code = "from search.cli import main; main()"
    command = [sys.executable, "-c", code, "query", index, "acme", "--mode", "keyword"]
    for stream in ("1", "2"):
        closed = ["sh", "-c", f'exec "$@" {stream}>&-', "sh", *command]
        done = subprocess.run(closed, text=True, cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_an_id_that_is_no_unicode_is_not_in_the_index(run: Run, index: str) -> None:
    assert run("indexer", "remove", index, "\udcff", "a").err == "Error: 1 of the ids are not in index: \\udcff\n"


@pytest.mark.parametrize(
    "command",
    [
        ["indexer", "info", "x"],
        ["indexer", "verify", "x"],
        ["indexer", "export", "x"],
        ["search", "query", "x", "text"],
        ["indexer", "verify", "x", "--repair"],
    ],
)
def test_a_file_in_place_of_an_index_is_called_one(run: Run, command: list[str]) -> None:
    Path("x").write_text("x")
    assert_fails(run(*command), "x is not an index folder: it is a file")
