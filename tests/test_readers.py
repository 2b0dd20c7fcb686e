"""Files, folders and standard input as documents: every format, every refusal, with its place."""

import bz2
import csv
import doctest
import gc
import gzip
import hashlib
import importlib
import io
import json
import lzma
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import InputError
from indexer.fields import metadata_problems
from indexer.readers import FORMATS, ReadOptions, delimited, detect_format, read_documents, total_bytes
from indexer.records import Document

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def read(*sources: str | Path, **options: Any) -> list[Document]:
    return list(read_documents(sources, ReadOptions(**options)))


def read_all(*sources: str | Path, **options: Any) -> tuple[list[Document], list[InputError]]:
    """The documents and the errors, reading on after each."""
    errors: list[InputError] = []
    return list(read_documents(sources, ReadOptions(**options), on_error=errors.append)), errors


def refusal(*sources: str | Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read(*sources, **options)
    return caught.value


def place(error: InputError) -> tuple[str | None, int | None, str | None]:
    return error.source, error.line, error.field


def content_hash(fields: dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Write a file into the test's folder and give its path."""

    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file


Write = Callable[[str, str | bytes], str]


def pipe_in(monkeypatch: pytest.MonkeyPatch, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# Formats by name


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json", "jsonl"),
        ("a.csv", "csv"),
        ("a.tsv", "tsv"),
        ("a.tab", "tsv"),
        ("a.parquet", "parquet"),
        ("a.pq", "parquet"),
        ("a.txt", "text"),
        ("a.text", "text"),
        ("a.md", "text"),
        ("a.rst", "text"),
        ("a.sqlite", "sqlite"),
        ("a.sqlite3", "sqlite"),
        ("a.db", "sqlite"),
        ("x/a.JSONL.GZ", "jsonl"),
        ("a.b.csv.bz2", "csv"),
        ("a.txt.xz", "text"),
        ("a.parquet.gz", None),
        ("a.db.xz", None),
        ("a.gz", None),
        ("a.exe", None),
        ("jsonl", None),
        (".csv", None),
    ],
)
def test_the_suffix_tells_the_format(name: str, format: str | None) -> None:
    assert detect_format(name) == format
    assert detect_format(Path(name)) == format


def test_an_unknown_suffix_of_a_named_file_is_refused(write: Write) -> None:
    path = write("notes.log", "one\n")
    assert str(refusal(path)) == (
        f"{path}: cannot tell the format from the name: pass --format with one of"
        " jsonl, csv, tsv, parquet, text, sqlite"
    )


def test_format_overrides_the_suffix(write: Write) -> None:
    path = write("data.txt", '{"id": "a", "text": "one"}\n')
    assert read(path, format="jsonl") == [Document("a", "one")]


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputError, match="unknown format 'xml': choose one of jsonl, csv, tsv"):
        ReadOptions(format="xml")


# Sources


def test_sources_are_read_in_the_order_given(write: Write) -> None:
    second, first = write("2.txt", "two"), write("1.txt", "one")
    assert [document.text for document in read(second, Path(first), second)] == ["two", "one", "two"]


def test_a_folder_is_walked_in_sorted_order_without_hidden_and_unknown_files(write: Write, tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "Z.txt", "sub/2.txt", "sub/1.txt", "last/x.txt", "image.png", "README"):
        write(f"docs/{name}", name)
    for name in (".hidden.txt", ".git/a.txt", "sub/.b.txt"):
        write(f"docs/{name}", "hidden")
    documents = read(tmp_path / "docs")
    assert [document.text for document in documents] == [
        "Z.txt",
        "a.md",
        "b.txt",
        "last/x.txt",
        "sub/1.txt",
        "sub/2.txt",
    ]
    assert documents[4].metadata == {"path": str(tmp_path / "docs" / "sub" / "1.txt")}


def test_the_path_in_the_metadata_is_as_given(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    write("docs/a.txt", "one")
    monkeypatch.chdir(tmp_path)
    paths = [document.metadata["path"] for document in read("docs", "./docs/a.txt", "docs/")]
    assert paths == ["docs/a.txt", "./docs/a.txt", "docs/a.txt"]


def test_format_holds_for_every_file_of_a_folder(write: Write, tmp_path: Path) -> None:
    write("logs/a.log", "one\ntwo\n")
    write("logs/b.csv", "three\n")
    documents = read(tmp_path / "logs", format="text", lines=True)
    assert [document.text for document in documents] == ["one", "two", "three"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(write: Write, tmp_path: Path) -> None:
    target = write("elsewhere/a.txt", "one")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "link.txt").symlink_to(target)
    (tmp_path / "docs" / "loop").symlink_to(tmp_path / "docs")
    assert [document.text for document in read(tmp_path / "docs")] == ["one"]


def test_a_dead_link_in_a_folder_is_an_error(write: Write, tmp_path: Path) -> None:
    write("docs/b.txt", "one")
    link = tmp_path / "docs" / "a.txt"
    link.symlink_to(tmp_path / "nowhere")
    documents, errors = read_all(tmp_path / "docs")
    assert [document.text for document in documents] == ["one"]
    assert [str(error) for error in errors] == [f"{link}: there is no such file or folder"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(refusal(tmp_path / "no.txt")) == f"{tmp_path}/no.txt: there is no such file or folder"


@pytest.mark.parametrize("name", ["", "\0.txt", "a" * 300 + ".txt"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    assert refusal(name).source == name


def test_a_folder_without_a_readable_file_is_refused(write: Write, tmp_path: Path) -> None:
    write("docs/image.png", "x")
    write("docs/.hidden.txt", "x")
    error = refusal(tmp_path / "docs")
    assert error.problem.startswith("no file in this folder can be read: known suffixes are .jsonl .ndjson ")
    assert error.source == str(tmp_path / "docs")


@pytest.mark.parametrize("format", [None, *FORMATS])
def test_a_device_is_refused(format: str | None) -> None:
    error = refusal("/dev/null", format=format)
    assert str(error).startswith("/dev/null: is not a regular file: send its content to standard input")


def test_a_named_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is not a regular file" in str(refusal(tmp_path / "pipe.txt"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["a.txt", "a.db", "a.parquet"])
def test_a_file_without_permission_is_named(write: Write, name: str) -> None:
    path = write(name, "x")
    os.chmod(path, 0)
    assert refusal(path).source == path


def test_a_file_that_vanishes_before_its_turn_is_an_error(write: Write) -> None:
    first, second = write("1.txt", "one"), write("2.txt", "two")
    documents = read_documents([first, second])
    next(documents)
    os.remove(second)
    with pytest.raises(InputError, match="there is no such file"):
        next(documents)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.txt", "a.db", "a.txt.gz"])
def test_a_file_of_zero_bytes_is_refused(write: Write, name: str) -> None:
    path = write(name, b"")
    assert str(refusal(path)) == f"{path}: is empty: the file has 0 bytes"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n \r\n\n"),
        ("a.jsonl", "\ufeff"),
        ("a.csv", "id,text\n"),
        ("a.csv", "\ufeffid,text\r\n\r\n"),
        ("a.csv", "\n\n"),
        ("a.tsv", "\ufeff"),
        ("a.txt", "\ufeff"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
    ],
)
def test_a_file_without_a_record_is_refused(write: Write, name: str, content: str | bytes) -> None:
    error = refusal(write(name, content))
    assert error.problem.startswith("is empty: ")


def test_reading_goes_on_after_a_bad_record_and_a_bad_file(write: Write, tmp_path: Path) -> None:
    sources = [
        write("1.jsonl", '{"text": "one"}\nbroken\n{"text": "two"}\n'),
        str(tmp_path / "missing.txt"),
        write("2.txt", "three"),
    ]
    documents, errors = read_all(*sources)
    assert [document.text for document in documents] == ["one", "two", "three"]
    assert [place(error) for error in errors] == [(sources[0], 2, None), (sources[1], None, None)]


def test_without_on_error_the_documents_before_the_first_error_come(write: Write) -> None:
    documents = read_documents([write("1.jsonl", '{"text": "one"}\nbroken\n{"text": "two"}\n')])
    assert next(documents).text == "one"
    with pytest.raises(InputError, match="line 2"):
        next(documents)


# Standard input


def test_standard_input_is_text_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, "\ufeffone\n\n two \r\nthree")
    assert read("-") == [Document(content_hash({"text": text}), text) for text in ("one", " two ", "three")]


@pytest.mark.parametrize(
    ("format", "content"),
    [("jsonl", '{"id": 1, "text": "one"}'), ("csv", "id,text\n1,one\n"), ("tsv", "id\ttext\n1\tone\n")],
)
def test_standard_input_in_another_format(monkeypatch: pytest.MonkeyPatch, format: str, content: str) -> None:
    pipe_in(monkeypatch, content)
    assert read("-", format=format) == [Document("1", "one")]


@pytest.mark.parametrize("format", ["parquet", "sqlite"])
def test_standard_input_cannot_be_a_database(format: str) -> None:
    assert str(refusal("-", format=format)) == (
        f"-: {format} cannot be read from standard input: save it to a file and name that"
    )


def test_empty_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, "")
    assert str(refusal("-")) == "-: is empty: there is no record in it"


def test_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert str(refusal("-")) == "-: standard input is closed"


def test_standard_input_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, "one\n")
    read("-")
    assert not sys.stdin.buffer.closed


def test_standard_input_gives_a_document_as_soon_as_its_line_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver, sender = os.pipe()
    with open(sender, "wb", buffering=0) as writer, open(receiver) as reader:
        monkeypatch.setattr(sys, "stdin", reader)
        documents = read_documents(["-"])
        writer.write(b"one\n")
        assert next(documents).text == "one"
        writer.write(b"two\n")
        assert next(documents).text == "two"


# Compression and encoding, over the formats


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "grün"}\n{"text": "blau"}\n'),
        ("a.csv", "text\ngrün\nblau\n"),
        ("a.tsv", "text\r\ngrün\r\nblau"),
        ("a.txt", "grün\nblau"),
    ],
)
def test_compressed_files(write: Write, name: str, content: str, suffix: str) -> None:
    path = write(name + suffix, COMPRESS[suffix](content.encode()))
    assert [document.text for document in read(path, lines=True)] == ["grün", "blau"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_cut_off_compressed_file_is_refused(write: Write, name: str, suffix: str) -> None:
    content = os.urandom(3000).hex().encode()
    _, errors = read_all(write(name + suffix, COMPRESS[suffix](content)[:-50]))
    assert errors[-1].problem == (
        "the compressed data is damaged or cut off: Compressed file ended before the end-of-stream marker was reached"
    )


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_file_that_is_not_compressed_as_its_suffix_says_is_refused(write: Write, suffix: str) -> None:
    error = refusal(write("a.txt" + suffix, "plain text that is long enough to have a header"))
    assert error.problem.startswith("the compressed data is damaged or cut off: ")


def test_documents_before_the_damage_are_kept(write: Write) -> None:
    lines = b'{"text": "one"}\n' * 3
    path = write("a.jsonl.gz", gzip.compress(lines) + b"garbage!")
    documents, errors = read_all(path)
    assert [document.text for document in documents] == ["one"] * 3
    assert [place(error) for error in errors] == [(path, 3, None)]


@pytest.mark.parametrize("format", ["parquet", "sqlite"])
def test_a_compressed_database_is_refused(write: Write, format: str) -> None:
    path = write("a.gz", gzip.compress(b"x"))
    assert str(refusal(path, format=format)) == (
        f"{path}: {format} cannot be read from a compressed file: decompress it first"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '\ufeff{"text": "one"}'),
        ("a.csv", "\ufefftext\none\n"),
        ("a.tsv", '\ufeff"text"\none\n'),
        ("a.txt", "\ufeffone"),
    ],
)
def test_a_byte_order_mark_at_the_start_is_dropped(write: Write, name: str, content: str) -> None:
    assert [document.text for document in read(write(name, content))] == ["one"]


@pytest.mark.parametrize(
    ("name", "lines", "before"),
    [
        ("a.jsonl", False, b'\xef\xbb\xbf{"text": "one"}\n{"text": "caf'),
        ("a.csv", False, b"text\ncaf"),
        ("a.tsv", False, b"\xef\xbb\xbftext\ncaf"),
        ("a.txt", False, b"\xef\xbb\xbfone\ncaf"),
        ("a.txt", True, b"one\ncaf"),
    ],
)
def test_bytes_that_are_not_utf8_are_refused(write: Write, name: str, lines: bool, before: bytes) -> None:
    path = write(name, before + b'\xe9"}\n')
    assert str(refusal(path, lines=lines)) == (
        f"{path}, line 2: byte 0xE9 at offset {len(before)} is not UTF-8: convert the file first, for example"
        " with `iconv -f LATIN1 -t UTF-8`"
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_recognised(write: Write, name: str, encoding: str) -> None:
    error = refusal(write(name, '\ufeff{"text": "one"}\n'.encode(encoding)))
    assert "iconv -f UTF-16 -t UTF-8" in str(error)


def test_a_record_that_is_not_utf8_is_skipped_as_a_whole(write: Write) -> None:
    path = write("a.csv", b'id,text\n1,"one\n\xff\ntwo"\n2,"three\nfour"\n')
    documents, errors = read_all(path)
    assert documents == [Document("2", "three\nfour")]
    assert [place(error) for error in errors] == [(path, 3, None)]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b"text\na\0b\n"), ("a.tsv", b"text\na\0b\n"), ("a.txt", b"a\0b")]
)
def test_a_nul_is_kept(write: Write, name: str, content: bytes) -> None:
    assert [document.text for document in read(write(name, content))] == ["a\0b"]


# JSON Lines


def test_jsonl_keeps_the_types_of_metadata(write: Write) -> None:
    fields = {"n": 3, "x": 1.5, "yes": True, "none": None, "tags": ["a", {"b": [1]}], "by": {"name": "Ada"}}
    path = write("a.jsonl", json.dumps({"id": "a", "text": "one", **fields}))
    [document] = read(path)
    assert document == Document("a", "one", fields)
    assert [type(value) for value in document.metadata.values()] == [int, float, bool, type(None), list, dict]


def test_jsonl_skips_blank_lines_and_counts_them(write: Write) -> None:
    path = write("a.jsonl", '\n{"text": "one"}\n  \r\n{"text": 2}\n')
    documents, errors = read_all(path)
    assert [document.text for document in documents] == ["one"]
    assert [place(error) for error in errors] == [(path, 4, "text")]


def test_jsonl_takes_a_text_of_many_megabytes(write: Write) -> None:
    text = "ä word " * 800_000
    path = write("a.jsonl", json.dumps({"text": text}) + "\n" + '{"text": "two"}\n')
    assert [document.text for document in read(path)] == [text, "two"]


def test_jsonl_separates_lines_at_line_feeds_only(write: Write) -> None:
    text = "one\u2028two\x85three\x0cfour"
    [document] = read(write("a.jsonl", json.dumps({"text": text}, ensure_ascii=False)))
    assert document.text == text


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": one}', "is not JSON: Expecting value at column 10"),
        ('{"text": "one"', "is not JSON: Expecting ',' delimiter at column 15"),
        ('{"text": "one"} x', "is not JSON: Extra data at column 17"),
        ('{"text": "a\tb"}', "is not JSON: Invalid control character at column 12"),
        ("{'text': 1}", "is not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("\ufeff{}", "begins with a byte order mark, as where files were joined: remove it"),
        ('"one"', 'a line must be a JSON object, not a string: "one"'),
        ("12", "a line must be a JSON object, not a number: 12"),
        ("null", "a line must be a JSON object, not null: null"),
        ('[{"a": 1}]', "a line must be a JSON object, not an array: convert a JSON array with `jq -c '.[]'`"),
    ],
)
def test_jsonl_refuses_what_is_not_an_object(write: Write, line: str, problem: str) -> None:
    path = write("a.jsonl", f'{{"text": "one"}}\n{line}\n{{"text": "two"}}\n')
    documents, errors = read_all(path)
    assert [str(error) for error in errors] == [f"{path}, line 2: {problem}"]
    assert [document.text for document in documents] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "hint"),
    [("[\n{}\n]", "jq -c '.[]'"), ("[{\n}]", "jq -c '.[]'"), ('\n{\n"text": "one"\n}', "jq -c .")],
)
def test_json_over_several_lines_is_refused_as_a_whole(write: Write, content: str, hint: str) -> None:
    documents, errors = read_all(write("a.json", content))
    assert documents == []
    assert [error.problem for error in errors] == [
        f"is JSON over several lines, JSON Lines have one object per line: convert it with `{hint}`"
    ]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("NaN", "nan is not a number that JSON has; leave the field out or use null"),
        ("[1, -Infinity]", "-inf is not a number that JSON has; leave the field out or use null"),
        ("1e999", "inf is not a number that JSON has; leave the field out or use null"),
        ("9223372036854775808", "integer 9223372036854775808 does not fit in 64 bits; give it as a string"),
        ("-9223372036854775809", "integer -9223372036854775809 does not fit in 64 bits; give it as a string"),
        (r'"\ud800"', "has a lone surrogate, which is not valid Unicode"),
        ("[" * 101 + "]" * 101, "is nested deeper than 100 levels: flatten it"),
    ],
)
def test_a_value_that_cannot_be_kept_is_refused(write: Write, value: str, problem: str) -> None:
    path = write("a.jsonl", f'{{"text": "one", "n": {value}}}\n')
    assert str(refusal(path)) == f"{path}, line 1, field 'n': {problem}"


def test_the_limits_of_integers_and_nesting_are_kept_exactly(write: Write) -> None:
    nested = "[" * 100 + "]" * 100
    path = write("a.jsonl", f'{{"text": "one", "a": {2**63 - 1}, "b": {-(2**63)}, "c": {nested}}}\n')
    assert read(path)[0].metadata == {"a": 2**63 - 1, "b": -(2**63), "c": json.loads(nested)}


def test_the_field_of_all_metadata_may_be_one_level_deeper(write: Write) -> None:
    nested = "[" * 100 + "]" * 100
    path = write("a.jsonl", f'{{"text": "one", "m": {{"d": {nested}}}}}\n{{"text": "two", "n": {{"d": {nested}}}}}\n')
    documents, errors = read_all(path, metadata_field="m")
    assert [document.metadata for document in documents] == [{"m": {"d": json.loads(nested)}}]
    assert [str(error) for error in errors] == [
        f"{path}, line 2, field 'n': is nested deeper than 100 levels: flatten it"
    ]


def test_the_field_of_a_nested_fault_is_a_path(write: Write) -> None:
    assert refusal(write("a.jsonl", '{"text": "one", "by": {"x.y": [{"n": NaN}]}}')).field == r"by.x\.y.n"


def test_a_lone_surrogate_in_a_name_is_refused(write: Write) -> None:
    error = refusal(write("a.jsonl", r'{"text": "one", "\ud800": 1}'))
    assert error.problem == r"key '\ud800' has a lone surrogate"


def test_two_fields_of_one_name_are_refused(write: Write) -> None:
    path = write(
        "a.jsonl",
        '{"text": "one", "n": 1, "text": "two"}\n'
        '{"text": "three", "m": [{"a": {"": 1, "\\u0000": 2, "": 1}}]}\n'
        '{"text": "four", "m": {"text": 1}}\n',
    )
    documents, errors = read_all(path)
    assert [document.text for document in documents] == ["four"]
    assert [str(error) for error in errors] == [
        f'{path}, line 1: two fields of one object are named "text": rename one, or leave it out',
        f'{path}, line 2: two fields of one object are named "": rename one, or leave it out',
    ]


def test_an_integer_of_thousands_of_digits_is_refused(write: Write) -> None:
    error = refusal(write("a.jsonl", '{"text": "one", "n": ' + "9" * 5000 + "}"))
    assert error.problem == "an integer of thousands of digits does not fit in 64 bits; give it as a string"


def test_a_long_value_is_cut_in_the_message(write: Write) -> None:
    error = refusal(write("a.jsonl", '{"text": "one", "n": ' + "9" * 4000 + "}"))
    assert len(str(error)) < 500
    assert error.problem.endswith("9 does not fit in 64 bits; give it as a string")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("field", ["text", "id", "other"])
def test_nesting_without_end_is_refused(write: Write, opening: str, field: str) -> None:
    path = write("a.jsonl", f'{{"text": "one", "{field}": {opening * 100_000}\n{{"text": "two"}}\n')
    gc.collect()  # what other tests have left could not be finalised at the depth that the parser reaches
    documents, errors = read_all(path)
    assert [document.text for document in documents] == ["two"]
    assert [error.line for error in errors] == [1]


# CSV and TSV


def test_csv_cells_are_typed(write: Write) -> None:
    cells = {
        "int": ("12", 12),
        "negative": ("-3", -3),
        "zero": ("0", 0),
        "float": ("1.50", 1.5),
        "exponent": ("1e3", 1000.0),
        "signed": ("-2.5E-1", -0.25),
        "biggest": (str(2**63 - 1), 2**63 - 1),
        "too_big": (str(2**63), str(2**63)),
        "far_too_big": ("9" * 5000, "9" * 5000),
        "infinite": ("1e999", "1e999"),
        "padded": ("007", "007"),
        "plus": ("+1", "+1"),
        "point": (".5", ".5"),
        "open": ("5.", "5."),
        "space": (" 5", " 5"),
        "hex": ("0x10", "0x10"),
        "underscore": ("1_000", "1_000"),
        "arabic": ("٣", "٣"),
        "nan": ("NaN", "NaN"),
        "boolean": ("true", "true"),
    }
    path = write("a.csv", f"text,{','.join(cells)}\none,{','.join(cell for cell, _ in cells.values())}\n")
    [document] = read(path)
    expected = {name: value for name, (_, value) in cells.items()}
    assert document.metadata == expected
    assert [type(value) for value in document.metadata.values()] == [type(value) for value in expected.values()]


def test_csv_ids_and_texts_stay_as_they_are(write: Write) -> None:
    path = write("a.csv", "id,text,n\n007,1.50,\n1e3,12,\n")
    assert read(path) == [Document("007", "1.50"), Document("1e3", "12")]


def test_an_empty_csv_cell_is_absent(write: Write) -> None:
    assert read(write("a.csv", 'id,text,a,b\n1,one,,""\n')) == [Document("1", "one")]


def test_csv_quoting(write: Write) -> None:
    path = write("a.csv", 'id,text\r\n1,"a ""b"", c\r\nd\ne"\r\n2,5" pipe\r\n')
    assert read(path) == [Document("1", 'a "b", c\r\nd\ne'), Document("2", '5" pipe')]


def test_tsv_quoting(write: Write) -> None:
    path = write("a.tsv", 'id\ttext\n1\t"a\tb\n""c"""\n2\td, e\n')
    assert read(path) == [Document("1", 'a\tb\n"c"'), Document("2", "d, e")]


@settings(deadline=None)
@given(st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=3, max_size=3), min_size=1))
def test_csv_reads_what_the_csv_module_writes(rows: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow(["text", "a", "b"])
            writer.writerows([["." + text, "x" + a, "x" + b] for text, a, b in rows])
        documents = read(path)
    assert [(document.text, document.metadata["a"], document.metadata["b"]) for document in documents] == [
        ("." + text, "x" + a, "x" + b) for text, a, b in rows
    ]


def test_a_csv_field_may_be_longer_than_the_csv_module_allows(write: Write) -> None:
    before = csv.field_size_limit()
    text = "long " * 1_000_000
    documents = read_documents([write("a.csv", f'text\n"{text}"\nshort\n')])
    assert next(documents).text == text
    assert csv.field_size_limit() == before
    assert next(documents).text == "short"


def test_two_threads_read_long_csv_fields(write: Write) -> None:
    before = csv.field_size_limit()
    path = write("a.csv", "text\n" + ("x" * 200_000 + "\n") * 50)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(len(read(path)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [50] * 4
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("id,,text", "column 2 has no name: the header must name all"),
        ("id,text, ", "column 3 has no name: the header must name all"),
        ("a,text,a", "two columns are named 'a': rename one"),
        ("a\xff,text", "byte 0xFF at offset 1 is not UTF-8: convert the file first, for example with"),
        ('"a"b,text', "text follows a closing quote: write a quote inside a quoted field twice"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_as_a_whole(write: Write, header: str, problem: str) -> None:
    path = write("a.csv", header.encode("latin-1") + b"\n1,2,3\n4,5,6\n")
    documents, errors = read_all(path)
    assert documents == []
    assert [place(error) for error in errors] == [(path, 1, None)]
    assert errors[0].problem.startswith(problem)


def test_a_csv_without_the_text_column_is_refused_once(write: Write) -> None:
    path = write("a.csv", "id,body\n1,one\n2,two\n")
    assert [str(error) for error in read_all(path)[1]] == [
        f'{path}, line 1, field \'text\': the text is missing; fields here are "id", "body": name the text\'s'
        " with --text-field"
    ]


@pytest.mark.parametrize(
    ("name", "header", "problem"),
    [
        ("a.csv", "id\ttext", "its cells look separated by tabs: pass --format tsv"),
        ("a.csv", '"sku"\t"name"', "its cells look separated by tabs: pass --format tsv"),
        ("a.tsv", "id,text", "its cells look separated by commas: pass --format csv"),
        ("a.csv", "id;text", "its cells look separated by semicolons, which are not read: convert it"),
        ("a.csv", "id;text;price, in euro", "its cells look separated by semicolons, which are not read: convert it"),
        ("a.csv", '"id";"text"', "its cells look separated by semicolons, which are not read: convert it"),
        ("a.csv", "sku|name", "its cells look separated by bars, which are not read: convert it"),
        ("a.csv", '"id","te"xt"', "text follows a closing quote"),
    ],
)
def test_another_separator_is_named_with_a_way_out(write: Write, name: str, header: str, problem: str) -> None:
    path = write(name, f"{header}\n1,one\n")
    (error,) = read_all(path)[1]
    assert place(error) == (path, 1, None)
    assert error.problem.startswith(problem)


def test_the_command_that_an_error_names_converts_to_commas(write: Write) -> None:
    path = write("a.csv", 'id;text;n\n1;Kettle, fast;3\n2;"a ""b"";c";4\n')
    command = refusal(path).problem.partition("`")[2].rstrip("`")
    done = subprocess.run(command, shell=True, input=Path(path).read_bytes(), stdout=subprocess.PIPE, check=True)
    converted = write("b.csv", done.stdout)
    assert [(one.id, one.text, one.metadata) for one in read_all(converted)[0]] == [
        ("1", "Kettle, fast", {"n": 3}),
        ("2", 'a "b";c', {"n": 4}),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("one,two", 'the text is missing; fields here are "one", "two": name the text\'s with --text-field'),
        ("one,", "column 2 has no name: the header must name all"),
        ("1,one,1", "two columns are named '1': rename one"),
    ],
)
def test_a_first_line_that_is_no_header_is_a_way_out(write: Write, line: str, problem: str) -> None:
    (error,) = read_all(write("a.csv", f"{line}\n2,two\n"))[1]
    assert error.problem == f"{problem}, or put a header above this line where it is none"


def test_a_csv_without_the_id_column_is_refused_once(write: Write) -> None:
    path = write("a.csv", "id,text\n1,one\n2,two\n")
    assert [str(error) for error in read_all(path, id_field="key")[1]] == [
        f"{path}, line 1, field 'key': the id is missing or null;"
        ' fields here are "id", "text": name the id\'s with --id-field'
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("3,x,y", "this row has 3 cells, the header has 2 cells"),
        ("3", "this row has 1 cell, the header has 2 cells"),
        ('3,"a" b', "text follows a closing quote: write a quote inside a quoted field twice"),
        ("3,a\rb", "a carriage return stands outside of quotes: convert the line ends, for example with"),
        ("3,", "text is empty"),
    ],
)
def test_a_bad_csv_row_is_named_by_the_line_where_it_starts(write: Write, row: str, problem: str) -> None:
    path = write("a.csv", f'id,text\n1,"one\nmore"\n\n{row}\n4,four\n')
    documents, errors = read_all(path)
    assert [document.id for document in documents] == ["1", "4"]
    assert [(error.source, error.line) for error in errors] == [(path, 5)]
    assert errors[0].problem.startswith(problem)


def test_an_open_quote_is_named_by_the_line_where_its_row_starts(write: Write) -> None:
    path = write("a.csv", 'id,text\n1,one\n2,"two\n3,three\n4,""\n5,"five ""5"""\n')
    documents, errors = read_all(path)
    assert [(document.id, document.text) for document in documents] == [("1", "one"), ("3", "three"), ("5", 'five "5"')]
    assert [str(error) for error in errors] == [
        f"{path}, line 3: text follows a closing quote: write a quote inside a quoted field twice",
        f"{path}, line 5, field 'text': text is empty",
    ]
    path = write("b.csv", 'id,text\n1,one\n2,"two\n3,three\n')
    documents, errors = read_all(path)
    assert [document.id for document in documents] == ["1", "3"]
    assert [str(error) for error in errors] == [
        f"{path}, line 3: a quote that opens in this row is still open at the end of the file: write a quote"
        " inside a quoted field twice"
    ]


def test_rows_behind_an_open_quote_are_read_at_most_twice(write: Write) -> None:
    rows = "".join(f'{n},"two ""{n}\n{n}b,three\n' for n in range(20_000))
    documents, errors = read_all(write("a.csv", f"id,text\n{rows}"))
    assert [document.id for document in documents] == [f"{n}b" for n in range(20_000)]
    assert [error.line for error in errors] == [2 * n + 2 for n in range(20_000)]


def test_rows_that_each_open_a_quote_without_end_take_linear_time(write: Write) -> None:
    # Cells joined by '","', as some scripts write them: each row closes the quote of the one before, and opens another.
    path = write("a.csv", "id,text\n" + "".join(f'{n}","text {n}\n' for n in range(20_000)))
    started = time.process_time()
    documents, errors = read_all(path)
    assert time.process_time() - started < 20  # half a second; it took minutes when each row read all that follow
    assert documents == []
    assert [error.line for error in errors] == list(range(2, 20_002))


def test_a_row_that_ends_with_the_wrong_number_of_cells_gives_back_the_rows_inside(write: Write) -> None:
    path = write("a.csv", 'id,text\n1,"a\n2,good b\n3,good c\n4,d",\n5,"good\ne"\n')
    documents, errors = read_all(path)
    assert [(document.id, document.text) for document in documents] == [
        ("2", "good b"),
        ("3", "good c"),
        ("5", "good\ne"),
    ]
    assert [str(error) for error in errors] == [
        f"{path}, line 2: this row has 3 cells, the header has 2 cells",
        f"{path}, line 5: this row has 3 cells, the header has 2 cells",
    ]


def test_a_good_row_is_found_inside_of_one_with_too_many_cells(write: Write) -> None:
    path = write("a.csv", 'id,text\n1,"a","b\n2,"c\n3,d"\n4,"e""\n')
    documents, errors = read_all(path)
    assert [(document.id, document.text) for document in documents] == [("2", "c\n3,d")]
    assert [error.line for error in errors] == [2, 5]


def rows_one_by_one(content: str) -> list[tuple[int, str | None]]:
    """(line, text) of each row that is not blank, `None` for a bad one, after which the line behind its first is next.

    By the csv module from each row's line on, which takes quadratic time.
    """
    lines = content.splitlines(keepends=True)
    rows: list[tuple[int, str | None]] = []
    at = 0
    while at < len(lines):
        reader = csv.reader(lines[at:], strict=True)
        try:
            cells = next(reader)
        except csv.Error:
            cells = []
            bad = True
        else:
            bad = len(cells) not in (0, 2)
        if bad or cells:
            rows.append((at + 2, None if bad else cells[0]))
        at += 1 if bad else reader.line_num
    return rows


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(['"', '"', '""', '","', ",", "\n", "a", "b,c\n", 'x,"']), min_size=1, max_size=30))
def test_rows_with_any_quoting_are_those_of_the_csv_module(pieces: list[str]) -> None:
    content = "".join(pieces)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_text(f"text,n\n{content}", encoding="utf-8")
        documents, errors = read_all(path)
    wanted = rows_one_by_one(content)
    assert [document.text for document in documents] == [text for _, text in wanted if text and text.strip()]
    assert [error.line for error in errors if error.line] == [
        line for line, text in wanted if text is None or not text.strip()
    ]


def test_a_quote_without_end_takes_in_so_many_lines_and_no_more(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_QUOTED_LINES", 100)
    path = write("a.csv", 'id,text\n0,"stray\n' + "".join(f"{n},some text of row {n}\n" for n in range(1, 20_001)))
    tracemalloc.start()
    try:
        errors: list[InputError] = []
        count = sum(1 for _ in read_documents([path], on_error=errors.append))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 2**20
    assert [str(error) for error in errors] == [
        f"{path}, line 2: a quote that opens in this row is still open 100 lines and 2,293 bytes on, at most 100 lines"
        " and 67,108,864 bytes are read: write a quote inside a quoted field twice, and longer texts as JSON Lines"
    ]


def test_a_row_may_be_as_long_as_the_limits_say(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.csv", 'id,text\n1,"' + "x\n" * 5 + '"\n2,two\n')
    monkeypatch.setattr(delimited, "MAX_QUOTED_LINES", 5)
    assert read(path) == [Document("1", "x\n" * 5), Document("2", "two")]
    monkeypatch.setattr(delimited, "MAX_QUOTED_LINES", 4)
    assert "is still open 4 lines and 13 bytes on, at most 4 lines" in str(refusal(path))
    monkeypatch.undo()
    monkeypatch.setattr(delimited, "MAX_QUOTED_BYTES", 13)
    assert "is still open 4 lines and 13 bytes on, at most 250,000 lines and 13 bytes" in str(refusal(path))


def test_a_reader_that_waits_for_a_row_holds_up_no_other(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.csv", "id,text\n1,one\n")
    before = csv.field_size_limit()
    receiver, sender = os.pipe()
    with open(receiver) as reader:
        with open(sender, "wb", buffering=0) as writer:
            monkeypatch.setattr(sys, "stdin", reader)
            piped: list[Document] = []
            waiting = threading.Thread(target=lambda: piped.extend(read("-", format="csv")))
            waiting.start()
            writer.write(b'id,text\n2,"two\n')
            time.sleep(0.2)
            other: list[Document] = []
            quick = threading.Thread(target=lambda: other.extend(read(path)), daemon=True)
            quick.start()
            quick.join(timeout=20)
            assert csv.field_size_limit() == before
            writer.write(b'more"\n')
        waiting.join(timeout=20)
        quick.join(timeout=20)
    assert other == [Document("1", "one")]
    assert piped == [Document("2", "two\nmore")]


# Text


def test_a_text_file_is_one_document(write: Write) -> None:
    path = write("a.md", "# One\n\ntwo\r\n\n")
    assert read(path) == [Document(content_hash({"text": "# One\n\ntwo\r\n"}), "# One\n\ntwo\r\n", {"path": path})]


@pytest.mark.parametrize(
    ("content", "text"), [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\r", "a\r"), (" a ", " a ")]
)
def test_one_line_end_is_dropped(write: Write, content: str, text: str) -> None:
    assert [document.text for document in read(write("a.txt", content))] == [text]


def test_lines_of_a_text_file_are_documents(write: Write) -> None:
    path = write("a.txt", "one\n \t\n\r\n  two\r\nthree")
    assert read(path, lines=True) == [
        Document(content_hash({"text": "one"}), "one", {"path": path, "line": 1}),
        Document(content_hash({"text": "  two"}), "  two", {"path": path, "line": 4}),
        Document(content_hash({"text": "three"}), "three", {"path": path, "line": 5}),
    ]


def test_a_text_file_of_white_space_is_refused(write: Write) -> None:
    path = write("a.txt", " \n\t\n")
    assert str(refusal(path)) == f"{path}, field 'text': text is empty"


def test_the_path_may_be_the_id_of_a_text_file(write: Write) -> None:
    path = write("a.txt", "one")
    assert read(path, id_field="path") == [Document(path, "one")]


# Ids


def test_without_an_id_it_is_a_hash_of_the_content(write: Write) -> None:
    path = write("a.jsonl", '{"text": "grün", "n": 1}\n{"n": 1, "text": "grün"}\n{"text": "grün", "n": 2}\n')
    assert [document.id for document in read(path)] == [
        hashlib.sha256('{"n":1,"text":"grün"}'.encode()).hexdigest()[:32],
        hashlib.sha256('{"n":1,"text":"grün"}'.encode()).hexdigest()[:32],
        hashlib.sha256('{"n":2,"text":"grün"}'.encode()).hexdigest()[:32],
    ]


def test_a_line_keeps_its_id_when_it_moves(write: Write) -> None:
    before, after = write("a.txt", "one\ntwo\n"), write("b.txt", "two\nnew\none\n")
    ids = {document.text: document.id for document in read(before, lines=True)}
    moved = {document.text: document.id for document in read(after, lines=True)}
    assert moved.items() >= ids.items()


@pytest.mark.parametrize(("value", "id"), [('"a b"', "a b"), ('"007"', "007"), ("7", "7"), ("-1", "-1")])
def test_ids(write: Write, value: str, id: str) -> None:
    assert read(write("a.jsonl", f'{{"id": {value}, "text": "one", "n": 1}}')) == [Document(id, "one", {"n": 1})]


def test_a_null_id_falls_back_to_the_hash(write: Write) -> None:
    assert read(write("a.jsonl", '{"id": null, "text": "one"}')) == [
        Document(content_hash({"id": None, "text": "one"}), "one")
    ]


def test_another_field_may_be_the_id(write: Write) -> None:
    path = write("a.jsonl", '{"id": "a", "key": "k", "text": "one"}')
    assert read(path, id_field="key") == [Document("k", "one", {"id": "a"})]


@pytest.mark.parametrize("record", ['{"text": "one", "n": 1}', '{"key": null, "text": "one"}'])
def test_an_id_field_that_is_named_must_be_there(write: Write, record: str) -> None:
    error = refusal(write("a.jsonl", record), id_field="key")
    assert error.field == "key"
    assert error.problem.startswith("the id is missing or null; fields here are ")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("true", "an id must be a string or an integer, not a boolean: true"),
        ("1.0", "an id must be a string or an integer, not a number: 1.0"),
        ("NaN", "an id must be a string or an integer, not a number: NaN"),
        ('["a"]', 'an id must be a string or an integer, not an array: ["a"]'),
        ('{"a": 1}', 'an id must be a string or an integer, not an object: {"a": 1}'),
        ('""', 'an id must have at least one character: ""'),
        (r'"a\ud800"', r"an id must be valid Unicode, without lone surrogates: 'a\ud800'"),
        (r'"a\nb"', r'an id cannot have control characters: "a\nb"'),
        (r'"a\u0085"', 'an id cannot have control characters: "a\x85"'),
        (f'"{"x" * 1001}"', f'an id can have 1,000 characters, not 1,001: "{"x" * 29}…{"x" * 29}"'),
        (str(2**63), f"integer {2**63} does not fit in 64 bits; give it as a string"),
    ],
)
def test_ids_that_are_refused(write: Write, value: str, problem: str) -> None:
    path = write("a.jsonl", f'{{"id": {value}, "text": "one"}}')
    assert str(refusal(path)) == f"{path}, line 1, field 'id': {problem}"


def test_an_id_may_have_a_thousand_code_points(write: Write) -> None:
    id = "😀" * 1000
    assert read(write("a.jsonl", json.dumps({"id": id, "text": "one"})))[0].id == id


# Texts


def test_several_text_fields_are_joined_in_the_order_given(write: Write) -> None:
    path = write("a.jsonl", '{"id": 1, "body": "b", "title": "t", "text": "x"}')
    assert read(path, text_fields=("title", "body")) == [Document("1", "t\nb", {"text": "x"})]


@pytest.mark.parametrize("title", ["", ', "title": null', ', "title": ""', ', "title": " \\n"'])
def test_one_of_several_text_fields_is_enough(write: Write, title: str) -> None:
    path = write("a.jsonl", f'{{"id": 1, "body": "b"{title}}}')
    assert read(path, text_fields=("title", "body")) == [Document("1", "b")]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ('{"a": 1}', 'the text is missing; fields here are "a": name the text\'s with --text-field'),
        ("{}", "the text is missing; the record has no field: name the text's with --text-field"),
        ('{"a": 1, "text": null}', "the text is null"),
        (
            json.dumps({f"f{n}": n for n in range(12)}),
            'the text is missing; fields here are "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9"'
            " and 2 more: name the text's with --text-field",
        ),
        ('{"text": 12}', "the text must be a string, not a number: 12"),
        ('{"text": ["a"]}', 'the text must be a string, not an array: ["a"]'),
        ('{"text": ""}', "text is empty"),
        ('{"text": " \\n\\u00a0"}', "text is empty"),
        ('{"text": "a\\udc00"}', "the text has a lone surrogate, which is not valid Unicode"),
    ],
)
def test_texts_that_are_refused(write: Write, record: str, problem: str) -> None:
    path = write("a.jsonl", record)
    assert str(refusal(path)) == f"{path}, line 1, field 'text': {problem}"


@pytest.mark.parametrize(
    ("record", "field", "problem"),
    [
        ('{"n": 1}', None, 'none of the text fields "a", "b" is there; fields here are "n"'),
        ('{"a": "", "b": " "}', "a", "text is empty"),
        ('{"a": "one", "b": 2}', "b", "the text must be a string, not a number: 2"),
    ],
)
def test_several_text_fields_that_are_refused(write: Write, record: str, field: str | None, problem: str) -> None:
    error = refusal(write("a.jsonl", record), text_fields=("a", "b"))
    assert (error.field, error.problem) == (field, problem)


# Parquet


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def test_parquet_values_become_json_values(tmp_path: Path) -> None:
    moment = datetime(2020, 1, 2, 3, 4, 5)
    columns = {
        "id": pa.array([1]),
        "text": pa.array(["one"], pa.large_string()),
        "int": pa.array([3], pa.int8()),
        "half": pa.array([1.5], pa.float16()),
        "bool": pa.array([True]),
        "null": pa.array([None], pa.string()),
        "date": pa.array([date(2020, 1, 2)]),
        "local": pa.array([moment], pa.timestamp("us")),
        "zoned": pa.array([moment.replace(tzinfo=UTC)], pa.timestamp("ms", "Europe/Zurich")),
        "nano": pa.array([1], pa.timestamp("ns")),
        "time": pa.array([1500], pa.time32("ms")),
        "price": pa.array([Decimal("19.99")]),
        "exact": pa.array([Decimal("0." + "3" * 30)]),
        "whole": pa.array([Decimal(5)], pa.decimal128(20, 0)),
        "huge": pa.array([Decimal(10**25)], pa.decimal128(38, 0)),
        "list": pa.array([["a", None]]),
        "struct": pa.array([{"a": 1, "b": None, "c": [date(2020, 1, 2)]}]),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "category": pa.array(["red"]).dictionary_encode(),
    }
    [document] = read(write_parquet(tmp_path / "a.parquet", columns))
    assert (document.id, document.text) == ("1", "one")
    assert document.metadata == {
        "int": 3,
        "half": 1.5,
        "bool": True,
        "date": "2020-01-02",
        "local": "2020-01-02T03:04:05",
        "zoned": "2020-01-02T03:04:05+00:00",
        "nano": "1970-01-01T00:00:00.000000001",
        "time": "00:00:01.500000",
        "price": 19.99,
        "exact": "0." + "3" * 30,
        "whole": 5,
        "huge": str(10**25),
        "list": ["a", None],
        "struct": {"a": 1, "c": ["2020-01-02"]},
        "map": {"k": 1},
        "category": "red",
    }


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (pa.array([b"x"]), "a value of type binary has no place in JSON: convert or drop this column"),
        (pa.array([[b"x"]]), "a value of type binary has no place in JSON: convert or drop this column"),
        (
            pa.array([1], pa.duration("s")),
            "a value of type duration[s] has no place in JSON: convert or drop this column",
        ),
        (pa.array([[(1, 2)]], pa.map_(pa.int64(), pa.int64())), "a map must have strings as keys"),
        (pa.array([2**62], pa.timestamp("ms")), "the time is not within the years 1 to 9999"),
        (
            pa.array([float("nan")]),
            "nan is not a number that JSON has; leave the field out or use null",
        ),
        (
            pa.array([2**64 - 1], pa.uint64()),
            f"integer {2**64 - 1} does not fit in 64 bits; give it as a string",
        ),
    ],
)
def test_parquet_values_that_are_refused(tmp_path: Path, column: Any, problem: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": ["one"], "x": column})
    assert str(refusal(path)) == f"{path}, line 1, field 'x': {problem}"


def test_a_parquet_string_that_is_not_utf8_is_refused_alone(tmp_path: Path) -> None:
    buffers = pa.array([b"one", b"\xff", b"three"]).buffers()
    texts = pa.Array.from_buffers(pa.string(), 3, buffers)
    path = write_parquet(tmp_path / "a.parquet", {"text": texts})
    documents, errors = read_all(path)
    assert [document.text for document in documents] == ["one", "three"]
    assert [str(error) for error in errors] == [f"{path}, line 2, field 'text': byte 0xFF is not UTF-8"]


def test_parquet_rows_are_counted_over_batches_and_row_groups(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(1000)]
    path = write_parquet(tmp_path / "a.pq", {"text": [*texts, None]}, row_group_size=300)
    documents, errors = read_all(path)
    assert [document.text for document in documents] == texts
    assert [place(error) for error in errors] == [(path, 1001, "text")]


def test_a_parquet_file_without_a_row_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})
    assert str(refusal(path)) == f"{path}: is empty: there is no record in it"


def test_a_parquet_file_without_the_text_column_is_refused_once(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"body": ["one", "two"]})
    assert [place(error) for error in read_all(path)[1]] == [(path, None, "text")]


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["one"]), pa.array(["two"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").problem == "two columns are named 'text': rename one"


def test_a_file_that_is_not_parquet_is_refused(write: Write) -> None:
    path = write("a.parquet", "not at all")
    assert str(refusal(path)).startswith(f"{path}: cannot be read as Parquet: Parquet magic bytes not found")


def test_without_pyarrow_parquet_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": ["one"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert str(refusal(path)) == f"{path}: Parquet files need pyarrow: pip install 'tagdex[parquet]'"


# SQLite


def write_sqlite(path: Path, script: str) -> str:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return str(path)


def test_a_sqlite_table_keeps_the_types_of_metadata(tmp_path: Path) -> None:
    path = write_sqlite(
        tmp_path / "a.db",
        """
        CREATE TABLE notes (id, text, i INTEGER, r REAL, s TEXT, n, twice AS (i * 2));
        INSERT INTO notes VALUES (7, 'one', 3, 1.5, 'x', NULL), ('b', 'two', NULL, NULL, '007', NULL);
        """,
    )
    assert read(path) == [
        Document("7", "one", {"i": 3, "r": 1.5, "s": "x", "twice": 6}),
        Document("b", "two", {"s": "007"}),
    ]


@pytest.mark.parametrize(
    ("schema", "order"),
    [
        ("CREATE TABLE t (text)", ["c", "a", "b"]),
        ("CREATE TABLE t (text); CREATE INDEX i ON t (text)", ["c", "a", "b"]),
        ("CREATE TABLE t (text PRIMARY KEY)", ["c", "a", "b"]),
        ("CREATE TABLE t (text PRIMARY KEY) WITHOUT ROWID", ["a", "b", "c"]),
        ("CREATE TABLE t (text, rowid AS (text)); CREATE INDEX i ON t (text)", ["c", "a", "b"]),
    ],
)
def test_sqlite_rows_come_in_the_order_of_the_table(tmp_path: Path, schema: str, order: list[str]) -> None:
    path = write_sqlite(tmp_path / "a.db", f"{schema}; INSERT INTO t VALUES ('c'), ('a'), ('b')")
    assert [document.text for document in read(path)] == order


def test_a_sqlite_table_is_chosen_by_name(tmp_path: Path) -> None:
    path = write_sqlite(
        tmp_path / "a b?#%41.db",
        """
        CREATE TABLE "we""ird" (text); INSERT INTO "we""ird" VALUES ('one');
        CREATE TABLE other (text); INSERT INTO other VALUES ('two');
        CREATE VIEW shout AS SELECT upper(text) AS text FROM other;
        """,
    )
    assert [document.text for document in read(path, table='we"ird')] == ["one"]
    assert [document.text for document in read(path, table="shout")] == ["TWO"]
    listed = "'other', 'shout', 'we\"ird'"
    assert str(refusal(path)) == f"{path}: there are several tables: choose one with --table from {listed}"
    assert str(refusal(path, table="no")) == f"{path}: there is no table 'no': tables are {listed}"


@pytest.mark.parametrize("script", ["CREATE TABLE t (text)", "CREATE TABLE t (text); DROP TABLE t"])
def test_a_sqlite_file_without_a_row_is_refused(tmp_path: Path, script: str) -> None:
    assert refusal(write_sqlite(tmp_path / "a.db", script)).problem.startswith("is empty: ")


def test_a_blob_is_refused_with_its_row(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path / "a.db", "CREATE TABLE t (text, x); INSERT INTO t VALUES ('one', 1), ('two', x'00')")
    documents, errors = read_all(path)
    assert [document.text for document in documents] == ["one"]
    assert [str(error) for error in errors] == [
        f"{path}, line 2, field 'x': a BLOB has no place in a document: make a view without this column and"
        " name it with --table"
    ]


def test_a_sqlite_text_that_is_not_utf8_is_refused_alone(tmp_path: Path) -> None:
    path = write_sqlite(
        tmp_path / "a.db",
        "CREATE TABLE t (text); INSERT INTO t VALUES ('one'), (CAST(x'ff' AS TEXT)), ('three')",
    )
    documents, errors = read_all(path)
    assert [document.text for document in documents] == ["one", "three"]
    assert [place(error) for error in errors] == [(path, 2, "text")]


def test_an_infinite_real_is_refused(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path / "a.db", "CREATE TABLE t (text, x); INSERT INTO t VALUES ('one', 9e999)")
    assert place(refusal(path)) == (path, 1, "x")


def test_a_sqlite_table_without_the_text_column_is_refused_once(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path / "a.db", "CREATE TABLE t (body); INSERT INTO t VALUES ('a'), ('b')")
    assert [place(error) for error in read_all(path)[1]] == [(path, None, "text")]


def test_a_file_that_is_not_sqlite_is_refused(write: Write) -> None:
    path = write("a.db", "not at all " * 100)
    assert str(refusal(path)) == f"{path}: cannot be read as SQLite: file is not a database"


def test_a_sqlite_file_is_opened_for_reading_only(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    write_sqlite(path, "CREATE TABLE t (text); INSERT INTO t VALUES ('one'), ('two')")
    before = path.read_bytes()
    documents = read_documents([path])
    next(documents)
    assert sorted(os.listdir(tmp_path)) == ["a.db"]
    assert len(list(documents)) == 1
    assert path.read_bytes() == before


# Progress and memory


@pytest.fixture
def every_format(tmp_path: Path) -> list[str]:
    """A file of each format and compression, 500 documents in each but the plain text file."""
    rows = [{"id": str(number), "text": f"text {number} é", "n": number} for number in range(500)]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    delimited = "id,text,n\n" + "".join(f'{row["id"]},"{row["text"]}\nmore",{row["n"]}\n' for row in rows)
    paths = []
    for suffix, compress in COMPRESS.items():
        for name, content in (
            ("a.jsonl", jsonl),
            ("a.csv", delimited.encode()),
            ("a.tsv", delimited.replace(",", "\t").encode()),
            ("a.txt", jsonl),
        ):
            paths.append(tmp_path / (name + suffix))
            paths[-1].write_bytes(compress(content))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("CREATE TABLE t (id, text, n)")
        connection.executemany("INSERT INTO t VALUES (:id, :text, :n)", rows)
        connection.commit()
    return [str(path) for path in (*paths, tmp_path / "a.parquet", tmp_path / "a.db")]


def test_progress_adds_up_to_the_total(every_format: list[str]) -> None:
    steps: list[int] = []
    documents = read_documents(every_format, ReadOptions(lines=True), on_progress=steps.append)
    assert len(list(documents)) == 500 * len(every_format)
    assert sum(steps) == total_bytes(every_format) == sum(os.path.getsize(path) for path in every_format)
    assert min(steps) > 0


@pytest.mark.parametrize("name", ["a.parquet", "a.db"])
def test_progress_in_a_database_is_spread_over_its_rows(every_format: list[str], name: str) -> None:
    [path] = [path for path in every_format if path.endswith(name)]
    steps: list[int] = []
    documents = read_documents([path], on_progress=steps.append)
    for _ in range(250):
        next(documents)
    assert sum(steps) == os.path.getsize(path) // 2


def test_progress_counts_all_of_a_file_that_is_given_up(write: Write, tmp_path: Path) -> None:
    sources = [
        write("a.csv", "id,id\n" + "1,2\n" * 200_000),
        write("a.db", "not a database" * 100),
        write("a.txt.gz", gzip.compress(os.urandom(1000))[:-20]),
        write("a.jsonl", '{"text": 1}\n{"text": "one"}'),
        str(tmp_path / "missing.txt"),
    ]
    steps: list[int] = []
    documents = list(read_documents(sources, on_error=lambda _: None, on_progress=steps.append))
    assert len(documents) == 1
    assert sum(steps) == total_bytes(sources) == sum(os.path.getsize(path) for path in sources[:-1])


def test_the_total_counts_what_is_read_and_nothing_else(write: Write, tmp_path: Path) -> None:
    write("docs/a.txt", "12345")
    write("docs/sub/b.md", "123")
    write("docs/image.png", "1234567")
    assert total_bytes([tmp_path / "docs", write("c.csv", "text\none\n")]) == 17
    assert total_bytes([tmp_path / "docs"], ReadOptions(format="text")) == 15


@pytest.mark.parametrize("stdin", ["-", Path("-")])
def test_the_total_is_unknown_with_standard_input(write: Write, stdin: str | Path) -> None:
    assert total_bytes([write("a.txt", "one"), stdin]) is None


def test_standard_input_reports_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, "one\ntwo\n")
    steps: list[int] = []
    assert len(list(read_documents(["-"], on_progress=steps.append))) == 2
    assert sum(steps) == 8


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_an_error_of_the_callers_own_is_passed_on(every_format: list[str], name: str) -> None:
    [path] = [path for path in every_format if path.endswith(name)]

    def fail(_: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        list(read_documents([path], on_progress=fail))


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [("a.jsonl", 1), ("a.jsonl.gz", 1), ("a.csv.bz2", 1), ("a.tsv", 1), ("a.txt", 1), ("a.txt.xz", 9)],
)
def test_memory_does_not_grow_with_the_file(write: Write, name: str, megabytes: int) -> None:
    # xz needs 8 MiB for its window, whatever the file.
    line = b'{"text": "' + b"some text " * 100 + b'"}\n' if "jsonl" in name else b"some text " * 100 + b"\n"
    suffix = Path(name).suffix if name.count(".") > 1 else ""
    path = write(name, COMPRESS[suffix](b"text\n" * ("sv" in name) + line * 10_000))
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_documents([path], ReadOptions(lines=True)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < megabytes * 2**20


def test_a_stream_that_is_left_early_closes_its_file(every_format: list[str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in every_format:
        documents = read_documents([path], ReadOptions(lines=True))
        next(documents)
        documents.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


# Anything at all


def valid_file(name: str) -> bytes:
    """A small file of the format that the name says."""
    rows = [{"id": f"{number}", "text": f'a "{number}" é', "n": number, "by": {"x": [1]}} for number in range(5)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        match name.split(".")[1]:
            case "parquet":
                pq.write_table(pa.Table.from_pylist(rows), path, compression="none")
            case "db":
                write_sqlite(path, "CREATE TABLE t (id, text, n); INSERT INTO t VALUES (1, 'one é', 2), (2, 'b', 3)")
            case "csv":
                path.write_text('id,text,n\n1,"one, ""é""\nmore",2\n2,two,3.5\n')
            case "tsv":
                path.write_text('id\ttext\tn\n1\t"one ""é""\nmore"\t2\n2\ttwo\t3.5\n')
            case _:
                path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        content = path.read_bytes()
    return COMPRESS[Path(name).suffix if name.count(".") > 1 else ""](content)


NAMES = ["a.jsonl", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.db", "a.jsonl.gz", "a.csv.bz2", "a.txt.xz"]
VALID = {name: valid_file(name) for name in NAMES}


def check_any_bytes(name: str, data: bytes, *, lines: bool = False) -> None:
    """Whatever the bytes: documents that can be kept, `InputError`s, the right progress, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        errors: list[InputError] = []
        steps: list[int] = []
        options = ReadOptions(lines=lines)
        documents = list(read_documents([path], options, on_error=errors.append, on_progress=steps.append))
        assert sum(steps) == len(data)
    assert documents or errors
    assert all(error.source == str(path) for error in errors)
    for document in documents:
        assert document.id
        assert document.text.strip()
        assert list(metadata_problems(document.metadata)) == []
        assert json.loads(json.dumps(document.metadata)) == document.metadata


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), lines=st.booleans())
def test_random_bytes_never_raise_anything_else(name: str, data: bytes, lines: bool) -> None:
    check_any_bytes(name, data, lines=lines)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('{}[]":,\\ \t\r\n0123456789.-+eEuntrfalsidx\0é\ud800'), max_size=100))
def test_random_structure_never_raises_anything_else(name: str, text: str) -> None:
    header = {"a.jsonl": "", "a.csv": "id,text\n", "a.tsv": "id\ttext\n"}[name]
    check_any_bytes(name, (header + text).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(data=st.data(), lines=st.booleans())
def test_damaged_files_never_raise_anything_else(name: str, data: st.DataObject, lines: bool) -> None:
    damaged = bytearray(VALID[name])
    places = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
    for position, byte in data.draw(st.lists(places, min_size=1, max_size=5)):
        damaged[position] = byte
    cut = data.draw(st.none() | st.integers(0, len(damaged)))
    check_any_bytes(name, bytes(damaged[:cut]), lines=lines)


# Docstrings


@pytest.mark.parametrize("name", ["documents", "files", "parquet"])
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"indexer.readers.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
